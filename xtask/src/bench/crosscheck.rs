//! Does our load generator see what others see? It and two that everybody knows, wrk and h2load, ask
//! the same nginx for the same; what nginx spent on a request must not depend on who asked.
//!
//! Theirs is measured over the whole run, their start included, and is a little higher for it.

use std::fmt::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use super::machine::Patience;
use super::options::Options;
use super::page::number;
use super::process::{self, Process, on_core};
use super::rig::Rig;
use super::subject::{Spec, Subject};
use super::work::Work;
use super::{LOAD_CORE, Workshop};
use crate::prepare;

/// The test, and how the other tool is told to do the same.
const PAIRS: &[(&str, &[&str])] = &[
    ("h1_tls", &["wrk", "-t1", "-c64", "-d4"]),
    ("h2_tls", &["h2load", "-t1", "-c4", "-m16", "-D4"]),
];

pub(super) fn run(root: &Path, options: &Options) -> Result<()> {
    prepare::install(prepare::LOADERS)?;
    let workshop = Workshop::open(root, options)?;
    let spec = Spec::of("nginx").context("no row for nginx")?;
    let subject = Subject::prepare(spec, &workshop)?;
    let running = subject.start()?;
    let mut rig = Rig {
        workshop: &workshop,
        window: options.window,
        thinned: 1,
        patience: Patience::new(options.quiet, options.patience),
    };
    let mut page = String::from("\n| test | by | nginx's CPU µs per request |\n|---|---|--:|\n");
    for _ in 0..options.rounds {
        for (name, command) in PAIRS {
            let work = Work::of(name).context("no such test")?;
            let own = rig.sample(work, &subject, Some(&running))?;
            let own = own.figures.get("cpu_us").copied().context("no CPU time")?;
            let theirs = theirs(work, command, &subject, &running)?;
            writeln!(page, "| {name} | tlsload | {} |", number(own))?;
            let tool = command.first().copied().unwrap_or_default();
            writeln!(page, "| {name} | {tool} | {} |", number(theirs))?;
        }
    }
    println!("{page}");
    Ok(())
}

fn theirs(work: &Work, command: &[&str], subject: &Subject, running: &Process) -> Result<f64> {
    let (tool, arguments) = command.split_first().context("an empty command")?;
    let url = format!("https://localhost:{}/b/128", subject.port(work.port)?);
    let before = process::cpu_time(&running.pids());
    let mut command = Command::new(tool);
    command
        .args(arguments)
        .arg(url)
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    let output = on_core(LOAD_CORE, &mut command)?.wait_with_output();
    let output = output.with_context(|| format!("run {tool}"))?;
    let spent = process::cpu_time(&running.pids()).saturating_sub(before);
    subject.clear_logs()?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "{tool} failed:\n{said}");
    let done = requests(&said).with_context(|| format!("{tool} tells no requests:\n{said}"))?;
    Ok(spent.as_secs_f64() * 1e6 / done)
}

/// `  61453 requests in 4.00s, …` of wrk, `requests: 61453 total, …` of h2load.
fn requests(said: &str) -> Option<f64> {
    said.lines().find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            [count, "requests", "in", ..] | ["requests:", count, "total,", ..] => {
                count.parse().ok()
            }
            _ => None,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_of_others_is_a_test() {
        assert!(PAIRS.iter().all(|(name, _)| Work::of(name).is_some()));
    }

    #[test]
    fn both_tools_say_how_many_they_did() {
        let wrk = "Running 4s test\n  Latency  1ms\n  61453 requests in 4.00s, 18MB read\n";
        let h2load = "spawning\nrequests: 61453 total, 61517 started, 61453 done\n";
        assert_eq!(requests(wrk), Some(61_453.0));
        assert_eq!(requests(h2load), Some(61_453.0));
        assert_eq!(requests("nothing"), None);
    }
}
