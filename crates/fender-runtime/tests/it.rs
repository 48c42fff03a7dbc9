//! What changes a whole process is tried in a child of its own: the tests named `child_…` are
//! those children, ignored unless their parent starts them.

#![expect(
    clippy::unwrap_used,
    reason = "the helpers of tests may, like the tests themselves"
)]

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fender_runtime::accept::Accept;
use fender_runtime::drain::Drain;
use fender_runtime::listen::{ListenAddress, Listener, Listeners};
use fender_runtime::sys;
use rustix::process::{Resource, Rlimit};
use tokio::time::Instant;

fn child(name: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([
        name,
        "--exact",
        "--ignored",
        "--nocapture",
        "--test-threads=1",
    ]);
    command
}

#[track_caller]
fn assert_passed(output: Output) {
    let said = String::from_utf8_lossy(&output.stdout);
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}\n{complained}");
    assert!(said.contains("1 passed"), "no such child: {said}");
}

#[test]
fn exhausted_descriptors_pause_the_accept_loop_which_does_not_spin_and_recovers_by_itself() {
    assert_passed(child("child_runs_out_of_descriptors").output().unwrap());
}

#[test]
#[ignore = "child"]
fn child_runs_out_of_descriptors() {
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt()
        .json()
        .with_writer(move || writer.clone())
        .finish();
    let _logging = tracing::subscriber::set_default(subscriber);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap();
    runtime.block_on(run_out_of_descriptors());

    let log = lines.text();
    let pauses: Vec<_> = log
        .lines()
        .filter(|line| line.contains("cannot accept"))
        .collect();
    assert_eq!(pauses.len(), 2, "one line for each of two episodes: {log}");
    assert!(pauses[0].contains("Too many open files"), "{log}");
    let recovery = log
        .lines()
        .find(|line| line.contains("accepting connections again"))
        .unwrap();
    let paused = number(recovery, "paused_ms");
    let attempts = number(recovery, "attempts");
    // Ten seconds of 5 ms doubling to 1 s, each shortened by up to a half: not twenty a second, let
    // alone a million, and never a longer silence than a second.
    assert!((10_000..=11_000).contains(&paused), "{recovery}");
    assert!((16..=30).contains(&attempts), "{recovery}");
}

async fn run_out_of_descriptors() {
    let drain = Drain::new();
    let listener = Listener::bind(&"127.0.0.1:0".parse().unwrap()).unwrap();
    let ListenAddress::Tcp(address) = *listener.local_address() else {
        unreachable!()
    };
    let mut accept = Accept::new(listener, 100);
    let _clients: Vec<_> = (0..3).map(|_| connect(address)).collect();

    let hog = hog_descriptors();
    let begins = Instant::now();
    let frees = async {
        tokio::time::sleep(Duration::from_secs(10)).await;
        drop(hog);
    };
    let (accepted, ()) = tokio::join!(accept.next(&drain), frees);
    let _first = accepted.unwrap();
    assert!(
        begins.elapsed() <= Duration::from_secs(11),
        "{:?}",
        begins.elapsed()
    );
    let begins = Instant::now();
    let _second = accept.next(&drain).await.unwrap();
    assert_eq!(
        begins.elapsed(),
        Duration::ZERO,
        "a success ends the pauses"
    );

    let _hog = hog_descriptors();
    let stops = async {
        tokio::time::sleep(Duration::from_secs(10)).await;
        drain.stop();
        Instant::now()
    };
    let ends = async { (accept.next(&drain).await.is_none(), Instant::now()) };
    let (stopped, (ended, at)) = tokio::join!(stops, ends);
    assert!(ended);
    assert_eq!(at, stopped, "a pause can be cancelled");
}

fn connect(address: SocketAddr) -> TcpStream {
    TcpStream::connect(address).unwrap()
}

/// Opens files until no more can be opened.
fn hog_descriptors() -> Vec<File> {
    let limit = Rlimit {
        current: Some(64),
        ..rustix::process::getrlimit(Resource::Nofile)
    };
    rustix::process::setrlimit(Resource::Nofile, limit).unwrap();
    let mut files = Vec::new();
    while let Ok(file) = File::open("/dev/null") {
        files.push(file);
    }
    files
}

