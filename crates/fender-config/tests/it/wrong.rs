//! What a person sees who wrote something wrong. The snapshots are read by eye when they change.

use fender_config::{Problems, parse, standalone};

use crate::{fixture, fixtures, source};

fn tell(folder: &str, read: impl Fn(&str) -> Problems) {
    for name in fixtures(folder) {
        let problems = read(&name);
        for problem in problems.iter().chain(problems.warnings()) {
            assert!(problem.help.is_some(), "{problem}");
        }
        let snapshot = format!("{folder}__{}", name.trim_end_matches(".yaml"));
        insta::with_settings!({ omit_expression => true, prepend_module_to_snapshot => false }, {
            insta::assert_snapshot!(snapshot, problems.render());
        });
    }
}

#[test]
fn every_wrong_document_is_told_with_its_place_and_a_way_out() {
    tell("wrong", |name| {
        parse(&[fixture("wrong", name)]).unwrap_err()
    });
}

#[test]
fn every_wrong_standalone_file_is_told_with_its_place_and_a_way_out() {
    tell("wrong-alone", |name| {
        standalone::parse(&[fixture("wrong-alone", name)]).unwrap_err()
    });
}

#[test]
fn problems_of_all_files_are_told_together_in_the_order_of_files_and_lines() {
    let sources: Vec<_> = fixtures("wrong")
        .iter()
        .map(|name| fixture("wrong", name))
        .collect();
    let problems = parse(&sources).unwrap_err();
    let order: Vec<_> = problems
        .iter()
        .map(|problem| {
            (
                sources
                    .iter()
                    .position(|source| source.name == problem.file),
                problem.line,
                problem.column,
            )
        })
        .collect();
    assert!(order.is_sorted());
    for source in &sources {
        assert!(
            problems.iter().any(|problem| problem.file == source.name),
            "{}",
            source.name
        );
    }
}

#[test]
fn a_duplicate_in_another_file_is_told_with_both_places() {
    let workload = "apiVersion: fender.dev/v1\nkind: Workload\nmetadata: { namespace: shop, name: orders }\nspec: {}\n";
    let mesh = "apiVersion: fender.dev/v1\nkind: Mesh\nmetadata: { name: m }\nspec: { trustDomain: example.org }\n---\n";
    let problems = parse(&[
        source("a.yaml", format!("{mesh}{workload}")),
        source("b.yaml", workload),
    ])
    .unwrap_err();
    let told: Vec<String> = problems.iter().map(ToString::to_string).collect();
    assert_eq!(
        told,
        [
            "b.yaml:3:36: the Workload `shop/orders` is there twice (the first one is at a.yaml:8:36; keep one of them)"
        ]
    );
}

#[test]
fn a_document_cannot_steer_the_terminal_of_whoever_reads_the_problem() {
    let text = "apiVersion: fender.dev/v1\nkind: \"Me\\e[2Jsh\\n\"\n";
    let problems = parse(&[source("evil.yaml", text)]).unwrap_err();
    let problem = problems.iter().next().unwrap();
    assert_eq!(problem.message, "unknown kind `Me\\u{1b}[2Jsh\\n`");
    let raw = parse(&[source("raw.yaml", "kind: \u{1b}[2J\n")]).unwrap_err();
    assert!(!raw.render().contains('\u{1b}'), "{raw}");
}

#[test]
fn a_credential_listed_twice_is_told_once() {
    let text = "apiVersion: fender.dev/v1
kind: Mesh
metadata: { name: mesh }
spec: { trustDomain: example.org }
---
apiVersion: fender.dev/v1
kind: Workload
metadata: { namespace: shop, name: orders }
spec: { attest: [ { token: {} } ], credentials: [ smtp, smtp ] }
---
apiVersion: fender.dev/v1
kind: Credential
metadata: { namespace: shop, name: smtp }
spec: { source: { file: { path: /x } }, deliver: [ { environment: { variable: V } } ] }
";
    let problems = parse(&[source("a.yaml", text)]).unwrap_err();
    let told: Vec<String> = problems.iter().map(ToString::to_string).collect();
    assert_eq!(
        told,
        ["a.yaml:9:57: the Credential `shop/smtp` is listed twice (remove one of them)"]
    );
}

/// A DENY of what can never arrive would guard nothing.
#[test]
fn a_pattern_in_a_spelling_that_is_never_matched_is_refused() {
    let policy = |operation: &str| {
        let text = format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
             metadata: {{ namespace: shop, name: guard }}\n\
             spec: {{ action: DENY, rules: [ {{ to: [ {{ operation: {{ {operation} }} }} ] }} ] }}\n"
        );
        let problems = match parse(&[source("guard.yaml", &text)]) {
            Ok(_) => return false,
            Err(problems) => problems,
        };
        problems
            .iter()
            .any(|problem| problem.code == "fender::bad-pattern")
    };
    for never in [
        "/%61dmin",
        "/caf\u{e9}",
        "/caf%c3%a9",
        "/a b",
        "/a/../b",
        "/./a",
        "/a/..",
        "/%2e%2e/a",
        "/a\\\\b",
        "/%7Euser",
        "/a#b",
        "/a/{*}/%61",
        "/<x>",
    ] {
        assert!(policy(&format!("paths: [ \"{never}\" ]")), "{never}");
    }
    for sometimes in [
        "/admin",
        "/caf%C3%A9",
        "/a%20b",
        "*.js",
        "*",
        "/a*",
        "/a%2*",
        "/%2Fa",
        "/a;b=c",
        "/{*}/x",
        "/{**}",
        "/..a",
        "/%25*",
    ] {
        assert!(
            !policy(&format!("paths: [ \"{sometimes}\" ]")),
            "{sometimes}"
        );
    }
    for never in ["bad.example.", "*.example.", "b\u{fc}cher.example"] {
        assert!(policy(&format!("hosts: [ \"{never}\" ]")), "{never}");
    }
    for sometimes in [
        "bad.example",
        "*.example",
        "bad.*",
        "bad.example:8443",
        "[::1]",
        "*",
    ] {
        assert!(
            !policy(&format!("hosts: [ \"{sometimes}\" ]")),
            "{sometimes}"
        );
    }
}
