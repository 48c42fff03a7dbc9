//! What somebody proves themselves with who has no certificate, or none that is taken any more.
//!
//! Evidence that can be shown again (a token that was made anew counts) is shown again by itself, at the start and while a
//! session runs: nobody has to start a sidecar anew because its certificate has been refused.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use fender_identity::csr::NewKey;
use fender_identity::existing::Held;
use fender_identity::tls::CaPin;
use fender_identity::{Bundle, Secret, SpiffeId, WorkloadName};
use fender_runtime::deadline::Deadline;

use super::OpenError;
use super::call::{CallError, Caller, Identity};
use super::socket::AgentSocket;
use super::state::StateDir;
use crate::proof;
use crate::proto::control::v1 as proto;
use crate::proto::control::v1::attest_request;
use crate::token::TokenFile;

/// How a workload proves who it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Evidence {
    /// A join token. It works once, and is deleted then.
    Token(TokenFile),
    /// A projected service-account token. The kubelet changes the file; it is read anew each time.
    Kubernetes {
        /// Where the token is.
        token: PathBuf,
        /// What a join token would say besides.
        contact: FirstContact,
    },
    /// A certificate of another authority, and its key.
    X509 {
        /// PEM, leaf first.
        certificate: PathBuf,
        /// PEM.
        key: PathBuf,
        /// What a join token would say besides.
        contact: FirstContact,
    },
    /// The word of this host's agent.
    Agent(AgentSocket),
}

/// Whom to become, and by what the control plane is recognised before anything is shown to it: a token that anybody may
/// have asked for is anybody's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FirstContact {
    /// The identity to ask for.
    pub identity: SpiffeId,
    /// Whom to believe.
    pub roots: ControlRoots,
}

/// The roots a control plane must be vouched for by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ControlRoots {
    /// Known by their hashes.
    Pins(Vec<CaPin>),
    /// A file that holds them, read anew each time.
    Bundle(PathBuf),
}

/// A file that evidence is in, or that it needs, cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{what} `{}`: {why}", path.display())]
pub struct EvidenceFileError {
    what: &'static str,
    path: PathBuf,
    why: String,
}

/// More than a token, a chain, a key or a bundle needs.
const MAX_FILE: u64 = 256 * 1024;

/// Who it must be that the evidence speaks for.
#[derive(Clone, Debug)]
pub(crate) enum Expected {
    Anybody,
    /// As the operator says.
    Workload(WorkloadName),
    /// Whoever it was before.
    Exactly(SpiffeId),
    /// The agent of some node.
    Agent,
}

/// Evidence on its way to the control plane.
pub(crate) struct Showing {
    pub(crate) identity: SpiffeId,
    pub(crate) roots: ExpectedRoots,
    pub(crate) evidence: Shown,
}

/// The roots to expect at first contact.
pub(crate) enum ExpectedRoots {
    Pins(Vec<CaPin>),
    Bundle(Bundle),
}

/// What is sent, once it is known which request it is for and whom it is sent to.
pub(crate) enum Shown {
    Ready(attest_request::Evidence),
    /// Signs the request, for that server.
    Signed(Held),
}

impl Shown {
    pub(crate) fn evidence(
        &self,
        csr: &[u8],
        server_leaf: &[u8],
    ) -> Result<attest_request::Evidence, CallError> {
        match self {
            Self::Ready(evidence) => Ok(evidence.clone()),
            Self::Signed(held) => {
                let signature = held
                    .sign(&proof::attestation(csr, server_leaf))
                    .map_err(|error| CallError::Answer(error.to_string()))?;
                let chain = held.chain().iter().map(|der| der.to_vec()).collect();
                let shown = proto::X509Evidence { chain, signature };
                Ok(attest_request::Evidence::X509(shown))
            }
        }
    }
}

/// Evidence about to be shown, with the key it is to be shown for.
pub(crate) struct Attempt<'a> {
    evidence: &'a Evidence,
    way: Way<'a>,
    key: NewKey,
}

/// To whom it is shown.
enum Way<'a> {
    Control(Showing),
    Agent(&'a AgentSocket, Expected),
}

impl Evidence {
    /// Whether there is something to show.
    pub(crate) fn at_hand(&self) -> bool {
        match self {
            Self::Token(file) => file.exists(),
            Self::Kubernetes { token, .. } => token.exists(),
            Self::X509 { certificate, .. } => certificate.exists(),
            Self::Agent(_) => true,
        }
    }

    /// Whether it can be shown as often as need be. A join token works once.
    pub(crate) fn lasts(&self) -> bool {
        !matches!(self, Self::Token(_))
    }

    /// Makes ready to become somebody. Nothing is shown yet.
    pub(crate) fn prepare(
        &self,
        expected: &Expected,
        state: Option<&StateDir>,
    ) -> Result<Attempt<'_>, OpenError> {
        let way = match self {
            Self::Agent(socket) => Way::Agent(socket, expected.clone()),
            Self::Token(file) => Way::Control(token(file)?),
            Self::Kubernetes { token, contact } => Way::Control(kubernetes(token, contact)?),
            Self::X509 {
                certificate,
                key,
                contact,
            } => Way::Control(x509(certificate, key, contact)?),
        };
        if let Way::Control(showing) = &way {
            expected.admit(&showing.identity)?;
        }
        Ok(Attempt {
            evidence: self,
            way,
            key: pending_key(state)?,
        })
    }

    fn used(&self) {
        match self {
            Self::Token(file) => file.consume(),
            // They can be shown again.
            Self::Kubernetes { .. } | Self::X509 { .. } | Self::Agent(_) => {}
        }
    }
}

