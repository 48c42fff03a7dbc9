//! Everything continuous integration checks, cheapest first.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::command::{self, Steps, cargo, run as run_command};
use crate::{docs, layers, prepare, test};

const CARGO_DENY: &str = "0.20.2";

/// Features that are built by themselves: the sidecar alone, and each of the others without what it does not bring with it.
const BUILDS: [&str; 6] = [
    "",
    "agent",
    "administration",
    "stores",
    "acme",
    "standalone",
];

pub(crate) fn run(root: &Path) -> Result<()> {
    let mut steps = Steps::default();
    steps.step("format", || {
        run_command(&mut cargo(root, &["fmt", "--all", "--check"]))
    })?;
    steps.step("layers", || layers::run(root))?;
    steps.step("dependencies", || dependencies(root))?;
    steps.step("locks of the workspaces beside", || locks(root))?;
    steps.step("programs", || prepare::install(prepare::TESTS))?;
    steps.step("lints", || {
        let arguments = [
            "clippy",
            "--locked",
            "--workspace",
            "--all-targets",
            "--",
            "-D",
            "warnings",
        ];
        run_command(&mut cargo(root, &arguments))
    })?;
    steps.step("lints of the builds that leave something out", || {
        BUILDS.iter().try_for_each(|features| {
            let build = ["clippy", "--locked", "--package", "fender"];
            let lints = ["--all-targets", "--no-default-features", "--features"];
            run_command(
                cargo(root, &build)
                    .args(lints)
                    .args([features, "--", "-D", "warnings"]),
            )
        })
    })?;
    steps.step("tests", || test::run(root, &[]))?;
    steps.step("tests of the sidecar alone", || {
        let build = ["test", "--locked", "--no-default-features"];
        let units = ["--package", "fender", "--bins"];
        run_command(cargo(root, &build).args(units))?;
        let units = ["--package", "fender-credentials", "--lib", "sources::"];
        run_command(cargo(root, &build).args(units))
    })?;
    steps.step("generated reference", || docs::check(root))?;
    steps.step("documentation of the code", || {
        let arguments = ["doc", "--locked", "--workspace", "--no-deps"];
        run_command(cargo(root, &arguments).env("RUSTDOCFLAGS", "-D warnings"))
    })
}

/// Bans, licences and sources by `deny.toml`. The advisory database lives on the network and
/// changes by itself, so it is for a scheduled job and not for a build that must repeat.
fn dependencies(root: &Path) -> Result<()> {
    let cargo_deny = cargo_deny(root)?;
    run_command(
        Command::new(cargo_deny)
            .current_dir(root)
            .args(["--locked", "check", "bans", "licenses", "sources"]),
    )
}

/// What is built by itself locks its dependencies by itself, and one that our crates gain makes that stale: found here, and
/// not by whoever runs a bench.
fn locks(root: &Path) -> Result<()> {
    for workspace in ["bench/meshload", "bench/tlsload", "fuzz"] {
        let manifest = format!("{workspace}/Cargo.toml");
        let arguments = ["metadata", "--locked", "--format-version", "1"];
        let mut metadata = cargo(root, &arguments);
        command::output(metadata.args(["--manifest-path", &manifest])).with_context(|| {
            format!("run `cargo metadata --manifest-path {manifest}` and commit its lock")
        })?;
    }
    Ok(())
}

/// The tool itself, built once into the target directory where nobody had it installed.
fn cargo_deny(root: &Path) -> Result<PathBuf> {
    if let Some(installed) = command::find("cargo-deny") {
        return Ok(installed);
    }
    let tools = root.join("target/tools");
    let built = tools.join("bin/cargo-deny");
    if !built.is_file() {
        run_command(
            cargo(
                root,
                &[
                    "install",
                    "cargo-deny",
                    "--locked",
                    "--version",
                    CARGO_DENY,
                    "--root",
                ],
            )
            .arg(&tools),
        )?;
    }
    Ok(built)
}
