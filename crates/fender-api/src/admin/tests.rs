use std::os::unix::fs::PermissionsExt as _;

use super::*;
use crate::testing::{Authority, DOMAIN};

fn directory(mode: u32) -> tempfile::TempDir {
    let ca = Authority::new();
    let svid = ca.svid(&SpiffeId::admin(&DOMAIN.parse().unwrap(), "first").unwrap());
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("certificate.pem"), svid.chain_pem()).unwrap();
    fs::write(dir.path().join("bundle.pem"), ca.bundle().to_pem()).unwrap();
    let key = dir.path().join("key.pem");
    fs::write(&key, svid.key_pem().expose()).unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(mode)).unwrap();
    dir
}

#[test]
fn an_admin_directory_is_an_identity() {
    let dir = directory(0o600);
    let identity = AdminIdentity::load(dir.path()).unwrap();
    assert_eq!(identity.svid().id().admin_name(), Some("first"));
    assert_eq!(identity.bundle().trust_domain().as_str(), DOMAIN);
}

#[test]
fn an_admin_key_others_may_read_is_refused_with_the_way_out() {
    let dir = directory(0o644);
    let error = AdminIdentity::load(dir.path()).unwrap_err();
    assert!(error.to_string().contains("chmod 0400"), "{error}");
    assert_eq!(error.exit_code(), EXIT_USAGE);
}

#[test]
fn what_was_applied_survives_the_wire() {
    let applied = Applied {
        revision: Some(3),
        changes: vec![
            Change {
                kind: "Workload".into(),
                name: "shop/orders".into(),
                what: What::Added,
            },
            Change {
                kind: "Upstream".into(),
                name: "shop/db".into(),
                what: What::Removed,
            },
            Change {
                kind: "Mesh".into(),
                name: "mesh".into(),
                what: What::Changed,
            },
        ],
        problems: vec![Problem {
            file: "shop.yaml".into(),
            line: 3,
            column: 7,
            code: "unknown-field".into(),
            message: "unknown field `lisen`".into(),
            help: "did you mean `listen`?".into(),
        }],
        warnings: vec!["the mesh allows by default".into()],
    };
    assert_eq!(
        Applied::try_from(proto::ApplyResponse::from(&applied)).unwrap(),
        applied
    );
}
