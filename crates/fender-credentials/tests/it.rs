//! The supervisor over real processes.
//!
//! It waits for any child of its process, so each test runs it in a process of its own: this binary
//! again, as the ignored test `child_supervises`, in a directory that holds the scripts to run.
//! Nothing waits by time: a test reads what the scripts say, and opens their gates (named pipes).

#![expect(
    clippy::unwrap_used,
    reason = "the helpers of tests may, like the tests themselves"
)]

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use fender_credentials::supervise::{self, HangUp, Plan, Program};
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
        proxy: Path::new("proxy").exists().then(|| script("proxy")),
        succession: vec!["successor".into()],
        hang_up: HangUp::Reloads,
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

fn heirs(script: &str) -> Shipyard {
    let proxy = format!("{script}\n{HEIR}");
    Shipyard::app(APP)
        .with("proxy", &proxy)
        .gate("gate")
        .gate("end")
}

/// D2, D3.
#[test]
fn a_successor_is_the_proxy_once_it_is_ready_and_the_application_goes_on() {
    let ship = heirs("").launch();
    for line in ["first: up", "first: ready", "app"] {
        ship.hears(line);
    }
    ship.send(Signal::USR2);
    ship.hears("successor: up");
    // One at a time; and as long as it is not ready, the first is the one that is spoken to.
    ship.send(Signal::USR2);
    ship.hears("first: upgrade-refused");
    ship.open("gate");
    ship.hears("successor: ready");
    ship.open("end");
    let mut rest = ship.silence();
    rest.sort();
    assert_eq!(rest, ["first: TERM", "successor: TERM"]);
    ship.exits_with(3);
}

#[test]
fn a_successor_that_fails_or_is_never_ready_leaves_the_proxy_as_it_was() {
    let long = "3600000";
    for (script, code, within) in [("exit 9", 9, long), ("exec sleep 3600", 137, "300")] {
        let ship = heirs(&format!("[ -z $1 ] || {script}"))
            .with("upgrade", within)
            .launch();
        for line in ["first: up", "first: ready", "app"] {
            ship.hears(line);
        }
        ship.send(Signal::USR2);
        ship.hears(&format!("first: upgrade-failed {code}"));
        ship.open("end");
        ship.hears("first: TERM");
        ship.exits_with(3);
    }
}

#[test]
fn a_proxy_that_dies_while_its_successor_is_on_its_way_is_not_started_again() {
    let ship = heirs("").launch();
    for line in ["first: up", "first: ready", "app"] {
        ship.hears(line);
    }
    ship.send(Signal::USR2);
    ship.hears("successor: up");
    let pid = fs::read_to_string(ship.directory.path().join("pid-first")).unwrap();
    let pid = Pid::from_raw(pid.trim().parse().unwrap()).unwrap();
    rustix::process::kill_process(pid, Signal::KILL).unwrap();
    ship.open("gate");
    ship.hears("successor: ready");
    ship.open("end");
    ship.hears("successor: TERM");
    ship.exits_with(3);
}

#[test]
fn without_an_application_the_proxy_is_kept_and_told_what_signals_mean() {
    let ship = heirs("").with("alone", "").launch();
    ship.hears("first: up");
    ship.hears("first: ready");
    // Whether the supervisor has heard that it is ready or not.
    ship.send(Signal::HUP);
    // This one dies of it, and so there is another.
    ship.hears("first: HUP");
    ship.hears("first: up");
    ship.hears("first: ready");
    ship.send(Signal::TERM);
    ship.hears("first: TERM");
    ship.exits_with(0);
}

#[test]
fn to_reload_is_no_end_for_a_proxy_that_is_not_ready_yet() {
    let wait = "[ -e waited ] || { touch waited; echo '> waits'; read go < gate; }";
    let ship = heirs(wait).with("alone", "").launch();
    ship.hears("waits");
    ship.send(Signal::HUP);
    ship.open("gate");
    for line in ["up", "ready", "HUP", "up", "ready"] {
        ship.hears(&format!("first: {line}"));
    }
    ship.send(Signal::TERM);
    ship.hears("first: TERM");
    ship.exits_with(0);
}

