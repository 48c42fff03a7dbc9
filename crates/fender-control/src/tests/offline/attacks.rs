//! What is asked of an offline root, or brought from one, that nobody should get or take.

use super::*;

#[tokio::test]
async fn attack_a_request_that_is_not_for_an_intermediate_as_ours_is_not_signed() {
    let vault = Vault::new();
    let refused = |path: &Path| vault.sign_at("root", path, NOW).unwrap_err().to_string();
    let p256 = &PKCS_ECDSA_P256_SHA256;
    vault
        .sign_at("root", &vault.request(p256, |_| {}), NOW)
        .unwrap();

    let why = refused(&vault.request(&PKCS_ECDSA_P384_SHA384, |_| {}));
    assert!(why.contains("P-256"), "{why}");
    let deeper = |params: &mut CertificateParams| {
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(3));
    };
    let client = |params: &mut CertificateParams| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    };
    let (basic_constraints, other_use) = ("2.5.29.19", "2.5.29.37");
    let why = refused(&vault.request(p256, deeper));
    assert!(why.contains(basic_constraints), "{why}");
    let why = refused(&vault.request(p256, client));
    assert!(why.contains(other_use), "{why}");
    let leaf = |params: &mut CertificateParams| {
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    };
    assert!(refused(&vault.request(p256, leaf)).contains("2.5.29.15"));

    for (name, why) in [
        ("spiffe://other.test", "`other.test`"),
        ("spiffe://acme.test/ns/shop/sa/orders", "trust domain"),
        ("https://acme.test", "trust domain"),
    ] {
        let named = vault.request(p256, |params| params.subject_alt_names = vec![uri(name)]);
        let refused = refused(&named);
        assert!(refused.contains(why), "{name}: {refused}");
    }
    let two = |params: &mut CertificateParams| {
        params.subject_alt_names.push(uri("spiffe://other.test"));
    };
    assert!(refused(&vault.request(p256, two)).contains("2 names"));
    // One byte of the signature, which is last.
    let path = vault.request(p256, |_| {});
    let der = fender_identity::request_from_pem(&fs::read(&path).unwrap()).unwrap();
    let mut forged = der;
    *forged.last_mut().unwrap() ^= 1;
    let body = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, &forged);
    let text =
        format!("-----BEGIN CERTIFICATE REQUEST-----\n{body}\n-----END CERTIFICATE REQUEST-----\n");
    fs::write(&path, text).unwrap();
    assert!(refused(&path).contains("not by its own key"));
    fs::write(&path, "no request").unwrap();
    refused(&path);
}

#[tokio::test]
async fn attack_a_root_that_has_ended_or_whose_key_is_not_its_own_signs_nothing() {
    let vault = Vault::new();
    vault.create("other", 10).unwrap();
    let request = vault.request(&PKCS_ECDSA_P256_SHA256, |_| {});
    let sign = |now: u64| vault.sign_at("root", &request, now);
    // Nothing outlives its root.
    let end = NOW + 10 * YEAR.as_secs();
    let last = sign(end - 3600).unwrap();
    assert_eq!(last.until, at(end));
    let ended = sign(end + 1).unwrap_err();
    assert!(matches!(ended, OfflineError::Ended { since: 1 }), "{ended}");
    let early = sign(NOW - YEAR.as_secs()).unwrap_err();
    assert!(matches!(early, OfflineError::NotBegun { .. }), "{early}");

    let (path, wrong) = (vault.path("root"), vault.sealing("another-key"));
    let closed = sign_intermediate(&path, &request, YEAR, &wrong, at(NOW)).unwrap_err();
    assert!(closed.to_string().contains("does not open"), "{closed}");
    fs::copy(vault.path("other/root-key"), vault.path("root/root-key")).unwrap();
    let moved = sign(NOW).unwrap_err().to_string();
    assert!(moved.contains("does not open"), "{moved}");
    let open = fs::Permissions::from_mode(0o777);
    fs::set_permissions(vault.path("root"), open).unwrap();
    let exposed = sign(NOW).unwrap_err();
    assert!(matches!(exposed, OfflineError::Directory(_)), "{exposed}");
}

