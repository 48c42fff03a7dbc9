//! Fender beside the proxies people know, doing the same work.
//!
//! The subject has one core and one worker; the load generator and the application share another.
//! What counts is the CPU time the subject used for one request or one handshake within exactly the
//! counted window: throughput on two cores is the lower of two limits, CPU time is the subject's
//! own. Rounds take the subjects in turn, each round starting with another one, and ratios are
//! medians of the ratios within a round. Every subject writes its access log.

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use super::process::{self, Process};
use super::{Extent, Workshop};
use crate::command;

const SUBJECT_CORE: usize = 0;
const LOAD_CORE: usize = 1;
const REFERENCE: &str = "nginx";

struct Subject {
    name: &'static str,
    /// Its configuration's template in `bench/conf`.
    template: &'static str,
    command: Vec<String>,
    port: u16,
    run: PathBuf,
}

struct Test {
    name: &'static str,
    about: &'static str,
    mode: &'static str,
    arguments: &'static [&'static str],
}

const TESTS: &[Test] = &[
    Test {
        name: "h1_mtls",
        about: "mTLS, HTTP/1.1 keep-alive, 64 connections, 128-byte answers",
        mode: "h1",
        arguments: &["--conns", "64"],
    },
    Test {
        name: "hs_mtls",
        about: "full TLS 1.3 handshakes with a client certificate, P-256, X25519, 16 at once",
        mode: "handshake",
        arguments: &["--conns", "16"],
    },
];

struct Sample {
    per_second: f64,
    cpu_micros: f64,
    p50_micros: f64,
    p99_micros: f64,
}

pub(super) fn report(workshop: &Workshop, extent: Extent) -> Result<String> {
    let tlsload = super::build_tool(&workshop.root, "tlsload")?;
    let app = free_port()?;
    let subjects = subjects(workshop)?;
    let listen = format!("127.0.0.1:{app}");
    let backend = [
        tlsload.as_os_str(),
        "backend".as_ref(),
        "--http".as_ref(),
        listen.as_ref(),
    ];
    let mut backend = Process::start(
        LOAD_CORE,
        &backend,
        &workshop.work,
        &workshop.work.join("backend.log"),
    )?;
    backend.wait_until("listener", || is_listening(app))?;

    let rig = Rig {
        tlsload,
        pki: workshop.pki.clone(),
        window: extent.window(),
    };
    let mut running = Vec::new();
    for subject in &subjects {
        let process = start(workshop, subject, app)?;
        rig.check(subject)?;
        running.push(process);
    }
    let mut page = String::new();
    for test in TESTS {
        let mut samples: Vec<Vec<Sample>> = subjects.iter().map(|_| Vec::new()).collect();
        for round in 0..extent.rounds() {
            for turn in 0..subjects.len() {
                let at = (round + turn) % subjects.len();
                let (Some(subject), Some(process), Some(samples)) =
                    (subjects.get(at), running.get(at), samples.get_mut(at))
                else {
                    bail!("no subject {at}");
                };
                eprintln!(
                    "{} {} of {}: {}",
                    test.name,
                    round + 1,
                    extent.rounds(),
                    subject.name
                );
                let sample = rig.measure(test, subject, process);
                samples.push(sample.with_context(|| format!("{} {}", subject.name, test.name))?);
            }
        }
        table(&mut page, test, &subjects, &samples)?;
    }
    Ok(page)
}

