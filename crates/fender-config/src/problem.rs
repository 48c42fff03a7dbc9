//! What is wrong with a document, where, and what to do.

use std::fmt;

/// One thing wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub file: String,
    /// From 1; 0 if the problem is the file as a whole.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    /// Stable, for machines: `fender::unknown-field`.
    pub code: &'static str,
    pub message: String,
    pub help: Option<String>,
}

/// `file:line:column` of something else that a problem mentions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub file: String,
    pub line: usize,
    pub column: usize,
}

/// Everything wrong, in the order of files and lines.
#[derive(Clone, Debug)]
pub struct Problems {
    problems: Vec<Problem>,
}

impl Problems {
    pub fn iter(&self) -> std::slice::Iter<'_, Problem> {
        self.problems.iter()
    }

    /// For a terminal: each problem with the lines it is about.
    pub fn render(&self) -> String {
        todo!()
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render())
    }
}

impl std::error::Error for Problems {}
