//! `fender control` and `fender control init`: reads the documents, starts the control plane, and ends it when told to.

mod agent;
mod init;
mod observed;

use std::net::SocketAddr;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use fender_control::{
    ControlConfig, FilesUpstream, Foundation, OfflineUpstream, Postgres, Running, Sealing,
    StartError, StorePlace, UpstreamPlace, VaultUpstream,
};
use fender_identity::Secret;
use fender_providers::environment::Environment;
use fender_runtime::clock;
use fender_runtime::deadline::Deadline;
use fender_runtime::drain::Drain;
use fender_runtime::listen::{ListenAddress, Listeners};
use fender_runtime::sys;

use crate::exit::{Exit, Failure, Outcome};
use crate::programs::Helper;
use crate::signals::{self, Stop};
use crate::{admin_socket, cli, load, print, variables};

/// How long calls in flight may take once told to end. Sidecars reconnect elsewhere or later.
const GRACE: Duration = Duration::from_secs(5);

/// In the data directory.
const ADMIN_SOCKET: &str = "admin.sock";

/// What is said of the sealing key, with or without `init`.
pub(crate) fn sealing_of(args: &cli::Control) -> &cli::Sealing {
    match &args.command {
        Some(cli::ControlCommand::Init(foundation)) => &foundation.sealing,
        None => &args.foundation.sealing,
    }
}

/// Where the sealing key is, and, where it is in the environment, the key. To be called before threads.
pub(crate) fn sealing(args: &cli::Sealing) -> Result<Sealing, Failure> {
    if let Some(cli::NoSealing::NoneKeysInPlain) = args.sealing {
        return Ok(Sealing::InPlain);
    }
    if let Some(path) = &args.sealing_key_file {
        return Ok(Sealing::File(path.clone()));
    }
    if let Some(name) = &args.sealing_key_credential {
        let path = variables::service_credential("--sealing-key-credential", name)?;
        return Ok(Sealing::Credential(path));
    }
    if let Some(name) = &args.sealing_key_env {
        let value = sys::take_variable(name).ok_or_else(|| {
            Failure::usage(format!(
                "--sealing-key-env: the environment variable `{name}` is not set"
            ))
        })?;
        return Ok(Sealing::Variable {
            name: name.clone(),
            value: Secret::new(value.into_vec()),
        });
    }
    Ok(Sealing::DataDirectory)
}

pub(crate) async fn run(args: cli::Control, sealing: Sealing, environment: Environment) -> Outcome {
    if let Some(cli::ControlCommand::Init(foundation)) = args.command {
        return init::run(foundation, sealing).await;
    }
    if args.reissue_admin {
        let cli::Foundation {
            data_dir,
            admin_dir,
            replica,
            ..
        } = &args.foundation;
        let store = place(&args.foundation);
        let admin = admin_dir.as_deref();
        let (replica, clock) = (replica.clone(), clock::system());
        fender_control::reissue_admin(data_dir, admin, &sealing, &store, replica, clock)
            .await
            .map_err(failed)?;
        let directory = admin_dir.clone().unwrap_or_else(|| data_dir.join("admin"));
        return print(&format!("{}\n", directory.display()));
    }
    // One for each sidecar that is connected.
    if let Err(error) = sys::raise_descriptor_limit() {
        tracing::warn!(%error, "cannot raise the limit on open descriptors");
    }
    let mut stop = Stop::install(signals::hang_up()).map_err(Failure::unavailable)?;
    let helper = Helper::start(&args.allow_command).map_err(Failure::unavailable)?;
    let data_dir = args.foundation.data_dir.clone();
    let admin_socket = AdminSocket {
        given: args.admin_socket,
        otherwise: args.foundation.data_dir.join(ADMIN_SOCKET),
    };
    let telemetry_listen = args.health.telemetry_listen;
    let config = ControlConfig {
        foundation: foundation(args.foundation, sealing)?,
        listen: ListenAddress::Tcp(args.listen),
        replica_url: args.replica_url,
        dns_names: args.dns_names,
        allow_dirs: args.allow_dir,
        programs: helper.runner().map_err(Failure::unavailable)?,
        environment,
        cluster: variables::cluster(),
    };
    let drain = Drain::new();
    let running = fender_control::start(config, clock::system(), drain.clone())
        .await
        .map_err(failed)?;
    for warning in &running.warnings {
        tracing::warn!("{warning}");
    }
    observe(admin_socket, telemetry_listen, &running, &drain)?;
    tracing::info!(
        address = %running.address,
        trust_domain = %running.trust_domain,
        replica = %running.replica,
        revision = running.revision,
        administrator = %running.admin_dir.display(),
        "ready"
    );
    let embedded = Drain::new();
    let ended = tokio::select! {
        () = stop.requested() => Ok(Exit::Done),
        failed = served_with(&args.embedded, &running, &data_dir, &embedded) => Err(failed),
        () = running.superseded() => Err(Failure::unavailable(anyhow::anyhow!(
            "another process serves as the replica `{}` now",
            running.replica
        ))),
    };
    tracing::info!("stopping");
    embedded.close(Deadline::after(GRACE)).await;
    drain.close(Deadline::after(GRACE)).await;
    ended
}

