//! What this sidecar says of itself: on the admin socket, and in `fender status`.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use fender_api::client::Session;
use fender_config::snapshot::{Profile, Snapshot};
use fender_credentials::engine::{Holding, Holdings};
use fender_identity::Svid;
use fender_proxy::Direction;
use fender_runtime::clock::{SharedClock, UnixTime};
use fender_runtime::metrics::{Exposition, seconds_until};
use serde_json::{Value, json};
use tokio::sync::watch;

use super::decisions::Decisions;
use crate::admin_socket::{NOT_STARTED, Observed, Reading};
use crate::render;
use crate::source::LinkState;

pub(super) struct Status {
    svid: watch::Receiver<Arc<Svid>>,
    snapshot: watch::Receiver<Arc<Snapshot>>,
    link: LinkState,
    session: Option<Arc<Session>>,
    clock: SharedClock,
    pub(super) decisions: Arc<Decisions>,
    /// There once the credentials are.
    holdings: OnceLock<watch::Receiver<Holdings>>,
    /// There once it serves.
    proxy: OnceLock<fender_proxy::Running>,
    draining: AtomicBool,
}

impl Status {
    pub(super) fn new(
        svid: watch::Receiver<Arc<Svid>>,
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
            holdings: OnceLock::new(),
            proxy: OnceLock::new(),
            draining: AtomicBool::new(false),
        }
    }

    /// The credentials are delivered.
    pub(super) fn set_holdings(&self, holdings: watch::Receiver<Holdings>) {
        // Called once, in the course of the start; so is the next.
        let _ = self.holdings.set(holdings);
    }

    /// Everything needed to serve is there, the proxy last.
    pub(super) fn set_started(&self, proxy: fender_proxy::Running) {
        let _ = self.proxy.set(proxy);
    }

    pub(super) fn set_draining(&self) {
        self.draining.store(true, Ordering::Release);
    }

    pub(super) fn has_started(&self) -> bool {
        self.proxy.get().is_some()
    }

    /// What keeps it from its work: started, not draining, every listener open, a certificate that peers will accept and
    /// a Snapshot that is not too old.
    pub(super) fn unready(&self) -> Vec<String> {
        let mut reasons = Vec::new();
        match self.proxy.get() {
            Some(proxy) => reasons.extend(proxy.missing()),
            None => reasons.push(NOT_STARTED.to_owned()),
        }
        if self.draining.load(Ordering::Acquire) {
            reasons.push("it is draining".to_owned());
        }
        let validity = self.svid.borrow().validity();
        if !validity.includes(self.clock.now()) {
            let end = i64::try_from(validity.not_after.as_secs()).unwrap_or(i64::MAX);
            let end = render::moment(end);
            reasons.push(format!("its certificate is not valid now: it ends {end}"));
        }
        if self.snapshot.borrow().is_closed() {
            reasons
                .push("its Snapshot is too old: the control plane has not confirmed it".to_owned());
        }
        reasons
    }

    pub(super) fn is_ready(&self) -> bool {
        self.unready().is_empty()
    }

    /// When somebody must act, if nothing gets better from now on: without a control plane, before the certificate ends.
    fn unrecoverable(&self) -> UnixTime {
        match &self.session {
            Some(session) => session.unrecoverable(),
            None => self.svid.borrow().validity().not_after,
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

    pub(super) fn to_json(&self) -> Value {
        let (svid, snapshot) = (self.svid.borrow().clone(), self.snapshot.borrow().clone());
        let not_after = i64::try_from(svid.validity().not_after.as_secs()).unwrap_or_default();
        let unrecoverable = i64::try_from(self.unrecoverable().as_secs()).unwrap_or(i64::MAX);
        let holdings = self
            .holdings
            .get()
            .map(|holdings| holdings.borrow().clone());
        let proxy = self.proxy.get().map(fender_proxy::Running::status);
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "identity": svid.id().as_str(),
            "ready": self.is_ready(),
            "serial": svid.serial().to_string(),
            "not_after": render::moment(not_after),
            "unrecoverable": render::moment(unrecoverable),
            "standalone": self.session.is_none(),
            "snapshot_version": snapshot.version,
            "profile": match snapshot.profile {
                Profile::Production => "production",
                Profile::Development => "development",
            },
            "link": self.link.describe(),
            "problem": proxy.as_ref().and_then(|proxy| proxy.problem.clone()),
            "listeners": proxy.iter().flat_map(|proxy| &proxy.listeners).map(listener).collect::<Vec<_>>(),
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
            "credentials": holdings.iter().flatten().map(|(name, holding)| {
                let (state, why) = describe(holding);
                json!({
                    "name": name.to_string(),
                    "state": state,
                    "generation": holding.generation().map(|generation| generation.as_str()),
                    "why": why,
                })
            }).collect::<Vec<_>>(),
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
        told.gauge(
            "fender_certificate_expiry_seconds",
            "Seconds until this sidecar's certificate ends",
            seconds_until(now, self.svid.borrow().validity().not_after),
        );
        told.gauge(
            "fender_unrecoverable_seconds",
            "Seconds until a person must act if the control plane stays away from now on",
            seconds_until(now, self.unrecoverable()),
        );
        told.gauge(
            "fender_ready",
            "1 while this sidecar serves",
            i64::from(Status::is_ready(self)),
        );
        let version = vec![("version", env!("CARGO_PKG_VERSION").into())];
        told.gauges(
            "fender_build_info",
            "1, with the version of Fender",
            vec![(version, 1)],
        );
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

fn describe(holding: &Holding) -> (&'static str, Option<&str>) {
    match holding {
        Holding::Waiting => ("waiting", None),
        Holding::Delivered(_) => ("delivered", None),
        Holding::Outdated { why, .. } => ("outdated", Some(why)),
        Holding::Withdrawn { why } => ("withdrawn", Some(why)),
        Holding::Failed { why } => ("failed", Some(why)),
    }
}
