//! What an administrator proposes, and what became of it.

use std::fmt;

use fender_config::Source;
use fender_identity::WorkloadName;

use crate::convert::InvalidField;
use crate::proto::control::v1 as proto;

/// Documents to be put in force, all of them together.
#[derive(Clone, Debug)]
pub struct Proposal {
    /// Which.
    pub what: Proposed,
    /// Whether it is meant.
    pub trial: Trial,
    /// The revision that must be in force for it to make sense.
    pub upon: Option<u64>,
    /// What is done on purpose.
    pub consents: Consents,
}

/// Where the documents come from.
#[derive(Clone, Debug)]
pub enum Proposed {
    /// These.
    Files(Vec<Source>),
    /// Those of an earlier revision.
    Revision(u64),
}

/// Whether something is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trial {
    /// It is only shown what would happen.
    DryRun,
    /// It happens.
    InEarnest,
}

/// What looks like a mistake and is none, each by its name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Consents {
    /// Administrators who lose their role.
    pub cut_off_admins: Vec<String>,
    /// Workloads that are taken away from those who run as them.
    pub delete_in_use: Vec<WorkloadName>,
}

impl From<Proposal> for proto::ApplyRequest {
    fn from(proposal: Proposal) -> Self {
        let (files, revision) = match proposal.what {
            Proposed::Files(files) => (files, 0),
            Proposed::Revision(number) => (Vec::new(), number),
        };
        let file = |file: Source| proto::SourceFile {
            name: file.name,
            text: file.text,
        };
        Self {
            files: files.into_iter().map(file).collect(),
            dry_run: proposal.trial == Trial::DryRun,
            upon: proposal.upon,
            revision,
            cut_off_admins: proposal.consents.cut_off_admins,
            delete_in_use: proposal
                .consents
                .delete_in_use
                .iter()
                .map(ToString::to_string)
                .collect(),
        }
    }
}

/// What became of a proposal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// The revision in force: the new one, unless this was a dry run, changed nothing or had problems.
    pub revision: u64,
    /// What differs.
    pub changes: Vec<Change>,
    /// Why nothing was applied.
    pub problems: Vec<Problem>,
    /// What to know all the same.
    pub warnings: Vec<String>,
    /// Why this administrator did not, or would not, get them applied.
    pub objections: Vec<Objection>,
    /// What differs in the text; only of a dry run.
    pub differences: Vec<Difference>,
}

/// What stands against documents that are right in themselves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Objection {
    /// Stays the same across versions.
    pub code: String,
    /// What would happen.
    pub message: String,
    /// What to do about it; may be empty.
    pub help: String,
}

/// One document whose text differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// `Workload`, `Upstream`, …
    pub kind: String,
    /// `namespace/name`.
    pub name: String,
    /// In the unified format, without file names.
    pub text: String,
}

impl From<proto::Difference> for Difference {
    fn from(message: proto::Difference) -> Self {
        Self {
            kind: message.kind,
            name: message.name,
            text: message.text,
        }
    }
}

/// A difference between two revisions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// `Workload`, `Upstream`, …
    pub kind: String,
    /// `namespace/name`.
    pub name: String,
    /// What happened to it.
    pub what: What,
}

/// What happens to an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// It is new.
    Added,
    /// It differs.
    Changed,
    /// It is gone.
    Removed,
}

/// `+ Workload shop/orders`
impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = match self.what {
            What::Added => '+',
            What::Changed => '~',
            What::Removed => '-',
        };
        write!(f, "{sign} {} {}", self.kind, self.name)
    }
}

/// What is wrong with a document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The file.
    pub file: String,
    /// From 1; 0 where there is none.
    pub line: u32,
    /// From 1; 0 where there is none.
    pub column: u32,
    /// Stays the same across versions.
    pub code: String,
    /// What is wrong.
    pub message: String,
    /// What to do about it; may be empty.
    pub help: String,
}

impl TryFrom<proto::ApplyResponse> for Applied {
    type Error = InvalidField;

    fn try_from(message: proto::ApplyResponse) -> Result<Self, InvalidField> {
        let problem = |problem: proto::Problem| Problem {
            file: problem.file,
            line: problem.line,
            column: problem.column,
            code: problem.code,
            message: problem.message,
            help: problem.help,
        };
        let objection = |objection: proto::Objection| Objection {
            code: objection.code,
            message: objection.message,
            help: objection.help,
        };
        Ok(Self {
            revision: message.revision,
            changes: changes(message.changes)?,
            problems: message.problems.into_iter().map(problem).collect(),
            warnings: message.warnings,
            objections: message.objections.into_iter().map(objection).collect(),
            differences: message.differences.into_iter().map(Into::into).collect(),
        })
    }
}

fn changes(messages: Vec<proto::Change>) -> Result<Vec<Change>, InvalidField> {
    use proto::change::What as Wire;
    let change = |(i, change): (usize, proto::Change)| {
        let what = match Wire::try_from(change.what) {
            Ok(Wire::Added) => What::Added,
            Ok(Wire::Changed) => What::Changed,
            Ok(Wire::Removed) => What::Removed,
            Ok(Wire::Unspecified) | Err(_) => {
                let field = format!("changes[{i}].what");
                return Err(InvalidField::new(field, "has no meaning here"));
            }
        };
        Ok(Change {
            kind: change.kind,
            name: change.name,
            what,
        })
    };
    messages.into_iter().enumerate().map(change).collect()
}

impl From<&Applied> for proto::ApplyResponse {
    fn from(applied: &Applied) -> Self {
        use proto::change::What as Wire;
        let change = |change: &Change| proto::Change {
            kind: change.kind.clone(),
            name: change.name.clone(),
            what: match change.what {
                What::Added => Wire::Added,
                What::Changed => Wire::Changed,
                What::Removed => Wire::Removed,
            }
            .into(),
        };
        let problem = |problem: &Problem| proto::Problem {
            file: problem.file.clone(),
            line: problem.line,
            column: problem.column,
            code: problem.code.clone(),
            message: problem.message.clone(),
            help: problem.help.clone(),
        };
        Self {
            revision: applied.revision,
            changes: applied.changes.iter().map(change).collect(),
            problems: applied.problems.iter().map(problem).collect(),
            warnings: applied.warnings.clone(),
            objections: applied
                .objections
                .iter()
                .map(|objection| proto::Objection {
                    code: objection.code.clone(),
                    message: objection.message.clone(),
                    help: objection.help.clone(),
                })
                .collect(),
            differences: applied
                .differences
                .iter()
                .map(|difference| proto::Difference {
                    kind: difference.kind.clone(),
                    name: difference.name.clone(),
                    text: difference.text.clone(),
                })
                .collect(),
        }
    }
}
