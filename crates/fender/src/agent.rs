//! `fender agent`: becomes a node's agent and serves the callers of its socket, until told to end.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use fender_agent::{Agent, AgentConfig, Engine};
use fender_api::client::{self, Evidence, FirstContact, SessionConfig, StateDir};
use fender_api::token::TokenFile;
use fender_identity::SpiffeId;
use fender_runtime::clock;
use fender_runtime::deadline::Deadline;
use fender_runtime::drain::Drain;
use fender_runtime::listen::{Listener, LocalAddress};

use crate::cli;
use crate::exit::{Exit, Failure, Outcome};
use crate::signals::{self, Stop};
use crate::source::{control, control_roots, refused};

/// How long calls under way may take once told to end.
const GRACE: Duration = Duration::from_secs(5);

pub(crate) async fn run(args: cli::Agent) -> Outcome {
    let mut stop = Stop::install(signals::hang_up()).map_err(Failure::unavailable)?;
    let control = control(&args.control)?;
    let state = StateDir::open(&args.state).map_err(|error| Failure::new(Exit::Usage, error))?;
    let engine = engine(args.docker.as_deref()).await?;
    let drain = Drain::new();
    let config = SessionConfig {
        control,
        evidence: evidence(&args)?,
        state: Some(state),
        clock: clock::system(),
        drain: drain.clone(),
        version: env!("CARGO_PKG_VERSION"),
        workload: None,
    };
    let opening = client::open_agent(config, Deadline::after(args.start_timeout));
    let session = tokio::select! {
        opened = opening => opened.map_err(refused)?,
        () = stop.requested() => return Ok(Exit::Done),
    };
    let id = session.id();
    let agent = Agent::new(AgentConfig {
        session,
        engine,
        clock: clock::system(),
    });
    let agent = agent.map_err(Failure::unavailable)?;
    let listener = listen(&args.socket)?;
    tracing::info!(%id, socket = %args.socket, "ready");
    drain.spawn(agent.serve(listener, drain.clone()));
    stop.requested().await;
    tracing::info!("stopping");
    drain.close(Deadline::after(GRACE)).await;
    Ok(Exit::Done)
}

/// What the command line gives to prove with whose agent this is.
fn evidence(args: &cli::Agent) -> Result<Option<Evidence>, Failure> {
    if let Some(file) = &args.token_file {
        return Ok(Some(Evidence::Token(TokenFile::new(file))));
    }
    let contact = || {
        let (Some(trust_domain), Some(node)) = (&args.trust_domain, &args.node) else {
            return Err(Failure::usage(
                "say whose agent this is and where it belongs: --node NAME and --trust-domain NAME",
            ));
        };
        Ok(FirstContact {
            identity: SpiffeId::for_agent(trust_domain, node),
            roots: control_roots(args.bundle.as_deref(), &args.ca_pin)?,
        })
    };
    match (
        &args.kubernetes_token_file,
        &args.x509_certificate,
        &args.x509_key,
    ) {
        (Some(token), _, _) => Ok(Some(Evidence::Kubernetes {
            token: token.clone(),
            contact: contact()?,
        })),
        (None, Some(certificate), Some(key)) => Ok(Some(Evidence::X509 {
            certificate: certificate.clone(),
            key: key.clone(),
            contact: contact()?,
        })),
        (None, _, _) => Ok(None),
    }
}

/// Anybody may connect: who it is, the kernel says, and what that is good for, the control plane.
pub(crate) fn listen(address: &LocalAddress) -> Result<Listener, Failure> {
    let listener =
        Listener::bind(&address.into()).map_err(|error| Failure::new(Exit::Usage, error))?;
    if let LocalAddress::Path(path) = address
        && let Some(directory) = others_may_write(path)
    {
        tracing::warn!(directory = %directory.display(), "others may write to the directory of the socket, and put one of their own in its place: `chmod go-w` it");
    }
    listener.admit_everybody().map_err(Failure::unavailable)?;
    Ok(listener)
}

/// The directory of a socket, if somebody else may exchange what lies there. Sidecars look who listens before they say
/// anything; other clients of the Workload API do not.
fn others_may_write(socket: &Path) -> Option<PathBuf> {
    let parent = socket.parent().filter(|it| !it.as_os_str().is_empty());
    let directory = parent.unwrap_or(Path::new("."));
    let mode = std::fs::metadata(directory).ok()?.mode();
    // In a sticky one, as `/tmp`, only the owner of a file may remove it.
    (mode & 0o022 != 0 && mode & 0o1000 == 0).then(|| directory.to_owned())
}

/// The engine of this host, if it is to be asked.
pub(crate) async fn engine(socket: Option<&Path>) -> Result<Option<Engine>, Failure> {
    let Some(socket) = socket else {
        return Ok(None);
    };
    let engine = Engine::connect(socket).await;
    engine.map(Some).map_err(Failure::unavailable)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_directory_in_which_others_may_exchange_the_socket_is_told_apart() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("agent.sock");
        for (mode, open) in [
            (0o755, false),
            (0o700, false),
            (0o777, true),
            (0o770, true),
            (0o1777, false),
        ] {
            fs::set_permissions(directory.path(), Permissions::from_mode(mode)).unwrap();
            assert_eq!(others_may_write(&socket).is_some(), open, "{mode:o}");
        }
    }
}
