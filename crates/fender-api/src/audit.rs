//! The audit log as a chain: each entry carries a SHA-256 over itself and the entry before, so that whoever has all of
//! them can tell, without believing who keeps them, that none was changed, removed or moved.
//!
//! What the chain alone does not show: entries cut off at its end, and all of it written anew from some entry on. A
//! [`Head`] that was noted elsewhere shows both.

use std::fmt;
use std::str::FromStr;

use aws_lc_rs::digest::{Context, SHA256};

/// One entry, as it was written.
pub type Entry = crate::proto::control::v1::AuditEntry;

/// What an entry must carry after one that carries `previous`; the first has nothing before it.
///
/// Lengths go in before the texts, so that no two entries read the same.
pub fn hash(entry: &Entry, previous: &[u8]) -> Vec<u8> {
    let mut context = Context::new(&SHA256);
    context.update(b"fender audit v1\0");
    context.update(previous);
    context.update(&entry.sequence.to_be_bytes());
    context.update(&entry.time_unix.to_be_bytes());
    for text in [
        &entry.actor,
        &entry.action,
        &entry.subject,
        &entry.outcome,
        &entry.detail,
    ] {
        context.update(&u64::try_from(text.len()).unwrap_or(u64::MAX).to_be_bytes());
        context.update(text.as_bytes());
    }
    context.finish().as_ref().to_vec()
}

/// An entry that is known to be right, and with it all before: its number and its hash, as `9:6b86b273…`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    sequence: u64,
    hash: Vec<u8>,
}

impl Head {
    /// The hash, in hex.
    pub fn hash(&self) -> String {
        to_hex(&self.hash)
    }
}

impl fmt::Display for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.sequence, self.hash())
    }
}

/// The text is not a [`Head`].
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("a head is the number of an entry, a colon and 64 hexadecimal digits")]
pub struct NotAHead;

impl FromStr for Head {
    type Err = NotAHead;

    fn from_str(text: &str) -> Result<Self, NotAHead> {
        let (sequence, hash) = text.split_once(':').ok_or(NotAHead)?;
        let head = Self {
            sequence: sequence.parse().map_err(|_| NotAHead)?,
            hash: from_hex(hash).ok_or(NotAHead)?,
        };
        match (head.sequence, head.hash.len()) {
            (1.., 32) => Ok(head),
            (_, _) => Err(NotAHead),
        }
    }
}

/// What was followed of a chain, from its first entry.
#[derive(Clone, Debug, Default)]
pub struct Chain {
    entries: u64,
    last: Vec<u8>,
    noted: Option<Head>,
}

impl Chain {
    /// A chain that must lead through this entry.
    pub fn through(noted: Option<Head>) -> Self {
        Self {
            noted,
            ..Self::default()
        }
    }

    /// Follows it by one entry.
    pub fn follow(&mut self, entry: &Entry) -> Result<(), Broken> {
        let sequence = self.entries.saturating_add(1);
        if entry.sequence != sequence {
            return Err(Broken::Missing {
                sequence,
                found: entry.sequence,
            });
        }
        if entry.hash != hash(entry, &self.last) {
            return Err(Broken::Changed { sequence });
        }
        if let Some(noted) = &self.noted
            && noted.sequence == sequence
            && noted.hash != entry.hash
        {
            return Err(Broken::Rewritten { sequence });
        }
        self.entries = sequence;
        self.last.clone_from(&entry.hash);
        Ok(())
    }

    /// How many entries were followed.
    pub fn entries(&self) -> u64 {
        self.entries
    }

    /// The last one that was followed.
    pub fn head(&self) -> Option<Head> {
        (self.entries > 0).then(|| Head {
            sequence: self.entries,
            hash: self.last.clone(),
        })
    }

    /// There are no more entries.
    pub fn end(self) -> Result<Option<Head>, Broken> {
        match &self.noted {
            Some(noted) if noted.sequence > self.entries => Err(Broken::CutOff {
                entries: self.entries,
                noted: noted.sequence,
            }),
            Some(_) | None => Ok(self.head()),
        }
    }
}

/// Where a chain is not as it was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// Another entry stands where it belongs.
    #[error("entry {sequence} is missing: entry {found} stands in its place")]
    Missing {
        /// The one that belongs there.
        sequence: u64,
        /// The one that stands there.
        found: u64,
    },
    /// It, or the one before, is not as it was written.
    #[error("entry {sequence} is not what was written after the entry before it")]
    Changed {
        /// The entry.
        sequence: u64,
    },
    /// It is right by itself, and not the one that was noted.
    #[error(
        "entry {sequence} is another than was noted: it, or entries before it, were written anew"
    )]
    Rewritten {
        /// The entry.
        sequence: u64,
    },
    /// It ends before the entry that was noted.
    #[error("entries are cut off: {entries} are left, and entry {noted} was noted")]
    CutOff {
        /// How many there are.
        entries: u64,
        /// What there was.
        noted: u64,
    },
}

