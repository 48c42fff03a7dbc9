//! What a control plane holds and what a change costs it: a real `fender control` on one core, and thousands of simulated
//! sidecars with real keys, certificates and streams on another (`bench/meshload`), each a process of its own because
//! descriptors are limited by process.
//!
//! What is measured is the server's: its memory from `smaps_rollup` and its CPU time, read while the load generator waits
//! between two commands. Times to the last acknowledgement are the load generator's and include its own work.

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use super::machine::Machine;
use super::net::{free_port, is_listening};
use super::process::{self, Memory, Process, on_core};
use super::results::median;
use super::{Extent, LOAD_CORE, SUBJECT_CORE as SERVER_CORE};
use crate::build;

/// What is aimed at, of one process on one core.
const BYTES_PER_STREAM: f64 = 64.0 * 1024.0;
const ISSUANCES_PER_SECOND: f64 = 2000.0;
const SECONDS_TO_LAST_ACK: f64 = 5.0;

impl Extent {
    fn sidecars(self) -> usize {
        match self {
            Self::Quick => 200,
            Self::Full => 10_000,
        }
    }

    /// How many workloads a change touches, and how often each is made.
    fn changes(self) -> &'static [(usize, usize)] {
        match self {
            Self::Quick => &[(1, 1), (10, 1)],
            Self::Full => &[(1, 9), (10, 9), (100, 5), (1000, 3)],
        }
    }
}

pub(crate) fn run(root: &Path, extent: Extent, store: Option<&str>) -> Result<()> {
    let fender = build::to_publish(root)?;
    let meshload = super::build_tool(root, "meshload", "meshload")?;
    let work = root.join("bench/work/control");
    if work.exists() {
        fs::remove_dir_all(&work).context("empty bench/work/control")?;
    }
    fs::create_dir_all(&work).context("make bench/work/control")?;

    let mut bench = Bench::start(&fender, &meshload, &work, extent.sidecars(), store)?;
    let streams = bench.streams(extent)?;
    let issuance = bench.issuance(extent)?;
    let changes = bench.changes(extent)?;
    let herd = bench.herd(extent)?;
    let results = json!({
        "machine": Machine::this()?.line(),
        "split": format!("`fender control` alone on core {SERVER_CORE}, the simulated sidecars on core {LOAD_CORE}"),
        "store": if store.is_some() { "PostgreSQL" } else { "SQLite" },
        "sidecars": extent.sidecars(),
        "streams": streams,
        "issuance": issuance,
        "changes": changes,
        "herd": herd,
    });
    println!("\n{}", page(&results)?);
    if extent == Extent::Full {
        let directory = root.join("bench/results");
        fs::create_dir_all(&directory).context("make bench/results")?;
        let name = if store.is_some() {
            "control-postgres.json"
        } else {
            "control.json"
        };
        let text = format!("{results:#}\n");
        fs::write(directory.join(name), text).context("write the results")?;
    }
    Ok(())
}

/// A control plane and its load.
struct Bench {
    server: Process,
    load: Load,
    /// Before anybody but the administrator has connected.
    alone: Memory,
}

impl Bench {
    fn start(
        fender: &Path,
        meshload: &Path,
        work: &Path,
        sidecars: usize,
        store: Option<&str>,
    ) -> Result<Self> {
        let port = free_port()?;
        let address = format!("127.0.0.1:{port}");
        let mut command = Command::new(fender);
        command.current_dir(work).args([
            "control",
            "--data-dir",
            "data",
            "--listen",
            &address,
            "--trust-domain",
            "bench.test",
        ]);
        if let Some(store) = store {
            command.args(["--store", store]);
        }
        let mut server = Process::start(SERVER_CORE, command, &work.join("control.log"))?;
        let admin = work.join("data/admin");
        server.wait_until("listener", || {
            admin.join("certificate.pem").is_file() && is_listening(port)
        })?;
        let mut load = Load::start(meshload, &format!("https://{address}"), &admin, sidecars)?;
        load.ask("found")?;
        let alone = process::memory(&server.pids())?;
        load.ask("tokens")?;
        Ok(Self {
            server,
            load,
            alone,
        })
    }

    /// What the server's processes have used of their core while `work` was done.
    fn spent<T>(&mut self, work: impl FnOnce(&mut Load) -> Result<T>) -> Result<(T, Duration)> {
        let before = process::cpu_time(&self.server.pids());
        let done = work(&mut self.load)?;
        let after = process::cpu_time(&self.server.pids());
        Ok((done, after.saturating_sub(before)))
    }

