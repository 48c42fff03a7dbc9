use std::collections::BTreeSet;

use serde_json::json;

use super::*;

fn real_metadata() -> Value {
    let root = command::workspace_root().unwrap();
    let text = command::output(&mut command::cargo(
        &root,
        &["metadata", "--format-version", "1", "--no-deps"],
    ));
    serde_json::from_str(&text.unwrap()).unwrap()
}

/// The real workspace with one more arrow in it.
fn with_arrow(metadata: &Value, from: &str, dependency: Value) -> Value {
    let mut doctored = metadata.clone();
    let packages = doctored
        .get_mut("packages")
        .unwrap()
        .as_array_mut()
        .unwrap();
    let package = packages
        .iter_mut()
        .find(|package| package["name"] == from)
        .unwrap();
    package["dependencies"]
        .as_array_mut()
        .unwrap()
        .push(dependency);
    doctored
}

fn ours(name: &str, kind: Option<&str>) -> Value {
    json!({ "name": name, "kind": kind, "path": format!("/somewhere/{name}") })
}

fn foreign(name: &str, kind: Option<&str>) -> Value {
    json!({ "name": name, "kind": kind, "source": "registry" })
}

fn broken(metadata: &Value) -> Vec<String> {
    problems(&packages(metadata).unwrap())
}

#[test]
fn the_real_workspace_keeps_its_walls() {
    assert_eq!(broken(&real_metadata()), Vec::<String>::new());
}

#[test]
fn every_arrow_that_is_not_on_the_map_is_refused_in_each_kind() {
    let metadata = real_metadata();
    let present: BTreeSet<String> = packages(&metadata)
        .unwrap()
        .into_iter()
        .map(|package| package.name)
        .collect();
    let mut tried = 0;
    for (from, allowed) in MAP.iter().filter(|(name, _)| present.contains(*name)) {
        for (to, _) in MAP
            .iter()
            .filter(|(to, _)| to != from && !allowed.contains(to))
        {
            for kind in [None, Some("build"), Some("dev")] {
                let problems = broken(&with_arrow(&metadata, from, ours(to, kind)));
                assert_eq!(problems.len(), 1, "{from} -> {to} ({kind:?}): {problems:?}");
                assert!(problems[0].contains(&format!("`{from}`")), "{problems:?}");
                assert!(problems[0].contains(&format!("`{to}`")), "{problems:?}");
                tried += 1;
            }
        }
    }
    assert!(tried > 200, "only {tried} wrong arrows tried");
}

#[test]
fn siblings_never_import_each_other() {
    let metadata = real_metadata();
    let siblings = ["fender-proxy", "fender-credentials", "fender-control"];
    for from in siblings {
        for to in siblings.into_iter().filter(|to| *to != from) {
            let problems = broken(&with_arrow(&metadata, from, ours(to, None)));
            assert_eq!(
                problems,
                [format!(
                    "`{from}` depends on `{to}`: siblings never import each other; they meet in \
                     `fender`"
                )]
            );
        }
    }
}

#[test]
fn what_is_for_tests_does_not_get_into_the_binary() {
    let metadata = real_metadata();
    let problems = broken(&with_arrow(&metadata, "fender", ours("fender-tests", None)));
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(problems[0].contains("it is for tests"), "{problems:?}");
}

#[test]
fn an_arrow_that_points_up_says_so() {
    let problems = broken(&with_arrow(
        &real_metadata(),
        "fender-identity",
        ours("fender-policy", None),
    ));
    assert_eq!(
        problems,
        [
            "`fender-identity` depends on `fender-policy`: the arrow points up; `fender-policy` is \
          the one that may know `fender-identity`"
        ]
    );
}

#[test]
fn a_crate_nobody_put_on_the_map_is_an_error() {
    let mut metadata = real_metadata();
    let packages = metadata["packages"].as_array_mut().unwrap();
    packages.push(json!({ "name": "fender-utils", "dependencies": [] }));
    let problems = broken(&metadata);
    assert_eq!(problems.len(), 1);
    assert!(
        problems[0].starts_with("`fender-utils` is not on the map: add it"),
        "{problems:?}"
    );
}

#[test]
fn a_pure_crate_takes_nothing_that_does_input_or_output() {
    let metadata = real_metadata();
    for name in [
        "tokio",
        "tokio-rustls",
        "hyper-util",
        "sqlx",
        "socket2",
        "rustix",
    ] {
        let problems = broken(&with_arrow(&metadata, "fender-wire", foreign(name, None)));
        assert_eq!(problems.len(), 1, "{name}: {problems:?}");
        assert!(problems[0].contains("it is pure"), "{problems:?}");
    }
}

#[test]
fn a_pure_crate_may_use_a_runtime_in_its_tests() {
    let metadata = with_arrow(
        &real_metadata(),
        "fender-wire",
        foreign("tokio", Some("dev")),
    );
    assert_eq!(broken(&metadata), Vec::<String>::new());
}

#[test]
fn a_library_without_typed_errors_is_refused() {
    let metadata = with_arrow(&real_metadata(), "fender-proxy", foreign("anyhow", None));
    assert_eq!(broken(&metadata).len(), 1);
}

#[test]
fn all_broken_walls_are_reported_together() {
    let once = with_arrow(&real_metadata(), "fender-wire", ours("fender-proxy", None));
    let twice = with_arrow(&once, "fender-policy", ours("fender-config", None));
    assert_eq!(broken(&twice).len(), 2);
}

#[test]
fn the_map_itself_has_no_cycle_and_names_only_crates_on_it() {
    let mut settled: Vec<&str> = Vec::new();
    while settled.len() < MAP.len() {
        let before = settled.len();
        for (name, below) in MAP {
            if !settled.contains(name) && below.iter().all(|crate_| settled.contains(crate_)) {
                settled.push(name);
            }
        }
        assert!(
            settled.len() > before,
            "a cycle, or an unknown name, among the crates after {settled:?}"
        );
    }
}

#[test]
fn metadata_that_is_not_understood_is_an_error_not_a_pass() {
    assert!(packages(&json!({})).is_err());
    let odd = with_arrow(&real_metadata(), "fender", foreign("x", Some("sideways")));
    assert!(packages(&odd).is_err());
}
