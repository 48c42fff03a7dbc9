//! For tests: an authority, a clock that follows tokio's, and a small control plane on real TLS and a real socket.

mod service;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use fender_config::snapshot::Snapshot;
use fender_identity::csr::{self, NewKey};
use fender_identity::tls::{CaPin, ClientCertificate, TlsProfile};
use fender_identity::verify::{Proof, lapsed};
use fender_identity::{Bundle, Bundles, Secret, Serial, SpiffeId, Svid, Trust};
use fender_runtime::clock::{Clock, TlsClock, UnixTime};
use fender_runtime::drain::Drain;
use fender_runtime::listen::{ListenAddress, Listener};
use prost::Message as _;
use rcgen::{
    BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData,
    SanType, SerialNumber, date_time_ymd,
};
use rustls_pki_types::CertificateDer;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tonic::Status;

use crate::code::Code;
use crate::proto::control::v1 as proto;
use crate::proto::control::v1::admin_server::AdminServer;
use crate::proto::control::v1::distribution_server::DistributionServer;
use crate::proto::control::v1::identity_server::IdentityServer;
use crate::proto::control::v1::nodes_server::NodesServer;
use crate::tls::{ALPN, ConnectInfo, IncomingLimits, MAX_APPLY, MAX_MESSAGE, TlsIncoming, server};
use crate::token::JoinToken;
use crate::url::ControlUrl;

use service::Service;

pub(crate) const START: u64 = 1_800_000_000;
pub(crate) const DOMAIN: &str = "acme.test";
pub(crate) const ORDERS: &str = "spiffe://acme.test/ns/shop/sa/orders";

pub(crate) fn id(text: &str) -> SpiffeId {
    text.parse().unwrap()
}

fn at(seconds: u64) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(seconds))
}

/// The wall clock and tokio's timers, moving together.
#[derive(Debug)]
pub(crate) struct TokioClock {
    began: Instant,
    jumped: AtomicU64,
}

impl TokioClock {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            began: Instant::now(),
            jumped: AtomicU64::new(0),
        })
    }

    /// The wall jumps, the timers do not.
    pub(crate) fn jump(&self, by: Duration) {
        self.jumped.fetch_add(by.as_secs(), Ordering::Relaxed);
    }
}

impl Clock for TokioClock {
    fn now(&self) -> UnixTime {
        at(self.since_1970().as_secs())
    }

    fn since_1970(&self) -> Duration {
        let jumped = START + self.jumped.load(Ordering::Relaxed);
        Duration::from_secs(jumped) + self.began.elapsed()
    }
}

pub(crate) struct Authority {
    params: CertificateParams,
    key: KeyPair,
    pub(crate) root: CertificateDer<'static>,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        valid(&mut params, START - 86_400, START + 10 * 86_400);
        let key = KeyPair::generate().unwrap();
        let root = params.self_signed(&key).unwrap().der().clone();
        Self { params, key, root }
    }

    pub(crate) fn bundle(&self) -> Bundle {
        Bundle::new(DOMAIN.parse().unwrap(), vec![self.root.clone()]).unwrap()
    }

    pub(crate) fn bundles(&self) -> Arc<Bundles> {
        Arc::new(self.bundle().into())
    }

    pub(crate) fn sign(
        &self,
        id: &SpiffeId,
        key: &impl PublicKeyData,
        from: UnixTime,
        life: Duration,
    ) -> Vec<CertificateDer<'static>> {
        static SERIAL: AtomicU64 = AtomicU64::new(1);
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(id.as_str().try_into().unwrap())];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.serial_number = Some(SerialNumber::from(SERIAL.fetch_add(1, Ordering::Relaxed)));
        valid(&mut params, from.as_secs(), from.as_secs() + life.as_secs());
        let issuer = Issuer::from_params(&self.params, &self.key);
        vec![params.signed_by(key, &issuer).unwrap().der().clone()]
    }

    /// As a server or admin has it, valid for days and with the root at the end.
    pub(crate) fn svid(&self, id: &SpiffeId) -> Svid {
        self.svid_for(id, at(START), Duration::from_secs(5 * 86_400), true)
    }

    pub(crate) fn svid_for(
        &self,
        id: &SpiffeId,
        from: UnixTime,
        life: Duration,
        with_root: bool,
    ) -> Svid {
        let key = NewKey::generate().unwrap();
        let request = csr::parse(&key.csr_der(id).unwrap()).unwrap();
        let mut chain = self.sign(id, &request.key, from, life);
        if with_root {
            chain.push(self.root.clone());
        }
        key.into_svid(chain).unwrap()
    }
}

fn valid(params: &mut CertificateParams, from: u64, until: u64) {
    let epoch = date_time_ymd(1970, 1, 1);
    params.not_before = epoch + Duration::from_secs(from);
    params.not_after = epoch + Duration::from_secs(until);
}

/// What the control plane was told.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "patterns do not look into a box")]
pub(crate) enum Heard {
    Attest { spki: [u8; 32] },
    Renew { by_proof: bool },
    Report(proto::report::Kind),
    Entitle { by: String },
}

