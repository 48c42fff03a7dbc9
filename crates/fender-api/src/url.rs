//! Where a control plane is.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use http::Uri;

/// `https://HOST:PORT`. There is no other scheme: the protocol is never spoken in the clear.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ControlUrl {
    host: String,
    port: u16,
}

impl ControlUrl {
    /// The one that listens at this address, if somebody could reach it there.
    pub fn of(address: SocketAddr) -> Option<Self> {
        let reachable = !address.ip().is_unspecified() && address.port() != 0;
        reachable.then(|| Self {
            host: address.ip().to_string(),
            port: address.port(),
        })
    }

    /// A host name or address, without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The TCP port.
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl fmt::Display for ControlUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "https://[{}]:{}", self.host, self.port)
        } else {
            write!(f, "https://{}:{}", self.host, self.port)
        }
    }
}

/// Why a text is not the URL of a control plane.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not the URL of a control plane: {why}; write `https://HOST:PORT`")]
pub struct UrlError {
    text: String,
    why: &'static str,
}

impl FromStr for ControlUrl {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<Self, UrlError> {
        let refuse = |why| UrlError {
            // A URL with user information may hold a password, which an error must not repeat.
            text: match text.rsplit_once('@') {
                Some((_, after)) => format!("…@{after}"),
                None => text.to_owned(),
            },
            why,
        };
        let uri: Uri = text.parse().map_err(|_| refuse("it is not a URL"))?;
        match uri.scheme_str() {
            Some("https") => {}
            Some(_) => return Err(refuse("its scheme is not `https`")),
            None => return Err(refuse("it has no scheme")),
        }
        let authority = uri.authority().ok_or_else(|| refuse("it has no host"))?;
        if authority.as_str().contains('@') {
            return Err(refuse("it names a user"));
        }
        if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
            return Err(refuse("it has a path"));
        }
        let host = authority.host().trim_matches(['[', ']']).to_owned();
        if host.is_empty() {
            return Err(refuse("it has no host"));
        }
        let port = match authority.port_u16() {
            Some(0) => return Err(refuse("its port is 0")),
            Some(port) => port,
            None => return Err(refuse("it has no port")),
        };
        Ok(Self { host, port })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_and_port_are_read_and_written_back() {
        for (text, host, port) in [
            ("https://control:8443", "control", 8443),
            ("https://control.internal:1/", "control.internal", 1),
            ("https://127.0.0.1:9", "127.0.0.1", 9),
            ("https://[::1]:9", "::1", 9),
        ] {
            let url: ControlUrl = text.parse().unwrap();
            assert_eq!((url.host(), url.port()), (host, port));
            assert_eq!(url.to_string().parse::<ControlUrl>().unwrap(), url);
        }
    }

    #[test]
    fn the_protocol_is_never_spoken_in_the_clear() {
        let error = "http://control:80".parse::<ControlUrl>().unwrap_err();
        assert!(error.to_string().contains("https"));
    }

    #[test]
    fn what_is_not_a_bare_origin_is_refused() {
        for text in [
            "",
            "control:8443",
            "https://",
            "https://control:8443/path",
            "https://control:8443/?x",
            "https://control",
            "https://control:0",
            "https://control:",
            "https://control:99999",
            "unix:/run/control.sock",
        ] {
            assert!(text.parse::<ControlUrl>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_password_in_a_url_is_not_repeated() {
        let error = "https://me:hunter2@control:8443"
            .parse::<ControlUrl>()
            .unwrap_err();
        assert!(!error.to_string().contains("hunter2"));
    }
}