fn number(line: &str, field: &str) -> u64 {
    let (_, rest) = line.split_once(&format!("\"{field}\":")).unwrap();
    rest.chars()
        .take_while(char::is_ascii_digit)
        .collect::<String>()
        .parse()
        .unwrap()
}

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Lines {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn an_inherited_listener_serves_what_waits_in_its_queue() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut client = connect(listener.local_addr().unwrap());
    client.write_all(b"ahoy").unwrap();
    let inherits = child("child_inherits_a_listener");
    let mut shell = Command::new("sh");
    shell.args(["-c", r#"exec 3<&0 0</dev/null; exec "$0" "$@""#]);
    shell.arg(inherits.get_program()).args(inherits.get_args());
    shell.stdin(Stdio::from(std::os::fd::OwnedFd::from(listener)));
    assert_passed(shell.output().unwrap());
    let mut heard = String::new();
    client.read_to_string(&mut heard).unwrap();
    assert_eq!(heard, "ahoy yourself");
}

#[test]
#[ignore = "child"]
fn child_inherits_a_listener() {
    let pid = std::process::id().to_string();
    // Before there is a runtime: its own descriptors would take the numbers of inherited ones.
    let listeners = Listeners::inherit(Some(&pid), Some("1"), Some("web")).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(answer_on_the_inherited(listeners));

    let again = Listeners::inherit(Some(&pid), Some("1"), None).unwrap_err();
    assert!(again.to_string().contains("already"), "{again}");
}

async fn answer_on_the_inherited(listeners: Listeners) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    let (name, address) = listeners.leftover().pop().unwrap();
    assert_eq!(name, "web");
    let listener = listeners.open(&address).unwrap();
    assert!(listeners.leftover().is_empty());
    let (mut socket, _) = listener.accept().await.unwrap();
    let mut heard = [0; 4];
    socket.read_exact(&mut heard).await.unwrap();
    socket.write_all(&heard).await.unwrap();
    socket.write_all(b" yourself").await.unwrap();
}

#[test]
fn announced_descriptors_that_are_not_open_are_an_error() {
    assert_passed(child("child_inherits_nothing").output().unwrap());
}

#[test]
#[ignore = "child"]
fn child_inherits_nothing() {
    let pid = std::process::id().to_string();
    let error = Listeners::inherit(Some(&pid), Some("many"), None).unwrap_err();
    assert!(error.to_string().contains("`many`"), "{error}");
    let error = Listeners::inherit(Some(&pid), Some("2000"), None).unwrap_err();
    assert!(error.to_string().contains("descriptor"), "{error}");
}

#[test]
fn a_hardened_process_cannot_dump_its_memory_or_gain_privileges() {
    assert_passed(child("child_hardens_itself").output().unwrap());
}

#[test]
#[ignore = "child"]
fn child_hardens_itself() {
    sys::pin_name_service();
    sys::harden_process().unwrap();
    sys::no_new_privileges().unwrap();
    sys::become_subreaper().unwrap();
    sys::die_with_parent(sys::Signal::KILL).unwrap();

    use rustix::process::DumpableBehavior::NotDumpable;
    assert_eq!(rustix::process::dumpable_behavior().unwrap(), NotDumpable);
    let core = rustix::process::getrlimit(Resource::Core);
    assert_eq!((core.current, core.maximum), (Some(0), Some(0)));
    assert!(rustix::thread::no_new_privs().unwrap());
    assert!(rustix::process::child_subreaper().unwrap().is_some());
    let death = rustix::process::parent_process_death_signal().unwrap();
    assert_eq!(death, Some(sys::Signal::KILL));

    let lowered = Rlimit {
        current: Some(32),
        ..rustix::process::getrlimit(Resource::Nofile)
    };
    rustix::process::setrlimit(Resource::Nofile, lowered).unwrap();
    let raised = sys::raise_descriptor_limit().unwrap();
    assert!(raised > 32);
    assert_eq!(
        rustix::process::getrlimit(Resource::Nofile).current,
        Some(raised)
    );
    // Names still resolve, from files alone.
    use std::net::ToSocketAddrs;
    assert!(
        ("localhost", 80)
            .to_socket_addrs()
            .unwrap()
            .next()
            .is_some()
    );
}

#[test]
fn a_child_starts_with_signals_its_parent_ignored_at_their_default() {
    let reports = child("child_reports_ignored_signals");
    let mut shell = Command::new("sh");
    shell.args(["-c", r#"trap '' HUP USR1; exec "$0" "$@""#]);
    shell.arg(reports.get_program()).args(reports.get_args());
    assert_passed(shell.output().unwrap());
}

#[test]
#[ignore = "child"]
fn child_reports_ignored_signals() {
    let ignored = |command: &mut Command| {
        let status = command.args(["/proc/self/status"]).output().unwrap().stdout;
        let status = String::from_utf8(status).unwrap();
        let mask = status
            .lines()
            .find_map(|line| line.strip_prefix("SigIgn:"))
            .unwrap();
        u64::from_str_radix(mask.trim(), 16).unwrap()
    };
    let hup_and_usr1 = 1 | 1 << 9;
    assert_eq!(
        ignored(&mut Command::new("cat")) & hup_and_usr1,
        hup_and_usr1
    );
    let mut command = Command::new("cat");
    sys::default_signals(&mut command, None);
    let the_c_librarys_own = 1 << 31 | 1 << 32;
    assert_eq!(ignored(&mut command) & !the_c_librarys_own, 0);
}
