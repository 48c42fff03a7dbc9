//! Two processes with one cache, as there are during an upgrade: one of them changes it, and nothing that it has removed comes back by
//! the hand of the other.

use super::*;

fn no() -> Answer {
    Err(FetchError::Denied("403".to_owned()))
}

/// One that serves and has kept its value, and its successor, which has not been handed anything.
async fn two(world: &World) -> (Arc<Cache>, Running, Arc<Cache>) {
    let before = world.cache();
    let answers = [Ok(fetched("one"))];
    let mut serving = Running::of(world, &before, Standing::Asked, answers);
    serving.first().await;
    settled(|| world.would_have() == Ok(Some(("one".to_owned(), 0)))).await;
    let after = world.cache();
    given(&after).await;
    (before, serving, after)
}

async fn given(cache: &Cache) {
    assert!(cache.hand().give(HOUR).await);
}

async fn hand_over(before: &Cache, after: &Cache) {
    given(before).await;
    after.hand().take();
}

/// It is asked again by the one before, and the source changes its mind: its answer is written nowhere.
async fn goes_on(world: &World, serving: Running) {
    world.clock.advance(HOUR / 2);
    serving.ask_again().await;
    tokio::time::sleep(HOUR / 2).await;
    serving.end().await;
}

#[tokio::test(start_paused = true)]
async fn attack_what_a_successor_removes_is_not_written_again_by_the_one_before() {
    let world = World::new();
    let (before, serving, after) = two(&world).await;
    let mut successor = Running::of(&world, &after, Standing::Asked, [no()]);
    let state = successor.first().await;
    assert!(matches!(state, State::Withdrawn(_)), "{state:?}");
    tokio::time::sleep(HOUR).await;
    assert_eq!(world.files().len(), 1, "it is not the successor's yet");
    hand_over(&before, &after).await;
    settled(|| world.files().is_empty()).await;
    goes_on(&world, serving).await;
    successor.end().await;
    assert_eq!(world.files(), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn attack_what_a_successors_documents_do_not_name_is_not_written_again_by_the_one_before() {
    let world = World::new();
    // While the one before has nothing to keep yet.
    let (early, drain) = (world.cache(), Drain::new());
    given(&early).await;
    keep_only(&early, BTreeSet::new(), &drain).await;
    let (before, serving, after) = two(&world).await;
    keep_only(&after, BTreeSet::new(), &drain).await;
    tokio::time::sleep(HOUR).await;
    assert_eq!(world.files().len(), 1, "it is not the successor's yet");
    drop(after);
    let after = early;
    hand_over(&before, &after).await;
    settled(|| world.files().is_empty()).await;
    goes_on(&world, serving).await;
    drain.stop();
    drain.drained().await;
    assert_eq!(world.files(), [""; 0]);
}

/// Its source said no, to that one alone.
#[tokio::test(start_paused = true)]
async fn a_successor_that_gets_nowhere_leaves_what_is_kept_to_the_one_before() {
    let world = World::new();
    let (before, serving, after) = two(&world).await;
    let mut successor = Running::of(&world, &after, Standing::Asked, [no()]);
    successor.first().await;
    successor.end().await;
    assert_eq!(world.would_have(), Ok(Some(("one".to_owned(), 0))));
    // It went when it was told that all is its own.
    given(&before).await;
    fs::remove_file(world.file()).unwrap();
    before.hand().take();
    settled(|| world.would_have() == Ok(Some(("one".to_owned(), 0)))).await;
    serving.end().await;
}

#[tokio::test(start_paused = true)]
async fn what_a_successor_has_fetched_is_kept_once_it_serves() {
    let world = World::new();
    let (before, serving, after) = two(&world).await;
    let answers = [Ok(fetched("two"))];
    let mut successor = Running::of(&world, &after, Standing::Asked, answers);
    successor.first().await;
    tokio::time::sleep(HOUR / 8).await;
    assert_eq!(world.would_have(), Ok(Some(("one".to_owned(), 0))));
    hand_over(&before, &after).await;
    settled(|| world.would_have() == Ok(Some(("two".to_owned(), 0)))).await;
    goes_on(&world, serving).await;
    successor.end().await;
    let had = world.would_have().unwrap().map(|(value, _)| value);
    assert_eq!(had.as_deref(), Some("two"));
}

/// What the one before had asked later than its successor is what a start during an outage needs.
#[tokio::test(start_paused = true)]
async fn what_the_one_before_has_asked_since_is_not_replaced_by_what_its_successor_asked_earlier() {
    let world = World::new();
    let before = world.cache();
    let answers = [Ok(fetched("one")), Ok(fetched("later"))];
    let mut serving = Running::of(&world, &before, Standing::Asked, answers);
    serving.first().await;
    let after = world.cache();
    given(&after).await;
    let answers = [Ok(fetched("earlier"))];
    let mut successor = Running::of(&world, &after, Standing::Asked, answers);
    successor.first().await;
    world.clock.advance(Duration::from_secs(60));
    serving.ask_again().await;
    settled(|| world.would_have() == Ok(Some(("later".to_owned(), 0)))).await;
    hand_over(&before, &after).await;
    serving.end().await;
    successor.end().await;
    assert_eq!(world.would_have(), Ok(Some(("later".to_owned(), 0))));
}

/// Its source cannot be asked, and what it has itself is older.
#[tokio::test(start_paused = true)]
async fn what_the_one_before_has_kept_goes_when_it_is_too_old() {
    let world = World::new();
    let (before, serving, after) = two(&world).await;
    let answers = [Ok(fetched("one")), away()];
    let mut successor = Running::of(&world, &after, Standing::Asked, answers);
    successor.first().await;
    world.clock.advance(HOUR / 2);
    serving.ask_again().await;
    tokio::time::sleep(HOUR / 2).await;
    settled(|| world.would_have() == Ok(Some(("one".to_owned(), 0)))).await;
    successor.ask_again().await;
    successor
        .until(|state| matches!(state, State::Stale { .. }))
        .await;
    world.clock.advance(HOUR / 4 * 3);
    hand_over(&before, &after).await;
    serving.end().await;
    assert_eq!(world.files().len(), 1);
    world.clock.advance(HOUR / 2);
    tokio::time::sleep(HOUR).await;
    settled(|| world.files().is_empty()).await;
    successor.end().await;
}

/// Who is told that it is handed over may rely on it.
#[tokio::test]
async fn a_cache_is_not_handed_over_in_the_middle_of_a_write() {
    let world = World::new();
    let cache = world.cache();
    let (tell, told) = tokio::sync::oneshot::channel();
    let (go_on, gone_on) = std::sync::mpsc::channel::<()>();
    let meanwhile = move || {
        tell.send(()).unwrap();
        gone_on.recv().unwrap();
    };
    *cache.before.lock().unwrap() = Some(Box::new(meanwhile));
    let smtp = wanted("smtp");
    let kept = world.kept("one");
    let (writer, written) = (Arc::clone(&cache), kept.clone());
    let writing = tokio::task::spawn_blocking(move || {
        let smtp = wanted("smtp");
        let follower = writer.follow(&smtp.name);
        writer.write(&follower, &smtp, &written)
    });
    told.await.unwrap();
    let hand = cache.hand();
    assert!(!hand.give(Duration::from_millis(50)).await);
    // It is still this one's, for others too.
    assert!(cache.hand.hold().is_some());
    go_on.send(()).unwrap();
    assert!(writing.await.unwrap().unwrap());
    assert!(hand.give(Duration::ZERO).await);
    assert_eq!(world.files().len(), 1, "what was begun is there");
    let follower = cache.follow(&smtp.name);
    assert!(!cache.write(&follower, &smtp, &kept).unwrap());
    assert_eq!(cache.remove(&follower).unwrap(), Removed::NotOurs);
    assert_eq!(world.files().len(), 1);
}
