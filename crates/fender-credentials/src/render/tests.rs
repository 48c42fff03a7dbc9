use std::fs;
use std::process::Command;

use fender_config::snapshot::FieldFormat;

use super::*;

fn name() -> ObjectName {
    ObjectName::new("shop", "db").unwrap()
}

fn rendered(value: &str, content: &Content) -> Result<String, RenderError> {
    let (value, name) = (Secret::from(value.to_owned()), name());
    let rendered = Material::new(&value, &name).render(content)?;
    Ok(String::from_utf8(rendered.file.expose().to_vec()).unwrap())
}

fn template(text: &str) -> Content {
    Content::Template(text.parse().unwrap())
}

fn fill(value: &str, text: &str) -> Result<String, RenderError> {
    rendered(value, &template(text))
}

fn all(format: FieldFormat) -> Content {
    Content::Fields {
        format,
        fields: Vec::new(),
    }
}

const DB: &str = r#"{"username": "ord\"ers", "password": "p@ss/w'rd", "port": 5432, "tls": {"ca": "one\ntwo", "on": true}, "hosts": ["a", "b"], "none": null, "ratio": 0.5}"#;

#[test]
fn a_template_is_filled_in_with_fields() {
    for (text, expected) in [
        (
            "postgres://{{ username | urlencode }}:{{ password | urlencode }}@db:{{ port }}/x",
            "postgres://ord%22ers:p%40ss%2Fw%27rd@db:5432/x",
        ),
        ("{{ tls.ca | json }}\n", "\"one\\ntwo\"\n"),
        ("{{ tls.ca | multiline }}", "one\ntwo"),
        ("{{ fields[\"username\"] | json }}", "\"ord\\\"ers\""),
        (
            "{% for host in hosts %}{{ host }}:{{ port }};{% endfor %}",
            "a:5432;b:5432;",
        ),
        (
            "{% if absent is defined %}x{% else %}y{% endif %}{{ tls.on }}",
            "ytrue",
        ),
        (
            "{{ (username ~ \":\" ~ password) | base64 }}",
            "b3JkImVyczpwQHNzL3cncmQ=",
        ),
        (
            "{{ hosts | json }} {{ tls | yaml }}",
            "[\"a\", \"b\"] {\"ca\": \"one\\ntwo\", \"on\": true}",
        ),
        ("{{ password | shell }}", "'p@ss/w'\\''rd'"),
        ("{{ username | xml }}", "ord&quot;ers"),
        ("{{ none | json }}{{ \" x \" | trim }}", "nullx"),
    ] {
        assert_eq!(fill(DB, text).as_deref(), Ok(expected), "{text}");
    }
}

#[test]
fn a_value_without_fields_is_a_value_without_the_line_feed_of_an_editor() {
    assert_eq!(
        fill("hunter2\n", "password={{ value }}\n").as_deref(),
        Ok("password=hunter2\n")
    );
    assert_eq!(
        rendered("hunter2\n", &Content::Value).as_deref(),
        Ok("hunter2\n")
    );
}

#[test]
fn what_is_not_there_is_an_error_that_names_it_and_no_value() {
    for (text, expected) in [
        ("{{ pasword }}", "no field `pasword`"),
        ("{{ tls.cert }} {{ user }}", "no field `tls.cert`, `user`"),
        ("{{ fields[\"x\"] }}", "a field is not there"),
        ("{% if pasword %}{% endif %}", "no field `pasword`"),
        ("{% for x in absent %}{% endfor %}", "no field `absent`"),
        ("{{ absent | json }}", "no field `absent`"),
        ("{{ value }}", "no field `value`"),
        ("a\nb {{ none }}", "line 2: a value is null"),
        ("{{ ratio }}", "not whole"),
        ("{{ hosts }}", "list or an object"),
        ("{{ username < port }}{{ username.x }}", ""),
    ] {
        let error = fill(DB, text).unwrap_err().to_string();
        assert!(error.contains(expected), "{text}: {error}");
        assert!(
            !error.contains("ord\"") && !error.contains("p@ss"),
            "{error}"
        );
    }
    let error = fill("hunter2", "{{ password }}").unwrap_err().to_string();
    assert!(
        error.contains("no JSON object") && !error.contains("hunter2"),
        "{error}"
    );
}

