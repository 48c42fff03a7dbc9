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
