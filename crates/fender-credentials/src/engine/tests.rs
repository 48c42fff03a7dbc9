use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use fender_config::snapshot::{
    CredentialSource, FileDelivery, Lifetime, Notification, Origin, Snapshot, Storage, Target,
};
use fender_config::{Source, standalone};
use fender_identity::{Bundles, Secret};
use fender_providers::{FetchError, Fetched, Generation, State};
use futures_util::future::BoxFuture;
use tempfile::TempDir;
use tokio::time::Instant;

use super::*;
use crate::allow::AllowDirs;
use crate::notify::{NotTold, Record, Tell};
use crate::testing::Remote;

mod cached;
mod certificates;
mod hidden;
mod outages;
mod sets;
mod socket;

const MAX_STALE: Duration = Duration::from_secs(60);

/// Whoever is told: every time, and of what.
#[derive(Default)]
struct Told(Mutex<Vec<String>>);

impl Tell for Told {
    fn tell<'a>(
        &'a self,
        target: &'a Target,
        changed: &'a [ObjectName],
    ) -> BoxFuture<'a, Result<(), NotTold>> {
        let names: Vec<_> = changed.iter().map(ToString::to_string).collect();
        let told = format!("{target}: {}", names.join(" "));
        self.0.lock().unwrap().push(told);
        Box::pin(std::future::ready(Ok(())))
    }
}

struct Bench {
    directory: TempDir,
    told: Arc<Told>,
    remote: Arc<Remote>,
    snapshots: watch::Sender<Arc<Snapshot>>,
    drain: Drain,
    settings: Settings,
}

impl Bench {
    fn new() -> Self {
        let remote = Arc::new(Remote::default());
        let (drain, told) = (Drain::new(), Arc::new(Told::default()));
        let sources = Sources::new(
            AllowDirs::Any,
            fender_runtime::program::Runner::none(),
            fender_providers::environment::Environment::default(),
            remote.clone(),
            || false,
            fender_runtime::clock::system(),
            &drain,
        );
        Self {
            directory: tempfile::tempdir().unwrap(),
            remote,
            snapshots: watch::channel(Arc::new(snapshot(Vec::new()))).0,
            told: told.clone(),
            drain: drain.clone(),
            settings: Settings {
                notifier: Notifier::new(told, Record::open(None, "").unwrap(), &drain),
                sources,
                on_exit: watch::channel(OnExit::Wipe).1,
                handovers: None,
                hider: None,
                certificates: None,
            },
        }
    }

    fn path(&self, file: &str) -> PathBuf {
        self.directory.path().join(file)
    }

    fn spec(&self, name: &str, files: &[&str]) -> CredentialSpec {
        let deliver = files
            .iter()
            .map(|file| file_delivery(&self.path(file)))
            .collect();
        let name = ObjectName::new("shop", name).unwrap();
        CredentialSpec {
            name,
            source: CredentialSource::Control(Lifetime::Lasting),
            max_stale: MAX_STALE,
            deliver,
            notify: Vec::new(),
            on_exit: OnExit::Wipe,
        }
    }

    fn publish(&self, specs: Vec<CredentialSpec>) {
        self.snapshots.send_replace(Arc::new(snapshot(specs)));
    }

    async fn start(&self) -> Result<watch::Receiver<Holdings>, StartError> {
        let deadline = Deadline::after(Duration::from_secs(5));
        start(
            self.snapshots.subscribe(),
            self.settings.clone(),
            deadline,
            &self.drain,
        )
        .await
    }

    fn files(&self) -> Vec<(String, String)> {
        let mut files: Vec<_> = fs::read_dir(self.directory.path())
            .unwrap()
            .map(|entry| entry.unwrap())
            .filter(|entry| entry.file_type().unwrap().is_file())
            .filter_map(|entry| {
                let name = entry.file_name().into_string().unwrap();
                match fs::read_to_string(entry.path()) {
                    // The engine removes files meanwhile: this one is no longer there.
                    Err(error) if error.kind() == ErrorKind::NotFound => None,
                    text => Some((name, text.unwrap())),
                }
            })
            .collect();
        files.sort();
        files
    }

