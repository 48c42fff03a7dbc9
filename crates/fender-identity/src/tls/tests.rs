//! Real handshakes in memory, honest and not.

mod attacks;
mod certificates;
mod tickets;

use std::error::Error as _;
use std::net::IpAddr;
use std::sync::LazyLock;

use rcgen::CertificateParams;
use rustls::sign::CertifiedKey;
use rustls::{AlertDescription, ClientConnection, HandshakeKind, ServerConnection};

use super::*;
use crate::Bundles;
use crate::testing::{HOUR, Issued, NOW, TestClock, at, dns, domain, id, root, valid};

const MESH: &str = "mesh.example";
const ORDERS: &str = "spiffe://mesh.example/ns/shop/sa/orders";
const BILLING: &str = "spiffe://mesh.example/ns/shop/sa/billing";
const CONTROL: &str = "spiffe://mesh.example/fender/control";
static TLS13: LazyLock<TlsProfile> = LazyLock::new(TlsProfile::default);
static TLS12: LazyLock<TlsProfile> = LazyLock::new(|| TlsProfile::since(TlsVersion::Tls12));

/// Both ends of a connection whose handshake is over.
#[derive(Debug)]
struct Connected {
    client: ClientConnection,
    server: ServerConnection,
}

/// What each end makes of a handshake that did not work out. An end that only read the other's
/// alert has that as its error.
#[derive(Debug)]
struct Broken {
    client: Option<rustls::Error>,
    server: Option<rustls::Error>,
}

impl Broken {
    fn server_refusal(&self) -> Refusal {
        refusal_of(self.server.as_ref().unwrap()).unwrap()
    }

    fn client_refusal(&self) -> Refusal {
        refusal_of(self.client.as_ref().unwrap()).unwrap()
    }
}

fn handshake(
    client: &Arc<ClientConfig>,
    server: &Arc<ServerConfig>,
) -> Result<Connected, Box<Broken>> {
    let name = server_name(&id(ORDERS));
    handshake_with(client, server, name)
}

fn handshake_with(
    client: &Arc<ClientConfig>,
    server: &Arc<ServerConfig>,
    name: ServerName<'static>,
) -> Result<Connected, Box<Broken>> {
    let mut client = ClientConnection::new(client.clone(), name).unwrap();
    let mut server = ServerConnection::new(server.clone()).unwrap();
    let mut broken = Broken {
        client: None,
        server: None,
    };
    assert_eq!(peer_of(&client), Peer::Anonymous);
    for _ in 0..10 {
        let mut flight = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut flight).unwrap();
        }
        let mut flight = flight.as_slice();
        while !flight.is_empty() && broken.server.is_none() {
            server.read_tls(&mut flight).unwrap();
            broken.server = server.process_new_packets().err();
            assert!(!server.is_handshaking() || peer_of(&server) == Peer::Anonymous);
        }
        let mut flight = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut flight).unwrap();
        }
        let mut flight = flight.as_slice();
        while !flight.is_empty() && broken.client.is_none() {
            client.read_tls(&mut flight).unwrap();
            broken.client = client.process_new_packets().err();
        }
    }
    if broken.client.is_some() || broken.server.is_some() {
        return Err(Box::new(broken));
    }
    assert!(!client.is_handshaking() && !server.is_handshaking());
    Ok(Connected { client, server })
}

/// A mesh with a server `orders`.
struct Mesh {
    root: Issued,
    clock: Arc<TestClock>,
}

impl Mesh {
    fn new() -> Self {
        Self {
            root: root("mesh root"),
            clock: TestClock::new(),
        }
    }

    fn bundles(&self) -> Arc<Bundles> {
        self.root.bundles(MESH)
    }

    fn server(&self, mode: ClientCertificate) -> Arc<ServerConfig> {
        self.serve(&self.root.leaf(ORDERS).svid(), mode)
    }

    fn serve(&self, svid: &Svid, mode: ClientCertificate) -> Arc<ServerConfig> {
        let alpn: [&[u8]; 2] = [b"h2", b"http/1.1"];
        server(
            &TLS13,
            svid,
            self.bundles(),
            mode,
            &alpn,
            self.clock.clone(),
        )
        .unwrap()
    }

    /// Expects `orders`.
    fn client(&self, svid: Option<&Svid>) -> Arc<ClientConfig> {
        let alpn: [&[u8]; 1] = [b"h2"];
        client(
            &TLS13,
            svid,
            self.bundles(),
            id(ORDERS),
            &alpn,
            self.clock.clone(),
        )
        .unwrap()
    }

