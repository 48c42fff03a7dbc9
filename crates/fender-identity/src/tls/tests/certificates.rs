//! Which certificate a client is shown, and which pairs are refused before anybody is.

use std::sync::atomic::{AtomicUsize, Ordering};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{
    ClientSessionMemoryCache, ClientSessionStore, Tls12ClientSessionValue, Tls13ClientSessionValue,
};
use rustls::{DigitallySignedStruct, NamedGroup, SignatureScheme};

use super::*;
use crate::testing::self_signed;
use crate::{PemError, Secret};

const SHOP: &str = "shop.example.com";

/// A certificate of a public authority for these names, valid an hour to both sides.
fn public(authority: &Issued, names: &[&str]) -> Issued {
    authority.odd_leaf(BILLING, |params| {
        params.subject_alt_names = names.iter().map(|name| dns(name)).collect();
    })
}

fn pem(issued: &Issued) -> PemPair {
    PemPair {
        chain: crate::certificates_to_pem(&issued.sent()).into_bytes(),
        key: issued.key.serialize_pem().into(),
    }
}

fn named(issued: &Issued, names: &[&str]) -> Result<NamedCertificate, NamedCertificateError> {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    NamedCertificate::from_pem(&pem(issued), &names)
}

#[test]
fn the_name_that_a_client_asks_for_chooses_what_it_is_shown() {
    let (mesh, authority) = (Mesh::new(), root("public"));
    let svid = mesh.root.leaf(ORDERS).svid();
    let certificates = [
        named(&public(&authority, &[SHOP, "www.example.com"]), &[]).unwrap(),
        named(
            &public(&authority, &["*.api.example.com"]),
            &["*.API.example.com"],
        )
        .unwrap(),
    ];
    let own = Own {
        svid: &svid,
        named: &certificates,
        refused: &[],
    };
    let (mode, clock) = (ClientCertificate::Accept, mesh.clock.clone());
    let server = server(&TLS13, own, mesh.bundles(), mode, &[], clock.clone()).unwrap();
    let consumer = client_dns(&TLS13, None, vec![authority.der()], &[], clock).unwrap();
    let asks = |name: &str| {
        let name = ServerName::try_from(name.to_owned()).unwrap();
        handshake_with(&consumer, &server, name).map(|done| peer_of(&done.server))
    };
    for name in [SHOP, "WWW.example.com", "v1.api.example.com"] {
        assert_eq!(asks(name).unwrap(), Peer::Anonymous, "{name}");
    }
    // Whoever asks for another name, or for none, is shown the mesh's own, and does not know it.
    for name in [
        "api.example.com",
        "a.b.api.example.com",
        "other.example.com",
        "192.0.2.1",
    ] {
        let broken = asks(name).unwrap_err();
        assert_eq!(broken.client_refusal(), Refusal::UntrustedRoot, "{name}");
    }
    // Who of the mesh calls meets the workload, and is known, whatever else is there.
    let ours = mesh.root.leaf(BILLING).svid();
    let done = handshake(&mesh.client(Some(&ours)), &server).unwrap();
    assert_eq!(peer_of(&done.client).id(), Some(&id(ORDERS)));
    assert_eq!(peer_of(&done.server).id(), Some(&id(BILLING)));
}

#[test]
fn one_for_other_names_stands_in_for_those_that_a_client_takes_it_for_and_no_other() {
    let authority = root("public");
    let issued = named(&public(&authority, &[SHOP, "*.api.example.com"]), &[]).unwrap();
    let stands = |names: &[&str]| {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let found = issued.standing_in(&names)?;
        assert_eq!(found.leaf(), issued.leaf());
        Some(found.names().to_vec())
    };
    assert_eq!(
        stands(&[
            "new.example.com",
            "SHOP.example.com",
            "v1.api.example.com",
            "*"
        ])
        .unwrap(),
        [SHOP, "v1.api.example.com", "*"]
    );
    for none in [
        &["new.example.com", "*"][..],
        &["a.b.api.example.com"],
        &["*"],
        &[],
    ] {
        assert_eq!(stands(none), None, "{none:?}");
    }
}

