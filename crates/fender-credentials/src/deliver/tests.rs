use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use tempfile::TempDir;

use super::*;

fn secret(text: &str) -> Secret {
    Secret::from(text.to_owned())
}

fn delivery(path: &Path) -> FileDelivery {
    FileDelivery {
        path: path.to_owned(),
        mode: 0o400,
        owner: None,
        group: None,
        storage: Storage::Disk,
    }
}

fn place(path: &Path) -> Place {
    Place::new(&delivery(path), &AllowDirs::Any).unwrap()
}

fn directory() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn mode(path: &Path) -> u32 {
    path.symlink_metadata().unwrap().mode() & 0o7777
}

fn names(directory: &TempDir) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(directory.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[track_caller]
fn unfit(place: &Place, why: &str) {
    let error = place.write(&secret("hunter2")).unwrap_err();
    assert!(matches!(error, DeliveryError::Unfit { .. }), "{error}");
    let shown = format!("{error} {error:?}");
    assert!(shown.contains(why) && !shown.contains("hunter2"), "{shown}");
}

#[test]
fn a_secret_arrives_whole_with_its_mode_and_nothing_else_does() {
    let directory = directory();
    let path = directory.path().join("secret");
    let (_, change) = place(&path).write(&secret("one")).unwrap();
    assert_eq!(change, Change::Written);
    assert_eq!(fs::read(&path).unwrap(), b"one");
    assert_eq!(mode(&path), 0o400);
    place(&path).write(&secret("two")).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"two");
    assert_eq!(names(&directory), ["secret"]);
}

#[test]
fn a_reader_with_the_old_file_open_keeps_reading_the_old_value() {
    let directory = directory();
    let path = directory.path().join("secret");
    place(&path).write(&secret("old value")).unwrap();
    let mut reader = File::open(&path).unwrap();
    place(&path).write(&secret("new")).unwrap();
    let mut read = String::new();
    reader.read_to_string(&mut read).unwrap();
    assert_eq!(read, "old value");
}

#[test]
fn equal_bytes_are_not_rewritten_but_their_mode_is_put_right() {
    let directory = directory();
    let path = directory.path().join("secret");
    place(&path).write(&secret("same")).unwrap();
    let inode = path.metadata().unwrap().ino();
    fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
    let (_, change) = place(&path).write(&secret("same")).unwrap();
    assert_eq!(change, Change::Unchanged);
    assert_eq!(path.metadata().unwrap().ino(), inode);
    assert_eq!(mode(&path), 0o400);
}

#[test]
fn the_bits_of_a_mode_beyond_permissions_are_ignored() {
    let directory = directory();
    let path = directory.path().join("secret");
    let wide = FileDelivery {
        mode: 0o6755,
        ..delivery(&path)
    };
    Place::new(&wide, &AllowDirs::Any)
        .unwrap()
        .write(&secret("x"))
        .unwrap();
    assert_eq!(mode(&path), 0o755);
}

#[test]
fn the_owner_is_set_and_put_right_again() {
    let directory = directory();
    let path = directory.path().join("secret");
    let own = rustix::process::geteuid();
    let (owner, group) = if own.is_root() {
        (1234, 4321)
    } else {
        (own.as_raw(), own.as_raw())
    };
    let given = FileDelivery {
        owner: Some(owner.to_string()),
        group: Some(group.to_string()),
        ..delivery(&path)
    };
    let place = Place::new(&given, &AllowDirs::Any).unwrap();
    if !own.is_root() {
        let group = rustix::process::getegid().as_raw();
        let place = Place {
            group: Some(Gid::from_raw(group)),
            ..place
        };
        place.write(&secret("x")).unwrap();
        return;
    }
    place.write(&secret("x")).unwrap();
    std::os::unix::fs::chown(&path, Some(0), Some(0)).unwrap();
    let (_, change) = place.write(&secret("x")).unwrap();
    assert_eq!(change, Change::Unchanged);
    let metadata = path.metadata().unwrap();
    assert_eq!(
        (metadata.uid(), metadata.gid(), mode(&path)),
        (owner, group, 0o400)
    );
}

#[test]
fn an_owner_nobody_knows_is_refused_before_anything_is_written() {
    let path = Path::new("/run/secret");
    let unknown = FileDelivery {
        owner: Some("no-such-user".to_owned()),
        ..delivery(path)
    };
    let error = Place::new(&unknown, &AllowDirs::Any).unwrap_err();
    assert!(error.to_string().contains("`no-such-user`"), "{error}");
}

#[test]
fn a_planted_link_is_replaced_and_what_it_points_at_is_left_alone() {
    let directory = directory();
    let victim = directory.path().join("victim");
    let path = directory.path().join("secret");
    fs::write(&victim, "precious").unwrap();
    symlink(&victim, &path).unwrap();
    symlink(&victim, directory.path().join(".secret.fender-new")).unwrap();
    place(&path).write(&secret("hunter2")).unwrap();
    assert_eq!(fs::read(&victim).unwrap(), b"precious");
    assert!(path.symlink_metadata().unwrap().is_file());
    assert_eq!(names(&directory), ["secret", "victim"]);
}

#[test]
fn a_planted_second_name_does_not_get_the_new_mode() {
    let directory = directory();
    let path = directory.path().join("secret");
    let other = directory.path().join("other");
    fs::write(&path, "same").unwrap();
    fs::hard_link(&path, &other).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o666)).unwrap();
    let (_, change) = place(&path).write(&secret("same")).unwrap();
    assert_eq!(change, Change::Written);
    assert_eq!((mode(&path), mode(&other)), (0o400, 0o666));
}

