//! What this sidecar says of itself: on the admin socket, and in `fender status`.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use fender_api::client::Session;
use fender_api::otlp::Exported;
use fender_api::usage::State;
use fender_config::snapshot::{Profile, Snapshot};
use fender_credentials::engine::{Holding, Holdings};
use fender_credentials::handover::Handovers;
use fender_credentials::notify::{Outcome, Outcomes};
use fender_identity::Svid;
use fender_proxy::Direction;
use fender_runtime::clock::{SharedClock, UnixTime};
use fender_runtime::metrics::{Exposition, Label, Metric, seconds_until};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::Instant;

use super::decisions::Decisions;
use super::usage;
use crate::admin_socket::{NOT_STARTED, Observed, Reading};
use crate::render;
use crate::source::LinkState;

fender_runtime::metrics! {
    /// Those of a sidecar that are not its data plane's.
    pub(crate) METRICS;

    CERTIFICATE_EXPIRY = Metric::gauge(
        "fender_certificate_expiry_seconds",
        "seconds",
        "Seconds until this sidecar's certificate ends; negative afterwards; not told by one without an identity",
    );
    UNRECOVERABLE = Metric::gauge(
        "fender_unrecoverable_seconds",
        "seconds",
        "Seconds until a person must act if the control plane stays away from now on; not told by one without an identity",
    );
    READY = Metric::gauge("fender_ready", "0 or 1", "1 while this sidecar serves, as `/readyz` says");
    OUTDATED = Metric::gauge(
        "fender_credential_outdated_seconds",
        "seconds",
        "Seconds since the application's most outdated credential was known to be the newest; 0 if none is outdated",
    );
    CREDENTIALS = Metric::gauge(
        "fender_credentials",
        "credentials",
        "How many credentials are in which state",
    )
    .by(&[Label::these("state", || STATES.to_vec())]);
    OLD_IN_USE = Metric::gauge(
        "fender_credentials_old_in_use",
        "credentials",
        "How many credentials have a generation in use that is not known to be the newest: held, acknowledged or taken last by somebody",
    );
    NOTIFICATIONS = Metric::counter(
        "fender_notifications",
        "notifications",
        "Times that somebody was told of changed credentials, and what came of it",
    )
    .by(&[Label::these("outcome", || NOTIFIED.to_vec())]);
    NOTIFICATIONS_PENDING = Metric::gauge(
        "fender_notifications_pending",
        "targets",
        "How many have still to be told of changed credentials",
    );
    HANDOVERS = Metric::counter(
        "fender_credential_handovers",
        "answers",
        "Answers at the credentials socket: `ok` with a credential, the others without one",
    )
    .by(&[Label::these("answer", Handovers::answers)]);
    BUILD_INFO = Metric::gauge("fender_build_info", "1", "1, with the version of Fender")
        .by(&[Label::bounded("version", "the one of this process")]);
    SPANS = Metric::counter("fender_spans_delivered", "spans", "Spans that a collector took");
    SPANS_LOST = Metric::counter("fender_spans_lost", "spans", "Spans that no collector has, and why")
        .by(&[Label::these("reason", || LOST.to_vec())]);
}

/// How a credential may stand.
const STATES: [&str; 5] = ["delivered", "failed", "outdated", "waiting", "withdrawn"];
/// What comes of telling somebody of changed credentials.
const NOTIFIED: [&str; 2] = ["acknowledged", "failed"];
/// Why a span is lost: nobody took it in time, the collector does not want it, or there was none for too long.
const LOST: [&str; 3] = ["crowded", "refused", "undelivered"];

pub(super) struct Status {
    svid: Option<watch::Receiver<Arc<Svid>>>,
    snapshot: watch::Receiver<Arc<Snapshot>>,
    link: LinkState,
    session: Option<Arc<Session>>,
    clock: SharedClock,
    pub(super) decisions: Arc<Decisions>,
    pub(super) exported: Arc<Exported>,
    /// There once the credentials are.
    credentials: OnceLock<usage::Sources>,
    /// There if it has a socket for them, once that is served.
    handovers: OnceLock<Handovers>,
    /// There once it serves, if it has a proxy.
    proxy: OnceLock<fender_proxy::Running>,
    started: AtomicBool,
    draining: AtomicBool,
    /// The application that is supervised has ended, and is to be started again.
    app_rests: AtomicBool,
}

