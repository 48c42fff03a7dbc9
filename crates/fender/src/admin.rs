//! The administrator's commands: apply, token, svid, ca.
//!
//! Each is one call to the control plane with the administrator's certificate. Nothing is decided here: the control plane does.

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use fender_api::admin::{
    Admin, AdminError, AdminIdentity, Bearer, Consents, Problem, Proposal, Proposed, Trial,
};
use fender_api::proto::control::v1::AuthorityRole;
use fender_identity::WorkloadName;
use fender_runtime::clock;
use fender_runtime::deadline::Deadline;
use serde_json::Value;

use crate::cli;
use crate::exit::{Exit, Failure, Outcome};
use crate::source::control;
use crate::{load, print, render};

/// One call, connection included.
pub(crate) const CALL_TIME: Duration = Duration::from_secs(20);

/// People's certificates carry this namespace; no workload can have it.
const PEOPLE: &str = "people";

pub(crate) async fn apply(args: cli::Apply) -> Outcome {
    let what = match (&args.file, args.revision) {
        (_, Some(number)) => Proposed::Revision(number),
        (Some(path), None) => Proposed::Files(checked(path)?),
        (None, None) => return Err(Failure::usage("there is nothing to apply: give --file")),
    };
    let proposal = Proposal {
        what,
        trial: match args.dry_run {
            true => Trial::DryRun,
            false => Trial::InEarnest,
        },
        upon: args.upon,
        consents: Consents {
            cut_off_admins: args.cut_off_admins,
            delete_in_use: args.delete_in_use,
        },
    };
    let trial = proposal.trial;
    let mut control = connect(&args.admin).await?;
    let answer = control
        .apply(proposal, Deadline::after(CALL_TIME))
        .await
        .map_err(refused)?;
    if !answer.problems.is_empty() {
        let lines: String = answer
            .problems
            .iter()
            .fold(String::new(), |mut text, problem| {
                let _ = write!(text, "\n{}", problem_line(problem));
                text
            });
        return Err(Failure::usage(format!(
            "the control plane refuses the documents:{lines}\nnothing was applied"
        )));
    }
    print(&render::applied(&answer, trial))?;
    match answer.objections.first() {
        None => Ok(Exit::Done),
        Some(first) => {
            let code = first.code.clone();
            let lines = render::objections(&answer.objections);
            let what = match trial {
                Trial::DryRun => "this would not be applied",
                Trial::InEarnest => "nothing was applied",
            };
            Err(Failure::coded(
                Exit::Refused,
                code,
                anyhow::anyhow!("{what}:\n{lines}"),
            ))
        }
    }
}

/// The documents of a path. Checked here first: the text is at hand, so problems can be shown in it.
fn checked(path: &Path) -> Result<Vec<fender_config::Source>, Failure> {
    let sources = load::documents(path).map_err(|error| Failure::new(Exit::Usage, error))?;
    match fender_config::parse(&sources) {
        Ok(_) => Ok(sources),
        Err(problems) => Err(Failure::usage(format!(
            "the documents are refused\n{}\nnothing was applied",
            problems.render()
        ))),
    }
}

pub(crate) async fn create_token(args: cli::TokenCreate) -> Outcome {
    let bearer = match (args.workload, args.node) {
        (Some(workload), _) => Bearer::Workload(workload),
        (None, Some(node)) => Bearer::Node(node),
        (None, None) => return Err(Failure::usage("name a workload, or a node with `--node`")),
    };
    // A token whose file cannot be written would be out all the same.
    if let Some(path) = args.out.as_deref() {
        can_be_written(path)?;
    }
    let mut control = connect(&args.admin).await?;
    let made = control
        .create_token(&bearer, args.ttl, Deadline::after(CALL_TIME))
        .await
        .map_err(refused)?;
    let token = made.token.to_text();
    let text = token
        .expose_str()
        .context("read the token")
        .map_err(Failure::unavailable)?;
    match args.out {
        Some(path) => {
            write_private(&path, &format!("{text}\n")).map_err(Failure::unavailable)?;
            Ok(Exit::Done)
        }
        None => print(&format!("{text}\n")),
    }
}

