//! JSON Schema of every kind, so that editors complete and check documents as they are written.
//!
//! It knows structure and words. References, addresses and spans of time are [`crate::parse`]'s to
//! judge, so what the schema accepts may still be refused.

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema};
use serde_json::{Value, json};

use crate::raw;
use crate::read::ISTIO;

/// JSON Schema of all kinds.
pub fn schema() -> Value {
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
