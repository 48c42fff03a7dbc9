//! The application is told of changes, or started again for one.

use super::*;

/// A proxy that asks once the application runs, and whenever its gate opens.
const ASKS: &str = r#"
trap 'echo "> proxy: TERM"; exit 0' TERM
echo ready >&0
while :; do
    # Nothing, if whoever asked before has not closed it yet.
    read -r asked < gate || continue
    echo "$asked" >&0
    read -r answer
    echo "> proxy: $answer"
done
"#;

/// An application that says which signals it gets and ends at SIGTERM with a code of its own.
const TOLD: &str = r#"
trap 'echo "> app: USR1"' USR1
trap 'echo "> app: TERM"; exit 5' TERM
echo "> app: starts"
while :; do read -r go < end && exit 3; done
"#;

fn asking(app: &str) -> Shipyard {
    let yard = Shipyard::app(app).with("proxy", ASKS);
    yard.gate("gate").gate("end")
}

impl Ship {
    fn ask(&self, what: &str) {
        fs::write(self.directory.path().join("gate"), format!("{what}\n")).unwrap();
    }
}

#[test]
fn the_application_is_told_by_a_signal_when_the_proxy_asks_for_it() {
    let ship = asking(TOLD).launch();
    ship.hears("app: starts");
    ship.ask("signal-app USR1 7");
    let mut heard = [ship.hear(), ship.hear()];
    heard.sort();
    assert_eq!(heard, ["app: USR1", "proxy: app-told 7"]);
    ship.open("end");
    ship.hears("proxy: TERM");
    ship.exits_with(3);
}

#[test]
fn the_application_is_started_again_when_the_proxy_asks_for_it_and_the_proxy_is_told_then() {
    let ship = asking(TOLD).launch();
    ship.hears("app: starts");
    for number in ["1", "18446744073709551615"] {
        ship.ask(&format!("restart-app {number}"));
        ship.hears("app: TERM");
        let mut heard = [ship.hear(), ship.hear()];
        heard.sort();
        assert_eq!(
            heard,
            [
                "app: starts".to_owned(),
                format!("proxy: app-told {number}")
            ]
        );
    }
    // What it exits with by itself is still what counts.
    ship.open("end");
    ship.hears("proxy: TERM");
    ship.exits_with(3);
}

#[test]
fn an_application_that_does_not_end_to_be_started_again_is_killed() {
    let stubborn =
        "trap '' TERM\necho '> app: starts'\nwhile :; do read -r go < end && exit 3; done";
    let ship = asking(stubborn).with("stop", "300").launch();
    ship.hears("app: starts");
    ship.ask("restart-app 1");
    let mut heard = [ship.hear(), ship.hear()];
    heard.sort();
    assert_eq!(heard, ["app: starts", "proxy: app-told 1"]);
    ship.open("end");
    ship.hears("proxy: TERM");
    ship.exits_with(3);
}

#[test]
fn who_ends_the_supervisor_while_the_application_is_started_again_does_not_get_it_back() {
    // It ends when it is let, whatever it is told.
    let app = "trap 'echo \"> app: TERM\"' TERM\necho '> app: starts'\nwhile :; do read -r go < end && exit 3; done";
    let proxy = ASKS.replace(
        "read -r answer",
        "while read -r answer && [ \"$answer\" = drain-inbound ]; do :; done",
    );
    let ship = Shipyard::app(app)
        .with("proxy", &proxy)
        .gate("gate")
        .gate("end")
        .launch();
    ship.hears("app: starts");
    ship.ask("restart-app 1");
    ship.hears("app: TERM");
    ship.send(Signal::TERM);
    let mut heard = [ship.hear(), ship.hear()];
    heard.sort();
    assert_eq!(heard, ["app: TERM", "proxy: app-not-told 1"]);
    ship.open("end");
    ship.hears("proxy: TERM");
    ship.exits_with(3);
}
