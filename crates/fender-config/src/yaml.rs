//! From the text of a file to its documents, each read by itself, so that a broken one hides no
//! other.
//!
//! Limits are set before anything is read: size, depth, number of nodes, what aliases may expand
//! to.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{self, DeserializeOwned, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_saphyr::MessageFormatter;

use crate::Source;
use crate::problem::{Place, Problem, Report};
use crate::suggest::{either, nearest};
use crate::tree::{Branch, Misfit, Node, SPOTTED, Spot, Why};

/// One document of a file, not yet read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Page<'a> {
    pub(crate) file: &'a str,
    pub(crate) text: &'a str,
    /// Lines of the file before it.
    pub(crate) lines_before: usize,
    /// Bytes of the file before it.
    pub(crate) offset: usize,
}

impl<'a> Page<'a> {
    /// A line that begins with `---` begins a document wherever it stands: YAML allows it nowhere
    /// else, not even inside a quoted text.
    pub(crate) fn split(source: &'a Source) -> Vec<Self> {
        let text = source.text.strip_prefix('\u{feff}').unwrap_or(&source.text);
        let begin = source.text.len() - text.len();
        let page =
            |from: usize, to: usize, lines_before| Self::at(source, from, to - from, lines_before);
        let (mut pages, mut from, mut lines_before, mut offset) = (Vec::new(), begin, 0, begin);
        for (number, line) in text.split_inclusive('\n').enumerate() {
            let next = offset + line.len();
            if is_marker(line, "---") && offset > from {
                pages.push(page(from, offset, lines_before));
                (from, lines_before) = (offset, number);
            } else if is_marker(line, "...") {
                pages.push(page(from, next, lines_before));
                (from, lines_before) = (next, number + 1);
            }
            offset = next;
        }
        pages.push(page(from, source.text.len(), lines_before));
        pages.retain(|page| !page.is_empty());
        pages
    }

    pub(crate) fn at(
        source: &'a Source,
        offset: usize,
        length: usize,
        lines_before: usize,
    ) -> Self {
        Self {
            file: &source.name,
            text: source.text.get(offset..offset + length).unwrap_or_default(),
            lines_before,
            offset,
        }
    }

    /// Whether it is of this file, and not of another of the same name.
    pub(crate) fn is_of(&self, source: &Source) -> bool {
        std::ptr::eq(self.file, source.name.as_str())
    }

    /// Nothing but comments and markers.
    fn is_empty(&self) -> bool {
        self.text.lines().map(str::trim).all(|line| {
            let line = line
                .strip_prefix("---")
                .or_else(|| line.strip_prefix("..."))
                .unwrap_or(line)
                .trim_start();
            line.is_empty() || line.starts_with('#')
        })
    }

