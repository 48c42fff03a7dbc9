//! How a Vault is reached: over TLS by the roots that a document names, known by a certificate where that is how we log in; on
//! loopback in the clear. What is read for it is read anew each time, and nothing of it is kept but in the connection.

use std::sync::Arc;

use fender_config::StoreUrl;
use fender_config::snapshot::{VaultCertificate, VaultLogin, VaultStore};
use fender_identity::tls::{PemPair, ShownCertificate};
use fender_identity::{Secret, Svid};
use fender_runtime::clock::SharedClock;

use super::login;
use super::wire::{Http, MAX_ANSWER, SharedTransport};
use crate::FetchError;
use crate::host::ReadFiles;
use crate::http::{HttpClient, system_roots};

/// The largest file of roots, of a chain or of a key.
const MAX_PEM: u64 = 1024 * 1024;

/// How a client is made. Only tests make another.
pub(super) trait Dial: std::fmt::Debug + Send + Sync + 'static {
    fn dial(
        &self,
        store: &VaultStore,
        pem: Pem,
        clock: &SharedClock,
    ) -> Result<SharedTransport, String>;
}

/// What was read to make a client.
#[derive(Debug, Default)]
pub(super) struct Pem {
    pub(super) roots: Option<Secret>,
    pub(super) shown: Option<Shown>,
}

/// By what the server knows us in the handshake.
#[derive(Debug)]
pub(super) enum Shown {
    Files(PemPair),
    Svid(Arc<Svid>),
}

/// By HTTP.
#[derive(Clone, Copy, Debug)]
pub(super) struct DialHttp;

impl Dial for DialHttp {
    fn dial(
        &self,
        store: &VaultStore,
        pem: Pem,
        clock: &SharedClock,
    ) -> Result<SharedTransport, String> {
        let clock = Arc::clone(clock);
        let client = match &store.address {
            StoreUrl::Loopback { .. } => HttpClient::in_the_clear(MAX_ANSWER, clock),
            StoreUrl::Https(_) => {
                let roots = match &pem.roots {
                    Some(roots) => roots.expose().to_vec(),
                    None => system_roots().map_err(|error| format!("roots: {error}"))?,
                };
                match &pem.shown {
                    Some(Shown::Svid(svid)) => {
                        HttpClient::known_as(svid, &roots, MAX_ANSWER, clock)
                    }
                    Some(Shown::Files(pair)) => {
                        let shown = ShownCertificate::from_pem(pair)
                            .map_err(|error| format!("certificate to show: {error}"))?;
                        HttpClient::showing(&shown, &roots, MAX_ANSWER, clock)
                    }
                    None => HttpClient::new(&roots, MAX_ANSWER, clock),
                }
            }
        };
        Ok(Arc::new(Http {
            client: client.map_err(|error| error.to_string())?,
            address: store.address.clone(),
            namespace: store.namespace.clone(),
        }))
    }
}

impl Pem {
    /// What `store` wants, as it is at this moment; `svid` is the workload's own certificate.
    pub(super) async fn read(
        store: &VaultStore,
        files: &dyn ReadFiles,
        svid: Option<Arc<Svid>>,
        clock: &SharedClock,
    ) -> Result<Self, FetchError> {
        let mut pem = Self::default();
        let read = async |path| {
            let read = files.read(path, MAX_PEM).await;
            read.map_err(|error| unusable(error.to_string()))
        };
        if let Some(path) = &store.roots {
            pem.roots = Some(read(path).await?);
        }
        if let VaultLogin::Certificate { shown, .. } = &store.login {
            pem.shown = Some(match shown {
                VaultCertificate::Files(files) => Shown::Files(PemPair {
                    chain: read(&files.certificate).await?.expose().to_vec(),
                    key: read(&files.key).await?,
                }),
                VaultCertificate::Svid => {
                    let svid = svid.ok_or_else(login::nobody)?;
                    if !svid.validity().includes(clock.now()) {
                        return Err(unusable(
                            "the workload's certificate has expired".to_owned(),
                        ));
                    }
                    Shown::Svid(svid)
                }
            });
        }
        Ok(pem)
    }

    /// The workload's certificate, if that is what is shown.
    pub(super) fn svid(&self) -> Option<&Arc<Svid>> {
        match &self.shown {
            Some(Shown::Svid(svid)) => Some(svid),
            Some(Shown::Files(_)) | None => None,
        }
    }
}

/// There is no way there yet. It says nothing of the secrets.
pub(super) fn unusable(why: String) -> FetchError {
    FetchError::Outage(format!("login to Vault: {why}"))
}
