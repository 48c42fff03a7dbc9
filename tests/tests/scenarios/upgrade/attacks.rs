//! Who is not the successor of a sidecar gets nothing at its upgrade socket, and the sidecar goes on.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixStream;
use std::process::Command;

use fender_tests::pki::{Authority, Template};
use fender_tests::process::{PATIENCE, Process, binary};
use fender_tests::{installed, wait_until};

use crate::berth::Berth;
use crate::standalone::{CALLER, ORDERS};

const NOBODY: u32 = 65534;
const HELLO: &str = r#"{"say":"hello","protocol":1,"version":"0","wants":"take-over"}"#;

fn serving() -> (Berth, Process) {
    let berth = Berth::new("1s");
    let mut process = berth.start(&mut berth.command());
    berth.wait_ready(&mut process);
    (berth, process)
}

/// What is answered to a line; nothing if the conversation ends.
fn said(stream: &UnixStream, line: &str) -> String {
    let mut stream = stream;
    writeln!(stream, "{line}").unwrap();
    let mut answer = String::new();
    // A conversation that ends with something unread is reset.
    let _ = BufReader::new(stream).read_line(&mut answer);
    answer
}

async fn goes_on(berth: &Berth, process: &mut Process) {
    process.assert_running();
    assert_eq!(berth.client().get("/public").await.unwrap().status, 200);
}

/// DESIGN §14: 0600 in a 0700 directory.
#[tokio::test]
async fn the_socket_and_its_directory_are_their_users_alone() {
    let (berth, _process) = serving();
    let mode = |path: &std::path::Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let socket = berth.upgrade_socket();
    assert_eq!(
        (mode(&socket), mode(socket.parent().unwrap())),
        (0o600, 0o700)
    );
}

#[tokio::test]
async fn attack_a_directory_that_others_reach_is_no_place_for_the_socket() {
    let berth = Berth::new("1s");
    let shared = berth.path("private");
    fs::create_dir(&shared).unwrap();
    fs::set_permissions(&shared, fs::Permissions::from_mode(0o750)).unwrap();
    let mut process = berth.start(&mut berth.command());
    assert_eq!(process.wait(PATIENCE).code(), Some(64));
    assert!(
        berth.log().contains("which others can reach"),
        "{}",
        berth.log()
    );
    fs::set_permissions(&shared, fs::Permissions::from_mode(0o700)).unwrap();
    chown(&shared, Some(NOBODY), None).unwrap();
    let mut process = berth.start(&mut berth.command());
    assert_eq!(process.wait(PATIENCE).code(), Some(64));
}

/// By the file's mode; and if somebody opens that, by the kernel's word on who connects.
#[tokio::test]
async fn attack_another_user_gets_nothing() {
    let (berth, mut process) = serving();
    let socket = berth.upgrade_socket();
    let script = "import socket, sys\n\
                  s = socket.socket(socket.AF_UNIX)\n\
                  s.connect(sys.argv[1])\n\
                  s.sendall((sys.argv[2] + '\\n').encode())\n\
                  data, fds, _, _ = socket.recv_fds(s, 65536, 64)\n\
                  print('heard', data, fds)\n";
    let other = || {
        let mut command = Command::new(installed("setpriv"));
        command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]);
        command
            .arg(installed("python3"))
            .args(["-c", script])
            .arg(&socket)
            .arg(HELLO);
        let output = command.output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (text(&output.stdout), text(&output.stderr))
    };
    let (out, err) = other();
    assert!(
        out.is_empty() && err.contains("PermissionError"),
        "{out}{err}"
    );

    let open = |path: &std::path::Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    };
    open(berth.path("").as_path(), 0o755);
    open(socket.parent().unwrap(), 0o755);
    open(&socket, 0o666);
    let (out, err) = other();
    let ended = ["ConnectionResetError", "BrokenPipeError"];
    let nothing = out.starts_with("heard b'' []") || ended.iter().any(|it| err.contains(it));
    assert!(nothing, "{out}{err}");
    wait_until("the refusal is in the log", PATIENCE, || {
        berth.log().contains("refused user 65534")
    });
    goes_on(&berth, &mut process).await;
}

