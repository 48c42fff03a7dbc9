//! What a plug-in answers, read strictly: one JSON object of known fields, and no byte of it in any error.

use std::fmt;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use super::Secret;
use crate::FetchError;
use crate::hidden::Hidden;

/// The version of the contract.
pub(super) const VERSION: u32 = 1;

/// How much of a plug-in's words is repeated, in characters.
const LONGEST_MESSAGE: usize = 300;

/// A value, and until when it holds, since 1970.
pub(super) struct Value {
    pub(super) secret: Secret,
    pub(super) expires: Option<Duration>,
}

/// A plug-in's own word that there is no value.
pub(super) struct Refusal {
    kind: Kind,
    message: String,
}

impl Refusal {
    pub(super) fn blame(self, who: &str) -> FetchError {
        let why = format!("{who}: {}", self.message);
        match self.kind {
            Kind::Outage => FetchError::Outage(why),
            Kind::Denied => FetchError::Denied(why),
            Kind::Missing => FetchError::Missing(why),
        }
    }
}

/// Why that was no answer.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum NoAnswer {
    #[error("answered nothing")]
    Nothing,
    #[error(
        "did not answer with one JSON object of the fields there are (line {line}, column {column})"
    )]
    Json { line: usize, column: usize },
    #[error("answered in version {0}; this is version {VERSION}")]
    Version(u32),
    #[error("must answer one of `value`, `valueBase64` and `error`")]
    OneOf,
    #[error("gave an empty value")]
    Empty,
    #[error("gave a `valueBase64` that is not base64, of the standard alphabet with padding")]
    Base64,
    #[error("gave an `expires` that is not like `2027-01-31T08:00:00Z`")]
    Expires,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Raw {
    version: u32,
    value: Option<Hidden>,
    value_base64: Option<Hidden>,
    expires: Option<String>,
    error: Option<RawError>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawError {
    kind: Kind,
    message: String,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Outage,
    Denied,
    Missing,
}

/// What `output` says.
pub(super) fn read(output: &[u8]) -> Result<Result<Value, Refusal>, NoAnswer> {
    if output.trim_ascii().is_empty() {
        return Err(NoAnswer::Nothing);
    }
    // The error itself would quote what it did not expect.
    let raw: Raw = serde_json::from_slice(output).map_err(|error| NoAnswer::Json {
        line: error.line(),
        column: error.column(),
    })?;
    if raw.version != VERSION {
        return Err(NoAnswer::Version(raw.version));
    }
    let secret = match (raw.value, raw.value_base64, raw.error) {
        (Some(Hidden(text)), None, None) => text,
        (None, Some(Hidden(text)), None) => {
            let bytes = STANDARD.decode(text.expose());
            Secret::new(bytes.map_err(|_| NoAnswer::Base64)?)
        }
        (None, None, Some(error)) if raw.expires.is_none() => {
            return Ok(Err(Refusal {
                kind: error.kind,
                message: Shown(&error.message).to_string(),
            }));
        }
        _ => return Err(NoAnswer::OneOf),
    };
    if secret.is_empty() {
        return Err(NoAnswer::Empty);
    }
    let expires = raw.expires.as_deref().map(moment).transpose()?;
    Ok(Ok(Value { secret, expires }))
}

fn moment(text: &str) -> Result<Duration, NoAnswer> {
    let moment = humantime::parse_rfc3339(text).map_err(|_| NoAnswer::Expires)?;
    let since_1970 = moment.duration_since(SystemTime::UNIX_EPOCH);
    since_1970.map_err(|_| NoAnswer::Expires)
}

/// Foreign words on one line of ours: no control characters, and not without end.
struct Shown<'a>(&'a str);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plain = |c: char| if c.is_control() { ' ' } else { c };
        let text: String = self.0.chars().take(LONGEST_MESSAGE).map(plain).collect();
        f.write_str(&text)?;
        match self.0.chars().nth(LONGEST_MESSAGE) {
            Some(_) => f.write_str("…"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(text: &str) -> Vec<u8> {
        read(text.as_bytes())
            .unwrap()
            .ok()
            .unwrap()
            .secret
            .expose()
            .to_vec()
    }

    fn wrong(text: &str) -> NoAnswer {
        read(text.as_bytes()).err().unwrap()
    }

    #[test]
    fn a_value_is_text_or_bytes() {
        assert_eq!(value(r#"{"version":1,"value":"hunter2"}"#), b"hunter2");
        assert_eq!(
            value("{\"value\":\"a\\u00e9\\n\",\"version\":1}\n\n"),
            "aé\n".as_bytes()
        );
        assert_eq!(value(r#"{"version":1,"valueBase64":"AP8="}"#), [0, 255]);
    }

    #[test]
    fn a_value_says_until_when_it_holds() {
        let text = r#"{"version":1,"value":"x","expires":"1970-01-01T00:01:40Z"}"#;
        let read = read(text.as_bytes()).unwrap().ok().unwrap();
        assert_eq!(read.expires, Some(Duration::from_secs(100)));
    }

    #[test]
    fn an_error_says_whose_doing_it_is_and_its_words_stay_on_their_line() {
        let said = |kind: &str, message: &str| {
            let text = format!(
                "{{\"version\":1,\"error\":{{\"kind\":\"{kind}\",\"message\":\"{message}\"}}}}"
            );
            read(text.as_bytes())
                .unwrap()
                .err()
                .unwrap()
                .blame("it says")
        };
        assert_eq!(
            said("outage", "away"),
            FetchError::Outage("it says: away".to_owned())
        );
        assert_eq!(
            said("denied", "no"),
            FetchError::Denied("it says: no".to_owned())
        );
        let forged = said("missing", "gone\\nERROR forged \\u001b[31m");
        assert_eq!(
            forged,
            FetchError::Missing("it says: gone ERROR forged  [31m".to_owned())
        );
        let long = said("outage", &"é".repeat(1000)).to_string();
        assert!(long.chars().count() < 400 && long.ends_with('…'), "{long}");
    }

    #[test]
    fn everything_else_is_no_answer_and_no_word_of_it_is_repeated() {
        for (text, expected) in [
            ("", NoAnswer::Nothing),
            (" \n", NoAnswer::Nothing),
            (r#"{"version":2,"value":"hunter2"}"#, NoAnswer::Version(2)),
            (r#"{"version":1}"#, NoAnswer::OneOf),
            (
                r#"{"version":1,"value":"hunter2","valueBase64":"eA=="}"#,
                NoAnswer::OneOf,
            ),
            (
                r#"{"version":1,"value":"hunter2","error":{"kind":"outage","message":"hunter2"}}"#,
                NoAnswer::OneOf,
            ),
            (
                r#"{"version":1,"expires":"2027-01-31T08:00:00Z","error":{"kind":"outage","message":""}}"#,
                NoAnswer::OneOf,
            ),
            (r#"{"version":1,"value":""}"#, NoAnswer::Empty),
            (r#"{"version":1,"valueBase64":""}"#, NoAnswer::Empty),
            (r#"{"version":1,"valueBase64":"hunter2"}"#, NoAnswer::Base64),
            (
                r#"{"version":1,"value":"x","expires":"hunter2"}"#,
                NoAnswer::Expires,
            ),
            (
                r#"{"version":1,"value":"x","expires":"1969-01-01T00:00:00Z"}"#,
                NoAnswer::Expires,
            ),
        ] {
            let error = wrong(text);
            assert!(!error.to_string().contains("hunter2"), "{error}");
            assert_eq!(error, expected, "{text}");
        }
        for text in [
            "hunter2",
            "\"hunter2\"",
            "[]",
            "{}",
            r#"{"version":"hunter2","value":"x"}"#,
            r#"{"version":1,"value":"x","hunter2":1}"#,
            r#"{"version":1,"value":"x","value":"hunter2"}"#,
            r#"{"version":1,"value":"x"}{"version":1,"value":"hunter2"}"#,
            r#"{"version":1,"value":["hunter2"]}"#,
            r#"{"version":1,"error":{"kind":"hunter2","message":"x"}}"#,
            r#"{"version":1,"error":{"kind":"outage"}}"#,
            "{\"version\":1,\"value\":\"hunter2",
            "{\"version\":1,\"value\":\"\u{0}hunter2\"}",
        ] {
            let error = wrong(text);
            assert!(matches!(error, NoAnswer::Json { .. }), "{text}: {error}");
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{error}");
        }
        let error = read(b"{\"version\":1,\"value\":\"\xff\"}").err().unwrap();
        assert!(matches!(error, NoAnswer::Json { .. }), "{error}");
    }
}
