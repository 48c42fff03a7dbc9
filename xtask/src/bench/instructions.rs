//! The instructions that Fender executes for one unit of work, counted by callgrind: nearly the same
//! on a busy machine as on a quiet one, and so the figure that shows a small regression.
//!
//! Each test is done twice, the second time with twice as many units: what start-up, the first
//! connection and the end cost is in both, and the difference is the units' own. Instructions are
//! not time: they say nothing of waiting, of the kernel or of caches.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};

use super::net::is_listening;
use super::options::Options;
use super::page::number;
use super::process::{Process, on_core};
use super::rig::show_certificate;
use super::subject::{Spec, Subject};
use super::work::Work;
use super::{LOAD_CORE, SUBJECT_CORE, Workshop};
use crate::prepare;

/// What is counted, with how many units, and what the load generator is told besides: one connection
/// at a time, so that nothing depends on who comes first.
const COUNTED: &[(&str, u64, &[&str])] = &[
    ("h1_mtls", 1000, &["--conns", "1"]),
    ("h1_16k", 500, &["--conns", "1"]),
    ("h1_1m", 20, &["--conns", "1"]),
    ("h2_mtls", 1000, &["--conns", "1", "--streams", "1"]),
    ("orig", 1000, &["--conns", "1"]),
    ("hs_tls", 100, &["--conns", "1"]),
    ("hs_mtls", 100, &["--conns", "1"]),
    ("hs_resume", 100, &["--conns", "1"]),
    ("hs_request", 100, &["--conns", "1"]),
];

/// A program under callgrind takes fifty times as long, and more beside others.
const PATIENCE: Duration = Duration::from_secs(180);

/// The last counts that were kept.
const KEPT: &str = "bench/results/instructions.json";

/// Thousands of instructions for one unit of each test.
#[derive(Default, Serialize, Deserialize)]
#[serde(transparent)]
struct Counts(BTreeMap<String, f64>);

pub(super) fn run(root: &Path, options: &Options) -> Result<()> {
    prepare::install(prepare::VALGRIND)?;
    let workshop = Workshop::open(root, options)?;
    let spec = Spec::of("fender").context("no row for Fender")?;
    let subject = Subject::prepare(spec, &workshop)?;
    let mut counts = Counts::default();
    for (name, units, arguments) in COUNTED {
        let Some(work) = options.works.iter().find(|work| work.name == *name) else {
            continue;
        };
        eprintln!("{name}");
        let once = count(&workshop, &subject, work, *units, arguments)?;
        let twice = count(&workshop, &subject, work, 2 * units, arguments)?;
        let each = twice.saturating_sub(once) as f64 / *units as f64;
        counts
            .0
            .insert((*name).to_owned(), (each / 10.0).round() / 100.0);
    }
    let kept = root.join(KEPT);
    let before = if kept.is_file() {
        Counts::read(&kept)?
    } else {
        Counts::default()
    };
    println!("{}", page(&counts, &before)?);
    if let Some(name) = &options.name {
        counts.write(&kept)?;
        println!("Kept as `{KEPT}` ({name}).");
    }
    Ok(())
}

impl Counts {
    fn read(file: &Path) -> Result<Self> {
        let text =
            fs::read_to_string(file).with_context(|| format!("read `{}`", file.display()))?;
        serde_json::from_str(&text).with_context(|| format!("`{}` holds no counts", file.display()))
    }

    fn write(&self, file: &Path) -> Result<()> {
        let directory = file.parent().context("a file lies in a directory")?;
        fs::create_dir_all(directory).context("make bench/results")?;
        let text = serde_json::to_string_pretty(self).context("write counts as JSON")?;
        fs::write(file, format!("{text}\n")).with_context(|| format!("write `{}`", file.display()))
    }
}

/// All instructions of a sidecar that starts, does so many units and ends.
fn count(
    workshop: &Workshop,
    subject: &Subject,
    work: &Work,
    units: u64,
    arguments: &[&str],
) -> Result<u64> {
    subject.clear_logs()?;
    let own = subject.command();
    let report = subject.directory.join("callgrind.log");
    let mut command = Command::new("valgrind");
    command
        .current_dir(&subject.directory)
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(format!("--log-file={}", report.display()))
        .arg(own.get_program())
        .args(own.get_args());
    let mut running = Process::start(SUBJECT_CORE, command, &subject.log())?;
    let port = subject.port(work.port)?;
    running.wait_for(PATIENCE, "listener", || is_listening(port))?;

    let mut load = Command::new(&workshop.tlsload);
    load.args([work.mode, "--addr", &format!("127.0.0.1:{port}")]);
    if work.with_certificate() {
        show_certificate(&mut load, &workshop.pki, "client");
    }
    load.args(work.arguments)
        .args(arguments)
        .args(["--count", &units.to_string()]);
    load.stdout(std::process::Stdio::null());
    let status = on_core(LOAD_CORE, &mut load)?.wait()?;
    ensure!(status.success(), "the load generator failed: {status}");

    end(&mut running)?;
    collected(&fs::read_to_string(&report).context("read what callgrind says")?)
}

/// Asks it to end and waits: callgrind reports when the program has.
fn end(running: &mut Process) -> Result<()> {
    let pid = i32::try_from(running.child().id())
        .ok()
        .and_then(Pid::from_raw);
    kill_process(pid.context("a process id")?, Signal::TERM).context("end the sidecar")?;
    let limit = Instant::now() + PATIENCE;
    while running.child().try_wait()?.is_none() {
        ensure!(
            Instant::now() < limit,
            "the sidecar under callgrind does not end"
        );
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// `==7== Collected : 123456`
fn collected(report: &str) -> Result<u64> {
    let line = report
        .lines()
        .rev()
        .find_map(|line| line.split_once("Collected :"));
    let Some((_, number)) = line else {
        bail!("callgrind reports no instructions:\n{report}")
    };
    let first = number.split_whitespace().next().unwrap_or_default();
    first.parse().context("read the number of instructions")
}

fn page(counts: &Counts, before: &Counts) -> Result<String> {
    let mut page = String::from(
        "\n# Instructions\n\n| test | thousands for each unit | kept | change |\n|---|--:|--:|--:|\n",
    );
    for (name, count) in &counts.0 {
        let kept = before.0.get(name);
        let change = kept.map_or("–".to_owned(), |kept| {
            format!("{:+.1} %", 100.0 * (count / kept - 1.0))
        });
        let kept = kept.map_or("–".to_owned(), |kept| number(*kept));
        writeln!(page, "| {name} | {} | {kept} | {change} |", number(*count))?;
    }
    Ok(page)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_is_a_test() {
        for (name, units, _) in COUNTED {
            assert!(Work::of(name).is_some() && *units > 0, "{name}");
        }
    }

    #[test]
    fn the_count_is_read_from_the_end_of_the_report() {
        let report =
            "==7== Events    : Ir\n==7== Collected : 11\n==7== \n==7== Collected : 123456 \n";
        assert_eq!(collected(report).unwrap(), 123_456);
        assert!(collected("==7== Events : Ir\n").is_err());
    }

    #[test]
    fn a_change_is_told_beside_what_was_kept() {
        let counts = |value| Counts(BTreeMap::from([("h1_mtls".to_owned(), value)]));
        let page = page(&counts(110.0), &counts(100.0)).unwrap();
        assert!(page.contains("| h1_mtls | 110 | 100 | +10.0 % |"), "{page}");
    }
}
