//! The small parts: writing, the identity header, the fields of one hop.

use std::io::IoSlice;

use bytes::{Buf, Bytes, BytesMut};
use fender_wire::{
    Authority, BodyLimits, Decoder, Encoder, Fields, Frame, Framing, HeadError, HeadReader, Limits,
    RequestHead,
    body::EncodeError,
    connection::{Connection, ConnectionError},
    write::{Answer, HeadWriter, Then, WriteError},
    xfcc,
};

fn request(text: &str) -> RequestHead {
    let mut buffer = BytesMut::from(text);
    HeadReader::new(Limits::default())
        .request(&mut buffer)
        .unwrap()
        .unwrap()
}

fn fields(pairs: &[(&str, &str)]) -> Fields {
    Fields::build(
        pairs
            .iter()
            .map(|(name, value)| (name.as_bytes(), value.as_bytes())),
    )
    .unwrap()
}

#[test]
fn requests_in_one_buffer_come_out_one_by_one() {
    let mut buffer = BytesMut::from(
        "POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhiGET /b HTTP/1.1\r\nHost: a\r\n\r\n",
    );
    let mut reader = HeadReader::new(Limits::default());
    let first = reader.request(&mut buffer).unwrap().unwrap();
    assert_eq!(first.path(), "/a");
    let mut body = Decoder::new(first.framing(), BodyLimits::default());
    assert!(matches!(body.decode(&mut buffer), Ok(Frame::Data(data)) if data == "hi"));
    assert!(matches!(body.decode(&mut buffer), Ok(Frame::End(_))));
    let second = reader.request(&mut buffer).unwrap().unwrap();
    assert_eq!(second.path(), "/b");
    assert!(!reader.has_begun(&buffer));
}

#[test]
fn an_empty_line_alone_does_not_begin_a_request() {
    let reader = HeadReader::new(Limits::default());
    assert!(!reader.has_begun(&BytesMut::from("\r\n")));
    assert!(reader.has_begun(&BytesMut::from("\r\nG")));
}

#[test]
fn a_head_may_be_exactly_as_large_as_its_limits() {
    let text = "GET /abc HTTP/1.1\r\nHost: a\r\nX: y\r\n\r\n";
    let exact = Limits {
        bytes: text.len(),
        headers: 2,
        target: 4,
    };
    let read = |limits| {
        HeadReader::new(limits)
            .request(&mut BytesMut::from(text))
            .map(drop)
    };
    assert_eq!(read(exact), Ok(()));
    let too_few_bytes = Limits {
        bytes: exact.bytes - 1,
        ..exact
    };
    assert_eq!(read(too_few_bytes), Err(HeadError::ExceedsBytes));
    assert_eq!(
        read(Limits {
            headers: 1,
            ..exact
        }),
        Err(HeadError::ExceedsFields)
    );
    assert_eq!(
        read(Limits { target: 3, ..exact }),
        Err(HeadError::ExceedsTarget)
    );
}

#[test]
fn a_refused_head_cannot_be_resumed_behind_its_fault() {
    let mut reader = HeadReader::new(Limits::default());
    let mut buffer = BytesMut::from("GET / HTTP/1.1\r\nHost: a\r\nX y\r\n");
    let error = reader.request(&mut buffer).unwrap_err();
    buffer.extend_from_slice(b"X: y\r\n\r\n");
    assert_eq!(reader.request(&mut buffer).unwrap_err(), error);
}

#[test]
fn field_values_share_the_buffer_of_the_head() {
    let head = request("GET / HTTP/1.1\r\nHost: a\r\nX-Y: some value\r\n\r\n");
    let value = head.fields().first_bytes("x-y").unwrap();
    assert_eq!(value.as_ptr(), head.fields().first("X-Y").unwrap().as_ptr());
}

#[test]
fn each_value_of_a_field_stands_by_itself() {
    let head = request("GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\nY: 2\r\nx: 3, 4\r\n\r\n");
    let values: Vec<&[u8]> = head.fields().all("X").collect();
    assert_eq!(values, [&b"1"[..], b"3, 4"]);
}

#[test]
fn debug_shows_neither_values_nor_queries() {
    let head =
        request("GET /a?token=secret1 HTTP/1.1\r\nHost: a\r\nAuthorization: secret2\r\n\r\n");
    let debug = format!("{head:?}");
    assert!(
        debug.contains("Authorization") && !debug.contains("secret"),
        "{debug}"
    );
}