/// A value that tries to be more than a value where it stands.
#[test]
fn attack_no_value_writes_a_line_or_a_setting_of_its_own() {
    let evil =
        "x'\"\\\nLD_PRELOAD=/tmp/evil.so\r\n# {{ password }} ${HOME} `id` \u{2028}\u{85}\u{7f}é😀";
    let json = serde_json::json!({ "k": evil }).to_string();
    let error = fill(&json, "PASSWORD={{ k }}\n").unwrap_err().to_string();
    assert!(
        error.contains("line breaks") && !error.contains("LD_"),
        "{error}"
    );
    for sneaky in [
        "{{ k | trim }}",
        "{{ k ~ \"\" }}",
        "{{ k[0:] }}",
        "{{ k if true else k }}",
    ] {
        assert!(fill(&json, sneaky).is_err(), "{sneaky}");
    }
    for filter in ["json", "yaml", "properties", "urlencode", "base64"] {
        let text = fill(&json, &format!("{{{{ k | {filter} }}}}")).unwrap();
        assert!(!text.chars().any(escape::breaks), "{filter}: {text}");
    }
    let read: String = serde_json::from_str(&fill(&json, "{{ k | json }}").unwrap()).unwrap();
    assert_eq!(read, evil);
    assert!(fill(&json, "{{ k | dotenv }}").is_err());
    assert!(rendered(&json, &all(FieldFormat::Dotenv)).is_err());
    let properties = rendered(&json, &all(FieldFormat::Properties)).unwrap();
    assert_eq!(properties.lines().count(), 1, "{properties}");
    assert!(
        properties.is_ascii() && properties.contains("\\uD83D\\uDE00"),
        "{properties}"
    );
    // A shell takes it for one word, whatever is in it.
    let word = fill(&json, "printf %s {{ k | shell }}").unwrap();
    let shell = Command::new("/bin/sh")
        .args(["-c", &word])
        .output()
        .unwrap();
    assert_eq!(String::from_utf8(shell.stdout).unwrap(), evil);
}

#[test]
fn formats_hold_all_fields_or_those_that_are_named() {
    let flat = r#"{"user": "orders", "pass word": "a=b #c", "port": 5432, "on": true}"#;
    let named = |format, names: &[&str]| Content::Fields {
        format,
        fields: names.iter().map(|name| name.parse().unwrap()).collect(),
    };
    assert_eq!(
        rendered(flat, &all(FieldFormat::Json)).as_deref(),
        Ok("{\"on\": true, \"pass word\": \"a=b #c\", \"port\": 5432, \"user\": \"orders\"}\n")
    );
    assert_eq!(
        rendered(flat, &all(FieldFormat::Yaml)).as_deref(),
        Ok("\"on\": true\n\"pass word\": \"a=b #c\"\n\"port\": 5432\n\"user\": \"orders\"\n")
    );
    assert_eq!(
        rendered(flat, &all(FieldFormat::Properties)).as_deref(),
        Ok("on=true\npass\\ word=a\\=b \\#c\nport=5432\nuser=orders\n")
    );
    assert_eq!(
        rendered(flat, &named(FieldFormat::Dotenv, &["user", "port"])).as_deref(),
        Ok("user=orders\nport=5432\n")
    );
    let error = rendered(flat, &all(FieldFormat::Dotenv)).unwrap_err();
    assert!(
        error.to_string().contains("`pass word` cannot be the name"),
        "{error}"
    );
    let error = rendered(flat, &named(FieldFormat::Json, &["user", "x", "y"])).unwrap_err();
    assert_eq!(
        error,
        RenderError::Missing(vec!["x".to_owned(), "y".to_owned()])
    );
    for format in [FieldFormat::Dotenv, FieldFormat::Properties] {
        assert!(rendered(DB, &named(format, &["tls"])).is_err());
        assert!(rendered(DB, &named(format, &["none"])).is_err());
    }
    assert!(
        rendered(DB, &all(FieldFormat::Json)).is_err(),
        "a number would lose digits"
    );
    assert_eq!(
        rendered("{}", &all(FieldFormat::Yaml)).as_deref(),
        Ok("{}\n")
    );
}

