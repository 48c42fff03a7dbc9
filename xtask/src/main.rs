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
  bench [OPTION…]  what Fender costs beside nginx, HAProxy and Envoy; kept in bench/results
    --quick        one short round: does everything still work?
    --peers all    beside Pingora, stunnel, hitch and Caddy, too
    -t TEST,… -s SUBJECT,…   only these; --list says which there are
    --fender FILE [--source TEXT]
                   measure this binary instead of building one; what it was built from
    --rounds N --seconds S   how many samples, and how long each is
    --quiet PERCENT --patience MINUTES
                   retake what others disturbed by more of a core [20], for so long in all [5]
    --priority     run before all other programs; needs root
    --name NAME    keep also what is not a whole run, under this name
    --crosscheck   compare the load generator with wrk and h2load instead
    --instructions count the instructions of Fender instead: the same on a busy machine
  bench --write-docs [FILE...]
                   put results (or those it has) into docs/guide/performance.md: the first
                   whole, of the others what became of the goals
  bench --show FILE
                   print the tables of these results
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
        ("bench", rest) => bench::run(&root, rest),
        _ => bail!("`{}` is not a task\n\n{USAGE}", arguments.join(" ")),
    }
}
