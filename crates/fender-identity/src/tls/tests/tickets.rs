//! Sessions that go on, and those that must not.

use rustls::client::ClientSessionMemoryCache;
use rustls::server::ProducesTickets as _;

use super::*;
use crate::DenyList;
use crate::tls::tickets::LIFETIME;

/// A client as others write them: it keeps the tickets that it gets, and would send early data.
fn eager(config: &Arc<ClientConfig>) -> Arc<ClientConfig> {
    let mut eager = ClientConfig::clone(config);
    eager.resumption = Resumption::store(Arc::new(ClientSessionMemoryCache::new(8)));
    eager.enable_early_data = true;
    Arc::new(eager)
}

/// How they connected, and as whom.
fn kind(client: &Arc<ClientConfig>, server: &Arc<ServerConfig>) -> (HandshakeKind, Peer) {
    let done = handshake(client, server).unwrap();
    assert_eq!(done.client.handshake_kind(), done.server.handshake_kind());
    (done.server.handshake_kind().unwrap(), peer_of(&done.server))
}

/// A client with a session of the server's already.
fn returning(mesh: &Mesh, leaf: &Issued, server: &Arc<ServerConfig>) -> Arc<ClientConfig> {
    let client = eager(&mesh.client(Some(&leaf.svid())));
    assert_eq!(kind(&client, server).0, HandshakeKind::Full);
    client
}

#[test]
fn a_session_goes_on_as_whom_it_was() {
    let mesh = Mesh::new();
    for mode in [ClientCertificate::Require, ClientCertificate::Accept] {
        let server = mesh.server(mode);
        let leaf = mesh.root.intermediate("i").leaf(BILLING);
        let client = returning(&mesh, &leaf, &server);
        for _ in 0..3 {
            let done = handshake(&client, &server).unwrap();
            assert_eq!(done.server.handshake_kind(), Some(HandshakeKind::Resumed));
            assert_eq!(
                done.client.tls13_tickets_received(),
                1,
                "one for each handshake"
            );
            let peer = peer_of(&done.server);
            assert_eq!(peer.svid().unwrap().serial(), leaf.svid().serial());
            assert_eq!(peer.id(), Some(&id(BILLING)));
        }
    }
    let server = mesh.server(ClientCertificate::Ignore);
    let nobody = eager(&mesh.client(None));
    assert_eq!(
        kind(&nobody, &server),
        (HandshakeKind::Full, Peer::Anonymous)
    );
    assert_eq!(
        kind(&nobody, &server),
        (HandshakeKind::Resumed, Peer::Anonymous)
    );
}

#[test]
fn attack_a_session_does_not_outlive_the_certificate_it_was_opened_with() {
    let mesh = Mesh::new();
    let server = mesh.server(ClientCertificate::Require);
    let short = mesh
        .root
        .odd_leaf(BILLING, |params| valid(params, NOW - HOUR, NOW + 60));
    let client = returning(&mesh, &short, &server);
    mesh.clock.set(NOW + 59);
    assert_eq!(kind(&client, &server).0, HandshakeKind::Resumed);
    mesh.clock.set(NOW + 61);
    let broken = handshake(&client, &server).unwrap_err();
    assert!(matches!(broken.server_refusal(), Refusal::Expired { .. }));
}

#[test]
fn attack_a_session_does_not_outlive_the_intermediate_or_the_root_above_it() {
    let mesh = Mesh::new();
    let server = mesh.server(ClientCertificate::Require);
    let mut params = crate::testing::authority("short");
    valid(&mut params, NOW - HOUR, NOW + 60);
    let below = mesh.root.sign(params.clone()).leaf(BILLING);
    let client = returning(&mesh, &below, &server);
    mesh.clock.set(NOW + 61);
    assert!(handshake(&client, &server).is_err());

    // Two roots, of which one is about to end.
    mesh.clock.set(NOW);
    let ending = crate::testing::self_signed(params);
    let roots = vec![mesh.root.der(), ending.der()];
    let both = Bundles::from(crate::Bundle::new(domain(MESH), roots).unwrap());
    let svid = mesh.root.leaf(ORDERS).svid();
    let (mode, clock) = (ClientCertificate::Require, mesh.clock.clone());
    let server = crate::tls::server(&TLS13, &svid, Arc::new(both), mode, &[], clock).unwrap();
    let client = eager(&mesh.client(Some(&ending.leaf(BILLING).svid())));
    assert_eq!(kind(&client, &server).0, HandshakeKind::Full);
    assert_eq!(kind(&client, &server).0, HandshakeKind::Resumed);
    mesh.clock.set(NOW + 61);
    assert!(handshake(&client, &server).is_err());
}

