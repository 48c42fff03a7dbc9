use std::collections::VecDeque;
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::panic::Location;
use std::sync::Arc;

use fender_config::snapshot::{CredentialSpec, OnExit, Origin};
use fender_identity::Secret;
use fender_providers::{FetchError, Followed, Generation, Source, Standing, State};
use fender_runtime::clock::{SharedClock, TestClock, UnixTime};
use fender_runtime::drain::Drain;
use tempfile::TempDir;
use tokio::sync::{mpsc, watch};

use super::*;
use crate::testing::{logged, remember_log};

mod attacks;
mod credential;
mod followers;
mod hands;
mod places;
mod said;

const CANARY: &str = "canary-0c9f4b1e-cache";
/// When the tests begin.
const BEGINNING: u64 = 1_800_000_000;
const HOUR: Duration = Duration::from_secs(3600);
/// After so long something does not come any more.
const PATIENCE: Duration = Duration::from_secs(300);

fn workload(name: &str) -> Owner {
    let id = format!("spiffe://mesh.test/ns/shop/sa/{name}");
    Owner::Workload(id.parse().unwrap())
}

fn sidecar(namespace: &str, name: &str) -> Owner {
    Owner::Sidecar(ObjectName::new(namespace, name).unwrap())
}

/// A place for a cache and its key, and a clock that the test moves.
struct World {
    directory: TempDir,
    clock: Arc<TestClock>,
}

