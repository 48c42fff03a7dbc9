//! The way to a node's agent: a Unix socket whose listener is asked of the kernel before anything is said.

use std::io;

use fender_identity::SpiffeId;
use fender_identity::csr::NewKey;
use fender_runtime::deadline::Deadline;
use fender_runtime::listen::LocalAddress;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::net::unix::UCred;
use tonic::Request;
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint};

use super::call::{CallError, Identity, accept, bounded};
use super::evidence::Expected;
use crate::code::Code;
use crate::proto::agent::v1::agent_client::AgentClient;
use crate::proto::agent::v1::{AttestRequest, IdentitiesRequest};
use crate::tls::{MAX_MESSAGE, Once};
use fender_runtime::clock::UnixTime;

/// Only somebody who means to ask an agent sets this metadata to `true`, and not whoever makes an honest client send a
/// request somewhere.
pub const AGENT_HEADER: &str = "agent.fender.dev";

/// Where the agent listens, and as whom it must run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentSocket {
    address: LocalAddress,
    /// Whoever else listens there has squatted it.
    uid: u32,
}

impl AgentSocket {
    /// An agent that runs as `uid`.
    pub fn new(address: LocalAddress, uid: u32) -> Self {
        Self { address, uid }
    }

    /// A certificate for `key`, for the one identity the agent gives this process, or for the one expected.
    pub(crate) async fn attest(
        &self,
        expected: &Expected,
        key: &NewKey,
        now: UnixTime,
        deadline: Deadline,
    ) -> Result<Identity, CallError> {
        let connected = deadline.bound(self.connect()).await;
        let channel = connected.map_err(|_| CallError::Timeout)??;
        let mut agent = AgentClient::new(channel).max_decoding_message_size(MAX_MESSAGE);
        let answer = bounded(deadline, agent.identities(meant(IdentitiesRequest {}))).await?;
        let id = choose(expected, &answer.identities)?;
        let request = AttestRequest {
            csr: key.csr_der(&id)?,
        };
        let answer = bounded(deadline, agent.attest(meant(request))).await?;
        accept(answer, key, &id, now)
    }

    async fn connect(&self) -> Result<Channel, CallError> {
        let unreachable =
            |error: io::Error| CallError::Broken(format!("agent at `{}`: {error}", self.address));
        let socket = UnixStream::connect(self.address.to_path()).await;
        let socket = socket.map_err(unreachable)?;
        self.check(&socket.peer_cred().map_err(unreachable)?)
            .map_err(|reason| CallError::Answered {
                code: Code::ControlNotVerified,
                reason,
            })?;
        // The name is never looked up: there is one connection, and it is made.
        Endpoint::from_static("http://agent")
            .connect_with_connector(Once(Some(TokioIo::new(socket))))
            .await
            .map_err(|error| unreachable(io::Error::other(error.to_string())))
    }
}

/// What the kernel shows for a user that has no number in our namespace: it may be anybody.
const NOBODY: u32 = 65_534;

impl AgentSocket {
    /// Whoever listens is who must, and somebody whom the kernel can name.
    fn check(&self, listener: &UCred) -> Result<(), String> {
        let Self { address, uid } = self;
        let owner = listener.uid();
        if owner == NOBODY || owner == u32::MAX {
            return Err(format!(
                "whoever listens at `{address}` has no user here: the agent runs outside of this user namespace, and \
                 could be anybody"
            ));
        }
        if owner != *uid {
            return Err(format!(
                "the agent at `{address}` runs as user {owner}, not {uid}: somebody else has taken its place, or \
                 `--agent-uid` is wrong"
            ));
        }
        // A path is its directory's to give; a name is reached by the network namespace alone, also where that is the
        // host's and the processes are not.
        let is_here = listener.pid().is_some_and(|pid| pid > 0);
        match address {
            LocalAddress::Abstract(_) if !is_here => Err(format!(
                "whoever listens at `{address}` is in another process namespace: a container in the host's network must be \
                 given the path of a socket"
            )),
            LocalAddress::Abstract(_) | LocalAddress::Path(_) => Ok(()),
        }
    }
}

fn meant<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    let value = MetadataValue::from_static("true");
    request.metadata_mut().insert(AGENT_HEADER, value);
    request
}

/// One of them, if it is clear which.
fn choose(expected: &Expected, offered: &[String]) -> Result<SpiffeId, CallError> {
    let offered = offered
        .iter()
        .map(|id| {
            id.parse::<SpiffeId>()
                .map_err(|error| CallError::Answer(error.to_string()))
        })
        .collect::<Result<Vec<_>, _>>()?;
    let listed = || {
        let names = offered.iter().map(ToString::to_string);
        names.collect::<Vec<_>>().join(", ")
    };
    match (expected, offered.as_slice()) {
        (Expected::Anybody, [only]) => Ok(only.clone()),
        (Expected::Anybody, _) => Err(CallError::Answered {
            code: Code::BadRequest,
            reason: format!(
                "this process may be more than one workload: choose with `--workload` among {}",
                listed()
            ),
        }),
        (_, _) => offered
            .iter()
            .find(|id| expected.admit(id).is_ok())
            .cloned()
            .ok_or_else(|| CallError::Answered {
                code: Code::NotAttestable,
                reason: format!(
                    "this process is not the workload expected, but {}",
                    listed()
                ),
            }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(names: &[&str]) -> Vec<String> {
        let id = |name: &&str| format!("spiffe://acme.test/ns/shop/sa/{name}");
        names.iter().map(id).collect()
    }

    #[test]
    fn of_several_identities_the_operator_chooses() {
        let both = ids(&["orders", "web"]);
        let error = choose(&Expected::Anybody, &both).unwrap_err();
        assert!(error.to_string().contains("--workload"), "{error}");
        let web = Expected::Workload("shop/web".parse().unwrap());
        assert_eq!(choose(&web, &both).unwrap().as_str(), both[1]);
        assert_eq!(
            choose(&Expected::Anybody, &both[..1]).unwrap().as_str(),
            both[0]
        );
        assert_eq!(
            choose(&web, &both[..1]).unwrap_err().code(),
            Code::NotAttestable
        );
    }

    #[tokio::test]
    async fn attack_a_socket_squatted_by_another_user_hears_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agent.sock");
        let squatter = tokio::net::UnixListener::bind(&path).unwrap();
        let ours = rustix::process::getuid().as_raw();
        let error = AgentSocket::new(path.as_path().into(), ours + 1)
            .connect()
            .await
            .unwrap_err();
        assert_eq!(error.code(), Code::ControlNotVerified);
        assert!(error.to_string().contains("--agent-uid"), "{error}");
        let (heard, _) = squatter.accept().await.unwrap();
        heard.readable().await.unwrap();
        assert_eq!(
            heard.try_read(&mut [0; 64]).unwrap(),
            0,
            "closed without a byte"
        );
    }
}
