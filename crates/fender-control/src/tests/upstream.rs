//! DESIGN I7: intermediates from another authority, by Vault's HTTP API and from files; what does not hold is not taken.

use std::os::unix::fs::PermissionsExt as _;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, CustomExtension, DnType,
    GeneralSubtree, IsCa, Issuer, KeyPair, KeyUsagePurpose, NameConstraints, SanType, SerialNumber,
};
use serde_json::{Value, json};

use super::vouching::Server;
use super::*;
use crate::{CaError, FilesUpstream, UpstreamError, UpstreamPlace, VaultUpstream};

const TOKEN: &str = "hvs.the-token-of-the-control-plane";
const YEAR: u64 = 365 * 24 * 3600;
/// What Vault gives at most, whatever it is asked for.
const LONGEST: u64 = 40 * 24 * 3600;

/// A root that nobody here has the key of, and an authority under it.
struct Pki {
    root: rcgen::Certificate,
    middle: rcgen::Certificate,
    issuer: Issuer<'static, KeyPair>,
}

fn ca(name: &str, years: u64) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    live(&mut params, years * YEAR);
    params
}

fn live(params: &mut CertificateParams, seconds: u64) {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + Duration::from_secs(NOW - 30);
    params.not_after = epoch + Duration::from_secs(NOW + seconds);
}

impl Pki {
    fn new() -> Self {
        Self::with(ca("Example Issuing", 10))
    }

    /// With this authority between the root and ours.
    fn with(between: CertificateParams) -> Self {
        let (root_key, key) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        // As file authorities do, each counts from one.
        let mut params = ca("Example Root", 20);
        params.serial_number = Some(SerialNumber::from(1));
        let root = params.self_signed(&root_key).unwrap();
        let above = Issuer::new(ca("Example Root", 20), root_key);
        let middle = between.signed_by(&key, &above).unwrap();
        let issuer = Issuer::new(between, key);
        Self {
            root,
            middle,
            issuer,
        }
    }

    /// As Vault signs a request, from `now` on; and whatever it does besides.
    fn sign(
        &self,
        csr: &str,
        now: u64,
        seconds: u64,
        besides: impl FnOnce(&mut CertificateParams),
    ) -> String {
        let mut request = CertificateSigningRequestParams::from_pem(csr).unwrap();
        let params = &mut request.params;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.use_authority_key_identifier_extension = true;
        params.serial_number = Some(SerialNumber::from(now ^ 0x5555_0000_0000));
        let epoch = rcgen::date_time_ymd(1970, 1, 1);
        params.not_before = epoch + Duration::from_secs(now - 30);
        params.not_after = epoch + Duration::from_secs(now + seconds);
        besides(params);
        request.signed_by(&self.issuer).unwrap().pem()
    }

    fn signed(&self, certificate: &str) -> String {
        json!({
            "request_id": "d5a5ba45", "lease_id": "", "renewable": false, "lease_duration": 0,
            "data": {
                "certificate": certificate,
                "issuing_ca": self.middle.pem(),
                "ca_chain": [self.middle.pem(), self.root.pem()],
                "serial_number": "39:dd:2e",
            },
        })
        .to_string()
    }
}

/// Vault, as far as it is asked: one token, one PKI engine.
async fn vault(
    directory: &Path,
    clock: Arc<TestClock>,
    besides: impl Fn(&mut CertificateParams) + Send + 'static,
) -> (Server, UpstreamPlace, Bundle) {
    let (pki, other) = (Pki::new(), Pki::new());
    let root = pki.root.der().clone();
    let moved = directory.join("moved");
    let server = Server::start(directory.join("vault-ca.pem")).await;
    server.answer_by(move |request| {
        let (head, body) = request.split_once("\r\n\r\n").unwrap();
        if !head.contains(&format!("x-vault-token: {TOKEN}\r\n")) {
            return (403, json!({ "errors": ["permission denied"] }).to_string());
        }
        let body: Value = serde_json::from_str(body).unwrap();
        if head.starts_with("POST /v1/auth/token/renew-self ") {
            let auth = json!({ "auth": { "lease_duration": 3600, "renewable": true } });
            return (200, auth.to_string());
        }
        if !head.starts_with("POST /v1/pki_mesh/root/sign-intermediate ") {
            return (404, json!({ "errors": [] }).to_string());
        }
        let ttl = body["ttl"].as_str().unwrap().trim_end_matches('s');
        assert_eq!(body["uri_sans"], "spiffe://acme.test");
        let now = clock.now().as_secs();
        let csr = body["csr"].as_str().unwrap();
        let ttl: u64 = ttl.parse().unwrap();
        let pki = if moved.exists() { &other } else { &pki };
        let certificate = pki.sign(csr, now, ttl.min(LONGEST), &besides);
        (200, pki.signed(&certificate))
    });
    let token = directory.join("vault-token");
    fs::write(&token, format!("{TOKEN}\n")).unwrap();
    fs::set_permissions(&token, fs::Permissions::from_mode(0o600)).unwrap();
    let place = UpstreamPlace::Vault(VaultUpstream {
        url: server.url.parse().unwrap(),
        mount: "pki_mesh".to_owned(),
        issuer: None,
        namespace: None,
        token,
        server_roots: server.roots.clone(),
        roots: None,
    });
    let bundle = Bundle::new("acme.test".parse().unwrap(), vec![root]).unwrap();
    (server, place, bundle)
}

