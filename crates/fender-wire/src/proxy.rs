//! The PROXY protocol, version 2: a few bytes before everything else, by which one who passes a
//! connection on says where it came from.
//!
//! The header is read from exactly its own bytes: [`read`] says how many more belong to it, and whoever
//! asks for no more than that never takes a byte of what follows, which is TLS. It is bounded
//! ([`MAX_HEADER`]) far below what its format allows. Version 1, a line of text without an end that
//! could be known beforehand, is recognised only to be refused by name. Nothing here decides whether a
//! sender is to be believed.
//!
//! A header has one meaning or is refused: families and commands the specification does not list,
//! a sub-field that reaches beyond its field, the same statement twice, a checksum that does not fit.
//!
//! Reference: HAProxy, `doc/proxy-protocol.txt`, sections 2.2 to 2.2.8.

mod crc32c;
mod extension;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

pub use extension::{Extension, Ssl};

use extension::{Extensions, put_extension};

/// The first twelve bytes of every header of version 2.
pub const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";

/// The longest header that is read or written, its first sixteen bytes included. The format allows 64 KiB more than anybody
/// sends: addresses take 216 bytes at most, a certificate's names and a unique id a few hundred.
pub const MAX_HEADER: usize = 4096;

/// How a header of version 1 begins.
const VERSION_1: &[u8] = b"PROXY ";

/// Signature, command, family and length.
const PREFIX: usize = 16;

/// What a header says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Header {
    /// The sender speaks for itself, a health check perhaps: the connection's own addresses count. Whatever else such
    /// a header holds is passed over, as the specification demands.
    Local,
    /// The sender speaks for somebody else.
    Proxied(Proxied),
}

/// For whom a sender speaks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proxied {
    pub endpoints: Endpoints,
    /// In the order of the header. Empty where the endpoints are [`Endpoints::Unknown`].
    pub extensions: Vec<Extension>,
}

/// Both ends of the connection that is passed on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoints {
    /// The sender does not say.
    Unknown,
    Ip {
        transport: Transport,
        source: SocketAddr,
        destination: SocketAddr,
    },
    Unix {
        transport: Transport,
        source: Box<[u8; 108]>,
        destination: Box<[u8; 108]>,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    Stream,
    Datagram,
}

/// How far reading has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// So many bytes more belong to the header, at least; never zero.
    Needs(usize),
    /// All bytes that were given are the header.
    Complete(Header),
}

/// The bytes are not a header that has one meaning.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProxyError {
    #[error("there is no PROXY header")]
    LacksSignature,
    #[error("the PROXY header is of version 1, and only version 2 is read")]
    IsVersion1,
    #[error("the PROXY header is of version {0}, and only version 2 is read")]
    IsOtherVersion(u8),
    #[error("the PROXY header's command {0} is not known")]
    BreaksCommand(u8),
    #[error("the PROXY header's address family {0:#04x} is not known")]
    BreaksFamily(u8),
    #[error("the PROXY header is longer than {MAX_HEADER} bytes")]
    ExceedsLength,
    #[error("the PROXY header is too short for its addresses")]
    CutsAddresses,
    #[error("a field of the PROXY header reaches beyond its end")]
    CutsField,
    #[error("field {0:#04x} of the PROXY header is malformed")]
    BreaksField(u8),
    #[error("field {0:#04x} of the PROXY header is there twice")]
    RepeatsField(u8),
    #[error("the PROXY header's checksum does not fit")]
    BreaksChecksum,
    #[error("more bytes were given than belong to the PROXY header")]
    Overreads,
}

