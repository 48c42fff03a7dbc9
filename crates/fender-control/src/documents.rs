//! The documents in force, and the Snapshots made of them.
//!
//! A change is planned against what is in force (pure), recorded as one revision, and only then published; each
//! workload hears of it only if its own Snapshot changed. A Snapshot's version is the revision that last changed it, so
//! it grows across restarts and says which revision to look at.
//!
//! A change costs what it touches: documents whose text is the same are not read again, and a Snapshot that cannot have
//! changed is neither made nor compared, stored or looked up. What is left of the size of the mesh is to compare its
//! documents with those in force.

mod placed;
mod plan;
mod problem;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use fender_api::code::Code;
use fender_api::proto::control::v1 as proto;
use fender_config::snapshot::Snapshot;
use fender_config::{Change, Documents, Kind, Memory, Mesh, Source, What};
use fender_identity::{SpiffeId, TrustDomain, WorkloadName};
use fender_runtime::backoff::Backoff;
use fender_runtime::clock::SharedClock;
use prost::Message as _;
use tokio::sync::watch;

use crate::ca::sha256;
use crate::store::audit::{self, Action, Outcome};
use crate::store::revisions::{self, Applied, Digest, Told};
use crate::store::{Store, StoreError, Topic};

pub(crate) use placed::Placed;
use plan::{News, Scope, plan, read};
pub(crate) use plan::{Plan, Unread, generated_mesh, parse};
pub(crate) use problem::Problem;

/// How often a change is worked out anew because another replica was faster.
const ATTEMPTS: usize = 10;
/// What is in force.
#[derive(Debug)]
pub(crate) struct InForce {
    /// 0 before the first.
    pub(crate) revision: u64,
    pub(crate) mesh: Mesh,
    pub(crate) documents: Documents,
    pub(crate) files: Arc<[Source]>,
    pub(crate) placed: Placed,
}

/// What a change came to.
pub(crate) struct Done {
    /// The one in force now.
    pub(crate) revision: u64,
    pub(crate) changes: Vec<Change>,
    pub(crate) warnings: Vec<String>,
}

/// What became of a plan.
enum Committed {
    Revision(u64),
    /// Another replica was faster: it has to be worked out against what is in force now.
    Overtaken,
}

enum Opened {
    Done(Box<Library>, Vec<String>),
    Overtaken,
}

pub(crate) struct Library {
    store: Store,
    clock: SharedClock,
    trust_domain: TrustDomain,
    in_force: watch::Sender<Arc<InForce>>,
    published: Mutex<BTreeMap<WorkloadName, watch::Sender<Arc<Snapshot>>>>,
    /// What was read last.
    memory: Arc<Mutex<Memory>>,
    /// One change at a time.
    turn: tokio::sync::Mutex<()>,
}

/// Who changes the documents, and how that is called in the audit log.
pub(crate) struct Author {
    pub(crate) id: SpiffeId,
    pub(crate) action: Action,
    /// What else the log shall know of them.
    pub(crate) detail: String,
}

/// What stands against documents that are right in themselves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Objection {
    pub(crate) code: Code,
    pub(crate) message: String,
    pub(crate) help: String,
}

/// Whoever has to agree to a plan, asked about it as it will be made: nothing changes in between.
pub(crate) trait Review: Send + Sync {
    fn objections(
        &self,
        before: &InForce,
        plan: &Plan,
    ) -> impl Future<Output = Result<Vec<Objection>, StoreError>> + Send;
}

impl Library {
    /// Puts in force what was stored last, or `given` if that differs.
    pub(crate) async fn open(
        store: Store,
        clock: SharedClock,
        trust_domain: TrustDomain,
        given: Option<Vec<Source>>,
        author: Author,
    ) -> Result<(Self, Vec<String>), LibraryError> {
        // A replica that starts at the same moment may be faster, and then its revision is what ours differs from or not.
        for _ in 1..ATTEMPTS {
            let opened = Self::try_open(
                store.clone(),
                Arc::clone(&clock),
                trust_domain.clone(),
                given.clone(),
                &author,
            );
            match opened.await? {
                Opened::Done(library, warnings) => return Ok((*library, warnings)),
                Opened::Overtaken => {}
            }
        }
        Err(LibraryError::Store(StoreError::Damaged(
            "sequence of revisions",
        )))
    }

