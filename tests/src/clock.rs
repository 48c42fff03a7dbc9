//! A wall clock that is wrong, for the programs that are started by it; the machine's own is never set.
//!
//! How it is done, and what it does not reach, stands in `clock.c`, which is compiled here, where it is used.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::process::installed;

#[derive(Debug)]
pub struct Clock {
    program: PathBuf,
    file: PathBuf,
}

impl Clock {
    /// One that is right, kept in `directory` under a name.
    pub fn right(directory: &Path, name: &str) -> Self {
        let clock = Self {
            program: directory.join("clock"),
            file: directory.join(format!("clock-{name}")),
        };
        if !clock.program.exists() {
            clock.compile();
        }
        File::create(&clock.file).expect("make a file for the clock");
        clock.set_wrong_by(0);
        clock
    }

    /// So many seconds ahead of the machine's, or behind it, from now on: also for what runs already.
    pub fn set_wrong_by(&self, seconds: i64) {
        let file = File::options().write(true).open(&self.file);
        file.and_then(|file| file.write_all_at(&seconds.to_ne_bytes(), 0))
            .expect("set the clock");
    }

    /// To be given the program's arguments. The process that is started becomes the program.
    pub fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(&self.program);
        command.arg(&self.file).arg(program);
        command
    }

    fn compile(&self) {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/clock.c");
        let output = Command::new(installed("cc"))
            .args(["-O1", "-Wall", "-Wextra", "-Werror", "-o"])
            .arg(&self.program)
            .arg(source)
            .output()
            .expect("run the compiler");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "compile clock.c:\n{said}");
    }
}