#[test]
fn an_injected_line_cannot_be_written() {
    let mut out = BytesMut::new();
    let mut head = HeadWriter::request(&mut out, "GET", "/", None).unwrap();
    let value = head.field("x", b"a\r\nHost: b");
    assert_eq!(value, Err(WriteError::BreaksValue("x".to_owned())));
    let name = head.field("x: y\r\nz", b"");
    assert_eq!(name, Err(WriteError::BreaksName("x: y\r\nz".to_owned())));
    head.end();
    assert_eq!(out, "GET / HTTP/1.1\r\n\r\n");

    let mut out = BytesMut::new();
    for (path, query) in [
        ("/ HTTP/1.1\r\n", None),
        ("/", Some("a b")),
        ("/?", None),
        ("x", None),
        ("/", Some("#")),
    ] {
        let refused = HeadWriter::request(&mut out, "GET", path, query);
        assert_eq!(
            refused.unwrap_err(),
            WriteError::BreaksTarget,
            "{path} {query:?}"
        );
    }
    assert!(HeadWriter::request(&mut out, "GET /x", "/", None).is_err());
    assert!(out.is_empty());
}

#[test]
fn a_forwarded_head_keeps_what_is_end_to_end_and_nothing_of_the_hop() {
    let head = request(
        "GET /a HTTP/1.1\r\nHost: a\r\nConnection: X-Hop, close\r\nX-Hop: 1\r\nKeep-Alive: 5\r\n\
         TE: trailers\r\nProxy-Authorization: x\r\nX-End: 2\r\n\r\n",
    );
    let mut out = BytesMut::new();
    let mut writer = HeadWriter::request(&mut out, head.method(), head.path(), None).unwrap();
    for field in head
        .fields()
        .iter()
        .filter(|field| !head.connection().strips(field.name()))
    {
        writer.copy(field);
    }
    writer.framing(Framing::Chunked);
    writer.end();
    let expected = "GET /a HTTP/1.1\r\nHost: a\r\nX-End: 2\r\ntransfer-encoding: chunked\r\n\r\n";
    assert_eq!(out, expected);
    assert_eq!(head.connection().named().collect::<Vec<_>>(), ["X-Hop"]);
}

#[test]
fn no_spelling_of_the_identity_header_can_be_named_away() {
    for name in [
        "x-forwarded-client-cert",
        "X-Forwarded-Client-Cert",
        "x_forwarded_client_cert",
        "X-FORWARDED_CLIENT-CERT",
        "x.forwarded.client.cert",
    ] {
        assert!(xfcc::is_identity_header(name.as_bytes()), "{name}");
        let refused = Connection::of(&fields(&[("connection", name)]));
        assert_eq!(
            refused,
            Err(ConnectionError::NamesProtected(name.to_owned()))
        );
    }
    for name in [
        "x-forwarded-client-certs",
        "x-forwarded-client",
        "xforwardedclientcert",
        "",
    ] {
        assert!(!xfcc::is_identity_header(name.as_bytes()), "{name}");
    }
}

#[test]
fn the_identity_header_is_in_envoys_grammar() {
    let element = xfcc::Element {
        by: "spiffe://example.org/ns/shop/sa/orders",
        hash: &[0x0f; 32],
        cert: Some("-----BEGIN\n"),
        subject: Some("CN=a \"b\",O=c;d"),
        uri: "spiffe://example.org/ns/shop/sa/web",
    };
    assert_eq!(
        element.to_value().unwrap(),
        format!(
            "By=spiffe://example.org/ns/shop/sa/orders;Hash={};Cert=\"-----BEGIN%0A\";\
             Subject=\"CN=a \\\"b\\\",O=c;d\";URI=spiffe://example.org/ns/shop/sa/web",
            "0f".repeat(32)
        )
    );
}

#[test]
fn a_uri_cannot_add_a_pair_or_an_element_to_the_identity_header() {
    for uri in [
        "spiffe://t/a;URI=spiffe://t/b",
        "spiffe://t/a,By=x",
        "a\";URI=b",
    ] {
        let element = xfcc::Element {
            by: "spiffe://t/x",
            hash: &[0; 32],
            cert: None,
            subject: None,
            uri,
        };
        let read = xfcc::parse(&element.to_value().unwrap()).unwrap();
        assert_eq!(read.len(), 1);
        assert_eq!(read[0].last().unwrap(), &("URI".to_owned(), uri.to_owned()));
        assert_eq!(read[0].len(), 3);
    }
    for uri in ["", "a\r\nx: y", "a\\", "é", "a\0"] {
        let element = xfcc::Element {
            by: "spiffe://t/x",
            hash: &[0; 32],
            cert: None,
            subject: None,
            uri,
        };
        assert!(element.to_value().is_err(), "{uri:?}");
    }
}

#[test]
fn identity_headers_of_others_are_read_or_refused() {
    let read = xfcc::parse("By=a;URI=b,Hash=c;Subject=\"x,y\\\"z\"").unwrap();
    let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    let expected = [
        vec![pair("By", "a"), pair("URI", "b")],
        vec![pair("Hash", "c"), pair("Subject", "x,y\"z")],
    ];
    assert_eq!(read, expected);
    for broken in [
        "",
        "By",
        "=x",
        "By=\"a",
        "By=\"a\"b",
        "By=a,",
        "By=a;;URI=b",
        "By=a\"b",
        "B y=a",
    ] {
        assert!(xfcc::parse(broken).is_err(), "{broken}");
    }
}

