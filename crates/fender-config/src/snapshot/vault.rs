//! Where a secret lies in HashiCorp Vault or OpenBao, and as whom it is asked for. Never a token: the files that hold one.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use super::CertificateFiles;
use crate::address::StoreUrl;

/// A secret in a Vault, or one key of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct VaultSecret {
    pub store: VaultStore,
    pub at: VaultPlace,
    /// Of the values at that place, this one. None: all of them, as one JSON object.
    pub key: Option<String>,
    /// How often it is asked for; means nothing to a lease, which says itself how long it lasts.
    pub refresh: Duration,
}

impl VaultSecret {
    /// How often it is asked for where nothing is said.
    pub const REFRESH: Duration = Duration::from_secs(60);

    /// Every file that is read to ask for it.
    pub fn files(&self) -> Vec<PathBuf> {
        let roots = self.store.roots.iter().cloned();
        let login = match &self.store.login {
            VaultLogin::Token { file } => vec![file.clone()],
            VaultLogin::AppRole { secret_id, .. } => vec![secret_id.clone()],
            VaultLogin::Kubernetes { token, .. } => vec![token.clone()],
            VaultLogin::Jwt { token, .. } => match token {
                VaultJwt::File(file) => vec![file.clone()],
                VaultJwt::Svid { .. } => Vec::new(),
            },
            VaultLogin::Certificate { shown, .. } => match shown {
                VaultCertificate::Files(files) => {
                    vec![files.certificate.clone(), files.key.clone()]
                }
                VaultCertificate::Svid => Vec::new(),
            },
        };
        roots.chain(login).collect()
    }
}

/// A server, a namespace of it, and as whom we ask: what one login is good for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VaultStore {
    pub address: StoreUrl,
    /// Who vouches for the server, in PEM. None: whom the operating system believes.
    pub roots: Option<PathBuf>,
    pub namespace: Option<VaultPath>,
    pub login: VaultLogin,
}

/// How we prove who we are.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum VaultLogin {
    /// By a token that somebody else got, and puts anew into this file before it ends.
    Token { file: PathBuf },
    AppRole {
        mount: VaultPath,
        role_id: String,
        /// The file of the secret id.
        secret_id: PathBuf,
    },
    /// By the token of a service account.
    Kubernetes {
        mount: VaultPath,
        role: String,
        token: PathBuf,
    },
    Jwt {
        mount: VaultPath,
        /// None: the one that is the default of the mount.
        role: Option<String>,
        token: VaultJwt,
    },
    /// By a certificate that is shown in the TLS handshake.
    Certificate {
        mount: VaultPath,
        /// None: any that the certificate matches.
        role: Option<String>,
        shown: VaultCertificate,
    },
}

impl VaultLogin {
    /// Whether the workload itself logs in: nobody else can do it for it.
    pub fn is_of_the_workload(&self) -> bool {
        match self {
            Self::Jwt { token, .. } => matches!(token, VaultJwt::Svid { .. }),
            Self::Certificate { shown, .. } => *shown == VaultCertificate::Svid,
            Self::Token { .. } | Self::AppRole { .. } | Self::Kubernetes { .. } => false,
        }
    }
}

/// Which JWT is shown.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum VaultJwt {
    File(PathBuf),
    /// A JWT-SVID of the workload, for this audience and no other.
    Svid {
        audience: String,
    },
}

/// Which certificate is shown.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum VaultCertificate {
    Files(CertificateFiles),
    /// The workload's own, whose key is nowhere but in memory.
    Svid,
}

/// Which API is asked, and where.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum VaultPlace {
    /// Version 1 of the KV engine.
    Kv1 { mount: VaultPath, path: VaultPath },
    /// Version 2 of the KV engine.
    Kv2 {
        mount: VaultPath,
        path: VaultPath,
        /// None: the newest.
        version: Option<u32>,
    },
    /// What any other engine gives when it is read, with the lease it comes with: `database/creds/orders`.
    Engine { path: VaultPath },
}

impl fmt::Display for VaultPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kv1 { mount, path } => write!(f, "{mount}/{path}"),
            Self::Kv2 {
                mount,
                path,
                version,
            } => {
                write!(f, "{mount}/{path}")?;
                version.map_or(Ok(()), |version| write!(f, " (version {version})"))
            }
            Self::Engine { path } => path.fmt(f),
        }
    }
}

