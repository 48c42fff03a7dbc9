use rcgen::{
    CertificateParams, DistinguishedName, DnType, DnValue, ExtendedKeyUsagePurpose, IsCa,
    KeyUsagePurpose,
};

use super::*;
use crate::testing::{DAY, HOUR, Issued, NOW, at, authority, dns, root, uri, valid};

const MESSAGE: &[u8] = b"context, request, server";

/// An ordinary client certificate, as an ordinary authority issues it.
fn ordinary() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = subject(&[
        (DnType::CommonName, "orders"),
        (DnType::OrganizationName, "Acme"),
    ]);
    params.subject_alt_names = vec![dns("Orders.Shop.internal"), uri("urn:acme:orders")];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    valid(&mut params, NOW - HOUR, NOW + HOUR);
    params
}

/// In the order of the certificate, which is the reverse of how it is written.
fn subject(parts: &[(DnType, &str)]) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    for (kind, value) in parts.iter().rev() {
        name.push(kind.clone(), DnValue::Utf8String((*value).to_owned()));
    }
    name
}

fn roots(root: &Issued) -> Roots {
    Roots::from_pem(pem::encode_certificates(&[root.der()]).as_bytes()).unwrap()
}

fn held(issued: &Issued) -> Held {
    let chain = pem::encode_certificates(&issued.sent());
    Held::from_pem(chain.as_bytes(), issued.key.serialize_pem().as_bytes()).unwrap()
}

fn verified(shown: &Issued, roots: &Roots) -> Result<Shown, Refusal> {
    proven(shown, roots).map(|proven| proven.shown)
}

fn proven(shown: &Issued, roots: &Roots) -> Result<Proven, Refusal> {
    let held = held(shown);
    let signature = held.sign(MESSAGE).unwrap();
    let proof = Proof {
        chain: held.chain(),
        message: MESSAGE,
        signature: &signature,
    };
    verify(proof, roots, at(NOW))
}

fn odd(change: impl FnOnce(&mut CertificateParams)) -> Result<Shown, Refusal> {
    let root = root("theirs");
    let mut params = ordinary();
    change(&mut params);
    verified(&root.sign(params), &roots(&root))
}

fn subject_of(name: DistinguishedName) -> Option<String> {
    odd(|params| params.distinguished_name = name)
        .unwrap()
        .subject
}

#[test]
fn a_certificate_of_the_authority_says_what_it_says() {
    let root = root("theirs");
    let leaf = root.intermediate("issuing").sign(ordinary());
    let shown = verified(&leaf, &roots(&root)).unwrap();
    assert_eq!(shown.subject.as_deref(), Some("CN=orders,O=Acme"));
    assert_eq!(shown.dns_names, ["orders.shop.internal"]);
    assert_eq!(shown.uris, ["urn:acme:orders"]);
    assert_eq!(shown.sha256, sha256(&leaf.der()));
    assert_eq!(shown.validity.not_after, at(NOW + HOUR));
}

#[test]
fn the_root_that_vouches_is_named_also_among_others_of_its_name() {
    let two = [root("corporate"), root("corporate")];
    let both = pem::encode_certificates(&[two[0].der(), two[1].der()]);
    let both = Roots::from_pem(both.as_bytes()).unwrap();
    for root in &two {
        let leaf = root.intermediate("issuing").sign(ordinary());
        assert_eq!(proven(&leaf, &both).unwrap().root, sha256(&root.der()));
    }
    assert_eq!(both.sha256(), two.map(|root| sha256(&root.der())));
}

#[test]
fn an_rsa_key_proves_itself_too() {
    let root = root("theirs");
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256).unwrap();
    let leaf = root.sign_for(ordinary(), key);
    assert!(verified(&leaf, &roots(&root)).is_ok());
}

#[test]
fn a_certificate_without_usages_may_be_used() {
    let shown = odd(|params| {
        params.key_usages.clear();
        params.extended_key_usages.clear();
    });
    assert!(shown.is_ok());
}

#[test]
fn attack_a_chain_of_another_authority() {
    let (ours, theirs) = (root("corporate"), root("corporate"));
    assert_eq!(
        verified(&theirs.sign(ordinary()), &roots(&ours)),
        Err(Refusal::UntrustedRoot)
    );
    let between = theirs.intermediate("issuing");
    assert_eq!(
        verified(&between.sign(ordinary()), &roots(&ours)),
        Err(Refusal::UntrustedRoot)
    );
}

#[test]
fn attack_a_certificate_out_of_its_time() {
    let expired = odd(|params| valid(params, NOW - DAY, NOW - 1));
    assert!(matches!(expired, Err(Refusal::Expired { .. })));
    let early = odd(|params| valid(params, NOW + 1, NOW + DAY));
    assert!(matches!(early, Err(Refusal::NotYetValid { .. })));

    let mut params = authority("old");
    valid(&mut params, NOW - DAY, NOW - 1);
    let old = crate::testing::self_signed(params);
    assert_eq!(
        verified(&old.sign(ordinary()), &roots(&old)),
        Err(Refusal::UntrustedRoot),
        "a root that has expired vouches for nobody"
    );
}

#[test]
fn attack_a_ca_shown_as_a_leaf() {
    let root = root("theirs");
    let issuing = root.intermediate("issuing");
    assert_eq!(verified(&issuing, &roots(&root)), Err(Refusal::CaShown));
    assert_eq!(verified(&root, &roots(&root)), Err(Refusal::CaShown));
    let signs = odd(|params| params.key_usages.push(KeyUsagePurpose::KeyCertSign));
    assert_eq!(signs, Err(Refusal::CaShown));
}