#[test]
fn attack_a_revoked_peer_does_not_come_back_by_an_old_session() {
    let mesh = Mesh::new();
    let leaf = mesh.root.leaf(BILLING);
    let svid = mesh.root.leaf(ORDERS).svid();
    let serve = |trust: Trust| {
        let (mode, clock) = (ClientCertificate::Require, mesh.clock.clone());
        server(&TLS13, &svid, trust, mode, &[], clock).unwrap()
    };
    let client = returning(&mesh, &leaf, &serve(mesh.bundles().into()));
    let mut denied = DenyList::default();
    denied.deny_serial(leaf.svid().serial().clone());
    let revoked = serve(Trust {
        denied: Arc::new(denied),
        ..Trust::from(mesh.bundles())
    });
    let broken = handshake(&client, &revoked).unwrap_err();
    assert_eq!(broken.server_refusal(), Refusal::Revoked(id(BILLING)));
}

#[test]
fn attack_a_session_of_a_root_that_is_not_believed_any_more_does_not_go_on() {
    let mesh = Mesh::new();
    let client = returning(
        &mesh,
        &mesh.root.leaf(BILLING),
        &mesh.server(ClientCertificate::Require),
    );
    let other = root("another root");
    let svid = mesh.root.leaf(ORDERS).svid();
    let (mode, clock) = (ClientCertificate::Require, mesh.clock.clone());
    let server = server(&TLS13, &svid, other.bundles(MESH), mode, &[], clock).unwrap();
    let broken = handshake(&client, &server).unwrap_err();
    assert_eq!(broken.server_refusal(), Refusal::UntrustedRoot);
}

#[test]
fn attack_a_session_of_a_laxer_port_opens_no_stricter_one() {
    let mesh = Mesh::new();
    let svid = mesh.root.leaf(ORDERS).svid();
    let strict = mesh.serve(&svid, ClientCertificate::Require);
    for lax in [ClientCertificate::Accept, ClientCertificate::Ignore] {
        let lax = mesh.serve(&svid, lax);
        let nobody = eager(&mesh.client(None));
        assert_eq!(kind(&nobody, &lax).0, HandshakeKind::Full);
        assert_eq!(kind(&nobody, &lax).0, HandshakeKind::Resumed);
        let broken = handshake(&nobody, &strict).unwrap_err();
        assert_eq!(broken.server_refusal(), Refusal::NoCertificate);
    }
}

#[test]
fn attack_a_session_goes_on_nowhere_but_at_the_port_and_under_the_name_it_was_opened() {
    let mesh = Mesh::new();
    let server = mesh.server(ClientCertificate::Require);
    let leaf = mesh.root.leaf(BILLING);
    // The same in everything, but another port: the client is asked for its certificate again.
    let client = returning(&mesh, &leaf, &server);
    let twin = mesh.server(ClientCertificate::Require);
    assert_eq!(kind(&client, &twin).0, HandshakeKind::Full);
    assert_eq!(
        kind(&client, &server).0,
        HandshakeKind::Full,
        "its ticket is spent"
    );
}

#[test]
fn attack_a_session_ends_after_an_hour_and_its_key_after_two() {
    let mesh = Mesh::new();
    let (server, lifetime) = (mesh.server(ClientCertificate::Ignore), u64::from(LIFETIME));
    // One who shows nothing has no certificate that would end.
    let client = eager(&mesh.client(None));
    let at = |seconds: u64| {
        mesh.clock.set(NOW - lifetime / 2 + seconds);
        kind(&client, &server).0
    };
    assert_eq!(at(0), HandshakeKind::Full);
    assert_eq!(at(lifetime - 1), HandshakeKind::Resumed);
    // By then another key seals, and the one before still opens.
    assert_eq!(at(lifetime + 1), HandshakeKind::Resumed);

    let once = ServerConfig::clone(&server).ticketer;
    let key_before = once.encrypt(&[0, 3, 4, 0, 0, 0, 0, 0]).unwrap();
    assert!(once.decrypt(&key_before).is_some());
    mesh.clock.set(NOW - lifetime / 2 + 2 * lifetime + 1);
    assert_eq!(once.decrypt(&key_before), None);
    mesh.clock.set(NOW - lifetime);
    assert_eq!(
        once.decrypt(&key_before),
        None,
        "nor when the clock is set back"
    );
}