    pub(crate) fn tree(self) -> Result<Tree<'a>, Problem> {
        let root = serde_saphyr::from_str_with_options(self.text, options())
            .map_err(|error| self.problem(&error))?;
        Ok(Tree { page: self, root })
    }

    pub(crate) fn place(&self, spot: Spot) -> Place {
        let [line, column, length] = [spot.line, spot.column, spot.length]
            .map(|number| usize::try_from(number).unwrap_or(usize::MAX));
        let (line, column) = (line.max(1), column.max(1));
        // A line of YAML may end with a CR alone, and a line of ours does not: no place is beyond its document.
        let line = line.min(self.text.lines().count().max(1));
        // A text over several lines is marked on its first one.
        let to_end = self
            .text
            .lines()
            .nth(line - 1)
            .map_or(0, |text| text.chars().count().saturating_sub(column - 1));
        Place::new(
            self.file,
            self.lines_before + line,
            column,
            length.min(to_end),
        )
    }

    /// Where the document begins.
    pub(crate) fn start(&self) -> Place {
        let content = |line: &&str| {
            !(line.trim().is_empty() || line.starts_with('#') || is_marker(line, "---"))
        };
        let line = self
            .text
            .lines()
            .position(|line| content(&line))
            .unwrap_or_default();
        let length = self
            .text
            .lines()
            .nth(line)
            .map_or(0, |text| text.trim_end().chars().count());
        Place::new(self.file, self.lines_before + line + 1, 1, length)
    }

    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "of the library's dozens of errors a few deserve words of ours"
    )]
    fn problem(&self, error: &serde_saphyr::Error) -> Problem {
        use serde_saphyr::Error;
        let place = error
            .location()
            .map_or_else(|| self.start(), |location| self.place(location.into()));
        let told = |code, message: String| Problem::new(place.clone(), code, message);
        match error.without_snippet() {
            Error::AliasError { error, .. } => self.problem(error),
            Error::DuplicateMappingKey { key: Some(key), .. } => told(
                "fender::duplicate-field",
                format!("the field `{key}` is there twice"),
            )
            .help("keep one of them: YAML would silently take only one"),
            Error::UnknownAnchor { .. } => told(
                "fender::yaml",
                "this refers to an anchor that the document does not have".to_owned(),
            )
            .help(
                "a text that begins with `*` stands in quotes; anchors do not reach \
                        across documents",
            ),
            Error::Budget { .. }
            | Error::AliasReplayLimitExceeded { .. }
            | Error::AliasExpansionLimitExceeded { .. }
            | Error::AliasReplayStackDepthExceeded { .. } => {
                told("fender::too-large", one_line(error)).help(
                    "write it out, flatter and smaller: documents are kept small so that \
                    no file can exhaust the control plane",
                )
            }
            _ => told("fender::yaml", one_line(error)).help(
                "this is not YAML that can be read; look for indentation, quotes and \
                    brackets here and just above",
            ),
        }
    }
}

/// A document that is YAML, whatever it means.
#[derive(Debug)]
pub(crate) struct Tree<'a> {
    page: Page<'a>,
    root: Node,
}

impl Tree<'_> {
    pub(crate) fn read<T: DeserializeOwned>(&self) -> Result<T, Problem> {
        let root = Branch {
            node: &self.root,
            text: self.page.text,
        };
        T::deserialize(root).map_err(|misfit| self.problem(misfit))
    }

    fn problem(&self, misfit: Misfit) -> Problem {
        let page = &self.page;
        let place = misfit
            .spot
            .map_or_else(|| page.start(), |spot| page.place(spot));
        let told = |code, message: String| Problem::new(place, code, message);
        match misfit.why {
            Why::UnknownField { field, expected } => {
                let problem = told("fender::unknown-field", format!("unknown field `{field}`"));
                match nearest(&field, expected.iter().copied()) {
                    Some(meant) => problem.help(format!("did you mean `{meant}`?")),
                    None if expected.is_empty() => problem.help("nothing belongs here"),
                    None => problem.help(format!(
                        "what belongs here is {}",
                        either(expected.iter().copied())
                    )),
                }
            }
            Why::MissingField(field) => told(
                "fender::missing-field",
                format!("the field `{field}` is missing here"),
            )
            .help("it has no default; `fender schema` prints what belongs where"),
            Why::Type { expected, found } => told(
                "fender::wrong-type",
                format!("expected {expected}, found {found}"),
            )
            .help("`fender schema` prints what belongs where"),
            Why::NoFields => told(
                "fender::wrong-type",
                "expected fields, found something else".to_owned(),
            )
            .help("write `name: value` lines below, or `{ name: value }`"),
            Why::NoList => told(
                "fender::wrong-type",
                "expected a list, found something else".to_owned(),
            )
            .help("write `- …` lines below, or `[ … ]`"),
            Why::Other(message) => told("fender::wrong-type", message)
                .help("`fender schema` prints what belongs where"),
        }
    }
}

fn one_line(error: &serde_saphyr::Error) -> String {
    let message = serde_saphyr::UserMessageFormatter
        .format_message(error.without_snippet())
        .into_owned();
    message.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn is_marker(line: &str, marker: &str) -> bool {
    line.strip_prefix(marker)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
}

fn options() -> serde_saphyr::Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: 32,
            max_events: 500_000,
            max_nodes: 250_000,
            max_aliases: 1_000,
            max_anchors: 1_000,
            max_merge_keys: 1_000,
        },
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: 50_000,
            max_replay_stack_depth: 16,
        },
        strict_booleans: true,
        with_snippet: false,
    }
}

