use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use super::super::{ListenAddress, Listeners};
use super::*;

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn bind(&self, name: &str) -> Listener {
        Listener::bind(&ListenAddress::Unix(self.path(name))).unwrap()
    }

    fn mode(&self, name: &str) -> u32 {
        let metadata = std::fs::symlink_metadata(self.path(name)).unwrap();
        metadata.permissions().mode() & 0o7777
    }

    fn remove(&self, name: &str) {
        std::fs::remove_file(self.path(name)).unwrap();
    }
}

fn refusal(listener: &Listener) -> String {
    let error = listener.admit_everybody().unwrap_err().to_string();
    assert!(error.contains("door.sock"), "{error}");
    error
}

#[tokio::test]
async fn everybody_connects_to_a_socket_only_after_it_was_said() {
    let place = Place::new();
    let door = place.bind("door.sock");
    assert_eq!(place.mode("door.sock"), 0o600);
    door.admit_everybody().unwrap();
    assert_eq!(place.mode("door.sock"), 0o666);
    // Once more changes nothing.
    door.admit_everybody().unwrap();

    // The first who is accepted is a caller, and nothing that was tried before.
    let caller = UnixStream::connect(place.path("door.sock")).unwrap();
    let (accepted, _) = door.accept().await.unwrap();
    drop(caller);
    let super::super::Socket::Unix(accepted) = accepted else {
        panic!("a Unix socket accepts Unix sockets");
    };
    assert!(accepted.peer_addr().unwrap().is_unnamed());
}

#[tokio::test]
async fn attack_what_was_put_in_the_place_of_a_socket_keeps_its_mode() {
    let place = Place::new();
    let private = place.path("private");
    std::fs::write(&private, "nobody else's").unwrap();
    std::fs::set_permissions(&private, PermissionsExt::from_mode(0o600)).unwrap();
    let door = place.bind("door.sock");

    // Between the moment it was bound and the one in which everybody is let in.
    place.remove("door.sock");
    std::os::unix::fs::symlink(&private, place.path("door.sock")).unwrap();
    assert!(refusal(&door).contains("something else in the place"));
    assert_eq!(place.mode("private"), 0o600);

    // A hard link is the file itself.
    place.remove("door.sock");
    std::fs::hard_link(&private, place.path("door.sock")).unwrap();
    refusal(&door);
    assert_eq!(place.mode("private"), 0o600);

    place.remove("door.sock");
    refusal(&door);
}

/// A socket, of this very user, is what is expected there; and yet it is another one.
#[tokio::test]
async fn attack_another_socket_of_this_user_in_its_place_stays_private() {
    let place = Place::new();
    let door = place.bind("door.sock");
    let admin = place.bind("admin.sock");

    place.remove("door.sock");
    std::fs::hard_link(place.path("admin.sock"), place.path("door.sock")).unwrap();
    assert!(refusal(&door).contains("something else in the place"));
    assert_eq!(place.mode("admin.sock"), 0o600);

    place.remove("door.sock");
    std::os::unix::fs::symlink(place.path("admin.sock"), place.path("door.sock")).unwrap();
    refusal(&door);
    assert_eq!(place.mode("admin.sock"), 0o600);

    // Moved there, and then with nobody left who listens at it.
    std::fs::rename(place.path("admin.sock"), place.path("door.sock")).unwrap();
    assert!(refusal(&door).contains("something else in the place"));
    drop(admin);
    assert!(refusal(&door).contains("something else in the place"));
    assert_eq!(place.mode("door.sock"), 0o600);
}

/// What lies there has to be this listener's own socket, by whatever name.
#[tokio::test]
async fn a_socket_that_came_back_to_its_place_is_opened() {
    let place = Place::new();
    let door = place.bind("door.sock");
    std::fs::rename(place.path("door.sock"), place.path("away")).unwrap();
    refusal(&door);
    std::fs::hard_link(place.path("away"), place.path("door.sock")).unwrap();
    door.admit_everybody().unwrap();
    assert_eq!(place.mode("door.sock"), 0o666);
}

#[tokio::test]
async fn who_came_too_early_holds_nobody_up_and_is_dropped() {
    let place = Place::new();
    let door = place.bind("door.sock");
    let early: Vec<_> = (0..EARLY - 1)
        .map(|_| UnixStream::connect(place.path("door.sock")).unwrap())
        .collect();
    door.admit_everybody().unwrap();
    assert_eq!(place.mode("door.sock"), 0o666);
    for mut one in early {
        assert_eq!(io::Read::read(&mut one, &mut [0]).unwrap(), 0);
    }
}

#[tokio::test]
async fn attack_who_connects_faster_than_the_socket_is_opened_does_not_have_it_guessed_whose_it_is()
{
    let place = Place::new();
    let door = place.bind("door.sock");
    let early: Vec<_> = (0..EARLY)
        .map(|_| UnixStream::connect(place.path("door.sock")).unwrap())
        .collect();
    assert!(refusal(&door).contains("start again when they have stopped"));
    assert_eq!(place.mode("door.sock"), 0o600);
    // They have: those that came were let go.
    for mut one in early {
        assert_eq!(io::Read::read(&mut one, &mut [0]).unwrap(), 0);
    }
    door.admit_everybody().unwrap();
    assert_eq!(place.mode("door.sock"), 0o666);
}

/// Whoever opened it may accept as well, so there is no asking whose it is.
#[tokio::test]
async fn a_socket_that_was_handed_over_is_left_as_it_is() {
    let place = Place::new();
    let address = ListenAddress::Unix(place.path("door.sock"));
    let ours = Listeners::none();
    let before = ours.open(&address).unwrap();
    let theirs = Listeners::none();
    theirs.take_over(ours.descriptors().unwrap()).unwrap();
    let after = theirs.open(&address).unwrap();

    assert!(refusal(&after).contains("chmod 666"));
    assert_eq!(place.mode("door.sock"), 0o600);
    before.admit_everybody().unwrap();
    after.admit_everybody().unwrap();
}
