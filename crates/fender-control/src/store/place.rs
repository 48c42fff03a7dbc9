//! Where the registry is: in the data directory, or on a PostgreSQL server, and how one proves to be allowed there.
//!
//! A password comes from a file that nobody else may read, never from a command line or the environment, where others
//! see it. TLS is verified in full, name included; without TLS only a Unix socket or loopback is used. Nothing is taken
//! from the variables and files of libpq.

use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use sqlx::postgres::{PgConnectOptions, PgSslMode};
use url::Url;
use zeroize::Zeroizing;

use super::db::STATEMENTS;

/// A password's longest file.
const LONGEST: u64 = 4096;
const PORT: u16 = 5432;

/// Where a control plane keeps its registry.
#[derive(Clone, Debug)]
pub enum StorePlace {
    /// SQLite, for one control plane.
    DataDir,
    /// A server elsewhere, which outlives this machine.
    Postgres(Postgres),
}

/// A PostgreSQL server as an operator names it.
#[derive(Clone)]
pub struct Postgres {
    /// `postgres://USER@HOST:PORT/DATABASE`, or with the directory of a Unix socket for HOST, its slashes as
    /// `%2F`.
    pub url: String,
    pub password_file: Option<PathBuf>,
    /// Authorities that vouch for the server, besides the public ones.
    pub roots: Option<PathBuf>,
    /// A client certificate and its key.
    pub certificate: Option<(PathBuf, PathBuf)>,
}

/// The URL may hold a password that will be refused: it is not shown.
impl fmt::Debug for Postgres {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Postgres").finish_non_exhaustive()
    }
}

/// What connections are made with.
#[derive(Clone)]
pub(crate) struct Access {
    pub(super) options: PgConnectOptions,
    place: String,
}

impl Access {
    /// For messages.
    pub(super) fn place(&self) -> String {
        self.place.clone()
    }
}

