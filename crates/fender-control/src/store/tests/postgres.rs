//! What only a server can do to its clients: serve several, break off, be cut off in the middle of a commit.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, Weak};

use fender_tests::postgres::{Durability, Postgres as Process};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::store::place::Postgres;
use crate::store::tokens::{Create, Spend, Spent, Worthless};

/// One server for all tests that run at the same time.
pub(super) struct Server(Process);

impl Server {
    pub(super) fn shared() -> Arc<Self> {
        static RUNNING: OnceLock<Mutex<Weak<Server>>> = OnceLock::new();
        let mut running = RUNNING.get_or_init(Mutex::default).lock().unwrap();
        if let Some(server) = running.upgrade() {
            return server;
        }
        let server = Arc::new(Self(Process::start(Durability::None)));
        *running = Arc::downgrade(&server);
        server
    }

    /// A fresh one, by name.
    pub(super) fn database(&self) -> String {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("t{}", NEXT.fetch_add(1, Ordering::Relaxed));
        self.0.sql("postgres", &format!("CREATE DATABASE {name}"));
        name
    }

    pub(super) async fn store(&self, database: &str, drain: &Drain) -> Store {
        at_url(self.0.url(database), drain).await
    }
}

async fn at_url(url: String, drain: &Drain) -> Store {
    let server = Postgres {
        url,
        password_file: None,
        roots: None,
        certificate: None,
    };
    Store::connect(&server.access().unwrap(), drain)
        .await
        .unwrap()
}

fn token(hash: u8) -> Create {
    Create {
        secret_sha256: [hash; 32],
        identity: "spiffe://acme.test/ns/shop/sa/orders".parse().unwrap(),
        by: "spiffe://acme.test/fender/admin/first".parse().unwrap(),
        through: None,
        at: at(1),
        expires: at(100),
        entry: entry("token"),
    }
}

fn entry(subject: &str) -> Entry {
    Entry {
        time: at(1),
        actor: "spiffe://acme.test/fender/admin/first".parse().unwrap(),
        action: Action::CreateToken,
        subject: subject.to_owned(),
        outcome: Outcome::Done,
        detail: String::new(),
    }
}

fn spend(hash: u8, serial: u64) -> Spend {
    let mut certificate = certificate(serial, 100);
    certificate.key_sha256 = [u8::try_from(serial % 251).unwrap(); 32];
    Spend {
        secret_sha256: [hash; 32],
        certificate,
        at: at(2),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attack_a_token_shown_to_three_replicas_at_once_buys_one_certificate() {
    let (server, drain) = (Server::shared(), Drain::new());
    let database = server.database();
    let mut replicas = Vec::new();
    for _ in 0..3 {
        replicas.push(server.store(&database, &drain).await);
    }
    with_authority(&replicas[0]).await;
    let mut thieves = tokio::task::JoinSet::new();
    for hash in 0..20 {
        replicas[0].write(token(hash)).await.unwrap();
    }
    for hash in 0..20_u8 {
        for (thief, replica) in replicas.iter().cloned().enumerate() {
            let serial = 1000 + u64::from(hash) * 3 + thief as u64;
            thieves.spawn(async move { replica.write(spend(hash, serial)).await.unwrap() });
        }
    }
    let (mut bought, mut refused) = (0, 0);
    while let Some(spent) = thieves.join_next().await {
        match spent.unwrap() {
            Spent::Now => bought += 1,
            Spent::Refused(Worthless::Spent) => refused += 1,
            other @ (Spent::Before(_) | Spent::Refused(_)) => panic!("{other:?}"),
        }
    }
    assert_eq!((bought, refused), (20, 40));
    let recorded = "SELECT count(*) AS n FROM certificates";
    assert_eq!(count(&replicas[1], recorded).await, 20);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_write_one_unbroken_chain() {
    let (server, drain) = (Server::shared(), Drain::new());
    let database = server.database();
    let mut writers = tokio::task::JoinSet::new();
    for replica in 0..3 {
        let store = server.store(&database, &drain).await;
        writers.spawn(async move {
            for call in 0..30 {
                let entry = entry(&format!("{replica} {call}"));
                store.write(audit::Append(entry)).await.unwrap();
            }
        });
    }
    while let Some(written) = writers.join_next().await {
        written.unwrap();
    }
    let store = server.store(&database, &drain).await;
    let chain = audit::verify(store.reader()).await.unwrap();
    assert!(
        matches!(chain, Chain::Whole { entries: 90, .. }),
        "{chain:?}"
    );
}

/// Has the server break off the connection that makes it, the first time.
struct BreaksOff {
    runs: Arc<AtomicUsize>,
}

impl Command for BreaksOff {
    type Output = usize;

    async fn run(&self, db: &mut Connection) -> Result<usize, StoreError> {
        let run = self.runs.fetch_add(1, Ordering::Relaxed) + 1;
        if run == 1 {
            query("SELECT pg_terminate_backend(pg_backend_pid())")
                .execute(db)
                .await?;
        }
        Ok(run)
    }
}

#[tokio::test]
async fn a_connection_lost_before_the_commit_is_made_good_without_anybody_noticing() {
    let (server, drain) = (Server::shared(), Drain::new());
    let store = server.store(&server.database(), &drain).await;
    let note = |id| Note {
        id,
        then: Then::Well,
    };
    let runs = Arc::default();
    let (before, broken, after) = tokio::join!(
        store.write(note(1)),
        store.write(BreaksOff { runs }),
        store.write(note(2)),
    );
    assert_eq!(
        (before.unwrap(), broken.unwrap(), after.unwrap()),
        (1, 2, 2)
    );
    assert_eq!(
        count(&store, "SELECT count(*) AS n FROM decisions").await,
        2
    );
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Cut {
    /// The server never hears of the commit.
    Before,
    /// It commits, and its answer is lost.
    After,
}

/// Between a store and its server; breaks off the first commit once it is armed.
async fn cutter(
    server: std::net::SocketAddr,
    cut: Cut,
    armed: Arc<AtomicBool>,
    drain: &Drain,
) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let connections = drain.clone();
    drain.spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let server = TcpStream::connect(server).await.unwrap();
            connections.spawn(between(client, server, cut, Arc::clone(&armed)));
        }
    });
    port
}