impl Status {
    pub(super) fn new(
        svid: Option<watch::Receiver<Arc<Svid>>>,
        snapshot: watch::Receiver<Arc<Snapshot>>,
        link: LinkState,
        session: Option<Arc<Session>>,
        clock: SharedClock,
    ) -> Self {
        Self {
            svid,
            snapshot,
            link,
            session,
            clock,
            decisions: Arc::default(),
            exported: Arc::default(),
            credentials: OnceLock::new(),
            handovers: OnceLock::new(),
            proxy: OnceLock::new(),
            started: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            app_rests: AtomicBool::new(false),
        }
    }

    /// The credentials are delivered.
    pub(super) fn set_credentials(&self, credentials: usage::Sources) {
        // Called once, in the course of the start; so is the next.
        let _ = self.credentials.set(credentials);
    }

    fn notified(&self) -> Outcomes {
        let known = self.credentials.get();
        known.map_or_else(Outcomes::new, |known| known.notified.borrow().clone())
    }

    pub(super) fn set_handovers(&self, handovers: Handovers) {
        let _ = self.handovers.set(handovers);
    }

    pub(super) fn proxy(&self) -> Option<&fender_proxy::Running> {
        self.proxy.get()
    }

    /// Everything needed to serve is there, the proxy last, if there is to be one.
    pub(super) fn set_started(&self, proxy: Option<fender_proxy::Running>) {
        if let Some(proxy) = proxy {
            let _ = self.proxy.set(proxy);
        }
        self.started.store(true, Ordering::Release);
    }

    pub(super) fn set_draining(&self) {
        self.draining.store(true, Ordering::Release);
    }

    pub(super) fn set_app_rests(&self, rests: bool) {
        self.app_rests.store(rests, Ordering::Release);
    }

    pub(super) fn has_started(&self) -> bool {
        self.started.load(Ordering::Acquire)
    }

    /// What keeps it from its work: started, not draining, its application there, every listener open, a certificate that peers will accept, and
    /// neither a Snapshot nor a credential that is too old.
    pub(super) fn unready(&self) -> Vec<String> {
        let mut reasons = Vec::new();
        if !self.has_started() {
            reasons.push(NOT_STARTED.to_owned());
        }
        if let Some(proxy) = self.proxy.get() {
            reasons.extend(proxy.missing());
        }
        if self.draining.load(Ordering::Acquire) {
            reasons.push("it is draining".to_owned());
        }
        if self.app_rests.load(Ordering::Acquire) {
            reasons.push("its application has ended and is started again after a while".to_owned());
        }
        let validity = self.certificate().map(|svid| svid.validity());
        if let Some(validity) = validity.filter(|it| !it.includes(self.clock.now())) {
            let end = i64::try_from(validity.not_after.as_secs()).unwrap_or(i64::MAX);
            let end = render::moment(end);
            reasons.push(format!("its certificate is not valid now: it ends {end}"));
        }
        if self.snapshot.borrow().is_closed() {
            reasons
                .push("its Snapshot is too old: the control plane has not confirmed it".to_owned());
        }
        let now = Instant::now();
        for (name, held) in self.holdings() {
            if matches!(held.holding, Holding::Outdated { too_old: Some(moment), .. } if moment <= now)
            {
                reasons.push(format!(
                    "the credential `{name}` has been outdated for longer than its `maxStale`"
                ));
            }
        }
        reasons
    }

    /// What the application holds; nothing before it was delivered.
    fn holdings(&self) -> Holdings {
        let known = self.credentials.get();
        known.map_or_else(Holdings::new, |known| known.holdings.borrow().clone())
    }

    pub(super) fn is_ready(&self) -> bool {
        self.unready().is_empty()
    }

    /// None without an identity.
    fn certificate(&self) -> Option<Arc<Svid>> {
        self.svid.as_ref().map(|svid| svid.borrow().clone())
    }

    /// When somebody must act, if nothing gets better from now on: without a control plane, before the certificate ends.
    fn unrecoverable(&self) -> Option<UnixTime> {
        match &self.session {
            Some(session) => Some(session.unrecoverable()),
            None => self.certificate().map(|svid| svid.validity().not_after),
        }
    }

