//! The administrator's client: apply documents, make tokens, ask how things are, get a person's certificate.
//!
//! It authenticates with the certificate of an admin identity and decides nothing; who may do what is the control plane's.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use fender_config::ObjectName;
use fender_identity::csr::NewKey;
use fender_identity::tls::CaPin;
use fender_identity::{
    Bundle, BundleError, Bundles, NodeName, Secret, Serial, SpiffeId, Svid, SvidError, WorkloadName,
};
use fender_runtime::clock::{SharedClock, UnixTime};
use fender_runtime::deadline::Deadline;
use fender_runtime::id::OpaqueId;
use prost::Message as _;
use rustls_pki_types::CertificateRevocationListDer;
use tonic::transport::Channel;

use crate::addresses::Addresses;
use crate::client::{CallError, Caller, accept, bounded};
use crate::code::{Code, EXIT_USAGE};
use crate::convert::InvalidField;
use crate::decision::DecisionRecord;
use crate::proto::control::v1 as proto;
use crate::proto::control::v1::admin_client::AdminClient;
use crate::proto::control::v1::credentials_answer::Kind;
use crate::tls::{MAX_APPLY, MAX_STATUS};
use crate::token::{JoinToken, TokenError};

mod applied;
mod identity;
mod revisions;

pub use applied::{
    Applied, Change, Consents, Difference, Objection, Problem, Proposal, Proposed, Trial, What,
};
pub use identity::AdminIdentity;
pub use revisions::{Against, Comparison};

/// A connection as an administrator.
#[derive(Clone, Debug)]
pub struct Admin {
    client: AdminClient<Channel>,
    clock: SharedClock,
    trust_domain: fender_identity::TrustDomain,
}

/// What is to be revoked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Revoke {
    /// One certificate.
    Serial(Serial, Myself),
    /// All that this workload has now.
    Workload(WorkloadName),
    /// All that this administrator has now.
    Administrator(String, Myself),
    /// What was issued before a moment: to one workload, or to all.
    IssuedBefore(UnixTime, Option<WorkloadName>),
    /// All that a node's agent has now, and all that began with its word.
    Node(NodeName),
}

/// Whether whoever asks may be meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Myself {
    /// Then nothing is revoked.
    Spared,
    /// They know what they do.
    Included,
}

/// Whom a join token is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bearer {
    /// A workload's sidecar.
    Workload(WorkloadName),
    /// The agent of a node.
    Node(NodeName),
}

/// Join tokens to be taken back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tokens {
    /// The one that a list calls so.
    Called(String),
    /// Every one of a bearer.
    Of(Bearer),
}

/// A fresh join token.
#[derive(Clone, Debug)]
pub struct NewToken {
    /// The token. It is nowhere else.
    pub token: JoinToken,
    /// Until when it can be used.
    pub expires: UnixTime,
}

/// A replica that did not answer for one page is missing from the whole.
fn lacks(all: &mut proto::StatusResponse, replicas: Vec<proto::ReplicaStatus>) {
    for replica in replicas {
        let known = all.replicas.iter_mut().find(|it| it.name == replica.name);
        match known {
            Some(known) if known.problem.is_empty() => {
                known.problem = replica.problem;
                known.untold = replica.untold;
            }
            Some(_) => {}
            None => all.replicas.push(replica),
        }
    }
}

/// What an answer may weigh that tells who holds which credential, in bytes.
const MAX_HELD: usize = MAX_STATUS;

/// What [`Admin::credentials`] was told.
#[derive(Clone, Debug, Default)]
pub struct HeldCredentials {
    /// When, and by which replicas.
    pub head: proto::CredentialsHead,
    /// By whom each is held.
    pub holders: Vec<proto::CredentialHolders>,
}

impl Admin {
    /// Connects and authenticates.
    pub async fn connect(
        control: &Addresses,
        identity: &AdminIdentity,
        clock: SharedClock,
        deadline: Deadline,
    ) -> Result<Self, AdminError> {
        let now = clock.now();
        let not_after = identity.svid().validity().not_after;
        if now > not_after {
            return Err(AdminError::Expired {
                id: identity.svid().id().clone(),
                seconds: now.as_secs().saturating_sub(not_after.as_secs()),
            });
        }
        let caller = Caller {
            control: control.clone(),
            clock: clock.clone(),
            version: env!("CARGO_PKG_VERSION"),
        };
        let bundles = Bundles::from(identity.bundle().clone()).into();
        let own = identity.svid();
        let connection = caller
            .connect(own.id(), Some(own), &bundles, deadline)
            .await?;
        Ok(Self {
            client: AdminClient::new(connection.channel)
                .max_decoding_message_size(MAX_STATUS)
                .max_encoding_message_size(MAX_APPLY),
            clock,
            trust_domain: own.id().trust_domain().clone(),
        })
    }