async fn between(client: TcpStream, server: TcpStream, cut: Cut, armed: Arc<AtomicBool>) {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let forth = async {
        let mut bytes = vec![0; 64 * 1024];
        while let Ok(length @ 1..) = from_client.read(&mut bytes).await {
            let commit = bytes[..length].windows(7).any(|word| word == b"COMMIT\0");
            if commit && armed.swap(false, Ordering::SeqCst) {
                return bytes[..length].to_vec();
            }
            to_server.write_all(&bytes[..length]).await.unwrap();
        }
        Vec::new()
    };
    let commit = tokio::select! {
        commit = forth => commit,
        _ = tokio::io::copy(&mut from_server, &mut to_client) => return,
    };
    if cut == Cut::After {
        to_server.write_all(&commit).await.unwrap();
        to_server.shutdown().await.unwrap();
        // It answers and hangs up: by then it has committed.
        let mut answer = Vec::new();
        from_server.read_to_end(&mut answer).await.unwrap();
    }
}

async fn cut_off_in_a_commit(cut: Cut) {
    let (server, drain) = (Server::shared(), Drain::new());
    let database = server.database();
    let armed = Arc::new(AtomicBool::new(false));
    let port = cutter(server.0.address(), cut, Arc::clone(&armed), &drain).await;
    let store = at_url(
        format!("postgres://fender@127.0.0.1:{port}/{database}"),
        &drain,
    )
    .await;
    with_authority(&store).await;
    store.write(token(1)).await.unwrap();
    armed.store(true, Ordering::SeqCst);
    let (spent, audited) = tokio::join!(
        store.write(spend(1, 7)),
        store.write(audit::Append(entry("cut"))),
    );
    assert!(!armed.load(Ordering::SeqCst), "the commit was cut off");
    assert!(matches!(spent, Ok(Spent::Now)), "{spent:?}");
    audited.unwrap();
    assert_eq!(
        count(&store, "SELECT count(*) AS n FROM certificates").await,
        1
    );
    let told = "SELECT count(*) AS n FROM audit WHERE subject = 'cut'";
    assert_eq!(count(&store, told).await, 1, "neither lost nor made twice");
}

#[tokio::test]
async fn a_commit_the_server_never_heard_of_is_made_again() {
    cut_off_in_a_commit(Cut::Before).await;
}

#[tokio::test]
async fn a_commit_whose_answer_was_lost_is_found_out_and_not_made_twice() {
    cut_off_in_a_commit(Cut::After).await;
}

#[tokio::test]
async fn a_change_on_one_replica_wakes_the_others_also_when_nobody_can_listen() {
    let (server, drain) = (Server::shared(), Drain::new());
    let database = server.database();
    let (here, there) = (
        server.store(&database, &drain).await,
        server.store(&database, &drain).await,
    );
    let mut changes = there.reads().changes(Topic::Authorities);
    with_authority(&here).await;
    let woken = changes.wait_for(|number| *number == 1);
    tokio::time::timeout(Duration::from_secs(60), woken)
        .await
        .expect("woken by the other replica")
        .unwrap();

    server.0.sql(
        &database,
        "DO $$ BEGIN PERFORM pg_terminate_backend(pid) FROM pg_stat_activity \
         WHERE datname = current_database() AND query LIKE 'LISTEN%'; END $$",
    );
    let nothing = authorities::Succeed {
        known_roots: std::iter::once("01".parse().unwrap()).collect(),
        rows: Vec::new(),
        entry: None,
    };
    here.write(nothing).await.unwrap();
    let woken = changes.wait_for(|number| *number == 2);
    tokio::time::timeout(Duration::from_secs(60), woken)
        .await
        .expect("found by looking")
        .unwrap();
}
