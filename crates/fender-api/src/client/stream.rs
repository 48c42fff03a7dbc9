//! The worker that holds the stream: Snapshots and Trust down, acknowledgements and reports up, and back again when it breaks.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fender_config::ObjectName;
use fender_config::snapshot::Snapshot;
use fender_identity::Trust;
use fender_runtime::backoff::{Backoff, spread};
use fender_runtime::deadline::Deadline;
use prost::Message as _;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::call::{CALL, CallError, bounded, error_chain};
use super::core::Core;
use super::freshness::Freshness;
use super::update::{Refused, judge, learn};
use super::{Link, Report};
use crate::code::Code;
use crate::convert::sha256;
use crate::proto::control::v1 as proto;
use crate::proto::control::v1::distribution_client::DistributionClient;
use crate::proto::control::v1::report::Kind;
use crate::tls::{Connection, MAX_MESSAGE};

const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);
/// Over how long the sidecars of a replica that died spread their return.
const SPREAD: Duration = Duration::from_secs(2);

/// A stream that lived this long was a good one: the next failure is a new one.
const SETTLED: Duration = Duration::from_secs(10);

/// How much is told of why a Snapshot was refused.
const MAX_REASON: usize = 1024;

/// Credentials of which all is told again after a reconnect.
const MAX_CREDENTIALS: usize = 1024;

/// What this process has received, nothing while it runs on what was stored: that is to be sent anew even if its number
/// did not change, for it may be from another life of the control plane.
#[derive(Clone, Copy, Debug, Default)]
struct Running {
    snapshot: Received,
    trust: Received,
}

/// One message: its number, and what it was.
#[derive(Clone, Copy, Debug, Default)]
struct Received {
    version: u64,
    sha256: [u8; 32],
}

#[derive(Debug)]
enum Arrived {
    Snapshot(Box<proto::Snapshot>),
    /// An encoded Trust.
    Trust(Bytes),
    /// What was reported before the end was taken.
    Taken,
}

/// A stream on one connection.
#[derive(Debug)]
pub(crate) struct Subscription {
    connection: Connection,
    outgoing: mpsc::Sender<proto::Report>,
    incoming: Streaming<proto::Update>,
    received: Running,
}

impl Subscription {
    /// Connects with the certificate of this moment and says hello.
    async fn open(core: &Core, running: Running, deadline: Deadline) -> Result<Self, CallError> {
        let (svid, trust) = (core.svid.borrow().clone(), core.trust.borrow().clone());
        let connection = core
            .caller
            .connect(svid.id(), Some(&svid), &trust, deadline)
            .await?;
        let (outgoing, reports) = mpsc::channel(16);
        let mut subscription = {
            let mut client = DistributionClient::new(connection.channel.clone())
                .max_decoding_message_size(MAX_MESSAGE)
                .max_encoding_message_size(MAX_MESSAGE);
            let hello = Kind::Hello(proto::Hello {
                sidecar_version: core.caller.version.to_owned(),
                instance: core.instance.to_string(),
                snapshot_version: running.snapshot.version,
                snapshot_sha256: running.snapshot.sha256.to_vec(),
                trust_version: running.trust.version,
                trust_sha256: running.trust.sha256.to_vec(),
                place: core
                    .place
                    .as_ref()
                    .map_or_else(String::new, ToString::to_string),
            });
            // Before the call: the server may want to hear who we are before it answers.
            send(&outgoing, hello).await?;
            let call = client.subscribe(ReceiverStream::new(reports));
            let incoming = core
                .caller
                .heard(&connection, bounded(deadline, call).await)?;
            Self {
                connection,
                outgoing,
                incoming,
                received: running,
            }
        };
        let not_after = i64::try_from(svid.validity().not_after.as_secs()).unwrap_or(i64::MAX);
        subscription
            .send(Kind::Certificate(proto::CertificateInUse {
                serial: svid.serial().to_string(),
                not_after_unix: not_after,
            }))
            .await?;
        Ok(subscription)
    }

