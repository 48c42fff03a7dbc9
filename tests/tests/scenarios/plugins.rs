//! Plug-ins: the programs of `examples/plugins` give their secrets to a confined sidecar, to the control plane and to a
//! command; what was not allowed is not run, and nothing that runs outlives who wanted it (DESIGN §9, §14).

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, mpsc};

use fender_tests::process::{PATIENCE, Process, binary, free_address, output};
use fender_tests::{Mesh, wait_until};
use tempfile::TempDir;

use crate::control_loss::one_service;

/// The value; nothing that Fender or a plug-in writes to a log may hold it.
const CANARY: &str = "canary-5b0e9a77-plugin";

fn example(name: &str) -> PathBuf {
    // Of the crate that these scenarios are tests of.
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(2)
        .unwrap();
    let program = workspace.join("examples/plugins").join(name);
    assert!(program.exists(), "{}", program.display());
    program
}

/// The mesh's documents with a credential from this source, delivered as a file and into the environment.
fn with_credential(mesh: &Mesh, source: &str) -> String {
    fs::create_dir_all(mesh.path("delivered")).unwrap();
    let documents = fs::read_to_string(mesh.path("documents/mesh.yaml")).unwrap();
    let listed = "  dnsNames: [ localhost ]\n  credentials: [ smtp ]\n";
    documents.replace("  dnsNames: [ localhost ]\n", listed)
        + &format!(
            "---\napiVersion: fender.dev/v1\nkind: Credential\nmetadata: {{ namespace: shop, name: smtp }}\nspec:\n  \
             source: {{ command: {{ {source} }} }}\n  deliver:\n    - file: {{ path: \"{}\", storage: disk }}\n",
            mesh.path("delivered/smtp").display()
        )
}

/// Secrets encrypted to a key that lies where no document may read.
struct Encrypted {
    directory: TempDir,
}

impl Encrypted {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let encrypted = Self { directory };
        fs::create_dir(encrypted.path("shop")).unwrap();
        encrypted.openssl(
            &[
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:P-256",
                "-noenc",
                "-keyout",
                "host.key",
                "-out",
                "host.pem",
                "-subj",
                "/CN=host",
                "-days",
                "365",
            ],
            "",
        );
        encrypted
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn openssl(&self, arguments: &[&str], input: &str) {
        let mut openssl = Command::new("openssl")
            .args(arguments)
            .current_dir(self.directory.path())
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        openssl
            .stdin
            .take()
            .unwrap()
            .write_all(input.as_bytes())
            .unwrap();
        let ended = openssl.wait_with_output().unwrap();
        assert!(ended.status.success(), "{ended:?}");
    }

    fn becomes(&self, value: &str) {
        let encrypt = [
            "cms",
            "-encrypt",
            "-binary",
            "-aes-256-gcm",
            "-outform",
            "DER",
            "-out",
            "new",
            "host.pem",
        ];
        self.openssl(&encrypt, value);
        fs::rename(self.path("new"), self.path("shop/smtp")).unwrap();
    }

    fn source(&self, via: &str) -> String {
        format!(
            "program: {}, arguments: [ {}, {} ], every: 1s, via: {via}",
            example("encrypted-file").display(),
            self.directory.path().display(),
            self.path("host.key").display()
        )
    }
}

fn holds(file: &Path, value: &str) -> bool {
    fs::read_to_string(file).is_ok_and(|text| text == value)
}

