//! What the release binary costs: its size, what it holds in memory when idle, and what a request
//! and a handshake cost it beside the proxies people know.
//!
//! Numbers are for the machine they were taken on and are printed with it. Everything is on
//! loopback and bounded in count and time; nothing is left running.

pub(crate) mod control;
mod idle;
mod pki;
mod process;
mod rig;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::elf::{self, Linking, Symbols};
use crate::{build, command, prepare};

/// How much time to spend.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Extent {
    /// One short round: does everything still work?
    Quick,
    Full,
}

impl Extent {
    fn rounds(self) -> usize {
        match self {
            Self::Quick => 1,
            Self::Full => 5,
        }
    }

    fn window(self) -> Duration {
        match self {
            Self::Quick => Duration::from_secs(1),
            Self::Full => Duration::from_secs(4),
        }
    }
}

/// Where things lie while the bench runs.
struct Workshop {
    root: PathBuf,
    fender: PathBuf,
    /// Emptied at the start of each run.
    work: PathBuf,
    pki: PathBuf,
}

pub(crate) fn run(root: &Path, extent: Extent) -> Result<()> {
    prepare::install(prepare::BENCH)?;
    let fender = build::for_release(root)?;
    let work = root.join("bench/work");
    if work.exists() {
        fs::remove_dir_all(&work).context("empty bench/work")?;
    }
    let pki = work.join("pki");
    fs::create_dir_all(&pki).context("make bench/work")?;
    pki::make(&pki)?;
    let workshop = Workshop {
        root: root.to_owned(),
        fender,
        work,
        pki,
    };

    println!("\n# Bench\n\n{}", machine()?);
    println!("\n## Binary\n\n{}", binary(&workshop.fender)?);
    println!("\n## Memory, idle\n\n{}", idle::report(&workshop)?);
    println!("\n## Speed\n\n{}", rig::report(&workshop, extent)?);
    Ok(())
}

/// Builds a tool of the bench, which is a crate outside the workspace.
fn build_tool(root: &Path, name: &str) -> Result<PathBuf> {
    let target = root.join("bench/target");
    let mut build = command::cargo(root, &["build", "--locked", "--release"]);
    build
        .args([
            "--manifest-path",
            &format!("bench/{name}/Cargo.toml"),
            "--target-dir",
        ])
        .arg(&target);
    build.args(["--message-format=json-render-diagnostics"]);
    let messages = command::output(&mut build)?;
    build::executable(&messages, name).with_context(|| format!("find `{name}`"))
}

fn machine() -> Result<String> {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").context("read /proc/cpuinfo")?;
    let model = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name"));
    let model = model.map_or("unknown processor", |line| {
        line.trim_start_matches(['\t', ' ', ':'])
    });
    let cores = std::thread::available_parallelism()?;
    let kernel =
        fs::read_to_string("/proc/sys/kernel/osrelease").context("read the kernel's name")?;
    Ok(format!(
        "{model}, {cores} cores, Linux {}",
        kernel.trim_end()
    ))
}

fn binary(fender: &Path) -> Result<String> {
    let bytes = fs::read(fender).with_context(|| format!("read `{}`", fender.display()))?;
    let binary = elf::read(&bytes)?;
    ensure!(
        binary.linking == Linking::Static,
        "the release binary is not static"
    );
    ensure!(
        binary.symbols == Symbols::Stripped,
        "the release binary is not stripped"
    );
    Ok(format!(
        "{:.1} MB, static, stripped",
        bytes.len() as f64 / 1e6
    ))
}
