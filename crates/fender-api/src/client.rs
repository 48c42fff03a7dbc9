//! The watching client: how a sidecar comes to its certificate and its Snapshot, and keeps both fresh.
//!
//! [`open`] returns when there is something to serve with, or says why there never will be. From then on two workers own
//! everything that changes: one renews the certificate, one holds the stream. Whoever reads sees only what was verified,
//! through watches, and never waits. An outage changes nothing but [`Link`]: the last Snapshot and the last certificate
//! stay.
//!
//! It does not decide what to serve, and gives no secret to anybody but the caller.

use std::sync::Arc;
use std::time::Duration;

use fender_config::ObjectName;
use fender_config::snapshot::Snapshot;
use fender_identity::{Bundle, Bundles, Svid, Trust, WorkloadName};
use fender_runtime::backoff::Backoff;
use fender_runtime::clock::{SharedClock, UnixTime};
use fender_runtime::deadline::Deadline;
use fender_runtime::drain::Drain;
use tokio::sync::{mpsc, watch};

use crate::addresses::Addresses;
use crate::code::{Code, EXIT_USAGE};
use crate::decision::DecisionRecord;
use crate::token::TokenFileError;
use crate::usage::Usage;

mod agent;
mod call;
mod core;
mod credential;
mod evidence;
mod freshness;
mod renewal;
mod socket;
mod state;
mod stream;
mod token;
mod update;

pub use agent::{AgentSession, open_agent};
pub use call::CallError;
pub(crate) use call::{Caller, accept, bounded, error_chain};
pub use credential::CredentialState;
#[cfg(feature = "otlp")]
pub(crate) use evidence::read_file;
pub use evidence::{ControlRoots, Evidence, EvidenceFileError, FirstContact};
pub use socket::{AGENT_HEADER, AgentSocket};
pub use state::{HandedOn, Received, StateDir, StateError};
pub use token::SignedToken;

use call::{CALL, Identity};
use core::Core;
use evidence::Expected;
use freshness::{Confirmed, Freshness};
use state::Stored;
use stream::{Stream, Subscription};

/// How long a sidecar that has a stored Snapshot waits for a fresh one before it serves the old.
const PREFER_FRESH: Duration = Duration::from_secs(3);

/// Reports that may wait for the stream; whoever reports more at once loses what does not fit.
const REPORTS: usize = 256;

/// Reports of one process that ends, at once; and between those that follow. A control plane takes more of neither.
const AT_ONCE: usize = 512;
const PACE: Duration = Duration::from_millis(15);

/// What [`open`] needs.
#[derive(Clone, Debug)]
pub struct SessionConfig {
    /// Where the control plane's replicas are.
    pub control: Addresses,
    /// What to attest with when there is no usable state, and when the identity is refused later.
    pub evidence: Option<Evidence>,
    /// Where to keep the identity across restarts.
    pub state: Option<StateDir>,
    /// The wall clock.
    pub clock: SharedClock,
    /// The workers end when it stops. The proxy must have ended by then: it lives on what they renew.
    pub drain: Drain,
    /// The version of this program.
    pub version: &'static str,
    /// Who the operator says this is, if he does; anything else is refused.
    pub workload: Option<WorkloadName>,
}

/// A live connection between one workload and its control plane. Everything in it is verified.
#[derive(Debug)]
pub struct Session {
    /// The certificate to use, replaced around half of its life.
    pub svid: watch::Receiver<Arc<Svid>>,
    /// What to run on.
    pub snapshot: watch::Receiver<Arc<Snapshot>>,
    /// What the control plane should hear. Use `try_send`: while the link is lost nothing leaves.
    pub reports: mpsc::Sender<Report>,
    /// Whether the control plane is there.
    pub link: watch::Receiver<Link>,
    core: Arc<Core>,
}

impl Session {
    /// The value of a credential that the control plane fetches, now and on every change. Ends when the receiver is dropped.
    pub fn watch_credential(&self, name: &ObjectName) -> watch::Receiver<CredentialState> {
        credential::watch(&self.core, name.clone())
    }

    /// A further certificate for the same identity, with a key of its own, for somebody beside this process. It is not
    /// kept, renewed or used here.
    pub async fn further_svid(&self, deadline: Deadline) -> Result<Svid, CallError> {
        self.core.further(deadline).await
    }

