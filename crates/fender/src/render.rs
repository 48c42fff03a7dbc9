//! What a person reads: status, explanations and differences as tables, and the same as JSON.
//!
//! Text is made from the JSON, so that the two never disagree.

#[cfg(feature = "administration")]
mod credentials;
#[cfg(feature = "administration")]
mod status;
#[cfg(feature = "administration")]
mod table;
mod usage;

use std::fmt::Write;
use std::time::{Duration, SystemTime};

#[cfg(feature = "administration")]
use fender_api::admin::{Applied, Difference, Objection, Trial};
use fender_api::decision::DecisionRecord;
#[cfg(feature = "administration")]
use fender_api::proto::control::v1 as proto;
use fender_policy::Verdict;
use serde_json::{Value, json};

#[cfg(feature = "administration")]
pub(crate) use credentials::{credentials_json, credentials_text};
#[cfg(feature = "administration")]
pub(crate) use status::{status_json, status_text};
pub(crate) use usage::usage_json;

/// The first second of a year with five digits, which RFC 3339 cannot tell.
const BEYOND: u64 = 253_402_300_800;

/// A moment in RFC 3339, seconds. It may be what a sidecar says: nothing is too late to be shown.
pub(crate) fn moment(unix: i64) -> String {
    match u64::try_from(unix) {
        Ok(BEYOND..) => "after the year 9999".to_owned(),
        Ok(seconds) if seconds > 0 => {
            humantime::format_rfc3339_seconds(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
                .to_string()
        }
        _ => "never".to_owned(),
    }
}

/// Much of what is shown was said by sidecars and their callers: none of it may move a cursor, begin a line or speak to
/// the terminal.
pub(crate) fn tame(value: &Value) -> Value {
    match value {
        Value::String(text) => Value::String(text.replace(char::is_control, "\u{fffd}")),
        Value::Array(values) => values.iter().map(tame).collect(),
        Value::Object(fields) => fields
            .iter()
            .map(|(name, value)| (name.replace(char::is_control, "\u{fffd}"), tame(value)))
            .collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) => value.clone(),
    }
}

/// `1 workload`, `2 workloads`.
#[cfg(feature = "administration")]
pub(crate) fn counted(number: usize, what: &str) -> String {
    match number {
        1 => format!("1 {what}"),
        _ => format!("{number} {what}s"),
    }
}

/// What became of documents, or would.
#[cfg(feature = "administration")]
pub(crate) fn applied(answer: &Applied, trial: Trial) -> String {
    let mut out = String::new();
    for difference in &answer.differences {
        out.push_str(&difference_text(difference));
    }
    for warning in &answer.warnings {
        let _ = writeln!(out, "warning: {}", one_line(warning));
    }
    for change in &answer.changes {
        let _ = writeln!(out, "{}", one_line(&change.to_string()));
    }
    let revision = answer.revision;
    let _ = match (answer.changes.is_empty(), trial) {
        // Refused before the difference was made.
        (true, Trial::InEarnest) if !answer.objections.is_empty() => Ok(()),
        (true, _) => writeln!(out, "no difference to revision {revision}"),
        (false, Trial::DryRun) => writeln!(
            out,
            "dry run: nothing was changed, revision {revision} stays"
        ),
        (false, Trial::InEarnest) => writeln!(out, "applied as revision {revision}"),
    };
    out
}

/// One document that differs, as `diff -u` shows a file.
#[cfg(feature = "administration")]
pub(crate) fn difference_text(difference: &Difference) -> String {
    let name = one_line(&format!("{} {}", difference.kind, difference.name));
    let lines = difference.text.lines().map(|line| {
        // A document may hold anything; a tab is no danger.
        let tame = line.replace(|c: char| c.is_control() && c != '\t', "\u{fffd}");
        format!("{tame}\n")
    });
    format!("--- {name}\n+++ {name}\n{}", lines.collect::<String>())
}

