//! One stream per sidecar: Trust and its Snapshot down, its reports up; and one per secret it may have.
//!
//! A sidecar is told only what its own identity needs. One that reads slowly is never queued for: whenever it can take
//! something it gets the newest. A stream ends with the certificate it began with, with its workload's
//! document, and with the control plane.

mod credential;

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use fender_api::code::Code;
use fender_api::proto::control::v1 as proto;
use fender_api::proto::control::v1::distribution_server::Distribution;
use fender_api::proto::control::v1::{
    CredentialRequest, CredentialValue, Hello, Report, Update, report, update,
};
use fender_api::usage;
use fender_config::ObjectName;
use fender_config::snapshot::Snapshot;
use fender_identity::{PeerSvid, Serial};
use fender_runtime::clock::sleep_until;
use fender_runtime::deadline::Deadline;
use fender_runtime::id::OpaqueId;
use prost::Message as _;
use tokio::sync::{mpsc, watch};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::callers::{self, Caller};
use crate::control::Control;
use crate::credentials::{self, Watched};
use crate::decisions::Taken;
use crate::limit::Bucket;
use crate::registry::{Connected, Introduction, Place, Refusal};
use crate::telemetry::{About, Answer};
use crate::time::later;
use crate::trust::Announced;
use credential::Delivery;

/// A client that opens a stream says hello within this time.
const HELLO: Duration = Duration::from_secs(10);
/// The longest text a sidecar says about itself.
const MAX_TEXT: usize = 1024;
/// Reports one stream may send at once, and per second thereafter; more are dropped.
const REPORT_BURST: u32 = 1000;
const REPORTS_PER_SECOND: u32 = 100;

type Updates<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

pub(crate) struct DistributionService(pub(crate) Arc<Control>);

#[tonic::async_trait]
impl Distribution for DistributionService {
    type SubscribeStream = Updates<Update>;
    type WatchCredentialStream = Updates<CredentialValue>;

    async fn subscribe(
        &self,
        request: Request<Streaming<Report>>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        let control = &self.0;
        let (caller, place) = control.admit(request.extensions()).await?;
        let snapshots = control
            .library
            .follow(&caller.workload)
            .ok_or_else(no_longer_known)?;

        let (updates, stream) = mpsc::channel(1);
        let subscription = Subscription {
            control: Arc::clone(control),
            caller,
            _place: place,
            reports: request.into_inner(),
            updates,
        };
        control.drain.spawn(subscription.run(snapshots));
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn watch_credential(
        &self,
        request: Request<CredentialRequest>,
    ) -> Result<Response<Self::WatchCredentialStream>, Status> {
        let control = &self.0;
        let (caller, place) = control.admit(request.extensions()).await?;
        let name = request
            .into_inner()
            .name
            .parse::<ObjectName>()
            .map_err(|error| Code::BadRequest.status(error.to_string()))?;
        let snapshots = control
            .library
            .follow(&caller.workload)
            .ok_or_else(no_longer_known)?;

        let (values, stream) = mpsc::channel(1);
        let delivery = Delivery {
            control: Arc::clone(control),
            caller,
            _place: place,
            name,
            values,
        };
        // Before the first look, so that no change falls in between.
        let documents = control.library.changes();
        let source = delivery.source().ok_or_else(not_listed)?;
        control
            .drain
            .spawn(delivery.run(source, snapshots, documents));
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }
}

fn no_longer_known() -> Status {
    Code::IdentityUnknown.status("no document describes this workload any more")
}

/// The same for what does not exist and what belongs to others.
fn not_listed() -> Status {
    Code::NotFound
        .status("the workload's document lists no such credential that the control plane delivers")
}

impl Control {
    /// A workload in good standing, and a place for its stream.
    async fn admit(&self, extensions: &tonic::Extensions) -> Result<(Caller, Place), Status> {
        let now = self.clock.now();
        let caller =
            callers::workload(extensions, self.authority.trust_domain(), &self.store, now).await?;
        let place = self
            .registry
            .place(&caller.workload, caller.peer.serial())
            .ok_or_else(|| Code::Busy.status("too many streams are open already"))?;
        Ok((caller, place))
    }

