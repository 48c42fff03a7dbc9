//! Files that SOPS itself wrote, what an attacker who may write them can do to them, and what SOPS would not write.

mod attacks;
mod forged;
mod scalars;

use super::*;

pub(super) fn ours() -> Identities {
    let file = Secret::from(include_str!("tests/identity.txt").to_owned());
    age::identities("/identity".as_ref(), &file).unwrap()
}

/// What is delivered of `text`, with or without a key.
fn delivered(text: &[u8], format: SopsFormat, key: Option<&str>) -> Result<String, String> {
    let document = match open(text, format, &ours()) {
        Ok(document) => document,
        Err(Refused::NotForUs(why)) => return Err(format!("denied: {why}")),
        Err(Refused::Malformed(Fault(what))) => return Err(what),
    };
    let secret = SopsSecret {
        file: SopsFile {
            path: "/s".into(),
            identity: "/i".into(),
            format,
        },
        key: key.map(|key| key.parse().unwrap()),
    };
    let value = document.value(&secret).map_err(|error| error.to_string())?;
    let text = value.expose_str().map(str::to_owned);
    Ok(text.unwrap_or_else(|| format!("{:?}", value.expose())))
}

pub(super) const YAML: &str = include_str!("tests/whole.yaml");
const JSON: &str = include_str!("tests/whole.json");
const DOTENV: &str = include_str!("tests/whole.env");
const INI: &str = include_str!("tests/whole.ini");

const WHOLE: &str = concat!(
    r#"{"database":{"user":"orders","password":"hunter2-hunter2","port":5432,"ratio":0.25,"tls":true,"#,
    r#""empty":"","nothing":null,"since":"2024-02-29T12:30:00.5Z","users":[{"name":"a","password":"first"},"#,
    r#"{"name":"b","password":"second"}],"key":"line one\nline two\n"},"api_unencrypted":{"url":"#,
    r#""https://api.internal","count":3,"factor":1.5,"since":"2024-01-02T00:00:00Z","octal":15,"whole":1,"#,
    r#""off":false,"yes":"yes","none":null}}"#
);

#[test]
fn what_sops_wrote_is_read_as_sops_reads_it() {
    let whole = |text: &str, format| delivered(text.as_bytes(), format, None).unwrap();
    assert_eq!(whole(YAML, SopsFormat::Yaml), WHOLE);
    let numbers = concat!(
        r#"{"database":{"password":"hunter2-hunter2","port":5432,"ratio":0.25,"#,
        r#""big":123456789012345680000000000000,"tls":false,"nothing":null,"list":[1,"two",{"three":3}]},"#,
        r#""note_unencrypted":"seen","n_unencrypted":12}"#
    );
    assert_eq!(whole(JSON, SopsFormat::Json), numbers);
    assert_eq!(
        whole(DOTENV, SopsFormat::Dotenv),
        r#"{"USER":"orders","PASSWORD":"hunter2-hunter2","KEY":"one\ntwo","EMPTY":"","NOTE_unencrypted":"seen"}"#
    );
    assert_eq!(
        whole(INI, SopsFormat::Ini),
        r#"{"DEFAULT":{"top":"1"},"database":{"user":"orders","password":"hunter2","note_unencrypted":"seen"}}"#
    );
    let binary = include_bytes!("tests/whole.bin");
    let Ok(document) = open(binary, SopsFormat::Binary, &ours()) else {
        panic!("it is not opened");
    };
    let data = document.0.field("data").unwrap().delivered().unwrap();
    assert_eq!(data.expose(), b"\x00\x01\xff\xfe binary hunter2\n");
}

#[test]
fn what_is_encrypted_may_be_said_in_any_way_of_sops() {
    for (text, format, expected) in [
        (
            include_str!("tests/pattern.yaml"),
            SopsFormat::Yaml,
            WHOLE.to_owned(),
        ),
        (
            include_str!("tests/but-pattern.yaml"),
            SopsFormat::Yaml,
            WHOLE.to_owned(),
        ),
        (
            include_str!("tests/only-encrypted.yaml"),
            SopsFormat::Yaml,
            WHOLE.to_owned(),
        ),
        (
            include_str!("tests/suffix.json"),
            SopsFormat::Json,
            delivered(JSON.as_bytes(), SopsFormat::Json, None).unwrap(),
        ),
    ] {
        assert_eq!(delivered(text.as_bytes(), format, None), Ok(expected));
    }
}

