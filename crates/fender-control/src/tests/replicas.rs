//! Several control planes over one PostgreSQL: what they agree on, what is each one's own, and who is refused.

use std::os::unix::fs::PermissionsExt as _;
use std::sync::{Mutex, OnceLock, Weak};

use fender_api::proto::control::v1::credential_value::State;
use fender_tests::postgres::{Durability, Postgres};

use super::credentials::reported;
use super::sources::{next, watch};
use super::*;
use crate::ReplicaName;
use crate::store::audit::Chain;

/// One server for all tests that run at the same time.
struct Server(Postgres);

impl Server {
    fn shared() -> Arc<Self> {
        static RUNNING: OnceLock<Mutex<Weak<Server>>> = OnceLock::new();
        let mut running = RUNNING.get_or_init(Mutex::default).lock().unwrap();
        if let Some(server) = running.upgrade() {
            return server;
        }
        let server = Arc::new(Self(Postgres::start(Durability::None)));
        *running = Arc::downgrade(&server);
        server
    }
}

/// An empty database, and a sealing key for all replicas over it.
struct Mesh {
    server: Arc<Server>,
    database: String,
    directory: TempDir,
    clock: Arc<TestClock>,
}

impl Mesh {
    fn new(database: &str) -> Self {
        let server = Server::shared();
        server
            .0
            .sql("postgres", &format!("CREATE DATABASE {database}"));
        let mesh = Self {
            server,
            database: database.to_owned(),
            directory: tempfile::tempdir().unwrap(),
            clock: TestClock::new(at(NOW)),
        };
        mesh.sealing_key("sealing", 7);
        mesh
    }

    fn sealing_key(&self, name: &str, byte: u8) -> crate::Sealing {
        let path = self.directory.path().join(name);
        fs::write(&path, [byte; 32]).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        crate::Sealing::File(path)
    }

    fn config(&self, name: &str) -> ControlConfig {
        let documents = documents(self.directory.path(), "shop");
        let store = crate::Postgres {
            url: self.server.0.url(&self.database),
            password_file: None,
            roots: None,
            certificate: None,
        };
        let mut config = config(&self.directory.path().join(name), Some(documents));
        config.foundation.store = crate::StorePlace::Postgres(store);
        config.foundation.sealing = crate::Sealing::File(self.directory.path().join("sealing"));
        config
    }

    async fn start(&self, config: ControlConfig) -> Result<(Running, Drain), StartError> {
        let drain = Drain::new();
        let running = start(config, self.clock.clone(), drain.clone()).await?;
        Ok((running, drain))
    }

    fn sql(&self, statement: &str) -> String {
        self.server.0.sql(&self.database, statement)
    }
}

/// A replica as its clients see it.
fn world(mesh: &Mesh, (mut running, drain): (Running, Drain), admin_dir: &Path) -> World {
    running.admin_dir = admin_dir.to_owned();
    World {
        directory: tempfile::tempdir().unwrap(),
        clock: mesh.clock.clone(),
        drain,
        running,
    }
}

