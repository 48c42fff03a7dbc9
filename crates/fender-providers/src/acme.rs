//! Certificates from an authority that speaks ACME (RFC 8555): asked for, kept, and renewed for as long as a snapshot
//! wants them.
//!
//! For each certificate there is one task, so of one name at most one order is in flight. It asks, answers what the
//! authority asks back (TLS-ALPN-01, RFC 8737; HTTP-01), puts what it got into the state directory and publishes it;
//! then it waits until the authority suggests to renew (ARI, RFC 9773) or two thirds of the lifetime are over. Whatever goes
//! wrong, **what is there stays**: it is said why, and tried again, after seconds if the authority could not be reached and
//! after minutes to hours if it refused, also by whoever starts next. An order that takes longer than this process lives, or
//! than anybody waits, is taken up again with its key. For names for which there is none yet, what was got for others stands in, as far as it
//! is good for them.
//!
//! It refuses to speak to a directory whose own certificate does not verify, to send an account's key anywhere, to take a
//! certificate that does not fit what was asked for, and to order anything while this sidecar only visits a state directory
//! that is another one's. Accounts and certificates lie in files of mode 0600; they are replaced whole or not at all.

mod account;
mod attempts;
mod https;
mod order;
mod renewal;
mod store;
mod worker;

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use fender_config::snapshot::{AcmeChallenge, PortCertificate, Snapshot};
use fender_identity::tls::{ChallengeCertificate, Issued};
use fender_runtime::clock::{SharedClock, UnixTime};
use fender_runtime::drain::Drain;
use tokio::sync::watch;

use account::Accounts;
use attempts::Attempts;
use store::Store;
use worker::{Shared, Worker};

/// What a sidecar needs to know besides what its snapshot wants.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The sidecar's own state directory. Without one nothing is asked for, since nothing would be kept.
    pub state: Option<PathBuf>,
    /// Whether the state directory is ours to write. Once it is, it stays so.
    pub owned: watch::Receiver<bool>,
    pub answers: Arc<dyn Answers>,
    pub clock: SharedClock,
}

/// Whoever answers an authority's questions where it asks them.
pub trait Answers: fmt::Debug + Send + Sync + 'static {
    /// From now on.
    fn give(&self, answer: &Answer);

    /// Not any more.
    fn withdraw(&self, answer: &Answer);

    /// Resolves when an authority that asks in this way finds somebody.
    fn ready(&self, challenge: AcmeChallenge) -> Pin<Box<dyn Future<Output = ()> + Send>>;
}

/// The proof that a name is ours.
#[derive(Clone, Debug)]
pub enum Answer {
    /// What is shown to who asks for this name by `acme-tls/1`.
    TlsAlpn(ChallengeCertificate),
    /// What stands at `/.well-known/acme-challenge/TOKEN`.
    Http {
        token: String,
        authorization: String,
    },
}

impl Answer {
    /// Whether it stands where the other stood.
    fn is_instead_of(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::TlsAlpn(one), Self::TlsAlpn(other)) => one.name() == other.name(),
            (Self::Http { token, .. }, Self::Http { token: other, .. }) => token == other,
            (Self::TlsAlpn(_), Self::Http { .. }) | (Self::Http { .. }, Self::TlsAlpn(_)) => false,
        }
    }
}

/// How all that are wanted are doing.
pub type Standings = BTreeMap<PortCertificate, Issued>;

/// Follows what snapshots want until the drain stops. What was kept is there when this returns.
pub fn follow(
    mut snapshots: watch::Receiver<Arc<Snapshot>>,
    settings: Settings,
    drain: &Drain,
) -> watch::Receiver<Arc<Standings>> {
    let (publish, standings) = watch::channel(Arc::new(Standings::new()));
    let mut orders = Orders {
        store: settings
            .state
            .as_ref()
            .map(|state| Arc::new(Store::below(state))),
        accounts: Arc::new(Accounts::default()),
        attempts: Arc::new(Attempts::default()),
        settings,
        publish,
        drain: drain.clone(),
        running: BTreeMap::new(),
    };
    orders.want(wanted(&snapshots.borrow_and_update()));
    let stop = drain.clone();
    drain.spawn(async move {
        loop {
            tokio::select! {
                () = stop.stopping() => return,
                changed = snapshots.changed() => if changed.is_err() { return stop.stopping().await },
            }
            orders.want(wanted(&snapshots.borrow_and_update()));
        }
    });
    standings
}

