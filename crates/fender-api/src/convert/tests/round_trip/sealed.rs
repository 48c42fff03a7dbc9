//! Encrypted files.

use fender_config::snapshot as domain;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use super::label;

pub(super) fn age() -> impl Strategy<Value = domain::Origin> {
    (label(), label()).prop_map(|(file, identity)| {
        domain::Origin::Age(domain::AgeSecret {
            file: format!("/run/{file}").into(),
            identity: format!("/etc/{identity}").into(),
        })
    })
}

pub(super) fn sops() -> impl Strategy<Value = domain::Origin> {
    let format = prop_oneof![
        Just(domain::SopsFormat::Yaml),
        Just(domain::SopsFormat::Json),
        Just(domain::SopsFormat::Dotenv),
        Just(domain::SopsFormat::Ini),
        Just(domain::SopsFormat::Binary),
    ];
    let key = vec("[a-z0-9. é]{1,9}", 1..4).prop_map(|steps| domain::SopsKey::new(steps).unwrap());
    (label(), label(), format, option::of(key)).prop_map(|(path, identity, format, key)| {
        domain::Origin::Sops(domain::SopsSecret {
            file: domain::SopsFile {
                path: format!("/run/{path}").into(),
                identity: format!("/etc/{identity}").into(),
                format,
            },
            key,
        })
    })
}
