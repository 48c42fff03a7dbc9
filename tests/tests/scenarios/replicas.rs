//! Three control planes over one PostgreSQL server, as processes: a change or a revocation at one reaches the sidecars of all,
//! and each shows the sidecars of all. What becomes of them when something breaks is in `faults`.

use std::fs;
use std::time::{Duration, Instant};

use fender_tests::process::PATIENCE;
use fender_tests::replicas::{CONTROLS, INBOUND, PEOPLE, SERVICES};
use fender_tests::{Client, Replicas, wait_until};

/// What is promised is two seconds; what is asserted is that it does not take for ever on a busy machine.
const GENEROUS: Duration = Duration::from_secs(20);

/// How long each took until the last condition held, looked at all the time.
pub(crate) fn each_within(what: &str, mut holds: impl FnMut(usize) -> bool) -> Vec<Duration> {
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
    let mut mesh = Replicas::start();
    let first = mesh.documents("1h", "people", "");
    mesh.apply_everywhere(0, &first);
    let _sidecars: Vec<_> = (0..)
        .zip(SERVICES)
        .map(|(at, service)| mesh.sidecar(service, &mesh.url(at)))
        .collect();

    // Each is connected to its own replica, and each replica shows all of them.
    for asked in 0..CONTROLS.len() {
        wait_until("three intermediates and a root sign", PATIENCE, || {
            let status = mesh.status(asked);
            assert_eq!(status["incomplete"], false, "{status}");
            assert_eq!(connected(&status), CONTROLS);
            let authorities = status["authorities"].as_array().unwrap().iter();
            let mut signing: Vec<_> = authorities
                .filter(|authority| authority["standing"] == "signing")
                .map(|authority| authority["holder"].as_str().unwrap().to_owned())
                .collect();
            signing.sort();
            signing == ["", "control-1", "control-2", "control-3"]
        });
    }

    let person = mesh.person("mallory");
    let clients = SERVICES
        .map(|service| Client::from_directory(&person, mesh.network.host(service).at(INBOUND)));
    // What the callers' connections are made by must be where the people are.
    let runtime = mesh.network.host(PEOPLE).run(|| {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap()
    });
    let connect = |at: usize| {
        let client = clients[at].clone();
        let opened = runtime.spawn(async move { client.open().await.unwrap() });
        runtime.block_on(opened).unwrap()
    };
    let mut open = [0, 1, 2].map(connect);
    for connection in &mut open {
        assert_eq!(runtime.block_on(connection.get("/")).unwrap().status, 200);
    }

    // Measured where it counts: at what a caller gets.
    let began = Instant::now();
    let shut = mesh.documents("1h", "nobody", "");
    mesh.apply(0, &shut);
    let command = began.elapsed();
    let changed = each_within("the policy holds at every sidecar", |at| {
        // A response that has begun by then is cut, and its connection with it.
        if open[at].is_closed() {
            open[at] = connect(at);
        }
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
    let status = mesh.status(0);
    assert_eq!(status["incomplete"], true);
    let silent = status["replicas"].as_array().unwrap().iter();
    let silent: Vec<_> = silent
        .filter(|replica| replica["problem"] != "")
        .map(|replica| &replica["name"])
        .collect();
    assert_eq!(silent, ["control-3"]);
    mesh.restart(2);
    wait_until("its sidecar is back and shown by another", PATIENCE, || {
        connected(&mesh.status(0)) == CONTROLS
    });
}

/// Who ended at one replica is shown by the others, and when that one dies nobody claims to know.
#[test]
fn what_init_left_at_one_replica_is_known_at_another_until_that_one_is_gone() {
    let mut mesh = Replicas::start();
    fs::write(mesh.path("sources/smtp"), "hunter2").unwrap();
    fs::create_dir(mesh.path("out")).unwrap();
    let path = |name| mesh.path(name).display().to_string();
    let credential = format!(
        "---\napiVersion: fender.dev/v1\nkind: Credential\nmetadata: {{ namespace: shop, name: smtp }}\nspec:\n  \
         source: {{ file: {{ path: \"{}\", via: control }} }}\n  \
         deliver: [ {{ file: {{ path: \"{}\", storage: disk }} }} ]\n",
        path("sources/smtp"),
        path("out/smtp"),
    );
    let documents = mesh.documents("1h", "people", &credential);
    let job = "metadata: { namespace: shop, name: jobs }\nspec:\n";
    let lists = documents.replace(job, &format!("{job}  credentials: [ smtp ]\n"));
    assert_ne!(lists, documents);
    mesh.apply(0, &lists);

    let token = mesh.token(0, "shop/jobs", "5m");
    let host = mesh.network.host(SERVICES[0]);
    let mut init = host.fender();
    init.args(["init", "--control", &mesh.url(2), "--allow-dir"])
        .arg(mesh.path("out"))
        .arg("--state")
        .arg(mesh.path("state-jobs"))
        .arg("--token-file")
        .arg(token);
    let output = host.run(|| init.output().unwrap());
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{log}");
    assert!(!log.contains("did not take"), "{log}");

    let known = |mesh: &Replicas, at: usize| {
        let arguments = ["status", "credentials", "shop/smtp", "--output", "json"];
        let shown = mesh.fender_ok(at, &arguments);
        let status: serde_json::Value = serde_json::from_str(&shown).unwrap();
        (
            status["incomplete"] == true,
            status["credentials"][0].clone(),
        )
    };
    for asked in 0..CONTROLS.len() {
        let (incomplete, all) = known(&mesh, asked);
        let left = &all["holders"][0];
        assert_eq!((incomplete, all["instances"].as_u64()), (false, Some(1)));
        assert_eq!(left["replica"], CONTROLS[2]);
        assert!(left["ended"].is_string(), "{all}");
        assert_eq!(
            (&left["compared"], &all["hold_newest"], &all["old_in_use"]),
            (&true.into(), &1.into(), &0.into()),
            "{all}"
        );
    }
    fs::write(mesh.path("sources/smtp.new"), "another").unwrap();
    fs::rename(mesh.path("sources/smtp.new"), mesh.path("sources/smtp")).unwrap();
    wait_until("another replica knows that it is old", PATIENCE, || {
        known(&mesh, 0).1["old_in_use"] == 1
    });

    mesh.kill(2);
    let (incomplete, all) = known(&mesh, 0);
    assert_eq!((incomplete, all["instances"].as_u64()), (true, Some(0)));
    let table = mesh.fender_ok(1, &["status", "credentials"]);
    for expected in [
        "REPLICA control-3: ITS SIDECARS ARE NOT SHOWN: ",
        "shop/smtp: it is NOT KNOWN whether an instance of shop/jobs is connected",
    ] {
        assert!(table.contains(expected), "{table}");
    }
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
