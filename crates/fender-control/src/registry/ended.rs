//! What processes have left behind that said so and ended: an init container's files are in use when it is gone.
//!
//! It is kept in memory, for a day and within bounds, and goes earlier when a later process of the same place reports the same
//! credential. Nobody but a process of the same workload that knows the place's random name replaces it. While
//! it is kept its source is asked, so that whether there is a newer generation is known; not where asking lends something
//! or runs a program, which nobody would have wanted. No value is kept here.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use fender_api::proto::control::v1::{CredentialInUse, SidecarStatus};
use fender_config::snapshot::Origin;
use fender_identity::WorkloadName;
use prost::Message as _;
use tokio::time::Instant;

use super::weight;
use crate::credentials::Watched;

/// How long it is kept.
const KEPT: Duration = Duration::from_secs(24 * 3600);
/// What one workload's may take, in bytes: some three hundred processes. The oldest goes first.
const PER_WORKLOAD: usize = 256 * 1024;
/// The same, of all workloads together.
const ALL: usize = 16 * 1024 * 1024;

/// What is asked for a credential as long as its report is kept.
#[derive(Clone, Debug)]
pub(crate) struct Followed {
    pub(crate) origin: Origin,
    pub(crate) _watched: Watched,
}

/// One process that has ended.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) workload: WorkloadName,
    pub(super) status: SidecarStatus,
    /// By name.
    pub(super) credentials: BTreeMap<String, CredentialInUse>,
    pub(super) followed: BTreeMap<String, Followed>,
    pub(super) at: Instant,
}

/// All of them, the oldest first.
#[derive(Debug, Default)]
pub(super) struct AllEnded(VecDeque<Ended>);

impl Ended {
    fn weight(&self) -> usize {
        let of_credentials: usize = self.credentials.values().map(weight).sum();
        size_of::<Self>() + self.status.encoded_len() + of_credentials
    }

    fn is_over(&self) -> bool {
        self.credentials.is_empty() || self.at.elapsed() >= KEPT
    }
}

impl AllEnded {
    /// Takes one in; what there is no room for any more goes.
    pub(super) fn push(&mut self, ended: Ended) {
        self.forget_over();
        if ended.credentials.is_empty() {
            return;
        }
        let workload = ended.workload.clone();
        self.0.push_back(ended);
        let of_workload = |one: &Ended| one.workload == workload;
        while self.weight(of_workload) > PER_WORKLOAD {
            let Some(oldest) = self.0.iter().position(of_workload) else {
                break;
            };
            self.0.remove(oldest);
        }
        while self.weight(|_| true) > ALL {
            self.0.pop_front();
        }
    }

    /// A process of this place holds this credential itself, or did later: what was left there before is no more.
    pub(super) fn replaced(&mut self, workload: &WorkloadName, by: &SidecarStatus, name: &str) {
        for ended in &mut self.0 {
            if ended.workload == *workload && same(&ended.status, by) {
                ended.credentials.remove(name);
                ended.followed.remove(name);
            }
        }
        self.forget_over();
    }

    /// Forgets what is over, and what documents no longer have. `origin` says of a credential that is listed for a
    /// workload what the control plane asks, if it is who asks; and nothing of one that is not.
    pub(super) fn forget(
        &mut self,
        origin: impl Fn(&WorkloadName, &str) -> Option<Option<Origin>>,
    ) {
        for ended in &mut self.0 {
            let (workload, followed) = (&ended.workload, &mut ended.followed);
            ended.credentials.retain(|name, _| {
                let asked = origin(workload, name);
                let known = followed.get(name).map(|it| &it.origin);
                if asked.as_ref().and_then(Option::as_ref) != known {
                    followed.remove(name);
                }
                asked.is_some()
            });
        }
        self.forget_over();
    }

    /// Those of the workloads that are asked for, that are not over.
    pub(super) fn of(&self, asked: impl Fn(&WorkloadName) -> bool) -> impl Iterator<Item = &Ended> {
        let kept = self.0.iter().filter(|one| !one.is_over());
        kept.filter(move |one| asked(&one.workload))
    }

    fn forget_over(&mut self) {
        self.0.retain(|one| !one.is_over());
    }

