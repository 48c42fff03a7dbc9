//! As much of HTTP as a Vault in a test needs: one request on a connection, in the clear or over TLS, whose client may show a certificate.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value, json};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

const PATIENCE: Duration = Duration::from_secs(20);

/// One request on one connection, and no more.
pub(super) fn serve(
    stream: TcpStream,
    tls: Option<Arc<ServerConfig>>,
    answer: impl Fn(&Request) -> String,
) {
    let patient = stream
        .set_read_timeout(Some(PATIENCE))
        .and_then(|()| stream.set_write_timeout(Some(PATIENCE)));
    if patient.is_err() {
        return;
    }
    match tls {
        None => {
            let mut stream = stream;
            let _ = converse(&mut stream, &answer, |_| None);
        }
        Some(config) => {
            let Ok(connection) = ServerConnection::new(config) else {
                return;
            };
            let mut stream = StreamOwned::new(connection, stream);
            let _ = converse(&mut stream, &answer, |stream| {
                stream
                    .conn
                    .peer_certificates()
                    .and_then(<[_]>::first)
                    .map(subject)
            });
            stream.conn.send_close_notify();
            let _ = stream.flush();
        }
    }
}

/// The SPIFFE ID in a certificate that was verified, and its serial number.
fn subject(certificate: &CertificateDer<'_>) -> (String, String) {
    let (_, certificate) = X509Certificate::from_der(certificate).expect("a certificate");
    let names = certificate.subject_alternative_name().expect("extensions");
    let names = names.map(|names| names.value.general_names.clone());
    let uri = names
        .unwrap_or_default()
        .into_iter()
        .find_map(|name| match name {
            GeneralName::URI(uri) => Some(uri.to_owned()),
            _ => None,
        });
    (uri.unwrap_or_default(), certificate.raw_serial_as_string())
}

/// A request, as far as anything looks at it.
pub(super) struct Request {
    pub(super) method: String,
    pub(super) path: String,
    pub(super) fields: BTreeMap<String, String>,
    pub(super) body: Value,
    /// Whose certificate is shown, and its serial number.
    pub(super) certificate: Option<(String, String)>,
}

fn converse<S: Read + Write>(
    stream: &mut S,
    answer: &impl Fn(&Request) -> String,
    certified: impl Fn(&S) -> Option<(String, String)>,
) -> std::io::Result<()> {
    let mut text = Vec::new();
    let end = loop {
        if let Some(at) = text.windows(4).position(|window| window == b"\r\n\r\n") {
            break at + 4;
        }
        let mut part = [0; 4096];
        let read = stream.read(&mut part)?;
        if read == 0 || text.len() > 64 * 1024 {
            return Ok(());
        }
        text.extend_from_slice(&part[..read]);
    };
    let head = String::from_utf8_lossy(&text[..end]).into_owned();
    let mut lines = head.lines();
    let mut first = lines.next().unwrap_or_default().split(' ');
    let (method, path) = (
        first.next().unwrap_or_default(),
        first.next().unwrap_or_default(),
    );
    let fields: BTreeMap<_, _> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let length = fields.get("content-length");
    let length = length.map_or(0, |length| length.parse().unwrap_or(0));
    let mut body = text.split_off(end);
    while body.len() < length {
        let mut part = [0; 4096];
        let read = stream.read(&mut part)?;
        if read == 0 {
            return Ok(());
        }
        body.extend_from_slice(&part[..read]);
    }
    let request = Request {
        method: method.to_owned(),
        path: path.trim_start_matches("/v1/").to_owned(),
        fields,
        body: serde_json::from_slice(&body).unwrap_or(Value::Null),
        certificate: certified(stream),
    };
    let reply = answer(&request);
    stream.write_all(reply.as_bytes())?;
    stream.flush()
}

pub(super) fn reply(status: u16, more: &str, body: &Value) -> String {
    let body = match status {
        204 => String::new(),
        _ => format!("{body}\n"),
    };
    format!(
        "HTTP/1.1 {status} -\r\ncache-control: no-store\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\
         connection: close\r\n{more}\r\n{body}",
        body.len()
    )
}

pub(super) fn ok(body: &Value) -> String {
    reply(200, "", body)
}

pub(super) fn errors(status: u16, errors: &[&str]) -> String {
    reply(status, "", &json!({ "errors": errors }))
}

pub(super) fn denied() -> String {
    errors(403, &["1 error occurred:\n\t* permission denied\n\n"])
}
