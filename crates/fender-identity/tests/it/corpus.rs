//! The committed fuzz corpus, and every vector, through the checks of the fuzz target.

use std::{fs, path::Path};

use crate::checks;

#[test]
fn the_corpus_keeps_every_promise() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/jwt");
    let mut count = 0;
    for entry in fs::read_dir(&root).unwrap_or_else(|error| panic!("{}: {error}", root.display())) {
        checks::jwt(&fs::read(entry.unwrap().path()).unwrap());
        count += 1;
    }
    assert!(count > 10, "only {count} inputs in {}", root.display());
}

#[test]
fn the_vectors_keep_every_promise_whole_and_cut() {
    let tokens = include_str!("../vectors/jwt.txt");
    for line in tokens.lines() {
        let (_, token) = line.split_once(' ').unwrap();
        checks::jwt(token.as_bytes());
        for length in (0..token.len()).step_by(7) {
            checks::jwt(&token.as_bytes()[..length]);
        }
    }
    checks::jwt(include_bytes!("../vectors/keys.json"));
}
