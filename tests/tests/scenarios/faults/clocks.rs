//! Clocks that are wrong by five minutes, ahead and behind, of replicas, of sidecars and of whoever shows a token; then all of
//! them are set right, some back and some forward.
//!
//! The database's own clock and the machine's are right: what is decided by the age of a heartbeat is not what is tried here.

use std::ops::RangeInclusive;
use std::time::UNIX_EPOCH;

use fender_runtime::clock::system;
use fender_tests::process::{PATIENCE, installed};
use fender_tests::replicas::{CONTROLS, PEOPLE, SERVICES};
use fender_tests::{Network, Replicas, wait_until};

use super::Trade;
use super::spenders::{Shop, Showing};

const FIVE_MINUTES: i64 = 300;

const RIGHT: usize = 0;
const AHEAD: usize = 1;
const BEHIND: usize = 2;

struct Clocks {
    /// By how many seconds. What is not named is right.
    wrong: &'static [(&'static str, i64)],
    /// From which replica each service has its certificates.
    certificates_from: [usize; 3],
    leaf: &'static str,
    /// After so many seconds every certificate is due for renewal and none has ended, by each of the clocks.
    later: i64,
}

/// Certificates begin ten minutes in the past, but no more than a tenth of their life: they live longer than by default, because
/// here the clocks of two are ten minutes apart. Who is ahead has its certificates from who is behind, and the other way round.
const AHEAD_AND_BEHIND: Clocks = Clocks {
    wrong: &[
        ("control-2", FIVE_MINUTES),
        ("control-3", -FIVE_MINUTES),
        ("one", FIVE_MINUTES),
        ("two", -FIVE_MINUTES),
    ],
    certificates_from: [BEHIND, AHEAD, RIGHT],
    leaf: "2h",
    later: 90 * 60,
};

/// As far as any two clocks may be apart by the default lifetime.
const BY_DEFAULT: Clocks = Clocks {
    wrong: &[("control-2", FIVE_MINUTES), ("one", FIVE_MINUTES)],
    certificates_from: [RIGHT, AHEAD, AHEAD],
    leaf: "1h",
    later: 45 * 60,
};

#[test]
fn clocks_five_minutes_ahead_and_behind_and_set_right_lose_or_double_nothing() {
    AHEAD_AND_BEHIND.trade(an_end_that_clocks_differ_about_buys_nothing_twice);
}

#[test]
fn clocks_that_differ_by_five_minutes_lose_or_double_nothing_with_the_default_lifetime() {
    BY_DEFAULT.trade(|_| ());
}

impl Clocks {
    fn trade(&self, meanwhile: impl FnOnce(&Replicas)) {
        let mut mesh = Replicas::start_with_clocks(self.wrong);
        mesh.apply_everywhere(RIGHT, &mesh.documents(self.leaf, "people", ""));
        for (at, control) in CONTROLS.iter().enumerate() {
            let (possible, told) = while_seconds_pass(|| now_by(&mesh, at));
            let wrong = self.wrong_by(control);
            assert!(possible.contains(&(told - wrong)), "{told} at {control}");
        }
        let controls = self.certificates_from.map(|at| mesh.url(at));
        let showing = Showing {
            owner: "one",
            thief: "two",
        };
        let mut trade = Trade::start(&mesh, controls, showing);
        trade.goes_on(&mesh, "while clocks are wrong");
        meanwhile(&mesh);

        // Time passes: by the clocks that are wrong as well as by those that are right.
        set_clocks(&mesh.network, |host| self.wrong_by(host) + self.later);
        wait_until("every sidecar has renewed", PATIENCE * 2, || {
            trade.each_has_renewed()
        });
        trade.goes_on(&mesh, "after renewals by clocks that are wrong");

        // Everybody's clock is set right, some back, some forward.
        set_clocks(&mesh.network, |_| self.later);
        for at in 0..CONTROLS.len() {
            mesh.wait_until_it_answers(at);
        }
        trade.goes_on(&mesh, "after clocks were set right");
        trade.settle(&mesh);
    }

    fn wrong_by(&self, host: &str) -> i64 {
        let named = self.wrong.iter().find(|(name, _)| *name == host);
        named.map_or(0, |(_, seconds)| *seconds)
    }
}

/// A token that has ended by two clocks and not by the third buys its one certificate there, and is spent for all.
fn an_end_that_clocks_differ_about_buys_nothing_twice(mesh: &Replicas) {
    let token = mesh.token(BEHIND, "shop/jobs", "270s");
    let buys = |at, who| {
        let shop = Shop::of(mesh, mesh.url(at));
        let child = shop.show(&token, who, PEOPLE);
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), said)
    };
    for at in [AHEAD, RIGHT] {
        let (code, said) = buys(at, "early");
        assert_eq!(code, Some(77), "{said}");
        assert!(said.contains("expired"), "{said}");
    }
    let (code, said) = buys(BEHIND, "owner");
    assert_eq!(code, Some(0), "{said}");
    for at in [AHEAD, RIGHT, BEHIND] {
        let (code, said) = buys(at, "thief");
        assert_eq!(code, Some(77), "{said}");
        assert!(said.contains("already used"), "{said}");
    }
}

#[test]
fn the_clock_of_a_host_is_as_wrong_as_it_is_set() {
    let directory = tempfile::tempdir().unwrap();
    let network = Network::new(&["here", "there"]).with_clocks(directory.path());
    let assert_wrong_by = |host: &str, wrong: i64| {
        let read = || {
            let mut command = network.host(host).command(&installed("busybox"));
            let output = command.args(["date", "+%s"]).output().unwrap();
            let text = String::from_utf8(output.stdout).unwrap();
            text.trim().parse::<i64>().unwrap()
        };
        let (possible, read) = while_seconds_pass(read);
        assert!(possible.contains(&(read - wrong)), "{read} at {host}");
    };
    network.host("there").set_clock_wrong_by(-FIVE_MINUTES);
    assert_wrong_by("here", 0);
    assert_wrong_by("there", -FIVE_MINUTES);
    network.host("there").set_clock_wrong_by(FIVE_MINUTES);
    assert_wrong_by("there", FIVE_MINUTES);
}

fn set_clocks(network: &Network, wrong_by: impl Fn(&str) -> i64) {
    for host in [&CONTROLS[..], &SERVICES, &[PEOPLE]].concat() {
        network.host(host).set_clock_wrong_by(wrong_by(host));
    }
}

/// What a replica takes for the present moment.
fn now_by(mesh: &Replicas, at: usize) -> i64 {
    let status = mesh.status(at);
    let now = humantime::parse_rfc3339(status["now"].as_str().unwrap());
    let since = now.unwrap().duration_since(UNIX_EPOCH).unwrap();
    i64::try_from(since.as_secs()).unwrap()
}

/// What comes of it, and what a clock that is right can have shown meanwhile.
fn while_seconds_pass<T>(work: impl FnOnce() -> T) -> (RangeInclusive<i64>, T) {
    let now = || i64::try_from(system().now().as_secs()).unwrap();
    let began = now();
    let done = work();
    (began..=now(), done)
}
