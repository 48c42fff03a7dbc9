//! The two lines of a conversation, as [the protocol](super) has them. Pure.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use fender_config::snapshot::ServedName;
use fender_providers::Generation;

const VERB: &str = "get ";

/// The line that asks, without its end.
pub(super) fn request(name: &ServedName) -> String {
    format!("{VERB}{name}")
}

/// What is asked for; nothing if that is no request.
pub(super) fn asked(line: &[u8]) -> Option<ServedName> {
    std::str::from_utf8(line)
        .ok()?
        .strip_prefix(VERB)?
        .parse()
        .ok()
}

/// The line that answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// With it comes the descriptor.
    Here {
        generation: Generation,
        /// In bytes.
        length: u64,
        /// For how long it may not have been the newest.
        age: Duration,
    },
    Refused(Refusal),
}

/// Why there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It is not there yet.
    Waiting,
    /// It was not refreshed for too long.
    Outdated,
    /// Its source took it back.
    Withdrawn,
    /// There is none of this name for this user.
    Missing,
    /// There is none at all for this user.
    Denied,
    /// This user has too many connections.
    Busy,
    /// That was no request.
    Malformed,
}

impl Refusal {
    pub(super) const ALL: [Self; 7] = [
        Self::Waiting,
        Self::Outdated,
        Self::Withdrawn,
        Self::Missing,
        Self::Denied,
        Self::Busy,
        Self::Malformed,
    ];

    /// The word of the line, and of the metric.
    pub fn word(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Outdated => "outdated",
            Self::Withdrawn => "withdrawn",
            Self::Missing => "missing",
            Self::Denied => "denied",
            Self::Busy => "busy",
            Self::Malformed => "malformed",
        }
    }
}

/// The word of an answer with a descriptor.
pub(super) const HERE: &str = "ok";

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Here {
                generation,
                length,
                age,
            } => write!(f, "{HERE} {generation} {length} {}", age.as_secs()),
            Self::Refused(refusal) => f.write_str(refusal.word()),
        }
    }
}

impl FromStr for Answer {
    type Err = NoAnswer;

    fn from_str(line: &str) -> Result<Self, NoAnswer> {
        let words: Vec<_> = line.split(' ').collect();
        match *words.as_slice() {
            [HERE, generation, length, age] if !generation.is_empty() => Ok(Self::Here {
                generation: Generation::named(generation),
                length: length.parse().map_err(|_| NoAnswer)?,
                age: age.parse().map(Duration::from_secs).map_err(|_| NoAnswer)?,
            }),
            [word] => Refusal::ALL
                .into_iter()
                .find(|refusal| refusal.word() == word)
                .map(Self::Refused)
                .ok_or(NoAnswer),
            _ => Err(NoAnswer),
        }
    }
}

/// Whoever answers speaks another protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the answer is none of this protocol")]
pub struct NoAnswer;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_understood() {
        let name: ServedName = "smtp.v2".parse().unwrap();
        assert_eq!(asked(request(&name).as_bytes()), Some(name));
        let here = Answer::Here {
            generation: Generation::named("a1b2"),
            length: 1_048_576,
            age: Duration::from_secs(90),
        };
        assert_eq!(here.to_string(), "ok a1b2 1048576 90");
        let refusals = Refusal::ALL.map(Answer::Refused);
        for answer in [here].into_iter().chain(refusals) {
            assert_eq!(answer.to_string().parse(), Ok(answer));
        }
    }

    #[test]
    fn attack_what_is_not_exactly_a_request_is_none() {
        for line in [
            &b""[..],
            b"get",
            b"get ",
            b"get  smtp",
            b"get smtp ",
            b"get smtp\r",
            b"get ../smtp",
            b"get shop/smtp",
            b"GET smtp",
            b"GET /smtp HTTP/1.1\r",
            b"get sm\0tp",
            b"get \xff",
        ] {
            assert_eq!(asked(line), None, "{line:?}");
        }
    }

    #[test]
    fn what_is_not_exactly_an_answer_is_none() {
        for line in [
            "",
            "ok",
            "ok a 1",
            "ok a 1 2 3",
            "ok  1 2",
            "ok a -1 0",
            "ok a 1 x",
            "denied ",
            "OK a 1 2",
        ] {
            assert_eq!(line.parse::<Answer>(), Err(NoAnswer), "{line}");
        }
    }
}