#[test]
fn the_exit_code_is_the_applications_own() {
    Shipyard::app("exit 7").launch().exits_with(7);
    Shipyard::app("kill -KILL $$").launch().exits_with(137);
    Shipyard::app("kill -TERM $$").launch().exits_with(143);
}

#[test]
fn a_command_that_cannot_be_run_ends_like_in_a_shell_and_takes_the_proxy_along() {
    let ship = Shipyard::app("")
        .with("program", "/no/such/program")
        .with("proxy", PROXY)
        .launch();
    ship.hears("proxy: ready");
    ship.hears("proxy: TERM");
    ship.exits_with(127);
    Shipyard::app("")
        .with("program", "/etc/passwd")
        .launch()
        .exits_with(126);
}

#[test]
fn every_signal_reaches_the_application() {
    let signals = [
        (Signal::HUP, "HUP"),
        (Signal::INT, "INT"),
        (Signal::QUIT, "QUIT"),
        (Signal::USR1, "USR1"),
        (Signal::USR2, "USR2"),
        (Signal::ALARM, "ALRM"),
        (Signal::WINCH, "WINCH"),
        (Signal::CONT, "CONT"),
        (Signal::TSTP, "TSTP"),
        (fender_runtime::sys::signal_numbered(34).unwrap(), "34"),
        (fender_runtime::sys::signal_numbered(64).unwrap(), "64"),
        (Signal::TERM, "TERM"),
    ];
    let traps: String = signals
        .iter()
        .map(|(signal, name)| format!("trap 'echo \"> {name}\"' {}\n", signal.as_raw()))
        .collect();
    // A trap runs once `wait` was interrupted; TERM ends what is waited for, too.
    let app = format!(
        "{traps} trap 'echo \"> TERM\"; kill -KILL $!; exit 3' TERM\n\
         sleep 3600 & echo '> up'; while :; do wait; done"
    );
    let ship = Shipyard::app(&app).launch();
    ship.hears("up");
    for (signal, name) in signals {
        ship.send(signal);
        ship.hears(name);
    }
    ship.exits_with(3);
}

#[test]
fn the_application_starts_when_the_proxy_is_ready_and_not_before() {
    let proxy = format!("echo '> proxy: starts'; read go < gate\n{PROXY}");
    let ship = Shipyard::app("echo '> app'")
        .with("proxy", &proxy)
        .gate("gate")
        .launch();
    ship.hears("proxy: starts");
    assert!(ship.lines.try_recv().is_err());
    ship.open("gate");
    ship.hears("proxy: ready");
    ship.hears("app");
    ship.hears("proxy: TERM");
    ship.exits_with(0);
}

#[test]
fn a_proxy_that_is_refused_at_start_ends_it_with_its_own_code() {
    let app = "echo '> app'";
    Shipyard::app(app)
        .with("proxy", "exit 77")
        .launch()
        .exits_with(77);
    Shipyard::app(app)
        .with("proxy", "exit 0")
        .launch()
        .exits_with(69);
    Shipyard::app(app)
        .with("proxy", "kill -KILL $$")
        .launch()
        .exits_with(137);
}

#[test]
fn asked_to_stop_before_the_proxy_is_ready_it_stops_without_the_application() {
    let proxy = "trap 'echo \"> proxy: TERM\"; exit 0' TERM; echo '> proxy: starts'; read go <&0";
    let ship = Shipyard::app("echo '> app'").with("proxy", proxy).launch();
    ship.hears("proxy: starts");
    ship.send(Signal::TERM);
    ship.hears("proxy: TERM");
    ship.exits_with(143);
}

