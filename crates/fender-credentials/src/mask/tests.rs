use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use proptest::prelude::*;

use super::*;

fn masks(values: &[&[u8]]) -> Masks {
    let masks = Masks::new();
    for (number, value) in values.iter().enumerate() {
        learn(&masks, &format!("secret-{number}"), value);
    }
    masks
}

fn learn(masks: &Masks, name: &str, value: &[u8]) -> Vec<Held> {
    let name = ObjectName::new("shop", name).unwrap();
    let value = Secret::new(value.to_vec());
    masks.learn([(&name, &value)]).unwrap()
}

/// What comes of these writes, one after the other.
fn masked<'a>(masks: &Masks, writes: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut stream = Stream::new(masks.clone());
    let mut out = Vec::new();
    for write in writes {
        stream.pass(write, &mut out);
    }
    stream.finish(&mut out);
    out
}

#[track_caller]
fn shows(values: &[&str], text: &str, expected: &str) {
    let values: Vec<_> = values.iter().map(|value| value.as_bytes()).collect();
    let masks = masks(&values);
    let whole = masked(&masks, [text.as_bytes()]);
    assert_eq!(String::from_utf8_lossy(&whole), expected);
    let by_byte = masked(&masks, text.as_bytes().chunks(1));
    assert_eq!(String::from_utf8_lossy(&by_byte), expected, "byte by byte");
}

#[test]
fn a_value_is_hidden_wherever_it_stands() {
    shows(&["hunter2"], "", "");
    shows(&["hunter2"], "hunter2", "***");
    shows(
        &["hunter2"],
        "a hunter2, hunter2x\nhunter",
        "a ***, ***x\nhunter",
    );
    shows(&["hunter2"], "hunthunter2er2", "hunt***er2");
    shows(&["aaaaaa"], "aaaaaaaaaaaaaab", "***b");
    // Delivered with a line's end, shown without.
    shows(&["hunter2\n"], "<hunter2>", "<***>");
    shows(&["hunter2\r\n"], "<hunter2\r\n>", "<***\r\n>");
}

#[test]
fn attack_values_that_contain_each_other_or_overlap() {
    // A part, a beginning and an end of another.
    shows(
        &["secret-secret", "secret", "cret-secr"],
        "secret-secret secret cret-secr secret-secre",
        "*** *** *** ***e",
    );
    shows(&["abcdefgh", "efghijkl"], "xabcdefghijklx", "x***x");
    shows(&["abcdefgh", "efghijkl"], "abcdefghabcdefghi", "***i");
    // One ends where a longer one turns out not to.
    shows(
        &["prefix", "prefix-and-more"],
        "prefix-and-mor",
        "***-and-mor",
    );
    shows(&["suffix", "no-suffix"], "o-suffix no-suffix", "o-*** ***");
    shows(&["onetwo", "threefour"], "onetwothreefour", "***");
}

#[test]
fn attack_a_value_that_straddles_every_buffer() {
    let masks = masks(&[b"hunter2-hunter2"]);
    for size in [1024, 4096, 16 * 1024, 32 * 1024, 64 * 1024] {
        for back in 0..=16 {
            let mut text = vec![b'.'; size - back];
            text.extend(b"hunter2-hunter2");
            text.extend(vec![b'.'; 100]);
            let mut expected = vec![b'.'; size - back];
            expected.extend(MARK);
            expected.extend(vec![b'.'; 100]);
            assert!(masked(&masks, [&*text]) == expected, "{size} - {back}");
            assert!(
                masked(&masks, text.chunks(4096)) == expected,
                "{size} - {back}"
            );
        }
    }
}

#[test]
fn what_cannot_be_the_beginning_of_a_value_goes_on_at_once_and_what_can_be_waits() {
    let masks = masks(&[b"hunter2"]);
    let mut stream = Stream::new(masks);
    let mut out = Vec::new();
    for (write, expected) in [
        ("Password: ", "Password: "),
        ("h", ""),
        ("unter", ""),
        ("!", "hunter!"),
        ("a hun", "a "),
        ("hunter2", "hun***"),
        ("hunter2", ""),
        ("\n", "\n"),
        ("hunte", ""),
    ] {
        stream.pass(write.as_bytes(), &mut out);
        assert_eq!(String::from_utf8_lossy(&out), expected, "{write}");
        out.clear();
    }
    stream.finish(&mut out);
    assert_eq!(out, b"hunte");
}

