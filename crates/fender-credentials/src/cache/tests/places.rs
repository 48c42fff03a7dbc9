//! Where cache and key may lie, and to whom they must belong.

use std::os::unix::fs::MetadataExt as _;

use super::*;

fn refused(world: &World) -> String {
    world.open().expect_err("it was opened").to_string()
}

#[test]
fn both_are_made_where_they_are_not_and_are_this_users_alone() {
    let world = World::new();
    world.cache();
    let mode = |name: &str| fs::metadata(world.path(name)).unwrap().mode() & 0o7777;
    assert_eq!((mode("cache"), mode("keys/key")), (0o700, 0o600));
    let key = fs::read(world.path("keys/key")).unwrap();
    assert_eq!(key.len(), 32);
    world.cache();
    assert_eq!(fs::read(world.path("keys/key")).unwrap(), key, "made once");
    assert_eq!(fs::read_dir(world.path("keys")).unwrap().count(), 1);
    let other = World::new();
    other.cache();
    assert_ne!(fs::read(other.path("keys/key")).unwrap(), key);
}

#[test]
fn attack_a_key_that_others_may_read_or_a_link_or_none_at_all_is_refused() {
    let world = World::new();
    world.cache();
    let key = world.path("keys/key");
    let with_mode = |mode| {
        fs::set_permissions(&key, Permissions::from_mode(mode)).unwrap();
        world.open().map(drop).map_err(|error| error.to_string())
    };
    for mode in [0o640, 0o604, 0o660, 0o602, 0o601] {
        let said = with_mode(mode).unwrap_err();
        assert!(
            said.contains(&format!("mode {mode:o}")) && said.contains("chmod go= "),
            "{said}"
        );
        assert!(said.contains("keys/key"), "{said}");
    }
    assert_eq!(with_mode(0o400), Ok(()));
    fs::set_permissions(&key, Permissions::from_mode(0o600)).unwrap();
    for bytes in [&[][..], &[7; 31], &[7; 33], &[7; 64]] {
        fs::write(&key, bytes).unwrap();
        let said = refused(&world);
        assert!(said.contains("does not hold 32 bytes; remove it"), "{said}");
    }
    fs::remove_file(&key).unwrap();
    fs::write(world.path("real"), [7; 32]).unwrap();
    symlink(world.path("real"), &key).unwrap();
    assert!(refused(&world).contains("is a symbolic link"));
    fs::remove_file(&key).unwrap();
    fs::create_dir(&key).unwrap();
    assert!(refused(&world).contains("is not a regular file"));
    fs::remove_dir(&key).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, &key, rustix::fs::Mode::RUSR).unwrap();
    assert!(refused(&world).contains("is not a regular file"));
}

#[test]
fn attack_a_key_beside_what_it_opens_is_refused() {
    let world = World::new();
    let opened = |cache: &str, key: &str| {
        let opened = Cache::open(&world.path(cache), &world.key(key));
        opened.map(drop).map_err(|error| error.to_string())
    };
    fs::create_dir(world.path("both")).unwrap();
    fs::set_permissions(world.path("both"), Permissions::from_mode(0o700)).unwrap();
    fs::create_dir(world.path("both/below")).unwrap();
    for (cache, key) in [
        ("both", "both/key"),
        ("both", "both/below/key"),
        ("both/cache", "both/key"),
        ("both/cache", "key"),
    ] {
        let said = opened(cache, key).unwrap_err();
        assert!(said.contains("lies together with the cache"), "{said}");
        assert!(said.contains("in a directory of its own"), "{said}");
        assert!(!world.path(key).exists(), "nor is it made");
    }
    assert_eq!(opened("both/cache", "keys/key"), Ok(()));
    assert_eq!(opened("both/cache", "both/below/key"), Ok(()));
}

