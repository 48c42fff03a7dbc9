//! `fender status`: what is wrong first seen, then everything else.
//!
//! A line for each sidecar that is connected, one for each workload that documents describe. What needs somebody is
//! written in capitals, so that it can be found in ten thousand lines.

use std::fmt::Write as _;

use fender_api::proto::control::v1 as proto;
use serde_json::{Value, json};

use super::table::{Row, Table, wrapped};
use super::{array, authority_json, counted, moment, strings, text};

pub(crate) fn status_json(status: &proto::StatusResponse) -> Value {
    json!({
        "trust_domain": status.trust_domain,
        "version": status.version,
        "revision": status.revision,
        "profile": if status.development { "development" } else { "production" },
        "now": moment(status.now_unix),
        "minimum_version": (!status.minimum_version.is_empty()).then(|| json!({
            "version": status.minimum_version, "after": moment(status.minimum_version_after_unix),
        })),
        "authorities": status.authorities.iter().map(authority_json).collect::<Vec<_>>(),
        "unrecoverable_seconds": status.unrecoverable_unix.saturating_sub(status.now_unix),
        "unrecoverable": moment(status.unrecoverable_unix),
        "unrecoverable_because": status.unrecoverable_because,
        "replicas": status.replicas.iter().map(replica_json).collect::<Vec<_>>(),
        "incomplete": status.replicas.iter().any(|replica| !replica.problem.is_empty()),
        "workloads": status.workloads.iter().map(workload_json).collect::<Vec<_>>(),
    })
}

pub(super) fn replica_json(replica: &proto::ReplicaStatus) -> Value {
    json!({
        "name": replica.name,
        "url": replica.url,
        "version": replica.version,
        "started": moment(replica.started_unix),
        "seen_seconds_ago": replica.seen_seconds_ago,
        "here": replica.here,
        "problem": replica.problem,
        "untold": replica.untold,
    })
}

fn workload_json(workload: &proto::WorkloadStatus) -> Value {
    json!({
        "name": workload.name,
        "identity": workload.identity,
        "attestors": workload.attestors,
        "snapshot": workload.snapshot_version,
        "certificates_issued": workload.certificates_issued,
        "last_not_after": moment(workload.last_not_after_unix),
        "sidecars": workload.sidecars.iter().map(|sidecar| json!({
            "instance": sidecar.instance,
            "replica": sidecar.replica,
            "version": sidecar.version,
            "outdated": sidecar.outdated,
            "address": sidecar.address,
            "connected_since": moment(sidecar.connected_since_unix),
            "snapshot_sent": sidecar.snapshot_sent,
            "snapshot_acked": sidecar.snapshot_acked,
            "nack": sidecar.nack,
            "certificate_serial": sidecar.certificate_serial,
            "certificate_not_after": moment(sidecar.certificate_not_after_unix),
            "credentials": sidecar.credentials.iter().map(|credential| json!({
                "name": credential.name, "generation": credential.generation,
            })).collect::<Vec<_>>(),
        })).collect::<Vec<_>>(),
        "refused": workload.refused.iter().map(|refused| json!({
            "instance": refused.instance,
            "version": refused.version,
            "address": refused.address,
            "reason": refused.reason,
            "at": moment(refused.at_unix),
        })).collect::<Vec<_>>(),
    })
}

/// Fits into so many columns, if that is known.
pub(crate) fn status_text(status: &Value, width: Option<usize>) -> String {
    let mut out = String::new();
    if text(status, "profile") == "development" {
        out.push_str(
            "DEVELOPMENT PROFILE: certificates may live for seconds; not for production\n\n",
        );
    }
    control_plane(status, width, &mut out);
    replicas(status, width, &mut out);
    sidecars(status, width, &mut out);
    workloads(status, width, &mut out);
    out
}

