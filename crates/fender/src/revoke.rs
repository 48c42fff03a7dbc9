//! The administrator's commands about revocation: revoke, revocations.
//!
//! Each is one call to the control plane, which decides who may and what it concerns.

use std::fmt::Write as _;

use fender_api::admin::{Myself, Revoke};
use fender_api::proto::control::v1 as proto;
use fender_api::proto::control::v1::denied_before::Whose;
use fender_api::proto::control::v1::revocation::What;
use fender_runtime::deadline::Deadline;
use serde_json::{Value, json};

use crate::admin::{CALL_TIME, connect, refused};
use crate::exit::Outcome;
use crate::status::show;
use crate::{cli, print, render};

pub(crate) async fn revoke(args: cli::Revoke) -> Outcome {
    let myself = |included| match included {
        true => Myself::Included,
        false => Myself::Spared,
    };
    let (admin, what, why) = match args {
        cli::Revoke::Serial(args) => (
            args.admin,
            Revoke::Serial(args.serial, myself(args.myself)),
            args.why,
        ),
        cli::Revoke::Workload(args) => (args.admin, Revoke::Workload(args.workload), args.why),
        cli::Revoke::Node(args) => (args.admin, Revoke::Node(args.node), args.why),
        cli::Revoke::IssuedBefore(args) => (
            args.admin,
            Revoke::IssuedBefore(args.moment, args.workload),
            args.why,
        ),
        cli::Revoke::Admin(args) => (
            args.admin,
            Revoke::Administrator(args.name, myself(args.myself)),
            args.why,
        ),
    };
    let revocation = connect(&admin)
        .await?
        .revoke(what, why.reason, Deadline::after(CALL_TIME))
        .await
        .map_err(refused)?;
    let mut text = format!(
        "revoked: {}, {}, the last of them until {}\n",
        what_of(&revocation),
        certificates(revocation.certificates),
        render::moment(revocation.until_unix)
    );
    for made in &revocation.made {
        let _ = writeln!(
            text,
            "still good, made by them: {}, until {}; `fender revoke serial {}` ends it",
            made.identity,
            render::moment(made.until_unix),
            made.serial
        );
    }
    print(&text)
}

pub(crate) async fn list(args: cli::Revocations) -> Outcome {
    let revocations = connect(&args.admin)
        .await?
        .revocations(Deadline::after(CALL_TIME))
        .await
        .map_err(refused)?;
    let all = revocations.iter().map(as_json).collect();
    show(
        args.output,
        &json!({ "revocations": Value::Array(all) }),
        table,
    )
}

fn as_json(revocation: &proto::Revocation) -> Value {
    json!({
        "number": revocation.number,
        "what": what_of(revocation),
        "reason": revocation.reason,
        "revoked_by": revocation.revoked_by,
        "revoked_at": render::moment(revocation.revoked_at_unix),
        "certificates": revocation.certificates,
        "until": render::moment(revocation.until_unix),
    })
}

fn what_of(revocation: &proto::Revocation) -> String {
    match &revocation.what {
        Some(What::Serial(serial)) => format!("serial {serial}"),
        Some(What::Before(before)) => {
            let whose = match &before.whose {
                Some(Whose::Identity(id)) => id.clone(),
                Some(Whose::TrustDomain(_)) => "every workload".to_owned(),
                None => String::new(),
            };
            format!(
                "{whose} issued before {}",
                render::moment(before.moment_unix)
            )
        }
        Some(What::Node(node)) => {
            format!("node {node}: its agent, and what began with its word")
        }
        None => String::new(),
    }
}

fn certificates(count: u64) -> String {
    match count {
        1 => "1 certificate".to_owned(),
        count => format!("{count} certificates"),
    }
}

fn table(value: &Value) -> String {
    let Some(revocations) = value["revocations"]
        .as_array()
        .filter(|all| !all.is_empty())
    else {
        return "nothing that could still be in use is revoked\n".to_owned();
    };
    revocations.iter().fold(String::new(), |mut text, one| {
        let word = |name: &str| one[name].as_str().unwrap_or_default().to_owned();
        let _ = writeln!(
            text,
            "{} {}: {}, until {}\n    {} ({})",
            word("revoked_at"),
            word("what"),
            certificates(one["certificates"].as_u64().unwrap_or_default()),
            word("until"),
            word("reason"),
            word("revoked_by"),
        );
        text
    })
}