    /// Resolves when a stream of this peer must end, with what it is told then.
    pub(crate) async fn over(&self, peer: &PeerSvid) -> Status {
        // A certificate counts to the end of its last second.
        let expiry = later(peer.not_after(), Duration::from_secs(1));
        let mut trust = self.trust.follow();
        tokio::select! {
            _ = trust.wait_for(|announced| announced.trust.denied.denies(peer)) => {
                Code::Revoked.status("this certificate was revoked: attest anew")
            }
            () = self.drain.stopping() => Code::Unavailable.status("the control plane is stopping"),
            () = sleep_until(&*self.clock, expiry) => {
                Code::NotAuthenticated.status("the certificate of this connection has expired: connect again")
            }
        }
    }
}

/// One connected sidecar.
struct Subscription {
    control: Arc<Control>,
    caller: Caller,
    _place: Place,
    reports: Streaming<Report>,
    updates: mpsc::Sender<Result<Update, Status>>,
}

impl Subscription {
    async fn run(mut self, snapshots: watch::Receiver<Arc<Snapshot>>) {
        let over = {
            let (control, caller) = (Arc::clone(&self.control), self.caller.clone());
            async move { control.over(&caller.peer).await }
        };
        let ended = tokio::select! {
            biased;
            status = over => Err(status),
            ended = self.converse(snapshots) => ended,
        };
        if let Err(status) = ended {
            tracing::info!(workload = %self.caller.workload, reason = status.message(), "stream ended");
            // Best effort: whoever does not read will notice that the stream is over.
            let _ = self.updates.try_send(Err(status));
        }
    }

    async fn converse(
        &mut self,
        mut snapshots: watch::Receiver<Arc<Snapshot>>,
    ) -> Result<(), Status> {
        let hello = self.hello().await?;
        let too_old = self.too_old(&hello);
        tokio::pin!(too_old);
        // Before it is told anything.
        tokio::select! {
            biased;
            refused = &mut too_old => return Err(refused),
            () = std::future::ready(()) => {}
        }
        let sidecar = self.introduce(&hello)?;
        // Apart, so that a flood of denials does not hide what the sidecar says of itself.
        let mut decisions = Bucket::new(REPORT_BURST, REPORTS_PER_SECOND);
        let mut others = Bucket::new(REPORT_BURST, REPORTS_PER_SECOND);
        // Looked at and marked as seen at once: what is published in between would never be sent.
        let mut trust = self.control.trust.follow();
        // A number alone does not tell: after a restored backup it counts up again, to something else.
        let announced = Arc::clone(&trust.borrow_and_update());
        let version = announced.trust.version;
        if hello.trust_version == version && hello.trust_sha256 == announced.sha256 {
            sidecar.trust_sent(version);
            sidecar.trust_acked(version);
        } else {
            trust.mark_changed();
        }
        let snapshot = Arc::clone(&snapshots.borrow_and_update());
        if hello.snapshot_version == snapshot.version && hello.snapshot_sha256 == sha256(&snapshot)
        {
            sidecar.sent(hello.snapshot_version);
            sidecar.acked(hello.snapshot_version);
        } else {
            snapshots.mark_changed();
        }
        let mut leaving = false;
        loop {
            tokio::select! {
                refused = &mut too_old => return Err(refused),
                report = self.reports.message() => {
                    let Some(report) = report? else { return Ok(()) };
                    let bucket = match &report.kind {
                        Some(report::Kind::Decision(_)) => &mut decisions,
                        _ => &mut others,
                    };
                    match bucket.take() {
                        true => {
                            leaving |= matches!(report.kind, Some(report::Kind::Ended(_)));
                            self.heard(report, &sidecar)?;
                        }
                        false => tracing::debug!(workload = %self.caller.workload, "report dropped: too many"),
                    }
                }
                room = self.updates.reserve(), if leaving => {
                    let room = room.map_err(|_| Code::Unavailable.status("the client is gone"))?;
                    let kind = Some(update::Kind::Taken(proto::Taken {}));
                    room.send(Ok(Update { kind }));
                    leaving = false;
                }
                sent = send_newest(&self.updates, &mut trust, &mut snapshots) => match sent? {
                    Sent::Trust(version) => sidecar.trust_sent(version),
                    Sent::Snapshot(version) => sidecar.sent(version),
                },
            }
        }
    }

