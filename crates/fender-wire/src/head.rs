//! Request and response heads of HTTP/1 (RFC 9112), read strictly as the bytes arrive.
//!
//! Written by hand rather than on `httparse`: that parser accepts a bare LF as a line end and skips
//! any number of empty lines, and it starts from the first byte again on every read. Here each byte
//! is looked at once, each line is judged when it ends, and each refusal has a name (P4). `httparse`
//! remains as the reference in our tests: what we accept, it accepts and reads alike.
//!
//! Refused: `Content-Length` beside `Transfer-Encoding`, several `Content-Length` even if equal, any
//! `Transfer-Encoding` but one `chunked`, bare LF, bare CR, folded lines, HTTP/1.0 with
//! `Transfer-Encoding`, white space before a colon, a missing, second or malformed `Host`,
//! lower-case methods, `CONNECT`. A head that was refused is never partly usable: the connection
//! answers with [`HeadError::status`] and closes.

mod http2;
mod request;
mod response;

use bytes::{Bytes, BytesMut};

use crate::{
    Fields,
    authority::AuthorityError,
    connection::{Connection, ConnectionError},
    fields::{FieldError, Span},
    grammar,
};

pub use crate::grammar::{folds_to, folds_to_prefix, is_method};
pub use http2::{Body as Http2Body, Http2Request};
pub use request::{RequestHead, TargetForm};
pub use response::ResponseHead;

/// How much of a peer's head is read before it is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The whole head, with its line ends; at most 16 MiB counts.
    pub bytes: usize,
    /// The number of fields.
    pub headers: usize,
    /// The request target.
    pub target: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            bytes: 32 * 1024,
            headers: 100,
            target: 8 * 1024,
        }
    }
}

/// HTTP/1.0 or HTTP/1.1; there is no other HTTP/1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    Http10,
    Http11,
}