fn token(file: &TokenFile) -> Result<Showing, OpenError> {
    let token = file.read()?;
    let secret = token.secret().expose().to_vec();
    Ok(Showing {
        identity: token.identity().clone(),
        roots: ExpectedRoots::Pins(token.pins().to_vec()),
        evidence: Shown::Ready(attest_request::Evidence::JoinToken(
            proto::JoinTokenEvidence { secret },
        )),
    })
}

fn kubernetes(token: &Path, contact: &FirstContact) -> Result<Showing, OpenError> {
    let read = read_file("Kubernetes token", token)?;
    let text = read.expose_str().map(str::trim_ascii_end);
    let text = text.ok_or_else(|| EvidenceFileError {
        what: "Kubernetes token",
        path: token.to_owned(),
        why: "it is not text".to_owned(),
    })?;
    let shown = proto::KubernetesEvidence {
        token: text.to_owned(),
    };
    contact.showing(Shown::Ready(attest_request::Evidence::Kubernetes(shown)))
}

fn x509(certificate: &Path, key: &Path, contact: &FirstContact) -> Result<Showing, OpenError> {
    let chain = read_file("certificate", certificate)?;
    let secret = read_file("key", key)?;
    let held = Held::from_pem(chain.expose(), secret.expose());
    let held = held.map_err(|error| EvidenceFileError {
        what: "certificate",
        path: certificate.to_owned(),
        why: error.to_string(),
    })?;
    contact.showing(Shown::Signed(held))
}

impl FirstContact {
    fn showing(&self, evidence: Shown) -> Result<Showing, OpenError> {
        let roots = match &self.roots {
            ControlRoots::Pins(pins) => ExpectedRoots::Pins(pins.clone()),
            ControlRoots::Bundle(path) => {
                let text = read_file("bundle", path)?;
                let trust_domain = self.identity.trust_domain().clone();
                let bundle = Bundle::from_pem(trust_domain, text.expose());
                ExpectedRoots::Bundle(bundle.map_err(|error| EvidenceFileError {
                    what: "bundle",
                    path: path.clone(),
                    why: error.to_string(),
                })?)
            }
        };
        Ok(Showing {
            identity: self.identity.clone(),
            roots,
            evidence,
        })
    }
}

/// A small regular file, wherever its links lead: a projected volume is made of links.
pub(crate) fn read_file(what: &'static str, path: &Path) -> Result<Secret, EvidenceFileError> {
    let read = || {
        let file = File::open(path)?;
        let length = file.metadata()?.len();
        if !file.metadata()?.is_file() || length > MAX_FILE {
            return Err(io::Error::other("it is not a small regular file"));
        }
        let mut bytes = Vec::with_capacity(usize::try_from(length).unwrap_or_default());
        let read = file.take(MAX_FILE).read_to_end(&mut bytes);
        let secret = Secret::new(bytes);
        read.map(|_| secret)
    };
    read().map_err(|error| EvidenceFileError {
        what,
        path: path.to_owned(),
        why: error.to_string(),
    })
}

impl Attempt<'_> {
    /// May be made again: the key stays the same.
    pub(crate) async fn make(
        &self,
        caller: &Caller,
        deadline: Deadline,
    ) -> Result<Identity, CallError> {
        match &self.way {
            Way::Control(showing) => caller.attest(showing, &self.key, deadline).await,
            Way::Agent(socket, expected) => {
                let now = caller.clock.now();
                socket.attest(expected, &self.key, now, deadline).await
            }
        }
    }

    /// What came of it is kept: the evidence has served.
    pub(crate) fn done(self, state: Option<&StateDir>) -> Result<(), OpenError> {
        if let Some(state) = state {
            state.forget_pending_key()?;
        }
        self.evidence.used();
        Ok(())
    }
}

/// The key is kept before it is shown: asking again with the same key is no second use of a token.
fn pending_key(state: Option<&StateDir>) -> Result<NewKey, OpenError> {
    let generate = || NewKey::generate().map_err(CallError::from);
    let Some(state) = state else {
        return Ok(generate()?);
    };
    if let Some(key) = state.pending_key()? {
        return Ok(key);
    }
    let key = generate()?;
    state.save_pending_key(&key)?;
    Ok(key)
}

impl Expected {
    pub(crate) fn admit(&self, found: &SpiffeId) -> Result<(), OpenError> {
        let expected = match self {
            Self::Anybody => return Ok(()),
            Self::Workload(workload) if found.workload().as_ref() == Some(workload) => {
                return Ok(());
            }
            Self::Exactly(id) if id == found => return Ok(()),
            Self::Agent if found.node().is_some() => return Ok(()),
            Self::Workload(workload) => workload.to_string(),
            Self::Exactly(id) => id.to_string(),
            Self::Agent => "the agent of a node".to_owned(),
        };
        Err(OpenError::WrongIdentity {
            expected,
            found: found.to_string(),
        })
    }
}

impl From<Option<&WorkloadName>> for Expected {
    fn from(workload: Option<&WorkloadName>) -> Self {
        workload.map_or(Self::Anybody, |workload| Self::Workload(workload.clone()))
    }
}