    /// Grows while the application uses its way out; none if it has none.
    pub(super) fn outbound_activity(&self) -> Option<u64> {
        let status = self.proxy.get()?.status();
        let outbound =
            |listener: &fender_proxy::ListenerStatus| listener.direction == Direction::Outbound;
        status
            .listeners
            .iter()
            .any(outbound)
            .then_some(status.counts.outbound_activity)
    }

    /// What is held of each, and who uses it.
    fn credentials(&self, now: Instant) -> Vec<Value> {
        let holdings = self.holdings();
        let usages = self.credentials.get().map(usage::Sources::usages);
        let usages = usages.unwrap_or_default().into_iter();
        let shown = usages.map(|used| {
            let newest = used.state == State::Delivered;
            let mut shown = render::usage_json(&(&used).into(), newest);
            let age = holdings.get(&used.name);
            let age = age.and_then(|held| outdated(&held.holding, now));
            if let Value::Object(fields) = &mut shown {
                let age = age.map(|age| age.as_secs());
                fields.insert("outdated_seconds".to_owned(), age.into());
            }
            shown
        });
        shown.collect()
    }

    pub(super) fn to_json(&self) -> Value {
        let (svid, snapshot) = (self.certificate(), self.snapshot.borrow().clone());
        let moment =
            |moment: UnixTime| render::moment(i64::try_from(moment.as_secs()).unwrap_or(i64::MAX));
        let now = Instant::now();
        let proxy = self.proxy.get().map(fender_proxy::Running::status);
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "identity": svid.as_ref().map(|svid| svid.id().to_string()),
            "ready": self.is_ready(),
            "serial": svid.as_ref().map(|svid| svid.serial().to_string()),
            "not_after": svid.as_ref().map(|svid| moment(svid.validity().not_after)),
            "unrecoverable": self.unrecoverable().map(moment),
            "standalone": self.session.is_none(),
            "snapshot_version": snapshot.version,
            "profile": match snapshot.profile {
                Profile::Production => "production",
                Profile::Development => "development",
            },
            "link": self.link.describe(),
            "problem": proxy.as_ref().and_then(|proxy| proxy.problem.clone()),
            "listeners": proxy.iter().flat_map(|proxy| &proxy.listeners).map(listener).collect::<Vec<_>>(),
            "certificates": proxy.iter().flat_map(|proxy| &proxy.certificates).map(certificate).collect::<Vec<_>>(),
            "counts": proxy.as_ref().map(|proxy| json!({
                "connections": proxy.counts.connections,
                "plaintext": proxy.counts.plaintext,
                "requests": proxy.counts.requests,
                "denied": proxy.counts.denied,
                "peer_faults": proxy.counts.peer_faults,
                "upstream_faults": proxy.counts.upstream_faults,
                "own_faults": proxy.counts.own_faults,
                "records_dropped": proxy.records_dropped,
                "access_lines_dropped": proxy.access_lines_dropped,
            })),
            "credentials": self.credentials(now),
            "notifications": self.notified().iter().map(|(target, outcome)| json!({
                "target": target.to_string(),
                "acknowledged": outcome.acknowledged,
                "failed": outcome.failed,
                "pending": outcome.pending.iter().map(ToString::to_string).collect::<Vec<_>>(),
                "problem": outcome.problem,
            })).collect::<Vec<_>>(),
        })
    }
}

impl Observed for Status {
    fn has_started(&self) -> bool {
        Status::has_started(self)
    }

    fn stuck(&self) -> Vec<String> {
        let turns = self
            .proxy
            .get()
            .is_none_or(fender_proxy::Running::is_turning);
        // The worker that is looked at ends with a drain.
        match turns || self.draining.load(Ordering::Acquire) {
            true => Vec::new(),
            false => {
                vec!["the proxy has not looked after its listeners for half a minute".to_owned()]
            }
        }
    }

    async fn unready(&self) -> Vec<String> {
        Status::unready(self)
    }

