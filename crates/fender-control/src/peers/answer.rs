//! What one replica tells another, within bounds: cut by whoever tells it, which says of how many it did not; and heard within
//! the same.
//!
//! Where it is cut, the workloads of which there is most to tell are, and not the others. What ended processes left takes
//! half of an answer at most. Nobody is left out without being counted, and a reader that knows of no count refuses the whole.

use std::collections::BTreeMap;

use fender_api::proto::control::v1::{ConnectedSidecars, SidecarStatus};
use fender_identity::WorkloadName;
use prost::Message as _;

use crate::registry::ENDED;

/// What one may tell, all messages together, in bytes.
const MAX_ANSWER: usize = 2 * ENDED;
/// Sidecars in one message, in bytes, unless it is a single one: of that there is no more on the list than fits into a message.
const AT_ONCE: usize = 64 * 1024;

/// What is told of these, in messages that together take no more than may be told.
pub(super) fn messages(
    connected: BTreeMap<WorkloadName, Vec<SidecarStatus>>,
) -> Vec<ConnectedSidecars> {
    let divided = connected.into_iter().map(|(workload, sidecars)| {
        let messages = divided(&workload, sidecars);
        let weight: usize = messages.iter().map(ConnectedSidecars::encoded_len).sum();
        (weight, messages)
    });
    let mut divided: Vec<_> = divided.collect();
    divided.sort_by_key(|(weight, _)| *weight);
    let mut room = MAX_ANSWER - untold(u64::MAX).encoded_len();
    let (mut told, mut left_out) = (Vec::new(), 0);
    for message in divided.into_iter().flat_map(|(_, messages)| messages) {
        match room.checked_sub(message.encoded_len()) {
            Some(left) => {
                room = left;
                told.push(message);
            }
            None => left_out += u64::try_from(message.sidecars.len()).unwrap_or(u64::MAX),
        }
    }
    if left_out > 0 {
        told.push(untold(left_out));
    }
    told
}

fn divided(workload: &WorkloadName, sidecars: Vec<SidecarStatus>) -> Vec<ConnectedSidecars> {
    let mut messages = Vec::<ConnectedSidecars>::new();
    let mut weight = 0;
    for sidecar in sidecars {
        let own = sidecar.encoded_len();
        match messages.last_mut().filter(|_| weight + own <= AT_ONCE) {
            Some(last) => {
                last.sidecars.push(sidecar);
                weight += own;
            }
            None => {
                messages.push(ConnectedSidecars {
                    workload: workload.to_string(),
                    sidecars: vec![sidecar],
                    untold: 0,
                });
                weight = own;
            }
        }
    }
    messages
}

fn untold(untold: u64) -> ConnectedSidecars {
    ConnectedSidecars {
        workload: String::new(),
        sidecars: Vec::new(),
        untold,
    }
}

/// What was heard of an answer.
#[derive(Debug, Default)]
pub(super) struct Heard {
    pub(super) told: Vec<(WorkloadName, Vec<SidecarStatus>)>,
    /// Of how many nothing was told.
    pub(super) untold: u64,
    weight: usize,
}