/// What stands against documents, and what to do about each.
#[cfg(feature = "administration")]
pub(crate) fn objections(all: &[Objection]) -> String {
    let lines = all.iter().map(|objection| {
        let help = match objection.help.as_str() {
            "" => String::new(),
            help => format!("\n    help: {}", one_line(help)),
        };
        format!("  {}{help}", one_line(&objection.message))
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[cfg(feature = "administration")]
fn one_line(text: &str) -> String {
    text.replace(char::is_control, "\u{fffd}")
}

pub(crate) fn decision_json(record: &DecisionRecord) -> Value {
    json!({
        "id": record.id.to_string(),
        "time": moment(i64::try_from(record.time.as_secs()).unwrap_or_default()),
        "workload": record.workload.to_string(),
        "verdict": match record.verdict { Verdict::Allow => "allow", Verdict::Deny => "deny" },
        "peer": record.peer.as_ref().map(ToString::to_string),
        "source_ip": record.source_ip.map(|ip| ip.to_string()),
        "remote_ip": record.remote_ip.map(|ip| ip.to_string()),
        "port": record.port,
        "http": record.http.as_ref().map(|http| json!({
            "method": http.method, "host": http.host, "path": http.path,
        })),
        "decided_by": record.decided_by,
        "nearest": record.nearest,
        "snapshot_version": record.snapshot_version,
    })
}

pub(crate) fn decision_text(decision: &Value) -> String {
    let mut out = String::new();
    let caller = match text(decision, "peer") {
        "" => "an anonymous caller",
        peer => peer,
    };
    let (source, remote) = (text(decision, "source_ip"), text(decision, "remote_ip"));
    let verdict = if text(decision, "verdict") == "allow" {
        "allowed"
    } else {
        "denied"
    };
    let _ = writeln!(
        out,
        "{verdict}     {}, by {}",
        text(decision, "time"),
        text(decision, "workload")
    );
    let _ = writeln!(
        out,
        "caller     {caller}{}",
        match (source, remote) {
            ("", _) => String::new(),
            (_, remote) if remote.is_empty() || remote == source => format!(" from {source}"),
            _ => format!(" from {remote}, behind {source}"),
        }
    );
    match decision.get("http") {
        Some(http) if http.is_object() => {
            let _ = writeln!(
                out,
                "request    {} {} (host {}) on port {}",
                text(http, "method"),
                text(http, "path"),
                text(http, "host"),
                decision["port"]
            );
        }
        _ => {
            let _ = writeln!(out, "connection on port {}", decision["port"]);
        }
    }
    let _ = writeln!(out, "decided    {}", text(decision, "decided_by"));
    for (at, line) in strings(decision, "nearest").enumerate() {
        let _ = writeln!(
            out,
            "{} {line}",
            if at == 0 { "nearest   " } else { "          " }
        );
    }
    let _ = writeln!(out, "snapshot   {}", decision["snapshot_version"]);
    out
}

#[cfg(feature = "administration")]
pub(crate) fn authority_json(authority: &proto::Authority) -> Value {
    json!({
        "subject": authority.subject,
        "serial": authority.serial,
        "holder": authority.holder,
        "standing": authority.standing,
        "signs_from": moment(authority.signs_from_unix),
        "not_after": moment(authority.not_after_unix),
    })
}

pub(crate) fn sidecar_text(status: &Value) -> String {
    let mut out = String::new();
    let ready = if status["ready"] == Value::Bool(true) {
        "ready"
    } else {
        "NOT READY"
    };
    let _ = writeln!(
        out,
        "{} {ready}, fender {}",
        status["identity"]
            .as_str()
            .unwrap_or("without an identity:"),
        text(status, "version")
    );
    if text(status, "profile") == "development" {
        out.push_str(
            "DEVELOPMENT PROFILE: certificates may live for seconds; not for production\n",
        );
    }
    if status["identity"].is_string() {
        let _ = writeln!(
            out,
            "certificate    {} until {}",
            text(status, "serial"),
            text(status, "not_after")
        );
        let _ = writeln!(
            out,
            "unrecoverable  {} {}",
            text(status, "unrecoverable"),
            match status["standalone"].as_bool() {
                Some(true) => "if the source of its certificate gives no other",
                Some(false) | None => "if the control plane stays away: then it must attest anew",
            }
        );
    }
    let _ = writeln!(out, "snapshot       {}", status["snapshot_version"]);
    let _ = writeln!(out, "control plane  {}", text(status, "link"));
    for listener in strings(status, "listeners") {
        let _ = writeln!(out, "listener       {listener}");
    }
    for certificate in array(status, "certificates") {
        let names: Vec<&str> = strings(certificate, "names").collect();
        let until = match text(certificate, "not_after") {
            "" => "the workload's own instead".to_owned(),
            end => format!("until {end}"),
        };
        let _ = writeln!(out, "shown          {} {until}", names.join(" "));
    }
    for credential in array(status, "credentials") {
        let why = text(credential, "why");
        let why = if why.is_empty() {
            String::new()
        } else {
            format!(": {why}")
        };
        let age = credential["outdated_seconds"].as_u64();
        let age = age.map(|age| {
            format!(
                " for {}",
                humantime::format_duration(Duration::from_secs(age))
            )
        });
        let age = age.unwrap_or_default();
        let _ = writeln!(
            out,
            "credential     {} {}{age}{why}",
            text(credential, "name"),
            text(credential, "state")
        );
        held(credential, &mut out);
    }
    for notification in array(status, "notifications") {
        let pending: Vec<_> = strings(notification, "pending").collect();
        let state = match (pending.as_slice(), text(notification, "problem")) {
            ([], _) => "knows all".to_owned(),
            (names, "") => format!("has still to hear of {}", names.join(", ")),
            (names, why) => format!("has still to hear of {}: {why}", names.join(", ")),
        };
        let _ = writeln!(
            out,
            "told           {} {state}",
            text(notification, "target")
        );
    }
    if !text(status, "problem").is_empty() {
        let _ = writeln!(out, "PROBLEM        {}", text(status, "problem"));
    }
    out
}

/// Which generation of a credential is held, and who took it.
fn held(credential: &Value, out: &mut String) {
    let generation = text(credential, "generation");
    if !generation.is_empty() {
        let newer = match text(credential, "newer") {
            "" => String::new(),
            newer => format!("; {newer} IS NEWER and not in every place"),
        };
        let since = text(credential, "since");
        let _ = writeln!(
            out,
            "               generation {generation} since {since}{newer}"
        );
    }
    // Who is told has lines of its own.
    let takes = |used: &&Value| matches!(text(used, "kind"), "socket" | "url");
    for used in array(credential, "uses").filter(takes) {
        let old = match used["behind"] == Value::Bool(true) {
            true => "AN OLD ONE, ",
            false => "",
        };
        let _ = writeln!(
            out,
            "               taken by {} at the {}: {old}generation {} first at {}",
            text(used, "who"),
            text(used, "kind"),
            text(used, "generation"),
            text(used, "since"),
        );
    }
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}

fn array<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    value
        .get(key)
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
}

fn strings<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a str> {
    array(value, key).filter_map(Value::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attack_a_moment_beyond_all_calendars_is_shown_and_does_not_panic() {
        assert_eq!(moment(1_800_000_000), "2027-01-15T08:00:00Z");
        for far in [253_402_300_800, i64::MAX / 1000, i64::MAX] {
            assert_eq!(moment(far), "after the year 9999");
        }
        for none in [0, -1, i64::MIN] {
            assert_eq!(moment(none), "never");
        }
    }
}
