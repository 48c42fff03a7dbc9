//! Who is connected: one entry per open stream, with what it was sent and what it says about itself; and what those left
//! behind who said that they end. In memory only; a restart forgets it and the sidecars come back.

mod ended;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fender_api::proto::control::v1::{
    CredentialInUse, CredentialUse, RefusedSidecar, SidecarStatus,
};
use fender_identity::{NodeName, Serial, SpiffeId, WorkloadName};
use prost::Message as _;
use rustls::pki_types::UnixTime;
use tokio::time::Instant;

use crate::credentials::Watched;
use crate::limit::Bucket;
use crate::time::seconds;
use ended::{AllEnded, Ended, Left};

pub(crate) use ended::{ALL as ENDED, Listed, ToJudge, same};

/// Streams of every kind that one certificate may hold open.
const STREAMS_PER_CERTIFICATE: usize = 64;
/// Streams of every kind for one workload, all its instances together.
pub(crate) const STREAMS_PER_WORKLOAD: usize = 4096;
/// JWT-SVIDs one workload may be given at once, all its sidecars together or by way of one node's agent, and then in each
/// second. A sidecar keeps a token for half its life, so this is some ten thousand audiences.
const TOKENS: u32 = 1024;
const TOKENS_PER_SECOND: u32 = 64;
/// What one sidecar may have on the list about its credentials, in bytes: some thousand of them.
const CREDENTIALS: usize = 256 * 1024;
/// The same, of all sidecars of one workload together.
const CREDENTIALS_PER_WORKLOAD: usize = 16 * 1024 * 1024;
/// Sidecars of one workload that were turned away, as many as are remembered.
const REFUSED: usize = 16;

#[derive(Clone, Debug, Default)]
pub(crate) struct Registry(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    next: u64,
    sidecars: BTreeMap<u64, Sidecar>,
    /// Those turned away lately, the latest last.
    refused: HashMap<WorkloadName, Vec<RefusedSidecar>>,
    ended: AllEnded,
    by_certificate: HashMap<Serial, usize>,
    by_workload: HashMap<WorkloadName, usize>,
    /// What is on the list about credentials, in bytes.
    credentials: HashMap<WorkloadName, usize>,
    /// By workload and by the node whose agent asks: no node takes from another what the same workload needs there.
    tokens: HashMap<(SpiffeId, Option<NodeName>), Bucket>,
}

#[derive(Debug)]
struct Sidecar {
    workload: WorkloadName,
    status: SidecarStatus,
    /// By name.
    credentials: BTreeMap<String, CredentialInUse>,
}

/// With everything about the credentials that are asked for, and of others the generation. Its place is told with the former.
fn told<'a>(
    status: &SidecarStatus,
    credentials: impl Iterator<Item = &'a CredentialInUse>,
    all_of: impl Fn(&str) -> bool,
) -> SidecarStatus {
    let mut asked = false;
    let credentials = credentials.map(|used| match all_of(&used.name) {
        true => {
            asked = true;
            used.clone()
        }
        false => CredentialInUse {
            name: used.name.clone(),
            generation: used.generation.clone(),
            ..CredentialInUse::default()
        },
    });
    SidecarStatus {
        credentials: credentials.collect(),
        place: match asked {
            true => status.place.clone(),
            false => String::new(),
        },
        ..status.clone()
    }
}

/// What a report takes here.
fn weight(used: &CredentialInUse) -> usize {
    let uses = used.uses.len() * size_of::<CredentialUse>();
    size_of::<CredentialInUse>() + uses + used.encoded_len()
}

/// A sidecar that is turned away for what it is.
#[derive(Clone, Debug)]
pub(crate) struct Refusal {
    pub(crate) instance: String,
    pub(crate) version: String,
    pub(crate) address: String,
}

/// A place for one stream; dropping it gives the place back.
#[derive(Debug)]
pub(crate) struct Place {
    registry: Registry,
    workload: WorkloadName,
    serial: Serial,
}

/// One sidecar on the list; dropping it takes it off.
#[derive(Debug)]
pub(crate) struct Connected {
    registry: Registry,
    id: u64,
}

