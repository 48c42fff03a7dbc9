//! The control plane from nothing to serving, in order: the documents are read, the port taken, what it stands on founded
//! or opened ([`founding`]), the own certificate made; then it listens.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Weak};

use fender_api::proto::control::v1::admin_server::AdminServer;
use fender_api::proto::control::v1::distribution_server::DistributionServer;
use fender_api::proto::control::v1::identity_server::IdentityServer;
use fender_api::proto::control::v1::nodes_server::NodesServer;
use fender_api::proto::control::v1::replicas_server::ReplicasServer;
use fender_api::tls::{IncomingLimits, MAX_APPLY, TlsIncoming};
use fender_api::url::ControlUrl;
use fender_config::HttpsUrl;
use fender_identity::TrustDomain;
use fender_identity::tls::CaPin;
use fender_providers::environment::Environment;
use fender_runtime::clock::SharedClock;
use fender_runtime::drain::Drain;
use fender_runtime::listen::{ListenAddress, Listener};
use fender_runtime::metrics::Exposition;
use fender_runtime::program::Runner;
use tokio::sync::{mpsc, watch};
use tonic::service::interceptor::InterceptedService;

use crate::admin::{self, AdminService};
use crate::attest::{IdentityService, STRANGER_FAILURES};
use crate::ca::CaError;
use crate::ca::seal::SealError;
use crate::clusters::Clusters;
use crate::control::Control;
use crate::credentials::Sources;
use crate::datadir::DataDirError;
use crate::decisions::{self, Decisions};
use crate::distribution::DistributionService;
use crate::documents::{LibraryError, Problem};
use crate::existing::IssuingAuthorities;
use crate::founding::{Foundation, Ground, Standing};
use crate::limit::Failures;
use crate::listings::Listings;
use crate::maintenance;
use crate::nodes::NodesService;
use crate::own::{Own, OwnError};
use crate::pace::Pace;
use crate::peers::PeersService;
use crate::registry::Registry;
use crate::store::audit::{self, Chain};
use crate::store::place::{PlaceError, StorePlace};
use crate::store::replicas::ReplicaName;
use crate::store::{Reader, StoreError};
use crate::telemetry::{self, Telemetry};

/// What a call to the identity service may weigh: a certificate request and a chain.
const MAX_IDENTITY_CALL: usize = 64 * 1024;
/// What another replica may ask at once: the names of a page of workloads, and of their credentials.
const MAX_PEERS_CALL: usize = 1024 * 1024;
/// What one report may weigh.
const MAX_REPORT: usize = 128 * 1024;
/// Refused administrative calls on their way to the audit log.
const REFUSED: usize = 64;

/// What a control plane is told at its start.
#[derive(Clone, Debug)]
pub struct ControlConfig {
    /// What it stands on; founded now where nothing is.
    pub foundation: Foundation,
    /// A TCP address.
    pub listen: ListenAddress,
    /// Where other replicas reach this one, if not where it listens.
    pub replica_url: Option<ControlUrl>,
    /// Names in the control plane's own certificate, for clients that verify names.
    pub dns_names: Vec<String>,
    /// Directories below which documents may name files for the control plane to read; none: it reads none.
    pub allow_dirs: Vec<PathBuf>,
    /// Runs the programs that documents may have it run for credentials.
    pub programs: Runner,
    /// The variables that documents may name, and what they held.
    pub environment: Environment,
    /// The API of the Kubernetes cluster that it runs in, if it does.
    pub cluster: Option<HttpsUrl>,
}

/// A control plane that serves. It ends with the [`Drain`] it was started with.
#[derive(Clone, Debug)]
pub struct Running {
    /// Where it listens, with the port the kernel chose.
    pub address: SocketAddr,
    pub trust_domain: TrustDomain,
    pub replica: ReplicaName,
    /// The administrator's `certificate.pem`, `key.pem` and `bundle.pem`.
    pub admin_dir: PathBuf,
    /// The revision of documents in force at the start.
    pub revision: u64,
    /// What is allowed but probably not meant, one sentence each.
    pub warnings: Vec<String>,
    /// What join tokens pin.
    pub ca_pins: Vec<CaPin>,
    /// Without the way to the writer, which ends when nobody can reach it any more.
    reader: Reader,
    superseded: watch::Receiver<bool>,
    /// Serving it ends when nothing serves any more.
    pub(crate) control: Weak<Control>,
}

impl Running {
    /// Resolves when another process has taken this replica's name: then this one must end.
    pub async fn superseded(&self) {
        let mut superseded = self.superseded.clone();
        if superseded.wait_for(|superseded| *superseded).await.is_err() {
            std::future::pending().await
        }
    }

    /// Follows the audit log's chain from its first entry.
    pub async fn verify_audit_log(&self) -> Result<Chain, StoreError> {
        audit::verify(&self.reader).await
    }

