//! `fender sidecar -- CMD` (D3): the application starts when the sidecar is ready, gets every signal,
//! is reaped, and its exit code is the sidecar's. SIGTERM drains (D1).

use std::fs;
use std::path::Path;
use std::process::ExitStatus;
use std::time::Duration;

use fender_tests::process::{PATIENCE, Process, free_address};
use fender_tests::{Mesh, installed, wait_until};
use rustix::process::{Pid, Signal};

use crate::control_loss::one_service;

fn mesh() -> Mesh {
    Mesh::start(&one_service("1h", free_address(), free_address()))
}

fn supervise(mesh: &Mesh, script: &str) -> Process {
    let token = mesh.token("shop/orders", "5m");
    mesh.start_sidecar("shop/orders", Some(&token), &["/bin/sh", "-c", script])
}

fn ended(mesh: &Mesh, script: &str) -> ExitStatus {
    supervise(mesh, script).wait(PATIENCE)
}

fn wait_for_file(process: &mut Process, file: &Path) {
    wait_until(&format!("{} appears", file.display()), PATIENCE, || {
        process.assert_running();
        file.exists()
    });
}

#[test]
fn the_applications_exit_code_is_the_sidecars() {
    let mesh = mesh();
    assert_eq!(ended(&mesh, "exit 42").code(), Some(42));
    // And 128+n when a signal ended it; the state lets the second sidecar start without a token.
    let mut second = mesh.start_sidecar("shop/orders", None, &["/bin/sh", "-c", "kill -KILL $$"]);
    assert_eq!(second.wait(PATIENCE).code(), Some(128 + 9));
}

#[test]
fn the_application_starts_only_when_the_sidecar_is_ready() {
    let mesh = mesh();
    let socket = mesh.admin_socket("shop/orders");
    let script = format!(
        "{} status --sidecar {} --ready; exit $?",
        fender_tests::binary().display(),
        socket.display()
    );
    assert_eq!(
        ended(&mesh, &script).code(),
        Some(0),
        "ready before the first instruction of the application"
    );
}

#[test]
fn signals_reach_the_application() {
    let mesh = mesh();
    let ready = mesh.path("ready");
    let seen = mesh.path("seen");
    let script = format!(
        "trap 'echo hup >> {seen}' HUP; trap 'echo usr1 >> {seen}' USR1; trap 'exit 7' TERM; touch {ready}; while :; do sleep 0.05; done",
        seen = seen.display(),
        ready = ready.display()
    );
    let mut process = supervise(&mesh, &script);
    wait_for_file(&mut process, &ready);
    for (signal, word) in [(Signal::HUP, "hup"), (Signal::USR1, "usr1")] {
        process.signal(signal);
        wait_until(&format!("the application sees {word}"), PATIENCE, || {
            fs::read_to_string(&seen).unwrap_or_default().contains(word)
        });
    }
    process.signal(Signal::TERM);
    assert_eq!(process.wait(PATIENCE).code(), Some(7));
}

#[test]
fn orphans_of_the_application_are_reaped() {
    let mesh = mesh();
    let orphan = mesh.path("orphan");
    // The child's child outlives its parent and then ends: somebody must collect it.
    let script = format!(
        "(sh -c 'echo $$ > {orphan}.tmp; mv {orphan}.tmp {orphan}; exec sleep 0.2' &) ; while :; do sleep 0.05; done",
        orphan = orphan.display()
    );
    let mut process = supervise(&mesh, &script);
    wait_for_file(&mut process, &orphan);
    let pid: i32 = fs::read_to_string(&orphan).unwrap().trim().parse().unwrap();
    wait_until("the orphan is gone, not a zombie", PATIENCE, || {
        !Path::new(&format!("/proc/{pid}")).exists()
    });
}

#[test]
fn the_application_does_not_inherit_the_proxys_confinement() {
    let mesh = mesh();
    let file = mesh.path("status");
    let script = format!(
        "cat /proc/self/status > {0}.tmp; ulimit -c >> {0}.tmp; mv {0}.tmp {0}; echo free > /var/tmp/fender-test-$$ && rm /var/tmp/fender-test-$$",
        file.display()
    );
    assert_eq!(
        ended(&mesh, &script).code(),
        Some(0),
        "the application may write where the proxy may not"
    );
    let status = fs::read_to_string(&file).unwrap();
    assert!(status.contains("NoNewPrivs:\t0"), "{status}");
    assert!(status.contains("Seccomp:\t0"), "{status}");
}

