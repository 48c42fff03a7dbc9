//! The keys of local processes, and when they are taken away.

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fender_agent::{Caller, Entitled, Holders, Issuer, Refused};
use fender_identity::{Bundles, SpiffeId, Svid, Trust};
use fender_runtime::clock::{SharedClock, TestClock, UnixTime};
use fender_runtime::drain::Drain;
use fender_runtime::listen::Socket;
use tempfile::TempDir;
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
    async fn issue(
        &self,
        _: &Caller,
        kept: Option<&[Arc<Svid>]>,
    ) -> Result<Vec<Arc<Svid>>, Refused> {
        let kept = kept.unwrap_or_default();
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
    listener: UnixListener,
    _directory: TempDir,
}

/// Connects; and once more as another program, and by another user if its input says so.
const CALL: &str = r#"
import os, socket, sys
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
what = os.read(0, 1)
if what == b"u":
    os.setgroups([])
    os.setgid(1000)
    os.setuid(1000)
if what:
    again = "use IO::Socket::UNIX; $s = IO::Socket::UNIX->new($ARGV[0]) or die; <STDIN>"
    os.execvp("perl", ["perl", "-e", again, sys.argv[1]])
"#;

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
        for (path, mode) in [(directory.path(), 0o755), (&path, 0o666)] {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        }
        let child = Command::new("python3")
            .args(["-c", CALL])
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
            listener,
            _directory: directory,
        }
    }

    /// The same process connects once more, as what it became.
    async fn becomes(&mut self, what: &[u8]) -> Caller {
        let input = self.child.stdin.as_mut().unwrap();
        input.write_all(what).unwrap();
        let accepted = tokio::time::timeout(Duration::from_secs(60), self.listener.accept()).await;
        let socket = Socket::from(accepted.unwrap().unwrap().0);
        let caller = Caller::of(&socket).unwrap();
        assert_eq!(caller.pid, self.caller.pid);
        caller
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

#[tokio::test]
async fn attack_what_a_process_becomes_does_not_inherit_the_key_of_what_it_was() {
    // An entry point that runs as root, and then the application as another user; or another program as the same one.
    for what in [b"u", b"p"] {
        let mut world = World::new().await;
        let before = world.follow().await;
        let old = before.borrow().svids[0].clone();
        let became = world.becomes(what).await;
        let after = world.holders.follow(&became).await.unwrap();
        assert_ne!(after.borrow().svids[0].serial(), old.serial());
        assert_eq!(world.given.asked.load(Ordering::SeqCst), 2);
        ends(before).await;
        // Nor by a connection that was opened before, and that takes nothing from what it is now.
        let by_the_old = world.holders.follow(&world.caller).await;
        assert!(matches!(by_the_old, Err(Refused::Nobody { .. })));
        let again = world.holders.follow(&became).await.unwrap();
        let (after, again) = (after.borrow(), again.borrow());
        assert!(Arc::ptr_eq(&after.svids[0], &again.svids[0]));
    }
}

#[tokio::test]
async fn attack_a_connection_from_before_brings_no_key_even_if_nobody_connected_since() {
    let mut world = World::new().await;
    let before = world.follow().await;
    world.becomes(b"u").await;
    let by_the_old = world.holders.follow(&world.caller).await;
    assert!(matches!(by_the_old, Err(Refused::Nobody { .. })));
    ends(before).await;
}
