use std::time::Duration;

use fender_config::snapshot::CertificateSource;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, date_time_ymd};
use serde_json::json;

use super::*;

pub(crate) const SHOP: &str = "shop.example.com";
/// In the summer of 2026.
const NOW: u64 = 1_782_864_000;

/// A leaf, what is between it and its root, and the leaf's key, as PEM.
pub(crate) struct Made {
    pub(crate) leaf: String,
    pub(crate) between: String,
    pub(crate) key: String,
}

impl Made {
    /// Valid in these years.
    pub(crate) fn valid(names: &[&str], from: i32, until: i32) -> Self {
        let authority = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(params, authority).unwrap();
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.not_before = date_time_ymd(from, 1, 1);
        params.not_after = date_time_ymd(until, 1, 1);
        let key = KeyPair::generate().unwrap();
        Self {
            leaf: params.signed_by(&key, &authority).unwrap().pem(),
            between: authority.pem(),
            key: key.serialize_pem(),
        }
    }

    pub(crate) fn new(names: &[&str]) -> Self {
        Self::valid(names, 2000, 2100)
    }

    pub(crate) fn bundle(&self) -> String {
        [&*self.key, &*self.leaf, &*self.between].concat()
    }

    fn chain(&self) -> String {
        [&*self.leaf, &*self.between].concat()
    }
}

pub(crate) fn wanted(credential: &ObjectName, names: &[&str]) -> PortCertificate {
    PortCertificate {
        source: CertificateSource::Credential(credential.clone()),
        names: names.iter().map(|name| (*name).to_owned()).collect(),
    }
}

fn of(value: &str, names: &[&str]) -> Result<Arc<PemPair>, CertificateError> {
    let name = ObjectName::new("shop", "tls").unwrap();
    let now = UnixTime::since_unix_epoch(Duration::from_secs(NOW));
    pair(
        &Secret::from(value.to_owned()),
        &[wanted(&name, names)],
        now,
    )
}

/// Line ends differ by who wrote it.
fn sections(text: &[u8]) -> String {
    String::from_utf8_lossy(text).replace("\r\n", "\n")
}

#[test]
fn a_pair_is_taken_from_a_bundle_and_from_the_fields_of_kubernetes_and_of_vault() {
    let made = Made::new(&[SHOP]);
    let values = [
        made.bundle(),
        format!("notes\n{}{}{}", made.leaf, made.between, made.key),
        json!({ "tls.crt": made.chain(), "tls.key": made.key, "ca.crt": made.between }).to_string(),
        json!({ "certificate": made.leaf, "private_key": made.key, "ca_chain": [ made.between ] })
            .to_string(),
        json!({ "certificate": made.leaf, "private_key": made.key, "issuing_ca": made.between,
            "serial_number": "1a:2b" })
        .to_string(),
        // Of both the list, which has the other in it.
        json!({ "certificate": made.leaf, "private_key": made.key, "ca_chain": [ made.between ],
            "issuing_ca": made.between })
        .to_string(),
        // As Vault does with `format: pem_bundle`.
        json!({ "certificate": made.bundle(), "private_key": made.key }).to_string(),
    ];
    for value in values {
        let pair = of(&value, &[SHOP]).unwrap_or_else(|error| panic!("{error}: {value}"));
        assert_eq!(
            sections(&pair.chain),
            sections(made.chain().as_bytes()),
            "{value}"
        );
        assert_eq!(sections(pair.key.expose()), sections(made.key.as_bytes()));
    }
}

