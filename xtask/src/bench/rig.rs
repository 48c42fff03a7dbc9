//! How one sample is taken.
//!
//! The subject has one core and one worker; the load generator and the application share another.
//! What counts is the CPU time the subject used for one request, one handshake or one megabyte
//! within exactly the counted window: throughput on two cores is the lower of two limits, CPU time
//! is the subject's own. A sample with one error is no sample.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Lines};
use std::path::{Path, PathBuf};
use std::process::{ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::time::{ClockId, clock_gettime};
use serde_json::Value;

use super::machine::{Activity, Patience};
use super::process::{self, Memory, Process};
use super::subject::{Subject, libraries};
use super::work::{Kind, Unit, Work};
use super::{LOAD_CORE, Workshop};
use crate::build;

/// Takes of one sample at most, while others disturb it.
const TAKES: usize = 3;
/// Long enough for what start-up or a crowd allocated to be given back.
const SETTLE: Duration = Duration::from_secs(3);
/// Of one megabyte, as disks and networks count it.
const MEGABYTE: f64 = 1e6;

pub(super) struct Rig<'a> {
    pub(super) workshop: &'a Workshop,
    pub(super) window: Duration,
    /// Of the connections that a test holds, only one of so many.
    pub(super) thinned: usize,
    pub(super) patience: Patience,
}

/// One sample, not yet said of whom.
pub(super) struct Taken {
    pub(super) figures: BTreeMap<String, f64>,
    pub(super) others_percent: f64,
    pub(super) stolen_percent: f64,
}

impl Taken {
    fn noise(&self) -> f64 {
        self.others_percent + self.stolen_percent
    }
}

