//! Two secrets in one place: which deliveries of several credentials go to the same file, directory, variable, name or path.

use std::collections::BTreeMap;
use std::path::Path;

use super::Credential;
use crate::ObjectName;
use crate::snapshot::Delivery;

/// Pairs of deliveries to the same place.
pub(crate) fn collisions<'a>(
    credentials: impl Iterator<Item = &'a Credential>,
) -> Vec<(&'a ObjectName, &'a ObjectName, String)> {
    let credentials: Vec<_> = credentials.collect();
    let mut first: BTreeMap<String, &ObjectName> = BTreeMap::new();
    let mut found = Vec::new();
    for credential in &credentials {
        for delivery in &credential.deliver {
            let (name, shared) = name(delivery);
            for (what, shared) in [(file(delivery), false), (name, shared)] {
                let Some(what) = what else { continue };
                match first.get(&what) {
                    Some(one) if shared && *one == &credential.name => {}
                    Some(one) => found.push((*one, &credential.name, what)),
                    None => {
                        first.insert(what, &credential.name);
                    }
                }
            }
        }
    }
    found.extend(intrusions(&credentials));
    found
}

/// Deliveries into the directory of a set, which is the set's alone.
fn intrusions<'a>(credentials: &[&'a Credential]) -> Vec<(&'a ObjectName, &'a ObjectName, String)> {
    let written: Vec<_> = credentials
        .iter()
        .flat_map(|credential| credential.deliver.iter().map(|it| (&credential.name, it)))
        .filter_map(|(name, delivery)| Some((name, path(delivery)?, is_set(delivery))))
        .collect();
    let mut found = Vec::new();
    for (at, (owner, directory, _)) in written.iter().enumerate().filter(|(_, it)| it.2) {
        for (other, (name, path, is_set)) in written.iter().enumerate() {
            // Of two sets at one place the second is the intruder.
            let alike = *is_set && path == directory && other < at;
            if other != at && !alike && path.starts_with(directory) {
                let what = format!(
                    "the directory `{}`, which is a set's alone",
                    directory.display()
                );
                let intrusion = (*owner, *name, what);
                if !found.contains(&intrusion) {
                    found.push(intrusion);
                }
            }
        }
    }
    found
}

fn is_set(delivery: &Delivery) -> bool {
    matches!(delivery, Delivery::Files(_))
}

/// The file, or the directory of a set, that a delivery writes.
fn path(delivery: &Delivery) -> Option<&Path> {
    match delivery {
        Delivery::File(file, _) => Some(&file.path),
        Delivery::Files(set) => Some(&set.directory),
        Delivery::Url(url) => Some(&url.token.path),
        Delivery::Environment { .. } | Delivery::Socket(_) => None,
    }
}

/// The file that a delivery writes.
fn file(delivery: &Delivery) -> Option<String> {
    let path = path(delivery).filter(|_| !is_set(delivery))?;
    Some(format!("the file `{}`", path.display()))
}

/// What a delivery is found by, and whether others of the same credential may be found by it, too: consumers of one share its
/// path, and have each a token of their own.
fn name(delivery: &Delivery) -> (Option<String>, bool) {
    match delivery {
        Delivery::File(..) | Delivery::Files(_) => (None, false),
        Delivery::Environment { variable } => (Some(format!("the variable `{variable}`")), false),
        Delivery::Socket(socket) => {
            let name = format!("the name `{}` at the socket", socket.name);
            (Some(name), false)
        }
        Delivery::Url(url) => {
            let path = format!("the path `{}{}`", url.form.prefix(), url.name);
            (Some(path), true)
        }
    }
}
