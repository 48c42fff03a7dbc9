//! A mesh in a temporary directory: the control plane as a process, sidecars as processes, and an
//! administrator who uses the command line as a person would.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::process::Signal;
use tempfile::TempDir;

use crate::client::Client;
use crate::process::{PATIENCE, Process, binary, free_address, wait_until};

pub const TRUST_DOMAIN: &str = "test.internal";

pub struct Mesh {
    pub directory: TempDir,
    pub control: SocketAddr,
    process: Option<Process>,
    /// Beside its own, a directory from which documents may have files read.
    files: Option<PathBuf>,
    /// What documents may have the control plane run.
    programs: Vec<PathBuf>,
    /// What documents may have the control plane ask AWS for, and what it is started with to do that.
    aws: Option<(String, Vec<(String, String)>)>,
}

impl Mesh {
    /// A control plane holding `documents`, ready.
    pub fn start(documents: &str) -> Self {
        Self::start_with(documents, None, Vec::new())
    }

    /// The same, whose documents refer to files that are in `files` already.
    pub fn start_allowing(documents: &str, files: &Path) -> Self {
        Self::start_with(documents, Some(files.to_owned()), Vec::new())
    }

    /// The same, whose documents may have these programs run by the control plane.
    pub fn start_running(documents: &str, programs: &[PathBuf]) -> Self {
        Self::start_with(documents, None, programs.to_vec())
    }

    /// The same, whose documents may have what matches `pattern` read in AWS, with the credentials in these variables.
    pub fn start_asking_aws(documents: &str, pattern: &str, variables: &[(&str, &str)]) -> Self {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let aws = (pattern.to_owned(), variables.iter().map(owned).collect());
        let mut mesh = Self::prepare(documents, None, Vec::new());
        mesh.aws = Some(aws);
        mesh.start_control();
        mesh
    }

    fn start_with(documents: &str, files: Option<PathBuf>, programs: Vec<PathBuf>) -> Self {
        let mut mesh = Self::prepare(documents, files, programs);
        mesh.start_control();
        mesh
    }

    fn prepare(documents: &str, files: Option<PathBuf>, programs: Vec<PathBuf>) -> Self {
        let directory = tempfile::Builder::new()
            .prefix("fender-test-")
            .tempdir()
            .expect("make a temporary directory");
        fs::create_dir(directory.path().join("documents")).expect("make the documents' directory");
        fs::create_dir(directory.path().join("logs")).expect("make the logs' directory");
        fs::write(directory.path().join("documents/mesh.yaml"), documents)
            .expect("write documents");
        Self {
            directory,
            control: free_address(),
            process: None,
            files,
            programs,
            aws: None,
        }
    }

    /// A `Mesh` document with the given leaf lifetime, then the rest.
    pub fn documents(leaf: &str, rest: &str) -> String {
        format!(
            "apiVersion: fender.dev/v1\nkind: Mesh\nmetadata: {{ name: test }}\nspec:\n  trustDomain: {TRUST_DOMAIN}\n  \
             profile: development\n  lifetimes: {{ leaf: {leaf} }}\n---\n{rest}"
        )
    }

    pub fn start_control(&mut self) {
        let mut command = self.command();
        command
            .args([
                "--log-format",
                "json",
                "--log",
                "debug",
                "control",
                "--data-dir",
            ])
            .arg(self.path("control"))
            .arg("--documents")
            .arg(self.path("documents"))
            .arg("--allow-dir")
            .arg(self.directory.path())
            .arg("--listen")
            .arg(self.control.to_string());
        if let Some(files) = &self.files {
            command.arg("--allow-dir").arg(files);
        }
        for program in &self.programs {
            command.arg("--allow-command").arg(program);
        }
        if let Some((pattern, variables)) = &self.aws {
            command.args(["--allow-aws", pattern]);
            command.envs(variables.iter().map(|(name, value)| (name, value)));
        }
        let mut process = Process::start("control", &mut command, &self.path("logs/control.log"));
        wait_until("the control plane answers", PATIENCE, || {
            process.assert_running();
            self.fender(&["status"]).0 == 0
        });
        self.process = Some(process);
    }

    pub fn control_process(&mut self) -> &mut Process {
        self.process.as_mut().expect("the control plane runs")
    }

