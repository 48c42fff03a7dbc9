//! Calls to the control plane's Identity service, and the checks an answer passes before anybody believes it.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use fender_identity::csr::{KeyError, NewKey};
use fender_identity::tls::{TlsError, TlsProfile, server_name};
use fender_identity::verify::{PeerExpectation, Role, verify};
use fender_identity::{Bundles, SpiffeId, Svid, Trust};
use fender_runtime::clock::{SharedClock, TlsClock, UnixTime};
use fender_runtime::deadline::Deadline;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tonic::Status;

use super::evidence::{ExpectedRoots, Showing};
use crate::addresses::Addresses;
use crate::code::Code;
use crate::convert::IssuedSvid;
use crate::proof;
use crate::proto::control::v1 as proto;
use crate::proto::control::v1::identity_client::IdentityClient;
use crate::tls::{ALPN, ConnectError, Connection, MAX_MESSAGE, connect};

/// What one call may take, connecting included.
pub(crate) const CALL: Duration = Duration::from_secs(10);

/// How much of a refusal's text is kept.
const MAX_REASON: usize = 512;

/// Where the control plane's replicas are and what time it is.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    pub(crate) control: Addresses,
    pub(crate) clock: SharedClock,
    pub(crate) version: &'static str,
}

/// A certificate that was verified, with its surroundings.
#[derive(Debug)]
pub(crate) struct Identity {
    pub(crate) svid: Arc<Svid>,
    pub(crate) trust: Trust,
    pub(crate) renewal_grace: Duration,
}

impl Caller {
    /// First contact.
    pub(crate) async fn attest(
        &self,
        showing: &Showing,
        key: &NewKey,
        deadline: Deadline,
    ) -> Result<Identity, CallError> {
        let control = SpiffeId::control(showing.identity.trust_domain());
        let config = match &showing.roots {
            ExpectedRoots::Pins(pins) => fender_identity::tls::client_pinned(
                &TlsProfile::default(),
                showing.identity.trust_domain().clone(),
                pins.clone(),
                ALPN,
                self.tls_clock(),
            ),
            ExpectedRoots::Bundle(bundle) => fender_identity::tls::client(
                &TlsProfile::default(),
                None,
                Bundles::from(bundle.clone()),
                control.clone(),
                ALPN,
                self.tls_clock(),
            ),
        }?;
        let connection = self.reach(config, server_name(&control), deadline).await?;
        let csr = key.csr_der(&showing.identity)?;
        let evidence = showing.evidence.evidence(&csr, &connection.server_leaf)?;
        let request = proto::AttestRequest {
            csr,
            evidence: Some(evidence),
            version: self.version.to_owned(),
        };
        let answer = bounded(deadline, identity(&connection).attest(request)).await;
        let accepted = answer.and_then(|answer| self.accept(answer, key, &showing.identity));
        self.heard(&connection, accepted)
    }

    /// The next certificate for the same identity, with a new key. It comes with bundles; who is denied stays as `known`.
    pub(crate) async fn renew(
        &self,
        current: &Svid,
        known: &Trust,
        deadline: Deadline,
    ) -> Result<Identity, CallError> {
        let key = NewKey::generate()?;
        let csr = key.csr_der(current.id())?;
        let (connection, request) = if self.clock.now() < current.validity().not_after {
            let connection = self
                .connect(current.id(), Some(current), known, deadline)
                .await?;
            (connection, proto::RenewRequest { csr, expired: None })
        } else {
            // No server takes an expired certificate in a handshake: its key speaks for itself instead.
            let connection = self.connect(current.id(), None, known, deadline).await?;
            let message = proof::renewal(&csr, &connection.server_leaf);
            let expired = proto::ExpiredProof {
                chain: current
                    .chain()
                    .iter()
                    .map(|certificate| certificate.to_vec())
                    .collect(),
                signature: current
                    .sign(&message)
                    .map_err(|error| CallError::Answer(error.to_string()))?,
            };
            let request = proto::RenewRequest {
                csr,
                expired: Some(expired),
            };
            (connection, request)
        };
        let answer = bounded(deadline, identity(&connection).renew(request)).await;
        let accepted = answer.and_then(|answer| self.accept(answer, &key, current.id()));
        let renewed = self.heard(&connection, accepted)?;
        Ok(Identity {
            trust: Trust {
                bundles: renewed.trust.bundles,
                ..known.clone()
            },
            ..renewed
        })
    }

    /// A connection to the control plane of `own`'s trust domain, as `svid` or as nobody.
    pub(crate) async fn connect(
        &self,
        own: &SpiffeId,
        svid: Option<&Svid>,
        trust: &Trust,
        deadline: Deadline,
    ) -> Result<Connection, CallError> {
        let control = SpiffeId::control(own.trust_domain());
        let name = server_name(&control);
        let config: Arc<ClientConfig> = fender_identity::tls::client(
            &TlsProfile::default(),
            svid,
            trust.clone(),
            control,
            ALPN,
            self.tls_clock(),
        )?;
        self.reach(config, name, deadline).await
    }

