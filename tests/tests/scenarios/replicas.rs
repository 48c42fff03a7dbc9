//! Three control planes over one PostgreSQL server, as processes: a change at one reaches the sidecars of all, and none of
//! them, nor the database, nor a wire is needed for sidecars to serve. No token buys two certificates, no serial is used
//! twice, and every certificate anybody holds is on record.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use fender_tests::process::{PATIENCE, free_address};
use fender_tests::{Client, Mesh, Nginx, Replicas, binary, wait_until};

use crate::control_loss::Load;

const SERVICES: [&str; 3] = ["shop/one", "shop/two", "shop/three"];

/// What is promised is two seconds; what is asserted is that it does not take for ever on a busy machine.
const GENEROUS: Duration = Duration::from_secs(20);

/// Three services that people of some namespaces may call, and one workload that only attests.
fn documents(leaf: &str, listens: &[SocketAddr], app: SocketAddr, callers: &str) -> String {
    let services: String = SERVICES
        .iter()
        .zip(listens)
        .map(|(service, listen)| {
            let name = service.trim_start_matches("shop/");
            format!(
                r#"---
apiVersion: fender.dev/v1
kind: Workload
metadata: {{ namespace: shop, name: {name}, labels: {{ app: service }} }}
spec:
  attest: [ {{ token: {{}} }} ]
  dnsNames: [ localhost ]
  inbound: [ {{ listen: "{listen}", app: "{app}", protocol: http }} ]
"#
            )
        })
        .collect();
    let rest = format!(
        r#"{services}---
apiVersion: fender.dev/v1
kind: Workload
metadata: {{ namespace: shop, name: jobs }}
spec:
  attest: [ {{ token: {{}} }} ]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{ namespace: shop, name: callers }}
spec:
  selector: {{ matchLabels: {{ app: service }} }}
  action: ALLOW
  rules:
    - from: [ {{ source: {{ namespaces: [ {callers} ] }} }} ]
"#
    );
    Mesh::documents(leaf, rest.trim_start_matches("---\n"))
}

/// How long each took until the last condition held, looked at all the time.
fn each_within(what: &str, mut holds: impl FnMut(usize) -> bool) -> Vec<Duration> {
    let began = Instant::now();
    let mut after = vec![None; SERVICES.len()];
    wait_until(what, GENEROUS, || {
        for (at, after) in after.iter_mut().enumerate() {
            if after.is_none() && holds(at) {
                *after = Some(began.elapsed());
            }
        }
        after.iter().all(Option::is_some)
    });
    after.into_iter().flatten().collect()
}