#[test]
fn attack_a_certificate_of_a_public_authority_makes_nobody_of_the_mesh() {
    let (mesh, authority) = (Mesh::new(), root("public"));
    let svid = mesh.root.leaf(ORDERS).svid();
    let certificates = [named(&public(&authority, &[SHOP]), &[]).unwrap()];
    let own = Own {
        svid: &svid,
        named: &certificates,
        refused: &[],
    };
    let (mode, clock) = (ClientCertificate::Require, mesh.clock.clone());
    let server = server(&TLS13, own, mesh.bundles(), mode, &[], clock).unwrap();
    // The authority that vouches for the server's name vouches for no client.
    let attacker = mesh.attacker(&authority.leaf(BILLING));
    let broken = handshake(&attacker, &server).unwrap_err();
    assert_eq!(broken.server_refusal(), Refusal::UntrustedRoot);
}

#[test]
fn a_pair_that_no_client_could_use_is_refused_by_name() {
    let authority = root("public");
    let shop = public(&authority, &[SHOP]);
    assert_eq!(named(&shop, &[]).unwrap().names(), [SHOP]);
    let refused = |issued: &Issued, names: &[&str]| named(issued, names).unwrap_err();
    let other = "other.example.com";
    assert_eq!(
        refused(&shop, &[SHOP, other]),
        NamedCertificateError::WrongName(other.to_owned())
    );
    // One for a single name is not one for all of them.
    assert_eq!(
        refused(&public(&authority, &["x.example.com"]), &["*.example.com"]),
        NamedCertificateError::WrongName("*.example.com".to_owned())
    );
    assert_eq!(
        refused(&authority.leaf(BILLING), &[]),
        NamedCertificateError::NoName
    );
    let pair = |chain: &[u8], key: Secret| PemPair {
        chain: chain.to_vec(),
        key,
    };
    let (shops, others) = (pem(&shop), pem(&public(&authority, &[SHOP])));
    let refused_pair = |pair: &PemPair| NamedCertificate::from_pem(pair, &[]).unwrap_err();
    let mixed = refused_pair(&pair(&shops.chain, others.key));
    assert_eq!(mixed, NamedCertificateError::KeyMismatch);
    assert!(matches!(
        refused_pair(&pair(b"", shops.key.clone())),
        NamedCertificateError::Pem(_)
    ));
    assert!(matches!(
        refused_pair(&pair(&shops.chain, Secret::new(vec![]))),
        NamedCertificateError::Pem(_)
    ));
    let mut long = self_signed(crate::testing::authority("long"));
    for _ in 0..7 {
        long = long.intermediate("i");
    }
    assert!(matches!(
        refused(&public(&long, &[SHOP]), &[]),
        NamedCertificateError::ChainTooLong { .. }
    ));
    assert!(!format!("{:?}", named(&shop, &[]).unwrap()).contains("key"));
}

#[test]
fn the_mesh_meets_the_workload_whatever_names_the_certificates_are_for() {
    let (mesh, authority) = (Mesh::new(), root("public"));
    let svid = mesh.root.odd_leaf(ORDERS, |params| {
        params.subject_alt_names.push(dns("orders.shop.internal"));
        params.subject_alt_names.push(dns("www.example.com"));
    });
    // A public name that is the trust domain, one for the others, and one that the SVID has too.
    let names = [MESH, "www.example.com"];
    let certificates = [
        named(&public(&authority, &names), &[]).unwrap(),
        named(&public(&authority, &[SHOP]), &["*"]).unwrap(),
    ];
    assert_eq!(certificates[1].names(), [SHOP, "*"]);
    let own = Own {
        svid: &svid.svid(),
        named: &certificates,
        refused: &[],
    };
    let (mode, clock) = (ClientCertificate::Accept, mesh.clock.clone());
    let server = server(&TLS13, own, mesh.bundles(), mode, &[], clock.clone()).unwrap();
    let done = handshake(&mesh.client(None), &server).unwrap();
    assert_eq!(peer_of(&done.client).id(), Some(&id(ORDERS)));
    let shown = |name: &str| {
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let done = handshake_with(&gullible(&mesh), &server, name).unwrap();
        done.client.peer_certificates().unwrap()[0].clone()
    };
    assert_eq!(shown(MESH), svid.der());
    assert_eq!(shown("orders.shop.internal"), svid.der());
    let both = certificates[0].leaf().unwrap().clone();
    assert_eq!(shown("www.example.com"), both);
    let others = certificates[1].leaf().unwrap().clone();
    for name in [SHOP, "elsewhere.example.com", "192.0.2.1"] {
        assert_eq!(shown(name), others, "{name}");
    }
}

