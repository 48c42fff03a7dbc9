//! Looking at revisions.

use fender_config::Source;
use fender_runtime::deadline::Deadline;

use super::{Admin, AdminError, Difference, bounded};
use crate::convert::InvalidField;
use crate::proto::control::v1 as proto;

/// With what a revision is compared.
#[derive(Clone, Debug)]
pub enum Against {
    /// The revision in force.
    InForce,
    /// Another one.
    Revision(u64),
    /// Documents that are not applied.
    Files(Vec<Source>),
}

/// What differs in the text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Comparison {
    /// The revision that was there before.
    pub from: u64,
    /// The one afterwards; none: files.
    pub to: Option<u64>,
    /// Every document that differs and may be seen.
    pub differences: Vec<Difference>,
}

impl Admin {
    /// The newest revisions before one, or at all; and the number of the one in force. Only to be shown, so they stay as
    /// they came.
    pub async fn revisions(
        &mut self,
        before: Option<u64>,
        last: usize,
        deadline: Deadline,
    ) -> Result<(Vec<proto::Revision>, u64), AdminError> {
        let mut before = before.unwrap_or(0);
        let mut all = Vec::new();
        loop {
            let missing = last.saturating_sub(all.len());
            let limit = u32::try_from(missing).unwrap_or(u32::MAX);
            let request = proto::RevisionsRequest { before, limit };
            let page = bounded(deadline, self.client.revisions(request)).await?;
            // A server that does not move on would be asked for ever.
            for revision in &page.revisions {
                if before != 0 && revision.number >= before {
                    return Err(InvalidField::new("revisions", "do not lead on").into());
                }
                before = revision.number;
            }
            let ended = page.revisions.is_empty() || before <= 1;
            all.extend(page.revisions);
            if ended || all.len() >= last {
                all.truncate(last);
                return Ok((all, page.in_force));
            }
        }
    }

    /// The documents of a revision, of the one in force if none is named. Only to be shown, so they stay as they came.
    pub async fn show_revision(
        &mut self,
        number: Option<u64>,
        deadline: Deadline,
    ) -> Result<proto::ShowRevisionResponse, AdminError> {
        let request = proto::ShowRevisionRequest {
            number: number.unwrap_or(0),
        };
        Ok(bounded(deadline, self.client.show_revision(request)).await?)
    }

    /// What differs between a revision, or the one in force, and something else.
    pub async fn compare(
        &mut self,
        from: Option<u64>,
        against: Against,
        deadline: Deadline,
    ) -> Result<Comparison, AdminError> {
        let (to, files) = match against {
            Against::InForce => (0, Vec::new()),
            Against::Revision(number) => (number, Vec::new()),
            Against::Files(files) => (0, files),
        };
        let with_files = !files.is_empty();
        let file = |file: Source| proto::SourceFile {
            name: file.name,
            text: file.text,
        };
        let request = proto::CompareRequest {
            from: from.unwrap_or(0),
            to,
            files: files.into_iter().map(file).collect(),
        };
        let answer = bounded(deadline, self.client.compare(request)).await?;
        Ok(Comparison {
            from: answer.from,
            to: (!with_files).then_some(answer.to),
            differences: answer.differences.into_iter().map(Into::into).collect(),
        })
    }
}
