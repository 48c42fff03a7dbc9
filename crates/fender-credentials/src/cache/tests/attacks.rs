//! Whoever has the directory and not the key, and whoever has time: each attempt ends with an error that names the file and the way out.

use fender_config::snapshot::Lifetime;

use super::*;

/// What is said of the cache with this in the place of its file.
fn with(world: &World, file: &Path, bytes: &[u8]) -> String {
    fs::write(file, bytes).unwrap();
    let refused = world.would_have();
    let said = refused.expect_err("it was used");
    assert!(said.contains(&*file.to_string_lossy()), "{said}");
    assert!(!said.contains(CANARY), "{said}");
    said
}

#[test]
fn attack_one_flipped_bit_anywhere_and_a_file_of_any_other_length_are_refused() {
    let world = World::new();
    world
        .cache()
        .put(&wanted("smtp"), &world.kept(CANARY))
        .unwrap();
    let file = world.file();
    let whole = fs::read(&file).unwrap();
    assert_eq!(world.would_have(), Ok(Some((CANARY.to_owned(), 0))));
    for at in 0..whole.len() {
        let mut flipped = whole.clone();
        flipped[at] ^= 1 << (at % 8);
        let said = with(&world, &file, &flipped);
        assert!(said.contains("remove it"), "{at}: {said}");
    }
    for length in 0..whole.len() {
        with(&world, &file, &whole[..length]);
    }
    for more in 1..40 {
        with(&world, &file, &[&whole[..], &vec![0; more]].concat());
    }
    with(&world, &file, &vec![0; format::MOST + 1]);
    fs::write(&file, &whole).unwrap();
    assert_eq!(world.would_have(), Ok(Some((CANARY.to_owned(), 0))));
}

#[test]
fn attack_the_file_of_another_credential_or_of_another_workload_does_not_open() {
    let world = World::new();
    let cache = world.cache();
    cache
        .put(&wanted("ledger"), &world.kept("ledger's"))
        .unwrap();
    let ledger = fs::read(world.file()).unwrap();
    cache.put(&wanted("smtp"), &world.kept("smtp's")).unwrap();
    let files = world.files();
    let smtp = files.iter().find(|name| name.contains("smtp")).unwrap();
    let smtp = world.path("cache").join(smtp);
    let said = with(&world, &smtp, &ledger);
    assert!(
        said.contains("of another workload, Sidecar or credential"),
        "{said}"
    );

    for owner in [workload("books"), sidecar("shop", "orders")] {
        let other = Cache::open(&world.path("cache"), &world.key("keys/key")).unwrap();
        let other = other.of(&owner);
        other
            .put(&wanted("smtp"), &world.kept("another's"))
            .unwrap();
        let theirs = fs::read(world.path("cache").join(other.file(&wanted("smtp").name))).unwrap();
        let said = with(&world, &smtp, &theirs);
        assert!(
            said.contains("of another workload, Sidecar or credential"),
            "{said}"
        );
    }
}

/// Processes without an identity, in one directory and under one key.
#[test]
fn attack_the_file_of_another_sidecar_does_not_open_under_ones_own_name_and_is_left_alone() {
    let world = World::new();
    let opened = |owner: &Owner| {
        let opened = Cache::open(&world.path("cache"), &world.key("keys/key"));
        opened.unwrap().of(owner)
    };
    let smtp = wanted("smtp");
    let mine = opened(&sidecar("shop", "orders"));
    mine.put(&smtp, &world.kept(CANARY)).unwrap();
    let file = mine.file(&smtp.name);
    let there = |file: &str| world.path("cache").join(file);
    for (namespace, name) in [("shop", "books"), ("other", "orders")] {
        let other = opened(&sidecar(namespace, name));
        // It neither reads nor removes the file of the other.
        let none = other.have(&smtp, world.now());
        assert!(none.unwrap().is_none());
        other.retain(BTreeSet::new());
        assert_eq!(world.files(), [&*file]);
        // Nor does it take it where it would look for its own.
        let copy = other.file(&smtp.name);
        fs::copy(there(&file), there(&copy)).unwrap();
        let said = other.have(&smtp, world.now()).unwrap_err().to_string();
        assert!(
            said.contains("of another workload, Sidecar or credential"),
            "{said}"
        );
        assert!(said.contains(&copy) && !said.contains(CANARY), "{said}");
        fs::remove_file(there(&copy)).unwrap();
    }
    let kept = opened(&sidecar("shop", "orders")).have(&smtp, world.now());
    assert_eq!(text(&kept.unwrap().unwrap().fetched), CANARY);
}

