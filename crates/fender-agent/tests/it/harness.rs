//! A served socket, whoever stands behind it, and callers.

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fender_agent::{Caller, Entitled, Identities, JwtSvid, Limits, Refused, serve};
use fender_api::proto::spiffe::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use fender_api::workload::Endpoint;
use fender_identity::csr::NewKey;
use fender_identity::jwt::{JwtBundles, Keys, SigningKey};
use fender_identity::{Bundle, Bundles, SpiffeId, Svid, Trust};
use fender_runtime::clock::{TestClock, UnixTime};
use fender_runtime::drain::Drain;
use fender_runtime::listen::{ListenAddress, Listener};
use rcgen::{
    BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
    SerialNumber, SubjectPublicKeyInfo,
};
use rustls_pki_types::CertificateDer;
use tokio::sync::watch;
use tonic::transport::Channel;

pub(crate) const ORDERS: &str = "spiffe://acme.test/ns/shop/sa/orders";
pub(crate) const NOW: u64 = 1_800_000_000;

pub(crate) struct Authority {
    trust_domain: &'static str,
    pub(crate) issuer: Issuer<'static, KeyPair>,
    root: CertificateDer<'static>,
    serial: AtomicUsize,
    pub(crate) tokens: SigningKey,
}

/// Keys that sign tokens for `acme.test`.
pub(crate) fn key_set(keys: &[&SigningKey]) -> JwtBundles {
    let keys = keys.iter().map(|key| key.public().clone()).collect();
    let keys = Keys::new(keys).unwrap();
    [("acme.test".parse().unwrap(), keys)].into_iter().collect()
}

impl Authority {
    pub(crate) fn new(trust_domain: &'static str) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().unwrap();
        let root = params.self_signed(&key).unwrap().der().clone();
        Self {
            trust_domain,
            issuer: Issuer::new(params, key),
            root,
            serial: AtomicUsize::new(1),
            tokens: SigningKey::generate().unwrap(),
        }
    }

    pub(crate) fn bundle(&self) -> Bundle {
        Bundle::new(self.trust_domain.parse().unwrap(), vec![self.root.clone()]).unwrap()
    }

    /// A certificate of a new key.
    pub(crate) fn svid(&self, id: &str) -> Arc<Svid> {
        let id: SpiffeId = id.parse().unwrap();
        let key = NewKey::generate().unwrap();
        let csr = fender_identity::csr::parse(&key.csr_der(&id).unwrap()).unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(id.as_str().try_into().unwrap())];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let serial = self.serial.fetch_add(1, Ordering::Relaxed) as u64;
        params.serial_number = Some(SerialNumber::from(serial));
        let key_info: SubjectPublicKeyInfo = csr.key;
        let leaf = params.signed_by(&key_info, &self.issuer).unwrap();
        Arc::new(key.into_svid(vec![leaf.der().clone()]).unwrap())
    }
}

/// Everybody on this machine, or nobody.
pub(crate) struct Someone {
    entitled: Mutex<watch::Sender<Arc<Entitled>>>,
    answer: watch::Sender<Result<(), Refused>>,
    trust: watch::Sender<Trust>,
}

impl Someone {
    pub(crate) fn now(&self) -> Arc<Entitled> {
        self.entitled.lock().unwrap().borrow().clone()
    }

    pub(crate) fn publish(&self, entitled: Entitled) {
        self.entitled
            .lock()
            .unwrap()
            .send_replace(Arc::new(entitled));
    }

    /// Whoever asks from now on is refused.
    pub(crate) fn refuse(&self, why: Refused) {
        let _ = self.answer.send_replace(Err(why));
    }

    /// Whoever follows is told that there is nothing more.
    pub(crate) fn let_go(&self) {
        let current = self.now();
        *self.entitled.lock().unwrap() = watch::Sender::new(current);
    }
}

impl Identities for Someone {
    async fn follow(&self, _: &Caller) -> Result<watch::Receiver<Arc<Entitled>>, Refused> {
        self.answer.borrow().clone()?;
        Ok(self.entitled.lock().unwrap().subscribe())
    }

    async fn jwt_svid(
        &self,
        _: &Caller,
        audience: &[String],
        id: Option<&SpiffeId>,
    ) -> Result<JwtSvid, Refused> {
        self.answer.borrow().clone()?;
        let default = self.now().svids[0].id().clone();
        // One that does not give what it is asked for.
        let odd = match audience.first().map(String::as_str) {
            Some("another") => Some(("spiffe://acme.test/ns/shop/sa/ledger", "x".to_owned())),
            Some("nothing") => Some((ORDERS, String::new())),
            Some("much") => Some((ORDERS, "x".repeat(16 * 1024 + 1))),
            Some(_) | None => None,
        };
        if let Some((id, token)) = odd {
            return Ok(JwtSvid {
                id: id.parse().unwrap(),
                token: token.into(),
            });
        }
        match id {
            Some(id) if *id != default => Err(Refused::Nobody {
                why: "it is another".to_owned(),
            }),
            Some(_) | None => Ok(JwtSvid {
                id: default,
                token: format!("token for {}", audience.join(" ")).into(),
            }),
        }
    }

    fn trust(&self) -> watch::Receiver<Trust> {
        self.trust.subscribe()
    }
}

pub(crate) struct Host {
    pub(crate) authority: Authority,
    pub(crate) partner: Authority,
    pub(crate) someone: Arc<Someone>,
    pub(crate) socket: PathBuf,
    pub(crate) drain: Drain,
    _directory: tempfile::TempDir,
}

impl Host {
    pub(crate) async fn start() -> Self {
        Self::start_with(Limits::default()).await
    }

    pub(crate) async fn start_with(limits: Limits) -> Self {
        let authority = Authority::new("acme.test");
        let partner = Authority::new("partner.test");
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("workload.sock");
        let listener = Listener::bind(&ListenAddress::Unix(socket.clone())).unwrap();
        let bundles: Bundles = [authority.bundle(), partner.bundle()].into_iter().collect();
        let trust = Trust {
            jwt: Arc::new(key_set(&[&authority.tokens])),
            ..Trust::from(bundles)
        };
        let someone = Arc::new(Someone {
            entitled: Mutex::new(watch::Sender::new(Arc::new(Entitled {
                svids: vec![authority.svid(ORDERS)],
                trust: trust.clone(),
            }))),
            answer: watch::Sender::new(Ok(())),
            trust: watch::Sender::new(trust),
        });
        let drain = Drain::new();
        let clock = TestClock::new(UnixTime::since_unix_epoch(Duration::from_secs(NOW)));
        drain.spawn(serve(
            listener,
            someone.clone(),
            clock,
            limits,
            drain.clone(),
        ));
        Self {
            authority,
            partner,
            someone,
            socket,
            drain,
            _directory: directory,
        }
    }

    pub(crate) fn rotate(&self) -> Arc<Svid> {
        let svid = self.authority.svid(ORDERS);
        let trust = self.someone.now().trust.clone();
        self.someone.publish(Entitled {
            svids: vec![svid.clone()],
            trust,
        });
        svid
    }

    pub(crate) fn endpoint(&self) -> Endpoint {
        self.socket.as_path().into()
    }

    pub(crate) async fn channel(&self) -> Channel {
        fender_api::workload::connect(&self.endpoint())
            .await
            .unwrap()
    }

    pub(crate) async fn workload(&self) -> SpiffeWorkloadApiClient<Channel> {
        SpiffeWorkloadApiClient::new(self.channel().await)
    }
}