#[test]
fn attack_a_leaf_that_signs_another_leaf() {
    let root = root("theirs");
    let mut params = ordinary();
    params.is_ca = IsCa::NoCa;
    let leaf = root.sign(params);
    assert_eq!(
        verified(&leaf.sign(ordinary()), &roots(&root)),
        Err(Refusal::IssuerNotCa)
    );
}

#[test]
fn attack_a_certificate_for_another_use() {
    let server =
        odd(|params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]);
    assert_eq!(server, Err(Refusal::WrongPurpose(Role::Client)));
    let encryption = odd(|params| params.key_usages = vec![KeyUsagePurpose::KeyEncipherment]);
    assert_eq!(encryption, Err(Refusal::WrongPurpose(Role::Client)));
}

#[test]
fn attack_a_signature_for_something_else_or_by_another_key() {
    let root = root("theirs");
    let (leaf, other) = (root.sign(ordinary()), root.sign(ordinary()));
    let (held, others) = (held(&leaf), held(&other));
    for (signature, why) in [
        (
            held.sign(b"context, other request, server").unwrap(),
            "another request",
        ),
        (others.sign(MESSAGE).unwrap(), "another key"),
        (Vec::new(), "none"),
        (vec![0; 64], "zeros"),
    ] {
        let proof = Proof {
            chain: held.chain(),
            message: MESSAGE,
            signature: &signature,
        };
        assert_eq!(
            verify(proof, &roots(&root), at(NOW)),
            Err(Refusal::KeyNotProven),
            "{why}"
        );
    }
}

#[test]
fn attack_no_chain_or_too_much_of_one() {
    let root = root("theirs");
    let proof = |chain| Proof {
        chain,
        message: MESSAGE,
        signature: &[],
    };
    assert_eq!(
        verify(proof(&[]), &roots(&root), at(NOW)),
        Err(Refusal::NoCertificate)
    );
    let long = vec![root.der(); MAX_CHAIN + 1];
    assert!(matches!(
        verify(proof(&long), &roots(&root), at(NOW)),
        Err(Refusal::ChainTooLong { .. })
    ));
    let garbage = [CertificateDer::from(vec![1, 2, 3])];
    assert!(matches!(
        verify(proof(&garbage), &roots(&root), at(NOW)),
        Err(Refusal::Malformed(_))
    ));
}

#[test]
fn attack_a_subject_that_reads_like_another() {
    let meant = subject_of(subject(&[
        (DnType::CommonName, "orders"),
        (DnType::OrganizationName, "Acme"),
    ]));
    assert_eq!(meant.as_deref(), Some("CN=orders,O=Acme"));
    for (lookalike, text) in [
        (
            subject(&[(DnType::CommonName, "orders,O=Acme")]),
            r"CN=orders\,O=Acme",
        ),
        (
            subject(&[(DnType::CommonName, "orders+O=Acme")]),
            r"CN=orders\+O=Acme",
        ),
        (
            subject(&[
                (DnType::OrganizationName, "Acme"),
                (DnType::CommonName, "orders"),
            ]),
            "O=Acme,CN=orders",
        ),
        (
            subject(&[
                (DnType::CommonName, "Orders"),
                (DnType::OrganizationName, "Acme"),
            ]),
            "CN=Orders,O=Acme",
        ),
        (
            subject(&[
                (DnType::CommonName, " orders"),
                (DnType::OrganizationName, "Acme "),
            ]),
            r"CN=\ orders,O=Acme\ ",
        ),
        (
            subject(&[
                (DnType::CommonName, "orders\u{0}"),
                (DnType::OrganizationName, "Acme"),
            ]),
            r"CN=orders\00,O=Acme",
        ),
        (
            subject(&[
                (DnType::CommonName, "#orders\\"),
                (DnType::OrganizationName, "Acme"),
            ]),
            r"CN=\#orders\\,O=Acme",
        ),
        (
            subject(&[
                (DnType::CommonName, "\u{43e}rders"),
                (DnType::OrganizationName, "Acme"),
            ]),
            "CN=\u{43e}rders,O=Acme",
        ),
    ] {
        let found = subject_of(lookalike);
        assert_eq!(found.as_deref(), Some(text));
        assert_ne!(found, meant);
    }
}

#[test]
fn a_subject_that_is_not_plain_text_is_none() {
    let mut name = DistinguishedName::new();
    let value = rcgen::string::BmpString::try_from("orders").unwrap();
    name.push(DnType::CommonName, DnValue::BmpString(value));
    assert_eq!(subject_of(name), None);
    assert_eq!(subject_of(DistinguishedName::new()), None);
}

#[test]
fn roots_are_cas_and_there_is_one() {
    let root = root("theirs");
    let leaf = root.sign(ordinary());
    let text = pem::encode_certificates(&[root.der(), leaf.der()]);
    assert_eq!(
        Roots::from_pem(text.as_bytes()),
        Err(RootsError::NotACa { number: 2 })
    );
    assert!(matches!(
        Roots::from_pem(b"no pem"),
        Err(RootsError::Pem(_))
    ));
}

#[test]
fn a_key_of_another_certificate_is_refused() {
    let root = root("theirs");
    let (leaf, other) = (root.sign(ordinary()), root.sign(ordinary()));
    let chain = pem::encode_certificates(&leaf.sent());
    let held = Held::from_pem(chain.as_bytes(), other.key.serialize_pem().as_bytes());
    assert_eq!(held.unwrap_err(), HeldError::KeyMismatch);
    assert!(!format!("{:?}", self::held(&leaf)).contains("PRIVATE"));
}
