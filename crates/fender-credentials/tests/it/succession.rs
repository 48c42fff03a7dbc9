//! A successor of the proxy, and a supervisor without an application.

use super::*;

fn heirs(script: &str) -> Shipyard {
    let proxy = format!("{script}\n{HEIR}");
    Shipyard::app(APP)
        .with("proxy", &proxy)
        .gate("gate")
        .gate("end")
}

/// D2, D3.
#[test]
fn a_successor_is_the_proxy_once_it_is_ready_and_the_application_goes_on() {
    let ship = heirs("").launch();
    for line in ["first: up", "first: ready", "app"] {
        ship.hears(line);
    }
    ship.send(Signal::USR2);
    ship.hears("successor: up");
    // One at a time; and as long as it is not ready, the first is the one that is spoken to.
    ship.send(Signal::USR2);
    ship.hears("first: upgrade-refused");
    ship.open("gate");
    ship.hears("successor: ready");
    ship.open("end");
    let mut rest = ship.silence();
    rest.sort();
    assert_eq!(rest, ["first: TERM", "successor: TERM"]);
    ship.exits_with(3);
}

#[test]
fn a_successor_that_fails_or_is_never_ready_leaves_the_proxy_as_it_was() {
    let long = "3600000";
    for (script, code, within) in [("exit 9", 9, long), ("exec sleep 3600", 137, "300")] {
        let ship = heirs(&format!("[ -z $1 ] || {script}"))
            .with("upgrade", within)
            .launch();
        for line in ["first: up", "first: ready", "app"] {
            ship.hears(line);
        }
        ship.send(Signal::USR2);
        ship.hears(&format!("first: upgrade-failed {code}"));
        ship.open("end");
        ship.hears("first: TERM");
        ship.exits_with(3);
    }
}

#[test]
fn a_proxy_that_dies_while_its_successor_is_on_its_way_is_not_started_again() {
    let ship = heirs("").launch();
    for line in ["first: up", "first: ready", "app"] {
        ship.hears(line);
    }
    ship.send(Signal::USR2);
    ship.hears("successor: up");
    let pid = fs::read_to_string(ship.directory.path().join("pid-first")).unwrap();
    let pid = Pid::from_raw(pid.trim().parse().unwrap()).unwrap();
    rustix::process::kill_process(pid, Signal::KILL).unwrap();
    ship.open("gate");
    ship.hears("successor: ready");
    ship.open("end");
    ship.hears("successor: TERM");
    ship.exits_with(3);
}

#[test]
fn without_an_application_the_proxy_is_kept_and_told_what_signals_mean() {
    let ship = heirs("").with("alone", "").launch();
    ship.hears("first: up");
    ship.hears("first: ready");
    // Whether the supervisor has heard that it is ready or not.
    ship.send(Signal::HUP);
    // This one dies of it, and so there is another.
    ship.hears("first: HUP");
    ship.hears("first: up");
    ship.hears("first: ready");
    ship.send(Signal::TERM);
    ship.hears("first: TERM");
    ship.exits_with(0);
}

#[test]
fn to_reload_is_no_end_for_a_proxy_that_is_not_ready_yet() {
    let wait = "[ -e waited ] || { touch waited; echo '> waits'; read go < gate; }";
    let ship = heirs(wait).with("alone", "").launch();
    ship.hears("waits");
    ship.send(Signal::HUP);
    ship.open("gate");
    for line in ["up", "ready", "HUP", "up", "ready"] {
        ship.hears(&format!("first: {line}"));
    }
    ship.send(Signal::TERM);
    ship.hears("first: TERM");
    ship.exits_with(0);
}
