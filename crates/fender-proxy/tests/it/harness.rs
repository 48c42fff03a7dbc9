//! A certificate authority, a proxy, clients and apps for the tests.

use std::convert::Infallible;
use std::io::Write;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, Once, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use fender_config::snapshot::{
    AppProtocol, AppProxyProtocol, ClientCertificate, Destination, Forwarded, Inbound, Mtls,
    Outbound, PathRules, Profile, Protocol, RequestLimits, Snapshot,
};
use fender_config::{AppAddress, ListenAddr};
use fender_identity::tls::{self, TlsProfile};
use fender_identity::{Bundle, Bundles, SpiffeId, Svid};
use fender_policy::{Action, Default as PolicyDefault, Operation, Policy, PolicySet, Rule};
use fender_proxy::{
    Challenges, Inputs, Limits, Proxy, Record, Recording, Running, Standings, TracesFrom,
};
use fender_runtime::clock::{TestClock, TlsClock, UnixTime};
use fender_runtime::drain::Drain;
use fender_runtime::lines::{self, Lines, Writer};
use fender_runtime::listen::{ListenAddress, Listeners};
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType, date_time_ymd,
};
use rustls::ClientConfig;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// When all tests begin.
pub(crate) const NOW: u64 = 1_800_000_000;
pub(crate) const HOUR: u64 = 3600;
pub(crate) const WEB: &str = "spiffe://mesh.test/ns/shop/sa/web";
pub(crate) const ORDERS: &str = "spiffe://mesh.test/ns/shop/sa/orders";

/// No test waits longer for anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what)
        .await
        .expect("it takes too long")
}

/// A certificate and the key that made it.
pub(crate) struct Authority {
    params: CertificateParams,
    key: KeyPair,
    der: CertificateDer<'static>,
}

/// A certificate of a peer, right or wrong.
pub(crate) struct Leaf {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: PrivateKeyDer<'static>,
}

impl Leaf {
    pub(crate) fn svid(&self) -> Arc<Svid> {
        Arc::new(Svid::from_parts(self.chain.clone(), self.key.clone_key()).unwrap())
    }
}

pub(crate) fn params(uris: &[&str], from: u64, until: u64) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "test");
    params.subject_alt_names = uris
        .iter()
        .map(|uri| SanType::URI((*uri).try_into().unwrap()))
        .collect();
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    let epoch = date_time_ymd(1970, 1, 1);
    params.not_before = epoch + Duration::from_secs(from);
    params.not_after = epoch + Duration::from_secs(until);
    params
}

pub(crate) fn self_signed(params: CertificateParams) -> Leaf {
    let key = KeyPair::generate().unwrap();
    let der = params.self_signed(&key).unwrap().der().clone();
    Leaf {
        chain: vec![der],
        key: PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
    }
}

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = params(&[], NOW - 24 * HOUR, NOW + 24 * HOUR);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().unwrap();
        let der = params.self_signed(&key).unwrap().der().clone();
        Self { params, key, der }
    }

    pub(crate) fn sign(&self, params: CertificateParams) -> Leaf {
        let key = KeyPair::generate().unwrap();
        let issuer = Issuer::from_params(&self.params, &self.key);
        let der = params.signed_by(&key, &issuer).unwrap().der().clone();
        Leaf {
            chain: vec![der],
            key: PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
        }
    }

    /// An SVID good for an hour from the beginning.
    pub(crate) fn svid(&self, id: &str) -> Arc<Svid> {
        self.svid_until(id, NOW + HOUR)
    }

    pub(crate) fn svid_until(&self, id: &str, until: u64) -> Arc<Svid> {
        self.sign(params(&[id], NOW - HOUR, until)).svid()
    }

    pub(crate) fn bundles(&self) -> Arc<Bundles> {
        let mut bundles = Bundles::new();
        bundles.insert(Bundle::new("mesh.test".parse().unwrap(), vec![self.der.clone()]).unwrap());
        Arc::new(bundles)
    }
}

pub(crate) fn id(text: &str) -> SpiffeId {
    text.parse().unwrap()
}

pub(crate) fn allow(rules: Vec<Rule>) -> Policy {
    Policy {
        name: "shop/allow".parse().unwrap(),
        action: Action::Allow,
        rules,
    }
}

