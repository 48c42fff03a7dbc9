//! The administrator's commands about the audit log: list, export, verify.
//!
//! It is verified here, entry by entry, and not by the control plane: whether its word can be taken is what is asked.

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader, BufWriter, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use anyhow::Context;
use fender_api::admin::Admin;
use fender_api::audit::{self, Broken, Chain, Entry, Head};
use fender_runtime::deadline::Deadline;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::admin::{CALL_TIME, connect, refused};
use crate::exit::{Exit, Failure, Outcome};
use crate::status::show;
use crate::{cli, print, render};

/// What `fender audit-log list` shows unless it is told how many.
const SHOWN: u64 = 50;
/// No entry is nearly as long.
const MAX_LINE: u64 = 64 * 1024;

pub(crate) async fn run(args: cli::AuditLog) -> Outcome {
    match args {
        cli::AuditLog::List(args) => list(args).await,
        cli::AuditLog::Export(args) => export(args).await,
        cli::AuditLog::Verify(args) => match &args.file {
            Some(path) => verified(verify_file(path, args.head)?),
            None => verify(&args.admin, args.head).await,
        },
    }
}

async fn list(args: cli::AuditLogList) -> Outcome {
    let since = args.since.map_or(0, |moment| {
        i64::try_from(moment.as_secs()).unwrap_or(i64::MAX)
    });
    let last = match (args.last, args.since) {
        (Some(last), _) => last,
        (None, Some(_)) => 0,
        (None, None) => SHOWN,
    };
    let mut admin = connect(&args.admin).await?;
    let mut all = Vec::new();
    pages(&mut admin, since, last, |entry| {
        all.push(json!({
            "sequence": entry.sequence,
            "time": render::moment(entry.time_unix),
            "actor": entry.actor,
            "action": entry.action,
            "subject": entry.subject,
            "outcome": entry.outcome,
            "detail": entry.detail,
        }));
        Ok(())
    })
    .await?;
    show(args.output, &json!({ "entries": all }), table)
}

async fn export(args: cli::AuditLogExport) -> Outcome {
    let mut admin = connect(&args.admin).await?;
    let path = args.out.display().to_string();
    let failed =
        |error: anyhow::Error| Failure::unavailable(error.context(format!("write `{path}`")));
    let file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&args.out)
        .map_err(|error| failed(error.into()))?;
    let mut out = BufWriter::new(file);
    let mut chain = Ok(Chain::default());
    let written = pages(&mut admin, 0, 0, |entry| {
        // What is broken is exported all the same, to be looked at.
        if let Ok(so_far) = &mut chain
            && let Err(broken) = so_far.follow(&entry)
        {
            chain = Err(broken);
        }
        let mut line =
            serde_json::to_string(&Line::from(entry)).map_err(|error| failed(error.into()))?;
        line.push('\n');
        out.write_all(line.as_bytes())
            .map_err(|error| failed(error.into()))
    })
    .await
    .and_then(|()| {
        out.flush()
            .and_then(|()| out.get_ref().sync_all())
            .map_err(|error| failed(error.into()))
    });
    if let Err(failure) = written {
        // Half a log looks like one that was cut off.
        let _ = fs::remove_file(&args.out);
        return Err(failure);
    }
    verified(chain.and_then(Chain::end))
}

async fn verify(admin: &cli::Admin, noted: Option<Head>) -> Outcome {
    let mut admin = connect(admin).await?;
    let mut chain = Chain::through(noted);
    let mut broken = None;
    pages(&mut admin, 0, 0, |entry| {
        if broken.is_none() {
            broken = chain.follow(&entry).err();
        }
        Ok(())
    })
    .await?;
    verified(match broken {
        Some(broken) => Err(broken),
        None => chain.end(),
    })
}

/// All entries there are, in order.
async fn pages(
    admin: &mut Admin,
    since: i64,
    last: u64,
    mut each: impl FnMut(Entry) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let (mut after, mut newest) = (0, last);
    loop {
        let page = admin
            .audit_log(after, since, newest, Deadline::after(CALL_TIME))
            .await
            .map_err(refused)?;
        let Some(end) = page.last() else {
            return Ok(());
        };
        // What came meanwhile does not push the oldest out.
        (after, newest) = (end.sequence, 0);
        page.into_iter().try_for_each(&mut each)?;
    }
}

fn verify_file(path: &Path, noted: Option<Head>) -> Result<Result<Option<Head>, Broken>, Failure> {
    let unreadable = |error: anyhow::Error| {
        Failure::new(
            Exit::Usage,
            error.context(format!("read the audit log in `{}`", path.display())),
        )
    };
    let file = fs::File::open(path).map_err(|error| unreadable(error.into()))?;
    let mut reader = BufReader::new(file);
    let mut chain = Chain::through(noted);
    for number in 1_u64.. {
        let mut line = String::new();
        let read = (&mut reader)
            .take(MAX_LINE)
            .read_line(&mut line)
            .with_context(|| format!("line {number}"));
        if read.map_err(unreadable)? == 0 {
            break;
        }
        let entry = serde_json::from_str::<Line>(&line)
            .map_err(anyhow::Error::from)
            .and_then(Entry::try_from)
            .with_context(|| format!("line {number}"))
            .map_err(unreadable)?;
        if let Err(broken) = chain.follow(&entry) {
            return Ok(Err(broken));
        }
    }
    Ok(chain.end())
}

fn verified(chain: Result<Option<Head>, Broken>) -> Outcome {
    match chain {
        Ok(Some(head)) => print(&format!("whole; note its head elsewhere: {head}\n")),
        Ok(None) => print("there are no entries\n"),
        Err(broken) => Err(Failure::coded(
            Exit::Refused,
            "audit-log-broken",
            anyhow::Error::new(broken).context("the audit log is not as it was written"),
        )),
    }
}

/// An entry in a file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    sequence: u64,
    time_unix: i64,
    actor: String,
    action: String,
    subject: String,
    outcome: String,
    detail: String,
    hash: String,
}

impl From<Entry> for Line {
    fn from(entry: Entry) -> Self {
        Self {
            sequence: entry.sequence,
            time_unix: entry.time_unix,
            actor: entry.actor,
            action: entry.action,
            subject: entry.subject,
            outcome: entry.outcome,
            detail: entry.detail,
            hash: audit::to_hex(&entry.hash),
        }
    }
}

impl TryFrom<Line> for Entry {
    type Error = anyhow::Error;

    fn try_from(line: Line) -> anyhow::Result<Self> {
        Ok(Self {
            sequence: line.sequence,
            time_unix: line.time_unix,
            actor: line.actor,
            action: line.action,
            subject: line.subject,
            outcome: line.outcome,
            detail: line.detail,
            hash: audit::from_hex(&line.hash).context("`hash` is not hexadecimal")?,
        })
    }
}

fn table(value: &Value) -> String {
    let entries = value["entries"].as_array().into_iter().flatten();
    entries.fold(String::new(), |mut text, entry| {
        let word = |name: &str| entry[name].as_str().unwrap_or_default();
        let _ = writeln!(
            text,
            "{:>6} {} {} {} {} {}\n       {}",
            entry["sequence"].to_string(),
            word("time"),
            word("actor"),
            word("action"),
            word("outcome"),
            word("subject"),
            word("detail"),
        );
        text
    })
}
