//! Credentials are served over HTTP at a Unix socket: a token is good only in the hands of the user whose file it lies in, by the
//! kernel's word (DESIGN §9).

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _, symlink};
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use fender_tests::Process;
use fender_tests::process::{PATIENCE, binary, installed};
use tempfile::TempDir;

/// Whose the token is, who else has a credential here, and who has none.
const APP: u32 = 4401;
const JOB: u32 = 4402;
const STRANGER: u32 = 4403;

/// The value; nothing that Fender writes but its answer may hold it.
const CANARY: &str = "canary-e20b64d1-url-socket";

/// A socket with a path, or one with only a name in the network namespace.
#[derive(Clone, Copy, Debug)]
enum Door {
    Path,
    Abstract,
}

struct Served {
    directory: TempDir,
    door: Door,
}

impl Served {
    fn new() -> Self {
        Self::at(Door::Path)
    }

    fn at(door: Door) -> Self {
        let directory = tempfile::Builder::new()
            .prefix("fender-url-socket-")
            .tempdir()
            .unwrap();
        let path = |name: &str| directory.path().join(name);
        // Other users come here.
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        for own in ["tokens", "run"] {
            fs::create_dir(path(own)).unwrap();
            fs::set_permissions(path(own), fs::Permissions::from_mode(0o755)).unwrap();
        }
        fs::write(path("smtp"), CANARY).unwrap();
        let own = directory.path().display();
        let token = |name: &str, user: u32| {
            format!(
                "{{ url: {{ token: {{ path: {own}/tokens/{name}, owner: \"{user}\", storage: disk }} }} }}"
            )
        };
        let text = format!(
            "apiVersion: fender.dev/v1\nkind: Sidecar\nmetadata: {{ namespace: shop, name: orders }}\nspec: {{ credentials: [ smtp ] }}\n---\n\
             apiVersion: fender.dev/v1\nkind: Credential\nmetadata: {{ namespace: shop, name: smtp }}\nspec:\n  \
             source: {{ file: {{ path: {own}/smtp }} }}\n  deliver: [ {}, {} ]\n",
            token("app", APP),
            token("job", JOB)
        );
        fs::write(path("sidecar.yaml"), text).unwrap();
        Self { directory, door }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn socket(&self) -> PathBuf {
        self.path("run/url.sock")
    }

    /// The name of an abstract one: the directory's, since there is no other like it.
    fn name(&self) -> &str {
        let name = self.directory.path().file_name();
        name.and_then(|it| it.to_str()).unwrap()
    }

    fn connect(&self) -> UnixStream {
        match self.door {
            Door::Path => UnixStream::connect(self.socket()),
            Door::Abstract => UnixStream::connect_addr(&self.abstract_address()),
        }
        .unwrap()
    }

    fn abstract_address(&self) -> SocketAddr {
        SocketAddr::from_abstract_name(self.name()).unwrap()
    }

    fn command(&self) -> Command {
        let mut command = Command::new(binary());
        command
            .env_clear()
            .args(["--log", "debug", "watch", "--config"])
            .arg(self.path("sidecar.yaml"))
            .arg("--admin-socket")
            .arg(self.path("admin.sock"))
            .arg("--credentials-url")
            .arg(match self.door {
                Door::Path => format!("unix:{}", self.socket().display()),
                Door::Abstract => format!("@{}", self.name()),
            })
            .stdin(Stdio::null());
        command
    }

    fn start(&self) -> Process {
        let mut process = Process::start("watch", &mut self.command(), &self.path("log"));
        process.wait_ready(&self.path("admin.sock"));
        process
    }

    fn token(&self, consumer: &str) -> String {
        fs::read_to_string(self.path("tokens").join(consumer)).unwrap()
    }

    /// `curl` as this user: the status, and what was answered.
    fn curl(&self, user: u32, token: &str, more: &[&str]) -> (String, String) {
        let (option, socket) = match self.door {
            Door::Path => ("--unix-socket", self.socket().into_os_string()),
            Door::Abstract => ("--abstract-unix-socket", self.name().into()),
        };
        let output = Command::new(installed("setpriv"))
            .env_clear()
            .args([format!("--reuid={user}"), format!("--regid={user}")])
            .args(["--clear-groups", "--"])
            .arg(installed("curl"))
            .args([
                "--silent",
                "--max-time",
                "60",
                "--write-out",
                "%{stderr}%{http_code}",
            ])
            .arg(option)
            .arg(socket)
            .arg("--header")
            .arg(format!("Authorization: Bearer {token}"))
            .args(more)
            .arg("http://localhost/v1/credentials/smtp")
            .output()
            .unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (text(output.stderr), text(output.stdout))
    }
}

fn answered(status: &str, body: &str) -> (String, String) {
    (status.to_owned(), body.to_owned())
}

#[test]
fn a_token_is_good_in_the_hands_of_its_own_user_alone() {
    let served = Served::new();
    is_good_in_the_hands_of_its_own_user_alone(&served);
    let mode = fs::metadata(served.socket()).unwrap().permissions().mode();
    assert_eq!(
        mode & 0o777,
        0o666,
        "the kernel says who comes, not the mode"
    );
}

#[test]
fn a_token_is_good_in_the_hands_of_its_own_user_alone_at_an_abstract_socket() {
    let served = Served::at(Door::Abstract);
    is_good_in_the_hands_of_its_own_user_alone(&served);
    assert!(!served.socket().exists(), "it has no file");
}

fn is_good_in_the_hands_of_its_own_user_alone(served: &Served) {
    let sidecar = served.start();
    let [app, job] = ["app", "job"].map(|consumer| served.token(consumer));
    let ask = |user, token: &str| served.curl(user, token, &[]);
    assert_eq!(ask(APP, &app), answered("200", CANARY));
    assert_eq!(ask(JOB, &job), answered("200", CANARY));
    assert_eq!(ask(APP, &"0".repeat(64)), answered("401", ""));
    // A token that leaked: to another consumer, to somebody else, to root.
    assert_eq!(ask(JOB, &app), answered("401", ""));
    for another in [STRANGER, 0, 65_534] {
        // Closed before a byte is read: nothing was answered.
        assert_eq!(ask(another, &app), answered("000", ""), "{another}");
    }
    let log = sidecar.log();
    assert!(
        log.contains("user=4403") && log.contains("no credential is for it"),
        "{log}"
    );
    for secret in [CANARY, &app, &job] {
        assert!(!log.contains(secret), "{log}");
    }
}

#[test]
fn attack_a_user_that_is_not_named_is_closed_before_a_byte_is_read() {
    for door in [Door::Path, Door::Abstract] {
        let served = Served::at(door);
        let _sidecar = served.start();
        // It says nothing, and sees the end all the same: this test is root, whom no document names.
        let mut silent = served.connect();
        silent.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut heard = Vec::new();
        silent.read_to_end(&mut heard).unwrap();
        assert!(heard.is_empty(), "{door:?}");
    }
}

/// An abstract name belongs to whoever comes first, and to one network namespace.
#[test]
fn attack_an_abstract_name_that_somebody_has_taken_ends_the_start_and_hears_nothing() {
    let served = Served::at(Door::Abstract);
    let squatter = UnixListener::bind_addr(&served.abstract_address()).unwrap();
    squatter.set_nonblocking(true).unwrap();
    let output = served.command().output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(69), "{text}");
    let me = format!("process {} of user 0", std::process::id());
    for part in ["--credentials-url", served.name(), &me] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(!served.path("tokens/app").exists(), "no token was written");
    if let Ok((mut probe, _)) = squatter.accept() {
        // It was asked who it is, by way of the kernel, and told nothing.
        probe.set_nonblocking(false).unwrap();
        let mut heard = Vec::new();
        probe.read_to_end(&mut heard).unwrap();
        assert!(heard.is_empty());
    }
    drop(squatter);