    /// A client that shows whatever it is given and believes every server of this mesh named
    /// `orders`.
    fn attacker(&self, shown: &Issued) -> Arc<ClientConfig> {
        let mut config = ClientConfig::clone(&self.client(None));
        config.client_auth_cert_resolver = Arc::new(SingleCertAndKey::from(shown_as(shown)));
        Arc::new(config)
    }

    fn refuses(&self, shown: &Issued) -> Refusal {
        let attacker = self.attacker(shown);
        let accept = self.server(ClientCertificate::Accept);
        let broken = handshake(&attacker, &accept).unwrap_err();
        let require = self.server(ClientCertificate::Require);
        let again = handshake(&attacker, &require).unwrap_err();
        assert_eq!(
            broken.server_refusal(),
            again.server_refusal(),
            "one rule for both modes"
        );
        broken.server_refusal()
    }

    fn refuses_leaf(&self, change: impl FnOnce(&mut CertificateParams)) -> Refusal {
        self.refuses(&self.root.odd_leaf(BILLING, change))
    }

    fn pinned(&self, pin: CaPin) -> Arc<ClientConfig> {
        client_pinned(
            &TLS13,
            domain(MESH),
            vec![pin],
            &[b"h2"],
            self.clock.clone(),
        )
        .unwrap()
    }

    /// A server that shows this chain, root included, whatever it is.
    fn show(&self, shown: &Issued) -> Arc<ServerConfig> {
        let mut config = ServerConfig::clone(&self.server(ClientCertificate::Ignore));
        config.cert_resolver = Arc::new(SingleCertAndKey::from(shown_as(shown)));
        Arc::new(config)
    }
}

/// No check of shape or key: what an attacker has.
fn shown_as(shown: &Issued) -> CertifiedKey {
    let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&shown.key_der()).unwrap();
    CertifiedKey::new(shown.chain.clone(), key)
}

#[test]
fn both_sides_learn_who_the_other_is() {
    let mesh = Mesh::new();
    let ours = mesh.root.intermediate("i").leaf(BILLING).svid();
    let done = handshake(
        &mesh.client(Some(&ours)),
        &mesh.server(ClientCertificate::Require),
    )
    .unwrap();

    assert_eq!(peer_of(&done.client).id(), Some(&id(ORDERS)));
    let peer = peer_of(&done.server);
    assert_eq!(peer.id(), Some(&id(BILLING)));
    assert_eq!(peer.svid().unwrap().serial(), ours.serial());
    assert_eq!(peer.svid().unwrap().not_after(), ours.validity().not_after);
    assert!(peer.svid().unwrap().showed(&ours.chain()[0]));
    assert_eq!(done.server.alpn_protocol(), Some(b"h2".as_slice()));
}

#[test]
fn m2_the_first_choice_is_tls_13_with_a_post_quantum_group() {
    let mesh = Mesh::new();
    let done = handshake(&mesh.client(None), &mesh.server(ClientCertificate::Ignore)).unwrap();
    assert_eq!(
        done.client.protocol_version(),
        Some(rustls::ProtocolVersion::TLSv1_3)
    );
    let group = done.client.negotiated_key_exchange_group().unwrap().name();
    assert_eq!(group, rustls::NamedGroup::X25519MLKEM768);
}

#[test]
fn m1_the_mode_decides_about_clients_without_a_certificate() {
    let mesh = Mesh::new();
    let anonymous = mesh.client(None);
    for mode in [ClientCertificate::Accept, ClientCertificate::Ignore] {
        let done = handshake(&anonymous, &mesh.server(mode)).unwrap();
        assert_eq!(peer_of(&done.server), Peer::Anonymous);
    }
    let shown = mesh.root.leaf(BILLING).svid();
    let known = mesh.client(Some(&shown));
    let done = handshake(&known, &mesh.server(ClientCertificate::Accept)).unwrap();
    assert_eq!(peer_of(&done.server).id(), Some(&id(BILLING)));
    let done = handshake(&known, &mesh.server(ClientCertificate::Ignore)).unwrap();
    assert_eq!(peer_of(&done.server), Peer::Anonymous, "nobody asked");
}

