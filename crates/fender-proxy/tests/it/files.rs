//! Certificates that lie in files beside the sidecar: shown by name, followed, kept while what replaces them does not fit.

use std::fs::{OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use fender_config::snapshot::{
    CertificateFiles, CertificateSource, ClientCertificate, Mtls, PortCertificate, Protocol,
};
use fender_proxy::Limits;
use fender_runtime::drain::Drain;
use fender_runtime::metrics::Exposition;
use rcgen::{KeyPair, SanType};
use rustls::ClientConfig;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::attacks::Gullible;
use crate::harness::{HOUR, NOW, PATIENCE, World, echo_app, inbound, params, soon};

const SHOP: &str = "shop.example.com";

/// Makes a pair for a name, and says what a client will be shown. No two end at the same time: so it is told which is served.
fn make(directory: &Path, name: &str) -> CertificateDer<'static> {
    static MADE: AtomicU64 = AtomicU64::new(0);
    make_until(
        directory,
        name,
        NOW + HOUR + MADE.fetch_add(1, Ordering::Relaxed),
    )
}

fn make_until(directory: &Path, name: &str, until: u64) -> CertificateDer<'static> {
    let mut params = params(&[], NOW - HOUR, until);
    params.subject_alt_names = vec![SanType::DnsName(name.try_into().unwrap())];
    let key = KeyPair::generate().unwrap();
    let made = params.self_signed(&key).unwrap();
    // As people should: nobody else can read it, from its first byte on.
    let mut options = OpenOptions::new();
    let options = options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = options.open(directory.join("key.pem")).unwrap();
    file.write_all(key.serialize_pem().as_bytes()).unwrap();
    std::fs::write(directory.join("chain.pem"), made.pem()).unwrap();
    made.der().clone()
}

fn pair(directory: &Path, names: &[&str]) -> PortCertificate {
    PortCertificate {
        source: CertificateSource::Files(CertificateFiles {
            certificate: directory.join("chain.pem"),
            key: directory.join("key.pem"),
        }),
        names: names.iter().map(|name| (*name).to_owned()).collect(),
    }
}

/// The leaf that a client is shown that asks for this name.
async fn shown(world: &World, name: &str) -> CertificateDer<'static> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Gullible))
        .with_no_client_auth();
    let stream = TcpStream::connect(world.address()).await.unwrap();
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let connecting = TlsConnector::from(Arc::new(config)).connect(name, stream);
    let stream = soon(connecting).await.unwrap();
    stream.get_ref().1.peer_certificates().unwrap()[0].clone()
}

async fn world(directory: &Path) -> World {
    showing(vec![pair(directory, &[SHOP])]).await
}

async fn showing(certificates: Vec<PortCertificate>) -> World {
    let tasks = Drain::new();
    let mut port = inbound(echo_app(&tasks).await, Protocol::Http);
    port.mtls = Mtls::Strict(ClientCertificate::Accept);
    port.certificates = certificates;
    World::start(vec![port], vec![], Limits::default())
}

/// Asks again whenever something else is told of the proxy.
async fn until(world: &World, what: &str, is: impl AsyncFn(&World) -> bool) {
    let mut running = world.running.clone();
    let told = async {
        while !is(world).await {
            assert!(running.changed().await, "{what}");
        }
    };
    let done = tokio::time::timeout(PATIENCE, told).await;
    assert!(done.is_ok(), "{what}");
}

