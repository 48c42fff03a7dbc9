//! The walls of the house: which of our crates may know which.
//!
//! Reads `cargo metadata` and refuses an arrow that is not in [`MAP`], a crate that is not in it,
//! and an input/output crate below a pure one. Development dependencies follow the same arrows: a
//! test that needs two siblings together is a scenario, and scenarios live in `tests/`.

use std::path::Path;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::command;

/// Each crate and those of ours that it may name. Arrows point down; siblings are not listed under
/// each other, and that is the point.
const MAP: &[(&str, &[&str])] = &[
    (
        "fender",
        &[
            "fender-agent",
            "fender-api",
            "fender-config",
            "fender-control",
            "fender-credentials",
            "fender-identity",
            "fender-manifest",
            "fender-policy",
            "fender-providers",
            "fender-proxy",
            "fender-runtime",
            "fender-tests",
            "fender-wire",
        ],
    ),
    (
        "fender-proxy",
        &[
            "fender-config",
            "fender-identity",
            "fender-policy",
            "fender-runtime",
            "fender-wire",
        ],
    ),
    (
        "fender-credentials",
        &[
            "fender-config",
            "fender-identity",
            "fender-providers",
            "fender-runtime",
        ],
    ),
    (
        "fender-control",
        &[
            "fender-api",
            "fender-config",
            "fender-identity",
            "fender-policy",
            "fender-providers",
            "fender-runtime",
            "fender-tests",
        ],
    ),
    (
        "fender-agent",
        &[
            "fender-api",
            "fender-config",
            "fender-identity",
            "fender-runtime",
        ],
    ),
    (
        "fender-providers",
        &["fender-config", "fender-identity", "fender-runtime"],
    ),
    (
        "fender-api",
        &[
            "fender-config",
            "fender-identity",
            "fender-policy",
            "fender-runtime",
        ],
    ),
    ("fender-config", &["fender-identity", "fender-policy"]),
    ("fender-policy", &["fender-identity"]),
    ("fender-identity", &[]),
    ("fender-manifest", &[]),
    ("fender-runtime", &[]),
    ("fender-wire", &[]),
    // Drives the binary from outside: it proves what a user sees, so it names no crate of ours.
    ("fender-tests", &[]),
    ("xtask", &[]),
];

/// Crates that only tests may name.
const FOR_TESTS: &[&str] = &["fender-tests"];

/// Crates that compute and do nothing else: no socket, no file, no clock, no task.
const PURE: &[&str] = &[
    "fender-config",
    "fender-identity",
    "fender-manifest",
    "fender-policy",
    "fender-wire",
];

/// What a pure crate does not depend on; a trailing `*` stands for any ending.
const IMPURE: &[&str] = &[
    "axum", "h2", "hyper*", "mio", "notify", "reqwest", "rustix", "socket2", "sqlx", "tokio*",
    "tonic*", "tower*",
];

/// Where an error may lose its type: the binary and the tools, no library.
const MAY_USE_ANYHOW: &[&str] = &["fender", "fender-tests", "xtask"];

pub(crate) fn run(root: &Path) -> Result<()> {
    let metadata = command::output(&mut command::cargo(
        root,
        &["metadata", "--format-version", "1", "--no-deps", "--locked"],
    ))?;
    let metadata = serde_json::from_str(&metadata).context("read `cargo metadata`")?;
    let packages = packages(&metadata)?;
    let problems = problems(&packages);
    if problems.is_empty() {
        println!("{} crates, every arrow points down", packages.len());
        return Ok(());
    }
    for problem in &problems {
        eprintln!("{problem}");
    }
    bail!("{} of the house's walls broken", problems.len());
}

struct Package {
    name: String,
    dependencies: Vec<Dependency>,
}

struct Dependency {
    name: String,
    kind: Kind,
    /// Lies in this repository.
    ours: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Normal,
    Build,
    Development,
}

