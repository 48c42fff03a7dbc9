use std::fs;
use std::io::Read as _;
use std::os::fd::AsFd as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};

use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::io::FdFlags;
use tempfile::TempDir;

use super::*;

/// What runs the scripts: a file that was written a moment ago cannot be run itself while another test forks.
const SHELL: &str = "/bin/sh";

fn script(text: &str, arguments: &[&Path]) -> Task {
    let arguments = arguments.iter().map(|path| path.to_str().unwrap());
    Task {
        program: SHELL.into(),
        arguments: ["-c", text, "script"]
            .into_iter()
            .chain(arguments)
            .map(ToOwned::to_owned)
            .collect(),
        input: b"the input\n".to_vec(),
        most: 64 * 1024,
        timeout: LONGEST,
    }
}

fn shell() -> Runner {
    Runner::here([SHELL.into()])
}

/// A helper within this process, and who asks it.
fn helped(allowed: &[&str], drain: &Drain) -> Runner {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let allowed = allowed.iter().map(PathBuf::from).collect();
    drain.spawn(async { serve(theirs, allowed).await.unwrap() });
    Runner::by(ours, [SHELL.into(), "/bin/cat".into()])
}

fn text(finished: &Finished) -> &str {
    std::str::from_utf8(&finished.output).unwrap()
}

/// A pipe with a name, whose end tells that nobody who had it open is alive.
struct Pipe {
    directory: TempDir,
}

impl Pipe {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let pipe = Self { directory };
        let mode = Mode::RUSR | Mode::WUSR;
        rustix::fs::mknodat(CWD, pipe.path(), FileType::Fifo, mode, 0).unwrap();
        pipe
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("pipe")
    }

    /// On a thread of its own: once somebody has it open, says so; then waits for the end.
    fn watch(
        &self,
    ) -> (
        tokio::sync::oneshot::Receiver<()>,
        tokio::task::JoinHandle<()>,
    ) {
        let (opened, open) = tokio::sync::oneshot::channel();
        let path = self.path();
        let end = tokio::task::spawn_blocking(move || {
            let mut pipe = fs::File::open(path).unwrap();
            let _ = opened.send(());
            pipe.read_to_end(&mut Vec::new()).unwrap();
        });
        (open, end)
    }
}

#[tokio::test]
async fn a_program_reads_its_task_and_is_heard_to_its_end() {
    let drain = Drain::new();
    for runner in [shell(), helped(&[SHELL], &drain)] {
        let task = script(
            "read -r line; echo \"heard $line\"; echo oops >&2; exit 7",
            &[],
        );
        let finished = runner.run(&task).await.unwrap();
        assert_eq!(text(&finished), "heard the input\n");
        assert_eq!((finished.exit, finished.complaints), (Exit::Code(7), 5));
        let finished = runner.run(&script("kill -KILL $$", &[])).await.unwrap();
        assert_eq!(finished.exit, Exit::Signal(9));
        // Who does not read what it is told, and says nothing.
        let finished = runner.run(&script("exit 0", &[])).await.unwrap();
        assert_eq!((finished.exit, finished.output.len()), (Exit::Code(0), 0));
    }
    drain.drained().await;
}

#[tokio::test]
async fn attack_a_program_inherits_nothing() {
    // Open to children, as by a careless parent.
    let leaked = fs::File::open("/etc/passwd").unwrap();
    rustix::io::fcntl_setfd(leaked.as_fd(), FdFlags::empty()).unwrap();
    let show = "env; pwd; grep NoNewPrivs /proc/self/status; ulimit -c; grep SigIgn /proc/self/status; for d in /proc/self/fd/*; do readlink \"$d\"; done";
    let finished = shell().run(&script(show, &[])).await.unwrap();
    let shown = text(&finished);
    let has = |line: &str| shown.lines().any(|shown| shown == line);
    assert!(has(&format!("PATH={PATH}")), "{shown}");
    assert!(has("/") && has("NoNewPrivs:\t1") && has("0"), "{shown}");
    let ignored = shown.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = u64::from_str_radix(ignored.unwrap().trim(), 16).unwrap();
    // Of the two behind those that have names nobody but the C library can tell.
    assert_eq!(ignored & 0x7fff_ffff, 0, "{shown}");
    assert!(!shown.contains("/etc/passwd"), "{shown}");
    let pipes = shown.lines().filter(|line| line.starts_with("pipe:"));
    assert_eq!(pipes.count(), 3, "{shown}");
    // The shell sets these itself.
    let own = ["PATH=", "PWD=/", "OLDPWD=", "SHLVL=", "_="];
    let variables = shown
        .lines()
        .filter(|line| line.contains('=') && !line.starts_with('/'));
    for variable in variables {
        assert!(
            own.iter().any(|own| variable.starts_with(own)),
            "{variable}"
        );
    }
}