/// Fender, and those of the others that are installed.
fn subjects(workshop: &Workshop) -> Result<Vec<Subject>> {
    let text = |words: &[&str]| {
        words
            .iter()
            .map(|word| (*word).to_owned())
            .collect::<Vec<_>>()
    };
    let fender = workshop.fender.to_string_lossy();
    let candidates = [
        (
            "fender",
            "fender.yaml",
            text(&[&fender, "--log-format", "json", "sidecar", "--config"]),
        ),
        ("nginx", "nginx.conf", text(&["nginx", "-c"])),
        ("haproxy", "haproxy.cfg", text(&["haproxy", "-db", "-f"])),
        (
            "envoy",
            "envoy.yaml",
            text(&[
                "envoy",
                "--concurrency",
                "1",
                "--disable-hot-restart",
                "--log-level",
                "error",
                "-c",
            ]),
        ),
    ];
    let mut subjects = Vec::new();
    for (name, template, mut command) in candidates {
        let Some(program) = command.first_mut() else {
            bail!("no program for {name}")
        };
        if name != "fender" {
            match command::find(program) {
                Some(path) => *program = path.to_string_lossy().into_owned(),
                None => {
                    eprintln!("{name} is not installed, left out");
                    continue;
                }
            }
        }
        let run = workshop.work.join(name);
        fs::create_dir_all(&run).context("make the subject's directory")?;
        command.push(run.join(template).to_string_lossy().into_owned());
        subjects.push(Subject {
            name,
            template,
            command,
            port: free_port()?,
            run,
        });
    }
    Ok(subjects)
}

fn start(workshop: &Workshop, subject: &Subject, app: u16) -> Result<Process> {
    let template = workshop.root.join("bench/conf").join(subject.template);
    let text = fs::read_to_string(&template)
        .with_context(|| format!("read `{}`", template.display()))?
        .replace("@@RUN@@", &subject.run.to_string_lossy())
        .replace("@@PKI@@", &workshop.pki.to_string_lossy())
        .replace("@@MTLS@@", &subject.port.to_string())
        .replace("@@APP@@", &app.to_string());
    fs::write(subject.run.join(subject.template), text).context("write a configuration")?;
    let log = subject.run.join("log");
    let mut process = Process::start(SUBJECT_CORE, &subject.command, &subject.run, &log)?;
    process
        .wait_until("listener", || is_listening(subject.port))
        .with_context(|| format!("see `{}`", log.display()))?;
    Ok(process)
}

struct Rig {
    tlsload: PathBuf,
    pki: PathBuf,
    window: Duration,
}

impl Rig {
    fn tlsload(&self, mode: &str, subject: &Subject) -> Command {
        let mut command = Command::new("taskset");
        command
            .args(["-c", &LOAD_CORE.to_string()])
            .arg(&self.tlsload)
            .arg(mode);
        command.args(["--addr", &format!("127.0.0.1:{}", subject.port)]);
        command.stdin(Stdio::null());
        command
    }

    fn with_certificate<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command.arg("--cert").arg(self.pki.join("client.crt"));
        command.arg("--key").arg(self.pki.join("client.key"))
    }

    /// Does the subject do what it is measured doing?
    fn check(&self, subject: &Subject) -> Result<()> {
        let mut probe = self.tlsload("probe", subject);
        self.with_certificate(&mut probe)
            .args(["--request", "--timeout", "3"]);
        let answers = probe
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()?
            .success();
        ensure!(
            answers,
            "{} does not answer a client with a certificate",
            subject.name
        );
        let mut probe = self.tlsload("probe", subject);
        probe
            .args(["--request", "--timeout", "1"])
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        ensure!(
            !probe.status()?.success(),
            "{} answers a client without one",
            subject.name
        );
        Ok(())
    }

    fn measure(&self, test: &Test, subject: &Subject, process: &Process) -> Result<Sample> {
        let mut load = self.tlsload(test.mode, subject);
        self.with_certificate(&mut load).args(test.arguments).args([
            "--warmup",
            "1",
            "--duration",
            &self.window.as_secs().to_string(),
        ]);
        let mut load = load
            .stdout(Stdio::piped())
            .spawn()
            .context("start the load generator")?;
        let output = load
            .stdout
            .take()
            .context("no output of the load generator")?;
        let (mut begin, mut end, mut result) = (None, None, None);
        for line in BufReader::new(output).lines() {
            let line = line.context("read the load generator's output")?;
            // By the time of `BEGIN` a program that forks has forked.
            if line.starts_with("BEGIN") {
                begin = Some(process::cpu_time(&process.pids()));
            } else if line.starts_with("END") {
                end = Some(process::cpu_time(&process.pids()));
            } else if line.starts_with('{') {
                result = Some(serde_json::from_str::<Value>(&line).context("read the result")?);
            }
        }
        ensure!(load.wait()?.success(), "the load generator failed");
        let (Some(begin), Some(end), Some(result)) = (begin, end, result) else {
            bail!("the load generator did not finish");
        };
        Sample::new(end.saturating_sub(begin), &result)
    }
}