    let _sidecar = served.start();
    let token = served.token("app");
    assert_eq!(served.curl(APP, &token, &[]), answered("200", CANARY));
    // In another network namespace nobody has the name, whoever asks there.
    let elsewhere = Command::new(installed("unshare"))
        .args(["--net", "--"])
        .arg(installed("curl"))
        .args(["--silent", "--abstract-unix-socket", served.name()])
        .arg("http://localhost/v1/credentials/smtp")
        .output()
        .unwrap();
    assert_eq!(elsewhere.status.code(), Some(7), "it cannot connect");
}

#[test]
fn attack_what_was_passed_on_or_sent_by_a_browser_is_refused_at_the_socket_too() {
    let served = Served::new();
    let _sidecar = served.start();
    let token = served.token("app");
    for header in [
        "Host: example.com",
        "Host: localhost:8201",
        "Origin: http://localhost",
        "Referer: http://localhost/",
        "Sec-Fetch-Mode: cors",
        "Forwarded: for=10.0.0.1",
        "X-Forwarded-For: 10.0.0.1",
        "X-Real-IP: 10.0.0.1",
        "Via: 1.1 proxy",
    ] {
        let (status, body) = served.curl(APP, &token, &["--header", header]);
        assert_eq!((status.as_str(), body.as_str()), ("403", ""), "{header}");
    }
    let (status, _) = served.curl(APP, &token, &["--request", "POST"]);
    assert_eq!(status, "405");
}

