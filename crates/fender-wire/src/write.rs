//! Heads on their way out.
//!
//! A [`HeadWriter`] cannot be made to write a line its caller did not ask for: parsed fields are
//! proof enough, and anything else is checked byte by byte.

use bytes::{BufMut, BytesMut};

use crate::{Field, Framing, grammar};

/// A field, method or target that would break the head it is written into.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WriteError {
    #[error("`{0}` is not a method")]
    BreaksMethod(String),
    #[error("the target holds a byte that is not allowed there")]
    BreaksTarget,
    #[error("`{0}` is not a field name")]
    BreaksName(String),
    #[error("the value of the field `{0}` holds a byte that is not allowed there")]
    BreaksValue(String),
}

/// The interim response that asks for the body.
pub const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// Writes one head to the end of a buffer; it is complete after [`HeadWriter::end`].
#[derive(Debug)]
#[must_use = "a head without its end is half a message"]
pub struct HeadWriter<'a> {
    out: &'a mut BytesMut,
}

impl<'a> HeadWriter<'a> {
    /// Begins a request with its method, path (`/…` or `*`) and query.
    pub fn request(
        out: &'a mut BytesMut,
        method: &str,
        path: &str,
        query: Option<&str>,
    ) -> Result<Self, WriteError> {
        if !grammar::is_method(method.as_bytes()) {
            return Err(WriteError::BreaksMethod(method.to_owned()));
        }
        let fits = |byte: u8| byte.is_ascii_graphic() && byte != b'#';
        let path_fits = (path.starts_with('/') || path == "*")
            && path.bytes().all(|byte| fits(byte) && byte != b'?');
        if !path_fits || !query.unwrap_or_default().bytes().all(fits) {
            return Err(WriteError::BreaksTarget);
        }
        out.put_slice(method.as_bytes());
        out.put_u8(b' ');
        out.put_slice(path.as_bytes());
        if let Some(query) = query {
            out.put_u8(b'?');
            out.put_slice(query.as_bytes());
        }
        out.put_slice(b" HTTP/1.1\r\n");
        Ok(Self { out })
    }

    /// Begins a response with its status and the usual reason.
    ///
    /// A status that does not have three digits is written as 500.
    pub fn response(out: &'a mut BytesMut, status: u16) -> Self {
        let status = if (100..=999).contains(&status) {
            status
        } else {
            500
        };
        out.reserve(USUAL_HEAD);
        out.put_slice(b"HTTP/1.1 ");
        put_number(out, status.into());
        out.put_u8(b' ');
        out.put_slice(reason(status).as_bytes());
        out.put_slice(b"\r\n");
        Self { out }
    }

    /// Copies a parsed field.
    ///
    /// Which fields to copy is the caller's choice: those its
    /// [`Connection`](crate::connection::Connection) does not strip, and no `content-length` where
    /// [`HeadWriter::framing`] declares the body anew.
    pub fn copy(&mut self, field: Field<'_>) {
        put_field(self.out, field.name_bytes(), field.value());
    }

    /// Writes a field made here.
    pub fn field(&mut self, name: &str, value: &[u8]) -> Result<(), WriteError> {
        if !grammar::is_token(name.as_bytes()) {
            return Err(WriteError::BreaksName(name.to_owned()));
        }
        if !value.iter().all(|byte| grammar::is_field_value_byte(*byte)) {
            return Err(WriteError::BreaksValue(name.to_owned()));
        }
        put_field(self.out, name.as_bytes(), value);
        Ok(())
    }

    /// Writes the field that declares the body: `content-length`, `transfer-encoding` or none.
    pub fn framing(&mut self, framing: Framing) {
        match framing {
            Framing::None | Framing::UntilClose => {}
            Framing::Length(length) => {
                self.out.put_slice(b"content-length: ");
                put_number(self.out, length);
                self.out.put_slice(b"\r\n");
            }
            Framing::Chunked => put_field(self.out, b"transfer-encoding", b"chunked"),
        }
    }

    /// Writes `connection: close`.
    pub fn close(&mut self) {
        put_field(self.out, b"connection", b"close");
    }