fn wanted(snapshot: &Snapshot) -> Vec<PortCertificate> {
    let certificates = snapshot.inbound.iter().flat_map(|port| &port.certificates);
    certificates
        .filter(|one| one.acme().is_some())
        .cloned()
        .collect()
}

struct Orders {
    store: Option<Arc<Store>>,
    accounts: Arc<Accounts>,
    attempts: Arc<Attempts>,
    settings: Settings,
    publish: watch::Sender<Arc<Standings>>,
    drain: Drain,
    /// One for each certificate.
    running: BTreeMap<PortCertificate, Drain>,
}

impl Orders {
    fn want(&mut self, wanted: Vec<PortCertificate>) {
        let unwanted = |one: &PortCertificate| !wanted.contains(one);
        self.running.retain(|one, drain| {
            if unwanted(one) {
                drain.stop();
                return false;
            }
            true
        });
        self.publish.send_if_modified(|standings| {
            let before = standings.len();
            if standings.keys().any(unwanted) {
                Arc::make_mut(standings).retain(|one, _| !unwanted(one));
            }
            standings.len() != before
        });
        for one in wanted {
            if !self.running.contains_key(&one) {
                self.begin(one);
            }
        }
    }

    fn begin(&mut self, wanted: PortCertificate) {
        let drain = self.drain.child();
        let standing = match (&self.store, wanted.acme()) {
            (Some(store), Some(acme)) => {
                let (key, acme) = (wanted.clone(), acme.clone());
                let (store, accounts) = (Arc::clone(store), Arc::clone(&self.accounts));
                let attempts = Arc::clone(&self.attempts);
                let (settings, publish) = (self.settings.clone(), self.publish.clone());
                let worker = move || {
                    let shared = Shared {
                        store: Arc::clone(&store),
                        accounts: Arc::clone(&accounts),
                        attempts: Arc::clone(&attempts),
                        publish: publish.clone(),
                    };
                    Worker::new(key.clone(), acme.clone(), shared, &settings)
                };
                let first = worker();
                let standing = first.standing();
                let again = move || {
                    let mut worker = worker();
                    worker.died(AFTER_DEATH);
                    worker.run()
                };
                drain.spawn(kept_running(first.run(), again, drain.clone()));
                standing
            }
            (None, _) | (_, None) => Issued {
                problem: Some(
                    "a certificate from an authority needs a state directory to be kept in: start the sidecar with --state"
                        .to_owned(),
                ),
                ..Issued::default()
            },
        };
        self.publish.send_modify(|standings| {
            Arc::make_mut(standings).insert(wanted.clone(), standing);
        });
        self.running.insert(wanted, drain);
    }
}

/// Runs one certificate's task, and another where it dies of what an authority answers: nobody else would notice before
/// the certificate ends.
async fn kept_running<F>(first: F, again: impl Fn() -> F, stop: Drain)
where
    F: Future<Output = ()> + Send + 'static,
{
    let mut next = first;
    loop {
        #[expect(
            clippy::disallowed_methods,
            reason = "it is joined below, by one who belongs to a drain"
        )]
        let mut task = tokio::spawn(next);
        let ended = tokio::select! {
            () = stop.stopping() => {
                task.abort();
                // What it gave for an order is withdrawn.
                let _ = task.await;
                return;
            }
            ended = &mut task => ended,
        };
        if ended.is_ok() {
            return;
        }
        next = again();
        tokio::select! {
            () = stop.stopping() => return,
            () = tokio::time::sleep(AFTER_DEATH) => {}
        }
    }
}

/// Before a task is begun again that died.
const AFTER_DEATH: Duration = Duration::from_secs(10 * 60);

/// Why there is no (new) certificate.
#[derive(Debug, thiserror::Error)]
enum AcmeError {
    /// The network, the directory's own certificate, or it is overloaded.
    #[error("the directory cannot be used now: {0}")]
    Outage(String),
    #[error("the authority refused: {0}")]
    Refused(String),
    /// For now: what was asked is nothing wrong.
    #[error("the authority asks for patience: {0}")]
    RateLimited(String),
    /// By our own count.
    #[error(
        "as many orders for one of the names came to nothing within an hour as authorities forgive"
    )]
    Enough(UnixTime),
    #[error("the authority could not convince itself that `{name}` is ours: {why}")]
    Unproven { name: String, why: String },
    #[error("nobody listens yet where it would ask: on `{0}`")]
    Deaf(SocketAddr),
    #[error("the authority offers no {challenge} for `{name}`")]
    NoChallenge {
        name: String,
        challenge: &'static str,
    },
    #[error("the authority has not finished: it is looked after again")]
    TimedOut,
    #[error("what the authority issued cannot be used: {0}")]
    Unusable(#[from] fender_identity::tls::NamedCertificateError),
    /// It speaks of no renewals, or not of this one.
    #[error("the authority does not know what is to be replaced")]
    NotReplaceable,
    /// The account is not known any more; the next attempt makes another.
    #[error("the authority does not know our account any more")]
    Forgotten,
    /// Ours: roots, an account's key, the state directory.
    #[error("{0}")]
    Ours(String),
}