#[test]
fn attack_a_ticket_that_somebody_changed_opens_nothing() {
    let mesh = Mesh::new();
    let tickets = Tickets::new(mesh.clock.clone(), Vec::new()).unwrap();
    // A session without a name and without a certificate.
    let session = [0, 3, 4, 0x13, 1, 0, 0, 0, 7, 7];
    let ticket = tickets.encrypt(&session).unwrap();
    assert_eq!(tickets.decrypt(&ticket).as_deref(), Some(&session[..]));
    for at in 0..ticket.len() {
        let mut changed = ticket.clone();
        changed[at] ^= 1;
        assert_eq!(tickets.decrypt(&changed), None, "byte {at}");
        assert_eq!(tickets.decrypt(&ticket[..at]), None, "cut at {at}");
    }
    assert!(!ticket.windows(4).any(|window| window == &session[..4]));
    // What cannot be read as rustls writes it gets no ticket.
    for session in [
        &[][..],
        &[2],
        &[0, 3, 4],
        &[0, 3, 3, 0, 0, 0, 0, 0],
        &[0, 3, 4, 0, 0, 0, 0, 1, 0, 0, 1, 0],
    ] {
        assert_eq!(tickets.encrypt(session), None, "{session:?}");
    }
}

#[test]
fn attack_a_repeated_hello_says_nothing_and_opens_nothing() {
    let mesh = Mesh::new();
    let server = mesh.server(ClientCertificate::Require);
    let client = returning(&mesh, &mesh.root.leaf(BILLING), &server);
    let name = server_name(&id(ORDERS));
    let mut honest = ClientConnection::new(client, name).unwrap();
    assert!(
        honest.early_data().is_none(),
        "there is nothing to say early"
    );
    let mut hello = Vec::new();
    while honest.wants_write() {
        honest.write_tls(&mut hello).unwrap();
    }
    for _ in 0..2 {
        // Whoever recorded it has not the key that was agreed upon before.
        let mut connection = ServerConnection::new(server.clone()).unwrap();
        connection.read_tls(&mut hello.as_slice()).unwrap();
        connection.process_new_packets().unwrap();
        assert!(connection.is_handshaking());
        assert_eq!(peer_of(&connection), Peer::Anonymous);
        assert!(connection.early_data().is_none());
    }
}

#[test]
fn a_profile_may_forbid_sessions_to_go_on() {
    let mesh = Mesh::new();
    let never = TlsProfile {
        resumption: SessionResumption::Never,
        ..TlsProfile::default()
    };
    let svid = mesh.root.leaf(ORDERS).svid();
    let (mode, clock) = (ClientCertificate::Require, mesh.clock.clone());
    let server = server(&never, &svid, mesh.bundles(), mode, &[], clock).unwrap();
    let client = eager(&mesh.client(Some(&mesh.root.leaf(BILLING).svid())));
    for _ in 0..2 {
        let done = handshake(&client, &server).unwrap();
        assert_eq!(done.server.handshake_kind(), Some(HandshakeKind::Full));
        assert_eq!(done.client.tls13_tickets_received(), 0);
    }
}

#[test]
fn a_session_of_tls_12_does_not_go_on() {
    let mesh = Mesh::new();
    let svid = mesh.root.leaf(ORDERS).svid();
    let (mode, clock) = (ClientCertificate::Require, mesh.clock.clone());
    let server = server(&TLS12, &svid, mesh.bundles(), mode, &[], clock).unwrap();
    let client = eager(&only_tls12(&mesh, &mesh.root.leaf(BILLING).svid()));
    for _ in 0..3 {
        assert_eq!(kind(&client, &server).0, HandshakeKind::Full);
    }
}