    fn issuances(&mut self, how: &str, line: &str) -> Result<Value> {
        let (answer, cpu) = self.spent(|load| load.ask(line))?;
        let count = number(&answer, "count")?;
        ensure!(count > 0.0, "`{line}` issued nothing");
        Ok(json!({
            "how": how,
            "count": count,
            "per_second": number(&answer, "per_second")?,
            "cpu_micros_each": cpu.as_secs_f64() * 1e6 / count,
        }))
    }

    fn streams(&mut self, extent: Extent) -> Result<Value> {
        let half = extent.sidecars() / 2;
        let attested = [
            self.issuances(
                "attest, a connection for each",
                &format!("attest {half} fresh"),
            )?,
            self.issuances(
                "attest, many on a connection",
                &format!("attest {} kept", extent.sidecars() - half),
            )?,
        ];
        let before = process::memory(&self.server.pids())?;
        let (connected, cpu) = self.spent(|load| load.ask("connect 256"))?;
        std::thread::sleep(Duration::from_secs(2));
        let after = process::memory(&self.server.pids())?;
        let held = number(&connected, "streams")?;
        let each = |memory: fn(&Memory) -> u64| {
            memory(&after).saturating_sub(memory(&before)) as f64 / held
        };
        let (_, idle) = self.spent(|_| {
            std::thread::sleep(Duration::from_secs(10));
            Ok(())
        })?;
        self.nobody_is_behind(extent)?;
        Ok(json!({
            "held": held,
            "attested": attested,
            "resident_alone": self.alone.resident,
            "resident_before": before.resident,
            "resident_after": after.resident,
            "resident_each": each(|memory| memory.resident),
            "proportional_each": each(|memory| memory.proportional),
            "connected_seconds": number(&connected, "seconds")?,
            "connected_cpu_micros_each": cpu.as_secs_f64() * 1e6 / held,
            "idle_cpu_share": idle.as_secs_f64() / 10.0,
        }))
    }

    fn issuance(&mut self, extent: Extent) -> Result<Value> {
        let count = 2 * extent.sidecars();
        Ok(json!([self.issuances(
            "renew, on the open connections",
            &format!("renew {count}")
        )?]))
    }

    fn changes(&mut self, extent: Extent) -> Result<Value> {
        let mut rows = Vec::new();
        for (touched, times) in extent.changes() {
            rows.push(self.change(&touched.to_string(), *times)?);
        }
        rows.push(self.change("all", if extent == Extent::Full { 3 } else { 1 })?);
        self.nobody_is_behind(extent)?;
        Ok(json!(rows))
    }

    fn change(&mut self, touched: &str, times: usize) -> Result<Value> {
        let (answers, cpu) = self.spent(|load| {
            (0..times)
                .map(|_| load.ask(&format!("apply {touched}")))
                .collect::<Result<Vec<_>>>()
        })?;
        let middle = |field| -> Result<f64> {
            let values = answers.iter().map(|answer| number(answer, field));
            median(values.collect::<Result<Vec<_>>>()?).context("no change was made")
        };
        Ok(json!({
            "touched": touched,
            "times": times,
            "acks": middle("acks")?,
            "answered_seconds": middle("answered_seconds")?,
            "last_ack_seconds": middle("seconds")?,
            "cpu_seconds_each": cpu.as_secs_f64() / times as f64,
        }))
    }

    /// Everybody goes, and comes back at the same moment.
    fn herd(&mut self, extent: Extent) -> Result<Value> {
        self.load.ask("disconnect")?;
        let (back, cpu) = self.spent(|load| load.ask(&format!("connect {}", extent.sidecars())))?;
        self.nobody_is_behind(extent)?;
        let memory = process::memory(&self.server.pids())?;
        Ok(json!({
            "streams": number(&back, "streams")?,
            "retries": number(&back, "retries")?,
            "seconds": number(&back, "seconds")?,
            "cpu_micros_each": cpu.as_secs_f64() * 1e6 / number(&back, "streams")?,
            "resident_after": memory.resident,
        }))
    }