impl AcmeError {
    /// Nobody was asked, or nobody had time: asking again soon costs nothing.
    fn is_outage(&self) -> bool {
        matches!(
            self,
            Self::Outage(_) | Self::Forgotten | Self::TimedOut | Self::Enough(_)
        )
    }

    /// By our own count.
    fn not_before(&self) -> Option<UnixTime> {
        if let Self::Enough(until) = self {
            return Some(*until);
        }
        None
    }

    /// Whether an order may still come to something. Otherwise the next attempt begins with another.
    fn leaves_order(&self) -> bool {
        match self {
            Self::Outage(_)
            | Self::RateLimited(_)
            | Self::Enough(_)
            | Self::TimedOut
            | Self::Deaf(_)
            | Self::Ours(_) => true,
            Self::Refused(_)
            | Self::Unproven { .. }
            | Self::NoChallenge { .. }
            | Self::Unusable(_)
            | Self::NotReplaceable
            | Self::Forgotten => false,
        }
    }
}

impl From<instant_acme::Error> for AcmeError {
    fn from(error: instant_acme::Error) -> Self {
        use instant_acme::Error;
        match error {
            Error::Api(problem) => refusal(&problem),
            Error::Timeout(_) => Self::TimedOut,
            Error::Unsupported(_) => Self::NotReplaceable,
            // What came was no ACME: a page of a proxy, or nothing of what must be there.
            Error::Json(error) => {
                Self::Outage(clean(&format!("its answer cannot be read: {error}")))
            }
            Error::Str(text) => Self::Outage(format!("its answer lacks something: {text}")),
            Error::Other(error) => Self::Outage(clean(&error.to_string())),
            Error::Http(_) | Error::InvalidUri(_) => {
                Self::Outage("its answer leads to no URL".to_owned())
            }
            error @ (Error::Crypto | Error::KeyRejected | _) => Self::Ours(error.to_string()),
        }
    }
}

fn refusal(problem: &instant_acme::Problem) -> AcmeError {
    let kind = problem.r#type.as_deref().unwrap_or_default();
    match kind.rsplit(':').next() {
        Some("accountDoesNotExist") => AcmeError::Forgotten,
        Some("alreadyReplaced") => AcmeError::NotReplaceable,
        Some("rateLimited") => AcmeError::RateLimited(clean(&problem.to_string())),
        // Several in a row; the next attempt begins with another.
        Some("badNonce" | "serverInternal") => AcmeError::Outage(clean(&problem.to_string())),
        Some(_) | None => AcmeError::Refused(clean(&problem.to_string())),
    }
}

/// Words of somebody else's, fit for a line.
fn clean(text: &str) -> String {
    let visible = |letter: char| if letter.is_control() { ' ' } else { letter };
    text.chars().take(MAX_WORDS).map(visible).collect()
}

/// As much of what an authority says as is repeated.
const MAX_WORDS: usize = 500;

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use fender_runtime::deadline::Deadline;
    use tokio::time::Instant;

    use super::*;

    /// Dies in its first two lives.
    async fn life(lives: Arc<AtomicU32>) {
        let before = lives.fetch_add(1, Ordering::Relaxed);
        assert!(before >= 2, "what an authority answers breaks it");
    }

    #[tokio::test(start_paused = true)]
    async fn attack_an_answer_that_breaks_a_task_does_not_end_the_renewing() {
        let lives = Arc::new(AtomicU32::new(0));
        let began = Instant::now();
        let again = || life(Arc::clone(&lives));
        let patience = Deadline::after(10 * AFTER_DEATH);
        let running = kept_running(again(), again, Drain::new());
        patience.bound(running).await.unwrap();
        assert_eq!(lives.load(Ordering::Relaxed), 3);
        assert_eq!(began.elapsed(), 2 * AFTER_DEATH);
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_runs_on_that_is_not_wanted_any_more() {
        let stop = Drain::new();
        let again = std::future::pending::<()>;
        stop.stop();
        let patience = Deadline::after(AFTER_DEATH);
        let running = kept_running(again(), again, stop);
        patience.bound(running).await.unwrap();
    }
}