struct Token {
    identity: SpiffeId,
    spent_by: Option<[u8; 32]>,
    refusal: Option<Code>,
}

/// A control plane that keeps the protocol and decides as it is told.
pub(crate) struct Control {
    pub(crate) ca: Authority,
    pub(crate) clock: Arc<TokioClock>,
    pub(crate) life: Mutex<Duration>,
    pub(crate) grace: Duration,
    tokens: Mutex<BTreeMap<Vec<u8>, Token>>,
    /// Issues, and then loses the answer, this many times.
    pub(crate) lose_answers: Mutex<u32>,
    pub(crate) refuse_renewals: Mutex<Option<Code>>,
    pub(crate) refuse_streams: Mutex<Option<Code>>,
    /// Who shows this certificate hears nothing as an agent.
    pub(crate) revoked_agent: Mutex<Option<Serial>>,
    /// Issues for this identity whatever was asked.
    pub(crate) issue_for: Mutex<Option<SpiffeId>>,
    pub(crate) updates: watch::Sender<Option<proto::Snapshot>>,
    pub(crate) trust: watch::Sender<Bytes>,
    pub(crate) credential: watch::Sender<proto::CredentialValue>,
    /// Answers who says that it ends; one that is older does not.
    pub(crate) takes_ends: AtomicBool,
    /// When what is placed on the node changed.
    pub(crate) placed: watch::Sender<u64>,
    heard: mpsc::UnboundedSender<Heard>,
    svid: Svid,
}

impl Control {
    pub(crate) fn new() -> (Arc<Self>, mpsc::UnboundedReceiver<Heard>) {
        Self::presenting(&SpiffeId::control(&DOMAIN.parse().unwrap()))
    }

    pub(crate) fn presenting(id: &SpiffeId) -> (Arc<Self>, mpsc::UnboundedReceiver<Heard>) {
        let ca = Authority::new();
        let (heard, hears) = mpsc::unbounded_channel();
        let svid = ca.svid(id);
        let snapshot = proto::Snapshot::from(&snapshot(1, &ca));
        let first = trust(1, &ca).encode_to_vec().into();
        let control = Self {
            svid,
            ca,
            clock: TokioClock::new(),
            life: Mutex::new(Duration::from_secs(3600)),
            grace: Duration::from_secs(24 * 3600),
            tokens: Mutex::default(),
            lose_answers: Mutex::new(0),
            refuse_renewals: Mutex::new(None),
            refuse_streams: Mutex::new(None),
            revoked_agent: Mutex::new(None),
            issue_for: Mutex::new(None),
            updates: watch::Sender::new(Some(snapshot)),
            trust: watch::Sender::new(first),
            credential: watch::Sender::new(proto::CredentialValue::default()),
            takes_ends: AtomicBool::new(false),
            placed: watch::Sender::new(1),
            heard,
        };
        (Arc::new(control), hears)
    }

    pub(crate) fn token(&self, secret: u8, refusal: Option<Code>) -> JoinToken {
        self.known_token(ORDERS, secret, refusal)
    }

    pub(crate) fn token_for(&self, identity: &str, secret: u8) -> JoinToken {
        self.known_token(identity, secret, None)
    }

    fn known_token(&self, identity: &str, secret: u8, refusal: Option<Code>) -> JoinToken {
        let token = Token {
            identity: id(identity),
            spent_by: None,
            refusal,
        };
        self.tokens.lock().unwrap().insert(vec![secret; 32], token);
        self.unknown_token(identity, secret)
    }

    pub(crate) fn unknown_token(&self, identity: &str, secret: u8) -> JoinToken {
        let pins = vec![CaPin::of(&self.ca.root)];
        JoinToken::new(id(identity), pins, Secret::new(vec![secret; 32])).unwrap()
    }

    /// Begins to serve; ends when the drain does.
    pub(crate) fn serve(self: &Arc<Self>, listener: Listener, drain: &Drain) -> ControlUrl {
        let ListenAddress::Tcp(address) = *listener.local_address() else {
            unreachable!()
        };
        let config = fender_identity::tls::server(
            &TlsProfile::default(),
            &self.svid,
            self.ca.bundles(),
            ClientCertificate::Accept,
            ALPN,
            Arc::new(TlsClock(self.clock.clone())),
        );
        let config = watch::Sender::new(config.unwrap());
        let incoming = TlsIncoming::new(
            listener,
            config.subscribe(),
            IncomingLimits::default(),
            drain,
        );
        let service = Service {
            control: self.clone(),
            drain: drain.clone(),
        };
        let routes = server()
            .add_service(
                IdentityServer::new(service.clone()).max_decoding_message_size(MAX_MESSAGE),
            )
            .add_service(DistributionServer::new(service.clone()))
            .add_service(NodesServer::new(service.clone()))
            .add_service(AdminServer::new(service).max_decoding_message_size(MAX_APPLY));
        let stop = drain.clone();
        drain.spawn(async move {
            let _config = config;
            let stop = async move { stop.stopping().await };
            routes
                .serve_with_incoming_shutdown(incoming, stop)
                .await
                .unwrap();
        });
        format!("https://{address}").parse().unwrap()
    }

