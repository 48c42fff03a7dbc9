//! An attacker who may write the file and has no key: whatever is done to it, nothing of it is used.

use super::*;

fn refused(text: &str, format: SopsFormat) -> String {
    match delivered(text.as_bytes(), format, None) {
        Err(why) => why,
        Ok(_) => panic!("it is used:\n{text}"),
    }
}

/// The line of YAML that has `field`, without its end.
fn line<'a>(text: &'a str, field: &str) -> &'a str {
    let mut lines = text
        .lines()
        .filter(|line| line.trim_start().starts_with(field));
    lines.next().unwrap()
}

fn value<'a>(text: &'a str, field: &str) -> &'a str {
    line(text, field).split_once(": ").unwrap().1
}

#[test]
fn no_value_is_used_in_the_place_of_another() {
    let (user, password) = (value(YAML, "user:"), value(YAML, "password:"));
    let swapped = YAML
        .replace(user, "\0")
        .replace(password, user)
        .replace('\0', password);
    let why = refused(&swapped, SopsFormat::Yaml);
    assert!(why.contains("moved here from elsewhere"), "{why}");
    // Under another name, too.
    let why = refused(
        &YAML.replace("    password: ", "    passwort: "),
        SopsFormat::Yaml,
    );
    assert!(why.contains("`database:passwort`"), "{why}");
}

/// Items of a list are of one place: what tells them apart is the proof over all.
#[test]
fn items_of_a_list_stay_in_their_order() {
    let (first, second) = YAML.split_once("        - name:").unwrap();
    let (one, rest) = second.split_once("        - name:").unwrap();
    let (two, rest) = rest.split_once("    key:").unwrap();
    let swapped = format!("{first}        - name:{two}        - name:{one}    key:{rest}");
    let why = refused(&swapped, SopsFormat::Yaml);
    assert!(why.contains("MAC"), "{why}");
}

#[test]
fn no_value_is_left_away_added_or_repeated() {
    for field in ["user:", "port:", "count:", "octal:"] {
        let without = YAML.replace(&format!("{}\n", line(YAML, field)), "");
        let why = refused(&without, SopsFormat::Yaml);
        assert!(why.contains("MAC"), "{field} {why}");
    }
    let user = line(YAML, "user:");
    let twice = YAML.replace(user, &format!("{user}\n{user}"));
    assert!(refused(&twice, SopsFormat::Yaml).contains("twice"));
    let added = YAML.replace("    count: 3", "    count: 3\n    more: 4");
    assert!(refused(&added, SopsFormat::Yaml).contains("MAC"));
    let in_the_clear = YAML.replace(user, &format!("{user}\n    admin: root"));
    assert!(refused(&in_the_clear, SopsFormat::Yaml).contains("not encrypted"));
    let number = YAML.replace(user, &format!("{user}\n    admin: 0"));
    assert!(refused(&number, SopsFormat::Yaml).contains("not encrypted"));
}

#[test]
fn no_value_in_the_clear_is_changed() {
    for (from, to) in [
        ("https://api.internal", "https://api.attacker"),
        ("count: 3", "count: 4"),
        ("factor: 1.5", "factor: 1.25"),
        ("\"off\": false", "\"off\": true"),
        ("since: 2024-01-02", "since: 2024-01-03"),
    ] {
        let why = refused(&YAML.replace(from, to), SopsFormat::Yaml);
        assert!(why.contains("MAC"), "{from} {why}");
    }
    let why = refused(&JSON.replace("\"seen\"", "\"sewn\""), SopsFormat::Json);
    assert!(why.contains("MAC"), "{why}");
    let why = refused(&DOTENV.replace("=seen", "=sewn"), SopsFormat::Dotenv);
    assert!(why.contains("MAC"), "{why}");
    let why = refused(&INI.replace("= seen", "= sewn"), SopsFormat::Ini);
    assert!(why.contains("MAC"), "{why}");
}

#[test]
fn a_type_that_was_changed_changes_nothing_or_is_found() {
    // Not sealed with the value: another type of the same text is believed only if the proof still fits.
    let text = YAML.replace(
        value(YAML, "ratio:"),
        &value(YAML, "ratio:").replace("type:float", "type:int"),
    );
    assert!(refused(&text, SopsFormat::Yaml).contains("type"));
    let text = YAML.replace(
        value(YAML, "tls:"),
        &value(YAML, "tls:").replace("type:bool", "type:int"),
    );
    assert!(refused(&text, SopsFormat::Yaml).contains("type"));
    for kind in ["comment", "", "shell", "time"] {
        let password = value(YAML, "password:");
        let lied = password.replace("type:str", &format!("type:{kind}"));
        let why = refused(&YAML.replace(password, &lied), SopsFormat::Yaml);
        assert!(why.contains("type"), "{kind} {why}");
    }
}

