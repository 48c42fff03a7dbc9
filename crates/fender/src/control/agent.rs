//! The agent of the one machine that a control plane runs on, in the same process.
//!
//! It is an agent like every other: it has a certificate of its node, and asks over the network as any agent does. Only its
//! join token is made here, at the operator's word, unless the node was revoked: then an administrator makes it. With it,
//! whoever breaks into what answers the network has what the agent has: on more than one machine, and wherever containers
//! are attested, the agent is better a process of its own.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use fender_agent::{Agent, AgentConfig};
use fender_api::client::{self, AgentSession, Evidence, OpenError, SessionConfig, StateDir};
use fender_api::code::Code;
use fender_api::token::TokenFile;
use fender_api::url::ControlUrl;
use fender_control::{NodeTokenError, Running};
use fender_identity::NodeName;
use fender_runtime::clock;
use fender_runtime::deadline::Deadline;
use fender_runtime::drain::Drain;

use crate::agent::{engine, listen};
use crate::cli;
use crate::exit::{Exit, Failure};
use crate::source::refused;

/// In the agent's state directory.
const TOKEN: &str = "token";

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

/// As who it was, or anew: with a token that an administrator put there, else with one that is made for it.
///
/// Whether it was revoked, the registry is asked and not the certificate: one that has time left would be used until
/// somebody refuses it, and one that has none would be no reason against a new token.
async fn open(
    running: &Running,
    node: &NodeName,
    directory: &Path,
    drain: &Drain,
) -> Result<AgentSession, Failure> {
    let state = StateDir::open(directory).map_err(|error| Failure::new(Exit::Usage, error))?;
    let file = directory.join(TOKEN);
    let config = || -> Result<SessionConfig, Failure> {
        Ok(SessionConfig {
            control: url(running.address)?.into(),
            // Also later on: one that is put there while it runs lets it in again when its renewal is refused.
            evidence: Some(Evidence::Token(TokenFile::new(&file))),
            state: Some(state.clone()),
            clock: clock::system(),
            drain: drain.clone(),
            version: env!("CARGO_PKG_VERSION"),
            workload: None,
        })
    };
    let no_token = |error| {
        if let NodeTokenError::Revoked(node) = &error {
            return revoked(node, &file);
        }
        Failure::new(Exit::Usage, error)
    };
    if running.is_revoked(node).await.map_err(no_token)? {
        if !file.exists() {
            return Err(revoked(node, &file));
        }
        state.forget_identity().map_err(Failure::unavailable)?;
    }
    let deadline = Deadline::after(START);
    match client::open_agent(config()?, deadline).await {
        Err(OpenError::TokenFile(_)) if !file.exists() => {}
        Err(OpenError::Refused(error)) => {
            tracing::warn!(code = %error.code(), "the agent of this machine is refused as it is");
        }
        opened => return opened.map_err(refused),
    }
    let token = running.node_token(node).await.map_err(no_token)?;
    write(&file, token.to_text().expose()).map_err(Failure::unavailable)?;
    let opened = client::open_agent(config()?, deadline).await;
    opened.map_err(refused)
}

/// Whoever revoked it meant this process too, as often as it is started.
fn revoked(node: &NodeName, token: &Path) -> Failure {
    let error = anyhow::anyhow!(
        "the node `{node}` was revoked, and its agent in this process does not let itself in again; to do so, start without \
         `--agent-socket`, have an administrator run `fender token create --node {node} --out {}`, and start again",
        token.display()
    );
    Failure::coded(Exit::Refused, Code::Revoked.as_str(), error)
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
