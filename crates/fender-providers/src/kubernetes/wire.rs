//! What the API says: lists of Secrets, and the events of a watch. Nothing of either is repeated in an error.
//!
//! <https://kubernetes.io/docs/reference/using-api/api-concepts/#efficient-detection-of-changes>

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use fender_config::snapshot::KubernetesName;
use fender_identity::Secret;
use serde::Deserialize;
use serde::de::{Deserializer, Error as _};
use serde_json::value::RawValue;

use crate::hidden;

/// The longest version that is sent back.
const LONGEST_VERSION: usize = 256;

/// A Secret as it is now.
#[derive(Debug)]
pub(super) struct Reading {
    pub(super) fields: BTreeMap<String, Field>,
}

impl Reading {
    pub(super) fn equals(&self, other: &Self) -> bool {
        let same = |(one, other): ((&String, &Field), (&String, &Field))| {
            one.0 == other.0 && one.1.0.ct_eq(&other.1.0)
        };
        self.fields.len() == other.fields.len() && self.fields.iter().zip(&other.fields).all(same)
    }
}

/// What of a cluster's history somebody has seen. It is repeated and never understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Version(String);

impl Version {
    fn new(text: String) -> Option<Self> {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.~".contains(&b);
        let fits = (1..=LONGEST_VERSION).contains(&text.len());
        (fits && text.bytes().all(plain)).then_some(Self(text))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One object of a cluster.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Object {
    pub(super) namespace: KubernetesName,
    pub(super) name: KubernetesName,
}

impl Object {
    /// The path of all there are of this name, which is one or none. Asked so, a rule for this name alone lets us.
    pub(super) fn path(&self) -> String {
        let Self { namespace, name } = self;
        format!("/api/v1/namespaces/{namespace}/secrets?fieldSelector=metadata.name%3D{name}")
    }
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret `{}/{}`", self.namespace, self.name)
    }
}

/// What there is.
#[derive(Debug)]
pub(super) struct Listed {
    /// None: there is no such Secret.
    pub(super) reading: Option<Reading>,
    pub(super) version: Version,
}

/// What has happened.
#[derive(Debug)]
pub(super) enum Event {
    /// It is this from now on.
    Changed(Reading, Version),
    Deleted(Version),
    /// Nothing, up to here.
    Bookmark(Version),
    /// What was seen is too long ago: what there is must be asked for anew.
    Expired,
    /// The API gives up, with the status that it names.
    Failed(u16),
    /// It is about something else.
    Foreign,
}

/// That was no answer of the API.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum NoAnswer {
    #[error("its answer is not what a Kubernetes API answers (line {line}, column {column})")]
    Json { line: usize, column: usize },
    #[error("its answer is no list of Secrets")]
    Kind,
    #[error("its answer names no version that could be sent back")]
    Version,
    #[error("an event of its watch is of a kind that is not known")]
    Event,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawList {
    kind: String,
    api_version: String,
    metadata: Metadata,
    #[serde(default)]
    items: Option<Vec<Raw>>,
}

#[derive(Deserialize)]
struct RawEvent {
    #[serde(rename = "type")]
    kind: String,
    object: Raw,
}

/// A Secret, or, where an event is an error, a Status.
#[derive(Deserialize)]
struct Raw {
    #[serde(default)]
    metadata: Metadata,
    data: Option<BTreeMap<String, Field>>,
    code: Option<u16>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    namespace: Option<String>,
    name: Option<String>,
    resource_version: Option<String>,
}

impl Metadata {
    fn version(self) -> Result<Version, NoAnswer> {
        let version = self.resource_version.and_then(Version::new);
        version.ok_or(NoAnswer::Version)
    }