#[test]
fn a_change_and_a_revocation_at_one_replica_reach_the_sidecars_of_all() {
    let nginx_home = tempfile::tempdir().unwrap();
    let nginx = Nginx::start(nginx_home.path());
    let listens = [free_address(), free_address(), free_address()];
    let first = documents("1h", &listens, nginx.address, "people");
    let mut mesh = Replicas::start(&first);
    let _sidecars: Vec<_> = SERVICES
        .iter()
        .zip(&mesh.replicas)
        .map(|(service, replica)| mesh.sidecar(service, &replica.url()))
        .collect();

    // Each is connected to its own replica, and each replica shows all of them.
    for asked in 0..mesh.replicas.len() {
        wait_until("three intermediates and a root sign", PATIENCE, || {
            let status = mesh.fender_ok(asked, &["status", "--output", "json"]);
            let status: serde_json::Value = serde_json::from_str(&status).unwrap();
            assert_eq!(status["incomplete"], false, "{status}");
            assert_eq!(connected(&status), ["control-1", "control-2", "control-3"]);
            let authorities = status["authorities"].as_array().unwrap().iter();
            let mut signing: Vec<_> = authorities
                .filter(|authority| authority["standing"] == "signing")
                .map(|authority| authority["holder"].as_str().unwrap().to_owned())
                .collect();
            signing.sort();
            signing == ["", "control-1", "control-2", "control-3"]
        });
    }

    let runtime = tokio::runtime::Runtime::new().unwrap();
    let person = mesh.person("mallory");
    let clients = listens.map(|listen| Client::from_directory(&person, listen));
    let mut open: Vec<_> = clients
        .iter()
        .map(|client| runtime.block_on(client.open()).unwrap())
        .collect();
    for connection in &mut open {
        assert_eq!(runtime.block_on(connection.get("/")).unwrap().status, 200);
    }

    // Measured where it counts: at what a caller gets.
    let began = Instant::now();
    mesh.apply(0, &documents("1h", &listens, nginx.address, "nobody"));
    let command = began.elapsed();
    let changed = each_within("the policy holds at every sidecar", |at| {
        runtime
            .block_on(open[at].get("/"))
            .is_ok_and(|answer| answer.status == 403)
    });
    println!(
        "a change at one replica: the command took {command:?}; after it, in force at the sidecars in {changed:?}"
    );

    mesh.apply(1, &first);
    each_within("the old policy holds again", |at| {
        runtime
            .block_on(open[at].get("/"))
            .is_ok_and(|answer| answer.status == 200)
    });
    let began = Instant::now();
    mesh.fender_ok(
        2,
        &["revoke", "workload", "people/mallory", "--reason", "stolen"],
    );
    let command = began.elapsed();
    let severed = each_within("the revoked person is severed everywhere", |at| {
        open[at].is_closed()
    });
    println!(
        "a revocation at one replica: the command took {command:?}; after it, severed by the sidecars in {severed:?}"
    );

    // A replica that is gone is named, and what it knew is not left out without a word.
    mesh.kill(2);
    let out = mesh.fender_ok(0, &["status"]);
    assert!(out.contains("ITS SIDECARS ARE NOT SHOWN"), "{out}");
    let status = mesh.fender_ok(0, &["status", "--output", "json"]);
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    assert_eq!(status["incomplete"], true);
    let silent = status["replicas"].as_array().unwrap().iter();
    let silent: Vec<_> = silent
        .filter(|replica| replica["problem"] != "")
        .map(|replica| &replica["name"])
        .collect();
    assert_eq!(silent, ["control-3"]);
    mesh.restart(2);
    wait_until("its sidecar is back and shown by another", PATIENCE, || {
        let status = mesh.fender_ok(0, &["status", "--output", "json"]);
        let status: serde_json::Value = serde_json::from_str(&status).unwrap();
        connected(&status) == ["control-1", "control-2", "control-3"]
    });
}

/// The replica of each sidecar that a status shows.
fn connected(status: &serde_json::Value) -> Vec<String> {
    let workloads = status["workloads"].as_array().unwrap().iter();
    let mut replicas: Vec<_> = workloads
        .flat_map(|workload| workload["sidecars"].as_array().unwrap())
        .map(|sidecar| sidecar["replica"].as_str().unwrap().to_owned())
        .collect();
    replicas.sort();
    replicas
}

/// What became of the tokens: each was shown by two at once, with keys of their own.
#[derive(Default)]
struct Tally {
    tried: AtomicU64,
    bought: AtomicU64,
    /// Nobody got anything for it.
    lost: AtomicU64,
    /// Both did.
    duplicated: AtomicU64,
    said: Mutex<Vec<String>>,
}

impl Tally {
    fn tried(&self) -> u64 {
        self.tried.load(Ordering::Relaxed)
    }
}

/// Shows tokens until there are none or it is told to stop.
struct Spenders {
    tally: Arc<Tally>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Spenders {
    fn start(directory: &Path, control: &str, tokens: Vec<PathBuf>, threads: usize) -> Self {
        let (tally, stop) = (Arc::new(Tally::default()), Arc::new(AtomicBool::new(false)));
        let tokens = Arc::new(Mutex::new(tokens));
        let spawn = |number: usize| {
            let (tally, stop, tokens) = (tally.clone(), stop.clone(), tokens.clone());
            let (directory, control) = (directory.to_owned(), control.to_owned());
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let Some(token) = tokens.lock().unwrap().pop() else {
                        return;
                    };
                    spend(&directory, &control, &token, &tally);
                    // A paced thief: the machine is shared with everything it calls.
                    std::thread::sleep(Duration::from_millis(100 * number as u64 + 200));
                }
            })
        };
        let threads = (0..threads).map(spawn).collect();
        Self {
            tally,
            stop,
            threads,
        }
    }

    fn finish(self) -> Arc<Tally> {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().unwrap();
        }
        self.tally
    }
}

