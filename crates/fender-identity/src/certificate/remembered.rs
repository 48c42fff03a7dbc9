//! Certificates that were read, remembered: a handshake asks for the same one several times, and a peer that comes back
//! shows it again.
//!
//! What is remembered is what the bytes say, and that never changes. It is nobody's permission: the rules of
//! [`crate::verify`] are asked each time. Only the very same bytes are not parsed again. Nothing is remembered of what is
//! malformed, larger than certificates usually are, or of more than one URI, which is no identity and would take many times the
//! memory of its bytes. Each thread remembers for itself, a fixed number, the oldest forgotten first, so nothing is locked and
//! nobody can fill memory; whoever shows many only makes us read again.

use std::cell::RefCell;

use super::{Certificate, Malformed};
use crate::newest::Newest;

/// How many a thread remembers, in less than 1 KiB each unless they are larger than usual.
const REMEMBERED: usize = 32;
/// A larger one is read each time. So a thread remembers 64 KiB of certificates at most. What they say takes no more than
/// that again, a URI being part of its certificate, and 256 bytes for each.
const USUAL: usize = 2 * 1024;
/// What an identity has (SPIFFE X.509-SVID §2).
const URIS: usize = 1;

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
    if der.len() <= USUAL && facts.uris.len() <= URIS {
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
        let mut others: Vec<Vec<u8>> = (0..der.len())
            .map(|at| {
                let mut other = der.clone();
                other[at] ^= 1;
                other
            })
            .collect();
        others.push(der[..der.len() - 1].to_vec());
        others.push([der.as_slice(), &[0]].concat());
        for other in others {
            // What was parsed of another one may have driven it out.
            reading(&der).0.unwrap();
            assert!(!is_parsed(&der));
            assert!(is_parsed(&other));
        }
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
    fn whoever_reads_a_certificate_has_it_remembered() {
        let der = root("one").der().to_vec();
        Certificate::read(&der).unwrap();
        assert!(!is_parsed(&der));
    }

    #[test]
    fn attack_many_certificates_large_ones_and_many_names_fill_no_memory() {
        let with = |uris: &[&str]| Certificate {
            uris: uris.iter().map(|uri| (*uri).to_owned()).collect(),
            ..Certificate::parse(&root("one").der()).unwrap()
        };
        let (nobody, somebody, many) = (with(&[]), with(&["a"]), with(&["a", ""]));
        for number in 0..3 * REMEMBERED {
            let usual = vec![number as u8; USUAL];
            let facts = if number % 2 == 0 { &nobody } else { &somebody };
            read(&usual, |_| Ok(facts.clone())).unwrap();
            let large = vec![number as u8; USUAL + 1];
            read(&large, |_| Ok(somebody.clone())).unwrap();
            let small = vec![number as u8; 9];
            read(&small, |_| Ok(many.clone())).unwrap();
        }
        let lengths: Vec<usize> =
            READ.with_borrow(|read| read.iter().map(|one| one.der.len()).collect());
        assert_eq!(lengths, [USUAL; REMEMBERED]);
        assert!(size_of::<Reading>() <= 192);
    }
}
