//! Real applications are told of a changed credential: nginx by SIGHUP, one in Python by HTTP, one that is started again; and what
//! was not acknowledged is told after a restart (DESIGN §9).

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use fender_tests::pki::{Authority, Template};
use fender_tests::process::{
    PATIENCE, Process, binary, free_address, installed, output, wait_for_port,
};
use fender_tests::{python, wait_until};
use rustix::process::Signal;
use tempfile::TempDir;

/// A sidecar from a file, with one credential.
struct Berth {
    directory: TempDir,
}

impl Berth {
    /// `notify` is the list of whom the credential tells.
    fn new(value: &str, notify: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let berth = Self { directory };
        let authority = Authority::new("example.org");
        let svid = Template::svid("spiffe://example.org/ns/shop/sa/job");
        authority.issue(&svid).write(&berth.path("identity"));
        authority.write_bundle(&berth.path("identity"));
        berth.becomes(value);
        let text = format!(
            "apiVersion: fender.dev/v1\nkind: Sidecar\nmetadata: {{ namespace: shop, name: job }}\nspec:\n  \
             identity: {{ files: {{ certificate: {0}/identity/certificate.pem, key: {0}/identity/key.pem, bundle: {0}/identity/bundle.pem }} }}\n  \
             credentials: [ smtp ]\n---\n\
             apiVersion: fender.dev/v1\nkind: Credential\nmetadata: {{ namespace: shop, name: smtp }}\nspec:\n  \
             source: {{ file: {{ path: {0}/source }} }}\n  \
             deliver: [ {{ file: {{ path: {0}/delivered, storage: disk }} }} ]\n  notify: {1}\n",
            berth.directory.path().display(),
            notify.replace("DIR", berth.directory.path().to_str().unwrap())
        );
        fs::write(berth.path("sidecar.yaml"), text).unwrap();
        berth
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn becomes(&self, value: &str) {
        fs::write(self.path("fresh"), value).unwrap();
        fs::rename(self.path("fresh"), self.path("source")).unwrap();
    }

    fn sidecar(&self, app: &[&str]) -> Process {
        let mut command = Command::new(binary());
        command
            .args(["sidecar", "--config"])
            .arg(self.path("sidecar.yaml"))
            .arg("--state")
            .arg(self.path("state"))
            .stdin(Stdio::null());
        if !app.is_empty() {
            command.arg("--").args(app);
        }
        let mut process = Process::start("sidecar", &mut command, &self.path("log"));
        process.wait_ready(&self.path("state/admin.sock"));
        process
    }

    fn status(&self) -> String {
        let socket = self.path("state/admin.sock");
        let (code, out, err) = output(binary(), &["status", "--sidecar", socket.to_str().unwrap()]);
        assert_eq!(code, 0, "{out}{err}");
        out
    }
}

fn stop(mut sidecar: Process) {
    sidecar.signal(Signal::TERM);
    assert!(sidecar.wait(PATIENCE).success(), "{}", sidecar.log());
}

/// The body of `GET /`; nothing while nobody answers.
fn get(address: SocketAddr) -> Option<String> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5)).ok()?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    answer
        .split_once("\r\n\r\n")
        .map(|(_, body)| body.to_owned())
}

fn nginx(home: &Path, address: SocketAddr) -> Process {
    let home = home.to_str().unwrap();
    let config = format!(
        "daemon off; worker_processes 1; user root; pid {home}/nginx.pid; error_log {home}/error.log;\n\
         events {{ worker_connections 64; }}\nhttp {{ access_log off; client_body_temp_path {home}/body; proxy_temp_path {home}/proxy;\n\
         fastcgi_temp_path {home}/fastcgi; uwsgi_temp_path {home}/uwsgi; scgi_temp_path {home}/scgi;\n\
         server {{ listen {address}; location / {{ default_type text/plain; include {home}/delivered; }} }} }}\n"
    );
    let file = format!("{home}/nginx.conf");
    fs::write(&file, config).unwrap();
    let mut command = Command::new(installed("nginx"));
    command.args(["-c", &file, "-p", home, "-e", &format!("{home}/error.log")]);
    let mut process = Process::start("nginx", &mut command, &Path::new(home).join("nginx.log"));
    wait_for_port(address, &mut process);
    process
}

