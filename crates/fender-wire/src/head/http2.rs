//! A request or a response that came by HTTP/2 (RFC 9113 §8.3), in the form of one that came by HTTP/1.
//!
//! The framing layer has taken the pseudo-header fields apart and refused what is malformed in
//! HTTP/2. Refused here is what HTTP/2 allows and HTTP/1, which may carry the request on, would read
//! in two ways: a second host, a disguised or second length, a lower-case method, a target that is
//! none. Cookies that were cut into several fields are whole again (RFC 9113 §8.2.3).

use bytes::{Bytes, BytesMut};

use super::request::{Target, expects_continue};
use super::response::framing;
use super::{
    Declared, HeadError, Limits, RequestHead, ResponseHead, TargetForm, Version, declared,
};
use crate::fields::Span;
use crate::{Authority, Fields, Framing, connection::Connection, grammar};

/// A request by its parts.
#[derive(Clone, Copy, Debug)]
pub struct Http2Request<'a> {
    pub method: &'a str,
    /// `:path`, with the query.
    pub target: &'a str,
    /// `:authority`, where there was one.
    pub authority: Option<&'a str>,
    pub body: Body,
}

/// Whether anything follows the head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    None,
    Follows,
}

impl RequestHead {
    /// Reads a request of HTTP/2 and its fields, values of one name together.
    pub fn of_http2<'a>(
        request: Http2Request<'_>,
        fields: impl IntoIterator<Item = (&'a [u8], &'a [u8])>,
        limits: &Limits,
    ) -> Result<Self, HeadError> {
        let Http2Request { method, target, .. } = request;
        if method == "CONNECT" {
            return Err(HeadError::AsksTunnel);
        }
        if !grammar::is_method(method.as_bytes()) {
            return Err(HeadError::BreaksMethod);
        }
        if target.len() > limits.target {
            return Err(HeadError::ExceedsTarget);
        }
        if !target
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && byte != b'#')
        {
            return Err(HeadError::BreaksTarget);
        }
        let named = request.authority.unwrap_or_default();
        let mut bytes = BytesMut::with_capacity(USUAL_BYTES);
        bytes.extend_from_slice(method.as_bytes());
        bytes.extend_from_slice(target.as_bytes());
        bytes.extend_from_slice(named.as_bytes());
        let spans = append(&mut bytes, fields, limits)?;
        let bytes = bytes.freeze();
        let fields = Fields::new(bytes.clone(), spans);

        let target_end = method.len() + target.len();
        let named = request
            .authority
            .map(|named| bytes.slice(target_end..target_end + named.len()));
        let target = bytes.slice(method.len()..target_end);
        let method = bytes.slice(..method.len());
        let target = Target::parse(target, &method)?;
        if target.form == TargetForm::Absolute {
            return Err(HeadError::MisfitsTarget);
        }
        let framing = match (declared(&fields, Version::Http11)?, request.body) {
            (Declared::Chunked, _) => return Err(HeadError::BreaksTransferEncoding),
            (Declared::Length(0), Body::None) => Framing::Length(0),
            (Declared::Nothing | Declared::Length(_), Body::None) => Framing::None,
            (Declared::Length(length), Body::Follows) => Framing::Length(length),
            (Declared::Nothing, Body::Follows) => Framing::Chunked,
        };
        Ok(Self {
            method,
            path: target.path,
            query: target.query,
            form: target.form,
            version: Version::Http11,
            authority: authority(&fields, named)?,
            // The framing layer refuses what would be for this hop only.
            connection: Connection::default(),
            framing,
            expect_continue: expects_continue(&fields, Version::Http11)?
                && request.body == Body::Follows,
            upgrade: None,
            fields,
        })
    }
}

