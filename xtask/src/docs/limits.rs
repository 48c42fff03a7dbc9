//! `docs/reference/limits.md`: every bound of the data plane, and of the socket for credentials, with its default and its reason, from the
//! comments in the code that holds to them, and by which field documents set it, if they do. A bound without a comment is
//! an error.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

/// The types whose fields are bounds, and where they are.
const SOURCES: [(&str, &str); 4] = [
    ("Limits", "crates/fender-proxy/src/limits.rs"),
    ("BodyLimits", "crates/fender-wire/src/body/decode.rs"),
    (
        "SocketLimits",
        "crates/fender-credentials/src/handover/limits.rs",
    ),
    (
        "UrlLimits",
        "crates/fender-credentials/src/handover/limits.rs",
    ),
];

/// What documents set, under the same names.
const SETTABLE: (&str, &str) = ("Limits", "crates/fender-config/src/raw/limits.rs");

const HEAD: &str = "\
# Limits

What a sidecar lets its peers, its application and itself take. A bound is never \"none\": what a peer can make it hold is
finite, and so is the time it may take. Each default leaves room for every honest use we know of. Those with a field can be set
by [documents](../guide/limits.md) within a range, and none can be lifted: a bound that somebody has lifted protects nobody.
Tell us where one of the others is in your way.

| limit | field of `limits` | default and reason |
|---|---|---|
";

pub(super) fn markdown(root: &Path) -> Result<String> {
    let read = |(name, file): (&str, &str)| {
        let source =
            fs::read_to_string(root.join(file)).with_context(|| format!("read `{file}`"))?;
        let fields = fields(&source, name).with_context(|| format!("read `{name}` in `{file}`"))?;
        let owned = fields.into_iter();
        let owned = owned.map(|(name, comment)| (name.to_owned(), comment));
        Ok::<Vec<_>, anyhow::Error>(owned.collect())
    };
    let mut settable: BTreeSet<_> = read(SETTABLE)?.into_iter().map(|(name, _)| name).collect();
    let mut table = HEAD.to_owned();
    for source in SOURCES {
        for (field, comment) in read(source)? {
            let set = match settable.remove(&field) {
                true => format!("`{}`", camel_case(&field)),
                false => "–".to_owned(),
            };
            let words = field.replace('_', " ");
            table.push_str(&format!("| {words} | {set} | {comment} |\n"));
        }
    }
    ensure!(
        settable.is_empty(),
        "documents set what is no bound: {settable:?}"
    );
    Ok(table)
}

/// A field as documents write it.
fn camel_case(field: &str) -> String {
    let mut words = field.split('_');
    let first = words.next().unwrap_or_default().to_owned();
    words.fold(first, |name, word| {
        let (initial, rest) = word.split_at(word.len().min(1));
        name + &initial.to_ascii_uppercase() + rest
    })
}

/// The fields of a type, each with its comment.
fn fields<'a>(source: &'a str, of: &str) -> Result<Vec<(&'a str, String)>> {
    let body = source.split_once(&format!(" struct {of} {{\n"));
    let body = body.and_then(|(_, rest)| rest.split_once("\n}\n"));
    let (body, _) = body.context("it is not there")?;
    let (mut fields, mut comment) = (Vec::new(), Vec::new());
    for line in body.lines().map(str::trim) {
        if let Some(text) = line.strip_prefix("///") {
            comment.push(text.trim());
        } else if let Some((name, _)) = line
            .strip_prefix("pub ")
            .or_else(|| line.strip_prefix("pub(crate) "))
            .and_then(|line| line.split_once(':'))
        {
            ensure!(
                !comment.is_empty(),
                "`{name}` says neither its default nor its reason"
            );
            // Links mean nothing outside the code.
            let text = comment.join(" ").replace(" ([`Limits::within`])", "");
            fields.push((name, text.replace('|', "\\|")));
            comment.clear();
        }
    }
    ensure!(!fields.is_empty(), "it has no fields");
    Ok(fields)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_field_comes_with_its_comment_and_none_without() {
        let source = "pub struct Limits {\n    /// All of it.\n    /// 1 s: soon.\n    pub idle: Duration,\n}\n";
        assert_eq!(
            fields(source, "Limits").unwrap(),
            [("idle", "All of it. 1 s: soon.".to_owned())]
        );
        assert!(
            fields(
                "pub struct Limits {\n    pub idle: Duration,\n}\n",
                "Limits"
            )
            .is_err()
        );
        assert!(fields(source, "Others").is_err());
        assert_eq!(camel_case("head_bytes"), "headBytes");
        assert_eq!(camel_case("idle"), "idle");
    }
}
