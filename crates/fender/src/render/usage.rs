//! What one process says of a credential that it holds, as JSON.

use fender_api::proto::control::v1 as proto;
use serde_json::{Value, json};

use super::moment;

/// What a sidecar says of one credential. `newest` is whether it holds the newest there is.
pub(crate) fn usage_json(used: &proto::CredentialInUse, newest: bool) -> Value {
    let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let held = &used.generation;
    let uses: Vec<_> = used.uses.iter().map(|it| use_json(it, held)).collect();
    let behind = |used: &Value| used["behind"] == Value::Bool(true);
    let old = !held.is_empty() && !newest;
    json!({
        "name": used.name,
        "state": state(used),
        "generation": some(held),
        "newer": some(&used.newer),
        "since": (used.since_unix > 0).then(|| moment(used.since_unix)),
        "why": some(&used.why),
        "files": used.files,
        "newest": newest,
        "old_in_use": old || uses.iter().any(behind),
        "uses": uses,
        "uses_untold": used.uses_untold,
    })
}

fn use_json(used: &proto::CredentialUse, held: &str) -> Value {
    let kind = match used.kind() {
        proto::CredentialUseKind::Unspecified => "unknown",
        proto::CredentialUseKind::Told => "told",
        proto::CredentialUseKind::Socket => "socket",
        proto::CredentialUseKind::Url => "url",
    };
    let another = !used.generation.is_empty() && used.generation != held;
    json!({
        "kind": kind,
        "who": used.who,
        "generation": (!used.generation.is_empty()).then(|| used.generation.clone()),
        "since": (used.at_unix > 0).then(|| moment(used.at_unix)),
        "pending": used.pending,
        "behind": used.pending || another,
    })
}

fn state(used: &proto::CredentialInUse) -> &'static str {
    match used.state() {
        proto::CredentialState::Unspecified => "unknown",
        proto::CredentialState::Waiting => "waiting",
        proto::CredentialState::Delivered => "delivered",
        proto::CredentialState::Outdated => "outdated",
        proto::CredentialState::Withdrawn => "withdrawn",
        proto::CredentialState::Failed => "failed",
    }
}