/// What a sidecar says of itself first.
#[derive(Clone, Debug)]
pub(crate) struct Introduction {
    pub(crate) instance: String,
    /// What it shares with those who had its state directory before it. Empty: it has none.
    pub(crate) place: String,
    pub(crate) version: String,
    pub(crate) address: String,
    pub(crate) since: UnixTime,
    pub(crate) serial: Serial,
    pub(crate) not_after: UnixTime,
}

impl Registry {
    /// A place for another stream, if there is one.
    pub(crate) fn place(&self, workload: &WorkloadName, serial: &Serial) -> Option<Place> {
        let mut inner = self.lock();
        let by_certificate = inner.by_certificate.get(serial).copied().unwrap_or(0);
        let by_workload = inner.by_workload.get(workload).copied().unwrap_or(0);
        if by_certificate >= STREAMS_PER_CERTIFICATE || by_workload >= STREAMS_PER_WORKLOAD {
            return None;
        }
        inner
            .by_certificate
            .insert(serial.clone(), by_certificate + 1);
        inner.by_workload.insert(workload.clone(), by_workload + 1);
        Some(Place {
            registry: self.clone(),
            workload: workload.clone(),
            serial: serial.clone(),
        })
    }

    /// Whether a workload may be given one more token, on a node. To be asked only for what the documents describe.
    pub(crate) fn may_have_token(&self, id: &SpiffeId, node: Option<&NodeName>) -> bool {
        self.lock()
            .tokens
            .entry((id.clone(), node.cloned()))
            .or_insert_with(|| Bucket::new(TOKENS, TOKENS_PER_SECOND))
            .take()
    }

    pub(crate) fn connect(&self, workload: WorkloadName, introduction: Introduction) -> Connected {
        let status = SidecarStatus {
            instance: introduction.instance,
            replica: String::new(),
            version: introduction.version,
            address: introduction.address,
            connected_since_unix: seconds(introduction.since),
            snapshot_sent: 0,
            snapshot_acked: 0,
            nack: String::new(),
            certificate_serial: introduction.serial.to_string(),
            certificate_not_after_unix: seconds(introduction.not_after),
            credentials: Vec::new(),
            trust_sent: 0,
            trust_acked: 0,
            outdated: false,
            ended_unix: 0,
            place: introduction.place,
        };
        let mut inner = self.lock();
        if let Some(refused) = inner.refused.get_mut(&workload) {
            refused.retain(|known| known.instance != status.instance);
            if refused.is_empty() {
                inner.refused.remove(&workload);
            }
        }
        let id = inner.next;
        inner.next = id.wrapping_add(1);
        let sidecar = Sidecar {
            workload,
            status,
            credentials: BTreeMap::new(),
        };
        inner.sidecars.insert(id, sidecar);
        Connected {
            registry: self.clone(),
            id,
        }
    }

    /// Remembers whom a workload's stream was refused to and why, until it is let in.
    pub(crate) fn refuse(
        &self,
        workload: &WorkloadName,
        refusal: Refusal,
        reason: &str,
        at: UnixTime,
    ) {
        let mut inner = self.lock();
        let refused = inner.refused.entry(workload.clone()).or_default();
        refused.retain(|known| known.instance != refusal.instance);
        if refused.len() >= REFUSED {
            refused.remove(0);
        }
        refused.push(RefusedSidecar {
            instance: refusal.instance,
            version: refusal.version,
            address: refusal.address,
            reason: reason.to_owned(),
            at_unix: seconds(at),
        });
    }

    /// Those of a workload that were turned away.
    pub(crate) fn refused(&self, workload: &WorkloadName) -> Vec<RefusedSidecar> {
        self.lock()
            .refused
            .get(workload)
            .cloned()
            .unwrap_or_default()
    }

    /// How many are connected, and how many of them refuse what they were sent last.
    pub(crate) fn tally(&self) -> (usize, usize) {
        let inner = self.lock();
        let refusing = inner.sidecars.values();
        let refusing = refusing.filter(|sidecar| !sidecar.status.nack.is_empty());
        (inner.sidecars.len(), refusing.count())
    }

    /// How many of each workload are connected.
    pub(crate) fn counts(&self) -> BTreeMap<WorkloadName, usize> {
        let mut all = BTreeMap::new();
        for sidecar in self.lock().sidecars.values() {
            *all.entry(sidecar.workload.clone()).or_insert(0) += 1;
        }
        all
    }

