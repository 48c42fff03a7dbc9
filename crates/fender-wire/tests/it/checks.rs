//! What must hold for any bytes at all: run by the fuzz targets, the corpora and the properties.
//!
//! Each check panics when a promise is broken and otherwise says nothing. `fuzz/` includes this
//! very file.

use std::num::NonZeroU8;

use bytes::{Buf, Bytes, BytesMut};
use fender_wire::{
    BodyLimits, Decoder, Encoder, Fields, Frame, Framing, HeadError, HeadReader, Limits,
    RequestHead, ResponseHead, Version,
    body::BodyError,
    forwarded,
    head::TargetForm,
    path::{EscapedSlash, Exception, Exceptions, MergeSlashes, Rules, normalize, split_query},
    proxy, trace,
    write::HeadWriter,
    xfcc,
};

/// Small limits, so that inputs of a few hundred bytes meet all of them.
const LIMITS: Limits = Limits {
    bytes: 700,
    headers: 12,
    target: 128,
};

pub(crate) const BODY_LIMITS: BodyLimits = BodyLimits {
    extensions: 64,
    trailer_bytes: 128,
    trailers: 4,
};

/// A request head reads alike however it is cut, httparse agrees on what is accepted, and what is
/// written from it reads as itself.
pub(crate) fn head(data: &[u8]) {
    for cut in [1, 2, 7] {
        head_reads_alike_in_parts(&data.chunks(cut).collect::<Vec<_>>());
    }
    if let Outcome::Complete(head, taken) = &read_request([data]) {
        agrees_with_httparse(head, *taken, data);
        survives_rewriting(head);
    }
}

/// A response head does likewise, whatever was asked. The reader that forgives an application its bare
/// line feeds forgives nothing else: what the strict one takes, it takes alike.
pub(crate) fn response(data: &[u8]) {
    for method in ["GET", "HEAD"] {
        let read = |parts: &[&[u8]]| {
            [BareLineFeed::Refused, BareLineFeed::EndsLine]
                .map(|bare| read_response(parts.iter().copied(), bare, method))
        };
        let whole = read(&[data]);
        for cut in [1, 2, 7] {
            let in_parts = read(&data.chunks(cut).collect::<Vec<_>>());
            assert_eq!(
                format!("{whole:?}"),
                format!("{in_parts:?}"),
                "cut in {cut}"
            );
        }
        let [strict, forgiving] = &whole;
        if matches!(strict, Outcome::Complete(..)) {
            assert_eq!(format!("{strict:?}"), format!("{forgiving:?}"));
        }
        if let Outcome::Complete(head, taken) = forgiving {
            response_agrees_with_httparse(head, *taken, data);
            response_survives_rewriting(head, method);
        }
    }
}

/// Reading the parts one after the other is reading them at once.
pub(crate) fn head_reads_alike_in_parts(parts: &[&[u8]]) {
    let whole = parts.concat();
    let (at_once, in_parts) = (read_request([&*whole]), read_request(parts.iter().copied()));
    assert_eq!(format!("{at_once:?}"), format!("{in_parts:?}"), "{parts:?}");
}

fn read_request<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> Outcome<RequestHead> {
    let reader = HeadReader::new(LIMITS);
    read(parts, reader, |reader, buffer| reader.request(buffer))
}

/// What becomes of a bare line feed.
#[derive(Clone, Copy)]
enum BareLineFeed {
    Refused,
    EndsLine,
}

fn read_response<'a>(
    parts: impl IntoIterator<Item = &'a [u8]>,
    bare: BareLineFeed,
    method: &str,
) -> Outcome<ResponseHead> {
    let reader = HeadReader::new(LIMITS);
    let reader = match bare {
        BareLineFeed::Refused => reader,
        BareLineFeed::EndsLine => reader.forgiving_applications(),
    };
    read(parts, reader, |reader, buffer| {
        reader.response(buffer, method)
    })
}