    async fn hello(&mut self) -> Result<Hello, Status> {
        let first = Deadline::after(HELLO)
            .bound(self.reports.message())
            .await
            .map_err(|_| Code::Timeout.status("the stream did not begin with a hello in time"))??;
        match first.and_then(|report| report.kind) {
            Some(report::Kind::Hello(hello)) => Ok(hello),
            Some(_) | None => {
                Err(Code::BadRequest.status("the stream does not begin with a hello"))
            }
        }
    }

    /// Resolves when a sidecar is older than it may be: at once, on the date that the document in force names, or when a
    /// document that says so comes into force.
    fn too_old(&self, hello: &Hello) -> impl Future<Output = Status> + Send + use<> {
        let control = Arc::clone(&self.control);
        let workload = self.caller.workload.clone();
        let version = cut(&hello.sidecar_version, 64);
        let refusal = Refusal {
            instance: cut(&hello.instance, 64),
            version: version.clone(),
            address: self.caller.source.text.clone(),
        };
        async move {
            control.put_minimum_version_in_force();
            let mut minimum = control.minimum_version.subscribe();
            let least = loop {
                let least = minimum.borrow_and_update().clone();
                let least = least.filter(|least| least.exceeds(&version));
                if let Some(least) = &least {
                    tracing::warn!(
                        %workload, version, minimum = %least.version, from = least.after.as_secs(),
                        "a sidecar that is, or will be, too old for this mesh"
                    );
                }
                let due = async {
                    match &least {
                        Some(least) => {
                            sleep_until(&*control.clock, least.after).await;
                            least.version.clone()
                        }
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    biased;
                    least = due => break least,
                    changed = minimum.changed() => if changed.is_err() {
                        return Code::Unavailable.status("the control plane is stopping");
                    },
                }
            };
            let reason = format!("this mesh takes no sidecar older than {least}: update this one");
            let at = control.clock.now();
            control.registry.refuse(&workload, refusal, &reason, at);
            Code::VersionRefused.status(reason)
        }
    }

    fn introduce(&self, hello: &Hello) -> Result<Connected, Status> {
        let instance = hello
            .instance
            .parse::<OpaqueId>()
            .map_err(|_| Code::BadRequest.status("the instance is not 128 bits in hex"))?;
        let place = match hello.place.as_str() {
            "" => None,
            place => Some(
                place
                    .parse::<OpaqueId>()
                    .map_err(|_| Code::BadRequest.status("the place is not 128 bits in hex"))?,
            ),
        };
        let introduction = Introduction {
            instance: instance.to_string(),
            place: place.map_or_else(String::new, |place| place.to_string()),
            version: cut(&hello.sidecar_version, 64),
            address: self.caller.source.text.clone(),
            since: self.control.clock.now(),
            serial: self.caller.peer.serial().clone(),
            not_after: self.caller.peer.not_after(),
        };
        Ok(self
            .control
            .registry
            .connect(self.caller.workload.clone(), introduction))
    }

    fn heard(&self, report: Report, sidecar: &Connected) -> Result<(), Status> {
        let workload = &self.caller.workload;
        let telemetry = &self.control.telemetry;
        match report.kind {
            Some(report::Kind::Ack(ack)) => {
                telemetry.answer(About::Snapshot, Answer::Ack);
                sidecar.acked(ack.version);
            }
            Some(report::Kind::Nack(nack)) => {
                let reason = cut(&nack.reason, MAX_TEXT);
                tracing::warn!(%workload, version = nack.version, reason, "snapshot refused by a sidecar");
                telemetry.answer(About::Snapshot, Answer::Nack);
                sidecar.nacked(reason);
            }
            Some(report::Kind::TrustAck(ack)) => {
                telemetry.answer(About::Trust, Answer::Ack);
                sidecar.trust_acked(ack.version);
            }
            Some(report::Kind::TrustNack(nack)) => {
                let reason = cut(&nack.reason, MAX_TEXT);
                tracing::error!(%workload, version = nack.version, reason, "trust refused by a sidecar");
                telemetry.answer(About::Trust, Answer::Nack);
                sidecar.nacked(format!("trust: {reason}"));
            }
            Some(report::Kind::Decision(decision)) => {
                match self.control.decisions.take(workload, decision) {
                    Taken::Queued => {}
                    refused @ (Taken::Refused | Taken::Dropped) => {
                        tracing::debug!(%workload, ?refused, "decision record not taken");
                    }
                }
            }
            Some(report::Kind::Certificate(certificate)) => {
                if let Ok(serial) = certificate.serial.parse::<Serial>() {
                    sidecar.certificate(&serial, certificate.not_after_unix);
                }
            }
            Some(report::Kind::Credential(credential)) => {
                let listed = self
                    .control
                    .library
                    .snapshot(workload)
                    .is_some_and(|snapshot| {
                        snapshot
                            .credentials
                            .iter()
                            .any(|spec| spec.name.to_string() == credential.name)
                    });
                if listed && !sidecar.credential(usage::bounded(credential)) {
                    tracing::debug!(%workload, "no room for what a sidecar says of a credential");
                }
            }
            Some(report::Kind::Ended(proto::Ended {})) => {
                let followed = self.followed(sidecar.holds());
                sidecar.leave(self.control.clock.now(), followed);
            }
            Some(report::Kind::Hello(_)) => {
                return Err(Code::BadRequest.status("a second hello on one stream"));
            }
            // From a newer sidecar.
            None => {}
        }
        Ok(())
    }
}

impl Subscription {
    /// What goes on being asked for credentials that are left, so that it is known whether there is a newer generation.
    fn followed(&self, left: Vec<String>) -> BTreeMap<String, Watched> {
        let Control {
            library, sources, ..
        } = &*self.control;
        let followed = left.into_iter().filter_map(|text| {
            let name = text.parse::<ObjectName>().ok()?;
            let origin = credentials::authorized(library, &self.caller.workload, &name)?;
            // What is lent would be kept for nobody, and a program run for nobody.
            let watched = credentials::lasts(&origin).then(|| sources.watch(&name, &origin))?;
            Some((text, watched))
        });
        followed.collect()
    }
}

/// What was sent, by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sent {
    Trust(u64),
    Snapshot(u64),
}

/// Waits for a change, then for room, then sends what is newest at that moment, Trust first. Cancel safe: nothing is
/// marked as seen before there is room for it.
async fn send_newest(
    updates: &mpsc::Sender<Result<Update, Status>>,
    trust: &mut watch::Receiver<Arc<Announced>>,
    snapshots: &mut watch::Receiver<Arc<Snapshot>>,
) -> Result<Sent, Status> {
    let stopping = || Code::Unavailable.status("the control plane is stopping");
    loop {
        let believed = trust.has_changed().map_err(|_| stopping())?;
        if believed || snapshots.has_changed().map_err(|_| no_longer_known())? {
            break;
        }
        let (mut newer_trust, mut newer) = (trust.clone(), snapshots.clone());
        tokio::select! {
            changed = newer_trust.changed() => changed.map_err(|_| stopping())?,
            changed = newer.changed() => changed.map_err(|_| no_longer_known())?,
        }
    }
    let room = updates
        .reserve()
        .await
        .map_err(|_| Code::Unavailable.status("the client is gone"))?;
    let (kind, sent) = if trust.has_changed().map_err(|_| stopping())? {
        let announced = Arc::clone(&trust.borrow_and_update());
        let kind = update::Kind::Trust(announced.encoded.clone());
        (kind, Sent::Trust(announced.trust.version))
    } else {
        let snapshot = Arc::clone(&snapshots.borrow_and_update());
        let kind = update::Kind::Snapshot(proto::Snapshot::from(&*snapshot));
        (kind, Sent::Snapshot(snapshot.version))
    };
    room.send(Ok(Update { kind: Some(kind) }));
    Ok(sent)
}

/// Of a Snapshot as it travels.
fn sha256(snapshot: &Snapshot) -> [u8; 32] {
    fender_api::convert::sha256(&proto::Snapshot::from(snapshot).encode_to_vec())
}

fn cut(text: &str, length: usize) -> String {
    text.get(..text.floor_char_boundary(length))
        .unwrap_or_default()
        .to_owned()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn snapshot(version: u64) -> Arc<Snapshot> {
        let text = "apiVersion: fender.dev/v1\nkind: Mesh\nmetadata: { name: mesh }\nspec: { trustDomain: acme.test }\n---\n\
                    apiVersion: fender.dev/v1\nkind: Workload\nmetadata: { namespace: shop, name: orders }\nspec: {}\n";
        let source = fender_config::Source {
            name: "mesh.yaml".to_owned(),
            text: text.to_owned(),
        };
        let documents = fender_config::parse(&[source]).unwrap();
        Arc::new(
            documents
                .snapshot(&"shop/orders".parse().unwrap(), version)
                .unwrap(),
        )
    }

    fn announced(version: u64) -> Arc<Announced> {
        let trust = fender_identity::Trust {
            version,
            ..Default::default()
        };
        let encoded = format!("trust {version}").into();
        Arc::new(Announced {
            trust,
            encoded,
            sha256: [0; 32],
        })
    }

    #[tokio::test]
    async fn a_sidecar_that_reads_slowly_gets_the_newest_snapshot_and_no_backlog() {
        let (updates, mut sent) = mpsc::channel(1);
        let (publish, mut snapshots) = watch::channel(snapshot(1));
        let (_announce, mut trust) = watch::channel(announced(1));
        snapshots.mark_changed();
        assert_eq!(
            send_newest(&updates, &mut trust, &mut snapshots)
                .await
                .unwrap(),
            Sent::Snapshot(1)
        );

        let slow = async {
            for version in 2..=30 {
                publish.send_replace(snapshot(version));
                tokio::task::yield_now().await;
            }
            let mut heard = Vec::new();
            for _ in 0..2 {
                let update = sent.recv().await.unwrap().unwrap();
                let Some(update::Kind::Snapshot(snapshot)) = update.kind else {
                    panic!("a snapshot")
                };
                heard.push(snapshot.version);
            }
            heard
        };
        let (second, heard) = tokio::join!(send_newest(&updates, &mut trust, &mut snapshots), slow);
        assert_eq!((second.unwrap(), heard), (Sent::Snapshot(30), vec![1, 30]));
    }

    #[tokio::test]
    async fn whom_to_believe_goes_before_any_snapshot_and_is_the_same_bytes_for_all() {
        let (updates, mut sent) = mpsc::channel(2);
        let (_publish, mut snapshots) = watch::channel(snapshot(1));
        let (announce, mut trust) = watch::channel(announced(1));
        snapshots.mark_changed();
        announce.send_replace(announced(2));
        let encoded = announce.borrow().encoded.clone();
        for expected in [Sent::Trust(2), Sent::Snapshot(1)] {
            let sent = send_newest(&updates, &mut trust, &mut snapshots).await;
            assert_eq!(sent.unwrap(), expected);
        }
        let Some(update::Kind::Trust(bytes)) = sent.recv().await.unwrap().unwrap().kind else {
            panic!("trust")
        };
        assert_eq!(bytes.as_ptr(), encoded.as_ptr());
    }

    #[tokio::test]
    async fn an_attempt_to_send_that_is_dropped_loses_nothing() {
        let (updates, mut sent) = mpsc::channel(1);
        updates.try_send(Ok(Update { kind: None })).unwrap();
        let (_publish, mut snapshots) = watch::channel(snapshot(7));
        let (_announce, mut trust) = watch::channel(announced(1));
        snapshots.mark_changed();
        tokio::select! {
            biased;
            _ = send_newest(&updates, &mut trust, &mut snapshots) => panic!("there is no room"),
            () = tokio::task::yield_now() => {}
        }
        sent.recv().await.unwrap().unwrap();
        assert_eq!(
            send_newest(&updates, &mut trust, &mut snapshots)
                .await
                .unwrap(),
            Sent::Snapshot(7)
        );
    }
}
