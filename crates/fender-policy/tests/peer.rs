//! From a certificate to a decision: the peer a rule sees is the one the chain proves.
//!
//! The fixtures hold a root and a leaf `spiffe://example.org/ns/shop/sa/web`; their keys were
//! thrown away.

#![expect(
    clippy::unwrap_used,
    reason = "in a test a failed unwrap is a failed test"
)]

use std::time::Duration;

use fender_identity::verify::{Role, verify};
use fender_identity::{Bundle, Bundles, Peer};
use fender_policy::{Action, Default, Facts, Policy, PolicySet, Rule, Source, Verdict};
use rustls_pki_types::{CertificateDer, UnixTime};

fn web() -> Peer {
    let root = CertificateDer::from_slice(include_bytes!("fixtures/root.der"));
    let leaf = CertificateDer::from_slice(include_bytes!("fixtures/leaf.der"));
    let bundle = Bundle::new("example.org".parse().unwrap(), vec![root]).unwrap();
    let now = UnixTime::since_unix_epoch(Duration::from_secs(4_000_000_000));
    let svid = verify(&[leaf], Role::Client, &Bundles::from(bundle), now, &|_| {
        Ok(())
    })
    .unwrap();
    Peer::Verified(svid)
}

fn allow(source: Source) -> PolicySet {
    let rules = vec![Rule {
        from: vec![source],
        ..Rule::default()
    }];
    let policy = Policy {
        name: "shop/allow".parse().unwrap(),
        action: Action::Allow,
        rules,
    };
    PolicySet {
        default: Default::Deny,
        policies: vec![policy],
    }
}

#[test]
fn a_verified_peer_is_matched_by_principal_namespace_and_service_account() {
    let peer = web();
    let facts = Facts {
        peer: &peer,
        source_ip: None,
        remote_ip: None,
        port: 8443,
        http: None,
    };
    for source in [
        Source {
            principals: vec!["example.org/ns/shop/sa/web".into()],
            ..Source::default()
        },
        Source {
            principals: vec!["*/sa/web".into()],
            ..Source::default()
        },
        Source {
            namespaces: vec!["shop".into()],
            ..Source::default()
        },
        Source {
            service_accounts: vec!["shop/web".parse().unwrap()],
            ..Source::default()
        },
    ] {
        assert_eq!(
            allow(source.clone()).decide(&facts).verdict,
            Verdict::Allow,
            "{source:?}"
        );
        let anonymous = Facts {
            peer: &Peer::Anonymous,
            ..facts
        };
        assert_eq!(allow(source).decide(&anonymous).verdict, Verdict::Deny);
    }
}

#[test]
fn a_verified_peer_is_named_in_the_explanation() {
    let peer = web();
    let facts = Facts {
        peer: &peer,
        source_ip: None,
        remote_ip: None,
        port: 8443,
        http: None,
    };
    let told = allow(Source {
        namespaces: vec!["ops".into()],
        ..Source::default()
    })
    .explain(&facts);
    assert_eq!(
        told.nearest[1],
        "`rules[0].from[0].source.namespaces` wants `ops`, but the namespace is `shop`"
    );
}
