use std::fs;
use std::os::unix::fs::PermissionsExt;

use fender_config::snapshot::{AcmeChallenge, CertificateSource};

use super::*;

fn wanted(directory: &str, names: &[&str]) -> PortCertificate {
    PortCertificate {
        source: CertificateSource::Acme(Acme {
            directory: directory.parse().unwrap(),
            challenge: AcmeChallenge::TlsAlpn,
            contact: None,
            roots: None,
            external_account: None,
        }),
        names: names.iter().map(|name| (*name).to_owned()).collect(),
    }
}

fn pair() -> PemPair {
    PemPair {
        chain: b"-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n".to_vec(),
        key: Secret::new(
            b"-----BEGIN PRIVATE KEY-----\nAA==\n-----END PRIVATE KEY-----\n".to_vec(),
        ),
    }
}

/// One that is really for these names, until the year given.
fn issued(names: &[&str], until: i32) -> PemPair {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = rcgen::CertificateParams::new(names).unwrap();
    params.not_before = rcgen::date_time_ymd(2026, 1, 1);
    params.not_after = rcgen::date_time_ymd(until, 1, 1);
    let key = rcgen::KeyPair::generate().unwrap();
    let made = params.self_signed(&key).unwrap();
    PemPair {
        chain: made.pem().into_bytes(),
        key: Secret::new(key.serialize_pem().into_bytes()),
    }
}

/// In the summer of 2026.
fn now() -> UnixTime {
    UnixTime::since_unix_epoch(std::time::Duration::from_secs(1_782_864_000))
}

const ONE: &str = "https://one.example.com/directory";

#[test]
fn a_pair_is_kept_whole_and_for_its_names_and_authority_only() {
    let state = tempfile::tempdir().unwrap();
    let store = Store::below(state.path());
    let names = ["a.example.com", "b.example.com"];
    assert!(store.pair(&wanted(ONE, &names)).unwrap().is_none());
    store.keep_pair(&wanted(ONE, &names), &pair()).unwrap();
    let kept = store.pair(&wanted(ONE, &names)).unwrap().unwrap();
    assert!(kept.equals(&pair()));
    let same = wanted(ONE, &["b.example.com", "*", "a.example.com"]);
    assert!(store.pair(&same).unwrap().is_some());
    let other = wanted("https://two.example.com/directory", &names);
    assert!(store.pair(&other).unwrap().is_none());
    assert!(store.pair(&wanted(ONE, &names[..1])).unwrap().is_none());
}

#[test]
fn attack_what_is_kept_is_for_its_owner_alone_and_not_read_otherwise() {
    let state = tempfile::tempdir().unwrap();
    let store = Store::below(state.path());
    let wanted = wanted(ONE, &["a.example.com"]);
    store.keep_pair(&wanted, &pair()).unwrap();
    let CertificateSource::Acme(acme) = &wanted.source else {
        unreachable!()
    };
    let key = r#"{"id":"https://one.example.com/account/1","key_pkcs8":"AA","directory":"https://one.example.com/directory"}"#;
    let account = serde_json::from_str(key).unwrap();
    store.keep_account(acme, &account).unwrap();
    assert!(store.account(acme).unwrap().is_some());
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&store.0), 0o700);
    for path in [store.account_path(acme), store.certificate_path(&wanted)] {
        assert_eq!(mode(&path), 0o600, "{}", path.display());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    }
    // It is not silently replaced by another account either.
    let refused = store.account(acme).map(drop).unwrap_err().to_string();
    assert!(refused.contains("mode 640"), "{refused}");
    let refused = store.pair(&wanted).map(drop).unwrap_err().to_string();
    assert!(refused.contains("mode 640"), "{refused}");
}

#[test]
fn an_account_that_its_authority_denies_is_put_aside_and_not_destroyed() {
    let state = tempfile::tempdir().unwrap();
    let store = Store::below(state.path());
    let wanted = wanted(ONE, &["a.example.com"]);
    let acme = wanted.acme().unwrap();
    let key = r#"{"id":"https://one.example.com/account/1","key_pkcs8":"AA","directory":"https://one.example.com/directory"}"#;
    store
        .keep_account(acme, &serde_json::from_str(key).unwrap())
        .unwrap();
    store.forget_account(acme).unwrap();
    assert!(store.account(acme).unwrap().is_none());
    let files = fs::read_dir(&store.0).unwrap();
    let aside: Vec<_> = files.map(|file| file.unwrap().path()).collect();
    assert_eq!(aside.len(), 1);
    assert!(fs::read_to_string(&aside[0]).unwrap().contains("account/1"));
    // There is none to put aside.
    store.forget_account(acme).unwrap();
}