    fn nobody_is_behind(&mut self, extent: Extent) -> Result<()> {
        // The server has the last acknowledgements a moment after they were sent.
        for _ in 0..50 {
            let status = self.load.ask("status")?;
            if number(&status, "sidecars")? as usize == extent.sidecars()
                && number(&status, "behind")? == 0.0
            {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        bail!("the control plane's status does not show every sidecar with its newest Snapshot")
    }
}

/// The load generator, which does what it is told line by line.
struct Load {
    child: Child,
    commands: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Load {
    fn start(meshload: &Path, url: &str, admin: &Path, sidecars: usize) -> Result<Self> {
        let mut command = Command::new(meshload);
        command
            .arg(url)
            .arg(admin)
            .arg(sidecars.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut child = on_core(LOAD_CORE, &mut command)?;
        let commands = child
            .stdin
            .take()
            .context("no input of the load generator")?;
        let answers = child
            .stdout
            .take()
            .context("no output of the load generator")?;
        Ok(Self {
            child,
            commands,
            answers: BufReader::new(answers),
        })
    }

    fn ask(&mut self, line: &str) -> Result<Value> {
        eprintln!("{line}");
        writeln!(self.commands, "{line}").context("tell the load generator")?;
        let mut answer = String::new();
        self.answers
            .read_line(&mut answer)
            .context("hear the load generator")?;
        let answer: Value = serde_json::from_str(&answer)
            .with_context(|| format!("`{line}`: the load generator has ended"))?;
        match answer.get("error").and_then(Value::as_str) {
            Some(error) => bail!("`{line}`: {error}"),
            None => Ok(answer),
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        // One that has ended already is what we want.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn number(value: &Value, field: &str) -> Result<f64> {
    let found = value.get(field).and_then(Value::as_f64);
    found.with_context(|| format!("no `{field}` in {value}"))
}

fn list<'a>(value: &'a Value, pointer: &str) -> Result<&'a [Value]> {
    let found = value.pointer(pointer).and_then(Value::as_array);
    found
        .map(Vec::as_slice)
        .with_context(|| format!("no `{pointer}`"))
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value.get(field).and_then(Value::as_str).unwrap_or_default()
}

fn page(results: &Value) -> Result<String> {
    let mut page = String::new();
    let streams = results.get("streams").context("no streams")?;
    writeln!(
        page,
        "# Control plane\n\n{}\n\n{}; {}\n",
        text(results, "machine"),
        text(results, "split"),
        text(results, "store")
    )?;
    let kib = |field| number(streams, field).map(|bytes| bytes / 1024.0);
    writeln!(
        page,
        "| streams | RSS KiB each | PSS KiB each | RSS MiB, all | connect CPU µs each | idle, of one core |\n\
         |--:|--:|--:|--:|--:|--:|\n| {:.0} | {:.1} | {:.1} | {:.0} | {:.0} | {:.1} % |\n",
        number(streams, "held")?,
        kib("resident_each")?,
        kib("proportional_each")?,
        kib("resident_after")? / 1024.0,
        number(streams, "connected_cpu_micros_each")?,
        100.0 * number(streams, "idle_cpu_share")?,
    )?;
    writeln!(
        page,
        "| issuance | certificates | per second | CPU µs each |\n|---|--:|--:|--:|"
    )?;
    for row in [
        list(results, "/streams/attested")?,
        list(results, "/issuance")?,
    ]
    .concat()
    {
        writeln!(
            page,
            "| {} | {:.0} | {:.0} | {:.0} |",
            text(&row, "how"),
            number(&row, "count")?,
            number(&row, "per_second")?,
            number(&row, "cpu_micros_each")?,
        )?;
    }
    writeln!(
        page,
        "\n| a change touches | acks | answered after s | last ack after s | CPU ms |\n|---|--:|--:|--:|--:|"
    )?;
    for row in list(results, "/changes")? {
        writeln!(
            page,
            "| {} | {:.0} | {:.3} | {:.3} | {:.0} |",
            text(row, "touched"),
            number(row, "acks")?,
            number(row, "answered_seconds")?,
            number(row, "last_ack_seconds")?,
            1000.0 * number(row, "cpu_seconds_each")?,
        )?;
    }
    let herd = results.get("herd").context("no herd")?;
    writeln!(
        page,
        "\nEverybody reconnects at once: {:.1} s to the last acknowledgement, {:.0} retries, {:.0} µs of CPU each.",
        number(herd, "seconds")?,
        number(herd, "retries")?,
        number(herd, "cpu_micros_each")?,
    )?;
    writeln!(page, "\n{}", aims(results)?)?;
    Ok(page)
}

/// Which of the aims are met.
fn aims(results: &Value) -> Result<String> {
    let streams = results.get("streams").context("no streams")?;
    let slowest = list(results, "/issuance")?
        .iter()
        .map(|row| number(row, "per_second"))
        .collect::<Result<Vec<_>>>()?
        .into_iter()
        .fold(f64::INFINITY, f64::min);
    let last = list(results, "/changes")?.last().context("no change")?;
    let verdict = |met: bool| if met { "met" } else { "missed" };
    Ok(format!(
        "Aims: memory per stream {}, issuances per second {}, last acknowledgement {}.",
        verdict(number(streams, "resident_each")? <= BYTES_PER_STREAM),
        verdict(slowest >= ISSUANCES_PER_SECOND),
        verdict(number(last, "last_ack_seconds")? <= SECONDS_TO_LAST_ACK),
    ))
}