    fn weight(&self, of: impl Fn(&Ended) -> bool) -> usize {
        self.0.iter().filter(|one| of(one)).map(Ended::weight).sum()
    }
}

/// Whether two reports are of one process, or of processes of one place.
pub(crate) fn same(one: &SidecarStatus, other: &SidecarStatus) -> bool {
    one.instance == other.instance || (!one.place.is_empty() && one.place == other.place)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(workload: &str, instance: usize, place: &str, credentials: usize) -> Ended {
        let credentials = (0..credentials).map(|at| {
            let name = format!("shop/{at}");
            let used = CredentialInUse {
                name: name.clone(),
                generation: "g".repeat(128),
                ..CredentialInUse::default()
            };
            (name, used)
        });
        Ended {
            workload: workload.parse().unwrap(),
            status: SidecarStatus {
                instance: format!("{instance:032x}"),
                place: place.to_owned(),
                ..SidecarStatus::default()
            },
            credentials: credentials.collect(),
            followed: BTreeMap::new(),
            at: Instant::now(),
        }
    }

    fn instances(all: &AllEnded) -> Vec<String> {
        let all = all.of(|_| true);
        all.map(|one| one.status.instance.trim_start_matches('0').to_owned())
            .collect()
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_kept_for_a_day() {
        let mut all = AllEnded::default();
        all.push(ended("shop/orders", 1, "", 1));
        tokio::time::advance(KEPT - Duration::from_secs(1)).await;
        all.push(ended("shop/orders", 2, "", 1));
        assert_eq!(instances(&all), ["1", "2"]);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(instances(&all), ["2"]);
        all.forget(|_, _| Some(None));
        assert_eq!(all.0.len(), 1, "nor is it in memory");
    }

    #[tokio::test(start_paused = true)]
    async fn attack_a_workload_whose_processes_end_and_end_takes_so_much_and_nothing_of_another() {
        let mut all = AllEnded::default();
        all.push(ended("shop/orders", 1, "", 1));
        for instance in 2..2_000 {
            all.push(ended("shop/flood", instance, "", 3));
        }
        let flood: WorkloadName = "shop/flood".parse().unwrap();
        assert!(all.weight(|one| one.workload == flood) <= PER_WORKLOAD);
        let kept = instances(&all);
        assert_eq!(kept[0], "1");
        assert_eq!(kept.last().unwrap(), &format!("{:x}", 1_999), "the newest");
        for workload in 0..200 {
            all.push(ended(&format!("shop/w{workload}"), workload + 1, "", 800));
        }
        assert!(all.weight(|_| true) <= ALL);
    }

    #[tokio::test(start_paused = true)]
    async fn attack_it_goes_for_a_process_of_the_same_place_and_workload_alone() {
        let (here, there) = ("a".repeat(32), "b".repeat(32));
        let by = |instance: usize, place: &str| ended("shop/any", instance, place, 0).status;
        let orders: WorkloadName = "shop/orders".parse().unwrap();
        let mut all = AllEnded::default();
        all.push(ended("shop/orders", 1, &here, 2));
        all.push(ended("shop/orders", 2, "", 1));
        all.push(ended("shop/books", 3, &here, 1));
        all.replaced(&orders, &by(9, &there), "shop/0");
        all.replaced(&orders, &by(9, ""), "shop/0");
        assert_eq!(instances(&all), ["1", "2", "3"]);
        all.replaced(&orders, &by(9, &here), "shop/0");
        assert_eq!(
            instances(&all),
            ["1", "2", "3"],
            "there is another credential"
        );
        all.replaced(&orders, &by(9, &here), "shop/1");
        assert_eq!(instances(&all), ["2", "3"]);
        // It says the same again because it did not hear that it was taken.
        all.replaced(&orders, &by(2, ""), "shop/0");
        assert_eq!(instances(&all), ["3"]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_documents_no_longer_list_is_forgotten() {
        let mut all = AllEnded::default();
        all.push(ended("shop/orders", 1, "", 2));
        all.forget(|_, name| (name == "shop/1").then_some(None));
        let left: Vec<_> = all
            .of(|_| true)
            .flat_map(|it| it.credentials.keys())
            .collect();
        assert_eq!(left, ["shop/1"]);
        all.forget(|_, _| None);
        assert!(all.0.is_empty());
    }
}