    /// A stream and the first Snapshot it brought that can be served, with what was learned of trust before it.
    pub(crate) async fn first(
        core: &Arc<Core>,
        deadline: Deadline,
    ) -> Result<(Snapshot, Self), CallError> {
        let mut subscription = Self::open(core, Running::default(), deadline).await?;
        let mut refused = None;
        loop {
            let message = match deadline.bound(subscription.next()).await {
                Ok(message) => core.caller.heard(&subscription.connection, message)?,
                Err(_) => {
                    core.caller.control.leave(&subscription.connection.url);
                    return Err(refused.map_or(CallError::Timeout, CallError::Answer));
                }
            };
            let message = match message {
                Arrived::Snapshot(message) => *message,
                // Nothing was reported yet.
                Arrived::Taken => continue,
                Arrived::Trust(bytes) => {
                    let (own, known) =
                        (core.svid.borrow().id().clone(), core.trust.borrow().clone());
                    let (trust, taken) = learn(&bytes, &own, &known);
                    subscription
                        .learned(core, trust, sha256(&bytes), taken)
                        .await?;
                    continue;
                }
            };
            let (id, trust) = (core.svid.borrow().id().clone(), core.trust.borrow().clone());
            let sha256 = sha256(&message.encode_to_vec());
            match judge(message, &id, &trust) {
                Ok(snapshot) => {
                    let version = snapshot.version;
                    subscription.received.snapshot = Received { version, sha256 };
                    subscription.send(ack(snapshot.version)).await?;
                    core.keep(Arc::new(snapshot.clone())).await;
                    return Ok((snapshot, subscription));
                }
                Err(Refused { version, reason }) => {
                    tracing::error!(version, %reason, "snapshot refused");
                    subscription.send(nack(version, reason.clone())).await?;
                    refused = Some(format!("snapshot {version}: {reason}"));
                }
            }
        }
    }

    /// Cancel safe: a message is either returned or still to come.
    async fn next(&mut self) -> Result<Arrived, CallError> {
        loop {
            let update = self
                .incoming
                .message()
                .await?
                .ok_or_else(|| CallError::Answered {
                    code: Code::Unavailable,
                    reason: "the stream has ended".to_owned(),
                })?;
            match update.kind {
                Some(proto::update::Kind::Snapshot(snapshot)) => {
                    return Ok(Arrived::Snapshot(Box::new(snapshot)));
                }
                Some(proto::update::Kind::Trust(bytes)) => return Ok(Arrived::Trust(bytes)),
                Some(proto::update::Kind::Taken(proto::Taken {})) => return Ok(Arrived::Taken),
                // What a newer control plane may say besides is nothing this version must know.
                None => {}
            }
        }
    }

    /// Keeps what was learned from a Trust, and tells the control plane.
    async fn learned(
        &mut self,
        core: &Core,
        trust: Trust,
        sha256: [u8; 32],
        taken: Result<(), Refused>,
    ) -> Result<(), CallError> {
        let version = trust.version;
        core.believe(trust).await;
        match taken {
            Ok(()) => {
                self.received.trust = Received { version, sha256 };
                tracing::info!(version, "trust accepted");
                self.send(Kind::TrustAck(proto::Ack { version })).await
            }
            Err(Refused { version, reason }) => {
                tracing::error!(version, %reason, "trust refused, but for those it denies");
                self.send(Kind::TrustNack(refusal(version, reason))).await
            }
        }
    }

    async fn send(&mut self, kind: Kind) -> Result<(), CallError> {
        send(&self.outgoing, kind).await
    }
}

/// A server that does not read is as good as gone.
async fn send(outgoing: &mpsc::Sender<proto::Report>, kind: Kind) -> Result<(), CallError> {
    let report = proto::Report { kind: Some(kind) };
    match Deadline::after(CALL).bound(outgoing.send(report)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) | Err(_) => Err(CallError::Timeout),
    }
}

fn ack(version: u64) -> Kind {
    Kind::Ack(proto::Ack { version })
}

fn nack(version: u64, reason: String) -> Kind {
    Kind::Nack(refusal(version, reason))
}

fn refusal(version: u64, mut reason: String) -> proto::Nack {
    reason.truncate(reason.floor_char_boundary(MAX_REASON));
    proto::Nack { version, reason }
}

