//! What is wrong with a document, where, and what to do.
//!
//! A problem is one thing a person can fix. Rendering shows the line it is about; nothing here
//! decides what is wrong.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use miette::{
    GraphicalReportHandler, GraphicalTheme, LabeledSpan, MietteDiagnostic, NamedSource, Severity,
};

use crate::Source;

/// More than this helps nobody, and a hostile file could hold hundreds of thousands.
pub(crate) const MAX_PROBLEMS: usize = 1000;
/// Rendered with their lines; the rest is counted.
const MAX_RENDERED: usize = 100;
const RENDER_WIDTH: usize = 100;

/// One thing wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub file: String,
    /// From 1; 0 if the problem is the file as a whole.
    pub line: usize,
    /// From 1, in characters; 0 if the problem is the file as a whole.
    pub column: usize,
    /// Stable, for machines: `fender::unknown-field`.
    pub code: &'static str,
    pub message: String,
    pub help: Option<String>,
    /// How many characters of the line it is about.
    length: usize,
}

/// Where something stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    file: String,
    line: usize,
    column: usize,
    length: usize,
}

impl Place {
    pub(crate) fn new(file: &str, line: usize, column: usize, length: usize) -> Self {
        Self {
            file: file.to_owned(),
            line,
            column,
            length,
        }
    }

    pub(crate) fn whole_file(file: &str) -> Self {
        Self::new(file, 0, 0, 0)
    }
}

/// `file:line:column`
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file, self.line, self.column)
    }
}

impl Problem {
    pub(crate) fn new(place: Place, code: &'static str, message: impl Into<String>) -> Self {
        Self {
            file: place.file,
            line: place.line,
            column: place.column,
            code,
            message: printable(&message.into()),
            help: None,
            length: place.length,
        }
    }

    /// The same about the same text, some lines further down or up.
    pub(crate) fn moved(&self, from: usize, to: usize) -> Self {
        Self {
            line: (self.line + to).saturating_sub(from),
            ..self.clone()
        }
    }

    pub(crate) fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(printable(&help.into()));
        self
    }

    /// With the line it is about, if `sources` hold its file.
    pub fn render(&self, sources: &[Source]) -> String {
        render(&[(self, Severity::Error)], &Texts::of(sources))
    }
}

/// Texts of documents end on terminals: control characters are written out, not obeyed.
fn printable(text: &str) -> String {
    let mut printable = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_control() {
            printable.extend(character.escape_default());
        } else {
            printable.push(character);
        }
    }
    printable
}

/// One line: `file:line:column: message`.
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}: {}", self.file, self.message)?,
            line => write!(f, "{}:{line}:{}: {}", self.file, self.column, self.message)?,
        }
        match &self.help {
            Some(help) => write!(f, " ({help})"),
            None => Ok(()),
        }
    }
}

/// Everything wrong, in the order of files and lines, and what looked odd besides.
#[derive(Clone)]
pub struct Problems {
    problems: Vec<Problem>,
    warnings: Vec<Problem>,
    texts: Texts,
}

impl Problems {
    pub fn iter(&self) -> std::slice::Iter<'_, Problem> {
        self.problems.iter()
    }

    pub fn warnings(&self) -> &[Problem] {
        &self.warnings
    }

    /// For a terminal: each problem with the line it is about.
    pub fn render(&self) -> String {
        let errors = self
            .problems
            .iter()
            .map(|problem| (problem, Severity::Error));
        let warnings = self
            .warnings
            .iter()
            .map(|warning| (warning, Severity::Warning));
        render(&errors.chain(warnings).collect::<Vec<_>>(), &self.texts)
    }
}

impl<'a> IntoIterator for &'a Problems {
    type Item = &'a Problem;
    type IntoIter = std::slice::Iter<'a, Problem>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render())
    }
}

/// Without the text of the documents.
impl fmt::Debug for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Problems")
            .field("problems", &self.problems)
            .field("warnings", &self.warnings)
            .finish()
    }
}

impl std::error::Error for Problems {}

/// Collects while documents are read.
#[derive(Debug, Default)]
pub(crate) struct Report {
    problems: Vec<Problem>,
    warnings: Vec<Problem>,
}

impl Report {
    pub(crate) fn add(&mut self, problem: Problem) {
        self.problems.push(problem);
    }

    pub(crate) fn warn(&mut self, warning: Problem) {
        self.warnings.push(warning);
    }

    pub(crate) fn is_clean(&self) -> bool {
        self.problems.is_empty()
    }