    pub(crate) fn start(self: &Arc<Self>, drain: &Drain) -> ControlUrl {
        self.serve(listener(), drain)
    }

    pub(crate) fn push(&self, snapshot: proto::Snapshot) {
        self.updates.send_replace(Some(snapshot));
    }

    pub(crate) fn push_trust(&self, trust: proto::Trust) {
        self.trust.send_replace(trust.encode_to_vec().into());
    }

    fn tell(&self, heard: Heard) {
        // A test that does not listen is a test that does not care.
        let _ = self.heard.send(heard);
    }

    fn issue(&self, csr: &csr::Csr) -> proto::SvidResponse {
        let id = self
            .issue_for
            .lock()
            .unwrap()
            .clone()
            .unwrap_or_else(|| csr.id.clone());
        let life = *self.life.lock().unwrap();
        let chain = self.ca.sign(&id, &csr.key, self.clock.now(), life);
        proto::SvidResponse {
            chain: chain
                .iter()
                .map(|certificate| certificate.to_vec())
                .collect(),
            bundles: crate::convert::bundles_to_proto(&self.ca.bundles()),
            renewal_grace_seconds: self.grace.as_secs(),
        }
    }

    fn attest(&self, request: proto::AttestRequest) -> Result<proto::SvidResponse, Status> {
        let csr = csr::parse(&request.csr).map_err(|_| Code::CsrInvalid.status("bad"))?;
        self.tell(Heard::Attest {
            spki: csr.spki_sha256,
        });
        let Some(proto::attest_request::Evidence::JoinToken(evidence)) = request.evidence else {
            return Err(Code::BadRequest.status("no evidence"));
        };
        let mut tokens = self.tokens.lock().unwrap();
        let Some(token) = tokens.get_mut(&evidence.secret) else {
            return Err(Code::TokenUnknown.status("nobody here made this token"));
        };
        if let Some(code) = token.refusal {
            return Err(code.status("as the test wants it"));
        }
        if token.identity != csr.id {
            return Err(Code::TokenWrongIdentity.status("for another"));
        }
        if token.spent_by.is_some_and(|by| by != csr.spki_sha256) {
            return Err(Code::TokenSpent.status("used before"));
        }
        token.spent_by = Some(csr.spki_sha256);
        let mut lose = self.lose_answers.lock().unwrap();
        if *lose > 0 {
            *lose -= 1;
            return Err(Status::unavailable("lost on the way"));
        }
        Ok(self.issue(&csr))
    }

    fn renew(
        &self,
        info: &ConnectInfo,
        request: proto::RenewRequest,
    ) -> Result<proto::SvidResponse, Status> {
        let csr = csr::parse(&request.csr).map_err(|_| Code::CsrInvalid.status("bad"))?;
        self.tell(Heard::Renew {
            by_proof: request.expired.is_some(),
        });
        if let Some(code) = *self.refuse_renewals.lock().unwrap() {
            return Err(code.status("as the test wants it"));
        }
        match request.expired {
            None => match info.peer.id() {
                Some(id) if *id == csr.id => Ok(self.issue(&csr)),
                Some(_) | None => Err(Code::NotAuthenticated.status("who?")),
            },
            Some(expired) => {
                let chain: Vec<_> = expired
                    .chain
                    .into_iter()
                    .map(CertificateDer::from)
                    .collect();
                let message = crate::proof::renewal(&request.csr, &self.svid.chain()[0]);
                let proof = Proof {
                    chain: &chain,
                    message: &message,
                    signature: &expired.signature,
                };
                let now = self.clock.now();
                lapsed(proof, &self.ca.bundles(), now, self.grace, &|_| Ok(()))
                    .map_err(|refusal| Code::RenewalExpired.status(refusal.to_string()))?;
                Ok(self.issue(&csr))
            }
        }
    }
}

pub(crate) fn listener() -> Listener {
    Listener::bind(&"127.0.0.1:0".parse().unwrap()).unwrap()
}

impl Heard {
    pub(crate) fn report(&self) -> Option<&proto::report::Kind> {
        match self {
            Self::Report(kind) => Some(kind),
            Self::Attest { .. } | Self::Renew { .. } | Self::Entitle { .. } => None,
        }
    }
}

pub(crate) fn trust(version: u64, ca: &Authority) -> proto::Trust {
    proto::Trust::from(&Trust {
        version,
        ..ca.bundles().into()
    })
}

/// A small Snapshot that can be served.
pub(crate) fn snapshot(version: u64, ca: &Authority) -> Snapshot {
    Snapshot {
        version,
        identity: Some(id(ORDERS)),
        profile: fender_config::snapshot::Profile::Production,
        trust: ca.bundles().into(),
        tls: TlsProfile::default(),
        inbound: Vec::new(),
        outbound: Vec::new(),
        policies: Arc::new(fender_policy::PolicySet {
            default: fender_policy::Default::Deny,
            policies: Vec::new(),
        }),
        credentials: Vec::new(),
        drain: Duration::from_secs(10),
        max_age: None,
    }
}
