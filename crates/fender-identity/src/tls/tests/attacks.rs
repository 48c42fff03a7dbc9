//! What somebody may show, and what they get for it.

use rcgen::ExtendedKeyUsagePurpose;
use rustls::AlertDescription;

use super::*;
use crate::Bundles;
use crate::testing::{leaf, self_signed, uri};
use crate::verify::Role;

#[test]
fn attack_no_client_certificate() {
    let mesh = Mesh::new();
    let broken =
        handshake(&mesh.client(None), &mesh.server(ClientCertificate::Require)).unwrap_err();
    assert_eq!(broken.server_refusal(), Refusal::NoCertificate);
    let alert = rustls::Error::AlertReceived(AlertDescription::CertificateRequired);
    assert_eq!(broken.client, Some(alert));
}

#[test]
fn attack_self_signed_client() {
    let mesh = Mesh::new();
    assert_eq!(
        mesh.refuses(&self_signed(leaf(BILLING))),
        Refusal::UntrustedRoot
    );
}

#[test]
fn attack_client_of_another_trust_domain() {
    let mesh = Mesh::new();
    let theirs = root("evil root").leaf("spiffe://evil.example/ns/shop/sa/billing");
    assert_eq!(
        mesh.refuses(&theirs),
        Refusal::ForeignTrustDomain(domain("evil.example"))
    );
    assert_eq!(
        mesh.refuses(&root("evil root").leaf(BILLING)),
        Refusal::UntrustedRoot
    );
}

#[test]
fn attack_trust_domain_confusion_in_a_handshake() {
    let mesh = Mesh::new();
    let partner = root("partner root");
    let both: Bundles = [mesh.root.bundle(MESH), partner.bundle("partner.example")]
        .into_iter()
        .collect();
    let svid = mesh.root.leaf(ORDERS).svid();
    let (mode, alpn) = (ClientCertificate::Require, &[b"h2".as_slice()]);
    let server = server(
        &TLS13,
        &svid,
        Arc::new(both),
        mode,
        alpn,
        mesh.clock.clone(),
    )
    .unwrap();

    let honest = partner.leaf("spiffe://partner.example/ns/shop/sa/billing");
    assert!(handshake(&mesh.attacker(&honest), &server).is_ok());
    let posing = partner.leaf(BILLING);
    let broken = handshake(&mesh.attacker(&posing), &server).unwrap_err();
    assert_eq!(broken.server_refusal(), Refusal::UntrustedRoot);
}

#[test]
fn attack_expired_client() {
    let mesh = Mesh::new();
    let refusal = mesh.refuses_leaf(|leaf| valid(leaf, NOW - HOUR, NOW - 1));
    assert_eq!(
        refusal,
        Refusal::Expired {
            not_after: at(NOW - 1),
            now: at(NOW)
        }
    );
}

#[test]
fn attack_client_not_yet_valid() {
    let mesh = Mesh::new();
    let refusal = mesh.refuses_leaf(|leaf| valid(leaf, NOW + 1, NOW + HOUR));
    assert_eq!(
        refusal,
        Refusal::NotYetValid {
            not_before: at(NOW + 1),
            now: at(NOW)
        }
    );
}

#[test]
fn attack_client_with_two_uri_names() {
    let mesh = Mesh::new();
    let refusal = mesh.refuses_leaf(|leaf| leaf.subject_alt_names.push(uri(ORDERS)));
    assert_eq!(refusal, Refusal::NotOneUri { found: 2 });
}

#[test]
fn attack_client_without_a_uri_name() {
    let mesh = Mesh::new();
    let refusal = mesh.refuses_leaf(|leaf| leaf.subject_alt_names = vec![dns("billing")]);
    assert_eq!(refusal, Refusal::NotOneUri { found: 0 });
}

#[test]
fn attack_ca_as_a_client() {
    let mesh = Mesh::new();
    let refusal = mesh.refuses_leaf(|leaf| leaf.is_ca = crate::testing::authority("x").is_ca);
    assert_eq!(refusal, Refusal::IsCa(id(BILLING)));
}

#[test]
fn attack_server_certificate_shown_by_a_client() {
    let mesh = Mesh::new();
    let server_only = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let refusal = mesh.refuses_leaf(|leaf| leaf.extended_key_usages = server_only);
    assert_eq!(refusal, Refusal::WrongPurpose(Role::Client));
}

