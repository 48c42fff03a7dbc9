//! Answers to an authority that wants to know whether a name is ours (ACME, RFC 8555). They are there only while an order
//! is, and nothing else can be learned from them:
//!
//! - **TLS-ALPN-01** (RFC 8737): at the ports that have a certificate from an authority, to whoever asks for a name of it by
//!   `acme-tls/1` and nothing else. The certificate shown proves the answer and is good for nothing; the connection ends
//!   with the handshake. Whoever offers `acme-tls/1` in any other way gets no certificate at all.
//! - **HTTP-01**: at a port that does nothing else ([`http`]).
//!
//! While no order is in flight, no port knows `acme-tls/1`.

pub(crate) mod http;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arc_swap::ArcSwap;
use fender_identity::tls::{ACME_TLS, ChallengeCertificate};
use fender_runtime::listen::ListenAddress;
use rustls::ServerConfig;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::sync::watch;

/// The answers of this moment.
#[derive(Debug, Default)]
pub struct Challenges {
    certificates: ArcSwap<BTreeMap<String, ChallengeCertificate>>,
    /// By token, what stands there.
    authorizations: ArcSwap<BTreeMap<String, Arc<str>>>,
    /// Where somebody listens who gives these.
    listening: watch::Sender<BTreeSet<ListenAddress>>,
}

impl Challenges {
    /// Shows a certificate from now on to whoever asks for its name by `acme-tls/1`.
    pub fn show(&self, certificate: &ChallengeCertificate) {
        self.certificates.rcu(|all| {
            let mut all = BTreeMap::clone(all);
            all.insert(certificate.name().to_owned(), certificate.clone());
            all
        });
    }

    pub fn hide(&self, name: &str) {
        self.certificates.rcu(|all| {
            let mut all = BTreeMap::clone(all);
            all.remove(name);
            all
        });
    }

    /// Gives an authorization from now on to whoever asks for its token.
    pub fn tell(&self, token: &str, authorization: &str) {
        self.authorizations.rcu(|all| {
            let mut all = BTreeMap::clone(all);
            all.insert(token.to_owned(), authorization.into());
            all
        });
    }

    pub fn forget(&self, token: &str) {
        self.authorizations.rcu(|all| {
            let mut all = BTreeMap::clone(all);
            all.remove(token);
            all
        });
    }

    /// Where HTTP-01 is answered, of all the ports where it shall be.
    pub fn listening(&self) -> watch::Receiver<BTreeSet<ListenAddress>> {
        self.listening.subscribe()
    }

    pub(crate) fn listen_at(&self, all: BTreeSet<ListenAddress>) {
        self.listening.send_if_modified(|before| {
            let is_new = *before != all;
            *before = all;
            is_new
        });
    }

    fn certificate(&self, name: &str) -> Option<Arc<CertifiedKey>> {
        let all = self.certificates.load();
        Some(all.get(name)?.certified_key())
    }

    fn authorization(&self, token: &str) -> Option<Arc<str>> {
        self.authorizations.load().get(token).cloned()
    }
}

/// The configurations of a port at which an authority may be answered.
#[derive(Debug)]
pub(crate) struct Answering {
    config: Arc<ServerConfig>,
    names: Arc<[String]>,
    challenges: Arc<Challenges>,
}

impl Answering {
    /// For these names, beside what the port usually does.
    pub(crate) fn new(
        usual: &ServerConfig,
        names: Vec<String>,
        challenges: &Arc<Challenges>,
    ) -> Self {
        let mut config = usual.clone();
        let names: Arc<[String]> = names.into();
        config.alpn_protocols.push(ACME_TLS.to_vec());
        // A session that began with such a certificate must not go on as another.
        config.send_tls13_tickets = 0;
        config.cert_resolver = Arc::new(Resolver {
            usual: config.cert_resolver,
            names: names.clone(),
            challenges: challenges.clone(),
        });
        Self {
            config: Arc::new(config),
            names,
            challenges: challenges.clone(),
        }
    }

    /// The configuration for the next connection, if it is not the usual one.
    pub(crate) fn now(&self) -> Option<&Arc<ServerConfig>> {
        let pending = self.challenges.certificates.load();
        let is_asked = self.names.iter().any(|name| pending.contains_key(name));
        is_asked.then_some(&self.config)
    }
}

#[derive(Debug)]
struct Resolver {
    usual: Arc<dyn ResolvesServerCert>,
    names: Arc<[String]>,
    challenges: Arc<Challenges>,
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let offered = || hello.alpn().into_iter().flatten();
        if !offered().any(|protocol| protocol == ACME_TLS) {
            return self.usual.resolve(hello);
        }
        let name = hello.server_name()?.to_ascii_lowercase();
        let is_ours = offered().count() == 1 && self.names.contains(&name);
        is_ours
            .then(|| self.challenges.certificate(&name))
            .flatten()
    }
}
