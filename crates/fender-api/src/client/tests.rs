use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use fender_identity::tls::CaPin;
use fender_runtime::clock::Clock as _;
use tempfile::TempDir;
use tokio::sync::mpsc::UnboundedReceiver;

use super::*;

mod agent;
mod attest;
mod credentials;
mod freshness;
mod renewal;
mod replicas;
mod resume;
mod stream;

use crate::code::{EXIT_REFUSED, EXIT_TIMEOUT, EXIT_UNAVAILABLE};
use crate::proto::control::v1 as proto;
use crate::proto::control::v1::report::Kind;
use crate::testing::{Authority, Control, Heard, ORDERS, START, id, listener, snapshot, trust};
use crate::token::{JoinToken, TokenFile};
use crate::url::ControlUrl;

/// One sidecar's surroundings.
struct Bench {
    control: Arc<Control>,
    heard: UnboundedReceiver<Heard>,
    server: Drain,
    client: Drain,
    dir: TempDir,
    url: ControlUrl,
}

impl Bench {
    fn new() -> Self {
        let (control, heard) = Control::new();
        Self::with(control, heard)
    }

    fn with(control: Arc<Control>, heard: UnboundedReceiver<Heard>) -> Self {
        let server = Drain::new();
        let url = control.start(&server);
        let dir = tempfile::tempdir().unwrap();
        Self {
            control,
            heard,
            server,
            client: Drain::new(),
            dir,
            url,
        }
    }

    fn token(&self, token: &JoinToken) -> TokenFile {
        let path = self.dir.path().join("token");
        fs::write(&path, token.to_text().expose()).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        TokenFile::new(path)
    }

    fn state(&self) -> StateDir {
        StateDir::open(self.dir.path().join("state")).unwrap()
    }

    fn config(&self, token: Option<TokenFile>, state: Option<StateDir>) -> SessionConfig {
        SessionConfig {
            control: self.url.clone().into(),
            evidence: token.map(Evidence::Token),
            state,
            clock: self.control.clock.clone(),
            drain: self.client.clone(),
            version: "0.0.0-test",
            workload: None,
        }
    }

    async fn open(&self, config: SessionConfig) -> Result<Session, OpenError> {
        open(config, Deadline::after(Duration::from_secs(30))).await
    }

    /// A session that came to be with a good token.
    async fn joined(&self) -> Session {
        let token = self.token(&self.control.token(1, None));
        self.open(self.config(Some(token), None)).await.unwrap()
    }

    /// State as a sidecar leaves it behind.
    async fn stored(&self) {
        let token = self.token(&self.control.token(1, None));
        let session = self
            .open(self.config(Some(token), Some(self.state())))
            .await
            .unwrap();
        self.end(session).await;
    }

    async fn end(&self, session: Session) {
        drop(session);
        self.client.stop();
        self.client.drained().await;
    }

    /// Its next life.
    fn reborn(mut self) -> Self {
        self.client = Drain::new();
        self
    }

    /// The control plane dies.
    async fn kill(&self) {
        self.server.force();
        self.server.drained().await;
    }

    async fn hears<T>(&mut self, wanted: impl Fn(&Heard) -> Option<T>) -> T {
        loop {
            let heard = self.heard.recv().await.unwrap();
            if let Some(found) = wanted(&heard) {
                return found;
            }
        }
    }

    async fn reported<T>(&mut self, wanted: impl Fn(&Kind) -> Option<T>) -> T {
        self.hears(|heard| heard.report().and_then(&wanted)).await
    }

    async fn ack(&mut self) -> u64 {
        self.reported(|kind| {
            if let Kind::Ack(ack) = kind {
                Some(ack.version)
            } else {
                None
            }
        })
        .await
    }

    /// The first one that is not for this version.
    async fn trust_ack_after(&mut self, version: u64) -> u64 {
        self.reported(|kind| {
            if let Kind::TrustAck(ack) = kind {
                Some(ack.version).filter(|acked| *acked != version)
            } else {
                None
            }
        })
        .await
    }

    async fn trust_nack(&mut self) -> (u64, String) {
        self.reported(|kind| {
            if let Kind::TrustNack(nack) = kind {
                Some((nack.version, nack.reason.clone()))
            } else {
                None
            }
        })
        .await
    }

    async fn nack(&mut self) -> (u64, String) {
        self.reported(|kind| {
            if let Kind::Nack(nack) = kind {
                Some((nack.version, nack.reason.clone()))
            } else {
                None
            }
        })
        .await
    }
}
