//! P4, against real applications: the sidecar and what is behind it never disagree about where a
//! request ends. Each table is sent through the real program to nginx and to three of Python's
//! servers, of which each is lenient in its own way; what they wrote down is what must have arrived.

mod downgrade;
mod poison;
mod requests;

#[path = "../../../crates/fender-wire/tests/it/table.rs"]
#[expect(dead_code, reason = "the codec's tests use all of it")]
pub(crate) mod table;

use std::time::Duration;

use fender_tests::process::PATIENCE;
use fender_tests::recorder::{Habit, Taken};
use fender_tests::{Client, Recorder};
use tokio::time::Instant;

use crate::front::{BUT_DENIED, EVERYBODY, Front, Port};
use crate::standalone::{CALLER, ORDERS};

/// A request as an application must have read it: method, target, bytes of the body.
type Arrival = (String, String, usize);

/// The sidecar, and every application behind it with a client for its port.
struct Stage {
    _front: Front,
    acts: Vec<(Recorder, Client)>,
}

impl Stage {
    fn set() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let home = directory.path();
        let recorders = [
            Recorder::nginx(home),
            Recorder::python(home, Habit::Length),
            Recorder::python(home, Habit::Chunks),
            Recorder::python(home, Habit::Ignores),
        ];
        let ports: Vec<_> = recorders
            .iter()
            .map(|recorder| Port::http(recorder.address))
            .collect();
        let policies = [EVERYBODY, BUT_DENIED].concat();
        let front = Front::start(directory, &ports, &policies);
        let clients = ports
            .iter()
            .map(|port| front.client(port.listen))
            .collect::<Vec<_>>();
        Self {
            _front: front,
            acts: recorders.into_iter().zip(clients).collect(),
        }
    }
}

/// `METHOD TARGET LENGTH`
fn arrival(text: &str) -> Option<Arrival> {
    let mut words = text.split(' ');
    let (method, target, length) = (words.next()?, words.next()?, words.next()?);
    let length = length.parse().ok()?;
    words
        .next()
        .is_none()
        .then(|| (method.to_owned(), target.to_owned(), length))
}

fn marker() -> Arrival {
    ("GET".to_owned(), "/marker".to_owned(), 0)
}

/// What this application makes of what arrives: one that ignores bodies sees none.
fn as_read_by(recorder: &Recorder, arrivals: &[Arrival]) -> Vec<Arrival> {
    let ignores = recorder.name.contains("ignores");
    let bodiless = ["GET", "HEAD", "DELETE", "OPTIONS"];
    let length = |method: &str, length| match ignores && bodiless.contains(&method) {
        true => 0,
        false => length,
    };
    arrivals
        .iter()
        .map(|(method, target, bytes)| (method.clone(), target.clone(), length(method, *bytes)))
        .collect()
}

/// Waits for as many requests as are expected, and gives all that there are.
async fn taken(recorder: &mut Recorder, expected: usize) -> Vec<Taken> {
    let deadline = Instant::now() + PATIENCE;
    let mut all = recorder.taken();
    while all.len() < expected && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(1)).await;
        all.extend(recorder.taken());
    }
    all
}

/// What is wrong with what arrived, if something is.
fn judge(recorder: &Recorder, taken: &[Taken], arrivals: &[Arrival]) -> Option<String> {
    let read: Vec<Arrival> = taken
        .iter()
        .map(|taken| (taken.method.clone(), taken.target.clone(), taken.length))
        .collect();
    let expected = as_read_by(recorder, arrivals);
    if read != expected {
        return Some(format!("it took {read:?}, and not {expected:?}"));
    }
    // nginx does not say which fields there were.
    let identities = |taken: &Taken| {
        let named = taken
            .fields
            .iter()
            .filter(|(name, _)| name == "x-forwarded-client-cert");
        named.map(|(_, value)| value.clone()).collect::<Vec<_>>()
    };
    for taken in taken.iter().filter(|taken| !taken.fields.is_empty()) {
        if taken
            .fields
            .iter()
            .any(|(_, value)| value.contains("forged"))
        {
            return Some(format!("a forged field arrived: {taken:?}"));
        }
        let ours = |value: &String| {
            value.starts_with(&format!("By={ORDERS};"))
                && value.ends_with(&format!(";URI={CALLER}"))
        };
        if !matches!(&identities(taken)[..], [one] if ours(one)) {
            return Some(format!("the identity header is not ours alone: {taken:?}"));
        }
    }
    None
}