    /// A connection to the first replica that answers. Each may take its share of the time that is left; a stranger at the
    /// address of one is an outage of that one.
    async fn reach(
        &self,
        config: Arc<ClientConfig>,
        name: ServerName<'static>,
        deadline: Deadline,
    ) -> Result<Connection, CallError> {
        let mut failed: Option<ConnectError> = None;
        let turn = self.control.turn();
        for (url, left) in turn.iter().zip((1..=turn.len()).rev()) {
            let share = deadline.remaining() / u32::try_from(left).unwrap_or(u32::MAX);
            let limit = Deadline::after(share);
            match connect(url, config.clone(), name.clone(), limit).await {
                Ok(connection) => {
                    self.control.stay(url);
                    return Ok(connection);
                }
                Err(error) => {
                    self.control.leave(url);
                    if left > 1 {
                        tracing::debug!(error = error_chain(&error), "trying another replica");
                    }
                    // As long as one of them may come back, it is an outage.
                    failed = match failed {
                        Some(before) if before.code().is_passing() => Some(before),
                        Some(_) | None => Some(error),
                    };
                }
            }
        }
        Err(failed.map_or(CallError::Timeout, CallError::Connect))
    }

    /// An answer; after one that another replica may give better, that one is asked next time. So it is after a certificate
    /// that is not believed: the clock of who issued it may be wrong.
    pub(crate) fn heard<T>(
        &self,
        connection: &Connection,
        answer: Result<T, CallError>,
    ) -> Result<T, CallError> {
        if let Err(error) = &answer
            && error.code().is_passing()
        {
            self.control.leave(&connection.url);
        }
        answer
    }

    fn tls_clock(&self) -> Arc<TlsClock> {
        Arc::new(TlsClock(self.clock.clone()))
    }

    /// Only what would convince everybody else: the right identity, the key we made, a chain that holds now.
    fn accept(
        &self,
        answer: proto::SvidResponse,
        key: &NewKey,
        id: &SpiffeId,
    ) -> Result<Identity, CallError> {
        accept(answer, key, id, self.clock.now())
    }
}

pub(crate) fn accept(
    answer: proto::SvidResponse,
    key: &NewKey,
    id: &SpiffeId,
    now: UnixTime,
) -> Result<Identity, CallError> {
    let wrong = |error: &dyn std::fmt::Display| CallError::Answer(error.to_string());
    let issued = IssuedSvid::try_from(answer).map_err(|error| wrong(&error))?;
    let key = NewKey::from_pkcs8(&key.pkcs8())?;
    let svid = key.into_svid(issued.chain).map_err(|error| wrong(&error))?;
    let expected = PeerExpectation::Exactly(id.clone());
    for role in [Role::Client, Role::Server] {
        verify(svid.chain(), role, &issued.bundles, now, &|peer| {
            expected.admit(peer)
        })
        .map_err(|refusal| wrong(&refusal))?;
    }
    Ok(Identity {
        svid: Arc::new(svid),
        trust: Arc::new(issued.bundles).into(),
        renewal_grace: issued.renewal_grace,
    })
}

fn identity(connection: &Connection) -> IdentityClient<tonic::transport::Channel> {
    IdentityClient::new(connection.channel.clone())
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE)
}

/// One answer, before the deadline.
pub(crate) async fn bounded<T>(
    deadline: Deadline,
    call: impl Future<Output = Result<tonic::Response<T>, Status>>,
) -> Result<T, CallError> {
    match deadline.bound(call).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(status.into()),
        Err(_) => Err(CallError::Timeout),
    }
}

/// Why a call brought nothing.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// There was no connection.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The connection broke, or the server ended it because it does not like our certificate.
    #[error("connection to the control plane broke: {0}")]
    Broken(String),
    /// The control plane said no.
    #[error("control plane answered `{code}`: {reason}")]
    Answered {
        /// Why, for programs.
        code: Code,
        /// Why, for people.
        reason: String,
    },
    /// It did not answer.
    #[error("control plane did not answer in time")]
    Timeout,
    /// What it answered cannot be believed.
    #[error("answer of the control plane is refused: {0}")]
    Answer(String),
    /// No key could be made or used.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// No TLS configuration could be made.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

impl CallError {
    /// The reason as a code.
    pub fn code(&self) -> Code {
        match self {
            Self::Connect(error) => error.code(),
            Self::Answered { code, .. } => *code,
            Self::Broken(_) => Code::Unavailable,
            Self::Timeout => Code::Timeout,
            Self::Answer(_) | Self::Key(_) | Self::Tls(_) => Code::AnswerInvalid,
        }
    }
}

/// The text comes from outside: it is cut, and nothing in it can move a cursor.
impl From<Status> for CallError {
    fn from(status: Status) -> Self {
        // Only a status made on this side has a source: the answer itself never came.
        if let Some(source) = status.source() {
            return Self::Broken(tame(&error_chain(source)));
        }
        Self::Answered {
            code: Code::of(&status),
            reason: tame(status.message()),
        }
    }
}

fn tame(text: &str) -> String {
    text.chars()
        .filter(|c| !c.is_control())
        .take(MAX_REASON)
        .collect()
}

/// An error and what caused it, once each.
pub(crate) fn error_chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let cause = error.to_string();
        if !text.ends_with(&cause) {
            text = format!("{text}: {cause}");
        }
        source = error.source();
    }
    text
}