    async fn try_open(
        store: Store,
        clock: SharedClock,
        trust_domain: TrustDomain,
        given: Option<Vec<Source>>,
        author: &Author,
    ) -> Result<Opened, LibraryError> {
        let stored = revisions::current(&store).await?;
        let (revision, stored_files) = match stored {
            Some(stored) => (stored.number, Some(stored.files)),
            None => (0, None),
        };
        let mut memory = Memory::default();
        let before = match stored_files
            .as_deref()
            .map(|files| read(&mut memory, files))
        {
            Some(Ok(documents)) => documents,
            // Written for an older program. New ones in their place are the way out.
            Some(Err(problems)) if given.is_none() => {
                return Err(LibraryError::Stored(
                    problems.iter().map(Problem::from).collect(),
                ));
            }
            Some(Err(_)) | None => Documents::default(),
        };
        // Without either, all there is to know is the trust domain.
        let stored_files: Option<Arc<[Source]>> = stored_files.map(Into::into);
        let files = match given {
            Some(given) => given.into(),
            None => stored_files.clone().unwrap_or_default(),
        };
        let stored_files = stored_files.unwrap_or_default();
        // Nobody has been told anything by this process.
        let scope = Scope::Everybody;
        let plan = plan(
            files,
            &before,
            &stored_files,
            &trust_domain,
            scope,
            &mut memory,
        )
        .map_err(LibraryError::Refused)?;

        let told = revisions::told(&store, plan.snapshots.keys()).await?;
        let in_force = InForce {
            revision,
            mesh: plan.mesh.clone(),
            documents: before,
            files: stored_files,
            placed: Placed::default(),
        };
        let library = Self {
            store,
            clock,
            trust_domain,
            in_force: watch::Sender::new(Arc::new(in_force)),
            published: Mutex::default(),
            memory: Arc::new(Mutex::new(memory)),
            turn: tokio::sync::Mutex::default(),
        };
        let warnings = plan.warnings.clone();
        // A newer program may tell the same documents differently: that is a revision too, or versions would not grow.
        let same = plan.news == News::Nothing
            && plan.snapshots.iter().all(|(workload, snapshot)| {
                told.get(workload)
                    .is_some_and(|told| told.digest == digest(snapshot))
            });
        if same {
            library.publish(revision, plan, &told);
        } else if let Committed::Overtaken = library.commit(plan, author).await? {
            return Ok(Opened::Overtaken);
        }
        Ok(Opened::Done(Box::new(library), warnings))
    }

    pub(crate) fn in_force(&self) -> Arc<InForce> {
        Arc::clone(&self.in_force.borrow())
    }

    /// Every change of the documents, also one that no Snapshot shows.
    pub(crate) fn changes(&self) -> watch::Receiver<Arc<InForce>> {
        self.in_force.subscribe()
    }

    /// The newest Snapshot of a workload, and every later one. Ends when the workload is no longer in the documents.
    pub(crate) fn follow(&self, workload: &WorkloadName) -> Option<watch::Receiver<Arc<Snapshot>>> {
        self.published().get(workload).map(watch::Sender::subscribe)
    }

    pub(crate) fn snapshot(&self, workload: &WorkloadName) -> Option<Arc<Snapshot>> {
        self.published()
            .get(workload)
            .map(|sender| Arc::clone(&sender.borrow()))
    }

