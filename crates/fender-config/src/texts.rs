//! The documents as they were written, one by one: for whoever compares them by eye. What they mean is not looked at.

use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::Source;
use crate::yaml::Page;

/// One document, verbatim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DocumentText<'a> {
    pub file: &'a str,
    /// Without the line that separates it from the one before.
    pub text: &'a str,
}

/// What a document says it is; empty where it does not.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct DocumentName {
    pub kind: String,
    /// Empty for what belongs to none, such as the `Mesh`.
    pub namespace: String,
    pub name: String,
}

#[derive(Debug, Default, Deserialize)]
struct Head {
    kind: Option<String>,
    metadata: Option<Metadata>,
}

#[derive(Debug, Default, Deserialize)]
struct Metadata {
    namespace: Option<String>,
    name: Option<String>,
    #[serde(flatten)]
    _rest: std::collections::BTreeMap<String, IgnoredAny>,
}

/// Every document of these files with its name, in their order.
pub fn texts(sources: &[Source]) -> Vec<(DocumentName, DocumentText<'_>)> {
    let pages = sources.iter().flat_map(Page::split);
    pages
        .map(|page| {
            let text = page.text.strip_prefix("---").map_or(page.text, |rest| {
                rest.split_once('\n').map_or("", |(_, rest)| rest)
            });
            let text = DocumentText {
                file: page.file,
                text,
            };
            (name(&page), text)
        })
        .collect()
}

fn name(page: &Page<'_>) -> DocumentName {
    let head: Option<Head> = page.tree().ok().and_then(|tree| tree.read().ok());
    let head = head.unwrap_or_default();
    let metadata = head.metadata.unwrap_or_default();
    DocumentName {
        kind: head.kind.unwrap_or_default(),
        namespace: metadata.namespace.unwrap_or_default(),
        name: metadata.name.unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_document_is_found_with_its_name_and_without_the_line_above_it() {
        let source = Source {
            name: "all.yaml".to_owned(),
            text: "# mine\nkind: Mesh\nmetadata: { name: mesh }\n--- # next\nkind: Workload\nmetadata: { namespace: shop, name: orders, labels: { a: b } }\nspec: {}\n---\n"
                .to_owned(),
        };
        let sources = [source];
        let read: Vec<_> = texts(&sources)
            .into_iter()
            .map(|(name, text)| (name.kind, name.namespace, name.name, text.text))
            .collect();
        let line = |kind: &str, namespace: &str, name: &str, text: &'static str| {
            (kind.to_owned(), namespace.to_owned(), name.to_owned(), text)
        };
        assert_eq!(
            read,
            [
                line(
                    "Mesh",
                    "",
                    "mesh",
                    "# mine\nkind: Mesh\nmetadata: { name: mesh }\n"
                ),
                line(
                    "Workload",
                    "shop",
                    "orders",
                    "kind: Workload\nmetadata: { namespace: shop, name: orders, labels: { a: b } }\nspec: {}\n"
                ),
            ]
        );
    }
}