impl Rig<'_> {
    /// The least disturbed of a few takes, as far as patience reaches.
    pub(super) fn sample(
        &mut self,
        work: &Work,
        subject: &Subject,
        running: Option<&Process>,
    ) -> Result<Taken> {
        let mut best: Option<Taken> = None;
        for _ in 0..TAKES {
            if work.is_timed() {
                self.patience.wait()?;
            }
            let started = Instant::now();
            let taken = self.take(work, subject, running)?;
            let noise = taken.noise();
            if best.as_ref().is_none_or(|best| noise < best.noise()) {
                best = Some(taken);
            }
            if !work.is_timed() || !self.patience.again(noise, started.elapsed()) {
                break;
            }
        }
        best.context("no take")
    }

    fn take(&self, work: &Work, subject: &Subject, running: Option<&Process>) -> Result<Taken> {
        let running = || running.context("the subject does not run");
        let taken = match work.kind {
            Kind::Load(unit) => self.load(work, subject, running()?, unit),
            Kind::Held { connections } => self.held(work, subject, connections / self.thinned),
            Kind::Beside { idle } => self.beside(work, subject, idle / self.thinned),
            Kind::Startup => self.startup(work, subject),
            Kind::Size => size(&subject.files()),
            Kind::SizeAlone => size(&[build::sidecar_alone(&self.workshop.root)?]),
        };
        subject.clear_logs()?;
        taken
    }

    /// The load generator against this subject's listener.
    pub(super) fn tlsload(&self, mode: &str, work: &Work, subject: &Subject) -> Result<Command> {
        let mut command = Command::new(&self.workshop.tlsload);
        command.arg(mode);
        command.args(["--addr", &format!("127.0.0.1:{}", subject.port(work.port)?)]);
        if work.with_certificate() {
            show_certificate(&mut command, &self.workshop.pki, "client");
        }
        Ok(command)
    }

    fn start_load(&self, mut command: Command) -> Result<Load> {
        let log = self.workshop.work.join("load.log");
        let log = fs::File::create(&log).with_context(|| format!("create `{}`", log.display()))?;
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log);
        let mut process = Process::start_as_is(LOAD_CORE, command)?;
        let output = process.child().stdout.take();
        let output = output.context("no output of the load generator")?;
        Ok(Load {
            process,
            lines: BufReader::new(output).lines(),
        })
    }

    fn load(&self, work: &Work, subject: &Subject, running: &Process, unit: Unit) -> Result<Taken> {
        let mut command = self.tlsload(work.mode, work, subject)?;
        command.args(work.arguments).args([
            "--warmup",
            "0.5",
            "--duration",
            &self.window.as_secs_f64().to_string(),
        ]);
        let mut load = self.start_load(command)?;
        load.line("BEGIN")?;
        // By now a program that forks has forked.
        let watch = self.watch(&running.pids(), &load)?;
        load.line("END")?;
        let seen = watch.end()?;
        let result: Value = serde_json::from_str(&load.line("{")?).context("read the result")?;
        let mut taken = seen.taken();
        taken.figures = figures(work, unit, seen.subject, &result)?;
        Ok(taken)
    }

    /// Memory for each connection that is held, and what is left of it afterwards. A process of its
    /// own for each sample: what an earlier one kept would hide what the next one takes.
    fn held(&self, work: &Work, subject: &Subject, connections: usize) -> Result<Taken> {
        let running = subject.start()?;
        let mut command = self.tlsload(work.mode, work, subject)?;
        command.args(work.arguments);
        command.args(["--conns", &connections.to_string()]);
        std::thread::sleep(SETTLE);
        let before = process::memory(&running.pids())?;
        let idle = self.workshop.backend.descriptors()?;
        let mut load = self.start_load(command)?;
        let watch = self.watch(&running.pids(), &load)?;
        load.holds(connections)?;
        std::thread::sleep(SETTLE);
        if work.arguments.contains(&"--unanswered") {
            let held = self.workshop.backend.descriptors()?.saturating_sub(idle);
            ensure!(
                held >= connections,
                "the application holds {held} of {connections} requests"
            );
        }
        let during = process::memory(&running.pids())?;
        let mut taken = watch.end()?.taken();
        drop(load);
        std::thread::sleep(SETTLE);
        let after = process::memory(&running.pids())?;
        let each = |memory: &Memory| {
            (memory.resident as f64 - before.resident as f64) / 1e3 / connections as f64
        };
        taken.figures = named([
            ("kb_per_connection", each(&during)),
            ("rss_mb", before.resident as f64 / MEGABYTE),
            ("rss_held_mb", during.resident as f64 / MEGABYTE),
            ("kb_left", each(&after)),
            ("connections", connections as f64),
        ]);
        Ok(taken)
    }

    /// What a crowd that says nothing costs those who work.
    fn beside(&self, work: &Work, subject: &Subject, idle: usize) -> Result<Taken> {
        let running = subject.start()?;
        let alone = self.load(work, subject, &running, Unit::Request)?;
        let mut command = self.tlsload("idle", work, subject)?;
        command.args(["--request", "--conns", &idle.to_string()]);
        let mut crowd = self.start_load(command)?;
        crowd.holds(idle)?;
        let mut taken = self.load(work, subject, &running, Unit::Request)?;
        for (key, of) in [("p50_alone_us", "p50_us"), ("p99_alone_us", "p99_us")] {
            let value = alone.figures.get(of).copied();
            taken
                .figures
                .insert(key.to_owned(), value.with_context(|| format!("no `{of}`"))?);
        }
        taken.figures.insert("connections".to_owned(), idle as f64);
        taken.others_percent = taken.others_percent.max(alone.others_percent);
        taken.stolen_percent = taken.stolen_percent.max(alone.stolen_percent);
        Ok(taken)
    }

    fn startup(&self, work: &Work, subject: &Subject) -> Result<Taken> {
        let mut probe = self.start_load(self.tlsload("probe", work, subject)?)?;
        probe.line("GO")?;
        let watch = self.watch(&[], &probe)?;
        let started = clock_gettime(ClockId::Monotonic);
        let running = subject.exec()?;
        let ready = probe.line("READY ")?;
        let mut seen = watch.end()?;
        seen.subject = process::cpu_time(&running.pids());
        let ready: u64 = ready
            .split(' ')
            .nth(1)
            .and_then(|nanoseconds| nanoseconds.parse().ok())
            .context("read the time of the first handshake")?;
        let started = Duration::new(
            u64::try_from(started.tv_sec)?,
            u32::try_from(started.tv_nsec)?,
        );
        let took = Duration::from_nanos(ready).saturating_sub(started);
        std::thread::sleep(SETTLE);
        let memory = process::memory(&running.pids())?;
        let mut taken = seen.taken();
        taken.figures = named([
            ("ms", took.as_secs_f64() * 1e3),
            ("rss_mb", memory.resident as f64 / MEGABYTE),
            ("pss_mb", memory.proportional as f64 / MEGABYTE),
            ("anonymous_mb", memory.anonymous as f64 / MEGABYTE),
        ]);
        Ok(taken)
    }

    fn watch(&self, subject: &[u32], load: &Load) -> Result<Watch> {
        let mut ours = load.process.pids();
        ours.extend(self.workshop.backend.pids());
        ours.push(std::process::id());
        Ok(Watch {
            used: process::cpu_time(subject),
            used_by_us: process::cpu_time(&ours),
            activity: Activity::now()?,
            started: Instant::now(),
            subject: subject.to_vec(),
            ours,
        })
    }
}

