//! A key that a service manager gives: who may read it is what decides, and not the bits that its mode shows.

use super::*;
use crate::cache::readers::tests::{list, of_systemd, with_group};

/// What a service manager would have made, in memory.
struct Given {
    world: World,
    directory: TempDir,
}

impl Given {
    fn new() -> Self {
        let directory = tempfile::tempdir_in("/dev/shm").unwrap();
        let given = Self {
            world: World::new(),
            directory,
        };
        fs::write(given.path(), [7; 32]).unwrap();
        given.set_mode(0o400);
        given
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("cache-key")
    }

    fn set_mode(&self, mode: u32) {
        fs::set_permissions(self.path(), Permissions::from_mode(mode)).unwrap();
    }

    fn set_list(&self, entries: &[(u16, u16, u32)]) {
        let flags = rustix::fs::XattrFlags::empty();
        let name = "system.posix_acl_access";
        rustix::fs::setxattr(self.path(), name, &list(entries), flags).unwrap();
    }

    fn mode(&self) -> u32 {
        fs::metadata(self.path()).unwrap().permissions().mode() & 0o7777
    }

    fn open(&self, place: impl Fn(PathBuf) -> KeyPlace) -> Result<Cache, String> {
        let opened = Cache::open(&self.world.path("cache"), &place(self.path()));
        let opened = opened.map_err(|error| error.to_string())?;
        Ok(opened.of(&workload("orders")))
    }

    fn refused(&self) -> String {
        let said = self.open(KeyPlace::Credential).unwrap_err();
        assert!(said.contains("/cache-key"), "{said}");
        said
    }
}

fn own() -> u32 {
    rustix::process::geteuid().as_raw()
}

#[test]
fn what_a_service_manager_gives_this_user_alone_opens_whatever_the_mode_shows() {
    let given = Given::new();
    let cache = given.open(KeyPlace::Credential).unwrap();
    let kept = given.world.kept(CANARY);
    cache.put(&wanted("smtp"), &kept).unwrap();
    given.set_list(&of_systemd(own()));
    assert_eq!(given.mode(), 0o440, "the mask, and no group");
    // Also by its path, as `%d/cache-key` names it.
    for place in [KeyPlace::Credential, KeyPlace::File] {
        let cache = given.open(place).unwrap();
        let have = cache.have(&wanted("smtp"), given.world.now());
        assert_eq!(text(&have.unwrap().unwrap().fetched), CANARY);
    }
    assert_eq!(fs::read_dir(given.directory.path()).unwrap().count(), 1);
}

#[test]
fn attack_a_key_that_a_group_or_another_user_may_read_is_refused_and_they_are_named() {
    let given = Given::new();
    given.set_mode(0o440);
    let said = given.refused();
    assert!(said.contains("is open to others (mode 440)"), "{said}");
    let whose = format!("this process's user (uid {}) may read it", own());
    assert!(said.contains("`User=`") && said.contains(&whose), "{said}");
    for (entries, who) in [
        (
            of_systemd(own() + 4711),
            format!("the user {}", own() + 4711),
        ),
        (with_group(own(), 0), "the group 0".to_owned()),
    ] {
        given.set_list(&entries);
        assert_eq!(given.mode(), 0o440);
        let said = given.refused();
        assert!(said.contains(&format!("is open to {who}")), "{said}");
        let said = given.open(KeyPlace::File).unwrap_err();
        assert!(said.contains(&who) && said.contains("chmod go= "), "{said}");
    }
    // As that error advises: the mask goes, and with it what the list gives.
    given.set_mode(0o400);
    given.open(KeyPlace::File).unwrap();
}

#[test]
fn a_credential_that_is_not_there_or_not_in_memory_is_refused_and_never_made() {
    let given = Given::new();
    fs::remove_file(given.path()).unwrap();
    let said = given.refused();
    assert!(said.contains("LoadCredentialEncrypted="), "{said}");
    assert!(!given.path().exists());
    for bytes in [&[][..], &[7; 31], &[7; 33]] {
        fs::write(given.path(), bytes).unwrap();
        given.set_mode(0o400);
        let said = given.refused();
        assert!(
            said.contains("does not hold 32 bytes; they are to be"),
            "{said}"
        );
        fs::remove_file(given.path()).unwrap();
    }
    symlink("/dev/zero", given.path()).unwrap();
    assert!(given.refused().contains("is a symbolic link"));

    // A disk, as far as this machine has one there.
    let world = World::new();
    world.cache();
    let key = KeyPlace::Credential(world.path("keys/key"));
    let opened = Cache::open(&world.path("cache"), &key).map_err(|error| error.to_string());
    let keys = fs::File::open(world.path("keys/key")).unwrap();
    match crate::deliver::directory::is_in_memory(&keys).unwrap() {
        true => assert!(opened.is_ok()),
        false => assert!(opened.unwrap_err().contains("does not lie in memory")),
    }
}
