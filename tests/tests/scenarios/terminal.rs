//! A terminal or a pipe that nobody reads, or a terminal that somebody stopped, holds nobody up: neither a request nor whatever else writes to the log.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use fender_tests::client::Connection;
use fender_tests::process::{PATIENCE, Process, binary, installed};
use fender_tests::wait_until;
use rustix::process::Signal;
use rustix::pty::OpenptFlags;

use crate::standalone::{CALLER, Standalone};

/// More lines of the access log than a terminal or a pipe keeps.
const REQUESTS: usize = 600;
const STOP: &[u8] = b"\x13";
const GO_ON: &[u8] = b"\x11";

/// The other side of a terminal.
struct Terminal {
    keyboard: File,
    path: PathBuf,
}

impl Terminal {
    fn open() -> Self {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = rustix::pty::openpt(flags).unwrap();
        rustix::pty::unlockpt(&master).unwrap();
        let path = rustix::pty::ptsname(&master, Vec::new()).unwrap();
        Self {
            keyboard: File::from(master),
            path: PathBuf::from(path.into_string().unwrap()),
        }
    }

    /// A pipe with a name, which keeps as little.
    fn pipe(directory: &Path) -> Self {
        let path = directory.join("pipe");
        let made = Command::new(installed("mkfifo")).arg(&path).status();
        assert!(made.unwrap().success());
        // By both sides, so that opening it waits for nobody.
        let both = File::options().read(true).write(true).open(&path);
        Self {
            keyboard: both.unwrap(),
            path,
        }
    }

    fn press(&self, key: &[u8]) {
        (&self.keyboard).write_all(key).unwrap();
    }

    /// Everything that is shown from now on, to its end.
    fn read(&self) -> Arc<Mutex<String>> {
        let mut screen = self.keyboard.try_clone().unwrap();
        let shown = Arc::new(Mutex::new(String::new()));
        let seen = Arc::clone(&shown);
        std::thread::spawn(move || {
            let mut some = [0; 4096];
            while let Ok(length @ 1..) = screen.read(&mut some) {
                let some = String::from_utf8_lossy(&some[..length]);
                seen.lock().unwrap().push_str(&some);
            }
        });
        shown
    }
}

/// The same sidecar once more, with its log and its access log at the terminal.
fn at(terminal: &Terminal, sidecar: &mut Standalone) -> Process {
    sidecar.process.kill();
    let directory = sidecar.directory.path();
    let mut command = Command::new("/bin/sh");
    command
        .args(["-c", "exec \"$@\" 2> \"$0\""])
        .arg(&terminal.path)
        .arg(binary())
        .args(["sidecar", "--config"])
        .arg(directory.join("sidecar.yaml"))
        .arg("--admin-socket")
        .arg(directory.join("admin.sock"))
        .arg("--upgrade-socket")
        .arg(directory.join("private/upgrade.sock"));
    let mut process = Process::start("at a terminal", &mut command, &directory.join("log-2"));
    process.wait_ready(&directory.join("admin.sock"));
    process
}

fn reload(directory: &Path) {
    let mut command = Command::new(binary());
    command
        .args(["reload", "--sidecar"])
        .arg(directory.join("private/upgrade.sock"));
    let mut reload = Process::start("reload", &mut command, &directory.join("reload"));
    assert_eq!(reload.wait(PATIENCE).code(), Some(0), "{}", reload.log());
}

async fn get(open: &mut Connection, path: &str) {
    let answer = tokio::time::timeout(PATIENCE, open.get(path)).await;
    let answer = answer.expect("the sidecar answers").unwrap();
    assert_eq!(answer.status, 200);
}

async fn is_held_up_by_nothing(terminal: Terminal, stopped: bool) {
    let mut sidecar = Standalone::start();
    let mut process = at(&terminal, &mut sidecar);
    if stopped {
        terminal.press(STOP);
    }
    let client = sidecar.client(CALLER);
    let mut open = client.open().await.unwrap();
    for number in 0..REQUESTS {
        get(&mut open, &format!("/public/{number}-")).await;
    }
    // Whose log lines wait behind those of the access log, and are lost.
    for _ in 0..3 {
        reload(sidecar.directory.path());
        get(&mut open, "/public/again").await;
    }

    // A record is not lost: it waits for whoever reads.
    let shown = terminal.read();
    if stopped {
        terminal.press(GO_ON);
    }
    wait_until("every request is shown", PATIENCE, || {
        process.assert_running();
        let shown = shown.lock().unwrap();
        (0..REQUESTS).all(|number| shown.contains(&format!("\"/public/{number}-\"")))
    });
    reload(sidecar.directory.path());
    process.signal(Signal::TERM);
    assert_eq!(process.wait(PATIENCE).code(), Some(0));
}

#[tokio::test]
async fn attack_a_terminal_that_nobody_reads_holds_nobody_up() {
    is_held_up_by_nothing(Terminal::open(), false).await;
}

#[tokio::test]
async fn attack_a_terminal_that_was_stopped_holds_nobody_up() {
    is_held_up_by_nothing(Terminal::open(), true).await;
}

#[tokio::test]
async fn attack_a_pipe_that_nobody_reads_holds_nobody_up() {
    let directory = tempfile::tempdir().unwrap();
    is_held_up_by_nothing(Terminal::pipe(directory.path()), false).await;
}