#[test]
fn what_is_no_certificate_for_the_names_with_its_key_is_refused_and_nothing_of_it_shown() {
    let (made, other) = (Made::new(&[SHOP]), Made::new(&["evil.example.com"]));
    let over = Made::valid(&[SHOP], 2000, 2001);
    let yet = Made::valid(&[SHOP], 2090, 2100);
    let crt = |certificate: &str, key: &str| {
        json!({ "tls.crt": certificate, "tls.key": key }).to_string()
    };
    let missing = "no private key in the PEM text";
    let wrong = [
        (String::new(), "no certificate in the PEM text"),
        ("hunter2".to_owned(), "no certificate in the PEM text"),
        (made.chain(), missing),
        (made.key.clone(), "no certificate in the PEM text"),
        (made.bundle().replace("MI", "\u{1}"), "cannot be read"),
        (
            [&*made.bundle(), &*other.key].concat(),
            "more than one private key",
        ),
        (
            [&*other.key, &*made.leaf].concat(),
            "does not belong to the certificate",
        ),
        (other.bundle(), "not for the name `shop.example.com`"),
        (over.bundle(), "it has expired"),
        (yet.bundle(), "it is not valid yet"),
        (
            "{}".to_owned(),
            "neither `tls.crt` and `tls.key` nor `certificate` and `private_key`",
        ),
        ("{\"tls.crt\":".to_owned(), "no JSON object"),
        (
            json!({ "tls.crt": made.leaf }).to_string(),
            "no field `tls.key`",
        ),
        (
            json!({ "private_key": made.key }).to_string(),
            "no field `certificate`",
        ),
        (
            crt(&made.leaf, &other.key),
            "does not belong to the certificate",
        ),
        (crt(&made.leaf, &made.leaf), missing),
        (
            json!({ "tls.crt": 7, "tls.key": made.key }).to_string(),
            "is no text",
        ),
        (
            json!({ "tls.crt": made.leaf, "tls.key": made.key, "certificate": made.leaf })
                .to_string(),
            "two certificates",
        ),
    ];
    for (value, why) in wrong {
        let error = of(&value, &[SHOP]).unwrap_err();
        let told = format!("{error} {error:?}");
        assert!(told.contains(why), "{told}: expected {why}");
        for line in made
            .key
            .lines()
            .chain(other.key.lines())
            .filter(|line| !line.contains("--"))
        {
            assert!(!told.contains(line), "{told}");
        }
    }
}

#[test]
fn attack_a_value_of_any_size_is_bounded_before_it_is_read() {
    let made = Made::new(&[SHOP]);
    let huge = format!("{}{}", made.bundle(), "\n".repeat(1024 * 1024));
    let error = of(&huge, &[SHOP]).unwrap_err();
    let length = huge.len();
    assert_eq!(error, CertificateError::TooLarge { length });
    let long = format!("{}{}", made.bundle(), made.between.repeat(40));
    let error = of(&long, &[SHOP]).unwrap_err().to_string();
    assert!(
        error.contains("chain of 42 certificates is longer"),
        "{error}"
    );
    let deep = format!("{}{}", "{\"tls.crt\":".repeat(10_000), "}".repeat(10_000));
    of(&deep, &[SHOP]).unwrap_err();
}

#[test]
fn one_value_must_do_for_all_that_ports_ask_of_it() {
    let made = Made::new(&[SHOP, "www.example.com"]);
    let name = ObjectName::new("shop", "tls").unwrap();
    let value = Secret::from(made.bundle());
    let now = UnixTime::since_unix_epoch(Duration::from_secs(NOW));
    let both = [
        wanted(&name, &[SHOP]),
        wanted(&name, &["www.example.com", "*"]),
    ];
    pair(&value, &both, now).unwrap();
    let more = [both[0].clone(), wanted(&name, &["api.example.com"])];
    pair(&value, &more, now).unwrap_err();
}

#[test]
fn standings_are_those_of_what_ports_ask_for_and_of_nothing_else() {
    let certificates = PortCertificates::default();
    let now = certificates.standings();
    let [one, other] = ["one", "other"].map(|name| ObjectName::new("shop", name).unwrap());
    let (shop, api) = (wanted(&one, &[SHOP]), wanted(&one, &["api.example.com"]));
    let others = wanted(&other, &[SHOP]);
    let made = of(&Made::new(&[SHOP]).bundle(), &[SHOP]).unwrap();
    certificates.put(&other, std::slice::from_ref(&others), &made);
    certificates.put(&one, &[shop.clone(), api.clone()], &made);
    assert_eq!(now.borrow().len(), 3);
    // What is wrong now leaves the pair before; what is withdrawn leaves nothing.
    certificates.keep(&one, &[shop.clone(), api.clone()], "is wrong");
    let standing = |of: &PortCertificate| now.borrow().get(of).cloned().unwrap();
    assert!(standing(&api).pair.is_some());
    assert_eq!(standing(&api).problem.as_deref(), Some("is wrong"));
    certificates.withdraw(&one, std::slice::from_ref(&shop), "gone");
    assert!(standing(&shop).withdrawn && standing(&shop).pair.is_none());
    assert!(!now.borrow().contains_key(&api));
    assert_eq!(standing(&others).problem, None);
    certificates.retain(&one, &[]);
    assert_eq!(now.borrow().keys().collect::<Vec<_>>(), [&others]);
}