#[test]
fn d1_outbound_outlives_the_application_and_inbound_stops_first() {
    let app = r#"
        trap 'echo "> app: TERM"; read go < gate; echo "> app: exits"; exit 5' TERM
        sleep 3600 & echo "> app: up $!"; wait; kill $!"#;
    let ship = Shipyard::app(app)
        .with("proxy", PROXY)
        .gate("gate")
        .launch();
    ship.hears("proxy: ready");
    let up = ship.hear();
    let sleeper = up.strip_prefix("app: up ").unwrap();
    ship.send(Signal::TERM);
    let mut told = [ship.hear(), ship.hear()];
    told.sort();
    assert_eq!(told, ["app: TERM", "proxy: drain-inbound"]);
    kill(sleeper);
    ship.open("gate");
    ship.hears("app: exits");
    ship.hears("proxy: TERM");
    ship.exits_with(5);
}

fn kill(pid: &str) {
    let pid = Pid::from_raw(pid.parse().unwrap()).unwrap();
    rustix::process::kill_process(pid, Signal::KILL).unwrap();
}

#[test]
fn an_application_that_does_not_stop_is_killed_with_its_children() {
    let app = "trap '' TERM; sleep 3600 & echo '> up'; while :; do wait; done";
    let ship = Shipyard::app(app).with("stop", "50").launch();
    ship.hears("up");
    ship.send(Signal::TERM);
    // Its output ends only when its children are gone too.
    ship.exits_with(137);
}

#[test]
fn a_proxy_that_does_not_drain_is_killed() {
    let proxy = "trap '' TERM; echo ready >&0; while :; do read order <&0 || exit 0; done";
    let ship = Shipyard::app("exit 4")
        .with("proxy", proxy)
        .with("drain", "50")
        .launch();
    ship.exits_with(4);
}

#[test]
fn a_proxy_that_dies_is_started_again_and_the_application_does_not_notice() {
    let proxy = format!(
        "if [ -e died ]; then : ; else touch died; echo ready >&0; read go < gate; kill -KILL $$; fi\n{PROXY}"
    );
    let app = "echo \"> app: starts\"; read go < done; echo '> app: exits'; exit 6";
    let ship = Shipyard::app(app)
        .with("proxy", &proxy)
        .gate("gate")
        .gate("done")
        .launch();
    ship.hears("app: starts");
    ship.open("gate");
    ship.hears("proxy: ready");
    ship.open("done");
    ship.hears("app: exits");
    ship.hears("proxy: TERM");
    ship.exits_with(6);
}

/// A proxy that asks once the application runs, and whenever its gate opens.
const ASKS: &str = r#"
trap 'echo "> proxy: TERM"; exit 0' TERM
echo ready >&0
while :; do
    # Nothing, if whoever asked before has not closed it yet.
    read -r asked < gate || continue
    echo "$asked" >&0
    read -r answer
    echo "> proxy: $answer"
done
"#;

/// An application that says which signals it gets and ends at SIGTERM with a code of its own.
const TOLD: &str = r#"
trap 'echo "> app: USR1"' USR1
trap 'echo "> app: TERM"; exit 5' TERM
echo "> app: starts"
while :; do read -r go < end && exit 3; done
"#;

fn asking(app: &str) -> Shipyard {
    let yard = Shipyard::app(app).with("proxy", ASKS);
    yard.gate("gate").gate("end")
}

impl Ship {
    fn ask(&self, what: &str) {
        fs::write(self.directory.path().join("gate"), format!("{what}\n")).unwrap();
    }
}

#[test]
fn the_application_is_told_by_a_signal_when_the_proxy_asks_for_it() {
    let ship = asking(TOLD).launch();
    ship.hears("app: starts");
    ship.ask("signal-app USR1 7");
    let mut heard = [ship.hear(), ship.hear()];
    heard.sort();
    assert_eq!(heard, ["app: USR1", "proxy: app-told 7"]);
    ship.open("end");
    ship.hears("proxy: TERM");
    ship.exits_with(3);
}

