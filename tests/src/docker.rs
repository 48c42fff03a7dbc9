//! A Docker engine of our own: its network, its mounts and its data are nobody else's, and nothing
//! of it is left when the test ends.
//!
//! It needs root, as every engine does that was not installed for one user. It pulls nothing:
//! images are built from files that are here.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

use crate::process::{PATIENCE, Process, installed, wait_until};

pub struct Engine {
    // Stopped before its directory is removed: fields are dropped in this order.
    process: Process,
    directory: TempDir,
}

impl Engine {
    /// A running engine without an image, a container or a volume.
    pub fn start() -> Self {
        Self::start_in(&[])
    }

    /// The same over the second version of cgroups, whichever this machine has mounted: the engine sees a tree of its own.
    pub fn start_on_cgroup2() -> Self {
        const MOUNT: &str = "umount --lazy /sys/fs/cgroup && mount -t cgroup2 cgroup2 /sys/fs/cgroup && exec \"$@\"";
        Self::start_in(&["sh", "-c", MOUNT, "sh"])
    }

    /// By way of another program, in the engine's own mount namespace.
    fn start_in(before: &[&str]) -> Self {
        assert!(
            rustix::process::geteuid().is_root(),
            "a container engine of our own needs root: run the tests as root"
        );
        let directory = tempfile::Builder::new()
            .prefix("fender-docker-")
            .tempdir()
            .expect("make a temporary directory");
        let path = |name: &str| directory.path().join(name);
        let mut command = Command::new(installed("unshare"));
        command
            .args(["--net", "--mount", "--"])
            .args(before)
            .arg(installed("dockerd"))
            .arg("--host")
            .arg(format!("unix://{}", path("docker.sock").display()))
            .arg("--data-root")
            .arg(path("data"))
            .arg("--exec-root")
            .arg(path("exec"))
            .arg("--pidfile")
            .arg(path("docker.pid"));
        let process = Process::start("dockerd", &mut command, &path("dockerd.log"));
        let mut engine = Self { process, directory };
        engine.raise_loopback();
        wait_until("the engine answers", PATIENCE, || {
            engine.process.assert_running();
            engine.docker(&["version"]).0 == 0
        });
        engine
    }

    /// Where it is asked.
    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("docker.sock")
    }

    /// `docker ARGUMENTS`: code, standard output, standard error.
    pub fn docker<S: AsRef<OsStr>>(&self, arguments: &[S]) -> (i32, String, String) {
        self.run(Command::new(installed("docker")).args(arguments))
    }

    /// `docker-compose ARGUMENTS` in the directory of a project.
    pub fn compose<S: AsRef<OsStr>>(
        &self,
        project: &Path,
        arguments: &[S],
    ) -> (i32, String, String) {
        self.run(
            Command::new(installed("docker-compose"))
                .current_dir(project)
                .args(arguments),
        )
    }

    /// Runs a program on the engine's host network, where published ports are.
    pub fn on_host<S: AsRef<OsStr>>(
        &self,
        program: &str,
        arguments: &[S],
    ) -> (i32, String, String) {
        let mut command = Command::new(installed("nsenter"));
        command
            .arg(format!("--net={}", self.network().display()))
            .arg("--")
            .arg(installed(program))
            .args(arguments);
        self.run(&mut command)
    }

    fn run(&self, command: &mut Command) -> (i32, String, String) {
        let socket = format!("unix://{}", self.socket().display());
        let output = command
            .env("DOCKER_HOST", socket)
            .env("DOCKER_CONFIG", self.directory.path())
            .env_remove("DOCKER_CONTEXT")
            .stdin(Stdio::null())
            .output()
            .expect("run a command");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (
            output.status.code().unwrap_or(-1),
            text(&output.stdout),
            text(&output.stderr),
        )
    }

    fn network(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/ns/net", self.process.pid()))
    }

    /// A new network namespace has a loopback interface that is down.
    fn raise_loopback(&mut self) {
        let ours = fs::read_link("/proc/self/ns/net").expect("read our own network namespace");
        wait_until("the engine has a network of its own", PATIENCE, || {
            self.process.assert_running();
            fs::read_link(self.network()).is_ok_and(|network| network != ours)
        });
        let (code, out, err) = self.on_host("ip", &["link", "set", "lo", "up"]);
        assert_eq!(code, 0, "raise loopback: {out}{err}");
    }
}
