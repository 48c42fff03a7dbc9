//! One sidecar with every provider that runs here and every delivery: a canary goes through all of them, from its source to the
//! application, and is found in nothing else that is written (DESIGN §9). And whoever runs as the sidecar's own user cannot
//! look into it, nor does it leave a core file.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use fender_tests::aws::{self, FakeAws, REGION};
use fender_tests::pki::{Authority, Template};
use fender_tests::process::{PATIENCE, Process, binary, free_address, installed, output};
use fender_tests::vault::{Mode, ROLE_ID, Vault};
use fender_tests::{Mesh, wait_until};
use rustix::process::{Pid, Signal};
use serde_json::json;
use tempfile::TempDir;

use crate::control_loss::one_service;
use crate::standalone::ORDERS;
use crate::telemetry::get;

/// What every value begins with; a number and the provider follow.
const CANARY: &str = "canary-d17c52ab";

/// Where a secret is, and how it is changed and spoilt there.
enum Store {
    File,
    Command,
    /// Read once: it cannot be changed.
    Environment,
    Vault,
    Aws,
}

struct Provider {
    /// Of the credential, and of everything that belongs to it.
    name: &'static str,
    via: &'static str,
    store: Store,
}

const PROVIDERS: [Provider; 8] = [
    Provider::new("file-sidecar", "sidecar", Store::File),
    Provider::new("file-control", "control", Store::File),
    Provider::new("command-sidecar", "sidecar", Store::Command),
    Provider::new("command-control", "control", Store::Command),
    Provider::new("variable", "sidecar", Store::Environment),
    Provider::new("vault-sidecar", "sidecar", Store::Vault),
    Provider::new("vault-control", "control", Store::Vault),
    Provider::new("aws", "sidecar", Store::Aws),
];

impl Provider {
    const fn new(name: &'static str, via: &'static str, store: Store) -> Self {
        Self { name, via, store }
    }

    fn can_change(&self) -> bool {
        !matches!(self.store, Store::Environment)
    }

    fn value(&self, number: u32) -> String {
        match self.can_change() {
            true => format!("{CANARY}-{number}-{}", self.name),
            false => format!("{CANARY}-1-{}", self.name),
        }
    }
}

/// A mesh in which `shop/orders` has a credential of each provider, delivered in each way.
struct World {
    mesh: Mesh,
    vault: Vault,
    aws: FakeAws,
    /// Where the plug-in lies.
    programs: TempDir,
    url: String,
}

impl World {
    fn new() -> Self {
        let authority = Authority::new("vault.test");
        let vault = Vault::start(&authority);
        // The program lies where no document may read or write.
        let programs = tempfile::tempdir().unwrap();
        let program = programs.path().join("show");
        // It is as talkative as a program can be.
        fs::write(&program, "#!/bin/sh\ncat \"$1\" >&2\ncat \"$1\"\n").unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let documents = one_service("1h", free_address(), free_address());
        let mesh = Mesh::start_running(&documents, std::slice::from_ref(&program));
        for own in ["sources", "delivered", "sets", "tokens", "login"] {
            fs::create_dir(mesh.path(own)).unwrap();
        }
        authority.write_bundle(&mesh.path("login"));
        vault.write_secret_id(&mesh.path("login"));
        let world = Self {
            mesh,
            vault,
            aws: FakeAws::in_the_clear(),
            programs,
            url: free_address().to_string(),
        };
        world.becomes(1);
        let (code, out, err) = world.mesh.apply(&world.documents());
        assert_eq!(code, 0, "{out}{err}");
        assert!(!err.contains("--allow"), "{err}");
        world
    }

    fn program(&self) -> PathBuf {
        self.programs.path().join("show")
    }

