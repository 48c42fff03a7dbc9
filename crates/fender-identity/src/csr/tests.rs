//! Requests, honest and not.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use proptest::prelude::*;
use rcgen::{
    Attribute, BasicConstraints, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyUsagePurpose,
    PKCS_ECDSA_P384_SHA384, PKCS_ED25519, SignatureAlgorithm, SigningKey,
};

use super::*;
use crate::testing::{authority, dns, id, leaf, root, uri};

const ORDERS: &str = "spiffe://mesh.example/ns/shop/sa/orders";
const BILLING: &str = "spiffe://mesh.example/ns/shop/sa/billing";

/// Made by `openssl req -new -newkey rsa:1024 -subj / -addext subjectAltName=URI:…`.
const RSA_1024: &str = "MIIBhDCB7gIBADAAMIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQCbO3wKuS/IHvSzdUq4JpDVroNDErmliJcjWLFh9YQkLSrmw7n+01SPxOMYN6UGcixKaKg6zFO3mYvb2tgBdxOJAXa52yuELWmpI/TmC7iTbz2H6b50Mcwl55zxrhBQbM/efdLkDS5Ncoafo2A2OCEcL0QJv/5aS+gXR1NPEMenaQIDAQABoEUwQwYJKoZIhvcNAQkOMTYwNDAyBgNVHREEKzAphidzcGlmZmU6Ly9tZXNoLmV4YW1wbGUvbnMvc2hvcC9zYS9vcmRlcnMwDQYJKoZIhvcNAQELBQADgYEAJmJG1ikvgiiyZ2zkdrbXTuYhwgLfkspjPu/tYGbo0L0UinPG4QKbwPEf+Od4pxlxKtLWfh0hP4MCgP71l/CWaOVXLVZS/u8urvb8jZBYOctzKAyzuaedBBUb25M1r4B6AyyWJJRnGNbkajytOFUYcu+AxvRwTDpUfsPO6jJHJPA=";

/// The same with a key on P-521.
const P521: &str = "MIIBiDCB6gIBADAAMIGbMBAGByqGSM49AgEGBSuBBAAjA4GGAAQAY1U7FhJ9A+VOApx9GVN8DB4E0MdMzk5HIZlRju2XG34ep8fPetuDSMxzJT0Q+T/uX/qRX8uGb/BM54jiy8oE7DcBnSNUFYrkmpR6oBUE2b66qhSuwvOo12bAecCN4FWY1lD3f5t7K3OrKInR1AonWdCechqNfvhRjyNFI8ZRuQ1+a4GgRTBDBgkqhkiG9w0BCQ4xNjA0MDIGA1UdEQQrMCmGJ3NwaWZmZTovL21lc2guZXhhbXBsZS9ucy9zaG9wL3NhL29yZGVyczAKBggqhkjOPQQDAgOBjAAwgYgCQgGbsNxg+oogvbknLvcAGIeM98LthtRMcuAAXy8kLOvQ3J6xmBcUGMlOtl8jfk2U6YQyDBrWR1YgXkEq4Rqgf3eYNQJCAMzxBleJxAiReq5VU/t2IDuVn+fEw9KTAX11AelObXAaJDvJrA2kbAm15HZksG907NlkEqwyicHFGl4wyQZIajUn";

fn named(names: Vec<SanType>) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = names;
    params
}

fn request(params: &CertificateParams, key: &impl SigningKey) -> Vec<u8> {
    params.serialize_request(key).unwrap().der().to_vec()
}

fn refused(params: &CertificateParams) -> CsrError {
    parse(&request(params, &KeyPair::generate().unwrap())).unwrap_err()
}

#[test]
fn a_request_carries_the_name_and_the_key() {
    let key = NewKey::generate().unwrap();
    let csr = parse(&key.csr_der(&id(ORDERS)).unwrap()).unwrap();
    assert_eq!(csr.id, id(ORDERS));
    assert_eq!(csr.spki_sha256, key.public_key_sha256());
    assert_eq!(csr.public_key_der, key.0.subject_public_key_info());
    assert_eq!(csr.key.subject_public_key_info(), csr.public_key_der);
}

#[test]
fn i2_what_is_signed_for_a_request_is_an_svid_with_its_key() {
    let key = NewKey::generate().unwrap();
    let csr = parse(&key.csr_der(&id(ORDERS)).unwrap()).unwrap();
    let authority_key = KeyPair::generate().unwrap();
    let issuer = Issuer::new(authority("ca"), &authority_key);
    let signed = leaf(ORDERS).signed_by(&csr.key, &issuer).unwrap();

    let saved = key.pkcs8();
    let svid = key.into_svid(vec![signed.der().clone()]).unwrap();
    assert_eq!(svid.id(), &id(ORDERS));

    let restored = NewKey::from_pkcs8(&saved).unwrap();
    assert_eq!(restored.public_key_sha256(), csr.spki_sha256);
    assert!(restored.into_svid(vec![signed.der().clone()]).is_ok());

    let other = NewKey::generate().unwrap();
    let error = other.into_svid(vec![signed.der().clone()]).unwrap_err();
    assert_eq!(error, SvidError::KeyMismatch { id: id(ORDERS) });
}