pub(crate) fn deny(name: &str, paths: &[&str]) -> Policy {
    let operation = Operation {
        paths: paths.iter().map(|path| path.parse().unwrap()).collect(),
        ..Operation::default()
    };
    let rule = Rule {
        to: vec![operation],
        ..Rule::default()
    };
    Policy {
        name: name.parse().unwrap(),
        action: Action::Deny,
        rules: vec![rule],
    }
}

pub(crate) fn policies(policies: Vec<Policy>) -> Arc<PolicySet> {
    Arc::new(PolicySet {
        default: PolicyDefault::Deny,
        policies,
    })
}

pub(crate) fn everybody() -> Arc<PolicySet> {
    policies(vec![allow(vec![Rule::default()])])
}

/// A proxy and everything it follows.
pub(crate) struct World {
    pub(crate) authority: Authority,
    pub(crate) clock: Arc<TestClock>,
    pub(crate) svid: watch::Sender<Arc<Svid>>,
    pub(crate) snapshot: watch::Sender<Arc<Snapshot>>,
    /// Certificates of ports that are credentials.
    pub(crate) credentials: watch::Sender<Arc<Standings>>,
    pub(crate) inbound: Drain,
    pub(crate) outbound: Drain,
    pub(crate) records: mpsc::Receiver<Record>,
    pub(crate) running: Running,
    pub(crate) challenges: Arc<Challenges>,
    /// Runs clients and apps.
    pub(crate) tasks: Drain,
}

pub(crate) fn listen() -> ListenAddr {
    "127.0.0.1:0".parse().unwrap()
}

pub(crate) fn inbound(app: SocketAddr, protocol: Protocol) -> Inbound {
    Inbound {
        listen: listen(),
        app: AppAddress::Loopback(app.try_into().unwrap()),
        protocol,
        mtls: Mtls::Strict(ClientCertificate::Require),
        tls: TlsProfile::default(),
        certificates: vec![],
        paths: PathRules::default(),
        proxy_protocol: None,
        app_proxy_protocol: AppProxyProtocol::Absent,
        app_protocol: AppProtocol::Http1,
        forwarded: Forwarded::default(),
        limits: RequestLimits::default(),
    }
}

pub(crate) fn outbound(to: Destination) -> Outbound {
    Outbound {
        listen: listen(),
        to,
    }
}

impl World {
    pub(crate) fn http(app: SocketAddr) -> Self {
        Self::start(
            vec![inbound(app, Protocol::Http)],
            vec![],
            Limits::default(),
        )
    }

    pub(crate) fn tcp(app: SocketAddr) -> Self {
        Self::start(vec![inbound(app, Protocol::Tcp)], vec![], Limits::default())
    }

    pub(crate) fn start(inbound: Vec<Inbound>, outbound: Vec<Outbound>, limits: Limits) -> Self {
        Self::with(Authority::new(), inbound, outbound, limits)
    }

    pub(crate) fn with(
        authority: Authority,
        inbound: Vec<Inbound>,
        outbound: Vec<Outbound>,
        limits: Limits,
    ) -> Self {
        let traces = (TracesFrom::Mesh, None);
        Self::build(authority, inbound, outbound, limits, traces)
    }

    pub(crate) fn tracing(
        from: TracesFrom,
        recording: Option<Recording>,
        inbound: Vec<Inbound>,
    ) -> Self {
        let (authority, limits) = (Authority::new(), Limits::default());
        Self::build(authority, inbound, vec![], limits, (from, recording))
    }

