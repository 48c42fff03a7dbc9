//! DESIGN I5: an existing certificate of another authority, each rule with its attack.

use fender_api::proof;
use fender_api::proto::control::v1::X509Evidence;
use fender_api::proto::control::v1::attest_request::Evidence;
use fender_identity::existing::Held;
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair,
    SanType, date_time_ymd,
};

use super::vouching::{authority, documents_with, params, show_on};
use super::*;

mod roots;

const BY_SUBJECT: &str = "{ x509: { authority: corporate, subject: \"CN=orders,O=Acme\" } }";

/// An authority that is not ours.
struct Corporate {
    params: CertificateParams,
    key: KeyPair,
    /// Its root, signed once.
    root: rcgen::Certificate,
}

impl Corporate {
    fn new() -> Self {
        let (mut params, key) = authority();
        params
            .distinguished_name
            .push(DnType::CommonName, "corporate");
        let root = params.self_signed(&key).unwrap();
        Self { params, key, root }
    }

    fn pem(&self) -> String {
        self.root.pem()
    }

    /// A client certificate for the orders service, changed.
    fn issue(&self, change: impl FnOnce(&mut CertificateParams)) -> Held {
        let mut leaf = params();
        leaf.distinguished_name = subject("orders", "Acme");
        leaf.subject_alt_names = vec![
            SanType::DnsName("orders.acme.internal".try_into().unwrap()),
            SanType::URI("urn:acme:orders".try_into().unwrap()),
        ];
        leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        change(&mut leaf);
        let key = KeyPair::generate().unwrap();
        let issuer = Issuer::from_params(&self.params, &self.key);
        let leaf = leaf.signed_by(&key, &issuer).unwrap();
        Held::from_pem(leaf.pem().as_bytes(), key.serialize_pem().as_bytes()).unwrap()
    }
}

fn subject(name: &str, organization: &str) -> DistinguishedName {
    let mut subject = DistinguishedName::new();
    subject.push(DnType::OrganizationName, organization);
    subject.push(DnType::CommonName, name);
    subject
}

async fn world(attest: &str) -> (World, Corporate) {
    let directory = tempfile::tempdir().unwrap();
    let corporate = Corporate::new();
    let roots = directory.path().join("corporate.pem");
    fs::write(&roots, corporate.pem()).unwrap();
    let vouching = format!(
        "  x509: [ {{ name: corporate, roots: {{ file: {} }} }} ]",
        roots.display()
    );
    let documents = documents_with(&vouching, attest);
    (World::with(directory, documents).await, corporate)
}

fn evidence(held: &Held, message: &[u8]) -> Evidence {
    Evidence::X509(X509Evidence {
        chain: held.chain().iter().map(|der| der.to_vec()).collect(),
        signature: held.sign(message).unwrap(),
    })
}

async fn show(world: &World, held: &Held) -> Result<proto::SvidResponse, Status> {
    let connection = world.anonymous().await;
    let csr = csr(ORDERS);
    let message = proof::attestation(&csr, &connection.server_leaf);
    show_on(&connection.channel, evidence(held, &message), csr).await
}

fn csr(id: &str) -> Vec<u8> {
    let key = NewKey::generate().unwrap();
    key.csr_der(&id.parse().unwrap()).unwrap()
}

#[tokio::test]
async fn the_holder_of_a_certificate_gets_the_identity_its_document_names() {
    let (world, corporate) = world(BY_SUBJECT).await;
    let answer = issued(show(&world, &corporate.issue(|_| ())).await.unwrap());
    assert_eq!(answer.chain.len(), 2);
    let evidence = world.evidence(ORDERS).await;
    let evidence: serde_json::Value = serde_json::from_str(&evidence).unwrap();
    assert_eq!(evidence["attestor"], "x509");
    assert_eq!(evidence["authority"], "corporate");
    assert_eq!(evidence["subject"], "CN=orders,O=Acme");
    assert_eq!(evidence["dns_names"][0], "orders.acme.internal");
    assert_eq!(evidence["sha256"].as_str().unwrap().len(), 64);
}

