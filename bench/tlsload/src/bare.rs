//! The simplest server on rustls: what its handshakes cost with nothing added.
//!
//! One thread for each listener serves one connection after the other by blocking calls. It is no bound: it sleeps and wakes for each flight,
//! which whoever serves several connections at once need not. It answers whatever it is
//! sent with an empty 200, so that the bench can ask it the same questions as a proxy, and forwards nothing.

use crate::net;
use crate::opts::{Error, Opts};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection};
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

/// Whoever says nothing for so long is in the way of the next.
const PATIENCE: Duration = Duration::from_secs(3);

const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";

pub fn run(o: &Opts) -> Result<(), Error> {
    let pki = o.need("pki")?;
    let mut threads = Vec::new();
    for (option, mutual) in [("tls", false), ("mtls", true)] {
        let config = config(pki, mutual)?;
        let listener = TcpListener::bind(o.need(option)?)?;
        threads.push(std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // A client that is refused is no reason to end.
                let _ = serve(stream, &config);
            }
        }));
    }
    for thread in threads {
        thread.join().map_err(|_| "a listener has ended")?;
    }
    Ok(())
}

fn config(pki: &str, mutual: bool) -> Result<Arc<ServerConfig>, Error> {
    let provider = Arc::new(net::provider("x25519")?);
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])?;
    let builder = if mutual {
        let mut roots = RootCertStore::empty();
        for root in net::certs(&format!("{pki}/ca.crt"))? {
            roots.add(root)?;
        }
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
        builder.with_client_cert_verifier(verifier.build()?)
    } else {
        builder.with_no_client_auth()
    };
    let mut config = builder.with_single_cert(
        net::certs(&format!("{pki}/server.crt"))?,
        net::key(&format!("{pki}/server.key"))?,
    )?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.ticketer = rustls::crypto::aws_lc_rs::Ticketer::new()?;
    config.send_tls13_tickets = 1;
    Ok(Arc::new(config))
}

/// Until the client has said that it is done.
fn serve(mut stream: TcpStream, config: &Arc<ServerConfig>) -> Result<(), Error> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut tls = ServerConnection::new(config.clone())?;
    let mut request = [0; 4096];
    loop {
        if tls.read_tls(&mut stream)? == 0 {
            return Ok(());
        }
        let state = tls.process_new_packets();
        if let Ok(state) = &state
            && state.plaintext_bytes_to_read() > 0
        {
            match tls.reader().read(&mut request) {
                Ok(_) => tls.writer().write_all(ANSWER)?,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
        }
        let closed = state.as_ref().is_ok_and(|state| state.peer_has_closed());
        if closed {
            tls.send_close_notify();
        }
        while tls.wants_write() {
            tls.write_tls(&mut stream)?;
        }
        state?;
        if closed {
            return Ok(());
        }
    }
}
