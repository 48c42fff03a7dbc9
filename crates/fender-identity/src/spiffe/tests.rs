//! The grammar, against examples and against a slow, obvious model.

use proptest::prelude::*;

use super::*;

/// SPIFFE-ID section 2, as a person would check it with a pencil.
fn model(text: &str) -> Option<(String, String)> {
    const LETTERS: &str = "abcdefghijklmnopqrstuvwxyz";
    const OTHERS: &str = "0123456789.-_";
    if text.len() > 2048 || text.get(..9) != Some("spiffe://") {
        return None;
    }
    let mut parts: Vec<&str> = text[9..].split('/').collect();
    let trust_domain = parts.remove(0);
    let small = |c: char| LETTERS.contains(c) || OTHERS.contains(c);
    let any = |c: char| small(c) || LETTERS.to_uppercase().contains(c);
    let good_domain = (1..=255).contains(&trust_domain.len()) && trust_domain.chars().all(small);
    let good_segment =
        |part: &&str| !part.is_empty() && *part != "." && *part != ".." && part.chars().all(any);
    let good_path = !parts.is_empty() && parts.iter().all(good_segment);
    let path: String = parts.iter().map(|part| format!("/{part}")).collect();
    (good_domain && good_path).then(|| (trust_domain.to_owned(), path))
}

fn model_label(text: &str) -> bool {
    let characters: Vec<char> = text.chars().collect();
    (1..=63).contains(&characters.len())
        && characters
            .iter()
            .all(|c| "abcdefghijklmnopqrstuvwxyz0123456789-".contains(*c))
        && characters.first() != Some(&'-')
        && characters.last() != Some(&'-')
}

