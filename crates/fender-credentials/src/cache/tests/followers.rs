//! Two that follow one credential, as there are for a moment when its document changes: the earlier one brings nothing back.

use super::*;

fn no() -> Answer {
    Err(FetchError::Denied("403".to_owned()))
}

impl Cache {
    /// Nobody writes while this lives.
    pub(crate) async fn nobody_writes(&self) -> tokio::sync::OwnedSemaphorePermit {
        let all = u32::try_from(WRITERS).unwrap();
        let writers = Arc::clone(&self.writers);
        writers.acquire_many_owned(all).await.unwrap()
    }
}

#[tokio::test(start_paused = true)]
async fn attack_what_the_later_one_removed_is_not_written_by_the_one_before() {
    let world = World::new();
    let cache = world.cache();
    cache.put(&wanted("smtp"), &world.kept("before")).unwrap();
    let writers = cache.nobody_writes().await;
    let answers = [Ok(fetched("one"))];
    let mut earlier = Running::of(&world, &cache, Standing::Asked, answers);
    earlier.first().await;
    let mut later = Running::of(&world, &cache, Standing::Asked, [no()]);
    let state = later.first().await;
    assert!(matches!(state, State::Withdrawn(_)), "{state:?}");
    later.end().await;
    assert_eq!(world.files(), [""; 0]);
    // Now the earlier one may go on, and writes once more at its end.
    drop(writers);
    earlier.end().await;
    assert_eq!(world.files(), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn attack_a_document_that_went_and_came_back_does_not_have_the_value_of_the_one_before_kept()
{
    let world = World::new();
    let cache = world.cache();
    let writers = cache.nobody_writes().await;
    let answers = [Ok(fetched("one"))];
    let mut earlier = Running::of(&world, &cache, Standing::Asked, answers);
    earlier.first().await;
    cache.retain(BTreeSet::new());
    cache.retain([wanted("smtp").name].into());
    drop(writers);
    earlier.end().await;
    assert_eq!(world.files(), [""; 0]);
    let answers = [Ok(fetched("two"))];
    let mut later = Running::of(&world, &cache, Standing::Asked, answers);
    later.first().await;
    later.end().await;
    assert_eq!(world.would_have(), Ok(Some(("two".to_owned(), 0))));
}

#[tokio::test(start_paused = true)]
async fn what_the_later_one_keeps_is_not_removed_by_the_one_before() {
    let world = World::new();
    let cache = world.cache();
    let answers = [Ok(fetched("one")), no()];
    let mut earlier = Running::of(&world, &cache, Standing::Asked, answers);
    earlier.first().await;
    let answers = [Ok(fetched("two"))];
    let mut later = Running::of(&world, &cache, Standing::Asked, answers);
    later.first().await;
    later.end().await;
    earlier.ask_again().await;
    earlier
        .until(|state| matches!(state, State::Withdrawn(_)))
        .await;
    earlier.end().await;
    assert_eq!(world.would_have(), Ok(Some(("two".to_owned(), 0))));
}

/// It is the same source, perhaps, which cannot be asked any more.
#[tokio::test(start_paused = true)]
async fn a_no_that_the_earlier_one_hears_is_believed_as_long_as_the_later_one_has_no_answer() {
    let world = World::new();
    let cache = world.cache();
    let answers = [Ok(fetched("one")), no()];
    let mut earlier = Running::of(&world, &cache, Standing::Asked, answers);
    earlier.first().await;
    settled(|| world.files().len() == 1).await;
    let mut later = Running::of(&world, &cache, Standing::Asked, [away()]);
    later.first().await;
    earlier.ask_again().await;
    earlier
        .until(|state| matches!(state, State::Withdrawn(_)))
        .await;
    earlier.end().await;
    later.end().await;
    assert_eq!(world.files(), [""; 0]);
}

/// Right before the file takes its place: who removes it waits for that.
#[test]
fn attack_a_removal_in_the_middle_of_a_write_comes_after_it() {
    type Removes = fn(&Cache);
    let follows_anew: Removes = |cache| {
        let later = cache.follow(&wanted("smtp").name);
        cache.remove(&later).unwrap();
    };
    // The file is not there yet when the directory is looked through.
    let is_gone: Removes = |cache| assert_eq!(cache.retain(BTreeSet::new()), Rest::SeenTo);
    for removes in [follows_anew, is_gone] {
        let world = World::new();
        let cache = world.cache();
        let (tell, told) = std::sync::mpsc::channel();
        let others = Arc::clone(&cache);
        let meanwhile = move || {
            let place = |name: &str| others.place(others.file(&wanted(name).name));
            assert!(place("smtp").is_somebodys_turn());
            assert!(!place("ledger").is_somebodys_turn());
            let removing = std::thread::spawn(move || removes(&others));
            tell.send(removing).unwrap();
        };
        *cache.before.lock().unwrap() = Some(Box::new(meanwhile));
        cache.put(&wanted("smtp"), &world.kept("one")).unwrap();
        told.recv().unwrap().join().unwrap();
        assert_eq!(world.files(), [""; 0]);
    }
}

#[test]
fn who_follows_what_no_document_names_is_forgotten_when_the_last_one_is_gone() {
    let world = World::new();
    let cache = world.cache();
    let follower = cache.follow(&wanted("smtp").name);
    cache.retain(BTreeSet::new());
    assert_eq!(cache.places().len(), 1, "the number of its next is kept");
    drop(follower);
    cache.retain([wanted("ledger").name].into());
    assert_eq!(cache.places().len(), 0);
}

/// It is not taken for what lies there.
#[test]
fn who_may_not_write_any_more_is_told_so() {
    let world = World::new();
    let cache = world.cache();
    let (smtp, kept) = (wanted("smtp"), world.kept("one"));
    let earlier = cache.follow(&smtp.name);
    assert!(cache.write(&earlier, &smtp, &kept).unwrap());
    cache.unfollow(&smtp.name);
    assert!(!cache.write(&earlier, &smtp, &kept).unwrap());
    let later = cache.follow(&smtp.name);
    assert!(cache.write(&later, &smtp, &kept).unwrap());
    cache.retain(BTreeSet::new());
    assert!(!cache.write(&later, &smtp, &kept).unwrap());
    assert_eq!(world.files(), [""; 0]);
}
