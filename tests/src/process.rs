//! Real processes: started with their output in a file, stopped by pid, never left behind.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

/// How long anything may take to become ready: generous, because a machine may be busy.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// The `fender` binary that cargo built for the scenarios.
pub fn binary() -> PathBuf {
    let test = std::env::current_exe().expect("a running test has a path");
    let directory = test
        .parent()
        .and_then(Path::parent)
        .expect("tests run from target/…/deps");
    let binary = directory.join("fender");
    assert!(
        binary.exists(),
        "{} is missing: run the scenarios by `cargo test -p fender`",
        binary.display()
    );
    binary
}

/// Where a program lies, or a failure that says how to install it: a test that cannot run fails.
pub fn installed(program: &str) -> PathBuf {
    [
        "/usr/local/sbin",
        "/usr/local/bin",
        "/usr/sbin",
        "/usr/bin",
        "/sbin",
        "/bin",
    ]
    .iter()
    .map(|directory| Path::new(directory).join(program))
    .find(|path| path.exists())
    .unwrap_or_else(|| {
        panic!("`{program}` is not installed; `cargo xtask test` installs what the tests need")
    })
}

/// Puts a program that everybody may run in a place. It is written by a process of its own: what is started by another test
/// meanwhile would inherit a descriptor of ours, and a file that is open for writing somewhere is not run ("Text file busy").
pub fn put_program(from: &Path, to: &Path) {
    let mut install = Command::new(installed("install"));
    let status = install.args(["-m", "755"]).args([from, to]).status();
    assert!(status.expect("run `install`").success());
}

/// A number that whoever runs the tests may choose.
pub fn chosen(variable: &str, default: usize) -> usize {
    std::env::var(variable).map_or(default, |number| {
        number
            .parse()
            .unwrap_or_else(|_| panic!("`{variable}` is not a number"))
    })
}

/// A TCP port on loopback that nothing uses, below the ephemeral range, never handed out twice by
/// this process.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = 20_000 + (std::process::id() % 100) as u16 * 100;
    for _ in 0..10_000 {
        let offset = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = 20_000 + (start - 20_000 + offset) % 12_000;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
    panic!("no free port between 20000 and 32000");
}

pub fn free_address() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()))
}

/// Asks until the answer is yes; fails, with the last word of `describe`, when patience ends.
pub fn wait_until(what: &str, patience: Duration, mut ready: impl FnMut() -> bool) {
    let deadline = Instant::now() + patience;
    while !ready() {
        assert!(Instant::now() < deadline, "{what}: not within {patience:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub fn wait_for_port(address: SocketAddr, process: &mut Process) {
    wait_until(
        &format!("{} listens on {address}", process.name),
        PATIENCE,
        || {
            process.assert_running();
            TcpStream::connect(address).is_ok()
        },
    );
}

/// Of one process, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    pub resident: u64,
    pub peak: u64,
}

pub struct Process {
    pub name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts a command with both outputs appended to `log`.
    pub fn start(name: &str, command: &mut Command, log: &Path) -> Self {
        let file = File::options()
            .create(true)
            .append(true)
            .open(log)
            .expect("open the log");
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone().expect("share the log"))
            .stderr(file)
            .spawn()
            .unwrap_or_else(|error| panic!("start {name}: {error}"));
        Self {
            name: name.to_owned(),
            child,
            log: log.to_owned(),
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it holds in memory, and the most it has held since [`Process::forget_peak`], in bytes.
    pub fn memory(&self) -> Memory {
        let status =
            fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("read the status");
        let kilobytes = |name: &str| -> u64 {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let number = line.and_then(|line| line.split_whitespace().next());
            number
                .and_then(|number| number.parse().ok())
                .expect("a number of kilobytes")
        };
        Memory {
            resident: kilobytes("VmRSS:") * 1024,
            peak: kilobytes("VmHWM:") * 1024,
        }
    }

    pub fn forget_peak(&self) {
        fs::write(format!("/proc/{}/clear_refs", self.pid()), "5").expect("reset the peak");
    }

    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    pub fn assert_running(&mut self) {
        if let Some(status) = self.child.try_wait().expect("look at the process") {
            panic!("{} ended: {status}\n{}", self.name, self.log());
        }
    }

    /// Until the sidecar whose admin socket this is says that it is ready.
    pub fn wait_ready(&mut self, admin_socket: &Path) {
        wait_until(&format!("{} is ready", self.name), PATIENCE, || {
            self.assert_running();
            is_ready(admin_socket)
        });
    }

    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id() as i32).expect("a pid is not zero");
        rustix::process::kill_process(pid, signal).expect("signal a running process");
    }

    /// Waits for the end, within `patience`.
    pub fn wait(&mut self, patience: Duration) -> ExitStatus {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(status) = self.child.try_wait().expect("look at the process") {
                return status;
            }
            assert!(
                Instant::now() < deadline,
                "{} still runs after {patience:?}\n{}",
                self.name,
                self.log()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub fn kill(&mut self) {
        self.child.kill().expect("kill a running process");
        self.child.wait().expect("reap a killed process");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            // A supervisor passes the signal on to its application; then nobody is left behind.
            self.signal(Signal::TERM);
            let deadline = Instant::now() + Duration::from_secs(15);
            while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(10));
            }
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        if std::thread::panicking() {
            eprintln!("--- {} ---\n{}", self.name, self.log());
        }
    }
}

/// Whether the sidecar whose admin socket this is says that it is ready.
pub fn is_ready(admin_socket: &Path) -> bool {
    let socket = admin_socket.to_string_lossy();
    output(binary(), &["status", "--sidecar", &socket, "--ready"]).0 == 0
}

/// Runs a command to its end and gives back code, standard output and standard error.
pub fn output<S: AsRef<OsStr>>(
    program: impl AsRef<OsStr>,
    arguments: &[S],
) -> (i32, String, String) {
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .expect("run a command");
    (
        output.status.code().unwrap_or(-1),
        String::from_utf8_lossy(&output.stdout).into_owned(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    )
}
