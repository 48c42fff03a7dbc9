//! What masking costs: `fender exec --supervise --mask-output` passes on what its command writes, lines of a log with a value in one of a
//! hundred, beside `cat`, which does nothing with the same lines, and `sed`, which replaces the values as they are and in none of
//! the forms that Fender looks for.
//!
//! Counted is the CPU time of the subject's own process, kernel and user, from the first byte that comes out to the last; the command
//! that writes and the bench that reads are others. Whoever lost, doubled or showed something fails.

use std::fs::{self, File};
use std::io::{BufWriter, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::machine::Machine;
use super::process::{Process, cpu_time};
use super::results::median;
use super::{Extent, LOAD_CORE, SUBJECT_CORE};
use crate::build;

/// How many values are looked for.
const SECRETS: [usize; 3] = [1, 10, 100];
/// How long each is.
const LENGTH: usize = 32;
/// How much one pass over the lines writes.
const PASS: usize = 64 * 1024 * 1024;
/// One line of so many has a value in it.
const SHOWN: usize = 100;
/// What `sed` keeps to itself before its end.
const KEPT_BACK: u64 = 64 * 1024;
const MARK: &str = "***";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Subject {
    Fender,
    Sed,
    Cat,
}

impl Subject {
    /// How often it passes the lines on. What takes a minute for that does it less often.
    fn passes(self, extent: Extent) -> usize {
        match (extent, self) {
            (Extent::Quick, _) | (Extent::Full, Self::Sed) => 1,
            (Extent::Full, Self::Fender | Self::Cat) => 16,
        }
    }
}

pub(crate) fn run(root: &Path, extent: Extent, fender: Option<&Path>) -> Result<()> {
    let fender = match fender {
        Some(given) => fs::canonicalize(given)
            .with_context(|| format!("find the binary `{}`", given.display()))?,
        None => build::to_publish(root)?,
    };
    let work = root.join("bench/work/mask");
    if work.exists() {
        fs::remove_dir_all(&work).context("empty bench/work/mask")?;
    }
    let rounds = match extent {
        Extent::Quick => 1,
        Extent::Full => 3,
    };
    let machine = Machine::this()?;
    println!(
        "{}, {} cores, Linux {}: MB for each CPU second, the median of {rounds}\n",
        machine.processor, machine.cores, machine.kernel
    );
    println!("| values | fender | sed | cat |\n|---|---|---|---|");
    for secrets in SECRETS {
        let lines = Lines::make(&work.join(secrets.to_string()), secrets)?;
        let mut row = format!("| {secrets} |");
        for subject in [Subject::Fender, Subject::Sed, Subject::Cat] {
            let mut rates = Vec::new();
            for _ in 0..rounds {
                eprintln!("{secrets} values: {subject:?}");
                let passes = subject.passes(extent);
                let spent = lines
                    .pass(subject, &fender, passes)
                    .with_context(|| format!("{subject:?} with {secrets} values"))?;
                let megabytes = lines.length as f64 * passes as f64 / 1e6;
                rates.push(megabytes / spent.as_secs_f64());
            }
            row += &format!(" {:.0} |", median(rates).context("no figures")?);
        }
        println!("{row}");
    }
    Ok(())
}

/// What is written, and what is to be hidden in it.
struct Lines {
    directory: PathBuf,
    secrets: Vec<String>,
    /// How many bytes come out of one pass, as they are and with all values hidden.
    length: u64,
    hidden: u64,
}

impl Lines {
    fn make(directory: &Path, count: usize) -> Result<Self> {
        fs::create_dir_all(directory).context("make a directory of bench/work")?;
        let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15);
        let secrets: Vec<_> = (0..count).map(|_| numbers.text(LENGTH)).collect();
        let config = config(directory, &secrets)?;
        fs::write(directory.join("sidecar.yaml"), config).context("write the configuration")?;
        let file = File::create(directory.join("lines")).context("make the lines")?;
        let mut file = BufWriter::new(file);
        let (mut length, mut shown) = (0, 0);
        let mut values = secrets.iter().cycle();
        for line in 1.. {
            if length >= PASS {
                break;
            }
            let [id, path, took] = [numbers.next(), numbers.next(), numbers.next()];
            let mut text = format!(
                "2026-11-27T19:{:02}:{:02}.{:06}Z  INFO request{{id={id:016x}}} method=GET path=/api/orders/{} status=200 \
                 took={}us agent=\"Mozilla/5.0 (X11; Linux x86_64)\"\n",
                line / 60 % 60,
                line % 60,
                line % 1_000_000,
                path % 100_000,
                took % 10_000
            );
            if line % SHOWN == 0 {
                text += &format!("password={}\n", values.next().context("no values")?);
                shown += 1;
            }
            file.write_all(text.as_bytes()).context("write the lines")?;
            length += text.len();
        }
        file.flush().context("write the lines")?;
        Ok(Self {
            directory: directory.to_owned(),
            secrets,
            length: length as u64,
            hidden: (length - shown * (LENGTH - MARK.len())) as u64,
        })
    }

    /// What it costs this subject to pass them on so many times.
    fn pass(&self, subject: Subject, fender: &Path, passes: usize) -> Result<Duration> {
        // It stays until it is ended: so does the subject, and what it has used can be read.
        let script = format!(
            "i=0; while [ $i -lt {passes} ]; do cat lines; i=$((i+1)); done; exec sleep 600"
        );
        let mut writer = Command::new("sh");
        writer.current_dir(&self.directory).args(["-c", &script]);
        let mut command = match subject {
            Subject::Fender => {
                let mut command = Command::new(fender);
                command
                    .args(["exec", "--supervise", "--mask-output"])
                    .args(["--config", "sidecar.yaml", "--", "sh", "-c", &script])
                    .stdin(Stdio::null());
                command
            }
            Subject::Sed => {
                let mut command = Command::new("sed");
                command.env("LC_ALL", "C");
                for secret in &self.secrets {
                    command.args(["-e", &format!("s/{secret}/{MARK}/g")]);
                }
                command
            }
            Subject::Cat => Command::new("cat"),
        };
        let mut source = None;
        if subject != Subject::Fender {
            writer.stdin(Stdio::null()).stdout(Stdio::piped());
            let mut writer = Process::start_as_is(LOAD_CORE, writer)?;
            let lines = writer.child().stdout.take().context("no pipe")?;
            command.stdin(lines);
            source = Some(writer);
        }
        let log = File::create(self.directory.join(format!("{subject:?}.log")));
        command
            .current_dir(&self.directory)
            .stdout(Stdio::piped())
            .stderr(log.context("make a log")?);
        let mut process = Process::start_as_is(SUBJECT_CORE, command)?;
        // Of these two each has one process but for who writes, and that is another.
        let own = [process.child().id()];
        let mut out = process.child().stdout.take().context("no pipe")?;
        let (each, kept_back) = match subject {
            Subject::Fender => (self.hidden, 0),
            Subject::Sed => (self.hidden, KEPT_BACK),
            Subject::Cat => (self.length, 0),
        };
        let expected = each * passes as u64;
        let mut piece = vec![0; 256 * 1024];
        let mut came = out.read(&mut piece).context("read")?;
        let begun = cpu_time(&own);
        if subject != Subject::Cat {
            let text = piece.get(..came).unwrap_or_default();
            self.look(&String::from_utf8_lossy(text))?;
        }
        let mut all = came as u64;
        while came > 0 && all + kept_back < expected {
            came = out.read(&mut piece).context("read")?;
            all += came as u64;
        }
        let spent = cpu_time(&own).saturating_sub(begun);
        ensure!(
            all <= expected && all + kept_back >= expected,
            "{all} bytes came out, and {expected} were to"
        );
        ensure!(!spent.is_zero(), "it cost nothing");
        drop((process, source));
        Ok(spent)
    }

    /// That nothing is shown.
    fn look(&self, text: &str) -> Result<()> {
        let shown = self.secrets.iter().any(|secret| text.contains(secret));
        ensure!(!shown, "a value is shown");
        Ok(())
    }
}

