//! A plug-in: a program that is asked for a secret.

use std::path::PathBuf;
use std::time::Duration;

/// Which program, with what, how often and for how long.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Command {
    /// Absolute.
    pub program: PathBuf,
    pub arguments: Vec<String>,
    /// From the end of one answer to the next question.
    pub every: Duration,
    /// From its start until it is killed.
    pub timeout: Duration,
}

impl Command {
    pub const MOST_ARGUMENTS: usize = 16;
    /// Of one argument, in bytes.
    pub const LONGEST_ARGUMENT: usize = 4096;

    /// Whether a program may be given these.
    pub fn check(arguments: &[String]) -> Result<(), InvalidArguments> {
        if arguments.len() > Self::MOST_ARGUMENTS {
            return Err(InvalidArguments::TooMany);
        }
        let long = |argument: &String| argument.len() > Self::LONGEST_ARGUMENT;
        if let Some(at) = arguments.iter().position(long) {
            return Err(InvalidArguments::TooLong(at + 1));
        }
        // A line feed or an escape would forge what is logged of it.
        let odd = |argument: &String| argument.chars().any(char::is_control);
        match arguments.iter().position(odd) {
            Some(at) => Err(InvalidArguments::Control(at + 1)),
            None => Ok(()),
        }
    }
}

/// Arguments that no program is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidArguments {
    #[error("a program is given at most {most} arguments", most = Command::MOST_ARGUMENTS)]
    TooMany,
    #[error("argument {0} has more than {most} bytes", most = Command::LONGEST_ARGUMENT)]
    TooLong(usize),
    #[error("argument {0} holds a control character")]
    Control(usize),
}
