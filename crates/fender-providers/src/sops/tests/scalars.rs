//! What plain scalars mean to the YAML reader of SOPS.

use super::*;

fn meant(text: &str) -> String {
    match plain::resolve(text, true, None) {
        Ok(Value::Text(text)) => format!("text {}", text.as_str().unwrap()),
        Ok(value) => format!("{value:?}"),
        Err(Fault(what)) => what,
    }
}

#[test]
fn plain_scalars_are_what_they_are_to_sops() {
    for (text, expected) in [
        ("", "Null"),
        ("~", "Null"),
        ("Null", "Null"),
        ("nULL", "text nULL"),
        ("TRUE", "Bool(true)"),
        ("yes", "text yes"),
        ("12", "Int(12)"),
        ("+12", "Int(12)"),
        ("-1_000", "Int(-1000)"),
        ("0x1F", "Int(31)"),
        ("0o17", "Int(15)"),
        ("017", "Int(15)"),
        ("089", "Float(89.0)"),
        ("0b101", "Int(5)"),
        ("-0b101", "Int(-5)"),
        ("9223372036854775807", "Int(9223372036854775807)"),
        ("-9223372036854775808", "Int(-9223372036854775808)"),
        (
            "9223372036854775808",
            "has a whole number that SOPS does not read",
        ),
        ("99999999999999999999", "Float(1e20)"),
        ("1.5", "Float(1.5)"),
        ("1.", "Float(1.0)"),
        (".5", "Float(0.5)"),
        ("1e3", "Float(1000.0)"),
        ("1e999", "text 1e999"),
        ("1e", "text 1e"),
        (".", "text ."),
        ("-", "text -"),
        ("1.2.3", "text 1.2.3"),
        ("127.0.0.1", "text 127.0.0.1"),
        (".inf", "Float(inf)"),
        ("-.INF", "Float(-inf)"),
        ("inf", "text inf"),
        ("2024-02-29", "text 2024-02-29T00:00:00Z"),
        ("2023-02-29", "text 2023-02-29"),
        (
            "2024-1-2t3:4:5.60+02:00",
            "text 2024-01-02T03:04:05.6+02:00",
        ),
        ("2024-01-02 03:04:05", "text 2024-01-02T03:04:05Z"),
        ("2024-01-02T03:04:05+00:00", "text 2024-01-02T03:04:05Z"),
        ("2024-01-02T03:04", "text 2024-01-02T03:04"),
        ("2024-01-02T25:04:05Z", "text 2024-01-02T25:04:05Z"),
    ] {
        assert_eq!(meant(text), expected, "{text}");
    }
}

#[test]
fn a_tag_is_believed_if_the_value_fits_it() {
    let tagged = |text, tag| plain::resolve(text, true, Some(tag));
    assert!(matches!(tagged("1", "float"), Ok(Value::Float(1.0))));
    assert!(matches!(tagged("1", "str"), Ok(Value::Text(_))));
    assert!(matches!(tagged("1", "int"), Ok(Value::Int(1))));
    assert!(tagged("x", "int").is_err());
    assert!(tagged("aGk=", "binary").is_err());
    assert!(matches!(
        plain::resolve("1", false, None),
        Ok(Value::Text(_))
    ));
}

#[test]
fn what_yaml_can_do_and_sops_does_not_is_refused() {
    let nested = format!("{}1{}", "[".repeat(200), "]".repeat(200));
    let deep: String = (0..80)
        .map(|depth| format!("{}a:\n", " ".repeat(depth)))
        .collect();
    let many = "- 1\n".repeat(70_000);
    for (text, why) in [
        ("a: &x 1\nb: 2", "anchors"),
        ("a: &x [1]\nb: 2", "anchors"),
        ("a: *x", "YAML"),
        ("base: {}\n<<: { a: 1 }", "merge key"),
        ("a: 1\na: 2", "twice"),
        ("a: { b: 1, b: 2 }", "twice"),
        ("1: a", "no text"),
        ("[a]: b", "no text"),
        ("a: !custom x", "tag"),
        ("a: !!binary aGk=", "tag"),
        ("a: 1\n---\nb: 2", "several documents"),
        ("- a", "no mapping"),
        ("text", "no mapping"),
        ("", "no mapping"),
        ("a: [", "YAML"),
        ("a: b: c: hunter2", "YAML"),
        (&format!("a: {nested}"), ""),
        (&deep, ""),
        (&format!("a:\n{many}"), "more than"),
    ] {
        let Err(Fault(what)) = yaml::read(text) else {
            panic!("{text:.60} is read");
        };
        assert!(
            what.contains(why) && !what.contains("hunter2"),
            "{text:.60}: {what}"
        );
    }
}

