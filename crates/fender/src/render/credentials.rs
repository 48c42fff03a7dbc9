//! `fender status credentials`: who holds which generation of which credential, and whether an old one is still in use.
//!
//! Facts come from the sidecars, by way of the control plane; what follows from them is concluded here, and nowhere else.
//!
//! Generations are names that are drawn, so they are comparable where the same process drew them: what a replica of the
//! control plane gives, among the sidecars that are connected to it. A sidecar that asks a source itself is compared with
//! itself.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use fender_api::admin::HeldCredentials;
use fender_api::proto::control::v1 as proto;
use serde_json::{Value, json};

use super::status::{Now, missing, replica_json};
use super::table::{Row, Table, wrapped};
use super::usage::usage_json;
use super::{array, counted, moment, strings, text};

/// Of a generation, in a table: it tells one from the next, and nobody types it.
const SHOWN: usize = 8;

pub(crate) fn credentials_json(told: &HeldCredentials) -> Value {
    let head = &told.head;
    let mut by_name: BTreeMap<&str, Vec<&proto::CredentialHolders>> = BTreeMap::new();
    for some in &told.holders {
        by_name.entry(&some.name).or_default().push(some);
    }
    let credentials = by_name.into_iter();
    let credentials = credentials.map(|(name, holders)| credential_json(name, &holders));
    json!({
        "now": moment(head.now_unix),
        "revision": head.revision,
        "replicas": head.replicas.iter().map(replica_json).collect::<Vec<_>>(),
        "incomplete": head.replicas.iter().any(|replica| !replica.problem.is_empty()),
        "credentials": credentials.collect::<Vec<_>>(),
    })
}

fn credential_json(name: &str, all: &[&proto::CredentialHolders]) -> Value {
    let route = all.first().map(|some| some.route()).unwrap_or_default();
    let mut rows = Vec::new();
    for some in all {
        for holder in &some.holders {
            let mut row = match &holder.reported {
                Some(used) => usage_json(used, is_newest(used, route)),
                None => {
                    let none = proto::CredentialInUse {
                        name: name.to_owned(),
                        ..Default::default()
                    };
                    usage_json(&none, false)
                }
            };
            let ended = holder.ended_unix > 0;
            let compared = !ended || is_compared(holder.reported.as_ref(), route);
            if let Value::Object(fields) = &mut row {
                fields.remove("name");
                fields.insert("reported".to_owned(), holder.reported.is_some().into());
                let ended = ended.then(|| moment(holder.ended_unix));
                fields.insert("ended".to_owned(), ended.into());
                fields.insert("compared".to_owned(), compared.into());
                if !compared {
                    for unknown in ["newest", "old_in_use"] {
                        fields.insert(unknown.to_owned(), false.into());
                    }
                }
                for (field, value) in [
                    ("workload", &some.workload),
                    ("instance", &holder.instance),
                    ("address", &holder.address),
                    ("replica", &holder.replica),
                ] {
                    fields.insert(field.to_owned(), value.as_str().into());
                }
            }
            rows.push(row);
        }
    }
    let count_of = |field: &str, wanted: bool| {
        let is = |row: &&Value| row[field] == Value::Bool(wanted);
        rows.iter().filter(is).count()
    };
    let count = |field: &str| count_of(field, true);
    json!({
        "name": name,
        "fetched_by": match route {
            proto::CredentialRoute::Unspecified => "unknown",
            proto::CredentialRoute::Direct => "sidecar",
            proto::CredentialRoute::Control => "control plane",
            proto::CredentialRoute::Environment => "command",
        },
        "workloads": all.iter().map(|some| some.workload.as_str()).collect::<std::collections::BTreeSet<_>>(),
        "instances": rows.len(),
        "hold_newest": count("newest"),
        "old_in_use": count("old_in_use"),
        "not_compared": count_of("compared", false),
        "holders": rows,
    })
}

/// By the control plane's own word, or by the sidecar's. Who does not say that it has the newest has not.
fn is_newest(used: &proto::CredentialInUse, route: proto::CredentialRoute) -> bool {
    let delivered = used.state() == proto::CredentialState::Delivered
        && used.newer.is_empty()
        && !used.generation.is_empty();
    let current = match route {
        proto::CredentialRoute::Control => used.generation == used.current,
        proto::CredentialRoute::Direct => true,
        proto::CredentialRoute::Unspecified | proto::CredentialRoute::Environment => false,
    };
    delivered && current
}

/// Whether it is known what a process that has ended would hold by now: only where the control plane asks on.
fn is_compared(used: Option<&proto::CredentialInUse>, route: proto::CredentialRoute) -> bool {
    let known = used.is_some_and(|used| !used.current.is_empty());
    known && route == proto::CredentialRoute::Control
}

/// Fits into so many columns, if that is known.
pub(crate) fn credentials_text(status: &Value, width: Option<usize>) -> String {
    let mut out = String::new();
    for replica in array(status, "replicas") {
        let problem = text(replica, "problem");
        if !problem.is_empty() {
            let name = text(replica, "name");
            let line = format!("REPLICA {name}: {}: {problem}", missing(replica));
            say(&line, width, &mut out);
        }
    }
    if array(status, "credentials").next().is_none() {
        out.push_str("no workload that you may see has such a credential\n");
        return out;
    }
    let now = Now(text(status, "now"));
    let mut table = Table::new([
        "CREDENTIAL",
        "WORKLOAD",
        "WHERE",
        "GENERATION",
        "SINCE",
        "STATE",
        "USED BY",
    ]);
    let whole = status["incomplete"] != Value::Bool(true);
    for credential in array(status, "credentials") {
        say(&summary(credential, whole), width, &mut out);
        for holder in array(credential, "holders") {
            table.push(row(credential, holder, now));
        }
    }
    out.push('\n');
    table.render(width, &mut out);
    out
}

