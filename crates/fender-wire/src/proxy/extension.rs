//! What a PROXY header says beyond the addresses: fields of a type, a length and a value (TLVs).

use super::{ProxyError, Unwritable};

const ALPN: u8 = 0x01;
const AUTHORITY: u8 = 0x02;
const CRC32C: u8 = 0x03;
const NOOP: u8 = 0x04;
const UNIQUE_ID: u8 = 0x05;
const SSL: u8 = 0x20;
const SSL_VERSION: u8 = 0x21;
const SSL_COMMON_NAME: u8 = 0x22;
const SSL_CIPHER: u8 = 0x23;
const SSL_SIGNATURE: u8 = 0x24;
const SSL_KEY: u8 = 0x25;
const NETNS: u8 = 0x30;

/// The longest unique id the specification allows.
const MAX_UNIQUE_ID: usize = 128;

pub(super) const CHECKSUM_BYTES: usize = 4;

/// One statement of a header beyond its addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Extension {
    /// The protocol that was chosen in the TLS handshake.
    Alpn(Vec<u8>),
    /// The host the client named, in TLS the SNI.
    Authority(String),
    /// Opaque: names the connection in logs.
    UniqueId(Vec<u8>),
    Ssl(Ssl),
    /// The network namespace the connection came from.
    Namespace(String),
    /// Any other: of a vendor, or of a later specification.
    Other {
        kind: u8,
        value: Vec<u8>,
    },
}

/// How the client was connected to the sender.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ssl {
    /// See [`Ssl::OVER_TLS`] and its siblings.
    pub client: u8,
    /// 0: the client showed a certificate, and it was good.
    pub verify: u32,
    pub version: Option<String>,
    pub common_name: Option<String>,
    pub cipher: Option<String>,
    pub signature_algorithm: Option<String>,
    pub key_algorithm: Option<String>,
}

impl Ssl {
    /// The client spoke TLS.
    pub const OVER_TLS: u8 = 0x01;
    /// It showed a certificate in this connection.
    pub const CERTIFICATE_IN_CONNECTION: u8 = 0x02;
    /// It showed one in the session to which this connection belongs.
    pub const CERTIFICATE_IN_SESSION: u8 = 0x04;

    fn read(value: &[u8]) -> Result<Self, ProxyError> {
        let Some((&[client, a, b, c, d], fields)) = value.split_first_chunk() else {
            return Err(ProxyError::BreaksField(SSL));
        };
        let mut ssl = Self {
            client,
            verify: u32::from_be_bytes([a, b, c, d]),
            ..Self::default()
        };
        for field in Fields(fields) {
            let (kind, value) = field?;
            let place = match kind {
                SSL_VERSION => &mut ssl.version,
                SSL_COMMON_NAME => &mut ssl.common_name,
                SSL_CIPHER => &mut ssl.cipher,
                SSL_SIGNATURE => &mut ssl.signature_algorithm,
                SSL_KEY => &mut ssl.key_algorithm,
                // Of a later specification.
                _ => continue,
            };
            if place.replace(text(kind, value)?).is_some() {
                return Err(ProxyError::RepeatsField(kind));
            }
        }
        Ok(ssl)
    }

    fn to_value(&self) -> Result<Vec<u8>, Unwritable> {
        let mut out = vec![self.client];
        out.extend_from_slice(&self.verify.to_be_bytes());
        let fields = [
            (SSL_VERSION, &self.version),
            (SSL_COMMON_NAME, &self.common_name),
            (SSL_CIPHER, &self.cipher),
            (SSL_SIGNATURE, &self.signature_algorithm),
            (SSL_KEY, &self.key_algorithm),
        ];
        for (kind, value) in fields {
            if let Some(value) = value {
                put_text(&mut out, kind, value)?;
            }
        }
        Ok(out)
    }
}

/// All fields of a header.
#[derive(Debug, Default)]
pub(super) struct Extensions {
    pub(super) said: Vec<Extension>,
    /// Where among the fields it is, and what it says.
    pub(super) checksum: Option<(usize, u32)>,
}

