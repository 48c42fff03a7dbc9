//! What differs between two sets of documents, in their text: for people, who wrote comments and an order too. What
//! differs in meaning is known to the documents themselves.

use std::collections::BTreeMap;
use std::time::Duration;

use fender_api::proto::control::v1::Difference;
use fender_config::{DocumentName, Source, texts};
use similar::TextDiff;

/// Lines around a change.
const CONTEXT: usize = 3;
/// What all differences together may weigh, so that they fit into one answer.
const MAX_TEXT: usize = 8 * 1024 * 1024;
/// How long one document is looked at for the shortest difference; then a longer one does.
const PATIENCE: Duration = Duration::from_millis(200);
/// In place of a text that would not fit.
const TOO_LONG: &str = "(too much to show)\n";

/// Every document that differs and that `visible` lets be seen, in the order of kinds and names.
pub(crate) fn between(
    before: &[Source],
    after: &[Source],
    visible: impl Fn(&DocumentName) -> bool,
) -> Vec<Difference> {
    let (before, after) = (by_name(before), by_name(after));
    let mut names: Vec<_> = before.keys().chain(after.keys()).collect();
    names.sort_unstable();
    names.dedup();
    let mut room = MAX_TEXT;
    names
        .into_iter()
        .filter(|name| visible(name))
        .filter_map(|name| {
            let one = before.get(name).map_or("", String::as_str);
            let other = after.get(name).map_or("", String::as_str);
            let text = (one != other).then(|| unified(one, other))?;
            let text = match room.checked_sub(text.len()) {
                Some(left) => {
                    room = left;
                    text
                }
                None => TOO_LONG.to_owned(),
            };
            Some(Difference {
                kind: name.kind.clone(),
                name: full_name(name),
                text,
            })
        })
        .collect()
}

/// `namespace/name`, or the name of what is of no namespace.
pub(crate) fn full_name(name: &DocumentName) -> String {
    match name.namespace.as_str() {
        "" => name.name.clone(),
        namespace => format!("{namespace}/{}", name.name),
    }
}

/// What has no name, or the same as another, stands together.
fn by_name(files: &[Source]) -> BTreeMap<DocumentName, String> {
    let mut all = BTreeMap::<_, String>::new();
    for (name, document) in texts(files) {
        all.entry(name).or_default().push_str(document.text);
    }
    all
}

fn unified(one: &str, other: &str) -> String {
    TextDiff::configure()
        .timeout(PATIENCE)
        .diff_lines(one, other)
        .unified_diff()
        .context_radius(CONTEXT)
        .missing_newline_hint(false)
        .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(text: &str) -> Vec<Source> {
        vec![Source {
            name: "mesh.yaml".to_owned(),
            text: text.to_owned(),
        }]
    }

    #[test]
    fn each_document_is_compared_with_itself_wherever_it_stands() {
        let orders = "kind: Workload\nmetadata: { namespace: shop, name: orders }\nspec: {}\n";
        let mesh = "kind: Mesh\nmetadata: { name: mesh }\n";
        let before = source(&format!("{mesh}---\n{orders}"));
        let after = source(&format!(
            "{}---\n{mesh}",
            orders.replace("{}", "{ drain: 5s }")
        ));
        let told = between(&before, &after, |_| true);
        assert_eq!(told.len(), 1, "{told:?}");
        assert_eq!(
            (told[0].kind.as_str(), told[0].name.as_str()),
            ("Workload", "shop/orders")
        );
        assert_eq!(
            told[0].text,
            "@@ -1,3 +1,3 @@\n kind: Workload\n metadata: { namespace: shop, name: orders }\n-spec: {}\n+spec: { drain: 5s }\n"
        );
        assert_eq!(
            between(&before, &after, |name| name.namespace == "bank"),
            []
        );
        assert_eq!(
            between(&before, &source(mesh), |_| true)[0]
                .text
                .matches("\n-")
                .count(),
            3
        );
    }

    #[test]
    fn attack_documents_made_to_be_slow_to_compare_do_not_hold_anybody_up() {
        let many = |seed: u64| -> String {
            let lines = (0..40_000_u64).map(|line| format!("{}\n", line.wrapping_mul(seed) % 97));
            lines.collect()
        };
        let began = std::time::Instant::now();
        let told = between(&source(&many(31)), &source(&many(57)), |_| true);
        assert_eq!(told.len(), 1);
        assert!(
            began.elapsed() < Duration::from_secs(60),
            "it gives up looking for the shortest"
        );
        let huge = source(&"kind: A\n".repeat(MAX_TEXT / 8 + 1));
        assert_eq!(between(&[], &huge, |_| true)[0].text, TOO_LONG);
    }
}