#[test]
fn where_nothing_can_be_kept_that_is_known_before_anything_is_asked_for() {
    let state = tempfile::tempdir().unwrap();
    let store = Store::below(state.path());
    store.can_be_written().unwrap();
    assert_eq!(fs::read_dir(&store.0).unwrap().count(), 0);
    // Where the directory should be is a file.
    fs::remove_dir(&store.0).unwrap();
    fs::write(&store.0, "").unwrap();
    assert!(store.can_be_written().is_err());
}

#[test]
fn the_longest_names_fit_into_the_name_of_a_file() {
    let state = tempfile::tempdir().unwrap();
    let store = Store::below(state.path());
    let longest = ["a"; 4].map(|letter| letter.repeat(62)).join(".");
    let wanted = wanted(ONE, &[&longest]);
    store.keep_pair(&wanted, &pair()).unwrap();
    assert!(store.pair(&wanted).unwrap().is_some());
}

#[test]
fn for_names_that_were_not_asked_for_before_the_best_of_what_there_is_stands_in() {
    let state = tempfile::tempdir().unwrap();
    let store = Store::below(state.path());
    let (a, b, c) = ("a.example.com", "b.example.com", "c.example.com");
    let asked = wanted(ONE, &[a, b, c]);
    assert!(store.stand_in(&asked, now()).is_none());
    let keep = |names: &[&str], until| {
        let pair = issued(names, until);
        store.keep_pair(&wanted(ONE, names), &pair).unwrap();
        pair
    };
    keep(&["d.example.com"], 2030);
    keep(&[a], 2028);
    let longest = keep(&[b], 2029);
    assert!(store.stand_in(&asked, now()).unwrap().equals(&longest));
    let most = keep(&[a, b], 2027);
    assert!(store.stand_in(&asked, now()).unwrap().equals(&most));
    // One that has ended helps nobody.
    keep(&[b, c, "e.example.com"], 2026);
    assert!(store.stand_in(&asked, now()).unwrap().equals(&most));
    // Attack: one that others can read is not shown, and a name that is nobody's gets nobody's.
    let path = store.certificate_path(&wanted(ONE, &[a, b]));
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    assert!(store.stand_in(&asked, now()).unwrap().equals(&longest));
    assert!(
        store
            .stand_in(&wanted(ONE, &["f.example.com"]), now())
            .is_none()
    );
}

#[test]
fn an_order_is_kept_with_its_key_and_taken_up_by_its_owner_alone() {
    let state = tempfile::tempdir().unwrap();
    let store = Store::below(state.path());
    let wanted = wanted(ONE, &["a.example.com"]);
    assert!(store.order(&wanted).is_none());
    let pending = Pending {
        account: "https://one.example.com/account/1".to_owned(),
        order: "https://one.example.com/order/7".to_owned(),
        key: NewKey::generate().unwrap(),
    };
    store.keep_order(&wanted, &pending).unwrap();
    let found = store.order(&wanted).unwrap();
    assert_eq!(
        (found.account, found.order),
        (pending.account, pending.order)
    );
    assert!(found.key.to_pem().ct_eq(&pending.key.to_pem()));
    let path = store.order_path(&wanted);
    let mode = fs::metadata(&path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o600);
    // Attack: who could read it could have the key; who could write it could have put in theirs.
    for mode in [0o640, 0o602] {
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        assert!(store.order(&wanted).is_none(), "{mode:o}");
    }
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    for damaged in ["", "account a\norder b\n", "order b\naccount a\n"] {
        fs::write(&path, damaged).unwrap();
        assert!(store.order(&wanted).is_none(), "{damaged}");
    }
    store.forget_order(&wanted).unwrap();
    store.forget_order(&wanted).unwrap();
    assert!(!path.exists());
    // Attack: an authority cannot write a line of its own into it.
    let two = Pending {
        account: "https://one.example.com/account/1\norder elsewhere".to_owned(),
        ..found_again()
    };
    assert!(store.keep_order(&wanted, &two).is_err());
}

fn found_again() -> Pending {
    Pending {
        account: String::new(),
        order: String::new(),
        key: NewKey::generate().unwrap(),
    }
}
