//! The supervisor over real processes.
//!
//! It waits for any child of its process, so each test runs it in a process of its own: this binary
//! again, as the ignored test `child_supervises`, in a directory that holds the scripts to run.
//! Nothing waits by time: a test reads what the scripts say, and opens their gates (named pipes).

#![expect(
    clippy::unwrap_used,
    reason = "the helpers of tests may, like the tests themselves"
)]

mod app;
mod restarts;
mod succession;
mod told;

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use fender_credentials::supervise::{self, HangUp, Plan, Program, RestartPolicy};
use fender_runtime::manager::Manager;
use rustix::process::{Pid, Signal};
use tempfile::TempDir;

/// Far beyond what any step takes; a test that reaches it has failed.
const PATIENCE: Duration = Duration::from_secs(60);

#[test]
#[ignore = "child"]
#[expect(clippy::disallowed_methods, reason = "the exit code is what is tested")]
fn child_supervises() {
    let script = |name: &str| Program {
        program: "sh".into(),
        arguments: vec![name.into()],
        environment: None,
        descriptors: 0,
    };
    let app = match fs::read_to_string("program") {
        Ok(program) => Program {
            program: program.into(),
            ..script("app")
        },
        Err(_) => script("app"),
    };
    let plan = Plan {
        app: (!Path::new("alone").exists()).then_some(app),
        supply: None,
        masks: None,
        proxy: Path::new("proxy").exists().then(|| script("proxy")),
        succession: vec!["successor".into()],
        hang_up: HangUp::Reloads,
        restart: fs::read_to_string("restart").map_or_else(
            |_| RestartPolicy::default(),
            |text| RestartPolicy {
                first_rest: timeout("rest"),
                longest_rest: timeout("rest"),
                healthy: timeout("healthy"),
                ..text.parse().unwrap()
            },
        ),
        stop_timeout: timeout("stop"),
        drain_timeout: timeout("drain"),
        upgrade_timeout: timeout("upgrade"),
        manager: Manager::default(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let code = runtime.block_on(supervise::run(plan)).unwrap();
    std::process::exit(code.into());
}

fn timeout(name: &str) -> Duration {
    let milliseconds = fs::read_to_string(name)
        .ok()
        .map(|text| text.parse().unwrap());
    Duration::from_millis(milliseconds.unwrap_or(3_600_000))
}

/// A supervisor at work.
struct Ship {
    directory: TempDir,
    supervisor: Child,
    lines: Receiver<String>,
}

struct Shipyard(TempDir);

impl Shipyard {
    fn app(script: &str) -> Self {
        Self(tempfile::tempdir().unwrap()).with("app", script)
    }

    fn with(self, name: &str, text: &str) -> Self {
        fs::write(self.0.path().join(name), text).unwrap();
        self
    }

    fn gate(self, name: &str) -> Self {
        let made = Command::new("mkfifo")
            .arg(self.0.path().join(name))
            .status()
            .unwrap();
        assert!(made.success());
        self
    }

    fn launch(self) -> Ship {
        self.launch_by("exec \"$0\" \"$@\"")
    }

    fn launch_by(self, shell: &str) -> Ship {
        let mut supervisor = Command::new("sh")
            .args(["-c", shell])
            .arg(std::env::current_exe().unwrap())
            .args(["child_supervises", "--exact", "--ignored", "--nocapture"])
            .current_dir(self.0.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = BufReader::new(supervisor.stdout.take().unwrap());
        let (heard, lines) = channel();
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                // The rest is what the test harness of the child says.
                if let Some((_, said)) = line.split_once("> ") {
                    let _ = heard.send(said.to_owned());
                }
            }
        });
        Ship {
            directory: self.0,
            supervisor,
            lines,
        }
    }
}

impl Ship {
    /// The next line said by a script.
    #[track_caller]
    fn hear(&self) -> String {
        self.lines.recv_timeout(PATIENCE).unwrap()
    }

    #[track_caller]
    fn hears(&self, expected: &str) {
        assert_eq!(self.hear(), expected);
    }

    /// What else is said until nobody can say anything any more.
    fn silence(&self) -> Vec<String> {
        self.lines.iter().collect()
    }

    fn send(&self, signal: Signal) {
        let pid = Pid::from_child(&self.supervisor);
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Lets a script pass that reads from the named pipe.
    fn open(&self, gate: &str) {
        fs::write(self.directory.path().join(gate), "go\n").unwrap();
    }

    #[track_caller]
    fn exits_with(mut self, code: i32) {
        assert_eq!(self.silence(), [""; 0], "nothing more is said");
        let status = self.supervisor.wait().unwrap();
        assert_eq!(status.code(), Some(code), "signal {:?}", status.signal());
    }
}

impl Drop for Ship {
    fn drop(&mut self) {
        if self
            .supervisor
            .try_wait()
            .is_ok_and(|status| status.is_none())
        {
            self.send(Signal::KILL);
            let _ = self.supervisor.wait();
        }
    }
}

/// A proxy that says what it is told.
const PROXY: &str = r#"
trap 'echo "> proxy: TERM"; exit 0' TERM
echo "> proxy: ready"
echo ready >&0
while read -r order; do echo "> proxy: $order"; done
echo "> proxy: the supervisor is gone"
"#;

/// A proxy that says which of them it is: a successor is told so. It is ready when its gate opens.
const HEIR: &str = r#"
me=${1:-first}
trap 'echo "> $me: TERM"; exit 0' TERM
trap 'echo "> $me: HUP"; exit 1' HUP
echo $$ > pid-$me
echo "> $me: up"
[ $me = first ] || read go < gate
echo "> $me: ready"
echo ready >&0
while read -r order; do echo "> $me: $order"; done
"#;

/// An application that ends when it is let.
const APP: &str = "echo '> app'; read go < end; exit 3";