#[derive(Debug)]
enum Outcome<T> {
    /// A head, and how many bytes it took.
    Complete(T, usize),
    Incomplete,
    Refused(#[expect(dead_code, reason = "compared by its Debug text")] HeadError),
}

fn read<'a, T>(
    parts: impl IntoIterator<Item = &'a [u8]>,
    mut reader: HeadReader,
    mut step: impl FnMut(&mut HeadReader, &mut BytesMut) -> Result<Option<T>, HeadError>,
) -> Outcome<T> {
    let mut buffer = BytesMut::new();
    let mut given = 0;
    for part in parts {
        buffer.extend_from_slice(part);
        given += part.len();
        match step(&mut reader, &mut buffer) {
            Ok(Some(head)) => return Outcome::Complete(head, given - buffer.len()),
            Ok(None) => assert!(
                buffer.len() < LIMITS.bytes,
                "the limit on bytes does not hold"
            ),
            Err(error) => {
                buffer.extend_from_slice(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n");
                assert_eq!(step(&mut reader, &mut buffer).err().as_ref(), Some(&error));
                return Outcome::Refused(error);
            }
        }
    }
    Outcome::Incomplete
}

/// The reference: a lenient parser that many servers use. Whatever we let through, it reads alike.
fn agrees_with_httparse(head: &RequestHead, taken: usize, data: &[u8]) {
    let mut headers = [httparse::EMPTY_HEADER; 16];
    let mut theirs = httparse::Request::new(&mut headers);
    assert_eq!(theirs.parse(data), Ok(httparse::Status::Complete(taken)));
    assert_eq!(theirs.method, Some(head.method()));
    assert_eq!(
        theirs.version,
        Some(u8::from(head.version() == Version::Http11))
    );
    let (path, query) = split_query(theirs.path.unwrap());
    assert!(path.ends_with(head.path()) || head.form() == TargetForm::Absolute);
    assert_eq!(query, head.query());
    same_fields(head.fields(), theirs.headers);
}

fn response_agrees_with_httparse(head: &ResponseHead, taken: usize, data: &[u8]) {
    let mut headers = [httparse::EMPTY_HEADER; 16];
    let mut theirs = httparse::Response::new(&mut headers);
    assert_eq!(theirs.parse(data), Ok(httparse::Status::Complete(taken)));
    assert_eq!(theirs.code, Some(head.status()));
    same_fields(head.fields(), theirs.headers);
}

fn same_fields(ours: &Fields, theirs: &[httparse::Header<'_>]) {
    assert_eq!(ours.len(), theirs.len());
    for (ours, theirs) in ours.iter().zip(theirs) {
        assert_eq!((ours.name(), ours.value()), (theirs.name, theirs.value));
    }
}

/// Forwarding every field and reading the result again gives the same request.
fn survives_rewriting(head: &RequestHead) {
    let mut buffer = BytesMut::new();
    let mut writer =
        HeadWriter::request(&mut buffer, head.method(), head.path(), head.query()).unwrap();
    for field in head.fields().iter() {
        writer.copy(field);
    }
    if !head.fields().contains("host") {
        let authority = head.authority().as_str();
        writer.field("host", authority.as_bytes()).unwrap();
    }
    writer.end();
    let limits = Limits {
        bytes: 4096,
        headers: 16,
        target: 256,
    };
    let again = HeadReader::new(limits).request(&mut buffer);
    if head.version() == Version::Http10 {
        return; // what HTTP/1.0 ignores, HTTP/1.1 may refuse
    }
    let again = again.unwrap().unwrap();
    assert_eq!((again.method(), again.path()), (head.method(), head.path()));
    assert_eq!(
        (again.query(), again.framing()),
        (head.query(), head.framing())
    );
    assert_eq!(again.keep_alive(), head.keep_alive());
    assert!(buffer.is_empty());
}

/// Sending every field back, and the length anew, gives the same response.
fn response_survives_rewriting(head: &ResponseHead, method: &str) {
    let mut buffer = BytesMut::new();
    let mut writer = HeadWriter::response(&mut buffer, head.status());
    let declares = |name: &str| matches!(name, "content-length" | "transfer-encoding");
    let passed = |head: &ResponseHead| {
        let fields = head.fields().iter();
        fields
            .filter(|field| !declares(&field.name().to_ascii_lowercase()))
            .map(|field| (field.name().to_owned(), field.value().to_vec()))
            .collect::<Vec<_>>()
    };
    let fields = head.fields().iter();
    for field in fields.filter(|field| !declares(&field.name().to_ascii_lowercase())) {
        writer.copy(field);
    }
    writer.framing(head.framing());
    writer.end();
    let mut reader = HeadReader::new(Limits {
        bytes: 4096,
        headers: 16,
        target: 256,
    });
    let again = reader.response(&mut buffer, method).unwrap().unwrap();
    assert_eq!(
        (again.status(), again.framing(), again.is_interim()),
        (head.status(), head.framing(), head.is_interim())
    );
    assert_eq!(passed(&again), passed(head));
    if head.version() == Version::Http11 {
        // HTTP/1.0 closes, and changes protocols, by other rules.
        assert_eq!(
            (again.keep_alive(), again.upgrade()),
            (head.keep_alive(), head.upgrade())
        );
    }
    assert!(buffer.is_empty());
}

/// A chunked body reads alike however it is cut, and what it carried can be encoded and read again.
pub(crate) fn chunked(data: &[u8]) {
    let whole = decode(data, data.len(), Framing::Chunked, BODY_LIMITS);
    for cut in [1, 2, 7] {
        assert_eq!(
            whole,
            decode(data, cut, Framing::Chunked, BODY_LIMITS),
            "cut in {cut}"
        );
    }
    if let Ok(body) = whole {
        let again = encode(&body.data, &body.trailers);
        // A blank is written after each colon, whether or not one was read.
        let trailer_bytes = BODY_LIMITS.trailer_bytes + BODY_LIMITS.trailers;
        let limits = BodyLimits {
            trailer_bytes,
            ..BODY_LIMITS
        };
        let read_again = decode(&again, 5, Framing::Chunked, limits).unwrap();
        assert_eq!(
            read_again,
            Body {
                taken: again.len(),
                ..body
            }
        );
    }
}

#[derive(Debug, PartialEq)]
pub(crate) struct Body {
    pub(crate) data: Vec<u8>,
    pub(crate) trailers: Vec<(String, Vec<u8>)>,
    pub(crate) taken: usize,
}

pub(crate) fn decode(
    data: &[u8],
    cut: usize,
    framing: Framing,
    limits: BodyLimits,
) -> Result<Body, BodyError> {
    let mut decoder = Decoder::new(framing, limits);
    let mut buffer = BytesMut::new();
    let mut parts = data.chunks(cut.max(1));
    let mut given = 0;
    let mut out = Vec::new();
    loop {
        match decoder.decode(&mut buffer)? {
            Frame::Data(part) => {
                assert!(!part.is_empty());
                out.extend_from_slice(&part);
            }
            Frame::NeedMore => match parts.next() {
                Some(part) => {
                    buffer.extend_from_slice(part);
                    given += part.len();
                }
                None => decoder.end_of_stream()?,
            },
            Frame::End(trailers) => {
                let trailers = trailers
                    .iter()
                    .map(|trailer| (trailer.name().to_owned(), trailer.value().to_owned()))
                    .collect();
                return Ok(Body {
                    data: out,
                    trailers,
                    taken: given - buffer.len(),
                });
            }
        }
    }
}

/// Encodes `data` in chunks of three bytes.
pub(crate) fn encode(data: &[u8], trailers: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut encoder = Encoder::new(Framing::Chunked);
    let mut out = Vec::new();
    for part in data.chunks(3) {
        let mut framed = encoder.data(Bytes::copy_from_slice(part)).unwrap();
        while framed.has_remaining() {
            // One byte at a time: the worst that a socket can do.
            out.push(framed.get_u8());
        }
    }
    let trailers = trailers
        .iter()
        .map(|(name, value)| (name.as_bytes(), value.as_slice()));
    let trailers = Fields::build(trailers).unwrap();
    out.extend_from_slice(&encoder.end(&trailers).unwrap());
    out
}

/// Under every rule, a normal form is its own normal form and holds nothing that P1 to P3 forbid.
pub(crate) fn path(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    for rules in every_rule() {
        let Ok(normal) = normalize(text, &rules) else {
            continue;
        };
        assert_eq!(
            normalize(&normal, &rules).as_deref(),
            Ok(&*normal),
            "{rules:?}"
        );
        if normal == "*" {
            continue;
        }
        assert!(normal.starts_with('/'));
        assert!(normal.bytes().all(|byte| byte.is_ascii_graphic()));
        assert!(!normal.contains(['?', '#', '\\', '<', '>', '"', '{', '}', '|', '^', '`']));
        assert!(
            !normal
                .split('/')
                .any(|segment| matches!(segment, "." | ".."))
        );
        if rules.merge_slashes == MergeSlashes::Always {
            assert!(!normal.contains("//"));
        }
        for escape in normal.split('%').skip(1) {
            let value = u8::from_str_radix(&escape[..2], 16).unwrap();
            assert!(
                !value.is_ascii_control() && !value.is_ascii_alphanumeric(),
                "{normal}"
            );
            assert_eq!(escape[..2].to_ascii_uppercase(), escape[..2], "{normal}");
            let slash = matches!(value, b'/' | b'\\');
            assert!(
                !slash || rules.escaped_slash == EscapedSlash::Keep,
                "{normal}"
            );
        }
        if rules == Rules::default() {
            agrees_with_the_obvious(text, &normal);
        }
    }
}

fn every_rule() -> impl Iterator<Item = Rules> {
    let all = [
        Exception::DotSegmentParameters,
        Exception::OverlongUtf8,
        Exception::DoubleEncoding,
    ];
    let exceptions = [Exceptions::default(), all.into_iter().collect()];
    [
        EscapedSlash::Reject,
        EscapedSlash::Keep,
        EscapedSlash::Decode,
    ]
    .into_iter()
    .flat_map(move |escaped_slash| {
        [MergeSlashes::Never, MergeSlashes::Always]
            .into_iter()
            .flat_map(move |merge_slashes| {
                exceptions.map(|exceptions| Rules {
                    escaped_slash,
                    merge_slashes,
                    exceptions,
                })
            })
    })
}

/// The reference model: decode everything, walk the segments, and compare what the two spellings
/// mean. Under the strict rules an encoded slash never gets this far, so this is exact.
fn agrees_with_the_obvious(text: &str, normal: &str) {
    let mut walked: Vec<Vec<u8>> = Vec::new();
    let segments: Vec<Vec<u8>> = text.split('/').skip(1).map(decode_all).collect();
    let mut last_is_dots = false;
    for segment in segments {
        last_is_dots = segment == b"." || segment == b"..";
        if segment == b".." {
            walked.pop();
        } else if segment != b"." {
            walked.push(segment);
        }
    }
    if last_is_dots {
        walked.push(Vec::new());
    }
    let ours: Vec<Vec<u8>> = normal.split('/').skip(1).map(decode_all).collect();
    assert_eq!(ours, walked, "{text} became {normal}");
}

fn decode_all(text: &str) -> Vec<u8> {
    let mut pieces = text.split('%');
    let mut out = pieces.next().unwrap_or_default().as_bytes().to_vec();
    for piece in pieces {
        out.push(u8::from_str_radix(&piece[..2], 16).unwrap());
        out.extend_from_slice(&piece.as_bytes()[2..]);
    }
    out
}

/// The reader survives anything, and the writer's elements read as they were meant.
///
/// The first three lines of the input are the URIs and the subject.
pub(crate) fn xfcc(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let _ = xfcc::parse(text);
    let mut lines = text.split('\n');
    let (by, uri) = (
        lines.next().unwrap_or_default(),
        lines.next().unwrap_or_default(),
    );
    let (subject, cert) = (lines.next(), lines.next());
    let element = xfcc::Element {
        by,
        hash: &[0xab; 32],
        cert,
        subject,
        uri,
    };
    let Ok(value) = element.to_value() else {
        return;
    };
    assert!(
        value.bytes().all(|byte| matches!(byte, b' '..=b'~')),
        "{value}"
    );
    let read = xfcc::parse(&value).unwrap();
    assert_eq!(read.len(), 1, "{value}");
    let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    let mut expected = vec![pair("By", by), pair("Hash", &"ab".repeat(32))];
    let encoded = read[0].iter().find(|(key, _)| key == "Cert").cloned();
    assert_eq!(encoded.is_some(), cert.is_some());
    if let (Some((_, encoded)), Some(cert)) = (&encoded, cert) {
        assert_eq!(decode_all(encoded), cert.as_bytes());
    }
    expected.extend(encoded);
    expected.extend(subject.map(|subject| pair("Subject", subject)));
    expected.push(pair("URI", uri));
    assert_eq!(read[0], expected);
}

/// Lines of bytes as values of both trace fields: a parent that is read has its ids in its text, and a state is one
/// however its members are spread over fields.
pub(crate) fn trace(data: &[u8]) {
    let values: Vec<&[u8]> = data.split(|byte| *byte == b'\n').collect();
    let parent = trace::TraceParent::read(values.iter().copied());
    if let (Some(parent), [value]) = (parent, &*values) {
        assert_eq!(value[3..35], *parent.trace.to_string().as_bytes());
        assert_eq!(value[36..52], *parent.span.to_string().as_bytes());
        assert!(value.len() == 55 || &value[..2] != b"00");
    } else {
        assert_eq!(parent, None, "of several values none is a parent");
    }
    let joined = values.join(&b',');
    assert_eq!(
        trace::is_state(values.iter().copied()),
        trace::is_state([&*joined])
    );
}

/// What is before the entries that count changes nothing, however the list is cut into fields, and what was read can
/// be written and reads as itself.
pub(crate) fn forwarded(data: &[u8]) {
    let Some((hops, data)) = data.split_first() else {
        return;
    };
    let Some(hops) = NonZeroU8::new(*hops) else {
        return;
    };
    let values: Vec<&[u8]> = data.split(|byte| *byte == b'\n').collect();
    let read = forwarded::chain(values.iter().copied(), hops);
    let joined = values.join(&b',');
    assert_eq!(read, forwarded::chain([&*joined], hops));
    let Ok(chain) = read else {
        return;
    };
    assert!(chain.len() <= usize::from(hops.get()));
    if chain.len() == usize::from(hops.get()) {
        let forged = [b"forged, 127.0.0.1, ".as_slice(), &joined].concat();
        assert_eq!(forwarded::chain([&*forged], hops).as_ref(), Ok(&chain));
    }
    if let Some(list) = forwarded::list(&chain) {
        assert_eq!(forwarded::chain([list.as_bytes()], hops), Ok(chain));
    }
}

/// A PROXY header reads alike however it is cut, asks for no byte beyond itself, and what was read
/// can be written and reads as itself.
pub(crate) fn proxy(data: &[u8]) {
    let (mut taken, mut asked) = (0, 0);
    let whole = loop {
        match proxy::read(&data[..taken]) {
            Ok(proxy::Progress::Needs(more)) => {
                assert!(more > 0);
                taken += more;
                asked = asked.max(taken);
                if taken > data.len() {
                    break None;
                }
            }
            Ok(proxy::Progress::Complete(header)) => break Some(Ok(header)),
            Err(error) => break Some(Err(error)),
        }
    };
    assert!(
        asked <= proxy::MAX_HEADER,
        "the limit on bytes does not hold"
    );
    if let Some(Ok(_)) = whole {
        let declared = usize::from(u16::from_be_bytes([data[14], data[15]]));
        assert_eq!(
            taken,
            16 + declared,
            "it asked for what is not the header's"
        );
        if let Some(beyond) = data.get(..=taken) {
            assert_eq!(proxy::read(beyond), Err(proxy::ProxyError::Overreads));
        }
    }
    // Byte by byte it ends the same, if not always as late.
    let mut bytes = (0..=data.len().min(taken)).map(|taken| proxy::read(&data[..taken]));
    let in_parts = bytes.find(|read| !matches!(read, Ok(proxy::Progress::Needs(_))));
    let in_parts = in_parts.map(|read| {
        read.map(|progress| match progress {
            proxy::Progress::Complete(header) => header,
            proxy::Progress::Needs(_) => unreachable!("these were passed over"),
        })
    });
    if whole.is_some() {
        assert_eq!(in_parts, whole);
    }
    if let Some(Ok(header)) = whole {
        writes_as_it_reads(&header, taken);
    }
}

fn writes_as_it_reads(header: &proxy::Header, taken: usize) {
    const CHECKSUM: usize = 7;
    match header.to_bytes() {
        Ok(bytes) => {
            assert!(bytes.len() <= proxy::MAX_HEADER);
            let again = proxy::read(&bytes);
            assert_eq!(again, Ok(proxy::Progress::Complete(header.clone())));
        }
        // It had no room for a checksum.
        Err(proxy::Unwritable) => assert!(taken > proxy::MAX_HEADER - CHECKSUM),
    }
}