    /// A JWT-SVID of this workload for an audience, which is not empty; of the usual lifetime, or of one that may be cut.
    pub async fn sign_jwt(
        &self,
        audience: &[String],
        lifetime: Option<Duration>,
        deadline: Deadline,
    ) -> Result<SignedToken, CallError> {
        self.core.sign_jwt(audience, lifetime, deadline).await
    }

    /// Tells the control plane what this process has delivered and leaves behind, and resolves when that was taken. A control
    /// plane that is older than this report never takes it.
    pub async fn leave(&self, usages: Vec<Usage>, deadline: Deadline) -> Result<(), CallError> {
        let told = async {
            for (at, usage) in usages.into_iter().enumerate() {
                if at >= AT_ONCE {
                    tokio::time::sleep(PACE).await;
                }
                let report = Report::Credential(Box::new(usage));
                self.reports.send(report).await.ok()?;
            }
            self.reports.send(Report::Ended).await.ok()?;
            let mut taken = self.core.taken.subscribe();
            taken.wait_for(|taken| *taken).await.ok().map(drop)
        };
        match deadline.bound(told).await {
            Ok(Some(())) => Ok(()),
            Ok(None) | Err(_) => Err(CallError::Timeout),
        }
    }

    /// Writes down who we are now, after the state directory was another process's for a while.
    pub async fn keep_identity(&self) {
        self.core.keep_identity().await;
    }

    /// By which anybody is recognised, and who is not any more, as it was last heard.
    pub fn trust(&self) -> watch::Receiver<Trust> {
        self.core.trust.subscribe()
    }

    /// How long after its expiry the certificate may still renew itself.
    pub fn renewal_grace(&self) -> Duration {
        *self.core.renewal_grace.borrow()
    }

    /// When somebody must act, if the control plane stays away from now on.
    pub fn unrecoverable(&self) -> UnixTime {
        let lasts = self.core.evidence.as_ref().is_some_and(Evidence::lasts);
        unrecoverable(
            &self.svid.borrow(),
            &self.core.trust.borrow().bundles,
            self.renewal_grace(),
            if lasts { Lasting::Yes } else { Lasting::No },
        )
    }
}

/// When somebody must act, if the control plane stays away from now on: within its renewal grace a certificate renews
/// itself, and evidence that lasts is good for as long as the control plane can be recognised.
fn unrecoverable(svid: &Svid, bundles: &Bundles, grace: Duration, evidence: Lasting) -> UnixTime {
    let not_after = svid.validity().not_after;
    let roots = bundles
        .get(svid.id().trust_domain())
        .map_or(not_after, Bundle::ends);
    let renewal = Duration::from_secs(not_after.as_secs()).saturating_add(grace);
    match evidence {
        Lasting::Yes => roots,
        Lasting::No => UnixTime::since_unix_epoch(renewal).min(roots),
    }
}

/// Whether evidence can be shown as often as need be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lasting {
    Yes,
    No,
}

/// The state of the stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Link {
    /// Updates arrive.
    Connected,
    /// They do not; what was last received holds.
    Lost {
        /// Since when.
        since: UnixTime,
        /// Why, as last seen.
        because: String,
    },
}

/// What a sidecar tells its control plane.
#[derive(Clone, Debug, PartialEq)]
pub enum Report {
    /// Something was decided that is worth a record.
    Decision(Box<DecisionRecord>),
    /// What is held of a credential, or how it is used, has changed.
    Credential(Box<Usage>),
    /// It is held no more: no document names it.
    CredentialGone(ObjectName),
    /// This process ends, and what it has delivered stays. [`Session::leave`] says it and waits.
    Ended,
}

/// Attests or resumes, and waits for something to serve with.
///
/// State comes first: a join token is not spent while the old identity still works. Without a control plane a sidecar
/// starts from its state alone, if certificate and Snapshot are both there and the certificate has not expired.
pub async fn open(config: SessionConfig, deadline: Deadline) -> Result<Session, OpenError> {
    let caller = Caller {
        control: config.control.clone(),
        clock: config.clock.clone(),
        version: config.version,
    };
    let stored = match &config.state {
        Some(state) => state.load()?,
        None => None,
    };
    let Some(stored) = stored else {
        let expected = Expected::from(config.workload.as_ref());
        let identity = attest(&config, &expected, &caller, deadline).await?;
        return begin(config, caller, identity, None, deadline).await;
    };

    let resumed = resume(&config, &caller, stored, deadline).await;
    match (resumed, &config.evidence) {
        (Err(OpenError::Refused(error)), Some(evidence)) if evidence.at_hand() => {
            tracing::warn!(%error, "the stored identity is refused, attesting anew");
            let expected = Expected::from(config.workload.as_ref());
            let identity = attest(&config, &expected, &caller, deadline).await?;
            begin(config, caller, identity, None, deadline).await
        }
        (resumed, _) => resumed,
    }
}

