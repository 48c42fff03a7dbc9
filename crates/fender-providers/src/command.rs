//! A plug-in: a program that is asked for one secret, and answers in JSON.
//!
//! It reads one line, `{"version":1,"operation":"fetch","name":…,"namespace":…}`, and writes one answer: a `value` or a
//! `valueBase64`, with `expires` if it does, or an `error` whose `kind` says whose doing it is. The contract is
//! `docs/guide/plugins.md`.
//!
//! A program that fails, is late or writes anything else has not answered, and what was known before still holds: only an
//! `error` that says so withdraws a secret. Nothing it writes is repeated anywhere but the `message` of an error, which it
//! writes for people: its output may hold the value, and so may its complaints on standard error, which are counted.
//!
//! How many run at once is bounded by their [`Runner`]; a program that fails is asked again after a second, and then ever
//! more rarely.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use fender_config::ObjectName;
use fender_config::snapshot::Command;
use fender_identity::Secret;
use fender_runtime::backoff::{Backoff, spread};
use fender_runtime::clock::SharedClock;
use fender_runtime::program::{Exit, Finished, RunError, Runner, Task};

use crate::known::Known;
use crate::{FetchError, Fetched, Source, Standing};

mod answer;

/// The most a value may weigh.
pub const LIMIT: usize = 1024 * 1024;
/// The most its answer may: the value in base64, or escaped.
const MOST: usize = 2 * LIMIT;
/// No document has a program asked more often, whoever sent it.
const SHORTEST: Duration = Duration::from_secs(1);

/// A secret that a program knows.
#[derive(Debug)]
pub struct CommandSource {
    name: ObjectName,
    command: Command,
    runner: Runner,
    clock: SharedClock,
    memory: Mutex<Memory>,
}

#[derive(Debug)]
struct Memory {
    last: Known,
    /// When to ask again.
    next: Duration,
    /// When the last value ends, if its program said so, counted from 1970.
    expires: Option<Duration>,
    backoff: Backoff,
}

impl CommandSource {
    /// The secret `name`, as `command` says it when `runner` runs it.
    pub fn new(name: ObjectName, command: Command, runner: Runner, clock: SharedClock) -> Self {
        let every = command.every.max(SHORTEST);
        let memory = Memory {
            last: Known::default(),
            next: every,
            expires: None,
            backoff: Backoff::new(SHORTEST, every),
        };
        Self {
            name,
            command,
            runner,
            clock,
            memory: Mutex::new(memory),
        }
    }

    fn question(&self) -> Vec<u8> {
        let question = serde_json::json!({
            "version": answer::VERSION,
            "operation": "fetch",
            "namespace": self.name.namespace(),
            "name": self.name.name(),
        });
        format!("{question}\n").into_bytes()
    }

    async fn ask(&self) -> Result<answer::Value, FetchError> {
        let task = Task {
            program: self.command.program.clone(),
            arguments: self.command.arguments.clone(),
            input: self.question(),
            most: MOST,
            timeout: self.command.timeout,
        };
        let finished = self.runner.run(&task).await;
        self.judge(finished)
    }

    fn judge(&self, finished: Result<Finished, RunError>) -> Result<answer::Value, FetchError> {
        let program = self.command.program.display();
        let Finished {
            exit,
            output,
            complaints,
        } = finished.map_err(|error| match error {
            RunError::TooMuch => FetchError::Malformed(format!("`{program}`: {error}")),
            RunError::NotAllowed => FetchError::Denied(format!("`{program}`: {error}")),
            RunError::Start(_) | RunError::Timeout | RunError::Gone | _ => {
                FetchError::Outage(format!("`{program}`: {error}"))
            }
        })?;
        let complained = match complaints {
            0 => String::new(),
            bytes => format!(
                ", with {bytes} bytes on its standard error, which are not shown because a secret may be among them"
            ),
        };
        match exit {
            Exit::Code(0) => {}
            Exit::Code(code) => {
                let why = format!("`{program}` ended with exit code {code}{complained}");
                return Err(FetchError::Outage(why));
            }
            Exit::Signal(signal) => {
                let why = format!("`{program}` was ended by signal {signal}{complained}");
                return Err(FetchError::Outage(why));
            }
        }
        let malformed =
            |why: String| FetchError::Malformed(format!("`{program}` {why}{complained}"));
        let told = answer::read(&output).map_err(|error| malformed(error.to_string()))?;
        drop(output);
        let value = told.map_err(|refusal| refusal.blame(&format!("`{program}` says")))?;
        if value.secret.len() > LIMIT {
            return Err(malformed("gave a value larger than 1 MiB".to_owned()));
        }
        Ok(value)
    }

    /// Keeps the generation of a value that came before, and says when to ask again.
    fn remember(&self, answer: Result<answer::Value, FetchError>) -> Result<Fetched, FetchError> {
        let every = self.command.every.max(SHORTEST);
        let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        let lived = answer.and_then(|value| match value.expires {
            None => Ok((value.secret, every, None)),
            Some(moment) => {
                let left = moment.saturating_sub(self.clock.since_1970());
                if left.is_zero() {
                    let program = self.command.program.display();
                    let why = format!("`{program}` gave a value that has expired already");
                    return Err(FetchError::Outage(why));
                }
                // A third of its life is left for a program that fails meanwhile.
                Ok((value.secret, every.min(left * 2 / 3), Some(moment)))
            }
        });
        match lived {
            Ok((secret, next, expires)) => {
                memory.backoff.reset();
                memory.expires = expires;
                // Not all at once that were asked at once.
                memory.next = (next - spread(next / 10)).max(SHORTEST);
                Ok(memory.last.fetched(secret))
            }
            Err(error) => {
                memory.next = match error.is_refusal() {
                    true => every,
                    false => memory.backoff.next(),
                };
                Err(error)
            }
        }
    }
}

impl Source for CommandSource {
    async fn fetch(&self) -> Result<Fetched, FetchError> {
        let answer = self.ask().await;
        self.remember(answer)
    }

    fn interval(&self) -> Duration {
        let memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        memory.next
    }

    fn standing(&self) -> Standing {
        let memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        memory.expires.map_or(Standing::Asked, Standing::Until)
    }

    fn is_whole(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests;
