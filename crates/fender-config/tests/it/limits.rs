//! Documents made to hurt.

use std::fmt::Write;

use fender_config::{MAX_SOURCE_BYTES, parse};
use proptest::prelude::*;

use crate::source;

const MESH: &str = "apiVersion: fender.dev/v1\nkind: Mesh\nmetadata: { name: mesh }\nspec: { trustDomain: example.org }\n---\n";

fn codes(text: String) -> Vec<&'static str> {
    parse(&[source("hostile.yaml", text)])
        .unwrap_err()
        .iter()
        .map(|problem| problem.code)
        .collect()
}

#[test]
fn a_document_of_ten_megabytes_is_refused_by_its_size_and_hides_no_other_problem() {
    let huge = source("huge.yaml", format!("{MESH}# {}", "x".repeat(10_000_000)));
    let other = source("other.yaml", "apiVersion: fender.dev/v1\nkind: Nonsense\n");
    let problems = parse(&[huge, other]).unwrap_err();
    let told: Vec<String> = problems.iter().map(ToString::to_string).collect();
    assert_eq!(told.len(), 2);
    assert!(
        told[0].starts_with("huge.yaml: the file is longer than 4 MiB"),
        "{}",
        told[0]
    );
    assert!(
        told[1].starts_with("other.yaml:2:7: unknown kind `Nonsense`"),
        "{}",
        told[1]
    );
    assert!(problems.render().len() < 5_000);
}

#[test]
fn a_file_just_below_the_limit_is_read() {
    let mut text = MESH.to_owned();
    text.push_str("# ");
    text.push_str(&"x".repeat(MAX_SOURCE_BYTES - text.len()));
    assert!(parse(&[source("big.yaml", text)]).is_ok());
}

#[test]
fn an_alias_bomb_is_refused() {
    let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..12 {
        let before = format!("*a{}", level - 1);
        writeln!(
            text,
            "a{level}: &a{level} [{}]",
            vec![before; 10].join(", ")
        )
        .unwrap();
    }
    assert_eq!(codes(text), ["fender::too-large"]);
}

#[test]
fn nesting_without_end_is_refused() {
    for text in [
        "[".repeat(100_000),
        "{a: ".repeat(100_000),
        "- ".repeat(100_000),
    ] {
        assert_eq!(codes(text).len(), 1);
    }
}

#[test]
fn thousands_of_problems_are_cut_and_counted() {
    let mut text = MESH.to_owned();
    for number in 0..3_000 {
        writeln!(
            text,
            "---\napiVersion: fender.dev/v1\nkind: Nonsense{number}"
        )
        .unwrap();
    }
    let problems = parse(&[source("many.yaml", text)]).unwrap_err();
    assert_eq!(problems.iter().count(), 1_001);
    assert_eq!(
        problems.iter().last().unwrap().code,
        "fender::too-many-problems"
    );
    assert!(problems.render().ends_with("… and 901 more\n"));
}

#[test]
fn empty_files_documents_and_markers_are_nothing() {
    for text in [
        "",
        "\n\n",
        "---\n",
        "---\n---\n...\n---",
        "# only a comment\n",
        "\u{feff}---\n# x\n",
    ] {
        assert!(
            parse(&[source("empty.yaml", text)])
                .unwrap()
                .workloads
                .is_empty(),
            "{text:?}"
        );
    }
}

#[test]
fn a_marker_line_inside_a_text_does_not_swallow_what_follows() {
    let text = format!(
        "{MESH}apiVersion: \"fender.dev/v1\n---\nkind: Nonsense\napiVersion: fender.dev/v1\n"
    );
    assert_eq!(codes(text), ["fender::yaml", "fender::unknown-kind"]);
}

#[test]
fn windows_line_ends_and_a_byte_order_mark_do_not_matter() {
    let text = format!("\u{feff}{MESH}").replace('\n', "\r\n");
    assert!(parse(&[source("dos.yaml", text)]).unwrap().mesh.is_some());
}

/// A right file with some of its bytes replaced, removed or repeated.
fn damaged() -> impl Strategy<Value = String> {
    let text = crate::fixture("right", "shop.yaml").text;
    let cut = (
        0..text.len(),
        0..40usize,
        "[\\PC\\n\\t]{0,4}|---\n|: |\\{|\\[|&a |\\*a|\"",
    );
    proptest::collection::vec(cut, 1..4).prop_map(move |cuts| {
        let mut text = text.clone();
        for (at, length, with) in cuts {
            let at = text.floor_char_boundary(at);
            let end = text.floor_char_boundary(at + length);
            text.replace_range(at..end, &with);
        }
        text
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn damaged_documents_never_panic_and_every_problem_lies_in_the_file(text in damaged()) {
        let lines = text.lines().count();
        if let Err(problems) = parse(&[source("damaged.yaml", text)]) {
            prop_assert!(problems.iter().count() > 0);
            for problem in &problems {
                prop_assert!((1..=lines + 1).contains(&problem.line), "{} of {lines}", problem);
                prop_assert!(!problem.message.contains('\n'));
            }
            prop_assert!(!problems.render().is_empty());
        }
    }
}
