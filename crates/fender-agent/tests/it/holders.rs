//! The keys of local processes, and when they are taken away.

use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fender_agent::{Caller, Entitled, Holders, Issuer, Refused};
use fender_identity::{Bundles, SpiffeId, Svid, Trust};
use fender_runtime::clock::{SharedClock, TestClock, UnixTime};
use fender_runtime::drain::Drain;
use fender_runtime::listen::Socket;
use tokio::net::UnixListener;
use tokio::sync::watch;

use crate::harness::{Authority, NOW, ORDERS};

const WEB: &str = "spiffe://acme.test/ns/shop/sa/web";

/// Gives whoever asks what it is told to.
struct Given {
    authority: Authority,
    ids: Mutex<Result<Vec<&'static str>, Refused>>,
    asked: AtomicUsize,
    trust: watch::Sender<Trust>,
    changes: watch::Sender<u64>,
}

struct Handle(Arc<Given>);

impl Issuer for Handle {
    async fn issue(&self, _: &Caller, kept: &[Arc<Svid>]) -> Result<Vec<Arc<Svid>>, Refused> {
        let given = &self.0;
        given.asked.fetch_add(1, Ordering::SeqCst);
        let ids = given.ids.lock().unwrap().clone()?;
        let svid = |name: &&str| {
            let id: SpiffeId = name.parse().unwrap();
            let kept = kept.iter().find(|svid| *svid.id() == id).cloned();
            kept.unwrap_or_else(|| given.authority.svid(name))
        };
        Ok(ids.iter().map(svid).collect())
    }

    fn trust(&self) -> watch::Receiver<Trust> {
        self.0.trust.subscribe()
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.0.changes.subscribe()
    }
}

struct World {
    given: Arc<Given>,
    holders: Holders<Handle>,
    child: Child,
    caller: Caller,
}

impl World {
    /// A process that has called, and what it may be.
    async fn new() -> Self {
        let authority = Authority::new("acme.test");
        let trust = Trust::from(Bundles::from(authority.bundle()));
        let given = Arc::new(Given {
            authority,
            ids: Mutex::new(Ok(vec![ORDERS])),
            asked: AtomicUsize::new(0),
            trust: watch::Sender::new(trust),
            changes: watch::Sender::new(0),
        });
        let clock: SharedClock =
            TestClock::new(UnixTime::since_unix_epoch(Duration::from_secs(NOW)));
        let holders = Holders::new(Handle(Arc::clone(&given)), clock, Drain::new());
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let call = "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); sys.stdin.read()";
        let child = Command::new("python3")
            .args(["-c", call])
            .arg(&path)
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let socket = Socket::from(listener.accept().await.unwrap().0);
        let caller = Caller::of(&socket).unwrap();
        Self {
            given,
            holders,
            child,
            caller,
        }
    }

    async fn follow(&self) -> watch::Receiver<Arc<Entitled>> {
        self.holders.follow(&self.caller).await.unwrap()
    }

    fn changed(&self, ids: Result<Vec<&'static str>, Refused>) {
        *self.given.ids.lock().unwrap() = ids;
        self.given.changes.send_modify(|count| *count += 1);
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn names(entitled: &watch::Receiver<Arc<Entitled>>) -> Vec<String> {
    let svids = &entitled.borrow().svids;
    svids.iter().map(|svid| svid.id().to_string()).collect()
}

/// Until there is nothing more to come.
async fn ends(mut followed: watch::Receiver<Arc<Entitled>>) {
    while followed.changed().await.is_ok() {}
}

#[tokio::test]
async fn one_process_has_one_key_and_a_further_identity_takes_none_away() {
    let world = World::new().await;
    let (mut one, other) = (world.follow().await, world.follow().await);
    let first = one.borrow_and_update().svids[0].clone();
    assert!(Arc::ptr_eq(&first, &other.borrow().svids[0]));
    assert_eq!(world.given.asked.load(Ordering::SeqCst), 1);
    world.changed(Ok(vec![ORDERS, WEB]));
    one.changed().await.unwrap();
    assert_eq!(names(&one), [ORDERS, WEB]);
    assert!(
        Arc::ptr_eq(&first, &one.borrow().svids[0]),
        "it is good still"
    );
    world.changed(Ok(vec![WEB]));
    one.changed().await.unwrap();
    assert_eq!(names(&one), [WEB]);
}

#[tokio::test]
async fn attack_whoever_may_be_nobody_any_more_loses_its_keys_and_whoever_cannot_be_asked_keeps_them()
 {
    let world = World::new().await;
    let mut followed = world.follow().await;
    let away = Refused::Unavailable {
        why: "away".to_owned(),
    };
    world.changed(Err(away));
    while world.given.asked.load(Ordering::SeqCst) < 2 {
        tokio::task::yield_now().await;
    }
    assert!(!followed.has_changed().unwrap());
    let nobody = Refused::Nobody {
        why: "no document".to_owned(),
    };
    world.changed(Err(nobody.clone()));
    ends(followed.clone()).await;
    assert!(followed.changed().await.is_err());
    assert_eq!(
        world.holders.follow(&world.caller).await.unwrap_err(),
        nobody
    );
}

#[tokio::test]
async fn attack_a_revoked_certificate_ends_its_streams_and_the_next_one_has_another_key() {
    let world = World::new().await;
    let followed = world.follow().await;
    let revoked = followed.borrow().svids[0].clone();
    world.given.trust.send_modify(|trust| {
        Arc::make_mut(&mut trust.denied).deny_serial(revoked.serial().clone());
    });
    ends(followed).await;
    let again = world.follow().await;
    assert_ne!(again.borrow().svids[0].serial(), revoked.serial());
}

#[tokio::test]
async fn attack_a_process_that_has_ended_leaves_no_key_behind() {
    let mut world = World::new().await;
    let followed = world.follow().await;
    world.child.kill().unwrap();
    world.child.wait().unwrap();
    ends(followed).await;
}
