//! How much of the room for connections, and for requests to the apps, one address may have, so that nobody's crowd takes
//! everybody's.
//!
//! Counted before the handshake, when an address is all that is known of a peer. Of IPv6 the network
//! counts (/64), because a host has as many addresses in it as it likes. Where a balancer passes connections
//! on, those count of whom it says that they come, and its own address does not. Peers on a Unix socket have
//! no address and are not counted: who may open it is a matter of its mode.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use fender_runtime::deadline::Deadline;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::Limits;
use crate::fault::OurFault;

/// What is taken by the connections that are open, by origin: as many entries as connections at most.
#[derive(Debug)]
pub(crate) struct Crowd {
    most: usize,
    /// Requests at a time.
    links: usize,
    unanswered: usize,
    open: Mutex<HashMap<Origin, Share>>,
}

/// What one address has.
#[derive(Debug)]
struct Share {
    /// Slots of its connections.
    slots: usize,
    room: Room,
}

/// Room for the requests of one address.
#[derive(Clone, Debug)]
pub(crate) struct Room {
    /// For those that have a connection to the app.
    pub(crate) links: Arc<Semaphore>,
    /// For those whose response has not begun.
    pub(crate) unanswered: Arc<Semaphore>,
}

impl Share {
    /// No connection is open, and nothing of one is left.
    fn is_over(&self) -> bool {
        self.slots == 0 && Arc::strong_count(&self.room.links) == 1
    }
}

/// The place of one connection; it is free again when this is dropped.
#[derive(Debug)]
#[must_use = "dropping the seat lets another connection in"]
pub(crate) struct Seat {
    taken: Option<Taken>,
}

#[derive(Debug)]
struct Taken {
    crowd: Arc<Crowd>,
    origin: Origin,
    /// Slots of the connection.
    weight: u32,
}

impl Crowd {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self {
            most: limits.connections_per_address,
            links: limits.links_per_address.min(Semaphore::MAX_PERMITS),
            unanswered: limits.unanswered_per_address.min(Semaphore::MAX_PERMITS),
            open: Mutex::default(),
        }
    }

    /// Forgets those of whom nothing is left that outlived their connections.
    pub(crate) fn prune(&self) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|_, share| !share.is_over());
    }

    /// A place for one more connection from there, if there is one. It weighs as many slots as it takes.
    pub(crate) fn admit(self: &Arc<Self>, from: Option<IpAddr>, weight: u32) -> Option<Seat> {
        let Some(origin) = from.map(Origin::from) else {
            return Some(Seat::UNCOUNTED);
        };
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let slots = open.get(&origin).map_or(0, |share| share.slots) + weight as usize;
        if slots > self.most {
            return None;
        }
        let share = open.entry(origin).or_insert_with(|| Share {
            slots,
            room: Room {
                links: Arc::new(Semaphore::new(self.links)),
                unanswered: Arc::new(Semaphore::new(self.unanswered)),
            },
        });
        share.slots = slots;
        Some(Seat {
            taken: Some(Taken {
                crowd: self.clone(),
                origin,
                weight,
            }),
        })
    }
}

impl Seat {
    /// The place of a connection whose origin does not count, or not yet.
    pub(crate) const UNCOUNTED: Self = Self { taken: None };

    /// The room for requests that it shares with its address; none where that does not count.
    pub(crate) fn room(&self) -> Option<Room> {
        let Taken { crowd, origin, .. } = self.taken.as_ref()?;
        let open = crowd.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.get(origin).map(|share| share.room.clone())
    }
}

/// Room for one request, if there is some: then nothing has to be waited for, and no clock is asked.
pub(crate) fn room_at_once(share: Option<&Room>) -> Option<Option<OwnedSemaphorePermit>> {
    match share {
        None => Some(None),
        Some(Room { links, .. }) => links.clone().try_acquire_owned().ok().map(Some),
    }
}

/// Room for one request among those of an address, before any among all. None where the address does not count.
pub(crate) async fn room(
    share: Option<&Room>,
    deadline: Deadline,
) -> Result<Option<OwnedSemaphorePermit>, OurFault> {
    let Some(Room { links, .. }) = share else {
        return Ok(None);
    };
    match deadline.bound(links.clone().acquire_owned()).await {
        Ok(Ok(room)) => Ok(Some(room)),
        Ok(Err(_)) | Err(_) => Err(OurFault::Crowded),
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let Some(Taken {
            crowd,
            origin,
            weight,
        }) = &self.taken
        else {
            return;
        };
        let mut open = crowd.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(share) = open.get_mut(origin) {
            share.slots -= *weight as usize;
            if share.is_over() {
                open.remove(origin);
            }
        }
    }
}

