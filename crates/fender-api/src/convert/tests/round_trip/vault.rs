//! Secrets of a Vault.

use std::time::Duration;

use fender_config::snapshot as domain;
use proptest::option;
use proptest::prelude::*;

use super::label;

pub(super) fn origin() -> impl Strategy<Value = domain::Origin> {
    let path = || "[a-z0-9 %é]{1,9}(/[a-z0-9.]{3,9})?".prop_map(|path| path.parse().unwrap());
    let file = || label().prop_map(|file| format!("/run/{file}").into());
    let jwt = prop_oneof![
        file().prop_map(domain::VaultJwt::File),
        label().prop_map(|audience| domain::VaultJwt::Svid { audience }),
    ];
    let certificate = prop_oneof![
        (file(), file()).prop_map(|(certificate, key)| {
            let files = domain::CertificateFiles { certificate, key };
            domain::VaultCertificate::Files(files)
        }),
        Just(domain::VaultCertificate::Svid),
    ];
    let login = prop_oneof![
        file().prop_map(|file| domain::VaultLogin::Token { file }),
        (path(), label(), file()).prop_map(|(mount, role_id, secret_id)| {
            domain::VaultLogin::AppRole {
                mount,
                role_id,
                secret_id,
            }
        }),
        (path(), label(), file()).prop_map(|(mount, role, token)| {
            domain::VaultLogin::Kubernetes { mount, role, token }
        }),
        (path(), option::of(label()), jwt)
            .prop_map(|(mount, role, token)| domain::VaultLogin::Jwt { mount, role, token }),
        (path(), option::of(label()), certificate).prop_map(|(mount, role, shown)| {
            domain::VaultLogin::Certificate { mount, role, shown }
        }),
    ];
    let address = prop_oneof![
        Just("https://vault.test:8200/base"),
        Just("http://127.0.0.1:8200"),
        Just("http://[::1]:8200/base"),
    ];
    let store = (address, option::of(file()), option::of(path()), login).prop_map(
        |(address, roots, namespace, login)| domain::VaultStore {
            address: address.parse().unwrap(),
            roots,
            namespace,
            login,
        },
    );
    let place = prop_oneof![
        (path(), path()).prop_map(|(mount, path)| domain::VaultPlace::Kv1 { mount, path }),
        (path(), path(), option::of(1..9u32)).prop_map(|(mount, path, version)| {
            domain::VaultPlace::Kv2 {
                mount,
                path,
                version,
            }
        }),
        path().prop_map(|path| domain::VaultPlace::Engine { path }),
    ];
    (store, place, option::of(label()), any::<u32>()).prop_map(|(store, at, key, refresh)| {
        domain::Origin::Vault(Box::new(domain::VaultSecret {
            store,
            at,
            key,
            refresh: Duration::from_millis(refresh.into()),
        }))
    })
}
