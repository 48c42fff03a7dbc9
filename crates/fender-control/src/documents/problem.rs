//! What is wrong with documents, with its place.

use std::fmt;

use fender_identity::TrustDomain;

/// What the reader of documents calls it when it misses a `Mesh`.
pub(super) const NO_MESH: &str = "fender::no-mesh";

/// What is wrong with documents: as the documents' own reader says it, or seen only from here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Problem {
    /// Empty when it is about all of them.
    pub(crate) file: String,
    pub(crate) line: usize,
    pub(crate) column: usize,
    pub(crate) code: &'static str,
    pub(crate) message: String,
    pub(crate) help: Option<String>,
}

impl Problem {
    fn of_all(code: &'static str, message: String, help: &str) -> Self {
        Self {
            file: String::new(),
            line: 0,
            column: 0,
            code,
            message,
            help: Some(help.to_owned()),
        }
    }
}

impl From<&fender_config::Problem> for Problem {
    fn from(problem: &fender_config::Problem) -> Self {
        Self {
            file: problem.file.clone(),
            line: problem.line,
            column: problem.column,
            code: problem.code,
            message: problem.message.clone(),
            help: problem.help.clone(),
        }
    }
}

/// One line, with the place.
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.file.as_str(), self.line) {
            ("", _) => {}
            (file, 0) => write!(f, "{file}: ")?,
            (file, line) => write!(f, "{file}:{line}:{}: ", self.column)?,
        }
        f.write_str(&self.message)?;
        match &self.help {
            Some(help) => write!(f, " ({help})"),
            None => Ok(()),
        }
    }
}

pub(super) fn no_mesh() -> Problem {
    Problem::of_all(
        NO_MESH,
        "no `Mesh` is among the documents".to_owned(),
        "apply the whole set of documents: what is left out is removed",
    )
}

pub(super) fn other_trust_domain(written: &TrustDomain, held: &TrustDomain) -> Problem {
    Problem::of_all(
        "fender::trust-domain-changed",
        format!(
            "the `Mesh` names the trust domain `{written}`, but this control plane is of `{held}`"
        ),
        "a trust domain cannot change: every certificate carries it; use a new data directory",
    )
}
