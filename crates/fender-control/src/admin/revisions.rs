//! Revisions as people look at them: which there are, what one says, what differs between two.
//!
//! Whoever may look at anything may see when documents were applied and by whom; of the documents themselves only those
//! of the namespaces that they have a role in.

use std::sync::Arc;

use fender_api::code::Code;
use fender_api::proto::control::v1::{
    CompareRequest, CompareResponse, Document, Revision, RevisionsRequest, RevisionsResponse,
    ShowRevisionResponse,
};
use fender_config::{Source, texts};
use tonic::Status;

use super::apply::visible;
use crate::callers::{Administrator, failed};
use crate::control::Control;
use crate::differences;
use crate::store::revisions::{self, KEPT, KEPT_DAYS, Summary};

/// Revisions on one page, at most.
const PAGE: u32 = 256;

/// How one revision is called in the audit log.
pub(super) fn subject(number: u64) -> String {
    match number {
        0 => "the revision in force".to_owned(),
        number => format!("revision {number}"),
    }
}

/// How two are.
pub(super) fn compared(request: &CompareRequest) -> String {
    let to = match request.files.is_empty() {
        true => subject(request.to),
        false => format!("{} files", request.files.len()),
    };
    format!("{} and {to}", subject(request.from))
}

impl Control {
    pub(super) async fn revisions(
        &self,
        request: RevisionsRequest,
    ) -> Result<RevisionsResponse, Status> {
        let before = match request.before {
            0 => u64::MAX,
            before => before,
        };
        let limit = match request.limit {
            0 => PAGE,
            limit => limit.min(PAGE),
        };
        let kept = revisions::before(self.store.reads(), before, limit.into())
            .await
            .map_err(failed)?;
        Ok(RevisionsResponse {
            revisions: kept.into_iter().map(summary).collect(),
            in_force: self.library.in_force().revision,
        })
    }

    pub(super) async fn show_revision(
        &self,
        number: u64,
        admin: &Administrator,
    ) -> Result<ShowRevisionResponse, Status> {
        let (number, files) = self.kept(number).await?;
        let told = revisions::before(self.store.reads(), number.saturating_add(1), 1)
            .await
            .map_err(failed)?;
        let told = told.into_iter().find(|told| told.number == number);
        let rights = admin.rights.clone();
        let documents = tokio::task::spawn_blocking(move || {
            texts(&files)
                .into_iter()
                .filter(|(name, _)| visible(name, &rights))
                .map(|(name, document)| Document {
                    kind: name.kind.clone(),
                    name: differences::full_name(&name),
                    file: document.file.to_owned(),
                    text: document.text.to_owned(),
                })
                .collect()
        });
        Ok(ShowRevisionResponse {
            // Forgotten in between: what was read is still it.
            revision: Some(told.map(summary).unwrap_or(Revision {
                number,
                ..Revision::default()
            })),
            documents: documents.await.map_err(|_| not_read())?,
        })
    }

    pub(super) async fn compare(
        &self,
        request: CompareRequest,
        admin: &Administrator,
    ) -> Result<CompareResponse, Status> {
        if request.to != 0 && !request.files.is_empty() {
            return Err(
                Code::BadRequest.status("compare with a revision or with files, not with both")
            );
        }
        let (from, before) = self.kept(request.from).await?;
        let (to, after) = match request.files.is_empty() {
            true => self.kept(request.to).await?,
            false => {
                let files = request.files.into_iter().map(|file| Source {
                    name: file.name,
                    text: file.text,
                });
                (0, files.collect::<Vec<_>>().into())
            }
        };
        let rights = admin.rights.clone();
        let differences = tokio::task::spawn_blocking(move || {
            differences::between(&before, &after, |name| visible(name, &rights))
        });
        Ok(CompareResponse {
            from,
            to,
            differences: differences.await.map_err(|_| not_read())?,
        })
    }

    /// A revision's number and documents; 0 asks for the one in force.
    async fn kept(&self, number: u64) -> Result<(u64, Arc<[Source]>), Status> {
        let in_force = self.library.in_force();
        if number == 0 || number == in_force.revision {
            return Ok((in_force.revision, Arc::clone(&in_force.files)));
        }
        Ok((number, self.files_of(number).await?.into()))
    }

    /// The documents of a revision, if they are kept.
    pub(super) async fn files_of(&self, revision: u64) -> Result<Vec<Source>, Status> {
        let files = revisions::files(&self.store, revision)
            .await
            .map_err(failed)?;
        if !files.is_empty() {
            return Ok(files);
        }
        let in_force = self.library.in_force().revision;
        Err(Code::NotFound.status(match revision {
            0 => "no documents are in force".to_owned(),
            revision if revision > in_force => {
                format!("there is no revision {revision} yet: {in_force} is in force")
            }
            revision => format!(
                "revision {revision} is no longer kept: the newest {KEPT} are, those of the last {KEPT_DAYS} days, and those \
                 that last changed what a workload is told; `fender revisions` lists them, and `fender audit-log list` says \
                 when it was applied"
            ),
        }))
    }
}

fn summary(told: Summary) -> Revision {
    Revision {
        number: told.number,
        applied_unix: told.applied_at,
        applied_by: told.applied_by,
        documents: told.documents,
    }
}

fn not_read() -> Status {
    Code::Internal.status("the control plane could not read the documents; its log says why")
}