impl Heard {
    pub(super) fn take(&mut self, some: ConnectedSidecars) -> Result<(), String> {
        self.weight += some.encoded_len();
        if self.weight > MAX_ANSWER {
            return Err("tells more than fits into a status".to_owned());
        }
        if some.untold > 0 {
            self.untold = self.untold.saturating_add(some.untold);
            return Ok(());
        }
        let workload = some.workload.parse();
        let workload = workload.map_err(|_| "names a workload that is none".to_owned())?;
        self.told.push((workload, some.sidecars));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use fender_api::proto::control::v1::CredentialInUse;
    use fender_api::usage;
    use rustls::pki_types::UnixTime;

    use super::*;
    use crate::registry::{Introduction, Registry};

    fn sidecar(length: usize) -> SidecarStatus {
        SidecarStatus {
            address: "x".repeat(length),
            ..SidecarStatus::default()
        }
    }

    fn connected(of: &[(&str, usize, usize)]) -> BTreeMap<WorkloadName, Vec<SidecarStatus>> {
        let all = of.iter().map(|(workload, number, length)| {
            let sidecars = vec![sidecar(*length); *number];
            (workload.parse().unwrap(), sidecars)
        });
        all.collect()
    }

    fn weight(messages: &[ConnectedSidecars]) -> usize {
        messages.iter().map(ConnectedSidecars::encoded_len).sum()
    }

    fn heard(messages: Vec<ConnectedSidecars>) -> Heard {
        let mut heard = Heard::default();
        for message in messages {
            heard.take(message).unwrap();
        }
        heard
    }

    fn number(heard: &Heard, workload: &str) -> usize {
        let told = heard.told.iter();
        let of = told.filter(|(name, _)| name.to_string() == workload);
        of.map(|(_, sidecars)| sidecars.len()).sum()
    }

    #[test]
    fn what_fits_to_the_byte_is_told_whole_and_of_one_byte_more_is_said_how_many_are_missing() {
        // Each in a message of its own, and what is left over in the last.
        let room = MAX_ANSWER - untold(u64::MAX).encoded_len();
        let one = weight(&messages(connected(&[("shop/big", 1, AT_ONCE)])));
        let mut all = connected(&[("shop/big", room / one, AT_ONCE)]);
        let big: WorkloadName = "shop/big".parse().unwrap();
        let over = room % one;
        let small = |length| weight(&messages(connected(&[("shop/big", 1, length)])));
        let length = (0..over).rev().find(|length| small(*length) <= over);
        let length = length.unwrap();
        assert_eq!(small(length), over, "to the byte");
        all.get_mut(&big).unwrap().push(sidecar(length));
        let told = messages(all.clone());
        assert_eq!(weight(&told), room);
        let whole = heard(told);
        assert_eq!(
            (number(&whole, "shop/big"), whole.untold),
            (room / one + 1, 0)
        );

        all.get_mut(&big).unwrap().pop();
        all.get_mut(&big).unwrap().push(sidecar(length + 1));
        let told = messages(all);
        assert!(weight(&told) <= MAX_ANSWER);
        let cut = heard(told);
        assert_eq!((number(&cut, "shop/big"), cut.untold), (room / one, 1));
    }

    #[test]
    fn attack_a_workload_of_which_there_is_much_to_tell_takes_nothing_of_another() {
        let told = messages(connected(&[
            ("shop/flood", 4096, 4096),
            ("shop/orders", 100, 100),
            ("shop/zebra", 100, 100),
        ]));
        assert!(weight(&told) <= MAX_ANSWER);
        let cut = heard(told);
        assert_eq!(number(&cut, "shop/orders"), 100);
        assert_eq!(number(&cut, "shop/zebra"), 100);
        let flood = number(&cut, "shop/flood");
        assert!(flood > 1500, "{flood}");
        assert_eq!(cut.untold, u64::try_from(4096 - flood).unwrap());
    }

    /// What is kept of those who have ended, however many they are, fits into half of an answer.
    #[test]
    fn all_that_is_kept_of_ended_processes_is_told_and_as_much_again_of_those_who_are_connected() {
        let registry = Registry::default();
        let moment = UnixTime::since_unix_epoch(Duration::from_secs(1_800_000_000));
        let generation = "g".repeat(usage::MAX_GENERATION);
        for number in 0..40_000 {
            // A few bytes each: of such there are the most.
            let workload = format!("s/w{}", number % 400).parse().unwrap();
            let introduction = Introduction {
                instance: format!("{number:032x}"),
                place: format!("{number:032x}"),
                version: "0.1.0".to_owned(),
                address: "10.0.0.1:50000".to_owned(),
                since: moment,
                serial: "01".parse().unwrap(),
                not_after: moment,
            };
            let ended = registry.connect(workload, introduction);
            assert!(ended.credential(CredentialInUse {
                name: "s/c".to_owned(),
                generation: "g".to_owned(),
                ..CredentialInUse::default()
            }));
            ended.leave(moment, BTreeMap::new());
        }
        let mut kept = registry.sidecars(|_| true, |_| true);
        for used in kept.values_mut().flatten() {
            used.credentials[0].current.clone_from(&generation);
        }
        let number: usize = kept.values().map(Vec::len).sum();
        assert!(number > 4_000, "{number}");
        let told = messages(kept.clone());
        let ended = weight(&told);
        assert!(ended <= ENDED, "{ended}");
        assert_eq!(heard(told).untold, 0);

        let one = weight(&messages(connected(&[("shop/connected", 1, 1024)])));
        let room = (MAX_ANSWER - ended - 1024) / one;
        kept.extend(connected(&[("shop/connected", room, 1024)]));
        let told = heard(messages(kept));
        assert_eq!(
            (told.untold, self::number(&told, "shop/connected")),
            (0, room)
        );
    }

    #[test]
    fn attack_who_tells_more_than_it_may_is_not_heard_to_the_end() {
        let message = |length| {
            let mut all = divided(&"shop/orders".parse().unwrap(), vec![sidecar(length)]);
            all.remove(0)
        };
        let all = std::iter::repeat_with(|| message(AT_ONCE));
        let mut greedy = Heard::default();
        let taken = all.take_while(|some| greedy.take(some.clone()).is_ok());
        let taken = taken.count();
        assert_eq!(taken, MAX_ANSWER / message(AT_ONCE).encoded_len());
        let refused = Heard::default().take(ConnectedSidecars {
            workload: "../orders".to_owned(),
            ..ConnectedSidecars::default()
        });
        assert!(refused.unwrap_err().contains("none"));
        // As a replica from before there was a count hears it.
        assert!("".parse::<WorkloadName>().is_err());
    }
}
