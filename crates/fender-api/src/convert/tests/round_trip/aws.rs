//! Secrets of AWS.

use std::num::NonZeroU64;
use std::time::Duration;

use fender_config::snapshot as domain;
use proptest::option;
use proptest::prelude::*;

use super::label;

pub(super) fn origin() -> impl Strategy<Value = domain::Origin> {
    let endpoint = prop_oneof![
        Just("https://secretsmanager.eu-central-1.amazonaws.com"),
        Just("https://aws.test:8443"),
        Just("http://127.0.0.1:5000"),
    ];
    let roots = label().prop_map(|file| format!("/run/{file}").into());
    let region = prop_oneof![Just("eu-central-1"), Just("us-gov-west-1")];
    let store =
        (region, option::of(endpoint), option::of(roots)).prop_map(|(region, endpoint, roots)| {
            domain::AwsStore {
                region: region.parse().unwrap(),
                endpoint: endpoint.map(|url| url.parse().unwrap()),
                roots,
            }
        });
    let secret_version = prop_oneof![
        label().prop_map(domain::AwsSecretVersion::Stage),
        "[a-z0-9-]{32,64}".prop_map(domain::AwsSecretVersion::Id),
    ];
    let parameter_version = prop_oneof![
        Just(domain::AwsParameterVersion::Newest),
        any::<NonZeroU64>().prop_map(domain::AwsParameterVersion::Number),
        "[a-z_][a-z0-9_.-]{0,20}".prop_map(domain::AwsParameterVersion::Label),
    ];
    let place = prop_oneof![
        ("[a-zA-Z0-9/_+=.@!-]{1,40}", secret_version).prop_map(|(id, version)| {
            domain::AwsPlace::Secret {
                id: id.parse().unwrap(),
                version,
            }
        }),
        ("/[a-zA-Z0-9/_.-]{1,40}", parameter_version).prop_map(|(name, version)| {
            domain::AwsPlace::Parameter {
                name: name.parse().unwrap(),
                version,
            }
        }),
    ];
    (store, place, option::of(label()), any::<u32>()).prop_map(|(store, at, key, refresh)| {
        domain::Origin::Aws(Box::new(domain::AwsSecret {
            store,
            at,
            key,
            refresh: Duration::from_millis(refresh.into()),
        }))
    })
}