    /// Whether certificates can be issued and recorded now.
    pub async fn is_ready(&self) -> bool {
        match self.control.upgrade() {
            Some(control) => !control.drain.is_stopping() && telemetry::is_ready(&control).await,
            None => false,
        }
    }

    /// What a monitoring system reads, in the OpenMetrics text format.
    pub async fn metrics(&self) -> String {
        match self.control.upgrade() {
            Some(control) => telemetry::metrics(&control).await,
            None => Exposition::default().text(),
        }
    }

    #[cfg(test)]
    pub(crate) fn reader(&self) -> &Reader {
        &self.reader
    }

    /// Transactions committed since the start: many issuances share one.
    pub fn commits(&self) -> u64 {
        self.reader.commits()
    }
}

/// Starts a control plane. When this returns, it serves.
pub async fn start(
    config: ControlConfig,
    clock: SharedClock,
    drain: Drain,
) -> Result<Running, StartError> {
    let ControlConfig {
        foundation,
        listen,
        replica_url,
        dns_names,
        allow_dirs,
        programs,
        environment,
        cluster,
    } = config;
    let written = foundation.written()?;

    // Before anything is founded: a port that is taken must not leave a new authority behind.
    let listener = Listener::bind(&listen).map_err(|source| StartError::Listen {
        address: listen.clone(),
        source,
    })?;
    let ListenAddress::Tcp(address) = *listener.local_address() else {
        return Err(StartError::NotTcp { address: listen });
    };

    let url = match (
        replica_url.or_else(|| ControlUrl::of(address)),
        &foundation.store,
    ) {
        (Some(url), _) => url.to_string(),
        // It has no others that could want to reach it.
        (None, StorePlace::DataDir) => String::new(),
        (None, StorePlace::Postgres(_)) => return Err(StartError::NoReplicaUrl { address }),
    };
    let standing = Standing::open(&foundation, url, &drain).await?;
    let Ground {
        data,
        store,
        presence,
        authority,
        library,
        trust,
        mut warnings,
        ..
    } = standing.found(foundation, written.as_ref(), &clock).await?;
    let trust_domain = authority.trust_domain().clone();
    let own = Own::new(
        Arc::clone(&authority),
        store.clone(),
        Arc::clone(&clock),
        dns_names,
    )
    .await?;

    let incoming = TlsIncoming::new(listener, own.config(), IncomingLimits::default(), &drain);

    let sources = Sources::new(
        allow_dirs,
        programs,
        environment,
        data.path(),
        Arc::clone(&clock),
        drain.clone(),
    );
    let sources = Arc::new(sources.in_cluster(cluster));
    warnings.extend(sources.not_allowed(&library.in_force().documents));
    let (decisions, reported) = Decisions::new();
    let (refused, refusals) = mpsc::channel(REFUSED);
    let admin_dir = data.admin().to_owned();
    let control = Arc::new(Control {
        clusters: Clusters::new(Arc::clone(&sources), Arc::clone(&clock), drain.clone()),
        authorities: IssuingAuthorities::new(
            Arc::clone(&sources),
            Arc::clone(&clock),
            drain.clone(),
        ),
        sources,
        clock: Arc::clone(&clock),
        drain: drain.clone(),
        store: store.clone(),
        authority,
        library,
        trust,
        own,
        registry: Registry::default(),
        pace: Pace::default(),
        decisions,
        telemetry: Telemetry::new(),
        minimum_version: watch::Sender::default(),
        strangers: Failures::new(STRANGER_FAILURES),
        listings: Listings::default(),
        intruders: Failures::new(admin::INTRUSIONS),
        refused,
        _data: data,
    });
    let running = Running {
        address,
        trust_domain,
        replica: presence.name().clone(),
        admin_dir,
        revision: control.library.in_force().revision,
        warnings,
        ca_pins: control.authority.pins(),
        reader: store.reader().clone(),
        superseded: presence.superseded(),
        control: Arc::downgrade(&control),
    };
    drain.spawn(decisions::write(reported, store.clone(), clock));
    drain.spawn(maintenance::check_audit_log(store.reader().clone()));
    drain.spawn(maintenance::record_refusals(refusals, store));
    drain.spawn(presence.keep(drain.clone()));
    drain.spawn(maintenance::keep(Arc::clone(&control)));
    drain.spawn(maintenance::follow_mesh(Arc::clone(&control)));
    drain.spawn(serve(control, incoming));
    tracing::info!(%address, revision = running.revision, "control plane serves");
    Ok(running)
}

