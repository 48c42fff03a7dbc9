//! The application: started, signalled, ended and reaped.

use super::*;

#[test]
fn the_exit_code_is_the_applications_own() {
    Shipyard::app("exit 7").launch().exits_with(7);
    Shipyard::app("kill -KILL $$").launch().exits_with(137);
    Shipyard::app("kill -TERM $$").launch().exits_with(143);
}

#[test]
fn a_command_that_cannot_be_run_ends_like_in_a_shell_and_takes_the_proxy_along() {
    let ship = Shipyard::app("")
        .with("program", "/no/such/program")
        .with("proxy", PROXY)
        .launch();
    ship.hears("proxy: ready");
    ship.hears("proxy: TERM");
    ship.exits_with(127);
    Shipyard::app("")
        .with("program", "/etc/passwd")
        .launch()
        .exits_with(126);
}

#[test]
fn every_signal_reaches_the_application() {
    let signals = [
        (Signal::HUP, "HUP"),
        (Signal::INT, "INT"),
        (Signal::QUIT, "QUIT"),
        (Signal::USR1, "USR1"),
        (Signal::USR2, "USR2"),
        (Signal::ALARM, "ALRM"),
        (Signal::WINCH, "WINCH"),
        (Signal::CONT, "CONT"),
        (Signal::TSTP, "TSTP"),
        (fender_runtime::sys::signal_numbered(34).unwrap(), "34"),
        (fender_runtime::sys::signal_numbered(64).unwrap(), "64"),
        (Signal::TERM, "TERM"),
    ];
    let traps: String = signals
        .iter()
        .map(|(signal, name)| format!("trap 'echo \"> {name}\"' {}\n", signal.as_raw()))
        .collect();
    // A trap runs once `wait` was interrupted; TERM ends what is waited for, too.
    let app = format!(
        "{traps} trap 'echo \"> TERM\"; kill -KILL $!; exit 3' TERM\n\
         sleep 3600 & echo '> up'; while :; do wait; done"
    );
    let ship = Shipyard::app(&app).launch();
    ship.hears("up");
    for (signal, name) in signals {
        ship.send(signal);
        ship.hears(name);
    }
    ship.exits_with(3);
}

#[test]
fn the_application_starts_when_the_proxy_is_ready_and_not_before() {
    let proxy = format!("echo '> proxy: starts'; read go < gate\n{PROXY}");
    let ship = Shipyard::app("echo '> app'")
        .with("proxy", &proxy)
        .gate("gate")
        .launch();
    ship.hears("proxy: starts");
    assert!(ship.lines.try_recv().is_err());
    ship.open("gate");
    ship.hears("proxy: ready");
    ship.hears("app");
    ship.hears("proxy: TERM");
    ship.exits_with(0);
}

#[test]
fn a_proxy_that_is_refused_at_start_ends_it_with_its_own_code() {
    let app = "echo '> app'";
    Shipyard::app(app)
        .with("proxy", "exit 77")
        .launch()
        .exits_with(77);
    Shipyard::app(app)
        .with("proxy", "exit 0")
        .launch()
        .exits_with(69);
    Shipyard::app(app)
        .with("proxy", "kill -KILL $$")
        .launch()
        .exits_with(137);
}

#[test]
fn asked_to_stop_before_the_proxy_is_ready_it_stops_without_the_application() {
    let proxy = "trap 'echo \"> proxy: TERM\"; exit 0' TERM; echo '> proxy: starts'; read go <&0";
    let ship = Shipyard::app("echo '> app'").with("proxy", proxy).launch();
    ship.hears("proxy: starts");
    ship.send(Signal::TERM);
    ship.hears("proxy: TERM");
    ship.exits_with(143);
}