pub(super) fn show_certificate(command: &mut Command, pki: &Path, name: &str) {
    command.arg("--cert").arg(pki.join(format!("{name}.crt")));
    command.arg("--key").arg(pki.join(format!("{name}.key")));
}

/// A load generator that runs, and what it says.
struct Load {
    process: Process,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Load {
    /// The next line that begins so.
    fn line(&mut self, beginning: &str) -> Result<String> {
        for line in &mut self.lines {
            let line = line.context("read the load generator's output")?;
            if line.starts_with(beginning) {
                return Ok(line);
            }
        }
        let status = self.process.child().wait()?;
        bail!("the load generator ended ({status}) before it said `{beginning}`; see load.log")
    }

    /// Returns when it holds so many connections.
    fn holds(&mut self, connections: usize) -> Result<()> {
        let line = self.line("READY ")?;
        let mut words = line.splitn(3, ' ').skip(1);
        let held: usize = words
            .next()
            .and_then(|count| count.parse().ok())
            .context("read how many connections are held")?;
        let why = words.next().unwrap_or_default();
        ensure!(
            held == connections,
            "held {held} of {connections} connections: {why}"
        );
        Ok(())
    }
}

/// What everybody has used so far.
struct Watch {
    used: Duration,
    used_by_us: Duration,
    activity: Activity,
    started: Instant,
    subject: Vec<u32>,
    ours: Vec<u32>,
}

/// What everybody used while it was watched.
struct Seen {
    subject: Duration,
    us: Duration,
    machine: Activity,
    time: Duration,
}

impl Watch {
    fn end(self) -> Result<Seen> {
        Ok(Seen {
            subject: process::cpu_time(&self.subject).saturating_sub(self.used),
            us: process::cpu_time(&self.ours).saturating_sub(self.used_by_us),
            machine: Activity::now()?.since(self.activity),
            time: self.started.elapsed(),
        })
    }
}

impl Seen {
    fn taken(&self) -> Taken {
        let others = self.machine.busy.saturating_sub(self.subject + self.us);
        let percent = |time: Duration| 100.0 * time.as_secs_f64() / self.time.as_secs_f64();
        Taken {
            figures: BTreeMap::new(),
            others_percent: percent(others),
            stolen_percent: percent(self.machine.stolen),
        }
    }
}

fn named<const N: usize>(figures: [(&str, f64); N]) -> BTreeMap<String, f64> {
    let figures = figures.into_iter();
    figures
        .map(|(key, value)| (key.to_owned(), value))
        .collect()
}

/// What a counted window comes to.
fn figures(
    work: &Work,
    unit: Unit,
    cpu: Duration,
    result: &Value,
) -> Result<BTreeMap<String, f64>> {
    let number = |field: &str| {
        let value = result.get(field).and_then(Value::as_f64);
        value.with_context(|| format!("no `{field}`"))
    };
    let first = result.get("first_error").and_then(Value::as_str);
    let first = first.unwrap_or_default();
    let (done, errors, bytes) = (number("done")?, number("errors")?, number("bytes")?);
    let (seconds, cpu) = (number("seconds")?, cpu.as_secs_f64());
    ensure!(errors == 0.0, "{errors} errors, the first: {first}");
    ensure!(done > 0.0 || bytes > 0.0, "nothing was done: {first}");
    ensure!(cpu > 0.0, "the subject used no CPU time");
    if work.arguments.contains(&"--resume") {
        let resumed = number("resumed")?;
        ensure!(
            resumed >= 0.95 * done,
            "resumed {resumed} of {done} sessions"
        );
    }
    let core_percent = ("core_percent", 100.0 * cpu / seconds);
    Ok(match unit {
        Unit::Request | Unit::Handshake => named([
            ("cpu_us", cpu * 1e6 / done),
            ("per_second", number("per_s")?),
            ("p50_us", number("p50_us")?),
            ("p99_us", number("p99_us")?),
            ("p999_us", number("p999_us")?),
            core_percent,
        ]),
        Unit::Bytes => named([
            ("cpu_us_per_mb", cpu * 1e6 / (bytes / MEGABYTE)),
            ("gb_per_cpu_second", bytes / 1e9 / cpu),
            ("gb_per_second", bytes / 1e9 / seconds),
            core_percent,
        ]),
    })
}

fn size(files: &[PathBuf]) -> Result<Taken> {
    let mut libraries: Vec<_> = files.iter().flat_map(|file| libraries(file)).collect();
    libraries.sort();
    libraries.dedup();
    let sum = |files: &[PathBuf]| -> Result<f64> {
        let sizes = files.iter().map(|file| {
            let size = fs::metadata(file).map(|metadata| metadata.len());
            size.with_context(|| format!("read the size of `{}`", file.display()))
        });
        Ok(sizes.sum::<Result<u64>>()? as f64 / MEGABYTE)
    };
    let (own, loaded) = (sum(files)?, sum(&libraries)?);
    Ok(Taken {
        figures: named([("mb", own), ("with_libraries_mb", own + loaded)]),
        others_percent: 0.0,
        stolen_percent: 0.0,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(name: &str, result: &Value) -> Result<BTreeMap<String, f64>> {
        let work = Work::of(name).unwrap();
        let Kind::Load(unit) = work.kind else {
            panic!("{name} is no load")
        };
        figures(work, unit, Duration::from_secs(1), result)
    }

    fn result() -> Value {
        json!({
            "done": 10_000, "errors": 0, "bytes": 2_000_000_000u64, "seconds": 4.0, "resumed": 100,
            "per_s": 2500.0, "p50_us": 1.0, "p99_us": 2.0, "p999_us": 3.0,
        })
    }

    #[test]
    fn cpu_time_is_shared_by_what_was_done() {
        let requests = of("h1_mtls", &result()).unwrap();
        assert_eq!(requests["cpu_us"], 100.0);
        assert_eq!(requests["core_percent"], 25.0);
        let bytes = of("tcp_up", &result()).unwrap();
        assert_eq!(bytes["cpu_us_per_mb"], 500.0);
        assert_eq!(bytes["gb_per_cpu_second"], 2.0);
    }

    #[test]
    fn a_sample_with_errors_is_no_sample() {
        let mut failed = result();
        failed["errors"] = json!(1);
        failed["first_error"] = json!("status 403");
        let error = of("h1_mtls", &failed).unwrap_err();
        assert_eq!(error.to_string(), "1 errors, the first: status 403");
    }

    #[test]
    fn handshakes_that_were_not_resumed_are_not_counted_as_such() {
        let error = of("hs_resume", &result()).unwrap_err();
        assert_eq!(error.to_string(), "resumed 100 of 10000 sessions");
    }
}
