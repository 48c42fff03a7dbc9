//! Byte classes of RFC 9110, RFC 9112 and RFC 3986, as tables, and the folding of field names.

const TOKEN: u8 = 1;
const FIELD_VALUE: u8 = 2;
const UNRESERVED: u8 = 4;
const PATH_PLAIN: u8 = 8;

const CLASSES: [u8; 256] = classes();

#[expect(
    clippy::indexing_slicing,
    reason = "the loop stays below the table's 256 entries"
)]
const fn classes() -> [u8; 256] {
    let mut table = [0; 256];
    let mut at = 0;
    while at < 256 {
        let byte = at as u8;
        let alphanumeric = byte.is_ascii_alphanumeric();
        if alphanumeric
            || matches!(
                byte,
                b'!' | b'#' | b'$' | b'%' | b'&' | b'\'' | b'*' | b'+' | b'-' | b'.' | b'^' | b'_'
            )
            || matches!(byte, b'`' | b'|' | b'~')
        {
            table[at] |= TOKEN;
        }
        if byte == b'\t' || (byte >= b' ' && byte != 0x7f) {
            table[at] |= FIELD_VALUE;
        }
        if alphanumeric || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            table[at] |= UNRESERVED | PATH_PLAIN;
        }
        if matches!(
            byte,
            b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b',' | b';' | b'=' | b':'
        ) || matches!(byte, b'@' | b'/')
        {
            table[at] |= PATH_PLAIN;
        }
        at += 1;
    }
    table
}

#[expect(
    clippy::indexing_slicing,
    reason = "a byte always indexes a table of 256"
)]
const fn class(byte: u8) -> u8 {
    CLASSES[byte as usize]
}

/// `tchar` (RFC 9110 §5.6.2).
pub(crate) const fn is_token_byte(byte: u8) -> bool {
    class(byte) & TOKEN != 0
}

/// A `token`: at least one `tchar`.
pub(crate) fn is_token(text: &[u8]) -> bool {
    !text.is_empty() && text.iter().all(|byte| is_token_byte(*byte))
}

/// What a field value may hold: visible bytes, `obs-text`, space and tab (RFC 9110 §5.5).
pub(crate) const fn is_field_value_byte(byte: u8) -> bool {
    class(byte) & FIELD_VALUE != 0
}

/// `unreserved` (RFC 3986 §2.3).
pub(crate) const fn is_unreserved(byte: u8) -> bool {
    class(byte) & UNRESERVED != 0
}

/// `pchar` without the escapes, and the slash (RFC 3986 §3.3).
pub(crate) const fn is_plain_path_byte(byte: u8) -> bool {
    class(byte) & PATH_PLAIN != 0
}

/// A method we take: upper-case letters, digits, `-` and `_`, at most 32 bytes.
///
/// Methods are case-sensitive, but enough frameworks fold them that `get` could be matched as one
/// thing and served as another.
#[must_use]
pub fn is_method(text: &[u8]) -> bool {
    let first_is_letter = text.first().is_some_and(u8::is_ascii_uppercase);
    first_is_letter
        && text.len() <= 32
        && text.iter().all(|byte| {
            byte.is_ascii_uppercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'_')
        })
}

/// Removes optional white space (space and tab) from both ends.
pub(crate) fn trim(mut text: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] = text {
        text = rest;
    }
    while let [rest @ .., b' ' | b'\t'] = text {
        text = rest;
    }
    text
}

/// The elements of a comma-separated list, trimmed, empty ones left out (RFC 9110 §5.6.1.2).
pub(crate) fn list(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value
        .split(|byte| *byte == b',')
        .map(trim)
        .filter(|element| !element.is_empty())
}

/// Says whether `name` is `canonical` once case and punctuation are folded away.
///
/// CGI, WSGI and their kin hand `X-A-B`, `x_a_b` and sometimes `x.a.b` to the application under one
/// variable, so a field that must be ours is recognised under all of them. `canonical` is given in
/// lower case with `-`.
#[must_use]
pub fn folds_to(name: &[u8], canonical: &[u8]) -> bool {
    name.len() == canonical.len() && folds_to_prefix(name, canonical)
}

/// Says whether `name` begins with `prefix` once case and punctuation are folded away.
#[must_use]
pub fn folds_to_prefix(name: &[u8], prefix: &[u8]) -> bool {
    name.len() >= prefix.len()
        && name
            .iter()
            .zip(prefix)
            .all(|(byte, wanted)| fold(*byte) == *wanted)
}

const fn fold(byte: u8) -> u8 {
    if byte.is_ascii_alphanumeric() {
        byte.to_ascii_lowercase()
    } else {
        b'-'
    }
}

/// Text that a parser of this crate has already found to be ASCII.
pub(crate) fn ascii(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap_or_default()
}
