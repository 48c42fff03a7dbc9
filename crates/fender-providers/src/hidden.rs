//! Texts of JSON that must not be seen, read from where they stand: whoever unescapes them leaves no copy behind that is
//! not wiped.

use fender_identity::Secret;
use serde::de::{Deserialize, Deserializer, Error as _};
use serde_json::value::RawValue;

/// A text that is wiped when it is dropped.
#[derive(Clone, Debug)]
pub(crate) struct Hidden(pub(crate) Secret);

impl Default for Hidden {
    fn default() -> Self {
        Self(Secret::new(Vec::new()))
    }
}

impl<'de> Deserialize<'de> for Hidden {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = <&RawValue>::deserialize(deserializer)?;
        // What stands there is in no error.
        text(raw.get())
            .map(Self)
            .ok_or_else(|| D::Error::custom("not a text"))
    }
}

/// What a text of JSON says. None: it is none, or half of a character.
pub(crate) fn text(raw: &str) -> Option<Secret> {
    let inner = raw.strip_prefix('"')?.strip_suffix('"')?;
    // Nothing that is written takes more room than the way it is written.
    let mut text = Vec::with_capacity(inner.len());
    let mut rest = inner;
    while let Some((plain, escaped)) = rest.split_once('\\') {
        text.extend_from_slice(plain.as_bytes());
        let mut characters = escaped.chars();
        let character = match characters.next()? {
            escaped @ ('"' | '\\' | '/') => escaped,
            'b' => '\u{8}',
            'f' => '\u{c}',
            'n' => '\n',
            'r' => '\r',
            't' => '\t',
            'u' => {
                let (character, length) = unicode(characters.as_str())?;
                characters = characters.as_str().get(length..)?.chars();
                character
            }
            _ => return wiped(text),
        };
        text.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
        rest = characters.as_str();
    }
    text.extend_from_slice(rest.as_bytes());
    Some(Secret::new(text))
}

/// There is no text, and nothing is left of what there was.
fn wiped(text: Vec<u8>) -> Option<Secret> {
    drop(Secret::new(text));
    None
}

/// What stands after `\u`, and how long it is there.
fn unicode(digits: &str) -> Option<(char, usize)> {
    const DIGITS: usize = 4;
    let unit = |text: &str| {
        let digits = text.get(..DIGITS)?;
        let plain = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        u16::from_str_radix(digits, 16).ok().filter(|_| plain)
    };
    let first = unit(digits)?;
    if let Some(character) = char::from_u32(first.into()) {
        return Some((character, DIGITS));
    }
    let second = unit(digits.get(DIGITS..)?.strip_prefix("\\u")?)?;
    let mut pair = char::decode_utf16([first, second]);
    match (pair.next(), pair.next()) {
        (Some(Ok(character)), None) => Some((character, DIGITS + 2 + DIGITS)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_what_serde_json_reads() {
        for raw in [
            r#""""#,
            r#""hunter2""#,
            r#""a\"b\\c\/d\b\f\n\r\t""#,
            r#""\u00e9\u20ac\ud83d\ude00é€😀""#,
            r#""\u0000x\u001f""#,
            r#""\\u0041""#,
        ] {
            let expected: String = serde_json::from_str(raw).unwrap();
            assert_eq!(text(raw).unwrap().expose_str().unwrap(), expected, "{raw}");
            let hidden: Hidden = serde_json::from_slice(raw.as_bytes()).unwrap();
            assert_eq!(hidden.0.expose_str().unwrap(), expected, "{raw}");
        }
    }

    #[test]
    fn what_is_no_text_is_refused_and_not_shown() {
        for raw in [
            "1",
            "null",
            "true",
            "[]",
            "{}",
            r#"["hunter2"]"#,
            r#""hunter2\ud83d""#,
            r#""\ude00\ud83d hunter2""#,
            r#""\ud83d\u0041hunter2""#,
        ] {
            let refused = serde_json::from_slice::<Hidden>(raw.as_bytes()).unwrap_err();
            assert!(!refused.to_string().contains("hunter2"), "{refused}");
        }
        // What never gets here from a reader of JSON.
        for raw in [r#""\x""#, r#""\u12""#, r#""\u+123""#, r#""\"#, "\"", ""] {
            assert!(text(raw).is_none(), "{raw}");
        }
    }
}