#[test]
fn an_answer_is_one_whole_response() {
    let answer = Answer {
        method: "GET",
        status: 403,
        text: "denied\n",
        fields: &[("x-fender-decision", "abc")],
        then: Then::Close,
    };
    let mut out = BytesMut::from("before");
    answer.write(&mut out).unwrap();
    assert_eq!(
        out,
        "beforeHTTP/1.1 403 Forbidden\r\nx-fender-decision: abc\r\n\
         content-type: text/plain; charset=utf-8\r\ncontent-length: 7\r\nconnection: close\r\n\r\n\
         denied\n"
    );
    let mut out = BytesMut::new();
    Answer {
        method: "HEAD",
        then: Then::KeepAlive,
        ..answer
    }
    .write(&mut out)
    .unwrap();
    assert!(out.ends_with(b"content-length: 7\r\n\r\n"));
    let mut out = BytesMut::new();
    let injected = Answer {
        fields: &[("x", "a\r\nb: c")],
        ..answer
    }
    .write(&mut out);
    assert!(injected.is_err() && out.is_empty());
}

#[test]
fn a_chunk_is_three_parts_that_share_the_data() {
    let data = Bytes::from(vec![b'x'; 0x1a2b]);
    let mut framed = Encoder::new(Framing::Chunked).data(data.clone()).unwrap();
    let mut slices = [IoSlice::new(b""); 4];
    assert_eq!(framed.chunks_vectored(&mut slices), 3);
    assert_eq!(&slices[0][..], b"1a2b\r\n");
    assert_eq!(slices[1].as_ptr(), data.as_ptr());
    assert_eq!(&slices[2][..], b"\r\n");
    framed.advance(6 + 0x1a2b + 1);
    assert_eq!(framed.chunk(), b"\n");
    framed.advance(1);
    assert!(!framed.has_remaining());
}

#[test]
fn an_empty_part_does_not_end_a_chunked_body() {
    let mut encoder = Encoder::new(Framing::Chunked);
    assert!(!encoder.data(Bytes::new()).unwrap().has_remaining());
    assert_eq!(encoder.end(&Fields::default()).unwrap(), "0\r\n\r\n");
    assert_eq!(
        encoder.end(&Fields::default()),
        Err(EncodeError::ContinuesAfterEnd)
    );
}

#[test]
fn trailers_that_may_only_be_headers_are_left_out() {
    let mut encoder = Encoder::new(Framing::Chunked);
    let trailers = fields(&[
        ("grpc-status", "0"),
        ("Content-Length", "5"),
        ("Set-Cookie", "x"),
    ]);
    assert_eq!(
        encoder.end(&trailers).unwrap(),
        "0\r\ngrpc-status: 0\r\n\r\n"
    );
}

#[test]
fn an_authority_is_canonical_and_shares_what_is_canonical_already() {
    let text = Bytes::from_static(b"shop.example:8443");
    let authority = Authority::parse(text.clone()).unwrap();
    assert_eq!(authority.as_str().as_ptr(), text.as_ptr());
    assert_eq!(
        (authority.host(), authority.port()),
        ("shop.example", Some(8443))
    );
    let authority: Authority = "SHOP.example.:8443".parse().unwrap();
    assert_eq!(authority.to_string(), "shop.example:8443");
    let authority: Authority = "[2001:DB8::1]".parse().unwrap();
    assert_eq!(
        (authority.host(), authority.port()),
        ("[2001:db8::1]", None)
    );
}

#[test]
fn an_applications_bare_line_feeds_end_lines_of_its_responses_and_of_nothing_else() {
    let text = "HTTP/1.0 200 OK\nContent-Type: text/plain\r\nX-A: b\n\nbody";
    let mut reader = HeadReader::new(Limits::default()).forgiving_applications();
    let mut buffer = BytesMut::from(text);
    let head = reader.response(&mut buffer, "GET").unwrap().unwrap();
    assert_eq!(head.status(), 200);
    assert_eq!(head.fields().first("x-a"), Some(&b"b"[..]));
    assert_eq!(&buffer[..], b"body");

    let strict = HeadReader::new(Limits::default()).response(&mut BytesMut::from(text), "GET");
    assert_eq!(strict.unwrap_err(), HeadError::EndsLineBare);
    let mut reader = HeadReader::new(Limits::default()).forgiving_applications();
    let request = reader.request(&mut BytesMut::from("GET / HTTP/1.1\nHost: a\n\n"));
    assert_eq!(request.unwrap_err(), HeadError::EndsLineBare);
    let mut reader = HeadReader::new(Limits::default()).forgiving_applications();
    let bare = reader.response(&mut BytesMut::from("HTTP/1.1 200 OK\nX: a\rb\n\n"), "GET");
    assert!(bare.is_err());
}
