//! JSON Schema of every kind, so that editors complete and check documents as they are written.
//!
//! It knows structure and words. References, addresses and spans of time are [`crate::parse`]'s to
//! judge, so what the schema accepts may still be refused.
//!
//! It is made by tests alone: `fender schema` prints what is committed of it, and no build carries what makes it.

use std::borrow::Cow;
use std::fs;
use std::path::Path;

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde_json::{Value, json};

use crate::raw;
use crate::raw::DocumentKey;
use crate::read::ISTIO;
use crate::yaml::{At, Choice, Word};

/// What `fender schema` prints.
const COMMITTED: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../../docs/reference/fender.schema.json"
);

/// Names the file that [`write`] makes.
const OUTPUT: &str = "FENDER_SCHEMA_OUTPUT";

#[test]
fn the_schema_that_fender_prints_names_every_kind_and_every_field() {
    let committed = fs::read_to_string(Path::new(COMMITTED)).unwrap();
    let text = text();
    let differs = committed
        .lines()
        .zip(text.lines())
        .position(|(committed, text)| committed != text);
    assert!(
        committed == text,
        "docs/reference/fender.schema.json is not what the types say, from line {} on; run `cargo xtask docs` and \
         commit the result",
        differs.unwrap_or(committed.lines().count().min(text.lines().count())) + 1
    );
}

#[test]
#[ignore = "it checks nothing: by it `cargo xtask docs` has the schema written"]
fn write() {
    let output = std::env::var_os(OUTPUT).unwrap();
    fs::write(output, text()).unwrap();
}

fn text() -> String {
    format!("{:#}\n", schema())
}

/// JSON Schema of all kinds.
fn schema() -> Value {
    let kinds = [
        of::<raw::Document<raw::Mesh>>("Mesh", &["fender.dev/v1"]),
        of::<raw::Document<raw::Workload>>("Workload", &["fender.dev/v1"]),
        of::<raw::Document<raw::Node>>("Node", &["fender.dev/v1"]),
        of::<raw::Document<raw::Upstream>>("Upstream", &["fender.dev/v1"]),
        of::<raw::Document<raw::Credential>>("Credential", &["fender.dev/v1"]),
        of::<raw::Document<raw::Sidecar>>("Sidecar", &["fender.dev/v1"]),
        of::<raw::IstioDocument<raw::AuthorizationPolicy>>("AuthorizationPolicy", &ISTIO),
        of::<raw::IstioDocument<raw::PeerAuthentication>>("PeerAuthentication", &ISTIO),
    ];
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "https://fender.dev/schema/v1.json",
        "title": "Fender documents",
        "oneOf": kinds,
    })
}

/// Inline, so that the kinds stand beside each other without sharing definitions.
fn of<T: JsonSchema>(kind: &str, versions: &[&str]) -> Value {
    let settings = SchemaSettings::draft2020_12().with(|settings| {
        settings.inline_subschemas = true;
        settings.meta_schema = None;
    });
    let schema: Schema = settings.into_generator().into_root_schema_for::<T>();
    let mut schema = schema.to_value();
    if let Some(object) = schema.as_object_mut() {
        object.insert("title".to_owned(), json!(kind));
        let properties = object.entry("properties").or_insert_with(|| json!({}));
        if let Some(properties) = properties.as_object_mut() {
            properties.insert("apiVersion".to_owned(), json!({ "enum": versions }));
            properties.insert("kind".to_owned(), json!({ "const": kind }));
        }
    }
    schema
}

impl<T: JsonSchema> JsonSchema for At<T> {
    fn inline_schema() -> bool {
        T::inline_schema()
    }

    fn schema_name() -> Cow<'static, str> {
        T::schema_name()
    }

    fn schema_id() -> Cow<'static, str> {
        T::schema_id()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        T::json_schema(generator)
    }
}

impl<T: Choice> JsonSchema for Word<T> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        T::WORDS
            .iter()
            .map(|(word, _)| *word)
            .collect::<Vec<_>>()
            .join("_or_")
            .into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let words: Vec<&str> = T::WORDS.iter().map(|(word, _)| *word).collect();
        json_schema!({ "type": "string", "enum": words })
    }
}

impl JsonSchema for DocumentKey {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "DocumentKey".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "anyOf": [
            { "type": "string" },
            { "type": "array", "items": { "type": ["string", "integer"] } },
        ] })
    }
}
