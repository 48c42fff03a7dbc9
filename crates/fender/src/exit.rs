//! Exit codes and the one error type that reaches `main`.
//!
//! The codes follow `sysexits.h` where it has a word for the case. A supervised application's own
//! code passes through untouched.

use std::fmt;
use std::process::ExitCode;

/// Why the process ends, as a shell sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    Done,
    /// Bad usage or documents.
    Usage,
    /// A required credential is missing or may not be had.
    Missing,
    /// Something needed is not there or does not answer.
    Unavailable,
    Timeout,
    /// Somebody proved not to be who they must be, or may not do this.
    Refused,
    /// The application's own code.
    App(u8),
}

impl Exit {
    pub(crate) fn from_code(code: u8) -> Self {
        match code {
            0 => Self::Done,
            64 => Self::Usage,
            66 => Self::Missing,
            69 => Self::Unavailable,
            75 => Self::Timeout,
            77 => Self::Refused,
            other => Self::App(other),
        }
    }

    pub(crate) fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Usage => 64,
            Self::Missing => 66,
            Self::Unavailable => 69,
            Self::Timeout => 75,
            Self::Refused => 77,
            Self::App(code) => code,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

/// A command that did not succeed: the code for the shell and the reason for the reader.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) exit: Exit,
    /// A stable word for scripts, such as `token-spent`; printed as `error[token-spent]`.
    pub(crate) code: Option<String>,
    pub(crate) error: anyhow::Error,
}

pub(crate) type Outcome = Result<Exit, Failure>;

impl Failure {
    pub(crate) fn new(exit: Exit, error: impl Into<anyhow::Error>) -> Self {
        Self {
            exit,
            code: None,
            error: error.into(),
        }
    }

    pub(crate) fn coded(
        exit: Exit,
        code: impl Into<String>,
        error: impl Into<anyhow::Error>,
    ) -> Self {
        Self {
            exit,
            code: Some(code.into()),
            error: error.into(),
        }
    }

    pub(crate) fn usage(message: impl fmt::Display) -> Self {
        Self::new(Exit::Usage, anyhow::anyhow!("{message}"))
    }

    pub(crate) fn usage_of(error: impl Into<anyhow::Error>) -> Self {
        Self::new(Exit::Usage, error)
    }

    pub(crate) fn unavailable(error: impl Into<anyhow::Error>) -> Self {
        Self::new(Exit::Unavailable, error)
    }

    #[cfg(feature = "administration")]
    pub(crate) fn context(mut self, what: impl fmt::Display + Send + Sync + 'static) -> Self {
        self.error = self.error.context(what);
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.code {
            Some(code) => write!(f, "error[{code}]: ")?,
            None => f.write_str("error: ")?,
        }
        // Some errors tell their cause themselves: it is not said twice.
        let mut said = String::new();
        for error in self.error.chain() {
            let text = error.to_string();
            if !said.ends_with(&text) {
                let separator = if said.is_empty() { "" } else { ": " };
                said.push_str(separator);
                said.push_str(&text);
            }
        }
        f.write_str(&said)
    }
}