async fn end((running, drain): (Running, Drain)) {
    drop(running);
    assert!(drain.close(Deadline::after(Duration::from_secs(60))).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_that_found_a_mesh_at_once_agree_on_everything_but_their_intermediates() {
    const REPLICAS: usize = 5;
    let mesh = Arc::new(Mesh::new("founding"));
    let mut starts = tokio::task::JoinSet::new();
    for number in 0..REPLICAS {
        let mesh = Arc::clone(&mesh);
        starts.spawn(async move {
            let config = mesh.config(&format!("data{number}"));
            mesh.start(config).await.unwrap()
        });
    }
    let replicas = starts.join_all().await;
    let (first, _) = &replicas[0];
    for (running, _) in &replicas {
        assert_eq!(running.trust_domain.as_str(), "acme.test");
        assert_eq!(running.ca_pins, first.ca_pins);
        assert_eq!(running.revision, 1);
    }
    assert_eq!(first.ca_pins.len(), 1, "one root");
    let admins = (0..REPLICAS)
        .map(|number| mesh.directory.path().join(format!("data{number}/admin")))
        .filter(|admin| admin.join("certificate.pem").exists());
    assert_eq!(admins.count(), 1, "one first administrator");
    let count = |what: &str| mesh.sql(&format!("SELECT count(*) FROM {what}"));
    assert_eq!(count("revisions"), "1");
    assert_eq!(count("authorities WHERE role = 'root'"), "1");
    assert_eq!(count("replicas"), REPLICAS.to_string());
    let own = "(SELECT DISTINCT holder FROM authorities WHERE role = 'intermediate') AS own";
    assert_eq!(count(own), REPLICAS.to_string());
    // Each signed its own certificate, with the intermediate that is its own.
    let signed = "(SELECT DISTINCT authority FROM certificates WHERE identity LIKE '%/fender/control') AS signed";
    assert_eq!(count(signed), REPLICAS.to_string());
    assert!(matches!(
        first.verify_audit_log().await.unwrap(),
        Chain::Whole { .. }
    ));
    for replica in replicas {
        end(replica).await;
    }
    assert_eq!(count("replicas"), "0", "they have left in order");
}

#[tokio::test]
async fn a_replica_keeps_its_name_and_its_intermediate_across_a_restart() {
    let mesh = Mesh::new("restarted");
    let first = mesh.start(mesh.config("data")).await.unwrap();
    let name = first.0.replica.clone();
    let made = || mesh.sql("SELECT count(*) FROM authorities");
    assert_eq!(made(), "2");
    end(first).await;
    let again = mesh.start(mesh.config("data")).await.unwrap();
    assert_eq!((&again.0.replica, made()), (&name, "2".to_owned()));

    let mut named = mesh.config("data2");
    named.foundation.replica = Some("control-2".parse().unwrap());
    let named = mesh.start(named).await.unwrap();
    assert_eq!(named.0.replica.as_str(), "control-2");
    assert_eq!(made(), "3");
    end(again).await;
    end(named).await;
}

#[tokio::test]
async fn a_replica_with_another_sealing_key_is_told_so_at_once_and_makes_nothing() {
    let mesh = Mesh::new("sealing");
    let first = mesh.start(mesh.config("data")).await.unwrap();
    let mut other = mesh.config("data2");
    other.foundation.sealing = mesh.sealing_key("other", 8);
    let error = mesh.start(other).await.unwrap_err();
    assert!(matches!(error, StartError::OtherSealingKey), "{error}");
    assert!(error.to_string().contains("--sealing-key-file"));
    assert_eq!(error.exit_code(), 64);

    // One that has none of its own is not given a fresh one.
    let mut none = mesh.config("data3");
    none.foundation.sealing = crate::Sealing::DataDirectory;
    let error = mesh.start(none).await.unwrap_err().to_string();
    assert!(error.contains("--sealing-key-file"), "{error}");
    assert!(!mesh.directory.path().join("data3/key").exists());
    assert_eq!(mesh.sql("SELECT count(*) FROM authorities"), "2");
    end(first).await;
}

#[tokio::test]
async fn attack_a_second_process_under_the_name_of_a_living_replica_is_refused() {
    let mesh = Mesh::new("named");
    let name: ReplicaName = "control-1".parse().unwrap();
    let config = |data| {
        let mut config = mesh.config(data);
        config.foundation.replica = Some(name.clone());
        config
    };
    let first = mesh.start(config("data")).await.unwrap();
    let error = mesh.start(config("data2")).await.unwrap_err();
    assert!(
        matches!(&error, StartError::NameTaken { name, .. } if name.as_str() == "control-1"),
        "{error}"
    );

    // Once it is silent its name is free, whatever clock anybody has.
    mesh.sql("UPDATE replicas SET seen_at = seen_at - 3600");
    let second = mesh.start(config("data2")).await.unwrap();
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(6)).await;
    tokio::time::resume();
    Deadline::after(Duration::from_secs(20))
        .bound(first.0.superseded())
        .await
        .expect("the one before finds out and ends");
    end(first).await;
    assert_eq!(mesh.sql("SELECT count(*) FROM replicas"), "1");
    end(second).await;
}

#[tokio::test]
async fn the_first_administrator_is_made_by_another_replica_if_the_one_that_undertook_it_died() {
    let mesh = Mesh::new("undertaken");
    let first = mesh.start(mesh.config("data")).await.unwrap();
    // As it is after a crash between undertaking it and having done it.
    mesh.sql("UPDATE mesh SET admin_made = NULL");
    let second = mesh.start(mesh.config("data2")).await.unwrap();
    assert!(
        !second.0.admin_dir.exists(),
        "the first may be about to do it"
    );
    end(first).await;
    end(second).await;
    let third = mesh.start(mesh.config("data3")).await.unwrap();
    assert!(third.0.admin_dir.join("certificate.pem").exists());
    end(third).await;
}

#[tokio::test]
async fn a_listener_on_every_address_needs_a_url_for_the_other_replicas() {
    let mesh = Mesh::new("everywhere");
    let config = ControlConfig {
        listen: "0.0.0.0:0".parse().unwrap(),
        ..mesh.config("data")
    };
    let error = mesh.start(config.clone()).await.unwrap_err();
    assert!(error.to_string().contains("--replica-url"), "{error}");
    let config = ControlConfig {
        replica_url: Some("https://control-1.internal:7443".parse().unwrap()),
        ..config
    };
    let replica = mesh.start(config).await.unwrap();
    assert_eq!(
        mesh.sql("SELECT url FROM replicas"),
        "https://control-1.internal:7443"
    );
    end(replica).await;
}

/// Two replicas, with their one administrator.
async fn pair(database: &str) -> (Mesh, World, World) {
    let mesh = Mesh::new(database);
    let named = |name: &str| {
        let mut config = mesh.config(name);
        config.foundation.replica = Some(name.parse().unwrap());
        config
    };
    let one = mesh.start(named("one")).await.unwrap();
    let two = mesh.start(named("two")).await.unwrap();
    let admin = one.0.admin_dir.clone();
    let (one, two) = (world(&mesh, one, &admin), world(&mesh, two, &admin));
    (mesh, one, two)
}

async fn stop(world: World) {
    end((world.running, world.drain)).await;
}

fn replica<'a>(status: &'a proto::StatusResponse, name: &str) -> &'a proto::ReplicaStatus {
    status
        .replicas
        .iter()
        .find(|replica| replica.name == name)
        .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_status_shows_who_is_connected_to_any_replica_and_names_one_that_is_silent() {
    let (mesh, one, two) = pair("status").await;
    let orders = one.attested("shop/orders").await;
    let inventory = one.attested("shop/inventory").await;
    let _here = one.subscribe(&orders, 0).await.next().await.unwrap();
    let mut here = one.subscribe(&orders, 0).await;
    let mut there = two.subscribe(&inventory, 0).await;
    here.next().await.unwrap();
    there.next().await.unwrap();
    let connected = |status: &proto::StatusResponse, name: &str| {
        let workload = status
            .workloads
            .iter()
            .find(|workload| workload.name == name)
            .unwrap();
        let sidecars = workload.sidecars.iter();
        sidecars
            .map(|sidecar| sidecar.replica.clone())
            .collect::<Vec<_>>()
    };
    for asked in [&one, &two] {
        let status = asked.status().await;
        assert!(connected(&status, "shop/orders").contains(&"one".to_owned()));
        assert_eq!(connected(&status, "shop/inventory"), ["two"]);
        let problems: Vec<_> = status.replicas.iter().map(|it| &it.problem).collect();
        assert_eq!(problems, ["", ""]);
        assert_eq!(
            replica(&status, "two").here,
            std::ptr::eq(asked, &two),
            "it says who answers"
        );
    }

    // And what it holds, compared with what the replica gives to which it is connected.
    let ledger = mesh.directory.path().join("ledger");
    fs::write(ledger, "s3cret").unwrap();
    let mut values = watch(&two, &inventory, "shop/ledger").await.unwrap();
    let State::Value(value) = next(&mut values).await else {
        panic!("a value")
    };
    let used = proto::CredentialInUse {
        name: "shop/ledger".to_owned(),
        generation: value.generation.clone(),
        ..Default::default()
    };
    there.report(proto::report::Kind::Credential(used)).await;
    let told = reported(&one, "shop/ledger", &value.generation).await;
    assert_eq!(told.current, value.generation);

    // One that is dead and not yet silent cannot be reached, and is not left out without a word.
    two.drain.force();
    drop(there);
    mesh.sql("INSERT INTO replicas SELECT 'three', home, run, 'https://127.0.0.1:1', version, started_at, seen_at FROM replicas WHERE name = 'one'");
    let status = one.status().await;
    let unreachable = &replica(&status, "three").problem;
    assert!(unreachable.contains("cannot be reached"), "{unreachable}");
    mesh.sql("UPDATE replicas SET seen_at = seen_at - 100 WHERE name = 'three'");
    let status = one.status().await;
    let silent = &replica(&status, "three").problem;
    assert!(silent.starts_with("silent for 10"), "{silent}");
    stop(one).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_accepts_and_says_nothing_is_named_in_time() {
    let (mesh, one, two) = pair("hanging").await;
    let mute = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}", mute.local_addr().unwrap());
    mesh.sql(&format!(
        "UPDATE replicas SET url = '{url}' WHERE name = 'two'"
    ));
    let status = Deadline::after(Duration::from_secs(30))
        .bound(one.status())
        .await
        .expect("the status does not hang");
    let problem = &replica(&status, "two").problem;
    assert!(problem.contains("did not answer"), "{problem}");
    assert!(!status.workloads.is_empty(), "what is known is told");
    stop(one).await;
    stop(two).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attack_nobody_but_the_control_plane_is_told_who_is_connected() {
    use proto::replicas_client::ReplicasClient;
    let (_mesh, one, two) = pair("curious").await;
    let orders = one.attested("shop/orders").await;
    let request = proto::ConnectedRequest {
        credentials: Vec::new(),
        workloads: vec!["shop/orders".to_owned()],
    };
    for channel in [
        one.as_peer(&orders).await,
        one.as_peer(&one.admin_svid()).await,
    ] {
        let answer = ReplicasClient::new(channel)
            .connected(request.clone())
            .await;
        assert_eq!(refused(answer.map(drop)), Code::Denied);
    }
    let anonymous = one.anonymous().await.channel;
    let answer = ReplicasClient::new(anonymous).connected(request).await;
    assert_eq!(refused(answer.map(drop)), Code::NotAuthenticated);
    stop(one).await;
    stop(two).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_revoked_at_one_replica_is_refused_and_announced_at_the_other_with_one_number() {
    let (_mesh, one, two) = pair("revoked").await;
    let orders = one.attested("shop/orders").await;
    let inventory = one.attested("shop/inventory").await;
    let (mut here, mut there) = (
        one.subscribe(&inventory, 0).await,
        two.subscribe(&inventory, 0).await,
    );
    let request = proto::RevokeRequest {
        what: Some(proto::revoke_request::What::Workload(
            "shop/orders".to_owned(),
        )),
        reason: "stolen".to_owned(),
        myself: false,
    };
    one.admin().await.revoke(request).await.unwrap();
    let told = Deadline::after(Duration::from_secs(20))
        .bound(agreed(&mut here, &mut there))
        .await
        .expect("both are told");
    assert_eq!(told.0, told.1, "the same under the same number");
    let renewed = IdentityClient::new(two.as_peer(&orders).await)
        .renew(proto::RenewRequest {
            csr: NewKey::generate()
                .unwrap()
                .csr_der(&ORDERS.parse().unwrap())
                .unwrap(),
            expired: None,
        })
        .await;
    assert!(renewed.is_err(), "{renewed:?}");
    stop(one).await;
    stop(two).await;
}

/// What two sidecars were told once both know of a revocation by the same number. Lists that other verifiers read follow
/// it under numbers of their own.
async fn agreed(here: &mut Sidecar, there: &mut Sidecar) -> (proto::Trust, proto::Trust) {
    let (mut one, mut two) = (proto::Trust::default(), proto::Trust::default());
    loop {
        let denies = |trust: &proto::Trust| {
            let denials = trust.denials.as_ref();
            denials.is_some_and(|denials| !denials.rules.is_empty())
        };
        if denies(&one) && one.version == two.version {
            return (one, two);
        }
        let (latest, update) = tokio::select! {
            update = here.update() => (&mut one, update.unwrap()),
            update = there.update() => (&mut two, update.unwrap()),
        };
        if let proto::update::Kind::Trust(bytes) = update {
            *latest = proto::Trust::decode(bytes).unwrap();
        }
    }
}