impl Sample {
    fn new(cpu: Duration, result: &Value) -> Result<Self> {
        let number = |field: &str| {
            result
                .get(field)
                .and_then(Value::as_f64)
                .with_context(|| format!("no `{field}`"))
        };
        let (done, errors) = (number("done")?, number("errors")?);
        let first = result
            .get("first_error")
            .and_then(Value::as_str)
            .unwrap_or_default();
        ensure!(done > 0.0, "nothing was done: {first}");
        ensure!(errors == 0.0, "{errors} errors, the first: {first}");
        Ok(Self {
            per_second: number("per_s")?,
            cpu_micros: cpu.as_secs_f64() * 1e6 / done,
            p50_micros: number("p50_us")?,
            p99_micros: number("p99_us")?,
        })
    }
}

fn table(
    page: &mut String,
    test: &Test,
    subjects: &[Subject],
    samples: &[Vec<Sample>],
) -> Result<()> {
    let reference = subjects
        .iter()
        .position(|subject| subject.name == REFERENCE);
    let reference = reference
        .and_then(|at| samples.get(at))
        .context("nothing to compare with")?;
    writeln!(page, "**{}**: {}\n", test.name, test.about)?;
    writeln!(
        page,
        "| subject | per second | CPU µs each | ÷ {REFERENCE} | p50 µs | p99 µs |"
    )?;
    writeln!(page, "|---|--:|--:|--:|--:|--:|")?;
    for (subject, samples) in subjects.iter().zip(samples) {
        let ratios = samples
            .iter()
            .zip(reference)
            .map(|(own, other)| own.cpu_micros / other.cpu_micros);
        writeln!(
            page,
            "| {} | {:.0} | {:.1} | {:.2} | {:.0} | {:.0} |",
            subject.name,
            median(samples.iter().map(|sample| sample.per_second)),
            median(samples.iter().map(|sample| sample.cpu_micros)),
            median(ratios),
            median(samples.iter().map(|sample| sample.p50_micros)),
            median(samples.iter().map(|sample| sample.p99_micros)),
        )?;
    }
    writeln!(page)?;
    Ok(())
}

pub(super) fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    let upper = values.get(middle).copied().unwrap_or(f64::NAN);
    if values.len() % 2 == 1 {
        return upper;
    }
    let lower = middle.checked_sub(1).and_then(|at| values.get(at)).copied();
    (lower.unwrap_or(f64::NAN) + upper) / 2.0
}

/// A port that nobody listens on, below those the kernel gives to outgoing connections.
pub(super) fn free_port() -> Result<u16> {
    static NEXT: std::sync::atomic::AtomicU16 = std::sync::atomic::AtomicU16::new(21_000);
    loop {
        let port = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        ensure!(port < 32_000, "no port is free");
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
}

pub(super) fn is_listening(port: u16) -> bool {
    std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_median_is_the_middle_or_between_the_two_middle_ones() {
        assert_eq!(median([3.0, 1.0, 2.0].into_iter()), 2.0);
        assert_eq!(median([4.0, 1.0, 2.0, 3.0].into_iter()), 2.5);
        assert!(median([].into_iter()).is_nan());
    }

    #[test]
    fn a_sample_with_errors_is_no_sample() {
        let result = json!({"done": 10, "errors": 1, "first_error": "status 403", "per_s": 1.0});
        let error = Sample::new(Duration::from_secs(1), &result).err().unwrap();
        assert_eq!(error.to_string(), "1 errors, the first: status 403");
    }
}