#[test]
fn values_of_dotenv_are_quoted_where_readers_agree() {
    for (value, expected) in [
        ("plain-1.2:3/x", Some("plain-1.2:3/x")),
        ("", Some("''")),
        ("a b", Some("'a b'")),
        ("$HOME `id` \"x\" #", Some("'$HOME `id` \"x\" #'")),
        ("DOMAIN\\user", Some("'DOMAIN\\user'")),
        ("it's", Some("\"it's\"")),
        ("it's $5", None),
        ("a\\\\b", None),
        ("a\\", None),
        ("a\nb", None),
        ("a\u{2028}b", None),
    ] {
        let json = serde_json::json!({ "k": value }).to_string();
        let written = fill(&json, "{{ k | dotenv }}").ok();
        assert_eq!(written.as_deref(), expected, "{value}");
        // A shell, the strictest of the readers, reads the same.
        if let Some(written) = written {
            let script = format!("k={written}; printf %s \"$k\"");
            let shell = Command::new("/bin/sh")
                .args(["-c", &script])
                .output()
                .unwrap();
            assert_eq!(String::from_utf8(shell.stdout).unwrap(), value);
        }
    }
}

/// Python's readers of JSON and of properties by hand; YAML is read by the reader of our documents.
#[test]
fn properties_are_read_as_java_specifies_them() {
    let value = "  leading = : # ! \\ tab\tline\nend é 😀 ";
    let json = serde_json::json!({ "a key:=#!": value }).to_string();
    let text = rendered(&json, &all(FieldFormat::Properties)).unwrap();
    let (mut key, mut read, mut at_value) = (Vec::new(), Vec::new(), false);
    // java.util.Properties.load: an escape stands for its character, the first `=` ends the key.
    let mut characters = text.strip_suffix('\n').unwrap().chars();
    while let Some(character) = characters.next() {
        let unit = match character {
            '\\' => match characters.next().unwrap() {
                't' => 9,
                'n' => 10,
                'r' => 13,
                'u' => {
                    let digits: String = characters.by_ref().take(4).collect();
                    u16::from_str_radix(&digits, 16).unwrap()
                }
                other => other as u16,
            },
            '=' if !at_value => {
                at_value = true;
                continue;
            }
            other => other as u16,
        };
        if at_value { &mut read } else { &mut key }.push(unit);
    }
    assert_eq!(String::from_utf16(&key).unwrap(), "a key:=#!");
    assert_eq!(String::from_utf16(&read).unwrap(), value);
}

#[test]
fn a_field_is_its_text() {
    let field = |name: &str| Content::Field(name.parse().unwrap());
    assert_eq!(rendered(DB, &field("username")).as_deref(), Ok("ord\"ers"));
    assert_eq!(rendered(DB, &field("port")).as_deref(), Ok("5432"));
    for absent in ["x", "tls", "none", "ratio"] {
        assert!(rendered(DB, &field(absent)).is_err());
    }
}

#[test]
fn attack_ambiguous_and_endless_json_has_no_fields() {
    let deep = format!("{{\"a\": {}1{}}}", "[".repeat(500), "]".repeat(500));
    let long = format!("{{\"{}\": 1}}", "a".repeat(257));
    for value in [
        r#"{"hunter2": 1, "hunter2": 2}"#,
        r#"{"a": {"hunter2": 1, "hunter2": 2}}"#,
        "{\"hunter2\": ",
        "[1]",
        "\"hunter2\"",
        "{} {}",
        "",
        &deep,
        &long,
    ] {
        let error = rendered(value, &all(FieldFormat::Json)).unwrap_err();
        assert!(matches!(error, RenderError::NoFields(_)), "{error}");
        assert!(!format!("{error} {error:?}").contains("hunter2"));
    }
}

