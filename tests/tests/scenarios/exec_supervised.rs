//! `fender exec --supervise`: Fender stays as the parent of the command, keeps what it is started with fresh, and leaves nothing of
//! its own in what it inherits (DESIGN §9).

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use fender_tests::process::{PATIENCE, Process, binary, installed, output};
use fender_tests::vault::Vault;
use fender_tests::wait_until;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::Signal;
use tempfile::TempDir;

/// In every value; no log of Fender's may hold it.
const CANARY: &str = "canary-3fd1";

/// A job from a file, with credentials in its environment.
struct Job(TempDir);

impl Job {
    /// Of one credential, from a file, with this in its document.
    fn new(more: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let source = format!("file: {{ path: {}/value }}", directory.path().display());
        let job = Self(directory);
        job.becomes("one");
        job.document(&source, more);
        job
    }

    fn document(&self, source: &str, more: &str) {
        let text = format!(
            "apiVersion: fender.dev/v1\nkind: Sidecar\nmetadata: {{ namespace: shop, name: job }}\nspec: {{ credentials: [ smtp ] }}\n---\n\
             apiVersion: fender.dev/v1\nkind: Credential\nmetadata: {{ namespace: shop, name: smtp }}\nspec:\n  \
             source: {{ {source} }}\n  deliver: [ {{ environment: {{ variable: SMTP_PASSWORD }} }} ]\n{more}"
        );
        fs::write(self.path("job.yaml"), text).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn becomes(&self, value: &str) {
        fs::write(self.path("new"), format!("{CANARY}-{value}")).unwrap();
        fs::rename(self.path("new"), self.path("value")).unwrap();
    }

    fn command(&self, flags: &[&str], script: &str) -> Command {
        let mut command = Command::new(binary());
        command
            .args(["--log", "debug", "exec", "--supervise", "--config"])
            .arg(self.path("job.yaml"))
            .args(flags)
            .args(["--", "/bin/sh", "-c", script])
            .current_dir(self.0.path());
        command
    }

    fn run(&self, flags: &[&str], script: &str) -> Process {
        let mut command = self.command(flags, script);
        Process::start("exec", &mut command, &self.path("log"))
    }

    /// What the command has written so far.
    fn said(&self) -> String {
        fs::read_to_string(self.path("said")).unwrap_or_default()
    }

    fn says(&self, fender: &mut Process, expected: &str) {
        let expected = expected.replace('@', CANARY);
        wait_until(&format!("it says {expected}"), PATIENCE, || {
            fender.assert_running();
            self.said() == expected
        });
    }

    fn assert_nothing_is_shown(&self) {
        let log = fs::read_to_string(self.path("log")).unwrap();
        assert!(!log.contains(CANARY), "{log}");
    }
}

/// Says what it was started with, and ends when it is let or asked.
const SERVES: &str = "trap 'echo stops >> said; exit 3' TERM; trap 'exit 7' USR1; \
                      echo \"$SMTP_PASSWORD\" >> said; while :; do sleep 0.1; done";

#[test]
fn a_command_is_started_again_with_a_new_value_if_its_document_says_so_and_ends_with_its_own_code()
{
    let job = Job::new("  notify: [ { restart: {}, after: 0s } ]\n");
    let mut fender = job.run(&[], SERVES);
    job.says(&mut fender, "@-one\n");
    job.becomes("two");
    job.says(&mut fender, "@-one\nstops\n@-two\n");
    job.becomes("three");
    job.says(&mut fender, "@-one\nstops\n@-two\nstops\n@-three\n");
    // Every signal is the command's; the code it ends with is Fender's.
    fender.signal(Signal::USR1);
    assert_eq!(fender.wait(PATIENCE).code(), Some(7), "{}", fender.log());
    job.assert_nothing_is_shown();
}

#[test]
fn without_that_a_command_goes_on_and_its_next_start_has_the_new_value() {
    let job = Job::new("");
    let mut fender = job.run(&["--restart", "on-failure"], SERVES);
    job.says(&mut fender, "@-one\n");
    job.becomes("two");
    wait_until("the new value is known", PATIENCE, || {
        fender.assert_running();
        fender.log().contains("credential changed")
    });
    assert_eq!(job.said(), format!("{CANARY}-one\n"), "nothing happens");
    // It fails by itself.
    fender.signal(Signal::USR1);
    job.says(&mut fender, "@-one\n@-two\n");
    fender.signal(Signal::TERM);
    assert_eq!(fender.wait(PATIENCE).code(), Some(3), "{}", fender.log());
    job.assert_nothing_is_shown();
}

#[test]
fn a_command_that_does_not_stop_is_killed_and_one_that_cannot_be_started_is_said_to_be() {
    let job = Job::new("");
    let script = "trap '' TERM; echo up > said; while :; do sleep 0.1; done";
    // Whoever had to be killed was asked to stop all the same, and is not started again.
    for restart in ["no", "always"] {
        let flags = ["--stop-timeout", "300ms", "--restart", restart];
        let mut fender = job.run(&flags, script);
        job.says(&mut fender, "up\n");
        fender.signal(Signal::TERM);
        assert_eq!(fender.wait(PATIENCE).code(), Some(128 + 9), "{restart}");
        fs::remove_file(job.path("said")).unwrap();
    }
    let config = job.path("job.yaml");
    let exec = |flags: &[&str], program: &str| {
        let mut arguments = vec!["exec", "--config", config.to_str().unwrap()];
        arguments.extend(flags);
        arguments.extend(["--", program]);
        output(binary(), &arguments)
    };
    assert_eq!(exec(&["--supervise"], "/no/such/program").0, 127);
    assert_eq!(exec(&["--supervise"], "/etc/passwd").0, 126);
    // A parent is needed to start anything again.
    let (code, _, err) = exec(&["--restart", "always"], "/bin/true");
    assert_eq!(code, 64);
    assert!(err.contains("--supervise"), "{err}");
    // What is not there is not waited for.
    fs::remove_file(job.path("value")).unwrap();
    assert_eq!(exec(&["--supervise"], "/bin/true").0, 66);
}

#[test]
fn a_value_that_is_withdrawn_stays_with_who_runs_and_nobody_is_started_without_it() {
    let job = Job::new("");
    let mut fender = job.run(&["--restart", "always:1"], SERVES);
    job.says(&mut fender, "@-one\n");
    fs::remove_file(job.path("value")).unwrap();
    wait_until("it is withdrawn", PATIENCE, || {
        fender.assert_running();
        fender.log().contains("credential withdrawn")
    });
    fender.signal(Signal::USR1);
    assert_eq!(fender.wait(PATIENCE).code(), Some(66), "{}", fender.log());
    assert_eq!(job.said(), format!("{CANARY}-one\n"));
}

#[test]
fn a_stop_before_the_credentials_are_there_is_the_end() {
    let job = Job::new("");
    let pipe = job.path("pipe");
    let made = Command::new("mkfifo").arg(&pipe).status().unwrap();
    assert!(made.success());
    // A plug-in that says that it runs, and then nothing.
    let script = format!("echo up > {}; sleep 1000", pipe.display());
    let source =
        format!("command: {{ program: /bin/sh, arguments: [ '-c', '{script}' ], timeout: 2m }}");
    job.document(&source, "");
    let mut fender = job.run(&[], "echo > said");
    assert_eq!(fs::read_to_string(&pipe).unwrap(), "up\n");
    fender.signal(Signal::TERM);
    assert_eq!(fender.wait(PATIENCE).code(), Some(69), "{}", fender.log());
    assert_eq!(job.said(), "");
}

#[test]
fn a_command_that_is_to_outlive_its_terminal_does() {
    let job = Job::new("");
    let script = "trap 'exit 7' USR1; grep SigIgn /proc/$$/status > ignored; echo up > said; while :; do sleep 0.1; done";
    let fender = job.command(&[], script);
    // As by nohup.
    let mut command = Command::new(installed("env"));
    command
        .arg("--ignore-signal=HUP")
        .arg(fender.get_program())
        .args(fender.get_args())
        .current_dir(job.0.path());
    let mut fender = Process::start("exec", &mut command, &job.path("log"));
    job.says(&mut fender, "up\n");
    fender.signal(Signal::HUP);
    fender.signal(Signal::USR1);
    assert_eq!(fender.wait(PATIENCE).code(), Some(7), "{}", fender.log());
    let ignored = fs::read_to_string(job.path("ignored")).unwrap();
    let ignored = ignored.trim().rsplit('\t').next().unwrap();
    let ignored = u64::from_str_radix(ignored, 16).unwrap();
    assert_eq!(ignored & 1, 1, "as it was inherited");
}

#[test]
fn a_lease_is_renewed_while_the_command_runs_and_given_back_when_it_has_ended() {
    let job = Job::new("");
    let vault = Vault::in_the_clear();
    let token = vault.write_token(job.0.path());
    let place = "engine: { path: database/creds/orders, key: username }";
    let source = format!(
        "vault: {{ address: \"{}\", login: {{ token: {{ file: \"{}\" }} }}, {place} }}",
        vault.url(),
        token.display()
    );
    job.document(&source, "");

    // Nobody would be left to renew it: nothing is leased, and nothing is run.
    let config = job.path("job.yaml");
    let (code, out, err) = output(
        binary(),
        &[
            "exec",
            "--config",
            config.to_str().unwrap(),
            "--",
            "/bin/echo",
            "ran",
        ],
    );
    assert_eq!((code, out.as_str()), (64, ""), "{err}");
    assert!(
        err.contains("shop/smtp") && err.contains("--supervise"),
        "{err}"
    );
    assert_eq!(vault.asked(), Vec::<String>::new());

    // Long enough for a slow machine to renew it in time: after half to two thirds of that, for as long again.
    vault.set_lease(20, 20);
    let mut fender = job.run(
        &[],
        "echo \"$SMTP_PASSWORD\" > said; while :; do sleep 0.1; done",
    );
    wait_until("the lease is renewed", PATIENCE, || {
        fender.assert_running();
        vault.count("POST sys/leases/renew") >= 1
    });
    assert_ne!(job.said(), "");
    assert_eq!(vault.leases().len(), 1);
    fender.signal(Signal::TERM);
    assert_eq!(
        fender.wait(PATIENCE).code(),
        Some(128 + 15),
        "{}",
        fender.log()
    );
    assert_eq!(vault.leases(), Vec::<String>::new(), "{:?}", vault.asked());
}

#[test]
fn attack_who_does_not_read_standard_error_keeps_no_lease_from_being_given_back_and_nobody_from_ending()
 {
    let job = Job::new("");
    let vault = Vault::in_the_clear();
    let token = vault.write_token(job.0.path());
    let source = format!(
        "vault: {{ address: \"{}\", login: {{ token: {{ file: \"{}\" }} }}, engine: {{ path: database/creds/orders, key: username }} }}",
        vault.url(),
        token.display()
    );
    job.document(&source, "");
    let script = "echo up > said; exec yes fill >&2";
    let mut command = job.command(&["--mask-output"], script);
    let (reader, writer) = std::io::pipe().unwrap();
    let full = writer.try_clone().unwrap();
    command.stdout(Stdio::null()).stderr(writer);
    let mut fender = command.spawn().unwrap();
    wait_until("the pipe is full", PATIENCE, || {
        assert!(fender.try_wait().unwrap().is_none());
        let mut full = [PollFd::new(&full, PollFlags::OUT)];
        rustix::event::poll(&mut full, Some(&Timespec::default())).unwrap() == 0
    });
    assert_eq!(vault.leases().len(), 1);
    let pid = rustix::process::Pid::from_child(&fender);
    rustix::process::kill_process(pid, Signal::TERM).unwrap();
    wait_until("it ends", PATIENCE, || fender.try_wait().unwrap().is_some());
    assert_eq!(fender.wait().unwrap().code(), Some(128 + 15));
    assert_eq!(vault.leases(), Vec::<String>::new(), "{:?}", vault.asked());
    drop(reader);
}

/// A command may leave core files as it could without Fender; Fender, which holds its secrets, may not.
#[test]
fn a_command_has_the_limit_of_core_files_that_fender_was_started_with_and_fender_has_none() {
    let job = Job::new("");
    let script = "ulimit -S -c; ulimit -H -c; grep 'core file' /proc/$PPID/limits";
    let limits = |supervise: bool| {
        let fender = job.command(&[], script);
        let words = fender
            .get_args()
            .filter(|word| supervise || *word != "--supervise");
        let mut shell = Command::new("/bin/sh");
        shell
            .args(["-c", "ulimit -H -c 99; ulimit -S -c 77; exec \"$0\" \"$@\""])
            .arg(fender.get_program())
            .args(words)
            .current_dir(job.0.path());
        let output = shell.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let supervised = limits(true);
    assert!(supervised.starts_with("77\n99\n"), "{supervised}");
    let fenders = supervised.lines().last().unwrap().split_whitespace();
    let fenders: Vec<_> = fenders.skip(4).take(2).collect();
    assert_eq!(fenders, ["0", "50688"], "{supervised}");
    assert!(limits(false).starts_with("77\n99\n"));
}

/// In what it inherits, and in what `/proc` shows of the parent to somebody of the same user.
#[test]
fn attack_a_supervised_command_looks_for_what_is_fenders_and_finds_nothing() {
    for flags in [&[][..], &["--mask-output"]] {
        finds_nothing(flags);
    }
}

fn finds_nothing(flags: &[&str]) {
    const NOBODY: u32 = 65534;
    let job = Job::new("");
    let open = fs::Permissions::from_mode(0o777);
    fs::set_permissions(job.0.path(), open).unwrap();
    // A plug-in runs beside it, whose helper has a channel to Fender; and a variable is a source, which the command does not get.
    let plugin = r#"program: /bin/sh, arguments: [ '-c', 'echo "{\"version\":1,\"value\":\"canary-3fd1-plugin\"}"' ]"#;
    job.document(
        &format!("command: {{ {plugin}, every: 1s }}"),
        "---\napiVersion: fender.dev/v1\nkind: Credential\nmetadata: { namespace: shop, name: other }\nspec:\n  \
         source: { environment: { variable: SECRET_ORIGIN } }\n  deliver: [ { environment: { variable: OTHER } } ]\n",
    );
    let text = fs::read_to_string(job.path("job.yaml")).unwrap();
    fs::write(
        job.path("job.yaml"),
        text.replace("[ smtp ]", "[ smtp, other ]"),
    )
    .unwrap();
    let descriptors = "ls /proc/$$/fd > descriptors; exit 4";
    let script = format!(
        "{{ tr '\\0' '\\n' < /proc/$$/environ; tr '\\0' ' ' < /proc/$$/cmdline; echo; }} > found; \
         for file in environ maps mem fd auxv; do cat /proc/$PPID/$file; ls /proc/$PPID/$file/; done > parent 2> refused; \
         {descriptors}"
    );
    let mut command = job.command(flags, &script);
    command
        .env("FENDER_LOG_FORMAT", "json")
        .env("FENDER_TOKEN", "s3cret-token")
        .env("SECRET_ORIGIN", "canary-3fd1-source")
        .env("KEPT", "yes")
        .uid(NOBODY);
    let mut fender = Process::start("exec", &mut command, &job.path("log"));
    assert_eq!(fender.wait(PATIENCE).code(), Some(4), "{}", fender.log());
    let found = fs::read_to_string(job.path("found")).unwrap();
    for kept in [
        "KEPT=yes\n",
        "OTHER=canary-3fd1-source\n",
        "SMTP_PASSWORD=canary-3fd1-plugin\n",
    ] {
        assert!(found.contains(kept), "{found}");
    }
    for foreign in ["FENDER_", "s3cret-token", "--supervise", "SECRET_ORIGIN"] {
        assert!(!found.contains(foreign), "{foreign}: {found}");
    }
    let read = |name: &str| fs::read_to_string(job.path(name)).unwrap();
    assert_eq!(read("parent"), "", "nothing of the parent is shown");
    assert!(
        read("refused").contains("Permission denied"),
        "{}",
        read("refused")
    );
    let beside_fender = read("descriptors");
    // The same without Fender: the shell's own, and those of whoever runs the tests.
    let mut alone = Command::new("/bin/sh");
    alone
        .args(["-c", descriptors])
        .current_dir(job.0.path())
        .uid(NOBODY);
    let mut alone = Process::start("alone", &mut alone, &job.path("log"));
    assert_eq!(alone.wait(PATIENCE).code(), Some(4));
    assert_eq!(beside_fender, read("descriptors"));
    job.assert_nothing_is_shown();
}