/// Who counts as one: the first half of an IPv6 address, or an IPv4 address made the first half of
/// one that is nobody's (0:ffff::/32 is reserved). It is small because each open connection holds one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Origin(u64);

impl From<IpAddr> for Origin {
    fn from(address: IpAddr) -> Self {
        Self(match address.to_canonical() {
            IpAddr::V4(address) => 0xffff_0000_0000 | u64::from(address.to_bits()),
            IpAddr::V6(address) => (address.to_bits() >> 64) as u64,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(address: &str) -> Option<IpAddr> {
        Some(address.parse().unwrap())
    }

    fn crowd(most: usize, links: usize) -> Arc<Crowd> {
        Arc::new(Crowd::new(&Limits {
            connections_per_address: most,
            links_per_address: links,
            ..Limits::default()
        }))
    }

    #[test]
    fn an_address_has_its_number_of_places_and_no_more_and_others_have_theirs() {
        let crowd = crowd(2, 1);
        let first = crowd.admit(from("192.0.2.1"), 1).unwrap();
        let _second = crowd.admit(from("::ffff:192.0.2.1"), 1).unwrap();
        assert!(crowd.admit(from("192.0.2.1"), 1).is_none());
        assert!(crowd.admit(from("192.0.2.2"), 1).is_some());
        drop(first);
        assert!(crowd.admit(from("192.0.2.1"), 1).is_some());
    }

    #[test]
    fn a_connection_counts_as_many_times_as_it_takes_slots() {
        let crowd = crowd(3, 1);
        let _first = crowd.admit(from("192.0.2.1"), 2).unwrap();
        assert!(crowd.admit(from("192.0.2.1"), 2).is_none());
        let second = crowd.admit(from("192.0.2.1"), 1).unwrap();
        assert!(crowd.admit(from("192.0.2.1"), 1).is_none());
        drop(second);
        assert!(crowd.admit(from("192.0.2.1"), 1).is_some());
    }

    #[test]
    fn the_connections_of_an_address_share_its_room_for_requests() {
        let crowd = crowd(2, 7);
        let one = crowd.admit(from("192.0.2.1"), 1).unwrap();
        let other = crowd.admit(from("::ffff:192.0.2.1"), 1).unwrap();
        let elsewhere = crowd.admit(from("192.0.2.2"), 1).unwrap();
        let links = |seat: &Seat| seat.room().unwrap().links;
        assert!(Arc::ptr_eq(&links(&one), &links(&other)));
        assert!(!Arc::ptr_eq(&links(&one), &links(&elsewhere)));
        assert_eq!(links(&one).available_permits(), 7);
        assert!(Seat::UNCOUNTED.room().is_none());
        // What outlives its connections counts for whoever comes from there next, and is then forgotten.
        let held = links(&one).try_acquire_owned().unwrap();
        drop((one, other));
        let next = crowd.admit(from("192.0.2.1"), 1).unwrap();
        assert_eq!(links(&next).available_permits(), 6);
        drop((next, elsewhere));
        crowd.prune();
        assert_eq!(crowd.open.lock().unwrap().len(), 1);
        drop(held);
        crowd.prune();
        assert!(crowd.open.lock().unwrap().is_empty());
    }

    #[test]
    fn a_host_with_a_network_of_addresses_counts_once() {
        let crowd = crowd(1, 1);
        let _seat = crowd.admit(from("2001:db8:0:1::1"), 1).unwrap();
        assert!(crowd.admit(from("2001:db8:0:1:ffff::2"), 1).is_none());
        assert!(crowd.admit(from("2001:db8:0:2::1"), 1).is_some());
    }

    #[test]
    fn attack_a_host_with_a_network_of_addresses_has_the_room_for_requests_of_one() {
        let crowd = crowd(8, 1);
        let room = |address| {
            let seat = crowd.admit(from(address), 1).unwrap();
            (seat.room().unwrap(), seat)
        };
        let (one, _one) = room("2001:db8:0:1::1");
        let (other, _other) = room("2001:db8:0:1:ffff::2");
        let (elsewhere, _elsewhere) = room("2001:db8:0:2::1");
        assert!(Arc::ptr_eq(&one.links, &other.links));
        assert!(Arc::ptr_eq(&one.unanswered, &other.unanswered));
        let _all = one
            .unanswered
            .try_acquire_many(one.unanswered.available_permits() as u32)
            .unwrap();
        assert!(other.unanswered.try_acquire().is_err());
        assert!(elsewhere.unanswered.try_acquire().is_ok());
    }

    #[test]
    fn nothing_is_remembered_of_who_has_left() {
        let crowd = crowd(1, 1);
        drop(crowd.admit(from("192.0.2.1"), 1));
        assert!(crowd.open.lock().unwrap().is_empty());
        assert!(crowd.admit(None, 1).is_some() && crowd.admit(None, 1).is_some());
    }
}
