//! The answer to *why was I denied?*, for operators. A peer never sees it (A5).

use crate::{Decision, Facts, PolicySet};

/// A decision in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    pub decision: Decision,
    /// One sentence: what decided, and by which clause.
    pub decided_by: String,
    /// The ALLOW rule that came nearest, then one sentence for each clause it missed. Empty when the request was
    /// allowed, or when no ALLOW rule exists.
    pub nearest: Vec<String>,
}

impl PolicySet {
    pub fn explain(&self, facts: &Facts<'_>) -> Explanation {
        let _ = facts;
        todo!()
    }
}
