//! One JSON object on one line, appended to a buffer, its members in the order in which they are given.
//!
//! By hand, because it is written for every request. Whatever a stranger wrote, the line is ASCII without control
//! characters: it ends where we end it, and steers no terminal.

use std::cell::Cell;
use std::fmt::{self, Write};
use std::time::Duration;

/// The name of a member, as it stands before its value. Made by [`key!`], so that it is one piece for the compiler.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Key(pub(crate) &'static str);

macro_rules! key {
    ($name:literal) => {
        $crate::json::Key(concat!(",\"", $name, "\":"))
    };
}
pub(crate) use key;

/// An object that is being written.
#[derive(Debug)]
pub(crate) struct Object<'a> {
    out: &'a mut Vec<u8>,
    begin: usize,
}

impl<'a> Object<'a> {
    pub(crate) fn begin(out: &'a mut Vec<u8>) -> Self {
        let begin = out.len();
        Self { out, begin }
    }

    pub(crate) fn end_line(self) {
        // Each member begins with what parts it from the one before; the first one's is where the object begins.
        match self.out.get_mut(self.begin) {
            Some(separator) => *separator = b'{',
            None => self.out.push(b'{'),
        }
        self.out.extend_from_slice(b"}\n");
    }

    /// Members of an object that was begun elsewhere and not ended.
    pub(crate) fn members(&mut self, fragment: &[u8]) {
        self.out.extend_from_slice(fragment);
    }

    /// One of our own words, in which nothing is to be escaped.
    #[inline(always)]
    pub(crate) fn word(&mut self, key: Key, word: &'static str) {
        debug_assert!(is_plain(word.as_bytes()), "{word}");
        self.key(key);
        self.out.push(b'"');
        self.out.extend_from_slice(word.as_bytes());
        self.out.push(b'"');
    }

    #[inline(always)]
    pub(crate) fn text(&mut self, key: Key, value: &str) {
        self.key(key);
        quoted(self.out, value);
    }

    pub(crate) fn display(&mut self, key: Key, value: impl fmt::Display) {
        self.key(key);
        self.out.push(b'"');
        // Writing into memory does not fail.
        let _ = write!(Escaped(self.out), "{value}");
        self.out.push(b'"');
    }

    #[inline(always)]
    pub(crate) fn number(&mut self, key: Key, value: u64) {
        self.key(key);
        decimal(self.out, value);
    }

    /// Bytes, each as two lower-case digits.
    pub(crate) fn hex(&mut self, key: Key, bytes: &[u8]) {
        self.key(key);
        self.out.push(b'"');
        let digits = bytes
            .iter()
            .flat_map(|byte| [hex_digit(byte >> 4), hex_digit(byte & 0xf)]);
        self.out.extend(digits);
        self.out.push(b'"');
    }

    /// With three digits after the point: microseconds.
    #[inline(always)]
    pub(crate) fn milliseconds(&mut self, key: Key, value: Duration) {
        self.key(key);
        milliseconds(self.out, value);
    }

    /// A moment, as the time since 1970, in RFC 3339 and UTC, to the millisecond.
    #[inline(always)]
    pub(crate) fn moment(&mut self, key: Key, since_1970: Duration) {
        self.key(key);
        moment(self.out, since_1970);
    }

    pub(crate) fn texts(&mut self, key: Key, values: impl IntoIterator<Item = impl AsRef<str>>) {
        self.key(key);
        self.out.push(b'[');
        let mut separator: &[u8] = b"";
        for value in values {
            self.out.extend_from_slice(separator);
            quoted(self.out, value.as_ref());
            separator = b",";
        }
        self.out.push(b']');
    }

    #[inline(always)]
    fn key(&mut self, Key(key): Key) {
        self.out.extend_from_slice(key.as_bytes());
    }
}

struct Escaped<'a>(&'a mut Vec<u8>);

impl Write for Escaped<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        match is_plain(text.as_bytes()) {
            true => self.0.extend_from_slice(text.as_bytes()),
            false => escape(self.0, text),
        }
        Ok(())
    }
}

fn quoted(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    match is_plain(text.as_bytes()) {
        true => out.extend_from_slice(text.as_bytes()),
        false => escape(out, text),
    }
    out.push(b'"');
}

/// Whether nothing in it is to be escaped. Eight bytes are looked at together, the last of them perhaps once more with those
/// before.
fn is_plain(text: &[u8]) -> bool {
    let (words, rest) = text.as_chunks::<8>();
    let whole = words
        .iter()
        .fold(0, |found, word| found | conspicuous(*word));
    let last = match (rest, text.last_chunk::<8>()) {
        ([], _) => 0,
        (_, Some(last)) => conspicuous(*last),
        (few, None) => {
            let mut padded = [b' '; 8];
            for (place, byte) in padded.iter_mut().zip(few) {
                *place = *byte;
            }
            conspicuous(padded)
        }
    };
    (whole | last) == 0
}

