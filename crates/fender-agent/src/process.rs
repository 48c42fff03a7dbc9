//! What the kernel says of a caller's process.
//!
//! Everything is read through one descriptor of its directory in `/proc`, opened while the process was known to live: once
//! it has ended, that descriptor leads nowhere, whoever has its number by then. What was read counts only if at the end the
//! process is still the program and the user that it was when it was let in.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::sync::atomic::AtomicBool;

use fender_api::facts::ProcessFacts;
use fender_runtime::clock::UnixTime;
use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags};

use crate::Caller;
use crate::programs::{Digests, Late, NotRead};

/// The largest of the small files in `/proc`.
const MAX_TEXT: u64 = 256 * 1024;

/// A process that cannot be another one.
#[derive(Debug)]
pub(crate) struct Process {
    directory: OwnedFd,
}

/// What tells that a process is the program it was: another one has another file. It asks no file system, which could take
/// its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Moment {
    /// When the process began, in ticks since the machine did.
    began: u64,
    /// The file of its program; absent where that is hidden from us.
    program: Option<((u32, u32), u64)>,
}

impl Moment {
    /// Of the process that is held.
    pub(crate) fn of(caller: &Caller) -> Result<Self, Unattested> {
        Process::held(caller)?.moment()
    }
}

impl Process {
    /// The process that is held, if it is the program that it was when it was let in.
    pub(crate) fn of(caller: &Caller) -> Result<Self, Unattested> {
        let process = Self::held(caller)?;
        process.confirm(caller)?;
        Ok(process)
    }

    fn held(caller: &Caller) -> Result<Self, Unattested> {
        let process = Self::numbered(caller.pid)?;
        // Before this line the number may have had another owner; the directory is of whoever has it now.
        match caller.has_ended() {
            true => Err(Unattested::Ended),
            false => Ok(process),
        }
    }

    /// Of any process, by a number that the engine gave.
    pub(crate) fn numbered(pid: u32) -> Result<Self, Unattested> {
        let directory = open(rustix::fs::CWD, &format!("/proc/{pid}"), OFlags::DIRECTORY)?;
        Ok(Self { directory })
    }

    /// Which cgroup it is in, line by line as the kernel writes it.
    pub(crate) fn cgroup(&self) -> Result<String, Unattested> {
        self.text("cgroup")
    }

    /// It is still there, and still the user and the program that it was when it was let in.
    pub(crate) fn confirm(&self, caller: &Caller) -> Result<(), Unattested> {
        // Effective numbers, as SO_PEERCRED gave them when it connected.
        let status = self.text("status")?;
        let numbers = [number(&status, "Uid:"), number(&status, "Gid:")];
        if numbers != [Some(caller.uid), Some(caller.gid)] {
            return Err(Unattested::Changed);
        }
        if caller.seen != Some(self.moment()?) {
            return Err(Unattested::Changed);
        }
        match caller.has_ended() {
            true => Err(Unattested::Ended),
            false => Ok(()),
        }
    }

    fn moment(&self) -> Result<Moment, Unattested> {
        let stat = self.text("stat")?;
        let program = rustix::fs::statx(
            &self.directory,
            "exe",
            AtFlags::STATX_DONT_SYNC,
            StatxFlags::INO,
        );
        let program = match program {
            Ok(of) => Some(((of.stx_dev_major, of.stx_dev_minor), of.stx_ino)),
            Err(rustix::io::Errno::ACCESS | rustix::io::Errno::PERM) => None,
            Err(error) => return Err(io::Error::from(error).into()),
        };
        Ok(Moment {
            began: began(&stat).ok_or(Unattested::Ended)?,
            program,
        })
    }

