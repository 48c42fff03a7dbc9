//! A revision is stored as what it changes, and read as a whole.

use std::collections::BTreeMap;

use fender_config::Source;

use super::*;
use crate::store::revisions::{self, Applied, Apply, rewritten};

fn files(texts: &[&str]) -> Vec<Source> {
    let named = (0..).zip(texts).map(|(at, text)| Source {
        name: format!("{at}.yaml"),
        text: (*text).to_owned(),
    });
    named.collect()
}

async fn apply(store: &Store, upon: u64, before: &[Source], after: &[Source]) -> Applied {
    let workload = "shop/orders".parse().unwrap();
    let apply = Apply {
        upon,
        files: rewritten(before, after),
        documents: after.len(),
        by: "spiffe://acme.test/fender/admin/first".parse().unwrap(),
        at: at(1),
        digests: BTreeMap::from([(workload, [u8::try_from(upon).unwrap(); 32])]),
        entry: entry(),
    };
    store.write(apply).await.unwrap()
}

fn entry() -> Entry {
    Entry {
        time: at(1),
        actor: "spiffe://acme.test/fender/admin/first".parse().unwrap(),
        action: Action::Apply,
        subject: "documents".to_owned(),
        outcome: Outcome::Done,
        detail: String::new(),
    }
}

pub(super) async fn every_revision_reads_back_as_it_was_applied(store: Store, _drain: Drain) {
    let history = [
        files(&["a", "b", "c"]),
        files(&["a", "B", "c"]),
        // One less, none at all, the same as before, one more than ever, and in another order.
        files(&["a", "B"]),
        files(&[]),
        files(&["a", "B"]),
        files(&["a", "B"]),
        files(&["a", "b", "c", "d"]),
        files(&["d", "c", "b", "a"]),
    ];
    let mut before: &[Source] = &[];
    for (upon, after) in (0..).zip(&history) {
        let Applied::Revision { number, told } = apply(&store, upon, before, after).await else {
            panic!("nobody else applies");
        };
        assert_eq!(number, upon + 1);
        assert_eq!(told.values().next().unwrap().version, number);
        before = after;
    }
    for (number, applied) in (1..).zip(&history) {
        let read = revisions::files(&store, number).await.unwrap();
        assert_eq!(read, *applied, "revision {number}");
    }
    let current = revisions::current(&store).await.unwrap().unwrap();
    assert_eq!((current.number, &current.files), (8, &history[7]));

    // Made upon a revision that is no longer in force: nothing of it is there.
    let late = apply(&store, 3, &history[2], &files(&["late"])).await;
    assert!(matches!(late, Applied::Overtaken));
    assert_eq!(revisions::files(&store, 8).await.unwrap(), history[7]);
}

pub(super) async fn a_change_of_one_document_stores_one_document(store: Store, _drain: Drain) {
    let names: Vec<_> = (0..200).map(|name| name.to_string()).collect();
    let mut before: Vec<_> = files(&names.iter().map(String::as_str).collect::<Vec<_>>());
    apply(&store, 0, &[], &before).await;
    for upon in 1..=10_usize {
        let mut after = before.clone();
        after[upon].text = format!("changed by {upon}");
        apply(&store, upon as u64, &before, &after).await;
        before = after;
    }
    assert_eq!(
        count(&store, "SELECT count(*) AS n FROM revision_files").await,
        210
    );
    assert_eq!(revisions::files(&store, 11).await.unwrap(), before);
}

pub(super) async fn revisions_are_forgotten_when_they_are_old_and_many_and_nothing_needs_them(
    store: Store,
    _drain: Drain,
) {
    let kept = async || -> Vec<u64> {
        let all = revisions::before(store.reads(), u64::MAX, 1000)
            .await
            .unwrap();
        all.into_iter().rev().map(|told| told.number).collect()
    };
    let newest = revisions::KEPT + 20;
    let texts = |number: u64| vec!["the same".to_owned(), format!("of {number}")];
    let of = |number: u64| files(&texts(number).iter().map(String::as_str).collect::<Vec<_>>());
    let mut before = Vec::new();
    for number in 1..=newest {
        // The first is the last that changed what one workload is told, and the fifth another.
        let workload = match number {
            1 => "shop/orders",
            5 => "shop/inventory",
            _ => "shop/restless",
        };
        let apply = Apply {
            upon: number - 1,
            files: rewritten(&before, &of(number)),
            documents: 2,
            by: entry().actor,
            at: at(1_000 * DAY + number),
            digests: [(
                workload.parse().unwrap(),
                [u8::try_from(number).unwrap(); 32],
            )]
            .into(),
            entry: entry(),
        };
        store.write(apply).await.unwrap();
        before = of(number);
    }
    let forget = async |now| {
        let forget = || store.write(revisions::Forget { now });
        while forget().await.unwrap() == More::Perhaps {}
    };
    forget(at((1_000 + revisions::KEPT_DAYS) * DAY)).await;
    assert_eq!(kept().await.len() as u64, newest, "all are young");

    // Housekeeping does a few at a time.
    let now = at((1_001 + revisions::KEPT_DAYS) * DAY);
    let first = store.write(revisions::Forget { now }).await.unwrap();
    assert_eq!(first, More::Perhaps);
    assert_eq!(kept().await.len() as u64, newest - 8);
    forget(now).await;
    let expected: Vec<_> = [1, 5].into_iter().chain(21..=newest).collect();
    assert_eq!(kept().await, expected);
    // What is kept is whole, whoever wrote its files, and what is not is not there in part.
    for number in expected {
        assert_eq!(
            revisions::files(&store, number).await.unwrap(),
            of(number),
            "{number}"
        );
    }
    for number in [2, 4, 6, 20] {
        assert_eq!(revisions::files(&store, number).await.unwrap(), []);
    }
    let texts = count(&store, "SELECT count(*) AS n FROM revision_files").await;
    assert_eq!(texts, 1 + 2 + 100);
    let current = revisions::current(&store).await.unwrap().unwrap();
    assert_eq!(current.number, newest);
}