/// The worker.
pub(crate) struct Stream {
    core: Arc<Core>,
    freshness: Arc<Freshness>,
    /// Something newer than what is served was refused.
    refusing: bool,
    link: watch::Sender<Link>,
    reports: mpsc::Receiver<Report>,
    running: Running,
    /// What is in use, to be said again on every new stream.
    usages: BTreeMap<ObjectName, proto::CredentialInUse>,
    /// This process ends, and that has to be said again, too.
    ending: bool,
    backoff: Backoff,
}

/// Why a stream is over.
enum Ended {
    Stopping,
    /// A new certificate: the stream moves to a connection that was made with it.
    Renewed,
    Lost(CallError),
}

impl Stream {
    pub(crate) fn new(
        core: Arc<Core>,
        freshness: Arc<Freshness>,
        link: watch::Sender<Link>,
        reports: mpsc::Receiver<Report>,
    ) -> Self {
        Self {
            core,
            freshness,
            refusing: false,
            link,
            reports,
            running: Running::default(),
            usages: BTreeMap::new(),
            ending: false,
            backoff: Backoff::new(FIRST_PAUSE, LONGEST_PAUSE),
        }
    }

    pub(crate) async fn run(mut self, first: Option<Subscription>) {
        let mut renewals = self.core.svid.subscribe();
        if let Some(first) = &first {
            self.running = first.received;
        }
        let mut subscription = first;
        loop {
            let current = match subscription.take() {
                Some(current) => current,
                None => {
                    renewals.mark_unchanged();
                    match self.reconnect(&mut renewals).await {
                        Some(current) => current,
                        None => return,
                    }
                }
            };
            let began = Instant::now();
            let url = current.connection.url.clone();
            let ended = self.carry(current, &mut renewals).await;
            let settled = began.elapsed() >= SETTLED;
            if settled {
                self.backoff.reset();
            }
            match ended {
                Ended::Stopping => return,
                Ended::Renewed => {}
                Ended::Lost(error) => {
                    self.lost(&error);
                    self.core.caller.control.leave(&url);
                    // All streams of a replica end at once when it dies: they must not come back at once, too.
                    let wait = match settled {
                        true => spread(SPREAD),
                        false => self.backoff.next(),
                    };
                    if !self.pause(wait, &mut renewals).await {
                        return;
                    }
                }
            }
        }
    }

    /// Nothing if it is time to stop.
    async fn reconnect(
        &mut self,
        renewals: &mut watch::Receiver<Arc<fender_identity::Svid>>,
    ) -> Option<Subscription> {
        loop {
            let attempt = Subscription::open(&self.core, self.running, Deadline::after(CALL));
            let drain = self.core.drain.clone();
            let opened = tokio::select! {
                biased;
                () = drain.stopping() => return None,
                opened = attempt => opened,
            };
            match opened {
                Ok(subscription) => return Some(subscription),
                Err(error) => self.lost(&error),
            }
            let wait = self.backoff.next();
            if !self.pause(wait, renewals).await {
                return None;
            }
        }
    }

    /// False if it is time to stop. A new certificate ends the wait: the old one may have been what was wrong.
    async fn pause(
        &self,
        wait: Duration,
        renewals: &mut watch::Receiver<Arc<fender_identity::Svid>>,
    ) -> bool {
        tokio::select! {
            biased;
            () = self.core.drain.stopping() => false,
            renewed = renewals.changed() => renewed.is_ok(),
            () = tokio::time::sleep(wait) => true,
        }
    }

    fn lost(&self, error: &CallError) {
        self.freshness.confirm(false);
        self.core.channel.send_replace(None);
        let (code, because) = (error.code(), error_chain(error));
        let now = self.core.caller.clock.now();
        self.link.send_modify(|link| match link {
            Link::Connected => {
                tracing::warn!(%code, error = %because, "control plane lost, going on with what is known");
                *link = Link::Lost { since: now, because };
            }
            Link::Lost { because: last, .. } => {
                tracing::debug!(%code, error = %because, "control plane still lost");
                *last = because;
            }
        });
    }