#[tokio::test]
async fn a_pair_is_shown_to_who_asks_for_its_name_and_followed() {
    let directory = tempfile::tempdir().unwrap();
    let first = make(directory.path(), SHOP);
    let world = world(directory.path()).await;
    let own = shown(&world, "elsewhere.example.com").await;
    assert_eq!(shown(&world, SHOP).await, first);
    assert_ne!(own, first);

    let second = make(directory.path(), SHOP);
    until(&world, "the new pair is shown", async |world| {
        shown(world, SHOP).await == second
    })
    .await;

    // Half of a pair, another's name, nothing at all: the one before is kept, and it is said.
    std::fs::write(directory.path().join("key.pem"), "").unwrap();
    let told = |part: &'static str| {
        async move |world: &World| {
            let problem = world.running.status().problem;
            problem.is_some_and(|problem| problem.contains(part))
        }
    };
    until(
        &world,
        "half a pair is told",
        told("keeping the one before"),
    )
    .await;
    assert_eq!(shown(&world, SHOP).await, second);
    make(directory.path(), "other.example.com");
    until(&world, "a wrong name is told", told("shop.example.com")).await;
    assert_eq!(shown(&world, SHOP).await, second);
    std::fs::remove_file(directory.path().join("chain.pem")).unwrap();
    until(&world, "a missing file is told", told("chain.pem")).await;
    assert_eq!(shown(&world, SHOP).await, second);

    let third = make(directory.path(), SHOP);
    until(&world, "a pair that fits ends it", async |world| {
        world.running.status().problem.is_none() && shown(world, SHOP).await == third
    })
    .await;
}

#[tokio::test]
async fn a_pair_that_never_fitted_leaves_its_name_to_the_workloads_own() {
    let directory = tempfile::tempdir().unwrap();
    let world = world(directory.path()).await;
    let own = shown(&world, "elsewhere.example.com").await;
    assert_eq!(shown(&world, SHOP).await, own);
    let problem = async |world: &World| world.running.status().problem.is_some();
    until(&world, "it is told", problem).await;
    let made = make(directory.path(), SHOP);
    until(&world, "a pair that comes later is shown", async |world| {
        shown(world, SHOP).await == made
    })
    .await;
}

#[tokio::test]
async fn attack_a_key_that_others_can_read_is_not_served() {
    let directory = tempfile::tempdir().unwrap();
    make(directory.path(), SHOP);
    let key = directory.path().join("key.pem");
    std::fs::set_permissions(&key, Permissions::from_mode(0o644)).unwrap();
    let world = world(directory.path()).await;
    let own = shown(&world, "elsewhere.example.com").await;
    assert_eq!(shown(&world, SHOP).await, own);
    let told = async |world: &World| {
        let problem = world.running.status().problem;
        problem.is_some_and(|problem| problem.contains("mode 644") && problem.contains("chmod"))
    };
    until(&world, "who can read it is told", told).await;
    std::fs::set_permissions(&key, Permissions::from_mode(0o640)).unwrap();
    until(&world, "its group may", async |world| {
        shown(world, SHOP).await != own && world.running.status().problem.is_none()
    })
    .await;
}

#[tokio::test]
async fn one_that_ends_is_still_shown_and_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let made = make_until(directory.path(), SHOP, NOW + 60);
    let world = world(directory.path()).await;
    let told = || {
        let mut told = Exposition::default();
        world.running.tell(&mut told);
        told.text()
    };
    let end = format!("name=\"{SHOP}\",certificate=\"0\"}} {}", NOW + 60);
    assert!(told().contains(&end), "{}", told());
    assert_eq!(world.running.status().certificates[0].problem, None);
    world.clock.advance(std::time::Duration::from_secs(61));
    until(&world, "its end is told", async |world| {
        let problem = world.running.status().problem;
        problem.is_some_and(|problem| problem.contains("has expired"))
    })
    .await;
    // A client that does not mind is not to be told by an error who else lives here.
    assert_eq!(shown(&world, SHOP).await, made);
    let wrong = format!("problem{{name=\"{SHOP}\",certificate=\"0\"}} 1");
    assert!(told().contains(&wrong), "{}", told());
}

#[tokio::test]
async fn who_asks_for_nothing_known_is_shown_the_one_for_others_and_the_mesh_its_own() {
    let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let shop = make(one.path(), SHOP);
    let others = make(other.path(), "www.example.com");
    let world = showing(vec![pair(one.path(), &[SHOP]), pair(other.path(), &["*"])]).await;
    assert_eq!(shown(&world, SHOP).await, shop);
    assert_eq!(shown(&world, "www.example.com").await, others);
    assert_eq!(shown(&world, "elsewhere.example.com").await, others);
    // An address is never asked for by name.
    assert_eq!(shown(&world, "192.0.2.1").await, others);
    let own = world.svid.borrow().chain()[0].clone();
    assert_eq!(shown(&world, "mesh.test").await, own);
}