/// A `Sidecar` with these values, each from a file.
fn config(directory: &Path, secrets: &[String]) -> Result<String> {
    let names: Vec<_> = (0..secrets.len()).map(|at| format!("value-{at}")).collect();
    let head = "apiVersion: fender.dev/v1\n";
    let mut text = format!(
        "{head}kind: Sidecar\nmetadata: {{ namespace: bench, name: mask }}\nspec: {{ credentials: [ {} ] }}\n",
        names.join(", ")
    );
    for (at, (name, secret)) in names.iter().zip(secrets).enumerate() {
        let file = directory.join(name);
        fs::write(&file, secret).context("write a value")?;
        text += &format!(
            "---\n{head}kind: Credential\nmetadata: {{ namespace: bench, name: {name} }}\nspec: {{ source: {{ file: {{ path: \"{}\" }} }}, \
             deliver: [ {{ environment: {{ variable: VALUE_{at} }} }} ] }}\n",
            file.display()
        );
    }
    Ok(text)
}

/// The same ones in each run (xorshift of Marsaglia, 2003).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn text(&mut self, length: usize) -> String {
        const LETTERS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
        let letters = (0..length).filter_map(|_| {
            let at = usize::try_from(self.next() % 62).ok()?;
            LETTERS.get(at).map(|letter| char::from(*letter))
        });
        letters.collect()
    }
}
