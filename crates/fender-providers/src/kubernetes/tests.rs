//! Against an API that answers as its documentation says, on a clock that moves when everybody waits.

mod server;

use std::path::Path;

use fender_runtime::clock::{TestClock, UnixTime};
use tokio::time::Instant;

use super::*;
use crate::State;
use crate::host::Reading;
use server::{CANARY, Fails, Server};

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

/// What stands in each file.
#[derive(Debug, Default)]
struct Files(Mutex<HashMap<String, String>>);

#[derive(Clone, Debug)]
struct Shelf(Arc<Files>);

impl ReadFiles for Shelf {
    fn read<'a>(&'a self, path: &'a Path, _: u64) -> Reading<'a> {
        let path = path.display().to_string();
        let text = self.0.0.lock().unwrap().get(&path).cloned();
        let missing = FetchError::Missing(format!("no `{path}`"));
        Box::pin(std::future::ready(text.map(Secret::from).ok_or(missing)))
    }

    fn read_private<'a>(&'a self, path: &'a Path, limit: u64) -> Reading<'a> {
        self.read(path, limit)
    }
}

struct World {
    server: Arc<Server>,
    files: Arc<Files>,
    clusters: Clusters,
    drain: Drain,
}

impl World {
    fn new() -> Self {
        let server = Arc::new(Server::default());
        let files = Arc::new(Files::default());
        let drain = Drain::new();
        let now = UnixTime::since_unix_epoch(Duration::from_secs(1_800_000_000));
        let clusters = Clusters::by(
            Arc::new(Arc::clone(&server)),
            Arc::new(Shelf(Arc::clone(&files))),
            TestClock::new(now),
            drain.clone(),
        );
        let world = Self {
            server,
            files,
            clusters: clusters.within(own_api(Some("10.0.0.1"), Some("443"))),
            drain,
        };
        world.put(SecretCluster::ROOTS, "roots");
        world.put(SecretCluster::TOKEN, "token-1\n");
        world.put(SecretCluster::NAMESPACE, "shop");
        world
    }

    fn put(&self, path: &str, text: &str) {
        let mut files = self.files.0.lock().unwrap();
        files.insert(path.to_owned(), text.to_owned());
    }

    fn follow(&self, name: &str, key: Option<&str>) -> watch::Receiver<State> {
        crate::watch(self.clusters.source(&secret(name, key)), &self.drain)
    }

    fn password(&self, value: &str) {
        let fields = [("password", value.as_bytes()), ("user", b"app")];
        self.server.write("smtp", &fields);
    }
}

fn secret(name: &str, key: Option<&str>) -> KubernetesSecret {
    KubernetesSecret {
        cluster: SecretCluster::Own,
        namespace: None,
        name: name.parse().unwrap(),
        key: key.map(ToOwned::to_owned),
    }
}

/// The value, and what is wrong.
fn told(state: &State) -> String {
    let value = state.value().map_or("nothing", |fetched| {
        fetched.value.expose_str().unwrap_or("bytes")
    });
    match state.error() {
        None => value.to_owned(),
        Some(error) => {
            assert!(!format!("{error} {error:?}").contains(CANARY), "{error}");
            format!("{value}, {error}")
        }
    }
}

/// What is known a minute from now.
async fn known(states: &watch::Receiver<State>) -> String {
    tokio::time::sleep(MINUTE).await;
    told(&states.borrow())
}

/// Whatever is known when it is this, which takes no time.
async fn at_once(states: &mut watch::Receiver<State>, expected: &str) {
    let began = Instant::now();
    let came = states.wait_for(|state| told(state) == expected);
    tokio::time::timeout(HOUR, came).await.unwrap().unwrap();
    assert_eq!(began.elapsed(), Duration::ZERO, "{expected}");
}

#[tokio::test(start_paused = true)]
async fn changes_are_known_when_they_happen() {
    let world = World::new();
    world.password("a");
    let mut states = world.follow("smtp", Some("password"));
    at_once(&mut states, "a").await;
    let first = states.borrow().value().unwrap().generation.clone();
    for value in ["b", "c"] {
        world.password(value);
        at_once(&mut states, value).await;
    }
    // What changes beside it is no news.
    world.server.write("smtp", &[("password", b"c")]);
    assert_eq!(known(&states).await, "c");
    assert_ne!(states.borrow().value().unwrap().generation, first);
    world.server.delete("smtp");
    at_once(
        &mut states,
        "nothing, secret is missing: there is no Secret `shop/smtp`",
    )
    .await;
    world.password("d");
    at_once(&mut states, "d").await;
    assert_eq!(world.server.lists(), 1, "{:?}", world.server.asked());
}

