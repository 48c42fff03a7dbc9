//! The JSON Schema of the documents, as it is committed in `docs/reference`: that it is what the types say is checked by the tests
//! of `fender-config`, which make it.

use serde_json::Value;

/// Without the white space, by the build script.
const SCHEMA: &str = include_str!(concat!(env!("OUT_DIR"), "/schema.json"));

/// As people and editors read it.
pub(crate) fn text() -> String {
    // The build script has read it.
    let schema: Value = serde_json::from_str(SCHEMA).unwrap_or_default();
    format!("{schema:#}\n")
}

#[cfg(test)]
mod tests {
    #[test]
    fn what_is_printed_is_what_is_committed() {
        let committed = include_str!("../../../docs/reference/fender.schema.json");
        assert!(super::text() == committed);
    }
}
