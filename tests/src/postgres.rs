//! A PostgreSQL server of one's own: in a temporary directory, under a user who is not root, stopped with its last owner.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::{chown, lchown};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use tempfile::TempDir;

use crate::pki::Authority;
use crate::process::free_port;

/// Whom PostgreSQL runs as when the tests run as root: it refuses root.
const NOBODY: u32 = 65_534;

pub struct Postgres {
    directory: TempDir,
    host: IpAddr,
    pub port: u16,
    /// Commits reach the disk: what is to survive a kill needs it, and what is not is faster without.
    durability: Durability,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    Full,
    None,
}

impl Postgres {
    /// A running server with a superuser `fender` and an empty database `fender`, on loopback and on a Unix socket.
    pub fn start(durability: Durability) -> Self {
        Self::start_at(Ipv4Addr::LOCALHOST.into(), durability)
    }

    /// The same at an address of the network that the calling thread is in; with TLS, unless that is loopback.
    pub fn start_at(host: IpAddr, durability: Durability) -> Self {
        let directory = tempfile::Builder::new()
            .prefix("fender-postgres-")
            .tempdir()
            .expect("make a temporary directory");
        if is_root() {
            chown(directory.path(), Some(NOBODY), Some(NOBODY)).expect("hand over the directory");
        }
        let server = Self {
            directory,
            host,
            port: free_port(),
            durability,
        };
        server.ran(server.command("initdb").arg("-D").arg(server.data()).args([
            "-U",
            "fender",
            "-A",
            "trust",
            "--no-sync",
            "-E",
            "UTF8",
            "--locale=C",
        ]));
        if !host.is_loopback() {
            server.make_certificate();
        }
        let rules = server.data().join("pg_hba.conf");
        fs::write(rules, "local all all trust\nhost all all all trust\n")
            .expect("let everybody in");
        server.up();
        server.sql("postgres", "CREATE DATABASE fender");
        server
    }

    /// Starts it again after [`down`](Self::down).
    pub fn up(&self) {
        let flush = match self.durability {
            Durability::Full => "",
            Durability::None => "-c fsync=off -c full_page_writes=off",
        };
        let tls = match self.tls().exists() {
            true => {
                let tls = self.tls().display().to_string();
                format!(
                    "-c ssl=on -c ssl_cert_file={tls}/certificate.pem -c ssl_key_file={tls}/key.pem"
                )
            }
            false => String::new(),
        };
        let options = format!(
            "-p {} -c listen_addresses={} -c unix_socket_directories={} -c max_connections=60 -c shared_buffers=32MB \
             {flush} {tls}",
            self.port,
            self.host,
            self.directory.path().display(),
        );
        self.ran(
            self.command("pg_ctl")
                .args(["-w", "-s", "-D"])
                .arg(self.data())
                .arg("-l")
                .arg(self.directory.path().join("log"))
                .arg("-o")
                .arg(options)
                .arg("start"),
        );
    }

    /// Stops it as a crash would: no goodbye to anybody, recovery at the next start.
    pub fn down(&self) {
        self.ran(
            self.command("pg_ctl")
                .args(["-w", "-s", "-m", "immediate", "-D"])
                .arg(self.data())
                .arg("stop"),
        );
    }

    pub fn address(&self) -> SocketAddr {
        SocketAddr::from((self.host, self.port))
    }

    /// Over TCP.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://fender@{}/{database}", self.address())
    }

    /// Over the Unix socket.
    pub fn socket_url(&self, database: &str) -> String {
        let directory = self.directory.path().to_string_lossy().replace('/', "%2F");
        format!("postgres://fender@{directory}:{}/{database}", self.port)
    }

    /// What a statement answers, one row a line, columns apart by `|`.
    pub fn sql(&self, database: &str, statement: &str) -> String {
        self.ran(
            self.command("psql")
                .args([
                    "-X",
                    "-A",
                    "-t",
                    "-q",
                    "-v",
                    "ON_ERROR_STOP=1",
                    "-U",
                    "fender",
                ])
                .arg("-h")
                .arg(self.directory.path())
                .args([
                    "-p",
                    &self.port.to_string(),
                    "-d",
                    database,
                    "-c",
                    statement,
                ]),
        )
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    /// Who vouches for it, where it speaks TLS.
    pub fn roots(&self) -> PathBuf {
        self.tls().join("bundle.pem")
    }

    fn make_certificate(&self) {
        let authority = Authority::new("database.internal");
        authority.write_bundle(&self.tls());
        authority.issue_for_address(self.host).write(&self.tls());
        if is_root() {
            for file in ["certificate.pem", "key.pem"] {
                let file = self.tls().join(file);
                chown(file, Some(NOBODY), Some(NOBODY))
                    .expect("hand over what it proves itself by");
            }
        }
    }

    fn tls(&self) -> PathBuf {
        self.directory.path().join("tls")
    }

    fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(installed(program));
        command
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("LC_ALL", "C")
            .current_dir(self.directory.path())
            .stdin(Stdio::null());
        if is_root() {
            command.uid(NOBODY).gid(NOBODY);
        }
        command
    }

    fn ran(&self, command: &mut Command) -> String {
        // A server that goes on in the background must not hold our pipe open.
        let out = self.directory.path().join(format!("out-{}", free_port()));
        let file = fs::File::create(&out).expect("a file for the output");
        if is_root() {
            lchown(&out, Some(NOBODY), Some(NOBODY)).expect("hand over the output");
        }
        let status = command
            .stdout(file.try_clone().expect("share the file"))
            .stderr(file)
            .status()
            .expect("run a program of PostgreSQL");
        let text = fs::read_to_string(&out).unwrap_or_default();
        let _ = fs::remove_file(&out);
        assert!(
            status.success(),
            "{command:?}: {status}\n{text}\n{}",
            self.log()
        );
        text.trim_end().to_owned()
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        let _ = self
            .command("pg_ctl")
            .args(["-w", "-s", "-m", "immediate", "-D"])
            .arg(self.data())
            .arg("stop")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
    }
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Debian keeps the server's programs by version, off the path.
fn installed(program: &str) -> PathBuf {
    let mut versions: Vec<_> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .map(|version| version.path().join("bin").join(program))
        .filter(|path| path.exists())
        .collect();
    versions.sort();
    versions.pop().unwrap_or_else(|| {
        panic!("`{program}` is not installed; `cargo xtask test` installs what the tests need")
    })
}