#[test]
fn a_value_may_be_as_long_as_a_secret() {
    let long = "x".repeat(1_400_000);
    for text in [
        format!("a: {long}\nb:\n  - {long}"),
        format!("a: \"{long}\""),
    ] {
        let Ok(value) = yaml::read(&text) else {
            panic!("it is not read")
        };
        let Some(Value::Text(text)) = value.field("a") else {
            panic!("{value:?}")
        };
        assert_eq!(text.bytes().len(), long.len());
    }
}

#[test]
fn json_is_an_object_of_bounded_depth_and_without_a_field_twice() {
    let nested = format!("{{\"a\":{}1{}}}", "[".repeat(100), "]".repeat(100));
    let many = format!("{{\"a\":[{}1]}}", "1,".repeat(70_000));
    for (text, why) in [
        (r#"{"a":1,"a":2}"#, "twice"),
        (r#"{"a":{"b":1,"\u0062":2}}"#, "twice"),
        ("[1]", "no JSON object"),
        ("1", "no JSON object"),
        (r#"{"a":1} x"#, "not JSON"),
        (r#"{"a":"hunter2"#, "not JSON"),
        (r#"{"a":1e999}"#, ""),
        (nested.as_str(), "too deep"),
        (many.as_str(), "more than"),
    ] {
        let Err(Fault(what)) = json::read(text) else {
            panic!("{text:.60} is read");
        };
        assert!(
            what.contains(why) && !what.contains("hunter2"),
            "{text:.60}: {what}"
        );
    }
}

#[test]
fn flat_metadata_fits_together_or_is_refused() {
    for text in [
        "sops_age__list_1000000__map_enc=x",
        "sops_age__list_x__map_enc=x",
        "sops_age=x\nsops_age__list_0__map_enc=y",
        "sops_mac=x\nsops_mac=y",
        &format!("sops_a{}=x", "__map_a".repeat(20)),
        &(0..3000)
            .map(|n| format!("sops_{n}=x\n"))
            .collect::<String>(),
        "hunter2",
        "A=1\nA=2",
    ] {
        let Err(Fault(what)) = flat::dotenv(text) else {
            panic!("{text:.60} is read");
        };
        assert!(!what.contains("hunter2"), "{what}");
    }
    for text in [
        "[a\n",
        "hunter2",
        "[a]\nx=1\nx=2",
        "[a]\n[a]\n",
        "x = `y",
        "x = \"\"\"y\n",
        "x = y\\\n",
    ] {
        let Err(Fault(what)) = flat::ini(text) else {
            panic!("{text:.60} is read");
        };
        assert!(!what.contains("hunter2"), "{what}");
    }
}

/// What is proven is made over the digits of the nearest double, not of one beside it.
#[test]
fn numbers_of_json_are_read_to_the_last_digit() {
    for text in [
        "1.7976931348623157e308",
        "5e-324",
        "2.2250738585072014e-308",
        "8.41e21",
        "0.000000012345678901234567",
        "9007199254740993.5",
        "123456789012345678901234567890",
        "3.1415926535897932",
    ] {
        let Ok(value) = json::read(&format!("{{\"a\":{text}}}")) else {
            panic!("{text} is not read")
        };
        let Some(Value::Float(number)) = value.field("a") else {
            panic!("{value:?}")
        };
        assert_eq!(*number, text.parse::<f64>().unwrap(), "{text}");
    }
}
