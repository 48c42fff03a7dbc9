//! What the kernel says of a caller's process.
//!
//! Everything is read through one descriptor of its directory in `/proc`, opened while the process was known to live: once
//! it has ended, that descriptor leads nowhere, whoever has its number by then.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;

use fender_api::facts::ProcessFacts;
use fender_config::Sha256;
use rustix::fs::{Mode, OFlags};

use crate::Caller;

/// The largest program that is hashed.
const MAX_PROGRAM: u64 = 1024 * 1024 * 1024;
/// The largest of the small files in `/proc`.
const MAX_TEXT: u64 = 256 * 1024;
/// A file system whose contents are whatever a process of some user says at the moment.
const FUSE: i64 = 0x6573_5546;

/// A process that cannot be another one.
#[derive(Debug)]
pub(crate) struct Process {
    directory: OwnedFd,
}

impl Process {
    pub(crate) fn of(caller: &Caller) -> Result<Self, Unattested> {
        let directory = open(
            rustix::fs::CWD,
            &format!("/proc/{}", caller.pid),
            OFlags::DIRECTORY,
        )?;
        // Before this line the number may have had another owner; the directory is of whoever has it now.
        if caller.has_ended() {
            return Err(Unattested::Ended);
        }
        Ok(Self { directory })
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

    /// Absent if its numbers and paths are not the host's own.
    pub(crate) fn facts(&self, caller: &Caller) -> Result<Option<ProcessFacts>, Unattested> {
        for kind in ["ns/user", "ns/pid"] {
            if self.namespace(kind)? != own_namespace(kind)? {
                return Ok(None);
            }
        }
        // Effective numbers, as SO_PEERCRED gave them when it connected.
        let status = self.text("status")?;
        if [number(&status, "Uid:"), number(&status, "Gid:")]
            != [Some(caller.uid), Some(caller.gid)]
        {
            return Err(Unattested::Changed);
        }
        let program = match self.open("exe", OFlags::empty()) {
            Ok(program) => program,
            Err(Unattested::Unreadable(error))
                if error.kind() == io::ErrorKind::PermissionDenied =>
            {
                tracing::warn!(
                    pid = caller.pid,
                    "the program of a caller cannot be read: without CAP_SYS_PTRACE only uid and gid are attested"
                );
                return Ok(Some(ProcessFacts {
                    uid: caller.uid,
                    gid: caller.gid,
                    path: None,
                    sha256: None,
                }));
            }
            Err(error) => return Err(error),
        };
        let program = File::from(program);
        let replaced = program.metadata()?.nlink() == 0;
        let path = rustix::fs::readlinkat(&self.directory, "exe", Vec::new())
            .map_err(io::Error::from)?
            .into_string()
            .ok()
            .filter(|_| !replaced);
        Ok(Some(ProcessFacts {
            uid: caller.uid,
            gid: caller.gid,
            path,
            sha256: sha256(program)?,
        }))
    }

    fn namespace(&self, kind: &str) -> Result<(u64, u64), Unattested> {
        let namespace = rustix::fs::statat(&self.directory, kind, rustix::fs::AtFlags::empty())
            .map_err(io::Error::from)?;
        Ok((namespace.st_dev, namespace.st_ino))
    }

    fn open(&self, name: &str, flags: OFlags) -> Result<OwnedFd, Unattested> {
        open(&self.directory, name, flags)
    }

    fn text(&self, name: &str) -> Result<String, Unattested> {
        let mut text = String::new();
        File::from(self.open(name, OFlags::empty())?)
            .take(MAX_TEXT)
            .read_to_string(&mut text)?;
        Ok(text)
    }
}

fn open(at: impl std::os::fd::AsFd, path: &str, flags: OFlags) -> Result<OwnedFd, Unattested> {
    let flags = flags | OFlags::RDONLY | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(at, path, flags, Mode::empty()).map_err(io::Error::from)?)
}

fn own_namespace(kind: &str) -> io::Result<(u64, u64)> {
    let namespace = std::fs::metadata(format!("/proc/self/{kind}"))?;
    Ok((namespace.dev(), namespace.ino()))
}

/// The second of the four numbers in a line of `/proc/PID/status`: the effective one.
fn number(status: &str, name: &str) -> Option<u32> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// Of the very file that runs, wherever it is now. None for what is too large, and for what has no contents of its own.
fn sha256(mut program: File) -> Result<Option<Sha256>, Unattested> {
    let kind = rustix::fs::fstatfs(&program).map_err(io::Error::from)?;
    #[allow(
        clippy::unnecessary_cast,
        reason = "its width differs between architectures"
    )]
    let is_fuse = kind.f_type as i64 == FUSE;
    let metadata = program.metadata()?;
    if is_fuse || !metadata.is_file() || metadata.len() > MAX_PROGRAM {
        return Ok(None);
    }
    let mut digest = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
    let mut buffer = vec![0; 128 * 1024];
    let mut left = MAX_PROGRAM;
    loop {
        let read = program.read(&mut buffer)?;
        let Some(bytes) = buffer.get(..read).filter(|bytes| !bytes.is_empty()) else {
            break;
        };
        digest.update(bytes);
        left = left.saturating_sub(read as u64);
        if left == 0 {
            return Ok(None);
        }
    }
    let digest = digest.finish();
    Ok(<[u8; 32]>::try_from(digest.as_ref()).ok().map(Sha256))
}

/// Why nothing is known of a caller.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unattested {
    #[error("its process has ended")]
    Ended,
    #[error("its process is another user now than when it connected")]
    Changed,
    #[error("/proc does not tell of it: {0}")]
    Unreadable(#[from] io::Error),
    #[error("the container engine cannot be asked: {0}")]
    Engine(String),
    #[error("the engine knows no container `{0}` that runs")]
    NoContainer(String),
    #[error("it is in no cgroup of the container `{0}` that it names")]
    NotInContainer(String),
}

#[cfg(test)]
mod tests {
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
        let directory = tempfile::tempdir().unwrap();
        let open = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(directory.path(), open).unwrap();
        let path = directory.path().join("agent.sock");
        let listener = UnixListener::bind(&path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666)).unwrap();
        let program = program(directory.path());
        let mut words = before.to_vec();
        words.extend([program.as_str(), "-c", CALL]);
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
        std::fs::copy(python(directory), &copy).unwrap();
        copy.to_str().unwrap().to_owned()
    }

    fn setpriv() -> [&'static str; 4] {
        ["setpriv", "--reuid=1234", "--regid=2345", "--clear-groups"]
    }

    fn attested(call: &Call) -> Result<Option<ProcessFacts>, Unattested> {
        Process::of(&call.caller)?.facts(&call.caller)
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
        assert!(process.facts(&call.caller).is_err());
    }

    #[tokio::test]
    async fn attack_a_process_that_has_become_another_user_is_refused() {
        let call = call(&setpriv(), python).await;
        let other = Caller {
            uid: 0,
            ..call.caller.clone()
        };
        let changed = Process::of(&other).unwrap().facts(&other).unwrap_err();
        assert!(matches!(changed, Unattested::Changed));
    }
}
