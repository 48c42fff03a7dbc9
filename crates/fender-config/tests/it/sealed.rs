//! What `source.age` and `source.sops` become.

use std::path::PathBuf;

use fender_config::snapshot::{AgeSecret, Origin, SopsFormat, SopsSecret};
use fender_config::{Documents, ObjectName, parse};

use crate::source;

fn origin(written: &str) -> Origin {
    let text = format!(
        "apiVersion: fender.dev/v1\nkind: Mesh\nmetadata: {{ name: mesh }}\nspec: {{ trustDomain: example.org }}\n---\n\
         apiVersion: fender.dev/v1\nkind: Credential\nmetadata: {{ namespace: shop, name: smtp }}\nspec:\n  \
         source: {{ {written} }}\n  deliver: [ {{ environment: {{ variable: X }} }} ]\n"
    );
    let documents: Documents =
        parse(&[source("sealed.yaml", &text)]).unwrap_or_else(|problems| panic!("{problems}"));
    let name = ObjectName::new("shop", "smtp").unwrap();
    documents.credentials.get(&name).unwrap().origin.clone()
}

fn sops(rest: &str) -> SopsSecret {
    let Origin::Sops(secret) = origin(&format!("sops: {{ identity: /i, {rest} }}")) else {
        panic!("not of SOPS")
    };
    secret
}

#[test]
fn both_files_are_what_must_be_allowed() {
    let files = [PathBuf::from("/run/smtp.age"), PathBuf::from("/i")];
    let origin = origin("age: { file: /run/smtp.age, identity: /i }");
    let [file, identity] = files.clone();
    assert_eq!(origin, Origin::Age(AgeSecret { file, identity }));
    assert_eq!(origin.files(), files);
    assert_eq!(
        sops("file: /s.yaml").files(),
        ["/s.yaml", "/i"].map(PathBuf::from)
    );
}

#[test]
fn the_name_says_the_format_unless_the_document_does() {
    assert_eq!(sops("file: /s.yaml").file.format, SopsFormat::Yaml);
    assert_eq!(sops("file: /s.d/key").file.format, SopsFormat::Binary);
    let said = sops("file: /s.enc, format: dotenv, key: X");
    assert_eq!(said.file.format, SopsFormat::Dotenv);
}

#[test]
fn a_key_is_written_with_dots_or_as_a_list() {
    let steps = |key: &str| {
        let key = sops(&format!("file: /s.yaml{key}")).key;
        key.map(|key| key.steps().join("|"))
    };
    assert_eq!(steps(""), None);
    assert_eq!(steps(", key: password").as_deref(), Some("password"));
    assert_eq!(steps(", key: a.b.0").as_deref(), Some("a|b|0"));
    assert_eq!(
        steps(", key: [ a.b, 0, true ]").as_deref(),
        Some("a.b|0|true")
    );
}

#[test]
fn what_the_guide_shows_is_read() {
    for guide in [
        include_str!("../../../../docs/guide/age.md"),
        include_str!("../../../../docs/guide/sops.md"),
    ] {
        let blocks: Vec<_> = guide.split("```yaml\n").skip(1).collect();
        assert!(!blocks.is_empty());
        for block in blocks {
            let (text, _) = block.split_once("```").unwrap();
            let mesh = "apiVersion: fender.dev/v1\nkind: Mesh\nmetadata: { name: mesh }\nspec: { trustDomain: example.org }\n---\n";
            let text = format!("{mesh}{text}");
            let read = parse(&[source("guide.yaml", &text)]);
            assert!(read.is_ok(), "{}", read.unwrap_err());
        }
    }
}