#[tokio::test(start_paused = true)]
async fn a_secret_is_watched_once_for_all_its_keys_and_no_more_when_nobody_follows_it() {
    let world = World::new();
    world.password("a");
    let mut password = world.follow("smtp", Some("password"));
    let mut user = world.follow("smtp", Some("user"));
    let mut whole = world.follow("smtp", None);
    at_once(&mut password, "a").await;
    at_once(&mut user, "app").await;
    at_once(&mut whole, r#"{"password":"a","user":"app"}"#).await;
    assert_eq!(world.server.asked().len(), 2, "{:?}", world.server.asked());
    assert_eq!(world.server.watching(), 1);
    drop((password, user));
    tokio::time::sleep(MINUTE).await;
    assert_eq!(world.server.watching(), 1);
    drop(whole);
    tokio::time::sleep(MINUTE).await;
    assert_eq!(world.server.watching(), 0);
    world.drain.stop();
    world.drain.drained().await;
}

#[tokio::test(start_paused = true)]
async fn what_is_no_value_is_told_by_its_key() {
    let world = World::new();
    let large = vec![b'x'; 1024 * 1024 + 1];
    let fields: [(&str, &[u8]); 4] = [
        ("empty", b""),
        ("bytes", b"\xff"),
        ("text", b"x"),
        ("large", &large),
    ];
    world.server.write("smtp", &fields);
    for (key, expected) in [
        (Some("bytes"), "bytes"),
        (
            Some("empty"),
            "nothing, secret is malformed: Secret `smtp`: `empty` is empty",
        ),
        (
            Some("absent"),
            "nothing, secret is missing: Secret `smtp` has no `absent`",
        ),
        (
            Some("large"),
            "nothing, secret is malformed: Secret `smtp` is larger than 1 MiB",
        ),
        (
            None,
            "nothing, secret is malformed: Secret `smtp`: `bytes` is not text (UTF-8), so there is no JSON for all fields: name one with `key`",
        ),
    ] {
        let mut states = world.follow("smtp", key);
        at_once(&mut states, expected).await;
    }
    world.server.write("smtp", &[]);
    let mut states = world.follow("smtp", None);
    at_once(
        &mut states,
        "nothing, secret is missing: Secret `smtp` has no keys",
    )
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_outage_keeps_the_value_and_a_refusal_does_not() {
    for (fails, expected) in [
        (
            Fails {
                away: true,
                ..Fails::default()
            },
            "a, secret cannot be fetched: server cannot be reached: connection refused",
        ),
        (
            Fails {
                list: Some(500),
                ..Fails::default()
            },
            "a, secret cannot be fetched: Secret `shop/smtp`: the API answers with status 500",
        ),
        (
            Fails {
                list: Some(307),
                ..Fails::default()
            },
            "a, secret cannot be fetched: Secret `shop/smtp`: the API answers with status 307, which sends us elsewhere, and a token is shown to nobody else",
        ),
        (
            Fails {
                list: Some(404),
                ..Fails::default()
            },
            "a, secret is malformed: Secret `shop/smtp`: answers with status 404, as no Kubernetes API does: is it one?",
        ),
        (
            Fails {
                list: Some(403),
                ..Fails::default()
            },
            "nothing, secret is denied: Secret `shop/smtp`: the API answers with status 403: does a Role let this service account `list` and `watch` `secrets` of that name?",
        ),
        (
            Fails {
                watch: Some(403),
                ..Fails::default()
            },
            "nothing, secret is denied: Secret `shop/smtp`: the API answers with status 403: does a Role let this service account `list` and `watch` `secrets` of that name?",
        ),
    ] {
        let world = World::new();
        world.password("a");
        let mut states = world.follow("smtp", Some("password"));
        at_once(&mut states, "a").await;
        world.server.fail(fails);
        // Ends nothing that is open, as with a real one; but what is begun anew.
        assert_eq!(known(&states).await, "a");
        world.server.forget();
        world.server.close();
        tokio::time::sleep(MINUTE).await;
        assert_eq!(told(&states.borrow()), expected);
        world.server.fail(Fails::default());
        world.password("b");
        assert_eq!(known(&states).await, "b");
    }
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_cannot_be_had_leaves_what_is_listed() {
    let world = World::new();
    world.password("a");
    world.server.fail(Fails {
        watch: Some(503),
        ..Fails::default()
    });
    let mut states = world.follow("smtp", Some("password"));
    at_once(&mut states, "a").await;
    world.password("b");
    assert_eq!(known(&states).await, "b");
}

#[tokio::test(start_paused = true)]
async fn a_wish_to_be_left_alone_is_granted() {
    let world = World::new();
    world.password("a");
    let wishes = Fails {
        list: Some(429),
        wish: Some(600),
        ..Fails::default()
    };
    world.server.fail(wishes);
    let states = world.follow("smtp", Some("password"));
    let other = world.follow("other", Some("password"));
    tokio::time::sleep(9 * MINUTE).await;
    assert!(told(&states.borrow()).contains("cannot be fetched"));
    // Those that came together, and nobody since.
    assert!(
        world.server.asked().len() <= 2,
        "{:?}",
        world.server.asked()
    );
    world.server.fail(Fails::default());
    tokio::time::sleep(3 * MINUTE).await;
    assert_eq!(told(&states.borrow()), "a");
    assert!(told(&other.borrow()).contains("there is no Secret"));
}

#[tokio::test(start_paused = true)]
async fn a_token_that_is_not_known_is_read_again_and_says_nothing_of_the_secret() {
    let world = World::new();
    world.password("a");
    world.server.know("token-1");
    let mut states = world.follow("smtp", Some("password"));
    at_once(&mut states, "a").await;
    // The kubelet has put another one into the file before the one of before ends.
    world.server.know("token-2");
    world.put(SecretCluster::TOKEN, "token-2");
    world.server.close();
    world.password("b");
    assert_eq!(known(&states).await, "b");
    // It has not.
    world.server.know("token-3");
    world.server.forget();
    world.server.close();
    let unknown = known(&states).await;
    assert!(
        unknown.starts_with(
            "b, secret cannot be fetched: Secret `shop/smtp`: the API answers with status 401"
        ),
        "{unknown}"
    );
    for wrong in ["", "two\nlines"] {
        world.put(SecretCluster::TOKEN, wrong);
        let unusable = known(&states).await;
        assert!(
            unusable.contains("one line of visible characters"),
            "{unusable}"
        );
    }
    world.put(SecretCluster::TOKEN, "token-3");
    assert_eq!(known(&states).await, "b");
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_ends_goes_on_from_what_it_has_seen() {
    let world = World::new();
    world.password("a");
    let mut states = world.follow("smtp", Some("password"));
    at_once(&mut states, "a").await;
    world.server.bookmark();
    tokio::time::sleep(MINUTE).await;
    // What is older than the bookmark is known no more, and it does not matter.
    world.server.close();
    world.password("b");
    assert_eq!(known(&states).await, "b");
    assert_eq!(world.server.lists(), 1, "{:?}", world.server.asked());
    let watch = world.server.asked().last().unwrap().clone();
    assert!(
        watch.contains("&allowWatchBookmarks=true&resourceVersion=11&timeoutSeconds=2"),
        "{watch}"
    );
}

#[tokio::test(start_paused = true)]
async fn what_was_forgotten_is_listed_anew() {
    let world = World::new();
    world.password("a");
    let mut states = world.follow("smtp", Some("password"));
    at_once(&mut states, "a").await;
    tokio::time::sleep(MINUTE).await;
    // By the status of the answer.
    world.server.close();
    world.password("b");
    world.server.forget();
    assert_eq!(known(&states).await, "b");
    // By an event.
    world.server.say(r#"{"type":"ERROR","object":{"kind":"Status","status":"Failure","reason":"Expired","code":410}}"#);
    assert_eq!(known(&states).await, "b");
    assert_eq!(world.server.lists(), 3, "{:?}", world.server.asked());
    world.password("c");
    at_once(&mut states, "c").await;
}

#[tokio::test(start_paused = true)]
async fn attack_a_watch_that_makes_no_sense_changes_nothing() {
    let endless = format!(r#"{{"type":"{CANARY}{}"#, "x".repeat(4 * 1024 * 1024));
    for nonsense in [
        CANARY,
        r#"{"type":"ADDED","object":{"metadata":{"name":"smtp","namespace":"shop"},"data":{"password":"Yg=="}}}"#,
        r#"{"type":"MODIFIED","object":{"metadata":{"name":"other","namespace":"shop","resourceVersion":"9"},"data":{"password":"Yg=="}}}"#,
        r#"{"type":"DELETED","object":{"metadata":{"name":"smtp","namespace":"elsewhere","resourceVersion":"9"}}}"#,
        r#"{"type":"ERROR","object":{"kind":"Status","code":500}}"#,
        r#"{"type":"ERROR","object":null}"#,
        &endless,
    ] {
        let world = World::new();
        world.password("a");
        let mut states = world.follow("smtp", Some("password"));
        at_once(&mut states, "a").await;
        world.server.say(nonsense);
        assert_eq!(known(&states).await, "a");
        world.password("c");
        assert_eq!(known(&states).await, "c");
    }
}

#[tokio::test(start_paused = true)]
async fn attack_a_watch_that_ends_as_it_begins_is_not_begun_all_the_time() {
    let world = World::new();
    world.password("a");
    world.server.fail(Fails {
        closes: true,
        ..Fails::default()
    });
    let mut states = world.follow("smtp", Some("password"));
    at_once(&mut states, "a").await;
    tokio::time::sleep(HOUR).await;
    // Two questions each time, at half of half a minute at the least.
    let asked = world.server.asked().len();
    assert!((240..=520).contains(&asked), "{asked}");
}

#[tokio::test(start_paused = true)]
async fn attack_a_watch_without_a_word_is_not_waited_for_for_ever() {
    let world = World::new();
    world.password("a");
    let mut states = world.follow("smtp", Some("password"));
    at_once(&mut states, "a").await;
    tokio::time::sleep(6 * MINUTE).await;
    assert_eq!(world.server.lists(), 2, "{:?}", world.server.asked());
    assert_eq!(told(&states.borrow()), "a");
}

#[tokio::test(start_paused = true)]
async fn attack_a_flood_of_events_is_taken_slowly() {
    let world = World::new();
    world.password("a");
    let mut states = world.follow("smtp", Some("password"));
    at_once(&mut states, "a").await;
    tokio::time::sleep(MINUTE).await;
    for number in 0..650 {
        world.password(&number.to_string());
    }
    let began = Instant::now();
    let came = states.wait_for(|state| told(state) == "649");
    tokio::time::timeout(HOUR, came).await.unwrap().unwrap();
    assert!(began.elapsed() >= MINUTE, "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn outside_of_a_cluster_and_without_its_files_it_is_said_what_is_missing() {
    let world = World::new();
    world.password("a");
    let nowhere = world.clusters.clone().within(None);
    let states = crate::watch(nowhere.source(&secret("smtp", None)), &world.drain);
    let why = known(&states).await;
    assert!(why.contains("KUBERNETES_SERVICE_HOST"), "{why}");
    drop(states);
    tokio::time::sleep(MINUTE).await;
    for (file, said) in [
        (SecretCluster::NAMESPACE, "or write `namespace:`"),
        (SecretCluster::ROOTS, "access to the cluster"),
        (SecretCluster::TOKEN, "access to the cluster"),
    ] {
        let known_before = world.files.0.lock().unwrap().remove(file).unwrap();
        let states = world.follow("smtp", Some("password"));
        let why = known(&states).await;
        assert!(
            why.contains("cannot be fetched") && why.contains(said),
            "{why}"
        );
        world.put(file, &known_before);
        assert_eq!(known(&states).await, "a");
        drop(states);
        tokio::time::sleep(MINUTE).await;
    }
    for wrong in ["", "a/b", "a b"] {
        world.put(SecretCluster::NAMESPACE, wrong);
        let states = world.follow("smtp", Some("password"));
        let why = known(&states).await;
        assert!(why.contains("holds no name of a namespace"), "{why}");
        drop(states);
        tokio::time::sleep(MINUTE).await;
    }
}

#[tokio::test(start_paused = true)]
async fn other_roots_make_another_client() {
    let world = World::new();
    world.password("a");
    let mut states = world.follow("smtp", Some("password"));
    let mut other = world.follow("other", Some("password"));
    at_once(&mut states, "a").await;
    at_once(
        &mut other,
        "nothing, secret is missing: there is no Secret `shop/other`",
    )
    .await;
    assert_eq!(world.server.dialled(), 1);
    world.put(SecretCluster::ROOTS, "other roots");
    tokio::time::sleep(MINUTE).await;
    world.server.close();
    assert_eq!(known(&states).await, "a");
    assert_eq!(world.server.dialled(), 2);
}

#[test]
fn the_kubelet_says_where_the_api_is() {
    let url = |host, port| own_api(host, port).map(|url| url.to_string());
    assert_eq!(
        url(Some("10.0.0.1"), Some("443")).unwrap(),
        "https://10.0.0.1"
    );
    assert_eq!(
        url(Some("fd00::1"), Some("6443")).unwrap(),
        "https://[fd00::1]:6443"
    );
    for (host, port) in [
        (None, None),
        (Some("10.0.0.1"), None),
        (Some("a b"), Some("443")),
        (Some("10.0.0.1"), Some("x")),
        (Some("user@evil"), Some("443")),
    ] {
        assert_eq!(url(host, port), None);
    }
}
