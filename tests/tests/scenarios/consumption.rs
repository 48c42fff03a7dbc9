//! Who holds which generation of a credential, and whether an old one is still in use, is known to administrators: of two
//! sidecars one cannot take the new value; of their applications one is told, and one asks at the socket (DESIGN §9).

use std::fs;
use std::path::Path;
use std::process::Command;

use fender_tests::process::{PATIENCE, Process, binary, free_address, installed, output};
use fender_tests::{Mesh, wait_until};
use rustix::process::Signal;
use serde_json::Value;

use crate::control_loss::one_service;

/// Nothing that is shown may hold it.
const CANARY: &str = "canary-51c7e0-consumption";

fn mesh() -> Mesh {
    let mesh = Mesh::start(&one_service("1h", free_address(), free_address()));
    replace(&mesh.path("source"), CANARY);
    for own in ["delivered", "own"] {
        fs::create_dir(mesh.path(own)).unwrap();
    }
    let documents = fs::read_to_string(mesh.path("documents/mesh.yaml"))
        .unwrap()
        .replace(
            "  dnsNames: [ localhost ]\n",
            "  dnsNames: [ localhost ]\n  credentials: [ smtp ]\n",
        )
        + &format!(
            r#"---
apiVersion: fender.dev/v1
kind: Workload
metadata: {{ namespace: shop, name: books }}
spec: {{ attest: [ {{ token: {{}} }} ], credentials: [ smtp ] }}
---
apiVersion: fender.dev/v1
kind: Credential
metadata: {{ namespace: shop, name: smtp }}
spec:
  source: {{ file: {{ path: "{0}/source", via: control }} }}
  deliver:
    - file: {{ path: "{0}/delivered/smtp", storage: disk }}
    - socket: {{ users: [ "{1}" ] }}
  notify: [ {{ signal: {{ signal: HUP, pidFile: "{0}/app.pid" }} }} ]
"#,
            mesh.path("").display(),
            rustix::process::getuid().as_raw(),
        )
        .replace("//", "/");
    let (code, out, err) = mesh.apply(&documents);
    assert_eq!(code, 0, "{out}{err}");
    mesh
}

fn replace(path: &Path, text: &str) {
    let fresh = path.with_extension("fresh");
    fs::write(&fresh, text).unwrap();
    fs::rename(fresh, path).unwrap();
}

fn socket(workload: &str) -> String {
    format!("@fender-consumption-{}-{workload}", std::process::id())
}

/// With a place of its own where the document says `delivered`, or with the one that is there.
fn sidecar(mesh: &Mesh, workload: &str, own: bool) -> Process {
    let name = format!("shop/{workload}");
    let token = mesh.token(&name, "5m");
    let mut command = mesh.sidecar_command(&name, Some(&token));
    command.args(["--credentials-socket", &socket(workload)]);
    if own {
        let mut apart = Command::new(installed("unshare"));
        let script = "mount --bind \"$1\" \"$2\" && shift 2 && exec \"$@\"";
        apart
            .args([
                "--mount",
                "--propagation",
                "private",
                "sh",
                "-c",
                script,
                "sh",
            ])
            .args([mesh.path("own"), mesh.path("delivered")])
            .arg(command.get_program())
            .args(command.get_args())
            .env_clear();
        for (variable, value) in command.get_envs() {
            if let Some(value) = value {
                apart.env(variable, value);
            }
        }
        command = apart;
    }
    let log = mesh.path(format!("logs/{workload}.log"));
    let mut process = Process::start(workload, &mut command, &log);
    mesh.wait_ready(&name, &mut process);
    process
}

/// What `fender status credentials` knows of it.
fn known(mesh: &Mesh) -> Value {
    let shown = mesh.fender_ok(&["status", "credentials", "shop/smtp", "--output", "json"]);
    assert!(!shown.contains(CANARY), "{shown}");
    let status: Value = serde_json::from_str(&shown).unwrap();
    status["credentials"][0].clone()
}

fn counts(credential: &Value) -> [u64; 3] {
    ["instances", "hold_newest", "old_in_use"].map(|field| credential[field].as_u64().unwrap())
}

fn wait_for(mesh: &Mesh, what: &str, expected: [u64; 3]) -> Value {
    let mut last = Value::Null;
    wait_until(what, PATIENCE, || {
        last = known(mesh);
        counts(&last) == expected
    });
    last
}

fn holder<'a>(credential: &'a Value, workload: &str) -> &'a Value {
    let mut holders = credential["holders"].as_array().unwrap().iter();
    holders.find(|it| it["workload"] == workload).unwrap()
}

fn get(workload: &str) -> String {
    let (code, out, err) = output(binary(), &["get", "smtp", "--socket", &socket(workload)]);
    assert_eq!(code, 0, "{err}");
    out
}

