//! Running other programs: said aloud, checked, and timed.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

/// The directory that holds the workspace's `Cargo.toml`, wherever below it the task was started.
pub(crate) fn workspace_root() -> Result<PathBuf> {
    let manifest = output(Command::new("cargo").args([
        "locate-project",
        "--workspace",
        "--message-format",
        "plain",
    ]))?;
    let manifest = Path::new(manifest.trim_end());
    let root = manifest.parent().context("find the workspace")?;
    Ok(root.to_owned())
}

pub(crate) fn cargo(root: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new("cargo");
    command.current_dir(root).args(arguments);
    command
}

/// Runs a program with the terminal as its output; anything but success is an error.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    println!("+ {}", line(command));
    let status = command
        .status()
        .with_context(|| format!("start `{}`", name(command)))?;
    ensure!(status.success(), "`{}` failed: {status}", line(command));
    Ok(())
}

/// Runs a program and returns what it printed; its errors go to the terminal.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("start `{}`", name(command)))?;
    if !output.status.success() {
        bail!("`{}` failed: {}", line(command), output.status);
    }
    String::from_utf8(output.stdout)
        .with_context(|| format!("read the output of `{}`", name(command)))
}

/// The program's file, as a shell would find it, the places of system tools included.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .chain(postgresql())
        .map(|directory| directory.join(program))
        .find(|file| file.is_file())
}

/// Where Debian keeps the server's programs: by version, off the path.
fn postgresql() -> impl Iterator<Item = PathBuf> {
    std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .map(|version| version.path().join("bin"))
}

fn name(command: &Command) -> String {
    command.get_program().to_string_lossy().into_owned()
}

fn line(command: &Command) -> String {
    let arguments = command
        .get_args()
        .map(|argument| argument.to_string_lossy());
    std::iter::once(command.get_program().to_string_lossy())
        .chain(arguments)
        .collect::<Vec<_>>()
        .join(" ")
}

/// Steps of one task, each with its time; the table is printed also when a step fails.
#[derive(Default)]
pub(crate) struct Steps {
    done: Vec<(&'static str, Duration)>,
}

impl Steps {
    pub(crate) fn step<T>(
        &mut self,
        name: &'static str,
        work: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        println!("\n== {name}");
        let started = Instant::now();
        let result = work();
        self.done.push((name, started.elapsed()));
        result.with_context(|| format!("step `{name}`"))
    }
}

impl Drop for Steps {
    fn drop(&mut self) {
        println!();
        for (name, time) in &self.done {
            println!("{:>8.1} s  {name}", time.as_secs_f64());
        }
        let total: Duration = self.done.iter().map(|(_, time)| *time).sum();
        println!("{:>8.1} s  together", total.as_secs_f64());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failing_program_is_an_error_that_names_it() {
        let error = run(&mut Command::new("false")).unwrap_err();
        assert!(error.to_string().starts_with("`false` failed"), "{error}");
    }

    #[test]
    fn a_program_that_is_not_there_is_an_error_that_names_it() {
        let error = output(&mut Command::new("no-such-program-here")).unwrap_err();
        assert_eq!(error.to_string(), "start `no-such-program-here`");
    }

    #[test]
    fn programs_are_found_by_name() {
        assert!(find("sh").is_some());
        assert!(find("no-such-program-here").is_none());
    }
}