    /// What applying these files would do. Megabytes of documents take their time: not on a thread that serves.
    pub(crate) async fn plan(&self, files: Arc<[Source]>) -> Result<Plan, ApplyError> {
        let now = self.in_force();
        let (trust_domain, memory) = (self.trust_domain.clone(), Arc::clone(&self.memory));
        let planned = tokio::task::spawn_blocking(move || {
            let lock = || memory.lock().unwrap_or_else(PoisonError::into_inner);
            let mut remembered = lock().clone();
            let (documents, files_in_force) = (&now.documents, &now.files);
            let scope = Scope::Touched;
            let planned = plan(
                files,
                documents,
                files_in_force,
                &trust_domain,
                scope,
                &mut remembered,
            );
            if planned.is_ok() {
                *lock() = remembered;
            }
            planned
        });
        planned
            .await
            .map_err(|_| ApplyError::Failed)?
            .map_err(ApplyError::Problems)
    }

    /// Applies files as one revision. The same files again are no news, and no revision.
    ///
    /// Not cancel safe: dropped after the revision is recorded, it is not published until the next start.
    pub(crate) async fn apply(
        &self,
        files: Vec<Source>,
        upon: Option<u64>,
        review: &impl Review,
        author: Author,
    ) -> Result<Done, ApplyError> {
        let files: Arc<[Source]> = files.into();
        let _turn = self.turn.lock().await;
        for _ in 1..ATTEMPTS {
            self.catch_up_in_turn().await?;
            let before = self.in_force();
            check_upon(upon, before.revision)?;
            let plan = self.plan(Arc::clone(&files)).await?;
            let objections = review.objections(&before, &plan).await?;
            if !objections.is_empty() {
                return Err(ApplyError::Objections(objections));
            }
            let (changes, warnings) = (plan.changes.clone(), plan.warnings.clone());
            let committed = match plan.news {
                News::Something => self.commit(plan, &author).await?,
                News::Nothing => {
                    self.store
                        .write(audit::Append(self.entry(&plan, &author)))
                        .await?;
                    Committed::Revision(self.in_force().revision)
                }
            };
            if let Committed::Revision(revision) = committed {
                return Ok(Done {
                    revision,
                    changes,
                    warnings,
                });
            }
        }
        Err(ApplyError::Store(StoreError::Damaged(
            "sequence of revisions",
        )))
    }

