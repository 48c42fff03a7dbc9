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