/// Segments between slashes, none of them empty and none a way out.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VaultPath(String);

impl VaultPath {
    const LONGEST: usize = 512;

    /// As it stands in a URL: everything but what RFC 3986, 2.3 does not reserve is escaped.
    pub fn escaped(&self) -> String {
        let mut escaped = String::with_capacity(self.0.len());
        for byte in self.0.bytes() {
            match byte {
                b'/' | b'-' | b'.' | b'_' | b'~' => escaped.push(byte.into()),
                _ if byte.is_ascii_alphanumeric() => escaped.push(byte.into()),
                _ => escaped.push_str(&format!("%{byte:02X}")),
            }
        }
        escaped
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for VaultPath {
    type Err = InvalidVaultPath;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_segment = |segment: &str| !matches!(segment, "" | "." | "..");
        let printable = !text.chars().any(char::is_control);
        if text.len() > Self::LONGEST || !printable || !text.split('/').all(is_segment) {
            return Err(InvalidVaultPath(text.escape_default().to_string()));
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for VaultPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Nothing in a Vault is there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a path in Vault")]
pub struct InvalidVaultPath(String);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_escaped_as_a_whole_but_for_its_slashes() {
        for (text, escaped) in [
            ("shop/smtp", "shop/smtp"),
            ("a b/c%2Fd", "a%20b/c%252Fd"),
            ("x?version=1#y", "x%3Fversion%3D1%23y"),
            ("é", "%C3%A9"),
            ("...", "..."),
        ] {
            let path: VaultPath = text.parse().unwrap();
            assert_eq!(path.escaped(), escaped);
            assert_eq!(path.as_str(), text);
        }
    }

    #[test]
    fn attack_a_path_that_leads_out_of_its_mount() {
        let long = "a".repeat(513);
        for text in [
            "",
            "/",
            "/a",
            "a/",
            "a//b",
            ".",
            "..",
            "../sys/seal",
            "a/../b",
            "a/..",
            "a\nb",
            "a\0b",
            "\u{1b}[2J",
            &long,
        ] {
            assert!(text.parse::<VaultPath>().is_err(), "{text:?}");
        }
        let error = "a\u{1b}[2J/".parse::<VaultPath>().unwrap_err();
        assert!(!error.to_string().contains('\u{1b}'), "{error}");
    }

    #[test]
    fn every_file_that_is_read_is_named() {
        let store = |login| VaultStore {
            address: "https://vault.internal:8200".parse().unwrap(),
            roots: Some("/r".into()),
            namespace: None,
            login,
        };
        let mount = || "m".parse::<VaultPath>().unwrap();
        let files = CertificateFiles {
            certificate: "/c".into(),
            key: "/k".into(),
        };
        for (login, expected) in [
            (VaultLogin::Token { file: "/t".into() }, vec!["/r", "/t"]),
            (
                VaultLogin::AppRole {
                    mount: mount(),
                    role_id: "id".to_owned(),
                    secret_id: "/s".into(),
                },
                vec!["/r", "/s"],
            ),
            (
                VaultLogin::Kubernetes {
                    mount: mount(),
                    role: "r".to_owned(),
                    token: "/t".into(),
                },
                vec!["/r", "/t"],
            ),
            (
                VaultLogin::Jwt {
                    mount: mount(),
                    role: None,
                    token: VaultJwt::File("/t".into()),
                },
                vec!["/r", "/t"],
            ),
            (
                VaultLogin::Jwt {
                    mount: mount(),
                    role: None,
                    token: VaultJwt::Svid {
                        audience: "vault".to_owned(),
                    },
                },
                vec!["/r"],
            ),
            (
                VaultLogin::Certificate {
                    mount: mount(),
                    role: None,
                    shown: VaultCertificate::Files(files),
                },
                vec!["/r", "/c", "/k"],
            ),
            (
                VaultLogin::Certificate {
                    mount: mount(),
                    role: None,
                    shown: VaultCertificate::Svid,
                },
                vec!["/r"],
            ),
        ] {
            let secret = VaultSecret {
                store: store(login),
                at: VaultPlace::Engine { path: mount() },
                key: Some("k".to_owned()),
                refresh: VaultSecret::REFRESH,
            };
            let expected: Vec<_> = expected.into_iter().map(PathBuf::from).collect();
            assert_eq!(secret.files(), expected);
        }
    }
}