    fn build(
        authority: Authority,
        inbound: Vec<Inbound>,
        outbound: Vec<Outbound>,
        limits: Limits,
        (traces, recording): (TracesFrom, Option<Recording>),
    ) -> Self {
        logs();
        let clock = TestClock::new(UnixTime::since_unix_epoch(Duration::from_secs(NOW)));
        let (svid, svids) = watch::channel(authority.svid(ORDERS));
        let (snapshot, snapshots) = watch::channel(Arc::new(Snapshot {
            version: 1,
            identity: Some(id(ORDERS)),
            profile: Profile::Production,
            trust: authority.bundles().into(),
            tls: TlsProfile::default(),
            inbound,
            outbound,
            policies: everybody(),
            credentials: vec![],
            drain: Duration::from_secs(5),
            max_age: None,
        }));
        let (sender, records) = mpsc::channel(64);
        let (credentials, given) = watch::channel(Arc::default());
        let (inbound, outbound) = (Drain::new(), Drain::new());
        let challenges = Arc::new(Challenges::default());
        let running = Proxy::start(Inputs {
            svid: svids,
            snapshot: snapshots,
            issued: watch::channel(Arc::default()).1,
            credentials: given,
            challenges: challenges.clone(),
            clock: clock.clone(),
            inbound: inbound.clone(),
            outbound: outbound.clone(),
            listeners: Listeners::none(),
            records: sender,
            access: access_log(),
            traces,
            recording,
            limits,
        })
        .unwrap();
        let tasks = Drain::new();
        Self {
            authority,
            clock,
            svid,
            snapshot,
            credentials,
            inbound,
            outbound,
            records,
            running,
            challenges,
            tasks,
        }
    }

    pub(crate) fn change(&self, change: impl FnOnce(&mut Snapshot)) {
        self.snapshot.send_modify(|snapshot| {
            let mut next = Snapshot::clone(snapshot);
            next.version += 1;
            change(&mut next);
            *snapshot = Arc::new(next);
        });
    }

    /// Waits until new connections are served by the newest snapshot.
    pub(crate) async fn settled(&self) {
        let version = self.snapshot.borrow().version;
        let mut running = self.running.clone();
        while running.status().snapshot != version {
            assert!(soon(running.changed()).await);
        }
    }

    /// The one listener.
    pub(crate) fn address(&self) -> SocketAddr {
        match self.running.local_address(&listen()) {
            Some(ListenAddress::Tcp(address)) => address,
            other => panic!("{other:?}"),
        }
    }

    /// A client with this SVID that expects our workload.
    pub(crate) async fn client(&self, svid: &Svid, alpn: &[&[u8]]) -> TlsStream<TcpStream> {
        self.try_client(svid, alpn).await.unwrap()
    }

    pub(crate) async fn try_client(
        &self,
        svid: &Svid,
        alpn: &[&[u8]],
    ) -> std::io::Result<TlsStream<TcpStream>> {
        let stream = TcpStream::connect(self.address()).await?;
        self.handshake(stream, svid, alpn).await
    }

    /// What a client of the mesh begins with.
    pub(crate) fn client_config(&self, svid: &Svid, alpn: &[&[u8]]) -> Arc<ClientConfig> {
        let clock = Arc::new(TlsClock(self.clock.clone()));
        tls::client(
            &TlsProfile::default(),
            Some(svid),
            self.authority.bundles(),
            id(ORDERS),
            alpn,
            clock,
        )
        .unwrap()
    }

    /// Begins TLS on a connection that is there.
    pub(crate) async fn handshake(
        &self,
        stream: TcpStream,
        svid: &Svid,
        alpn: &[&[u8]],
    ) -> std::io::Result<TlsStream<TcpStream>> {
        let config = self.client_config(svid, alpn);
        soon(TlsConnector::from(config).connect(tls::server_name(&id(ORDERS)), stream)).await
    }

    pub(crate) async fn web(&self) -> TlsStream<TcpStream> {
        self.client(&self.authority.svid(WEB), &[b"http/1.1"]).await
    }

    /// Sends bytes as `web` and reads until the proxy closes.
    pub(crate) async fn raw(&self, request: &str) -> String {
        let mut stream = self.web().await;
        stream.write_all(request.as_bytes()).await.unwrap();
        rest(&mut stream).await
    }

    /// An HTTP/2 client as `web`.
    pub(crate) async fn web2(&self) -> hyper::client::conn::http2::SendRequest<Full<Bytes>> {
        let stream = self.client(&self.authority.svid(WEB), &[b"h2"]).await;
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
        let executor = hyper_util::rt::TokioExecutor::new();
        let (sender, connection) =
            hyper::client::conn::http2::handshake(executor, TokioIo::new(stream))
                .await
                .unwrap();
        self.tasks.spawn(async move {
            let _ = connection.await;
        });
        sender
    }
}

/// Everything until the end; an end without `close_notify` is none.
pub(crate) async fn rest(stream: &mut (impl AsyncReadExt + Unpin)) -> String {
    let mut all = Vec::new();
    soon(stream.read_to_end(&mut all)).await.unwrap();
    String::from_utf8(all).unwrap()
}

