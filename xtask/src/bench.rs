//! What Fender costs beside the proxies people know: CPU time for each request, handshake and
//! megabyte, latency, memory, start-up and size; and what a control plane and what masking costs.
//!
//! Numbers are for the machine they were taken on and are kept with it. Everything is on loopback
//! and bounded in count and time; nothing is left running. No figure fails a run: it fails only
//! when something could not be measured.

mod chart;
mod check;
mod control;
mod crosscheck;
mod footprint;
mod goals;
mod instructions;
mod machine;
mod mask;
mod net;
mod options;
mod page;
mod pki;
mod process;
pub(crate) mod publish;
mod results;
mod rig;
mod subject;
mod work;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Resource, getrlimit, setpriority_process, setrlimit};

use self::machine::{Machine, Patience};
use self::net::{free_port, is_listening};
use self::options::{Asked, FOOTPRINT, Options};
use self::process::Process;
use self::results::{Failure, Results, Sample};
use self::rig::Rig;
use self::subject::{SPECS, Subject};
use self::work::{Kind, WORKS, Work};
use crate::elf::{self, Linking, Symbols};
use crate::{build, command, prepare};

const SUBJECT_CORE: usize = 0;
const LOAD_CORE: usize = 1;
/// Rounds of what takes long and varies little.
const FEW_ROUNDS: usize = 3;

/// How much time to spend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Extent {
    /// One short round: does everything still work?
    Quick,
    Full,
}

impl Extent {
    fn rounds(self) -> f64 {
        match self {
            Self::Quick => 1.0,
            Self::Full => 5.0,
        }
    }

    fn seconds(self) -> f64 {
        match self {
            Self::Quick => 1.0,
            Self::Full => 4.0,
        }
    }
}

/// Where things lie while the bench runs, and the application behind every subject.
struct Workshop {
    root: PathBuf,
    fender: PathBuf,
    tlsload: PathBuf,
    /// Emptied at the start of each run.
    work: PathBuf,
    pki: PathBuf,
    /// Where the application listens: plainly, and by mTLS for what is outbound.
    app: u16,
    app_tls: u16,
    backend: Process,
}

pub(crate) fn run(root: &Path, arguments: &[&str]) -> Result<()> {
    match Asked::parse(arguments)? {
        Asked::Measure(options) => measure(root, &options),
        Asked::Crosscheck(options) => crosscheck::run(root, &options),
        Asked::Instructions(options) => instructions::run(root, &options),
        Asked::WriteDocs(files) => publish::write(root, &files),
        Asked::Show(file) => {
            println!("{}", page::whole(&Results::read(&file)?)?);
            Ok(())
        }
        Asked::Control { extent, store } => control::run(root, extent, store.as_deref()),
        Asked::Mask { extent, fender } => mask::run(root, extent, fender.as_deref()),
        Asked::List => {
            list();
            Ok(())
        }
    }
}

fn list() {
    for spec in SPECS {
        let set = if spec.standard { "" } else { "  (--peers all)" };
        println!("{:<12} {}{set}", spec.name, spec.title);
    }
    println!();
    for work in WORKS {
        println!("{:<12} {}", work.name, work.about);
    }
    println!("{FOOTPRINT:<12} memory of Fender's processes when nothing happens");
}

fn measure(root: &Path, options: &Options) -> Result<()> {
    let workshop = Workshop::open(root, options)?;
    let mut results = Results::new(
        command::output(Command::new("date").args(["-u", "+%Y-%m-%d"]))?
            .trim_end()
            .to_owned(),
        source(root, options)?,
        Machine::this()?,
        options.rounds,
        options.window.as_secs_f64(),
    );
    let subjects = subjects(&workshop, options, &mut results);
    let mut rig = Rig {
        workshop: &workshop,
        window: options.window,
        thinned: options.thinned,
        patience: Patience::new(options.quiet, options.patience),
    };
    for work in &options.works {
        compare(&mut rig, work, &subjects, &mut results)?;
        results.write(&workshop.work.join("results.json"))?;
    }
    if options.footprint {
        eprintln!("{FOOTPRINT}");
        match footprint::measure(&workshop) {
            Ok(footprints) => results.footprints = footprints,
            Err(error) => fail(&mut results, FOOTPRINT, "fender", &error),
        }
    }
    results.write(&workshop.work.join("results.json"))?;
    println!("{}", page::whole(&results)?);
    if let Some(name) = &options.name {
        let directory = root.join("bench/results");
        fs::create_dir_all(&directory).context("make bench/results")?;
        let file = directory.join(format!("{}-{name}.json", results.date));
        results.write(&file)?;
        println!("Kept as `{}`.", file.display());
    }
    ensure!(
        results.failures.is_empty(),
        "{} could not be measured, see above",
        page::count(results.failures.len(), "thing", "things")
    );
    Ok(())
}

/// Those that are there and do what they are measured doing.
fn subjects(workshop: &Workshop, options: &Options, results: &mut Results) -> Vec<Subject> {
    let mut subjects = Vec::new();
    for spec in &options.subjects {
        eprintln!("check {}", spec.name);
        let checked = Subject::prepare(spec, workshop).and_then(|subject| {
            let measured = subject.measured()?;
            check::check(workshop, &subject)?;
            Ok((subject, measured))
        });
        match checked {
            Ok((subject, measured)) => {
                results.subjects.push(measured);
                subjects.push(subject);
            }
            Err(error) => fail(results, "check", spec.name, &error),
        }
    }
    subjects
}

