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
    todo!()
}

/// Splits a target into its path and what follows the first `?`.
#[must_use]
pub fn split_query(target: &str) -> (&str, Option<&str>) {
    match target.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (target, None),
    }
}
