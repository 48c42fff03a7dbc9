//! What could not be removed, or done at all, yet: who sees to it, and what is said of it. It is said once for each thing that is
//! wrong, and once when it is over.

use std::io;

/// How many files a line of the log names.
pub(super) const NAMED: usize = 8;

/// What was to be removed and is still there.
#[derive(Debug, Default)]
pub(super) struct Left {
    /// Whether what a crash has left half written has been looked for, once.
    pub(super) is_tidy: bool,
    pub(super) is_something: bool,
    /// Whether somebody tries again until it is gone.
    pub(super) is_seen_to: bool,
    pub(super) said: Said,
}

/// A problem that is met again and again, and said when it is another one than before.
#[derive(Debug, Default)]
pub(super) struct Said(Option<String>);

impl Said {
    /// Whether that is to be said.
    pub(super) fn is_news(&mut self, problem: &str) -> bool {
        let news = self.0.as_deref() != Some(problem);
        self.0 = Some(problem.to_owned());
        news
    }

    /// Whether it is to be said that it is over.
    pub(super) fn is_over(&mut self) -> bool {
        self.0.take().is_some()
    }
}

/// What came of removing something.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Removed {
    /// It was there, and is not any more.
    Gone,
    /// It was not there.
    Absent,
    /// It is not this process's to remove, for now.
    NotOurs,
}

/// Who sees to what could not be removed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Rest {
    /// Somebody does, or there is nothing.
    SeenTo,
    /// Whoever is told this.
    Untended,
}

pub(super) fn of_file(file: &str, error: &io::Error) -> String {
    format!("`{file}`: {error}")
}

/// As one line, of a length that a log bears.
pub(super) fn together(mut problems: Vec<String>) -> Option<String> {
    let more = problems.len().saturating_sub(NAMED);
    problems.truncate(NAMED);
    if more > 0 {
        problems.push(format!("and {more} more"));
    }
    (!problems.is_empty()).then(|| problems.join("; "))
}
