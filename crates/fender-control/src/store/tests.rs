//! The writer's promises, and the bounds of what is kept.

use std::time::Duration;

use super::*;
use crate::evidence::Provenance;
use crate::store::audit::{Action, Chain, Entry, Outcome};
use crate::store::certificates::{CertificateRow, More};
use crate::store::decisions::Decision;
use rustls::pki_types::UnixTime;

mod postgres;
mod revisions;

use revisions::{
    a_change_of_one_document_stores_one_document, every_revision_reads_back_as_it_was_applied,
    revisions_are_forgotten_when_they_are_old_and_many_and_nothing_needs_them,
};
mod revocation;

use revocation::*;

const DAY: u64 = 24 * 3600;

fn at(seconds: u64) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(seconds))
}

/// Runs each promise on both databases.
macro_rules! on_both {
    ($($promise:ident)*) => {
        mod on_sqlite {
            $(#[tokio::test]
            async fn $promise() {
                let directory = tempfile::tempdir().unwrap();
                let drain = super::Drain::new();
                let path = directory.path().join("control.db");
                let store = super::Store::open(&path, &drain).await.unwrap();
                super::$promise(store, drain).await;
            })*
        }

        mod on_postgres {
            $(#[tokio::test]
            async fn $promise() {
                let server = super::postgres::Server::shared();
                let drain = super::Drain::new();
                let store = server.store(&server.database(), &drain).await;
                super::$promise(store, drain).await;
            })*
        }
    };
}

on_both! {
    a_change_that_fails_undoes_itself_and_nothing_else_of_its_batch
    a_transaction_lost_under_a_batch_makes_none_of_its_changes_and_says_so_to_all
    a_change_whose_caller_went_away_is_made_all_the_same
    hundreds_of_issuances_that_wait_together_share_one_transaction
    a_serial_is_never_recorded_twice
    decisions_are_kept_for_seven_days
    one_workloads_decisions_never_crowd_out_anothers
    certificates_and_tokens_are_forgotten_when_nobody_can_use_them_any_more
    the_writer_ends_when_nobody_can_reach_it_and_not_before
    every_revision_reads_back_as_it_was_applied
    a_change_of_one_document_stores_one_document
    attack_a_longer_grace_does_not_bring_back_what_was_revoked
    attack_thousands_that_ended_are_revoked_without_a_row_being_touched
    attack_a_rule_stays_as_long_as_anything_it_ended_is_on_record
    a_node_is_revoked_with_its_agent_and_all_that_began_with_its_word
    attack_a_node_that_obtained_more_than_a_list_takes_is_revoked_all_the_same
    attack_what_a_revoked_agent_was_obtaining_is_undone
    a_revoked_identity_takes_its_join_tokens_with_it
    attack_what_a_revoked_administrator_began_comes_to_nothing
    a_token_is_listed_by_the_beginning_of_its_hash_and_withdrawn_by_it
    revisions_are_forgotten_when_they_are_old_and_many_and_nothing_needs_them
}

async fn count(store: &Store, sql: &'static str) -> i64 {
    let rows = query(sql).all(store.reads()).await.unwrap();
    rows.first().unwrap().get("n").unwrap()
}

/// Writes a decision and then perhaps fails.
struct Note {
    id: u32,
    then: Then,
}

enum Then {
    Well,
    Fails,
}

impl Command for Note {
    type Output = u32;

    async fn run(&self, db: &mut Connection) -> Result<u32, StoreError> {
        let decision = decision(self.id, "shop/orders");
        decisions::Record {
            at: at(1),
            decisions: vec![decision],
        }
        .run(db)
        .await?;
        match self.then {
            Then::Well => Ok(self.id),
            Then::Fails => Err(StoreError::Damaged("test")),
        }
    }
}

fn decision(id: u32, workload: &str) -> Decision {
    Decision {
        id: format!("{id:032x}"),
        workload: workload.parse().unwrap(),
        record: vec![1, 2, 3],
    }
}

fn certificate(serial: u64, not_after: u64) -> CertificateRow {
    let serial = fender_identity::Serial::from_bytes(&serial.to_be_bytes()).unwrap();
    CertificateRow {
        identity: "spiffe://acme.test/ns/shop/sa/orders".parse().unwrap(),
        leaf: vec![1].into(),
        authority: "01".parse().unwrap(),
        key_sha256: [0; 32],
        validity: fender_identity::Validity {
            not_before: at(0),
            not_after: at(not_after),
        },
        provenance: Provenance::default(),
        serial,
    }
}