impl Extensions {
    pub(super) fn read(bytes: &[u8]) -> Result<Self, ProxyError> {
        let mut read = Self::default();
        let mut seen = [false; 256];
        let mut fields = Fields(bytes);
        while let Some(field) = fields.next() {
            let (kind, value) = field?;
            if kind == NOOP {
                continue;
            }
            // Two readers would each believe another one of them.
            let first = seen
                .get_mut(usize::from(kind))
                .map(|seen| !std::mem::replace(seen, true));
            if first != Some(true) && is_known(kind) {
                return Err(ProxyError::RepeatsField(kind));
            }
            if kind == CRC32C {
                let expected = value
                    .try_into()
                    .map_err(|_| ProxyError::BreaksField(kind))?;
                let at = bytes.len() - fields.0.len() - CHECKSUM_BYTES;
                read.checksum = Some((at, u32::from_be_bytes(expected)));
            } else {
                read.said.push(Extension::read(kind, value)?);
            }
        }
        Ok(read)
    }
}

/// Whether the field means something here, so that it must not be there twice.
fn is_known(kind: u8) -> bool {
    matches!(kind, ALPN | AUTHORITY | CRC32C | UNIQUE_ID | SSL | NETNS)
}

impl Extension {
    fn read(kind: u8, value: &[u8]) -> Result<Self, ProxyError> {
        Ok(match kind {
            ALPN if !value.is_empty() => Self::Alpn(value.to_vec()),
            AUTHORITY => Self::Authority(text(kind, value)?),
            UNIQUE_ID if value.len() <= MAX_UNIQUE_ID => Self::UniqueId(value.to_vec()),
            ALPN | UNIQUE_ID => return Err(ProxyError::BreaksField(kind)),
            SSL => Self::Ssl(Ssl::read(value)?),
            NETNS => Self::Namespace(text(kind, value)?),
            _ => Self::Other {
                kind,
                value: value.to_vec(),
            },
        })
    }
}

/// Fields one after the other, for as long as they are whole.
struct Fields<'a>(&'a [u8]);

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u8, &'a [u8]), ProxyError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let split = self
            .0
            .split_first_chunk()
            .and_then(|(&[kind, high, low], rest)| {
                let length = usize::from(u16::from_be_bytes([high, low]));
                rest.split_at_checked(length)
                    .map(|(value, rest)| (kind, value, rest))
            });
        let Some((kind, value, rest)) = split else {
            self.0 = &[];
            return Some(Err(ProxyError::CutsField));
        };
        self.0 = rest;
        Some(Ok((kind, value)))
    }
}

/// Words that will be shown: UTF-8 without controls, and some.
fn text(kind: u8, value: &[u8]) -> Result<String, ProxyError> {
    match std::str::from_utf8(value) {
        Ok(text) if is_text(text) => Ok(text.to_owned()),
        Ok(_) | Err(_) => Err(ProxyError::BreaksField(kind)),
    }
}

fn is_text(text: &str) -> bool {
    !text.is_empty() && !text.contains(char::is_control)
}

pub(super) fn put_extension(out: &mut Vec<u8>, extension: &Extension) -> Result<(), Unwritable> {
    match extension {
        Extension::Alpn(value) if !value.is_empty() => put(out, ALPN, value),
        Extension::Authority(value) => put_text(out, AUTHORITY, value),
        Extension::UniqueId(value) if value.len() <= MAX_UNIQUE_ID => put(out, UNIQUE_ID, value),
        Extension::Alpn(_) | Extension::UniqueId(_) => Err(Unwritable),
        Extension::Ssl(ssl) => put(out, SSL, &ssl.to_value()?),
        Extension::Namespace(value) => put_text(out, NETNS, value),
        Extension::Other { kind, .. } if is_known(*kind) || *kind == NOOP => Err(Unwritable),
        Extension::Other { kind, value } => put(out, *kind, value),
    }
}

/// Room for the checksum, to be filled in.
pub(super) fn put_checksum(out: &mut Vec<u8>) {
    out.extend_from_slice(&[CRC32C, 0, 4, 0, 0, 0, 0]);
}

fn put_text(out: &mut Vec<u8>, kind: u8, value: &str) -> Result<(), Unwritable> {
    match is_text(value) {
        true => put(out, kind, value.as_bytes()),
        false => Err(Unwritable),
    }
}

fn put(out: &mut Vec<u8>, kind: u8, value: &[u8]) -> Result<(), Unwritable> {
    let length = u16::try_from(value.len()).map_err(|_| Unwritable)?;
    out.push(kind);
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(value);
    Ok(())
}