#[test]
fn m2_tls_12_is_only_for_those_who_opted_in() {
    let mesh = Mesh::new();
    let svid = mesh.root.leaf(ORDERS).svid();
    let ours = mesh.root.leaf(BILLING).svid();
    let old_client = only_tls12(&mesh, &ours);
    let strict = mesh.serve(&svid, ClientCertificate::Require);
    let broken = handshake(&old_client, &strict).unwrap_err();
    assert_eq!(
        refusal_of(broken.server.as_ref().unwrap()),
        None,
        "not the certificate's fault"
    );

    let (mode, clock) = (ClientCertificate::Require, mesh.clock.clone());
    let lenient = server(&TLS12, &svid, mesh.bundles(), mode, &[], clock).unwrap();
    let done = handshake(&old_client, &lenient).unwrap();
    assert_eq!(
        done.server.protocol_version(),
        Some(rustls::ProtocolVersion::TLSv1_2)
    );
    assert_eq!(peer_of(&done.server).id(), Some(&id(BILLING)));
    assert_eq!(peer_of(&done.client).id(), Some(&id(ORDERS)));
}

/// A client from before TLS 1.3.
fn only_tls12(mesh: &Mesh, svid: &Svid) -> Arc<ClientConfig> {
    let verifier = Arc::new(ExpectedServer::new(mesh.bundles().into(), id(ORDERS)));
    let builder = ClientConfig::builder_with_details(TLS12.provider().unwrap(), mesh.clock.clone())
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    finish(builder, Some(svid.certified_key()), &[])
}

#[test]
fn no_session_is_resumed_with_a_server_that_would() {
    let mesh = Mesh::new();
    let ours = mesh.root.leaf(BILLING).svid();
    let mut eager = ServerConfig::clone(&mesh.server(ClientCertificate::Require));
    eager.session_storage = rustls::server::ServerSessionMemoryCache::new(8);
    eager.send_tls13_tickets = 2;
    let (eager, client) = (Arc::new(eager), mesh.client(Some(&ours)));
    for _ in 0..3 {
        let done = handshake(&client, &eager).unwrap();
        assert_eq!(done.server.handshake_kind(), Some(HandshakeKind::Full));
    }
}

#[test]
fn nobody_is_known_before_the_handshake_is_over() {
    let mesh = Mesh::new();
    let ours = mesh.root.leaf(BILLING).svid();
    // In small records, so that there is a moment between the certificate and the end.
    let mut client = ClientConfig::clone(&mesh.client(Some(&ours)));
    client.max_fragment_size = Some(40);
    let name = server_name(&id(ORDERS));
    let mut client = ClientConnection::new(Arc::new(client), name).unwrap();
    let server = mesh.server(ClientCertificate::Require);
    let mut server = ServerConnection::new(server).unwrap();
    let mut unfinished = 0;
    while server.is_handshaking() {
        let mut flight = Vec::new();
        client.write_tls(&mut flight).unwrap();
        for byte in &flight {
            server.read_tls(&mut std::slice::from_ref(byte)).unwrap();
            server.process_new_packets().unwrap();
            if server.is_handshaking() {
                unfinished += usize::from(server.peer_certificates().is_some());
                assert_eq!(peer_of(&server), Peer::Anonymous);
            }
        }
        let mut flight = Vec::new();
        server.write_tls(&mut flight).unwrap();
        client.read_tls(&mut flight.as_slice()).unwrap();
        client.process_new_packets().unwrap();
    }
    assert!(unfinished > 0, "the certificate was there before the end");
    assert_eq!(peer_of(&server).id(), Some(&id(BILLING)));
}

#[test]
fn the_clock_of_the_configuration_decides_what_has_expired() {
    let mesh = Mesh::new();
    let ours = mesh.root.leaf(BILLING).svid();
    let client = mesh.client(Some(&ours));
    let longer = mesh
        .root
        .odd_leaf(ORDERS, |leaf| valid(leaf, NOW - HOUR, NOW + 2 * HOUR));
    let server = mesh.serve(&longer.svid(), ClientCertificate::Require);
    assert!(handshake(&client, &server).is_ok());
    mesh.clock.set(NOW + HOUR + 1);
    let broken = handshake(&client, &server).unwrap_err();
    assert!(matches!(broken.server_refusal(), Refusal::Expired { .. }));
    mesh.clock.set(NOW + 2 * HOUR + 1);
    let broken = handshake(&client, &server).unwrap_err();
    assert!(matches!(broken.client_refusal(), Refusal::Expired { .. }));
}

