//! Every row of every table, read whole and again byte by byte.

use std::fmt::Write as _;

use bytes::BytesMut;
use fender_wire::{
    BodyLimits, Decoder, Frame, Framing, HeadError, HeadReader, Limits, RequestHead, ResponseHead,
    body::BodyError,
    path::{EscapedSlash, MergeSlashes, Rules, normalize},
};

use crate::table::{refusal, rows, unescape};

pub(crate) const REQUESTS: &str = include_str!("../vectors/requests.txt");
pub(crate) const RESPONSES: &str = include_str!("../vectors/responses.txt");
pub(crate) const BODIES: &str = include_str!("../vectors/bodies.txt");
pub(crate) const PATHS: &str = include_str!("../vectors/paths.txt");

#[test]
fn every_request_vector_has_its_outcome() {
    for row in rows::<3>(REQUESTS) {
        let [name, outcome, _] = row.columns;
        for cut in [row.bytes.len(), 1, 7] {
            let got = read_request(&row.bytes, cut);
            let described = describe(outcome, got.as_ref().map(request_facts));
            assert_eq!(described, outcome, "{name}, read {cut} bytes at a time");
        }
    }
}

#[test]
fn every_response_vector_has_its_outcome() {
    for row in rows::<4>(RESPONSES) {
        let [name, method, outcome, _] = row.columns;
        for cut in [row.bytes.len(), 1, 7] {
            let got = read_response(&row.bytes, cut, method);
            let described = describe(outcome, got.as_ref().map(response_facts));
            // A response's refusal has no status to show.
            let described = described.strip_prefix("400 ").unwrap_or(&described);
            let described = described.strip_prefix("505 ").unwrap_or(described);
            assert_eq!(described, outcome, "{name}, read {cut} bytes at a time");
        }
    }
}

#[test]
fn every_body_vector_has_its_outcome() {
    for row in rows::<4>(BODIES) {
        let [name, framing, outcome, _] = row.columns;
        let expected = unescape(outcome);
        for cut in [row.bytes.len().max(1), 1, 7] {
            let got = read_body(&row.bytes, cut, parse_framing(framing));
            assert_eq!(
                got.trim_end(),
                String::from_utf8_lossy(&expected).trim_end(),
                "{name}"
            );
        }
    }
}

#[test]
fn every_path_vector_has_its_outcome_and_is_its_own_normal_form() {
    for row in rows::<4>(PATHS) {
        let [name, rules, outcome, _] = row.columns;
        let rules = parse_rules(rules);
        let path = String::from_utf8(row.bytes).unwrap();
        match normalize(&path, &rules) {
            Ok(normal) => {
                let outcome = String::from_utf8(unescape(outcome)).unwrap();
                assert_eq!(format!("= {normal}"), outcome, "{name}");
                assert_eq!(
                    normalize(&normal, &rules).unwrap(),
                    normal,
                    "{name}, once more"
                );
            }
            Err(error) => assert_eq!(refusal(&error), outcome, "{name}"),
        }
    }
}

#[test]
fn the_tables_are_large_enough_to_be_worth_running_elsewhere() {
    assert!(rows::<3>(REQUESTS).len() + rows::<4>(BODIES).len() >= 250);
    assert!(rows::<4>(PATHS).len() >= 240);
}

fn read_request(bytes: &[u8], cut: usize) -> Result<RequestHead, HeadError> {
    let mut reader = HeadReader::new(Limits::default());
    let mut buffer = BytesMut::new();
    for part in bytes.chunks(cut) {
        buffer.extend_from_slice(part);
        if let Some(head) = reader.request(&mut buffer)? {
            return Ok(head);
        }
    }
    panic!(
        "the head is incomplete: {:?}",
        String::from_utf8_lossy(bytes)
    );
}

fn read_response(bytes: &[u8], cut: usize, method: &str) -> Result<ResponseHead, HeadError> {
    let mut reader = HeadReader::new(Limits::default());
    let mut buffer = BytesMut::new();
    for part in bytes.chunks(cut) {
        buffer.extend_from_slice(part);
        if let Some(head) = reader.response(&mut buffer, method)? {
            return Ok(head);
        }
    }
    panic!(
        "the head is incomplete: {:?}",
        String::from_utf8_lossy(bytes)
    );
}

