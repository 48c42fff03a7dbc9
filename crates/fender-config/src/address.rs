//! Addresses as documents write them. Nothing here resolves a name or opens a socket.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

/// Where to listen: `0.0.0.0:8443`, `[::]:8443` or `unix:/run/x.sock`.
///
/// Port 0 is possible here, for tests; documents refuse it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ListenAddr {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl FromStr for ListenAddr {
    type Err = InvalidAddress;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(path) = text.strip_prefix("unix:") {
            return unix_path(text, path).map(Self::Unix);
        }
        text.parse().map(Self::Tcp).map_err(|_| {
            InvalidAddress::new(
                text,
                "it is neither an IP address with a port nor `unix:` with a path",
            )
        })
    }
}

impl fmt::Display for ListenAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Where the app is: on loopback, or behind a Unix socket. Anything else could be reached past the
/// sidecar, and what travels there is in clear text.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AppAddress {
    Loopback(LoopbackAddr),
    Unix(PathBuf),
}

/// A socket address on loopback with a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LoopbackAddr(SocketAddr);

impl LoopbackAddr {
    pub fn socket_addr(self) -> SocketAddr {
        self.0
    }
}

impl TryFrom<SocketAddr> for LoopbackAddr {
    type Error = InvalidAddress;

    fn try_from(address: SocketAddr) -> Result<Self, Self::Error> {
        let refuse = |why| InvalidAddress::new(&address.to_string(), why);
        if !address.ip().to_canonical().is_loopback() {
            return Err(refuse(
                "it is not on loopback, so the app could be reached past the sidecar",
            ));
        }
        if address.port() == 0 {
            return Err(refuse("port 0 is no port"));
        }
        Ok(Self(address))
    }
}

impl FromStr for AppAddress {
    type Err = InvalidAddress;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.parse()? {
            ListenAddr::Tcp(address) => LoopbackAddr::try_from(address).map(Self::Loopback),
            ListenAddr::Unix(path) => Ok(Self::Unix(path)),
        }
    }
}

impl fmt::Display for AppAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Loopback(address) => address.0.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// A host by name or address, and a port: `inventory.shop.internal:8443`, `[2001:db8::1]:443`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostPort {
    host: String,
    port: u16,
}

impl HostPort {
    pub fn new(host: &str, port: u16) -> Result<Self, InvalidAddress> {
        let refuse = |why| Err(InvalidAddress::new(&format!("{host}:{port}"), why));
        if port == 0 {
            return refuse("port 0 is no port");
        }
        if host.parse::<IpAddr>().is_err() && !is_host_name(host) {
            return refuse("its host is neither a DNS name nor an IP address");
        }
        Ok(Self {
            host: host.to_ascii_lowercase(),
            port,
        })
    }

    /// Without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    pub fn port(&self) -> u16 {
        self.port
    }
}

impl FromStr for HostPort {
    type Err = InvalidAddress;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refuse = |why| InvalidAddress::new(text, why);
        let form = "it does not have the form `host:port`";
        let (host, port) = text.rsplit_once(':').ok_or_else(|| refuse(form))?;
        let port = port
            .parse::<u16>()
            .ok()
            .filter(|parsed| parsed.to_string() == port)
            .ok_or_else(|| refuse("its port is not a number from 1 to 65535"))?;
        let host = match host.strip_prefix('[') {
            Some(bracketed) => bracketed.strip_suffix(']').ok_or_else(|| refuse(form))?,
            None if host.contains(':') => {
                return Err(refuse(
                    "an IPv6 address stands in brackets: `[2001:db8::1]:443`",
                ));
            }
            None => host,
        };
        Self::new(host, port).map_err(|invalid| InvalidAddress::new(text, invalid.why))
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// `https://HOST[:PORT][/PATH]`. There is no other scheme, and no place for a user, a query or a fragment.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HttpsUrl {
    at: HostPort,
    /// Empty, or it begins with a slash and does not end with one.
    path: String,
}

impl HttpsUrl {
    /// This URL with more of a path: `segments` begins with a slash.
    pub fn join(&self, segments: &str) -> Self {
        Self {
            at: self.at.clone(),
            path: format!("{}{segments}", self.path),
        }
    }
}

impl HttpsUrl {
    /// Host and port as a `Host` header has them: without the port if it is 443.
    pub fn authority(&self) -> String {
        match self.at.port {
            443 if self.at.host.contains(':') => format!("[{}]", self.at.host),
            443 => self.at.host.clone(),
            _ => self.at.to_string(),
        }
    }
}

