//! What a control plane is after its process has ended, in order or not; and what its files give away.

use std::os::unix::fs::PermissionsExt as _;

use super::*;

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

/// Every byte below a directory.
fn bytes(directory: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut all = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => all.extend(bytes(&path)),
            false => all.push((path.clone(), fs::read(&path).unwrap())),
        }
    }
    all
}

fn holds(haystack: &[u8], needle: &[u8]) -> bool {
    haystack
        .windows(needle.len())
        .any(|window| window == needle)
}

#[tokio::test]
async fn a_restart_keeps_the_authority_the_tokens_the_documents_and_the_administrator() {
    let world = World::new().await;
    let token = world.token("shop/orders", 600).await.unwrap();
    let svid = world.attested("shop/inventory").await;
    let (pins, admin) = (world.running.ca_pins.clone(), world.admin_svid());

    let world = world.restart().await;
    assert_eq!(world.running.ca_pins, pins);
    assert_eq!(world.admin_svid().serial(), admin.serial(), "written once");
    world
        .attest(&token.secret, &NewKey::generate().unwrap(), ORDERS)
        .await
        .unwrap();
    assert_eq!(
        world
            .subscribe(&svid, 0)
            .await
            .next()
            .await
            .unwrap()
            .version,
        1
    );

    let world = world.restart().await;
    let spent = world
        .attest(&token.secret, &NewKey::generate().unwrap(), ORDERS)
        .await;
    assert_eq!(refused(spent), Code::TokenSpent);
}

#[tokio::test]
async fn versions_of_snapshots_grow_across_restarts() {
    let world = World::new().await;
    let inventory = world.attested("shop/inventory").await;
    world.apply(documents(world.directory.path(), "web")).await;
    let world = world.restart().await;
    let mut sidecar = world.subscribe(&inventory, 1).await;
    assert_eq!(sidecar.next().await.unwrap().version, 2);
    world.apply(documents(world.directory.path(), "shop")).await;
    assert_eq!(
        sidecar.next().await.unwrap().version,
        3,
        "what it was at 1 is not 1 again"
    );
}

#[tokio::test]
async fn what_was_answered_survives_a_process_that_ends_without_a_word() {
    let world = World::new().await;
    let token = world.token("shop/orders", 600).await.unwrap();
    let key = NewKey::generate().unwrap();
    let chain = world.attest(&token.secret, &key, ORDERS).await.unwrap();

    // The files as they are at this moment, which is all that a SIGKILL leaves.
    let copy = tempfile::tempdir().unwrap();
    let data = copy.path().join("data");
    fs::create_dir(&data).unwrap();
    for name in ["control.db", "control.db-wal", "key"] {
        fs::copy(world.path("data").join(name), data.join(name)).unwrap();
    }
    fs::create_dir(data.join("admin")).unwrap();
    for name in ["certificate.pem", "key.pem", "bundle.pem"] {
        fs::copy(
            world.running.admin_dir.join(name),
            data.join("admin").join(name),
        )
        .unwrap();
    }
    let (clock, drain) = (world.clock.clone(), Drain::new());
    let running = start(config(&data, None), clock.clone(), drain.clone())
        .await
        .unwrap();
    let survivor = World {
        directory: copy,
        clock,
        drain,
        running,
    };
    assert_eq!(
        survivor.attest(&token.secret, &key, ORDERS).await.unwrap(),
        chain
    );
}

#[tokio::test]
async fn attack_a_key_laid_in_a_data_directory_that_others_may_write_to_is_never_used() {
    use std::os::unix::fs::PermissionsExt as _;
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("data");
    fs::create_dir(&data).unwrap();
    for mode in [0o777, 0o770] {
        fs::set_permissions(&data, fs::Permissions::from_mode(mode)).unwrap();
        let documents = documents(directory.path(), "shop");
        let started = start(
            config(&data, Some(documents)),
            TestClock::new(at(NOW)),
            Drain::new(),
        )
        .await;
        let error = started.unwrap_err().to_string();
        assert!(error.contains("chmod 700"), "{error}");
        assert_eq!(fs::read_dir(&data).unwrap().count(), 0);
    }
}

#[tokio::test]
async fn two_control_planes_on_one_data_directory_are_refused() {
    let world = World::new().await;
    let config = config(&world.path("data"), None);
    let error = start(config, world.clock.clone(), Drain::new())
        .await
        .unwrap_err();
    assert!(
        matches!(error, StartError::DataDir(crate::DataDirError::Held { .. })),
        "{error}"
    );
}