    /// Validates the documents together and, unless it is a dry run, applies them as one revision.
    pub async fn apply(
        &mut self,
        proposal: Proposal,
        deadline: Deadline,
    ) -> Result<Applied, AdminError> {
        let request = proto::ApplyRequest::from(proposal);
        let answer = bounded(deadline, self.client.apply(request)).await?;
        Ok(answer.try_into()?)
    }

    /// A token with which its bearer may attest once, within `ttl`.
    pub async fn create_token(
        &mut self,
        bearer: &Bearer,
        ttl: Duration,
        deadline: Deadline,
    ) -> Result<NewToken, AdminError> {
        let (workload, node) = match bearer {
            Bearer::Workload(workload) => (workload.to_string(), String::new()),
            Bearer::Node(node) => (String::new(), node.to_string()),
        };
        let request = proto::CreateTokenRequest {
            workload,
            node,
            ttl_seconds: ttl.as_secs(),
        };
        let answer = bounded(deadline, self.client.create_token(request)).await?;
        let secret = Secret::new(answer.secret);
        let identity = crate::convert::parse("identity", &answer.identity)?;
        let pins = answer.ca_pins.iter().enumerate().map(|(i, pin)| {
            <[u8; 32]>::try_from(pin.as_slice())
                .map(CaPin::from)
                .map_err(|_| InvalidField::new(format!("ca_pins[{i}]"), "is not 32 bytes"))
        });
        let expires = u64::try_from(answer.expires_unix)
            .map_err(|_| InvalidField::new("expires_unix", "lies before 1970"))?;
        Ok(NewToken {
            token: JoinToken::new(identity, pins.collect::<Result<_, _>>()?, secret)?,
            expires: UnixTime::since_unix_epoch(Duration::from_secs(expires)),
        })
    }

    /// The join tokens that can still be used, all pages together. Only to be shown, so they stay as they came.
    pub async fn tokens(
        &mut self,
        of: Option<&Bearer>,
        deadline: Deadline,
    ) -> Result<Vec<proto::UnspentToken>, AdminError> {
        let (workload, node) = match of {
            Some(Bearer::Workload(workload)) => (workload.to_string(), String::new()),
            Some(Bearer::Node(node)) => (String::new(), node.to_string()),
            None => (String::new(), String::new()),
        };
        let mut request = proto::ListTokensRequest {
            workload,
            node,
            after: String::new(),
        };
        let mut all = Vec::new();
        loop {
            let page = bounded(deadline, self.client.list_tokens(request.clone())).await?;
            all.extend(page.tokens);
            if page.next.is_empty() {
                return Ok(all);
            }
            // A server that does not move on would be asked for ever.
            if page.next <= request.after {
                return Err(InvalidField::new("next", "does not lead on").into());
            }
            request.after = page.next;
        }
    }

    /// Takes join tokens back. Answers how many there were.
    pub async fn revoke_tokens(
        &mut self,
        which: Tokens,
        deadline: Deadline,
    ) -> Result<u64, AdminError> {
        use proto::revoke_tokens_request::Which;
        let which = match which {
            Tokens::Called(id) => Which::Id(id),
            Tokens::Of(Bearer::Workload(workload)) => Which::Workload(workload.to_string()),
            Tokens::Of(Bearer::Node(node)) => Which::Node(node.to_string()),
        };
        let request = proto::RevokeTokensRequest { which: Some(which) };
        Ok(bounded(deadline, self.client.revoke_tokens(request))
            .await?
            .revoked)
    }

    /// Has the control plane make the next authority of a kind, before it is due. Only to be shown, so it stays as it came.
    pub async fn rotate_authority(
        &mut self,
        role: proto::AuthorityRole,
        deadline: Deadline,
    ) -> Result<proto::Authority, AdminError> {
        let request = proto::RotateAuthorityRequest { role: role.into() };
        Ok(bounded(deadline, self.client.rotate_authority(request)).await?)
    }