#[test]
fn attack_stolen_certificate_without_its_key() {
    let mesh = Mesh::new();
    let mut stolen = mesh.root.leaf(BILLING);
    stolen.key = mesh.root.leaf(BILLING).key;
    assert_eq!(mesh.refuses(&stolen), Refusal::KeyNotProven);

    let mut stolen = mesh.root.leaf(ORDERS);
    stolen.key = mesh.root.leaf(ORDERS).key;
    let broken = handshake(&mesh.client(None), &mesh.show(&stolen)).unwrap_err();
    assert_eq!(broken.client_refusal(), Refusal::KeyNotProven);
}

#[test]
fn the_peer_learns_no_more_than_an_alert() {
    let mesh = Mesh::new();
    let alert = |shown: &Issued| {
        let server = mesh.server(ClientCertificate::Require);
        handshake(&mesh.attacker(shown), &server)
            .unwrap_err()
            .client
            .unwrap()
    };
    let expired = mesh
        .root
        .odd_leaf(BILLING, |leaf| valid(leaf, NOW - HOUR, NOW - 1));
    let two = mesh
        .root
        .odd_leaf(BILLING, |leaf| leaf.subject_alt_names.push(uri(ORDERS)));
    for (shown, description) in [
        (expired, AlertDescription::CertificateExpired),
        (root("evil").leaf(BILLING), AlertDescription::UnknownCA),
        (
            root("evil").leaf("spiffe://evil.example/a"),
            AlertDescription::CertificateUnknown,
        ),
        (two, AlertDescription::CertificateUnknown),
    ] {
        assert_eq!(alert(&shown), rustls::Error::AlertReceived(description));
    }
}

#[test]
fn attack_another_workload_as_the_server() {
    let mesh = Mesh::new();
    let broken = handshake(&mesh.client(None), &mesh.show(&mesh.root.leaf(BILLING))).unwrap_err();
    let Refusal::UnexpectedPeer {
        presented,
        expected,
    } = broken.client_refusal()
    else {
        panic!("{broken:?}")
    };
    assert_eq!(presented, id(BILLING));
    assert_eq!(expected.expected, format!("`{ORDERS}`"));
}

#[test]
fn attack_server_that_has_only_the_right_dns_name() {
    let mesh = Mesh::new();
    let shown = mesh
        .root
        .odd_leaf(BILLING, |leaf| leaf.subject_alt_names.push(dns(MESH)));
    let broken = handshake(&mesh.client(None), &mesh.show(&shown)).unwrap_err();
    assert!(matches!(
        broken.client_refusal(),
        Refusal::UnexpectedPeer { .. }
    ));
}

#[test]
fn attack_bad_servers() {
    let mesh = Mesh::new();
    let refused = |shown: &Issued| {
        handshake(&mesh.client(None), &mesh.show(shown))
            .unwrap_err()
            .client_refusal()
    };
    assert_eq!(refused(&self_signed(leaf(ORDERS))), Refusal::UntrustedRoot);
    assert_eq!(refused(&root("evil").leaf(ORDERS)), Refusal::UntrustedRoot);
    let expired = mesh
        .root
        .odd_leaf(ORDERS, |leaf| valid(leaf, NOW - HOUR, NOW - 1));
    assert!(matches!(refused(&expired), Refusal::Expired { .. }));
    let client_only = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let client = mesh
        .root
        .odd_leaf(ORDERS, |leaf| leaf.extended_key_usages = client_only);
    assert_eq!(refused(&client), Refusal::WrongPurpose(Role::Server));
}

#[test]
fn first_contact_believes_the_pinned_root_and_the_control_plane_below_it() {
    let mesh = Mesh::new();
    let control = mesh.show(&mesh.root.intermediate("i").leaf(CONTROL));
    let done = handshake(&mesh.pinned(CaPin::of(&mesh.root.der())), &control).unwrap();
    assert_eq!(
        peer_of(&done.client).id(),
        Some(&SpiffeId::control(&domain(MESH)))
    );
}

#[test]
fn a_control_plane_sends_its_root_when_the_root_is_in_its_svid() {
    let mesh = Mesh::new();
    let control = mesh.root.intermediate("i").leaf(CONTROL);
    let svid = Svid::from_parts(control.chain.clone(), control.key_der()).unwrap();
    let server = mesh.serve(&svid, ClientCertificate::Accept);
    assert!(handshake(&mesh.pinned(CaPin::of(&mesh.root.der())), &server).is_ok());
}

