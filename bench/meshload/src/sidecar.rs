//! One simulated sidecar: a real key, a real certificate, a real TLS connection with one stream; no proxy behind it.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use fender_api::proto::control::v1 as proto;
use fender_api::tls::ALPN;
use fender_identity::csr::NewKey;
use fender_identity::tls::{self, TlsProfile};
use fender_identity::{Bundles, SpiffeId, Svid};
use fender_runtime::clock::{self, TlsClock};
use h2::client::{Connection, SendRequest};
use prost::Message as _;
use rustls::ClientConfig;
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::{Notify, oneshot};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::Failed;
use crate::grpc::{self, Messages};
use crate::mesh::{Mesh, TRUST_DOMAIN};

const ATTEST: &str = "/fender.control.v1.Identity/Attest";
const RENEW: &str = "/fender.control.v1.Identity/Renew";
const SUBSCRIBE: &str = "/fender.control.v1.Distribution/Subscribe";

/// Addresses on loopback that the sidecars call from, so that no one of them runs out of ports.
const SOURCES: usize = 64;

/// Whom everybody calls.
pub struct Server {
    pub address: SocketAddr,
    pub id: SpiffeId,
    pub bundles: Arc<Bundles>,
}

impl Server {
    pub fn config(&self, svid: Option<&Svid>) -> Result<Arc<ClientConfig>, Failed> {
        let clock = Arc::new(TlsClock(clock::system()));
        let (profile, id) = (TlsProfile::default(), self.id.clone());
        Ok(tls::client(
            profile,
            svid,
            Arc::clone(&self.bundles),
            id,
            ALPN,
            clock,
        )?)
    }

    async fn dial(&self, at: usize, config: Arc<ClientConfig>) -> Result<Dialled, Failed> {
        let socket = TcpSocket::new_v4()?;
        let source = u8::try_from(1 + at % SOURCES)?;
        socket.bind((Ipv4Addr::new(127, 0, 1, source), 0).into())?;
        let socket = socket.connect(self.address).await?;
        socket.set_nodelay(true)?;
        let stream = TlsConnector::from(config)
            .connect(tls::server_name(&self.id), socket)
            .await?;
        Ok(h2::client::Builder::new()
            .enable_push(false)
            .header_table_size(0)
            .handshake(stream)
            .await?)
    }

    /// A connection that lives until all who hold its near end have dropped it.
    pub async fn open(
        &self,
        at: usize,
        config: Arc<ClientConfig>,
    ) -> Result<SendRequest<Bytes>, Failed> {
        let (near, connection) = self.dial(at, config).await?;
        tokio::task::spawn_local(async move {
            // How it ends is told to whoever still waits for an answer.
            let _ = connection.await;
        });
        Ok(near)
    }
}

type Dialled = (SendRequest<Bytes>, Connection<TlsStream<TcpStream>, Bytes>);

/// A certificate request, ready to be sent, and the key behind it.
pub struct Request {
    key: NewKey,
    csr: Vec<u8>,
}

impl Request {
    pub fn new(at: usize) -> Result<Self, Failed> {
        let key = NewKey::generate()?;
        let csr = key.csr_der(&Mesh::identity(at).parse()?)?;
        Ok(Self { key, csr })
    }

    fn answered(self, response: proto::SvidResponse) -> Result<Svid, Failed> {
        let chain = response.chain.into_iter().map(Into::into).collect();
        Ok(self.key.into_svid(chain)?)
    }

    /// Spends a token on a certificate.
    pub async fn attest(
        self,
        connection: &SendRequest<Bytes>,
        secret: Vec<u8>,
    ) -> Result<Svid, Failed> {
        let evidence =
            proto::attest_request::Evidence::JoinToken(proto::JoinTokenEvidence { secret });
        let question = proto::AttestRequest {
            csr: self.csr.clone(),
            evidence: Some(evidence),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        let answer = grpc::unary(connection, ATTEST, grpc::frame(&question)).await?;
        self.answered(answer)
    }

    /// The next certificate, on a connection that shows the one before.
    pub async fn renew(self, connection: &SendRequest<Bytes>) -> Result<Svid, Failed> {
        let question = proto::RenewRequest {
            csr: self.csr.clone(),
            ..Default::default()
        };
        let answer = grpc::unary(connection, RENEW, grpc::frame(&question)).await?;
        self.answered(answer)
    }
}

/// What all of them have seen.
#[derive(Default)]
pub struct Seen {
    /// By version of the Snapshot: how many have acknowledged it, and when the last of them did.
    acks: RefCell<HashMap<u64, (usize, Instant)>>,
    pub failures: RefCell<Vec<String>>,
    pub changed: Notify,
}

impl Seen {
    fn acked(&self, version: u64) {
        let mut acks = self.acks.borrow_mut();
        let entry = acks.entry(version).or_insert((0, Instant::now()));
        *entry = (entry.0 + 1, Instant::now());
        drop(acks);
        self.changed.notify_waiters();
    }

