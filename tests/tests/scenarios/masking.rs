//! `--mask-output`: what an application writes of its secrets is not what is read of it, wherever it is cut, and nothing is lost,
//! held up or left hanging by it (DESIGN §9).

use std::fs;
use std::io::{Read as _, Write as _};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use fender_tests::process::{PATIENCE, Process, binary};
use fender_tests::wait_until;
use rustix::process::Signal;
use tempfile::TempDir;

/// A job from a file, with one credential in its environment, and this value.
struct Job(TempDir);

impl Job {
    fn new(value: &str) -> Self {
        let job = Self(tempfile::tempdir().unwrap());
        job.becomes(value);
        let text = format!(
            "apiVersion: fender.dev/v1\nkind: Sidecar\nmetadata: {{ namespace: shop, name: job }}\nspec: {{ credentials: [ smtp ] }}\n---\n\
             apiVersion: fender.dev/v1\nkind: Credential\nmetadata: {{ namespace: shop, name: smtp }}\nspec:\n  \
             source: {{ file: {{ path: {}/value }} }}\n  deliver: [ {{ environment: {{ variable: P }} }} ]\n  \
             notify: [ {{ restart: {{}}, after: 0s }} ]\n",
            job.0.path().display()
        );
        fs::write(job.path("job.yaml"), text).unwrap();
        job
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn becomes(&self, value: &str) {
        fs::write(self.path("new"), value).unwrap();
        fs::rename(self.path("new"), self.path("value")).unwrap();
    }

    fn command(&self, program: &[&str]) -> Command {
        let mut command = Command::new(binary());
        command
            .args(["--log", "error", "exec", "--supervise", "--mask-output"])
            .arg("--config")
            .arg(self.path("job.yaml"))
            .arg("--")
            .args(program)
            .current_dir(self.0.path());
        command
    }

    /// What is read of a script whose standard output and standard error are two pipes, and its code.
    fn run(&self, script: &str) -> (String, String, Option<i32>) {
        let output = self.command(&["/bin/sh", "-c", script]).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (
            text(output.stdout),
            text(output.stderr),
            output.status.code(),
        )
    }

    /// The same where both are one file.
    fn run_into_one(&self, script: &str) -> String {
        let mut command = self.command(&["/bin/sh", "-c", script]);
        let log = self.path("log");
        let mut fender = Process::start("exec", &mut command, &log);
        fender.wait(PATIENCE);
        fs::read_to_string(log).unwrap()
    }
}

const VALUE: &str = "canary-77/ab \"quoted\"";

#[test]
fn attack_a_value_written_byte_by_byte_in_pieces_and_in_other_forms_is_not_read() {
    let job = Job::new(VALUE);
    let python = fender_tests::process::installed("python3");
    let script = r#"
import base64, json, os, sys, urllib.parse
value = os.environ["P"]
def write(data, size, to=1):
    data = data.encode() if isinstance(data, str) else data
    for at in range(0, len(data), size):
        os.write(to, data[at:at + size])
for size in (1, 2, 3, 7, 4096):
    write("<" + value + ">\n", size)
    write("<" + value + ">\n", size, 2)
write(json.dumps({"a": value}) + "\n", 5)
write(urllib.parse.quote(value, safe="") + "\n", 5)
write(urllib.parse.quote(value) + "\n", 5)
write(base64.b64encode(b"user:" + value.encode()) + b"\n", 5)
# Over the sizes of pipes and buffers.
for size in (4096, 16384, 65536):
    write("." * (size - 3) + value + "\n", 65536)
sys.exit(5)
"#;
    let mut command = job.command(&[python.to_str().unwrap(), "-c", script]);
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(5));
    let out = String::from_utf8(output.stdout).unwrap();
    let err = String::from_utf8(output.stderr).unwrap();
    assert_eq!(err, "<***>\n".repeat(5));
    let lines: Vec<_> = out.lines().collect();
    assert_eq!(lines[..5], ["<***>"; 5]);
    assert_eq!(lines[5], "{\"a\": \"***\"}");
    assert_eq!(lines[6..8], ["***"; 2]);
    assert!(
        lines[8].starts_with("dXNlcj") && lines[8].contains("***"),
        "{}",
        lines[8]
    );
    for (line, size) in lines[9..].iter().zip([4096, 16384, 65536]) {
        assert_eq!(**line, ".".repeat(size - 3) + "***");
    }
    assert_eq!(lines.len(), 12);
}