#[test]
fn attack_names_that_run_into_each_other_are_told_apart() {
    let world = World::new();
    let opened = |whose: &'static str, name: &str| {
        let key = Key::of([7; 32]);
        let name = ObjectName::new("shop", name).unwrap();
        let sealed = format::seal(
            &key,
            &Belongs {
                whose: "a",
                name: &wanted("bc").name,
            },
            &world.kept("one"),
        );
        format::open(&key, &Belongs { whose, name: &name }, &sealed.unwrap()).is_ok()
    };
    assert!(opened("a", "bc"));
    assert!(!opened("ab", "c"));
    assert!(!opened("", "bc"));
}

/// The document has changed since: what the source before said is not the value of this one.
#[test]
fn attack_what_came_from_another_source_is_not_used_and_removed() {
    let world = World::new();
    let other = Kept {
        source: SourceDigest::of(&source("/run/secrets/other")),
        ..world.kept(CANARY)
    };
    world.cache().put(&wanted("smtp"), &other).unwrap();
    let said = world.would_have().unwrap_err();
    assert!(
        said.contains("of another source than the document names now"),
        "{said}"
    );
    assert_eq!(world.files(), [""; 0]);
    let via_control = SourceDigest::of(&CredentialSource::Control(Lifetime::Lasting));
    assert_ne!(via_control, wanted("smtp").source);
    let variable = CredentialSource::Direct(Origin::Environment {
        variable: "/run/secrets/smtp".to_owned(),
    });
    assert_ne!(SourceDigest::of(&variable), wanted("smtp").source);
}

#[test]
fn attack_another_key_opens_nothing_and_is_told_from_a_file_that_was_changed() {
    let world = World::new();
    world
        .cache()
        .put(&wanted("smtp"), &world.kept(CANARY))
        .unwrap();
    fs::write(world.path("keys/key"), [7; 32]).unwrap();
    let said = world.would_have().unwrap_err();
    assert!(
        said.contains("was sealed with another key; remove it"),
        "{said}"
    );
    // Whoever writes another key's name into it gains nothing.
    let forged = {
        let cache = world.cache();
        let mut theirs = fs::read(world.file()).unwrap();
        let ours = format::seal(
            &cache.key,
            &cache.belongs(&wanted("smtp").name),
            &world.kept("x"),
        );
        theirs[8..16].copy_from_slice(&ours.unwrap()[8..16]);
        theirs
    };
    let said = with(&world, &world.file(), &forged);
    assert!(said.contains("does not open"), "{said}");
    // It was lost: another is made, and what is kept is not opened by it.
    fs::remove_file(world.path("keys/key")).unwrap();
    assert!(world.would_have().is_err());
    world
        .cache()
        .put(&wanted("smtp"), &world.kept("two"))
        .unwrap();
    assert_eq!(world.would_have(), Ok(Some(("two".to_owned(), 0))));
}

/// What can be told of a rollback, and what cannot.
#[test]
fn attack_an_old_file_that_is_put_back_is_told_by_its_age_alone() {
    let world = World::new();
    let cache = world.cache();
    cache.put(&wanted("smtp"), &world.kept("old")).unwrap();
    let old = fs::read(world.file()).unwrap();
    world.clock.advance(Duration::from_secs(1800));
    cache.put(&wanted("smtp"), &world.kept("new")).unwrap();
    fs::write(world.file(), &old).unwrap();
    // Within maxStale it is a value that was right half an hour ago, and says so.
    assert_eq!(world.would_have(), Ok(Some(("old".to_owned(), 1800))));
    world.clock.advance(Duration::from_secs(1800));
    assert!(world.would_have().unwrap_err().contains("3600 s ago"));
}