#[test]
fn who_holds_an_old_one_and_who_uses_it_is_known_until_nobody_does() {
    let mesh = mesh();
    // Somebody who is told by a signal and lives through it.
    let script = format!(
        "trap 'echo told >> {0}/told' HUP; echo $$ > {0}/fresh.pid; mv {0}/fresh.pid {0}/app.pid; while :; do sleep 0.1; done",
        mesh.path("").display()
    );
    let log = mesh.path("logs/app.log");
    let mut app = Process::start("app", Command::new("sh").args(["-c", &script]), &log);
    wait_until("the application runs", PATIENCE, || {
        mesh.path("app.pid").exists()
    });
    let orders = sidecar(&mesh, "orders", false);
    let mut books = sidecar(&mesh, "books", true);
    let all = wait_for(&mesh, "both hold the first", [2, 2, 0]);
    assert_eq!(all["fetched_by"], "control plane");
    let [one, other] = ["shop/orders", "shop/books"].map(|name| holder(&all, name));
    assert_eq!(one["generation"], other["generation"]);
    assert_eq!(
        (&one["state"], &one["files"]),
        (&"delivered".into(), &1.into())
    );
    assert_eq!(get("orders"), CANARY);

    // What the one would write it into is no more; the other has the new value, tells of it, and has given the old one away.
    fs::remove_file(mesh.path("own/smtp")).unwrap();
    fs::remove_dir(mesh.path("own")).unwrap();
    let second = format!("{CANARY}-second");
    replace(&mesh.path("source"), &second);
    let stuck = |credential: &Value| holder(credential, "shop/books")["newer"].is_string();
    let mut all = Value::Null;
    wait_until("the change is known", PATIENCE, || {
        all = known(&mesh);
        let orders = holder(&all, "shop/orders");
        let told = orders["uses"].as_array().unwrap().iter();
        let mut told = told.filter(|used| used["kind"] == "told");
        let knows = told.any(|used| used["generation"] == orders["generation"]);
        counts(&all) == [2, 1, 2] && stuck(&all) && knows
    });
    let (one, other) = (holder(&all, "shop/orders"), holder(&all, "shop/books"));
    assert_eq!(
        (&one["newest"], &one["old_in_use"]),
        (&true.into(), &true.into())
    );
    assert_eq!(
        (&other["state"], &other["newer"]),
        (&"outdated".into(), &one["generation"])
    );
    assert!(other["why"].as_str().unwrap().contains("smtp"), "{other}");
    let taker = one["uses"].as_array().unwrap().iter();
    let taker = taker.filter(|used| used["kind"] == "socket");
    let behind: Vec<_> = taker.map(|used| used["behind"].clone()).collect();
    assert_eq!(behind, [true]);
    let table = mesh.fender_ok(&["status", "credentials"]);
    for expected in [
        "shop/smtp: 1 of 2 instances holds the newest; 2 STILL USE AN OLD ONE, or may",
        "OUTDATED",
        "AN OLD ONE: uid",
    ] {
        assert!(table.contains(expected), "{table}");
    }
    assert!(
        fs::read_to_string(mesh.path("told"))
            .unwrap()
            .contains("told")
    );
    let own = mesh.admin_socket("shop/books");
    let (_, own, _) = output(binary(), &["status", "--sidecar", &own.to_string_lossy()]);
    assert!(own.contains("IS NEWER and not in every place"), "{own}");

    // Who took the old one takes the new one.
    assert_eq!(get("orders"), second);
    wait_for(&mesh, "one still holds the old one", [2, 1, 1]);

    // Gone, and back where it can write.
    books.signal(Signal::TERM);
    assert!(books.wait(PATIENCE).success(), "{}", books.log());
    wait_for(&mesh, "who is gone is not counted", [1, 1, 0]);
    let books = sidecar(&mesh, "books", false);
    wait_for(&mesh, "both hold the newest", [2, 2, 0]);
    let table = mesh.fender_ok(&["status", "credentials", "--namespace", "shop"]);
    let fine = "shop/smtp: 2 of 2 instances hold the newest; none is known to use an old one";
    assert!(table.contains(fine), "{table}");
    let other = mesh.fender_ok(&["status", "credentials", "--namespace", "other"]);
    assert!(other.contains("no workload that you may see"), "{other}");

    // Stopped in its tracks it says nothing; that it has an old one is known all the same.
    books.signal(Signal::STOP);
    replace(&mesh.path("source"), &format!("{CANARY}-third"));
    wait_until("who cannot follow is seen, or lost", PATIENCE, || {
        let all = known(&mesh);
        match all["instances"].as_u64() {
            Some(2) => holder(&all, "shop/books")["newest"] == Value::Bool(false),
            // The control plane has given it up meanwhile.
            _ => true,
        }
    });
    books.signal(Signal::CONT);
    for process in [&orders, &books] {
        assert!(!process.log().contains(CANARY));
    }
    app.kill();
}