async fn with_authority(store: &Store) {
    let row = authorities::AuthorityRow {
        serial: "01".parse().unwrap(),
        role: authorities::Role::Root,
        root: None,
        holder: None,
        certificate: vec![1].into(),
        path: Vec::new(),
        sealed_key: Some(vec![1]),
        validity: fender_identity::Validity {
            not_before: at(0),
            not_after: at(1000 * DAY),
        },
        signs_from: at(0),
    };
    let add = authorities::Succeed {
        known_roots: std::collections::BTreeSet::new(),
        rows: vec![row],
        entry: None,
    };
    let added = store.write(add).await.unwrap();
    assert_eq!(added, authorities::Succeeded::Added);
}

async fn a_change_that_fails_undoes_itself_and_nothing_else_of_its_batch(store: Store, _: Drain) {
    let before = store.reader().commits();
    // Queued together before the writer runs, so committed together.
    let (first, failed, last) = tokio::join!(
        store.write(Note {
            id: 1,
            then: Then::Well
        }),
        store.write(Note {
            id: 2,
            then: Then::Fails
        }),
        store.write(Note {
            id: 3,
            then: Then::Well
        }),
    );
    assert_eq!((first.unwrap(), last.unwrap()), (1, 3));
    assert!(matches!(failed.unwrap_err(), StoreError::Damaged("test")));
    assert_eq!(
        count(&store, "SELECT count(*) AS n FROM decisions").await,
        2
    );
    assert_eq!(store.reader().commits() - before, 1);
}

/// Holds the writer, inside a transaction, until it is let go.
struct Hold {
    entered: Arc<tokio::sync::Semaphore>,
    release: Arc<tokio::sync::Semaphore>,
}

impl Command for Hold {
    type Output = ();

    async fn run(&self, _: &mut Connection) -> Result<(), StoreError> {
        self.entered.add_permits(1);
        let _released = self.release.acquire().await;
        Ok(())
    }
}

async fn hundreds_of_issuances_that_wait_together_share_one_transaction(store: Store, _: Drain) {
    const ISSUANCES: u32 = 400;
    with_authority(&store).await;
    let (entered, release) = (
        Arc::new(tokio::sync::Semaphore::new(0)),
        Arc::new(tokio::sync::Semaphore::new(0)),
    );
    let hold = Hold {
        entered: Arc::clone(&entered),
        release: Arc::clone(&release),
    };
    let mut writes = tokio::task::JoinSet::new();
    let held = store.clone();
    writes.spawn(async move { held.write(hold).await.unwrap() });
    entered.acquire().await.unwrap().forget();
    let before = store.reader().commits();
    for serial in 0..u64::from(ISSUANCES) {
        let store = store.clone();
        writes.spawn(async move {
            let record = certificates::Record(certificate(1000 + serial, 100));
            store.write(record).await.unwrap();
        });
    }
    while store.jobs.max_capacity() - store.jobs.capacity() < ISSUANCES as usize {
        tokio::task::yield_now().await;
    }
    release.add_permits(1);
    writes.join_all().await;
    assert_eq!(
        store.reader().commits() - before,
        2,
        "the one that held the writer, and one for all that waited"
    );
    assert_eq!(
        count(&store, "SELECT count(*) AS n FROM certificates").await,
        i64::from(ISSUANCES)
    );
}

/// Loses the whole transaction under its batch, as SQLite does by itself when the disk is full.
struct DiskFull;

impl Command for DiskFull {
    type Output = ();

    async fn run(&self, db: &mut Connection) -> Result<(), StoreError> {
        query("ROLLBACK").execute(db).await?;
        Err(StoreError::Damaged("test"))
    }
}

async fn a_transaction_lost_under_a_batch_makes_none_of_its_changes_and_says_so_to_all(
    store: Store,
    _: Drain,
) {
    let note = |id| Note {
        id,
        then: Then::Well,
    };
    let (first, lost, last) = tokio::join!(
        store.write(note(1)),
        store.write(DiskFull),
        store.write(note(3)),
    );
    assert!(matches!(first.unwrap_err(), StoreError::Commit(_)));
    assert!(matches!(lost.unwrap_err(), StoreError::Commit(_)));
    assert!(matches!(last.unwrap_err(), StoreError::Commit(_)));
    assert_eq!(
        count(&store, "SELECT count(*) AS n FROM decisions").await,
        0
    );
    store.write(note(4)).await.unwrap();
    assert_eq!(
        count(&store, "SELECT count(*) AS n FROM decisions").await,
        1
    );
}

async fn a_change_whose_caller_went_away_is_made_all_the_same(store: Store, _: Drain) {
    let gone = store.write(Note {
        id: 1,
        then: Then::Well,
    });
    tokio::select! {
        biased;
        _ = gone => panic!("the writer has not run yet"),
        () = std::future::ready(()) => {}
    }
    store
        .write(Note {
            id: 2,
            then: Then::Well,
        })
        .await
        .unwrap();
    assert_eq!(
        count(&store, "SELECT count(*) AS n FROM decisions").await,
        2
    );
}