    fn documents(&self) -> String {
        let names = PROVIDERS.map(|provider| provider.name).join(", ");
        let documents = fs::read_to_string(self.mesh.path("documents/mesh.yaml")).unwrap();
        let listed = "  dnsNames: [ localhost ]\n";
        let mut documents =
            documents.replace(listed, &format!("{listed}  credentials: [ {names} ]\n"));
        let own = self.mesh.directory.path().display().to_string();
        for Provider { name, via, store } in &PROVIDERS {
            let source = match store {
                Store::File => format!("file: {{ path: \"{own}/sources/{name}\", via: {via} }}"),
                Store::Command => format!(
                    "command: {{ program: \"{}\", arguments: [ \"{own}/sources/{name}\" ], every: 1s, via: {via} }}",
                    self.program().display()
                ),
                Store::Environment => "environment: { variable: CANARY }".to_owned(),
                Store::Aws => format!(
                    "aws: {{ region: {REGION}, endpoint: \"{}\", secretsManager: {{ secretId: {name} }}, refresh: 1s, via: {via} }}",
                    self.aws.url()
                ),
                Store::Vault => format!(
                    "vault: {{ address: \"{}\", roots: {{ file: \"{own}/login/bundle.pem\" }}, \
                     login: {{ appRole: {{ roleId: {ROLE_ID}, secretIdFile: \"{own}/login/secret-id\" }} }}, \
                     kv2: {{ path: {name}, key: password }}, refresh: 1s, via: {via} }}",
                    self.vault.url()
                ),
            };
            documents += &format!(
                r#"---
apiVersion: fender.dev/v1
kind: Credential
metadata: {{ namespace: shop, name: {name} }}
spec:
  source: {{ {source} }}
  maxStale: 1h
  deliver:
    - file: {{ path: "{own}/delivered/{name}", storage: disk }}
    - files:
        directory: "{own}/sets/{name}"
        storage: disk
        entries: [ {{ name: raw }}, {{ name: filled, template: "{{{{ value }}}}" }} ]
    - socket: {{ users: [ 0 ] }}
    - url: {{ token: {{ path: "{own}/tokens/{name}", storage: disk }} }}
    - environment: {{ variable: {} }}
"#,
                variable(name)
            );
        }
        documents
    }

    /// Every source has the value of this number.
    fn becomes(&self, number: u32) {
        for provider in &PROVIDERS {
            let value = provider.value(number);
            match provider.store {
                Store::File => self.source(provider.name, &value),
                Store::Command => {
                    let answer = json!({ "version": 1, "value": value });
                    self.source(provider.name, &answer.to_string());
                }
                Store::Environment => {}
                Store::Aws => self.aws.write(&value),
                Store::Vault => self
                    .vault
                    .write(provider.name, json!({ "password": value })),
            }
        }
    }

    /// No source makes sense any more, and each says a canary while it makes none.
    fn is_spoilt(&self) {
        for provider in &PROVIDERS {
            match provider.store {
                Store::File => self.source(provider.name, &CANARY.repeat(200_000)),
                Store::Command => {
                    let answer = format!("{{\"version\":1,\"{CANARY}\":\"{CANARY}\"");
                    self.source(provider.name, &answer);
                }
                Store::Environment | Store::Vault | Store::Aws => {}
            }
        }
        self.vault.be(Mode::Nonsense);
        self.aws.be(aws::Mode::Nonsense);
    }

    fn source(&self, name: &str, text: &str) {
        let fresh = self.mesh.path("sources/fresh");
        fs::write(&fresh, text).unwrap();
        fs::rename(fresh, self.mesh.path("sources").join(name)).unwrap();
    }

    fn socket(&self) -> PathBuf {
        self.mesh.path("credentials.sock")
    }