    /// Those of the workloads that are asked for, by workload, in the order they came; with all that is known of the credentials
    /// that are asked for. Of those who have ended, the ones that left such a credential.
    pub(crate) fn sidecars(
        &self,
        asked: impl Fn(&WorkloadName) -> bool,
        all_of: impl Fn(&str) -> bool,
    ) -> BTreeMap<WorkloadName, Vec<SidecarStatus>> {
        let mut all = BTreeMap::<_, Vec<_>>::new();
        let inner = self.lock();
        for sidecar in inner.sidecars.values() {
            if !asked(&sidecar.workload) {
                continue;
            }
            all.entry(sidecar.workload.clone()).or_default().push(told(
                &sidecar.status,
                sidecar.credentials.values(),
                &all_of,
            ));
        }
        for ended in inner.ended.of(&asked) {
            if ended.credentials.keys().any(|name| all_of(name)) {
                let known = all.entry(ended.workload.clone()).or_default();
                let left = ended.credentials.values().map(|left| &left.used);
                known.push(told(&ended.status, left, &all_of));
            }
        }
        all
    }

    /// Forgets what was left longer ago than it is kept, and says what documents may have changed of the rest.
    pub(crate) fn ended_to_judge(&self) -> ToJudge {
        self.lock().ended.unjudged()
    }

