//! The one spelling of a request path: P1, P2 and P3.
//!
//! A gate that matches `/admin` while the application serves `/%61dmin`, `/x/../admin` or
//! `/x;/../admin` guards nothing. [`normalize`] gives one spelling, and it is that text which is
//! matched *and* forwarded; what has no single reading is refused. Normalising twice changes
//! nothing.
//!
//! Raw control characters have no exception: the only faithful rendering is an encoded control,
//! which P2 refuses.

use std::{borrow::Cow, fmt, str::FromStr};

use crate::grammar;

/// What becomes of `%2F` and `%5C` (and of a raw backslash, which is treated as `%5C`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EscapedSlash {
    /// The request is refused.
    #[default]
    Reject,
    /// They stay escaped, and are not separators.
    Keep,
    /// Both become `/`, and are separators.
    Decode,
}

/// What becomes of empty segments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MergeSlashes {
    /// `//` stays.
    #[default]
    Never,
    /// `//` becomes `/` before dot segments are removed.
    Always,
}

/// A refusal of P3 that a port may opt out of, by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exception {
    /// `dot-segment-parameters`: `/..;x/`
    DotSegmentParameters,
    /// `overlong-utf8`: `%C0%AF`
    OverlongUtf8,
    /// `double-encoding`: `%252F`
    DoubleEncoding,
}

/// No exception has this name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is no exception of the path rules; give `dot-segment-parameters`, `overlong-utf8` or \
     `double-encoding`"
)]
pub struct UnknownException(String);

impl Exception {
    const ALL: [Self; 3] = [
        Self::DotSegmentParameters,
        Self::OverlongUtf8,
        Self::DoubleEncoding,
    ];

    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::DotSegmentParameters => "dot-segment-parameters",
            Self::OverlongUtf8 => "overlong-utf8",
            Self::DoubleEncoding => "double-encoding",
        }
    }

    const fn bit(self) -> u8 {
        match self {
            Self::DotSegmentParameters => 1,
            Self::OverlongUtf8 => 2,
            Self::DoubleEncoding => 4,
        }
    }
}

impl FromStr for Exception {
    type Err = UnknownException;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|exception| exception.name() == name)
            .ok_or_else(|| UnknownException(name.to_owned()))
    }
}

impl fmt::Display for Exception {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The exceptions of one port; none unless named.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Exceptions(u8);

impl Exceptions {
    #[must_use]
    pub const fn with(self, exception: Exception) -> Self {
        Self(self.0 | exception.bit())
    }

    #[must_use]
    pub const fn contains(self, exception: Exception) -> bool {
        self.0 & exception.bit() != 0
    }
}

impl FromIterator<Exception> for Exceptions {
    fn from_iter<I: IntoIterator<Item = Exception>>(exceptions: I) -> Self {
        exceptions.into_iter().fold(Self::default(), Self::with)
    }
}

/// How one port reads paths; the default is the strictest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    pub escaped_slash: EscapedSlash,
    pub merge_slashes: MergeSlashes,
    pub exceptions: Exceptions,
}

/// Why a path was refused; the answer is 400.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PathError {
    #[error("the path does not begin with `/`")]
    LacksSlash,
    #[error("the path holds a byte that is not allowed there")]
    BreaksGrammar,
    #[error("a `%` in the path is not followed by two hexadecimal digits")]
    BreaksEscape,
    #[error("the path holds an encoded control character")]
    EncodesControl,
    #[error("the path holds an encoded slash or a backslash")]
    EncodesSlash,
    #[error("the path is encoded twice")]
    EncodesTwice,
    #[error("the path holds an overlong UTF-8 sequence")]
    EncodesOverlong,
    #[error("a dot segment of the path carries parameters")]
    ParametrizesDots,
    #[error("the path hides a dot segment behind an encoded slash")]
    HidesDots,
}

/// Gives the spelling of `path` (without query) that is matched and forwarded.
///
/// `*`, the target of a server-wide `OPTIONS`, stays as it is.
pub fn normalize<'a>(path: &'a str, rules: &Rules) -> Result<Cow<'a, str>, PathError> {
    if path == "*" || is_canonical(path, rules) {
        return Ok(Cow::Borrowed(path));
    }
    if !path.starts_with('/') {
        return Err(PathError::LacksSlash);
    }
    let escaped = unescape_once(path, rules)?;
    check_escapes(escaped.as_bytes(), rules)?;
    remove_dot_segments(&escaped, rules).map(Cow::Owned)
}

/// Says whether there is nothing to do, in one look at each byte; most paths leave here.
fn is_canonical(path: &str, rules: &Rules) -> bool {
    let mut before = None;
    for byte in path.bytes() {
        let dotted = before == Some(b'/') && byte == b'.';
        let doubled = before == Some(b'/') && byte == b'/';
        if !grammar::is_plain_path_byte(byte)
            || dotted
            || (doubled && rules.merge_slashes == MergeSlashes::Always)
        {
            return false;
        }
        before = Some(byte);
    }
    path.starts_with('/')
}