#[test]
fn a_value_is_hidden_in_the_forms_that_programs_give_it() {
    let value = "pa/ss \"word\"\\ \u{e9}+\u{1f511}";
    let masks = masks(&[value.as_bytes()]);
    for form in [
        value.to_owned(),
        serde_json::to_string(value).unwrap().replace("\"pa", "pa"),
        r#"pa\/ss \"word\"\\ é+🔑"#.to_owned(),
        r#"pa/ss \"word\"\\ \u00e9+\ud83d\udd11"#.to_owned(),
        r#"pa\/ss \"word\"\\ \u00e9+\ud83d\udd11"#.to_owned(),
        "pa%2Fss%20%22word%22%5C%20%C3%A9%2B%F0%9F%94%91".to_owned(),
        "pa%2fss%20%22word%22%5c%20%c3%a9%2b%f0%9f%94%91".to_owned(),
        "pa%2Fss+%22word%22%5C+%C3%A9%2B%F0%9F%94%91".to_owned(),
    ] {
        let text = format!("<{form}>");
        let out = masked(&masks, text.as_bytes().chunks(1));
        let out = String::from_utf8_lossy(&out);
        assert!(out.starts_with("<***") && out.len() <= 7, "{form}: {out}");
    }
    let value = "p<w>&\"q\"'+`= \u{e9}~(!)*/z";
    learn(&masks, "other", value.as_bytes());
    for form in [
        // Go's encoding/json, Gson, Jackson, System.Text.Json.
        r#"p\u003cw\u003e\u0026\"q\"'+`= é~(!)*/z"#,
        r#"p\u003cw\u003e\u0026\"q\"\u0027+`\u003d é~(!)*/z"#,
        r#"p<w>&\"q\"'+`= \u00E9~(!)*/z"#,
        r#"p\u003Cw\u003E\u0026\u0022q\u0022\u0027\u002B\u0060= \u00E9~(!)*/z"#,
        // JavaScript's encodeURIComponent, Java's URLEncoder, PHP's urlencode, Python's quote and quote_plus.
        "p%3Cw%3E%26%22q%22'%2B%60%3D%20%C3%A9~(!)*%2Fz",
        "p%3Cw%3E%26%22q%22%27%2B%60%3D+%C3%A9%7E%28%21%29*%2Fz",
        "p%3Cw%3E%26%22q%22%27%2B%60%3D+%C3%A9%7E%28%21%29%2A%2Fz",
        "p%3Cw%3E%26%22q%22%27%2B%60%3D%20%C3%A9~%28%21%29%2A/z",
        "p%3Cw%3E%26%22q%22%27%2B%60%3D+%C3%A9~%28%21%29%2A/z",
    ] {
        let out = masked(&masks, [form.as_bytes()]);
        assert_eq!(String::from_utf8_lossy(&out), "***", "{form}");
    }
    // For an ordinary value none of that is another form.
    assert!(forms::of(b"0123456789abcdef").len() <= 7);
    // At every place in something that is encoded.
    let value = "pa/ss \"word\"\\ \u{e9}+\u{1f511}";
    for before in 0..6 {
        for after in 0..4 {
            let text = format!("{}{value}{}", "x".repeat(before), "y".repeat(after));
            for form in [STANDARD.encode(&text), URL_SAFE_NO_PAD.encode(&text)] {
                let out = String::from_utf8(masked(&masks, [form.as_bytes()])).unwrap();
                let (begin, end) = out.split_once("***").unwrap_or_else(|| panic!("{out}"));
                // What is left holds the surroundings, and of the value less than a byte at each end.
                assert!(begin.len() <= before * 8 / 6 + 1, "{begin} {out}");
                assert!(end.len() <= after * 8 / 6 + 4, "{end} {out}");
            }
        }
    }
}

