//! What a run was taken on, and how quiet it was there.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use super::process::seconds_of_ticks;

/// What figures depend on and what may be published: never the name of a host.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Machine {
    pub(super) processor: String,
    pub(super) cores: usize,
    pub(super) memory_gb: u64,
    /// The version of Linux, without what a distribution or a cloud adds to it.
    pub(super) kernel: String,
}

impl Machine {
    pub(super) fn this() -> Result<Self> {
        let cpuinfo = read("/proc/cpuinfo")?;
        let processor = after(&cpuinfo, "model name").unwrap_or("unknown processor");
        let memory = read("/proc/meminfo")?;
        let kilobytes = after(&memory, "MemTotal").and_then(|size| size.strip_suffix(" kB"));
        let kilobytes: u64 = kilobytes
            .context("no MemTotal in /proc/meminfo")?
            .parse()
            .context("read the size of the memory")?;
        Ok(Self {
            processor: processor.to_owned(),
            cores: std::thread::available_parallelism()?.get(),
            memory_gb: (kilobytes + 512 * 1024) / (1024 * 1024),
            kernel: version(&read("/proc/sys/kernel/osrelease")?).to_owned(),
        })
    }

    pub(super) fn line(&self) -> String {
        format!(
            "{}, {} cores, {} GB, Linux {}",
            self.processor, self.cores, self.memory_gb, self.kernel
        )
    }
}

/// The value of the first line of this name, as `/proc` writes them.
fn after<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let value = text.lines().find_map(|line| line.strip_prefix(name))?;
    Some(value.trim_start_matches(['\t', ' ', ':']).trim_end())
}

/// `6.1.0-13-amd64` is 6.1.0.
fn version(release: &str) -> &str {
    let end = release.find(|letter: char| !letter.is_ascii_digit() && letter != '.');
    release
        .get(..end.unwrap_or(release.len()))
        .unwrap_or(release)
}

fn read(file: &str) -> Result<String> {
    fs::read_to_string(file).with_context(|| format!("read `{file}`"))
}

/// What all processors together have done since the machine started.
#[derive(Clone, Copy)]
pub(super) struct Activity {
    pub(super) busy: Duration,
    pub(super) stolen: Duration,
}

impl Activity {
    pub(super) fn now() -> Result<Self> {
        Self::parse(&read("/proc/stat")?).context("no processors in /proc/stat")
    }

    /// user, nice, system, idle, iowait, irq, softirq, steal
    fn parse(text: &str) -> Option<Self> {
        let line = text.lines().next()?.strip_prefix("cpu ")?;
        let ticks: Vec<u64> = line
            .split_whitespace()
            .map_while(|word| word.parse().ok())
            .collect();
        let [user, nice, system, _, _, irq, softirq, steal, ..] = ticks.as_slice() else {
            return None;
        };
        Some(Self {
            busy: seconds_of_ticks(user + nice + system + irq + softirq),
            stolen: seconds_of_ticks(*steal),
        })
    }

    pub(super) fn since(self, before: Self) -> Self {
        Self {
            busy: self.busy.saturating_sub(before.busy),
            stolen: self.stolen.saturating_sub(before.stolen),
        }
    }
}

/// How much noise is accepted, and how long a whole run waits for less. When that is used up, what
/// comes is taken as it comes, and its noise is on record.
pub(super) struct Patience {
    /// In hundredths of a core.
    accepted: f64,
    left: Duration,
}

impl Patience {
    pub(super) fn new(accepted: f64, left: Duration) -> Self {
        Self { accepted, left }
    }

    /// Until the machine is quiet, while there is patience.
    pub(super) fn wait(&mut self) -> Result<()> {
        const GLANCE: Duration = Duration::from_millis(400);
        while !self.left.is_zero() {
            let (started, before) = (Instant::now(), Activity::now()?);
            std::thread::sleep(GLANCE);
            let seen = Activity::now()?.since(before);
            let percent = 100.0 * (seen.busy + seen.stolen).as_secs_f64() / GLANCE.as_secs_f64();
            if percent <= self.accepted {
                return Ok(());
            }
            self.spend(started.elapsed());
        }
        Ok(())
    }

    /// Whether a sample with this noise, which took so long, should be taken again.
    pub(super) fn again(&mut self, noise: f64, took: Duration) -> bool {
        if noise <= self.accepted || self.left.is_zero() {
            return false;
        }
        self.spend(took);
        true
    }

    fn spend(&mut self, time: Duration) {
        self.left = self.left.saturating_sub(time);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_kernel_is_its_version_alone() {
        assert_eq!(version("6.1.0-13-amd64\n"), "6.1.0");
        assert_eq!(version("6.18.44"), "6.18.44");
    }

    #[test]
    fn busy_is_neither_idle_nor_waiting_for_disks() {
        let activity = Activity::parse("cpu  1 2 3 1000 2000 4 5 60 0 0\ncpu0 …\n").unwrap();
        assert_eq!(activity.busy, seconds_of_ticks(15));
        assert_eq!(activity.stolen, seconds_of_ticks(60));
        assert!(Activity::parse("intr 1 2").is_none());
    }

    #[test]
    fn patience_ends() {
        let mut patience = Patience::new(20.0, Duration::from_secs(8));
        let five = Duration::from_secs(5);
        assert!(!patience.again(19.0, five), "quiet enough");
        assert!(patience.again(30.0, five));
        assert!(patience.again(30.0, five), "three seconds were left");
        assert!(!patience.again(30.0, five));
    }
}