    #[track_caller]
    fn holds(&self, expected: &[(&str, &str)]) {
        let files = self.files();
        let files: Vec<_> = files
            .iter()
            .map(|(name, text)| (&**name, &**text))
            .collect();
        assert_eq!(files, expected);
    }

    async fn end(self) {
        self.drain.stop();
        self.drain.drained().await;
        self.holds(&[]);
    }
}

fn file_delivery(path: &Path) -> Delivery {
    let file = FileDelivery {
        path: path.to_owned(),
        mode: 0o400,
        owner: None,
        group: None,
        storage: Storage::Disk,
    };
    Delivery::File(file, Content::Value)
}

const SIDECAR: &str = "
apiVersion: fender.dev/v1
kind: Sidecar
metadata: { namespace: shop, name: orders }
spec:
  identity: { files: { certificate: /c.pem, key: /k.pem, bundle: /b.pem } }
";

fn snapshot(credentials: Vec<CredentialSpec>) -> Snapshot {
    let source = Source {
        name: "sidecar.yaml".to_owned(),
        text: SIDECAR.to_owned(),
    };
    let identity = "spiffe://mesh.test/ns/shop/sa/orders".parse().unwrap();
    let sidecar = standalone::parse(&[source]).unwrap();
    Snapshot {
        credentials,
        ..sidecar.snapshot(&identity, Bundles::default(), 1)
    }
}

fn fetched(text: &str) -> Fetched {
    Fetched {
        value: Secret::from(text.to_owned()),
        generation: Generation::named(text),
    }
}

fn current(text: &str) -> State {
    State::Current(fetched(text))
}

fn delivered(text: &str) -> Holding {
    Holding::Delivered(Generation::named(text))
}

/// Waits until the holding of `name` is what `expected` wants.
async fn holding(
    held: &mut watch::Receiver<Holdings>,
    name: &str,
    expected: impl Fn(Option<&Holding>) -> bool,
) {
    let name = ObjectName::new("shop", name).unwrap();
    let reached = held.wait_for(|holdings| expected(holdings.get(&name).map(|held| &held.holding)));
    if tokio::time::timeout(Duration::from_secs(3600), reached)
        .await
        .is_err()
    {
        panic!("never reached; instead: {:?}", held.borrow());
    }
}