#[test]
fn attack_a_session_goes_on_under_no_other_name() {
    let (mesh, authority) = (Mesh::new(), root("public"));
    let svid = mesh.root.leaf(ORDERS).svid();
    let certificates = [
        named(&public(&authority, &[SHOP]), &[]).unwrap(),
        named(&public(&authority, &["api.example.com"]), &[]).unwrap(),
    ];
    let own = Own {
        svid: &svid,
        named: &certificates,
        refused: &[],
    };
    let (mode, clock) = (ClientCertificate::Accept, mesh.clock.clone());
    let server = server(&TLS13, own, mesh.bundles(), mode, &[], clock).unwrap();
    // An attacker asks for one name, and shows the ticket under another.
    let client = Deceiver::new(&mesh);
    let kind = |name: &str| client.asks(&server, name).server.handshake_kind().unwrap();
    assert_eq!(kind(SHOP), HandshakeKind::Full);
    assert_eq!(kind(SHOP), HandshakeKind::Resumed);
    for (tickets, name) in [(2, "api.example.com"), (3, MESH), (4, SHOP)] {
        // Of the name before it.
        assert_eq!(kind(name), HandshakeKind::Full, "{name}");
        assert_eq!(client.shown.load(Ordering::Relaxed), tickets);
    }
    assert_eq!(kind(SHOP), HandshakeKind::Resumed);
}

/// Believes every server, and keeps one place for the sessions of all of them.
struct Deceiver {
    config: Arc<ClientConfig>,
    /// How many tickets it has shown.
    shown: Arc<AtomicUsize>,
}

#[derive(Debug)]
struct OnePlace(ClientSessionMemoryCache, Arc<AtomicUsize>);

impl Deceiver {
    fn new(mesh: &Mesh) -> Self {
        let mut config = ClientConfig::clone(&gullible(mesh));
        let cache = ClientSessionMemoryCache::new(8);
        let shown = Arc::new(AtomicUsize::new(0));
        config.resumption = Resumption::store(Arc::new(OnePlace(cache, shown.clone())));
        let config = Arc::new(config);
        Self { config, shown }
    }

    fn asks(&self, server: &Arc<ServerConfig>, name: &str) -> Connected {
        let name = ServerName::try_from(name.to_owned()).unwrap();
        handshake_with(&self.config, server, name).unwrap()
    }
}

fn place() -> ServerName<'static> {
    ServerName::try_from("one.place").unwrap()
}

impl ClientSessionStore for OnePlace {
    fn set_kx_hint(&self, _: ServerName<'static>, group: NamedGroup) {
        self.0.set_kx_hint(place(), group);
    }

    fn kx_hint(&self, _: &ServerName<'_>) -> Option<NamedGroup> {
        self.0.kx_hint(&place())
    }

    fn set_tls12_session(&self, _: ServerName<'static>, _: Tls12ClientSessionValue) {}

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        None
    }