    fn is_of(&self, object: &Object) -> bool {
        self.namespace.as_deref() == Some(object.namespace.as_str())
            && self.name.as_deref() == Some(object.name.as_str())
    }
}

/// Bytes, which JSON has in base64.
#[derive(Debug)]
pub(super) struct Field(pub(super) Secret);

impl<'de> Deserialize<'de> for Field {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = <&RawValue>::deserialize(deserializer)?.get();
        // As Go writes bytes of which there are none.
        if raw == "null" {
            return Ok(Self(Secret::new(Vec::new())));
        }
        let bytes = hidden::text(raw).and_then(|text| STANDARD.decode(text.expose()).ok());
        let bytes = bytes.ok_or_else(|| D::Error::custom("not base64"))?;
        Ok(Self(Secret::new(bytes)))
    }
}

fn parse<'a, T: Deserialize<'a>>(text: &'a Secret) -> Result<T, NoAnswer> {
    serde_json::from_slice(text.expose()).map_err(|error| NoAnswer::Json {
        line: error.line(),
        column: error.column(),
    })
}

/// Reads a list of what is called `object`. Whatever else may be in it is not looked at.
pub(super) fn list(text: &Secret, object: &Object) -> Result<Listed, NoAnswer> {
    let list: RawList = parse(text)?;
    if list.kind != "SecretList" || list.api_version != "v1" {
        return Err(NoAnswer::Kind);
    }
    let items = list.items.unwrap_or_default();
    let found = items.into_iter().find(|item| item.metadata.is_of(object));
    Ok(Listed {
        reading: found.map(|found| Reading {
            fields: found.data.unwrap_or_default(),
        }),
        version: list.metadata.version()?,
    })
}