impl World {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("keys")).unwrap();
        let now = UnixTime::since_unix_epoch(Duration::from_secs(BEGINNING));
        Self {
            directory,
            clock: TestClock::new(now),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn key(&self, name: &str) -> KeyPlace {
        KeyPlace::File(self.path(name))
    }

    fn open(&self) -> Result<Cache, CacheError> {
        let cache = Cache::open(&self.path("cache"), &self.key("keys/key"))?;
        Ok(cache.of(&workload("orders")))
    }

    /// As another process would have it.
    fn cache(&self) -> Arc<Cache> {
        Arc::new(self.open().unwrap())
    }

    /// What the log says of this cache, with these words.
    fn logged(&self, said: &str) -> usize {
        logged(&self.path("cache").to_string_lossy(), said).len()
    }

    fn now(&self) -> Duration {
        let clock: SharedClock = self.clock.clone();
        clock.since_1970()
    }

    fn kept(&self, value: &str) -> Kept {
        Kept {
            fetched: fetched(value),
            source: wanted("smtp").source,
            at: self.now(),
            until: None,
        }
    }

    fn files(&self) -> Vec<String> {
        let entries = fs::read_dir(self.path("cache")).unwrap();
        let mut names: Vec<_> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    /// The one file that there is.
    fn file(&self) -> PathBuf {
        let files = self.files();
        assert_eq!(files.len(), 1, "{files:?}");
        self.path("cache").join(&files[0])
    }

    /// What a start during an outage would have: the value, and how old it is in seconds.
    fn would_have(&self) -> Result<Option<(String, u64)>, String> {
        let read = self.cache().have(&wanted("smtp"), self.now());
        let read = read.map_err(|error| error.to_string())?;
        Ok(read.map(|kept| {
            let age = self.now().saturating_sub(kept.at).as_secs();
            (text(&kept.fetched), age)
        }))
    }
}

/// By somebody who has just begun to follow it.
impl Cache {
    fn put(&self, wanted: &Wanted, kept: &Kept) -> io::Result<()> {
        self.write(&self.follow(&wanted.name), wanted, kept)
            .map(drop)
    }

    fn have(&self, wanted: &Wanted, now: Duration) -> Result<Option<Kept>, Refused> {
        self.read(&self.follow(&wanted.name), wanted, now)
    }
}

fn text(fetched: &Fetched) -> String {
    fetched.value.expose_str().unwrap().to_owned()
}

fn fetched(value: &str) -> Fetched {
    Fetched {
        value: Secret::from(value.to_owned()),
        generation: Generation::named(format!("of {value}")),
    }
}

fn source(path: &str) -> CredentialSource {
    CredentialSource::Direct(Origin::File { path: path.into() })
}

fn wanted(name: &str) -> Wanted {
    Wanted {
        name: ObjectName::new("shop", name).unwrap(),
        source: SourceDigest::of(&source("/run/secrets/smtp")),
        max_stale: HOUR,
    }
}

fn spec(source: CredentialSource) -> CredentialSpec {
    CredentialSpec {
        name: ObjectName::new("shop", "smtp").unwrap(),
        source,
        max_stale: HOUR,
        deliver: Vec::new(),
        notify: Vec::new(),
        on_exit: OnExit::Wipe,
    }
}

/// What a source says, one answer after the other; it is asked again when the test says so.
struct Script {
    answers: Mutex<VecDeque<Answer>>,
    standing: Standing,
    again: tokio::sync::Mutex<mpsc::Receiver<()>>,
}

type Answer = Result<Fetched, FetchError>;

impl Source for Script {
    async fn fetch(&self) -> Answer {
        let mut answers = self.answers.lock().unwrap();
        match answers.len() {
            1 => answers.front().cloned().unwrap(),
            _ => answers.pop_front().unwrap(),
        }
    }

    fn interval(&self) -> Duration {
        Duration::MAX
    }

    fn is_whole(&self) -> bool {
        true
    }

    fn standing(&self) -> Standing {
        self.standing
    }

    async fn due(&self) {
        let mut again = self.again.lock().await;
        if again.recv().await.is_none() {
            std::future::pending().await
        }
    }
}

/// A process that follows one credential.
struct Running {
    states: watch::Receiver<State>,
    again: mpsc::Sender<()>,
    drain: Drain,
}

impl Running {
    fn start(world: &World, answers: impl IntoIterator<Item = Answer>) -> Self {
        Self::of(world, &world.cache(), Standing::Asked, answers)
    }

    fn of(
        world: &World,
        cache: &Arc<Cache>,
        standing: Standing,
        answers: impl IntoIterator<Item = Answer>,
    ) -> Self {
        let drain = Drain::new();
        let (again, asked) = mpsc::channel(8);
        let script = Script {
            answers: Mutex::new(answers.into_iter().collect()),
            standing,
            again: tokio::sync::Mutex::new(asked),
        };
        let clock: SharedClock = world.clock.clone();
        let followed: Followed = fender_providers::follow(script, &clock, &drain);
        let spec = spec(source("/run/secrets/smtp"));
        let states = keep(cache, &spec, followed, &clock, &drain);
        Self {
            states,
            again,
            drain,
        }
    }

    async fn until(&mut self, reached: impl FnMut(&State) -> bool) -> State {
        let state = self.states.wait_for(reached).await.unwrap();
        state.clone()
    }

    /// What it says first.
    async fn first(&mut self) -> State {
        self.until(|state| !matches!(state, State::Pending)).await
    }

    async fn ask_again(&self) {
        self.again.send(()).await.unwrap();
    }

    /// As by SIGTERM: everything that is to be written is.
    async fn end(self) {
        self.drain.stop();
        self.drain.drained().await;
    }
}

fn away() -> Answer {
    Err(FetchError::Outage("connection refused".to_owned()))
}

fn shown(state: &State) -> String {
    let value = state.value().map_or_else(|| "nothing".to_owned(), text);
    let error = state.error().map(ToString::to_string).unwrap_or_default();
    format!("{value}; {error}")
}

#[tokio::test(start_paused = true)]
async fn a_start_during_an_outage_has_what_was_fetched_last_with_its_true_age() {
    let world = World::new();
    let mut before = Running::start(&world, [Ok(fetched("one"))]);
    before.first().await;
    before.end().await;
    world.clock.advance(Duration::from_secs(600));
    let mut running = Running::start(&world, [away(), Ok(fetched("two"))]);
    let state = running.first().await;
    let State::Stale {
        last: Some(last),
        error,
        since: Some(since),
    } = state
    else {
        panic!("{state:?}")
    };
    assert_eq!(text(&last), "one");
    assert_eq!(last.generation, fetched("one").generation);
    assert_eq!(since.elapsed().as_secs(), 600);
    let error = error.to_string();
    assert!(
        error.contains("connection refused") && error.contains("from the credentials cache"),
        "{error}"
    );
    running.ask_again().await;
    let state = running
        .until(|state| matches!(state, State::Current(_)))
        .await;
    assert_eq!(shown(&state), "two; ");
    running.end().await;
    assert_eq!(world.would_have(), Ok(Some(("two".to_owned(), 0))));
}

/// `maxStale` runs from the last answer, whoever is started how often in between.
#[tokio::test(start_paused = true)]
async fn no_restart_makes_what_is_kept_any_younger_and_past_max_stale_it_is_refused_and_removed() {
    let world = World::new();
    let mut before = Running::start(&world, [Ok(fetched("one"))]);
    before.first().await;
    before.end().await;
    for minutes in [20, 40, 59] {
        let passed = Duration::from_secs(minutes * 60);
        world.clock.set(UnixTime::since_unix_epoch(
            Duration::from_secs(BEGINNING) + passed,
        ));
        let mut running = Running::start(&world, [away()]);
        let state = running.first().await;
        let State::Stale {
            last: Some(_),
            since: Some(since),
            ..
        } = state
        else {
            panic!("{state:?}")
        };
        assert_eq!(since.elapsed(), passed);
        running.end().await;
    }
    world.clock.advance(Duration::from_secs(60));
    let mut running = Running::start(&world, [away()]);
    let state = shown(&running.first().await);
    assert!(state.starts_with("nothing; "), "{state}");
    assert!(
        state.contains("was fetched 3600 s ago, and `maxStale` is 3600 s; it is removed")
            && state.contains("shop.smtp.sealed"),
        "{state}"
    );
    assert_eq!(world.files(), [""; 0]);
    running.end().await;
}

/// It lies there no longer than it could be used.
#[tokio::test(start_paused = true)]
async fn what_becomes_too_old_while_a_process_runs_is_removed_and_stays_where_it_was_delivered() {
    let world = World::new();
    let mut running = Running::start(&world, [Ok(fetched("one")), away()]);
    running.first().await;
    running.ask_again().await;
    running
        .until(|state| matches!(state, State::Stale { .. }))
        .await;
    world.clock.advance(HOUR);
    // The wall is looked at every 30 s.
    tokio::time::sleep(Duration::from_secs(31)).await;
    settled(|| world.files().is_empty()).await;
    assert_eq!(text(running.states.borrow().value().unwrap()), "one");
    running.end().await;
    assert_eq!(world.files(), [""; 0], "nor does the end write it again");
}

/// Waits for threads that the paused clock does not wait for. What does not come has failed: no disk takes as long.
#[track_caller]
fn settled(reached: impl Fn() -> bool) -> impl Future<Output = ()> {
    let asked = Location::caller();
    until_settled(reached, asked)
}

async fn until_settled(reached: impl Fn() -> bool, asked: &'static Location<'static>) {
    let begun = std::time::Instant::now();
    while !reached() {
        assert!(
            begun.elapsed() < PATIENCE,
            "what is waited for at {asked} does not come"
        );
        tokio::task::spawn_blocking(|| {}).await.unwrap();
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_unchanged_value_is_written_again_after_a_quarter_of_max_stale_and_at_the_end() {
    let world = World::new();
    let mut running = Running::start(&world, [Ok(fetched("one"))]);
    running.first().await;
    settled(|| world.would_have() == Ok(Some(("one".to_owned(), 0)))).await;
    let first = fs::read(world.file()).unwrap();
    // Asked all the time; it would not have aged notably.
    for _ in 0..10 {
        world.clock.advance(Duration::from_secs(60));
        running.ask_again().await;
        tokio::time::sleep(Duration::from_secs(60)).await;
    }
    assert_eq!(fs::read(world.file()).unwrap(), first);
    assert_eq!(world.would_have(), Ok(Some(("one".to_owned(), 600))));
    for _ in 0..6 {
        world.clock.advance(Duration::from_secs(60));
        running.ask_again().await;
        tokio::time::sleep(Duration::from_secs(60)).await;
    }
    settled(|| fs::read(world.file()).unwrap() != first).await;
    let refreshed = world.would_have().unwrap().unwrap();
    assert!(refreshed.1 <= 120, "{refreshed:?}");
    world.clock.advance(Duration::from_secs(30));
    running.ask_again().await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    running.end().await;
    assert_eq!(world.would_have(), Ok(Some(("one".to_owned(), 0))));
}

/// It is the source's word that counts, not that this process was there.
#[tokio::test(start_paused = true)]
async fn a_source_that_was_not_asked_does_not_make_its_value_any_younger() {
    let world = World::new();
    let mut running = Running::start(&world, [Ok(fetched("one"))]);
    running.first().await;
    world.clock.advance(HOUR / 2);
    tokio::time::sleep(HOUR / 2).await;
    running.end().await;
    assert_eq!(world.would_have(), Ok(Some(("one".to_owned(), 1800))));
}

#[tokio::test(start_paused = true)]
async fn whoever_is_told_of_changes_knows_that_there_was_none() {
    let world = World::new();
    let answers = [Ok(fetched("one"))];
    let mut running = Running::of(&world, &world.cache(), Standing::Told, answers);
    running.first().await;
    world.clock.advance(HOUR / 2);
    running.end().await;
    assert_eq!(world.would_have(), Ok(Some(("one".to_owned(), 0))));
}

#[tokio::test(start_paused = true)]
async fn what_is_lent_is_not_kept_and_neither_is_what_was_kept_before_it_was_lent() {
    let world = World::new();
    world
        .cache()
        .put(&wanted("smtp"), &world.kept("one"))
        .unwrap();
    let answers = [Ok(fetched("two"))];
    let mut running = Running::of(&world, &world.cache(), Standing::Lent, answers);
    running.first().await;
    running.end().await;
    assert_eq!(world.files(), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn what_ends_by_its_sources_word_is_not_used_past_that_and_taken_away_when_it_ends() {
    let world = World::new();
    let end = world.now() + Duration::from_secs(300);
    let answers = [Ok(fetched("one"))];
    let mut before = Running::of(&world, &world.cache(), Standing::Until(end), answers);
    before.first().await;
    before.end().await;

    world.clock.advance(Duration::from_secs(200));
    let mut running = Running::start(&world, [away()]);
    let state = shown(&running.first().await);
    assert!(state.starts_with("one; "), "{state}");
    world.clock.advance(Duration::from_secs(100));
    let state = running
        .until(|state| matches!(state, State::Withdrawn(_)))
        .await;
    assert!(shown(&state).contains("has ended"), "{state:?}");
    settled(|| world.files().is_empty()).await;
    running.end().await;

    let kept = Kept {
        until: Some(end),
        ..world.kept("one")
    };
    world.cache().put(&wanted("smtp"), &kept).unwrap();
    let refused = world.would_have().unwrap_err();
    assert!(refused.contains("has ended"), "{refused}");
    assert_eq!(world.files(), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn a_source_that_says_no_is_believed_and_what_is_kept_of_it_goes() {
    for no in [
        FetchError::Denied("403".to_owned()),
        FetchError::Missing("404".to_owned()),
    ] {
        let world = World::new();
        world
            .cache()
            .put(&wanted("smtp"), &world.kept("one"))
            .unwrap();
        let mut running = Running::start(&world, [Err(no), away()]);
        let state = running.first().await;
        assert!(matches!(state, State::Withdrawn(_)), "{state:?}");
        running.ask_again().await;
        let state = running
            .until(|state| matches!(state, State::Stale { .. }))
            .await;
        assert!(state.value().is_none(), "{state:?}");
        running.end().await;
        assert_eq!(world.files(), [""; 0]);
    }
}

#[tokio::test(start_paused = true)]
async fn what_makes_no_sense_is_no_outage() {
    let world = World::new();
    world
        .cache()
        .put(&wanted("smtp"), &world.kept("one"))
        .unwrap();
    let nonsense = Err(FetchError::Malformed("not JSON".to_owned()));
    let mut running = Running::start(&world, [nonsense]);
    assert_eq!(
        shown(&running.first().await),
        "nothing; secret is malformed: not JSON"
    );
    running.end().await;
    assert_eq!(world.would_have(), Ok(Some(("one".to_owned(), 0))));
}

/// What could not be written must not come back later as if it were the newest.
#[tokio::test(start_paused = true)]
async fn once_a_source_has_answered_what_is_kept_is_not_read_in_this_process() {
    let world = World::new();
    let cache = world.cache();
    let mut first = Running::of(&world, &cache, Standing::Asked, [Ok(fetched("two"))]);
    first.first().await;
    first.end().await;
    cache.put(&wanted("smtp"), &world.kept("one")).unwrap();
    // Its document has changed: it is followed anew.
    let mut second = Running::of(&world, &cache, Standing::Asked, [away()]);
    let state = second.first().await;
    assert!(state.value().is_none(), "{state:?}");
    second.end().await;
}

#[tokio::test(start_paused = true)]
async fn the_same_value_keeps_the_name_of_its_generation_across_a_restart() {
    let world = World::new();
    let mut before = Running::start(&world, [Ok(fetched("one"))]);
    before.first().await;
    before.end().await;
    let again = Fetched {
        generation: Generation::named("drawn anew"),
        ..fetched("one")
    };
    let mut running = Running::start(&world, [away(), Ok(again), away()]);
    running.first().await;
    running.ask_again().await;
    let state = running
        .until(|state| matches!(state, State::Current(_)))
        .await;
    let name = state.value().unwrap().generation.clone();
    assert_eq!(name, fetched("one").generation);
    running.ask_again().await;
    let state = running
        .until(|state| matches!(state, State::Stale { .. }))
        .await;
    assert_eq!(state.value().unwrap().generation, name);
    running.end().await;
}
