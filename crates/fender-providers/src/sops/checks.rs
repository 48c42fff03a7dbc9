//! What must hold for any bytes at all, in the place of a file that was encrypted. The tests replay the corpus of the fuzz target.

use super::value::DEEPEST;
use super::*;

/// The first byte says for which format the rest is taken.
pub(crate) fn sealed(data: &[u8]) {
    let Some((kind, file)) = data.split_first() else {
        return;
    };
    let Ok(identities) = Identities::read(&Secret::from(IDENTITY.to_owned())) else {
        unreachable!("it is one")
    };
    let format = match kind % 6 {
        0 => SopsFormat::Yaml,
        1 => SopsFormat::Json,
        2 => SopsFormat::Dotenv,
        3 => SopsFormat::Ini,
        4 => SopsFormat::Binary,
        _ => {
            if let Ok(value) = age::open(file, &identities, 4096) {
                assert!(value.len() <= 4096);
            }
            return;
        }
    };
    document(file, format);
    // Nobody has a key of what was not encrypted for it, and whoever had would still have to prove it.
    if let Ok(document) = open(file, format, &identities) {
        depth(&document.0, 0);
    }
}

/// Of nobody: made for this.
const IDENTITY: &str = "AGE-SECRET-KEY-1EGTZVFFV20835NWYV6270LXYVK2VKNX2MMDKWYKLMGR48UAWX40Q2P2LM0";

/// What is read is bounded, and what is written of it as JSON reads as itself.
fn document(file: &[u8], format: SopsFormat) {
    let Ok((values, kept)) = read(file, format) else {
        return;
    };
    depth(&values, 0);
    depth(&kept, 0);
    let Ok(json) = values.json() else {
        return;
    };
    let Some(text) = json.expose_str() else {
        unreachable!("JSON is UTF-8")
    };
    match json::read(text) {
        Ok(again) => assert_eq!(
            again.json().ok().as_ref().map(Secret::expose),
            Some(json.expose())
        ),
        Err(Fault(what)) => unreachable!("{text} {what}"),
    }
}

fn depth(value: &Value, depth_of: usize) {
    assert!(depth_of <= DEEPEST + 1);
    match value {
        Value::List(items) => items.iter().for_each(|item| depth(item, depth_of + 1)),
        Value::Fields(fields) => fields
            .iter()
            .for_each(|(_, value)| depth(value, depth_of + 1)),
        Value::Null | Value::Bool(_) | Value::Int(_) | Value::Float(_) | Value::Text(_) => {}
    }
}
