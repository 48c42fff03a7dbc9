//! Against exchanges as Vault's documentation has them, on a clock that moves when everybody waits.

mod asked;
mod leases;
mod logins;
mod secrets;
mod server;
mod workload;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use fender_config::snapshot::{
    CertificateFiles, VaultCertificate, VaultJwt, VaultLogin, VaultPath, VaultPlace, VaultSecret,
    VaultStore,
};
use fender_identity::Secret;
use fender_runtime::clock::{TestClock, UnixTime};
use fender_runtime::drain::Drain;
use tokio::time::Instant;

use super::*;
use crate::host::Reading;
use server::Server;

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

/// What nothing that can be printed may hold.
const CANARY: &str = "canary-51d0c9";

/// Files by name. What is in them is their name, or what a test wants instead.
#[derive(Default)]
struct Files {
    instead: Mutex<HashMap<String, String>>,
}

impl fmt::Debug for Files {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Files")
    }
}

impl Files {
    fn write(&self, path: &str, text: &str) {
        let mut instead = self.instead.lock().unwrap();
        instead.insert(path.to_owned(), text.to_owned());
    }
}

#[derive(Clone, Debug)]
struct Shelf(Arc<Files>);

impl ReadFiles for Shelf {
    fn read<'a>(&'a self, path: &'a Path, _: u64) -> Reading<'a> {
        let path = path.to_str().unwrap();
        let instead = self.0.instead.lock().unwrap().get(path).cloned();
        let text = instead.unwrap_or_else(|| format!("content-of-{}", path.trim_matches('/')));
        Box::pin(async move {
            match text.is_empty() {
                true => Err(FetchError::Missing("no such file".to_owned())),
                false => Ok(Secret::from(text)),
            }
        })
    }

    fn read_private<'a>(&'a self, path: &'a Path, limit: u64) -> Reading<'a> {
        self.read(path, limit)
    }
}

/// Everything around one server.
struct World {
    server: Arc<Server>,
    files: Arc<Files>,
    vaults: Vaults,
    drain: Drain,
}

impl World {
    fn new() -> Self {
        Self::ending(false)
    }

    fn ending(keeps_leases: bool) -> Self {
        let server = Arc::new(Server::default());
        let files = Arc::new(Files::default());
        let drain = Drain::new();
        let now = UnixTime::since_unix_epoch(Duration::from_secs(1_800_000_000));
        let vaults = Vaults::by(
            Arc::new(Arc::clone(&server)),
            Arc::new(Shelf(Arc::clone(&files))),
            Arc::new(move || keeps_leases),
            TestClock::new(now),
            drain.clone(),
        );
        Self {
            server,
            files,
            vaults,
            drain,
        }
    }

    fn source(&self, secret: &VaultSecret) -> VaultSource {
        self.vaults.source(secret)
    }

    /// From now on somebody is there who logs in as himself.
    fn of_workload(mut self, workload: Arc<dyn Workload>) -> Self {
        self.vaults = self.vaults.of_workload(workload);
        self
    }

    async fn fetch(&self, secret: &VaultSecret) -> Result<String, FetchError> {
        text(self.source(secret).fetch().await)
    }

    async fn end(self) -> Arc<Server> {
        self.drain.stop();
        self.drain.drained().await;
        self.server
    }
}

fn text(fetched: Result<Fetched, FetchError>) -> Result<String, FetchError> {
    fetched.map(|fetched| fetched.value.expose_str().unwrap().to_owned())
}

fn path(text: &str) -> VaultPath {
    text.parse().unwrap()
}

fn app_role() -> VaultLogin {
    VaultLogin::AppRole {
        mount: path("approle"),
        role_id: "role-1".to_owned(),
        secret_id: "/secret-id".into(),
    }
}

fn store(login: VaultLogin) -> VaultStore {
    VaultStore {
        address: "https://vault.test:8200".parse().unwrap(),
        roots: None,
        namespace: None,
        login,
    }
}

fn at(login: VaultLogin, at: VaultPlace, key: &str) -> VaultSecret {
    VaultSecret {
        store: store(login),
        at,
        key: Some(key.to_owned()),
        refresh: MINUTE,
    }
}

/// `secret/NAME` in KV 2.
fn kv2(name: &str, key: &str) -> VaultSecret {
    let place = VaultPlace::Kv2 {
        mount: path("secret"),
        path: path(name),
        version: None,
    };
    at(app_role(), place, key)
}

/// All of the place, not one key of it.
fn whole(secret: VaultSecret) -> VaultSecret {
    VaultSecret {
        key: None,
        ..secret
    }
}

fn creds(key: &str) -> VaultSecret {
    let place = VaultPlace::Engine {
        path: path("database/creds/orders"),
    };
    at(app_role(), place, key)
}