    /// A sidecar, or a command with its credentials in the environment.
    fn command(&self, what: &str) -> Command {
        let mut command = self.mesh.command();
        command
            .env_remove("FENDER_ADMIN")
            .env("CANARY", format!("{CANARY}-1-variable"))
            .env("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
            .env("AWS_SECRET_ACCESS_KEY", format!("{CANARY}-aws-key"))
            .env("AWS_ENDPOINT_URL", self.aws.url())
            .args(["--log-format", "json", "--log", "trace", what, "--state"])
            .arg(self.mesh.state("shop/orders"))
            .args([
                "--allow-environment",
                "CANARY",
                "--allow-aws",
                "secretsmanager:aws",
            ])
            .arg("--allow-dir")
            .arg(self.mesh.directory.path());
        command.arg("--allow-command").arg(self.program());
        command
    }

    fn sidecar(&self) -> Process {
        let token = self.mesh.token("shop/orders", "5m");
        let mut command = self.command("sidecar");
        command
            .arg("--token-file")
            .arg(token)
            .arg("--credentials-socket")
            .arg(self.socket())
            .args(["--credentials-url", &self.url])
            .args([
                "--",
                "/bin/sh",
                "-c",
                "trap 'exit 0' TERM; while :; do sleep 1; done",
            ]);
        let log = self.mesh.path("logs/sidecar.log");
        let mut process = Process::start("sidecar", &mut command, &log);
        self.mesh.wait_ready("shop/orders", &mut process);
        process
    }

    fn token(&self, name: &str) -> String {
        fs::read_to_string(self.mesh.path("tokens").join(name)).unwrap()
    }

    /// What a consumer of each kind has: of the file, of two of a set, of the socket, of the URL.
    fn had(&self, name: &str) -> [String; 5] {
        let set = self.mesh.path("sets").join(name);
        let [raw, filled] =
            ["raw", "filled"].map(|file| fs::read_to_string(set.join(file)).unwrap_or_default());
        let file = fs::read_to_string(self.mesh.path("delivered").join(name)).unwrap_or_default();
        let socket = self.socket();
        let told = output(
            binary(),
            &["get", name, "--socket", &socket.to_string_lossy()],
        );
        assert!(!told.2.contains(CANARY), "{}", told.2);
        let header = format!("Authorization: Bearer {}", self.token(name));
        let url = format!("http://{}/v1/credentials/{name}", self.url);
        let served = output(
            installed("curl"),
            &["--silent", "--max-time", "20", "--header", &header, &url],
        );
        [file, raw, filled, told.1, served.1]
    }

    fn wait_for(&self, number: u32) {
        for provider in &PROVIDERS {
            let value = provider.value(number);
            let what = format!("every delivery of `{}` is number {number}", provider.name);
            wait_until(&what, PATIENCE, || {
                self.had(provider.name).iter().all(|had| *had == value)
            });
        }
    }

    /// What whoever may ask is told, as `(who asked, answer)`.
    fn told(&self) -> Vec<(String, String)> {
        let socket = self.mesh.admin_socket("shop/orders");
        let local = socket.to_string_lossy().into_owned();
        let mut told = Vec::new();
        for arguments in [
            vec!["status"],
            vec!["status", "--output", "json"],
            vec!["status", "--sidecar", &local],
            vec!["status", "--sidecar", &local, "--output", "json"],
            vec!["audit-log", "list"],
        ] {
            let (code, out, err) = self.mesh.fender(&arguments);
            assert_eq!(code, 0, "{arguments:?}: {out}{err}");
            told.push((arguments.join(" "), format!("{out}{err}")));
        }
        for path in ["/metrics", "/readyz", "/livez", "/startupz"] {
            told.push((path.to_owned(), get(&socket, path).1));
        }
        told
    }

    /// Nothing that anybody wrote or says holds a value, a piece of one, a token of a consumer or what is computed of
    /// them; but for where they belong.
    fn assert_found_nowhere(&self, sidecar: &Process) {
        let mut needles = vec![CANARY.to_owned()];
        for provider in &PROVIDERS {
            needles.push(self.token(provider.name));
            for number in 1..=2 {
                let value = provider.value(number);
                needles.extend([base64(&value), hex(value.as_bytes()), digest(&value)]);
            }
        }
        let free = |what: &str, bytes: &[u8]| {
            for needle in &needles {
                assert!(needle.len() >= 12, "worth searching for: `{needle}`");
                let found = bytes
                    .windows(needle.len())
                    .any(|window| window.eq_ignore_ascii_case(needle.as_bytes()));
                assert!(!found, "{what} holds `{needle}`");
            }
        };
        let belongs =
            ["sources", "delivered", "sets", "tokens", "login"].map(|own| self.mesh.path(own));
        let mut looked_at = 0;
        for file in files(self.mesh.directory.path()) {
            if !belongs.iter().any(|own| file.starts_with(own)) {
                free(&file.display().to_string(), &fs::read(&file).unwrap());
                looked_at += 1;
            }
        }
        assert!(looked_at > 8, "logs, state and database were looked at");
        for (who, answer) in self.told() {
            free(&who, answer.as_bytes());
        }
        for pid in descendants(sidecar.pid()) {
            let proc = |what: &str| fs::read(format!("/proc/{pid}/{what}")).unwrap_or_default();
            free(&format!("command line of {pid}"), &proc("cmdline"));
            // What Fender was started with stays to be seen by root and its own user; its application has none of it.
            let is_fender = proc("cmdline").windows(6).any(|part| part == b"fender");
            if !is_fender {
                free(&format!("environment of {pid}"), &proc("environ"));
            }
        }
    }
}

fn variable(name: &str) -> String {
    name.to_ascii_uppercase().replace('-', "_")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Of the tools that everybody has.
fn tool(program: &str, arguments: &[&str], input: &str) -> String {
    let script = format!("printf %s \"$0\" | {program} {}", arguments.join(" "));
    let (code, out, err) = output("/bin/sh", &["-c", &script, input]);
    assert_eq!(code, 0, "{err}");
    out.split_whitespace().next().unwrap().to_owned()
}

fn base64(value: &str) -> String {
    tool("base64", &["-w0"], value)
}

fn digest(value: &str) -> String {
    tool("sha256sum", &[], value)
}

/// Every regular file below a directory, links not followed.
fn files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap().map(Result::unwrap) {
        match entry.file_type().unwrap() {
            kind if kind.is_dir() => found.extend(files(&entry.path())),
            kind if kind.is_file() => found.push(entry.path()),
            _ => {}
        }
    }
    found
}

/// A process and all that it started.
fn descendants(pid: u32) -> Vec<u32> {
    let mut all = vec![pid];
    let mut at = 0;
    while let Some(parent) = all.get(at).copied() {
        for task in fs::read_dir(format!("/proc/{parent}/task")).unwrap() {
            let children = task.unwrap().path().join("children");
            let children = fs::read_to_string(children).unwrap_or_default();
            all.extend(
                children
                    .split_whitespace()
                    .map(|pid| pid.parse::<u32>().unwrap()),
            );
        }
        at += 1;
    }
    all
}

#[test]
fn a_canary_through_every_provider_and_delivery_is_found_where_it_belongs_and_nowhere_else() {
    let world = World::new();
    let sidecar = world.sidecar();
    world.wait_for(1);
    world.becomes(2);
    world.wait_for(2);
    world.assert_found_nowhere(&sidecar);

    // Sources that answer nonsense, with the secret in it: said everywhere, by errors that hold nothing of it.
    world.is_spoilt();
    let socket = world.mesh.admin_socket("shop/orders");
    for provider in PROVIDERS.iter().filter(|provider| provider.can_change()) {
        let outdated = format!("shop/{} outdated for ", provider.name);
        wait_until(&outdated, PATIENCE, || {
            let told = output(
                binary(),
                &["status", "--sidecar", &socket.to_string_lossy()],
            );
            told.1.contains(&outdated)
        });
    }
    world.wait_for(2);
    world.assert_found_nowhere(&sidecar);

    // The environment of a command, and what is said when it is not to be had.
    drop(sidecar);
    world.vault.be(Mode::Answers);
    world.aws.be(aws::Mode::Answers);
    world.becomes(1);
    let run = || {
        let mut exec = world.command("exec");
        exec.args(["--", "/usr/bin/env"]);
        let ended = exec.stdin(Stdio::null()).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (ended.status.code(), text(ended.stdout), text(ended.stderr))
    };
    let (code, out, err) = run();
    assert_eq!(code, Some(0), "{err}");
    for provider in &PROVIDERS {
        let line = format!("{}={}\n", variable(provider.name), provider.value(1));
        assert!(out.contains(&line), "{line}");
    }
    assert!(!out.contains("AWS_SECRET_ACCESS_KEY"), "{out}");
    assert!(
        !out.contains("\nCANARY=") && !out.starts_with("CANARY="),
        "{out}"
    );
    assert!(!err.contains(CANARY), "{err}");
    world.is_spoilt();
    let (code, out, err) = run();
    assert_ne!(code, Some(0), "{out}{err}");
    assert!(!out.contains(CANARY) && !err.contains(CANARY), "{out}{err}");
    let logs = fs::read_dir(world.mesh.path("logs")).unwrap();
    for log in logs.map(|log| log.unwrap().path()) {
        let text = fs::read_to_string(&log).unwrap();
        assert!(
            !text.is_empty() && !text.contains(CANARY),
            "{}",
            log.display()
        );
    }
}

/// Whose sidecar it is, and who attacks: the same user, and not root.
const USER: u32 = 4410;

/// Tries everything by which a process looks into another of its user; says what of it was possible.
const LOOK: &str = r#"
import ctypes, os, sys
pid = int(sys.argv[1])
libc = ctypes.CDLL(None, use_errno=True)
PTRACE_SEIZE = 0x4206
def attempt(name, action):
    try:
        action()
        print(name)
    except OSError:
        pass
def seize():
    if libc.ptrace(PTRACE_SEIZE, ctypes.c_long(pid), None, None) != 0:
        raise OSError(ctypes.get_errno(), "ptrace")
def pidfd():
    # pidfd_getfd: a descriptor of it, a socket to a store for instance.
    fd = os.pidfd_open(pid)
    if libc.syscall(438, fd, 0, 0) < 0:
        raise OSError(ctypes.get_errno(), "pidfd_getfd")
def vm():
    class iovec(ctypes.Structure):
        _fields_ = [("base", ctypes.c_void_p), ("len", ctypes.c_size_t)]
    buffer = ctypes.create_string_buffer(8)
    mine, its = iovec(ctypes.addressof(buffer), 8), iovec(0x1000, 8)
    # What is not allowed is refused before the address is looked at (EPERM, not EFAULT).
    if libc.process_vm_readv(pid, ctypes.byref(mine), 1, ctypes.byref(its), 1, 0) < 0 and ctypes.get_errno() != 14:
        raise OSError(ctypes.get_errno(), "process_vm_readv")
attempt("ptrace", seize)
attempt("mem", lambda: open(f"/proc/{pid}/mem", "rb"))
attempt("environ", lambda: open(f"/proc/{pid}/environ", "rb").read())
attempt("maps", lambda: open(f"/proc/{pid}/maps", "rb").read())
attempt("fd", lambda: os.listdir(f"/proc/{pid}/fd"))
attempt("root", lambda: os.listdir(f"/proc/{pid}/root"))
attempt("descriptor", pidfd)
attempt("memory", vm)
"#;

fn as_user(program: &Path) -> Command {
    let mut command = Command::new(installed("setpriv"));
    command
        .env_clear()
        .env("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin")
        .current_dir("/")
        .args([format!("--reuid={USER}"), format!("--regid={USER}")])
        .args(["--clear-groups", "--inh-caps=-all", "--"])
        .arg(program)
        .stdin(Stdio::null());
    command
}

/// What the same user can do to a process.
fn looked_into(pid: u32) -> String {
    let mut command = as_user(&installed("python3"));
    let ended = command
        .args(["-c", LOOK, &pid.to_string()])
        .output()
        .unwrap();
    assert!(ended.status.success(), "{ended:?}");
    String::from_utf8(ended.stdout).unwrap()
}

/// How large a core file may become, soft and hard.
fn core_limit(pid: u32) -> [String; 2] {
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max core file size"));
    let mut words = line.unwrap().split_whitespace().map(ToOwned::to_owned);
    [words.next().unwrap(), words.next().unwrap()]
}

#[test]
fn attack_nobody_of_its_user_looks_into_a_sidecar_and_it_leaves_no_core_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let mode = |path: &Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    };
    mode(directory.path(), 0o755);
    fender_tests::process::put_program(&binary(), &path("fender"));
    let authority = Authority::new("example.org");
    authority
        .issue(&Template::svid(ORDERS))
        .write(&path("identity"));
    authority.write_bundle(&path("identity"));
    fs::create_dir(path("run")).unwrap();
    fs::write(path("source"), CANARY).unwrap();
    fs::write(path("plugin"), "#!/bin/sh\nexit 1\n").unwrap();
    mode(&path("plugin"), 0o755);
    let own = directory.path().display();
    // With a plug-in, so that there is a helper for them as well.
    let text = format!(
        r#"apiVersion: fender.dev/v1
kind: Sidecar
metadata: {{ namespace: shop, name: orders }}
spec:
  identity: {{ files: {{ certificate: {own}/identity/certificate.pem, key: {own}/identity/key.pem, bundle: {own}/identity/bundle.pem }} }}
  credentials: [ smtp ]
---
apiVersion: fender.dev/v1
kind: Credential
metadata: {{ namespace: shop, name: smtp }}
spec:
  source: {{ file: {{ path: {own}/source }} }}
  deliver: [ {{ file: {{ path: {own}/run/smtp, storage: disk }} }} ]
  notify: [ {{ command: {{ program: {own}/plugin }} }} ]
"#
    );
    fs::write(path("sidecar.yaml"), text).unwrap();
    for entry in files(directory.path()) {
        chown(entry, Some(USER), Some(USER)).unwrap();
    }
    for own in ["identity", "run"] {
        chown(path(own), Some(USER), Some(USER)).unwrap();
    }

    // What is possible where nobody minds, so that "nothing" below means something.
    let mut other = Process::start(
        "other",
        as_user(&installed("sleep")).arg("100000"),
        &path("other.log"),
    );
    wait_until("the other one runs", PATIENCE, || {
        fs::read(format!("/proc/{}/cmdline", other.pid()))
            .unwrap()
            .starts_with(b"/usr/bin/sleep")
            || fs::read(format!("/proc/{}/cmdline", other.pid()))
                .unwrap()
                .starts_with(b"/bin/sleep")
    });
    let possible = looked_into(other.pid());
    println!(
        "of a process that does not mind: {}",
        possible.replace('\n', " ")
    );
    for what in ["environ", "maps", "fd"] {
        assert!(possible.contains(what), "{possible}");
    }
    other.kill();

    // As on a machine where core files are wanted.
    let mut command = as_user(Path::new("/bin/sh"));
    command
        .args(["-c", "ulimit -c unlimited; exec \"$0\" \"$@\""])
        .arg(path("fender"))
        .args(["sidecar", "--config"])
        .arg(path("sidecar.yaml"))
        .arg("--admin-socket")
        .arg(path("run/admin.sock"))
        .args(["--", "/bin/sleep", "100000"]);
    let mut sidecar = Process::start("sidecar", &mut command, &path("run/log"));
    sidecar.wait_ready(&path("run/admin.sock"));

    let (mut of_fender, mut application) = (0, None);
    for pid in descendants(sidecar.pid()) {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap();
        if line.starts_with(b"/bin/sleep") {
            application = Pid::from_raw(pid as i32);
            continue;
        }
        of_fender += 1;
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        assert_eq!(looked_into(pid), "", "{line}");
        // The supervisor, which holds no secret, leaves its application the core files that it may have.
        if pid != sidecar.pid() {
            assert_eq!(core_limit(pid), ["0", "0"], "{line}");
        }
    }
    assert_eq!(of_fender, 3, "supervisor, proxy and helper were looked at");

    // The proxy would be started again, so it is the supervisor that dies, the one with a limit that allows core files.
    assert_eq!(core_limit(sidecar.pid()), ["unlimited", "unlimited"]);
    // Rust's own handler lets the first one pass, for the instruction to be tried again.
    wait_until("the supervisor dies", PATIENCE, || {
        if sidecar.is_running() {
            sidecar.signal(Signal::SEGV);
        }
        !sidecar.is_running()
    });
    let status = sidecar.wait(PATIENCE);
    println!("{status}");
    assert!(!status.core_dumped(), "{status}");
    // It outlives a supervisor that dies so.
    rustix::process::kill_process(application.unwrap(), Signal::KILL).unwrap();
    for place in [directory.path(), &path("run"), Path::new("/")] {
        for entry in fs::read_dir(place).unwrap() {
            let name = entry.unwrap().file_name();
            assert!(!name.to_string_lossy().starts_with("core"), "{name:?}");
        }
    }
}