    fn remove_tls12_session(&self, _: &ServerName<'static>) {}

    fn insert_tls13_ticket(&self, _: ServerName<'static>, value: Tls13ClientSessionValue) {
        self.0.insert_tls13_ticket(place(), value);
    }

    fn take_tls13_ticket(&self, _: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        let ticket = self.0.take_tls13_ticket(&place());
        self.1
            .fetch_add(usize::from(ticket.is_some()), Ordering::Relaxed);
        ticket
    }
}

fn gullible(mesh: &Mesh) -> Arc<ClientConfig> {
    let mut config = ClientConfig::clone(&mesh.client(None));
    config
        .dangerous()
        .set_certificate_verifier(Arc::new(Gullible));
    Arc::new(config)
}

#[derive(Debug)]
struct Gullible;

impl ServerCertVerifier for Gullible {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: rustls_pki_types::UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        rustls::crypto::aws_lc_rs::default_provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}

#[test]
fn a_name_that_has_nothing_to_show_is_refused_and_the_others_are_not() {
    let (mesh, authority) = (Mesh::new(), root("public"));
    let svid = mesh.root.odd_leaf(ORDERS, |params| {
        params.subject_alt_names.push(dns("orders.shop.internal"));
    });
    let svid = svid.svid();
    let certificates = [
        named(&public(&authority, &["www.example.com", SHOP]), &[]).unwrap(),
        named(&public(&authority, &["a.api.example.com"]), &[]).unwrap(),
    ];
    let refused = [SHOP, "*.API.example.com", "orders.shop.internal", MESH];
    let refused = refused.map(str::to_owned);
    let asks = |refused: &[String], name: &str| {
        let own = Own {
            svid: &svid,
            named: &certificates,
            refused,
        };
        let (mode, clock) = (ClientCertificate::Accept, mesh.clock.clone());
        let server = server(&TLS13, own, mesh.bundles(), mode, &[], clock).unwrap();
        let name = ServerName::try_from(name.to_owned()).unwrap();
        handshake_with(&gullible(&mesh), &server, name).map(|_| ())
    };
    // Also where another certificate has the name in it, and where the workload's own has.
    for name in [
        SHOP,
        "SHOP.example.com",
        "b.api.example.com",
        "orders.shop.internal",
    ] {
        assert!(asks(&refused, name).is_err(), "{name}");
    }
    // The mesh meets the workload whatever a document says; strangers meet it where nothing is said of them.
    for name in [
        MESH,
        "www.example.com",
        "a.api.example.com",
        "elsewhere.example.com",
        "192.0.2.1",
    ] {
        asks(&refused, name).unwrap();
    }
    let everybody = ["*".to_owned()];
    for name in ["elsewhere.example.com", "192.0.2.1"] {
        assert!(asks(&everybody, name).is_err(), "{name}");
    }
    for name in [MESH, SHOP, "orders.shop.internal"] {
        asks(&everybody, name).unwrap();
    }
}

#[test]
fn a_pair_is_taken_out_of_one_text_with_nothing_of_the_key_in_the_chain() {
    let authority = root("public");
    let issued = public(&authority, &[SHOP]);
    let PemPair { chain, key } = pem(&issued);
    let whole = [b"a note\n".as_slice(), key.expose(), &chain].concat();
    let pair = PemPair::from_texts([whole.as_slice()], &whole).unwrap();
    assert_eq!(pair.chain, chain);
    assert!(pair.equals(&PemPair { chain, key }));
    let shown = NamedCertificate::from_pem(&pair, &[]).unwrap();
    assert_eq!(shown.names(), [SHOP]);

    let missing = |what| Err(PemError::Missing { what });
    let of = |chain: &[u8], key: &[u8]| PemPair::from_texts([chain], key).map(|_| ());
    assert_eq!(of(&pair.chain, &pair.chain), missing("private key"));
    assert_eq!(of(pair.key.expose(), &whole), missing("certificate"));
    let twice = [pair.key.expose(), &whole].concat();
    assert_eq!(of(&whole, &twice), Err(PemError::SeveralKeys));
    let locked =
        b"-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
    assert_eq!(of(&whole, locked), Err(PemError::Encrypted));
    let huge = vec![b'x'; 2 * 1024 * 1024];
    assert!(matches!(of(&huge, &whole), Err(PemError::TooLong { .. })));
    assert!(matches!(of(&whole, &huge), Err(PemError::TooLong { .. })));
}
