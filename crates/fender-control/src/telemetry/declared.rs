//! Every metric of a control plane: what it is, and what bounds its series.

use fender_api::code::Code;
use fender_runtime::metrics::{Label, Metric};

use super::{APPLIED, About, Answer, Asked, ISSUED};

fender_runtime::metrics! {
    /// In no order that anybody may rely on.
    pub METRICS;

    READY = Metric::gauge("fender_ready", "0 or 1", "1 while certificates can be issued and recorded");
    UNRECOVERABLE = Metric::gauge(
        "fender_unrecoverable_seconds",
        "seconds",
        "Seconds until a person must act if the control plane stays away from now on",
    );
    AUTHORITY_EXPIRY = Metric::gauge(
        "fender_control_authority_expiry_seconds",
        "seconds",
        "Seconds until a certificate authority ends; negative afterwards",
    )
    .by(&[
        Label::bounded("role", "`root` or `intermediate`"),
        Label::bounded("standing", "`published`, `signing` or `retiring`"),
        Label::bounded("serial", "of its certificate; there are as many as authorities that somebody may still be vouched for by"),
    ]);
    DEVELOPMENT = Metric::gauge(
        "fender_control_development",
        "0 or 1",
        "1 while the mesh allows certificates of seconds",
    );
    REVISION = Metric::gauge("fender_control_revision", "number", "Number of the documents in force");
    TRUST_VERSION = Metric::gauge(
        "fender_control_trust_version",
        "number",
        "Number of what sidecars are told of whom to believe",
    );
    WORKLOADS = Metric::gauge("fender_control_workloads", "workloads", "Workloads that documents describe");
    SIDECARS = Metric::gauge("fender_control_sidecars", "sidecars", "Sidecars connected to this process");
    SIDECARS_REFUSING = Metric::gauge(
        "fender_control_sidecars_refusing",
        "sidecars",
        "Sidecars connected to this process that refuse what they were sent last",
    );
    AUDIT_ENTRIES = Metric::gauge(
        "fender_control_audit_entries",
        "number",
        "Number of the newest entry of the audit log; absent while the database does not answer",
    );
    REVOCATIONS = Metric::gauge(
        "fender_control_revocations",
        "revocations",
        "Revocations in force; absent while the database does not answer",
    );
    ISSUANCES = Metric::counter(
        "fender_control_issuances",
        "requests",
        "Certificates and tokens asked for, by what was shown and what came of it: `refused` is theirs, `failed` ours",
    )
    .by(&[
        Label::these("kind", || Asked::ALL.map(Asked::as_str).to_vec()),
        Label::these("result", || ISSUED.to_vec()),
    ]);
    REFUSALS = Metric::counter(
        "fender_control_issuances_refused",
        "requests",
        "Requests for an identity that were refused or failed, by their code; a code is there after its first time",
    )
    .by(&[Label::these("reason", || Code::ALL.iter().map(|code| code.as_str()).collect())]);
    APPLIES = Metric::counter("fender_control_applies", "proposals", "Documents proposed in earnest")
        .by(&[Label::these("result", || APPLIED.to_vec())]);
    ANSWERS = Metric::counter("fender_control_answers", "answers", "What sidecars say to what they are sent").by(&[
        Label::these("of", || About::ALL.map(About::as_str).to_vec()),
        Label::these("answer", || Answer::ALL.map(Answer::as_str).to_vec()),
    ]);
    TRANSACTIONS = Metric::counter(
        "fender_control_store_transactions",
        "transactions",
        "Transactions committed; many changes share one",
    );
    TRANSACTIONS_FAILED = Metric::counter(
        "fender_control_store_transactions_failed",
        "transactions",
        "Transactions that could not be committed, whose callers were told so",
    );
    CHANGES = Metric::counter("fender_control_store_changes", "changes", "Changes in committed transactions");
    TRANSACTION_SECONDS = Metric::histogram(
        "fender_control_store_transaction_seconds",
        "seconds",
        "From taking up a batch of changes to its answer, tries included",
    );
}
