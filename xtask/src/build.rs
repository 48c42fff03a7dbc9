//! Builds, and asks cargo where the result lies instead of guessing.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::command;

/// What a build made, by cargo's own words.
pub(crate) struct Built {
    messages: String,
}

impl Built {
    /// The `fender` binary.
    pub(crate) fn fender(&self) -> Result<PathBuf> {
        executable(&self.messages, "fender")
            .context("find the `fender` binary among cargo's messages")
    }

    /// The unit tests of a library.
    pub(crate) fn unit_tests(&self, library: &str) -> Result<PathBuf> {
        artifact(&self.messages, library, "lib", true)
            .with_context(|| format!("find the unit tests of `{library}` among cargo's messages"))
    }
}

/// Builds everything the tests run, the tests included, in one pass over the dependencies.
pub(crate) fn for_tests(root: &Path) -> Result<Built> {
    build(root, &["build", "--locked", "--workspace", "--all-targets"])
}

/// As it is published.
pub(crate) fn to_publish(root: &Path) -> Result<PathBuf> {
    distributed(root, &[])
}

/// As it is published for who needs a sidecar alone. It lies beside the other, which it does not replace.
pub(crate) fn sidecar_alone(root: &Path) -> Result<PathBuf> {
    let alone = ["--no-default-features", "--target-dir", "target/alone"];
    distributed(root, &alone)
}

fn distributed(root: &Path, more: &[&str]) -> Result<PathBuf> {
    let whole = ["build", "--locked", "--profile", "dist", "-p", "fender"];
    build(root, &[&whole, more].concat())?.fender()
}

fn build(root: &Path, arguments: &[&str]) -> Result<Built> {
    println!("+ cargo {}", arguments.join(" "));
    let output = command::cargo(root, arguments)
        .arg("--message-format=json-render-diagnostics")
        .stderr(Stdio::inherit())
        .output()
        .context("start cargo")?;
    ensure!(output.status.success(), "the build failed");
    let messages = String::from_utf8(output.stdout).context("read cargo's messages")?;
    Ok(Built { messages })
}

/// The program of this name, not its unit tests, among the messages of a build.
pub(crate) fn executable(messages: &str, name: &str) -> Option<PathBuf> {
    artifact(messages, name, "bin", false)
}

fn artifact(messages: &str, name: &str, kind: &str, tests: bool) -> Option<PathBuf> {
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|message| text(message, "/target/name") == Some(name))
        .filter(|message| text(message, "/target/kind/0") == Some(kind))
        .filter(|message| message.pointer("/profile/test") == Some(&Value::Bool(tests)))
        .find_map(|message| text(&message, "/executable").map(PathBuf::from))
}

fn text<'a>(message: &'a Value, pointer: &str) -> Option<&'a str> {
    message.pointer(pointer).and_then(Value::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_is_told_from_its_unit_tests() {
        let messages = r#"
            {"reason":"compiler-artifact","target":{"name":"fender","kind":["bin"]},"profile":{"test":true},"executable":"/t/deps/fender-1"}
            {"reason":"compiler-artifact","target":{"name":"fender","kind":["bin"]},"profile":{"test":false},"executable":"/t/debug/fender"}
            {"reason":"compiler-artifact","target":{"name":"part","kind":["lib"]},"profile":{"test":false},"executable":null}
            {"reason":"compiler-artifact","target":{"name":"part","kind":["lib"]},"profile":{"test":true},"executable":"/t/deps/part-2"}
            {"reason":"build-finished","success":true}
        "#;
        assert_eq!(
            executable(messages, "fender"),
            Some(PathBuf::from("/t/debug/fender"))
        );
        assert_eq!(executable(messages, "other"), None);
        let built = Built {
            messages: messages.to_owned(),
        };
        assert_eq!(
            built.unit_tests("part").unwrap(),
            PathBuf::from("/t/deps/part-2")
        );
        assert!(built.unit_tests("fender").is_err());
    }
}
