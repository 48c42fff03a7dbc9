//! DESIGN §5 and §14: `init` founds once, gives the first administrator their key once, and touches nothing that is there.

use std::os::unix::fs::MetadataExt as _;

use super::*;
use crate::{Founded, init};

fn foundation(directory: &Path) -> Foundation {
    let mut config = config(&directory.join("data"), None);
    config.foundation.trust_domain = Some("acme.test".parse().unwrap());
    config.foundation
}

async fn founded(foundation: Foundation) -> Result<Founded, StartError> {
    init(foundation, TestClock::new(at(NOW))).await
}

#[tokio::test]
async fn what_was_founded_is_what_is_served_afterwards() {
    let directory = tempfile::tempdir().unwrap();
    let mut foundation = foundation(directory.path());
    foundation.documents = Some(vec![Source {
        name: "mesh.yaml".to_owned(),
        text: documents(directory.path(), "shop"),
    }]);
    let founded = founded(foundation).await.unwrap();
    assert_eq!((founded.revision, founded.workloads), (1, 3));
    assert_eq!(
        founded.admin.as_str(),
        "spiffe://acme.test/fender/admin/first"
    );
    assert_eq!(founded.admin_until.as_secs(), NOW + 90 * 24 * 3600);
    let key = founded.admin_dir.join("key.pem");
    let before = (
        fs::read(&key).unwrap(),
        fs::metadata(&key).unwrap().mode() & 0o777,
    );
    assert_eq!(before.1, 0o600);

    let (clock, drain) = (TestClock::new(at(NOW)), Drain::new());
    let config = config(&directory.path().join("data"), None);
    let running = start(config, clock.clone(), drain.clone()).await.unwrap();
    let pins: Vec<_> = founded.ca_pins.iter().map(|(pin, _)| *pin).collect();
    assert_eq!(running.ca_pins, pins);
    assert_eq!(fs::read(&key).unwrap(), before.0, "there is one key");
    let world = World {
        directory,
        clock,
        drain,
        running,
    };
    assert_eq!(world.status().await.workloads.len(), 3);
    world.attested("shop/orders").await;
}

#[tokio::test]
async fn attack_a_second_founding_is_refused_and_leaves_key_and_authority_as_they_are() {
    let directory = tempfile::tempdir().unwrap();
    let first = founded(foundation(directory.path())).await.unwrap();
    let read = || {
        ["certificate.pem", "key.pem", "bundle.pem"]
            .map(|name| fs::read(first.admin_dir.join(name)).unwrap())
    };
    let before = read();
    for trust_domain in ["acme.test", "evil.test"] {
        let mut again = foundation(directory.path());
        again.trust_domain = Some(trust_domain.parse().unwrap());
        let error = founded(again).await.unwrap_err();
        assert!(
            matches!(&error, StartError::Founded { trust_domain } if trust_domain.as_str() == "acme.test"),
            "{error}"
        );
        assert!(error.to_string().contains("--reissue-admin"), "{error}");
        assert_eq!(error.exit_code(), 64);
    }
    assert_eq!(read(), before);
}

#[tokio::test]
async fn attack_a_founding_does_not_overwrite_another_administrators_key() {
    let directory = tempfile::tempdir().unwrap();
    let other = founded(foundation(directory.path())).await.unwrap();
    let key = fs::read(other.admin_dir.join("key.pem")).unwrap();
    let mut second = foundation(directory.path());
    second.data_dir = directory.path().join("second");
    second.admin_dir = Some(other.admin_dir.clone());
    let error = founded(second.clone()).await.unwrap_err();
    assert!(
        matches!(error, StartError::AdminFilesThere { .. }),
        "{error}"
    );
    assert_eq!(fs::read(other.admin_dir.join("key.pem")).unwrap(), key);

    // Nothing was founded there either.
    second.admin_dir = Some(directory.path().join("second-admin"));
    founded(second).await.unwrap();
}

#[tokio::test]
async fn a_founding_needs_a_trust_domain_and_documents_that_are_right() {
    let directory = tempfile::tempdir().unwrap();
    let mut nothing = foundation(directory.path());
    nothing.trust_domain = None;
    assert!(matches!(
        founded(nothing).await.unwrap_err(),
        StartError::NoMesh
    ));

    let mut wrong = foundation(directory.path());
    wrong.documents = Some(vec![Source {
        name: "mesh.yaml".to_owned(),
        text: MESH.replace("trustDomain", "trustDomian"),
    }]);
    let error = founded(wrong).await.unwrap_err();
    assert!(matches!(error, StartError::Documents { .. }), "{error}");
    // And then it can be done right in the same place.
    founded(foundation(directory.path())).await.unwrap();
}

#[tokio::test]
async fn a_founding_that_was_cut_short_goes_on() {
    let directory = tempfile::tempdir().unwrap();
    founded(foundation(directory.path())).await.unwrap();
    // As after a crash between the files on disk and the record of them.
    let database = directory.path().join("data/control.db");
    let mut connection = sqlx::ConnectOptions::connect(
        &sqlx::sqlite::SqliteConnectOptions::new().filename(&database),
    )
    .await
    .unwrap();
    sqlx::query("UPDATE mesh SET admin_made = NULL")
        .execute(&mut connection)
        .await
        .unwrap();
    sqlx::Connection::close(connection).await.unwrap();
    let again = founded(foundation(directory.path())).await.unwrap();
    assert_eq!(again.revision, 1);
    let error = founded(foundation(directory.path())).await.unwrap_err();
    assert!(matches!(error, StartError::Founded { .. }));
}