/// Reads a header from all of its bytes there are so far. Whoever reads on reads exactly what
/// [`Progress::Needs`] says, or less.
pub fn read(bytes: &[u8]) -> Result<Progress, ProxyError> {
    let missing = missing(bytes)?;
    let Some((prefix, rest)) = bytes.split_first_chunk::<PREFIX>() else {
        return Ok(Progress::Needs(missing));
    };
    let [.., version_and_command, family, high, low] = *prefix;
    if version_and_command >> 4 != 2 {
        return Err(ProxyError::IsOtherVersion(version_and_command >> 4));
    }
    let length = usize::from(u16::from_be_bytes([high, low]));
    if PREFIX + length > MAX_HEADER {
        return Err(ProxyError::ExceedsLength);
    }
    let family = match version_and_command & 15 {
        0 => None,
        1 => Some(Family::of(family)?),
        other => return Err(ProxyError::BreaksCommand(other)),
    };
    match length.checked_sub(rest.len()) {
        None => return Err(ProxyError::Overreads),
        Some(0) => {}
        Some(more) => return Ok(Progress::Needs(more)),
    }
    Ok(Progress::Complete(match family {
        None => Header::Local,
        Some(family) => Header::Proxied(proxied(family, bytes, rest)?),
    }))
}

/// How many bytes of the prefix are missing. A wrong one is refused at once: who waits for sixteen from somebody who speaks
/// another protocol may wait for ever.
fn missing(bytes: &[u8]) -> Result<usize, ProxyError> {
    let begins = |known: &[u8]| bytes.iter().zip(known).all(|(byte, known)| byte == known);
    if begins(&SIGNATURE) {
        return Ok(PREFIX.saturating_sub(bytes.len()));
    }
    if !begins(VERSION_1) {
        return Err(ProxyError::LacksSignature);
    }
    match VERSION_1.len().saturating_sub(bytes.len()) {
        0 => Err(ProxyError::IsVersion1),
        more => Ok(more),
    }
}

/// The family byte of a header that speaks for somebody: one of those the specification lists.
#[derive(Clone, Copy)]
enum Family {
    Unknown,
    Ipv4(Transport),
    Ipv6(Transport),
    Unix(Transport),
}

impl Family {
    fn of(byte: u8) -> Result<Self, ProxyError> {
        use Transport::{Datagram, Stream};
        Ok(match byte {
            0x00 => Self::Unknown,
            0x11 => Self::Ipv4(Stream),
            0x12 => Self::Ipv4(Datagram),
            0x21 => Self::Ipv6(Stream),
            0x22 => Self::Ipv6(Datagram),
            0x31 => Self::Unix(Stream),
            0x32 => Self::Unix(Datagram),
            other => return Err(ProxyError::BreaksFamily(other)),
        })
    }

    fn byte(self) -> u8 {
        let transport = |transport| match transport {
            Transport::Stream => 1,
            Transport::Datagram => 2,
        };
        match self {
            Self::Unknown => 0x00,
            Self::Ipv4(it) => 0x10 | transport(it),
            Self::Ipv6(it) => 0x20 | transport(it),
            Self::Unix(it) => 0x30 | transport(it),
        }
    }
}

/// `whole` is the header with everything, `rest` what follows its prefix.
fn proxied(family: Family, whole: &[u8], rest: &[u8]) -> Result<Proxied, ProxyError> {
    let (endpoints, fields) = match family {
        // What the sender does not vouch for is not looked at.
        Family::Unknown => {
            return Ok(Proxied {
                endpoints: Endpoints::Unknown,
                extensions: Vec::new(),
            });
        }
        Family::Ipv4(transport) => {
            let (both, fields) = take::<12>(rest)?;
            let [a, b, c, d, e, f, g, h, ports @ ..] = *both;
            let source = Ipv4Addr::new(a, b, c, d).into();
            (
                ip(transport, source, Ipv4Addr::new(e, f, g, h).into(), ports),
                fields,
            )
        }
        Family::Ipv6(transport) => {
            let (source, more) = take::<16>(rest)?;
            let (destination, more) = take::<16>(more)?;
            let (ports, fields) = take::<4>(more)?;
            let source = Ipv6Addr::from(*source).into();
            (
                ip(
                    transport,
                    source,
                    Ipv6Addr::from(*destination).into(),
                    *ports,
                ),
                fields,
            )
        }
        Family::Unix(transport) => {
            let (source, more) = take::<108>(rest)?;
            let (destination, fields) = take::<108>(more)?;
            let (source, destination) = (Box::new(*source), Box::new(*destination));
            let endpoints = Endpoints::Unix {
                transport,
                source,
                destination,
            };
            (endpoints, fields)
        }
    };
    let Extensions { said, checksum } = Extensions::read(fields)?;
    if let Some((at, expected)) = checksum {
        let at = whole.len() - fields.len() + at;
        if crc32c::with_hole(whole, at) != expected {
            return Err(ProxyError::BreaksChecksum);
        }
    }
    Ok(Proxied {
        endpoints,
        extensions: said,
    })
}