    /// None of it names a secret or a path, and there is a bound to how much it is, whoever calls.
    async fn metrics(&self) -> String {
        let now = self.clock.now();
        let mut told = Exposition::default();
        if let Some(svid) = self.certificate() {
            let end = svid.validity().not_after;
            told.gauge(&CERTIFICATE_EXPIRY, seconds_until(now, end));
        }
        if let Some(moment) = self.unrecoverable() {
            told.gauge(&UNRECOVERABLE, seconds_until(now, moment));
        }
        told.gauge(&READY, i64::from(Status::is_ready(self)));
        let (holdings, moment) = (self.holdings(), Instant::now());
        let ages = holdings.values();
        let ages = ages.filter_map(|held| outdated(&held.holding, moment));
        let oldest = ages.max().unwrap_or_default().as_secs();
        told.gauge(&OUTDATED, i64::try_from(oldest).unwrap_or(i64::MAX));
        let credentials = self.credentials(moment);
        let count = |which: &dyn Fn(&&Value) -> bool| {
            u64::try_from(credentials.iter().filter(which).count()).unwrap_or(u64::MAX)
        };
        let states = STATES.into_iter().map(|state| {
            let held = count(&|credential| credential["state"] == state);
            (vec![("state", state.into())], held)
        });
        told.numbers(&CREDENTIALS, states.collect());
        let old = count(&|credential| credential["old_in_use"] == Value::Bool(true));
        told.gauge(&OLD_IN_USE, i64::try_from(old).unwrap_or(i64::MAX));
        let notified = self.notified();
        let sum = |count: fn(&Outcome) -> u64| notified.values().map(count).sum::<u64>();
        let counts = [
            sum(|outcome| outcome.acknowledged),
            sum(|outcome| outcome.failed),
        ];
        let counts = NOTIFIED.into_iter().zip(counts);
        let counts = counts.map(|(outcome, count)| (vec![("outcome", outcome.into())], count));
        told.numbers(&NOTIFICATIONS, counts.collect());
        let pending = notified
            .values()
            .filter(|outcome| !outcome.pending.is_empty());
        let pending = i64::try_from(pending.count()).unwrap_or(i64::MAX);
        told.gauge(&NOTIFICATIONS_PENDING, pending);
        let none = || Handovers::answers().into_iter().map(|word| (word, 0));
        let handovers = self.handovers.get().map(Handovers::counts);
        let handovers = handovers.unwrap_or_else(|| none().collect()).into_iter();
        let handovers = handovers.map(|(answer, count)| (vec![("answer", answer.into())], count));
        told.numbers(&HANDOVERS, handovers.collect());
        let version = vec![("version", env!("CARGO_PKG_VERSION").into())];
        told.numbers(&BUILD_INFO, vec![(version, 1)]);
        let crowded = self
            .proxy
            .get()
            .map_or(0, |proxy| proxy.status().spans_dropped);
        let exported = &*self.exported;
        let lost = [crowded, exported.refused(), exported.undelivered()];
        let lost = LOST.into_iter().zip(lost);
        let lost = lost.map(|(reason, count)| (vec![("reason", reason.into())], count));
        told.number(&SPANS, exported.taken());
        told.numbers(&SPANS_LOST, lost.collect());
        if let Some(proxy) = self.proxy.get() {
            proxy.tell(&mut told);
        }
        told.text()
    }

    fn read(&self, path: &str) -> Reading {
        if path == "/status" {
            return Reading::Json(self.to_json());
        }
        match path.strip_prefix("/decisions/") {
            None => Reading::Missing("unknown path\n"),
            Some(id) => match self.decisions.find(id) {
                Some(record) => Reading::Json(record),
                None => Reading::Missing("no decision with this id is kept here\n"),
            },
        }
    }
}

fn listener(listener: &fender_proxy::ListenerStatus) -> String {
    match listener.direction {
        Direction::Inbound => format!("{} inbound", listener.local),
        Direction::Outbound => format!("{} outbound", listener.local),
    }
}

fn certificate(certificate: &fender_proxy::CertificateStatus) -> Value {
    let end = |end: UnixTime| i64::try_from(end.as_secs()).unwrap_or(i64::MAX);
    json!({
        "names": certificate.names,
        "not_after": certificate.not_after.map(|moment| render::moment(end(moment))),
        "problem": certificate.problem,
    })
}

/// For how long it may not have been the newest.
fn outdated(holding: &Holding, now: Instant) -> Option<Duration> {
    match holding {
        Holding::Outdated { since, .. } => Some(now.saturating_duration_since(*since)),
        Holding::Waiting
        | Holding::Delivered(_)
        | Holding::Withdrawn { .. }
        | Holding::Failed { .. } => None,
    }
}