#[test]
fn a_plugin_beside_a_confined_sidecar_delivers_what_the_sidecar_itself_could_not_read() {
    let encrypted = Encrypted::new();
    encrypted.becomes(CANARY);
    let mesh = Mesh::start(&one_service("1h", free_address(), free_address()));
    let (code, out, err) = mesh.apply(&with_credential(&mesh, &encrypted.source("sidecar")));
    assert_eq!(code, 0, "{out}{err}");
    let token = mesh.token("shop/orders", "5m");

    // Documents are not remote code: without a word on this machine nothing is run.
    let mut command = mesh.sidecar_command("shop/orders", Some(&token));
    let mut refused = Process::start("refused", &mut command, &mesh.path("logs/refused.log"));
    assert_eq!(refused.wait(PATIENCE).code(), Some(77), "{}", refused.log());
    assert!(
        refused.log().contains("--allow-command"),
        "{}",
        refused.log()
    );

    let mut command = mesh.sidecar_command("shop/orders", None);
    command
        .arg("--allow-command")
        .arg(example("encrypted-file"));
    let mut sidecar = Process::start("allowed", &mut command, &mesh.path("logs/allowed.log"));
    mesh.wait_ready("shop/orders", &mut sidecar);
    let file = mesh.path("delivered/smtp");
    assert!(holds(&file, CANARY), "there before the sidecar is ready");
    assert!(sidecar.log().contains("Landlock"), "{}", sidecar.log());

    let next = format!("{CANARY}-next");
    encrypted.becomes(&next);
    wait_until("the next value is delivered", PATIENCE, || {
        holds(&file, &next)
    });

    // Somebody changed it on its way: openssl writes what it makes of it before it fails.
    let mut bytes = fs::read(encrypted.path("shop/smtp")).unwrap();
    let at = bytes.len() - 20;
    bytes[at] ^= 1;
    fs::write(encrypted.path("new"), bytes).unwrap();
    fs::rename(encrypted.path("new"), encrypted.path("shop/smtp")).unwrap();
    wait_until("the sidecar says so", PATIENCE, || {
        sidecar.log().contains("ended with exit code")
    });
    assert!(holds(&file, &next), "what was delivered stays");

    fs::remove_file(encrypted.path("shop/smtp")).unwrap();
    wait_until("the secret is withdrawn", PATIENCE, || !file.exists());
    assert!(
        sidecar.log().contains("there is no file for it"),
        "{}",
        sidecar.log()
    );
    for log in ["logs/allowed.log", "logs/refused.log", "logs/control.log"] {
        let text = fs::read_to_string(mesh.path(log)).unwrap();
        assert!(!text.contains("canary"), "{log}:\n{text}");
    }
}

/// A store of one secret, which answers as it is told to.
struct Store {
    address: SocketAddr,
    told: Arc<Mutex<String>>,
}

impl Store {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let told = Arc::new(Mutex::new(answer("200 OK", CANARY)));
        let given = Arc::clone(&told);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut head = Vec::new();
                let mut byte = [0];
                while !head.ends_with(b"\r\n\r\n") && matches!(stream.read(&mut byte), Ok(1)) {
                    head.push(byte[0]);
                }
                let head = String::from_utf8_lossy(&head).to_lowercase();
                let right = head.starts_with("get /v1/shop/smtp http/1.1\r\n")
                    && head.contains("authorization: bearer the-login\r\n");
                let told = match right {
                    true => given.lock().unwrap().clone(),
                    false => answer("400 Bad Request", ""),
                };
                let _ = stream.write_all(told.as_bytes());
            }
        });
        Self { address, told }
    }

    fn answers(&self, status: &str, body: &str) {
        *self.told.lock().unwrap() = answer(status, body);
    }
}