    /// Ends certificates before their time. What came of it is only to be shown, so it stays as it came.
    pub async fn revoke(
        &mut self,
        what: Revoke,
        reason: String,
        deadline: Deadline,
    ) -> Result<proto::Revocation, AdminError> {
        use proto::revoke_request::What;
        let before = |moment: UnixTime, workload: String| {
            What::IssuedBefore(proto::IssuedBefore {
                moment_unix: i64::try_from(moment.as_secs()).unwrap_or(i64::MAX),
                workload,
            })
        };
        let myself = matches!(
            what,
            Revoke::Serial(_, Myself::Included) | Revoke::Administrator(_, Myself::Included)
        );
        let what = match what {
            Revoke::Serial(serial, _) => What::Serial(serial.to_string()),
            Revoke::Workload(workload) => What::Workload(workload.to_string()),
            Revoke::Administrator(name, _) => What::Administrator(name),
            Revoke::Node(node) => What::Node(node.to_string()),
            Revoke::IssuedBefore(moment, workload) => before(
                moment,
                workload
                    .map(|workload| workload.to_string())
                    .unwrap_or_default(),
            ),
        };
        let request = proto::RevokeRequest {
            what: Some(what),
            reason,
            myself,
        };
        Ok(bounded(deadline, self.client.revoke(request)).await?)
    }

    /// The revocations in force. Only to be shown, so they stay as they came.
    pub async fn revocations(
        &mut self,
        deadline: Deadline,
    ) -> Result<Vec<proto::Revocation>, AdminError> {
        let request = proto::ListRevocationsRequest {};
        let answer = bounded(deadline, self.client.list_revocations(request)).await?;
        Ok(answer.revocations)
    }

    /// The revocation lists of the mesh's authorities.
    pub async fn revocation_lists(
        &mut self,
        deadline: Deadline,
    ) -> Result<Vec<CertificateRevocationListDer<'static>>, AdminError> {
        let request = proto::RevocationListsRequest {};
        let answer = bounded(deadline, self.client.revocation_lists(request)).await?;
        Ok(answer.lists.into_iter().map(Into::into).collect())
    }

    /// The next entries of the audit log after this one, none if that was all. They are as the control plane tells them:
    /// whether they are as they were written, [`crate::audit::Chain`] tells.
    pub async fn audit_log(
        &mut self,
        after: u64,
        since: i64,
        last: u64,
        deadline: Deadline,
    ) -> Result<Vec<crate::audit::Entry>, AdminError> {
        let request = proto::AuditLogRequest {
            since_unix: since,
            last,
            after,
        };
        let answer = bounded(deadline, self.client.audit_log(request)).await?;
        // A server that does not move on would be asked for ever.
        match answer.entries.iter().all(|entry| entry.sequence > after) {
            true => Ok(answer.entries),
            false => Err(InvalidField::new("entries", "do not lead on").into()),
        }
    }

    /// How everything is, all pages together. Only to be shown, so it stays as it came.
    pub async fn status(
        &mut self,
        namespace: Option<&str>,
        workload: Option<&WorkloadName>,
        deadline: Deadline,
    ) -> Result<proto::StatusResponse, AdminError> {
        let mut request = proto::StatusRequest {
            namespace: namespace.unwrap_or_default().to_owned(),
            workload: workload.map(ToString::to_string).unwrap_or_default(),
            after: String::new(),
            limit: 0,
        };
        let mut all: Option<proto::StatusResponse> = None;
        loop {
            let asked = request.clone();
            let page = bounded(deadline, self.client.status(asked)).await?;
            // A server that does not move on would be asked for ever.
            if !page.next.is_empty() && page.workloads.is_empty() {
                return Err(InvalidField::new("next", "does not lead on").into());
            }
            request.after.clone_from(&page.next);
            match &mut all {
                None => all = Some(page),
                Some(all) => {
                    all.workloads.extend(page.workloads);
                    lacks(all, page.replicas);
                }
            }
            if request.after.is_empty() {
                return Ok(all.unwrap_or_default());
            }
        }
    }

    /// Who holds which generation of which credential, over everything the administrator has a role for; or of one namespace
    /// or one credential.
    pub async fn credentials(
        &mut self,
        namespace: Option<&str>,
        name: Option<&ObjectName>,
        deadline: Deadline,
    ) -> Result<HeldCredentials, AdminError> {
        let request = proto::CredentialsRequest {
            namespace: namespace.unwrap_or_default().to_owned(),
            name: name.map(ToString::to_string).unwrap_or_default(),
        };
        let mut told = bounded(deadline, self.client.credentials(request)).await?;
        let (mut all, mut weight) = (HeldCredentials::default(), 0);
        loop {
            let message = match deadline.bound(told.message()).await {
                Ok(message) => message.map_err(CallError::from)?,
                Err(_) => return Err(CallError::Timeout.into()),
            };
            let Some(message) = message else {
                return Ok(all);
            };
            weight += message.encoded_len();
            if weight > MAX_HELD {
                let why = "are more than can be shown at once: ask for one namespace, or one";
                return Err(InvalidField::new("credentials", why).into());
            }
            match message.kind {
                Some(Kind::Head(head)) => all.head = head,
                Some(Kind::Holders(some)) => all.holders.push(some),
                // From a newer control plane.
                None => {}
            }
        }
    }

    /// Why something was decided.
    pub async fn explain(
        &mut self,
        id: OpaqueId,
        deadline: Deadline,
    ) -> Result<DecisionRecord, AdminError> {
        let request = proto::ExplainRequest { id: id.to_string() };
        Ok(bounded(deadline, self.client.explain(request))
            .await?
            .try_into()?)
    }

    /// A certificate for a person, `spiffe://TRUST/ns/people/sa/NAME`, with a key made here.
    pub async fn issue_svid(
        &mut self,
        name: &WorkloadName,
        ttl: Duration,
        deadline: Deadline,
    ) -> Result<(Svid, Bundle), AdminError> {
        let id = SpiffeId::for_workload(&self.trust_domain, name);
        self.issue(id, ttl, deadline).await
    }

    /// A certificate for the administrator `name`, with a key made here.
    pub async fn issue_admin(
        &mut self,
        name: &str,
        ttl: Duration,
        deadline: Deadline,
    ) -> Result<(Svid, Bundle), AdminError> {
        let id = SpiffeId::admin(&self.trust_domain, name)
            .map_err(|error| InvalidField::new("name", error))?;
        self.issue(id, ttl, deadline).await
    }

    async fn issue(
        &mut self,
        id: SpiffeId,
        ttl: Duration,
        deadline: Deadline,
    ) -> Result<(Svid, Bundle), AdminError> {
        let key = NewKey::generate().map_err(CallError::from)?;
        let request = proto::IssueSvidRequest {
            csr: key.csr_der(&id).map_err(CallError::from)?,
            ttl_seconds: ttl.as_secs(),
        };
        let answer = bounded(deadline, self.client.issue_svid(request)).await?;
        let identity = accept(answer, &key, &id, self.clock.now())?;
        let bundle = identity
            .trust
            .bundles
            .get(&self.trust_domain)
            .ok_or_else(|| InvalidField::new("bundles", "the own trust domain is missing"))?;
        Ok(((*identity.svid).clone(), bundle.clone()))
    }
}