#[test]
fn p256_p384_and_ed25519_are_the_keys() {
    for algorithm in [
        &PKCS_ECDSA_P256_SHA256,
        &PKCS_ECDSA_P384_SHA384,
        &PKCS_ED25519,
    ] {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let csr = parse(&request(&named(vec![uri(ORDERS)]), &key)).unwrap();
        assert_eq!(csr.public_key_der, key.subject_public_key_info());
    }
}

#[test]
fn attack_weak_or_unknown_key_types() {
    for der in [RSA_1024, P521] {
        let der = STANDARD.decode(der).unwrap();
        assert_eq!(parse(&der).unwrap_err(), CsrError::KeyType);
    }
}

/// Shows one key and signs with another.
struct Forger {
    shown: KeyPair,
    signing: KeyPair,
}

impl PublicKeyData for Forger {
    fn der_bytes(&self) -> &[u8] {
        self.shown.der_bytes()
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        PublicKeyData::algorithm(&self.shown)
    }
}

impl SigningKey for Forger {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        self.signing.sign(message)
    }
}

#[test]
fn attack_request_for_a_key_one_does_not_hold() {
    for algorithm in [&PKCS_ECDSA_P256_SHA256, &PKCS_ED25519] {
        let shown = KeyPair::generate().unwrap();
        let signing = KeyPair::generate_for(algorithm).unwrap();
        let der = request(&named(vec![uri(ORDERS)]), &Forger { shown, signing });
        assert_eq!(parse(&der), Err(CsrError::WrongSignature));
    }
}

/// An element of DER.
fn der(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let content = parts.concat();
    let header = match u16::try_from(content.len()).unwrap().to_be_bytes() {
        [0, low] if low < 0x80 => vec![tag, low],
        [0, low] => vec![tag, 0x81, low],
        [high, low] => vec![tag, 0x82, high, low],
    };
    [header, content].concat()
}

const P256: [u8; 19] = [
    0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, // id-ecPublicKey
    0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, // prime256v1
];
const ECDSA_SHA256: [u8; 10] = [0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02];
const ED25519: [u8; 5] = [0x06, 0x03, 0x2b, 0x65, 0x70];

/// A request by hand, signed by the key it shows, under any labels.
fn labelled(key: &KeyPair, key_label: &[u8], signature_label: &[u8]) -> Vec<u8> {
    let names = der(0x30, &[&der(0x86, &[ORDERS.as_bytes()])]);
    let extension = der(
        0x30,
        &[&[0x06, 0x03, 0x55, 0x1d, 0x11], &der(0x04, &[&names])],
    );
    let extensions = der(0x31, &[&der(0x30, &[&extension])]);
    let request = [
        0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x09, 0x0e,
    ];
    let attributes = der(0xa0, &[&der(0x30, &[&request, &extensions])]);

    let bits = der(0x03, &[&[0], key.public_key_raw()]);
    let public_key = der(0x30, &[&der(0x30, &[key_label]), &bits]);
    let version_and_subject = [0x02, 0x01, 0x00, 0x30, 0x00];
    let info = der(0x30, &[&version_and_subject, &public_key, &attributes]);
    let signature = der(0x03, &[&[0], &key.sign(&info).unwrap()]);
    der(0x30, &[&info, &der(0x30, &[signature_label]), &signature])
}

#[test]
fn attack_key_labelled_as_another_type() {
    let key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
    let honest = parse(&labelled(&key, &ED25519, &ED25519)).unwrap();
    assert_eq!(honest.public_key_der, key.subject_public_key_info());
    assert_eq!(
        parse(&labelled(&key, &P256, &ED25519)),
        Err(CsrError::KeyType)
    );
}

#[test]
fn attack_more_than_a_key_where_the_key_belongs() {
    let key = KeyPair::generate().unwrap();
    assert!(parse(&labelled(&key, &P256, &ECDSA_SHA256)).is_ok());
    let more = [P256.as_slice(), &[0x05, 0x00]].concat();
    assert_eq!(
        parse(&labelled(&key, &more, &ECDSA_SHA256)),
        Err(CsrError::Malformed)
    );
}

#[test]
fn attack_signature_algorithm_swapped() {
    let ecdsa = [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03];
    let mut der = NewKey::generate().unwrap().csr_der(&id(ORDERS)).unwrap();
    let hash = der.windows(7).rposition(|bytes| bytes == ecdsa).unwrap() + 7;
    for sha in [0x03, 0x04] {
        der[hash] = sha;
        assert_eq!(parse(&der), Err(CsrError::WrongSignature));
    }
}