/// Reads one response with a `content-length` and leaves the connection open.
pub(crate) async fn response(stream: &mut (impl AsyncReadExt + Unpin)) -> (String, String) {
    let head = head(stream).await;
    let length: usize = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "))
        .map_or(0, |length| length.parse().unwrap());
    let mut body = vec![0; length];
    soon(stream.read_exact(&mut body)).await.unwrap();
    (head, String::from_utf8(body).unwrap())
}

/// Reads up to the empty line.
pub(crate) async fn head(stream: &mut (impl AsyncReadExt + Unpin)) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(soon(stream.read_u8()).await.unwrap());
    }
    String::from_utf8(head).unwrap()
}

pub(crate) fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: orders\r\n\r\n")
}

pub(crate) fn last_get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: orders\r\nconnection: close\r\n\r\n")
}

/// The request as an app saw it: target, then fields, then the body.
async fn echo(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let (parts, body) = request.into_parts();
    let mut seen = format!("{} {}\n", parts.method, parts.uri);
    for (name, value) in &parts.headers {
        seen.push_str(&format!(
            "{name}: {}\n",
            String::from_utf8_lossy(value.as_bytes())
        ));
    }
    let collected = body.collect().await.unwrap();
    if let Some(trailers) = collected.trailers() {
        seen.push_str(&format!("trailers: {trailers:?}\n"));
    }
    seen.push('\n');
    seen.push_str(&String::from_utf8_lossy(&collected.to_bytes()));
    Ok(Response::new(Full::new(seen.into())))
}

/// An app that answers with what it saw.
pub(crate) async fn echo_app(tasks: &Drain) -> SocketAddr {
    hyper_app(tasks, echo).await
}

/// An app on hyper's server.
pub(crate) async fn hyper_app<F, R, B>(tasks: &Drain, answer: F) -> SocketAddr
where
    F: Fn(Request<Incoming>) -> R + Clone + Send + Sync + 'static,
    R: Future<Output = Result<Response<B>, Infallible>> + Send + 'static,
    B: hyper::body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    raw_app(tasks, move |socket| {
        let service = service_fn(answer.clone());
        async move {
            let _ = hyper::server::conn::http1::Builder::new()
                .half_close(true)
                .serve_connection(TokioIo::new(socket), service)
                .with_upgrades()
                .await;
        }
    })
    .await
}

/// An app on bare sockets.
pub(crate) async fn raw_app<F, R>(tasks: &Drain, serve: F) -> SocketAddr
where
    F: Fn(TcpStream) -> R + Send + Sync + 'static,
    R: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let inner = tasks.clone();
    tasks.spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            inner.spawn(serve(socket));
        }
    });
    address
}

/// A loopback port nobody listens on.
pub(crate) async fn nobody() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap()
}

static LOGS: Mutex<Vec<u8>> = Mutex::new(Vec::new());

struct Logs;

impl Write for Logs {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        LOGS.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn logs() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        tracing_subscriber::fmt().json().with_writer(|| Logs).init();
    });
}

/// All proxies of the tests write into one, beside the log.
pub(crate) fn access_log() -> Lines {
    static ACCESS: OnceLock<(Lines, Writer)> = OnceLock::new();
    let (lines, _) = ACCESS.get_or_init(|| lines::start(Logs).unwrap());
    lines.clone()
}

/// Every line logged so far that contains `text`.
pub(crate) fn logged(text: &str) -> Vec<String> {
    let all = String::from_utf8(LOGS.lock().unwrap().clone()).unwrap();
    all.lines()
        .filter(|line| line.contains(text))
        .map(ToOwned::to_owned)
        .collect()
}

/// Waits for such a line: it is written when a connection has ended.
pub(crate) async fn logs_line(text: &str) -> String {
    logs_line_of("", text).await
}

/// The same for a line that holds both.
pub(crate) async fn logs_line_of(kind: &str, text: &str) -> String {
    soon(async {
        loop {
            let mut lines = logged(text).into_iter();
            if let Some(line) = lines.rfind(|line| line.contains(kind)) {
                return line;
            }
            tokio::task::yield_now().await;
        }
    })
    .await
}
