//! Who may administer, and the least version, out of a `Mesh`.
//!
//! Nobody gets more than was written: a role that needs namespaces and names none holds nowhere, which is a mistake and
//! is told as one.

use std::collections::BTreeSet;
use std::time::{Duration, UNIX_EPOCH};

use rustls_pki_types::UnixTime;

use super::NAME_HELP;
use crate::administrators::{Administrator, MinimumVersion, Reach, Role};
use crate::name::check_label;
use crate::raw;
use crate::yaml::{At, Reader};

const EVERYWHERE: &str = "*";

pub(super) fn administrators(
    reader: &mut Reader<'_>,
    written: Option<&At<Vec<At<raw::Administrator>>>>,
) -> Option<Vec<Administrator>> {
    let written = written?;
    let named: Vec<Administrator> = written
        .value
        .iter()
        .filter_map(|at| administrator(reader, at))
        .collect();
    let all_right = named.len() == written.value.len();
    if all_right && named.iter().all(|admin| admin.role != Role::Security) {
        reader.warn(
            written,
            "fender::no-security",
            "no administrator has the role `security`: nobody could change this `Mesh` any more",
            "add `{ name: …, role: security }`; the way back is `fender control --documents DIR`",
        );
    }
    Some(named)
}

fn administrator(reader: &mut Reader<'_>, at: &At<raw::Administrator>) -> Option<Administrator> {
    let raw = &at.value;
    let name = reader.take(
        &raw.name,
        "fender::bad-name",
        NAME_HELP,
        check_label(&raw.name.value),
    );
    let role = reader.choose("role", &raw.role)?;
    let reach = match (role, &raw.namespaces) {
        (Role::Security, None) => Some(Reach::Everywhere),
        (Role::Security, Some(namespaces)) => {
            reader.wrong(
                namespaces,
                "fender::bad-reach",
                "`security` holds for the whole mesh, not for namespaces",
                "whoever edits the `Mesh` says who may do what everywhere; remove `namespaces`",
            );
            None
        }
        (Role::Viewer | Role::Operator, None) => {
            reader.wrong(
                at,
                "fender::missing-field",
                format!("the role `{role}` without `namespaces` could do nothing"),
                "name them, `namespaces: [ shop ]`, or all of them, `namespaces: [ \"*\" ]`",
            );
            None
        }
        (Role::Viewer | Role::Operator, Some(namespaces)) => reach(reader, role, namespaces),
    };
    name?;
    Some(Administrator {
        name: raw.name.value.clone(),
        role,
        reach: reach?,
    })
}

fn reach(reader: &mut Reader<'_>, role: Role, written: &At<Vec<At<String>>>) -> Option<Reach> {
    if written.value.is_empty() {
        reader.wrong(
            written,
            "fender::bad-reach",
            format!("the role `{role}` of no namespace could do nothing"),
            "name them, or all of them: `[ \"*\" ]`",
        );
        return None;
    }
    if let Some(all) = written.value.iter().find(|at| at.value == EVERYWHERE) {
        if written.value.len() > 1 {
            reader.wrong(
                all,
                "fender::bad-reach",
                "`*` stands alone: it is every namespace",
                "remove the others, or `*`",
            );
            return None;
        }
        return Some(Reach::Everywhere);
    }
    let names = written.value.iter().map(|at| {
        let checked = check_label(&at.value);
        reader
            .take(at, "fender::bad-name", NAME_HELP, checked)
            .map(|()| at.value.clone())
    });
    names
        .collect::<Option<BTreeSet<_>>>()
        .map(Reach::Namespaces)
}

pub(super) fn minimum_version(
    reader: &mut Reader<'_>,
    written: Option<&raw::MinimumVersion>,
) -> Option<MinimumVersion> {
    let written = written?;
    let version = reader.parse(
        &written.version,
        "fender::bad-version",
        "write it like `0.2.0`, as `fender --version` does",
    );
    let after = moment(reader, &written.after);
    Some(MinimumVersion {
        version: version?,
        after: after?,
    })
}

/// A moment in UTC.
fn moment(reader: &mut Reader<'_>, at: &At<String>) -> Option<UnixTime> {
    let since = humantime::parse_rfc3339(&at.value)
        .ok()
        .and_then(|moment| moment.duration_since(UNIX_EPOCH).ok())
        .map(|since| Duration::from_secs(since.as_secs()));
    if since.is_none() {
        reader.wrong(
            at,
            "fender::bad-time",
            format!("`{}` is not a moment", at.value),
            "write it in UTC, like `2027-01-01T00:00:00Z`",
        );
    }
    since.map(UnixTime::since_unix_epoch)
}
