//! What this sidecar says of itself: on the admin socket, and in `fender status`.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use fender_config::ObjectName;
use fender_config::snapshot::{Profile, Snapshot};
use fender_identity::Svid;
use fender_runtime::clock::SharedClock;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::decisions::Decisions;
use crate::render;
use crate::source::LinkState;

pub(super) struct Status {
    pub(super) svid: watch::Receiver<Arc<Svid>>,
    pub(super) snapshot: watch::Receiver<Arc<Snapshot>>,
    pub(super) link: LinkState,
    pub(super) clock: SharedClock,
    pub(super) decisions: Arc<Decisions>,
    /// The generation of each credential that was delivered.
    pub(super) credentials: Mutex<BTreeMap<String, String>>,
    started: AtomicBool,
    draining: AtomicBool,
}

impl Status {
    pub(super) fn new(
        svid: watch::Receiver<Arc<Svid>>,
        snapshot: watch::Receiver<Arc<Snapshot>>,
        link: LinkState,
        clock: SharedClock,
    ) -> Self {
        Self {
            svid,
            snapshot,
            link,
            clock,
            decisions: Arc::default(),
            credentials: Mutex::default(),
            started: AtomicBool::new(false),
            draining: AtomicBool::new(false),
        }
    }

    /// Everything needed to serve is there.
    pub(super) fn set_started(&self) {
        self.started.store(true, Ordering::Release);
    }

    pub(super) fn set_draining(&self) {
        self.draining.store(true, Ordering::Release);
    }

    pub(super) fn has_started(&self) -> bool {
        self.started.load(Ordering::Acquire)
    }

    /// Started, not draining, and with a certificate that peers will accept.
    pub(super) fn is_ready(&self) -> bool {
        self.has_started()
            && !self.draining.load(Ordering::Acquire)
            && self.svid.borrow().validity().includes(self.clock.now())
    }

    /// True if this generation was not in use before.
    pub(super) fn delivered(&self, name: &ObjectName, generation: &str) -> bool {
        let mut credentials = self
            .credentials
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        credentials
            .insert(name.to_string(), generation.to_owned())
            .is_none_or(|before| before != generation)
    }

    pub(super) fn to_json(&self) -> Value {
        let (svid, snapshot) = (self.svid.borrow().clone(), self.snapshot.borrow().clone());
        let credentials = self
            .credentials
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let not_after = i64::try_from(svid.validity().not_after.as_secs()).unwrap_or_default();
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "identity": svid.id().as_str(),
            "ready": self.is_ready(),
            "serial": svid.serial().to_string(),
            "not_after": render::moment(not_after),
            "snapshot_version": snapshot.version,
            "profile": match snapshot.profile { Profile::Production => "production", Profile::Development => "development" },
            "link": self.link.describe(),
            "listeners": snapshot.inbound.iter().map(|inbound| format!("{} inbound to {}", inbound.listen, inbound.app))
                .chain(snapshot.outbound.iter().map(|outbound| format!("{} outbound", outbound.listen)))
                .collect::<Vec<_>>(),
            "credentials": credentials.iter().map(|(name, generation)| json!({
                "name": name, "generation": generation,
            })).collect::<Vec<_>>(),
        })
    }
}
