//! `openssl s_client`: a TLS client that is not ours, told exactly what to offer.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::process::{PATIENCE, installed, wait_until};

/// What one connection came to.
#[derive(Debug)]
pub struct Spoken {
    /// What the server sent over TLS, and what openssl says of the session.
    pub said: String,
    /// Its summary of the handshake and its errors.
    pub told: String,
}

impl Spoken {
    /// Whether there was an answer over HTTP with this status.
    pub fn answered(&self, status: u16) -> bool {
        self.said.contains(&format!("HTTP/1.1 {status}"))
    }
}

/// The options for who has `certificate.pem` and `key.pem`.
const OWN: [&str; 6] = [
    "-cert",
    "certificate.pem",
    "-cert_chain",
    "certificate.pem",
    "-key",
    "key.pem",
];

/// One `GET /` with the certificate, key and roots of `identity`, as [`crate::Client::from_directory`] takes them, and
/// these options besides.
pub fn get(address: SocketAddr, identity: &Path, options: &[&str]) -> Spoken {
    get_as(address, identity, &[&OWN, options].concat())
}

/// The same with no certificate but what the options say; files are in `directory`.
pub fn get_as(address: SocketAddr, directory: &Path, options: &[&str]) -> Spoken {
    let mut child = client(address, directory, &[options, &["-ign_eof"]].concat());
    // A refused client may be gone before it has read this.
    let request = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    let _ = child.stdin.take().expect("its input").write_all(request);
    spoken(child)
}

/// Shakes hands in TLS 1.2 as `identity`, and then wants to do it again on the same connection.
pub fn renegotiate(address: SocketAddr, identity: &Path) -> Spoken {
    let mut child = client(address, identity, &[&OWN[..], &["-tls1_2"]].concat());
    // As long as its input is open nothing but the server's refusal ends it.
    let mut input = child.stdin.take().expect("its input");
    input.write_all(b"R\n").expect("ask for it");
    wait_until("openssl has its answer", PATIENCE, || {
        child.try_wait().expect("look after openssl").is_some()
    });
    spoken(child)
}

fn client(address: SocketAddr, directory: &Path, options: &[&str]) -> Child {
    Command::new(installed("openssl"))
        .arg("s_client")
        .args(["-connect", &address.to_string(), "-CAfile", "bundle.pem"])
        .args(["-verify_return_error", "-servername", "localhost"])
        .args(options)
        .current_dir(directory)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("run openssl")
}

fn spoken(child: Child) -> Spoken {
    let output = child.wait_with_output().expect("wait for openssl");
    Spoken {
        said: String::from_utf8_lossy(&output.stdout).into_owned(),
        told: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}