    /// Whether its numbers and paths are those that we see.
    pub(crate) fn is_of_host(&self) -> Result<bool, Unattested> {
        for kind in ["ns/user", "ns/pid"] {
            if self.namespace(kind)? != own_namespace(kind)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Absent if its numbers and paths are not the host's own. Reads its program, and may take as long as that takes.
    pub(crate) fn facts(
        &self,
        caller: &Caller,
        digests: &Digests,
        now: UnixTime,
        given_up: &AtomicBool,
    ) -> Result<Option<ProcessFacts>, Unattested> {
        if !self.is_of_host()? {
            return Ok(None);
        }
        let mut facts = ProcessFacts {
            uid: caller.uid,
            gid: caller.gid,
            path: None,
            sha256: None,
        };
        let program = match self.open("exe", OFlags::empty()) {
            Ok(program) => program,
            Err(Unattested::Unreadable(error))
                if error.kind() == io::ErrorKind::PermissionDenied =>
            {
                tracing::warn!(
                    pid = caller.pid,
                    "the program of a caller cannot be read: without CAP_SYS_PTRACE only uid and gid are attested"
                );
                return Ok(Some(facts));
            }
            Err(error) => return Err(error),
        };
        let mut program = File::from(program);
        facts.path = self.path(&program)?;
        facts.sha256 = digests.of(&mut program, now, given_up)?;
        Ok(Some(facts))
    }

    /// Of its program, if that is what lies there: a file that was replaced lends its name to nobody, and in a mount
    /// namespace of one's own any file may have any name.
    fn path(&self, program: &File) -> Result<Option<String>, Unattested> {
        let path = rustix::fs::readlinkat(&self.directory, "exe", Vec::new());
        let Ok(path) = path.map_err(io::Error::from)?.into_string() else {
            return Ok(None);
        };
        let runs = program.metadata()?;
        let lies_there = std::fs::metadata(&path)
            .is_ok_and(|there| (there.dev(), there.ino()) == (runs.dev(), runs.ino()));
        Ok(Some(path).filter(|_| lies_there))
    }

    fn namespace(&self, kind: &str) -> Result<(u64, u64), Unattested> {
        let namespace =
            rustix::fs::statat(&self.directory, kind, AtFlags::empty()).map_err(io::Error::from)?;
        Ok((namespace.st_dev, namespace.st_ino))
    }

    fn open(&self, name: &str, flags: OFlags) -> Result<OwnedFd, Unattested> {
        open(&self.directory, name, flags)
    }

    fn text(&self, name: &str) -> Result<String, Unattested> {
        let mut text = Vec::new();
        File::from(self.open(name, OFlags::empty())?)
            .take(MAX_TEXT)
            .read_to_end(&mut text)?;
        // A process calls itself what it likes.
        Ok(String::from_utf8_lossy(&text).into_owned())
    }
}

fn open(at: impl AsFd, path: &str, flags: OFlags) -> Result<OwnedFd, Unattested> {
    let flags = flags | OFlags::RDONLY | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(at, path, flags, Mode::empty()).map_err(io::Error::from)?)
}

fn own_namespace(kind: &str) -> io::Result<(u64, u64)> {
    let namespace = std::fs::metadata(format!("/proc/self/{kind}"))?;
    Ok((namespace.dev(), namespace.ino()))
}

/// The second of the four numbers in a line of `/proc/PID/status`: the effective one. The name of the process, which it
/// chooses, comes before these lines and has no line feed in it.
fn number(status: &str, name: &str) -> Option<u32> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// The twenty-second field of `/proc/PID/stat`. The second is the name of the process in parentheses, which may have more
/// of them in it.
fn began(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// Why nothing is known of a caller.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unattested {
    #[error("its process has ended")]
    Ended,
    #[error("its process is another user, or another program, than when it connected")]
    Changed,
    #[error("/proc does not tell of it: {0}")]
    Unreadable(#[from] io::Error),
    #[error("its program changed while it was read")]
    Rewritten,
    #[error(transparent)]
    Late(#[from] Late),
    #[error("its user, or its container, asks more often than all its processes need")]
    TooOften,
    #[error("the container engine cannot be asked: {0}")]
    Engine(String),
    #[error("the engine knows no container `{0}` that runs")]
    NoContainer(String),
    #[error("its container `{0}` was started anew while it was looked at")]
    Restarted(String),
    #[error("it is in no cgroup of the container `{0}` that it names")]
    NotInContainer(String),
}

impl Unattested {
    /// It may be otherwise in a moment.
    pub(crate) fn is_passing(&self) -> bool {
        match self {
            Self::Engine(_) | Self::Late(_) | Self::TooOften => true,
            Self::Ended
            | Self::Changed
            | Self::Rewritten
            | Self::Unreadable(_)
            | Self::NoContainer(_)
            | Self::Restarted(_)
            | Self::NotInContainer(_) => false,
        }
    }
}

impl From<NotRead> for Unattested {
    fn from(why: NotRead) -> Self {
        match why {
            NotRead::Changed => Self::Rewritten,
            NotRead::GivenUp => Self::Late(Late),
            NotRead::Io(error) => Self::Unreadable(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::unix::fs::PermissionsExt as _;
    use std::path::Path;
    use std::process::{Child, Command, Stdio};

    use fender_runtime::listen::Socket;
    use tokio::net::UnixListener;

    use super::*;

    const CALL: &str = "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); sys.stdin.read()";

    struct Call {
        child: Child,
        caller: Caller,
        _directory: tempfile::TempDir,
    }

    impl Drop for Call {
        fn drop(&mut self) {
            drop(self.child.stdin.take());
            let _ = self.child.wait();
        }
    }

    /// A process of another user, by another program, that has called.
    async fn call(before: &[&str], program: impl FnOnce(&Path) -> String) -> Call {
        called(before, program, CALL).await
    }

    async fn called(before: &[&str], program: impl FnOnce(&Path) -> String, what: &str) -> Call {
        let directory = tempfile::tempdir().unwrap();
        let open = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(directory.path(), open).unwrap();
        let path = directory.path().join("agent.sock");
        let listener = UnixListener::bind(&path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666)).unwrap();
        let program = program(directory.path());
        let mut words = before.to_vec();
        words.extend([program.as_str(), "-c", what]);
        let child = Command::new(words[0])
            .args(&words[1..])
            .arg(&path)
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let socket = Socket::from(listener.accept().await.unwrap().0);
        Call {
            child,
            caller: Caller::of(&socket).unwrap(),
            _directory: directory,
        }
    }

    fn python(_: &Path) -> String {
        std::fs::canonicalize("/usr/bin/python3")
            .unwrap()
            .to_str()
            .unwrap()
            .to_owned()
    }

    fn copied(directory: &Path) -> String {
        let copy = directory.join("orders");
        // By a process of its own: open for writing here, it could be inherited by what another test starts, and not be run.
        let mut install = Command::new("install");
        let status = install.arg(python(directory)).arg(&copy).status();
        assert!(status.unwrap().success());
        copy.to_str().unwrap().to_owned()
    }

    fn setpriv() -> [&'static str; 4] {
        ["setpriv", "--reuid=1234", "--regid=2345", "--clear-groups"]
    }

    fn facts_of(process: &Process, caller: &Caller) -> Result<Option<ProcessFacts>, Unattested> {
        let now = fender_runtime::clock::system().now();
        process.facts(caller, &Digests::default(), now, &AtomicBool::new(false))
    }

    fn attested(call: &Call) -> Result<Option<ProcessFacts>, Unattested> {
        facts_of(&Process::of(&call.caller)?, &call.caller)
    }

    #[tokio::test]
    async fn user_group_path_and_digest_are_the_kernel_s_word() {
        let call = call(&setpriv(), python).await;
        let facts = attested(&call).unwrap().unwrap();
        assert_eq!((facts.uid, facts.gid), (1234, 2345));
        let program = python(Path::new("/"));
        assert_eq!(facts.path.as_deref(), Some(program.as_str()));
        let printed = Command::new("sha256sum")
            .arg(&program)
            .output()
            .unwrap()
            .stdout;
        let printed = String::from_utf8(printed).unwrap();
        assert_eq!(facts.sha256.unwrap().to_string(), printed[..64]);
    }

    #[tokio::test]
    async fn attack_a_program_replaced_after_its_start_does_not_lend_its_name() {
        let mut place = String::new();
        let call = call(&setpriv(), |directory| {
            place = copied(directory);
            place.clone()
        })
        .await;
        let before = attested(&call).unwrap().unwrap();
        assert_eq!(before.path.as_ref(), Some(&place));
        std::fs::remove_file(&place).unwrap();
        std::fs::write(&place, "what the operator meant").unwrap();
        let after = attested(&call).unwrap().unwrap();
        assert_eq!(after.path, None);
        assert_eq!(
            after.sha256, before.sha256,
            "what runs, not what lies there"
        );
    }

    #[tokio::test]
    async fn attack_whoever_makes_a_user_or_process_namespace_has_no_facts_of_the_host() {
        for namespace in ["--user", "--pid"] {
            let call = call(
                &[
                    "unshare",
                    namespace,
                    "--fork",
                    "--kill-child",
                    "--map-root-user",
                ],
                python,
            )
            .await;
            assert_eq!(attested(&call).unwrap(), None, "{namespace}");
        }
    }

    #[tokio::test]
    async fn attack_the_number_of_an_ended_process_leads_to_nobody() {
        let mut call = call(&setpriv(), python).await;
        let process = Process::of(&call.caller).unwrap();
        drop(call.child.stdin.take());
        call.child.wait().unwrap();
        assert!(matches!(
            Process::of(&call.caller),
            Err(Unattested::Ended | Unattested::Unreadable(_))
        ));
        // What was opened while it lived does not lead to its successor either.
        assert!(facts_of(&process, &call.caller).is_err());
        assert!(process.confirm(&call.caller).is_err());
    }

    #[tokio::test]
    async fn attack_a_process_that_has_become_another_user_is_refused() {
        let call = call(&setpriv(), python).await;
        let other = Caller {
            uid: 0,
            ..call.caller.clone()
        };
        assert!(matches!(Process::of(&other), Err(Unattested::Changed)));
    }

    #[tokio::test]
    async fn attack_a_process_that_executes_the_right_program_after_it_connected_is_refused() {
        // It keeps the socket, and could have left it to a child as well.
        const CHANGE: &str = "import os, socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); \
             os.set_inheritable(s.fileno(), True); sys.stdin.readline(); os.execv('/bin/cat', ['cat'])";
        let mut call = called(&setpriv(), python, CHANGE).await;
        let process = Process::of(&call.caller).unwrap();
        call.child
            .stdin
            .as_mut()
            .unwrap()
            .write_all(b"now\n")
            .unwrap();
        let exe = format!("/proc/{}/exe", call.caller.pid);
        let cat = std::fs::canonicalize("/bin/cat").unwrap();
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
        while std::fs::read_link(&exe).unwrap() != cat {
            assert!(std::time::Instant::now() < deadline, "it executes nothing");
            std::thread::yield_now();
        }
        // Whoever began before and whoever begins after.
        assert!(matches!(
            process.confirm(&call.caller),
            Err(Unattested::Changed)
        ));
        assert!(matches!(
            Process::of(&call.caller),
            Err(Unattested::Changed)
        ));
        assert!(!call.caller.has_ended());
    }

    #[tokio::test]
    async fn attack_a_file_with_the_right_name_in_a_mount_namespace_of_ones_own_lends_no_name() {
        // The same file system as seen from within: there it is called as what the operator meant.
        let directory = tempfile::tempdir().unwrap();
        std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let copy = copied(directory.path());
        let mut within = Command::new("unshare")
            .args(["--mount", "sh", "-c"])
            .arg(format!(
                "mount --bind {copy} /usr/bin/env && echo ready && read line"
            ))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut ready = [0; 6];
        within
            .stdout
            .as_mut()
            .unwrap()
            .read_exact(&mut ready)
            .unwrap();
        assert_eq!(&ready, b"ready\n");
        let program = format!("/proc/{}/root/usr/bin/env", within.id());
        let call = call(&[], |_| program).await;
        let named = std::fs::read_link(format!("/proc/{}/exe", call.caller.pid)).unwrap();
        let facts = attested(&call).unwrap().unwrap();
        drop(within.stdin.take());
        within.wait().unwrap();
        assert_eq!(named, Path::new("/usr/bin/env"), "the kernel names it so");
        assert_eq!(facts.path, None);
    }

    #[test]
    fn a_process_may_call_itself_as_it_likes() {
        let stat = "7 (a) b) (c) S 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 12345 1 2 3";
        assert_eq!(began(stat), Some(12345));
        assert_eq!(began("7 (a) S 1"), None);
    }
}