    /// Writes `connection: upgrade` and `upgrade: PROTOCOL`.
    pub fn upgrade(&mut self, protocol: &str) -> Result<(), WriteError> {
        put_field(self.out, b"connection", b"upgrade");
        self.field("upgrade", protocol.as_bytes())
    }

    /// Ends the head.
    pub fn end(self) {
        self.out.put_slice(b"\r\n");
    }
}

/// Room for most heads of responses.
const USUAL_HEAD: usize = 512;

/// Writes a number in decimal digits.
fn put_number(out: &mut BytesMut, number: u64) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    let mut rest = number;
    for (index, digit) in digits.iter_mut().enumerate().rev() {
        *digit = b'0' + (rest % 10) as u8;
        rest /= 10;
        at = index;
        if rest == 0 {
            break;
        }
    }
    out.put_slice(digits.get(at..).unwrap_or_default());
}

/// Writes one line whose parts are known to be clean.
pub(crate) fn put_field(out: &mut BytesMut, name: &[u8], value: &[u8]) {
    out.reserve(name.len() + value.len() + 4);
    out.put_slice(name);
    out.put_slice(b": ");
    out.put_slice(value);
    out.put_slice(b"\r\n");
}

/// A whole response of ours: a status, plain text and a few fields.
#[derive(Clone, Copy, Debug)]
pub struct Answer<'a> {
    /// The method of the request it answers: `HEAD` gets no body.
    pub method: &'a str,
    pub status: u16,
    pub text: &'a str,
    pub fields: &'a [(&'a str, &'a str)],
    pub then: Then,
}

/// What becomes of the connection after an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    KeepAlive,
    Close,
}

impl Answer<'_> {
    /// Writes the whole response to the end of a buffer; nothing of it when a field is refused.
    pub fn write(&self, out: &mut BytesMut) -> Result<(), WriteError> {
        let mut whole = BytesMut::with_capacity(256 + self.text.len());
        let mut head = HeadWriter::response(&mut whole, self.status);
        for (name, value) in self.fields {
            head.field(name, value.as_bytes())?;
        }
        head.field("content-type", b"text/plain; charset=utf-8")?;
        head.framing(Framing::Length(self.text.len() as u64));
        if self.then == Then::Close {
            head.close();
        }
        head.end();
        if self.method != "HEAD" {
            whole.put_slice(self.text.as_bytes());
        }
        out.unsplit(whole);
        Ok(())
    }
}

/// The usual reason phrase of a status, or an empty one.
#[must_use]
pub fn reason(status: u16) -> &'static str {
    match status {
        100 => "Continue",
        101 => "Switching Protocols",
        103 => "Early Hints",
        200 => "OK",
        201 => "Created",
        202 => "Accepted",
        203 => "Non-Authoritative Information",
        204 => "No Content",
        205 => "Reset Content",
        206 => "Partial Content",
        207 => "Multi-Status",
        300 => "Multiple Choices",
        301 => "Moved Permanently",
        302 => "Found",
        303 => "See Other",
        304 => "Not Modified",
        307 => "Temporary Redirect",
        308 => "Permanent Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        402 => "Payment Required",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        406 => "Not Acceptable",
        407 => "Proxy Authentication Required",
        408 => "Request Timeout",
        409 => "Conflict",
        410 => "Gone",
        411 => "Length Required",
        412 => "Precondition Failed",
        413 => "Content Too Large",
        414 => "URI Too Long",
        415 => "Unsupported Media Type",
        416 => "Range Not Satisfiable",
        417 => "Expectation Failed",
        421 => "Misdirected Request",
        422 => "Unprocessable Content",
        425 => "Too Early",
        426 => "Upgrade Required",
        428 => "Precondition Required",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        451 => "Unavailable For Legal Reasons",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        507 => "Insufficient Storage",
        511 => "Network Authentication Required",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_as_everybody_writes_them() {
        for number in [0, 7, 10, 99, 100, 1_048_576, u64::MAX - 1, u64::MAX] {
            let mut out = BytesMut::new();
            put_number(&mut out, number);
            assert_eq!(grammar::ascii(&out), number.to_string());
        }
    }
}