#[test]
fn outside_the_mesh_the_name_is_verified_in_full() {
    let mesh = Mesh::new();
    let outside = root("database root");
    let shown = outside.odd_leaf("urn:db", |leaf| {
        leaf.subject_alt_names = vec![dns("db.internal")]
    });
    let server = mesh.show(&shown);
    let ours = mesh.root.leaf(BILLING).svid();
    let connect = |roots: &Issued, name: &'static str| {
        let roots = vec![roots.der()];
        let client = client_dns(&TLS13, Some(&ours), roots, &[], mesh.clock.clone()).unwrap();
        handshake_with(&client, &server, name.try_into().unwrap())
    };
    let done = connect(&outside, "db.internal").unwrap();
    assert_eq!(
        peer_of(&done.client),
        Peer::Anonymous,
        "a name is not an identity"
    );
    assert!(connect(&outside, "other.internal").is_err());
    let broken = connect(&mesh.root, "db.internal").unwrap_err();
    assert_eq!(broken.client_refusal(), Refusal::UntrustedRoot);
}

#[test]
fn a_configuration_that_could_verify_nobody_is_not_made() {
    let mesh = Mesh::new();
    let svid = mesh.root.leaf(ORDERS).svid();
    let none = Arc::new(Bundles::new());
    let clock = mesh.clock.clone();
    for mode in [ClientCertificate::Require, ClientCertificate::Accept] {
        let made = server(&TLS13, &svid, none.clone(), mode, &[], clock.clone());
        assert!(matches!(made, Err(TlsError::NoBundle)));
    }
    assert!(
        server(
            &TLS13,
            &svid,
            none,
            ClientCertificate::Ignore,
            &[],
            clock.clone()
        )
        .is_ok()
    );

    let foreign = id("spiffe://evil.example/a");
    let made = client(&TLS13, None, mesh.bundles(), foreign, &[], clock.clone());
    assert!(matches!(made, Err(TlsError::NoBundleFor { .. })));
    let made = client_pinned(&TLS13, domain(MESH), Vec::new(), &[], clock.clone());
    assert!(matches!(made, Err(TlsError::NoPin)));
    let made = client_dns(&TLS13, None, Vec::new(), &[], clock.clone());
    assert!(matches!(made, Err(TlsError::NoRoot)));
    let junk = vec![mesh.root.der(), vec![0x30, 0].into()];
    let made = client_dns(&TLS13, None, junk, &[], clock);
    assert!(matches!(made, Err(TlsError::Root { number: 2, .. })));
}

#[test]
fn a_refusal_is_found_through_the_errors_around_it() {
    let refusal = Refusal::NotOneUri { found: 2 };
    let tls = rustls::Error::InvalidCertificate(rustls::CertificateError::Other(
        rustls::OtherError(Arc::new(refusal.clone())),
    ));
    let io = std::io::Error::new(std::io::ErrorKind::InvalidData, tls);
    let nested = std::io::Error::other(io);
    assert_eq!(refusal_of(&nested), Some(refusal));
    assert!(nested.source().is_none() || refusal_of(&nested).is_some());

    let reset = std::io::Error::from(std::io::ErrorKind::ConnectionReset);
    assert_eq!(refusal_of(&reset), None);
    let alert = rustls::Error::AlertReceived(AlertDescription::UnknownCA);
    assert_eq!(
        refusal_of(&alert),
        None,
        "the peer's opinion of us is not ours of it"
    );
}

#[test]
fn the_name_sent_is_the_trust_domain_or_made_from_it() {
    let sent = |trust_domain: &str| {
        let id = SpiffeId::control(&domain(trust_domain));
        let ServerName::DnsName(name) = server_name(&id) else {
            panic!("{trust_domain}")
        };
        name.as_ref().to_owned()
    };
    assert_eq!(sent("mesh.example"), "mesh.example");
    assert_eq!(sent("under_score.example"), "under_score.example");
    let long = "d".repeat(255);
    for odd in ["-mesh", "..", "mesh-", "a..b", &long] {
        let name = sent(odd);
        assert!(name.ends_with(".fender.invalid"), "{odd}: {name}");
    }
    assert_ne!(sent("-mesh"), sent("mesh-"));
    assert!("10.0.0.1".parse::<IpAddr>().is_ok());
    assert_ne!(
        sent("10.0.0.1"),
        "10.0.0.1",
        "an address is not sent as a name"
    );
}

#[test]
fn a_pin_is_64_hex_digits() {
    let pin = CaPin::of(&root("r").der());
    assert_eq!(pin.to_string().parse::<CaPin>(), Ok(pin));
    assert_eq!(pin.to_string().to_uppercase().parse::<CaPin>(), Ok(pin));
    assert_eq!(pin.to_string().len(), 64);
    for bad in [
        "",
        "00",
        &"0".repeat(63),
        &"0".repeat(66),
        &"g".repeat(64),
        &"é".repeat(32),
    ] {
        assert_eq!(bad.parse::<CaPin>(), Err(CaPinError), "{bad}");
    }
}
