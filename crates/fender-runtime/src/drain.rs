//! Who owns the tasks, and how they end: stop, grace, force.
//!
//! Every task of the house belongs to a [`Drain`]; a task nobody can end does not exist. Stopping
//! means *take no new work*; forcing means *end what is left*. A task that hears
//! [`Drain::forced`] has a second for its last words (a log line, a GOAWAY) and is dropped then,
//! whether it listens or not.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::deadline::Deadline;

/// What a forced task gets to say goodbye.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// A set of tasks that ends together. Clones are the same set.
#[derive(Clone)]
pub struct Drain {
    inner: Arc<Inner>,
}

struct Inner {
    retires: AtomicBool,
    hurry: CancellationToken,
    stop: CancellationToken,
    force: CancellationToken,
    tasks: TaskTracker,
    parent: Option<Drain>,
}

impl Drain {
    /// An empty set, running.
    pub fn new() -> Self {
        let [hurry, stop, force] = std::array::from_fn(|_| CancellationToken::new());
        Self::with(hurry, stop, force, None)
    }

    /// A set of its own that also stops and is forced with this one; this one is not drained before
    /// it is.
    pub fn child(&self) -> Self {
        let Inner {
            hurry, stop, force, ..
        } = &*self.inner;
        let [hurry, stop, force] = [hurry, stop, force].map(CancellationToken::child_token);
        Self::with(hurry, stop, force, Some(self.clone()))
    }

    fn with(
        hurry: CancellationToken,
        stop: CancellationToken,
        force: CancellationToken,
        parent: Option<Self>,
    ) -> Self {
        let tasks = TaskTracker::new();
        // A closed tracker still takes tasks; it only lets `drained` resolve while nothing runs.
        tasks.close();
        Self {
            inner: Arc::new(Inner {
                retires: AtomicBool::new(false),
                hurry,
                stop,
                force,
                tasks,
                parent,
            }),
        }
    }

    /// Takes no new work from now on.
    pub fn stop(&self) {
        self.inner.stop.cancel();
    }

    /// The same where somebody else takes the new work: what is idle here need not hurry.
    pub fn retire(&self) {
        self.inner.retires.store(true, Ordering::Release);
        self.stop();
    }

    /// Whether it stopped because somebody else takes the new work.
    pub fn is_retiring(&self) -> bool {
        let parent = self.inner.parent.as_ref();
        self.inner.retires.load(Ordering::Acquire) || parent.is_some_and(Self::is_retiring)
    }

    /// What is idle here must hurry after all: somebody waits for the end.
    pub fn hurry(&self) {
        self.inner.hurry.cancel();
    }

    /// Resolves once what is idle must hurry though somebody else takes the new work.
    ///
    /// Cancel safe.
    pub async fn hurried(&self) {
        self.inner.hurry.cancelled().await;
    }

    /// Ends what is left, and stops if that was not done yet.
    pub fn force(&self) {
        self.inner.stop.cancel();
        self.inner.force.cancel();
    }

    /// Whether new work is refused already.
    pub fn is_stopping(&self) -> bool {
        self.inner.stop.is_cancelled()
    }

    /// Resolves once new work is refused.
    pub async fn stopping(&self) {
        self.inner.stop.cancelled().await;
    }

    /// Resolves once what is left must end.
    pub async fn forced(&self) {
        self.inner.force.cancelled().await;
    }

    /// Runs `task` as one of this set.
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the replacement: a tracked spawn"
    )]
    pub fn spawn<F>(&self, task: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let registration = self.register();
        let force = self.inner.force.clone();
        // In a place of its own: taken as it is, it would have room twice, where it came and where it runs.
        let task = Box::pin(task);
        tokio::spawn(async move {
            let _registration = registration;
            let cut = async {
                force.cancelled().await;
                tokio::time::sleep(LAST_WORDS).await;
            };
            tokio::select! {
                biased;
                () = task => {}
                () = cut => tracing::debug!("a task had to be dropped at the end of its drain"),
            }
        });
    }

    /// Counts as a task of this set until dropped.
    pub fn register(&self) -> Registration {
        let parent = self
            .inner
            .parent
            .as_ref()
            .map(|parent| Box::new(parent.register()));
        Registration {
            _task: self.inner.tasks.token(),
            _parent: parent,
        }
    }

    /// The tracker beneath, for libraries that want to spawn by themselves.
    pub fn tasks(&self) -> &TaskTracker {
        &self.inner.tasks
    }

    /// Resolves while no task runs.
    pub async fn drained(&self) {
        self.inner.tasks.wait().await;
    }

    /// Stops, waits for what is running until `grace` passes, then forces the rest. True if nothing
    /// had to be forced.
    pub async fn close(&self, grace: Deadline) -> bool {
        self.stop();
        if grace.bound(self.drained()).await.is_ok() {
            return true;
        }
        self.force();
        // Twice the last words: tasks spawned by libraries through `tasks` cannot be dropped by us.
        let _ = Deadline::after(LAST_WORDS * 2).bound(self.drained()).await;
        false
    }
}

impl Default for Drain {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Drain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Drain")
            .field("stopping", &self.inner.stop.is_cancelled())
            .field("forced", &self.inner.force.is_cancelled())
            .field("tasks", &self.inner.tasks.len())
            .finish()
    }
}

/// Keeps a [`Drain`] from being drained.
#[derive(Debug)]
#[must_use = "dropping a registration ends it"]
pub struct Registration {
    _task: TaskTrackerToken,
    _parent: Option<Box<Registration>>,
}

#[cfg(test)]
mod tests;