impl ResponseHead {
    /// Reads a final response of HTTP/2 and its fields, values of one name together. `method` is that of its request.
    pub fn of_http2<'a>(
        status: u16,
        fields: impl IntoIterator<Item = (&'a [u8], &'a [u8])>,
        method: &str,
        body: Body,
        limits: &Limits,
    ) -> Result<Self, HeadError> {
        // HTTP/2 has no change of protocols, and an interim response is not the final one.
        if !(200..=999).contains(&status) {
            return Err(HeadError::BreaksStatus);
        }
        let mut bytes = BytesMut::with_capacity(USUAL_BYTES);
        let spans = append(&mut bytes, fields, limits)?;
        let fields = Fields::new(bytes.freeze(), spans);
        let declared = match declared(&fields, Version::Http11)? {
            Declared::Chunked => return Err(HeadError::BreaksTransferEncoding),
            declared @ (Declared::Nothing | Declared::Length(_)) => declared,
        };
        let framing = match (framing(declared, status, method)?, body) {
            (Framing::Length(1..), Body::None) => return Err(HeadError::FramesBodiless),
            (Framing::UntilClose, Body::None) => Framing::Length(0),
            // Its end is told by the framing layer.
            (Framing::UntilClose, Body::Follows) => Framing::Chunked,
            (framing, Body::None | Body::Follows) => framing,
        };
        Ok(Self {
            status,
            reason: Bytes::new(),
            version: Version::Http11,
            connection: Connection::default(),
            framing,
            declared_length: match declared {
                Declared::Length(length) => Some(length),
                Declared::Nothing | Declared::Chunked => None,
            },
            upgrade: None,
            fields,
        })
    }
}

/// Room for most requests, in one allocation.
const USUAL_BYTES: usize = 512;

fn append<'a>(
    bytes: &mut BytesMut,
    fields: impl IntoIterator<Item = (&'a [u8], &'a [u8])>,
    limits: &Limits,
) -> Result<Vec<Span>, HeadError> {
    let mut spans: Vec<Span> = Vec::with_capacity(super::USUAL_FIELDS);
    // Where a cookie begins to which further crumbs may belong: it is read when all of them are there,
    // and not again with each.
    let mut cookie = None;
    let read = |bytes: &BytesMut, at: usize| Span::parse(bytes.get(at..).unwrap_or_default(), at);
    for (count, (name, value)) in fields.into_iter().enumerate() {
        if count >= limits.headers {
            return Err(HeadError::ExceedsFields);
        }
        let at = bytes.len();
        if name == b"cookie" && cookie.is_some() {
            bytes.extend_from_slice(b"; ");
        } else {
            if let Some(at) = cookie.take() {
                spans.push(read(bytes, at)?);
            }
            bytes.extend_from_slice(name);
            bytes.extend_from_slice(b": ");
            cookie = (name == b"cookie").then_some(at);
        }
        bytes.extend_from_slice(value);
        if cookie.is_none() {
            spans.push(read(bytes, at)?);
        }
        if bytes.len() > limits.bytes {
            return Err(HeadError::ExceedsBytes);
        }
    }
    if let Some(at) = cookie {
        spans.push(read(bytes, at)?);
    }
    Ok(spans)
}

