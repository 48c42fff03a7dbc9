//! In which forms a value is looked for. It decides nothing about where they are found.

use base64::Engine as _;
use base64::engine::general_purpose::{GeneralPurpose, STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use serde_json::Value;
use zeroize::{Zeroize as _, Zeroizing};

use super::{Forms, SHORTEST};

/// What is longer is looked for in pieces of so many bytes, and so much is held back at most.
pub(super) const PIECE: usize = 1024;
/// Shorter lines and texts of a larger value are likely to be no secret, and to stand in much that is none.
const SHORTEST_PART: usize = 8;
/// How deep objects may lie in each other.
const DEEPEST: usize = 8;

/// The value without the line's end that editors and `echo` leave, and an environment does not hold.
pub(super) fn whole(value: &[u8]) -> &[u8] {
    let line = value.strip_suffix(b"\n");
    let line = line.map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    line.unwrap_or(value)
}

/// Everything that is looked for because of a value; nothing of one that is too short.
pub(super) fn of(value: &[u8]) -> Forms {
    let value = whole(value);
    let mut forms = Forms::new();
    if value.len() >= SHORTEST {
        add(value, &mut forms);
    }
    let lines: Vec<_> = value.split(|byte| *byte == b'\n').collect();
    if lines.len() > 1 {
        for line in lines.into_iter().map(<[u8]>::trim_ascii) {
            // What stands around a key or a certificate is no secret.
            if line.len() >= SHORTEST_PART && !line.starts_with(b"-----") {
                add(line, &mut forms);
            }
        }
    }
    if let Ok(mut object @ Value::Object(_)) = serde_json::from_slice(value) {
        texts(&mut object, DEEPEST, &mut forms);
    }
    forms.sort_unstable_by(|one, other| one.as_slice().cmp(other.as_slice()));
    forms.dedup_by(|one, other| one.as_slice() == other.as_slice());
    forms
}

/// The texts in an object; they are wiped.
fn texts(value: &mut Value, deepest: usize, forms: &mut Forms) {
    match value {
        Value::String(text) => {
            if text.len() >= SHORTEST_PART {
                add(text.as_bytes(), forms);
            }
            text.zeroize();
        }
        Value::Array(values) if deepest > 0 => values
            .iter_mut()
            .for_each(|value| texts(value, deepest - 1, forms)),
        Value::Object(fields) if deepest > 0 => fields
            .values_mut()
            .for_each(|value| texts(value, deepest - 1, forms)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => {}
    }
}

/// One text in each of its forms.
fn add(text: &[u8], forms: &mut Forms) {
    let mut put = |form: Zeroizing<Vec<u8>>| {
        if form.len() < SHORTEST {
            return;
        }
        if form.len() <= PIECE {
            return forms.push(form);
        }
        let mut pieces = form.chunks_exact(PIECE);
        for piece in &mut pieces {
            forms.push(Zeroizing::new(piece.to_vec()));
        }
        // The last one reaches back, so that none is short.
        if !pieces.remainder().is_empty()
            && let Some(last) = form.last_chunk::<PIECE>()
        {
            forms.push(Zeroizing::new(last.to_vec()));
        }
    };
    put(Zeroizing::new(text.to_vec()));
    if let Ok(text) = std::str::from_utf8(text) {
        for (slashes, ascii) in [(false, false), (true, false), (false, true), (true, true)] {
            put(json(text, slashes, ascii));
        }
    }
    for (hex, space) in [
        (UPPER, &b"%20"[..]),
        (LOWER, b"%20"),
        (UPPER, b"+"),
        (LOWER, b"+"),
    ] {
        put(percent(text, hex, space));
    }
    for alphabet in [&STANDARD_NO_PAD, &URL_SAFE_NO_PAD] {
        for before in 0..3 {
            base64(text, alphabet, before)
                .into_iter()
                .for_each(&mut put);
        }
    }
}

/// Between the quotes of a JSON text (RFC 8259, 7), by who escapes `/` as well, or all that is not ASCII.
fn json(text: &str, slashes: bool, ascii: bool) -> Zeroizing<Vec<u8>> {
    let mut form = Zeroizing::new(Vec::with_capacity(6 * text.len()));
    for c in text.chars() {
        let short = match c {
            '"' => Some(b'"'),
            '\\' => Some(b'\\'),
            '\n' => Some(b'n'),
            '\r' => Some(b'r'),
            '\t' => Some(b't'),
            '\u{8}' => Some(b'b'),
            '\u{c}' => Some(b'f'),
            '/' if slashes => Some(b'/'),
            _ => None,
        };
        let is_long = u32::from(c) < 0x20 || (ascii && !c.is_ascii());
        let mut units = [0; 2];
        let mut bytes = [0; 4];
        match short {
            Some(short) => form.extend([b'\\', short]),
            None if is_long => {
                for unit in c.encode_utf16(&mut units) {
                    form.extend(b"\\u");
                    for shift in [12, 8, 4, 0] {
                        form.push(digit(LOWER, (*unit >> shift) as u8));
                    }
                }
            }
            None => form.extend(c.encode_utf8(&mut bytes).as_bytes()),
        }
    }
    form
}

const UPPER: &[u8; 16] = b"0123456789ABCDEF";
const LOWER: &[u8; 16] = b"0123456789abcdef";

fn digit(digits: &[u8; 16], of: u8) -> u8 {
    let at = usize::from(of & 0xf);
    digits.get(at).copied().unwrap_or_default()
}

/// All but what RFC 3986, 2.3 does not reserve is escaped.
fn percent(text: &[u8], digits: &[u8; 16], space: &[u8]) -> Zeroizing<Vec<u8>> {
    let mut form = Zeroizing::new(Vec::with_capacity(3 * text.len()));
    for byte in text.iter().copied() {
        match byte {
            b' ' => form.extend(space),
            b'-' | b'.' | b'_' | b'~' => form.push(byte),
            _ if byte.is_ascii_alphanumeric() => form.push(byte),
            _ => form.extend([b'%', digit(digits, byte >> 4), digit(digits, byte)]),
        }
    }
    form
}

/// In the middle of something else that is encoded, with so many bytes before it modulo 3: as it is where something comes after it,
/// and where it is the end.
fn base64(text: &[u8], alphabet: &GeneralPurpose, before: usize) -> [Zeroizing<Vec<u8>>; 2] {
    let mut bytes = Zeroizing::new(vec![0; before]);
    bytes.reserve_exact(text.len());
    bytes.extend(text);
    let encoded = Zeroizing::new(alphabet.encode(&*bytes).into_bytes());
    // What depends on what stands before is not known.
    let begin = (before * 8).div_ceil(6);
    let whole = bytes.len() * 8 / 6;
    let cut = |end: usize| {
        let form = encoded.get(begin..end).unwrap_or_default();
        Zeroizing::new(form.to_vec())
    };
    [cut(whole), cut(encoded.len())]
}