/// Not zero if one of these bytes is a control character, beyond ASCII, a quotation mark or a backslash.
fn conspicuous(bytes: [u8; 8]) -> u64 {
    const ONES: u64 = u64::MAX / 255;
    const HIGHEST: u64 = ONES << 7;
    let word = u64::from_ne_bytes(bytes);
    // Of the lowest byte that is below the bound the highest bit is set. Those above it may have theirs set as well: it is
    // enough to know whether there is one.
    let below = |word: u64, bound: u8| word.wrapping_sub(ONES * u64::from(bound)) & !word;
    let is = |byte: u8| below(word ^ (ONES * u64::from(byte)), 1);
    (word | below(word, b' ') | is(b'"') | is(b'\\') | is(0x7f)) & HIGHEST
}

#[cold]
fn escape(out: &mut Vec<u8>, text: &str) {
    for char in text.chars() {
        match char {
            '"' => out.extend_from_slice(br#"\""#),
            '\\' => out.extend_from_slice(br"\\"),
            '\n' => out.extend_from_slice(br"\n"),
            '\r' => out.extend_from_slice(br"\r"),
            '\t' => out.extend_from_slice(br"\t"),
            ' '..='~' => out.push(char as u8),
            other => {
                for unit in other.encode_utf16(&mut [0; 2]) {
                    out.extend_from_slice(br"\u");
                    for shift in [12, 8, 4, 0] {
                        out.push(hex_digit((*unit >> shift & 0xf) as u8));
                    }
                }
            }
        }
    }
}

fn hex_digit(half: u8) -> u8 {
    half + if half < 10 { b'0' } else { b'a' - 10 }
}

fn decimal(out: &mut Vec<u8>, value: u64) {
    if value < 10 {
        return out.push(b'0' + value as u8);
    }
    let mut digits = [0; 20];
    let (mut left, mut begin) = (value, digits.len());
    for (at, digit) in digits.iter_mut().enumerate().rev() {
        *digit = b'0' + (left % 10) as u8;
        left /= 10;
        begin = at;
        if left == 0 {
            break;
        }
    }
    out.extend_from_slice(digits.get(begin..).unwrap_or_default());
}

fn milliseconds(out: &mut Vec<u8>, value: Duration) {
    let micros = u64::try_from(value.as_micros()).unwrap_or(u64::MAX);
    decimal(out, micros / 1000);
    let [hundreds, tens, ones] = three(micros % 1000);
    out.extend_from_slice(&[b'.', hundreds, tens, ones]);
}

/// The last three digits.
fn three(value: u64) -> [u8; 3] {
    [value / 100, value / 10, value].map(|value| b'0' + (value % 10) as u8)
}

/// A moment as far as its second, with the quotation mark before it and the point behind.
type Second = [u8; 21];

thread_local! {
    /// The one this thread wrote last, after its number.
    static SECOND: Cell<(u64, Second)> = const { Cell::new((0, *b"\"1970-01-01T00:00:00.")) };
}

fn moment(out: &mut Vec<u8>, since_1970: Duration) {
    let seconds = since_1970.as_secs();
    let written = SECOND.with(|last| match last.get() {
        (number, written) if number == seconds => written,
        _ => {
            let written = second(seconds);
            last.set((seconds, written));
            written
        }
    });
    let [hundreds, tens, ones] = three(since_1970.subsec_millis().into());
    out.extend_from_slice(&written);
    out.extend_from_slice(&[hundreds, tens, ones, b'Z', b'"']);
}

#[cold]
fn second(seconds: u64) -> Second {
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Years that begin in March, so that the leap day is the last of one; 719,468 days before 1970 one of them began
    // that a leap century did. After Howard Hinnant's `civil_from_days`.
    let day = days + 719_468;
    let (era, of_era) = (day / 146_097, day % 146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * of_year + 2) / 153;
    let day_of_month = of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = (month_from_march + 2) % 12 + 1;
    let year = era * 400 + year_of_era + u64::from(month <= 2);

    let mut written = *b"\"0000-00-00T00:00:00.";
    for (mut value, end, width) in [
        (year, 5, 4),
        (month, 8, 2),
        (day_of_month, 11, 2),
        (second / 3600, 14, 2),
        (second / 60 % 60, 17, 2),
        (second % 60, 20, 2),
    ] {
        for digit in written.iter_mut().take(end).rev().take(width) {
            *digit = b'0' + (value % 10) as u8;
            value /= 10;
        }
    }
    written
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn written(write: impl FnOnce(&mut Object<'_>)) -> String {
        let mut out = Vec::new();
        let mut object = Object::begin(&mut out);
        write(&mut object);
        object.end_line();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn whatever_a_stranger_wrote_is_read_back_and_is_one_line_of_plain_ascii() {
        let every_char_below: String = (0..0x300).filter_map(char::from_u32).collect();
        for text in [
            "",
            "plain",
            "\"},{\"peer\":\"admin\"",
            "a\\u0000\\",
            "line\r\nnext\u{2028}\u{85}",
            "\u{1b}[2J\u{9b}31m\u{7f}",
            "\u{202e}gnp.exe \u{1f600} \u{10ffff}",
            &every_char_below,
        ] {
            let line = written(|object| {
                object.text(key!("text"), text);
                object.display(key!("display"), text);
                object.texts(key!("texts"), [text, text]);
            });
            let (object, end) = line.split_at(line.len() - 1);
            assert_eq!(end, "\n");
            assert!(
                object.bytes().all(|byte| matches!(byte, b' '..=b'~')),
                "{line:?}"
            );
            let read: Value = serde_json::from_str(&line).unwrap();
            assert_eq!(read["text"], text);
            assert_eq!(read["display"], text);
            assert_eq!(read["texts"], serde_json::json!([text, text]));
        }
    }

    #[test]
    fn every_byte_that_must_be_escaped_is_noticed_wherever_it_stands() {
        for length in 0..=17 {
            assert!(is_plain(&vec![b'~'; length]), "{length}");
            for (place, byte) in
                (0..length).flat_map(|place| (0..=u8::MAX).map(move |byte| (place, byte)))
            {
                let mut text = vec![b'~'; length];
                text[place] = byte;
                let plain = matches!(byte, b' '..=b'~') && !matches!(byte, b'"' | b'\\');
                assert_eq!(is_plain(&text), plain, "{byte:#x} at {place} of {length}");
            }
        }
    }

    #[test]
    fn an_object_may_be_empty_and_stand_behind_another() {
        let mut out = Vec::new();
        Object::begin(&mut out).end_line();
        let mut object = Object::begin(&mut out);
        object.word(key!("a"), "x");
        object.end_line();
        assert_eq!(String::from_utf8(out).unwrap(), "{}\n{\"a\":\"x\"}\n");
    }

    #[test]
    fn numbers_are_numbers_at_both_ends() {
        let line = written(|object| {
            object.number(key!("zero"), 0);
            object.number(key!("ten"), 10);
            object.number(key!("most"), u64::MAX);
            object.milliseconds(key!("short"), Duration::from_micros(7));
            object.milliseconds(key!("long"), Duration::from_micros(12_345_678));
            object.milliseconds(key!("endless"), Duration::MAX);
        });
        assert_eq!(
            line,
            "{\"zero\":0,\"ten\":10,\"most\":18446744073709551615,\"short\":0.007,\"long\":12345.678,\
             \"endless\":18446744073709551.615}\n"
        );
    }

    #[test]
    fn bytes_are_pairs_of_digits() {
        let line = written(|object| object.hex(key!("id"), &[0x00, 0x09, 0x0a, 0xf0, 0xff]));
        assert_eq!(line, "{\"id\":\"00090af0ff\"}\n");
    }

    #[test]
    fn moments_are_those_of_the_calendar() {
        for (milliseconds, expected) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_399_999, "2000-02-28T23:59:59.999Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (951_868_800_000, "2000-03-01T00:00:00.000Z"),
            (1_735_689_599_001, "2024-12-31T23:59:59.001Z"),
            (4_107_542_399_000, "2100-02-28T23:59:59.000Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
            (253_402_300_799_000, "9999-12-31T23:59:59.000Z"),
        ] {
            let mut out = Vec::new();
            moment(&mut out, Duration::from_millis(milliseconds));
            assert_eq!(String::from_utf8(out).unwrap(), format!("\"{expected}\""));
        }
    }

    #[test]
    fn members_written_before_go_where_they_are_put() {
        let mut common = Vec::new();
        let mut fragment = Object::begin(&mut common);
        fragment.text(key!("a"), "x");
        fragment.number(key!("b"), 1);
        let line = written(|object| {
            object.members(&[]);
            object.members(&common);
            object.number(key!("c"), 2);
        });
        assert_eq!(line, "{\"a\":\"x\",\"b\":1,\"c\":2}\n");
    }
}