fn answer(status: &str, body: &str) -> String {
    format!(
        "HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    )
}

#[test]
fn a_plugin_of_the_control_plane_gives_each_workload_its_secret_and_no_workload_its_login() {
    let store = Store::start();
    let program = example("http-store");
    let service = one_service("1h", free_address(), free_address());
    let mesh = Mesh::start_running(&service, std::slice::from_ref(&program));
    let login = mesh.path("login");
    fs::write(&login, "the-login\n").unwrap();
    let source = format!(
        "program: {}, arguments: [ 'http://{}/v1', {} ], every: 1s, via: control",
        program.display(),
        store.address,
        login.display()
    );
    let (code, out, err) = mesh.apply(&with_credential(&mesh, &source));
    assert_eq!(code, 0, "{out}{err}");
    let sidecar = mesh.sidecar("shop/orders", &[]);
    let file = mesh.path("delivered/smtp");
    assert!(holds(&file, CANARY));
    let snapshot = fs::read_dir(mesh.state("shop/orders")).unwrap();
    for kept in snapshot.map(|entry| entry.unwrap().path()) {
        let bytes = fs::read(&kept).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        assert!(
            !text.contains("the-login") && !text.contains("http-store"),
            "{}",
            kept.display()
        );
    }

    let next = format!("{CANARY}-next");
    store.answers("500 Internal Server Error", "");
    wait_until("the outage is told", PATIENCE, || {
        sidecar.log().contains("cannot read it at present")
    });
    assert!(holds(&file, CANARY), "an outage changes nothing");
    store.answers("200 OK", &next);
    wait_until("the next value is delivered", PATIENCE, || {
        holds(&file, &next)
    });
    store.answers("404 Not Found", "");
    wait_until("the secret is withdrawn", PATIENCE, || !file.exists());
    for log in ["logs/shop-orders.log", "logs/control.log"] {
        let text = fs::read_to_string(mesh.path(log)).unwrap();
        assert!(!text.contains("canary"), "{log}:\n{text}");
    }
}

/// What `fender exec` runs on its own, from a file.
fn config(directory: &Path, source: &str) -> String {
    let config = directory.join("config.yaml");
    let text = format!(
        "apiVersion: fender.dev/v1\nkind: Sidecar\nmetadata: {{ namespace: shop, name: job }}\nspec: {{ credentials: [ smtp ] }}\n---\n\
         apiVersion: fender.dev/v1\nkind: Credential\nmetadata: {{ namespace: shop, name: smtp }}\nspec:\n  \
         source: {{ command: {{ {source} }} }}\n  deliver: [ {{ environment: {{ variable: SMTP_PASSWORD }} }} ]\n"
    );
    fs::write(&config, text).unwrap();
    config.to_str().unwrap().to_owned()
}

#[test]
fn exec_asks_a_plugin_and_leaves_nothing_of_it() {
    let encrypted = Encrypted::new();
    encrypted.becomes(CANARY);
    let config = config(encrypted.directory.path(), &encrypted.source("sidecar"));
    let print = "printf %s \"$SMTP_PASSWORD\"; cat /proc/$$/task/$$/children >&2";
    let exec = |config: &str| {
        output(
            binary(),
            &["exec", "--config", config, "--", "/bin/sh", "-c", print],
        )
    };
    let (code, out, err) = exec(&config);
    assert_eq!((code, out.as_str()), (0, CANARY), "{err}");
    // The one child is `cat` itself.
    assert_eq!(err.split_whitespace().count(), 1, "{err}");
    fs::remove_file(encrypted.path("shop/smtp")).unwrap();
    let (code, out, err) = exec(&config);
    assert_eq!((code, out.as_str()), (66, ""), "{err}");
    assert!(err.contains("there is no file for it"), "{err}");
}

/// Killed, so that it can tell nobody: the helper and what it runs end with it all the same.
#[test]
fn nothing_of_a_plugin_outlives_a_sidecar_that_is_killed() {
    let directory = tempfile::tempdir().unwrap();
    let pipe = directory.path().join("pipe");
    assert!(
        Command::new("mkfifo")
            .arg(&pipe)
            .status()
            .unwrap()
            .success()
    );
    let script = format!("exec 3> {}; sleep 1000 & wait", pipe.display());
    let source = format!("program: /bin/sh, arguments: [ '-c', '{script}' ], timeout: 2m");
    let path = config(directory.path(), &source);
    let text = fs::read_to_string(&path).unwrap();
    let file = directory.path().join("delivered");
    let delivered = format!("file: {{ path: {}, storage: disk }}", file.display());
    fs::write(
        &path,
        text.replace("environment: { variable: SMTP_PASSWORD }", &delivered),
    )
    .unwrap();
    let authority = fender_tests::pki::Authority::new("example.org");
    let svid = fender_tests::pki::Template::svid("spiffe://example.org/ns/shop/sa/job");
    authority.issue(&svid).write(directory.path());
    let bundle = authority.write_bundle(directory.path());
    let files = format!(
        "spec: {{ identity: {{ files: {{ certificate: {0}/certificate.pem, key: {0}/key.pem, bundle: {1} }} }}, credentials",
        directory.path().display(),
        bundle.display()
    );
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace("spec: { credentials", &files)).unwrap();
    let mut command = Command::new(binary());
    command
        .args(["sidecar", "--config", &path])
        .stdin(Stdio::null());
    let mut sidecar = Process::start("killed", &mut command, &directory.path().join("log"));
    // Opens once the plug-in has it open, and ends when the last of it is gone.
    let (told, hear) = mpsc::channel();
    std::thread::spawn(move || {
        let mut pipe = fs::File::open(&pipe).unwrap();
        told.send(()).unwrap();
        pipe.read_to_end(&mut Vec::new()).unwrap();
        told.send(()).unwrap();
    });
    let heard = hear.recv_timeout(PATIENCE);
    assert!(heard.is_ok(), "the plug-in runs:\n{}", sidecar.log());
    sidecar.kill();
    let heard = hear.recv_timeout(PATIENCE);
    assert!(heard.is_ok(), "the plug-in is gone:\n{}", sidecar.log());
}

