use std::path::Path;
use std::time::Duration;

use fender_config::snapshot::{Lifetime, Notification, OnExit, Origin, Target};
use fender_config::{Source, standalone};
use fender_providers::{FetchError, Generation};
use fender_runtime::clock::{TestClock, UnixTime};
use fender_runtime::deadline::Deadline;
use futures_util::future::BoxFuture;
use tokio::sync::mpsc;

use super::*;
use crate::allow::AllowDirs;
use crate::cache::{Cache, KeyPlace, Owner};
use crate::notify::{NotTold, Record, Tell};
use crate::sources::gather;
use crate::testing::{Remote, logged, remember_log};

/// A value, under a name that none had before.
fn current(text: &str) -> State {
    State::Current(Fetched {
        value: Secret::from(text.to_owned()),
        generation: Generation::random(),
    })
}

fn sources(remote: &Arc<Remote>, drain: &Drain) -> Sources {
    Sources::new(
        AllowDirs::none(),
        fender_runtime::program::Runner::none(),
        fender_providers::environment::Environment::default(),
        remote.clone(),
        || false,
        fender_runtime::clock::system(),
        drain,
    )
}

/// Whoever is told, and says of what.
struct Told(mpsc::UnboundedSender<String>);

impl Tell for Told {
    fn tell<'a>(
        &'a self,
        target: &'a Target,
        changed: &'a [ObjectName],
    ) -> BoxFuture<'a, Result<(), NotTold>> {
        let names: Vec<_> = changed.iter().map(ObjectName::name).collect();
        let _ = self.0.send(format!("{target}: {}", names.join(" ")));
        Box::pin(std::future::ready(Ok(())))
    }
}

struct Bench {
    remote: Arc<Remote>,
    snapshots: watch::Sender<Arc<Snapshot>>,
    drain: Drain,
    kept: Kept,
    told: mpsc::UnboundedReceiver<String>,
}

impl Bench {
    /// With these credentials, each with its variable and its first value.
    async fn new(credentials: &[(&str, &str, &str)]) -> Self {
        Self::with(credentials, |sources| sources).await
    }

    /// From sources that are not quite the usual ones.
    async fn with(
        credentials: &[(&str, &str, &str)],
        prepare: impl FnOnce(Sources) -> Sources,
    ) -> Self {
        let remote = Arc::new(Remote::default());
        let drain = Drain::new();
        let (tell, told) = mpsc::unbounded_channel();
        for (name, _, value) in credentials {
            remote.says(name, current(value));
        }
        let specs: Vec<_> = credentials
            .iter()
            .map(|(name, variable, _)| spec(name, variable))
            .collect();
        let settings = Keep {
            sources: prepare(sources(&remote, &drain)),
            notifier: Notifier::new(
                Arc::new(Told(tell)),
                Record::open(None, "").unwrap(),
                &drain,
            ),
            inherited: vec![
                ("HOME".into(), "/".into()),
                ("FENDER_X".into(), "no".into()),
            ],
            masks: None,
        };
        let soon = Deadline::after(Duration::from_secs(5));
        let gathered = gather(&specs, &settings.sources, soon, &drain)
            .await
            .unwrap();
        let (snapshots, followed) = watch::channel(Arc::new(snapshot(specs)));
        let kept = keep(gathered, followed, settings, &drain).unwrap();
        Self {
            remote,
            snapshots,
            drain,
            kept,
            told,
        }
    }

    fn shown(&self) -> String {
        match &*self.kept.environment.borrow() {
            Some(environment) => shown(environment),
            None => "nothing".to_owned(),
        }
    }

    /// Waits until the environment is this.
    async fn becomes(&mut self, expected: &str) {
        let is = |environment: &Option<Arc<AppEnvironment>>| match environment {
            Some(environment) => shown(environment) == expected,
            None => expected == "nothing",
        };
        self.kept.environment.wait_for(is).await.unwrap();
    }

    /// Waits until this is what is held of a credential.
    async fn holds(&mut self, name: &str, state: impl Fn(&Holding) -> bool) {
        let name = ObjectName::new("shop", name).unwrap();
        let is = |holdings: &Holdings| holdings.get(&name).is_some_and(|it| state(&it.holding));
        self.kept.holdings.wait_for(is).await.unwrap();
    }

    async fn end(mut self) {
        self.drain.stop();
        self.drain.drained().await;
        assert!(self.told.try_recv().is_err(), "nobody else is told");
    }
}

