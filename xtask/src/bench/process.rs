//! A program under measurement: started on one core, watched through `/proc`, ended with all of
//! its descendants and nobody else's.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

pub(super) struct Process {
    name: String,
    child: Child,
}

/// Starts `command` on this core. It inherits the affinity of the thread that starts it, so that no
/// other program has to run in between, whose time would count as the command's own.
pub(super) fn on_core(core: usize, command: &mut Command) -> Result<Child> {
    let name = command.get_program().to_string_lossy().into_owned();
    let usual = sched_getaffinity(None).context("read this thread's cores")?;
    let mut one = CpuSet::new();
    one.set(core);
    sched_setaffinity(None, &one).with_context(|| format!("move to core {core}"))?;
    let child = command.spawn().with_context(|| format!("start `{name}`"));
    sched_setaffinity(None, &usual).context("move back")?;
    child
}

impl Process {
    /// Starts `command` on this core, its output added to a file.
    pub(super) fn start(core: usize, mut command: Command, log: &Path) -> Result<Self> {
        let output = File::options().create(true).append(true).open(log);
        let output = output.with_context(|| format!("open `{}`", log.display()))?;
        command
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output);
        Self::start_as_is(core, command)
    }

    /// The same, with the descriptors that `command` has.
    pub(super) fn start_as_is(core: usize, mut command: Command) -> Result<Self> {
        let name = command.get_program().to_string_lossy().into_owned();
        let child = on_core(core, &mut command)?;
        Ok(Self { name, child })
    }

    pub(super) fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    pub(super) fn wait_until(&mut self, what: &str, holds: impl FnMut() -> bool) -> Result<()> {
        self.wait_for(Duration::from_secs(20), what, holds)
    }

    pub(super) fn wait_for(
        &mut self,
        time: Duration,
        what: &str,
        mut holds: impl FnMut() -> bool,
    ) -> Result<()> {
        let limit = Instant::now() + time;
        while !holds() {
            if let Some(status) = self.child.try_wait()? {
                bail!("`{}` ended before {what}: {status}", self.name);
            }
            if Instant::now() > limit {
                bail!("`{}`: no {what} within {} s", self.name, time.as_secs());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// How many descriptors the program itself has open.
    pub(super) fn descriptors(&self) -> Result<usize> {
        let directory = format!("/proc/{}/fd", self.child.id());
        let entries = fs::read_dir(&directory).with_context(|| format!("read `{directory}`"))?;
        Ok(entries.count())
    }

    /// The program and its descendants.
    pub(super) fn pids(&self) -> Vec<u32> {
        descendants(self.child.id())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let all = self.pids();
        for (signal, patience) in [(Signal::TERM, 5), (Signal::KILL, 5)] {
            let alive: Vec<u32> = all.iter().copied().filter(|pid| is_alive(*pid)).collect();
            for pid in &alive {
                if let Some(pid) = i32::try_from(*pid).ok().and_then(Pid::from_raw) {
                    // One that is gone already is what we want.
                    kill_process(pid, signal).ok();
                }
            }
            let limit = Instant::now() + Duration::from_secs(patience);
            while Instant::now() < limit && alive.iter().any(|pid| is_alive(*pid)) {
                self.child.try_wait().ok();
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        // It has ended, also where it did so by itself.
        self.child.try_wait().ok();
    }
}

/// CPU time that these processes have used.
pub(super) fn cpu_time(pids: &[u32]) -> Duration {
    let ticks = pids
        .iter()
        .filter_map(|pid| Stat::of(*pid))
        .map(|stat| stat.ticks);
    seconds_of_ticks(ticks.sum())
}

/// The unit in which the kernel counts CPU time.
pub(super) fn seconds_of_ticks(ticks: u64) -> Duration {
    Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
}

/// Memory of these processes in bytes: resident, with shared pages divided among their users, and without those of files.
pub(super) struct Memory {
    pub(super) resident: u64,
    pub(super) proportional: u64,
    pub(super) anonymous: u64,
}

pub(super) fn memory(pids: &[u32]) -> Result<Memory> {
    let mut sum = Memory {
        resident: 0,
        proportional: 0,
        anonymous: 0,
    };
    for pid in pids {
        let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))
            .with_context(|| format!("read the memory of process {pid}"))?;
        sum.resident += kilobytes(&rollup, "Rss:")? * 1024;
        sum.proportional += kilobytes(&rollup, "Pss:")? * 1024;
        sum.anonymous += kilobytes(&rollup, "Anonymous:")? * 1024;
    }
    Ok(sum)
}

fn kilobytes(rollup: &str, field: &str) -> Result<u64> {
    let value = rollup.lines().find_map(|line| line.strip_prefix(field));
    let value = value.and_then(|value| value.trim().strip_suffix(" kB"));
    value
        .with_context(|| format!("no `{field}` in smaps_rollup"))?
        .parse()
        .context("read a size")
}

struct Stat {
    state: char,
    parent: u32,
    ticks: u64,
}

impl Stat {
    fn of(pid: u32) -> Option<Self> {
        Self::parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    /// Fields follow the program's name, which is in parentheses and may hold anything.
    fn parse(text: &str) -> Option<Self> {
        let fields: Vec<&str> = text.rsplit_once(") ")?.1.split(' ').collect();
        let number = |at: usize| fields.get(at)?.parse::<u64>().ok();
        Some(Self {
            state: fields.first()?.chars().next()?,
            parent: u32::try_from(number(1)?).ok()?,
            ticks: number(11)? + number(12)?,
        })
    }
}

fn is_alive(pid: u32) -> bool {
    Stat::of(pid).is_some_and(|stat| stat.state != 'Z')
}

fn descendants(root: u32) -> Vec<u32> {
    let Ok(processes) = fs::read_dir("/proc") else {
        return vec![root];
    };
    let parents: BTreeMap<u32, u32> = processes
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(|pid| Some((pid, Stat::of(pid)?.parent)))
        .collect();
    let mut found = vec![root];
    let mut next = 0;
    while let Some(parent) = found.get(next).copied() {
        found.extend(
            parents
                .iter()
                .filter(|(_, of)| **of == parent)
                .map(|(pid, _)| *pid),
        );
        next += 1;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_may_be_named_to_look_like_the_fields_after_it() {
        let stat = Stat::parse("7 (a) R 1 ) S 42 7 7 0 -1 0 0 0 0 0 3 4 0 0\n").unwrap();
        assert_eq!((stat.state, stat.parent, stat.ticks), ('S', 42, 7));
    }

    #[test]
    fn this_process_is_alive_and_has_memory() {
        let me = std::process::id();
        assert!(is_alive(me));
        let memory = memory(&[me]).unwrap();
        assert!(memory.resident >= memory.proportional && memory.proportional > 0);
        assert!(memory.resident >= memory.anonymous && memory.anonymous > 0);
    }

    #[test]
    fn ending_a_process_ends_its_children_too() {
        let name = format!("xtask-process-test-{}", std::process::id());
        let log = std::env::temp_dir().join(name);
        let mut command = Command::new("sh");
        command.args(["-c", "sleep 600 & wait"]);
        let mut process = Process::start(0, command, &log).unwrap();
        let root = process.child.id();
        process
            .wait_until("child", || descendants(root).len() > 1)
            .unwrap();
        let pids = process.pids();
        drop(process);
        fs::remove_file(log).unwrap();
        assert!(pids.iter().all(|pid| !is_alive(*pid)));
    }
}