/// A value and where it stands.
#[derive(Clone, Debug)]
pub(crate) struct At<T> {
    pub(crate) value: T,
    pub(crate) location: Spot,
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for At<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_newtype_struct(SPOTTED, Placed(PhantomData))
    }
}

/// Reads a value after its place.
struct Placed<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for Placed<T> {
    type Value = At<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value in its place")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut parts: A) -> Result<At<T>, A::Error> {
        let packed = parts.next_element()?;
        let value = parts.next_element()?;
        match (packed, value) {
            (Some(packed), Some(value)) => Ok(At {
                value,
                location: Spot::unpacked(packed),
            }),
            _ => Err(de::Error::custom("a value without its place")),
        }
    }
}

/// One of a few words.
pub(crate) trait Choice: Copy + 'static {
    const WORDS: &'static [(&'static str, Self)];
}

/// A text that should be one of the words of `T`. Whether it is, is a question of meaning, told
/// with all others.
#[derive(Clone, Debug)]
pub(crate) struct Word<T> {
    pub(crate) text: String,
    choice: PhantomData<T>,
}

impl<T: Choice> Word<T> {
    pub(crate) fn choice(&self) -> Option<T> {
        T::WORDS
            .iter()
            .find(|(word, _)| *word == self.text)
            .map(|(_, choice)| *choice)
    }
}

impl<'de, T> Deserialize<'de> for Word<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self {
            text: String::deserialize(deserializer)?,
            choice: PhantomData,
        })
    }
}

/// One document while its meaning is checked: where it is, and where problems go.
pub(crate) struct Reader<'a> {
    pub(crate) page: Page<'a>,
    pub(crate) report: &'a mut Report,
}

impl Reader<'_> {
    pub(crate) fn place<T>(&self, at: &At<T>) -> Place {
        self.page.place(at.location)
    }

    pub(crate) fn wrong<T>(
        &mut self,
        at: &At<T>,
        code: &'static str,
        message: impl Into<String>,
        help: impl Into<String>,
    ) {
        let problem = Problem::new(self.place(at), code, message).help(help);
        self.report.add(problem);
    }

    pub(crate) fn warn<T>(
        &mut self,
        at: &At<T>,
        code: &'static str,
        message: impl Into<String>,
        help: impl Into<String>,
    ) {
        let problem = Problem::new(self.place(at), code, message).help(help);
        self.report.warn(problem);
    }

    /// Parses the text, or says why not.
    pub(crate) fn parse<T: std::str::FromStr<Err: fmt::Display>>(
        &mut self,
        at: &At<String>,
        code: &'static str,
        help: &str,
    ) -> Option<T> {
        self.take(at, code, help, at.value.parse())
    }

    pub(crate) fn take<T, U, E: fmt::Display>(
        &mut self,
        at: &At<U>,
        code: &'static str,
        help: &str,
        result: Result<T, E>,
    ) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(error) => {
                self.wrong(at, code, error.to_string(), help);
                None
            }
        }
    }

    pub(crate) fn choose<T: Choice>(&mut self, field: &str, at: &At<Word<T>>) -> Option<T> {
        let choice = at.value.choice();
        if choice.is_none() {
            let words = || T::WORDS.iter().map(|(word, _)| *word);
            let help = match nearest(&at.value.text, words()) {
                Some(meant) => format!("did you mean `{meant}`?"),
                None => format!("it is {}", either(words())),
            };
            self.wrong(
                at,
                "fender::unknown-word",
                format!("`{}` is not a value of `{field}`", at.value.text),
                help,
            );
        }
        choice
    }

    /// A field of which nothing may be said yet.
    pub(crate) fn unsupported<T>(&mut self, field: &str, at: &Option<At<T>>, help: &str) {
        if let Some(at) = at {
            self.wrong(
                at,
                "fender::unsupported",
                format!("`{field}` is not supported"),
                help,
            );
        }
    }
}