/// The same user, in another container that shares the volume: without the workload's key it is nobody.
#[tokio::test]
async fn attack_a_sidecar_of_another_identity_or_another_authority_gets_nothing() {
    let (berth, mut process) = serving();
    let identity = berth.path("identity");
    let stranger = Authority::new("example.org");
    let config = berth.config().replace("/identity/", "/theirs/");
    let theirs = berth.path("theirs");
    fs::create_dir(&theirs).unwrap();
    let document = berth.path("theirs.yaml");
    fs::write(&document, config).unwrap();
    for (name, impostor) in [("another identity", CALLER), ("another authority", ORDERS)] {
        if name == "another identity" {
            berth
                .authority
                .issue(&Template::svid(impostor))
                .write(&theirs);
            fs::copy(identity.join("bundle.pem"), theirs.join("bundle.pem")).unwrap();
        } else {
            stranger.issue(&Template::svid(impostor)).write(&theirs);
            stranger.write_bundle(&theirs);
        }
        let mut command = Command::new(binary());
        command
            .env_clear()
            .args(["--log", "debug", "sidecar", "--config"])
            .arg(&document);
        command.arg("--take-over").arg(berth.upgrade_socket());
        let mut impostor = Process::start(name, &mut command, &berth.path("impostor"));
        assert_eq!(
            impostor.wait(PATIENCE).code(),
            Some(69),
            "{name}: {}",
            impostor.log()
        );
        assert!(
            impostor
                .log()
                .contains("does not prove to be this workload"),
            "{}",
            impostor.log()
        );
        assert!(
            !impostor.log().contains("received the listeners"),
            "{}",
            impostor.log()
        );
    }
    assert!(
        berth.log().contains("a successor was refused"),
        "{}",
        berth.log()
    );
    goes_on(&berth, &mut process).await;
}

/// It could learn who asks, and hand over sockets that lead to it: a successor believes nobody unproven either.
#[tokio::test]
async fn attack_somebody_else_in_the_place_of_the_sidecar_is_not_succeeded() {
    let berth = Berth::new("1s");
    let directory = berth.upgrade_socket();
    let directory = directory.parent().unwrap();
    fs::create_dir(directory).unwrap();
    fs::set_permissions(directory, fs::Permissions::from_mode(0o700)).unwrap();
    let squatter = std::os::unix::net::UnixListener::bind(berth.upgrade_socket()).unwrap();
    let mut command = berth.command();
    let mut successor = berth.start(command.arg("--take-over").arg(berth.upgrade_socket()));
    let (stream, _) = squatter.accept().unwrap();
    let mut lines = BufReader::new(stream.try_clone().unwrap());
    let mut line = String::new();
    lines.read_line(&mut line).unwrap();
    assert!(line.contains("take-over"), "{line}");
    writeln!(
        &stream,
        r#"{{"say":"welcome","nonce":"{}"}}"#,
        "0".repeat(32)
    )
    .unwrap();
    line.clear();
    lines.read_line(&mut line).unwrap();
    // Its own proof, sent back to it: made in the other role it is worth nothing.
    (&stream).write_all(line.as_bytes()).unwrap();
    assert_eq!(successor.wait(PATIENCE).code(), Some(69), "{}", berth.log());
    assert!(
        berth.log().contains("does not prove to be this workload"),
        "{}",
        berth.log()
    );
}

#[tokio::test]
async fn attack_what_makes_no_sense_is_answered_briefly_or_not_at_all() {
    let (berth, mut process) = serving();
    let connect = || {
        let stream = UnixStream::connect(berth.upgrade_socket()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    };
    for nonsense in [
        "GET / HTTP/1.1",
        "{}",
        "null",
        r#"{"say":"yours"}"#,
        r#"{"say":"new"}"#,
    ] {
        assert_eq!(said(&connect(), nonsense), "", "{nonsense}");
    }
    let newer = HELLO.replace("\"protocol\":1", "\"protocol\":2");
    let answer = said(&connect(), &newer);
    assert!(
        answer.contains("refused") && answer.contains("protocol 1"),
        "{answer}"
    );
    // Without an end it is not collected.
    let endless = connect();
    let mut sent = 0;
    while sent < 16 * 1024 * 1024 && (&endless).write_all(&[b'x'; 4096]).is_ok() {
        sent += 4096;
    }
    assert!(sent < 16 * 1024 * 1024, "it was read to no end");

    // It says what it wants and proves nothing.
    let silent = connect();
    assert!(said(&silent, HELLO).contains("welcome"));
    let second = said(&connect(), HELLO);
    assert!(
        second.contains("refused") && second.contains("another successor"),
        "{second}"
    );
    let mut rest = String::new();
    let _ = (&silent).read_to_string(&mut rest);
    assert!(!rest.contains("sockets"), "{rest}");

    let wrong = connect();
    assert!(said(&wrong, HELLO).contains("welcome"));
    let proof = format!(
        r#"{{"say":"identity","nonce":"{}","chain":"","signature":""}}"#,
        "0".repeat(32)
    );
    assert!(said(&wrong, &proof).contains("refused"));
    goes_on(&berth, &mut process).await;
    assert!(
        !berth.log().contains("a successor serves"),
        "{}",
        berth.log()
    );
}