#[tokio::test]
async fn keys_and_tokens_lie_on_disk_only_where_they_must_and_never_readable_by_others() {
    let world = World::new().await;
    let token = world.token("shop/orders", 600).await.unwrap();
    fs::write(world.path("smtp"), "hunter2-hunter2").unwrap();
    let svid = world.attested("shop/orders").await;
    let request = proto::CredentialRequest {
        name: "shop/smtp".to_owned(),
    };
    let mut client = DistributionClient::new(world.as_peer(&svid).await);
    client
        .watch_credential(request)
        .await
        .unwrap()
        .into_inner()
        .message()
        .await
        .unwrap()
        .unwrap();

    let data = world.path("data");
    assert_eq!((mode(&data), mode(&data.join("admin"))), (0o700, 0o700));
    for (path, content) in bytes(&data) {
        assert_eq!(mode(&path), 0o600, "{}", path.display());
        assert!(
            !holds(&content, &token.secret),
            "the token is in {}",
            path.display()
        );
        assert!(
            !holds(&content, b"hunter2-hunter2"),
            "the credential is in {}",
            path.display()
        );
        let hex: String = token
            .secret
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        assert!(
            !holds(&content, hex.as_bytes()),
            "the token is in {}",
            path.display()
        );
        let is_admin_key = path.ends_with("admin/key.pem");
        assert_eq!(
            holds(&content, b"PRIVATE KEY"),
            is_admin_key,
            "{}",
            path.display()
        );
        // PKCS#8 of an ECDSA key on P-256 begins with its algorithm identifier and version.
        let pkcs8 = [
            0x02, 0x01, 0x00, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01,
        ];
        assert!(
            !holds(&content, &pkcs8),
            "a private key in the clear is in {}",
            path.display()
        );
    }
}

#[tokio::test]
async fn a_database_without_its_key_does_not_start_and_says_why() {
    let world = World::new().await;
    let (data, clock) = (world.path("data"), world.clock.clone());
    world
        .drain
        .close(Deadline::after(Duration::from_secs(60)))
        .await;
    drop(world.running);

    fs::set_permissions(data.join("key"), fs::Permissions::from_mode(0o640)).unwrap();
    let error = start(config(&data, None), clock.clone(), Drain::new())
        .await
        .unwrap_err();
    assert!(
        matches!(
            error,
            StartError::DataDir(crate::DataDirError::Exposed { .. })
        ),
        "{error}"
    );

    fs::remove_file(data.join("key")).unwrap();
    let error = start(config(&data, None), clock, Drain::new())
        .await
        .unwrap_err();
    assert!(error.to_string().contains("key"), "{error}");
    assert!(
        !data.join("key").exists(),
        "no new key is made beside sealed ones"
    );
}

#[tokio::test]
async fn the_administrators_files_are_made_anew_beside_a_running_control_plane() {
    let world = World::new().await;
    let old = world.admin_svid();
    world.advance(Duration::from_secs(91 * 24 * 3600)).await;
    let expired = async {
        let channel = world.try_as_peer(&old).await.ok()?.channel;
        AdminClient::new(channel)
            .status(proto::StatusRequest::default())
            .await
            .ok()
    };
    assert!(expired.await.is_none());

    crate::reissue_admin(
        &world.path("data"),
        None,
        &crate::Sealing::DataDirectory,
        &crate::StorePlace::DataDir,
        None,
        world.clock.clone(),
    )
    .await
    .unwrap();
    assert_ne!(world.admin_svid().serial(), old.serial());
    world.status().await;
}

#[tokio::test]
async fn the_intermediate_is_made_anew_at_half_its_life_under_the_same_root() {
    let world = World::new().await;
    let before = world.status().await.authorities;
    let old = world.attested("shop/orders").await;
    world.clock.advance(Duration::from_secs(183 * 24 * 3600));
    crate::reissue_admin(
        &world.path("data"),
        None,
        &crate::Sealing::DataDirectory,
        &crate::StorePlace::DataDir,
        None,
        world.clock.clone(),
    )
    .await
    .unwrap();
    let world = world.restart().await;
    let after = world.status().await.authorities;
    assert_eq!((before.len(), after.len()), (2, 3));
    assert_eq!(before.last(), after.last(), "the root stays");
    let new = world.attested("shop/orders").await;
    assert_ne!(old.chain()[1], new.chain()[1]);
}

#[tokio::test]
async fn the_control_plane_is_believed_again_when_a_clock_that_was_ahead_is_put_right() {
    let world = World::new().await;
    world.advance(Duration::from_secs(2 * 24 * 3600)).await;
    world.clock.set(at(NOW));
    world.connect(world.pinned()).await.unwrap_err();
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(31)).await;
    tokio::time::resume();
    eventually(|| async { world.connect(world.pinned()).await.ok() }).await;
}

#[tokio::test]
async fn the_administrators_files_can_lie_apart_from_the_authoritys_keys() {
    let directory = tempfile::tempdir().unwrap();
    let (data, admin) = (
        directory.path().join("data"),
        directory.path().join("admin"),
    );
    let mut config = config(&data, None);
    config.foundation.admin_dir = Some(admin.clone());
    config.foundation.trust_domain = Some("acme.test".parse().unwrap());
    let running = start(config, TestClock::new(at(NOW)), Drain::new())
        .await
        .unwrap();
    assert_eq!(running.admin_dir, admin);
    assert!(admin.join("key.pem").exists() && admin.join("certificate.pem").exists());
    assert!(!data.join("admin").exists());
}