/// Why a head was refused, one variant per attack.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HeadError {
    #[error("the first byte does not begin an HTTP/1 message")]
    BeginsOtherProtocol,
    #[error("a line ends in a bare line feed")]
    EndsLineBare,
    #[error("the head is larger than the limit")]
    ExceedsBytes,
    #[error("the head has more fields than the limit")]
    ExceedsFields,
    #[error("the request target is longer than the limit")]
    ExceedsTarget,
    #[error("the first line is not of the form the protocol demands")]
    BreaksStartLine,
    #[error("the first line holds a bare carriage return")]
    HoldsBareCarriageReturn,
    #[error("the method is not an upper-case name")]
    BreaksMethod,
    #[error("the request target holds a byte that is not allowed there")]
    BreaksTarget,
    #[error("the form of the request target does not fit the method")]
    MisfitsTarget,
    #[error("`CONNECT` is not offered")]
    AsksTunnel,
    #[error("the protocol version is not HTTP/1.0 or HTTP/1.1")]
    DiffersInVersion,
    #[error("the status code is not a number from 100 to 999")]
    BreaksStatus,
    #[error(transparent)]
    Field(#[from] FieldError),
    #[error("the `Host` field is missing")]
    LacksHost,
    #[error("there are several `Host` fields")]
    RepeatsHost,
    #[error("the host is malformed: {0}")]
    BreaksHost(#[from] AuthorityError),
    #[error("the request target and the `Host` field name different hosts")]
    DisagreesOnHost,
    #[error("`Content-Length` and `Transfer-Encoding` are both given")]
    FramesTwice,
    #[error("there are several `Content-Length` values")]
    RepeatsContentLength,
    #[error("`Content-Length` is not a plain decimal number")]
    BreaksContentLength,
    #[error("`Transfer-Encoding` is not one `chunked`")]
    BreaksTransferEncoding,
    #[error("`Transfer-Encoding` names a coding that is not offered")]
    AsksTransferCoding,
    #[error("`Transfer-Encoding` is not part of HTTP/1.0")]
    ChunksHttp10,
    #[error("a field name looks like `Content-Length` or `Transfer-Encoding` and is neither")]
    DisguisesFraming,
    #[error("a response that has no body declares one")]
    FramesBodiless,
    #[error("`Expect` asks for something other than `100-continue`")]
    ExpectsUnknown,
    #[error(transparent)]
    Connection(#[from] ConnectionError),
}

impl HeadError {
    /// The status to answer a request with; for a response it is the gateway's 502 instead.
    #[must_use]
    pub fn status(&self) -> u16 {
        match self {
            Self::ExceedsBytes | Self::ExceedsFields => 431,
            Self::ExceedsTarget => 414,
            Self::ExpectsUnknown => 417,
            Self::AsksTunnel | Self::AsksTransferCoding => 501,
            Self::DiffersInVersion => 505,
            Self::BeginsOtherProtocol
            | Self::EndsLineBare
            | Self::BreaksStartLine
            | Self::HoldsBareCarriageReturn
            | Self::BreaksMethod
            | Self::BreaksTarget
            | Self::MisfitsTarget
            | Self::BreaksStatus
            | Self::Field(_)
            | Self::LacksHost
            | Self::RepeatsHost
            | Self::BreaksHost(_)
            | Self::DisagreesOnHost
            | Self::FramesTwice
            | Self::RepeatsContentLength
            | Self::BreaksContentLength
            | Self::BreaksTransferEncoding
            | Self::ChunksHttp10
            | Self::DisguisesFraming
            | Self::FramesBodiless
            | Self::Connection(_) => 400,
        }
    }
}

/// Reads heads from one connection, keeping its place between reads.
///
/// Between two calls the caller only appends to the buffer; when a head is complete it is split off
/// and what remains is the body. The outcome does not depend on how the bytes were cut into reads.
/// After an error the connection is spent, and the reader repeats that error for ever.
#[derive(Debug)]
pub struct HeadReader {
    limits: Limits,
    bare: BareLineFeed,
    place: Place,
    refused: Option<HeadError>,
}

/// What becomes of a line of a response that ends in a bare line feed. In a request it is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BareLineFeed {
    Refused,
    EndsLine,
}

/// How far a head has been read.
#[derive(Debug, Default)]
struct Place {
    /// Where the line under the cursor begins.
    line: usize,
    /// Up to where no line feed remains to be found.
    scanned: usize,
    /// An empty line came before the request line, which is forgiven once (RFC 9112 §2.2).
    skipped: bool,
    start: Option<StartLine>,
    spans: Vec<Span>,
}

/// The first line, as ranges of the buffer.
#[derive(Clone, Copy, Debug)]
enum StartLine {
    Request(request::Line),
    Response(response::Line),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Request,
    Response,
}

/// What a request line takes beside its target: method, version, two spaces, and some to spare.
const BESIDE_TARGET: usize = 64;

/// Room for the fields of most heads, in one allocation.
const USUAL_FIELDS: usize = 16;

/// Positions in a head are kept in 32 bits.
const MAX_BYTES: usize = 16 * 1024 * 1024;

impl HeadReader {
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        let mut reader = Self {
            limits,
            bare: BareLineFeed::Refused,
            place: Place::default(),
            refused: None,
        };
        reader.hold_to(limits);
        reader
    }

    /// Holds the heads to come to other limits. One that is half read goes on by them too.
    pub fn hold_to(&mut self, limits: Limits) {
        self.limits = Limits {
            bytes: limits.bytes.min(MAX_BYTES),
            ..limits
        };
    }

    /// Takes a bare line feed for the end of a line of a response (RFC 9112 §2.2), for one's own
    /// application: CGI programs write them. It is written anew with proper line ends in any case.
    #[must_use]
    pub fn forgiving_applications(self) -> Self {
        Self {
            bare: BareLineFeed::EndsLine,
            ..self
        }
    }

    /// Takes a request head from the front of `buffer`, or `None` while it is incomplete.
    pub fn request(&mut self, buffer: &mut BytesMut) -> Result<Option<RequestHead>, HeadError> {
        let read = self
            .advance(buffer, Kind::Request)
            .and_then(|read| match read {
                Some((StartLine::Request(line), bytes, fields)) => {
                    RequestHead::new(line, &bytes, fields).map(Some)
                }
                Some((StartLine::Response(_), ..)) => Err(HeadError::BreaksStartLine),
                None => Ok(None),
            });
        self.refused = read.as_ref().err().cloned();
        read
    }

    /// Takes the head of the response to a request of method `method` from the front of `buffer`,
    /// or `None` while it is incomplete.
    ///
    /// Interim responses (1xx) come out like any other; the caller asks again for the final one.
    pub fn response(
        &mut self,
        buffer: &mut BytesMut,
        method: &str,
    ) -> Result<Option<ResponseHead>, HeadError> {
        let read = self
            .advance(buffer, Kind::Response)
            .and_then(|read| match read {
                Some((StartLine::Response(line), bytes, fields)) => {
                    ResponseHead::new(line, &bytes, fields, method).map(Some)
                }
                Some((StartLine::Request(_), ..)) => Err(HeadError::BreaksStartLine),
                None => Ok(None),
            });
        self.refused = read.as_ref().err().cloned();
        read
    }

    /// Says whether part of a head has arrived: the connection is no longer idle.
    #[must_use]
    pub fn has_begun(&self, buffer: &BytesMut) -> bool {
        !matches!(&buffer[..], b"" | b"\r" | b"\r\n")
    }

    /// Judges every line that is complete by now; splits the head off once its last one is.
    fn advance(
        &mut self,
        buffer: &mut BytesMut,
        kind: Kind,
    ) -> Result<Option<(StartLine, Bytes, Fields)>, HeadError> {
        if let Some(error) = &self.refused {
            return Err(error.clone());
        }
        if buffer
            .first()
            .is_some_and(|byte| !byte.is_ascii_graphic() && !is_blank(*byte))
        {
            return Err(HeadError::BeginsOtherProtocol);
        }
        while let Some(line_feed) = self.find_line_feed(buffer, kind)? {
            let place = &mut self.place;
            let start = place.line;
            let line = buffer.get(start..line_feed).unwrap_or_default();
            let line = match (line.strip_suffix(b"\r"), kind, self.bare) {
                (Some(line), _, _) => line,
                (None, Kind::Response, BareLineFeed::EndsLine) => line,
                (None, _, _) => return Err(HeadError::EndsLineBare),
            };
            place.line = line_feed + 1;
            place.scanned = place.line;
            match (place.start, line) {
                (None, []) if kind == Kind::Request && !place.skipped => place.skipped = true,
                (None, []) => return Err(HeadError::BreaksStartLine),
                (None, _) => {
                    place.start = Some(StartLine::parse(line, start, kind, &self.limits)?);
                    place.spans.reserve(USUAL_FIELDS);
                }
                (Some(start_line), []) => {
                    let place = std::mem::take(place);
                    let bytes = buffer.split_to(place.line).freeze();
                    let fields = Fields::new(bytes.clone(), place.spans);
                    return Ok(Some((start_line, bytes, fields)));
                }
                (Some(_), _) if place.spans.len() >= self.limits.headers => {
                    return Err(HeadError::ExceedsFields);
                }
                (Some(_), _) => place.spans.push(Span::parse(line, start)?),
            }
        }
        Ok(None)
    }

    /// Finds the end of the line under the cursor, or refuses a line that is too long by now.
    ///
    /// The limits count the bytes before the line feed whether or not it has arrived, so that the
    /// refusal is the same one however the bytes were cut.
    fn find_line_feed(&mut self, buffer: &[u8], kind: Kind) -> Result<Option<usize>, HeadError> {
        let place = &mut self.place;
        let unseen = buffer.get(place.scanned..).unwrap_or_default();
        let found = unseen
            .iter()
            .position(|byte| *byte == b'\n')
            .map(|at| place.scanned + at);
        let before = found.unwrap_or(buffer.len());
        place.scanned = before;

        let line_limit = place.line + self.limits.target + BESIDE_TARGET;
        let in_request_line = kind == Kind::Request && place.start.is_none();
        if in_request_line && before >= line_limit && line_limit <= self.limits.bytes {
            return Err(HeadError::ExceedsTarget);
        }
        if before >= self.limits.bytes {
            return Err(HeadError::ExceedsBytes);
        }
        Ok(found)
    }
}