#[tokio::test]
async fn a_program_that_takes_too_long_is_killed() {
    let drain = Drain::new();
    for runner in [shell(), helped(&[SHELL], &drain)] {
        let mut task = script("exec sleep 1000", &[]);
        task.timeout = Duration::from_millis(100);
        assert_eq!(runner.run(&task).await.unwrap_err(), RunError::Timeout);
    }
    drain.drained().await;
}

#[tokio::test]
async fn nothing_of_a_program_is_left_when_nobody_waits_for_it() {
    let drain = Drain::new();
    for runner in [shell(), helped(&[SHELL], &drain)] {
        let pipe = Pipe::new();
        let (open, end) = pipe.watch();
        let path = pipe.path();
        // A child of its own, which would outlive it.
        let task = script("exec 3> \"$1\"; sleep 1000 & wait", &[&path]);
        tokio::select! {
            finished = runner.run(&task) => panic!("{finished:?}"),
            opened = open => opened.unwrap(),
        }
        end.await.unwrap();
    }
    drain.drained().await;
}

#[tokio::test]
async fn what_a_program_leaves_behind_is_ended_and_holds_nobody_up() {
    let pipe = Pipe::new();
    let (open, end) = pipe.watch();
    let path = pipe.path();
    // It keeps the output open.
    let task = script("exec 3> \"$1\"; sleep 1000 & echo done", &[&path]);
    let finished = shell().run(&task).await.unwrap();
    assert_eq!((text(&finished), finished.exit), ("done\n", Exit::Code(0)));
    open.await.unwrap();
    end.await.unwrap();
}

#[tokio::test]
async fn attack_a_program_that_talks_without_end_is_killed() {
    let drain = Drain::new();
    for runner in [shell(), helped(&[SHELL], &drain)] {
        let error = runner.run(&script("cat /dev/zero", &[])).await.unwrap_err();
        assert_eq!(error, RunError::TooMuch);
        // What it complains of is counted and thrown away.
        let finished = runner
            .run(&script("head -c 3000000 /dev/zero >&2", &[]))
            .await
            .unwrap();
        assert_eq!((finished.complaints, finished.output.len()), (3_000_000, 0));
    }
    drain.drained().await;
}

#[tokio::test]
async fn attack_only_a_program_that_was_named_letter_by_letter_is_run() {
    let runner = Runner::here(["/usr/bin/env".into(), "relative".into()]);
    for program in [
        "/bin/sh",
        "/usr/bin/../bin/env",
        "/usr//bin/env",
        "/usr/bin/env/",
        "relative",
        "",
    ] {
        let task = Task {
            program: program.into(),
            ..script("", &[])
        };
        let error = runner.run(&task).await.unwrap_err();
        assert_eq!(error, RunError::NotAllowed, "{program}");
    }
    let error = Runner::none().run(&script("", &[])).await.unwrap_err();
    assert_eq!(error, RunError::NotAllowed);
}

#[tokio::test]
async fn attack_whoever_has_the_channel_cannot_allow_a_program() {
    let drain = Drain::new();
    let runner = helped(&["/bin/cat"], &drain);
    let error = runner.run(&script("exit 0", &[])).await.unwrap_err();
    assert_eq!(error, RunError::NotAllowed);
    drop(runner);
    drain.drained().await;
}

