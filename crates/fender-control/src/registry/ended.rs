//! What processes have left behind that said so and ended: an init container's files are in use when it is gone.
//!
//! It is kept in memory, for a day and within bounds, and goes earlier when a later process of the same place reports the same
//! credential. Nobody but a process of the same workload that knows the place's random name replaces it. While
//! it is kept its source is asked, so that whether there is a newer generation is known; not where asking lends something
//! or runs a program, which nobody would have wanted. No value is kept here.
//!
//! Whether documents still list it is judged by others, apart from this: it says what there is to judge, and takes the
//! judgement. All that is done here under the registry's lock is in proportion to what it is about.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use fender_api::proto::control::v1::{CredentialInUse, SidecarStatus};
use fender_identity::WorkloadName;
use prost::Message as _;
use tokio::time::Instant;

use super::weight;
use crate::credentials::Watched;

/// How long it is kept.
const KEPT: Duration = Duration::from_secs(24 * 3600);
/// What one workload's may take, in bytes: some five hundred processes, or one of which everything is on the list that may be.
/// The oldest goes first.
const PER_WORKLOAD: usize = 512 * 1024;
/// The same, of all workloads together; the heaviest one's goes first. It weighs more here than when it is told: an answer
/// with room for this has room for all of them.
pub(crate) const ALL: usize = 4 * 1024 * 1024;

/// What is left of one credential.
#[derive(Debug)]
pub(super) struct Left {
    pub(super) used: CredentialInUse,
    /// What is asked for it as long as this is kept. It is the one watch of whatever the documents have asked, shared with whoever else
    /// follows that; its origin is not kept here.
    pub(super) followed: Option<Watched>,
}

/// One process that has ended.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) workload: WorkloadName,
    pub(super) status: SidecarStatus,
    /// By name.
    pub(super) credentials: BTreeMap<String, Left>,
    pub(super) at: Instant,
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct AllEnded {
    /// By number, in the order they ended.
    kept: BTreeMap<u64, Ended>,
    next: u64,
    /// What all take.
    weight: usize,
    /// None without any.
    by_workload: HashMap<WorkloadName, OfWorkload>,
}

#[derive(Debug, Default)]
struct OfWorkload {
    numbers: BTreeSet<u64>,
    weight: usize,
}

/// What documents may have changed, to be judged by whoever knows them.
#[derive(Debug)]
pub(crate) struct ToJudge {
    /// The names of the credentials that were left, by workload.
    pub(crate) left: BTreeMap<WorkloadName, BTreeSet<String>>,
    /// Who ended later is not judged.
    before: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    Stands,
    AskedOtherwise,
    NotListed,
}

/// Which credentials are still listed, by workload; each with what is asked for it now, if anything is.
pub(crate) type Listed = BTreeMap<WorkloadName, HashMap<String, Option<Watched>>>;

impl Ended {
    fn weight(&self) -> usize {
        let left = self.credentials.iter();
        let left = left.map(|(name, left)| {
            let used = weight(&left.used) - size_of::<CredentialInUse>();
            size_of::<(String, Left)>() + name.len() + used
        });
        // Its name is here twice, with its number.
        let own = size_of::<(u64, Self)>() + size_of::<(WorkloadName, OfWorkload)>();
        let named = 2 * (self.workload.namespace().len() + self.workload.name().len());
        own + named + self.status.encoded_len() + left.sum::<usize>()
    }

    fn is_over(&self) -> bool {
        self.credentials.is_empty() || self.at.elapsed() >= KEPT
    }
}

impl AllEnded {
    /// Takes one in; what there is no room for any more goes.
    pub(super) fn push(&mut self, ended: Ended) {
        self.forget_old();
        if ended.credentials.is_empty() {
            return;
        }
        let (workload, number) = (ended.workload.clone(), self.next);
        self.next = number.wrapping_add(1);
        self.put(number, ended);
        while let Some(own) = self.by_workload.get(&workload)
            && own.weight > PER_WORKLOAD
            && let Some(oldest) = own.numbers.first().copied()
        {
            self.take(oldest);
        }
        while self.weight > ALL
            && let Some(oldest) = self.oldest_of_the_heaviest()
        {
            self.take(oldest);
        }
    }