#[tokio::test(start_paused = true)]
async fn a_new_value_reaches_every_place_and_is_reported() {
    let bench = Bench::new();
    bench.remote.says("db", current("one"));
    bench.publish(vec![bench.spec("db", &["a", "b"])]);
    let mut held = bench.start().await.unwrap();
    bench.holds(&[("a", "one"), ("b", "one")]);
    holding(&mut held, "db", |holding| {
        holding == Some(&delivered("one"))
    })
    .await;
    bench.remote.says("db", current("two"));
    holding(&mut held, "db", |holding| {
        holding == Some(&delivered("two"))
    })
    .await;
    bench.holds(&[("a", "two"), ("b", "two")]);
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_change_of_the_source_file_reaches_the_delivered_one_within_two_seconds() {
    let bench = Bench::new();
    let source = tempfile::tempdir().unwrap();
    let path = source.path().join("source");
    fs::write(&path, "one").unwrap();
    let from_file = CredentialSource::Direct(Origin::File { path: path.clone() });
    bench.publish(vec![CredentialSpec {
        source: from_file,
        ..bench.spec("db", &["a"])
    }]);
    let mut held = bench.start().await.unwrap();
    bench.holds(&[("a", "one")]);

    held.mark_unchanged();
    fs::write(&path, "two").unwrap();
    let changed = Instant::now();
    held.changed().await.unwrap();
    assert!(
        changed.elapsed() <= Duration::from_secs(1),
        "{:?}",
        changed.elapsed()
    );
    bench.holds(&[("a", "two")]);
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn who_is_told_hears_of_a_change_once_every_file_has_it_and_not_before() {
    let bench = Bench::new();
    let below = bench.path("dir");
    fs::create_dir(&below).unwrap();
    let mut spec = bench.spec("db", &["a", "dir/b"]);
    spec.notify = vec![Notification {
        target: Target::Restart,
        after: Duration::from_secs(1),
    }];
    bench.remote.says("db", current("one"));
    bench.publish(vec![spec]);
    let mut held = bench.start().await.unwrap();
    let told = || bench.told.0.lock().unwrap().clone();
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(told(), [""; 0], "the first value is no change");

    fs::rename(&below, bench.path("away")).unwrap();
    bench.remote.says("db", current("two"));
    let outdated = |holding: Option<&Holding>| matches!(holding, Some(Holding::Outdated { .. }));
    holding(&mut held, "db", outdated).await;
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(told(), [""; 0], "one file has it and one has not");
    fs::rename(bench.path("away"), &below).unwrap();
    holding(&mut held, "db", |holding| {
        holding == Some(&delivered("two"))
    })
    .await;
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(told(), ["restart of the application: shop/db"]);

    // The same bytes under another name, by a source that was asked anew.
    let again = Fetched {
        generation: Generation::named("again"),
        ..fetched("two")
    };
    bench.remote.says("db", State::Current(again));
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(told().len(), 1);
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn at_start_all_are_delivered_or_nothing_is() {
    let bench = Bench::new();
    bench.remote.says("good", current("one"));
    bench.remote.says("bad", current("two"));
    bench.publish(vec![
        bench.spec("good", &["a"]),
        bench.spec("bad", &["absent/b"]),
    ]);
    let error = bench.start().await.unwrap_err();
    assert_eq!(error.exit_code(), 64);
    assert!(error.to_string().contains("shop/bad"), "{error}");
    bench.holds(&[]);

    bench.publish(vec![bench.spec("good", &["a"]), bench.spec("late", &["b"])]);
    let error = bench.start().await.unwrap_err();
    assert_eq!(error.exit_code(), 75);
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_secret_that_cannot_be_written_is_tried_again_and_delays_no_other() {
    let bench = Bench::new();
    let below = bench.path("dir");
    fs::create_dir(&below).unwrap();
    bench.remote.says("stuck", current("one"));
    bench.remote.says("free", current("one"));
    bench.publish(vec![
        bench.spec("stuck", &["dir/a"]),
        bench.spec("free", &["b"]),
    ]);
    let began = Instant::now();
    let mut held = bench.start().await.unwrap();
    tokio::time::advance(Duration::from_secs(1)).await;

    fs::rename(&below, bench.path("away")).unwrap();
    bench.remote.says("stuck", current("two"));
    bench.remote.says("free", current("two"));
    holding(&mut held, "free", |holding| {
        holding == Some(&delivered("two"))
    })
    .await;
    let outdated = |holding: Option<&Holding>| matches!(holding, Some(Holding::Outdated { .. }));
    holding(&mut held, "stuck", outdated).await;
    let known = |held: &watch::Receiver<Holdings>, name: &str| {
        let name = ObjectName::new("shop", name).unwrap();
        held.borrow().get(&name).unwrap().clone()
    };
    // It is known that there is a newer one, and since when the old one is there stays.
    let stuck = known(&held, "stuck");
    assert_eq!(stuck.newer, Some(Generation::named("two")));
    assert_eq!(stuck.since, Some(began));
    assert_eq!(known(&held, "free").newer, None);
    fs::rename(bench.path("away"), &below).unwrap();
    holding(&mut held, "stuck", |holding| {
        holding == Some(&delivered("two"))
    })
    .await;
    let stuck = known(&held, "stuck");
    assert_eq!(stuck.newer, None);
    assert!(stuck.since > Some(began), "{stuck:?}");
    assert_eq!(fs::read_to_string(below.join("a")).unwrap(), "two");
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_adds_moves_and_drops_credentials() {
    let bench = Bench::new();
    bench.remote.says("db", current("db"));
    bench.remote.says("mail", current("mail"));
    bench.publish(vec![bench.spec("db", &["a"])]);
    let mut held = bench.start().await.unwrap();

    bench.publish(vec![
        bench.spec("db", &["moved"]),
        bench.spec("mail", &["m"]),
    ]);
    holding(&mut held, "mail", |holding| {
        holding == Some(&delivered("mail"))
    })
    .await;
    while bench.files().len() != 2 || bench.path("a").exists() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    bench.holds(&[("m", "mail"), ("moved", "db")]);

    bench.publish(vec![bench.spec("mail", &["m"])]);
    holding(&mut held, "db", |holding| holding.is_none()).await;
    bench.holds(&[("m", "mail")]);
    bench.publish(vec![
        bench.spec("mail", &["m"]),
        bench.spec("db", &["back"]),
    ]);
    holding(&mut held, "db", |holding| holding == Some(&delivered("db"))).await;
    bench.holds(&[("back", "db"), ("m", "mail")]);
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_document_that_may_not_be_followed_ends_the_source_of_the_one_before() {
    let mut bench = Bench::new();
    bench.settings.sources.allow = AllowDirs::Below(vec![bench.directory.path().to_owned()]);
    bench.remote.says("db", current("one"));
    bench.publish(vec![bench.spec("db", &["a"])]);
    let mut held = bench.start().await.unwrap();

    let elsewhere = CredentialSource::Direct(Origin::File {
        path: "/etc/hostname".into(),
    });
    bench.publish(vec![CredentialSpec {
        source: elsewhere,
        ..bench.spec("db", &["b"])
    }]);
    let outdated = |holding: Option<&Holding>| matches!(holding, Some(Holding::Outdated { .. }));
    holding(&mut held, "db", outdated).await;
    bench.remote.says("db", current("two"));
    tokio::time::sleep(Duration::from_secs(5)).await;
    bench.holds(&[("a", "one")]);
    holding(&mut held, "db", outdated).await;
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn files_are_kept_at_the_end_if_that_is_asked_for() {
    let mut bench = Bench::new();
    let (decide, on_exit) = watch::channel(OnExit::Wipe);
    bench.settings.on_exit = on_exit;
    bench.remote.says("db", current("one"));
    bench.publish(vec![bench.spec("db", &["a"])]);
    bench.start().await.unwrap();
    // Also if that is known only then, as of a process that got a successor.
    decide.send_replace(OnExit::Keep);
    bench.drain.stop();
    bench.drain.drained().await;
    bench.holds(&[("a", "one")]);
}

#[tokio::test(start_paused = true)]
async fn a_feed_that_ends_takes_nothing_away() {
    let bench = Bench::new();
    bench.remote.says("db", current("one"));
    bench.publish(vec![bench.spec("db", &["a"])]);
    let Bench {
        snapshots,
        remote,
        drain,
        directory,
        settings,
        told: _,
    } = bench;
    let deadline = Deadline::after(Duration::from_secs(5));
    let _held = start(snapshots.subscribe(), settings, deadline, &drain)
        .await
        .unwrap();
    drop(snapshots);
    remote.ends();
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(
        fs::read_to_string(directory.path().join("a")).unwrap(),
        "one"
    );
    drain.stop();
    drain.drained().await;
    assert!(!directory.path().join("a").exists());
}

#[tokio::test(start_paused = true)]
async fn a_credential_for_the_environment_is_left_to_exec() {
    let bench = Bench::new();
    let deliver = vec![Delivery::Environment {
        variable: "PASSWORD".to_owned(),
    }];
    bench.publish(vec![CredentialSpec {
        deliver,
        ..bench.spec("db", &[])
    }]);
    let held = bench.start().await.unwrap();
    assert!(held.borrow().is_empty());
    bench.end().await;
}