#[test]
fn d1_outbound_outlives_the_application_and_inbound_stops_first() {
    let app = r#"
        trap 'echo "> app: TERM"; read go < gate; echo "> app: exits"; exit 5' TERM
        sleep 3600 & echo "> app: up $!"; wait; kill $!"#;
    let ship = Shipyard::app(app)
        .with("proxy", PROXY)
        .gate("gate")
        .launch();
    ship.hears("proxy: ready");
    let up = ship.hear();
    let sleeper = up.strip_prefix("app: up ").unwrap();
    ship.send(Signal::TERM);
    let mut told = [ship.hear(), ship.hear()];
    told.sort();
    assert_eq!(told, ["app: TERM", "proxy: drain-inbound"]);
    kill(sleeper);
    ship.open("gate");
    ship.hears("app: exits");
    ship.hears("proxy: TERM");
    ship.exits_with(5);
}

fn kill(pid: &str) {
    let pid = Pid::from_raw(pid.parse().unwrap()).unwrap();
    rustix::process::kill_process(pid, Signal::KILL).unwrap();
}

#[test]
fn an_application_that_does_not_stop_is_killed_with_its_children() {
    let app = "trap '' TERM; sleep 3600 & echo '> up'; while :; do wait; done";
    let ship = Shipyard::app(app).with("stop", "50").launch();
    ship.hears("up");
    ship.send(Signal::TERM);
    // Its output ends only when its children are gone too.
    ship.exits_with(137);
}

#[test]
fn a_proxy_that_does_not_drain_is_killed() {
    let proxy = "trap '' TERM; echo ready >&0; while :; do read order <&0 || exit 0; done";
    let ship = Shipyard::app("exit 4")
        .with("proxy", proxy)
        .with("drain", "50")
        .launch();
    ship.exits_with(4);
}

#[test]
fn a_proxy_that_dies_is_started_again_and_the_application_does_not_notice() {
    let proxy = format!(
        "if [ -e died ]; then : ; else touch died; echo ready >&0; read go < gate; kill -KILL $$; fi\n{PROXY}"
    );
    let app = "echo \"> app: starts\"; read go < done; echo '> app: exits'; exit 6";
    let ship = Shipyard::app(app)
        .with("proxy", &proxy)
        .gate("gate")
        .gate("done")
        .launch();
    ship.hears("app: starts");
    ship.open("gate");
    ship.hears("proxy: ready");
    ship.open("done");
    ship.hears("app: exits");
    ship.hears("proxy: TERM");
    ship.exits_with(6);
}

#[test]
fn orphans_are_reaped() {
    // The orphan's parent ends first, so that it falls to the supervisor; its number disappears only
    // when somebody has waited for it.
    let app = r#"
        orphan=$(sh -c 'sh -c "exec sleep 0" >/dev/null & echo $!')
        while kill -0 "$orphan" 2>/dev/null; do sleep 0.01; done
        echo "> reaped""#;
    let ship = Shipyard::app(app).launch();
    ship.hears("reaped");
    ship.exits_with(0);
}

#[test]
fn the_application_inherits_no_ignored_or_blocked_signal_and_a_group_of_its_own() {
    let app = r#"
        while read -r name value; do
            case $name in SigIgn:|SigBlk:) echo "> $name $value" ;; esac
        done < /proc/self/status
        read -r pid name state parent group rest < /proc/self/stat
        [ "$group" = $$ ] && echo "> own group""#;
    let ship = Shipyard::app(app).launch_by("trap '' HUP USR1 WINCH; exec \"$0\" \"$@\"");
    ship.hears("SigBlk: 0000000000000000");
    // 32 and 33 are the C library's and stay as they are.
    let ignored = ship.hear();
    let mask = u64::from_str_radix(ignored.strip_prefix("SigIgn: ").unwrap(), 16).unwrap();
    assert_eq!(mask & !(0b11 << 31), 0, "{ignored}");
    ship.hears("own group");
    ship.exits_with(0);
}

#[test]
fn the_proxy_learns_that_its_supervisor_is_gone() {
    let app = "echo '> app'; read go < gate";
    let ship = Shipyard::app(app)
        .with("proxy", PROXY)
        .gate("gate")
        .launch();
    ship.hears("proxy: ready");
    ship.hears("app");
    ship.send(Signal::KILL);
    ship.hears("proxy: the supervisor is gone");
    ship.open("gate");
}