#[test]
fn attack_a_directory_that_others_may_look_into_or_a_link_is_refused() {
    let world = World::new();
    world.cache();
    let cache = world.path("cache");
    for mode in [0o750, 0o701, 0o777, 0o722, 0o1777] {
        fs::set_permissions(&cache, Permissions::from_mode(mode)).unwrap();
        let said = refused(&world);
        assert!(
            said.contains(&format!("mode {mode:o}")) && said.contains("chmod go= "),
            "{said}"
        );
    }
    fs::set_permissions(&cache, Permissions::from_mode(0o700)).unwrap();
    fs::rename(&cache, world.path("real")).unwrap();
    symlink(world.path("real"), &cache).unwrap();
    assert!(refused(&world).contains("is a symbolic link"));
    fs::remove_file(&cache).unwrap();
    fs::write(&cache, "").unwrap();
    assert!(refused(&world).contains("cache"));
    fs::remove_file(&cache).unwrap();

    // What lies below a directory of everybody could be swapped.
    fs::create_dir(world.path("open")).unwrap();
    fs::set_permissions(world.path("open"), Permissions::from_mode(0o777)).unwrap();
    for (cache, key) in [("open/cache", "keys/key"), ("cache", "open/keys/key")] {
        if key.starts_with("open") {
            fs::create_dir(world.path("open/keys")).unwrap();
        }
        let said = Cache::open(&world.path(cache), &world.key(key)).unwrap_err();
        assert!(said.to_string().contains("everybody may write"), "{said}");
    }
}

/// Only root can make what belongs to somebody else; elsewhere there is nothing to show.
#[test]
fn attack_what_belongs_to_another_user_is_refused() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let world = World::new();
    world.cache();
    let give = |path: &Path, user: u32| std::os::unix::fs::chown(path, Some(user), None).unwrap();
    let key = world.path("keys/key");
    give(&key, 4711);
    assert!(refused(&world).contains("belongs to the user 4711"));
    give(&key, 0);
    give(&world.path("cache"), 4711);
    assert!(refused(&world).contains("belongs to the user 4711"));
    give(&world.path("cache"), 0);
    world
        .cache()
        .put(&wanted("smtp"), &world.kept("one"))
        .unwrap();
    give(&world.file(), 4711);
    assert!(world.would_have().unwrap_err().contains("user 4711"));
}

#[test]
fn what_no_document_names_any_more_is_removed_and_not_written_again() {
    let world = World::new();
    let cache = world.cache();
    for name in ["smtp", "ledger"] {
        cache.put(&wanted(name), &world.kept("one")).unwrap();
    }
    let other = Cache::open(&world.path("cache"), &world.key("keys/key")).unwrap();
    let other = other.of(&workload("books"));
    other.put(&wanted("smtp"), &world.kept("one")).unwrap();
    let smtp = wanted("smtp").name;
    cache.retain([smtp.clone()].into());
    assert_eq!(world.files().len(), 2, "and another workload's is its own");
    cache.put(&wanted("ledger"), &world.kept("two")).unwrap();
    assert_eq!(world.files().len(), 2);
    cache.retain(BTreeSet::new());
    other.retain([smtp].into());
    assert_eq!(world.files().len(), 1);
    let left = other.have(&wanted("smtp"), world.now()).unwrap();
    assert!(left.is_some());
}

/// What lies where the file of this one would: a directory, which nobody removes as a file.
fn in_the_way(world: &World, cache: &Cache, name: &str) -> PathBuf {
    let path = world
        .path("cache")
        .join(cache.file(&ObjectName::new("shop", name).unwrap()));
    fs::create_dir(&path).unwrap();
    path
}

