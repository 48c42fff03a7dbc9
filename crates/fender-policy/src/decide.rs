//! From facts to a decision, in the order of A1.

use crate::{Action, Default, Facts, PolicyName, PolicySet};

/// What was decided, and by what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    pub verdict: Verdict,
    pub by: By,
    /// AUDIT policies that matched. They changed nothing (A4).
    pub audits: Vec<PolicyName>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    Allow,
    Deny,
}

/// What decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum By {
    /// The rule with this index, from 0.
    Policy { name: PolicyName, action: Action, rule: usize },
    /// ALLOW policies select the workload, this many, and none matched.
    NoMatch { considered: usize },
    /// No ALLOW policy selects the workload.
    Default(Default),
}

impl Decision {
    pub fn is_allowed(&self) -> bool {
        self.verdict == Verdict::Allow
    }
}

impl PolicySet {
    pub fn decide(&self, facts: &Facts<'_>) -> Decision {
        let _ = facts;
        todo!()
    }
}