#[test]
fn attack_half_of_a_value_on_each_of_two_outputs_that_are_one_file() {
    let job = Job::new("canary-half-and-half");
    let script = "printf 'a canary-half' ; printf -- '-and-half b' >&2; printf ' end'; exit 3";
    assert_eq!(job.run_into_one(script), "a *** b end");
    // Where they are two, neither has it.
    let (out, err, code) = job.run(script);
    assert_eq!(
        (&*out, &*err, code),
        ("a canary-half end", "-and-half b", Some(3))
    );
}

#[test]
fn a_value_that_is_replaced_stays_masked_and_the_new_one_is_from_its_first_use() {
    let job = Job::new("canary-first");
    let script = "echo \"$P canary-first canary-second.\"; [ \"$P\" = canary-second ] && exit 4; while :; do sleep 0.1; done";
    let mut command = job.command(&["/bin/sh", "-c", script]);
    let mut fender = Process::start("exec", &mut command, &job.path("log"));
    wait_until("it runs", PATIENCE, || {
        fender.assert_running();
        fender.log() == "*** *** canary-second.\n"
    });
    job.becomes("canary-second");
    assert_eq!(fender.wait(PATIENCE).code(), Some(4));
    assert_eq!(fender.log(), "*** *** canary-second.\n*** *** ***.\n");
}

#[test]
fn attack_what_a_command_was_started_with_stays_masked_however_often_it_changes_meanwhile() {
    let job = Job::new("canary-start");
    let text = fs::read_to_string(job.path("job.yaml")).unwrap();
    let (without, _) = text.split_once("  notify:").unwrap();
    fs::write(job.path("job.yaml"), without).unwrap();
    let script = "trap 'echo \"still $P\"; exit 3' USR1; echo up; while :; do sleep 0.1; done";
    let command = job.command(&["/bin/sh", "-c", script]);
    let arguments: Vec<_> = command.get_args().skip(2).map(ToOwned::to_owned).collect();
    let mut command = Command::new(binary());
    command.args(arguments).current_dir(job.0.path());
    let mut fender = Process::start("exec", &mut command, &job.path("log"));
    wait_until("it runs", PATIENCE, || {
        fender.assert_running();
        fender.log().contains("up\n")
    });
    for number in 1..=10 {
        job.becomes(&format!("canary-{number:05}"));
        wait_until(&format!("value {number} is known"), PATIENCE, || {
            fender.assert_running();
            fender.log().matches("credential changed").count() == number
        });
    }
    fender.signal(Signal::USR1);
    assert_eq!(fender.wait(PATIENCE).code(), Some(3), "{}", fender.log());
    let log = fender.log();
    assert!(
        log.contains("still ***\n") && !log.contains("canary"),
        "{log}"
    );
}

#[test]
fn what_is_no_secret_is_passed_on_at_once_and_all_of_it_before_the_end() {
    let job = Job::new("canary");
    let script =
        "printf 'Name? '; read -r name; head -c 3000000 /dev/zero; printf 'end cana'; exit 6";
    let mut command = job.command(&["/bin/sh", "-c", script]);
    let mut fender = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = fender.stdout.take().unwrap();
    let mut prompt = [0; 6];
    out.read_exact(&mut prompt).unwrap();
    assert_eq!(&prompt, b"Name? ");
    fender.stdin.take().unwrap().write_all(b"x\n").unwrap();
    let mut rest = Vec::new();
    out.read_to_end(&mut rest).unwrap();
    assert_eq!(fender.wait().unwrap().code(), Some(6));
    assert_eq!(rest.len(), 3_000_000 + 8);
    assert!(
        rest.ends_with(b"\0end cana"),
        "what turned out to be no secret"
    );
}

