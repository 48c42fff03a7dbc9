//! What cannot be done holds up nothing else, and is said once for each thing that is wrong, and when it is over.

use super::left::NAMED;
use super::*;

/// Where something is kept: a directory, which is not removed as a file is.
fn in_the_way(world: &World, cache: &Cache, name: &str) -> PathBuf {
    let path = world.path("cache").join(cache.file(&wanted(name).name));
    fs::create_dir(&path).unwrap();
    path
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_removed_holds_up_no_other_and_is_named_once_and_once_when_it_is_gone() {
    remember_log();
    let world = World::new();
    let (cache, drain) = (world.cache(), Drain::new());
    cache.put(&wanted("m"), &world.kept("one")).unwrap();
    let first = in_the_way(&world, &cache, "a");
    let last = in_the_way(&world, &cache, "z");
    keep_only(&cache, BTreeSet::new(), &drain).await;
    assert_eq!(world.files().len(), 2, "the one between them is gone");
    tokio::time::sleep(HOUR).await;
    let cannot = "cannot remove what is kept of credentials that no document names";
    assert_eq!(world.logged(cannot), 1);
    assert_eq!(world.logged("-shop.a.sealed"), 1);
    assert_eq!(world.logged("-shop.z.sealed"), 1, "all are told");

    // Another reason.
    fs::remove_dir(&first).unwrap();
    tokio::time::sleep(HOUR).await;
    assert_eq!(world.logged(cannot), 2);
    assert_eq!(world.logged("-shop.a.sealed"), 1);
    fs::remove_dir(&last).unwrap();
    tokio::time::sleep(HOUR).await;
    assert_eq!(world.logged(cannot), 2);
    assert_eq!(
        world.logged("could not be removed from the credentials cache is gone"),
        1
    );
    drain.stop();
    drain.drained().await;
}

#[tokio::test(start_paused = true)]
async fn what_is_half_written_and_cannot_be_removed_holds_up_no_other() {
    remember_log();
    let world = World::new();
    let half = format!(".{}-half", world.cache().prefix());
    let long_ago = std::time::SystemTime::UNIX_EPOCH + HOUR;
    for name in ["a", "m", "z"] {
        let path = world.path("cache").join(format!("{half}-{name}"));
        match name {
            "m" => fs::write(&path, "half").unwrap(),
            _ => fs::create_dir(&path).unwrap(),
        }
        let opened = fs::File::open(&path).unwrap();
        opened.set_modified(long_ago).unwrap();
    }
    // Another process may be at it, until it hands over.
    let successor = world.cache();
    assert!(successor.hand().give(Duration::ZERO).await);
    successor.retain(BTreeSet::new());
    assert_eq!(world.files().len(), 3);
    successor.hand().take();
    successor.retain_again();
    assert_eq!(world.files(), [format!("{half}-a"), format!("{half}-z")]);
    let lines = logged(&world.path("cache").to_string_lossy(), "cannot tidy");
    assert_eq!(lines.len(), 1, "{lines:?}");
    for name in ["a", "z"] {
        assert!(lines[0].contains(&format!("{half}-{name}")), "{lines:?}");
    }
}

#[test]
fn of_many_things_that_are_wrong_some_are_named_and_the_rest_is_counted() {
    let problems = |many: usize| together((0..many).map(|one| one.to_string()).collect());
    assert_eq!(problems(0), None);
    assert_eq!(problems(2).unwrap(), "0; 1");
    assert_eq!(
        problems(NAMED + 3).unwrap(),
        "0; 1; 2; 3; 4; 5; 6; 7; and 3 more"
    );
}

/// As when a disk is full.
#[tokio::test(start_paused = true)]
async fn what_cannot_be_kept_is_said_once_and_once_when_it_is_kept_again() {
    remember_log();
    let world = World::new();
    let cache = world.cache();
    let file = in_the_way(&world, &cache, "smtp");
    let answers = [Ok(fetched("one"))];
    let mut running = Running::of(&world, &cache, Standing::Asked, answers);
    running.first().await;
    tokio::time::sleep(HOUR / 2).await;
    assert_eq!(world.logged("cannot keep a credential"), 1);
    fs::remove_dir(&file).unwrap();
    tokio::time::sleep(HOUR / 8).await;
    settled(|| world.files().len() == 1).await;
    assert_eq!(world.logged("cannot keep a credential"), 1);
    running.end().await;
    assert_eq!(world.logged("could not be kept is kept again"), 1);
}

#[tokio::test(start_paused = true)]
async fn what_could_not_be_removed_is_removed_later_and_each_is_said_once() {
    remember_log();
    let world = World::new();
    let cache = world.cache();
    cache.put(&wanted("smtp"), &world.kept("one")).unwrap();
    // A file system that refuses for a while: here, because there is a directory.
    let (file, aside) = (world.file(), world.path("aside"));
    fs::rename(&file, &aside).unwrap();
    fs::create_dir(&file).unwrap();
    let no = || Err(FetchError::Denied("403".to_owned()));
    let again = Err(FetchError::Missing("404".to_owned()));
    let mut running = Running::start(&world, [no(), again]);
    running.first().await;
    // Whoever hears of the second has tried to remove it because of the first.
    running.ask_again().await;
    running
        .until(|state| matches!(state, State::Withdrawn(FetchError::Missing(_))))
        .await;
    // And because of the second: the paused clock stands still as long as a thread of the runtime works. In between there is no file.
    // It is tried again and again, and said once.
    tokio::time::sleep(Duration::from_secs(600)).await;
    let cannot = "cannot remove what is kept of a credential;";
    assert_eq!(world.logged(cannot), 1);
    assert_eq!(world.logged("could not be removed is gone"), 0);
    fs::remove_dir(&file).unwrap();
    fs::rename(&aside, &file).unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
    settled(|| world.files().is_empty()).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    running.end().await;
    assert_eq!(world.logged(cannot), 1);
    assert_eq!(world.logged("could not be removed is gone"), 1);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_written_leaves_nothing_older_behind() {
    let world = World::new();
    let cache = world.cache();
    cache.put(&wanted("smtp"), &world.kept("one")).unwrap();
    let long = Fetched {
        generation: Generation::named("x".repeat(1000)),
        ..fetched("two")
    };
    let kept = Kept {
        fetched: long,
        ..world.kept("two")
    };
    assert!(cache.put(&wanted("smtp"), &kept).is_err());
    assert_eq!(world.files(), [""; 0]);
}
