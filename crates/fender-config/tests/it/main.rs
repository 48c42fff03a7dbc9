//! Whole documents in, Snapshots or rendered problems out.

#![expect(
    clippy::unwrap_used,
    reason = "in a test a failed unwrap is a failed test"
)]

mod attest;
mod aws;
mod certificates;
mod credentials;
mod kubernetes;
mod limits;
mod right;
mod sealed;
mod tls;
mod vault;
mod wrong;

use std::path::Path;

use fender_config::Source;
use fender_identity::WorkloadName;

fn source(name: &str, text: impl Into<String>) -> Source {
    Source {
        name: name.to_owned(),
        text: text.into(),
    }
}

fn fixture(folder: &str, name: &str) -> Source {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(folder)
        .join(name);
    source(name, std::fs::read_to_string(path).unwrap())
}

/// The names of all fixtures of a folder, in order.
fn fixtures(folder: &str) -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(folder);
    let entries = std::fs::read_dir(path).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn name(text: &str) -> WorkloadName {
    text.parse().unwrap()
}
