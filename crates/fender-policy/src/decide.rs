//! From facts to a decision, in the order of A1.

use crate::clause::Outcome;
use crate::facts::Seen;
use crate::{Action, Default, Facts, Policy, PolicyName, PolicySet, Rule};

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
    Policy {
        name: PolicyName,
        action: Action,
        rule: usize,
    },
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
    /// A DENY that matches, else an ALLOW that matches, else refusal if any ALLOW selects the
    /// workload, else the default.
    pub fn decide(&self, facts: &Facts<'_>) -> Decision {
        self.decide_seen(&Seen::of(facts))
    }

    pub(crate) fn decide_seen(&self, seen: &Seen<'_>) -> Decision {
        let (verdict, by) = self.settle(seen);
        let audits = self
            .with_action(Action::Audit)
            .filter(|policy| policy.matching_rule(seen).is_some())
            .map(|policy| policy.name.clone())
            .collect();
        Decision {
            verdict,
            by,
            audits,
        }
    }

    fn settle(&self, seen: &Seen<'_>) -> (Verdict, By) {
        if let Some(by) = self.first_match(Action::Deny, seen) {
            return (Verdict::Deny, by);
        }
        if let Some(by) = self.first_match(Action::Allow, seen) {
            return (Verdict::Allow, by);
        }
        match self.with_action(Action::Allow).count() {
            0 => (self.default.verdict(), By::Default(self.default)),
            considered => (Verdict::Deny, By::NoMatch { considered }),
        }
    }

    fn first_match(&self, action: Action, seen: &Seen<'_>) -> Option<By> {
        self.with_action(action).find_map(|policy| {
            let rule = policy.matching_rule(seen)?;
            Some(By::Policy {
                name: policy.name.clone(),
                action,
                rule,
            })
        })
    }

    pub(crate) fn with_action(&self, action: Action) -> impl Iterator<Item = &Policy> {
        self.policies
            .iter()
            .filter(move |policy| policy.action == action)
    }
}

impl Policy {
    fn matching_rule(&self, seen: &Seen<'_>) -> Option<usize> {
        self.rules
            .iter()
            .position(|rule| rule.matches(self.action, seen))
    }
}

impl Rule {
    fn matches(&self, action: Action, seen: &Seen<'_>) -> bool {
        let counts = |outcome: Outcome| outcome.counts_for(action);
        any_or_unasked(&self.from, |source| {
            source.clauses(seen).all(|(_, outcome)| counts(outcome))
        }) && any_or_unasked(&self.to, |operation| {
            operation.clauses(seen).all(|(_, outcome)| counts(outcome))
        }) && self
            .when
            .iter()
            .all(|condition| counts(condition.test(seen)))
    }
}

fn any_or_unasked<T>(alternatives: &[T], matches: impl Fn(&T) -> bool) -> bool {
    alternatives.is_empty() || alternatives.iter().any(matches)
}

impl Default {
    fn verdict(self) -> Verdict {
        match self {
            Self::Deny => Verdict::Deny,
            Self::Allow | Self::Audit => Verdict::Allow,
        }
    }
}

#[cfg(test)]
mod tests;
