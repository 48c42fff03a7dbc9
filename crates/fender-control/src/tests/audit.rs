//! DESIGN §5: every administrative call is in the log, and the log shows when it was changed.

use sqlx::{ConnectOptions as _, Connection as _, SqliteConnection};

use super::*;
use crate::Chain;
use crate::store::audit::newest;

async fn tamper(world: &World) -> SqliteConnection {
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(world.path("data/control.db"));
    options.connect().await.unwrap()
}

#[tokio::test]
async fn every_administrative_call_is_in_the_log_with_who_and_what_became_of_it() {
    let world = World::new().await;
    world.token("shop/orders", 60).await.unwrap();
    world.token("shop/nobody", 60).await.unwrap_err();
    world.status().await;
    world.apply("nonsense".to_owned()).await;
    world.apply(documents(world.directory.path(), "web")).await;
    let orders = world.attested("shop/orders").await;
    let mut intruder = AdminClient::new(world.as_peer(&orders).await);
    intruder
        .status(proto::StatusRequest::default())
        .await
        .unwrap_err();

    let log = eventually(|| async {
        let log = newest(world.running.reader(), 100).await.unwrap();
        log.iter().any(|entry| entry[0] == ORDERS).then_some(log)
    })
    .await;
    let told: Vec<_> = log
        .iter()
        .rev()
        .map(|[actor, action, _, outcome, _]| {
            format!("{} {action} {outcome}", actor.rsplit('/').next().unwrap())
        })
        .collect();
    assert_eq!(
        told,
        [
            "control load-documents done",
            "control initialize done",
            "first create-token done",
            "first create-token refused",
            "first status done",
            "first apply refused",
            "first apply done",
            "first create-token done",
            "orders any-administration refused",
        ]
    );
    assert!(matches!(
        world.running.verify_audit_log().await.unwrap(),
        Chain::Whole {
            entries: 9,
            head: Some(_)
        }
    ));
}

#[tokio::test]
async fn a_changed_a_removed_and_an_inserted_entry_all_show() {
    for attack in [
        "UPDATE audit SET detail = 'nothing happened' WHERE sequence = 3",
        "DELETE FROM audit WHERE sequence = 3",
        "UPDATE audit SET sequence = -sequence WHERE sequence IN (3, 4)",
        "UPDATE audit SET hash = (SELECT hash FROM audit WHERE sequence = 2) WHERE sequence = 3",
    ] {
        let world = World::new().await;
        for _ in 0..5 {
            world.status().await;
        }
        let mut db = tamper(&world).await;
        assert!(
            sqlx::query(attack).execute(&mut db).await.is_err(),
            "the schema itself refuses: {attack}"
        );
        for trigger in [
            "DROP TRIGGER audit_is_not_updated",
            "DROP TRIGGER audit_is_not_deleted",
        ] {
            sqlx::query(trigger).execute(&mut db).await.unwrap();
        }
        sqlx::query(attack).execute(&mut db).await.unwrap();
        db.close().await.unwrap();
        assert!(
            matches!(
                world.running.verify_audit_log().await.unwrap(),
                Chain::Broken { sequence: 1 | 3 }
            ),
            "{attack}"
        );
    }
}

#[tokio::test]
async fn an_intruder_cannot_fill_the_log() {
    let world = World::new().await;
    let orders = world.attested("shop/orders").await;
    let mut intruder = AdminClient::new(world.as_peer(&orders).await);
    for _ in 0..crate::admin::INTRUSIONS + 20 {
        intruder
            .status(proto::StatusRequest::default())
            .await
            .unwrap_err();
    }
    let world = world.restart().await;
    let log = newest(world.running.reader(), 1000).await.unwrap();
    let told = log.iter().filter(|entry| entry[0] == ORDERS).count();
    assert_eq!(told, usize::try_from(crate::admin::INTRUSIONS).unwrap());
}

#[tokio::test]
async fn the_log_is_told_in_pages_to_those_who_hold_security_and_is_verified_by_whoever_reads_it() {
    let world = World::new().await;
    for _ in 0..300 {
        world.status().await;
    }
    let mut admin = world.admin().await;
    let mut chain = fender_api::audit::Chain::default();
    let mut pages = 0;
    loop {
        let request = proto::AuditLogRequest {
            after: chain.entries(),
            ..proto::AuditLogRequest::default()
        };
        let page = admin.audit_log(request).await.unwrap().into_inner().entries;
        if page.is_empty() {
            break;
        }
        pages += 1;
        for entry in &page {
            chain.follow(entry).unwrap();
        }
    }
    // The founding, the calls, and the reading of the log itself, once.
    assert_eq!((pages, chain.entries()), (2, 2 + 300 + 1));

    let request = proto::AuditLogRequest {
        last: 2,
        ..proto::AuditLogRequest::default()
    };
    let told = admin.audit_log(request).await.unwrap().into_inner().entries;
    let told: Vec<_> = told
        .iter()
        .map(|entry| (entry.sequence, entry.action.as_str()))
        .collect();
    assert_eq!(told, [(303, "audit-log"), (304, "audit-log")]);
    let request = proto::AuditLogRequest {
        since_unix: i64::MAX,
        ..proto::AuditLogRequest::default()
    };
    let later = admin.audit_log(request).await.unwrap().into_inner();
    assert_eq!(later.entries, []);
}

#[tokio::test]
async fn attack_reading_from_the_middle_of_a_list_does_not_go_unrecorded() {
    let world = World::new().await;
    let read = async |after| {
        let request = proto::AuditLogRequest {
            after,
            ..proto::AuditLogRequest::default()
        };
        let answer = world.admin().await.audit_log(request).await.unwrap();
        answer.into_inner().entries
    };
    let page = read(1).await;
    let last = page.last().unwrap();
    assert_eq!(last.action, "audit-log");
    assert!(
        last.detail.starts_with("from behind 1; "),
        "{}",
        last.detail
    );
    // Where it ended it goes on, and is told of once.
    let end = last.sequence;
    assert!(read(end).await.is_empty());
    // Whoever asks again begins another list.
    let page = read(end).await;
    assert_eq!(page.len(), 1);
    let told = format!("from behind {end}; ");
    assert!(page[0].detail.starts_with(&told), "{}", page[0].detail);

    let request = proto::StatusRequest {
        after: "shop/inventory".to_owned(),
        ..proto::StatusRequest::default()
    };
    world.admin().await.status(request).await.unwrap();
    let page = read(end + 1).await;
    let status = page.iter().find(|entry| entry.action == "status").unwrap();
    assert!(status.detail.starts_with("from behind shop/inventory; "));
}
