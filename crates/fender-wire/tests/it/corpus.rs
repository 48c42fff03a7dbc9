//! The committed fuzz corpora, and every vector, through the checks of the fuzz targets.

use std::{fs, path::Path};

use crate::{
    checks,
    table::rows,
    vectors::{BODIES, PATHS, REQUESTS, RESPONSES},
};

fn replay(target: &str, check: fn(&[u8])) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../fuzz/corpus")
        .join(target);
    let mut count = 0;
    for entry in fs::read_dir(&root).unwrap_or_else(|error| panic!("{}: {error}", root.display())) {
        check(&fs::read(entry.unwrap().path()).unwrap());
        count += 1;
    }
    assert!(count >= 10, "{} holds only {count} inputs", root.display());
}

#[test]
fn the_corpus_of_request_heads_breaks_no_promise() {
    replay("head", checks::head);
}

#[test]
fn the_corpus_of_response_heads_breaks_no_promise() {
    replay("response", checks::response);
}

#[test]
fn the_corpus_of_chunked_bodies_breaks_no_promise() {
    replay("chunked", checks::chunked);
}

#[test]
fn the_corpus_of_paths_breaks_no_promise() {
    replay("path", checks::path);
}

#[test]
fn the_corpus_of_identity_headers_breaks_no_promise() {
    replay("xfcc", checks::xfcc);
}

#[test]
fn the_corpus_of_proxy_headers_breaks_no_promise() {
    replay("proxy", checks::proxy);
}

#[test]
fn the_corpus_of_trace_contexts_breaks_no_promise() {
    replay("trace", checks::trace);
}

#[test]
fn the_corpus_of_forwarded_lists_breaks_no_promise() {
    replay("forwarded", checks::forwarded);
}

#[test]
fn the_vectors_break_no_promise() {
    rows::<3>(REQUESTS)
        .iter()
        .for_each(|row| checks::head(&row.bytes));
    rows::<4>(RESPONSES)
        .iter()
        .for_each(|row| checks::response(&row.bytes));
    rows::<4>(BODIES)
        .iter()
        .for_each(|row| checks::chunked(&row.bytes));
    rows::<4>(PATHS)
        .iter()
        .for_each(|row| checks::path(&row.bytes));
}