/// Goes on as who we were.
async fn resume(
    config: &SessionConfig,
    caller: &Caller,
    stored: Stored,
    deadline: Deadline,
) -> Result<Session, OpenError> {
    Expected::from(config.workload.as_ref()).admit(stored.svid.id())?;
    let (identity, snapshot) = renewed(config, caller, stored, deadline).await?;
    begin(config.clone(), caller.clone(), identity, snapshot, deadline).await
}

/// Who we were, with a certificate that is valid.
async fn renewed(
    config: &SessionConfig,
    caller: &Caller,
    stored: Stored,
    deadline: Deadline,
) -> Result<(Identity, Option<(Snapshot, UnixTime)>), OpenError> {
    let Stored {
        svid,
        trust,
        renewal_grace,
        snapshot,
        fresh,
    } = stored;
    let identity = Identity {
        svid: Arc::new(svid),
        trust,
        renewal_grace,
    };
    let now = config.clock.now();
    // Nobody can have known in the future what is the newest.
    let fresh = fresh.unwrap_or(now).min(now);
    let snapshot = snapshot
        .filter(|snapshot| snapshot.identity.as_ref() == Some(identity.svid.id()))
        .map(|snapshot| (snapshot, fresh));
    if now < identity.svid.validity().not_after {
        return Ok((identity, snapshot));
    }
    tracing::info!(id = %identity.svid.id(), "the stored certificate has expired, renewing it with its key");
    let renewed = retry(deadline, async |limit| {
        caller.renew(&identity.svid, &identity.trust, limit).await
    })
    .await?;
    save(config.state.as_ref(), &renewed).await?;
    Ok((renewed, snapshot))
}

/// Becomes somebody.
async fn attest(
    config: &SessionConfig,
    expected: &Expected,
    caller: &Caller,
    deadline: Deadline,
) -> Result<Identity, OpenError> {
    let evidence = config.evidence.as_ref().ok_or(OpenError::NoEvidence)?;
    let attempt = evidence.prepare(expected, config.state.as_ref())?;
    let identity = retry(deadline, async |limit| attempt.make(caller, limit).await).await?;
    save(config.state.as_ref(), &identity).await?;
    attempt.done(config.state.as_ref())?;
    tracing::info!(id = %identity.svid.id(), serial = %identity.svid.serial(), "attested");
    Ok(identity)
}

/// The first Snapshot, then the workers.
async fn begin(
    config: SessionConfig,
    caller: Caller,
    identity: Identity,
    stored: Option<(Snapshot, UnixTime)>,
    deadline: Deadline,
) -> Result<Session, OpenError> {
    let place = config.state.as_ref().map(StateDir::place);
    let place = place.transpose().unwrap_or_else(|error| {
        // It only has reports of this instance told from those of others.
        tracing::warn!(%error, "reports of what is held do not say which instance they are of");
        None
    });
    let place = place.flatten();
    let core = Core::new(
        caller,
        identity,
        config.evidence,
        config.state,
        config.drain,
        place,
    );
    let fresh = stored.as_ref().map(|(_, fresh)| *fresh);
    let stored = stored.map(|(snapshot, _)| snapshot);
    let (snapshot, subscription) = first_snapshot(&core, stored, deadline).await?;
    let now = core.caller.clock.now();
    let (link, confirmed) = match &subscription {
        Some(_) => (Link::Connected, Confirmed::Now),
        None => {
            let link = Link::Lost {
                since: now,
                because: "not reached since the start".to_owned(),
            };
            (link, Confirmed::Until(fresh.unwrap_or(now)))
        }
    };

    let clock = core.caller.clock.clone();
    let (freshness, snapshots) = Freshness::new(clock, snapshot, confirmed);
    core.drain.spawn(Arc::clone(&freshness).run(core.clone()));
    let (link, links) = watch::channel(link);
    let (reports, reported) = mpsc::channel(REPORTS);
    core.drain.spawn(renewal::run(core.clone()));
    core.drain
        .spawn(Stream::new(core.clone(), freshness, link, reported).run(subscription));
    Ok(Session {
        svid: core.svid.subscribe(),
        snapshot: snapshots,
        reports,
        link: links,
        core,
    })
}