#[test]
fn no_byte_of_a_value_or_of_its_tag_is_changed() {
    let password = value(YAML, "password:");
    for part in [",iv:", ",tag:", "data:"] {
        let at = password.find(part).unwrap() + part.len();
        let byte = password.as_bytes()[at];
        let other = if byte == b'A' { "B" } else { "A" };
        let mut changed = password.to_owned();
        changed.replace_range(at..=at, other);
        let why = refused(&YAML.replace(password, &changed), SopsFormat::Yaml);
        assert!(why.contains("changed"), "{part} {why}");
    }
    // The shortest nonce and an endless one.
    let (head, rest) = password.split_once(",iv:").unwrap();
    let (_, tail) = rest.split_once(",tag:").unwrap();
    for nonce in ["AAAA", &"AAAA".repeat(1000)] {
        let changed = format!("{head},iv:{nonce},tag:{tail}");
        let why = refused(&YAML.replace(password, &changed), SopsFormat::Yaml);
        assert!(why.contains("nonce"), "{why}");
    }
    let cut = format!("{head},iv:{}", rest.replace("==,type", ",type"));
    assert!(refused(&YAML.replace(password, &cut), SopsFormat::Yaml).contains("not encrypted as"));
}

#[test]
fn the_proof_is_never_left_away() {
    let mac = value(YAML, "mac:");
    for text in [
        YAML.replace(&format!("{}\n", line(YAML, "mac:")), ""),
        YAML.replace(mac, "\"\""),
    ] {
        assert!(refused(&text, SopsFormat::Yaml).contains("no MAC"));
    }
    // In the clear, and of another moment.
    let clear = YAML.replace(mac, &format!("\"{}\"", "0".repeat(128)));
    assert!(refused(&clear, SopsFormat::Yaml).contains("MAC"));
    let modified = value(YAML, "lastmodified:");
    let later = YAML.replace(modified, "\"2031-01-01T00:00:00Z\"");
    assert!(refused(&later, SopsFormat::Yaml).contains("MAC"));
    // Of another file for the same key: its values are of the same places, its proof is not.
    let other = include_str!("pattern.yaml");
    let swapped = YAML.replace(mac, value(other, "mac:"));
    assert!(refused(&swapped, SopsFormat::Yaml).contains("MAC"));
}

/// What SOPS keeps in the clear is not proven; what it leads to is.
#[test]
fn nothing_is_passed_off_as_not_encrypted() {
    let rule = "    unencrypted_suffix: _unencrypted\n";
    for other in [
        "    unencrypted_regex: '.'\n",
        "    encrypted_regex: nothing\n",
        "    encrypted_suffix: nothing\n",
        "    unencrypted_suffix: word\n",
        "    unencrypted_suffix: _unencrypted\n    mac_only_encrypted: true\n",
    ] {
        let text = YAML.replace(rule, other);
        assert_ne!(text, YAML);
        let why = refused(&text, SopsFormat::Yaml);
        assert!(
            why.contains("MAC") || why.contains("encrypted"),
            "{other} {why}"
        );
    }
    for (other, why) in [
        (
            "    unencrypted_suffix: a\n    encrypted_suffix: b\n",
            "more than one way",
        ),
        ("    encrypted_regex: '('\n", "pattern"),
        ("    encrypted_regex: '((a{900}){900}){900}'\n", "pattern"),
        ("    encrypted_comment_regex: x\n", "comments"),
        (
            "    mac_only_encrypted: perhaps\n",
            "neither true nor false",
        ),
        ("    unencrypted_suffix: [ x ]\n", "no text"),
    ] {
        let error = refused(&YAML.replace(rule, other), SopsFormat::Yaml);
        assert!(error.contains(why), "{other} {error}");
    }
    let long = YAML.replace(
        rule,
        &format!("    encrypted_regex: '{}'\n", "a".repeat(1025)),
    );
    assert!(refused(&long, SopsFormat::Yaml).contains("pattern"));
    // Values in the clear are not proven where the file says so, and those that are encrypted are.
    let only = include_str!("only-encrypted.yaml");
    assert!(
        delivered(
            only.replace("count: 3", "count: 4").as_bytes(),
            SopsFormat::Yaml,
            None
        )
        .is_ok()
    );
    assert!(
        refused(
            &only.replace("mac_only_encrypted: true", "mac_only_encrypted: false"),
            SopsFormat::Yaml
        )
        .contains("MAC")
    );
}

#[test]
fn a_file_that_is_cut_off_anywhere_is_not_used() {
    for (text, format) in [
        (YAML, SopsFormat::Yaml),
        (JSON, SopsFormat::Json),
        (DOTENV, SopsFormat::Dotenv),
        (INI, SopsFormat::Ini),
    ] {
        let mac = text.find("mac").unwrap();
        let mac_end = mac + text[mac..].find("type:str]").unwrap();
        // What follows the proof decides nothing but where it names the rule, which is then the default.
        for end in (0..mac_end).step_by(7) {
            assert!(
                delivered(&text.as_bytes()[..end], format, None).is_err(),
                "{format} {end}"
            );
        }
    }
}

#[test]
fn a_file_that_is_not_encrypted_is_not_used() {
    let plain = "database:\n  password: hunter2\n";
    let why = refused(plain, SopsFormat::Yaml);
    assert!(
        why.contains("no `sops`") && !why.contains("hunter2"),
        "{why}"
    );
    let binary = include_str!("whole.bin").replace("\"data\"", "\"date\"");
    let why = refused(&binary, SopsFormat::Binary);
    assert!(why.contains("`date`"), "{why}");
    assert!(delivered(b"\xff\xfe", SopsFormat::Yaml, None).is_err());
}