    /// A process of this place holds this credential itself, or did later: what was left there before is no more.
    pub(super) fn replaced(&mut self, workload: &WorkloadName, by: &SidecarStatus, name: &str) {
        let Some(own) = self.by_workload.get(workload) else {
            return;
        };
        let of_place = |number: &&u64| {
            let ended = self.kept.get(number);
            ended.is_some_and(|it| same(&it.status, by) && it.credentials.contains_key(name))
        };
        let numbers: Vec<_> = own.numbers.iter().filter(of_place).copied().collect();
        for number in numbers {
            self.change(number, |left| {
                left.remove(name);
            });
        }
    }

    /// What there is to judge, after whatever has been kept for long enough is forgotten.
    pub(super) fn unjudged(&mut self) -> ToJudge {
        self.forget_old();
        let mut left = BTreeMap::<_, BTreeSet<_>>::new();
        for ended in self.kept.values() {
            let names = left.entry(ended.workload.clone()).or_default();
            for name in ended.credentials.keys() {
                if !names.contains(name) {
                    names.insert(name.clone());
                }
            }
        }
        ToJudge {
            left,
            before: self.next,
        }
    }

    /// Forgets what was judged and is not listed, and follows no more what is asked otherwise by now.
    pub(super) fn judged(&mut self, judged: &ToJudge, listed: &Listed) {
        let stands = |workload: &WorkloadName, name: &str, left: &Left| {
            let asked = listed.get(workload).and_then(|them| them.get(name));
            match (asked, &left.followed) {
                (None, _) => Standing::NotListed,
                (Some(_), None) => Standing::Stands,
                (Some(Some(asked)), Some(known)) if Arc::ptr_eq(asked, known) => Standing::Stands,
                (Some(_), Some(_)) => Standing::AskedOtherwise,
            }
        };
        let touched = |(_, ended): &(&u64, &Ended)| {
            let mut left = ended.credentials.iter();
            left.any(|(name, left)| stands(&ended.workload, name, left) != Standing::Stands)
        };
        let touched = self.kept.range(..judged.before).filter(touched);
        let touched: Vec<_> = touched
            .map(|(number, ended)| (*number, ended.workload.clone()))
            .collect();
        for (number, workload) in touched {
            self.change(number, |left| {
                left.retain(|name, left| match stands(&workload, name, left) {
                    Standing::Stands => true,
                    Standing::AskedOtherwise => {
                        left.followed = None;
                        true
                    }
                    Standing::NotListed => false,
                });
            });
        }
    }

    /// Those of the workloads that are asked for, that are not over; in the order they ended.
    pub(super) fn of(&self, asked: impl Fn(&WorkloadName) -> bool) -> impl Iterator<Item = &Ended> {
        let kept = self.kept.values().filter(|one| !one.is_over());
        kept.filter(move |one| asked(&one.workload))
    }

    /// So that workloads whose processes end and end take nothing of those whose seldom do.
    fn oldest_of_the_heaviest(&self) -> Option<u64> {
        let all = self.by_workload.values();
        let all = all.filter_map(|own| Some((own.weight, Reverse(*own.numbers.first()?))));
        all.max().map(|(_, Reverse(oldest))| oldest)
    }

    fn forget_old(&mut self) {
        while let Some((oldest, ended)) = self.kept.first_key_value()
            && ended.is_over()
        {
            self.take(*oldest);
        }
    }

    /// Changes what one has left; without any of it there is none.
    fn change(&mut self, number: u64, change: impl FnOnce(&mut BTreeMap<String, Left>)) {
        if let Some(mut ended) = self.take(number) {
            change(&mut ended.credentials);
            if !ended.credentials.is_empty() {
                self.put(number, ended);
            }
        }
    }

