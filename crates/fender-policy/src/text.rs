//! Istio's four ways to match a text. Refuses nothing: any text is a pattern, and a `*` elsewhere
//! than at one end is an ordinary character, as it is in Istio.

use std::fmt;
use std::str::FromStr;

/// Exact, `abc*`, `*abc`, or `*` (present, whatever it is).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum TextMatch {
    Exact(String),
    Prefix(String),
    Suffix(String),
    Present,
}

impl TextMatch {
    /// Case-sensitive. An empty value is not present.
    pub fn matches(&self, value: &str) -> bool {
        match self {
            Self::Exact(exact) => value == exact,
            Self::Prefix(prefix) => value.starts_with(prefix.as_str()),
            Self::Suffix(suffix) => value.ends_with(suffix.as_str()),
            Self::Present => !value.is_empty(),
        }
    }

    /// ASCII case does not count: for host names.
    pub fn matches_ignoring_case(&self, value: &str) -> bool {
        let (value, bytes) = (value.as_bytes(), |text: &str| text.len());
        match self {
            Self::Exact(exact) => value.eq_ignore_ascii_case(exact.as_bytes()),
            Self::Prefix(prefix) => value
                .get(..bytes(prefix))
                .is_some_and(|head| head.eq_ignore_ascii_case(prefix.as_bytes())),
            Self::Suffix(suffix) => value
                .len()
                .checked_sub(bytes(suffix))
                .and_then(|from| value.get(from..))
                .is_some_and(|tail| tail.eq_ignore_ascii_case(suffix.as_bytes())),
            Self::Present => !value.is_empty(),
        }
    }

    /// The characters that are compared, without the `*`.
    pub(crate) fn literal(&self) -> &str {
        match self {
            Self::Exact(text) | Self::Prefix(text) | Self::Suffix(text) => text,
            Self::Present => "",
        }
    }
}

impl From<&str> for TextMatch {
    fn from(text: &str) -> Self {
        match (text.strip_prefix('*'), text.strip_suffix('*')) {
            _ if text == "*" => Self::Present,
            (Some(suffix), _) => Self::Suffix(suffix.to_owned()),
            (None, Some(prefix)) => Self::Prefix(prefix.to_owned()),
            (None, None) => Self::Exact(text.to_owned()),
        }
    }
}

impl FromStr for TextMatch {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(text.into())
    }
}

/// As it is written in a policy.
impl fmt::Display for TextMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(text) => f.write_str(text),
            Self::Prefix(text) => write!(f, "{text}*"),
            Self::Suffix(text) => write!(f, "*{text}"),
            Self::Present => f.write_str("*"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_means_something_only_at_one_end() {
        for (text, pattern) in [
            ("*", TextMatch::Present),
            ("abc*", TextMatch::Prefix("abc".to_owned())),
            ("*abc", TextMatch::Suffix("abc".to_owned())),
            ("a*c", TextMatch::Exact("a*c".to_owned())),
            ("", TextMatch::Exact(String::new())),
        ] {
            assert_eq!(TextMatch::from(text), pattern);
            assert_eq!(pattern.to_string(), text);
        }
    }

    #[test]
    fn ignoring_case_does_not_panic_inside_a_character() {
        assert!(!TextMatch::Suffix("x".to_owned()).matches_ignoring_case("é"));
        assert!(!TextMatch::Prefix("ab".to_owned()).matches_ignoring_case("aé"));
        assert!(TextMatch::Suffix(".COM".to_owned()).matches_ignoring_case("é.com"));
    }
}