fn control_plane(status: &Value, width: Option<usize>, out: &mut String) {
    let now = Now(text(status, "now"));
    let mut line = |name: &str, value: String| {
        let lines = wrapped(&value, width.map(|width| width.saturating_sub(INDENT)));
        for (at, line) in lines.iter().enumerate() {
            let name = if at == 0 { name } else { "" };
            let _ = writeln!(out, "{name:<INDENT$}{line}");
        }
    };
    line("trust domain", text(status, "trust_domain").to_owned());
    line("fender", text(status, "version").to_owned());
    line("revision", status["revision"].to_string());
    let minimum = &status["minimum_version"];
    if minimum.is_object() {
        let (least, after) = (text(minimum, "version"), text(minimum, "after"));
        let refused = match now.is_past(after) {
            true => format!("older sidecars are REFUSED since {after}"),
            false => format!("older sidecars are refused from {after} on"),
        };
        line("minimum", format!("fender {least}; {refused}"));
    }
    let until = text(status, "unrecoverable");
    line(
        "unrecoverable",
        format!(
            "{} if the control plane stays away: {} ({until})",
            now.until(until),
            text(status, "unrecoverable_because"),
        ),
    );

    let mut table = Table::new(["AUTHORITY", "HELD BY", "STANDING", "ENDS", "SERIAL"]);
    for authority in array(status, "authorities") {
        let standing = match text(authority, "standing") {
            "published" => format!("signs {}", now.until(text(authority, "signs_from"))),
            standing => standing.to_owned(),
        };
        table.push(Row::new([
            text(authority, "subject").to_owned(),
            match text(authority, "holder") {
                "" => "-".to_owned(),
                holder => holder.to_owned(),
            },
            standing,
            now.until(text(authority, "not_after")),
            text(authority, "serial").to_owned(),
        ]));
    }
    out.push('\n');
    table.render(width, out);
}

/// What is not shown of a replica with a problem.
pub(super) fn missing(replica: &Value) -> &'static str {
    match replica["untold"].as_u64() {
        Some(0) | None => "ITS SIDECARS ARE NOT SHOWN",
        Some(_) => "NOT ALL OF ITS SIDECARS ARE SHOWN",
    }
}

/// A control plane that is alone is no news. One that does not tell who is connected to it is: they are missing below.
fn replicas(status: &Value, width: Option<usize>, out: &mut String) {
    let now = Now(text(status, "now"));
    let mut table = Table::new(["REPLICA", "AT", "VERSION", "UP FOR"]);
    for replica in array(status, "replicas") {
        let row = Row::new([
            text(replica, "name").to_owned(),
            text(replica, "url").to_owned(),
            text(replica, "version").to_owned(),
            now.since(text(replica, "started")),
        ]);
        table.push(match text(replica, "problem") {
            "" => row,
            problem => row.noted(format!("{}: {problem}", missing(replica))),
        });
    }
    if array(status, "replicas").count() > 1 {
        out.push('\n');
        table.render(width, out);
    }
}

fn sidecars(status: &Value, width: Option<usize>, out: &mut String) {
    let now = Now(text(status, "now"));
    let mut table = Table::new([
        "SIDECAR OF",
        "WHERE",
        "VERSION",
        "SNAPSHOT",
        "CONNECTED",
        "CERTIFICATE ENDS",
    ]);
    let mut turned_away = 0;
    let (mut connected, mut behind, mut old, mut refusing, mut expired) = (0, 0, 0, 0, 0);
    for workload in array(status, "workloads") {
        let wanted = &workload["snapshot"];
        for sidecar in array(workload, "sidecars") {
            connected += 1;
            let running = &sidecar["snapshot_acked"];
            let snapshot = match running == wanted {
                true => running.to_string(),
                false => {
                    behind += 1;
                    format!("{running} OF {wanted}")
                }
            };
            let version = match sidecar["outdated"] == Value::Bool(true) {
                true => {
                    old += 1;
                    format!("{} OLD", text(sidecar, "version"))
                }
                false => text(sidecar, "version").to_owned(),
            };
            let ends = text(sidecar, "certificate_not_after");
            expired += usize::from(now.is_past(ends));
            let nack = text(sidecar, "nack");
            refusing += usize::from(!nack.is_empty());
            let row = Row::new([
                text(workload, "name").to_owned(),
                text(sidecar, "address").to_owned(),
                version,
                snapshot,
                now.since(text(sidecar, "connected_since")),
                now.until(ends),
            ]);
            table.push(match nack {
                "" => row,
                nack => row.noted(format!("REFUSES {}: {nack}", sidecar["snapshot_sent"])),
            });
        }
        for refused in array(workload, "refused") {
            turned_away += 1;
            let none = || "-".to_owned();
            let row = Row::new([
                text(workload, "name").to_owned(),
                text(refused, "address").to_owned(),
                text(refused, "version").to_owned(),
                none(),
                none(),
                none(),
            ]);
            let ago = now.since(text(refused, "at"));
            table.push(row.noted(format!(
                "TURNED AWAY {ago} ago: {}",
                text(refused, "reason")
            )));
        }
    }
    let mut heading = format!("{} connected", counted(connected, "sidecar"));
    for (number, what) in [
        (turned_away, "turned away"),
        (refusing, "refusing a Snapshot"),
        (behind, "on an older Snapshot"),
        (old, "older than allowed"),
        (expired, "with an expired certificate"),
    ] {
        if number > 0 {
            let _ = write!(heading, ", {number} {what}");
        }
    }
    out.push('\n');
    for line in wrapped(&heading, width) {
        let _ = writeln!(out, "{line}");
    }
    table.render(width, out);
}

