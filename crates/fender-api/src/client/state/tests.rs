use std::os::unix::fs::{PermissionsExt as _, symlink};

use super::*;
use crate::testing::{Authority, ORDERS, id, snapshot};

fn opened() -> (tempfile::TempDir, StateDir) {
    let dir = tempfile::tempdir().unwrap();
    let state = StateDir::open(dir.path().join("state")).unwrap();
    (dir, state)
}

fn filled(state: &StateDir) -> Svid {
    let ca = Authority::new();
    let svid = ca.svid(&id(ORDERS));
    state
        .save_trust(&ca.bundles().into(), Duration::from_secs(7))
        .unwrap();
    state.save_svid(&svid).unwrap();
    state.save_snapshot(&snapshot(3, &ca)).unwrap();
    svid
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn what_was_saved_is_there_in_the_next_life() {
    let (dir, state) = opened();
    let svid = filled(&state);
    drop(state);
    let state = StateDir::open(dir.path().join("state")).unwrap();
    let stored = state.load().unwrap().unwrap();
    assert_eq!(stored.svid.serial(), svid.serial());
    assert_eq!(stored.renewal_grace, Duration::from_secs(7));
    assert_eq!(stored.snapshot.unwrap().version, 3);
}

#[test]
fn directory_and_files_are_closed_to_everybody_else() {
    let (_dir, state) = opened();
    filled(&state);
    state
        .save_pending_key(&NewKey::generate().unwrap())
        .unwrap();
    assert_eq!(mode(state.path()), 0o700);
    let files: Vec<_> = fs::read_dir(state.path())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    assert_eq!(files.len(), 5);
    assert!(files.iter().all(|file| mode(file) == 0o600));
}

/// D2: what was handed over by a process that goes on running for a while.
#[test]
fn a_directory_that_is_handed_on_has_one_writer_and_is_locked_throughout() {
    let (_dir, old) = opened();
    let svid = filled(&old);
    let new = StateDir::visit(old.path()).unwrap();
    assert_eq!(new.load().unwrap().unwrap().svid.serial(), svid.serial());
    let other = Authority::new().svid(&id(ORDERS));
    new.save_svid(&other).unwrap();
    let kept = new.load().unwrap().unwrap().svid;
    assert_eq!(kept.serial(), svid.serial(), "a visitor writes nothing");
    assert!(
        new.lock().unwrap().is_none(),
        "a visitor has nothing to give"
    );
    assert!(matches!(new.claim().unwrap_err(), StateError::InUse { .. }));

    let lock = old.lock().unwrap().unwrap();
    let handed_on = old.hand_on();
    assert_eq!(new.receive(lock).unwrap(), Received::Behind);
    drop(handed_on);
    old.save_svid(&svid).unwrap();
    new.save_svid(&other).unwrap();
    assert_eq!(new.load().unwrap().unwrap().svid.serial(), other.serial());
    assert!(StateDir::open(old.path()).is_err(), "it is locked still");
    drop((old, new));
}

#[test]
fn a_directory_that_was_not_taken_stays_its_owners() {
    let (_dir, state) = opened();
    let svid = filled(&state);
    state.hand_on().take_back();
    let other = Authority::new().svid(&id(ORDERS));
    state.save_svid(&other).unwrap();
    let kept = state.load().unwrap().unwrap().svid;
    assert_ne!(kept.serial(), svid.serial());
    assert!(state.lock().unwrap().is_some());
}

#[test]
fn attack_the_lock_of_another_directory_is_worth_nothing() {
    let (_ours, ours) = opened();
    let (_theirs, theirs) = opened();
    filled(&ours);
    let visitor = StateDir::visit(ours.path()).unwrap();
    let lock = theirs.lock().unwrap().unwrap();
    assert_eq!(visitor.receive(lock).unwrap(), Received::AnotherOne);
    assert!(visitor.lock().unwrap().is_none());
}

#[test]
fn two_sidecars_cannot_share_a_state_directory() {
    let (_dir, state) = opened();
    let second = StateDir::open(state.path()).unwrap_err();
    assert!(matches!(second, StateError::InUse { .. }));
    let path = state.path().to_owned();
    drop(state);
    StateDir::open(path).unwrap();
}

#[test]
fn a_directory_others_can_enter_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o750)).unwrap();
    let error = StateDir::open(dir.path()).unwrap_err();
    assert!(error.to_string().contains("chmod"), "{error}");
}

#[test]
fn a_link_in_the_place_of_the_directory_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (real, link) = (dir.path().join("real"), dir.path().join("link"));
    DirBuilder::new().mode(0o700).create(&real).unwrap();
    symlink(&real, &link).unwrap();
    assert!(matches!(
        StateDir::open(link),
        Err(StateError::NotADirectory { .. })
    ));
}

#[test]
fn a_key_others_can_read_is_refused() {
    let (_dir, state) = opened();
    filled(&state);
    let file = state.path().join(SVID);
    fs::set_permissions(file, fs::Permissions::from_mode(0o644)).unwrap();
    assert!(matches!(state.load(), Err(StateError::Exposed { .. })));
}

#[test]
fn a_link_in_the_place_of_a_file_is_not_followed() {
    let (dir, state) = opened();
    filled(&state);
    let (file, elsewhere) = (state.path().join(SVID), dir.path().join("elsewhere"));
    fs::rename(&file, &elsewhere).unwrap();
    symlink(&elsewhere, &file).unwrap();
    assert!(state.load().is_err());
    filled(&state);
    assert!(
        fs::symlink_metadata(&file).unwrap().is_file(),
        "writing replaces the link"
    );
}

#[test]
fn damage_is_told_with_the_way_out() {
    let (_dir, state) = opened();
    filled(&state);
    fs::write(state.path().join(SVID), "what").unwrap();
    let error = state.load().unwrap_err();
    assert!(error.to_string().contains("new token"), "{error}");
}

#[test]
fn a_snapshot_that_cannot_be_read_is_as_good_as_none() {
    let (_dir, state) = opened();
    filled(&state);
    fs::write(state.path().join(SNAPSHOT), [0xff; 9]).unwrap();
    assert!(state.load().unwrap().unwrap().snapshot.is_none());
}

#[test]
fn what_a_crash_left_beside_a_file_is_in_nobodys_way() {
    let (_dir, state) = opened();
    fs::write(state.path().join(".svid.pem.new"), "half").unwrap();
    filled(&state);
    assert!(state.load().unwrap().is_some());
}