#[test]
fn lines_and_texts_of_a_larger_value_are_hidden_by_themselves() {
    let key =
        "-----BEGIN KEY-----\nMIIEvQIBADANBgkq\r\n  hkiG9w0BAQEFAASC\nshort\n-----END KEY-----\n";
    shows(
        &[key],
        "hkiG9w0BAQEFAASC -----BEGIN KEY----- short MIIEvQIBADANBgkq",
        "*** -----BEGIN KEY----- short ***",
    );
    let object =
        r#"{"user":"app","login":{"password":"horse6","all":["battery staple"]},"port":12345678}"#;
    shows(
        &[object],
        "app horse6, battery staple 12345678",
        "app ***, *** 12345678",
    );
    shows(&[object], object, "***");
}

#[test]
fn a_long_value_is_hidden_whole_and_in_large_parts() {
    let value: String = (0..700).map(|number| format!("{number:05}")).collect();
    shows(&[&value], &format!("<{value}>"), "<***>");
    // No more than a piece is held back.
    let masks = masks(&[value.as_bytes()]);
    let mut stream = Stream::new(masks.clone());
    let mut out = Vec::new();
    let almost = &value.as_bytes()[..value.len() - 1];
    stream.pass(almost, &mut out);
    assert_eq!(out, MARK, "three pieces of it are known by then");
    stream.finish(&mut out);
    assert!(out.len() < forms::PIECE, "{}", out.len());
}

#[test]
fn a_value_that_is_replaced_stays_hidden_and_the_new_one_is_at_once() {
    let masks = Masks::new();
    learn(&masks, "smtp", b"value-one");
    let mut stream = Stream::new(masks.clone());
    let mut out = Vec::new();
    stream.pass(b"value-one value-", &mut out);
    assert_eq!(out, b"*** ");
    learn(&masks, "smtp", b"value-two");
    stream.pass(b"two value-one", &mut out);
    stream.finish(&mut out);
    assert_eq!(out, b"*** *** ***");
    // Of those replaced long ago it is forgotten at last, and one that comes back counts as new.
    for number in 0..7 {
        learn(&masks, "smtp", format!("other-{number}").as_bytes());
    }
    let both = b"value-one value-two";
    assert_eq!(masked(&masks, [&both[..]]), b"*** ***");
    learn(&masks, "smtp", b"value-one");
    learn(&masks, "smtp", b"other-7");
    assert_eq!(masked(&masks, [&both[..]]), b"*** value-two");
}

#[test]
fn attack_what_a_run_was_started_with_is_hidden_however_often_it_is_replaced() {
    let masks = Masks::new();
    let started = learn(&masks, "smtp", b"value-one");
    let mut delivered = Vec::new();
    for number in 0..3 * REPLACED {
        delivered = learn(&masks, "smtp", format!("other-{number:02}").as_bytes());
    }
    // All that is held now is held by who is started now, too.
    let again = masks.hold_all();
    assert_eq!(again.len(), 2);
    drop((started, delivered));
    for number in 0..3 * REPLACED {
        learn(&masks, "smtp", format!("third-{number:02}").as_bytes());
    }
    let text = b"value-one other-22 other-23 third-14 third-15 third-23";
    assert_eq!(
        masked(&masks, [&text[..]]),
        b"*** other-22 *** third-14 *** ***"
    );
    // That run is over.
    drop(again);
    for number in 0..=REPLACED {
        learn(&masks, "smtp", format!("fourth-{number:02}").as_bytes());
    }
    let text = b"value-one other-23 fourth-00";
    assert_eq!(masked(&masks, [&text[..]]), b"value-one other-23 ***");
}

