//! Any content and any set.

use fender_config::snapshot as domain;
use proptest::collection::{btree_set, vec};
use proptest::option;
use proptest::prelude::*;

fn field() -> impl Strategy<Value = domain::FieldName> {
    "[ -~]{1,9}".prop_map(|name| name.parse().unwrap())
}

/// Of which a password may be generated only in a set.
pub(super) fn content(in_set: bool) -> impl Strategy<Value = domain::Content> {
    let format = prop_oneof![
        Just(domain::FieldFormat::Json),
        Just(domain::FieldFormat::Yaml),
        Just(domain::FieldFormat::Dotenv),
        Just(domain::FieldFormat::Properties),
    ];
    let fields = || vec(field(), 0..3);
    let template = "[a-z \n]{0,9}(\\{\\{ [a-z]{1,5}x \\| json \\}\\})?";
    let template = template.prop_map(|text: String| text.parse().unwrap());
    // No entry of a set is called so, and no other password.
    let generated = (0..u64::MAX)
        .prop_map(|number| domain::StorePassword::Generated(format!("P{number}").parse().unwrap()));
    let by_field = field().prop_map(domain::StorePassword::Field);
    let password = match in_set {
        true => prop_oneof![generated, by_field].boxed(),
        false => by_field.boxed(),
    };
    let alias = option::of("[a-z]{1,9}".prop_map(|alias| alias.parse().unwrap()));
    let store = (fields(), alias, password).prop_map(|(fields, alias, password)| {
        domain::Content::Pkcs12(domain::KeyStore {
            fields,
            alias,
            password,
        })
    });
    prop_oneof![
        Just(domain::Content::Value),
        field().prop_map(domain::Content::Field),
        template.prop_map(domain::Content::Template),
        (format, fields()).prop_map(|(format, fields)| domain::Content::Fields { format, fields }),
        fields().prop_map(|fields| domain::Content::Pem { fields }),
        store,
    ]
}

pub(super) fn set() -> impl Strategy<Value = domain::Delivery> {
    let names = btree_set("[.]?[a-z][a-z0-9._-]{0,9}", 1..4);
    let storage = prop_oneof![Just(domain::Storage::Memory), Just(domain::Storage::Disk)];
    let entries = names.prop_flat_map(|names| {
        let entry = |name: String| {
            (0..=0o777u32, content(true)).prop_map(move |(mode, content)| domain::FileEntry {
                name: name.parse().unwrap(),
                mode,
                content,
            })
        };
        names.into_iter().map(entry).collect::<Vec<_>>()
    });
    let owner = || option::of("[a-z]{1,9}");
    let parts = ("[a-z]{1,9}", storage, owner(), owner(), entries);
    parts.prop_map(|(directory, storage, owner, group, entries)| {
        domain::Delivery::Files(domain::FilesDelivery {
            directory: format!("/run/{directory}").into(),
            storage,
            owner,
            group,
            entries,
        })
    })
}
