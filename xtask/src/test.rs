//! All tests: unit tests, doc tests, and the scenarios of `tests/`, which drive the real binary.

use std::num::NonZero;
use std::path::Path;
use std::process::Command;
use std::{env, thread};

use anyhow::Result;

use crate::command::{self, Steps};
use crate::{build, prepare};

/// How many tests of one binary run at once.
const THREADS: &str = "RUST_TEST_THREADS";

pub(crate) fn run(root: &Path, arguments: &[&str]) -> Result<()> {
    let mut steps = Steps::default();
    steps.step("programs the tests need", || {
        prepare::install(prepare::TESTS)
    })?;
    steps.step("what the tests use from PyPI", || prepare::python(root))?;
    // The scenarios run the binary they find beside them: it must be as new as they are.
    steps.step("build", || build::for_tests(root))?;
    steps.step("test", || {
        // Whoever began this may have ignored SIGHUP, as nohup does, and every program a test starts would inherit that.
        let mut command = Command::new("env");
        command.current_dir(root).arg("--default-signal=HUP");
        command.args(["cargo", "test", "--locked", "--workspace"]);
        if env::var_os(THREADS).is_none() {
            command.env(THREADS, threads().to_string());
        }
        command::run(command.args(arguments))
    })
}

/// One more than there are processors: a scenario waits for other processes most of its time.
fn threads() -> usize {
    thread::available_parallelism().map_or(1, NonZero::get) + 1
}
