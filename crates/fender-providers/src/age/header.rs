//! The header of a file: for whom it is, and what proves that nobody has changed that (age v1, "Header").

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD_NO_PAD;

use super::Unopened;

pub(super) const VERSION: &str = "age-encryption.org/v1";
/// The most that it may have. A recipient of the kind X25519 takes a hundred bytes, one that is safe from quantum computers 1500.
const LONGEST: usize = 64 * 1024;
const MOST_STANZAS: usize = 128;
const COLUMNS: usize = 64;

#[derive(Debug)]
pub(super) struct Header<'a> {
    pub(super) stanzas: Vec<Stanza<'a>>,
    /// What is proven: all of it up to the proof.
    pub(super) proven: &'a [u8],
    pub(super) proof: Vec<u8>,
}

/// One recipient.
#[derive(Debug)]
pub(super) struct Stanza<'a> {
    pub(super) kind: &'a str,
    pub(super) arguments: Vec<&'a str>,
    pub(super) body: Vec<u8>,
}

/// The header, and what comes after it.
pub(super) fn read(file: &[u8]) -> Result<(Header<'_>, &[u8]), Unopened> {
    let mut lines = Lines { file, at: 0 };
    if lines.next()? != VERSION {
        return Err(Unopened::malformed(
            "is no file of age, or one of a version that is not known",
        ));
    }
    let mut stanzas = Vec::new();
    loop {
        let start = lines.at;
        let line = lines.next()?;
        if let Some(proof) = line.strip_prefix("--- ") {
            let proof = unpadded(proof.as_bytes()).filter(|proof| proof.len() == 32);
            let header = Header {
                stanzas,
                proven: file.get(..start + 3).unwrap_or_default(),
                proof: proof.ok_or_else(malformed)?,
            };
            let none = header.stanzas.is_empty();
            let rest = file.get(lines.at..).unwrap_or_default();
            return if none {
                Err(malformed())
            } else {
                Ok((header, rest))
            };
        }
        if stanzas.len() == MOST_STANZAS {
            return Err(Unopened::malformed(&format!(
                "is for more than {MOST_STANZAS} recipients"
            )));
        }
        stanzas.push(stanza(line, &mut lines)?);
    }
}

fn stanza<'a>(line: &'a str, lines: &mut Lines<'a>) -> Result<Stanza<'a>, Unopened> {
    let words = line.strip_prefix("-> ").ok_or_else(malformed)?;
    let mut words = words.split(' ');
    let is_word = |word: &&str| !word.is_empty() && word.bytes().all(|b| b.is_ascii_graphic());
    if !words.clone().all(|word| is_word(&word)) {
        return Err(malformed());
    }
    let kind = words.next().ok_or_else(malformed)?;
    let arguments = words.collect();
    let mut body = Vec::new();
    loop {
        let line = lines.next()?;
        if line.len() > COLUMNS {
            return Err(malformed());
        }
        body.extend(unpadded(line.as_bytes()).ok_or_else(malformed)?);
        // The last one is shorter, if only for that.
        if line.len() < COLUMNS {
            return Ok(Stanza {
                kind,
                arguments,
                body,
            });
        }
    }
}

/// Base64 without padding, and in the one way to write it.
pub(super) fn unpadded(text: &[u8]) -> Option<Vec<u8>> {
    BASE64_STANDARD_NO_PAD.decode(text).ok()
}

fn malformed() -> Unopened {
    Unopened::malformed("has a header that is not as age writes it")
}

struct Lines<'a> {
    file: &'a [u8],
    at: usize,
}

impl<'a> Lines<'a> {
    fn next(&mut self) -> Result<&'a str, Unopened> {
        let head = self.file.get(..self.file.len().min(LONGEST));
        let rest = head.and_then(|head| head.get(self.at..));
        let rest = rest.unwrap_or_default();
        let end = rest.iter().position(|byte| *byte == b'\n');
        let line = end.and_then(|end| rest.get(..end)).ok_or_else(malformed)?;
        self.at += line.len() + 1;
        std::str::from_utf8(line).map_err(|_| malformed())
    }
}