/// P1 and P2: decodes unreserved characters, writes every other escape in upper case, and escapes
/// what may not stand in a path as it is.
fn unescape_once(path: &str, rules: &Rules) -> Result<String, PathError> {
    let mut out = String::with_capacity(path.len() + 16);
    let mut rest = path.as_bytes();
    while let [byte, after @ ..] = rest {
        rest = after;
        match *byte {
            b'%' => {
                let ([high, low], after) =
                    rest.split_first_chunk().ok_or(PathError::BreaksEscape)?;
                rest = after;
                let value = unhex(*high)
                    .zip(unhex(*low))
                    .ok_or(PathError::BreaksEscape)?;
                push_decoded(&mut out, value.0 << 4 | value.1, rules)?;
            }
            b'\\' => push_slash(&mut out, b'\\', rules)?,
            b'?' | b'#' => return Err(PathError::BreaksGrammar),
            plain if grammar::is_plain_path_byte(plain) => out.push(char::from(plain)),
            visible if visible.is_ascii_graphic() => push_escape(&mut out, visible),
            _ => return Err(PathError::BreaksGrammar),
        }
    }
    Ok(out)
}

fn push_decoded(out: &mut String, value: u8, rules: &Rules) -> Result<(), PathError> {
    match value {
        _ if value.is_ascii_control() => return Err(PathError::EncodesControl),
        b'/' | b'\\' => push_slash(out, value, rules)?,
        _ if grammar::is_unreserved(value) => out.push(char::from(value)),
        _ => push_escape(out, value),
    }
    Ok(())
}

fn push_slash(out: &mut String, value: u8, rules: &Rules) -> Result<(), PathError> {
    match rules.escaped_slash {
        EscapedSlash::Reject => return Err(PathError::EncodesSlash),
        EscapedSlash::Keep => push_escape(out, value),
        EscapedSlash::Decode => out.push('/'),
    }
    Ok(())
}

fn push_escape(out: &mut String, value: u8) {
    out.push('%');
    for digit in [value >> 4, value & 15] {
        out.extend(char::from_digit(u32::from(digit), 16).map(|digit| digit.to_ascii_uppercase()));
    }
}

fn unhex(digit: u8) -> Option<u8> {
    char::from(digit)
        .to_digit(16)
        .and_then(|value| u8::try_from(value).ok())
}

/// P3, on text in which every `%` begins an escape of two upper-case digits.
fn check_escapes(path: &[u8], rules: &Rules) -> Result<(), PathError> {
    for (at, _) in path.iter().enumerate().filter(|(_, byte)| **byte == b'%') {
        let escape = path.get(at..).unwrap_or_default();
        let twice = matches!(escape, [b'%', b'2', b'5', high, low, ..]
            if high.is_ascii_hexdigit() && low.is_ascii_hexdigit());
        if twice && !rules.exceptions.contains(Exception::DoubleEncoding) {
            return Err(PathError::EncodesTwice);
        }
        if is_overlong(escape) && !rules.exceptions.contains(Exception::OverlongUtf8) {
            return Err(PathError::EncodesOverlong);
        }
    }
    Ok(())
}

/// Says whether `escape` begins a UTF-8 sequence longer than its character needs.
///
/// `C0` and `C1` never begin anything else, so they are refused whatever follows.
fn is_overlong(escape: &[u8]) -> bool {
    let value = |escape: &[u8]| match escape {
        [b'%', high, low, ..] => unhex(*high)
            .zip(unhex(*low))
            .map(|(high, low)| high << 4 | low),
        _ => None,
    };
    let lead = value(escape);
    let next = escape.get(3..).and_then(value);
    matches!(
        (lead, next),
        (Some(0xc0 | 0xc1), _)
            | (Some(0xe0), Some(0x80..=0x9f))
            | (Some(0xf0), Some(0x80..=0x8f))
            | (Some(0xf8), Some(0x80..=0x87))
            | (Some(0xfc), Some(0x80..=0x83))
    )
}

/// RFC 3986 §5.2.4, with `..` stopping at the root, and empty segments merged first if asked.
fn remove_dot_segments(path: &str, rules: &Rules) -> Result<String, PathError> {
    let mut kept: Vec<&str> = Vec::new();
    let mut segments = path.split('/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        let is_last = segments.peek().is_none();
        check_segment(segment, rules)?;
        match segment {
            "" if !is_last && rules.merge_slashes == MergeSlashes::Always => {}
            "." | ".." => {
                if segment == ".." {
                    kept.pop();
                }
                if is_last {
                    kept.push("");
                }
            }
            _ => kept.push(segment),
        }
    }
    let mut out = String::with_capacity(path.len());
    for segment in kept {
        out.push('/');
        out.push_str(segment);
    }
    Ok(out)
}

/// P3: dots that some reader would take for a dot segment and another would not.
fn check_segment(segment: &str, rules: &Rules) -> Result<(), PathError> {
    let is_dots = |text: &str| matches!(text, "." | "..");
    if !segment.contains('.') {
        return Ok(());
    }
    let (name, parametrized) = strip_parameters(segment);
    if parametrized && is_dots(name) && !rules.exceptions.contains(Exception::DotSegmentParameters)
    {
        return Err(PathError::ParametrizesDots);
    }
    let pieces = || segment.split("%2F").flat_map(|piece| piece.split("%5C"));
    if pieces().count() > 1 && pieces().any(|piece| is_dots(strip_parameters(piece).0)) {
        return Err(PathError::HidesDots);
    }
    Ok(())
}

/// The segment before its first `;` or `%3B`, and whether there was one.
fn strip_parameters(segment: &str) -> (&str, bool) {
    let raw = segment.find(';').unwrap_or(segment.len());
    let encoded = segment.find("%3B").unwrap_or(segment.len());
    let end = raw.min(encoded);
    (segment.get(..end).unwrap_or_default(), end < segment.len())
}

/// Splits a target into its path and what follows the first `?`.
#[must_use]
pub fn split_query(target: &str) -> (&str, Option<&str>) {
    match target.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (target, None),
    }
}