    /// How many acknowledged this version, and when the last of them did.
    pub fn of(&self, version: u64) -> (usize, Instant) {
        let acks = self.acks.borrow();
        acks.get(&version).copied().unwrap_or((0, Instant::now()))
    }

    pub fn forget(&self) {
        self.acks.borrow_mut().clear();
    }

    pub fn total(&self) -> usize {
        self.acks.borrow().values().map(|(count, _)| count).sum()
    }

    pub fn failed(&self, failure: String) {
        self.failures.borrow_mut().push(failure);
        self.changed.notify_waiters();
    }
}

/// Whoever waits for the first Snapshot of a stream, or for why there is none.
type Welcome = RefCell<Option<oneshot::Sender<Result<(), String>>>>;

/// Connects and holds the stream, in a task of its own; gives back the connection for other calls.
///
/// It is connected once the first Snapshot is there: a client has finished its handshake before the server has, which may
/// have no room for it.
pub async fn subscribe(
    server: &Server,
    at: usize,
    svid: &Svid,
    seen: Rc<Seen>,
) -> Result<(SendRequest<Bytes>, tokio::task::AbortHandle), Failed> {
    let (near, connection) = server.dial(at, server.config(Some(svid))?).await?;
    let calls = near.clone();
    let (welcome, welcomed) = oneshot::channel();
    let task = tokio::task::spawn_local(async move {
        let welcome = Welcome::new(Some(welcome));
        let ended = tokio::select! {
            ended = connection => ended.map_err(Failed::from),
            ended = converse(&near, at, &seen, &welcome) => ended,
        };
        let why = ended
            .err()
            .map_or_else(|| "it ended".to_owned(), |error| error.to_string());
        match welcome.take() {
            // Whoever waited may have given up.
            Some(welcome) => drop(welcome.send(Err(why))),
            None => seen.failed(format!("stream of {}: {why}", Mesh::workload(at))),
        }
    });
    welcomed.await??;
    Ok((calls, task.abort_handle()))
}

async fn converse(
    near: &SendRequest<Bytes>,
    at: usize,
    seen: &Seen,
    welcome: &Welcome,
) -> Result<(), Failed> {
    let (response, mut reports) = grpc::open(near, SUBSCRIBE).await?;
    let mut report = |kind| {
        let report = proto::Report { kind: Some(kind) };
        reports.send_data(grpc::frame(&report), false)
    };
    report(proto::report::Kind::Hello(proto::Hello {
        sidecar_version: env!("CARGO_PKG_VERSION").to_owned(),
        instance: format!("{at:032x}"),
        ..Default::default()
    }))?;
    let mut updates = Messages::of(response).await?;
    while let Some(update) = updates.next::<proto::Update>().await? {
        match update.kind {
            Some(proto::update::Kind::Snapshot(snapshot)) => {
                let version = snapshot.version;
                report(proto::report::Kind::Ack(proto::Ack { version }))?;
                seen.acked(version);
                if let Some(welcome) = welcome.take() {
                    let _ = welcome.send(Ok(()));
                }
            }
            Some(proto::update::Kind::Trust(bytes)) => {
                let version = proto::Trust::decode(bytes)?.version;
                report(proto::report::Kind::TrustAck(proto::Ack { version }))?;
            }
            None => return Err("an empty update".into()),
        }
    }
    Ok(())
}

/// The identity of the control plane.
pub fn control() -> Result<SpiffeId, Failed> {
    Ok(SpiffeId::control(&TRUST_DOMAIN.parse()?))
}