    fn put(&mut self, number: u64, ended: Ended) {
        let weight = ended.weight();
        self.weight += weight;
        let own = self.by_workload.entry(ended.workload.clone()).or_default();
        own.weight += weight;
        own.numbers.insert(number);
        self.kept.insert(number, ended);
    }

    fn take(&mut self, number: u64) -> Option<Ended> {
        let ended = self.kept.remove(&number)?;
        let weight = ended.weight();
        self.weight -= weight;
        if let Some(own) = self.by_workload.get_mut(&ended.workload) {
            own.weight -= weight;
            own.numbers.remove(&number);
            if own.numbers.is_empty() {
                self.by_workload.remove(&ended.workload);
            }
        }
        Some(ended)
    }
}

/// Whether two reports are of one process, or of processes of one place.
pub(crate) fn same(one: &SidecarStatus, other: &SidecarStatus) -> bool {
    one.instance == other.instance || (!one.place.is_empty() && one.place == other.place)
}

#[cfg(test)]
mod tests {
    use tokio::sync::watch;

    use super::super::CREDENTIALS;
    use super::*;

    fn left(name: String, generation: &str) -> (String, Left) {
        let used = CredentialInUse {
            name: name.clone(),
            generation: generation.to_owned(),
            ..CredentialInUse::default()
        };
        let followed = None;
        (name, Left { used, followed })
    }

    fn ended(workload: &str, instance: usize, place: &str, credentials: usize) -> Ended {
        let credentials = (0..credentials).map(|at| left(format!("shop/{at}"), &"g".repeat(128)));
        Ended {
            workload: workload.parse().unwrap(),
            status: SidecarStatus {
                instance: format!("{instance:032x}"),
                place: place.to_owned(),
                ..SidecarStatus::default()
            },
            credentials: credentials.collect(),
            at: Instant::now(),
        }
    }

    fn instances(all: &AllEnded) -> Vec<String> {
        let all = all.of(|_| true);
        all.map(|one| one.status.instance.trim_start_matches('0').to_owned())
            .collect()
    }

    /// With what is asked for each of these credentials, if anything is.
    fn listed(all: &mut AllEnded, them: &[(&str, Option<&Watched>)]) -> (ToJudge, Listed) {
        let judged = all.unjudged();
        let them = them
            .iter()
            .map(|(name, asked)| ((*name).to_owned(), asked.cloned()));
        let them: HashMap<_, _> = them.collect();
        let workloads = judged.left.keys();
        let listed = workloads.map(|workload| (workload.clone(), them.clone()));
        let listed = listed.collect();
        (judged, listed)
    }

    /// What it says it takes is what it takes.
    fn weighed(all: &AllEnded) -> usize {
        let of = |workload: Option<&WorkloadName>| {
            let kept = all.kept.values();
            let kept = kept.filter(|one| workload.is_none_or(|it| one.workload == *it));
            kept.map(Ended::weight).sum::<usize>()
        };
        for (workload, own) in &all.by_workload {
            assert_eq!(own.weight, of(Some(workload)));
            assert!(!own.numbers.is_empty());
        }
        assert_eq!(all.weight, of(None));
        all.weight
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
        all.unjudged();
        assert_eq!(all.kept.len(), 1, "nor is it in memory");
        weighed(&all);
    }

