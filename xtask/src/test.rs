//! All tests: unit tests, doc tests, and the scenarios of `tests/`, which drive the real binary.

use std::path::Path;

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
        let mut command = command::cargo(root, &["test", "--locked", "--workspace"]);
        command::run(command.args(arguments))
    })
}