async fn founded(
    directory: TempDir,
    clock: Arc<TestClock>,
    upstream: UpstreamPlace,
) -> Result<World, StartError> {
    let drain = Drain::new();
    let documents = documents(directory.path(), "shop");
    let mut config = config(&directory.path().join("data"), Some(documents));
    config.foundation.upstream = Some(upstream);
    let running = start(config, clock.clone(), drain.clone()).await?;
    Ok(World {
        directory,
        clock,
        drain,
        running,
    })
}

/// A long time passes, and the control plane notices: it looks at its authorities every minute. A look that is under way is
/// followed by another.
pub(super) async fn notice(world: &World, by: Duration) {
    world.advance(by).await;
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(61)).await;
    tokio::time::resume();
}

fn upstream_error(result: Result<World, StartError>) -> UpstreamError {
    match result.map(drop) {
        Err(StartError::Ca(CaError::Upstream(error))) => error,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn vault_signs_the_intermediates_and_no_key_leaves() {
    let directory = tempfile::tempdir().unwrap();
    let clock = TestClock::new(at(NOW));
    let (server, place, bundle) = vault(directory.path(), clock.clone(), |_| {}).await;
    let world = founded(directory, clock, place).await.unwrap();
    assert_eq!(world.bundle(), bundle);
    // Leaf, ours, Vault's; and the root is everybody's already.
    let svid = world.attested("shop/orders").await;
    assert_eq!(svid.chain().len(), 3);
    world.subscribe(&svid, 0).await.next().await.unwrap();
    for asked in server.asked() {
        assert!(!asked.contains("PRIVATE KEY"), "{asked}");
    }

    // The next one comes at half of its life; what the first one signed holds.
    let before = world.status().await.authorities.len();
    let other = world.attested("shop/inventory").await;
    notice(&world, Duration::from_secs(LONGEST / 2 + 3600)).await;
    eventually(|| async { (world.status().await.authorities.len() > before).then_some(()) }).await;
    let next = world.attested("shop/orders").await;
    assert_ne!(next.chain()[1], other.chain()[1]);
    assert_eq!(next.chain()[2], other.chain()[2]);
    world.subscribe(&next, 0).await.next().await.unwrap();
}

#[tokio::test]
async fn vault_that_goes_away_ends_nothing_and_the_status_says_until_when() {
    let directory = tempfile::tempdir().unwrap();
    let clock = TestClock::new(at(NOW));
    let (server, place, _) = vault(directory.path(), clock.clone(), |_| {}).await;
    let world = founded(directory, clock, place).await.unwrap();
    drop(server);
    notice(&world, Duration::from_secs(LONGEST / 2 + 3600)).await;
    let svid = world.attested("shop/orders").await;
    world.subscribe(&svid, 0).await.next().await.unwrap();
    let status = world.status().await;
    assert_eq!(
        status.unrecoverable_unix,
        i64::try_from(NOW + LONGEST).unwrap()
    );
    assert!(
        status.unrecoverable_because.contains("intermediate"),
        "{}",
        status.unrecoverable_because
    );
}

#[tokio::test]
async fn attack_what_vault_gives_and_does_not_hold_founds_nothing() {
    let refuse = async |besides: fn(&mut CertificateParams)| {
        let directory = tempfile::tempdir().unwrap();
        let clock = TestClock::new(at(NOW));
        let (_server, place, _) = vault(directory.path(), clock.clone(), besides).await;
        upstream_error(founded(directory, clock, place).await)
    };
    let not_a_ca = refuse(|params| params.is_ca = IsCa::ExplicitNoCa).await;
    assert!(matches!(not_a_ca, UpstreamError::NotACa), "{not_a_ca}");
    let no_lists = refuse(|params| params.key_usages = vec![KeyUsagePurpose::KeyCertSign]).await;
    assert!(matches!(no_lists, UpstreamError::NotACa), "{no_lists}");
    let other = refuse(|params| {
        let name = "spiffe://other.test".try_into().unwrap();
        params.subject_alt_names = vec![SanType::URI(name)];
    })
    .await;
    assert!(
        matches!(other, UpstreamError::OtherTrustDomain { .. }),
        "{other}"
    );
    let short =
        refuse(|params| params.not_after = params.not_before + Duration::from_secs(600)).await;
    assert!(matches!(short, UpstreamError::TooShort { .. }), "{short}");
    // Permitted: URIs of `acme.test`.
    let limits = refuse(|params| {
        let mut der = vec![0x30, 0x0f, 0xa0, 0x0d, 0x30, 0x0b, 0x86, 0x09];
        der.extend(b"acme.test");
        let extension = CustomExtension::from_oid_content(&[2, 5, 29, 30], der);
        params.custom_extensions.push(extension);
    })
    .await;
    assert!(matches!(limits, UpstreamError::LimitsUris), "{limits}");
}

#[tokio::test]
async fn attack_a_token_that_is_refused_or_exposed_is_in_no_error() {
    let directory = tempfile::tempdir().unwrap();
    let clock = TestClock::new(at(NOW));
    let (_server, place, _) = vault(directory.path(), clock.clone(), |_| {}).await;
    let token = directory.path().join("vault-token");
    fs::set_permissions(&token, fs::Permissions::from_mode(0o644)).unwrap();
    let again = tempfile::tempdir().unwrap();
    let exposed = upstream_error(founded(again, clock.clone(), place.clone()).await);
    assert!(
        matches!(exposed, UpstreamError::Exposed { .. }),
        "{exposed}"
    );
    fs::write(&token, "hvs.another-token").unwrap();
    fs::set_permissions(&token, fs::Permissions::from_mode(0o600)).unwrap();
    let again = tempfile::tempdir().unwrap();
    let refused = upstream_error(founded(again, clock, place).await).to_string();
    assert!(
        refused.contains("403") && refused.contains("permission denied"),
        "{refused}"
    );
    assert!(!refused.contains("hvs."), "{refused}");
}

/// Certificate, key and root in files.
fn write(directory: &Path, pki: &Pki, now: u64, key: &KeyPair) -> UpstreamPlace {
    let mut params = ca("ours", 1);
    params.subject_alt_names = vec![SanType::URI("spiffe://acme.test".try_into().unwrap())];
    let csr = {
        let mut request = CertificateParams::default();
        request.subject_alt_names = params.subject_alt_names.clone();
        request.serialize_request(key).unwrap().pem().unwrap()
    };
    let certificate = pki.sign(&csr, now, YEAR, |_| {});
    let place = FilesUpstream {
        certificate: directory.join("upstream.pem"),
        key: directory.join("upstream-key.pem"),
        roots: directory.join("upstream-root.pem"),
    };
    fs::write(&place.certificate, certificate + &pki.middle.pem()).unwrap();
    fs::write(&place.key, key.serialize_pem()).unwrap();
    fs::set_permissions(&place.key, fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(&place.roots, pki.root.pem()).unwrap();
    UpstreamPlace::Files(place)
}

#[tokio::test]
async fn an_intermediate_in_files_is_used_and_followed_and_a_wrong_pair_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let clock = TestClock::new(at(NOW));
    let pki = Pki::new();
    let path = directory.path().to_owned();
    let place = write(&path, &pki, NOW, &KeyPair::generate().unwrap());
    let world = founded(directory, clock, place).await.unwrap();
    let first = world.attested("shop/orders").await;
    assert_eq!(first.chain().len(), 3);

    // The certificate of another key: what is in use stays.
    write(&path, &pki, NOW + 1, &KeyPair::generate().unwrap());
    let other = KeyPair::generate().unwrap();
    fs::write(path.join("upstream-key.pem"), other.serialize_pem()).unwrap();
    notice(&world, Duration::from_secs(3 * 24 * 3600)).await;
    let second = world.attested("shop/orders").await;
    assert_eq!(second.chain()[1], first.chain()[1]);

    // A pair that fits is taken at the next look.
    write(&path, &pki, world.now(), &KeyPair::generate().unwrap());
    notice(&world, Duration::from_secs(3 * 24 * 3600)).await;
    let third = eventually_patient(|| async {
        let svid = world.attested("shop/orders").await;
        (svid.chain()[1] != first.chain()[1]).then_some(svid)
    })
    .await;
    world.subscribe(&third, 0).await.next().await.unwrap();
}

#[tokio::test]
async fn attack_an_intermediate_of_another_root_than_the_given_one_founds_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let clock = TestClock::new(at(NOW));
    let place = write(
        directory.path(),
        &Pki::new(),
        NOW,
        &KeyPair::generate().unwrap(),
    );
    let stranger = Pki::new().root.pem();
    fs::write(directory.path().join("upstream-root.pem"), stranger).unwrap();
    let refused = upstream_error(founded(directory, clock, place).await);
    assert!(matches!(refused, UpstreamError::Unfit(_)), "{refused}");
}

#[tokio::test]
async fn attack_a_name_that_an_authority_further_up_excludes_is_in_no_certificate() {
    let directory = tempfile::tempdir().unwrap();
    let clock = TestClock::new(at(NOW));
    let mut between = ca("Example Issuing", 10);
    between.name_constraints = Some(NameConstraints {
        permitted_subtrees: Vec::new(),
        excluded_subtrees: vec![GeneralSubtree::DnsName("shop.internal".to_owned())],
    });
    let pki = Pki::with(between);
    let place = write(directory.path(), &pki, NOW, &KeyPair::generate().unwrap());
    let world = founded(directory, clock, place).await.unwrap();
    // Whoever has no such name has been followed to the root, and says nothing about who has one.
    for _ in 0..2 {
        world.attested("shop/inventory").await;
        let token = world.token("shop/orders", 600).await.unwrap();
        let key = NewKey::generate().unwrap();
        let refused = world.attest(&token.secret, &key, &token.identity).await;
        refused.unwrap_err();
    }
}

#[tokio::test]
async fn a_mesh_with_a_root_of_its_own_moves_under_an_upstream_without_a_break() {
    let world = World::new().await;
    let (before, own) = (world.attested("shop/orders").await, world.bundle());
    let path = world.directory.path().to_owned();
    let place = write(&path, &Pki::new(), NOW, &KeyPair::generate().unwrap());
    let World {
        directory,
        clock,
        drain,
        running,
    } = world;
    drop(running);
    assert!(drain.close(Deadline::after(Duration::from_secs(60))).await);
    let world = founded(directory, clock, place).await.unwrap();
    // Both roots are told; the old one signs until everybody has had the time to hear of the new one.
    let told = world
        .subscribe(&before, 0)
        .await
        .next_trust()
        .await
        .unwrap();
    assert_eq!(told.bundles[0].roots.len(), 2);
    let same = world.attested("shop/orders").await;
    assert_eq!(same.chain()[1], before.chain()[1]);
    assert_eq!(world.bundle(), own);
    notice(&world, Duration::from_secs(8 * 24 * 3600)).await;
    let after = eventually_patient(|| async {
        let svid = world.attested("shop/orders").await;
        (svid.chain().len() == 3).then_some(svid)
    })
    .await;
    world.subscribe(&after, 0).await.next().await.unwrap();
}

#[tokio::test]
async fn attack_another_root_under_a_serial_that_is_known_is_not_taken_for_the_one_before() {
    let directory = tempfile::tempdir().unwrap();
    let clock = TestClock::new(at(NOW));
    let path = directory.path().to_owned();
    let key = || KeyPair::generate().unwrap();
    let place = write(&path, &Pki::new(), NOW, &key());
    let world = founded(directory, clock, place).await.unwrap();
    let before = world.attested("shop/orders").await;

    // Both count from one, and the intermediate of the second is younger.
    write(&path, &Pki::new(), NOW + 60, &key());
    notice(&world, Duration::from_secs(3 * 24 * 3600)).await;
    let after = world.attested("shop/orders").await;
    assert_eq!(after.chain()[1], before.chain()[1]);
    world.subscribe(&after, 0).await.next().await.unwrap();
}

#[tokio::test]
async fn attack_a_root_that_vault_names_later_is_not_believed_by_its_word_alone() {
    let directory = tempfile::tempdir().unwrap();
    let clock = TestClock::new(at(NOW));
    let path = directory.path().to_owned();
    let (_server, place, root) = vault(&path, clock.clone(), |_| {}).await;
    let world = founded(directory, clock, place).await.unwrap();
    let before = world.attested("shop/orders").await;

    // The mount's default issuer was changed.
    fs::write(path.join("moved"), "").unwrap();
    notice(&world, Duration::from_secs(LONGEST / 2 + 60)).await;
    let after = world.attested("shop/orders").await;
    assert_eq!(after.chain()[1], before.chain()[1]);
    let mut stream = world.subscribe(&after, 0).await;
    let told = stream.next_trust().await.unwrap();
    assert_eq!(told.bundles[0].roots.len(), 1);
    assert_eq!(told.bundles[0].roots[0], root.roots()[0].to_vec());
}
