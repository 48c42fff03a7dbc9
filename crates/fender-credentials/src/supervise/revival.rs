//! Whether and when an application that ended by itself is started again. It starts nothing and reads no clock.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use fender_runtime::backoff::Backoff;

/// When an application that ends by itself is started again. The names are Docker's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RestartOn {
    /// Never: its end is everybody's.
    #[default]
    No,
    /// When it ends with another code than 0, or by a signal.
    OnFailure,
    /// Whatever it ends with.
    Always,
}

/// What becomes of an application that ends by itself, before anybody asked for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RestartPolicy {
    /// With which ends.
    pub on: RestartOn,
    /// How often without a healthy time between; none: without end.
    pub attempts: Option<u32>,
    /// How long it rests at first; twice as long each time, and never exactly.
    pub first_rest: Duration,
    /// How long it rests at most.
    pub longest_rest: Duration,
    /// Who ran for so long did not fail for the reason before: it rests as at first, and all attempts are there again.
    pub healthy: Duration,
}

impl Default for RestartPolicy {
    fn default() -> Self {
        Self {
            on: RestartOn::No,
            attempts: None,
            first_rest: Duration::from_millis(200),
            longest_rest: Duration::from_secs(60),
            healthy: Duration::from_secs(10),
        }
    }
}

/// Not a way to restart.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "it must be `no`, `on-failure`, `always`, or one of the last two with how often at most, like `on-failure:5`"
)]
pub struct InvalidRestartPolicy;

/// `no`, `on-failure`, `on-failure:5`, `always` or `always:5`.
impl FromStr for RestartPolicy {
    type Err = InvalidRestartPolicy;

    fn from_str(text: &str) -> Result<Self, InvalidRestartPolicy> {
        let (on, attempts) = match text.split_once(':') {
            Some((on, attempts)) => {
                let number = attempts.parse().ok().filter(|number| *number > 0);
                (on, Some(number.ok_or(InvalidRestartPolicy)?))
            }
            None => (text, None),
        };
        let on = match (on, attempts) {
            ("no", None) => RestartOn::No,
            ("on-failure", _) => RestartOn::OnFailure,
            ("always", _) => RestartOn::Always,
            _ => return Err(InvalidRestartPolicy),
        };
        Ok(Self {
            on,
            attempts,
            ..Self::default()
        })
    }
}

impl fmt::Display for RestartPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.on {
            RestartOn::No => "no",
            RestartOn::OnFailure => "on-failure",
            RestartOn::Always => "always",
        })?;
        match self.attempts {
            Some(attempts) => write!(f, ":{attempts}"),
            None => Ok(()),
        }
    }
}

/// What comes after an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum After {
    /// It is over, as was to be.
    End,
    /// It is over: it was started again so often.
    GiveUp(u32),
    /// It is started again, after this.
    Rest(Duration),
}

/// What has been tried.
#[derive(Debug)]
pub(super) struct Revival {
    attempts: u32,
    backoff: Backoff,
}

impl Revival {
    pub(super) fn new(policy: &RestartPolicy) -> Self {
        Self {
            attempts: 0,
            backoff: Backoff::new(policy.first_rest, policy.longest_rest),
        }
    }

    /// It ended with this code, having run for so long.
    pub(super) fn after(&mut self, policy: &RestartPolicy, code: u8, ran: Duration) -> After {
        let again = match policy.on {
            RestartOn::No => false,
            RestartOn::OnFailure => code != 0,
            RestartOn::Always => true,
        };
        if !again {
            return After::End;
        }
        if ran >= policy.healthy {
            self.attempts = 0;
            self.backoff.reset();
        }
        if policy.attempts.is_some_and(|most| self.attempts >= most) {
            return After::GiveUp(self.attempts);
        }
        self.attempts = self.attempts.saturating_add(1);
        After::Rest(self.backoff.next())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_secs(1);

    fn rests(revival: &mut Revival, policy: &RestartPolicy, code: u8, ran: Duration) -> bool {
        matches!(revival.after(policy, code, ran), After::Rest(_))
    }

    #[test]
    fn what_is_written_is_what_is_read_and_nothing_else_is() {
        for text in ["no", "on-failure", "on-failure:3", "always", "always:1"] {
            assert_eq!(text.parse::<RestartPolicy>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "yes",
            "no:3",
            "always:0",
            "always:",
            "always:-1",
            "on-failure:x",
            "Always",
        ] {
            assert!(text.parse::<RestartPolicy>().is_err(), "{text}");
        }
    }

    #[test]
    fn which_ends_are_followed_by_a_start() {
        for (policy, after_0, after_1) in [
            ("no", false, false),
            ("on-failure", false, true),
            ("always", true, true),
        ] {
            let policy = policy.parse().unwrap();
            let mut revival = Revival::new(&policy);
            assert_eq!(rests(&mut revival, &policy, 0, SHORT), after_0, "{policy}");
            assert_eq!(rests(&mut revival, &policy, 1, SHORT), after_1, "{policy}");
        }
    }

    #[test]
    fn rests_grow_up_to_a_bound_and_begin_anew_after_a_healthy_time() {
        let policy: RestartPolicy = "always".parse().unwrap();
        let mut revival = Revival::new(&policy);
        let mut rest = |ran| match revival.after(&policy, 1, ran) {
            After::Rest(rest) => rest,
            other @ (After::End | After::GiveUp(_)) => panic!("{other:?}"),
        };
        assert!(rest(SHORT) <= policy.first_rest);
        let rests: Vec<_> = (0..64).map(|_| rest(SHORT)).collect();
        assert!(rests.iter().all(|rest| *rest <= policy.longest_rest));
        assert!(rests.iter().any(|rest| *rest > policy.longest_rest / 4));
        assert!(rest(policy.healthy) <= policy.first_rest);
    }

    #[test]
    fn attempts_are_counted_in_a_row() {
        let policy: RestartPolicy = "on-failure:2".parse().unwrap();
        let mut revival = Revival::new(&policy);
        assert!(rests(&mut revival, &policy, 1, SHORT));
        assert!(rests(&mut revival, &policy, 1, SHORT));
        assert_eq!(revival.after(&policy, 1, SHORT), After::GiveUp(2));
        assert!(rests(&mut revival, &policy, 1, policy.healthy));
        assert!(rests(&mut revival, &policy, 1, SHORT));
        assert_eq!(revival.after(&policy, 1, SHORT), After::GiveUp(2));
        assert_eq!(revival.after(&policy, 0, SHORT), After::End);
    }
}