impl FromStr for HttpsUrl {
    type Err = InvalidAddress;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let shown = without_user(text);
        let refuse = |why| InvalidAddress::new(&shown, why);
        let rest = text
            .strip_prefix("https://")
            .ok_or_else(|| refuse("it does not begin with `https://`"))?;
        let (authority, path) = at_slash(rest);
        if authority.contains('@') {
            return Err(refuse("it names a user"));
        }
        let bare_ipv6 = authority.starts_with('[') && authority.ends_with(']');
        let at = if authority.contains(':') && !bare_ipv6 {
            authority.parse()
        } else {
            HostPort::new(authority.trim_matches(['[', ']']), 443)
        };
        Ok(Self {
            path: url_path(path).map_err(refuse)?,
            at: at.map_err(|invalid| refuse(invalid.why))?,
        })
    }
}

/// Where a store of secrets is asked: `https://HOST[:PORT][/PATH]`, or `http://127.0.0.1:PORT[/PATH]`, which never leaves this
/// machine. No name stands for loopback: it would be somebody else's to resolve.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StoreUrl {
    Https(HttpsUrl),
    Loopback {
        address: LoopbackAddr,
        /// Empty, or it begins with a slash and does not end with one.
        path: String,
    },
}

impl StoreUrl {
    /// This URL with more of a path: `segments` begins with a slash.
    pub fn join(&self, segments: &str) -> Self {
        match self {
            Self::Https(url) => Self::Https(url.join(segments)),
            Self::Loopback { address, path } => Self::Loopback {
                address: *address,
                path: format!("{path}{segments}"),
            },
        }
    }
}

impl StoreUrl {
    /// Host and port as a `Host` header has them.
    pub fn authority(&self) -> String {
        match self {
            Self::Https(url) => url.authority(),
            // As a URL's parser writes it: 80 is what `http://` means anyway.
            Self::Loopback { address, .. } => match (address.0.port(), address.0.ip()) {
                (80, IpAddr::V4(ip)) => ip.to_string(),
                (80, IpAddr::V6(ip)) => format!("[{ip}]"),
                _ => address.0.to_string(),
            },
        }
    }

    /// Empty, or it begins with a slash and does not end with one.
    pub fn path(&self) -> &str {
        match self {
            Self::Https(url) => &url.path,
            Self::Loopback { path, .. } => path,
        }
    }
}

impl FromStr for StoreUrl {
    type Err = InvalidAddress;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let Some(rest) = text.strip_prefix("http://") else {
            return text.parse().map(Self::Https);
        };
        let shown = without_user(text);
        let refuse = |why| InvalidAddress::new(&shown, why);
        let (authority, path) = at_slash(rest);
        let address = authority.parse::<SocketAddr>().ok();
        let address = address.and_then(|address| LoopbackAddr::try_from(address).ok());
        Ok(Self::Loopback {
            address: address.ok_or_else(|| {
                refuse(
                    "without TLS it is an address on loopback with its port, `http://127.0.0.1:8200`, or everybody on the way \
                     reads the secret",
                )
            })?,
            path: url_path(path).map_err(refuse)?,
        })
    }
}

impl fmt::Display for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Https(url) => url.fmt(f),
            Self::Loopback { address, path } => write!(f, "http://{}{path}", address.0),
        }
    }
}

/// A URL with user information may hold a password, which an error must not repeat.
fn without_user(text: &str) -> String {
    match text.rsplit_once('@') {
        Some((_, after)) => format!("…@{after}"),
        None => text.to_owned(),
    }
}

/// What stands before the first slash, and from there on.
fn at_slash(text: &str) -> (&str, &str) {
    match text.find('/') {
        Some(slash) => text.split_at(slash),
        None => (text, ""),
    }
}

/// A path without its last slash.
fn url_path(path: &str) -> Result<String, &'static str> {
    let allowed = |b: u8| {
        b.is_ascii_alphanumeric() || matches!(b, b'/' | b'.' | b'-' | b'_' | b'~' | b':' | b'%')
    };
    if !path.bytes().all(allowed) {
        return Err("its path holds more than letters, digits and `/.-_~:%`");
    }
    if path.split('/').any(|segment| matches!(segment, "." | "..")) {
        return Err("its path holds a dot segment");
    }
    Ok(path.trim_end_matches('/').to_owned())
}

impl fmt::Display for HttpsUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "https://{}{}", self.authority(), self.path)
    }
}