impl Broken {
    /// The first entry that is not as it was written, or not there.
    pub fn sequence(self) -> u64 {
        match self {
            Self::Missing { sequence, .. }
            | Self::Changed { sequence }
            | Self::Rewritten { sequence } => sequence,
            Self::CutOff { entries, .. } => entries.saturating_add(1),
        }
    }
}

/// In lower case.
pub fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The bytes, if the text is nothing but their digits.
pub fn from_hex(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2) {
        return None;
    }
    let digit = |digit: &u8| char::from(*digit).to_digit(16);
    text.as_bytes()
        .chunks_exact(2)
        .map(|pair| match pair {
            [high, low] => u8::try_from(digit(high)? * 16 + digit(low)?).ok(),
            _ => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(entries: u64) -> Vec<Entry> {
        let mut previous = Vec::new();
        (1..=entries)
            .map(|sequence| {
                let mut entry = Entry {
                    sequence,
                    time_unix: 1_800_000_000,
                    actor: "spiffe://acme.test/fender/admin/first".to_owned(),
                    action: "apply".to_owned(),
                    subject: "documents".to_owned(),
                    outcome: "done".to_owned(),
                    detail: format!("revision {sequence}"),
                    hash: Vec::new(),
                };
                entry.hash = hash(&entry, &previous);
                previous.clone_from(&entry.hash);
                entry
            })
            .collect()
    }

    fn followed(log: &[Entry], noted: Option<Head>) -> Result<Option<Head>, Broken> {
        let mut chain = Chain::through(noted);
        for entry in log {
            chain.follow(entry)?;
        }
        chain.end()
    }

    #[test]
    fn what_was_written_is_whole_and_its_head_is_worth_noting() {
        let log = log(9);
        let head = followed(&log, None).unwrap().unwrap();
        assert_eq!(head.to_string().parse::<Head>().unwrap(), head);
        assert_eq!(followed(&log, Some(head.clone())), Ok(Some(head)));
        assert_eq!(followed(&[], None), Ok(None));
    }

    #[test]
    fn attack_every_field_of_every_entry_is_covered() {
        let edits: [fn(&mut Entry); 6] = [
            |entry| entry.time_unix += 1,
            |entry| entry.actor.push('x'),
            |entry| entry.action.push('x'),
            |entry| entry.subject.push('x'),
            |entry| entry.outcome.push('x'),
            |entry| entry.detail.push('x'),
        ];
        for at in 0..5 {
            for edit in edits {
                let mut log = log(5);
                edit(&mut log[at]);
                let sequence = log[at].sequence;
                assert_eq!(followed(&log, None), Err(Broken::Changed { sequence }));
            }
        }
        let mut moved = log(5);
        let detail = moved[2].detail.split_off(3);
        moved[2].outcome.push_str(&detail);
        assert_eq!(followed(&moved, None).unwrap_err().sequence(), 3);
    }

    #[test]
    fn attack_entries_that_are_removed_or_swapped_are_named() {
        let mut removed = log(5);
        removed.remove(2);
        let missing = Broken::Missing {
            sequence: 3,
            found: 4,
        };
        assert_eq!(followed(&removed, None), Err(missing));
        let mut swapped = log(5);
        swapped.swap(2, 3);
        assert_eq!(followed(&swapped, None), Err(missing));
        for (at, sequence) in [(2, 3), (3, 4)] {
            swapped[at].sequence = sequence;
        }
        let changed = Broken::Changed { sequence: 3 };
        assert_eq!(followed(&swapped, None), Err(changed));
        assert_eq!(followed(&log(5)[1..], None).unwrap_err().sequence(), 1);
    }

    #[test]
    fn attack_what_is_cut_off_or_written_anew_shows_by_the_head_that_was_noted() {
        let whole = log(5);
        let head = followed(&whole, None).unwrap();
        let cut = Broken::CutOff {
            entries: 3,
            noted: 5,
        };
        assert_eq!(followed(&whole[..3], head.clone()), Err(cut));
        assert_eq!(
            (cut.sequence(), followed(&whole[..3], None).is_ok()),
            (4, true)
        );

        let mut anew = log(2);
        anew[1].detail.push_str(", quietly");
        anew[1].hash = hash(&anew[1], &anew[0].hash);
        for at in 2..5 {
            let mut entry = whole[at].clone();
            entry.hash = hash(&entry, &anew[at - 1].hash);
            anew.push(entry);
        }
        assert!(followed(&anew, None).is_ok());
        assert_eq!(
            followed(&anew, head),
            Err(Broken::Rewritten { sequence: 5 })
        );
    }

    #[test]
    fn only_a_number_and_a_hash_are_a_head() {
        let digits = "ab".repeat(32);
        assert!(format!("7:{digits}").parse::<Head>().is_ok());
        for wrong in [
            digits.clone(),
            format!("0:{digits}"),
            format!("7:{digits}ab"),
            format!("7:{}+a", &digits[2..]),
            format!("-7:{digits}"),
            "7:".to_owned(),
        ] {
            assert!(wrong.parse::<Head>().is_err(), "{wrong}");
        }
    }
}