/// What would take all memory or all time.
#[test]
fn attack_a_template_is_bounded_in_steps_and_in_what_it_writes() {
    let many = serde_json::json!({ "l": vec![1; 1000], "t": "x".repeat(100_000) }).to_string();
    let nested =
        "{% for a in l %}{% for b in l %}{% if a == 2 %}x{% endif %}{% endfor %}{% endfor %}";
    let error = fill(&many, nested).unwrap_err().to_string();
    assert!(error.contains("too many steps"), "{error}");
    let error = fill(&many, "{% for a in l %}{{ t }}{% endfor %}").unwrap_err();
    assert_eq!(error, RenderError::TooLarge);
    let doubled = format!("{{{{ t{} }}}}", " ~ t".repeat(16));
    assert!(fill(&many, &doubled).is_err());
    let backslashes = serde_json::json!({ "t": "\\".repeat(100_000) }).to_string();
    let error = fill(&backslashes, "{{ t | json | json | json | json | json }}").unwrap_err();
    assert!(error.to_string().contains("more than 1 MiB"), "{error}");
    let largest = "x".repeat(LARGEST);
    assert_eq!(
        fill(&largest, "{{ value }}").map(|text| text.len()),
        Ok(LARGEST)
    );
    assert_eq!(fill(&largest, "{{ value }}!"), Err(RenderError::TooLarge));
    let quoted = serde_json::json!({ "t": "\u{1}".repeat(200_000) }).to_string();
    assert_eq!(
        rendered(&quoted, &all(FieldFormat::Json)),
        Err(RenderError::TooLarge)
    );
}

fn openssl(arguments: &[&str]) -> String {
    let run = Command::new("openssl").args(arguments).output().unwrap();
    assert!(run.status.success(), "{run:?}");
    String::from_utf8(run.stdout).unwrap()
}

#[test]
fn pem_and_stores_are_made_of_fields_lists_of_texts_among_them() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let (key, certificate) = (path("key.pem"), path("certificate.pem"));
    openssl(&[
        "ecparam",
        "-name",
        "prime256v1",
        "-genkey",
        "-noout",
        "-out",
        &key,
    ]);
    openssl(&[
        "req",
        "-x509",
        "-new",
        "-key",
        &key,
        "-subj",
        "/CN=db",
        "-out",
        &certificate,
    ]);
    let [key, certificate] = [key, certificate].map(|path| fs::read_to_string(path).unwrap());
    let secret = serde_json::json!({
        "private_key": key.trim(), "certificate": certificate, "ca_chain": [certificate, certificate], "pw": "changeit",
    });
    let secret = secret.to_string();
    let fields = |names: &[&str]| names.iter().map(|name| name.parse().unwrap()).collect();
    let pem = Content::Pem {
        fields: fields(&["certificate", "ca_chain", "private_key"]),
    };
    let text = rendered(&secret, &pem).unwrap();
    assert_eq!(text, format!("{}{key}", certificate.repeat(3)));
    let whole = Content::Pem { fields: Vec::new() };
    let error = rendered(&secret, &whole).unwrap_err().to_string();
    assert!(error.contains("name the `fields`"), "{error}");
    assert_eq!(rendered(&text, &whole).as_ref(), Ok(&text));
    let odd = Content::Pem {
        fields: fields(&["pw"]),
    };
    let error = rendered(&secret, &odd).unwrap_err().to_string();
    assert!(!error.contains("changeit"), "{error}");

    let store = |password| {
        Content::Pkcs12(KeyStore {
            fields: fields(&["private_key", "certificate"]),
            alias: None,
            password,
        })
    };
    let (value, name) = (Secret::from(secret), name());
    let material = Material::new(&value, &name);
    let given = material
        .render(&store(StorePassword::Field("pw".parse().unwrap())))
        .unwrap();
    assert!(given.password.is_none());
    let generated = StorePassword::Generated("p".parse().unwrap());
    let made = material.render(&store(generated.clone())).unwrap();
    assert!(
        made.file
            .ct_eq(&material.render(&store(generated)).unwrap().file)
    );
    let password = made.password.unwrap();
    for (file, password) in [
        (given.file, "changeit"),
        (made.file, password.expose_str().unwrap()),
    ] {
        let p12 = path("store.p12");
        fs::write(&p12, file.expose()).unwrap();
        let shown = openssl(&[
            "pkcs12",
            "-in",
            &p12,
            "-passin",
            &format!("pass:{password}"),
            "-nodes",
        ]);
        assert!(
            shown.contains("friendlyName: db\n") && shown.contains("PRIVATE KEY"),
            "{shown}"
        );
    }
    let missing = store(StorePassword::Field("x".parse().unwrap()));
    assert!(matches!(
        material.render(&missing),
        Err(RenderError::Missing(_))
    ));
}