/// Text made of what matters to the grammar.
fn almost_an_id() -> impl Strategy<Value = String> {
    let part = prop::sample::select(vec![
        "spiffe://",
        "spiffe:/",
        "SPIFFE://",
        "/",
        "//",
        "/",
        "/",
        ".",
        "..",
        "/.",
        "/..",
        "a",
        "b",
        "Z",
        "9",
        "-",
        "_",
        ":",
        "@",
        "?",
        "#",
        "%2f",
        " ",
        "é",
        "\0",
        "ns",
        "sa",
        "mesh.example",
        "/ns/",
        "/sa/",
        "/fender/",
        "\\",
        "[::1]",
        "*",
    ]);
    (any::<bool>(), prop::collection::vec(part, 0..12)).prop_map(|(scheme, parts)| {
        format!(
            "{}{}",
            if scheme { "spiffe://" } else { "" },
            parts.concat()
        )
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn an_id_is_what_the_model_says(text in almost_an_id()) {
        let parsed = text.parse::<SpiffeId>();
        let parts = parsed.as_ref().ok().map(|id| {
            (id.trust_domain().as_str().to_owned(), id.path().to_owned())
        });
        prop_assert_eq!(parts, model(&text), "{:?}", parsed);
    }

    #[test]
    fn arbitrary_text_is_what_the_model_says(text in ".*") {
        prop_assert_eq!(text.parse::<SpiffeId>().is_ok(), model(&text).is_some());
    }

    #[test]
    fn an_id_is_written_as_it_was_read(text in "spiffe://[a-z0-9._-]{1,20}(/[A-Za-z0-9_-]{1,9}){1,5}") {
        let id: SpiffeId = text.parse().unwrap();
        prop_assert_eq!(id.to_string(), text.clone());
        prop_assert_eq!(format!("spiffe://{}{}", id.trust_domain(), id.path()), text);
    }

    #[test]
    fn a_label_is_what_the_model_says(namespace in "[a-c0-9A-é_.-]{0,6}", name in "[a-z0-9-]{0,70}") {
        let expected = model_label(&namespace) && model_label(&name);
        prop_assert_eq!(WorkloadName::new(&namespace, &name).is_ok(), expected);
    }

    #[test]
    fn a_workload_comes_back_from_its_id(name in "[a-z0-9]{1,63}/[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?") {
        let workload: WorkloadName = name.parse().unwrap();
        let id = SpiffeId::for_workload(&"mesh.example".parse().unwrap(), &workload);
        prop_assert_eq!(id.workload(), Some(workload));
        prop_assert_eq!(id.as_str().parse::<SpiffeId>().unwrap(), id.clone());
        prop_assert!(!id.is_reserved());
    }
}

fn refused(text: &str) -> SpiffeIdError {
    text.parse::<SpiffeId>().unwrap_err()
}

#[test]
fn each_broken_rule_has_its_own_error() {
    use SpiffeIdError as E;
    assert!(matches!(refused("https://mesh/a"), E::Scheme { .. }));
    assert!(matches!(refused("Spiffe://mesh/a"), E::Scheme { .. }));
    assert!(matches!(refused(""), E::Scheme { .. }));
    assert!(matches!(refused("spiffe:///a"), E::NoTrustDomain));
    assert!(matches!(
        refused("spiffe://user@mesh/a"),
        E::TrustDomainCharacter { .. }
    ));
    assert!(matches!(
        refused("spiffe://mesh:1/a"),
        E::TrustDomainCharacter { .. }
    ));
    assert!(matches!(
        refused("spiffe://Mesh/a"),
        E::TrustDomainCharacter { .. }
    ));
    assert!(matches!(
        refused("spiffe://mesh?q"),
        E::TrustDomainCharacter { .. }
    ));
    assert!(matches!(refused("spiffe://mesh"), E::NoPath { .. }));
    assert!(matches!(refused("spiffe://mesh/"), E::EmptySegment { .. }));
    assert!(matches!(
        refused("spiffe://mesh/a//b"),
        E::EmptySegment { .. }
    ));
    assert!(matches!(
        refused("spiffe://mesh/a/"),
        E::EmptySegment { .. }
    ));
    assert!(matches!(
        refused("spiffe://mesh/a/../b"),
        E::DotSegment { .. }
    ));
    assert!(matches!(refused("spiffe://mesh/./b"), E::DotSegment { .. }));
    assert!(matches!(
        refused("spiffe://mesh/a%20b"),
        E::PathCharacter { .. }
    ));
    assert!(matches!(
        refused("spiffe://mesh/a#b"),
        E::PathCharacter { .. }
    ));
}

#[test]
fn lengths_are_capped() {
    let long_domain = format!("spiffe://{}/a", "d".repeat(256));
    assert!(matches!(
        refused(&long_domain),
        SpiffeIdError::TrustDomainTooLong { .. }
    ));
    assert!(
        format!("spiffe://{}/a", "d".repeat(255))
            .parse::<SpiffeId>()
            .is_ok()
    );
    let fits = format!("spiffe://mesh/{}", "p".repeat(2048 - 14));
    assert!(fits.parse::<SpiffeId>().is_ok());
    assert!(matches!(
        refused(&format!("{fits}p")),
        SpiffeIdError::TooLong { length: 2049, .. }
    ));
}

#[test]
fn hostile_text_is_shown_short_and_printable() {
    let shown = refused(&format!("\u{1b}[31m{}", "x".repeat(500))).to_string();
    assert!(!shown.contains('\u{1b}'), "{shown}");
    assert!(shown.len() < 200, "{shown}");
}

#[test]
fn fenders_own_parts_have_reserved_names() {
    let mesh: TrustDomain = "mesh.example".parse().unwrap();
    let control = SpiffeId::control(&mesh);
    assert_eq!(control.as_str(), "spiffe://mesh.example/fender/control");
    assert!(control.is_control() && control.is_reserved());
    assert_eq!(control.workload(), None);

    let admin = SpiffeId::admin(&mesh, "first").unwrap();
    assert_eq!(admin.as_str(), "spiffe://mesh.example/fender/admin/first");
    assert_eq!(admin.admin_name(), Some("first"));
    assert!(admin.is_reserved() && !admin.is_control());
    assert!(SpiffeId::admin(&mesh, "../control").is_err());

    let agent = SpiffeId::for_agent(&mesh, &"edge-1".parse().unwrap());
    assert_eq!(agent.as_str(), "spiffe://mesh.example/fender/agent/edge-1");
    assert_eq!(agent.node().unwrap().as_str(), "edge-1");
    assert!(agent.is_reserved() && agent.admin_name().is_none() && agent.workload().is_none());
    assert!("../control".parse::<NodeName>().is_err());
    assert_eq!(admin.node(), None);

    let near: SpiffeId = "spiffe://mesh.example/fenders/control".parse().unwrap();
    assert!(!near.is_reserved() && !near.is_control());
}

#[test]
fn only_the_exact_shape_names_a_workload() {
    for path in [
        "/ns/a",
        "/ns/a/sa",
        "/ns/a/sa/b/c",
        "/ns/a/b/sa/c",
        "/NS/a/sa/b",
        "/ns/A/sa/b",
    ] {
        let id: SpiffeId = format!("spiffe://mesh{path}").parse().unwrap();
        assert_eq!(id.workload(), None, "{path}");
    }
    let id: SpiffeId = "spiffe://mesh/ns/shop/sa/orders".parse().unwrap();
    assert_eq!(id.workload().unwrap().to_string(), "shop/orders");
}

#[test]
fn a_workload_name_without_a_namespace_says_how_to_write_it() {
    let error = "orders".parse::<WorkloadName>().unwrap_err().to_string();
    assert_eq!(
        error,
        "`orders` is not a workload: write it as namespace/name"
    );
    assert!("a/b/c".parse::<WorkloadName>().is_err());
}