#[test]
fn the_application_is_started_again_when_the_proxy_asks_for_it_and_the_proxy_is_told_then() {
    let ship = asking(TOLD).launch();
    ship.hears("app: starts");
    for number in ["1", "18446744073709551615"] {
        ship.ask(&format!("restart-app {number}"));
        ship.hears("app: TERM");
        let mut heard = [ship.hear(), ship.hear()];
        heard.sort();
        assert_eq!(
            heard,
            [
                "app: starts".to_owned(),
                format!("proxy: app-told {number}")
            ]
        );
    }
    // What it exits with by itself is still what counts.
    ship.open("end");
    ship.hears("proxy: TERM");
    ship.exits_with(3);
}

#[test]
fn an_application_that_does_not_end_to_be_started_again_is_killed() {
    let stubborn =
        "trap '' TERM\necho '> app: starts'\nwhile :; do read -r go < end && exit 3; done";
    let ship = asking(stubborn).with("stop", "300").launch();
    ship.hears("app: starts");
    ship.ask("restart-app 1");
    let mut heard = [ship.hear(), ship.hear()];
    heard.sort();
    assert_eq!(heard, ["app: starts", "proxy: app-told 1"]);
    ship.open("end");
    ship.hears("proxy: TERM");
    ship.exits_with(3);
}

#[test]
fn who_ends_the_supervisor_while_the_application_is_started_again_does_not_get_it_back() {
    // It ends when it is let, whatever it is told.
    let app = "trap 'echo \"> app: TERM\"' TERM\necho '> app: starts'\nwhile :; do read -r go < end && exit 3; done";
    let proxy = ASKS.replace(
        "read -r answer",
        "while read -r answer && [ \"$answer\" = drain-inbound ]; do :; done",
    );
    let ship = Shipyard::app(app)
        .with("proxy", &proxy)
        .gate("gate")
        .gate("end")
        .launch();
    ship.hears("app: starts");
    ship.ask("restart-app 1");
    ship.hears("app: TERM");
    ship.send(Signal::TERM);
    let mut heard = [ship.hear(), ship.hear()];
    heard.sort();
    assert_eq!(heard, ["app: TERM", "proxy: app-not-told 1"]);
    ship.open("end");
    ship.hears("proxy: TERM");
    ship.exits_with(3);
}

#[test]
fn orphans_are_reaped() {
    // The orphan's parent ends first, so that it falls to the supervisor; its number disappears only
    // when somebody has waited for it.
    let app = r#"
        orphan=$(sh -c 'sh -c "exec sleep 0" >/dev/null & echo $!')
        while kill -0 "$orphan" 2>/dev/null; do sleep 0.01; done
        echo "> reaped""#;
    let ship = Shipyard::app(app).launch();
    ship.hears("reaped");
    ship.exits_with(0);
}

#[test]
fn the_application_inherits_no_ignored_or_blocked_signal_and_a_group_of_its_own() {
    let app = r#"
        while read -r name value; do
            case $name in SigIgn:|SigBlk:) echo "> $name $value" ;; esac
        done < /proc/self/status
        read -r pid name state parent group rest < /proc/self/stat
        [ "$group" = $$ ] && echo "> own group""#;
    let ship = Shipyard::app(app).launch_by("trap '' HUP USR1 WINCH; exec \"$0\" \"$@\"");
    ship.hears("SigBlk: 0000000000000000");
    // 32 and 33 are the C library's and stay as they are.
    let ignored = ship.hear();
    let mask = u64::from_str_radix(ignored.strip_prefix("SigIgn: ").unwrap(), 16).unwrap();
    assert_eq!(mask & !(0b11 << 31), 0, "{ignored}");
    ship.hears("own group");
    ship.exits_with(0);
}

#[test]
fn the_proxy_learns_that_its_supervisor_is_gone() {
    let app = "echo '> app'; read go < gate";
    let ship = Shipyard::app(app)
        .with("proxy", PROXY)
        .gate("gate")
        .launch();
    ship.hears("proxy: ready");
    ship.hears("app");
    ship.send(Signal::KILL);
    ship.hears("proxy: the supervisor is gone");
    ship.open("gate");
}