/// The one host a request is for: `:authority`, and `Host` only if it says the same.
fn authority(fields: &Fields, named: Option<Bytes>) -> Result<Authority, HeadError> {
    let mut hosts = fields.all("host");
    let (host, second) = (hosts.next(), hosts.next());
    if second.is_some() {
        return Err(HeadError::RepeatsHost);
    }
    let host = host.map(|host| Authority::parse(fields.share(host)));
    let named = named.map(Authority::parse);
    match (named.transpose()?, host.transpose()?) {
        (Some(named), Some(host)) if named != host => Err(HeadError::DisagreesOnHost),
        (Some(authority), _) | (None, Some(authority)) => Ok(authority),
        (None, None) => Err(HeadError::LacksHost),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(
        method: &str,
        target: &str,
        authority: Option<&str>,
        fields: &[(&str, &str)],
        body: Body,
    ) -> Result<RequestHead, HeadError> {
        let request = Http2Request {
            method,
            target,
            authority,
            body,
        };
        let fields = fields
            .iter()
            .map(|(name, value)| (name.as_bytes(), value.as_bytes()));
        RequestHead::of_http2(request, fields, &Limits::default())
    }

    #[test]
    fn a_response_reads_like_one_of_http1() {
        let read = |status, method: &str, length: Option<&str>, body| {
            let fields = length.map(|length| (&b"content-length"[..], length.as_bytes()));
            let limits = Limits::default();
            ResponseHead::of_http2(status, fields, method, body, &limits).map(|head| head.framing())
        };
        let (none, follows) = (Body::None, Body::Follows);
        assert_eq!(read(200, "GET", None, follows), Ok(Framing::Chunked));
        assert_eq!(read(200, "GET", None, none), Ok(Framing::Length(0)));
        assert_eq!(read(200, "GET", Some("3"), follows), Ok(Framing::Length(3)));
        assert_eq!(read(200, "HEAD", Some("3"), none), Ok(Framing::None));
        assert_eq!(read(304, "GET", Some("3"), none), Ok(Framing::None));
        assert_eq!(read(204, "GET", None, none), Ok(Framing::None));
        // It announces what never comes.
        let announced = read(200, "GET", Some("3"), none);
        assert_eq!(announced, Err(HeadError::FramesBodiless));
        for status in [101, 103] {
            assert_eq!(
                read(status, "GET", None, none),
                Err(HeadError::BreaksStatus)
            );
        }
    }

    #[test]
    fn a_request_reads_like_one_of_http1() {
        let fields = [("x-a", "1"), ("content-length", "3"), ("x-a", "2")];
        let head = read("POST", "/p/q?x=/y", Some("Host"), &fields, Body::Follows).unwrap();
        assert_eq!(
            (head.method(), head.path(), head.query()),
            ("POST", "/p/q", Some("x=/y"))
        );
        assert_eq!(head.authority().as_str(), "host");
        assert_eq!(head.framing(), Framing::Length(3));
        let all: Vec<&[u8]> = head.fields().all("x-a").collect();
        assert_eq!(all, [b"1", b"2"]);
        let unsaid = read("GET", "/", Some("a"), &[], Body::Follows).unwrap();
        assert_eq!(unsaid.framing(), Framing::Chunked);
        let none = read("GET", "*", Some("a"), &[], Body::None);
        assert_eq!(none.unwrap_err(), HeadError::MisfitsTarget);
        let whole = read("OPTIONS", "*", Some("a"), &[], Body::None).unwrap();
        assert_eq!((whole.path(), whole.framing()), ("*", Framing::None));
    }

    #[test]
    fn a_cookie_in_crumbs_is_whole_again() {
        let fields = [
            ("cookie", "a=1"),
            ("cookie", "b=2"),
            ("cookie", "c"),
            ("x", "y"),
        ];
        let head = read("GET", "/", Some("a"), &fields, Body::None).unwrap();
        let cookies: Vec<&[u8]> = head.fields().all("cookie").collect();
        assert_eq!(cookies, [b"a=1; b=2; c"]);
        assert_eq!(head.fields().first("x"), Some(&b"y"[..]));
    }

    #[test]
    fn what_http1_would_read_in_two_ways_is_refused() {
        let get = |target, authority, fields: &[(&str, &str)]| {
            read("GET", target, authority, fields, Body::None).map(drop)
        };
        assert_eq!(
            get("/", Some("a"), &[("host", "b")]),
            Err(HeadError::DisagreesOnHost)
        );
        assert_eq!(
            get("/", None, &[("host", "b"), ("host", "b")]),
            Err(HeadError::RepeatsHost)
        );
        assert_eq!(get("/", None, &[]), Err(HeadError::LacksHost));
        assert_eq!(
            get("/", Some("a"), &[("content_length", "0")]),
            Err(HeadError::DisguisesFraming)
        );
        assert_eq!(
            get("/", Some("a"), &[("transfer-encoding", "chunked")]),
            Err(HeadError::BreaksTransferEncoding)
        );
        let twice = [("content-length", "1"), ("content-length", "1")];
        assert_eq!(
            get("/", Some("a"), &twice),
            Err(HeadError::RepeatsContentLength)
        );
        for target in ["http://a/", "a", "?x", ""] {
            assert_eq!(
                get(target, Some("a"), &[]),
                Err(HeadError::MisfitsTarget),
                "{target}"
            );
        }
        assert_eq!(get("/a b", Some("a"), &[]), Err(HeadError::BreaksTarget));
        let lower = read("get", "/", Some("a"), &[], Body::None).map(drop);
        assert_eq!(lower, Err(HeadError::BreaksMethod));
        let tunnel = read("CONNECT", "/", Some("a"), &[], Body::None).map(drop);
        assert_eq!(tunnel, Err(HeadError::AsksTunnel));
    }
}