/// The owner of a token and a thief show it at once.
fn spend(directory: &Path, control: &str, token: &Path, tally: &Tally) {
    let name = token.file_name().unwrap().to_string_lossy().into_owned();
    let shown = ["owner", "thief"].map(|who| {
        let copy = directory.join(format!("{who}-{name}"));
        fs::copy(token, &copy).unwrap();
        fs::set_permissions(&copy, fs::Permissions::from_mode(0o600)).unwrap();
        std::process::Command::new(binary())
            .env_clear()
            .args(["exec", "--control", control, "--start-timeout", "60s"])
            .arg("--token-file")
            .arg(copy)
            .arg("--state")
            .arg(directory.join(format!("held-{who}-{name}")))
            .args(["--", "/bin/true"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    });
    let outcomes = shown.map(|child| child.wait_with_output().unwrap());
    let bought = outcomes.iter().filter(|it| it.status.success()).count();
    let count = match bought {
        0 => &tally.lost,
        1 => &tally.bought,
        _ => &tally.duplicated,
    };
    count.fetch_add(1, Ordering::Relaxed);
    tally.tried.fetch_add(1, Ordering::Relaxed);
    if bought != 1 {
        let said = outcomes.map(|it| String::from_utf8_lossy(&it.stderr).into_owned());
        tally.said.lock().unwrap().push(said.join("\n--\n"));
    }
}

/// Every certificate that sidecars are seen to hold, by serial.
struct Collector {
    seen: Arc<Mutex<BTreeMap<String, Vec<u8>>>>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Collector {
    fn start(states: Vec<PathBuf>) -> Self {
        let (seen, stop) = (Arc::default(), Arc::new(AtomicBool::new(false)));
        let (into, stopped): (Arc<Mutex<BTreeMap<_, _>>>, _) = (Arc::clone(&seen), stop.clone());
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                for state in &states {
                    if let Some((serial, leaf)) = held(state) {
                        into.lock().unwrap().insert(serial, leaf);
                    }
                }
                std::thread::sleep(Duration::from_millis(100));
            }
        });
        Self { seen, stop, thread }
    }

    fn finish(self) -> BTreeMap<String, Vec<u8>> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
        std::mem::take(&mut *self.seen.lock().unwrap())
    }
}