#[tokio::test]
async fn attack_a_certificate_that_was_shown_does_not_outlive_its_own_end_or_its_selector() {
    let (world, corporate) = world(BY_SUBJECT).await;
    let attested = async |held: &Held| {
        let connection = world.anonymous().await;
        let key = NewKey::generate().unwrap();
        let csr = key.csr_der(&ORDERS.parse().unwrap()).unwrap();
        let message = proof::attestation(&csr, &connection.server_leaf);
        let answer = show_on(&connection.channel, evidence(held, &message), csr).await;
        key.into_svid(issued(answer.unwrap()).chain).unwrap()
    };
    let renew = async |svid: &Svid| {
        let request = proto::RenewRequest {
            csr: NewKey::generate().unwrap().csr_der(svid.id()).unwrap(),
            expired: None,
        };
        IdentityClient::new(world.as_peer(svid).await)
            .renew(request)
            .await
            .map(drop)
    };
    // It ends half an hour from now: what it brought lives for an hour.
    let end = std::time::UNIX_EPOCH + Duration::from_secs(NOW + 1800);
    let short = attested(&corporate.issue(|leaf| leaf.not_after = end.into())).await;
    let long = attested(&corporate.issue(|_| ())).await;
    renew(&short).await.unwrap();
    world.clock.advance(Duration::from_secs(1801));
    assert_eq!(refused(renew(&short).await), Code::NotAttestable);
    renew(&long).await.unwrap();

    let roots = world.path("corporate.pem");
    let vouching = |name: &str| {
        format!(
            "  x509: [ {{ name: {name}, roots: {{ file: {} }} }} ]",
            roots.display()
        )
    };
    let web = BY_SUBJECT.replace("CN=orders", "CN=web");
    let renamed = BY_SUBJECT.replace("corporate", "other");
    for (name, attest) in [("corporate", web), ("other", renamed)] {
        world.apply(documents_with(&vouching(name), &attest)).await;
        assert_eq!(refused(renew(&long).await), Code::NotAttestable, "{attest}");
    }
}

#[tokio::test]
async fn every_field_of_a_selector_must_hold() {
    let attest = "{ x509: { authority: corporate, subject: \"CN=orders,O=Acme\", dnsName: orders.acme.internal, uri: \"urn:acme:orders\" } }";
    let (world, corporate) = world(attest).await;
    show(&world, &corporate.issue(|_| ())).await.unwrap();
    for (what, held) in [
        (
            "subject",
            corporate.issue(|leaf| leaf.distinguished_name = subject("web", "Acme")),
        ),
        (
            "DNS name",
            corporate.issue(|leaf| drop(leaf.subject_alt_names.remove(0))),
        ),
        (
            "URI",
            corporate.issue(|leaf| drop(leaf.subject_alt_names.pop())),
        ),
    ] {
        assert_eq!(
            refused(show(&world, &held).await),
            Code::EvidenceRefused,
            "{what}"
        );
    }
}

#[tokio::test]
async fn attack_a_chain_of_another_authority() {
    let (world, _) = world(BY_SUBJECT).await;
    let imposter = Corporate::new();
    let refusal = refused(show(&world, &imposter.issue(|_| ())).await);
    assert_eq!(refusal, Code::EvidenceRefused);
}

#[tokio::test]
async fn attack_our_own_authority_shown_as_another() {
    let (world, _) = world("{ token: {} }, { x509: { authority: corporate, uri: \"spiffe://acme.test/ns/shop/sa/orders\" } }").await;
    let orders = world.attested("shop/orders").await;
    let held = Held::from_pem(orders.chain_pem().as_bytes(), orders.key_pem().expose()).unwrap();
    assert_eq!(refused(show(&world, &held).await), Code::EvidenceRefused);
}

#[tokio::test]
async fn attack_a_certificate_that_has_expired_or_is_a_ca() {
    let (world, corporate) = world(BY_SUBJECT).await;
    let expired = corporate.issue(|leaf| leaf.not_after = date_time_ymd(2026, 1, 1));
    let ca = corporate
        .issue(|leaf| leaf.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained));
    let server = corporate
        .issue(|leaf| leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]);
    for (held, why) in [(expired, "expired"), (ca, "a CA"), (server, "for servers")] {
        assert_eq!(
            refused(show(&world, &held).await),
            Code::EvidenceRefused,
            "{why}"
        );
    }
}

