//! What a server says in its own words, as it may stand in an error or in the log: cut, on one line, with nothing in it that moves a
//! cursor, and without what we proved ourselves by.

use fender_identity::Secret;

/// How much of it is kept, in characters.
const MOST: usize = 256;
/// A secret shorter than this is not looked for in a text: it would be found in words.
const SHORTEST_SECRET: usize = 4;

/// The text without any of these.
pub(crate) fn scrubbed(text: &str, proofs: &[&Secret]) -> String {
    let mut text = text.to_owned();
    for proof in proofs.iter().filter_map(|proof| proof.expose_str()) {
        if proof.len() >= SHORTEST_SECRET {
            text = text.replace(proof, "…");
        }
    }
    let printable = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    printable.take(MOST).collect::<String>().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_cut_printable_and_without_what_was_shown() {
        let proof = Secret::from("hunter2".to_owned());
        let short = Secret::from("not".to_owned());
        let said = format!("\u{1b}[2J no: hunter2 is\nnot known {}", "x".repeat(1000));
        let kept = scrubbed(&said, &[&proof, &short]);
        assert!(kept.starts_with("[2J no: … is not known x"), "{kept}");
        assert_eq!(kept.chars().count(), 255, "with what was at its beginning");
    }
}