/// A DNS name as it may stand in a certificate: labels of letters, digits and `-`, the last one not
/// all digits.
pub(crate) fn is_host_name(text: &str) -> bool {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    text.len() <= 253
        && text.split('.').all(is_label)
        && text
            .rsplit('.')
            .next()
            .is_some_and(|last| !last.bytes().all(|b| b.is_ascii_digit()))
}

/// `sun_path` holds 108 bytes with its terminator.
const UNIX_PATH_MAX: usize = 107;

fn unix_path(text: &str, path: &str) -> Result<PathBuf, InvalidAddress> {
    if !path.starts_with('/') {
        return Err(InvalidAddress::new(
            text,
            "the path of a Unix socket is absolute",
        ));
    }
    if path.len() > UNIX_PATH_MAX || path.contains('\0') {
        return Err(InvalidAddress::new(
            text,
            "the path of a Unix socket is at most 107 bytes, none of them zero",
        ));
    }
    Ok(path.into())
}

/// The text is not an address of the wanted kind.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not usable here: {why}")]
pub struct InvalidAddress {
    text: String,
    why: &'static str,
}

impl InvalidAddress {
    pub(crate) fn new(text: &str, why: &'static str) -> Self {
        Self {
            text: text.to_owned(),
            why,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_https_url_is_a_host_and_a_path() {
        for (text, shown) in [
            ("https://api.internal:6443", "https://api.internal:6443"),
            ("https://API.internal", "https://api.internal"),
            (
                "https://10.0.0.1/openid/v1/jwks",
                "https://10.0.0.1/openid/v1/jwks",
            ),
            ("https://[fd00::1]/", "https://[fd00::1]"),
            ("https://[fd00::1]:8443/a/", "https://[fd00::1]:8443/a"),
            ("https://api:443/a", "https://api/a"),
        ] {
            let url: HttpsUrl = text.parse().unwrap();
            assert_eq!(url.to_string(), shown, "{text}");
            assert_eq!(shown.parse(), Ok(url));
        }
        let url: HttpsUrl = "https://api:6443/base".parse().unwrap();
        assert_eq!(url.join("/v1/x").to_string(), "https://api:6443/base/v1/x");
    }

    #[test]
    fn a_store_is_asked_over_tls_or_on_this_machine() {
        for (text, shown) in [
            (
                "https://vault.internal:8200/",
                "https://vault.internal:8200",
            ),
            ("http://127.0.0.1:8200", "http://127.0.0.1:8200"),
            (
                "http://127.0.0.1:8200/vault/",
                "http://127.0.0.1:8200/vault",
            ),
            ("http://[::1]:8200", "http://[::1]:8200"),
        ] {
            let url: StoreUrl = text.parse().unwrap();
            assert_eq!(url.to_string(), shown, "{text}");
            assert_eq!(shown.parse(), Ok(url.clone()));
            assert_eq!(url.join("/v1/x").to_string(), format!("{shown}/v1/x"));
        }
    }

    #[test]
    fn attack_a_store_that_is_asked_in_the_clear_where_others_listen() {
        for text in [
            "http://vault.internal:8200",
            "http://localhost:8200",
            "http://10.0.0.1:8200",
            "http://0.0.0.0:8200",
            "http://127.0.0.1",
            "http://127.0.0.1:0",
            "http://127.0.0.1:8200@vault.internal",
            "http://user:hunter2@127.0.0.1:8200",
            "http://127.0.0.1:8200/../x",
            "http://127.0.0.1:8200/?x",
            "HTTP://127.0.0.1:8200",
            "ftp://127.0.0.1:8200",
            "",
        ] {
            let refused = text.parse::<StoreUrl>().unwrap_err().to_string();
            assert!(!refused.contains("hunter2"), "{refused}");
        }
    }

    #[test]
    fn attack_a_url_that_leads_elsewhere() {
        for text in [
            "http://api",
            "HTTPS://api",
            "https://",
            "https:///path",
            "https://user:hunter2@api",
            "https://api:0",
            "https://api:70000",
            "https://api#x",
            "https://api/?a",
            "https://api/#a",
            "https://api/a b",
            "https://api/../b",
            "https://api\\@evil",
            "https://api\n",
            "https://fd00::1/",
            "file:///etc/passwd",
        ] {
            let refused = text.parse::<HttpsUrl>().unwrap_err().to_string();
            assert!(!refused.contains("hunter2"), "{refused}");
        }
    }
}