/// The agent of this machine, if there is to be one. Returns only what keeps it from starting.
async fn served_with(
    args: &cli::Embedded,
    running: &Running,
    data_dir: &Path,
    drain: &Drain,
) -> Failure {
    match agent::start(args, running, data_dir, drain).await {
        Ok(()) => std::future::pending().await,
        Err(failure) => failure,
    }
}

struct AdminSocket {
    given: Option<PathBuf>,
    otherwise: PathBuf,
}

/// What was asked for must be had; what is there by default is missed, and serving goes on.
fn observe(
    socket: AdminSocket,
    address: Option<SocketAddr>,
    running: &Running,
    drain: &Drain,
) -> Result<(), Failure> {
    let listeners = Listeners::none();
    let observed = Arc::new(observed::Plane(running.clone()));
    if let Some(address) = address {
        let listener = admin_socket::bind_tcp(address, &listeners).map_err(Failure::unavailable)?;
        let observed = Arc::clone(&observed);
        drain.spawn(admin_socket::serve(listener, observed, drain.clone()));
    }
    let listener = match &socket.given {
        Some(path) => admin_socket::bind(path, &listeners).map_err(Failure::unavailable)?,
        None => match admin_socket::bind(&socket.otherwise, &listeners) {
            Ok(listener) => listener,
            Err(error) => {
                tracing::warn!("no admin socket: {error:#}");
                return Ok(());
            }
        },
    };
    drain.spawn(admin_socket::serve(listener, observed, drain.clone()));
    Ok(())
}

fn foundation(args: cli::Foundation, sealing: Sealing) -> Result<Foundation, Failure> {
    let documents = args.documents.as_deref().map(load::documents).transpose();
    let upstream = upstream(args.upstream.clone(), &args.data_dir);
    Ok(Foundation {
        store: place(&args),
        documents: documents.map_err(|error| Failure::new(Exit::Usage, error))?,
        data_dir: args.data_dir,
        admin_dir: args.admin_dir,
        trust_domain: args.trust_domain,
        sealing,
        replica: args.replica,
        upstream,
    })
}

/// Who signs the intermediates, as the flags, which need each other, say.
fn upstream(args: cli::Upstream, data_dir: &Path) -> Option<UpstreamPlace> {
    let cli::Upstream {
        root,
        upstream_certificate,
        upstream_key,
        upstream_roots,
        upstream_vault,
        upstream_vault_mount,
        upstream_vault_issuer,
        upstream_vault_namespace,
        upstream_vault_token_file,
        upstream_vault_ca,
    } = args;
    if let Some(cli::RootPlace::Offline) = root {
        let offline = OfflineUpstream::in_data_dir(data_dir);
        return Some(UpstreamPlace::Offline(offline));
    }
    if let (Some(certificate), Some(key), Some(roots)) =
        (upstream_certificate, upstream_key, &upstream_roots)
    {
        return Some(UpstreamPlace::Files(FilesUpstream {
            certificate,
            key,
            roots: roots.clone(),
        }));
    }
    Some(UpstreamPlace::Vault(VaultUpstream {
        url: upstream_vault?,
        mount: upstream_vault_mount,
        issuer: upstream_vault_issuer,
        namespace: upstream_vault_namespace,
        token: upstream_vault_token_file?,
        server_roots: upstream_vault_ca?,
        roots: upstream_roots,
    }))
}

fn place(args: &cli::Foundation) -> StorePlace {
    let Some(url) = args.store.clone() else {
        return StorePlace::DataDir;
    };
    StorePlace::Postgres(Postgres {
        url,
        password_file: args.store_password_file.clone(),
        roots: args.store_roots.clone(),
        certificate: args.store_certificate.clone().zip(args.store_key.clone()),
    })
}

fn failed(error: StartError) -> Failure {
    Failure::new(Exit::from_code(error.exit_code()), error)
}
