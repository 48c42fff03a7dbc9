//! The administrator's commands about revisions: list, show, diff. To go back to one is `fender apply --revision`.

use std::fmt::Write as _;

use fender_api::admin::Against;
use fender_api::proto::control::v1::{Document, Revision};
use fender_runtime::deadline::Deadline;
use serde_json::{Value, json};

use crate::admin::{CALL_TIME, connect, refused};
use crate::cli::{self, Output};
use crate::exit::{Exit, Failure, Outcome};
use crate::status::show;
use crate::{load, print, render};

pub(crate) async fn list_or_show(args: cli::Revisions) -> Outcome {
    match args.command {
        Some(cli::RevisionsCommand::Show(args)) => show_one(args).await,
        None => list(args).await,
    }
}

async fn list(args: cli::Revisions) -> Outcome {
    let last = usize::try_from(args.last).unwrap_or(usize::MAX);
    let (revisions, in_force) = connect(&args.admin)
        .await?
        .revisions(args.before, last, Deadline::after(CALL_TIME))
        .await
        .map_err(refused)?;
    let all: Vec<_> = revisions
        .iter()
        .map(|revision| revision_json(revision, in_force))
        .collect();
    show(args.output, &json!({ "revisions": all }), table)
}

async fn show_one(args: cli::RevisionsShow) -> Outcome {
    let shown = connect(&args.admin)
        .await?
        .show_revision(args.number, Deadline::after(CALL_TIME))
        .await
        .map_err(refused)?;
    match args.output {
        Output::Json => {
            let revision = shown.revision.unwrap_or_default();
            let documents: Vec<_> = shown
                .documents
                .iter()
                .map(|document| {
                    json!({
                        "kind": document.kind, "name": document.name,
                        "file": document.file, "text": document.text,
                    })
                })
                .collect();
            // As it was written: it may be parsed, and JSON writes what is not text as escapes.
            let all = json!({
                "revision": revision.number,
                "applied": render::moment(revision.applied_unix),
                "applied_by": revision.applied_by,
                "documents": documents,
            });
            print(&format!("{all:#}\n"))
        }
        Output::Table => print(&written(&shown.documents)),
    }
}

pub(crate) async fn diff(args: cli::Diff) -> Outcome {
    let against = match (&args.file, args.to) {
        (Some(path), _) => {
            Against::Files(load::documents(path).map_err(|error| Failure::new(Exit::Usage, error))?)
        }
        (None, Some(number)) => Against::Revision(number),
        (None, None) => Against::InForce,
    };
    let compared = connect(&args.admin)
        .await?
        .compare(args.from, against, Deadline::after(CALL_TIME))
        .await
        .map_err(refused)?;
    let mut out: String = compared
        .differences
        .iter()
        .map(render::difference_text)
        .collect();
    if out.is_empty() {
        let other = match compared.to {
            Some(number) => format!("revision {number}"),
            None => "these documents".to_owned(),
        };
        let _ = writeln!(
            out,
            "no difference between revision {} and {other}",
            compared.from
        );
    }
    print(&out)
}

fn revision_json(revision: &Revision, in_force: u64) -> Value {
    json!({
        "number": revision.number,
        "in_force": revision.number == in_force,
        "applied": render::moment(revision.applied_unix),
        "applied_by": revision.applied_by,
        "documents": revision.documents,
    })
}

fn table(all: &Value) -> String {
    let mut out = String::from("  REVISION  APPLIED               DOCUMENTS  BY\n");
    let revisions = all.get("revisions").and_then(Value::as_array);
    for revision in revisions.into_iter().flatten() {
        let mark = match revision["in_force"] == Value::Bool(true) {
            true => '*',
            false => ' ',
        };
        let text = |name: &str| {
            revision
                .get(name)
                .and_then(Value::as_str)
                .unwrap_or_default()
        };
        let _ = writeln!(
            out,
            "{mark} {:<9} {:<21} {:<10} {}",
            revision["number"].to_string(),
            text("applied"),
            revision["documents"].to_string(),
            text("applied_by"),
        );
    }
    out.push_str("* in force\n");
    out
}

/// One stream of documents, which can be applied as it is.
fn written(documents: &[Document]) -> String {
    let mut out = String::new();
    for document in documents {
        let file = document.file.replace(char::is_control, "\u{fffd}");
        let _ = writeln!(out, "--- # {file}");
        for line in document.text.lines() {
            // A tab is no danger, and nothing else that moves a cursor belongs into a document.
            out.push_str(&line.replace(|c: char| c.is_control() && c != '\t', "\u{fffd}"));
            out.push('\n');
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attack_a_document_does_not_speak_to_the_terminal() {
        let document = Document {
            file: "a\u{1b}[2J.yaml\nkind: Mesh".to_owned(),
            text: "kind: Workload # \u{1b}]52;c;aGk=\u{7}\n\tx\n".to_owned(),
            ..Document::default()
        };
        assert_eq!(
            written(&[document]),
            "--- # a\u{fffd}[2J.yaml\u{fffd}kind: Mesh\nkind: Workload # \u{fffd}]52;c;aGk=\u{fffd}\n\tx\n"
        );
    }
}
