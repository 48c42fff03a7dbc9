//! All tests: unit tests, doc tests, and the scenarios of `tests/`, which drive the real binary.

use std::path::Path;
use std::process::Command;

use anyhow::Result;

use crate::command::{self, Steps};
use crate::{build, prepare};

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
        command::run(command.args(arguments))
    })
}