/// Ten thousand connections by somebody who has nothing here: each is closed, and consumers are answered all the while.
#[test]
fn attack_a_flood_of_strangers_takes_nothing_from_consumers() {
    let served = Served::new();
    let sidecar = served.start();
    let token = served.token("app");
    let request = format!(
        "GET /v1/credentials/smtp HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n\r\n"
    );
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..2500 {
                    let mut stream = UnixStream::connect(served.socket()).unwrap();
                    // It may be closed before all of it is sent.
                    let _ = stream.write_all(request.as_bytes());
                    let mut heard = Vec::new();
                    let _ = stream.read_to_end(&mut heard);
                    assert!(heard.is_empty());
                }
            });
        }
        for _ in 0..5 {
            assert_eq!(served.curl(APP, &token, &[]), answered("200", CANARY));
        }
    });
    assert!(!sidecar.log().contains(CANARY));
}

#[test]
fn attack_one_user_that_keeps_its_connections_keeps_nobody_else_from_theirs() {
    let served = Served::new();
    let _sidecar = served.start();
    let token = served.token("app");
    // The other consumer connects until it is turned away, and says nothing for as long as it is let.
    let script = "import socket, sys\n\
        held = []\n\
        for _ in range(32):\n    s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); held.append(s)\n\
        held[-1].recv(1)\n\
        print('full', flush=True)\n\
        sys.stdin.read()\n";
    let mut hoarder = Command::new(installed("setpriv"))
        .args([format!("--reuid={JOB}"), format!("--regid={JOB}")])
        .args(["--clear-groups", "--"])
        .arg(installed("python3"))
        .args(["-c", script])
        .arg(served.socket())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = [0; 4];
    hoarder
        .stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut line)
        .unwrap();
    assert_eq!(
        &line, b"full",
        "the last of its connections was closed at once"
    );
    assert_eq!(served.curl(APP, &token, &[]), answered("200", CANARY));
    drop(hoarder.stdin.take());
    hoarder.wait().unwrap();
}

#[test]
fn attack_a_path_that_is_somebody_elses_ends_the_start_and_is_left_alone() {
    let served = Served::new();
    let refused = || {
        let output = served.command().output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(69), "{text}");
        assert!(text.contains("--credentials-url"), "{text}");
        assert!(!served.path("tokens/app").exists(), "no token was written");
    };
    // Somebody listens there, or there is a file, or a link to one.
    let squatter = UnixListener::bind(served.socket()).unwrap();
    refused();
    drop(squatter);
    fs::remove_file(served.socket()).unwrap();
    fs::write(served.socket(), "a file").unwrap();
    refused();
    assert_eq!(fs::read_to_string(served.socket()).unwrap(), "a file");
    fs::remove_file(served.socket()).unwrap();
    let target = served.path("target");
    fs::write(&target, "not to be touched").unwrap();
    fs::set_permissions(&target, fs::Permissions::from_mode(0o600)).unwrap();
    symlink(&target, served.socket()).unwrap();
    refused();
    let mode = fs::metadata(&target).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "what a link leads to keeps its mode");
    fs::remove_file(served.socket()).unwrap();

    // What a dead process has left is replaced.
    drop(UnixListener::bind(served.socket()).unwrap());
    let _sidecar = served.start();
    assert!(
        fs::metadata(served.socket())
            .unwrap()
            .file_type()
            .is_socket()
    );
    assert_eq!(
        served.curl(APP, &served.token("app"), &[]),
        answered("200", CANARY)
    );
}
