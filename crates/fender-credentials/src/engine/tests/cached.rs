//! What is kept of credentials whose documents change: what is in force, and nothing of what was.

use fender_config::snapshot::SocketDelivery;
use fender_runtime::clock::{TestClock, UnixTime};

use super::*;
use crate::cache::{Cache, KeyPlace, Owner};

/// No disk takes as long.
const PATIENCE: Duration = Duration::from_secs(300);

/// A bench that keeps what it has fetched, and what it lies in. Its wall clock stands at the beginning of time.
struct Keeping {
    bench: Bench,
    directory: TempDir,
}

impl Keeping {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("keys")).unwrap();
        let bench = Self::bench(&directory);
        Self { bench, directory }
    }

    fn bench(directory: &TempDir) -> Bench {
        let mut bench = Bench::new();
        let key = KeyPlace::File(directory.path().join("keys/key"));
        let cache = Cache::open(&directory.path().join("cache"), &key).unwrap();
        let owner = Owner::Sidecar(ObjectName::new("shop", "orders").unwrap());
        let sources = bench.settings.sources.clone();
        bench.settings.sources = sources.kept_in(Some(cache.of(&owner)));
        bench.settings.sources.clock = TestClock::new(UnixTime::since_unix_epoch(Duration::ZERO));
        bench
    }

    fn cache(&self) -> Arc<Cache> {
        self.bench.settings.sources.cache.clone().unwrap()
    }

    fn is_kept(&self) -> bool {
        let mut files = fs::read_dir(self.directory.path().join("cache")).unwrap();
        files.any(|file| {
            let name = file.unwrap().file_name().into_string().unwrap();
            name.ends_with("-shop.smtp.sealed")
        })
    }

    /// Ends, and says what a start during an outage delivers after that, or the code that it ends with.
    async fn start_in_an_outage(self) -> Result<String, u8> {
        let Self { bench, directory } = self;
        bench.end().await;
        let bench = Self::bench(&directory);
        let away = State::Stale {
            last: None,
            error: FetchError::Outage("away".to_owned()),
            since: None,
        };
        bench.remote.says("smtp", away);
        bench.publish(vec![bench.spec("smtp", &["a"])]);
        let started = bench.start().await.map_err(|error| error.exit_code());
        let value = started.map(|_| fs::read_to_string(bench.path("a")).unwrap());
        bench.end().await;
        value
    }
}

/// Its keeper sees only that it is there: it is busy with a slow disk, for instance.
#[tokio::test(start_paused = true)]
async fn a_credential_that_goes_and_is_back_before_its_keeper_looks_is_kept() {
    let keeping = Keeping::new();
    let (bench, cache) = (&keeping.bench, keeping.cache());
    let (holdings, mut held) = watch::channel(Holdings::new());
    let mut engine = Engine {
        settings: bench.settings.clone(),
        holdings,
        keepers: BTreeMap::new(),
        drain: bench.drain.clone(),
    };
    let named = || delivered_here(&snapshot(vec![bench.spec("smtp", &["a"])]), &bench.settings);
    let smtp = BTreeSet::from([ObjectName::new("shop", "smtp").unwrap()]);
    cache.retain(smtp.clone());
    engine.follow(named());
    bench.remote.says("smtp", current("one"));
    let is =
        |value: &'static str| move |holding: Option<&Holding>| holding == Some(&delivered(value));
    holding(&mut held, "smtp", is("one")).await;
    let begun = std::time::Instant::now();
    while !keeping.is_kept() {
        assert!(begun.elapsed() < PATIENCE, "it is never kept");
        tokio::task::spawn_blocking(|| {}).await.unwrap();
        tokio::task::yield_now().await;
    }

    // What the engine does with a Snapshot without it and one with it, and nobody else runs in between.
    cache.retain(BTreeSet::new());
    engine.follow(Vec::new());
    cache.retain(smtp);
    engine.follow(named());
    assert!(!keeping.is_kept());
    bench.holds(&[("a", "one")]);
    bench.remote.says("smtp", current("two"));
    holding(&mut held, "smtp", is("two")).await;
    drop((engine, cache));
    assert_eq!(keeping.start_in_an_outage().await, Ok("two".to_owned()));
}

/// The one before is about to write when another document comes, which cannot be followed.
#[tokio::test(start_paused = true)]
async fn attack_a_document_that_may_not_be_followed_ends_what_is_kept_of_the_one_before() {
    type Changes = fn(CredentialSpec) -> CredentialSpec;
    let source: Changes = |spec| CredentialSpec {
        source: CredentialSource::Direct(Origin::File {
            path: "/etc/hostname".into(),
        }),
        ..spec
    };
    // Nobody hands it over.
    let delivery: Changes = |spec| CredentialSpec {
        deliver: vec![Delivery::Socket(SocketDelivery {
            name: "smtp".parse().unwrap(),
            users: vec!["1000".to_owned()],
        })],
        ..spec
    };
    for (changes, reason) in [(source, "source"), (delivery, "socket")] {
        let mut keeping = Keeping::new();
        let allowed = vec![keeping.bench.directory.path().to_owned()];
        keeping.bench.settings.sources.allow = AllowDirs::Below(allowed);
        let (bench, cache) = (&keeping.bench, keeping.cache());
        let writers = cache.nobody_writes().await;
        bench.remote.says("smtp", current("one"));
        let spec = bench.spec("smtp", &["a"]);
        bench.publish(vec![spec.clone()]);
        let mut held = bench.start().await.unwrap();
        bench.publish(vec![changes(spec)]);
        let refused = |holding: Option<&Holding>| matches!(holding, Some(Holding::Outdated { why, .. }) if why.contains(reason));
        holding(&mut held, "smtp", refused).await;
        drop((writers, cache));
        assert_eq!(keeping.start_in_an_outage().await, Err(75));
    }
}

/// It is named, but goes to nobody here any more.
#[tokio::test(start_paused = true)]
async fn attack_what_is_not_delivered_here_any_more_is_not_kept_by_who_followed_it_before() {
    let keeping = Keeping::new();
    let (bench, cache) = (&keeping.bench, keeping.cache());
    let writers = cache.nobody_writes().await;
    bench.remote.says("smtp", current("one"));
    let spec = bench.spec("smtp", &["a"]);
    bench.publish(vec![spec.clone()]);
    let mut held = bench.start().await.unwrap();
    bench.publish(vec![CredentialSpec {
        deliver: Vec::new(),
        ..spec
    }]);
    holding(&mut held, "smtp", |holding| holding.is_none()).await;
    drop((writers, cache));
    assert_eq!(keeping.start_in_an_outage().await, Err(75));
}