impl Kind {
    fn words(self) -> &'static str {
        match self {
            Self::Normal => "depends",
            Self::Build => "depends (to build)",
            Self::Development => "depends (in tests)",
        }
    }
}

fn packages(metadata: &Value) -> Result<Vec<Package>> {
    array(metadata, "packages")?.iter().map(package).collect()
}

fn package(value: &Value) -> Result<Package> {
    let dependencies = array(value, "dependencies")?
        .iter()
        .map(dependency)
        .collect::<Result<_>>()?;
    Ok(Package {
        name: text(value, "name")?,
        dependencies,
    })
}

fn dependency(value: &Value) -> Result<Dependency> {
    let kind = match value.get("kind").and_then(Value::as_str) {
        None => Kind::Normal,
        Some("build") => Kind::Build,
        Some("dev") => Kind::Development,
        Some(other) => bail!("`cargo metadata` says a dependency is of kind `{other}`"),
    };
    let ours = value.get("path").is_some_and(Value::is_string);
    Ok(Dependency {
        name: text(value, "name")?,
        kind,
        ours,
    })
}

fn array<'a>(value: &'a Value, field: &str) -> Result<&'a Vec<Value>> {
    let field_value = value.get(field).and_then(Value::as_array);
    field_value.with_context(|| format!("`cargo metadata` has no list `{field}`"))
}

fn text(value: &Value, field: &str) -> Result<String> {
    let text = value.get(field).and_then(Value::as_str);
    Ok(text
        .with_context(|| format!("`cargo metadata` has no text `{field}`"))?
        .to_owned())
}

/// Every broken wall as a sentence, all of them together.
fn problems(packages: &[Package]) -> Vec<String> {
    let mut problems = Vec::new();
    for package in packages {
        let name = &package.name;
        let Some((_, allowed)) = MAP.iter().find(|(known, _)| known == name) else {
            problems.push(format!(
                "`{name}` is not on the map: add it to MAP in xtask/src/layers.rs and to \
                 ARCHITECTURE.md, and write the ADR that says why it is a crate of its own"
            ));
            continue;
        };
        for dependency in &package.dependencies {
            let verb = dependency.kind.words();
            let target = dependency.name.as_str();
            if dependency.ours {
                if !allowed.contains(&target) {
                    problems.push(format!(
                        "`{name}` {verb} on `{target}`: {}",
                        why(name, target)
                    ));
                } else if FOR_TESTS.contains(&target) && dependency.kind != Kind::Development {
                    problems.push(format!(
                        "`{name}` {verb} on `{target}`: it is for tests; make it a dev-dependency"
                    ));
                }
            } else if target == "anyhow" && !MAY_USE_ANYHOW.contains(&name.as_str()) {
                problems.push(format!(
                    "`{name}` {verb} on `anyhow`: a library's errors have types; anyhow lives in {}",
                    MAY_USE_ANYHOW.join(", ")
                ));
            } else if PURE.contains(&name.as_str())
                && dependency.kind != Kind::Development
                && IMPURE.iter().any(|pattern| matches(pattern, target))
            {
                problems.push(format!(
                    "`{name}` {verb} on `{target}`: it is pure; what does input or output lives \
                     in a crate above it"
                ));
            }
        }
    }
    problems
}

fn why(from: &str, to: &str) -> String {
    const SIBLINGS: &[&str] = &["fender-control", "fender-credentials", "fender-proxy"];
    if SIBLINGS.contains(&from) && SIBLINGS.contains(&to) {
        return "siblings never import each other; they meet in `fender`".to_owned();
    }
    let reverse = MAP
        .iter()
        .any(|(name, below)| *name == to && below.contains(&from));
    if reverse {
        return format!("the arrow points up; `{to}` is the one that may know `{from}`");
    }
    "this arrow is not on the map in xtask/src/layers.rs".to_owned()
}

fn matches(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(start) => name.starts_with(start),
        None => name == pattern,
    }
}

#[cfg(test)]
mod tests;
