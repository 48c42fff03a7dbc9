//! The armour around a file: strict PEM, and nothing else is let through (age v1, "ASCII armor").

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

use super::Unopened;

pub(super) const BEGIN: &str = "-----BEGIN AGE ENCRYPTED FILE-----";
const END: &str = "-----END AGE ENCRYPTED FILE-----";
const COLUMNS: usize = 64;

/// Whether this is armour, and not a file as it is.
pub(super) fn is_armour(file: &[u8]) -> bool {
    file.trim_ascii_start().starts_with(BEGIN.as_bytes())
}

/// What is inside.
pub(super) fn strip(file: &[u8]) -> Result<Vec<u8>, Unopened> {
    let malformed = || Unopened::malformed("is armoured, but not as age does it");
    let text = std::str::from_utf8(file).map_err(|_| malformed())?;
    let text = text.trim_matches(|c: char| c.is_ascii_whitespace());
    let mut lines = text
        .split('\n')
        .map(|line| line.strip_suffix('\r').unwrap_or(line));
    if lines.next() != Some(BEGIN) || lines.next_back() != Some(END) {
        return Err(malformed());
    }
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    let mut ended = false;
    for line in lines {
        if ended || line.is_empty() || line.len() > COLUMNS {
            return Err(malformed());
        }
        // Padding can only be at the end of all.
        ended = line.len() < COLUMNS || line.ends_with('=');
        BASE64_STANDARD
            .decode_vec(line, &mut bytes)
            .map_err(|_| malformed())?;
    }
    Ok(bytes)
}