async fn the_writer_ends_when_nobody_can_reach_it_and_not_before(store: Store, drain: Drain) {
    drain.stop();
    store
        .write(Note {
            id: 1,
            then: Then::Well,
        })
        .await
        .expect("what is under way may finish");
    drop(store);
    drain.drained().await;
}

async fn a_serial_is_never_recorded_twice(store: Store, _: Drain) {
    with_authority(&store).await;
    store
        .write(certificates::Record(certificate(7, 100)))
        .await
        .unwrap();
    store
        .write(certificates::Record(certificate(7, 200)))
        .await
        .unwrap_err();
    assert_eq!(
        count(&store, "SELECT not_after AS n FROM certificates").await,
        100
    );
}

async fn decisions_are_kept_for_seven_days(store: Store, _: Drain) {
    for (id, day) in [(1, 1), (2, 7), (3, 8)] {
        let decisions = vec![decision(id, "shop/orders")];
        store
            .write(decisions::Record {
                at: at(day * DAY),
                decisions,
            })
            .await
            .unwrap();
    }
    let more = store
        .write(decisions::Forget {
            now: at(8 * DAY + 1),
        })
        .await
        .unwrap();
    assert_eq!(
        (
            more,
            count(&store, "SELECT count(*) AS n FROM decisions").await
        ),
        (More::Nothing, 2)
    );
}

async fn one_workloads_decisions_never_crowd_out_anothers(store: Store, _: Drain) {
    store
        .write(decisions::Record {
            at: at(1),
            decisions: vec![decision(0, "shop/inventory")],
        })
        .await
        .unwrap();
    let flood = |round: u32| {
        (0..6000)
            .map(|id| decision(1 + round * 6000 + id, "shop/orders"))
            .collect()
    };
    for round in 0..2 {
        store
            .write(decisions::Record {
                at: at(2 + u64::from(round)),
                decisions: flood(round),
            })
            .await
            .unwrap();
    }
    assert_eq!(
        count(&store, "SELECT count(*) AS n FROM decisions").await,
        10_001
    );
    assert!(
        decisions::find(&store, &format!("{:032x}", 0))
            .await
            .unwrap()
            .is_some()
    );
    assert!(
        decisions::find(&store, &format!("{:032x}", 12_000))
            .await
            .unwrap()
            .is_some(),
        "the newest stay"
    );
}

/// A spent token as it lies in the database.
struct Token(u8, u64, &'static str);

impl Command for Token {
    type Output = ();

    async fn run(&self, db: &mut Connection) -> Result<(), StoreError> {
        let &Token(hash, expires, serial) = self;
        query("INSERT INTO tokens (secret_sha256, identity, created_at, created_by, expires_at, spent_at, spent_on) VALUES ($1, 'x', 0, 'x', $2, 1, $3)")
            .bind(vec![hash; 32])
            .bind(i64::try_from(expires).unwrap())
            .bind(serial)
            .execute(db)
            .await
            .map(drop)
    }
}

async fn certificates_and_tokens_are_forgotten_when_nobody_can_use_them_any_more(
    store: Store,
    _: Drain,
) {
    with_authority(&store).await;
    for (serial, end) in [(1, 10 * DAY), (2, 50 * DAY), (3, 10 * DAY)] {
        store
            .write(certificates::Record(certificate(serial, end)))
            .await
            .unwrap();
    }
    // A token outlives the certificate it bought; a second one ended with it.
    for (hash, expires, serial) in [(1_u8, 60 * DAY, "03"), (2, 9 * DAY, "01")] {
        store.write(Token(hash, expires, serial)).await.unwrap();
    }

    let forget = |day: u64, grace: u64| {
        let renewal_grace = Duration::from_secs(grace * DAY);
        store.write(certificates::Forget {
            now: at(day * DAY),
            renewal_grace,
        })
    };
    forget(39, 30).await.unwrap();
    assert_eq!(
        count(&store, "SELECT count(*) AS n FROM certificates").await,
        3,
        "still within grace"
    );
    forget(39, 1).await.unwrap();
    assert_eq!(count(&store, "SELECT count(*) AS n FROM tokens").await, 1);
    assert_eq!(
        count(&store, "SELECT count(*) AS n FROM certificates").await,
        2
    );
    forget(200, 1).await.unwrap();
    assert_eq!(
        count(&store, "SELECT count(*) AS n FROM certificates").await,
        0
    );
}