    /// SIGKILL: no chance to say goodbye.
    pub fn kill_control(&mut self) {
        self.process.take().expect("the control plane runs").kill();
    }

    pub fn stop_control(&mut self) {
        let mut process = self.process.take().expect("the control plane runs");
        process.signal(Signal::TERM);
        assert!(
            process.wait(PATIENCE).success(),
            "the control plane stops cleanly\n{}",
            process.log()
        );
    }

    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn url(&self) -> String {
        format!("https://{}", self.control)
    }

    /// The binary with nothing in its environment but what an administrator sets.
    pub fn command(&self) -> Command {
        let mut command = Command::new(binary());
        command
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin")
            .env("FENDER_ADMIN", self.path("control/admin"))
            .env("FENDER_CONTROL", self.url())
            .stdin(Stdio::null());
        command
    }

    /// Runs an administrator's command; code, standard output, standard error.
    pub fn fender(&self, arguments: &[&str]) -> (i32, String, String) {
        let output = self.command().args(arguments).output().expect("run fender");
        (
            output.status.code().unwrap_or(-1),
            String::from_utf8_lossy(&output.stdout).into_owned(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    }

    /// The same, and it must succeed.
    pub fn fender_ok(&self, arguments: &[&str]) -> String {
        let (code, out, err) = self.fender(arguments);
        assert_eq!(code, 0, "`fender {}`:\n{out}{err}", arguments.join(" "));
        out
    }

    pub fn apply(&self, documents: &str) -> (i32, String, String) {
        let file = self.path("apply.yaml");
        fs::write(&file, documents).expect("write documents");
        self.fender(&["apply", "-f", &file.to_string_lossy()])
    }

    /// A fresh join token for `shop/NAME` in a file.
    pub fn token(&self, workload: &str, ttl: &str) -> PathBuf {
        let file = self.path(format!(
            "token-{}-{}",
            workload.replace('/', "-"),
            crate::free_port()
        ));
        self.fender_ok(&[
            "token",
            "create",
            workload,
            "--ttl",
            ttl,
            "--out",
            &file.to_string_lossy(),
        ]);
        file
    }

    pub fn state(&self, workload: &str) -> PathBuf {
        self.path(format!("state-{}", workload.replace('/', "-")))
    }

    pub fn admin_socket(&self, workload: &str) -> PathBuf {
        self.state(workload).join("admin.sock")
    }

    /// A sidecar for `workload`, attested with a fresh token, ready; with an application if given.
    pub fn sidecar(&self, workload: &str, app: &[&str]) -> Process {
        let token = self.token(workload, "5m");
        let mut process = self.start_sidecar(workload, Some(&token), app);
        self.wait_ready(workload, &mut process);
        process
    }

    pub fn start_sidecar(&self, workload: &str, token: Option<&Path>, app: &[&str]) -> Process {
        let mut command = self.sidecar_command(workload, token);
        if !app.is_empty() {
            command.arg("--").args(app);
        }
        Process::start(
            workload,
            &mut command,
            &self.path(format!("logs/{}.log", workload.replace('/', "-"))),
        )
    }

    pub fn sidecar_command(&self, workload: &str, token: Option<&Path>) -> Command {
        let mut command = self.command();
        command
            .env_remove("FENDER_ADMIN")
            .args([
                "--log-format",
                "json",
                "--log",
                "debug",
                "sidecar",
                "--state",
            ])
            .arg(self.state(workload))
            .arg("--allow-dir")
            .arg(self.directory.path());
        if let Some(token) = token {
            command.arg("--token-file").arg(token);
        }
        command
    }

    pub fn wait_ready(&self, workload: &str, process: &mut Process) {
        process.wait_ready(&self.admin_socket(workload));
    }

    /// Certificate, key and roots of a person, as `fender svid write` leaves them.
    pub fn person(&self, name: &str) -> PathBuf {
        let directory = self.path(format!("person-{name}"));
        self.fender_ok(&[
            "svid",
            "write",
            &directory.to_string_lossy(),
            "--name",
            name,
            "--ttl",
            "1h",
        ]);
        directory
    }

    /// A client with a person's certificate, for the sidecar at `address`.
    pub fn client(&self, address: SocketAddr) -> Client {
        let person = self.person("tester");
        Client::from_directory(&person, address)
    }
}
