//! What tests of several modules share: a control plane that answers as they say, what is hidden in a text, and the log.

use std::collections::HashMap;
use std::io;
use std::sync::{Mutex, Once};

use fender_config::ObjectName;
use fender_providers::{Confirmed, Followed, Standing, State};
use tokio::sync::watch;

use crate::mask::{Masks, Stream};
use crate::sources::RemoteSecrets;

/// A control plane whose answers the test gives.
#[derive(Default)]
pub(crate) struct Remote(Mutex<HashMap<String, Feed>>);

struct Feed {
    states: watch::Sender<State>,
    /// That it has been asked at the beginning of time is known of each value before the value is.
    confirmed: watch::Sender<Option<Confirmed>>,
}

impl Remote {
    pub(crate) fn says(&self, name: &str, state: State) {
        self.with(name, |feed| {
            feed.confirmed
                .send_replace(state.value().map(|fetched| Confirmed {
                    generation: fetched.generation.clone(),
                    at: std::time::Duration::ZERO,
                    standing: Standing::Asked,
                }));
            feed.states.send_replace(state);
        });
    }

    /// What it has said last.
    pub(crate) fn said(&self, name: &str) -> State {
        self.with(name, |feed| feed.states.borrow().clone())
    }

    /// Nothing more is said.
    pub(crate) fn ends(&self) {
        self.0.lock().unwrap().clear();
    }

    fn with<T>(&self, name: &str, work: impl FnOnce(&Feed) -> T) -> T {
        let mut feeds = self.0.lock().unwrap();
        work(feeds.entry(name.to_owned()).or_insert_with(|| Feed {
            states: watch::channel(State::Pending).0,
            confirmed: watch::channel(None).0,
        }))
    }
}

impl RemoteSecrets for Remote {
    fn watch(&self, name: &ObjectName) -> watch::Receiver<State> {
        self.with(name.name(), |feed| feed.states.subscribe())
    }

    fn follow(&self, name: &ObjectName) -> Followed {
        self.with(name.name(), |feed| Followed {
            states: feed.states.subscribe(),
            confirmed: feed.confirmed.subscribe(),
        })
    }
}

/// What is left of a text that is passed on.
pub(crate) fn masked(masks: &Masks, text: &str) -> String {
    let (mut stream, mut out) = (Stream::new(masks.clone()), Vec::new());
    stream.pass(text.as_bytes(), &mut out);
    stream.finish(&mut out);
    String::from_utf8(out).unwrap()
}

static LOG: Mutex<Vec<u8>> = Mutex::new(Vec::new());

struct Log;

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        LOG.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// From here on the log is remembered, of all tests of this process and all their threads.
pub(crate) fn remember_log() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let lines = tracing_subscriber::fmt().with_ansi(false);
        lines.with_writer(|| Log).init();
    });
}

/// Its lines up to now that hold both: what is said, and of what, which has to be a name that no other test has.
pub(crate) fn logged(of: &str, said: &str) -> Vec<String> {
    let all = String::from_utf8(LOG.lock().unwrap().clone()).unwrap();
    let lines = all
        .lines()
        .filter(|line| line.contains(of) && line.contains(said));
    lines.map(ToOwned::to_owned).collect()
}
