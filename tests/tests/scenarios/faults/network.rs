//! Replicas are killed, the database is restarted, and the network between all of them is cut, each way and both.

use fender_tests::process::PATIENCE;
use fender_tests::replicas::{CONTROLS, DATABASE, INBOUND, PEOPLE, SERVICES};
use fender_tests::{Client, Replicas, wait_until};

use super::Trade;
use super::spenders::Showing;
use crate::control_loss::Load;
use crate::replicas::each_within;

/// Short enough that certificates are renewed through everything.
const LEAF: &str = "60s";

/// Forbids what nobody asks for but who looks whether it is forbidden.
const CLOSED: &str = r#"---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: { namespace: shop, name: closed }
spec:
  selector: { matchLabels: { app: service } }
  action: DENY
  rules:
    - to: [ { operation: { paths: [ /closed ] } } ]
"#;

#[test]
fn no_death_of_a_replica_or_of_the_database_and_no_cut_of_the_network_loses_or_doubles_anything() {
    let mut mesh = Replicas::start();
    mesh.apply_everywhere(0, &mesh.documents(LEAF, "people", ""));
    let showing = Showing {
        owner: PEOPLE,
        thief: PEOPLE,
    };
    let all = SERVICES.map(|_| mesh.urls());
    let mut trade = Trade::start(&mesh, all, showing);
    let person = mesh.person("tester");
    let callers = SERVICES
        .map(|service| Client::from_directory(&person, mesh.network.host(service).at(INBOUND)));
    for (service, caller) in SERVICES.iter().zip(&callers) {
        let people = mesh.network.host(PEOPLE);
        let load = people.run(|| Load::of(caller.clone(), 2, 2));
        trade.loads.push((format!("people to {service}"), load));
    }
    trade.goes_on(&mesh, "while nothing is wrong");

    replicas_are_killed(&mut mesh, &mut trade);
    the_database_is_restarted(&mut mesh, &mut trade);
    the_way_to_the_database_is_cut(&mut mesh, &mut trade, &callers);
    the_way_to_those_who_call_is_cut(&mut mesh, &mut trade);

    // Through all of it each has had more than the certificate it began with.
    wait_until("sidecars have renewed", PATIENCE, || {
        trade.each_has_renewed()
    });
    trade.settle(&mesh);
}

fn replicas_are_killed(mesh: &mut Replicas, trade: &mut Trade) {
    for at in 0..CONTROLS.len() {
        mesh.kill(at);
        trade.goes_on(mesh, "while a replica is dead");
        mesh.restart(at);
    }
}

fn the_database_is_restarted(mesh: &mut Replicas, trade: &mut Trade) {
    mesh.server.down();
    none_answers(mesh, &[0, 1, 2]);
    let database = mesh.network.host(DATABASE);
    database.run(|| mesh.server.up());
    all_answer(mesh);
    trade.goes_on(mesh, "after the database was restarted");
}

/// The replica that a sidecar is connected to loses the database. Another one still tells it what to do, and hears nothing of
/// what came of it: a commit that succeeds and is not heard of. What is changed meanwhile at the third reaches all sidecars.
fn the_way_to_the_database_is_cut(mesh: &mut Replicas, trade: &mut Trade, callers: &[Client; 3]) {
    let [lost, deaf, well] = beginning_with(replica_of(mesh, SERVICES[0]));
    mesh.network.cut(CONTROLS[lost], &[DATABASE]);
    mesh.network.deafen(CONTROLS[deaf], DATABASE);
    let cut = trade.mark();
    none_answers(mesh, &[lost, deaf]);
    mesh.apply(well, &mesh.documents(LEAF, "people", CLOSED));
    trade.goes_on_since(&cut, mesh, "without the database for two replicas");

    mesh.network.mend();
    all_answer(mesh);
    let reached = mesh.network.host(PEOPLE).run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        each_within("the change is in force at every sidecar", |at| {
            // A response that has begun by then is cut.
            let answer = runtime.block_on(callers[at].get("/closed"));
            answer.is_ok_and(|answer| answer.status == 403)
        })
    });
    println!(
        "a change applied during the cut: in force at the sidecars {reached:?} after the last replica answered again"
    );
    trade.goes_on(mesh, "once all replicas have the database");
}

/// The replica that a sidecar is connected to loses whoever calls it, and keeps the database. Another one loses everybody.
fn the_way_to_those_who_call_is_cut(mesh: &mut Replicas, trade: &mut Trade) {
    let [lost, alone, well] = beginning_with(replica_of(mesh, SERVICES[0]));
    let who_calls = [&SERVICES[..], &[PEOPLE]].concat();
    mesh.network.cut(CONTROLS[lost], &who_calls);
    mesh.network.unplug(CONTROLS[alone]);
    let cut = trade.mark();
    wait_until("all are at the one that is left", PATIENCE * 2, || {
        let at = |service: &&str| connected(mesh, well, service);
        SERVICES
            .iter()
            .all(|service| at(service).as_deref() == Some(CONTROLS[well]))
    });
    trade.goes_on_since(&cut, mesh, "with one replica that can be called");

    mesh.network.mend();
    all_answer(mesh);
    trade.goes_on(mesh, "once all replicas can be called");
}

/// Each of these says, sooner or later, that it cannot answer.
fn none_answers(mesh: &Replicas, those: &[usize]) {
    std::thread::scope(|scope| {
        for at in those {
            scope.spawn(move || {
                let what = format!("{} says that it cannot answer", CONTROLS[*at]);
                wait_until(&what, PATIENCE, || !mesh.answers(*at));
            });
        }
    });
}

fn all_answer(mesh: &mut Replicas) {
    for at in 0..CONTROLS.len() {
        mesh.wait_until_it_answers(at);
    }
}

/// All three, a certain one first.
fn beginning_with(first: usize) -> [usize; 3] {
    [first, (first + 1) % 3, (first + 2) % 3]
}

/// Which one a sidecar is connected to.
fn replica_of(mesh: &Replicas, service: &str) -> usize {
    let mut found = None;
    wait_until("a sidecar is connected to one replica", PATIENCE, || {
        let name = connected(mesh, 0, service);
        found = CONTROLS
            .iter()
            .position(|control| name.as_deref() == Some(control));
        found.is_some()
    });
    found.unwrap()
}

/// The same by its name, as the status of a replica shows it, unless there is none or more than one.
fn connected(mesh: &Replicas, asked: usize, service: &str) -> Option<String> {
    let workload = format!("shop/{service}");
    let arguments = ["status", "--workload", &workload, "--output", "json"];
    let status = mesh.fender_ok(asked, &arguments);
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    match status["workloads"][0]["sidecars"].as_array()?.as_slice() {
        [only] => Some(only["replica"].as_str()?.to_owned()),
        _ => None,
    }
}
