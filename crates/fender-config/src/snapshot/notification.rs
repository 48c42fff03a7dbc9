//! Who is told that a credential has changed, and how.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

/// One that is told, some time after a change: what changes meanwhile is told with it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Notification {
    pub target: Target,
    /// From the first change until it is told.
    pub after: Duration,
}

/// Who is told. Credentials that name the same one share what is told.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Target {
    /// The application that the sidecar supervises.
    App(NotifySignal),
    /// The process whose number is in a file.
    Process {
        signal: NotifySignal,
        pid_file: PathBuf,
    },
    /// Whoever answers HTTP on this machine.
    Http {
        url: LoopbackUrl,
        method: NotifyMethod,
        /// From connecting to the status.
        timeout: Duration,
    },
    /// A program that was locally allowed.
    Command {
        program: PathBuf,
        arguments: Vec<String>,
        timeout: Duration,
    },
    /// The supervised application is stopped and started.
    Restart,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::App(signal) => write!(f, "SIG{signal} to the application"),
            Self::Process { signal, pid_file } => {
                // Escaped, as the next.
                write!(f, "SIG{signal} to the process of {pid_file:?}")
            }
            Self::Http { url, method, .. } => write!(f, "{method} {url}"),
            Self::Command {
                program, arguments, ..
            } => {
                // Escaped, so that two that differ never look alike, and none has a second line.
                write!(f, "{program:?}")?;
                arguments
                    .iter()
                    .try_for_each(|argument| write!(f, " {argument:?}"))
            }
            Self::Restart => f.write_str("restart of the application"),
        }
    }
}

/// A signal by which programs are told to read again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NotifySignal {
    Hup,
    Usr1,
    Usr2,
}

impl NotifySignal {
    pub const ALL: [Self; 3] = [Self::Hup, Self::Usr1, Self::Usr2];

    /// Without its `SIG`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Hup => "HUP",
            Self::Usr1 => "USR1",
            Self::Usr2 => "USR2",
        }
    }

    /// The one of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|signal| signal.name() == name)
    }
}

impl fmt::Display for NotifySignal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A method by which applications are told to read again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NotifyMethod {
    #[default]
    Post,
    Put,
    Get,
}

impl NotifyMethod {
    pub const ALL: [Self; 3] = [Self::Post, Self::Put, Self::Get];

    pub fn name(self) -> &'static str {
        match self {
            Self::Post => "POST",
            Self::Put => "PUT",
            Self::Get => "GET",
        }
    }

    /// The one of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|method| method.name() == name)
    }
}

impl fmt::Display for NotifyMethod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// `http://127.0.0.1:PORT/PATH` or `http://[::1]:PORT/PATH`: an address, never a name that could lead elsewhere.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LoopbackUrl {
    address: SocketAddr,
    /// With its query; begins with a slash.
    path: String,
}

impl LoopbackUrl {
    const LONGEST: usize = 2048;

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// With its query.
    pub fn path(&self) -> &str {
        &self.path
    }
}

impl FromStr for LoopbackUrl {
    type Err = InvalidLoopbackUrl;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refuse = InvalidLoopbackUrl;
        let rest = text
            .strip_prefix("http://")
            .ok_or(refuse("it does not begin with `http://`"))?;
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let address: SocketAddr = authority
            .parse()
            .map_err(|_| refuse("it names no address and port"))?;
        if !address.ip().to_canonical().is_loopback() || address.port() == 0 {
            return Err(refuse("its address is not of this machine's loopback"));
        }
        let plain = |b: u8| b.is_ascii_graphic() && b != b'#';
        if text.len() > Self::LONGEST || !path.bytes().all(plain) {
            return Err(refuse(
                "it is longer than 2048 bytes, or holds what a URL must escape",
            ));
        }
        let path = if path.is_empty() { "/" } else { path };
        Ok(Self {
            address,
            path: path.to_owned(),
        })
    }
}

impl fmt::Display for LoopbackUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}{}", self.address, self.path)
    }
}

/// Nobody on this machine's loopback.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidLoopbackUrl(&'static str);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_of_loopback_is_read_and_shown_alike() {
        for (text, shown) in [
            ("http://127.0.0.1:9000", "http://127.0.0.1:9000/"),
            ("http://127.9.9.9:1/a?b=c&d", "http://127.9.9.9:1/a?b=c&d"),
            ("http://[::1]:80/-/reload", "http://[::1]:80/-/reload"),
        ] {
            let url: LoopbackUrl = text.parse().unwrap();
            assert_eq!(url.to_string(), shown);
            assert_eq!(shown.parse(), Ok(url));
        }
    }

    #[test]
    fn attack_a_notification_that_leaves_the_machine() {
        let long = format!("http://127.0.0.1:80/{}", "x".repeat(2048));
        for text in [
            "",
            "http://",
            "https://127.0.0.1:80/",
            "HTTP://127.0.0.1:80/",
            "http://localhost:80/",
            "http://169.254.169.254:80/latest/meta-data",
            "http://10.0.0.1:80/",
            "http://0.0.0.0:80/",
            "http://[::]:80/",
            "http://[::ffff:10.0.0.1]:80/",
            "http://127.0.0.1/",
            "http://127.0.0.1:0/",
            "http://127.0.0.1:80@10.0.0.1:80/",
            "http://user@127.0.0.1:80/",
            "http://2130706433:80/",
            "http://127.0.0.1:80/a b",
            "http://127.0.0.1:80/\r\nx: y",
            "http://127.0.0.1:80/ü",
            "http://127.0.0.1:80/#x",
            "http://127.0.0.1:80?x",
            &long,
        ] {
            assert!(text.parse::<LoopbackUrl>().is_err(), "{text}");
        }
    }

    #[test]
    fn two_commands_that_differ_never_look_alike() {
        let command = |arguments: &[&str]| Target::Command {
            program: "/bin/x".into(),
            arguments: arguments.iter().map(ToString::to_string).collect(),
            timeout: Duration::ZERO,
        };
        let shown = command(&["a b", "\""]).to_string();
        assert_eq!(shown, r#""/bin/x" "a b" "\"""#);
        assert_ne!(
            command(&["a", "b"]).to_string(),
            command(&["a b"]).to_string()
        );
    }
}