#[test]
fn attack_request_changed_after_signing() {
    let key = NewKey::generate().unwrap();
    let mut der = key.csr_der(&id(ORDERS)).unwrap();
    let name = der.windows(6).position(|bytes| bytes == b"orders").unwrap();
    der[name..name + 6].copy_from_slice(b"ledger");
    assert_eq!(parse(&der), Err(CsrError::WrongSignature));
}

#[test]
fn attack_two_uris() {
    let two = refused(&named(vec![uri(ORDERS), uri(BILLING)]));
    assert_eq!(two, CsrError::NotOneName { found: 2 });
}

#[test]
fn attack_extra_names() {
    let extra = refused(&named(vec![uri(ORDERS), dns("billing.internal")]));
    assert_eq!(extra, CsrError::NotOneName { found: 2 });
    let none = refused(&named(Vec::new()));
    assert_eq!(none, CsrError::NotOneName { found: 0 });
    let other = refused(&named(vec![dns("orders.internal")]));
    assert_eq!(other, CsrError::NotAUri);
    let foreign = refused(&named(vec![uri("https://mesh.example/orders")]));
    assert!(matches!(foreign, CsrError::NotSpiffe(_)));
}

#[test]
fn attack_second_extension_request() {
    // SET { SEQUENCE { SEQUENCE { subjectAltName, OCTET STRING { SEQUENCE { [6] "spiffe://b/c" } } } } }
    let mut values = vec![
        0x31, 0x19, 0x30, 0x17, 0x30, 0x15, 0x06, 0x03, 0x55, 0x1d, 0x11,
    ];
    values.extend([0x04, 0x0e, 0x30, 0x0c, 0x86, 0x0a]);
    values.extend(b"spiffe://b");
    let second = Attribute {
        oid: &[1, 2, 840, 113549, 1, 9, 14],
        values,
    };
    let key = KeyPair::generate().unwrap();
    let der = named(vec![uri(ORDERS)])
        .serialize_request_with_attributes(&key, vec![second])
        .unwrap()
        .der()
        .to_vec();
    assert_eq!(parse(&der), Err(CsrError::NotOneName { found: 2 }));
}

#[test]
fn attack_request_to_be_an_authority_is_not_heard() {
    let mut params = named(vec![uri(ORDERS)]);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::Any];
    let key = KeyPair::generate().unwrap();
    let csr = parse(&request(&params, &key)).unwrap();
    let Csr {
        id: asked,
        public_key_der,
        spki_sha256: _,
        key: _,
    } = csr;
    assert_eq!(
        (asked, public_key_der),
        (id(ORDERS), key.subject_public_key_info())
    );
}

#[test]
fn attack_huge_request() {
    assert_eq!(
        parse(&vec![0x30; 17 * 1024]),
        Err(CsrError::TooLarge { length: 17 * 1024 })
    );
}

#[test]
fn attack_certificate_in_place_of_a_request() {
    assert_eq!(parse(&root("root").der()), Err(CsrError::Malformed));
    assert_eq!(parse(b""), Err(CsrError::Malformed));
    let mut der = NewKey::generate().unwrap().csr_der(&id(ORDERS)).unwrap();
    der.push(0);
    assert_eq!(parse(&der), Err(CsrError::Malformed));
}

#[test]
fn a_key_of_another_kind_is_not_taken_back() {
    let other = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap();
    for der in [other.serialize_der(), Vec::new(), vec![0x30, 0x00]] {
        assert_eq!(
            NewKey::from_pkcs8(&Secret::new(der)).unwrap_err(),
            KeyError::Unreadable
        );
    }
}

#[test]
fn a_request_for_an_authority_says_of_which_trust_domain_and_nothing_else() {
    let key = KeyPair::generate().unwrap();
    let mut params = named(vec![uri("spiffe://mesh.example")]);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let csr = parse_authority(&request(&params, &key)).unwrap();
    assert_eq!(csr.trust_domain.as_str(), "mesh.example");
    assert_eq!(csr.public_key_der, key.subject_public_key_info());
    assert_eq!(
        parse_authority(&request(&named(vec![uri(ORDERS)]), &key)),
        Err(CsrError::NotATrustDomain)
    );
    for algorithm in [&PKCS_ECDSA_P384_SHA384, &PKCS_ED25519] {
        let key = KeyPair::generate_for(algorithm).unwrap();
        assert_eq!(
            parse_authority(&request(&params, &key)),
            Err(CsrError::AuthorityKeyType)
        );
    }
    // A path length asks for authorities below.
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
    assert_eq!(
        parse_authority(&request(&params, &key)),
        Err(CsrError::AsksForMore {
            oid: "2.5.29.19".to_owned()
        })
    );
}

proptest! {
    #[test]
    fn a_changed_byte_never_changes_what_a_request_says(place: usize, change in 1..=255u8) {
        let der = NewKey::generate().unwrap().csr_der(&id(ORDERS)).unwrap();
        let mut changed = der.clone();
        changed[place % der.len()] ^= change;
        // Around the signed part the parser is lenient.
        prop_assert!(parse(&changed).is_err() || parse(&changed) == parse(&der));
    }
}