#[test]
fn attack_a_clock_that_was_set_back_makes_nothing_younger_than_it_is() {
    let world = World::new();
    world
        .cache()
        .put(&wanted("smtp"), &world.kept("one"))
        .unwrap();
    let set = |seconds: u64| {
        let now = Duration::from_secs(seconds);
        world.clock.set(UnixTime::since_unix_epoch(now));
        world.would_have()
    };
    assert_eq!(set(BEGINNING - 60), Ok(Some(("one".to_owned(), 0))));
    let said = set(BEGINNING - 61).unwrap_err();
    assert!(
        said.contains("was fetched 61 s in the future; set the clock"),
        "{said}"
    );
    assert!(set(0).is_err());
    // Set right again, it is there.
    assert_eq!(set(BEGINNING + 5), Ok(Some(("one".to_owned(), 5))));
}

#[test]
fn attack_a_file_that_somebody_else_could_have_written_or_a_link_is_not_read() {
    let world = World::new();
    world
        .cache()
        .put(&wanted("smtp"), &world.kept(CANARY))
        .unwrap();
    let file = world.file();
    assert_eq!(
        fs::metadata(&file).unwrap().permissions().mode() & 0o7777,
        0o600
    );
    for mode in [0o640, 0o604, 0o620, 0o602] {
        fs::set_permissions(&file, Permissions::from_mode(mode)).unwrap();
        let said = world.would_have().unwrap_err();
        assert!(
            said.contains(&format!("mode {mode:o}")) && said.contains("remove it"),
            "{said}"
        );
    }
    fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
    let elsewhere = world.path("elsewhere");
    fs::rename(&file, &elsewhere).unwrap();
    symlink(&elsewhere, &file).unwrap();
    let said = world.would_have().unwrap_err();
    assert!(said.contains("is a symbolic link; remove it"), "{said}");
    // Writing takes the place of the link and leaves alone what it leads to.
    let before = fs::read(&elsewhere).unwrap();
    world
        .cache()
        .put(&wanted("smtp"), &world.kept("two"))
        .unwrap();
    assert_eq!(fs::read(&elsewhere).unwrap(), before);
    assert_eq!(world.would_have(), Ok(Some(("two".to_owned(), 0))));

    fs::remove_file(&file).unwrap();
    fs::create_dir(&file).unwrap();
    assert!(
        world
            .would_have()
            .unwrap_err()
            .contains("is not a regular file")
    );
    fs::remove_dir(&file).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, &file, rustix::fs::Mode::RUSR).unwrap();
    assert!(
        world
            .would_have()
            .unwrap_err()
            .contains("is not a regular file")
    );
}

#[test]
fn attack_no_file_holds_the_value_and_none_is_like_another_of_it() {
    use base64::Engine as _;
    let world = World::new();
    let cache = world.cache();
    let mut seen = BTreeSet::new();
    for _ in 0..50 {
        cache.put(&wanted("smtp"), &world.kept(CANARY)).unwrap();
        let file = fs::read(world.file()).unwrap();
        let has = |what: &[u8]| file.windows(what.len()).any(|part| part == what);
        let base64 = base64::engine::general_purpose::STANDARD.encode(CANARY);
        assert!(!has(CANARY.as_bytes()) && !has(base64.as_bytes()));
        assert!(!has(hexadecimal(CANARY.as_bytes()).as_bytes()));
        assert!(!has(b"of canary"), "the name of its generation");
        // Another salt, and so another key, each time.
        assert!(seen.insert(file[16..48].to_vec()));
    }
    // How long it is shows to the next 256 bytes.
    let size = |length: usize| {
        cache
            .put(&wanted("smtp"), &world.kept(&"x".repeat(length)))
            .unwrap();
        fs::metadata(world.file()).unwrap().len()
    };
    assert_eq!(size(1), size(40));
}

/// The corpus of the fuzz target, and files that are almost right.
#[test]
fn attack_any_bytes_in_the_place_of_a_file_are_an_error_and_never_a_panic() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/cached");
    let mut count = 0;
    for entry in fs::read_dir(&corpus).unwrap() {
        format::checks::cached(&fs::read(entry.unwrap().path()).unwrap());
        count += 1;
    }
    assert!(count >= 6, "{count} in {}", corpus.display());
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for length in (0..600).chain([format::MOST, format::MOST + 1]) {
        let mut bytes = Vec::with_capacity(length);
        for _ in 0..length {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            bytes.push((state >> 56) as u8);
        }
        format::checks::cached(&bytes);
        if let Some(head) = bytes.first_chunk_mut::<8>() {
            *head = *b"FENDERC\x01";
        }
        format::checks::cached(&bytes);
    }
}