    /// One stream from its first to its last message.
    async fn carry(
        &mut self,
        mut subscription: Subscription,
        renewals: &mut watch::Receiver<Arc<fender_identity::Svid>>,
    ) -> Ended {
        self.core
            .channel
            .send_replace(Some(subscription.connection.channel.clone()));
        self.link.send_if_modified(|link| {
            let was_lost = *link != Link::Connected;
            if was_lost {
                tracing::info!("control plane connected");
            }
            *link = Link::Connected;
            was_lost
        });
        // What is newer would arrive now, unless it was refused; and what was stored is sent anew before it counts.
        self.freshness
            .confirm(!self.refusing && self.running.snapshot.version != 0);
        if let Err(error) = self.repeat_usages(&mut subscription).await {
            return Ended::Lost(error);
        }
        loop {
            let outcome = tokio::select! {
                biased;
                () = self.core.drain.stopping() => return Ended::Stopping,
                message = subscription.next() => match message {
                    Ok(Arrived::Snapshot(message)) => self.take(*message, &mut subscription).await,
                    Ok(Arrived::Trust(bytes)) => self.learn(&bytes, &mut subscription).await,
                    Ok(Arrived::Taken) => {
                        self.core.taken.send_replace(self.ending);
                        Ok(())
                    }
                    Err(error) => Err(error),
                },
                renewed = renewals.changed() => match renewed {
                    Ok(()) => return Ended::Renewed,
                    Err(_) => return Ended::Stopping,
                },
                Some(report) = self.reports.recv() => self.pass_on(report, &mut subscription).await,
            };
            if let Err(error) = outcome {
                return Ended::Lost(error);
            }
        }
    }

    async fn take(
        &mut self,
        message: proto::Snapshot,
        subscription: &mut Subscription,
    ) -> Result<(), CallError> {
        let own = self.core.svid.borrow().id().clone();
        let trust = self.core.trust.borrow().clone();
        let sha256 = sha256(&message.encode_to_vec());
        match judge(message, &own, &trust) {
            Ok(snapshot) => {
                let (version, snapshot) = (snapshot.version, Arc::new(snapshot));
                self.running.snapshot = Received { version, sha256 };
                self.freshness.put(snapshot.clone());
                self.refusing = false;
                self.core.keep(snapshot).await;
                tracing::info!(version, "snapshot accepted");
                subscription.send(ack(version)).await
            }
            Err(Refused { version, reason }) => {
                tracing::error!(version, %reason, "snapshot refused, the old one stays");
                self.refusing = true;
                self.freshness.confirm(false);
                subscription.send(nack(version, reason)).await
            }
        }
    }

    async fn learn(
        &mut self,
        bytes: &[u8],
        subscription: &mut Subscription,
    ) -> Result<(), CallError> {
        let (own, known) = (
            self.core.svid.borrow().id().clone(),
            self.core.trust.borrow().clone(),
        );
        let (trust, taken) = learn(bytes, &own, &known);
        let sha256 = sha256(bytes);
        if taken.is_ok() {
            let version = trust.version;
            self.running.trust = Received { version, sha256 };
        }
        if trust != known {
            // Before it is kept on disk: who is denied now must not have the time that takes.
            self.freshness.believe(&trust);
        }
        subscription.learned(&self.core, trust, sha256, taken).await
    }

    async fn pass_on(
        &mut self,
        report: Report,
        subscription: &mut Subscription,
    ) -> Result<(), CallError> {
        let kind = match report {
            Report::Decision(record) => Kind::Decision((&*record).into()),
            Report::Credential(usage) => {
                let told = proto::CredentialInUse::from(&*usage);
                if self.usages.len() < MAX_CREDENTIALS || self.usages.contains_key(&usage.name) {
                    self.usages.insert(usage.name.clone(), told.clone());
                }
                Kind::Credential(told)
            }
            // Whose document is gone, the control plane knows.
            Report::CredentialGone(name) => {
                self.usages.remove(&name);
                return Ok(());
            }
            Report::Ended => {
                self.ending = true;
                Kind::Ended(proto::Ended {})
            }
        };
        subscription.send(kind).await
    }

    async fn repeat_usages(&self, subscription: &mut Subscription) -> Result<(), CallError> {
        for usage in self.usages.values() {
            subscription.send(Kind::Credential(usage.clone())).await?;
        }
        if self.ending {
            subscription.send(Kind::Ended(proto::Ended {})).await?;
        }
        Ok(())
    }
}