/// Why an administrator got no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdminError {
    /// A file of the identity.
    #[error("read `{path}`", path = .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Others may use the key.
    #[error("`{path}` has mode {mode:04o}: others than its owner may use the key; run `chmod 0400 {path}`", path = .path.display())]
    Exposed {
        /// The key.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The certificate or its key.
    #[error("`{path}` and its key are not an identity", path = .path.display())]
    Svid {
        /// The certificate.
        path: PathBuf,
        /// Why.
        source: SvidError,
    },
    /// The bundle.
    #[error("`{path}` is not a trust bundle", path = .path.display())]
    Bundle {
        /// The bundle.
        path: PathBuf,
        /// Why.
        source: BundleError,
    },
    /// Too old.
    #[error("the certificate of `{id}` expired {seconds} s ago: use another admin identity")]
    Expired {
        /// Whose.
        id: SpiffeId,
        /// How long ago.
        seconds: u64,
    },
    /// The control plane said no, or nothing.
    #[error(transparent)]
    Call(#[from] CallError),
    /// Its answer makes no sense.
    #[error("answer of the control plane is refused")]
    Answer(#[from] InvalidField),
    /// Its token makes no sense.
    #[error("answer of the control plane is refused")]
    Token(#[from] TokenError),
}

impl AdminError {
    /// The reason as a code, where the control protocol has one.
    pub fn code(&self) -> Option<Code> {
        match self {
            Self::Call(error) => Some(error.code()),
            Self::Answer(_) | Self::Token(_) => Some(Code::AnswerInvalid),
            Self::Expired { .. } => Some(Code::NotAuthenticated),
            Self::Read { .. } | Self::Exposed { .. } | Self::Svid { .. } | Self::Bundle { .. } => {
                None
            }
        }
    }

    /// What the process exits with.
    pub fn exit_code(&self) -> u8 {
        self.code().map_or(EXIT_USAGE, Code::exit_code)
    }
}

#[cfg(test)]
mod tests;