#[test]
fn a_key_names_a_part() {
    let part = |key| delivered(YAML.as_bytes(), SopsFormat::Yaml, Some(key));
    for (key, value) in [
        ("database.password", "hunter2-hunter2"),
        ("database.port", "5432"),
        ("database.ratio", "0.25"),
        ("database.tls", "true"),
        ("database.since", "2024-02-29T12:30:00.5Z"),
        ("database.key", "line one\nline two\n"),
        ("database.users.1.password", "second"),
        ("database.users.1", r#"{"name":"b","password":"second"}"#),
        ("api_unencrypted.url", "https://api.internal"),
    ] {
        assert_eq!(part(key).as_deref(), Ok(value), "{key}");
    }
    for key in [
        "database.passwords",
        "database.users.2",
        "database.users.01",
        "database.users.name",
        "database.password.x",
        "sops",
        "sops.mac",
    ] {
        let error = part(key).unwrap_err();
        assert!(error.contains("missing") && error.contains(key), "{error}");
    }
    for key in ["database.empty", "database.nothing"] {
        let error = part(key).unwrap_err();
        assert!(error.contains("malformed"), "{error}");
    }
}

#[test]
fn a_file_for_others_is_denied_and_one_for_several_groups_refused() {
    let others = include_bytes!("tests/other.yaml");
    let error = delivered(others, SopsFormat::Yaml, None).unwrap_err();
    assert_eq!(error, "denied: is encrypted for none of the identities");
    let pgp = YAML.replace("\n    age:\n", "\n    pgp:\n");
    let error = delivered(pgp.as_bytes(), SopsFormat::Yaml, None).unwrap_err();
    assert_eq!(error, "denied: is encrypted by way of pgp, and not for age");
    let groups = include_bytes!("tests/groups.yaml");
    let error = delivered(groups, SopsFormat::Yaml, None).unwrap_err();
    assert!(error.contains("several key groups"), "{error}");
    let documents = include_bytes!("tests/documents.yaml");
    let error = delivered(documents, SopsFormat::Yaml, None).unwrap_err();
    assert!(error.contains("several documents"), "{error}");
}

#[test]
fn bytes_that_are_no_text_are_delivered_by_themselves_alone() {
    let value = Value::Fields(vec![(
        "data".to_owned(),
        Value::Text(value::Text::new(vec![0xff])),
    )]);
    assert!(value.json().is_err());
    assert_eq!(
        value.field("data").unwrap().delivered().unwrap().expose(),
        [0xff]
    );
}

#[test]
fn numbers_are_proven_in_gos_words() {
    let proven = |value: Value| String::from_utf8(value.proven().unwrap().into_owned()).unwrap();
    for (number, text) in [
        (1.0, "1"),
        (0.1, "0.1"),
        (-0.0, "-0"),
        (1e21, "1000000000000000000000"),
        (1.5e-7, "0.00000015"),
        (123_456_789.123, "123456789.123"),
        (f64::INFINITY, "+Inf"),
        (f64::NEG_INFINITY, "-Inf"),
        (f64::NAN, "NaN"),
    ] {
        assert_eq!(proven(Value::Float(number)), text);
    }
    assert_eq!(proven(Value::Bool(true)), "True");
    assert_eq!(proven(Value::Int(-5)), "-5");
    assert!(Value::Null.proven().is_none());
}

#[test]
fn no_error_and_no_debug_shows_what_was_encrypted() {
    let document = open(YAML.as_bytes(), SopsFormat::Yaml, &ours());
    let Ok(document) = document else {
        panic!("it is not opened")
    };
    let shown = format!("{document:?}");
    assert!(
        !shown.contains("hunter2") && !shown.contains("second"),
        "{shown}"
    );
    assert!(!shown.contains("104, 117"), "the bytes as numbers: {shown}");
}

#[test]
fn whatever_is_in_the_place_of_a_file_is_read_within_bounds_or_refused() {
    let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz/corpus/sealed");
    let files = std::fs::read_dir(corpus).unwrap();
    let inputs: Vec<_> = files
        .map(|file| std::fs::read(file.unwrap().path()).unwrap())
        .collect();
    assert!(
        inputs.len() >= 30,
        "{corpus} holds only {} inputs",
        inputs.len()
    );
    for input in inputs {
        checks::sealed(&input);
        // And every beginning of it, for each of the formats.
        for kind in 0..6 {
            let step = input.len() / 16 + 1;
            for end in (1..input.len()).step_by(step) {
                let mut cut = input[..end].to_vec();
                cut[0] = kind;
                checks::sealed(&cut);
            }
        }
    }
}
