//! DESIGN §14: with the root offline a control plane has intermediates and nothing more. What people sign with the root,
//! and what a control plane takes from them, each refusal with its attack; and nothing ends unannounced (I3).

use std::os::unix::fs::PermissionsExt as _;

use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, SanType, SignatureAlgorithm,
};

use fender_identity::tls::CaPin;
use rustls::pki_types::CertificateDer;

use super::upstream::notice;
use super::*;
use crate::offline::{AnotherRoot, Made, OfflineError, create_root, import, sign_intermediate};
use crate::{CaError, OfflineUpstream, Sealing, UpstreamError, UpstreamPlace, init};

mod attacks;

const DAY: Duration = Duration::from_secs(24 * 3600);
const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

/// Where the root is, and what its owners hold.
struct Vault {
    directory: TempDir,
    /// How long they let an intermediate live.
    lifetime: Duration,
}

impl Vault {
    fn signing_for(lifetime: Duration) -> Self {
        Self {
            lifetime,
            ..Self::new()
        }
    }

    fn new() -> Self {
        let vault = Self::empty();
        vault.create("root", 10).unwrap();
        vault
    }

    fn empty() -> Self {
        let directory = tempfile::tempdir().unwrap();
        for (name, byte) in [("key", 1), ("another-key", 2)] {
            let path = directory.path().join(name);
            fs::write(&path, [byte; 32]).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        }
        let lifetime = YEAR;
        Self {
            directory,
            lifetime,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn sealing(&self, name: &str) -> Sealing {
        Sealing::File(self.path(name))
    }

    fn create(&self, name: &str, years: u32) -> Result<Made, OfflineError> {
        let domain = "acme.test".parse().unwrap();
        let (path, sealing) = (self.path(name), self.sealing("key"));
        create_root(&path, &domain, YEAR * years, &sealing, at(NOW))
    }

    fn sign_at(&self, root: &str, request: &Path, now: u64) -> Result<Made, OfflineError> {
        let (path, sealing) = (self.path(root), self.sealing("key"));
        sign_intermediate(&path, request, self.lifetime, &sealing, at(now))
    }

    /// A file to carry back.
    fn signed(&self, root: &str, request: &Path, now: u64) -> PathBuf {
        let made = self.sign_at(root, request, now).unwrap();
        let path = self.path("signed.pem");
        fs::write(&path, made.pem).unwrap();
        path
    }

    /// A request in a file, as somebody makes it who is no control plane of ours.
    fn request(
        &self,
        algorithm: &'static SignatureAlgorithm,
        change: impl FnOnce(&mut CertificateParams),
    ) -> PathBuf {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![uri("spiffe://acme.test")];
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        change(&mut params);
        let key = KeyPair::generate_for(algorithm).unwrap();
        let text = params.serialize_request(&key).unwrap().pem().unwrap();
        let path = self.path("request.pem");
        fs::write(&path, text).unwrap();
        path
    }
}

fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

/// A data directory, and the clock beside it.
struct Machine {
    directory: TempDir,
    clock: Arc<TestClock>,
    replica: Option<&'static str>,
}

impl Machine {
    fn new() -> Self {
        Self {
            directory: tempfile::tempdir().unwrap(),
            clock: TestClock::new(at(NOW)),
            replica: None,
        }
    }

    fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    fn request(&self) -> PathBuf {
        OfflineUpstream::in_data_dir(&self.data()).request()
    }

    fn config(&self) -> ControlConfig {
        let documents = documents(self.directory.path(), "shop");
        let mut config = config(&self.data(), Some(documents));
        let place = OfflineUpstream::in_data_dir(&self.data());
        config.foundation.upstream = Some(UpstreamPlace::Offline(place));
        config.foundation.replica = self.replica.map(|name| name.parse().unwrap());
        config
    }

    async fn start(&self, drain: &Drain) -> Result<Running, StartError> {
        start(self.config(), self.clock.clone(), drain.clone()).await
    }

    /// Its first start, which finds nothing to sign with; the request is there afterwards.
    async fn ask(&self) {
        let drain = Drain::new();
        let refused = self.start(&drain).await.map(drop).unwrap_err();
        let StartError::Ca(CaError::Upstream(UpstreamError::NotSigned { request })) = refused
        else {
            panic!("{refused}");
        };
        // The directory is canonical by then.
        assert_eq!(
            fs::canonicalize(request).unwrap(),
            fs::canonicalize(self.request()).unwrap()
        );
        assert!(drain.close(Deadline::after(Duration::from_secs(60))).await);
    }

    fn import(&self, signed: &Path, another: AnotherRoot) -> Result<Made, OfflineError> {
        import(&self.data(), signed, another, self.clock.now())
    }

    async fn world(self) -> World {
        let drain = Drain::new();
        let running = self.start(&drain).await.unwrap();
        World {
            directory: self.directory,
            clock: self.clock,
            drain,
            running,
        }
    }
}

/// A control plane under a root of somebody's.
async fn founded(vault: &Vault) -> World {
    let machine = Machine::new();
    machine.ask().await;
    let signed = vault.signed("root", &machine.request(), NOW);
    machine.import(&signed, AnotherRoot::Refused).unwrap();
    machine.world().await
}

fn offline(world: &World, name: &str) -> PathBuf {
    world.path("data/offline").join(name)
}

fn seconds(moment: Duration) -> i64 {
    i64::try_from(NOW + moment.as_secs()).unwrap()
}

#[tokio::test]
async fn what_people_sign_with_the_root_is_all_a_control_plane_has() {
    let vault = Vault::new();
    let world = founded(&vault).await;
    let root = fs::read(vault.path("root/root.pem")).unwrap();
    let root = fender_identity::certificates_from_pem(&root).unwrap();
    assert_eq!(world.bundle().roots(), root);
    let svid = world.attested("shop/orders").await;
    assert_eq!(svid.chain().len(), 2);
    world.subscribe(&svid, 0).await.next().await.unwrap();
    for name in ["request.pem", "request-key", "signed.pem"] {
        assert!(!offline(&world, name).exists(), "{name} is answered");
    }

    let status = world.status().await;
    assert_eq!(status.unrecoverable_unix, seconds(YEAR));
    assert!(status.unrecoverable_because.contains("root's key"));
    let metrics = world.running.metrics().await;
    assert!(
        metrics.contains(&format!("fender_unrecoverable_seconds {}", YEAR.as_secs())),
        "{metrics}"
    );
    for role in [
        proto::AuthorityRole::Root,
        proto::AuthorityRole::Intermediate,
    ] {
        let request = proto::RotateAuthorityRequest { role: role.into() };
        let answer = world.admin().await.rotate_authority(request).await;
        assert!(answer.is_err(), "{role:?} needs the root's key");
    }
}

#[tokio::test]
async fn the_next_intermediate_is_asked_for_at_half_of_its_life_and_nothing_waits_for_it() {
    // The first administrator's certificate lives for 90 days.
    let life = 40 * DAY;
    let vault = Vault::signing_for(life);
    let world = founded(&vault).await;
    let before = world.attested("shop/orders").await;
    let request = offline(&world, "request.pem");
    assert!(!request.exists(), "nothing is due yet");
    notice(&world, life / 2 + DAY).await;
    eventually_patient(|| async { request.exists().then_some(()) }).await;
    let same = world.attested("shop/orders").await;
    assert_eq!(same.chain()[1], before.chain()[1], "what is there signs on");
    assert_eq!(world.status().await.unrecoverable_unix, seconds(life));

    let now = world.now();
    let signed = vault.signed("root", &request, now);
    let data = world.path("data");
    import(&data, &signed, AnotherRoot::Refused, at(now)).unwrap();
    notice(&world, DAY).await;
    let after = eventually_patient(|| async {
        let svid = world.attested("shop/orders").await;
        (svid.chain()[1] != before.chain()[1]).then_some(svid)
    })
    .await;
    world.subscribe(&after, 0).await.next().await.unwrap();
    let until = world.status().await.unrecoverable_unix;
    assert_eq!(until, i64::try_from(now + life.as_secs()).unwrap());
    eventually_patient(|| async { (!request.exists()).then_some(()) }).await;
}

#[tokio::test]
async fn each_replica_asks_for_itself_and_begins_when_it_has_been_signed_for() {
    let vault = Vault::new();
    let world = founded(&vault).await;
    let first = world.attested("shop/orders").await;
    let Stopped {
        directory, clock, ..
    } = world.stop().await;
    // Another one, over the same registry: what the first has opens for nobody else.
    let machine = Machine {
        directory,
        clock,
        replica: Some("second"),
    };
    machine.ask().await;
    let signed = vault.signed("root", &machine.request(), NOW);
    machine.import(&signed, AnotherRoot::Refused).unwrap();
    let world = machine.world().await;
    let second = world.attested("shop/orders").await;
    assert_ne!(second.chain()[1], first.chain()[1]);
    world.subscribe(&first, 0).await.next().await.unwrap();
}

#[tokio::test]
async fn a_root_is_made_once_and_for_nobody_else_to_read() {
    let vault = Vault::new();
    let mode = |name: &str| fs::metadata(vault.path(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("root"), mode("root/root-key")), (0o700, 0o600));
    let again = vault.create("root", 10).unwrap_err();
    assert!(matches!(again, OfflineError::There { .. }), "{again}");
    let long = vault.create("long", 9000).unwrap_err();
    assert!(matches!(long, OfflineError::TooLong), "{long}");
    assert!(!vault.path("long").exists());

    let domain = "acme.test".parse().unwrap();
    let beside = create_root(
        &vault.path("b"),
        &domain,
        YEAR,
        &Sealing::DataDirectory,
        at(NOW),
    );
    let beside = beside.unwrap_err();
    assert!(matches!(beside, OfflineError::NoSealing), "{beside}");
    let plain = vault.path("plain");
    create_root(&plain, &domain, YEAR, &Sealing::InPlain, at(NOW)).unwrap();
    // PKCS#8 names the curve: sealed, it does not show.
    let curve = [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
    let shows = |name: &str| {
        let bytes = fs::read(vault.path(name)).unwrap();
        bytes.windows(curve.len()).any(|window| window == curve)
    };
    assert!(shows("plain/root-key") && !shows("root/root-key"));
}

#[tokio::test]
async fn whoever_founds_is_told_when_the_root_ends_and_not_the_intermediate() {
    let vault = Vault::new();
    let machine = Machine::new();
    machine.ask().await;
    let signed = vault.signed("root", &machine.request(), NOW);
    machine.import(&signed, AnotherRoot::Refused).unwrap();
    let founded = init(machine.config().foundation, machine.clock.clone()).await;
    let [(pin, until)] = founded.unwrap().ca_pins[..] else {
        panic!("there is one root");
    };
    let text = fs::read(vault.path("root/root.pem")).unwrap();
    let root = fender_identity::certificates_from_pem(&text).unwrap();
    assert_eq!(pin, CaPin::of(&root[0]));
    assert!(until.as_secs() > NOW + 9 * YEAR.as_secs(), "{until:?}");
}

#[tokio::test]
async fn whoever_forgets_to_say_where_the_root_is_is_told_at_the_start() {
    let vault = Vault::new();
    let machine = Machine::new();
    machine.ask().await;
    let signed = vault.signed("root", &machine.request(), NOW);
    machine.import(&signed, AnotherRoot::Refused).unwrap();
    let mut forgotten = machine.config();
    forgotten.foundation.upstream = None;
    for (config, told) in [(machine.config(), false), (forgotten, true)] {
        let drain = Drain::new();
        let running = start(config, machine.clock.clone(), drain.clone()).await;
        let warnings = running.unwrap().warnings;
        let offline = warnings
            .iter()
            .any(|text| text.contains("`--root offline`"));
        assert_eq!(offline, told, "{warnings:?}");
        assert!(drain.close(Deadline::after(Duration::from_secs(60))).await);
    }
}

#[tokio::test]
async fn a_file_that_is_another_is_named_and_so_is_what_is_wanted_in_its_place() {
    let vault = Vault::new();
    let machine = Machine::new();
    machine.ask().await;
    let request = machine.request();
    let signed = vault.signed("root", &request, NOW);
    let brought = |path: &Path| machine.import(path, AnotherRoot::Refused).unwrap_err();
    let asked = |path: &Path| vault.sign_at("root", path, NOW).unwrap_err();
    let (root, gone) = (vault.path("root/root.pem"), vault.path("gone.pem"));
    for (error, file, wanted) in [
        (brought(&request), &request, "`fender ca sign-intermediate`"),
        (brought(&root), &root, "`fender ca sign-intermediate`"),
        (brought(&gone), &gone, "No such file"),
        (asked(&signed), &signed, "offline/request.pem"),
        (asked(&gone), &gone, "No such file"),
    ] {
        let text = error.to_string();
        assert!(text.contains(&file.display().to_string()), "{text}");
        assert!(text.contains(wanted), "{text}");
        assert_eq!(error.exit_code(), 64, "{text}");
    }
}

#[tokio::test]
async fn nothing_is_taken_that_was_not_asked_for() {
    let vault = Vault::new();
    let world = founded(&vault).await;
    let theirs = vault.request(&PKCS_ECDSA_P256_SHA256, |_| {});
    let signed = vault.signed("root", &theirs, NOW);
    let refused = import(&world.path("data"), &signed, AnotherRoot::Refused, at(NOW)).unwrap_err();
    assert!(
        matches!(refused, OfflineError::NotAsked { .. }),
        "{refused}"
    );
}

/// What somebody laid under the courier's hands, at a replica that begins with a directory of its own.
#[tokio::test]
async fn another_root_is_published_once_somebody_said_that_it_shall_be() {
    let life = 40 * DAY;
    let vault = Vault::signing_for(life);
    vault.create("other", 10).unwrap();
    let world = founded(&vault).await;
    notice(&world, life / 2 + DAY).await;
    let request = offline(&world, "request.pem");
    eventually_patient(|| async { request.exists().then_some(()) }).await;
    let now = world.now();
    let signed = vault.signed("other", &request, now);
    import(&world.path("data"), &signed, AnotherRoot::Allowed, at(now)).unwrap();
    notice(&world, DAY).await;
    eventually_patient(|| async {
        let svid = world.attested("shop/orders").await;
        let told = world.subscribe(&svid, 0).await.next_trust().await.unwrap();
        (told.bundles[0].roots.len() == 2).then_some(())
    })
    .await;
}

#[tokio::test]
async fn what_is_brought_after_its_request_was_answered_stands_in_nobodys_way() {
    let life = 40 * DAY;
    let vault = Vault::signing_for(life);
    let world = founded(&vault).await;
    let before = world.attested("shop/orders").await;
    // A second `import` that was under way while the first was taken.
    fs::copy(vault.path("signed.pem"), offline(&world, "signed.pem")).unwrap();
    notice(&world, life / 2 + DAY).await;
    let request = offline(&world, "request.pem");
    eventually_patient(|| async { request.exists().then_some(()) }).await;
    assert!(!offline(&world, "signed.pem").exists());

    let now = world.now();
    let signed = vault.signed("root", &request, now);
    import(&world.path("data"), &signed, AnotherRoot::Refused, at(now)).unwrap();
    notice(&world, DAY).await;
    eventually_patient(|| async {
        let svid = world.attested("shop/orders").await;
        (svid.chain()[1] != before.chain()[1]).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_request_that_is_not_by_the_key_beside_it_is_made_anew() {
    let vault = Vault::new();
    let machine = Machine::new();
    machine.ask().await;
    let first = fs::read(machine.request()).unwrap();
    machine.ask().await;
    assert_eq!(fs::read(machine.request()).unwrap(), first, "it waits");
    fs::remove_file(machine.request()).unwrap();
    machine.ask().await;
    // The key is the second one's.
    fs::write(machine.request(), &first).unwrap();
    machine.ask().await;
    assert_ne!(fs::read(machine.request()).unwrap(), first);
    let signed = vault.signed("root", &machine.request(), NOW);
    machine.import(&signed, AnotherRoot::Refused).unwrap();
    machine.world().await.attested("shop/orders").await;
}
