//! How often certificates are issued. Each is a signature, and a record that is kept for days: without a bound, one
//! workload could fill the disk of all, one replica use up what is there for its workload, and one host's agent what is
//! there for the same workload on other hosts.
//!
//! So every issuance takes a permit at each level that it belongs to, or none at all: of the identity; of where it comes
//! from (a node, a pod, a certificate of another authority), whoever attests there and however often; and of the line of
//! renewals it continues. Each level refills as fast as all whom it stands for need at half life, twice over, and lets all
//! of them come at once after an outage. Join tokens are bounded by those who make them.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use fender_identity::{Serial, SpiffeId};

use crate::clusters::ServiceAccount;
use crate::evidence::Basis;
use crate::limit::Bucket;
use crate::registry::STREAMS_PER_WORKLOAD;

/// Certificates for one identity from one place.
const PER_ORIGIN: u32 = 512;
/// Certificates of one line: a sidecar's own, and those of the processes beside it that ask it for one.
const PER_LINE: u32 = 128;
/// Buckets, before those that are full again are looked for.
const SWEEP: usize = 4096;

#[derive(Debug, Default)]
pub(crate) struct Pace(Mutex<Inner>);

#[derive(Debug)]
struct Inner {
    buckets: HashMap<Level, Bucket>,
    sweep: usize,
}

impl Default for Inner {
    fn default() -> Self {
        Self {
            buckets: HashMap::new(),
            sweep: SWEEP,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Level {
    Identity(SpiffeId),
    Origin(SpiffeId, Origin),
    Line(Serial),
}

/// Where a line of renewals began.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Origin {
    Node(String),
    /// Of a cluster: a pod, or whatever runs as the service account if its tokens name no pod.
    Pod(String, String),
    Certificate([u8; 32]),
}

impl Origin {
    fn of(basis: &Basis) -> Option<Self> {
        match basis {
            Basis::Token => None,
            Basis::Kubernetes(ServiceAccount {
                cluster, account, ..
            }) => {
                let pod = account.pod_uid.as_ref().or(account.pod.as_ref());
                let pod = pod.cloned().unwrap_or_default();
                Some(Self::Pod(cluster.clone(), pod))
            }
            Basis::X509(vouched) => Some(Self::Certificate(vouched.shown.sha256)),
            Basis::Agent { node, .. } => Some(Self::Node(node.to_string())),
        }
    }
}

impl Pace {
    /// Whether there may be one more certificate for an identity, on this basis, and in this line if it is renewed. To be
    /// asked only once the basis is proven and for what the documents describe: so there are never more buckets than
    /// certificates that may be issued in the time one of them takes to fill.
    pub(crate) fn admits(
        &self,
        id: &SpiffeId,
        basis: &Basis,
        line: Option<&Serial>,
        leaf: Duration,
    ) -> bool {
        let workload = u32::try_from(STREAMS_PER_WORKLOAD).unwrap_or(u32::MAX);
        let levels = [
            Some((Level::Identity(id.clone()), workload)),
            Origin::of(basis).map(|origin| (Level::Origin(id.clone(), origin), PER_ORIGIN)),
            line.map(|first| (Level::Line(first.clone()), PER_LINE)),
        ];
        let levels: Vec<_> = levels.into_iter().flatten().collect();
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        inner.sweep();
        for (level, size) in &levels {
            let bucket = inner
                .buckets
                .entry(level.clone())
                .or_insert_with(|| Bucket::new(*size, 0));
            bucket.refill_at(4.0 * f64::from(*size) / leaf.as_secs_f64().max(1.0));
        }
        let buckets = &mut inner.buckets;
        let has = |buckets: &mut HashMap<Level, Bucket>, level: &Level| {
            buckets.get_mut(level).is_some_and(Bucket::has)
        };
        if !levels.iter().all(|(level, _)| has(buckets, level)) {
            return false;
        }
        for (level, _) in &levels {
            if let Some(bucket) = buckets.get_mut(level) {
                bucket.take();
            }
        }
        true
    }
}

impl Inner {
    /// A bucket that is full again is as good as none.
    fn sweep(&mut self) {
        if self.buckets.len() < self.sweep {
            return;
        }
        self.buckets.retain(|_, bucket| !bucket.is_full());
        self.sweep = SWEEP.max(self.buckets.len().saturating_mul(2));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn id(name: &str) -> SpiffeId {
        format!("spiffe://acme.test/ns/shop/sa/{name}")
            .parse()
            .unwrap()
    }

    fn line(number: u32) -> Serial {
        Serial::from_bytes(&(number + 1).to_be_bytes()).unwrap()
    }

    fn on(node: &str) -> Basis {
        Basis::Agent {
            node: node.parse().unwrap(),
            facts: fender_api::facts::Facts::default(),
        }
    }

    fn count(mut ask: impl FnMut(u32) -> bool) -> usize {
        (0..20_000).filter(|number| ask(*number)).count()
    }

    #[tokio::test(start_paused = true)]
    async fn attack_a_workload_that_renews_without_end_is_stopped_and_no_other_is() {
        let pace = Pace::default();
        let orders = id("orders");
        let flood = || count(|n| pace.admits(&orders, &Basis::Token, Some(&line(n % 1000)), HOUR));
        assert_eq!(flood(), STREAMS_PER_WORKLOAD);
        assert!(pace.admits(&id("inventory"), &Basis::Token, Some(&line(5000)), HOUR));
        tokio::time::advance(HOUR / 4).await;
        assert_eq!(
            flood(),
            STREAMS_PER_WORKLOAD,
            "all at half life, twice over"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn attack_one_replica_cannot_use_up_what_is_there_for_all() {
        let pace = Pace::default();
        let (orders, greedy) = (id("orders"), line(0));
        let flood = count(|_| pace.admits(&orders, &Basis::Token, Some(&greedy), HOUR));
        assert_eq!(flood, PER_LINE as usize);
        // What was refused it took from nobody.
        let others = count(|n| pace.admits(&orders, &Basis::Token, Some(&line(n + 1)), HOUR));
        assert_eq!(others, STREAMS_PER_WORKLOAD - PER_LINE as usize);
    }

    #[tokio::test(start_paused = true)]
    async fn attack_one_node_cannot_use_up_what_is_there_for_the_others() {
        let pace = Pace::default();
        let orders = id("orders");
        // By attesting ever anew, and by renewing what it obtained.
        let anew = count(|_| pace.admits(&orders, &on("edge-1"), None, HOUR));
        let renewed = count(|n| pace.admits(&orders, &on("edge-1"), Some(&line(n)), HOUR));
        assert_eq!(anew + renewed, PER_ORIGIN as usize);
        assert!(pace.admits(&orders, &on("edge-2"), None, HOUR));
        assert!(pace.admits(&id("inventory"), &on("edge-1"), None, HOUR));
    }

    #[tokio::test(start_paused = true)]
    async fn buckets_that_are_full_again_are_forgotten() {
        let pace = Pace::default();
        for round in 0..10 {
            for n in 0..SWEEP as u32 / 2 {
                let line = line(round * 100_000 + n);
                pace.admits(&id(&format!("w{n}")), &Basis::Token, Some(&line), HOUR);
            }
            tokio::time::advance(HOUR).await;
        }
        assert!(pace.0.lock().unwrap().buckets.len() <= 2 * SWEEP);
    }
}