/// Puts what was read into the words of the table: the facts it asks for, and those it may not
/// leave unsaid.
fn describe(outcome: &str, got: Result<Vec<(&'static str, String)>, &HeadError>) -> String {
    let facts = match got {
        Ok(facts) => facts,
        Err(error) => return format!("{} {}", error.status(), refusal(error)),
    };
    let mut words = vec!["ok".to_owned()];
    for word in outcome.split(' ').skip(1) {
        let key = word.split('=').next().unwrap_or_default();
        let found = facts.iter().find(|(name, _)| *name == key);
        words.push(found.map_or_else(|| format!("not-{word}"), |(_, fact)| fact.clone()));
    }
    for always in [
        "none",
        "length",
        "chunked",
        "until-close",
        "close",
        "expect",
    ] {
        if let Some((_, fact)) = facts.iter().find(|(name, _)| *name == always)
            && !words.contains(fact)
        {
            words.push(format!("also-{fact}"));
        }
    }
    words.join(" ")
}

fn request_facts(head: &RequestHead) -> Vec<(&'static str, String)> {
    let mut facts = vec![
        framing_fact(head.framing()),
        ("path", format!("path={}", head.path())),
        ("query", format!("query={}", head.query().unwrap_or("-"))),
        ("host", format!("host={}", head.authority())),
        (
            "upgrade",
            format!("upgrade={}", head.upgrade().unwrap_or("-")),
        ),
    ];
    if head.expect_continue() {
        facts.push(("expect", "expect".to_owned()));
    }
    if !head.keep_alive() {
        facts.push(("close", "close".to_owned()));
    }
    facts
}

fn response_facts(head: &ResponseHead) -> Vec<(&'static str, String)> {
    let mut facts = vec![
        framing_fact(head.framing()),
        (
            "upgrade",
            format!("upgrade={}", head.upgrade().unwrap_or("-")),
        ),
    ];
    if !head.keep_alive() {
        facts.push(("close", "close".to_owned()));
    }
    facts
}

fn framing_fact(framing: Framing) -> (&'static str, String) {
    match framing {
        Framing::None => ("none", "none".to_owned()),
        Framing::Length(length) => ("length", format!("length={length}")),
        Framing::Chunked => ("chunked", "chunked".to_owned()),
        Framing::UntilClose => ("until-close", "until-close".to_owned()),
    }
}

fn parse_framing(text: &str) -> Framing {
    match text {
        "none" => Framing::None,
        "chunked" => Framing::Chunked,
        "until-close" => Framing::UntilClose,
        _ => Framing::Length(text.strip_prefix("length=").unwrap().parse().unwrap()),
    }
}

fn read_body(bytes: &[u8], cut: usize, framing: Framing) -> String {
    match try_read_body(bytes, cut, framing) {
        Ok(text) => text,
        Err(error) => refusal(&error),
    }
}

fn try_read_body(bytes: &[u8], cut: usize, framing: Framing) -> Result<String, BodyError> {
    let mut decoder = Decoder::new(framing, BodyLimits::default());
    let mut buffer = BytesMut::new();
    let mut parts = bytes.chunks(cut);
    let mut data = Vec::new();
    let trailers = loop {
        match decoder.decode(&mut buffer)? {
            Frame::Data(part) => data.extend_from_slice(&part),
            Frame::End(trailers) => break trailers,
            Frame::NeedMore => match parts.next() {
                Some(part) => buffer.extend_from_slice(part),
                None => decoder.end_of_stream()?,
            },
        }
    };
    assert!(decoder.is_done());
    parts.for_each(|part| buffer.extend_from_slice(part));
    let mut text = format!("ok {}", String::from_utf8_lossy(&data));
    for trailer in trailers.iter() {
        let name = trailer.name().to_ascii_lowercase();
        write!(text, " +{name}={}", trailer.text().unwrap()).unwrap();
    }
    if !buffer.is_empty() {
        write!(text, " rest={}", String::from_utf8_lossy(&buffer)).unwrap();
    }
    Ok(text)
}

fn parse_rules(text: &str) -> Rules {
    let mut rules = Rules::default();
    for word in text.split(',') {
        match word {
            "strict" => {}
            "keep" => rules.escaped_slash = EscapedSlash::Keep,
            "decode" => rules.escaped_slash = EscapedSlash::Decode,
            "merge" => rules.merge_slashes = MergeSlashes::Always,
            name => rules.exceptions = rules.exceptions.with(name.parse().unwrap()),
        }
    }
    rules
}