/// Reads an event.
pub(super) fn event(text: &Secret, object: &Object) -> Result<Event, NoAnswer> {
    const GONE: u16 = 410;
    let RawEvent { kind, object: raw } = parse(text)?;
    Ok(match kind.as_str() {
        "BOOKMARK" => Event::Bookmark(raw.metadata.version()?),
        "ERROR" => match raw.code {
            Some(GONE) => Event::Expired,
            code => Event::Failed(code.unwrap_or_default()),
        },
        "ADDED" | "MODIFIED" | "DELETED" if !raw.metadata.is_of(object) => Event::Foreign,
        "DELETED" => Event::Deleted(raw.metadata.version()?),
        "ADDED" | "MODIFIED" => {
            let fields = raw.data.unwrap_or_default();
            Event::Changed(Reading { fields }, raw.metadata.version()?)
        }
        _ => return Err(NoAnswer::Event),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object() -> Object {
        Object {
            namespace: "shop".parse().unwrap(),
            name: "smtp".parse().unwrap(),
        }
    }

    fn read_list(text: &str) -> Result<Listed, NoAnswer> {
        list(&Secret::from(text.to_owned()), &object())
    }

    fn read_event(text: &str) -> Result<Event, NoAnswer> {
        event(&Secret::from(text.to_owned()), &object())
    }

    fn field(reading: &Reading, key: &str) -> Vec<u8> {
        reading.fields[key].0.expose().to_vec()
    }

    /// As a Kubernetes 1.30 prints it, but for what does not matter.
    const SECRET: &str = r#"{"kind":"Secret","apiVersion":"v1","metadata":{"name":"smtp","namespace":"shop",
        "uid":"0c9b","resourceVersion":"812","creationTimestamp":"2026-01-01T00:00:00Z",
        "managedFields":[{"manager":"kubectl-create","fieldsV1":{"f:data":{".":{},"f:password":{}}}}]},
        "immutable":true,"data":{"password":"aHVudGVyMg==","binary":"AP8=","nothing":null},"type":"Opaque"}"#;

    #[test]
    fn a_list_has_the_secret_or_has_it_not() {
        let list = format!(
            r#"{{"kind":"SecretList","apiVersion":"v1","metadata":{{"resourceVersion":"900"}},"items":[{SECRET}]}}"#
        );
        let listed = read_list(&list).unwrap();
        assert_eq!(listed.version.to_string(), "900");
        let reading = listed.reading.unwrap();
        assert_eq!(field(&reading, "password"), b"hunter2");
        assert_eq!(field(&reading, "binary"), [0, 255]);
        assert_eq!(field(&reading, "nothing"), b"");
        for items in ["[]", "null"] {
            let list = format!(
                r#"{{"kind":"SecretList","apiVersion":"v1","metadata":{{"resourceVersion":"9"}},"items":{items}}}"#
            );
            assert!(read_list(&list).unwrap().reading.is_none());
        }
    }

    #[test]
    fn attack_an_api_that_gives_what_was_not_asked_for() {
        let other = SECRET.replace("\"smtp\"", "\"other\"");
        let list = format!(
            r#"{{"kind":"SecretList","apiVersion":"v1","metadata":{{"resourceVersion":"9"}},"items":[{other}]}}"#
        );
        assert!(read_list(&list).unwrap().reading.is_none());
        let elsewhere = SECRET.replace("\"shop\"", "\"kube-system\"");
        for foreign in [other, elsewhere] {
            let event = read_event(&format!(r#"{{"type":"MODIFIED","object":{foreign}}}"#));
            assert!(matches!(event, Ok(Event::Foreign)), "{event:?}");
        }
    }

    #[test]
    fn events_say_what_has_happened() {
        let of = |kind: &str| read_event(&format!(r#"{{"type":"{kind}","object":{SECRET}}}"#));
        for kind in ["ADDED", "MODIFIED"] {
            let Ok(Event::Changed(reading, version)) = of(kind) else {
                panic!("{kind}")
            };
            assert_eq!(field(&reading, "password"), b"hunter2");
            assert_eq!(version.to_string(), "812");
        }
        assert!(matches!(of("DELETED"), Ok(Event::Deleted(_))));
        let bookmark = r#"{"type":"BOOKMARK","object":{"kind":"Secret","apiVersion":"v1","metadata":{"resourceVersion":"12746","creationTimestamp":null}}}"#;
        assert!(matches!(read_event(bookmark), Ok(Event::Bookmark(_))));
        let gone = r#"{"type":"ERROR","object":{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"too old resource version","reason":"Expired","code":410}}"#;
        assert!(matches!(read_event(gone), Ok(Event::Expired)));
        let other = gone.replace("410", "500");
        assert!(matches!(read_event(&other), Ok(Event::Failed(500))));
        assert_eq!(of("INVENTED").unwrap_err(), NoAnswer::Event);
    }

    #[test]
    fn nothing_of_what_is_no_answer_is_shown() {
        let wrong = [
            r#"{"type":"ADDED","object":{"metadata":{"name":"smtp","namespace":"shop","resourceVersion":"1"},"data":{"a":"hunter2!"}}}"#,
            r#"{"type":"ADDED","object":{"metadata":{"name":"smtp","namespace":"shop","resourceVersion":"1"},"data":{"a":["hunter2"]}}}"#,
            r#"{"type":"hunter2","object":{}}"#,
            r#""hunter2""#,
            "",
        ];
        for text in wrong {
            let error = read_event(text).unwrap_err();
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{text}");
        }
        let list = r#"{"kind":"hunter2","apiVersion":"v1","metadata":{"resourceVersion":"9"}}"#;
        assert_eq!(read_list(list).unwrap_err(), NoAnswer::Kind);
    }

    #[test]
    fn attack_a_version_that_says_more_than_a_version() {
        let long = "1".repeat(257);
        for version in ["", "1&watch=0", "1 ", "é", "1\\n", &long] {
            let list = format!(
                r#"{{"kind":"SecretList","apiVersion":"v1","metadata":{{"resourceVersion":"{version}"}},"items":[]}}"#
            );
            assert_eq!(
                read_list(&list).unwrap_err(),
                NoAnswer::Version,
                "{version}"
            );
        }
    }
}