/// One test of everybody who can do it, in rounds, each beginning with another subject.
fn compare(
    rig: &mut Rig<'_>,
    work: &Work,
    subjects: &[Subject],
    results: &mut Results,
) -> Result<()> {
    let able = subjects.iter().filter(|subject| subject.spec.can(work));
    let mut able: Vec<(&Subject, Option<Process>)> = able.map(|subject| (subject, None)).collect();
    if matches!(work.kind, Kind::Load(_)) {
        able.retain_mut(|(subject, running)| match subject.start() {
            Ok(process) => {
                *running = Some(process);
                true
            }
            Err(error) => {
                fail(results, work.name, subject.spec.name, &error);
                false
            }
        });
    }
    let rounds = match work.kind {
        Kind::Load(_) | Kind::Startup => results.rounds,
        Kind::Held { .. } | Kind::Beside { .. } => results.rounds.min(FEW_ROUNDS),
        Kind::Size | Kind::SizeAlone => 1,
    };
    for round in 0..rounds {
        let mut turns: Vec<usize> = (0..able.len()).collect();
        turns.rotate_left(round % able.len().max(1));
        let mut failed = Vec::new();
        for at in turns {
            let (subject, running) = able.get(at).context("a turn of nobody")?;
            eprintln!(
                "{} {} of {rounds}: {}",
                work.name,
                round + 1,
                subject.spec.name
            );
            match rig.sample(work, subject, running.as_ref()) {
                Ok(taken) => results.samples.push(Sample {
                    work: work.name.to_owned(),
                    subject: subject.spec.name.to_owned(),
                    round,
                    others_percent: taken.others_percent,
                    stolen_percent: taken.stolen_percent,
                    figures: taken.figures,
                }),
                Err(error) => {
                    fail(results, work.name, subject.spec.name, &error);
                    failed.push(subject.spec.name);
                }
            }
        }
        able.retain(|(subject, _)| !failed.contains(&subject.spec.name));
    }
    Ok(())
}

fn fail(results: &mut Results, work: &str, subject: &str, error: &anyhow::Error) {
    eprintln!("{work}, {subject}: {error:#}");
    results.failures.push(Failure {
        work: work.to_owned(),
        subject: subject.to_owned(),
        why: format!("{error:#}"),
    });
}

impl Workshop {
    fn open(root: &Path, options: &Options) -> Result<Self> {
        prepare::install(prepare::BENCH)?;
        raise_descriptors()?;
        let fender = match options.fender.as_deref() {
            Some(given) => fs::canonicalize(given)
                .with_context(|| format!("find the binary `{}`", given.display()))?,
            None => built(root)?,
        };
        let tlsload = build_tool(root, "tlsload", "tlsload")?;
        if options.priority {
            // Inherited by all that is started from here on.
            setpriority_process(None, -20).context("run before other programs; that needs root")?;
        }
        let work = root.join("bench/work");
        if work.exists() {
            fs::remove_dir_all(&work).context("empty bench/work")?;
        }
        let pki = work.join("pki");
        fs::create_dir_all(&pki).context("make bench/work")?;
        pki::make(&pki)?;
        let (app, app_tls) = (free_port()?, free_port()?);
        let mut backend = Command::new(&tlsload);
        backend
            .current_dir(&pki)
            .args(["backend", "--http", &format!("127.0.0.1:{app}")])
            .args(["--https", &format!("127.0.0.1:{app_tls}")])
            .args([
                "--cert",
                "server.crt",
                "--key",
                "server.key",
                "--ca",
                "ca.crt",
            ]);
        let mut backend = Process::start(LOAD_CORE, backend, &work.join("backend.log"))?;
        backend.wait_until("listener", || is_listening(app) && is_listening(app_tls))?;
        Ok(Self {
            root: root.to_owned(),
            fender,
            tlsload,
            work,
            pki,
            app,
            app_tls,
            backend,
        })
    }
}

/// The binary as it is published: static, and without symbols.
fn built(root: &Path) -> Result<PathBuf> {
    let fender = build::to_publish(root)?;
    let bytes = fs::read(&fender).with_context(|| format!("read `{}`", fender.display()))?;
    let binary = elf::read(&bytes)?;
    ensure!(
        binary.linking == Linking::Static,
        "the binary is not static"
    );
    ensure!(
        binary.symbols == Symbols::Stripped,
        "the binary is not stripped"
    );
    Ok(fender)
}

/// Builds a tool of the bench, which is a crate outside the workspace.
fn build_tool(root: &Path, package: &str, binary: &str) -> Result<PathBuf> {
    let target = root.join("bench/target");
    let mut build = command::cargo(root, &["build", "--locked", "--release"]);
    build
        .args([
            "--manifest-path",
            &format!("bench/{package}/Cargo.toml"),
            "--target-dir",
        ])
        .arg(&target);
    build.args(["--message-format=json-render-diagnostics"]);
    let messages = command::output(&mut build)?;
    build::executable(&messages, binary).with_context(|| format!("find `{binary}`"))
}

/// What the binary was made from, as far as that is known.
fn source(root: &Path, options: &Options) -> Result<String> {
    if options.fender.is_some() {
        let said = options.source.as_deref();
        return Ok(said.unwrap_or("a binary that was given").to_owned());
    }
    let git = |arguments: &[&str]| {
        let mut git = Command::new("git");
        command::output(git.current_dir(root).args(arguments))
    };
    let commit = git(&["rev-parse", "--short=12", "HEAD"])?;
    let changed = !git(&["status", "--porcelain", "--", "crates", "Cargo.lock"])?.is_empty();
    let state = if changed { ", with changes" } else { "" };
    Ok(format!("commit {}{state}", commit.trim_end()))
}

/// As many descriptors as this process may have; its children inherit them.
fn raise_descriptors() -> Result<()> {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).context("raise the limit of descriptors")
}
