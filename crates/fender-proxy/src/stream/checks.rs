//! What must hold for whatever a stranger says first: run by the fuzz target `hello`, and by the tests on
//! its corpus.
//!
//! The server that is spoken to is one of the tests: its key is no secret, and it asks for no certificate.
//! Nobody finishes a handshake with it all the same who does not listen to it.

#![expect(
    clippy::expect_used,
    reason = "a check says by a panic that a promise is broken"
)]

use std::io;
use std::sync::{Arc, LazyLock};

use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs::{default_provider, sign};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::runtime::Runtime;

use super::Stream;

/// Whatever comes is refused, alike however it was cut into writes; and what is said to it is TLS.
pub(crate) fn hello(data: &[u8]) {
    let whole = Refusal::of(data, data.len().max(1));
    for cut in [1, 7] {
        assert_eq!(whole, Refusal::of(data, cut), "cut in {cut}");
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Refusal {
    kind: io::ErrorKind,
    text: String,
    /// Of each record that was sent the type and the length.
    said: Vec<(u8, usize)>,
}

impl Refusal {
    fn of(data: &[u8], cut: usize) -> Self {
        thread_local! {
            static RUNTIME: Runtime = tokio::runtime::Builder::new_current_thread()
                .enable_io()
                .build()
                .expect("a runtime");
        }
        let (error, said) = RUNTIME.with(|runtime| {
            runtime.block_on(async {
                let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
                tokio::join!(refused(ours), speak(theirs, data, cut))
            })
        });
        Self {
            kind: error.kind(),
            text: error.to_string(),
            said: records(&said),
        }
    }
}

async fn refused(ours: UnixStream) -> io::Error {
    match Stream::accept(ours.into(), SERVER.clone()).await {
        Ok(_) => panic!("somebody who did not listen shook hands"),
        // The socket is closed with this.
        Err((error, _)) => error,
    }
}

/// Says all of it, however it is taken, and hears what is said to it.
async fn speak(mut theirs: UnixStream, data: &[u8], cut: usize) -> Vec<u8> {
    for part in data.chunks(cut) {
        if theirs.write_all(part).await.is_err() {
            break;
        }
        tokio::task::yield_now().await;
    }
    let mut said = Vec::new();
    // It may have been hung up on, with what it said unread.
    let _ = theirs.shutdown().await;
    let _ = theirs.read_to_end(&mut said).await;
    said
}

/// Takes records apart.
fn records(mut said: &[u8]) -> Vec<(u8, usize)> {
    let mut records = Vec::new();
    while let [kind, 3, _, high, low, rest @ ..] = said {
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        assert!(matches!(kind, 20..=23), "a record of type {kind}");
        said = rest.get(length..).expect("a whole record");
        records.push((*kind, length));
    }
    assert_eq!(said, b"", "not a record");
    records
}

static SERVER: LazyLock<Arc<ServerConfig>> = LazyLock::new(|| {
    let mut server = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .expect("TLS 1.2 and 1.3")
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(Anybody::new()));
    server.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Arc::new(server)
});

/// The same certificate whatever name is asked for.
#[derive(Debug)]
struct Anybody(Arc<CertifiedKey>);

impl Anybody {
    fn new() -> Self {
        // An Ed25519 key (RFC 8410 §7) whose secret is all sevens.
        let mut key = b"\x30\x2e\x02\x01\x00\x30\x05\x06\x03\x2b\x65\x70\x04\x22\x04\x20".to_vec();
        key.extend([7; 32]);
        let key = sign::any_eddsa_type(&PrivatePkcs8KeyDer::from(key)).expect("a key");
        // Who is spoken to never gets so far as to read it.
        let certificate = CertificateDer::from(vec![0x30, 0x00]);
        Self(Arc::new(CertifiedKey::new(vec![certificate], key)))
    }
}

impl ResolvesServerCert for Anybody {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }
}