#[tokio::test]
async fn attack_a_program_that_everybody_may_change_is_not_run() {
    let directory = tempfile::tempdir().unwrap();
    let program = directory.path().join("program");
    fs::OpenOptions::new()
        .create_new(true)
        .write(true)
        .mode(0o700)
        .open(&program)
        .unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o757)).unwrap();
    let runner = Runner::here([program.clone(), directory.path().to_owned()]);
    let start = async |program: &Path| {
        let task = Task {
            program: program.to_owned(),
            ..script("", &[])
        };
        runner.run(&task).await.unwrap_err().to_string()
    };
    let refused = start(&program).await;
    assert!(refused.contains("everybody may write"), "{refused}");
    let refused = start(directory.path()).await;
    assert!(refused.contains("not a regular file"), "{refused}");
}

#[tokio::test]
async fn a_helper_that_is_gone_is_said_to_be() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    drop(theirs);
    let runner = Runner::by(ours, [SHELL.into()]);
    let error = runner.run(&script("exit 0", &[])).await.unwrap_err();
    assert_eq!(error, RunError::Gone);
}

#[tokio::test]
async fn a_task_waits_for_a_helper_that_is_started_again() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let runner = Runner::by(ours, [SHELL.into()]);
    let drain = Drain::new();
    let (answer, mut answered) = tokio::sync::oneshot::channel();
    let asked = runner.clone();
    drain.spawn(async move {
        let _ = answer.send(asked.run(&script("echo again", &[])).await);
    });
    // The one before has ended, and its task is not heard of; this one finds it.
    theirs.readable().await.unwrap();
    assert!(answered.try_recv().is_err());
    // That this takes long is none of the program's slowness.
    tokio::time::pause();
    tokio::time::advance(2 * lanes::QUICK).await;
    tokio::time::resume();
    drain.spawn(async { serve(theirs, vec![SHELL.into()]).await.unwrap() });
    assert_eq!(text(&answered.await.unwrap().unwrap()), "again\n");
    let lanes = runner.lanes.as_ref().unwrap();
    assert_eq!(lanes.slow_ones(), 0);
    drop(runner);
    drain.drained().await;
}

#[tokio::test]
async fn attack_who_makes_no_sense_to_a_helper_is_not_taken_for_gone() {
    for nonsense in [&b"\xff\n"[..], &[b'x'; 80 * 1024]] {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let (said, served) =
            tokio::join!(ours.write_all(nonsense), serve(theirs, vec![SHELL.into()]));
        // It may stop listening in the middle.
        drop(said);
        let error = served.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}

#[tokio::test]
async fn only_so_many_run_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("log");
    let gate = Pipe::new();
    // Open both ways: nobody waits for another end.
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let opened = rustix::fs::open(gate.path(), flags, Mode::empty()).unwrap();
    let drain = Drain::new();
    for runner in [shell(), helped(&[SHELL], &drain)] {
        fs::write(&log, "").unwrap();
        let path = gate.path();
        let task = script(
            "echo + >> \"$1\"; read -r go < \"$2\"; echo - >> \"$1\"",
            &[&log, &path],
        );
        let all = Drain::new();
        for _ in 0..3 * AT_ONCE {
            let (runner, task) = (runner.clone(), task.clone());
            all.spawn(async move {
                assert_eq!(runner.run(&task).await.unwrap().exit, Exit::Code(0));
            });
        }
        // As many as may are waiting at the gate before it is opened.
        let began = || fs::read_to_string(&log).unwrap().lines().count();
        while began() < AT_ONCE {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        for _ in 0..3 * AT_ONCE {
            rustix::io::write(&opened, b"\n").unwrap();
        }
        all.drained().await;
        let (mut running, mut most, mut ran) = (0_i32, 0, 0);
        for line in fs::read_to_string(&log).unwrap().lines() {
            running += if line == "+" { 1 } else { -1 };
            ran += usize::from(line == "+");
            most = most.max(running);
        }
        assert_eq!((ran, running), (3 * AT_ONCE, 0));
        // On a slow machine some take long.
        assert!(usize::try_from(most).unwrap() <= 2 * AT_ONCE, "{most}");
    }
    drain.drained().await;
}