/// At a terminal that is the application's, and stops whoever else writes to it.
#[test]
fn what_an_application_writes_at_a_terminal_with_tostop_is_passed_on() {
    let job = Job::new("canary-tty");
    let python = fender_tests::process::installed("python3");
    let terminal = r#"
import os, pty, signal, sys, termios, threading
pid, terminal = pty.fork()
if pid == 0:
    flags = termios.tcgetattr(0)
    flags[3] |= termios.TOSTOP
    termios.tcsetattr(0, termios.TCSANOW, flags)
    os.execv(sys.argv[1], sys.argv[1:])
shown = []
def read():
    try:
        while data := os.read(terminal, 4096):
            shown.append(data)
    except OSError:
        pass
reader = threading.Thread(target=read)
reader.start()
_, status = os.waitpid(pid, os.WUNTRACED)
if os.WIFSTOPPED(status):
    os.kill(pid, signal.SIGKILL)
    sys.exit(99)
reader.join()
sys.stdout.buffer.write(b"".join(shown))
sys.exit(os.waitstatus_to_exitcode(status))
"#;
    // Once the terminal is its own.
    let script = "while set -- $(cat /proc/$$/stat); [ \"$8\" != \"$$\" ]; do :; done; echo \"said $P.\"; exit 5";
    let fender = job.command(&["/bin/sh", "-c", script]);
    let mut command = Command::new(python);
    command
        .args(["-c", terminal])
        .arg(fender.get_program())
        .args(fender.get_args())
        .current_dir(job.0.path());
    let mut fender = Process::start("terminal", &mut command, &job.path("log"));
    assert_eq!(fender.wait(PATIENCE).code(), Some(5), "{}", fender.log());
    assert_eq!(fender.log(), "said ***.\r\n");
}

#[test]
fn who_is_left_behind_with_the_pipe_holds_up_nobody() {
    let job = Job::new("canary");
    // It keeps both outputs, and outlives the application.
    let script = "sleep 1000 & echo $! > left; echo 'said: canary'; exit 9";
    let (out, _, code) = job.run(script);
    assert_eq!((&*out, code), ("said: ***\n", Some(9)));
    let left = fs::read_to_string(job.path("left")).unwrap();
    let left = left
        .trim()
        .parse()
        .ok()
        .and_then(rustix::process::Pid::from_raw);
    rustix::process::kill_process(left.unwrap(), Signal::KILL).unwrap();
}