pub(crate) async fn write_svid(args: cli::SvidWrite) -> Outcome {
    let mut control = connect(&args.admin).await?;
    let deadline = Deadline::after(CALL_TIME);
    let issued = match &args.for_admin {
        Some(name) => control.issue_admin(name, args.ttl, deadline).await,
        None => {
            let person = WorkloadName::new(PEOPLE, &args.name).map_err(|error| {
                Failure::usage(format!(
                    "`{}` cannot be a person's name here ({error}); give another with --name",
                    args.name
                ))
            })?;
            control.issue_svid(&person, args.ttl, deadline).await
        }
    };
    let (svid, bundle) = issued.map_err(refused)?;
    let key_pem = svid.key_pem();
    let write = || -> anyhow::Result<()> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&args.dir)
            .with_context(|| format!("make `{}`", args.dir.display()))?;
        write_private(
            &args.dir.join("key.pem"),
            key_pem.expose_str().context("write the key as PEM")?,
        )?;
        write_private(&args.dir.join("certificate.pem"), &svid.chain_pem())?;
        write_private(&args.dir.join("bundle.pem"), &bundle.to_pem())
    };
    write().map_err(Failure::unavailable)?;
    let until = i64::try_from(svid.validity().not_after.as_secs()).unwrap_or_default();
    print(&format!(
        "{} until {}\n{dir}/certificate.pem {dir}/key.pem {dir}/bundle.pem\n",
        svid.id(),
        render::moment(until),
        dir = args.dir.display()
    ))
}

pub(crate) async fn rotate_authority(args: cli::CaRotate) -> Outcome {
    let role = match args.root {
        true => AuthorityRole::Root,
        false => AuthorityRole::Intermediate,
    };
    let mut control = connect(&args.admin).await?;
    let made = control
        .rotate_authority(role, Deadline::after(CALL_TIME))
        .await
        .map_err(refused)?;
    let made = render::tame(&render::authority_json(&made));
    let field = |name: &str| made.get(name).and_then(Value::as_str).unwrap_or_default();
    print(&format!(
        "{} {} made, {}, signs from {}, ends {}\n",
        field("subject"),
        field("serial"),
        field("standing"),
        field("signs_from"),
        field("not_after"),
    ))
}

pub(crate) async fn connect(admin: &cli::Admin) -> Result<Admin, Failure> {
    let control = control(&admin.control)?;
    let identity = AdminIdentity::load(&admin.admin).map_err(|error| {
        refused(error).context(format!(
            "use the administrator's certificate in `{}` (--admin)",
            admin.admin.display()
        ))
    })?;
    Admin::connect(
        &control,
        &identity,
        clock::system(),
        Deadline::after(CALL_TIME),
    )
    .await
    .map_err(refused)
}

pub(crate) fn refused(error: AdminError) -> Failure {
    let exit = Exit::from_code(error.exit_code());
    match error.code() {
        Some(code) => Failure::coded(exit, code.as_str(), error),
        None => Failure::new(exit, error),
    }
}

fn problem_line(problem: &Problem) -> String {
    let place = match (problem.file.as_str(), problem.line) {
        // What is wrong with all of them together is nowhere.
        ("", _) => String::new(),
        (file, 0) => format!("{file}: "),
        (file, line) => format!("{file}:{line}:{}: ", problem.column),
    };
    let help = if problem.help.is_empty() {
        String::new()
    } else {
        format!("\n    help: {}", problem.help)
    };
    format!("{place}{} [{}]{help}", problem.message, problem.code)
}

/// What can be seen of a file's place before there is anything to write.
pub(crate) fn can_be_written(path: &Path) -> Result<(), Failure> {
    let parent = path.parent().filter(|it| !it.as_os_str().is_empty());
    let directory = parent.unwrap_or(Path::new("."));
    if path.is_dir() {
        return Err(Failure::usage(format!(
            "`{}` is a directory: name a file in it",
            path.display()
        )));
    }
    if !directory.is_dir() {
        return Err(Failure::usage(format!(
            "there is no directory `{}` to write `{}` to: make it first",
            directory.display(),
            path.display()
        )));
    }
    Ok(())
}

/// A file that never was readable by others, put in place whole.
fn write_private(path: &Path, text: &str) -> anyhow::Result<()> {
    let name = path
        .file_name()
        .with_context(|| format!("`{}` names no file", path.display()))?;
    let mut fresh = std::ffi::OsString::from(".");
    fresh.push(name);
    fresh.push(format!(".{}", fender_runtime::id::OpaqueId::random()));
    let fresh = path.with_file_name(fresh);
    let written = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&fresh)
        .and_then(|mut file| {
            file.write_all(text.as_bytes())
                .and_then(|()| file.sync_all())
        })
        .and_then(|()| fs::rename(&fresh, path));
    written.map_err(|error| {
        // What could not be put in place must not stay beside it.
        let _ = fs::remove_file(&fresh);
        anyhow::Error::new(error).context(format!("write `{}`", path.display()))
    })
}
