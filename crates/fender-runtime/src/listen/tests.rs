use std::os::unix::fs::PermissionsExt;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

#[test]
fn an_address_survives_being_written_and_read() {
    for text in ["0.0.0.0:8443", "[::1]:0", "unix:/run/app.sock"] {
        assert_eq!(text.parse::<ListenAddress>().unwrap().to_string(), text);
    }
}

#[test]
fn what_is_no_address_is_refused_with_the_way_out() {
    let long = format!("unix:/{}", "a".repeat(107));
    for text in [
        "",
        "8443",
        "localhost:80",
        "unix:",
        "unix:app.sock",
        "unix:/a\0b",
        &long,
    ] {
        let error = text.parse::<ListenAddress>().unwrap_err().to_string();
        assert!(error.contains("IP:PORT"), "{error}");
    }
}

#[test]
fn an_ipv4_peer_of_a_dual_stack_listener_reads_as_ipv4() {
    let peer = PeerAddr::from("[::ffff:10.1.2.3]:40".parse::<SocketAddr>().unwrap());
    assert_eq!(peer.ip(), Some("10.1.2.3".parse().unwrap()));
    assert_eq!(peer.to_string(), "10.1.2.3:40");
    assert_eq!(PeerAddr::Unix.ip(), None);
}

/// What a successor has of a process's listeners once it was handed them.
fn handed_over(ours: &Listeners) -> Listeners {
    let successor = Listeners::none();
    successor.take_over(ours.descriptors().unwrap()).unwrap();
    successor
}

fn loopback(listeners: &Listeners) -> (Listener, SocketAddr) {
    let listener = listeners.open(&"127.0.0.1:0".parse().unwrap()).unwrap();
    let ListenAddress::Tcp(address) = *listener.local_address() else {
        unreachable!()
    };
    (listener, address)
}

#[tokio::test]
async fn a_connection_in_the_queue_survives_the_listener_being_handed_over() {
    let ours = Listeners::none();
    let (listener, address) = loopback(&ours);
    let mut client = tokio::net::TcpStream::connect(address).await.unwrap();
    client.write_all(b"still here").await.unwrap();

    let theirs = handed_over(&ours);
    drop((listener, ours));
    let successor = theirs.open(&ListenAddress::Tcp(address)).unwrap();
    let (mut socket, peer) = successor.accept().await.unwrap();
    assert_eq!(peer.ip(), Some("127.0.0.1".parse().unwrap()));
    let mut heard = [0; 10];
    socket.read_exact(&mut heard).await.unwrap();
    assert_eq!(&heard, b"still here");
}

#[tokio::test]
async fn whoever_opens_a_listener_keeps_it_open_and_nobody_else_does() {
    let listeners = Listeners::none();
    let (listener, address) = loopback(&listeners);
    assert_eq!(listeners.descriptors().unwrap().len(), 1);
    let taken = listeners.open(&ListenAddress::Tcp(address)).unwrap_err();
    assert!(taken.to_string().contains(&address.to_string()), "{taken}");
    drop(listener);
    assert!(listeners.descriptors().unwrap().is_empty());
    listeners.open(&ListenAddress::Tcp(address)).unwrap();
}

#[tokio::test]
async fn what_a_predecessor_had_and_nobody_wants_is_closed_when_it_is_said_and_not_before() {
    let ours = Listeners::none();
    let (_wanted, wanted) = loopback(&ours);
    let (unwanted, address) = loopback(&ours);
    let theirs = handed_over(&ours);
    let _served = theirs.open(&ListenAddress::Tcp(wanted)).unwrap();
    drop(unwanted);
    tokio::net::TcpStream::connect(address).await.unwrap();
    assert_eq!(theirs.close_leftover(), [ListenAddress::Tcp(address)]);
    tokio::net::TcpStream::connect(address).await.unwrap_err();
}

#[tokio::test]
async fn a_socket_that_was_inherited_and_handed_over_is_one_and_not_two() {
    let ours = Listeners::none();
    let (_listener, address) = loopback(&ours);
    let theirs = handed_over(&ours);
    theirs.take_over(ours.descriptors().unwrap()).unwrap();
    assert_eq!(theirs.leftover().len(), 1);
    // And what waits is handed on as well as what is open.
    assert_eq!(
        handed_over(&theirs).leftover()[0].1,
        ListenAddress::Tcp(address)
    );
}

#[tokio::test]
async fn small_answers_are_not_held_back_whoever_made_the_listener() {
    let made_elsewhere = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = made_elsewhere.local_addr().unwrap();
    let listener = Listener::from_fd(made_elsewhere.into()).unwrap();
    let _client = tokio::net::TcpStream::connect(address).await.unwrap();
    let (Socket::Tcp(socket), _) = listener.accept().await.unwrap() else {
        unreachable!()
    };
    assert!(socket.nodelay().unwrap());
}

#[tokio::test]
async fn attack_what_does_not_listen_is_not_taken_over() {
    let (one, _other) = std::os::unix::net::UnixStream::pair().unwrap();
    let error = Listeners::none().take_over(vec![one.into()]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
}

#[tokio::test]
async fn a_unix_socket_is_for_its_owner_from_its_first_moment() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("app.sock");
    let address = ListenAddress::Unix(path.clone());
    let listener = Listener::bind(&address).unwrap();
    assert_eq!(
        path.symlink_metadata().unwrap().permissions().mode() & 0o777,
        0o600
    );
    assert_eq!(listener.local_address(), &address);

    let mut client = tokio::net::UnixStream::connect(&path).await.unwrap();
    let (mut socket, peer) = listener.accept().await.unwrap();
    assert_eq!(peer, PeerAddr::Unix);
    socket.write_all(b"ahoy").await.unwrap();
    let mut heard = [0; 4];
    client.read_exact(&mut heard).await.unwrap();
}

#[tokio::test]
async fn an_abandoned_socket_file_is_replaced_and_a_used_one_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let address = ListenAddress::Unix(directory.path().join("app.sock"));
    let listener = Listener::bind(&address).unwrap();
    let error = Listener::bind(&address).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    drop(listener);
    Listener::bind(&address).unwrap();
}

#[tokio::test]
async fn a_file_that_is_no_socket_is_never_removed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("precious");
    std::fs::write(&path, "data").unwrap();
    Listener::bind(&ListenAddress::Unix(path.clone())).unwrap_err();
    assert_eq!(std::fs::read(&path).unwrap(), b"data");
}

#[tokio::test]
async fn a_socket_that_does_not_listen_is_no_listener() {
    let (one, _other) = std::os::unix::net::UnixStream::pair().unwrap();
    let error = Listener::from_fd(one.into()).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
}

#[tokio::test]
async fn listeners_meant_for_another_process_are_left_alone() {
    for pid in [None, Some("1"), Some("nonsense")] {
        let listeners = Listeners::inherit(pid, Some("3"), None).unwrap();
        assert!(listeners.leftover().is_empty());
    }
}

#[tokio::test]
async fn a_byte_that_was_looked_at_is_still_there() {
    let (near, mut far) = tokio::net::UnixStream::pair().unwrap();
    let mut socket = Socket::from(near);
    far.write_all(b"\x16x").await.unwrap();
    assert_eq!(socket.peek().await.unwrap(), Some(0x16));
    assert_eq!(socket.peek().await.unwrap(), Some(0x16));
    drop(far);
    let mut all = Vec::new();
    socket.read_to_end(&mut all).await.unwrap();
    assert_eq!(all, b"\x16x");
    assert_eq!(socket.peek().await.unwrap(), None);
}