fn say(line: &str, width: Option<usize>, out: &mut String) {
    for line in wrapped(line, width) {
        let _ = writeln!(out, "{line}");
    }
}

/// `shop/smtp: 2 of 3 instances hold the newest; 1 STILL USES AN OLD ONE`. Where not all are shown nothing is said of all.
fn summary(credential: &Value, whole: bool) -> String {
    let name = text(credential, "name");
    let number = |field: &str| credential[field].as_u64().unwrap_or_default();
    let of = strings(credential, "workloads")
        .collect::<Vec<_>>()
        .join(", ");
    let (instances, newest, old) = (
        number("instances"),
        number("hold_newest"),
        number("old_in_use"),
    );
    if text(credential, "fetched_by") == "command" {
        return format!("{name}: put into the environment of commands, of which nobody is told");
    }
    if instances == 0 && !whole {
        return format!("{name}: it is NOT KNOWN whether an instance of {of} is connected");
    }
    if instances == 0 {
        return format!("{name}: no instance of {of} is connected");
    }
    let all = counted(usize::try_from(instances).unwrap_or(usize::MAX), "instance");
    let hold = if newest == 1 { "holds" } else { "hold" };
    let old = match old {
        0 => "none is known to use an old one".to_owned(),
        1 => "1 STILL USES AN OLD ONE, or may".to_owned(),
        old => format!("{old} STILL USE AN OLD ONE, or may"),
    };
    let unknown = match number("not_compared") {
        0 => String::new(),
        1 => "; of 1 that has ended it is not known".to_owned(),
        more => format!("; of {more} that have ended it is not known"),
    };
    let missing = match whole {
        true => "",
        false => "; of instances that are not shown it is NOT KNOWN",
    };
    format!("{name}: {newest} of {all} {hold} the newest; {old}{unknown}{missing}")
}

fn row(credential: &Value, holder: &Value, now: Now<'_>) -> Row<7> {
    let dash = |text: String| match text.is_empty() {
        true => "-".to_owned(),
        false => text,
    };
    let is = |field: &str| holder[field] == Value::Bool(true);
    let generation = short(text(holder, "generation"));
    let state = match (is("reported"), text(holder, "state")) {
        (false, _) => "NOT REPORTED".to_owned(),
        (true, "delivered") if is("newest") || !is("compared") => "delivered".to_owned(),
        (true, "delivered") => "NOT THE NEWEST".to_owned(),
        (true, state) => state.to_uppercase(),
    };
    let state = match text(holder, "ended") {
        "" => state,
        // Who says that it ends is `fender init`.
        ended => format!("{state} by init, ended {}", now.at(ended)),
    };
    let row = Row::new([
        text(credential, "name").to_owned(),
        text(holder, "workload").to_owned(),
        text(holder, "address").to_owned(),
        dash(generation),
        dash(match text(holder, "since") {
            "" => String::new(),
            since => now.since(since),
        }),
        state,
        dash(used_by(holder)),
    ]);
    let mut notes = Vec::new();
    let why = text(holder, "why");
    if !why.is_empty() {
        notes.push(why.to_owned());
    }
    notes.extend(
        array(holder, "uses")
            .filter(|used| used["behind"] == Value::Bool(true))
            .map(|used| behind(used, now)),
    );
    match notes.is_empty() {
        true => row,
        false => row.noted(notes.join("; ")),
    }
}

/// `2 files, 1 of 2 told, 3 of 3 who took it`.
fn used_by(holder: &Value) -> String {
    let mut parts = Vec::new();
    let files = holder["files"].as_u64().unwrap_or_default();
    if files > 0 {
        parts.push(counted(
            usize::try_from(files).unwrap_or(usize::MAX),
            "file",
        ));
    }
    for (kinds, what) in [(&["told"][..], "told"), (&["socket", "url"], "took it")] {
        let of = || array(holder, "uses").filter(|used| kinds.contains(&text(used, "kind")));
        let all = of().count();
        let right = of()
            .filter(|used| used["behind"] == Value::Bool(false))
            .count();
        if all > 0 {
            parts.push(format!("{right} of {all} {what}"));
        }
    }
    let untold = holder["uses_untold"].as_u64().unwrap_or_default();
    if untold > 0 {
        parts.push(format!("{untold} more"));
    }
    parts.join(", ")
}

/// Somebody who has, or may have, an old one.
fn behind(used: &Value, now: Now<'_>) -> String {
    let (who, generation) = (text(used, "who"), short(text(used, "generation")));
    let ago = match text(used, "since") {
        "" => String::new(),
        since => format!(" {} ago", now.since(since)),
    };
    match (text(used, "kind"), generation.as_str()) {
        ("told", "") => format!("STILL TO BE TOLD: {who}"),
        ("told", known) => format!("STILL TO BE TOLD: {who}, which knows of {known}"),
        (kind, took) => format!("AN OLD ONE: {who} took {took} at the {kind}{ago}"),
    }
}

pub(super) fn short(generation: &str) -> String {
    generation.chars().take(SHOWN).collect()
}

#[cfg(test)]
mod tests;
