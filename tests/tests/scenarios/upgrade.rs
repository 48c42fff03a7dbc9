//! D2: a sidecar is replaced by another without a request lost, however that is started; and whatever goes wrong with
//! the successor, or stands at the socket, the one that serves goes on.

mod attacks;
mod cache;
mod ending;
mod mesh;

use std::fs;
use std::os::unix::fs::symlink;
use std::time::Duration;

use fender_tests::process::{PATIENCE, Process};
use fender_tests::{Load, installed, wait_until};
use rustix::process::Signal;

use crate::berth::{Berth, Tunnel};

/// How the second one comes to be.
#[derive(Clone, Copy, Debug)]
enum Way {
    /// `fender upgrade` asks a sidecar that has a supervisor and no application.
    Asked,
    /// SIGUSR2 to a supervisor with an application.
    Signalled,
    /// `--take-over` in other namespaces of mounts and processes, as in another container.
    Elsewhere,
}

/// How many requests pass before, between and after the upgrades.
const REQUESTS: u64 = 600;
/// How many connections of each version there are: so many that all of them have to be moved on at once, and so few that
/// a machine which does much else is still quick enough to shake hands with each in time.
const CONNECTIONS: usize = 50;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_is_lost_when_fender_upgrade_is_asked_twice_under_load() {
    under_load(Way::Asked).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_is_lost_when_a_supervisor_is_signalled_twice_under_load() {
    under_load(Way::Signalled).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_is_lost_when_other_containers_take_over_twice_under_load() {
    under_load(Way::Elsewhere).await;
}

/// 200 connections, two upgrades, and a WebSocket that is open across both.
async fn under_load(way: Way) {
    // Longer than any load: what ends a connection here is never the deadline.
    let berth = Berth::new("1h");
    let mut processes = vec![start(&berth, way)];
    berth.wait_ready(&mut processes[0]);
    let before = berth.serving();

    let mut tunnel = Tunnel::open(&berth).await;
    let (connections, part) = match Load::by_hand() {
        Some(seconds) => (2 * CONNECTIONS, seconds / 3),
        None => (CONNECTIONS, Duration::ZERO),
    };
    let load = Load::start(&berth.client(), "/public", connections, connections);
    let lasts = async || {
        load.goes_on_for(REQUESTS).await;
        tokio::time::sleep(part).await;
    };
    for _ in 0..2 {
        lasts().await;
        tokio::task::block_in_place(|| upgrade(&berth, way, &mut processes));
        tunnel.echoes().await;
    }
    lasts().await;
    tunnel.echoes().await;
    let tally = load.finish().await;
    println!(
        "{way:?}: {} requests on {} connections across two upgrades, {} failed",
        tally.answered,
        tally.connections,
        tally.failures.len()
    );
    let faults = berth.access_log();
    let faults = faults
        .lines()
        .filter(|line| !line.contains("\"outcome\":\"ok\""));
    let faults: Vec<_> = faults.collect();
    assert!(
        tally.failures.is_empty(),
        "{:#?}\n{faults:#?}",
        tally.failures
    );
    let opened = 2 * connections as u64;
    assert!(
        tally.connections >= 2 * opened,
        "each connection was moved on: {tally:?}"
    );
    assert_ne!(berth.serving(), before);
    // The first one was there for the tunnel alone, and ends with it, long before its deadline.
    drop(tunnel);
    tokio::task::block_in_place(|| match way {
        Way::Asked | Way::Signalled => wait_until("those before have ended", PATIENCE, || {
            berth.log().matches("the proxy before has ended").count() == 2
        }),
        Way::Elsewhere => processes.iter_mut().take(2).for_each(|process| {
            assert_eq!(process.wait(PATIENCE).code(), Some(0), "{}", berth.log());
        }),
    });
    assert!(
        !berth.log().contains("connections were cut"),
        "{}",
        berth.log()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_websocket_survives_two_upgrades_until_the_deadline_of_its_drain() {
    let berth = Berth::new("40s");
    let mut processes = vec![start(&berth, Way::Asked)];
    berth.wait_ready(&mut processes[0]);
    let mut tunnel = Tunnel::open(&berth).await;
    for _ in 0..2 {
        tokio::task::block_in_place(|| upgrade(&berth, Way::Asked, &mut processes));
        tunnel.echoes().await;
    }
    // The second one had nothing, and is gone; the first one has the tunnel, and the time of its drain.
    tunnel.end().await;
    let cut = "connections were cut at the end of the drain";
    let log = || berth.log();
    tokio::task::block_in_place(|| {
        wait_until("the tunnel's end is told", PATIENCE, || log().contains(cut));
    });
    assert_eq!(log().matches(cut).count(), 1, "{}", log());
    // Which is written beside the work, and at the end at the latest.
    tokio::task::block_in_place(|| {
        wait_until("the tunnel has its line", PATIENCE, || {
            berth.access_log().contains("/chat")
        });
    });
    assert_eq!(berth.client().get("/public").await.unwrap().status, 200);
}

fn start(berth: &Berth, way: Way) -> Process {
    match way {
        Way::Asked => berth.start(berth.command().arg("--supervise")),
        Way::Signalled => berth.start(berth.command().args(["--", "sleep", "100000"])),
        Way::Elsewhere => start_elsewhere(berth),
    }
}

fn start_elsewhere(berth: &Berth) -> Process {
    let mut elsewhere = std::process::Command::new(installed("unshare"));
    elsewhere
        .env_clear()
        .args([
            "--mount",
            "--pid",
            "--fork",
            "--mount-proc",
            "--kill-child=TERM",
            "--",
        ])
        .arg(berth.program())
        .args(berth.arguments())
        .arg("--take-over")
        .arg(berth.upgrade_socket());
    berth.start(&mut elsewhere)
}

fn upgrade(berth: &Berth, way: Way, processes: &mut Vec<Process>) {
    let before = berth
        .log()
        .matches("the successor is the proxy now")
        .count();
    match way {
        Way::Asked => {
            let (code, out, err) = berth.ask("upgrade");
            assert_eq!(code, 0, "{err}\n{}", berth.log());
            assert!(out.contains("serves"), "{out}");
        }
        Way::Signalled => processes[0].signal(Signal::USR2),
        Way::Elsewhere => {
            let known = berth.log().matches("a successor serves").count();
            processes.push(start_elsewhere(berth));
            return wait_until("the other container serves", PATIENCE, || {
                berth.log().matches("a successor serves").count() > known
            });
        }
    }
    wait_until("the successor is the proxy", PATIENCE, || {
        processes[0].assert_running();
        berth
            .log()
            .matches("the successor is the proxy now")
            .count()
            > before
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_program_that_lies_at_the_path_succeeds_and_the_application_is_never_restarted() {
    let berth = Berth::new("1s");
    let started = berth.path("started");
    let script = format!("echo x >> {}; exec sleep 100000", started.display());
    let mut process = berth.start(berth.command().args(["--", "sh", "-c", &script]));
    berth.wait_ready(&mut process);

    // A package manager puts another in its place; this one says that it was there.
    let successor = berth.path("successor");
    let told = berth.path("told");
    let text = format!(
        "#!/bin/sh\necho \"$@\" > {}\nexec {} \"$@\"\n",
        told.display(),
        fender_tests::binary().display()
    );
    berth.replace_program_by_script(&successor, &text);
    let (code, out, err) = berth.ask("upgrade");
    assert_eq!(code, 0, "{out}{err}\n{}", berth.log());
    let arguments = fs::read_to_string(&told).unwrap();
    assert!(arguments.contains("--take-over"), "{arguments}");
    assert_eq!(berth.client().get("/public").await.unwrap().status, 200);
    assert_eq!(fs::read_to_string(&started).unwrap(), "x\n");

    // And it is supervised like the first one: its end is not the end.
    berth.kill_serving();
    wait_until("a proxy is there again", PATIENCE, || {
        process.assert_running();
        berth.is_ready()
    });
    assert_eq!(fs::read_to_string(&started).unwrap(), "x\n");
    process.signal(Signal::TERM);
    assert_eq!(process.wait(PATIENCE).code(), Some(128 + 15));
}

#[tokio::test]
async fn a_successor_that_cannot_start_changes_nothing() {
    let berth = Berth::new("1s");
    let mut process = berth.start(
        berth
            .command()
            .args(["--supervise", "--start-timeout", "10s"]),
    );
    berth.wait_ready(&mut process);
    let serving = berth.serving();
    let mut open = berth.client().open().await.unwrap();
    assert_eq!(open.get("/public").await.unwrap().status, 200);

    // Documents that are wrong: its own code for that.
    let good = berth.config();
    berth.configure("kind: Nonsense\n");
    let (code, out, err) = berth.ask("upgrade");
    assert_eq!(code, 69, "{out}{err}");
    assert!(
        err.contains("code 64") && err.contains("nothing has changed"),
        "{err}"
    );
    berth.configure(&good);

    // Documents that want a port which is somebody else's: it has everything in its hands already.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let wanted = taken.local_addr().unwrap().to_string();
    let other = berth.path("other.yaml");
    fs::write(
        &other,
        good.replacen(&berth.address.to_string(), &wanted, 1),
    )
    .unwrap();
    let mut command = berth.command_for(&other);
    let mut second = berth.start(command.arg("--take-over").arg(berth.upgrade_socket()));
    assert_eq!(second.wait(PATIENCE).code(), Some(69), "{}", berth.log());
    let log = berth.log();
    assert!(
        log.contains("received the listeners")
            && log.contains(&format!("cannot listen on `{wanted}`")),
        "{log}"
    );
    wait_until("the sidecar says that it goes on", PATIENCE, || {
        berth
            .log()
            .contains("went before it was ready; this sidecar goes on")
    });

    // A program that is none, one that is not there, and one that never says anything.
    for (script, said) in [("exit 3", "code 3"), ("exec sleep 1000", "code 137")] {
        berth.replace_program_by_script(&berth.path("bad"), &format!("#!/bin/sh\n{script}\n"));
        let (code, _, err) = berth.ask("upgrade");
        assert_eq!(code, 69, "{err}");
        assert!(err.contains(said), "{err}");
    }
    fs::remove_file(berth.program()).unwrap();
    let (code, _, err) = berth.ask("upgrade");
    assert_eq!(code, 69, "{err}");

    assert_eq!(
        open.get("/public").await.unwrap().status,
        200,
        "not even a connection was closed"
    );
    assert_eq!(berth.serving(), serving);
    // Afterwards it succeeds as ever.
    symlink(fender_tests::binary(), berth.program()).unwrap();
    let (code, out, err) = berth.ask("upgrade");
    assert_eq!(code, 0, "{out}{err}");
    assert_ne!(berth.serving(), serving);
}

#[tokio::test]
async fn what_the_new_configuration_wants_is_served_and_what_it_does_not_is_closed() {
    let berth = Berth::new("1s");
    let mut process = berth.start(&mut berth.command());
    berth.wait_ready(&mut process);
    let moved = fender_tests::process::free_address();
    let config = berth.config();
    let other = berth.path("other.yaml");
    fs::write(
        &other,
        config.replacen(&berth.address.to_string(), &moved.to_string(), 1),
    )
    .unwrap();
    let mut command = berth.command_for(&other);
    let mut successor = berth.start(command.arg("--take-over").arg(berth.upgrade_socket()));
    assert_eq!(process.wait(PATIENCE).code(), Some(0), "{}", berth.log());
    wait_until("the successor serves", PATIENCE, || {
        successor.assert_running();
        berth.is_ready()
    });
    assert!(std::net::TcpStream::connect(berth.address).is_err());
    std::net::TcpStream::connect(moved).unwrap();
    assert!(
        berth
            .log()
            .contains("no longer listening where the sidecar before did")
    );
}

#[tokio::test]
async fn without_a_supervisor_nobody_can_start_a_successor_and_both_ways_to_ask_say_so() {
    let berth = Berth::new("1s");
    let mut process = berth.start(&mut berth.command());
    berth.wait_ready(&mut process);
    let (code, _, err) = berth.ask("upgrade");
    assert_eq!(code, 64, "{err}");
    assert!(
        err.contains("--take-over") && err.contains("--supervise"),
        "{err}"
    );
    process.signal(Signal::USR2);
    wait_until("the signal is answered in the log", PATIENCE, || {
        berth
            .log()
            .matches("no upgrade: nobody can start a successor")
            .count()
            == 2
    });
    process.assert_running();
    // Where nobody serves, whoever is to take over starts as usual.
    process.kill();
    let mut command = berth.command();
    let mut first = berth.start(command.arg("--take-over").arg(berth.upgrade_socket()));
    berth.wait_ready(&mut first);
    assert!(berth.log().contains("nobody to take over from"));
}

#[tokio::test]
async fn a_sidecar_that_is_killed_while_it_hands_over_leaves_a_successor_that_serves() {
    let berth = Berth::new("1s");
    let mut process = berth.start(&mut berth.command());
    berth.wait_ready(&mut process);
    // It says nothing any more: the successor has connected and waits.
    process.signal(Signal::STOP);
    let mut command = berth.command();
    let mut successor = berth.start(command.arg("--take-over").arg(berth.upgrade_socket()));
    wait_until("the successor has connected", PATIENCE, || {
        successor.assert_running();
        berth.waits_for_upgrade_socket(successor.pid())
    });
    process.kill();
    berth.wait_ready(&mut successor);
    assert_eq!(berth.client().get("/public").await.unwrap().status, 200);
}