fn workloads(status: &Value, width: Option<usize>, out: &mut String) {
    let now = Now(text(status, "now"));
    let mut table = Table::new([
        "WORKLOAD",
        "ATTESTED BY",
        "CONNECTED",
        "ISSUED",
        "LAST CERTIFICATE ENDS",
    ]);
    let mut known = 0;
    for workload in array(status, "workloads") {
        known += 1;
        let attestors: Vec<_> = strings(workload, "attestors").collect();
        table.push(Row::new([
            text(workload, "name").to_owned(),
            match attestors.is_empty() {
                true => "NOTHING".to_owned(),
                false => attestors.join(", "),
            },
            array(workload, "sidecars").count().to_string(),
            workload["certificates_issued"].to_string(),
            match text(workload, "last_not_after") {
                "never" => "none yet".to_owned(),
                last => now.until(last),
            },
        ]));
    }
    let _ = writeln!(out, "\n{}", counted(known, "workload"));
    table.render(width, out);
}

/// Where the values of the control plane begin.
const INDENT: usize = 15;

/// The control plane's moment, from which others are told.
#[derive(Clone, Copy)]
pub(super) struct Now<'a>(pub(super) &'a str);

impl Now<'_> {
    /// Seconds from now to a moment; none if either is none.
    fn to(self, moment: &str) -> Option<i64> {
        let seconds = |text: &str| {
            let at = humantime::parse_rfc3339(text).ok()?;
            let since = at.duration_since(std::time::SystemTime::UNIX_EPOCH).ok()?;
            i64::try_from(since.as_secs()).ok()
        };
        Some(seconds(moment)?.saturating_sub(seconds(self.0)?))
    }

    fn is_past(self, moment: &str) -> bool {
        self.to(moment).is_some_and(|seconds| seconds <= 0)
    }

    fn until(self, moment: &str) -> String {
        match self.to(moment) {
            Some(seconds) if seconds > 0 => format!("in {}", span(seconds)),
            Some(seconds) => format!("ENDED {} ago", span(seconds.saturating_neg())),
            None => moment.to_owned(),
        }
    }

    /// The time of day, if it is of today.
    pub(super) fn at(self, moment: &str) -> String {
        match (moment.split_once('T'), self.0.split_once('T')) {
            (Some((day, time)), Some((today, _))) if day == today => {
                time.trim_end_matches('Z').to_owned()
            }
            _ => moment.to_owned(),
        }
    }

    pub(super) fn since(self, moment: &str) -> String {
        match self.to(moment) {
            Some(seconds) => span(seconds.saturating_neg().max(0)),
            None => moment.to_owned(),
        }
    }
}

/// Roughly, as a person would say it.
fn span(seconds: i64) -> String {
    const MINUTE: i64 = 60;
    const HOUR: i64 = 60 * MINUTE;
    const DAY: i64 = 24 * HOUR;
    match seconds {
        ..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / MINUTE),
        7_200..172_800 => format!("{} h", seconds / HOUR),
        172_800..63_072_000 => format!("{} days", seconds / DAY),
        63_072_000.. => format!("{} years", seconds / (365 * DAY)),
    }
}

#[cfg(test)]
mod tests;
