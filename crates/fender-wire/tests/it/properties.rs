//! The checks on generated input: vectors with a few bytes changed, and text made of the bytes that
//! matter.

use std::{fs, path::Path};

use bytes::{Buf, Bytes};
use fender_wire::{Encoder, Fields, Framing, body::EncodeError};
use proptest::{collection::vec, prelude::*, sample};

use crate::{
    checks,
    table::rows,
    vectors::{BODIES, REQUESTS, RESPONSES},
};

/// One of `seeds`, with up to four bytes replaced, inserted or removed.
fn mutated(seeds: Vec<Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    let interesting = sample::select(b"\r\n\t :;,=%/\\.?#\x00\x7f\x80azAZ019\"".to_vec());
    let edit = (0..3_u8, any::<sample::Index>(), interesting);
    (sample::select(seeds), vec(edit, 0..4)).prop_map(|(mut bytes, edits)| {
        for (kind, at, byte) in edits {
            match kind {
                0 if !bytes.is_empty() => {
                    let at = at.index(bytes.len());
                    bytes[at] = byte;
                }
                1 if !bytes.is_empty() => {
                    bytes.remove(at.index(bytes.len()));
                }
                _ => bytes.insert(at.index(bytes.len() + 1), byte),
            }
        }
        bytes
    })
}

fn short(rows: impl Iterator<Item = Vec<u8>>) -> Vec<Vec<u8>> {
    rows.filter(|bytes| bytes.len() < 1000).collect()
}

fn heads() -> impl Strategy<Value = Vec<u8>> {
    mutated(short(rows::<3>(REQUESTS).into_iter().map(|row| row.bytes)))
}

fn responses() -> impl Strategy<Value = Vec<u8>> {
    mutated(short(rows::<4>(RESPONSES).into_iter().map(|row| row.bytes)))
}

fn bodies() -> impl Strategy<Value = Vec<u8>> {
    mutated(short(rows::<4>(BODIES).into_iter().map(|row| row.bytes)))
}

fn paths() -> impl Strategy<Value = String> {
    let pieces = [
        "/", "/", "/", ".", "..", "%2e", "%2E", "%2f", "%5c", "\\", "%25", "%", "2", "f", "5C",
        ";", "%3b", "%c0", "%af", "%e0", "%80", "%C3%A9", "%61", "a", "B", "%00", "[", " ", "~",
        "%7e",
    ];
    vec(sample::select(pieces.to_vec()), 0..12).prop_map(|parts| format!("/{}", parts.concat()))
}

fn proxy_headers() -> impl Strategy<Value = Vec<u8>> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/proxy");
    let files = fs::read_dir(corpus).unwrap();
    let seeds = files.map(|file| fs::read(file.unwrap().path()).unwrap());
    mutated(short(seeds))
}

fn subjects() -> impl Strategy<Value = String> {
    let pieces = [
        "CN=a",
        ",",
        ";",
        "\"",
        "\\",
        "=",
        " ",
        "é",
        "\n",
        "spiffe://t/ns/a/sa/b",
        "x",
    ];
    vec(sample::select(pieces.to_vec()), 0..10).prop_map(|parts| parts.concat())
}

proptest! {
    #[test]
    fn heads_read_alike_however_they_are_cut(data in heads()) {
        checks::head(&data);
    }

    #[test]
    fn heads_read_alike_when_cut_in_two_anywhere(data in heads(), at in any::<sample::Index>()) {
        let (first, second) = data.split_at(at.index(data.len() + 1));
        checks::head_reads_alike_in_parts(&[first, second]);
    }

    #[test]
    fn responses_read_alike_however_they_are_cut(data in responses()) {
        checks::response(&data);
    }

    #[test]
    fn chunked_bodies_read_alike_however_they_are_cut(data in bodies()) {
        checks::chunked(&data);
    }

    #[test]
    fn normal_paths_are_their_own_normal_form(path in paths()) {
        checks::path(path.as_bytes());
    }

    #[test]
    fn identity_headers_read_as_they_were_meant(text in subjects()) {
        checks::xfcc(text.as_bytes());
    }

    #[test]
    fn proxy_headers_read_alike_however_they_are_cut(data in proxy_headers()) {
        checks::proxy(&data);
    }

    #[test]
    fn any_bytes_break_no_promise(data in vec(any::<u8>(), 0..200)) {
        checks::head(&data);
        checks::response(&data);
        checks::chunked(&data);
        checks::path(&data);
        checks::xfcc(&data);
    }

    #[test]
    fn what_is_encoded_decodes_to_itself(data in vec(any::<u8>(), 0..300), cut in 1..40_usize) {
        let trailers = vec![("x-sum".to_owned(), b"9".to_vec())];
        let wire = checks::encode(&data, &trailers);
        let body = checks::decode(&wire, cut, Framing::Chunked, checks::BODY_LIMITS).unwrap();
        prop_assert_eq!(body, checks::Body { data, trailers, taken: wire.len() });
    }

    #[test]
    fn a_declared_length_is_kept_exactly(data in vec(any::<u8>(), 0..50), declared in 0..60_u64) {
        let mut encoder = Encoder::new(Framing::Length(declared));
        let len = data.len() as u64;
        match encoder.data(Bytes::from(data.clone())) {
            Ok(mut framed) => {
                prop_assert_eq!(framed.copy_to_bytes(framed.remaining()), data);
                let end = encoder.end(&Fields::default());
                if len == declared {
                    prop_assert_eq!(end, Ok(Bytes::new()));
                } else {
                    prop_assert_eq!(end, Err(EncodeError::FallsShort(declared - len)));
                }
            }
            Err(error) => {
                prop_assert!(len > declared);
                prop_assert_eq!(error, EncodeError::ExceedsLength);
            }
        }
    }
}