impl Postgres {
    pub(crate) fn access(&self) -> Result<Access, PlaceError> {
        let url = Url::parse(&self.url).map_err(|_| PlaceError::NotAUrl)?;
        if !matches!(url.scheme(), "postgres" | "postgresql") {
            return Err(PlaceError::NotAUrl);
        }
        if url.password().is_some() {
            return Err(PlaceError::PasswordInUrl);
        }
        let user = text(url.username())?;
        let database = text(url.path().trim_start_matches('/'))?;
        let host = text(url.host_str().unwrap_or_default())?;
        if user.is_empty() || database.is_empty() || host.is_empty() {
            return Err(PlaceError::Incomplete);
        }
        if let Some((name, _)) = url.query_pairs().next() {
            return Err(PlaceError::Parameter {
                name: name.into_owned(),
            });
        }

        let port = url.port().unwrap_or(PORT);
        let mut options = PgConnectOptions::new_without_pgpass()
            .host(&host)
            .port(port)
            .username(&user)
            .database(&database)
            .statement_cache_capacity(STATEMENTS)
            .ssl_mode(match (nearness(&host), &self.roots) {
                (Nearness::ThisMachine, None) => PgSslMode::Disable,
                (Nearness::ThisMachine | Nearness::Elsewhere, _) => PgSslMode::VerifyFull,
            });
        if host.starts_with('/') {
            options = options.socket(&host).ssl_mode(PgSslMode::Disable);
        }
        // Empty rather than absent: an absent one would come from the environment.
        options = match &self.password_file {
            Some(path) => options.password(&password(path)?),
            None => options.password(""),
        };
        options = match &self.roots {
            Some(path) => {
                drop(open(path)?);
                options.ssl_root_cert(path)
            }
            None => options.ssl_root_cert_from_pem(Vec::new()),
        };
        if let Some((certificate, key)) = &self.certificate {
            drop(open(certificate)?);
            drop(private(key)?);
            options = options.ssl_client_cert(certificate).ssl_client_key(key);
        }
        Ok(Access {
            options,
            place: format!("{database} at {host}:{port}"),
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Nearness {
    ThisMachine,
    Elsewhere,
}

fn nearness(host: &str) -> Nearness {
    let address = host.trim_start_matches('[').trim_end_matches(']');
    match address.parse::<IpAddr>() {
        Ok(address) if address.is_loopback() => Nearness::ThisMachine,
        _ if host == "localhost" || host.starts_with('/') => Nearness::ThisMachine,
        Ok(_) | Err(_) => Nearness::Elsewhere,
    }
}

/// A part of a URL as it is meant.
fn text(part: &str) -> Result<String, PlaceError> {
    // As a form, it is one name without a value.
    let plain = part
        .replace('+', "%2B")
        .replace('&', "%26")
        .replace('=', "%3D");
    let mut pairs = url::form_urlencoded::parse(plain.as_bytes());
    match (pairs.next(), pairs.next()) {
        (None, _) => Ok(String::new()),
        (Some((text, _)), None) => Ok(text.into_owned()),
        (Some(_), Some(_)) => Err(PlaceError::NotAUrl),
    }
}

fn open(path: &Path) -> Result<File, PlaceError> {
    File::open(path).map_err(|source| PlaceError::Read {
        path: path.to_owned(),
        source,
    })
}

/// A file that nobody else may read.
fn private(path: &Path) -> Result<File, PlaceError> {
    let file = open(path)?;
    let metadata = file.metadata().map_err(|source| PlaceError::Read {
        path: path.to_owned(),
        source,
    })?;
    let mode = metadata.mode() & 0o7777;
    if !metadata.is_file() || mode & 0o077 != 0 {
        return Err(PlaceError::Exposed {
            path: path.to_owned(),
            mode,
        });
    }
    Ok(file)
}

fn password(path: &Path) -> Result<Zeroizing<String>, PlaceError> {
    let mut password = Zeroizing::new(String::new());
    private(path)?
        .take(LONGEST)
        .read_to_string(&mut password)
        .map_err(|source| PlaceError::Read {
            path: path.to_owned(),
            source,
        })?;
    let length = password.trim_end_matches(['\r', '\n']).len();
    password.truncate(length);
    if password.is_empty() {
        return Err(PlaceError::NoPassword {
            path: path.to_owned(),
        });
    }
    Ok(password)
}

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PlaceError {
    #[error("`--store` is not a URL: write `postgres://USER@HOST:PORT/DATABASE`")]
    NotAUrl,
    #[error(
        "`--store` has a password in it, where every process of this machine can read it: put it into a file with \
         mode 0600 and name that by `--store-password-file`, and change the password"
    )]
    PasswordInUrl,
    #[error("`--store` must name user, host and database: `postgres://USER@HOST:PORT/DATABASE`")]
    Incomplete,
    #[error(
        "`--store` sets `{name}`: nothing can be set there; TLS is always verified in full, and the other `--store-…` \
         options name files"
    )]
    Parameter { name: String },
    #[error("others may read `{}` (mode {mode:04o}), or it is no file: `chmod 600` it", path.display())]
    Exposed { path: PathBuf, mode: u32 },
    #[error("`{}` is empty: the password's file holds it on one line", path.display())]
    NoPassword { path: PathBuf },
    #[error("read `{}`: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn server(url: &str) -> Postgres {
        Postgres {
            url: url.to_owned(),
            password_file: None,
            roots: None,
            certificate: None,
        }
    }

    fn mode(url: &str) -> PgSslMode {
        server(url).access().unwrap().options.get_ssl_mode()
    }

    #[test]
    fn attack_a_server_elsewhere_is_verified_in_full_whatever_the_url_says() {
        for url in [
            "postgres://fender@db.internal/fender",
            "postgres://fender@10.0.0.7:5433/fender",
            "postgres://fender@localhost.evil.test/fender",
        ] {
            assert!(matches!(mode(url), PgSslMode::VerifyFull), "{url}");
        }
        for parameter in ["sslmode=disable", "host=/tmp", "options=-c%20x=y"] {
            let url = format!("postgres://fender@db.internal/fender?{parameter}");
            assert!(matches!(
                server(&url).access(),
                Err(PlaceError::Parameter { .. })
            ));
        }
    }

    #[test]
    fn on_this_machine_no_roots_are_needed() {
        for url in [
            "postgres://fender@127.0.0.1:5433/fender",
            "postgres://fender@[::1]/fender",
            "postgres://fender@localhost/fender",
            "postgres://fender@%2Frun%2Fpostgresql:5433/fender",
        ] {
            assert!(matches!(mode(url), PgSslMode::Disable), "{url}");
        }
    }

    #[test]
    fn attack_a_password_on_the_command_line_is_refused_and_not_repeated() {
        let server = server("postgres://fender:hunter2@db.internal/fender");
        let error = server.access().err().unwrap();
        assert!(matches!(error, PlaceError::PasswordInUrl));
        assert!(!format!("{error} {error:?} {server:?}").contains("hunter2"));
    }

    #[test]
    fn attack_a_password_file_that_others_may_read_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("password");
        std::fs::write(&path, "secret word\n").unwrap();
        let set = |mode| {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        set(0o640);
        assert!(matches!(
            password(&path),
            Err(PlaceError::Exposed { mode: 0o640, .. })
        ));
        set(0o600);
        assert_eq!(&**password(&path).unwrap(), "secret word");
    }

    #[test]
    fn a_url_says_who_where_and_what_or_is_refused() {
        for url in [
            "postgres://db.internal/fender",
            "postgres://fender@db.internal",
        ] {
            assert!(matches!(server(url).access(), Err(PlaceError::Incomplete)));
        }
        for url in [
            "fender",
            "mysql://fender@db/fender",
            "postgres://fender@/fender",
        ] {
            assert!(matches!(server(url).access(), Err(PlaceError::NotAUrl)));
        }
        let access = server("postgres://fen%2Fder@db:6000/fender")
            .access()
            .unwrap();
        assert_eq!(access.options.get_username(), "fen/der");
        assert_eq!(access.place(), "fender at db:6000");
    }
}