#[test]
fn nginx_is_reloaded_by_sighup_when_what_it_includes_has_changed() {
    let notify = "[ { signal: { signal: HUP, pidFile: DIR/nginx.pid } } ]";
    let berth = Berth::new("return 200 one;", notify);
    let sidecar = berth.sidecar(&[]);
    let address = free_address();
    let mut nginx = nginx(berth.directory.path(), address);
    assert_eq!(get(address).as_deref(), Some("one"));
    berth.becomes("return 200 two;");
    // It reads what it includes when it is told to, and not before.
    wait_until("nginx has read it", PATIENCE, || {
        get(address).as_deref() == Some("two")
    });
    nginx.assert_running();
    wait_until("it is known to know", PATIENCE, || {
        berth.status().contains("knows all")
    });
    stop(sidecar);
    nginx.signal(Signal::TERM);
    assert!(nginx.wait(PATIENCE).success());
}

#[test]
fn an_application_is_told_by_http_until_it_acknowledges_also_after_a_restart_of_the_sidecar() {
    let address = free_address();
    // Acknowledged once: a busy machine must not take an answer for none.
    let notify = format!("[ {{ http: {{ url: 'http://{address}/-/reload', timeout: 2m }} }} ]");
    let berth = Berth::new("one", &notify);
    let sidecar = berth.sidecar(&[]);
    // Nobody is there yet.
    berth.becomes("two");
    wait_until("the sidecar cannot tell", PATIENCE, || {
        sidecar
            .log()
            .contains("cannot be told of changed credentials")
    });
    let busy = berth.path("busy");
    let mut command = python::script("notified.py");
    command.arg(address.port().to_string());
    command.arg(berth.path("delivered")).arg(&busy);
    let mut app = Process::start("app", &mut command, &berth.path("app.log"));
    let knows = |expected: &str| {
        wait_until("the application knows", PATIENCE, || {
            get(address).as_deref() == Some(expected)
        });
    };
    knows("two 1");

    fs::write(&busy, "").unwrap();
    berth.becomes("three");
    wait_until("the application refuses", PATIENCE, || {
        sidecar.log().contains("it answered 503")
    });
    let shown = berth.status();
    assert!(shown.contains("has still to hear of shop/smtp"), "{shown}");
    stop(sidecar);
    fs::remove_file(&busy).unwrap();
    assert_eq!(get(address).as_deref(), Some("two 1"));

    let sidecar = berth.sidecar(&[]);
    knows("three 2");
    // It is acknowledged once the sidecar has read the answer.
    wait_until("it is known to know", PATIENCE, || {
        berth.status().contains("knows all")
    });
    stop(sidecar);
    // The same bytes again are no change, before which the next one would be told.
    let sidecar = berth.sidecar(&[]);
    berth.becomes("four");
    knows("four 3");
    stop(sidecar);
    let record = fs::read_to_string(berth.path("state/notified")).unwrap();
    assert!(!record.contains("four"), "{record}");
    app.kill();
}

#[test]
fn an_application_that_reads_only_at_its_start_is_started_again() {
    let berth = Berth::new("one ", "[ { restart: {} } ]");
    let script = format!(
        "cat {0}/delivered >> {0}/seen; exec sleep 1000",
        berth.directory.path().display()
    );
    let mut sidecar = berth.sidecar(&["/bin/sh", "-c", &script]);
    let seen = berth.path("seen");
    let saw = |expected: &str| {
        wait_until("the application has read it", PATIENCE, || {
            fs::read_to_string(&seen).is_ok_and(|text| text == expected)
        });
    };
    saw("one ");
    berth.becomes("two ");
    saw("one two ");
    wait_until("it is known to know", PATIENCE, || {
        berth
            .status()
            .contains("restart of the application knows all")
    });
    // It was asked to: that it ended by a signal is nobody's problem.
    let log = sidecar.log();
    let ended = "the application has ended by the SIGTERM that it was asked by, starting it again";
    assert!(log.contains(ended) && !log.contains("143"), "{log}");
    sidecar.signal(Signal::TERM);
    // The application's own end by the signal.
    assert_eq!(
        sidecar.wait(PATIENCE).code(),
        Some(128 + 15),
        "{}",
        sidecar.log()
    );
    // One that is started by the next sidecar has read everything.
    berth.becomes("three ");
    let mut sidecar = berth.sidecar(&["/bin/sh", "-c", &script]);
    saw("one two three ");
    berth.becomes("four ");
    saw("one two three four ");
    sidecar.signal(Signal::TERM);
    sidecar.wait(PATIENCE);
}
