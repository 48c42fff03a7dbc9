//! In which forms a value is looked for. It decides nothing about where they are found.

use base64::Engine as _;
use base64::engine::general_purpose::{GeneralPurpose, STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use serde_json::Value;
use zeroize::{Zeroize as _, Zeroizing};

use super::{Forms, SHORTEST};

/// What is longer is looked for in pieces of so many bytes, and so much is held back at most.
pub(super) const PIECE: usize = 1024;
/// Shorter lines of a larger value are likely to be no secret, and to stand in much that is none.
const SHORTEST_LINE: usize = 8;
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
            if line.len() >= SHORTEST_LINE && !line.starts_with(b"-----") {
                add(line, &mut forms);
            }
        }
    }
    texts(value, &mut |text| add(text, &mut forms));
    forms.sort_unstable_by(|one, other| one.as_slice().cmp(other.as_slice()));
    forms.dedup_by(|one, other| one.as_slice() == other.as_slice());
    forms
}

/// Whether texts stand in the value that are too short to be looked for.
pub(super) fn has_short_texts(value: &[u8]) -> bool {
    let mut has = false;
    texts(whole(value), &mut |text| {
        has |= (1..SHORTEST).contains(&text.len());
    });
    has
}

/// The texts in a value that is a JSON object; they are wiped.
fn texts(value: &[u8], look: &mut impl FnMut(&[u8])) {
    if let Ok(mut object @ Value::Object(_)) = serde_json::from_slice(value) {
        texts_in(&mut object, DEEPEST, look);
    }
}

fn texts_in(value: &mut Value, deepest: usize, look: &mut impl FnMut(&[u8])) {
    match value {
        Value::String(text) => {
            look(text.as_bytes());
            text.zeroize();
        }
        Value::Array(values) if deepest > 0 => values
            .iter_mut()
            .for_each(|value| texts_in(value, deepest - 1, look)),
        Value::Object(fields) if deepest > 0 => fields
            .values_mut()
            .for_each(|value| texts_in(value, deepest - 1, look)),
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
    if text.len() < SHORTEST {
        return;
    }
    put(Zeroizing::new(text.to_vec()));
    if let Ok(text) = std::str::from_utf8(text) {
        for escaper in JSON {
            put(json(text, escaper));
        }
    }
    for escaper in PERCENT {
        put(percent(text, escaper));
    }
    for alphabet in [&STANDARD_NO_PAD, &URL_SAFE_NO_PAD] {
        for before in 0..3 {
            base64(text, alphabet, before)
                .into_iter()
                .for_each(&mut put);
        }
    }
}

/// Who escapes what in a JSON text (RFC 8259, 7), beside what everybody has to.
struct Json {
    /// Written as `\u…`, also what has a shorter form.
    long: &'static str,
    /// And all that is not ASCII.
    ascii: bool,
    /// `/` with a `\` before it.
    slashes: bool,
    digits: &'static [u8; 16],
}

/// For an ordinary value all of them write the same.
const JSON: &[Json] = &[
    // Most: serde_json, JavaScript, Python with `ensure_ascii=False`.
    Json::plain(LOWER),
    // Python, Ruby's `generate` for ASCII.
    Json {
        ascii: true,
        ..Json::plain(LOWER)
    },
    // PHP, and the same with `JSON_UNESCAPED_UNICODE`.
    Json {
        ascii: true,
        slashes: true,
        ..Json::plain(LOWER)
    },
    Json {
        slashes: true,
        ..Json::plain(LOWER)
    },
    // Jackson, and the same with `ESCAPE_NON_ASCII`.
    Json::plain(UPPER),
    Json {
        ascii: true,
        ..Json::plain(UPPER)
    },
    // Go's encoding/json, Ruby on Rails.
    Json {
        long: "<>&\u{2028}\u{2029}",
        ..Json::plain(LOWER)
    },
    // Gson.
    Json {
        long: "<>&='\u{2028}\u{2029}",
        ..Json::plain(LOWER)
    },
    // System.Text.Json.
    Json {
        long: "\"&'+<>`\u{7f}",
        ascii: true,
        ..Json::plain(UPPER)
    },
];

impl Json {
    const fn plain(digits: &'static [u8; 16]) -> Self {
        Self {
            long: "",
            ascii: false,
            slashes: false,
            digits,
        }
    }
}

/// Between the quotes of a JSON text.
fn json(text: &str, escaper: &Json) -> Zeroizing<Vec<u8>> {
    let mut form = Zeroizing::new(Vec::with_capacity(6 * text.len()));
    for c in text.chars() {
        let short = match c {
            _ if escaper.long.contains(c) => None,
            '"' => Some(b'"'),
            '\\' => Some(b'\\'),
            '\n' => Some(b'n'),
            '\r' => Some(b'r'),
            '\t' => Some(b't'),
            '\u{8}' => Some(b'b'),
            '\u{c}' => Some(b'f'),
            '/' if escaper.slashes => Some(b'/'),
            _ => None,
        };
        let is_long =
            u32::from(c) < 0x20 || (escaper.ascii && !c.is_ascii()) || escaper.long.contains(c);
        let mut units = [0; 2];
        let mut bytes = [0; 4];
        match short {
            Some(short) => form.extend([b'\\', short]),
            None if is_long => {
                for unit in c.encode_utf16(&mut units) {
                    form.extend(b"\\u");
                    for shift in [12, 8, 4, 0] {
                        form.push(digit(escaper.digits, (*unit >> shift) as u8));
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

/// Who escapes what in a URL or a form.
struct Percent {
    /// What is left as it is beside letters and digits.
    kept: &'static [u8],
    space: &'static [u8],
    digits: &'static [u8; 16],
}

/// What RFC 3986, 2.3 does not reserve.
const UNRESERVED: &[u8] = b"-._~";

/// For an ordinary value all of them write the same.
const PERCENT: &[Percent] = &[
    Percent::new(UNRESERVED, b"%20"),
    Percent::new(UNRESERVED, b"+"),
    Percent {
        digits: LOWER,
        ..Percent::new(UNRESERVED, b"%20")
    },
    Percent {
        digits: LOWER,
        ..Percent::new(UNRESERVED, b"+")
    },
    // JavaScript's encodeURIComponent.
    Percent::new(b"-._~!'()*", b"%20"),
    // Forms as browsers write them (WHATWG URL, 5.2), Java's URLEncoder.
    Percent::new(b"-._*", b"+"),
    // PHP's urlencode.
    Percent::new(b"-._", b"+"),
    // Python's quote and quote_plus, for paths.
    Percent::new(b"-._~/", b"%20"),
    Percent::new(b"-._~/", b"+"),
];

impl Percent {
    const fn new(kept: &'static [u8], space: &'static [u8]) -> Self {
        Self {
            kept,
            space,
            digits: UPPER,
        }
    }
}

fn percent(text: &[u8], escaper: &Percent) -> Zeroizing<Vec<u8>> {
    let mut form = Zeroizing::new(Vec::with_capacity(3 * text.len()));
    for byte in text.iter().copied() {
        match byte {
            b' ' => form.extend(escaper.space),
            _ if byte.is_ascii_alphanumeric() || escaper.kept.contains(&byte) => form.push(byte),
            _ => form.extend([
                b'%',
                digit(escaper.digits, byte >> 4),
                digit(escaper.digits, byte),
            ]),
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
