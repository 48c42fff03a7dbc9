use std::collections::BTreeSet;
use std::future::poll_fn;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use fender_config::snapshot::{ServedName, SocketDelivery};
use fender_identity::Secret;
use fender_providers::Generation;
use fender_runtime::courier::Courier;
use fender_runtime::deadline::Deadline;
use fender_runtime::drain::Drain;
use fender_runtime::listen::{ListenAddress, Listener, LocalAddress};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

use super::*;

/// A socket that hands `smtp` over to this test's own user.
struct Served {
    directory: TempDir,
    handovers: Handovers,
    offer: Offer,
    drain: Drain,
}

fn own_user() -> u32 {
    rustix::process::geteuid().as_raw()
}

fn named(name: &str) -> ServedName {
    name.parse().unwrap()
}

fn to(user: u32) -> Audience {
    let delivery = SocketDelivery {
        name: named("smtp"),
        users: vec![user.to_string()],
    };
    Audience {
        users: vec![Handed::new(&delivery).unwrap()],
        readers: Vec::new(),
    }
}

impl Served {
    fn start(limits: SocketLimits) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let handovers = Handovers::default();
        let offer = handovers.offer(&"shop/smtp".parse().unwrap());
        let value = Secret::from("s3cret".to_owned());
        offer
            .put(&to(own_user()), &value, &Generation::named("one"))
            .unwrap();
        let served = Self {
            directory,
            handovers,
            offer,
            drain: Drain::new(),
        };
        let listener = Listener::bind(&ListenAddress::Unix(served.path())).unwrap();
        let (handovers, drain) = (served.handovers.clone(), served.drain.clone());
        served
            .drain
            .spawn(serve(listener, handovers, limits, drain));
        served
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("socket")
    }

    async fn connect(&self) -> UnixStream {
        UnixStream::connect(self.path()).await.unwrap()
    }

    async fn ask(&self, name: &str) -> Result<Secret, AskError> {
        let address = LocalAddress::Path(self.path());
        let users = BTreeSet::from([own_user()]);
        let deadline = Deadline::after(Duration::from_secs(3600));
        let received = ask(&address, &named(name), &users, deadline).await?;
        Ok(received.value)
    }

    async fn refusal(&self, name: &str) -> Refusal {
        let error = self.ask(name).await.unwrap_err();
        let AskError::Refused { refusal, .. } = error else {
            panic!("{error}");
        };
        refusal
    }
}

/// The line that answers these bytes, and what came with it.
async fn answer(stream: UnixStream, bytes: &[u8]) -> Option<(String, Vec<OwnedFd>)> {
    let mut stream = stream;
    let _ = stream.write_all(bytes).await;
    Courier::new(stream).hear().await.unwrap()
}

#[tokio::test]
async fn whoever_may_have_it_gets_the_whole_value_and_the_reason_otherwise() {
    let served = Served::start(SocketLimits::default());
    assert_eq!(served.ask("smtp").await.unwrap().expose(), b"s3cret");
    assert_eq!(served.refusal("other").await, Refusal::Missing);
    served.offer.withdraw();
    assert_eq!(served.refusal("smtp").await, Refusal::Withdrawn);
    // The document names another user from here on.
    served.offer.follow(to(own_user().wrapping_add(1)), true);
    assert_eq!(served.refusal("smtp").await, Refusal::Denied);
    let counts = served.handovers.counts();
    for (word, count) in [("ok", 1), ("missing", 1), ("withdrawn", 1), ("denied", 1)] {
        assert!(counts.contains(&(word, count)), "{counts:?}");
    }
}

#[tokio::test]
async fn attack_what_is_no_single_short_line_is_no_request() {
    let served = Served::start(SocketLimits::default());
    let long = [b"get ".as_slice(), &[b'a'; 4096]].concat();
    let many = b"get smtp\nget smtp\n".as_slice();
    for request in [&b"\n"[..], b"GET /smtp HTTP/1.1\r\n\r\n", &long, many] {
        let (line, along) = answer(served.connect().await, request).await.unwrap();
        assert_eq!((line.as_str(), along.len()), ("malformed", 0));
    }
}

#[tokio::test]
async fn attack_descriptors_that_a_client_sends_are_not_kept() {
    let served = Served::start(SocketLimits::default());
    let (file, mut end) = UnixStream::pair().unwrap();
    let mut courier = Courier::new(served.connect().await);
    courier.say("get smtp", &[file.as_fd(); 32]).await.unwrap();
    drop(file);
    let (line, along) = courier.hear().await.unwrap().unwrap();
    assert!(line.starts_with("ok "), "{line}");
    assert_eq!(along.len(), 1);
    // Nobody has the other end any more.
    assert_eq!(end.read(&mut [0]).await.unwrap(), 0);
}