    /// The warnings and what was read, if nothing was wrong.
    pub(crate) fn finish<T>(
        mut self,
        sources: &[Source],
        read: Option<T>,
    ) -> Result<(Vec<Problem>, T), Problems> {
        let order = |problem: &Problem| {
            let file = sources
                .iter()
                .position(|source| source.name == problem.file);
            (file, problem.line, problem.column)
        };
        self.problems.sort_by_key(order);
        self.warnings.sort_by_key(order);
        self.warnings.truncate(MAX_PROBLEMS);
        if let (true, Some(read)) = (self.problems.is_empty(), read) {
            return Ok((self.warnings, read));
        }
        if let Some(last) = self.problems.get(MAX_PROBLEMS).cloned() {
            self.problems.truncate(MAX_PROBLEMS);
            let place = Place::new(&last.file, last.line, last.column, last.length);
            let message =
                format!("more than {MAX_PROBLEMS} problems; from here on they are not listed");
            self.problems
                .push(Problem::new(place, "fender::too-many-problems", message));
        }
        Err(Problems {
            problems: self.problems,
            warnings: self.warnings,
            texts: Texts::of(sources),
        })
    }
}

/// The files, to quote from.
#[derive(Clone)]
struct Texts(Vec<(String, Arc<str>)>);

impl Texts {
    fn of(sources: &[Source]) -> Self {
        Self(
            sources
                .iter()
                .map(|source| (source.name.clone(), source.text.as_str().into()))
                .collect(),
        )
    }

    /// The line and its neighbours, if it is there and short enough to be quoted.
    fn around(&self, file: &str, line: usize) -> Option<Quote> {
        let (_, text) = self.0.iter().find(|(name, _)| name == file)?;
        let above = line.saturating_sub(2);
        let mut text_around = "\n".repeat(above);
        let mut at = None;
        for (number, quoted) in (above + 1..=line + 1).zip(text.lines().skip(above)) {
            let fits = quoted.chars().count() <= MAX_QUOTED;
            let from = text_around.len();
            let shown = if fits { quoted } else { "…" };
            // One for one, so that columns stay right.
            text_around.extend(shown.chars().map(|character| match character {
                '\t' => ' ',
                control if control.is_control() => '?',
                other => other,
            }));
            if number == line {
                at = fits.then_some(from..text_around.len());
            }
            text_around.push('\n');
        }
        Some(Quote {
            text: text_around,
            line: at?,
        })
    }
}

/// A few lines of a file, with their numbers kept right by empty lines before them.
struct Quote {
    text: String,
    /// Which bytes of it are the line in question.
    line: Range<usize>,
}

fn render(problems: &[(&Problem, Severity)], texts: &Texts) -> String {
    let handler = GraphicalReportHandler::new_themed(GraphicalTheme::unicode_nocolor())
        .with_width(RENDER_WIDTH)
        .with_links(false);
    let mut out = String::new();
    for (problem, severity) in problems.iter().take(MAX_RENDERED) {
        let report = problem.diagnostic(*severity, texts);
        // Writing to a String cannot fail.
        let _ = handler.render_report(&mut out, report.as_ref());
        out.push('\n');
    }
    if let Some(more) = problems
        .len()
        .checked_sub(MAX_RENDERED)
        .filter(|more| *more > 0)
    {
        out.push_str(&format!("… and {more} more\n"));
    }
    out
}

/// Longer lines are cut when quoted.
const MAX_QUOTED: usize = 200;

impl Problem {
    fn diagnostic(&self, severity: Severity, texts: &Texts) -> miette::Report {
        let mut diagnostic = MietteDiagnostic::new(self.message.clone())
            .with_code(self.code)
            .with_severity(severity);
        diagnostic.help = self.help.clone();
        let Some(quote) = texts.around(&self.file, self.line) else {
            let place = match self.line {
                0 => self.file.clone(),
                line => format!("{}:{line}:{}", self.file, self.column),
            };
            diagnostic.message = format!("{place}: {}", self.message);
            return diagnostic.into();
        };
        let line = quote.text.get(quote.line.clone()).unwrap_or_default();
        let characters: Vec<usize> = line
            .char_indices()
            .map(|(at, _)| at)
            .chain([line.len()])
            .collect();
        let nth = |n: usize| characters.get(n).copied().unwrap_or(line.len());
        let from = self.column.saturating_sub(1);
        let (start, end) = (nth(from), nth(from + self.length.max(1)));
        diagnostic.labels = Some(vec![LabeledSpan::underline((
            quote.line.start + start,
            end - start,
        ))]);
        miette::Report::new(diagnostic).with_source_code(NamedSource::new(&self.file, quote.text))
    }
}