const fn is_blank(byte: u8) -> bool {
    matches!(byte, b'\r' | b'\n' | b' ' | b'\t')
}

impl StartLine {
    fn parse(line: &[u8], at: usize, kind: Kind, limits: &Limits) -> Result<Self, HeadError> {
        if line.contains(&b'\r') {
            return Err(HeadError::HoldsBareCarriageReturn);
        }
        match kind {
            Kind::Request => request::Line::parse(line, at, limits).map(Self::Request),
            Kind::Response => response::Line::parse(line, at).map(Self::Response),
        }
    }
}

impl Version {
    /// Parses `HTTP/1.1` or `HTTP/1.0`.
    fn parse(text: &[u8]) -> Result<Self, HeadError> {
        match text {
            b"HTTP/1.1" => Ok(Self::Http11),
            b"HTTP/1.0" => Ok(Self::Http10),
            [b'H', b'T', b'T', b'P', b'/', rest @ ..]
                if !rest.is_empty() && rest.iter().all(|b| b.is_ascii_digit() || *b == b'.') =>
            {
                Err(HeadError::DiffersInVersion)
            }
            _ => Err(HeadError::BreaksStartLine),
        }
    }
}

/// What the fields say about the length of the body, before what kind of message it is counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Declared {
    Nothing,
    Length(u64),
    Chunked,
}