fn shown(environment: &AppEnvironment) -> String {
    let variables = environment.variables().iter();
    let shown = variables.map(|(name, value)| format!("{}={}", name.display(), value.display()));
    shown.collect::<Vec<_>>().join(" ")
}

fn spec(name: &str, variable: &str) -> CredentialSpec {
    CredentialSpec {
        name: ObjectName::new("shop", name).unwrap(),
        source: CredentialSource::Control(Lifetime::Lasting),
        max_stale: Duration::from_secs(60),
        deliver: vec![Delivery::Environment {
            variable: variable.to_owned(),
        }],
        notify: vec![Notification {
            target: Target::Restart,
            after: Duration::from_secs(1),
        }],
        on_exit: OnExit::Wipe,
    }
}

fn snapshot(credentials: Vec<CredentialSpec>) -> Snapshot {
    let text = "apiVersion: fender.dev/v1\nkind: Sidecar\nmetadata: { namespace: shop, name: job }\nspec: { credentials: [] }\n";
    let source = Source {
        name: "sidecar.yaml".to_owned(),
        text: text.to_owned(),
    };
    Snapshot {
        credentials,
        ..standalone::parse(&[source]).unwrap().nameless_snapshot(1)
    }
}

#[tokio::test(start_paused = true)]
async fn a_new_value_is_in_the_environment_before_anybody_is_told_and_once() {
    let mut bench = Bench::new(&[("a", "A", "one"), ("b", "B", "two")]).await;
    assert_eq!(bench.shown(), "HOME=/ A=one B=two");
    bench.remote.says("a", current("three"));
    let told = bench.told.recv().await.unwrap();
    assert_eq!(told, "restart of the application: a");
    assert_eq!(bench.shown(), "HOME=/ A=three B=two");
    // The same bytes under another name are no news to the application.
    let before = bench.kept.environment.borrow().clone();
    bench.remote.says("a", current("three"));
    bench.remote.says("b", current("four"));
    bench.becomes("HOME=/ A=three B=four").await;
    assert_eq!(
        bench.told.recv().await.unwrap(),
        "restart of the application: b"
    );
    bench.remote.says("b", current("four"));
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(before.is_some());
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn the_same_bytes_are_the_same_environment() {
    let mut bench = Bench::new(&[("a", "A", "one")]).await;
    let before = bench.kept.environment.borrow_and_update().clone().unwrap();
    bench.remote.says("a", current("one"));
    bench
        .holds("a", |holding| matches!(holding, Holding::Delivered(_)))
        .await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    let after = bench.kept.environment.borrow().clone().unwrap();
    assert!(Arc::ptr_eq(&before, &after));
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn an_outage_changes_nothing_and_a_withdrawn_value_lets_nothing_start_before_it_is_back() {
    let mut bench = Bench::new(&[("a", "A", "one"), ("b", "B", "two")]).await;
    bench.remote.says("a", away(bench.remote.said("a")));
    bench
        .holds("a", |holding| matches!(holding, Holding::Outdated { .. }))
        .await;
    assert_eq!(bench.shown(), "HOME=/ A=one B=two");

    let gone = FetchError::Missing("gone".to_owned());
    bench.remote.says("a", State::Withdrawn(gone));
    bench.becomes("nothing").await;
    // Of what changes meanwhile it is told when there is something to start with.
    bench.remote.says("b", current("three"));
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(bench.told.try_recv().is_err());
    assert_eq!(bench.shown(), "nothing");
    bench.remote.says("a", current("one"));
    bench.becomes("HOME=/ A=one B=three").await;
    assert_eq!(
        bench.told.recv().await.unwrap(),
        "restart of the application: b"
    );
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn attack_a_value_that_fits_no_environment_does_not_get_into_one() {
    let mut bench = Bench::new(&[("a", "A", "one")]).await;
    bench
        .remote
        .says("a", current("hunter2\0LD_PRELOAD=/evil.so"));
    bench
        .holds(
            "a",
            |holding| matches!(holding, Holding::Outdated { why, .. } if !why.contains("hunter2")),
        )
        .await;
    assert_eq!(bench.shown(), "HOME=/ A=one");
    bench.remote.says("a", current("two"));
    bench.becomes("HOME=/ A=two").await;
    assert_eq!(
        bench.told.recv().await.unwrap(),
        "restart of the application: a"
    );
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn documents_are_followed_unless_their_environment_cannot_be() {
    let mut bench = Bench::new(&[("a", "A", "one"), ("b", "B", "two")]).await;
    // Code, and twice the same.
    for wrong in [
        vec![spec("a", "A"), spec("b", "LD_PRELOAD")],
        vec![spec("a", "A"), spec("b", "A")],
    ] {
        bench.snapshots.send_replace(Arc::new(snapshot(wrong)));
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(bench.shown(), "HOME=/ A=one B=two");
    }
    bench.remote.says("c", current("three"));
    let specs = vec![spec("a", "RENAMED"), spec("c", "C")];
    bench.snapshots.send_replace(Arc::new(snapshot(specs)));
    bench.becomes("HOME=/ C=three RENAMED=one").await;
    assert_eq!(bench.kept.holdings.borrow().len(), 2);
    bench.remote.says("c", current("four"));
    bench.becomes("HOME=/ C=four RENAMED=one").await;
    assert_eq!(
        bench.told.recv().await.unwrap(),
        "restart of the application: c"
    );
    bench.end().await;
}

/// A value that is known, from a source that does not answer any more.
fn away(last: State) -> State {
    State::Stale {
        last: last.value().cloned(),
        error: FetchError::Outage("away".to_owned()),
        since: None,
    }
}

#[tokio::test(start_paused = true)]
async fn what_becomes_older_than_max_stale_and_what_is_the_newest_again_is_said_once() {
    remember_log();
    let mut bench = Bench::new(&[("env-aged", "A", "one"), ("b", "B", "two")]).await;
    let lines = |said| logged("shop/env-aged", said).len();
    let last = bench.remote.said("env-aged");
    bench.remote.says("env-aged", away(last.clone()));
    let is_outdated = |holding: &Holding| matches!(holding, Holding::Outdated { .. });
    let is_delivered = |holding: &Holding| matches!(holding, Holding::Delivered(_));
    bench.holds("env-aged", is_outdated).await;
    bench.remote.says("env-aged", last.clone());
    bench.holds("env-aged", is_delivered).await;
    assert_eq!(lines("is the newest again"), 1);
    bench.remote.says("env-aged", away(last));
    bench.holds("env-aged", is_outdated).await;
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(lines("is older than its `maxStale` by now"), 1);
    bench.remote.says("env-aged", current("three"));
    bench.holds("env-aged", is_delivered).await;
    assert_eq!(lines("is the newest again, and was older"), 1);
    let told = bench.told.recv().await;
    assert_eq!(told.unwrap(), "restart of the application: env-aged");
    bench.end().await;
}

/// Nothing else has changed: the source is the same, and what there is of it is counted from when it was the newest.
#[tokio::test(start_paused = true)]
async fn another_max_stale_alone_is_followed() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("secret");
    std::fs::write(&file, "one").unwrap();
    let from_file = |seconds: u64| CredentialSpec {
        source: CredentialSource::Direct(Origin::File { path: file.clone() }),
        max_stale: Duration::from_secs(seconds),
        ..spec("a", "A")
    };
    let anywhere = |mut sources: Sources| {
        sources.allow = AllowDirs::Any;
        sources
    };
    let mut bench = Bench::with(&[("a", "A", "one")], anywhere).await;
    let publish = |bench: &Bench, seconds| {
        let specs = vec![from_file(seconds)];
        bench.snapshots.send_replace(Arc::new(snapshot(specs)));
    };
    publish(&bench, 60);
    tokio::time::sleep(Duration::from_secs(5)).await;
    bench
        .holds("a", |holding| matches!(holding, Holding::Delivered(_)))
        .await;
    // What is no secret is no reason to take away what there is.
    std::fs::write(&file, "").unwrap();
    let is_outdated = |seconds: u64| move |holding: &Holding| matches!(holding, Holding::Outdated { since, too_old, .. } if *too_old == since.checked_add(Duration::from_secs(seconds)));
    bench.holds("a", is_outdated(60)).await;
    publish(&bench, 600);
    bench.holds("a", is_outdated(600)).await;
    assert_eq!(bench.shown(), "HOME=/ A=one");
    std::fs::write(&file, "one").unwrap();
    bench
        .holds("a", |holding| matches!(holding, Holding::Delivered(_)))
        .await;
    assert_eq!(bench.shown(), "HOME=/ A=one");
    bench.end().await;
}

/// The same with a cache in this directory; the wall clock stands at the beginning of time.
fn kept_in(directory: &Path, sources: Sources) -> Sources {
    let keys = directory.join("keys");
    std::fs::create_dir_all(&keys).unwrap();
    let key = KeyPlace::File(keys.join("key"));
    let cache = Cache::open(&directory.join("cache"), &key).unwrap();
    let owner = Owner::Sidecar(ObjectName::new("shop", "job").unwrap());
    let mut sources = sources.kept_in(Some(cache.of(&owner)));
    sources.clock = TestClock::new(UnixTime::since_unix_epoch(Duration::ZERO));
    sources
}

/// What a start during an outage has of `a`, or the code that it ends with.
async fn start_in_an_outage(directory: &Path) -> Result<String, u8> {
    let (remote, drain) = (Arc::new(Remote::default()), Drain::new());
    remote.says(
        "a",
        State::Stale {
            last: None,
            error: FetchError::Outage("away".to_owned()),
            since: None,
        },
    );
    let sources = kept_in(directory, sources(&remote, &drain));
    let soon = Deadline::after(Duration::from_secs(5));
    let gathered = gather(&[spec("a", "A")], &sources, soon, &drain).await;
    let value = |gathered: &Gathered| gathered.fetched.value.expose_str().unwrap().to_owned();
    let had = gathered
        .map(|gathered| value(&gathered[0]))
        .map_err(|error| error.exit_code());
    drain.stop();
    drain.drained().await;
    had
}

#[tokio::test(start_paused = true)]
async fn documents_whose_environment_cannot_be_leave_those_before_in_the_cache() {
    let directory = tempfile::tempdir().unwrap();
    let kept = |sources| kept_in(directory.path(), sources);
    let mut bench = Bench::with(&[("a", "A", "one")], kept).await;
    // Without it, and with what may not be.
    let wrong = vec![spec("b", "LD_PRELOAD")];
    bench.snapshots.send_replace(Arc::new(snapshot(wrong)));
    tokio::time::sleep(Duration::from_secs(1)).await;
    let again = vec![spec("a", "A"), spec("c", "C")];
    bench.remote.says("c", current("three"));
    bench.snapshots.send_replace(Arc::new(snapshot(again)));
    bench.becomes("HOME=/ A=one C=three").await;
    bench.remote.says("a", current("two"));
    bench.becomes("HOME=/ A=two C=three").await;
    let told = bench.told.recv().await;
    assert_eq!(told.unwrap(), "restart of the application: a");
    bench.end().await;
    let had = start_in_an_outage(directory.path()).await;
    assert_eq!(had, Ok("two".to_owned()));
}

/// The one before is about to write when another document comes: with a source that may not be asked, or for nobody here.
#[tokio::test(start_paused = true)]
async fn attack_who_followed_a_credential_before_its_document_changed_keeps_nothing_of_it() {
    let elsewhere = CredentialSpec {
        source: CredentialSource::Direct(Origin::File {
            path: "/etc/hostname".into(),
        }),
        ..spec("a", "A")
    };
    let of_nobody = CredentialSpec {
        deliver: Vec::new(),
        ..spec("a", "A")
    };
    for changed in [elsewhere, of_nobody] {
        let directory = tempfile::tempdir().unwrap();
        let mut cache = None;
        let kept = |sources| {
            let sources = kept_in(directory.path(), sources);
            cache.clone_from(&sources.cache);
            sources
        };
        let mut bench = Bench::with(&[("a", "A", "one"), ("b", "B", "two")], kept).await;
        let cache = cache.unwrap();
        let writers = cache.nobody_writes().await;
        bench.remote.says("a", current("three"));
        bench.becomes("HOME=/ A=three B=two").await;
        let told = bench.told.recv().await;
        assert_eq!(told.unwrap(), "restart of the application: a");
        let documents = vec![changed, spec("b", "B"), spec("c", "C")];
        bench.remote.says("c", current("four"));
        bench.snapshots.send_replace(Arc::new(snapshot(documents)));
        bench
            .holds("c", |holding| matches!(holding, Holding::Delivered(_)))
            .await;
        drop(writers);
        bench.end().await;
        let had = start_in_an_outage(directory.path()).await;
        assert_eq!(had, Ok("one".to_owned()));
    }
}

#[test]
fn an_environment_is_not_shown() {
    let environment = AppEnvironment::new(vec![("PASSWORD".into(), "hunter2".into())]);
    assert!(!format!("{environment:?}").contains("hunter2"));
}