#[tokio::test]
async fn attack_a_client_that_says_nothing_is_closed_in_its_time() {
    let served = Served::start(SocketLimits {
        socket_request: Duration::from_millis(20),
        ..SocketLimits::default()
    });
    let mut silent = served.connect().await;
    assert_eq!(silent.read(&mut [0]).await.unwrap(), 0);
    let mut slow = served.connect().await;
    slow.write_all(b"get sm").await.unwrap();
    assert_eq!(slow.read(&mut [0]).await.unwrap(), 0);
    assert!(served.ask("smtp").await.is_ok());
}

#[tokio::test]
async fn attack_a_user_has_no_more_connections_than_its_share() {
    let served = Served::start(SocketLimits {
        socket_connections_per_user: 2,
        socket_request: Duration::from_secs(3600),
        ..SocketLimits::default()
    });
    let silent = [served.connect().await, served.connect().await];
    assert_eq!(served.refusal("smtp").await, Refusal::Busy);
    drop(silent);
    // They are given back once the sidecar sees that they have ended.
    while let Err(error) = served.ask("smtp").await {
        assert!(
            matches!(
                error,
                AskError::Refused {
                    refusal: Refusal::Busy,
                    ..
                }
            ),
            "{error}"
        );
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn attack_answers_that_are_not_taken_count_until_they_are() {
    let served = Served::start(SocketLimits {
        socket_connections_per_user: 2,
        ..SocketLimits::default()
    });
    let mut hoard = Vec::new();
    for _ in 0..2 {
        let mut stream = served.connect().await;
        // More than is asked for, and half of the conversation ended: neither frees anything.
        stream.write_all(b"get smtp\n").await.unwrap();
        stream.readable().await.unwrap();
        let _ = stream.write_all(b"x").await;
        stream.shutdown().await.unwrap();
        hoard.push(stream);
    }
    // However long they wait: the sidecar has looked many times by then.
    for _ in 0..20 {
        assert_eq!(served.refusal("smtp").await, Refusal::Busy);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let mut courier = Courier::new(hoard.pop().unwrap());
    let (line, along) = courier.hear().await.unwrap().unwrap();
    assert_eq!((line.starts_with("ok "), along.len()), (true, 1));
    while served.ask("smtp").await.is_err() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn attack_a_full_house_closes_who_comes_instead_of_letting_them_wait() {
    let served = Served::start(SocketLimits {
        socket_connections: 1,
        socket_request: Duration::from_secs(3600),
        ..SocketLimits::default()
    });
    let _silent = served.connect().await;
    let error = served.ask("smtp").await.unwrap_err();
    assert!(matches!(error, AskError::Useless { .. }), "{error}");
}

#[tokio::test]
async fn attack_nothing_is_asked_of_a_stranger_who_has_taken_the_name() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    let users = BTreeSet::from([own_user().wrapping_add(1)]);
    let address = LocalAddress::Path(path);
    let deadline = Deadline::after(Duration::from_secs(3600));
    let (name, theirs) = (named("smtp"), listener.accept());
    let asks = ask(&address, &name, &users, deadline);
    let (asked, accepted) = tokio::join!(asks, theirs);
    assert!(matches!(asked, Err(AskError::Stranger { user, .. }) if user == own_user()));
    let mut heard = Vec::new();
    accepted.unwrap().0.read_to_end(&mut heard).await.unwrap();
    assert_eq!(heard, b"");
}

#[tokio::test]
async fn attack_a_value_that_its_sender_could_still_change_is_not_believed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    let address = LocalAddress::Path(path);
    let users = BTreeSet::from([own_user()]);
    for (line, descriptors) in [
        ("ok one 6 0", 1),
        ("ok one 6 0", 0),
        ("ok one 6 0", 2),
        ("maybe", 0),
    ] {
        let answers = async {
            let mut courier = Courier::new(listener.accept().await.unwrap().0);
            courier.hear().await.unwrap();
            let plain = tempfile::tempfile().unwrap();
            std::io::Write::write_all(&mut &plain, b"s3cret").unwrap();
            let along = vec![plain.as_fd(); descriptors];
            courier.say(line, &along).await.unwrap();
        };
        let deadline = Deadline::after(Duration::from_secs(3600));
        let name = named("smtp");
        let (asked, ()) = tokio::join!(ask(&address, &name, &users, deadline), answers);
        let error = asked.unwrap_err();
        assert!(matches!(error, AskError::Useless { .. }), "{error}");
    }
}

#[tokio::test]
async fn the_end_of_the_sidecar_is_the_end_of_every_conversation() {
    let served = Served::start(SocketLimits {
        socket_request: Duration::from_secs(3600),
        ..SocketLimits::default()
    });
    let mut silent = served.connect().await;
    let mut hoarder = served.connect().await;
    hoarder.write_all(b"get smtp\n").await.unwrap();
    hoarder.readable().await.unwrap();
    let mut end = pin!(served.drain.drained());
    let polled = poll_fn(|context| Poll::Ready(end.as_mut().poll(context).is_ready()));
    assert!(!polled.await);
    served.drain.stop();
    end.await;
    assert_eq!(silent.read(&mut [0]).await.unwrap(), 0);
}