#[test]
fn an_application_hears_that_nobody_reads_it_and_is_slowed_down_by_who_reads_slowly() {
    let job = Job::new("canary");
    let script = "yes canary; echo $? > ended; exit 2";
    let mut fender = job
        .command(&["/bin/sh", "-c", script])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = fender.stdout.take().unwrap();
    let mut some = vec![0; 100_000];
    out.read_exact(&mut some).unwrap();
    assert!(some.starts_with(b"***\n***\n"));
    // As much as pipes and buffers hold, and no more: the writer waits. What Fender holds does not grow.
    let status = fs::read_to_string(format!("/proc/{}/status", fender.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let peak: u64 = line
        .unwrap()
        .trim()
        .trim_end_matches(" kB")
        .parse()
        .unwrap();
    assert!(peak < 200_000, "{peak} kB");
    drop(out);
    assert_eq!(fender.wait().unwrap().code(), Some(2));
    let ended = fs::read_to_string(job.path("ended")).unwrap();
    // Of SIGPIPE, or of an error as one that ignores it.
    assert!(matches!(ended.trim(), "141" | "1"), "{ended}");
}

#[test]
fn a_value_that_is_too_short_is_named_and_one_that_is_too_much_is_refused() {
    let job = Job::new("1234");
    let mut command = job.command(&["/bin/sh", "-c", "echo \"$P\""]);
    command.env("FENDER_LOG", "warn");
    let arguments: Vec<_> = command.get_args().skip(2).map(ToOwned::to_owned).collect();
    let output = Command::new(binary())
        .args(arguments)
        .current_dir(job.0.path())
        .output()
        .unwrap();
    let err = String::from_utf8(output.stderr).unwrap();
    assert!(err.contains("shop/smtp") && err.contains("masked"), "{err}");
    assert!(!err.contains("1234"), "{err}");
    assert_eq!(output.stdout, b"1234\n");

    let huge: String = (0..100_000).map(|number| format!("{number} ")).collect();
    job.becomes(&huge);
    let (out, err, code) = job.run("echo \"$P\"");
    assert_eq!((&*out, code), ("", Some(64)), "{err}");
    assert!(err.contains("masked") && !err.contains("99999"), "{err}");
}

/// Beside a proxy, which tells the supervisor what it delivers before it does; also one that was started again, and a successor.
#[test]
fn what_a_sidecar_delivers_is_masked_in_what_its_application_writes() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let becomes = |value: &str| {
        fs::write(path("new"), value).unwrap();
        fs::rename(path("new"), path("value")).unwrap();
    };
    becomes("canary-one");
    let text = format!(
        "apiVersion: fender.dev/v1\nkind: Sidecar\nmetadata: {{ namespace: shop, name: job }}\nspec: {{ credentials: [ smtp ] }}\n---\n\
         apiVersion: fender.dev/v1\nkind: Credential\nmetadata: {{ namespace: shop, name: smtp }}\nspec:\n  \
         source: {{ file: {{ path: {0}/value }} }}\n  deliver: [ {{ file: {{ path: {0}/delivered, storage: disk }} }} ]\n",
        directory.path().display()
    );
    fs::write(path("job.yaml"), text).unwrap();
    // Says every value that it reads, once each, and how long it is.
    let script = "while :; do new=$(cat delivered); [ \"$new\" = \"$old\" ] || echo \"read $new, ${#new}.\"; old=$new; sleep 0.05; done";
    let mut command = Command::new(binary());
    command
        .args(["sidecar", "--mask-output", "--config"])
        .arg(path("job.yaml"))
        .args(["--", "/bin/sh", "-c", script])
        .current_dir(directory.path());
    let mut sidecar = Process::start("sidecar", &mut command, &path("log"));
    let mut says = |expected: &str| {
        wait_until(&format!("it says {expected}"), PATIENCE, || {
            sidecar.assert_running();
            sidecar.log().contains(expected)
        });
        let log = sidecar.log();
        assert!(!log.contains("canary"), "{log}");
        sidecar.pid()
    };
    let supervisor = says("read ***, 10.");
    becomes("canary-two2");
    says("read ***, 11.");

    let proxy = || {
        let children = format!("/proc/{supervisor}/task/{supervisor}/children");
        let children = fs::read_to_string(children).unwrap();
        let mut children = children.split_ascii_whitespace().map(ToOwned::to_owned);
        let is_proxy = |pid: &String| {
            let arguments = fs::read_to_string(format!("/proc/{pid}/cmdline"));
            arguments.is_ok_and(|it| it.contains("--supervised"))
        };
        let found = children.find(is_proxy)?.parse().ok();
        found.and_then(rustix::process::Pid::from_raw)
    };
    rustix::process::kill_process(proxy().unwrap(), Signal::KILL).unwrap();
    becomes("canary-three");
    says("read ***, 12.");
    sidecar.signal(Signal::TERM);
    assert_eq!(sidecar.wait(PATIENCE).code(), Some(128 + 15));
    let log = sidecar.log();
    assert!(!log.contains("canary"), "{log}");

    // There is nothing to mask where nobody is started.
    let config = path("job.yaml");
    let arguments = [
        "sidecar",
        "--mask-output",
        "--config",
        config.to_str().unwrap(),
    ];
    let (code, _, err) = fender_tests::process::output(binary(), &arguments);
    assert_eq!(code, 64);
    assert!(err.contains("--mask-output"), "{err}");
}
