//! Ours: what makes an SVID, and that its key stays unseen.

use rcgen::KeyPair;

use super::*;
use crate::csr::NewKey;
use crate::testing::{HOUR, NOW, at, dns, id, leaf, root, self_signed, valid};

const ORDERS: &str = "spiffe://mesh.example/ns/shop/sa/orders";

#[test]
fn an_svid_knows_its_leaf() {
    let issued = root("root").intermediate("i").leaf(ORDERS);
    let svid = issued.svid();
    assert_eq!(svid.id(), &id(ORDERS));
    assert_eq!(svid.chain(), issued.sent());
    let expected = Validity {
        not_before: at(NOW - HOUR),
        not_after: at(NOW + HOUR),
    };
    assert_eq!(svid.validity(), expected);
}

#[test]
fn an_svid_survives_pem() {
    let svid = root("root").intermediate("i").leaf(ORDERS).svid();
    let (chain, key) = (svid.chain_pem(), svid.key_pem());
    assert!(
        key.expose_str()
            .unwrap()
            .starts_with("-----BEGIN PRIVATE KEY-----\n")
    );
    assert_eq!(chain.matches("BEGIN CERTIFICATE").count(), 2);
    assert!(chain.lines().all(|line| line.len() <= 64));
    let back = Svid::from_pem(chain.as_bytes(), key.expose()).unwrap();
    assert_eq!(back.chain(), svid.chain());
    assert!(back.key_pem().ct_eq(&key));
}

#[test]
fn attack_key_of_another_certificate() {
    let root = root("root");
    let (ours, theirs) = (root.leaf(ORDERS), root.leaf(ORDERS));
    let error = Svid::from_parts(ours.sent(), theirs.key_der()).unwrap_err();
    assert_eq!(error, SvidError::KeyMismatch { id: id(ORDERS) });
}

#[test]
fn a_chain_that_peers_would_refuse_is_not_an_svid() {
    let root = root("root");
    let error = Svid::from_parts(Vec::new(), root.key_der()).unwrap_err();
    assert_eq!(error, SvidError::NoCertificate);

    let mut long = root.leaf(ORDERS);
    long.chain.resize(MAX_CHAIN + 1, root.der());
    let error = Svid::from_parts(long.chain.clone(), long.key_der()).unwrap_err();
    assert_eq!(error, SvidError::ChainTooLong { length: 7 });

    let nobody = root.odd_leaf(ORDERS, |leaf| leaf.subject_alt_names = vec![dns("orders")]);
    let error = Svid::from_parts(nobody.sent(), nobody.key_der()).unwrap_err();
    assert_eq!(error, SvidError::Shape(Refusal::NotOneUri { found: 0 }));

    let ca = root.intermediate("i");
    assert!(matches!(
        Svid::from_parts(ca.sent(), ca.key_der()),
        Err(SvidError::Shape(_))
    ));
}

#[test]
fn pem_without_the_right_parts_says_what_is_missing() {
    let svid = root("root").leaf(ORDERS).svid();
    let (chain, key) = (svid.chain_pem(), svid.key_pem());
    let say = |chain: &[u8], key: &[u8]| Svid::from_pem(chain, key).unwrap_err().to_string();

    assert_eq!(say(b"", key.expose()), "no certificate in the PEM text");
    assert_eq!(
        say(key.expose(), key.expose()),
        "no certificate in the PEM text"
    );
    assert_eq!(say(chain.as_bytes(), b""), "no private key in the PEM text");
    let two = [key.expose(), key.expose()].concat();
    assert_eq!(
        say(chain.as_bytes(), &two),
        "more than one private key in the PEM text"
    );
    let torn = "-----BEGIN CERTIFICATE-----\n!!!\n-----END CERTIFICATE-----\n";
    assert_eq!(
        say(torn.as_bytes(), key.expose()),
        "PEM section of a certificate cannot be read"
    );
    let huge = vec![b'\n'; 2 * 1024 * 1024];
    assert_eq!(
        say(&huge, key.expose()),
        "PEM text of 2097152 bytes is longer than 1048576"
    );
    let junk = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
    assert_eq!(
        say(chain.as_bytes(), junk.as_bytes()),
        "private key is of no type that TLS can use"
    );
}

#[test]
fn i2_renewal_is_due_at_half_life_give_or_take_a_tenth() {
    let mut params = leaf(ORDERS);
    valid(&mut params, NOW, NOW + HOUR);
    let svid = self_signed(params).svid();
    assert_eq!(svid.renew_at(0.0), at(NOW + 1800));
    assert_eq!(svid.renew_at(-1.0), at(NOW + 1620));
    assert_eq!(svid.renew_at(1.0), at(NOW + 1980));
    assert_eq!(svid.renew_at(f64::INFINITY), at(NOW + 1980));
    assert_eq!(svid.renew_at(f64::NAN), at(NOW + 1800));

    let mut params = leaf(ORDERS);
    valid(&mut params, NOW, NOW + 10);
    let svid = self_signed(params).svid();
    assert_eq!(
        (svid.renew_at(-1.0), svid.renew_at(1.0)),
        (at(NOW + 4), at(NOW + 5))
    );
}

#[test]
fn no_key_is_shown_by_debug() {
    let root = root("root");
    let issued = root.leaf(ORDERS);
    let der = issued.key.serialize_der();
    let svid = issued.svid();
    let new_key = NewKey::from_pkcs8(&Secret::new(der.clone())).unwrap();
    let server = crate::tls::server(
        &crate::tls::TlsProfile::default(),
        &svid,
        root.bundles("mesh.example"),
        crate::tls::ClientCertificate::Require,
        &[],
        crate::testing::TestClock::new(),
    );
    // The private scalar of a P-256 key in PKCS#8.
    let scalar = &der[36..68];
    assert_eq!(&der[34..36], &[0x04, 0x20]);
    let hex: String = scalar.iter().map(|byte| format!("{byte:02x}")).collect();
    let numbers = format!("{:?}", &scalar[..8]);
    let base64 = svid.key_pem().expose_str().unwrap().lines().nth(1).unwrap()[48..].to_owned();
    for shown in [
        format!("{svid:?}"),
        format!("{svid:#?}"),
        format!("{new_key:?}"),
        format!("{:?}", svid.certified_key()),
        format!("{:?}", server.unwrap()),
    ] {
        assert!(!shown.to_lowercase().contains(&hex), "{shown}");
        assert!(!shown.contains(numbers.trim_matches(['[', ']'])), "{shown}");
        assert!(!shown.contains(&base64), "{shown}");
    }
}

#[test]
fn every_kind_of_key_that_tls_takes_can_prove_itself() {
    let root = root("root");
    for algorithm in [
        &rcgen::PKCS_ECDSA_P256_SHA256,
        &rcgen::PKCS_ECDSA_P384_SHA384,
        &rcgen::PKCS_ED25519,
    ] {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let issued = root.sign_for(leaf(ORDERS), key);
        let svid = issued.svid();
        let bundles = root.bundles("mesh.example");
        let signature = svid.sign(b"message").unwrap();
        let proof = crate::verify::Proof {
            chain: svid.chain(),
            message: b"message",
            signature: &signature,
        };
        let grace = Duration::ZERO;
        assert!(crate::verify::lapsed(proof, &bundles, at(NOW), grace, &|_| Ok(())).is_ok());
    }
}