/// The certificate in a state directory.
fn held(state: &Path) -> Option<(String, Vec<u8>)> {
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject as _;
    let pem = fs::read(state.join("svid.pem")).ok()?;
    let leaf = CertificateDer::pem_slice_iter(&pem).next()?.ok()?;
    let (_, read) = x509_parser::parse_x509_certificate(&leaf).ok()?;
    let serial = read.raw_serial().iter().map(|byte| format!("{byte:02x}"));
    Some((serial.collect(), leaf.to_vec()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn no_death_of_a_replica_of_the_database_or_of_a_wire_loses_or_doubles_anything() {
    const TOKENS: usize = 90;
    let nginx_home = tempfile::tempdir().unwrap();
    let nginx = Nginx::start(nginx_home.path());
    let listens = [free_address(), free_address(), free_address()];
    let mut mesh = Replicas::start(&documents("60s", &listens, nginx.address, "people"));
    let urls = mesh.urls();
    let sidecars: Vec<_> = SERVICES
        .iter()
        .map(|service| mesh.sidecar(service, &urls))
        .collect();
    let person = mesh.person("tester");
    let loads = listens.map(|listen| Load::of(Client::from_directory(&person, listen), 2, 2));
    let collector = Collector::start(SERVICES.iter().map(|it| mesh.state(it)).collect());
    let tokens: Vec<_> = (0..TOKENS)
        .map(|number| mesh.token(number % 3, "shop/jobs"))
        .collect();
    let spenders = Spenders::start(mesh.directory.path(), &urls, tokens, 2);
    let tally = Arc::clone(&spenders.tally);
    let answers = |mesh: &Replicas, at| mesh.fender(at, &["status"]).0 == 0;
    let goes_on = |mesh: &Replicas, what: &str| {
        let before = tally.tried();
        wait_until(&format!("tokens are spent {what}"), PATIENCE, || {
            tally.tried() >= before + 3
        });
        wait_until(&format!("sidecars are connected {what}"), PATIENCE, || {
            SERVICES.iter().all(|service| {
                mesh.sidecar_status(service)
                    .is_some_and(|status| status["link"] == "connected")
            })
        });
    };
    goes_on(&mesh, "while nothing is wrong");

    for at in 0..3 {
        mesh.kill(at);
        goes_on(&mesh, "while a replica is dead");
        mesh.restart(at);
    }

    mesh.server.down();
    wait_until("no replica can answer", PATIENCE, || {
        (0..3).all(|at| !answers(&mesh, at))
    });
    mesh.server.up();
    for at in 0..3 {
        mesh.wait_until_it_answers(at);
    }
    goes_on(&mesh, "after the database was restarted");

    mesh.replicas[0].database.cut();
    wait_until("a replica without its database says so", PATIENCE, || {
        !answers(&mesh, 0)
    });
    goes_on(&mesh, "while a replica is cut off from the database");
    mesh.replicas[0].database.mend();
    mesh.wait_until_it_answers(0);

    mesh.replicas[1].clients.cut();
    goes_on(&mesh, "while a replica is cut off from its clients");
    mesh.replicas[1].clients.mend();
    mesh.wait_until_it_answers(1);
    goes_on(&mesh, "once all is well again");

    // Renewed through all of it: each has had more than the certificate it began with.
    let renewals = |seen: &BTreeMap<String, Vec<u8>>| seen.len() > SERVICES.len() * 2;
    wait_until("sidecars have renewed", PATIENCE, || {
        renewals(&collector.seen.lock().unwrap())
    });
    let tally = spenders.finish();
    let mut certificates = collector.finish();
    let renewed = certificates.len() - SERVICES.len();
    for entry in fs::read_dir(mesh.directory.path()).unwrap() {
        let entry = entry.unwrap();
        if entry.file_name().to_string_lossy().starts_with("held-") {
            certificates.extend(held(&entry.path()));
        }
    }

    let number = |count: &AtomicU64| count.load(Ordering::Relaxed);
    let (tried, bought) = (number(&tally.tried), number(&tally.bought));
    let (lost, duplicated) = (number(&tally.lost), number(&tally.duplicated));
    println!(
        "{tried} tokens shown twice at once: {bought} bought one certificate, {lost} none, {duplicated} two; \
         {renewed} renewals; {} certificates held",
        certificates.len()
    );
    let said = tally.said.lock().unwrap().join("\n====\n");
    assert_eq!((duplicated, lost), (0, 0), "{said}");

    // Each certificate that anybody holds is on record, as it is held.
    for (serial, leaf) in &certificates {
        let recorded = mesh.server.sql(
            "fender",
            &format!("SELECT encode(leaf, 'hex') FROM certificates WHERE serial = '{serial}'"),
        );
        assert_eq!(recorded, hex(leaf), "{serial}");
    }
    // And the record holds no two for one token.
    let twice = mesh.server.sql(
        "fender",
        "SELECT count(*) FROM (SELECT evidence::json ->> 'token' FROM certificates \
         WHERE evidence::json ->> 'attestor' = 'token' GROUP BY 1 HAVING count(*) > 1) AS twice",
    );
    assert_eq!(twice, "0");
    let spent = mesh.server.sql(
        "fender",
        "SELECT count(*) FROM tokens WHERE identity LIKE '%/sa/jobs' AND spent_on IS NOT NULL",
    );
    assert_eq!(spent, tried.to_string());
    mesh.fender_ok(0, &["audit-log", "verify"]);

    for (service, load) in SERVICES.iter().zip(loads) {
        let done = load.finish();
        println!("{service}: {} requests", done.answered);
        assert_eq!(done.failures, Vec::<String>::new(), "{service}");
    }
    drop(sidecars);
}

/// Runs in a mount namespace of its own, with a disk that is soon full.
#[test]
fn a_full_disk_under_sqlite_refuses_what_it_cannot_record_and_loses_nothing_that_was_answered() {
    const TOKENS: usize = 12;
    let nginx_home = tempfile::tempdir().unwrap();
    let nginx = Nginx::start(nginx_home.path());
    let listens = [free_address(), free_address(), free_address()];
    let directory = tempfile::tempdir().unwrap();
    let (disk, admin) = (
        directory.path().join("disk"),
        directory.path().join("admin"),
    );
    let (listen, file) = (free_address(), directory.path().join("mesh.yaml"));
    fs::create_dir(&disk).unwrap();
    fs::write(&file, documents("1h", &listens, nginx.address, "people")).unwrap();
    let fender = |arguments: &[&str]| {
        std::process::Command::new(binary())
            .env_clear()
            .env("FENDER_ADMIN", &admin)
            .env("FENDER_CONTROL", format!("https://{listen}"))
            .args(arguments)
            .output()
            .unwrap()
    };
    let mut command = std::process::Command::new("unshare");
    command
        .args(["--mount", "sh", "-ec"])
        .arg("mount -t tmpfs -o size=8m,mode=700 tmpfs \"$1\"; shift; exec \"$@\"")
        .arg("sh")
        .arg(&disk)
        .arg(binary())
        .args(["--log-format", "json", "control", "--data-dir"])
        .arg(disk.join("data"))
        .arg("--admin-dir")
        .arg(&admin)
        .arg("--documents")
        .arg(&file)
        .args(["--listen", &listen.to_string()]);
    let log = directory.path().join("control.log");
    let mut control = fender_tests::Process::start("control", &mut command, &log);
    wait_until("it answers", PATIENCE, || {
        control.assert_running();
        fender(&["status"]).status.success()
    });
    let tokens: Vec<_> = (0..TOKENS)
        .map(|number| {
            let token = directory.path().join(format!("token-{number}"));
            let out = token.to_string_lossy();
            let made = fender(&["token", "create", "shop/jobs", "--ttl", "1h", "--out", &out]);
            assert!(made.status.success());
            token
        })
        .collect();
    let shown = |token: &Path, patience: &str| {
        let state = token.with_extension("state");
        fender(&[
            "exec",
            "--start-timeout",
            patience,
            "--token-file",
            &token.to_string_lossy(),
            "--state",
            &state.to_string_lossy(),
            "--",
            "/bin/true",
        ])
        .status
        .success()
    };
    assert!(shown(&tokens[0], "30s"));

    // The disk as that process sees it, filled to the last byte.
    let seen = PathBuf::from(format!("/proc/{}/root{}", control.pid(), disk.display()));
    let ballast = seen.join("ballast");
    let fill = || {
        let mut file = fs::File::options()
            .create(true)
            .append(true)
            .open(&ballast)
            .unwrap();
        while std::io::Write::write_all(&mut file, &[0; 512]).is_ok() {}
    };
    fill();
    let mut refused = 0;
    for token in &tokens[1..6] {
        if !shown(token, "2s") {
            refused += 1;
        }
        // What the log of SQLite gave back when it was rolled back is taken, too.
        fill();
    }
    control.assert_running();
    fs::remove_file(&ballast).unwrap();

    // Every token buys its one certificate now, whoever showed it meanwhile with the key that is kept.
    let mut bought = 1;
    for token in &tokens[1..] {
        let state = token.with_extension("state");
        if held(&state).is_some() || shown(token, "30s") {
            bought += 1;
        }
    }
    println!(
        "{TOKENS} tokens, {refused} refused while the disk was full, {bought} bought in the end"
    );
    assert!(refused > 0, "the disk was full");
    assert_eq!(bought, TOKENS, "{}", control.log());
    let status = fender(&["status", "--workload", "shop/jobs", "--output", "json"]);
    let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
    assert_eq!(
        status["workloads"][0]["certificates_issued"], TOKENS as u64,
        "one for each token is on record: {status}"
    );
    assert!(fender(&["audit-log", "verify"]).status.success());
}