async fn serve(control: Arc<Control>, incoming: TlsIncoming) {
    let drain = control.drain.clone();
    let identity = IdentityServer::new(IdentityService(Arc::clone(&control)))
        .max_decoding_message_size(MAX_IDENTITY_CALL);
    let distribution = DistributionServer::new(DistributionService(Arc::clone(&control)))
        .max_decoding_message_size(MAX_REPORT);
    let nodes = NodesServer::new(NodesService::new(Arc::clone(&control)))
        .max_decoding_message_size(MAX_IDENTITY_CALL);
    let peers = ReplicasServer::new(PeersService(Arc::clone(&control)))
        .max_decoding_message_size(MAX_PEERS_CALL);
    let administration =
        AdminServer::new(AdminService(Arc::clone(&control))).max_decoding_message_size(MAX_APPLY);
    let served = fender_api::tls::server()
        .add_service(identity)
        .add_service(distribution)
        .add_service(nodes)
        .add_service(peers)
        .add_service(InterceptedService::new(
            administration,
            admin::gate(control),
        ))
        .serve_with_incoming_shutdown(incoming, drain.stopping());
    tokio::select! {
        served = served => {
            if let Err(error) = served {
                tracing::error!(%error, "the control plane stopped serving");
            }
        }
        () = drain.forced() => {}
    }
}

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// Rendered for a terminal.
    #[error("the documents are refused\n{rendered}")]
    Documents { rendered: String },
    #[error(
        "a new control plane needs to know its trust domain: write a `Mesh` document with `spec.trustDomain`, \
         or pass `--trust-domain`"
    )]
    NoMesh,
    #[error("the trust domain asked for is `{asked}`, but the `Mesh` names `{written}`")]
    TrustDomainsDiffer {
        asked: TrustDomain,
        written: TrustDomain,
    },
    #[error(
        "the registry is of the trust domain `{held}`, not `{wanted}`: a trust domain cannot change, \
         because every certificate carries it; use a new data directory"
    )]
    TrustDomainChanged {
        held: TrustDomain,
        wanted: TrustDomain,
    },
    #[error(
        "a control plane of the trust domain `{trust_domain}` is founded here already, and its first administrator \
         has their files: start it with `fender control`; new files are written by `fender control --reissue-admin`"
    )]
    Founded { trust_domain: TrustDomain },
    #[error(
        "`{}` is there already, perhaps the certificate of another control plane's administrator: \
         name another `--admin-dir`, or move it away",
        path.display()
    )]
    AdminFilesThere { path: PathBuf },
    #[error(
        "the sealing key given here is not the one this registry was founded with: every replica needs that one, the same \
         for all, by `--sealing-key-file` or another `--sealing-key-…`; with another the authorities' keys do not open"
    )]
    OtherSealingKey,
    #[error(
        "another process serves as the replica `{name}`, at `{url}`, heard of {seen_ago} s ago: give this one another \
         `--replica` name, or stop that one"
    )]
    NameTaken {
        name: ReplicaName,
        url: String,
        seen_ago: u64,
    },
    #[error(
        "this control plane listens on {address}, which is no address at which other replicas could reach it: name one by \
         `--replica-url https://HOST:PORT`"
    )]
    NoReplicaUrl { address: SocketAddr },
    #[error("`{}` is not the data directory of a control plane", path.display())]
    NotADataDir { path: PathBuf },
    #[error("{source}")]
    Listen {
        address: ListenAddress,
        source: std::io::Error,
    },
    #[error("`{address}` is not a TCP address: sidecars reach the control plane over TCP")]
    NotTcp { address: ListenAddress },
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    #[error(transparent)]
    Place(#[from] PlaceError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Ca(#[from] CaError),
    #[error(transparent)]
    Seal(#[from] SealError),
    #[error("the own certificate: {0}")]
    Own(#[from] OwnError),
}

impl StartError {
    /// What the process exits with.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Documents { .. }
            | Self::NoMesh
            | Self::TrustDomainsDiffer { .. }
            | Self::TrustDomainChanged { .. }
            | Self::Founded { .. }
            | Self::AdminFilesThere { .. }
            | Self::NotADataDir { .. }
            | Self::OtherSealingKey
            | Self::NoReplicaUrl { .. }
            | Self::Place(_)
            | Self::NotTcp { .. } => fender_api::code::EXIT_USAGE,
            Self::Listen { .. }
            | Self::DataDir(_)
            | Self::Store(_)
            | Self::Ca(_)
            | Self::Seal(_)
            | Self::NameTaken { .. }
            | Self::Own(_) => fender_api::code::EXIT_UNAVAILABLE,
        }
    }
}

impl From<LibraryError> for StartError {
    fn from(error: LibraryError) -> Self {
        let listed = |problems: Vec<Problem>| {
            problems
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join("\n")
        };
        match error {
            LibraryError::Refused(problems) => Self::Documents {
                rendered: listed(problems),
            },
            LibraryError::Stored(problems) => Self::Documents {
                rendered: format!(
                    "the stored revision, by this version of fender:\n{}",
                    listed(problems)
                ),
            },
            LibraryError::Store(error) => Self::Store(error),
        }
    }
}
