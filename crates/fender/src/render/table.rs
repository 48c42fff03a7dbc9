//! Columns for people: as wide as what is in them, or, where that is too wide for the terminal, each row in a block of its
//! own. Nothing is cut off: a name that cannot be read whole cannot be typed.

use std::fmt::Write as _;

/// Between columns.
const GAP: usize = 2;
/// What belongs to a row stands so far right of it.
const INDENT: usize = 4;
/// Nothing is squeezed into less.
const NARROWEST: usize = 20;

pub(super) struct Table<const N: usize> {
    headings: [&'static str; N],
    rows: Vec<Row<N>>,
}

pub(super) struct Row<const N: usize> {
    cells: [String; N],
    /// A sentence below it.
    note: Option<String>,
}

impl<const N: usize> Row<N> {
    pub(super) fn new(cells: [String; N]) -> Self {
        Self { cells, note: None }
    }

    pub(super) fn noted(self, note: String) -> Self {
        Self {
            note: Some(note),
            ..self
        }
    }
}

impl<const N: usize> Table<N> {
    pub(super) fn new(headings: [&'static str; N]) -> Self {
        Self {
            headings,
            rows: Vec::new(),
        }
    }

    pub(super) fn push(&mut self, row: Row<N>) {
        self.rows.push(row);
    }

    /// Nothing at all where there is no row.
    pub(super) fn render(&self, width: Option<usize>, out: &mut String) {
        if self.rows.is_empty() {
            return;
        }
        let mut columns = self.headings.map(length);
        for row in &self.rows {
            for (column, cell) in columns.iter_mut().zip(&row.cells) {
                *column = (*column).max(length(cell));
            }
        }
        let whole = columns.iter().sum::<usize>() + GAP * N.saturating_sub(1);
        match width {
            Some(width) if whole > width => self.blocks(width, out),
            Some(_) | None => self.columns(&columns, width, out),
        }
    }

    fn columns(&self, columns: &[usize; N], width: Option<usize>, out: &mut String) {
        line(columns, self.headings.iter().copied(), out);
        for row in &self.rows {
            line(columns, row.cells.iter().map(String::as_str), out);
            note(row, width, out);
        }
    }

    /// The first cell, and below it the others with their headings.
    fn blocks(&self, width: usize, out: &mut String) {
        let indented = width.saturating_sub(INDENT);
        for row in &self.rows {
            let mut cells = self.headings.iter().zip(&row.cells);
            if let Some((_, name)) = cells.next() {
                let _ = writeln!(out, "{name}");
            }
            let facts: Vec<_> = cells
                .map(|(heading, cell)| format!("{} {cell}", heading.to_lowercase()))
                .collect();
            for line in wrapped(&facts.join(", "), Some(indented)) {
                let _ = writeln!(out, "{:INDENT$}{line}", "");
            }
            note(row, Some(width), out);
        }
    }
}

fn note<const N: usize>(row: &Row<N>, width: Option<usize>, out: &mut String) {
    let indented = width.map(|width| width.saturating_sub(INDENT));
    for line in row.note.iter().flat_map(|note| wrapped(note, indented)) {
        let _ = writeln!(out, "{:INDENT$}{line}", "");
    }
}

fn line<'a>(columns: &[usize], cells: impl Iterator<Item = &'a str>, out: &mut String) {
    let mut line = String::new();
    for (cell, column) in cells.zip(columns) {
        line.push_str(cell);
        line.extend(std::iter::repeat_n(
            ' ',
            column.saturating_sub(length(cell)) + GAP,
        ));
    }
    out.push_str(line.trim_end());
    out.push('\n');
}

/// Lines of at most so many characters, broken between words; a word that is longer is broken too.
pub(super) fn wrapped(text: &str, width: Option<usize>) -> Vec<String> {
    let Some(width) = width else {
        return vec![text.to_owned()];
    };
    let width = width.max(NARROWEST);
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let mut word: Vec<_> = word.chars().collect();
        loop {
            let Some(line) = lines.last_mut() else {
                return lines;
            };
            let space = usize::from(!line.is_empty());
            let room = width.saturating_sub(length(line) + space);
            if word.len() <= room {
                if space == 1 {
                    line.push(' ');
                }
                line.extend(word);
                break;
            }
            if line.is_empty() {
                let rest = word.split_off(width);
                line.extend(std::mem::replace(&mut word, rest));
            }
            lines.push(String::new());
        }
    }
    lines
}

fn length(text: &str) -> usize {
    text.chars().count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_broken_between_words_and_words_only_where_they_must() {
        let lines = |text| wrapped(text, Some(20));
        assert_eq!(
            lines("one two three four five"),
            ["one two three four", "five"]
        );
        assert_eq!(lines("exactly twenty chars"), ["exactly twenty chars"]);
        assert_eq!(
            lines("a /very/long/path/that/has/no/space b"),
            ["a", "/very/long/path/that", "/has/no/space b"]
        );
        assert_eq!(lines(""), [""]);
        assert_eq!(wrapped("as it is", None), ["as it is"]);
        // Whatever the width is, every character is there.
        let text = "Zürich ß 漢字 /etc/fender/db-ca.pem: permission denied";
        for width in 0..60 {
            let all: String = wrapped(text, Some(width)).concat();
            assert_eq!(all.replace(' ', ""), text.replace(' ', ""));
        }
    }
}
