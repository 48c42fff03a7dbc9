//! One JSON object on one line, appended to a buffer, its members in the order in which they are given.
//!
//! By hand, because it is written for every request. Whatever a stranger wrote, the line is ASCII without control
//! characters: it ends where we end it, and steers no terminal.

use std::fmt::{self, Write};
use std::time::Duration;

/// An object that is being written.
#[derive(Debug)]
pub(crate) struct Object<'a> {
    out: &'a mut Vec<u8>,
    separator: &'static [u8],
}

impl<'a> Object<'a> {
    pub(crate) fn begin(out: &'a mut Vec<u8>) -> Self {
        out.push(b'{');
        Self {
            out,
            separator: b"",
        }
    }

    /// Goes on with members only, which [`Object::members`] takes up in another object.
    pub(crate) fn fragment(out: &'a mut Vec<u8>) -> Self {
        Self {
            out,
            separator: b"",
        }
    }

    pub(crate) fn end_line(self) {
        self.out.extend_from_slice(b"}\n");
    }

    /// Members that were written before.
    pub(crate) fn members(&mut self, fragment: &[u8]) {
        if !fragment.is_empty() {
            self.out.extend_from_slice(self.separator);
            self.out.extend_from_slice(fragment);
            self.separator = b",";
        }
    }

    pub(crate) fn text(&mut self, name: &'static str, value: &str) {
        self.name(name);
        self.quoted(value);
    }

    pub(crate) fn display(&mut self, name: &'static str, value: impl fmt::Display) {
        self.name(name);
        self.out.push(b'"');
        // Writing into memory does not fail.
        let _ = write!(Escaped(self.out), "{value}");
        self.out.push(b'"');
    }

    pub(crate) fn number(&mut self, name: &'static str, value: u64) {
        self.name(name);
        decimal(self.out, value);
    }

    /// With three digits after the point: microseconds.
    pub(crate) fn milliseconds(&mut self, name: &'static str, value: Duration) {
        self.name(name);
        let micros = u64::try_from(value.as_micros()).unwrap_or(u64::MAX);
        decimal(self.out, micros / 1000);
        self.out.push(b'.');
        digits(self.out, micros % 1000, 3);
    }

    /// A moment, as the time since 1970, in RFC 3339 and UTC, to the millisecond.
    pub(crate) fn moment(&mut self, name: &'static str, since_1970: Duration) {
        self.name(name);
        self.out.push(b'"');
        moment(self.out, since_1970);
        self.out.push(b'"');
    }

    pub(crate) fn texts(
        &mut self,
        name: &'static str,
        values: impl IntoIterator<Item = impl AsRef<str>>,
    ) {
        self.name(name);
        self.out.push(b'[');
        let mut separator: &[u8] = b"";
        for value in values {
            self.out.extend_from_slice(separator);
            self.quoted(value.as_ref());
            separator = b",";
        }
        self.out.push(b']');
    }

    fn name(&mut self, name: &'static str) {
        self.out.extend_from_slice(self.separator);
        self.out.push(b'"');
        self.out.extend_from_slice(name.as_bytes());
        self.out.extend_from_slice(b"\":");
        self.separator = b",";
    }

    fn quoted(&mut self, value: &str) {
        self.out.push(b'"');
        escape(self.out, value);
        self.out.push(b'"');
    }
}

struct Escaped<'a>(&'a mut Vec<u8>);

impl Write for Escaped<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        escape(self.0, text);
        Ok(())
    }
}

fn escape(out: &mut Vec<u8>, text: &str) {
    let plain = |byte: u8| matches!(byte, b' '..=b'~') && !matches!(byte, b'"' | b'\\');
    // Without an early end, so that many bytes are looked at together.
    let is_plain = text.bytes().fold(true, |all, byte| all & plain(byte));
    if is_plain {
        return out.extend_from_slice(text.as_bytes());
    }
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
                        let digit = (*unit >> shift & 0xf) as u8;
                        out.push(digit + if digit < 10 { b'0' } else { b'a' - 10 });
                    }
                }
            }
        }
    }
}

fn decimal(out: &mut Vec<u8>, value: u64) {
    let width = value.checked_ilog10().unwrap_or(0) as usize + 1;
    digits(out, value, width);
}

/// The last `width` digits, zeros in front included.
fn digits(out: &mut Vec<u8>, mut value: u64, width: usize) {
    let begin = out.len();
    out.resize(begin + width, b'0');
    for digit in out.iter_mut().skip(begin).rev() {
        *digit = b'0' + (value % 10) as u8;
        value /= 10;
    }
}

fn moment(out: &mut Vec<u8>, since_1970: Duration) {
    let seconds = since_1970.as_secs();
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

    for (value, width, after) in [
        (year, 4, b'-'),
        (month, 2, b'-'),
        (day_of_month, 2, b'T'),
        (second / 3600, 2, b':'),
        (second / 60 % 60, 2, b':'),
        (second % 60, 2, b'.'),
        (u64::from(since_1970.subsec_millis()), 3, b'Z'),
    ] {
        digits(out, value, width);
        out.push(after);
    }
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
                object.text("text", text);
                object.display("display", text);
                object.texts("texts", [text, text]);
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
    fn numbers_are_numbers_at_both_ends() {
        let line = written(|object| {
            object.number("zero", 0);
            object.number("ten", 10);
            object.number("most", u64::MAX);
            object.milliseconds("short", Duration::from_micros(7));
            object.milliseconds("long", Duration::from_micros(12_345_678));
            object.milliseconds("endless", Duration::MAX);
        });
        assert_eq!(
            line,
            "{\"zero\":0,\"ten\":10,\"most\":18446744073709551615,\"short\":0.007,\"long\":12345.678,\
             \"endless\":18446744073709551.615}\n"
        );
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
            assert_eq!(String::from_utf8(out).unwrap(), expected);
        }
    }

    #[test]
    fn members_written_before_go_where_they_are_put() {
        let mut common = Vec::new();
        let mut fragment = Object::fragment(&mut common);
        fragment.text("a", "x");
        fragment.number("b", 1);
        let line = written(|object| {
            object.members(&[]);
            object.members(&common);
            object.number("c", 2);
        });
        assert_eq!(line, "{\"a\":\"x\",\"b\":1,\"c\":2}\n");
    }
}
