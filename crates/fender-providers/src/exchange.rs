//! For tests: a server in memory that writes down what it is asked, answers after a moment, and as a test wants.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::http::{Answer, HttpError};

pub(crate) type Reply = Result<Answer, HttpError>;

/// As long as every answer takes.
const LATENCY: Duration = Duration::from_millis(10);

type Handler = Box<dyn FnMut(&str) -> Option<Reply> + Send>;

/// What is asked, and what is answered instead of what the server has.
#[derive(Default)]
pub(crate) struct Exchange {
    log: Mutex<Vec<String>>,
    /// The first that has an answer gives it.
    handlers: Mutex<VecDeque<Handler>>,
    inside: AtomicUsize,
    most_inside: AtomicUsize,
}

impl fmt::Debug for Exchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Exchange")
    }
}

impl Exchange {
    /// From now on, whatever `handler` answers; what it does not goes on as before.
    pub(crate) fn on(&self, handler: impl FnMut(&str) -> Option<Reply> + Send + 'static) {
        self.handlers.lock().unwrap().push_front(Box::new(handler));
    }

    /// Nothing is answered otherwise any more.
    pub(crate) fn recover(&self) {
        self.handlers.lock().unwrap().clear();
    }

    /// Something happened that is not a question.
    pub(crate) fn note(&self, what: String) {
        self.log.lock().unwrap().push(what);
    }

    /// What was asked since somebody last wanted to know.
    pub(crate) fn asked(&self) -> Vec<String> {
        std::mem::take(&mut *self.log.lock().unwrap())
    }

    /// The most questions that waited at once.
    pub(crate) fn most_at_once(&self) -> usize {
        self.most_inside.load(Ordering::Relaxed)
    }

    /// Answers a question that was noted, `otherwise` as the server does.
    pub(crate) async fn answered(
        &self,
        asked: &str,
        otherwise: impl FnOnce(&str) -> Reply,
    ) -> Reply {
        let inside = self.inside.fetch_add(1, Ordering::Relaxed) + 1;
        self.most_inside.fetch_max(inside, Ordering::Relaxed);
        tokio::time::sleep(LATENCY).await;
        self.inside.fetch_sub(1, Ordering::Relaxed);
        let mut handlers = self.handlers.lock().unwrap();
        let instead = handlers.iter_mut().find_map(|handler| handler(asked));
        instead.unwrap_or_else(|| otherwise(asked))
    }
}
