//! Who may call what: rules plus facts give a decision.
//!
//! The semantics are those of Istio's `AuthorizationPolicy`, with every case Istio leaves to luck
//! decided towards refusal: what cannot be evaluated never allows. Nothing here reads a file, a
//! clock or a socket, knows YAML, or writes a log line; the same facts and the same rules give the
//! same decision everywhere.
//!
//! [`PolicySet::decide`] is the hot path and does not allocate unless a policy matched.
//! [`PolicySet::explain`] takes its time and answers in sentences.

mod clause;
mod decide;
mod explain;
mod facts;
mod name;
mod path;
#[cfg(test)]
mod reference;
mod rule;
mod text;

pub use decide::{By, Decision, Verdict};
pub use explain::Explanation;
pub use facts::{Facts, HttpFacts};
pub use name::{InvalidPolicyName, PolicyName};
pub use path::{InvalidTemplate, PathMatch, PathTemplate};
pub use rule::{
    Action, Condition, Default, InvalidCondition, Operation, Policy, PolicySet, Rule, Source,
};
pub use text::TextMatch;