#[test]
fn the_proxy_is_confined_and_the_supervisor_is_another_process() {
    let mesh = mesh();
    let ready = mesh.path("ready");
    let mut process = supervise(
        &mesh,
        &format!("touch {}; while :; do sleep 0.05; done", ready.display()),
    );
    wait_for_file(&mut process, &ready);
    let proxy = children(process.pid())
        .into_iter()
        .find(|pid| command(*pid).contains("--supervised"))
        .expect("a proxy process");
    let status = fs::read_to_string(format!("/proc/{proxy}/status")).unwrap();
    assert!(status.contains("NoNewPrivs:\t1"), "{status}");
}

#[test]
fn a_proxy_that_dies_is_restarted_and_the_application_is_not() {
    let mesh = mesh();
    let ready = mesh.path("ready");
    let mut process = supervise(
        &mesh,
        &format!(
            "echo x >> {}; while :; do sleep 0.05; done",
            ready.display()
        ),
    );
    wait_for_file(&mut process, &ready);
    let find = |pid| {
        children(pid)
            .into_iter()
            .find(|pid| command(*pid).contains("--supervised"))
    };
    let first = find(process.pid()).expect("a proxy process");
    rustix::process::kill_process(Pid::from_raw(first as i32).unwrap(), Signal::KILL).unwrap();
    wait_until("another proxy is there", PATIENCE, || {
        find(process.pid()).is_some_and(|pid| pid != first)
    });
    mesh.wait_ready("shop/orders", &mut process);
    assert_eq!(
        fs::read_to_string(&ready).unwrap(),
        "x\n",
        "the application was started once"
    );
}

#[test]
fn an_application_that_ignores_sigterm_is_killed_after_its_time() {
    let mesh = mesh();
    let ready = mesh.path("ready");
    let token = mesh.token("shop/orders", "5m");
    let mut command = mesh.sidecar_command("shop/orders", Some(&token));
    command.args(["--stop-timeout", "1s", "--", "/bin/sh", "-c"]);
    command.arg(format!(
        "trap '' TERM; touch {}; while :; do sleep 0.05; done",
        ready.display()
    ));
    let mut process = Process::start("stubborn", &mut command, &mesh.path("logs/stubborn.log"));
    wait_for_file(&mut process, &ready);
    process.signal(Signal::TERM);
    assert_eq!(process.wait(Duration::from_secs(30)).code(), Some(128 + 9));
}

#[test]
fn an_application_reads_from_the_terminal_it_was_started_in() {
    let mesh = mesh();
    let token = mesh.token("shop/orders", "5m");
    let sidecar = mesh.sidecar_command("shop/orders", Some(&token));
    let words = std::iter::once(sidecar.get_program()).chain(sidecar.get_args());
    let words: Vec<_> = words
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    let line = format!(
        "{} -- /bin/sh -c 'read answer; exit $answer'",
        words.join(" ")
    );
    // `script` gives it a terminal, and what is typed there.
    let mut command = std::process::Command::new(installed("script"));
    command.args(["--quiet", "--return", "--command", &line, "/dev/null"]);
    command
        .env_clear()
        .env("FENDER_CONTROL", mesh.url())
        .env("SHELL", "/bin/sh");
    command
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null());
    let mut terminal = Terminal(command.spawn().unwrap());
    let mut keyboard = terminal.0.stdin.take().unwrap();
    std::io::Write::write_all(&mut keyboard, b"7\n").unwrap();
    wait_until("the application has read and ended", PATIENCE, || {
        terminal.0.try_wait().unwrap().is_some()
    });
    assert_eq!(terminal.0.wait().unwrap().code(), Some(7));
}

/// A terminal that hangs up when the test is over, whatever came of it.
struct Terminal(std::process::Child);

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn children(parent: u32) -> Vec<u32> {
    let text =
        fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).unwrap_or_default();
    text.split_whitespace()
        .filter_map(|pid| pid.parse().ok())
        .collect()
}

fn command(pid: u32) -> String {
    String::from_utf8_lossy(&fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default())
        .replace('\0', " ")
}