/// Credentials of plug-ins, delivered as files by `fender watch`. Each is a file that a script reads, and it hangs once there is a
/// file that says so.
struct Watched {
    directory: TempDir,
    process: Process,
}

impl Watched {
    fn start(names: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().display().to_string();
        let mut documents = format!(
            "apiVersion: fender.dev/v1\nkind: Sidecar\nmetadata: {{ namespace: shop, name: job }}\nspec: {{ credentials: [ {} ] }}\n",
            names.join(", ")
        );
        let script = "[ ! -e hang-$0 ] || { echo $$ >> hung; exec sleep 1000; }; printf \"{\\\"version\\\":1,\\\"value\\\":\\\"$(cat value-$0)\\\"}\"";
        for name in names {
            fs::write(directory.path().join(format!("value-{name}")), "one").unwrap();
            documents += &format!(
                "---\napiVersion: fender.dev/v1\nkind: Credential\nmetadata: {{ namespace: shop, name: {name} }}\nspec:\n  \
                 source: {{ command: {{ program: /bin/sh, arguments: [ '-c', 'cd {path}; {script}', {name} ], every: 1s, timeout: 2m }} }}\n  \
                 deliver: [ {{ file: {{ path: {path}/{name}, storage: disk }} }} ]\n"
            );
        }
        let config = directory.path().join("job.yaml");
        fs::write(&config, documents).unwrap();
        let mut command = Command::new(binary());
        command.args(["watch", "--config"]).arg(&config);
        let log = directory.path().join("log");
        let process = Process::start("watch", &mut command, &log);
        let mut watched = Self { directory, process };
        for name in names {
            watched.delivers(name, "one");
        }
        watched
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn becomes(&self, name: &str, value: &str) {
        fs::write(self.path("new"), value).unwrap();
        fs::rename(self.path("new"), self.path(&format!("value-{name}"))).unwrap();
    }

    fn delivers(&mut self, name: &str, value: &str) {
        let file = self.path(name);
        wait_until(&format!("{name} is {value}"), PATIENCE, || {
            self.process.assert_running();
            holds(&file, value)
        });
    }

    /// The worker that this process waits for, once there is one beside `not`.
    fn worker_of(&self, watcher: i32, not: &[i32]) -> i32 {
        let mut found = 0;
        wait_until("there is a worker", PATIENCE, || {
            let is_worker = |pid: &i32| {
                let arguments = fs::read_to_string(format!("/proc/{pid}/cmdline"));
                let watched = format!("\0--watched-by={watcher}\0");
                !not.contains(pid) && arguments.is_ok_and(|it| it.contains(&watched))
            };
            let worker = children(watcher).into_iter().find(is_worker);
            found = worker.unwrap_or_default();
            found != 0
        });
        found
    }
}

fn children(of: i32) -> Vec<i32> {
    let children = fs::read_to_string(format!("/proc/{of}/task/{of}/children"));
    let children = children.unwrap_or_default();
    let numbers = children.split_ascii_whitespace();
    numbers.map(|number| number.parse().unwrap()).collect()
}

/// Whether it runs: one that nobody has reaped yet does not.
fn is_alive(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"));
    stat.is_ok_and(|it| {
        it.rsplit_once(") ")
            .is_some_and(|(_, rest)| !rest.starts_with('Z'))
    })
}

fn kill(pid: i32) {
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

/// Whichever of its two processes is killed; and what ran then is gone with it.
#[test]
fn a_helper_that_dies_is_started_again_and_leaves_nothing_behind() {
    let mut watched = Watched::start(&["quick", "hangs"]);
    let sidecar = watched.process.pid() as i32;
    let watcher = children(sidecar).into_iter().next().unwrap();
    let worker = watched.worker_of(watcher, &[]);

    fs::write(watched.path("hang-hangs"), "").unwrap();
    let hung = watched.path("hung");
    let hangs = |number: usize| {
        wait_until("a plug-in hangs", PATIENCE, || {
            fs::read_to_string(&hung).is_ok_and(|it| it.lines().count() == number)
        });
        let text = fs::read_to_string(&hung).unwrap();
        text.lines().last().unwrap().parse::<i32>().unwrap()
    };
    let first = hangs(1);
    kill(worker);
    wait_until("what it ran is gone", PATIENCE, || !is_alive(first));
    watched.becomes("quick", "two");
    watched.delivers("quick", "two");
    let second = hangs(2);
    let worker = watched.worker_of(watcher, &[worker]);
    let log = watched.process.log();
    assert!(log.contains("the helper that runs programs died"), "{log}");

    // The other one: the worker takes its place, and has another worker.
    kill(watcher);
    wait_until("what it ran is gone", PATIENCE, || !is_alive(second));
    watched.becomes("quick", "three");
    watched.delivers("quick", "three");
    let third = hangs(3);
    let next = watched.worker_of(worker, &[]);
    kill(next);
    watched.becomes("quick", "four");
    watched.delivers("quick", "four");
    wait_until("what it ran is gone", PATIENCE, || !is_alive(third));
    let next = watched.worker_of(worker, &[next]);

    watched.process.signal(rustix::process::Signal::TERM);
    watched.process.wait(PATIENCE);
    wait_until("the helper ends with who asks it", PATIENCE, || {
        !is_alive(worker) && !is_alive(next)
    });
}

#[test]
fn four_plugins_that_hang_hold_up_no_other() {
    let hanging = ["h1", "h2", "h3", "h4"];
    let mut watched = Watched::start(&["h1", "h2", "h3", "h4", "healthy"]);
    for name in hanging {
        fs::write(watched.path(&format!("hang-{name}")), "").unwrap();
    }
    let hung = watched.path("hung");
    wait_until("all four hang", PATIENCE, || {
        watched.process.assert_running();
        fs::read_to_string(&hung).is_ok_and(|it| it.lines().count() == 4)
    });
    for value in ["two", "three"] {
        watched.becomes("healthy", value);
        watched.delivers("healthy", value);
    }
    // It was not their end that made room.
    let pids = fs::read_to_string(&hung).unwrap();
    let pids: Vec<i32> = pids.lines().map(|pid| pid.parse().unwrap()).collect();
    assert_eq!(pids.len(), 4);
    assert!(pids.into_iter().all(is_alive), "{}", watched.process.log());
}
