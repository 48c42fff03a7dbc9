//! The generated half of the documentation: `docs/reference/`.
//!
//! It is written from the binary itself and from the code of its limits, so it says what the binary does;
//! `--check` fails when it no longer does, when a link in any page leads nowhere, or when figures are
//! not those of their results.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::{bench, build, command, schema};

mod limits;
mod links;

const DIRECTORY: &str = "docs/reference";

pub(crate) fn write(root: &Path) -> Result<()> {
    for (name, text) in generate(root)? {
        let file = root.join(DIRECTORY).join(name);
        fs::write(&file, text).with_context(|| format!("write `{}`", file.display()))?;
        println!("wrote {DIRECTORY}/{name}");
    }
    Ok(())
}

pub(crate) fn check(root: &Path) -> Result<()> {
    links::check(root)?;
    let mut stale = Vec::new();
    for (name, text) in generate(root)? {
        let there = fs::read_to_string(root.join(DIRECTORY).join(name)).unwrap_or_default();
        if let Some(line) = first_difference(&there, &text) {
            stale.push(format!("{DIRECTORY}/{name}:{line}"));
        }
    }
    if let Some(place) = bench::publish::stale(root)? {
        bail!(
            "`{place}` does not show what its results say; run `cargo xtask bench --write-docs` and \
             commit the result"
        );
    }
    if stale.is_empty() {
        println!("{DIRECTORY} is what the binary says");
        return Ok(());
    }
    bail!(
        "stale: {}; run `cargo xtask docs` and commit the result",
        stale.join(", ")
    )
}

fn generate(root: &Path) -> Result<[(&'static str, String); 5]> {
    let built = build::for_tests(root)?;
    let fender = built.fender()?;
    let schema_text = schema_text(&built)?;
    let schema: Value = serde_json::from_str(&schema_text).context("read the schema")?;
    let page = |of| command::output(Command::new(&fender).args(["reference", of])).map(ended);
    Ok([
        ("command-line.md", page("command-line")?),
        ("metrics.md", page("metrics")?),
        ("documents.md", schema::markdown(&schema)?),
        ("fender.schema.json", ended(schema_text)),
        ("limits.md", limits::markdown(root)?),
    ])
}

/// As the types of the documents say it now, which is more than the binary knows: it prints what was committed.
fn schema_text(built: &build::Built) -> Result<String> {
    let output = built.fender()?.with_file_name("fender.schema.json");
    // Nothing of an earlier run is read.
    if let Err(error) = fs::remove_file(&output)
        && error.kind() != ErrorKind::NotFound
    {
        return Err(error).with_context(|| format!("remove `{}`", output.display()));
    }
    let mut write = Command::new(built.unit_tests("fender_config")?);
    write.args(["--ignored", "--exact", "schema::write"]);
    command::output(write.env("FENDER_SCHEMA_OUTPUT", &output))?;
    fs::read_to_string(&output).context("read what the test `schema::write` of fender-config wrote")
}

/// With exactly one line end at the end, as files in a repository have.
fn ended(text: String) -> String {
    format!("{}\n", text.trim_end())
}

/// The number of the first line that differs, if one does.
fn first_difference(left: &str, right: &str) -> Option<usize> {
    if left == right {
        return None;
    }
    let same = left
        .lines()
        .zip(right.lines())
        .take_while(|(left, right)| left == right)
        .count();
    Some(same + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_file_is_reported_with_the_line_that_differs() {
        assert_eq!(first_difference("a\nb\n", "a\nb\n"), None);
        assert_eq!(first_difference("a\nb\n", "a\nc\n"), Some(2));
        assert_eq!(first_difference("", "a\n"), Some(1));
        assert_eq!(first_difference("a\n", "a"), Some(2));
    }
}
