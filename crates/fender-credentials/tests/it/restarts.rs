//! An application that ends by itself, and what the policy makes of it.

use super::*;

/// It is started again at once, and never counts as healthy.
fn restarting(policy: &str, app: &str) -> Shipyard {
    let yard = Shipyard::app(app).with("proxy", PROXY);
    yard.with("restart", policy).with("rest", "1").gate("end")
}

/// Ends when it is let, with what its file says, a line for each start.
const ENDS: &str = r#"
echo "> app"
until read -r go < end; do :; done
code=$(head -n 1 codes); sed -i 1d codes
[ "$code" != killed ] || kill -KILL $$
exit "$code"
"#;

impl Ship {
    /// The application ends and is started again. The proxy is told in order; when the application is heard beside it is nobody's
    /// to say.
    #[track_caller]
    fn ends_and_comes_back(&self) {
        self.open("end");
        let heard = [self.hear(), self.hear(), self.hear()];
        let (app, proxy): (Vec<_>, Vec<_>) = heard.into_iter().partition(|line| line == "app");
        assert_eq!(app, ["app"]);
        assert_eq!(proxy, ["proxy: app-rests", "proxy: app-runs"]);
    }

    #[track_caller]
    fn ends_for_good(self, code: i32) {
        self.open("end");
        self.hears("proxy: TERM");
        self.exits_with(code);
    }
}

#[test]
fn it_is_started_again_as_often_as_it_fails_and_its_last_code_is_the_end() {
    let ship = restarting("on-failure", ENDS);
    let ship = ship.with("codes", "1\nkilled\n77\n0\n").launch();
    ship.hears("proxy: ready");
    ship.hears("app");
    for _ in 0..3 {
        ship.ends_and_comes_back();
    }
    ship.ends_for_good(0);
}

#[test]
fn it_is_given_up_after_so_many_attempts_with_its_own_code() {
    let ship = restarting("always:2", ENDS);
    let ship = ship.with("codes", "3\n0\n42\n").launch();
    ship.hears("proxy: ready");
    ship.hears("app");
    for _ in 0..2 {
        ship.ends_and_comes_back();
    }
    ship.ends_for_good(42);
}

#[test]
fn one_that_ran_for_a_healthy_time_has_all_its_attempts_again() {
    let ship = restarting("on-failure:1", ENDS).with("healthy", "0");
    let ship = ship.with("codes", "1\n1\n1\n1\n0\n").launch();
    ship.hears("proxy: ready");
    ship.hears("app");
    for _ in 0..4 {
        ship.ends_and_comes_back();
    }
    ship.ends_for_good(0);
}

#[test]
fn whoever_asks_to_stop_while_it_rests_ends_everything() {
    // It would rest for an hour.
    let resting = || {
        let ship = restarting("always", "echo '> app'; exit 9")
            .with("rest", "3600000")
            .launch();
        ship.hears("proxy: ready");
        ship.hears("app");
        ship.hears("proxy: app-rests");
        ship
    };
    for (signal, code) in [(Signal::TERM, 143), (Signal::INT, 130), (Signal::QUIT, 131)] {
        let ship = resting();
        ship.send(signal);
        ship.hears("proxy: TERM");
        ship.exits_with(code);
    }
}

#[test]
fn one_that_is_asked_to_stop_is_not_started_again_whatever_it_ends_with() {
    let app = "trap 'exit 5' TERM; echo '> app'; while :; do read go < never; done";
    let ship = restarting("always", app).gate("never").launch();
    ship.hears("proxy: ready");
    ship.hears("app");
    ship.send(Signal::TERM);
    let mut said = ship.silence();
    // Which the proxy has no time to repeat if it ends at once.
    said.retain(|line| line != "proxy: drain-inbound");
    assert_eq!(said, ["proxy: TERM"]);
    ship.exits_with(5);
}

#[test]
fn one_that_cannot_be_started_even_once_is_not_tried_again() {
    let ship = restarting("always", "").with("program", "/no/such/program");
    let ship = ship.launch();
    ship.hears("proxy: ready");
    ship.hears("proxy: TERM");
    ship.exits_with(127);
}
