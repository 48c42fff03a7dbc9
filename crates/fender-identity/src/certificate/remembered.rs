//! Certificates that were read, remembered: a handshake asks for the same one several times, and a peer that comes back
//! shows it again.
//!
//! What is remembered is what the bytes say, and that never changes. It is nobody's permission: the rules of
//! [`crate::verify`] are asked each time. Only the very same bytes are not parsed again. Nothing is remembered of what is
//! malformed, or larger than certificates usually are. Each thread remembers for itself, a fixed number, the oldest
//! forgotten first, so nothing is locked and nobody can fill memory; whoever shows many only makes us read again.

use std::cell::RefCell;

use super::{Certificate, Malformed};
use crate::newest::Newest;

/// How many a thread remembers, in a few hundred bytes each; see [`USUAL`].
const REMEMBERED: usize = 32;
/// A larger one is read each time. So a thread remembers no more than 64 KiB of certificates, and as much of what they say.
const USUAL: usize = 2 * 1024;

thread_local! {
    static READ: RefCell<Newest<Reading, REMEMBERED>> = const { RefCell::new(Newest::new()) };
}

struct Reading {
    der: Box<[u8]>,
    facts: Certificate,
}

/// What `der` says, by `parse` unless that is known.
pub(super) fn read(
    der: &[u8],
    parse: impl FnOnce(&[u8]) -> Result<Certificate, Malformed>,
) -> Result<Certificate, Malformed> {
    let known = READ.with_borrow(|read| {
        let reading = read.iter().find(|reading| *reading.der == *der)?;
        Some(reading.facts.clone())
    });
    if let Some(facts) = known {
        return Ok(facts);
    }
    let facts = parse(der)?;
    if der.len() <= USUAL {
        let reading = Reading {
            der: der.into(),
            facts: facts.clone(),
        };
        READ.with_borrow_mut(|read| read.add(reading));
    }
    Ok(facts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::root;

    /// What it says, and whether it had to be parsed.
    fn reading(der: &[u8]) -> (Result<Certificate, Malformed>, bool) {
        let mut parsed = false;
        let facts = read(der, |der| {
            parsed = true;
            Certificate::parse(der)
        });
        (facts, parsed)
    }

    fn is_parsed(der: &[u8]) -> bool {
        reading(der).1
    }

    #[test]
    fn the_same_bytes_are_parsed_once_and_say_the_same() {
        let der = root("one").der().to_vec();
        let (first, parsed) = reading(&der);
        assert!(parsed);
        let (again, parsed) = reading(&der);
        assert!(!parsed);
        assert_eq!(format!("{first:?}"), format!("{again:?}"));
        assert!(first.is_ok());
    }

    #[test]
    fn attack_other_bytes_are_not_taken_for_those_that_were_read() {
        let der = root("one").der().to_vec();
        assert!(is_parsed(&der));
        for at in 0..der.len() {
            let mut other = der.clone();
            other[at] ^= 1;
            assert!(is_parsed(&other), "{at}");
        }
        assert!(is_parsed(&der[..der.len() - 1]));
        assert!(is_parsed(&[der.as_slice(), &[0]].concat()));
    }

    #[test]
    fn what_is_malformed_is_refused_each_time_and_leaves_the_others_remembered() {
        let der = root("one").der().to_vec();
        assert!(is_parsed(&der));
        for _ in 0..2 * REMEMBERED {
            let (facts, parsed) = reading(b"none");
            assert_eq!(facts.unwrap_err(), Malformed::NotX509);
            assert!(parsed);
        }
        assert!(!is_parsed(&der));
    }

    #[test]
    fn attack_many_certificates_and_large_ones_fill_no_memory() {
        let facts = Certificate::parse(&root("one").der()).unwrap();
        let remembered = || READ.with_borrow(|read| read.iter().map(|one| one.der.len()).collect());
        for number in 0..3 * REMEMBERED {
            let usual = vec![number as u8; USUAL];
            read(&usual, |_| Ok(facts.clone())).unwrap();
            let large = vec![number as u8; USUAL + 1];
            read(&large, |_| Ok(facts.clone())).unwrap();
        }
        let lengths: Vec<usize> = remembered();
        assert_eq!(lengths, [USUAL; REMEMBERED]);
    }
}