#[test]
fn what_is_too_short_is_named_and_not_looked_for() {
    let masks = Masks::new();
    learn(&masks, "pin", b"12345\n");
    learn(&masks, "other", b"123456");
    assert_eq!(masked(&masks, [&b"12345 123456"[..]]), b"12345 ***");
    // Nor are such texts in a larger value.
    assert!(forms::has_short_texts(br#"{"user":"app","pin":["12345"]}"#));
    assert!(!forms::has_short_texts(
        br#"{"user":"orders","none":"","port":5432}"#
    ));
    assert!(!forms::has_short_texts(b"12345678"));
}

#[test]
fn attack_more_than_can_be_looked_for_is_refused_and_what_was_hidden_still_is() {
    let masks = Masks::new();
    learn(&masks, "smtp", b"hunter2");
    let name = ObjectName::new("shop", "huge").unwrap();
    let huge = Secret::new(vec![b'x'; 300 * 1024]);
    // The same piece again and again is one.
    assert!(masks.learn([(&name, &huge)]).is_ok());
    let huge: String = (0..100_000).map(|number| format!("{number}\n")).collect();
    let huge = Secret::from(huge);
    assert_eq!(masks.learn([(&name, &huge)]).unwrap_err(), TooMuch);
    assert_eq!(masked(&masks, [&b"hunter2"[..]]), MARK);
    // Old ones go before that.
    let large = |seed: usize| -> String {
        (0..8000)
            .map(|number| format!("{:08}", number * 7 + seed))
            .collect()
    };
    for seed in 0..4 {
        learn(&masks, "large", large(seed).as_bytes());
    }
    let newest = large(3);
    assert_eq!(masked(&masks, [newest.as_bytes()]), MARK);
    assert_ne!(masked(&masks, [large(0).as_bytes()]), MARK);
    assert_eq!(masked(&masks, [&b"hunter2"[..]]), MARK);
    // But none that somebody still has.
    let started = [4, 5].map(|seed| learn(&masks, "large", large(seed).as_bytes()));
    let name = ObjectName::new("shop", "large").unwrap();
    let next = Secret::from(large(6));
    assert_eq!(masks.learn([(&name, &next)]).unwrap_err(), TooMuch);
    for seed in [4, 5] {
        assert_eq!(masked(&masks, [large(seed).as_bytes()]), MARK);
    }
    drop(started);
    assert!(masks.learn([(&name, &next)]).is_ok());
    assert_eq!(masked(&masks, [large(6).as_bytes()]), MARK);
}

/// All that is held and goes is let go of together, or not at all.
#[test]
fn attack_what_is_to_go_is_held_until_what_comes_has_its_room() {
    let masks = Masks::new();
    let name = ObjectName::new("shop", "large").unwrap();
    let lines = |letter: char, count: usize| -> String {
        let lines = (0..count).map(|number| format!("{letter}{number:07}\n"));
        lines.collect()
    };
    let held = |letter| learn(&masks, "large", lines(letter, 3200).as_bytes()).remove(0);
    let (one, two) = (held('a'), held('b'));
    let huge = Secret::from(lines('c', 20_000));
    let next = Secret::from(lines('d', 3200));
    let learn = |value, going: &[&Held]| masks.learn_without([(&name, value)], going);
    assert_eq!(learn(&huge, &[&one, &two]).unwrap_err(), TooMuch);
    assert_eq!(masks.hold_all().len(), 2);
    for letter in ["a0000042", "b0000042"] {
        assert_eq!(masked(&masks, [letter.as_bytes()]), MARK);
    }
    assert_eq!(learn(&next, &[]).unwrap_err(), TooMuch);
    // Nor does it go if somebody else has it.
    let started = masks.hold_all();
    assert_eq!(learn(&next, &[&one, &two]).unwrap_err(), TooMuch);
    drop(started);
    let three = learn(&next, &[&one]).unwrap();
    assert_eq!(masks.hold_all().len(), 2);
    drop((one, two, three));
    assert_eq!(masks.hold_all().len(), 0);
}

#[test]
fn attack_values_that_weigh_nothing_are_counted_too() {
    let masks = Masks::new();
    let _delivered = learn(&masks, "smtp", b"hunter2");
    let short = Secret::from("x".to_owned());
    let names: Vec<_> = (0..MOST_CREDENTIALS)
        .map(|number| ObjectName::new("shop", &format!("n-{number}")).unwrap())
        .collect();
    let all = names.iter().map(|name| (name, &short));
    assert_eq!(masks.learn(all.clone()).unwrap_err(), TooMuch);
    // Those that nobody has any more are in nobody's way.
    let last = names.last().unwrap();
    let most = masks.learn(all.take(names.len() - 1)).unwrap();
    assert_eq!(masks.learn([(last, &short)]).unwrap_err(), TooMuch);
    drop(most);
    assert!(masks.learn([(last, &short)]).is_ok());
    // One that is always the same byte has few forms, and its own weight.
    let large = Secret::new(vec![b'x'; MOST + 1]);
    let name = ObjectName::new("shop", "large").unwrap();
    assert_eq!(masks.learn([(&name, &large)]).unwrap_err(), TooMuch);
    assert_eq!(masked(&masks, [&b"hunter2"[..]]), MARK);
}

#[test]
fn nothing_of_a_secret_is_shown_of_who_hides_it() {
    let masks = masks(&[b"hunter2"]);
    assert!(!format!("{masks:?}").contains("hunter"));
}

/// By the definition: a byte is masked if it is part of any occurrence of anything.
fn by_definition(patterns: &[Vec<u8>], text: &[u8]) -> Vec<u8> {
    let mut secret = vec![false; text.len()];
    for pattern in patterns {
        for (at, window) in text.windows(pattern.len()).enumerate() {
            if window == pattern {
                secret[at..at + pattern.len()].fill(true);
            }
        }
    }
    let mut out = Vec::new();
    for (at, byte) in text.iter().enumerate() {
        match (secret[at], at > 0 && secret[at - 1]) {
            (false, _) => out.push(*byte),
            (true, false) => out.extend(MARK),
            (true, true) => {}
        }
    }
    out
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    /// Texts and secrets of two letters: full of beginnings, overlaps and repetitions.
    #[test]
    fn attack_no_way_to_cut_a_text_shows_a_secret(
        // Some of which all are long.
        values in prop_oneof![
            prop::collection::vec("[ab]{6,12}", 1..5),
            prop::collection::vec("[ab]{14,30}", 1..5),
        ],
        parts in prop::collection::vec(("[ab]{0,9}", any::<prop::sample::Index>()), 0..12),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..24),
        learnt_late in any::<prop::sample::Index>(),
    ) {
        let mut text = String::new();
        for (between, which) in &parts {
            text += between;
            text += which.get::<String>(&values);
        }
        let text = text.into_bytes();
        let values: Vec<_> = values.iter().map(|value| value.as_bytes()).collect();
        let patterns: Vec<Vec<u8>> = values
            .iter()
            .flat_map(|value| forms::of(value))
            .map(|form| form.to_vec())
            .collect();
        let expected = by_definition(&patterns, &text);
        let mut at: Vec<_> = cuts.iter().map(|cut| cut.index(text.len() + 1)).collect();
        at.sort_unstable();
        let mut writes = Vec::new();
        let mut from = 0;
        for to in at.into_iter().chain([text.len()]) {
            writes.push(&text[from..to]);
            from = to;
        }
        let all = masks(&values);
        prop_assert_eq!(&masked(&all, writes.iter().copied()), &expected);
        prop_assert_eq!(&masked(&all, text.chunks(1)), &expected);
        for value in &values {
            prop_assert!(!expected.windows(value.len()).any(|window| window == *value));
        }

        // One more becomes known on the way: nothing is lost or doubled, and from then on all are hidden.
        let when = learnt_late.index(writes.len());
        let masks = masks(&values[1..]);
        let mut stream = Stream::new(masks.clone());
        let mut out = Vec::new();
        for (number, write) in writes.iter().enumerate() {
            if number == when {
                learn(&masks, "late", values[0]);
            }
            stream.pass(write, &mut out);
        }
        stream.finish(&mut out);
        let shown = |bytes: &[u8]| bytes.iter().filter(|byte| **byte != b'*').count();
        prop_assert!(shown(&out) >= shown(&expected));
        let before: usize = writes[..when].iter().map(|write| write.len()).sum();
        let after = by_definition(&patterns, &text[before..]);
        prop_assert!(shown(&out) <= before + shown(&after));
    }
}