async fn first_snapshot(
    core: &Arc<Core>,
    stored: Option<Snapshot>,
    deadline: Deadline,
) -> Result<(Snapshot, Option<Subscription>), OpenError> {
    let first = |deadline| {
        retry(deadline, async |limit| {
            Subscription::first(core, limit).await
        })
    };
    let Some(stored) = stored else {
        let (snapshot, subscription) = first(deadline).await?;
        return Ok((snapshot, Some(subscription)));
    };
    match first(Deadline::after(PREFER_FRESH.min(deadline.remaining()))).await {
        Ok((snapshot, subscription)) => Ok((snapshot, Some(subscription))),
        // The control plane's own word counts. A stranger at its address is an outage like any other.
        Err(error @ OpenError::Refused(CallError::Answered { .. })) => Err(error),
        Err(error) => {
            let error = error_chain(&error);
            tracing::warn!(%error, version = stored.version, "serving the stored snapshot");
            // What was learned about trust since then still counts.
            Ok((
                Snapshot {
                    trust: core.trust.borrow().clone(),
                    ..stored
                },
                None,
            ))
        }
    }
}

/// Keeps what was issued. A sidecar that cannot write its state says so at the start, not at its next restart.
async fn save(state: Option<&StateDir>, identity: &Identity) -> Result<(), StateError> {
    match state {
        Some(state) => core::save_identity(state.clone(), identity).await,
        None => Ok(()),
    }
}

/// Tries again while it may help and there is time. Not cancel safe: an attempt may have taken effect.
async fn retry<T>(
    deadline: Deadline,
    attempt: impl AsyncFn(Deadline) -> Result<T, CallError>,
) -> Result<T, OpenError> {
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
    let mut before = None;
    loop {
        let limit = Deadline::after(CALL.min(deadline.remaining()));
        let error = match attempt(limit).await {
            Ok(done) => return Ok(done),
            Err(error) if !error.code().is_passing() => return Err(OpenError::Refused(error)),
            // An attempt cut short by our own deadline says less than the one before it.
            Err(_) if deadline.remaining().is_zero() && before.is_some() => None,
            Err(error) => Some(error),
        };
        if let Some(error) = &error {
            let first = before.is_none();
            let (code, error) = (error.code(), error_chain(error));
            match first {
                true => tracing::info!(%code, %error, "no answer from the control plane yet"),
                false => tracing::debug!(%code, %error, "still no answer from the control plane"),
            }
        }
        before = error.or(before);
        let wait = backoff.next();
        if deadline.remaining() <= wait {
            return Err(OpenError::Unavailable(before.unwrap_or(CallError::Timeout)));
        }
        tokio::time::sleep(wait).await;
    }
}

/// Why there is no session.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Neither state nor token.
    #[error(
        "there is no stored identity and nothing to prove one with: give `--token-file` with a token from \
         `fender token create`, `--agent`, `--kubernetes-token-file` or `--x509-certificate`"
    )]
    NoEvidence,
    /// The token file.
    #[error(transparent)]
    TokenFile(#[from] TokenFileError),
    /// Another file that evidence is in, or needs.
    #[error(transparent)]
    EvidenceFile(#[from] EvidenceFileError),
    /// The state directory.
    #[error(transparent)]
    State(#[from] StateError),
    /// The operator expects somebody else.
    #[error("this is to be `{expected}`, and the identity at hand is of `{found}`")]
    WrongIdentity {
        /// Who was expected.
        expected: String,
        /// Who it would be.
        found: String,
    },
    /// The control plane refused us, or we refused it.
    #[error("refused")]
    Refused(#[source] CallError),
    /// There was no usable answer before the deadline.
    #[error("no answer before the deadline")]
    Unavailable(#[source] CallError),
}

impl OpenError {
    /// The reason as a code, where the control protocol has one.
    pub fn code(&self) -> Option<Code> {
        match self {
            Self::Refused(error) | Self::Unavailable(error) => Some(error.code()),
            Self::WrongIdentity { .. } => Some(Code::TokenWrongIdentity),
            Self::NoEvidence | Self::TokenFile(_) | Self::EvidenceFile(_) | Self::State(_) => None,
        }
    }

    /// What the process exits with.
    pub fn exit_code(&self) -> u8 {
        self.code().map_or(EXIT_USAGE, Code::exit_code)
    }
}

/// A key that cannot be made is nobody's refusal.
impl From<CallError> for OpenError {
    fn from(error: CallError) -> Self {
        Self::Unavailable(error)
    }
}

#[cfg(test)]
mod tests;