#[tokio::test]
async fn attack_a_signature_for_another_request_server_or_purpose() {
    let (world, corporate) = world(BY_SUBJECT).await;
    let held = corporate.issue(|_| ());
    let connection = world.anonymous().await;
    let (mine, theirs) = (csr(ORDERS), csr(ORDERS));
    let leaf = &connection.server_leaf;
    for (message, why) in [
        (proof::attestation(&theirs, leaf), "another request"),
        (
            proof::attestation(&mine, b"another server"),
            "another server",
        ),
        (proof::renewal(&mine, leaf), "a renewal"),
        (mine.clone(), "the request alone"),
    ] {
        let answer = show_on(&connection.channel, evidence(&held, &message), mine.clone()).await;
        assert_eq!(refused(answer), Code::EvidenceRefused, "{why}");
    }
    let message = proof::attestation(&mine, leaf);
    let Evidence::X509(mut stolen) = evidence(&held, &message) else {
        unreachable!()
    };
    // Somebody else's chain before a signature of one's own key.
    stolen.chain = corporate
        .issue(|_| ())
        .chain()
        .iter()
        .map(|der| der.to_vec())
        .collect();
    let answer = show_on(&connection.channel, Evidence::X509(stolen), mine.clone()).await;
    assert_eq!(refused(answer), Code::EvidenceRefused);
    show_on(&connection.channel, evidence(&held, &message), mine)
        .await
        .unwrap();
}

#[tokio::test]
async fn attack_a_subject_that_reads_like_the_one_named() {
    let (world, corporate) = world(BY_SUBJECT).await;
    let mut joined = DistinguishedName::new();
    joined.push(DnType::CommonName, "orders,O=Acme");
    let mut reversed = DistinguishedName::new();
    reversed.push(DnType::CommonName, "orders");
    reversed.push(DnType::OrganizationName, "Acme");
    for lookalike in [
        joined,
        reversed,
        subject("Orders", "Acme"),
        subject("orders ", "Acme"),
        subject("orders", "Acme,O=Acme"),
        subject("\u{43e}rders", "Acme"),
    ] {
        let held = corporate.issue(|leaf| leaf.distinguished_name = lookalike.clone());
        let refusal = refused(show(&world, &held).await);
        assert_eq!(refusal, Code::EvidenceRefused, "{lookalike:?}");
    }
}

#[tokio::test]
async fn attack_one_certificate_for_every_workload() {
    let (world, corporate) = world(BY_SUBJECT).await;
    let held = corporate.issue(|_| ());
    let connection = world.anonymous().await;
    for id in [
        INVENTORY,
        "spiffe://acme.test/ns/shop/sa/nobody",
        "spiffe://acme.test/fender/control",
    ] {
        let csr = csr(id);
        let message = proof::attestation(&csr, &connection.server_leaf);
        let answer = show_on(&connection.channel, evidence(&held, &message), csr).await;
        assert_eq!(refused(answer), Code::EvidenceRefused, "{id}");
    }
}

#[tokio::test]
async fn roots_are_followed_and_without_them_nobody_is_anybody() {
    let (world, old) = world(BY_SUBJECT).await;
    let new = Corporate::new();
    show(&world, &old.issue(|_| ())).await.unwrap();
    fs::write(world.path("next"), new.pem()).unwrap();
    fs::rename(world.path("next"), world.path("corporate.pem")).unwrap();
    let held = new.issue(|_| ());
    eventually_patient(|| async { show(&world, &held).await.ok() }).await;
    assert_eq!(
        refused(show(&world, &old.issue(|_| ())).await),
        Code::EvidenceRefused
    );
    fs::remove_file(world.path("corporate.pem")).unwrap();
    eventually_patient(|| async {
        let answer = show(&world, &held).await;
        answer
            .is_err()
            .then(|| assert_eq!(refused(answer), Code::Unavailable))
    })
    .await;
}
