//! The file of a sidecar without a control plane, as it is now and as it changes.
//!
//! It is looked at twice a second, and at once when somebody asks. What it says is taken whole or not at all: what does
//! not validate, or reaches beyond what this process may touch since its start, leaves the old in force and is said once,
//! with its place in the file. Who the sidecar is does not change while it runs.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use fender_config::Source;
use fender_config::snapshot::Snapshot;
use fender_config::standalone::Standalone;
use fender_identity::Trust;
use fender_runtime::drain::Drain;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::MissedTickBehavior;

use super::Admit;
use super::standalone::{self, Following};
use crate::exit::{Exit, Failure};
use crate::load;

pub(super) const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How many may ask at once to have it read.
const WAITING: usize = 8;

/// What is in force.
pub(super) type Documents = watch::Receiver<Arc<Standalone>>;

/// Somebody waits for what came of it.
type Asked = oneshot::Sender<Result<Reloaded, String>>;

/// Has the file read again.
#[derive(Clone, Debug)]
pub(crate) struct Reloads(mpsc::Sender<Asked>);

/// What became of a file that was read again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reloaded {
    Applied,
    Unchanged,
}

impl Reloads {
    /// The error says what is wrong and where; then the old is in force.
    pub(crate) async fn ask(&self) -> Result<Reloaded, String> {
        let ending = || "the sidecar is about to end".to_owned();
        let (answer, answered) = oneshot::channel();
        self.0.send(answer).await.map_err(|_| ending())?;
        answered.await.map_err(|_| ending())?
    }
}

/// Reads the file, which must be right, and follows it until the drain stops.
pub(super) fn follow(
    file: &Path,
    admit: Admit,
    drain: &Drain,
) -> Result<(Documents, Reloads), Failure> {
    let source = load::source(file).map_err(|error| Failure::new(Exit::Usage, error))?;
    let text = source.text.clone();
    let standalone = standalone::parse(source).map_err(Failure::usage)?;
    warn(&standalone);
    let (publish, documents) = watch::channel(Arc::new(standalone));
    let (ask, asked) = mpsc::channel(WAITING);
    let follower = Follower {
        file: file.to_owned(),
        admit,
        seen: text,
        taken: Ok(()),
        complaint: None,
        publish,
    };
    let stopping = drain.clone();
    drain.spawn(async move {
        tokio::select! {
            () = stopping.stopping() => {}
            () = follower.run(asked) => {}
        }
    });
    Ok((documents, Reloads(ask)))
}

/// Follows documents that need no identity, until the drain stops.
pub(super) fn nameless(documents: Documents, drain: &Drain) -> Following {
    let first = documents.borrow().nameless_snapshot(1);
    let (snapshots, snapshot) = watch::channel(Arc::new(first));
    apply(documents, snapshots, drain);
    Following {
        svid: None,
        snapshot,
    }
}

/// Applies what changes to the snapshots, until the drain stops.
pub(super) fn apply(
    mut documents: Documents,
    snapshots: watch::Sender<Arc<Snapshot>>,
    drain: &Drain,
) {
    documents.mark_unchanged();
    let stopping = drain.clone();
    drain.spawn(async move {
        loop {
            tokio::select! {
                () = stopping.stopping() => return,
                changed = documents.changed() => if changed.is_err() { return },
            }
            documents.borrow_and_update();
            publish(&snapshots, &documents, None);
        }
    });
}

/// The next snapshot: of the newest documents, and of `trust` if that is news.
pub(super) fn publish(
    snapshots: &watch::Sender<Arc<Snapshot>>,
    documents: &Documents,
    trust: Option<Trust>,
) {
    snapshots.send_modify(|snapshot| {
        let trust = trust.unwrap_or_else(|| snapshot.trust.clone());
        let version = snapshot.version + 1;
        let documents = documents.borrow();
        let next = match &snapshot.identity {
            Some(identity) => documents.snapshot(identity, trust, version),
            None => documents.nameless_snapshot(version),
        };
        *snapshot = Arc::new(next);
    });
}

struct Follower {
    file: PathBuf,
    admit: Admit,
    /// What was read last.
    seen: String,
    /// Whether it is in force, and else why not.
    taken: Result<(), String>,
    /// What was last said to be wrong.
    complaint: Option<String>,
    publish: watch::Sender<Arc<Standalone>>,
}

impl Follower {
    async fn run(mut self, mut asked: mpsc::Receiver<Asked>) {
        let mut tick = tokio::time::interval(LOOK_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let asker = tokio::select! {
                _ = tick.tick() => None,
                asker = asked.recv() => asker,
            };
            let came_of = self.look().await;
            let complaint = came_of.as_ref().err().cloned();
            if let Some(why) = complaint.as_ref().filter(|_| complaint != self.complaint) {
                tracing::error!(
                    file = %self.file.display(),
                    "{why}\nthe configuration before stays in force"
                );
            }
            self.complaint = complaint;
            if let Some(asker) = asker {
                // Whoever asked may have left.
                let _ = asker.send(came_of);
            }
        }
    }

    async fn look(&mut self) -> Result<Reloaded, String> {
        let file = self.file.clone();
        let read = tokio::task::spawn_blocking(move || load::source(&file)).await;
        let source = read
            .map_err(|error| error.to_string())?
            .map_err(|error| format!("{error:#}"))?;
        if source.text == self.seen {
            return self.taken.clone().map(|()| Reloaded::Unchanged);
        }
        self.seen.clone_from(&source.text);
        self.taken = self.take(source);
        self.taken.clone().map(|()| Reloaded::Applied)
    }

    fn take(&self, source: Source) -> Result<(), String> {
        let standalone = standalone::parse(source)?;
        if standalone.identity != self.publish.borrow().identity {
            return Err(format!(
                "`spec.identity` in `{}` is another one: whose sidecar this is does not change while it runs; start it again",
                self.file.display()
            ));
        }
        (self.admit)(&standalone)?;
        warn(&standalone);
        tracing::info!(file = %self.file.display(), "the configuration has changed and is in force");
        self.publish.send_replace(Arc::new(standalone));
        Ok(())
    }
}

fn warn(standalone: &Standalone) {
    for warning in &standalone.warnings {
        tracing::warn!(%warning, "in the configuration");
    }
}