fn take<const N: usize>(bytes: &[u8]) -> Result<(&[u8; N], &[u8]), ProxyError> {
    bytes.split_first_chunk().ok_or(ProxyError::CutsAddresses)
}

fn ip(transport: Transport, source: IpAddr, destination: IpAddr, ports: [u8; 4]) -> Endpoints {
    let [a, b, c, d] = ports;
    Endpoints::Ip {
        transport,
        source: SocketAddr::new(source, u16::from_be_bytes([a, b])),
        destination: SocketAddr::new(destination, u16::from_be_bytes([c, d])),
    }
}

/// What cannot be written as a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a PROXY header with all of this would be longer than {MAX_HEADER} bytes, or hold what none may"
)]
pub struct Unwritable;

impl Header {
    /// The bytes of the header. One that speaks for somebody has a checksum.
    pub fn to_bytes(&self) -> Result<Vec<u8>, Unwritable> {
        let mut out = Vec::with_capacity(256);
        out.extend_from_slice(&SIGNATURE);
        match self {
            Self::Local => {
                out.extend_from_slice(&[0x20, Family::Unknown.byte(), 0, 0]);
                return Ok(out);
            }
            Self::Proxied(proxied) => {
                out.extend_from_slice(&[0x21, proxied.endpoints.family().byte(), 0, 0]);
                proxied.put(&mut out)?;
            }
        }
        if out.len() > MAX_HEADER {
            return Err(Unwritable);
        }
        let length = u16::try_from(out.len() - PREFIX).map_err(|_| Unwritable)?;
        if let Some(place) = out.get_mut(PREFIX - 2..PREFIX) {
            place.copy_from_slice(&length.to_be_bytes());
        }
        if let Self::Proxied(Proxied { endpoints, .. }) = self
            && *endpoints != Endpoints::Unknown
        {
            crc32c::fill(&mut out);
        }
        Ok(out)
    }
}

impl Proxied {
    fn put(&self, out: &mut Vec<u8>) -> Result<(), Unwritable> {
        match &self.endpoints {
            Endpoints::Unknown if self.extensions.is_empty() => return Ok(()),
            Endpoints::Unknown => return Err(Unwritable),
            Endpoints::Ip {
                source,
                destination,
                ..
            } => put_addresses(out, *source, *destination),
            Endpoints::Unix {
                source,
                destination,
                ..
            } => {
                out.extend_from_slice(&**source);
                out.extend_from_slice(&**destination);
            }
        }
        for extension in &self.extensions {
            put_extension(out, extension)?;
        }
        // Last, where it is found again without reading all the rest.
        extension::put_checksum(out);
        Ok(())
    }
}

impl Endpoints {
    fn family(&self) -> Family {
        match self {
            Self::Unknown => Family::Unknown,
            Self::Ip {
                transport,
                source: SocketAddr::V4(_),
                destination: SocketAddr::V4(_),
            } => Family::Ipv4(*transport),
            Self::Ip { transport, .. } => Family::Ipv6(*transport),
            Self::Unix { transport, .. } => Family::Unix(*transport),
        }
    }
}

/// Both of one family: where one end is IPv6, the other is written as IPv6 too.
fn put_addresses(out: &mut Vec<u8>, source: SocketAddr, destination: SocketAddr) {
    match (source.ip(), destination.ip()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            out.extend_from_slice(&source.octets());
            out.extend_from_slice(&destination.octets());
        }
        (source, destination) => {
            let octets = |ip| match ip {
                IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
                IpAddr::V6(ip) => ip.octets(),
            };
            out.extend_from_slice(&octets(source));
            out.extend_from_slice(&octets(destination));
        }
    }
    out.extend_from_slice(&source.port().to_be_bytes());
    out.extend_from_slice(&destination.port().to_be_bytes());
}