/// P4: one declaration of length, in one spelling, or none.
fn declared(fields: &Fields, version: Version) -> Result<Declared, HeadError> {
    let mut length = None;
    let mut coding = None;
    let (mut lengths, mut codings) = (0_usize, 0_usize);
    for field in fields.iter() {
        if field.is("content-length") {
            lengths += 1;
            length = Some(field.value());
        } else if field.is("transfer-encoding") {
            codings += 1;
            coding = Some(field.value());
        } else if folds_to(field.name_bytes(), b"content-length")
            || folds_to(field.name_bytes(), b"transfer-encoding")
        {
            return Err(HeadError::DisguisesFraming);
        }
    }
    match (length, coding) {
        (Some(_), Some(_)) => Err(HeadError::FramesTwice),
        (Some(_), None) if lengths > 1 => Err(HeadError::RepeatsContentLength),
        (Some(value), None) => parse_content_length(value).map(Declared::Length),
        (None, Some(_)) if version == Version::Http10 => Err(HeadError::ChunksHttp10),
        (None, Some(_)) if codings > 1 => Err(HeadError::BreaksTransferEncoding),
        (None, Some(value)) => check_transfer_encoding(value).map(|()| Declared::Chunked),
        (None, None) => Ok(Declared::Nothing),
    }
}

/// Digits only and no leading zero: `010` is eight to some readers.
fn parse_content_length(value: &[u8]) -> Result<u64, HeadError> {
    if value.contains(&b',') {
        return Err(HeadError::RepeatsContentLength);
    }
    let canonical = value == b"0" || !value.starts_with(b"0");
    if value.is_empty() || !canonical || !value.iter().all(u8::is_ascii_digit) {
        return Err(HeadError::BreaksContentLength);
    }
    grammar::ascii(value)
        .parse()
        .map_err(|_| HeadError::BreaksContentLength)
}

fn check_transfer_encoding(value: &[u8]) -> Result<(), HeadError> {
    if value.eq_ignore_ascii_case(b"chunked") {
        return Ok(());
    }
    let is_chunked = |coding: &&[u8]| coding.eq_ignore_ascii_case(b"chunked");
    let codings: Vec<&[u8]> = grammar::list(value).collect();
    match codings.split_last() {
        Some((last, others))
            if is_chunked(last) && !others.is_empty() && !others.iter().any(is_chunked) =>
        {
            Err(HeadError::AsksTransferCoding)
        }
        _ => Err(HeadError::BreaksTransferEncoding),
    }
}

/// The one protocol that an `Upgrade` field names, unless it would carry HTTP past the gate.
fn upgrade_of(fields: &Fields, connection: &Connection, version: Version) -> Option<Bytes> {
    if version == Version::Http10 || !connection.upgrades() {
        return None;
    }
    let mut values = fields.all("upgrade");
    let (Some(protocol), None) = (values.next(), values.next()) else {
        return None;
    };
    let in_grammar = !protocol.is_empty()
        && protocol
            .iter()
            .all(|byte| grammar::is_token_byte(*byte) || *byte == b'/');
    let name = protocol
        .split(|byte| *byte == b'/')
        .next()
        .unwrap_or_default();
    let carries_http = [&b"h2c"[..], b"h2", b"h3", b"http", b"tls"]
        .iter()
        .any(|known| name.eq_ignore_ascii_case(known));
    (in_grammar && !carries_http).then(|| fields.share(protocol))
}