/// The first one in the order in which they are removed, and whatever the directory has first.
#[test]
fn attack_a_file_that_cannot_be_removed_leaves_no_other_and_is_removed_when_it_can_be() {
    let world = World::new();
    let before = world.cache();
    for name in ["b", "c", "d", "e"] {
        before.put(&wanted(name), &world.kept("one")).unwrap();
    }
    let cache = world.cache();
    let path = in_the_way(&world, &cache, "a");
    let followers = ["a", "b", "c"].map(|name| cache.follow(&wanted(name).name));
    assert_eq!(cache.retain(BTreeSet::new()), Rest::Untended);
    assert_eq!(world.files().len(), 1, "{:?}", world.files());
    drop(followers);
    // The same documents, and the same again, of which the first one is seen to.
    assert_eq!(cache.retain(BTreeSet::new()), Rest::SeenTo);
    assert!(path.exists());
    fs::remove_dir(&path).unwrap();
    fs::write(&path, CANARY).unwrap();
    assert_eq!(cache.retain(BTreeSet::new()), Rest::SeenTo);
    assert_eq!(world.files(), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn what_could_not_be_removed_is_removed_later_by_one_and_without_another_document() {
    let world = World::new();
    let (cache, drain) = (world.cache(), Drain::new());
    let path = in_the_way(&world, &cache, "a");
    let smtp = BTreeSet::from([wanted("smtp").name]);
    keep_only(&cache, BTreeSet::new(), &drain).await;
    keep_only(&cache, smtp, &drain).await;
    cache.put(&wanted("smtp"), &world.kept("one")).unwrap();
    assert_eq!(Arc::strong_count(&cache), 2, "one sees to it");
    tokio::time::sleep(Duration::from_secs(100)).await;
    assert!(path.exists());
    fs::remove_dir(&path).unwrap();
    fs::write(&path, CANARY).unwrap();
    tokio::time::sleep(Duration::from_secs(31)).await;
    settled(|| Arc::strong_count(&cache) == 1).await;
    let kept = text(
        &cache
            .have(&wanted("smtp"), world.now())
            .unwrap()
            .unwrap()
            .fetched,
    );
    assert_eq!((kept.as_str(), world.files().len()), ("one", 1));

    // And again, if there is something again.
    let path = in_the_way(&world, &cache, "b");
    keep_only(&cache, BTreeSet::new(), &drain).await;
    assert_eq!(Arc::strong_count(&cache), 2);
    fs::remove_dir(&path).unwrap();
    tokio::time::sleep(Duration::from_secs(31)).await;
    settled(|| Arc::strong_count(&cache) == 1).await;
    drain.stop();
    drain.drained().await;
}

#[test]
fn what_a_crash_has_left_is_removed_at_the_next_start() {
    let world = World::new();
    let cache = world.cache();
    cache.put(&wanted("smtp"), &world.kept("one")).unwrap();
    let name = world.files().remove(0);
    let left = world
        .path("cache")
        .join(format!(".{name}.0011223344556677"));
    fs::write(&left, CANARY).unwrap();
    let start = || world.cache().retain(BTreeSet::from([wanted("smtp").name]));
    start();
    assert_eq!(world.files().len(), 2, "somebody may be writing it");
    let file = fs::File::options().write(true).open(&left).unwrap();
    file.set_modified(std::time::UNIX_EPOCH).unwrap();
    start();
    assert_eq!(world.files(), [name]);
}

#[test]
fn a_value_of_any_size_is_kept_whole_up_to_the_largest_there_is() {
    let world = World::new();
    let cache = world.cache();
    for length in [0, 1, 150, 197, 198, 199, 256, 1024 * 1024] {
        let kept = world.kept(&"x".repeat(length));
        let short = Kept {
            fetched: Fetched {
                generation: Generation::named("g"),
                ..kept.fetched.clone()
            },
            ..kept
        };
        cache.put(&wanted("smtp"), &short).unwrap();
        let read = cache.have(&wanted("smtp"), world.now()).unwrap().unwrap();
        assert!(read.fetched.value.ct_eq(&kept.fetched.value), "{length}");
        assert_eq!(read.at, kept.at);
    }
}

#[test]
fn debug_shows_neither_key_nor_value() {
    let world = World::new();
    let cache = world.cache();
    let key = fs::read(world.path("keys/key")).unwrap();
    let kept = Kept {
        fetched: Fetched {
            generation: Generation::named("g"),
            ..fetched(CANARY)
        },
        ..world.kept("one")
    };
    let said = format!("{cache:?} {kept:?}");
    assert!(
        !said.contains(CANARY) && !said.contains(&format!("{key:?}")),
        "{said}"
    );
    assert!(said.contains("cache"), "{said}");
}
