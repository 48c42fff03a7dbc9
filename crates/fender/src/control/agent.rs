//! The agent of the one machine that a control plane runs on, in the same process.
//!
//! It is an agent like every other: it has a certificate of its node, and asks over the network as any agent does. Only its
//! join token is made here, at the operator's word. With it, whoever breaks into what answers the network has what the agent
//! has: on more than one machine, and wherever containers are attested, the agent is better a process of its own.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use fender_agent::{Agent, AgentConfig};
use fender_api::client::{self, AgentSession, Evidence, OpenError, SessionConfig, StateDir};
use fender_api::token::TokenFile;
use fender_api::url::ControlUrl;
use fender_control::Running;
use fender_identity::NodeName;
use fender_runtime::clock;
use fender_runtime::deadline::Deadline;
use fender_runtime::drain::Drain;

use crate::agent::{engine, listen};
use crate::cli;
use crate::exit::{Exit, Failure};
use crate::source::refused;

/// Its certificate is signed in the same process.
const START: std::time::Duration = std::time::Duration::from_secs(30);

/// Starts the agent, if there is to be one. It ends with its drain, which must stop before that of the control plane.
pub(super) async fn start(
    args: &cli::Embedded,
    running: &Running,
    data_dir: &Path,
    drain: &Drain,
) -> Result<(), Failure> {
    let (Some(socket), Some(node)) = (&args.agent_socket, &args.node) else {
        return Ok(());
    };
    let engine = engine(args.docker.as_deref()).await?;
    let session = open(running, node, &data_dir.join("agent"), drain).await?;
    if session.id().node().as_ref() != Some(node) {
        let id = session.id();
        return Err(Failure::usage(format!(
            "the agent in this data directory is `{id}`, not that of the node `{node}`"
        )));
    }
    let id = session.id();
    let agent = Agent::new(AgentConfig {
        session,
        engine,
        clock: clock::system(),
    });
    let agent = agent.map_err(Failure::unavailable)?;
    let listener = listen(socket)?;
    tracing::info!(%id, %socket, "the agent of this machine is ready");
    drain.spawn(agent.serve(listener, drain.clone()));
    Ok(())
}

/// As who it was, or anew with a token that is made for it.
async fn open(
    running: &Running,
    node: &NodeName,
    directory: &Path,
    drain: &Drain,
) -> Result<AgentSession, Failure> {
    let state = StateDir::open(directory).map_err(|error| Failure::new(Exit::Usage, error))?;
    let config = |evidence| -> Result<SessionConfig, Failure> {
        Ok(SessionConfig {
            control: url(running.address)?.into(),
            evidence,
            state: Some(state.clone()),
            clock: clock::system(),
            drain: drain.clone(),
            version: env!("CARGO_PKG_VERSION"),
            workload: None,
        })
    };
    let deadline = Deadline::after(START);
    match client::open_agent(config(None)?, deadline).await {
        Err(OpenError::NoEvidence | OpenError::Refused(_)) => {}
        opened => return opened.map_err(refused),
    }
    let token = running.node_token(node).await;
    let token = token.map_err(|error| Failure::new(Exit::Usage, error))?;
    let file = directory.join("token");
    write(&file, token.to_text().expose()).map_err(Failure::unavailable)?;
    let evidence = Evidence::Token(TokenFile::new(&file));
    let opened = client::open_agent(config(Some(evidence))?, deadline).await;
    opened.map_err(refused)
}

fn write(path: &Path, token: &[u8]) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let mut options = File::options();
    options.write(true).create_new(true).mode(0o600);
    options.open(path)?.write_all(token)
}

/// From this machine to itself.
fn url(mut address: SocketAddr) -> Result<ControlUrl, Failure> {
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        IpAddr::V4(_) | IpAddr::V6(_) => {}
    }
    ControlUrl::of(address)
        .ok_or_else(|| Failure::usage(format!("nobody can connect to `{address}`")))
}
