//! What the workload holds of each credential, and since when. No value is here, and nothing that one could be known by.

use std::collections::BTreeMap;

use fender_config::ObjectName;
use fender_providers::Generation;
use tokio::sync::watch;
use tokio::time::Instant;

/// What the workload holds of one credential.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Holding {
    /// Nothing yet.
    Waiting,
    /// This generation, in every place the document names.
    Delivered(Generation),
    /// This one, while a newer cannot be fetched or written.
    Outdated {
        generation: Generation,
        why: String,
        /// When it was last known to be the newest.
        since: Instant,
        /// From when on that is longer than its document allows; none if that is for ever.
        too_old: Option<Instant>,
    },
    /// Nothing any more, by the word of the source.
    Withdrawn { why: String },
    /// Nothing, because it cannot be had or written.
    Failed { why: String },
}

impl Holding {
    /// The generation in use, if any.
    pub fn generation(&self) -> Option<&Generation> {
        match self {
            Self::Delivered(generation) | Self::Outdated { generation, .. } => Some(generation),
            Self::Waiting | Self::Withdrawn { .. } | Self::Failed { .. } => None,
        }
    }
}

/// A [`Holding`] and its history.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Held {
    pub holding: Holding,
    /// Since when the generation in use is in every place; none if none is.
    pub since: Option<Instant>,
    /// A newer one, which is known and not in every place.
    pub newer: Option<Generation>,
}

/// What the workload holds, by credential.
pub type Holdings = BTreeMap<ObjectName, Held>;

/// One credential's line in the holdings.
pub(crate) struct Ledger {
    pub(crate) name: ObjectName,
    holdings: watch::Sender<Holdings>,
}

impl Ledger {
    pub(crate) fn new(name: ObjectName, holdings: watch::Sender<Holdings>) -> Self {
        Self { name, holdings }
    }

    /// Returns whether that is news. `newer` is what is known and not in every place.
    pub(crate) fn enter(&self, holding: Holding, newer: Option<&Generation>) -> bool {
        let newer = newer.filter(|newer| holding.generation() != Some(newer));
        self.holdings.send_if_modified(|holdings| {
            let before = holdings.get(&self.name);
            let same = before.filter(|before| before.holding.generation() == holding.generation());
            let since = match (holding.generation(), same) {
                (None, _) => None,
                (Some(_), Some(before)) => before.since,
                (Some(_), None) => Some(Instant::now()),
            };
            let held = Held {
                holding,
                since,
                newer: newer.cloned(),
            };
            let news = before != Some(&held);
            if news {
                holdings.insert(self.name.clone(), held);
            }
            news
        })
    }

    /// The document is gone.
    pub(crate) fn close(&self) {
        self.holdings
            .send_if_modified(|holdings| holdings.remove(&self.name).is_some());
    }
}