    #[tokio::test(start_paused = true)]
    async fn attack_a_workload_whose_processes_end_and_end_takes_so_much_and_nothing_of_another() {
        let mut all = AllEnded::default();
        all.push(ended("shop/orders", 1, "", 1));
        let heavy = ended("shop/flood", 2, "", 3).weight();
        let room = PER_WORKLOAD / heavy;
        for instance in 0..room {
            all.push(ended("shop/flood", instance + 2, "", 3));
        }
        assert_eq!(instances(&all).len(), 1 + room, "to the bound");
        all.push(ended("shop/flood", 0xffff, "", 3));
        let kept = instances(&all);
        assert_eq!(kept.len(), 1 + room, "and not past it");
        assert_eq!((kept[0].as_str(), kept[1].as_str()), ("1", "3"));
        assert_eq!(kept.last().unwrap(), "ffff", "the newest");

        // As many of them as it takes to fill what all may have.
        for workload in 0..=ALL / PER_WORKLOAD {
            for instance in 0..=room {
                all.push(ended(&format!("shop/w{workload}"), instance + 2, "", 3));
            }
        }
        let full = weighed(&all);
        assert!(full <= ALL && full > ALL - 2 * heavy, "{full}");
        assert_eq!(instances(&all)[0], "1", "it was there before all of them");
    }

    #[tokio::test(start_paused = true)]
    async fn all_that_one_sidecar_may_have_on_the_list_can_be_left() {
        let mut all = AllEnded::default();
        let (mut of_one, mut listed) = (BTreeMap::new(), 0);
        loop {
            let (name, one) = left(format!("shop/{:0>4}", of_one.len()), "g");
            listed += weight(&one.used);
            if listed > CREDENTIALS {
                break;
            }
            of_one.insert(name, one);
        }
        let most = of_one.len();
        all.push(Ended {
            credentials: of_one,
            ..ended("shop/orders", 1, "", 0)
        });
        assert_eq!(instances(&all), ["1"]);
        assert!(most > 900, "{most}");
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
        weighed(&all);
        all.replaced(&orders, &by(9, &here), "shop/1");
        assert_eq!(instances(&all), ["2", "3"]);
        // It says the same again because it did not hear that it was taken.
        all.replaced(&orders, &by(2, ""), "shop/0");
        assert_eq!(instances(&all), ["3"]);
        weighed(&all);
    }

    #[tokio::test(start_paused = true)]
    async fn what_documents_no_longer_list_is_forgotten_and_who_ended_meanwhile_is_judged_later() {
        let mut all = AllEnded::default();
        all.push(ended("shop/orders", 1, "", 2));
        let (judged, them) = listed(&mut all, &[("shop/1", None)]);
        let orders: WorkloadName = "shop/orders".parse().unwrap();
        let names: Vec<_> = judged.left[&orders].iter().collect();
        assert_eq!(names, ["shop/0", "shop/1"]);
        // While it is judged, by documents that may be older than these.
        all.push(ended("shop/orders", 2, "", 1));
        all.judged(&judged, &them);
        let left: Vec<_> = all
            .of(|_| true)
            .map(|it| it.credentials.keys().cloned().collect::<Vec<_>>())
            .collect();
        assert_eq!(left, [["shop/1"], ["shop/0"]]);
        weighed(&all);
        let (judged, none) = listed(&mut all, &[]);
        all.judged(&judged, &none);
        assert!(all.kept.is_empty() && all.by_workload.is_empty());
        assert_eq!(weighed(&all), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_asked_is_followed_until_documents_have_something_else_asked() {
        let source = || Watched::new(watch::channel(fender_providers::State::Pending).1);
        let (asked, other) = (source(), source());
        let followed = |all: &AllEnded| {
            let mut left = all.of(|_| true).flat_map(|it| it.credentials.values());
            left.any(|left| left.followed.is_some())
        };
        for (now, stays) in [(Some(&asked), true), (Some(&other), false), (None, false)] {
            let mut all = AllEnded::default();
            let mut one = ended("shop/orders", 1, "", 1);
            for left in one.credentials.values_mut() {
                left.followed = Some(asked.clone());
            }
            all.push(one);
            let (judged, listed) = listed(&mut all, &[("shop/0", now)]);
            all.judged(&judged, &listed);
            assert_eq!(followed(&all), stays);
            assert_eq!(instances(&all), ["1"], "it is known either way");
            drop(all);
        }
        assert_eq!(Arc::strong_count(&asked), 1, "nobody follows it");
    }
}