    /// Forgets what documents no longer have, of what was to judge; and no longer follows what they have asked otherwise.
    pub(crate) fn ended_judged(&self, judged: &ToJudge, listed: &Listed) {
        self.lock().ended.judged(judged, listed);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Connected {
    pub(crate) fn sent(&self, version: u64) {
        self.update(|status| status.snapshot_sent = version);
    }

    pub(crate) fn acked(&self, version: u64) {
        self.update(|status| {
            status.snapshot_acked = version;
            status.nack.clear();
        });
    }

    pub(crate) fn trust_sent(&self, version: u64) {
        self.update(|status| status.trust_sent = version);
    }

    pub(crate) fn trust_acked(&self, version: u64) {
        self.update(|status| status.trust_acked = version);
    }

    pub(crate) fn nacked(&self, reason: String) {
        self.update(|status| status.nack = reason);
    }

    pub(crate) fn certificate(&self, serial: &Serial, not_after_unix: i64) {
        self.update(|status| {
            status.certificate_serial = serial.to_string();
            status.certificate_not_after_unix = not_after_unix;
        });
    }

    /// False if there is no room for it: it is on the list as not reported.
    pub(crate) fn credential(&self, credential: CredentialInUse) -> bool {
        let mut inner = self.registry.lock();
        let Inner {
            sidecars,
            credentials: weights,
            ended,
            ..
        } = &mut *inner;
        let Some(sidecar) = sidecars.get_mut(&self.id) else {
            return false;
        };
        let before = sidecar.credentials.remove(&credential.name);
        let of_all = weights.entry(sidecar.workload.clone()).or_insert(0);
        *of_all -= before.as_ref().map_or(0, weight);
        let own: usize = sidecar.credentials.values().map(weight).sum();
        let fresh = weight(&credential);
        let fits = own + fresh <= CREDENTIALS && *of_all + fresh <= CREDENTIALS_PER_WORKLOAD;
        if fits {
            *of_all += fresh;
            let name = credential.name.clone();
            // Who holds none has not replaced what lies there.
            if !credential.generation.is_empty() {
                ended.replaced(&sidecar.workload, &sidecar.status, &name);
            }
            sidecar.credentials.insert(name, credential);
        }
        if *of_all == 0 {
            weights.remove(&sidecar.workload);
        }
        fits
    }

    /// Which credentials it has said to hold, by name.
    pub(crate) fn holds(&self) -> Vec<String> {
        let inner = self.registry.lock();
        let sidecar = inner.sidecars.get(&self.id);
        let held = sidecar.into_iter().flat_map(|it| &it.credentials);
        let held = held.filter(|(_, used)| !used.generation.is_empty());
        held.map(|(name, _)| name.clone()).collect()
    }

    /// It ends, and what it has delivered stays: what it has said of that is kept without it. `followed` is what is asked
    /// meanwhile.
    pub(crate) fn leave(&self, at: UnixTime, mut followed: BTreeMap<String, Watched>) {
        let mut inner = self.registry.lock();
        let Inner {
            sidecars,
            credentials: weights,
            ended,
            ..
        } = &mut *inner;
        let Some(sidecar) = sidecars.get_mut(&self.id) else {
            return;
        };
        sidecar.status.ended_unix = seconds(at);
        let left = std::mem::take(&mut sidecar.credentials);
        give_back(weights, &sidecar.workload, left.values().map(weight).sum());
        let held = left
            .into_iter()
            .filter(|(_, used)| !used.generation.is_empty());
        let held = held.map(|(name, used)| {
            let followed = followed.remove(&name);
            (name, Left { used, followed })
        });
        ended.push(Ended {
            workload: sidecar.workload.clone(),
            status: sidecar.status.clone(),
            credentials: held.collect(),
            at: Instant::now(),
        });
    }

    fn update(&self, change: impl FnOnce(&mut SidecarStatus)) {
        if let Some(sidecar) = self.registry.lock().sidecars.get_mut(&self.id) {
            change(&mut sidecar.status);
        }
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        let mut inner = self.registry.lock();
        let Some(sidecar) = inner.sidecars.remove(&self.id) else {
            return;
        };
        let weight = sidecar.credentials.values().map(weight).sum();
        give_back(&mut inner.credentials, &sidecar.workload, weight);
    }
}

fn give_back(weights: &mut HashMap<WorkloadName, usize>, workload: &WorkloadName, weight: usize) {
    if let Some(of_all) = weights.get_mut(workload) {
        *of_all -= weight;
        if *of_all == 0 {
            weights.remove(workload);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut inner = self.registry.lock();
        release(&mut inner.by_certificate, &self.serial);
        release(&mut inner.by_workload, &self.workload);
    }
}

fn release<K: std::hash::Hash + Eq>(counts: &mut HashMap<K, usize>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attack_what_sidecars_say_of_their_credentials_takes_only_so_much_and_is_given_back() {
        let registry = Registry::default();
        let introduction = Introduction {
            instance: String::new(),
            place: String::new(),
            version: String::new(),
            address: String::new(),
            since: UnixTime::since_unix_epoch(std::time::Duration::ZERO),
            serial: "01".parse().unwrap(),
            not_after: UnixTime::since_unix_epoch(std::time::Duration::ZERO),
        };
        let connect = || registry.connect("shop/orders".parse().unwrap(), introduction.clone());
        let held = |sidecar: &Connected| {
            let inner = registry.lock();
            let own = inner.sidecars[&sidecar.id].credentials.values();
            own.map(weight).sum::<usize>()
        };
        let longest = |name: usize| CredentialInUse {
            name: format!("shop/{name}"),
            uses: vec![
                CredentialUse {
                    who: "x".repeat(256),
                    ..CredentialUse::default()
                };
                16
            ],
            ..CredentialInUse::default()
        };
        let greedy = connect();
        let mut taken = 0;
        while greedy.credential(longest(taken)) {
            taken += 1;
        }
        assert!(taken > 10 && held(&greedy) <= CREDENTIALS);
        // What is said again takes the place of what was said.
        assert!(greedy.credential(longest(0)));
        let mut others = Vec::new();
        loop {
            let other = connect();
            let fits = (0..taken).all(|name| other.credential(longest(name)));
            others.push(other);
            if !fits {
                break;
            }
        }
        let all = registry.lock().credentials.values().sum::<usize>();
        assert!(all <= CREDENTIALS_PER_WORKLOAD);
        drop((greedy, others));
        assert!(registry.lock().credentials.is_empty());
    }

    #[test]
    fn one_certificate_holds_only_so_many_streams_and_gives_them_back() {
        let registry = Registry::default();
        let workload: WorkloadName = "shop/orders".parse().unwrap();
        let (one, other) = ("01".parse().unwrap(), "02".parse().unwrap());
        let mut places: Vec<_> = (0..STREAMS_PER_CERTIFICATE)
            .map(|_| registry.place(&workload, &one).unwrap())
            .collect();
        assert!(registry.place(&workload, &one).is_none());
        assert!(registry.place(&workload, &other).is_some());
        places.pop();
        assert!(registry.place(&workload, &one).is_some());
        drop(places);
        assert!(
            registry.lock().by_certificate.is_empty() && registry.lock().by_workload.is_empty()
        );
    }
}
