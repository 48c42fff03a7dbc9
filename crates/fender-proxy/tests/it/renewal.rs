//! Certificates of seconds, renewed under load on both sides, on the real clock.

use std::sync::Arc;
use std::time::{Duration, Instant};

use fender_config::HostPort;
use fender_config::snapshot::{Destination, Profile, Protocol, Snapshot};
use fender_identity::tls::TlsProfile;
use fender_identity::{Bundle, Bundles, Svid};
use fender_proxy::{Inputs, Limits, Proxy, Running, TracesFrom};
use fender_runtime::clock::{SharedClock, system};
use fender_runtime::drain::Drain;
use fender_runtime::lines::Lines;
use fender_runtime::listen::{ListenAddress, Listeners};
use rcgen::KeyPair;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};

use crate::harness::*;

const LIFETIME: u64 = 12;
const LASTS: Duration = Duration::from_secs(20);

struct Live {
    _snapshot: watch::Sender<Arc<Snapshot>>,
    _records: mpsc::Receiver<fender_proxy::Record>,
    svid: watch::Sender<Arc<Svid>>,
    running: Running,
}

fn start(bundles: &Arc<Bundles>, svid: Arc<Svid>, change: impl FnOnce(&mut Snapshot)) -> Live {
    let mut snapshot = Snapshot {
        version: 1,
        identity: Some(svid.id().clone()),
        profile: Profile::Development,
        trust: bundles.clone().into(),
        tls: TlsProfile::default(),
        inbound: vec![],
        outbound: vec![],
        policies: everybody(),
        credentials: vec![],
        drain: Duration::from_secs(5),
        max_age: None,
    };
    change(&mut snapshot);
    let (svid, svids) = watch::channel(svid);
    let (snapshot, snapshots) = watch::channel(Arc::new(snapshot));
    let (records, receiver) = mpsc::channel(8);
    let running = Proxy::start(Inputs {
        svid: svids,
        snapshot: snapshots,
        issued: watch::channel(Arc::default()).1,
        credentials: watch::channel(Arc::default()).1,
        challenges: Arc::default(),
        clock: system(),
        inbound: Drain::new(),
        outbound: Drain::new(),
        listeners: Listeners::none(),
        records,
        access: Lines::off(),
        traces: TracesFrom::Mesh,
        recording: None,
        limits: Limits::default(),
    })
    .unwrap();
    Live {
        _snapshot: snapshot,
        _records: receiver,
        svid,
        running,
    }
}

fn local(running: &Running) -> std::net::SocketAddr {
    match running.local_address(&listen()) {
        Some(ListenAddress::Tcp(address)) => address,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn renewals_under_load_fail_no_request() {
    let tasks = Drain::new();
    let clock: SharedClock = system();
    let now = move || clock.now().as_secs();
    let mut root = params(&[], now() - HOUR, now() + HOUR);
    root.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    root.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
    let key = KeyPair::generate().unwrap();
    let der = root.self_signed(&key).unwrap().der().clone();
    let mut bundles = Bundles::new();
    bundles.insert(Bundle::new("mesh.test".parse().unwrap(), vec![der]).unwrap());
    let bundles = Arc::new(bundles);
    let issue = |id: &str| {
        let issuer = rcgen::Issuer::from_params(&root, &key);
        let leaf = KeyPair::generate().unwrap();
        let params = params(&[id], now() - 60, now() + LIFETIME);
        let chain = vec![params.signed_by(&leaf, &issuer).unwrap().der().clone()];
        let key = rustls::pki_types::PrivatePkcs8KeyDer::from(leaf.serialize_der()).into();
        Leaf { chain, key }.svid()
    };

    let app = echo_app(&tasks).await;
    let server = start(&bundles, issue(ORDERS), |snapshot| {
        snapshot.inbound = vec![inbound(app, Protocol::Http)];
    });
    let address = HostPort::new("127.0.0.1", local(&server.running).port()).unwrap();
    let client = start(&bundles, issue(WEB), |snapshot| {
        let to = Destination::Service {
            id: id(ORDERS),
            addresses: vec![address],
            protocol: Protocol::Http,
        };
        snapshot.outbound = vec![outbound(to)];
    });
    let door = local(&client.running);

    let began = Instant::now();
    let (done, mut finished) = mpsc::channel::<usize>(64);
    for caller in 0..16 {
        let done = done.clone();
        tasks.spawn(async move {
            let mut requests = 0;
            let mut kept: Option<TcpStream> = None;
            while began.elapsed() < LASTS {
                let mut stream = match kept.take() {
                    Some(stream) => stream,
                    None => TcpStream::connect(door).await.unwrap(),
                };
                // Every fourth caller makes a new connection for each request.
                let request = if caller % 4 == 0 {
                    last_get("/load")
                } else {
                    get("/load")
                };
                stream.write_all(request.as_bytes()).await.unwrap();
                let (head, _) = response(&mut stream).await;
                assert!(head.starts_with("HTTP/1.1 200"), "{head}");
                requests += 1;
                if !head.contains("connection: close") {
                    kept = Some(stream);
                }
                // A pause moves the moments at which a connection is found idle.
                tokio::time::sleep(Duration::from_millis(caller)).await;
            }
            done.send(requests).await.unwrap();
        });
    }
    drop(done);
    let renew = async {
        let mut turn = tokio::time::interval(Duration::from_millis(LIFETIME * 500));
        turn.tick().await;
        loop {
            turn.tick().await;
            server.svid.send_replace(issue(ORDERS));
            client.svid.send_replace(issue(WEB));
        }
    };
    let mut callers = 0;
    let count = async {
        while let Some(requests) = finished.recv().await {
            assert!(requests > 10, "{requests}");
            callers += 1;
        }
    };
    tokio::select! {
        () = renew => {}
        () = count => {}
    }
    assert_eq!(callers, 16, "a caller failed");
}