    /// Puts in force what other replicas applied, as they do.
    pub(crate) async fn keep_up(&self) {
        let mut changes = self.store.reads().changes(Topic::Documents);
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(10));
        loop {
            changes.mark_unchanged();
            let caught_up = {
                let _turn = self.turn.lock().await;
                self.catch_up_in_turn().await
            };
            match caught_up {
                Ok(()) => {
                    backoff.reset();
                    if changes.changed().await.is_err() {
                        return;
                    }
                }
                Err(error) => {
                    tracing::error!(%error, "put in force what another replica applied");
                    tokio::time::sleep(backoff.next()).await;
                }
            }
        }
    }

    /// To be asked in one's turn.
    async fn catch_up_in_turn(&self) -> Result<(), ApplyError> {
        let (number, plan, told) = loop {
            let Some(stored) = revisions::newer(&self.store, self.in_force().revision).await?
            else {
                return Ok(());
            };
            let plan = self.plan(stored.files.into()).await?;
            let told = revisions::told(&self.store, plan.snapshots.keys()).await?;
            // What was told belongs to these documents only if nothing came in between.
            if revisions::newer(&self.store, stored.number)
                .await?
                .is_none()
            {
                break (stored.number, plan, told);
            }
        };
        tracing::info!(
            revision = number,
            changes = plan.changes.len(),
            "documents in force, applied to another replica"
        );
        self.publish(number, plan, &told);
        Ok(())
    }

    async fn commit(&self, plan: Plan, author: &Author) -> Result<Committed, StoreError> {
        let before = self.in_force();
        let apply = revisions::Apply {
            upon: before.revision,
            files: revisions::rewritten(&before.files, &plan.files),
            documents: plan.documents.count(),
            at: self.clock.now(),
            digests: plan
                .snapshots
                .iter()
                .map(|(name, snapshot)| (name.clone(), digest(snapshot)))
                .collect(),
            entry: self.entry(&plan, author),
            by: author.id.clone(),
        };
        match self.store.write(apply).await? {
            Applied::Revision { number, told } => {
                tracing::info!(
                    revision = number,
                    changes = plan.changes.len(),
                    "documents in force"
                );
                self.publish(number, plan, &told);
                Ok(Committed::Revision(number))
            }
            Applied::Overtaken => Ok(Committed::Overtaken),
        }
    }

    fn entry(&self, plan: &Plan, author: &Author) -> audit::Entry {
        audit::Entry {
            time: self.clock.now(),
            actor: author.id.clone(),
            action: author.action,
            subject: "documents".to_owned(),
            outcome: Outcome::Done,
            detail: format!(
                "{} files, {} changes{}",
                plan.files.len(),
                plan.changes.len(),
                author.detail
            ),
        }
    }

    fn publish(&self, revision: u64, plan: Plan, told: &BTreeMap<WorkloadName, Told>) {
        let Plan {
            documents,
            mesh,
            files,
            snapshots,
            changes,
            ..
        } = plan;
        let before = self.in_force();
        let placed = before.placed.with(&before.documents, &documents, revision);
        self.in_force.send_replace(Arc::new(InForce {
            revision,
            mesh,
            documents,
            files,
            placed,
        }));

        let mut published = self.published();
        let removed = changes
            .iter()
            .filter(|change| change.kind == Kind::Workload && change.what == What::Removed)
            .filter_map(|change| change.name.parse::<WorkloadName>().ok());
        // Dropping a sender tells its followers that the workload is gone.
        removed.for_each(|workload| drop(published.remove(&workload)));
        for (workload, mut snapshot) in snapshots {
            snapshot.version = told.get(&workload).map_or(revision, |told| told.version);
            match published.get(&workload) {
                Some(sender) if sender.borrow().version == snapshot.version => {}
                Some(sender) => drop(sender.send_replace(Arc::new(snapshot))),
                None => drop(published.insert(workload, watch::Sender::new(Arc::new(snapshot)))),
            }
        }
    }

    fn published(
        &self,
    ) -> std::sync::MutexGuard<'_, BTreeMap<WorkloadName, watch::Sender<Arc<Snapshot>>>> {
        self.published
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// Refuses a change made for another revision than the one in force.
pub(crate) fn check_upon(upon: Option<u64>, in_force: u64) -> Result<(), ApplyError> {
    match upon {
        Some(upon) if upon != in_force => Err(ApplyError::NotUpon { upon, in_force }),
        Some(_) | None => Ok(()),
    }
}

/// Over what travels, without the version.
fn digest(snapshot: &Snapshot) -> Digest {
    let message = proto::Snapshot {
        version: 0,
        ..proto::Snapshot::from(snapshot)
    };
    sha256(&message.encode_to_vec())
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum LibraryError {
    #[error("the documents are refused")]
    Refused(Vec<Problem>),
    #[error("the stored documents are refused by this version of fender")]
    Stored(Vec<Problem>),
    #[error(transparent)]
    Store(#[from] StoreError),
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum ApplyError {
    #[error("the documents are refused by this version of fender")]
    Problems(Vec<Problem>),
    /// The documents are right, and this administrator may not apply them, or not without saying so.
    #[error("there are objections to the documents")]
    Objections(Vec<Objection>),
    /// They were made for another revision.
    #[error("the documents were made for revision {upon}, and {in_force} is in force")]
    NotUpon { upon: u64, in_force: u64 },
    /// The reader of documents gave up without a word.
    #[error("the reader of documents gave up without a word")]
    Failed,
    #[error(transparent)]
    Store(#[from] StoreError),
}

#[cfg(test)]
mod tests;