#[test]
fn a_pipe_in_the_place_of_a_file_blocks_nobody() {
    let directory = directory();
    let path = directory.path().join("secret");
    let made = std::process::Command::new("mkfifo")
        .arg(&path)
        .status()
        .unwrap();
    assert!(made.success());
    place(&path).write(&secret("x")).unwrap();
    assert!(path.symlink_metadata().unwrap().is_file());
}

#[test]
fn a_symbolic_link_in_the_path_is_refused() {
    let directory = directory();
    let real = directory.path().join("real");
    fs::create_dir_all(real.join("below")).unwrap();
    symlink(&real, directory.path().join("link")).unwrap();
    unfit(
        &place(&directory.path().join("link/secret")),
        "symbolic link",
    );
    unfit(
        &place(&directory.path().join("link/below/secret")),
        "symbolic link",
    );
    assert!(fs::read_dir(real).unwrap().count() == 1);
}

#[test]
fn a_directory_everybody_may_write_to_is_refused_sticky_or_not() {
    let directory = directory();
    let shared = directory.path().join("shared");
    fs::create_dir(&shared).unwrap();
    for mode in [0o777, 0o1777, 0o702] {
        fs::set_permissions(&shared, Permissions::from_mode(mode)).unwrap();
        unfit(&place(&shared.join("secret")), "everybody may write to");
    }
    unfit(&place(Path::new("/tmp/secret")), "everybody may write to");
}

#[test]
fn a_path_through_a_directory_everybody_may_write_to_is_refused() {
    let directory = directory();
    let shared = directory.path().join("shared");
    fs::create_dir_all(shared.join("own")).unwrap();
    fs::set_permissions(&shared, Permissions::from_mode(0o777)).unwrap();
    unfit(&place(&shared.join("own/secret")), "could be swapped");
    // Below a sticky one each may only touch their own, and this one is ours.
    fs::set_permissions(&shared, Permissions::from_mode(0o1777)).unwrap();
    place(&shared.join("own/secret"))
        .write(&secret("x"))
        .unwrap();
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(shared.join("own"), Some(1234), None).unwrap();
        unfit(&place(&shared.join("own/secret")), "somebody else");
    }
}

#[test]
fn a_directory_that_is_not_there_is_not_made() {
    let directory = directory();
    unfit(
        &place(&directory.path().join("absent/secret")),
        "make the directory first",
    );
    fs::write(directory.path().join("file"), "").unwrap();
    let error = place(&directory.path().join("file/secret"))
        .write(&secret("x"))
        .unwrap_err();
    assert!(matches!(error, DeliveryError::Failed { .. }), "{error}");
}

/// A directory on tmpfs, with an unsuspicious path.
fn in_memory() -> TempDir {
    tempfile::tempdir_in("/dev/shm").unwrap()
}

#[test]
fn a_disk_is_refused_unless_the_document_says_so() {
    let memory = FileDelivery {
        storage: Storage::Memory,
        ..delivery(Path::new("/usr/secret"))
    };
    unfit(
        &Place::new(&memory, &AllowDirs::Any).unwrap(),
        "`storage: disk`",
    );

    let directory = in_memory();
    let path = directory.path().join("secret");
    let memory = FileDelivery {
        storage: Storage::Memory,
        ..delivery(&path)
    };
    Place::new(&memory, &AllowDirs::Any)
        .unwrap()
        .write(&secret("x"))
        .unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"x");
}

#[test]
fn a_document_from_elsewhere_writes_nowhere_by_default() {
    let path = Path::new("/run/app/secret");
    let error = Place::new(&delivery(path), &AllowDirs::none()).unwrap_err();
    assert!(error.to_string().contains("--allow-dir"), "{error}");
    let allowed = AllowDirs::Below(vec!["/run/app".into()]);
    Place::new(&delivery(path), &allowed).unwrap();
    let escape = delivery(Path::new("/run/app/../../etc/cron.d/x"));
    Place::new(&escape, &allowed).unwrap_err();
}

#[test]
fn what_was_written_is_removed_and_what_somebody_else_wrote_is_not() {
    let directory = directory();
    let path = directory.path().join("secret");
    let (delivered, _) = place(&path).write(&secret("x")).unwrap();
    delivered.remove().unwrap();
    assert_eq!(names(&directory), [""; 0]);
    delivered.remove().unwrap();

    let (delivered, _) = place(&path).write(&secret("x")).unwrap();
    fs::write(directory.path().join("other"), "theirs").unwrap();
    fs::rename(directory.path().join("other"), &path).unwrap();
    delivered.remove().unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"theirs");
}

#[test]
fn a_failed_write_leaves_neither_a_part_nor_the_loss_of_the_old_value() {
    let directory = directory();
    let path = directory.path().join("secret");
    fs::create_dir(&path).unwrap();
    let error = place(&path).write(&secret("hunter2")).unwrap_err();
    assert!(
        matches!(
            error,
            DeliveryError::Failed {
                action: "rename a file to",
                ..
            }
        ),
        "{error}"
    );
    assert_eq!(names(&directory), ["secret"]);
}

#[test]
fn what_a_crash_left_behind_is_replaced() {
    let directory = directory();
    let path = directory.path().join("secret");
    fs::write(directory.path().join(".secret.fender-new"), "half a sec").unwrap();
    place(&path).write(&secret("whole")).unwrap();
    assert_eq!(names(&directory), ["secret"]);
}