#[test]
fn attack_first_contact_with_the_wrong_root() {
    let mesh = Mesh::new();
    let evil = mesh.show(&root("mesh root").leaf(CONTROL));
    let broken = handshake(&mesh.pinned(CaPin::of(&mesh.root.der())), &evil).unwrap_err();
    assert_eq!(broken.client_refusal(), Refusal::PinMismatch);

    let control = mesh.show(&mesh.root.leaf(CONTROL));
    let broken = handshake(&mesh.pinned(CaPin::from([7; 32])), &control).unwrap_err();
    assert_eq!(broken.client_refusal(), Refusal::PinMismatch);
}

#[test]
fn attack_first_contact_with_the_pinned_root_only_shown() {
    let mesh = Mesh::new();
    let mut evil = root("evil").leaf(CONTROL);
    evil.chain.push(mesh.root.der());
    let pinned = mesh.pinned(CaPin::of(&mesh.root.der()));
    let broken = handshake(&pinned, &mesh.show(&evil)).unwrap_err();
    assert_eq!(broken.client_refusal(), Refusal::UntrustedRoot);
}

#[test]
fn attack_leaf_of_the_mesh_as_the_control_plane() {
    let mesh = Mesh::new();
    let pinned = mesh.pinned(CaPin::of(&mesh.root.der()));
    for posing in [
        ORDERS,
        "spiffe://mesh.example/fender/control/plane",
        "spiffe://mesh.example/fender/admin/control",
        "spiffe://mesh.example/ns/fender/sa/control",
    ] {
        let broken = handshake(&pinned, &mesh.show(&mesh.root.leaf(posing))).unwrap_err();
        assert!(
            matches!(broken.client_refusal(), Refusal::UnexpectedPeer { .. }),
            "{posing}"
        );
    }
}

#[test]
fn attack_control_plane_of_another_trust_domain_under_the_pinned_root() {
    let mesh = Mesh::new();
    let pinned = mesh.pinned(CaPin::of(&mesh.root.der()));
    let other = mesh.root.leaf("spiffe://other.example/fender/control");
    let broken = handshake(&pinned, &mesh.show(&other)).unwrap_err();
    let refused = Refusal::ForeignTrustDomain(domain("other.example"));
    assert_eq!(broken.client_refusal(), refused);
}

#[test]
fn attack_a_leaf_pinned_by_mistake_vouches_for_nobody() {
    let mesh = Mesh::new();
    let orders = mesh.root.leaf(ORDERS);
    let below = orders.leaf(CONTROL);
    for (pin, shown) in [(&orders, &below), (&below, &below)] {
        let broken = handshake(&mesh.pinned(CaPin::of(&pin.der())), &mesh.show(shown)).unwrap_err();
        assert_eq!(broken.client_refusal(), Refusal::PinMismatch);
    }
}

#[test]
fn attack_stolen_certificate_without_its_key_in_tls_12() {
    let mesh = Mesh::new();
    let ours = mesh.root.leaf(BILLING).svid();
    let mut old_client = ClientConfig::clone(&only_tls12(&mesh, &ours));
    let mut stolen = mesh.root.leaf(BILLING);
    stolen.key = mesh.root.leaf(BILLING).key;
    old_client.client_auth_cert_resolver = Arc::new(SingleCertAndKey::from(shown_as(&stolen)));

    let svid = mesh.root.leaf(ORDERS).svid();
    let (mode, clock) = (ClientCertificate::Require, mesh.clock.clone());
    let lenient = server(&TLS12, &svid, mesh.bundles(), mode, &[], clock).unwrap();
    let broken = handshake(&Arc::new(old_client), &lenient).unwrap_err();
    assert_eq!(broken.server_refusal(), Refusal::KeyNotProven);

    let mut stolen = mesh.root.leaf(ORDERS);
    stolen.key = mesh.root.leaf(ORDERS).key;
    let mut lenient = ServerConfig::clone(&lenient);
    lenient.cert_resolver = Arc::new(SingleCertAndKey::from(shown_as(&stolen)));
    let broken = handshake(&only_tls12(&mesh, &ours), &Arc::new(lenient)).unwrap_err();
    assert_eq!(broken.client_refusal(), Refusal::KeyNotProven);
}