#[tokio::test]
async fn attack_what_is_brought_for_another_request_or_under_another_root_is_not_taken() {
    let vault = Vault::new();
    vault.create("other", 10).unwrap();
    let machine = Machine::new();
    machine.ask().await;
    let request = machine.request();
    let refuse = |signed: &Path| machine.import(signed, AnotherRoot::Refused).unwrap_err();

    // Somebody else's request, signed by the right root.
    let theirs = vault.request(&PKCS_ECDSA_P256_SHA256, |_| {});
    let other_key = refuse(&vault.signed("root", &theirs, NOW));
    assert!(
        matches!(other_key, OfflineError::Upstream(UpstreamError::OtherKey)),
        "{other_key}"
    );
    let good = vault.sign_at("root", &request, NOW).unwrap().pem;
    let other = vault.sign_at("other", &request, NOW).unwrap().pem;
    let split = |text: &str| {
        let certificates = fender_identity::certificates_from_pem(text.as_bytes()).unwrap();
        (certificates[0].clone(), certificates[1].clone())
    };
    let ((intermediate, root), (_, foreign)) = (split(&good), split(&other));
    let file = |certificates: &[CertificateDer<'_>]| {
        let path = vault.path("brought.pem");
        fs::write(&path, fender_identity::certificates_to_pem(certificates)).unwrap();
        path
    };
    let alone = refuse(&file(std::slice::from_ref(&intermediate)));
    assert!(matches!(alone, OfflineError::NoRoot { .. }), "{alone}");
    let twice = refuse(&file(&[intermediate.clone(), intermediate.clone()]));
    assert!(matches!(twice, OfflineError::NoRoot { .. }), "{twice}");
    let unsigned = refuse(&file(&[intermediate.clone(), foreign]));
    assert!(
        matches!(unsigned, OfflineError::Upstream(UpstreamError::OtherIssuer)),
        "{unsigned}"
    );

    // It was a year on the way.
    machine.clock.advance(YEAR + DAY);
    let late = refuse(&file(&[intermediate, root]));
    assert!(matches!(late, OfflineError::OutOfTime), "{late}");
    let now = machine.clock.now().as_secs();
    let signed = vault.signed("root", &request, now);
    machine.import(&signed, AnotherRoot::Refused).unwrap();

    // From then on, another root is the word of whoever says so.
    let signed = vault.signed("other", &request, now);
    let another = machine.import(&signed, AnotherRoot::Refused).unwrap_err();
    assert!(
        matches!(another, OfflineError::AnotherRoot { .. }),
        "{another}"
    );
    machine.import(&signed, AnotherRoot::Allowed).unwrap();
    let known = fs::read(machine.data().join("offline/root.pem")).unwrap();
    assert_eq!(known, fs::read(vault.path("other/root.pem")).unwrap());
}

#[tokio::test]
async fn attack_an_intermediate_of_another_trust_domain_or_that_may_not_sign_is_not_taken() {
    let vault = Vault::empty();
    let machine = Machine::new();
    machine.ask().await;
    let der = fender_identity::request_from_pem(&fs::read(machine.request()).unwrap()).unwrap();
    let asked = fender_identity::csr::parse_authority(&der).unwrap();
    let forge = |change: fn(&mut CertificateParams)| {
        let key = KeyPair::generate().unwrap();
        let mut root = CertificateParams::default();
        root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        root.not_after = rcgen::date_time_ymd(2040, 1, 1);
        let above = root.self_signed(&key).unwrap();
        let mut params = root.clone();
        params.subject_alt_names = vec![uri("spiffe://acme.test")];
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        change(&mut params);
        let issuer = Issuer::new(root, key);
        let text = params.signed_by(&asked.key, &issuer).unwrap().pem() + &above.pem();
        let path = vault.path("forged.pem");
        fs::write(&path, text).unwrap();
        machine.import(&path, AnotherRoot::Allowed)
    };
    let leaf = forge(|params| params.is_ca = IsCa::ExplicitNoCa).unwrap_err();
    assert!(
        matches!(leaf, OfflineError::Upstream(UpstreamError::NotACa)),
        "{leaf}"
    );
    let other = forge(|params| params.subject_alt_names = vec![uri("spiffe://other.test")]);
    let other = other.unwrap_err();
    assert!(
        matches!(
            other,
            OfflineError::Upstream(UpstreamError::OtherTrustDomain { .. })
        ),
        "{other}"
    );
    // What another tool signed well is as good as what ours does.
    forge(|_| {}).unwrap();
    machine.world().await.attested("shop/orders").await;
}

#[tokio::test]
async fn attack_another_root_that_a_new_replica_is_brought_is_not_believed_without_a_word() {
    let vault = Vault::new();
    vault.create("other", 10).unwrap();
    let world = founded(&vault).await;
    let Stopped {
        directory, clock, ..
    } = world.stop().await;
    fs::remove_dir_all(directory.path().join("data/offline")).unwrap();
    let machine = Machine {
        directory,
        clock,
        replica: Some("second"),
    };
    machine.ask().await;
    let signed = vault.signed("other", &machine.request(), NOW);
    machine.import(&signed, AnotherRoot::Refused).unwrap();
    let drain = Drain::new();
    let refused = machine.start(&drain).await.map(drop).unwrap_err();
    assert!(
        matches!(
            refused,
            StartError::Ca(CaError::Upstream(UpstreamError::ImportedRoot { .. }))
        ),
        "{refused}"
    );
    assert!(drain.close(Deadline::after(Duration::from_secs(60))).await);

    // The request waits on, and what the right root signs is taken, once it is said that it shall be another one.
    let signed = vault.signed("root", &machine.request(), NOW);
    let another = machine.import(&signed, AnotherRoot::Refused).unwrap_err();
    assert!(
        matches!(another, OfflineError::AnotherRoot { .. }),
        "{another}"
    );
    machine.import(&signed, AnotherRoot::Allowed).unwrap();
    let world = machine.world().await;
    let root = fs::read(vault.path("root/root.pem")).unwrap();
    let root = fender_identity::certificates_from_pem(&root).unwrap();
    let svid = world.attested("shop/orders").await;
    let mut stream = world.subscribe(&svid, 0).await;
    let told = stream.next_trust().await.unwrap();
    assert_eq!(told.bundles[0].roots, [root[0].to_vec()]);
}
