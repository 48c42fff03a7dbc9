//! The front door of the repository: `cargo xtask <task>`.
//!
//! Every check that continuous integration runs is a task here, and nothing has to be installed to
//! call one: a task looks for the programs it needs, installs them where it may, and says the one
//! line that does where it may not. It refuses to pass what it could not run.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a tool that talks to the person at the terminal"
)]

mod bench;
mod build;
mod ci;
mod command;
mod docs;
mod elf;
mod layers;
mod prepare;
mod schema;
mod test;

use std::process::ExitCode;

use anyhow::{Result, bail};

const USAGE: &str = "\
usage: cargo xtask TASK

  ci               everything continuous integration checks, with the time of each step
  test [ARG…]      install what the tests need, then run all of them; ARG… go to `cargo test`
  layers           check that the crates' dependencies follow the map in ARCHITECTURE.md
  docs [--check]   generate docs/reference; with --check only fail if it is stale
  bench [--quick]  size and memory of the release binary, and its speed beside nginx and HAProxy
  bench control [--quick] [--store URL]
                   10,000 simulated sidecars on one control plane: memory, issuance, cost of a change
";

fn main() -> ExitCode {
    match run(std::env::args().skip(1).collect()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Vec<String>) -> Result<()> {
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let Some((task, rest)) = arguments.split_first() else {
        bail!("no task given\n\n{USAGE}");
    };
    let root = command::workspace_root()?;
    match (*task, rest) {
        ("ci", []) => ci::run(&root),
        ("test", rest) => test::run(&root, rest),
        ("layers", []) => layers::run(&root),
        ("docs", []) => docs::write(&root),
        ("docs", ["--check"]) => docs::check(&root),
        ("bench", []) => bench::run(&root, bench::Extent::Full),
        ("bench", ["--quick"]) => bench::run(&root, bench::Extent::Quick),
        ("bench", ["control"]) => bench::control::run(&root, bench::Extent::Full, None),
        ("bench", ["control", "--quick"]) => bench::control::run(&root, bench::Extent::Quick, None),
        ("bench", ["control", "--store", store]) => {
            bench::control::run(&root, bench::Extent::Full, Some(store))
        }
        ("bench", ["control", "--quick", "--store", store]) => {
            bench::control::run(&root, bench::Extent::Quick, Some(store))
        }
        _ => bail!("`{}` is not a task\n\n{USAGE}", arguments.join(" ")),
    }
}
