//! The simplest server on rustls that serves many at once: what its handshakes cost with nothing added.
//!
//! One thread, one epoll, non-blocking sockets; for each connection an accept, its registration, a read for each flight that
//! comes, one write for all there is to say, and a close. A proxy on rustls cannot do less for a handshake, so what it costs here
//! is a bound for any of them. It answers whatever it is sent with an empty 200, so that the bench can ask it the same
//! questions as a proxy, and forwards nothing.

use crate::net;
use crate::opts::{Error, Opts};
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection};
use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::sync::Arc;

const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";

/// Who comes when there are so many is closed at once. The bench holds 16.
const CONNECTIONS: usize = 4096;

/// How much rustls reads at once while it shakes hands.
const ROOM: usize = 4096;

struct Connection {
    stream: TcpStream,
    tls: ServerConnection,
}

pub fn run(o: &Opts) -> Result<(), Error> {
    let pki = o.need("pki")?;
    let mut poll = Poll::new()?;
    let mut listeners = Vec::new();
    for (option, mutual) in [("tls", false), ("mtls", true)] {
        let mut listener = TcpListener::bind(o.need(option)?.parse()?)?;
        let token = Token(listeners.len());
        poll.registry()
            .register(&mut listener, token, Interest::READABLE)?;
        listeners.push((listener, config(pki, mutual)?));
    }

    let mut events = Events::with_capacity(256);
    let mut connections: HashMap<Token, Connection> = HashMap::new();
    let mut next = listeners.len();
    loop {
        match poll.poll(&mut events, None) {
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            done => done?,
        }
        for event in &events {
            let token = event.token();
            if let Some((listener, config)) = listeners.get(token.0) {
                while let Ok((mut stream, _)) = listener.accept() {
                    if connections.len() == CONNECTIONS {
                        continue;
                    }
                    stream.set_nodelay(true)?;
                    let token = Token(next);
                    next += 1;
                    poll.registry()
                        .register(&mut stream, token, Interest::READABLE)?;
                    let tls = ServerConnection::new(config.clone())?;
                    connections.insert(token, Connection { stream, tls });
                }
            } else if let Some(connection) = connections.get_mut(&token)
                && !matches!(connection.serve(), Ok(Go::On))
            {
                // Closing it takes it out of the epoll.
                connections.remove(&token);
            }
        }
    }
}

enum Go {
    On,
    Away,
}

impl Connection {
    /// All that can be read, and one write for all there is to say.
    fn serve(&mut self) -> Result<Go, Error> {
        let mut request = [0; 4096];
        loop {
            let length = match self.tls.read_tls(&mut self.stream) {
                Ok(0) => return Ok(Go::Away),
                Ok(length) => length,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(Go::On),
                Err(error) => return Err(error.into()),
            };
            let state = self.tls.process_new_packets();
            if let Ok(state) = &state
                && state.plaintext_bytes_to_read() > 0
            {
                match self.tls.reader().read(&mut request) {
                    Ok(_) => self.tls.writer().write_all(ANSWER)?,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error.into()),
                }
            }
            let closed = state.as_ref().is_ok_and(|state| state.peer_has_closed());
            if closed {
                self.tls.send_close_notify();
            }
            // Flights are far smaller than what a socket takes: what it does not take at once ends the connection.
            while self.tls.wants_write() {
                self.tls.write_tls(&mut self.stream)?;
            }
            state?;
            if closed {
                return Ok(Go::Away);
            }
            // Less than there was room for: the socket is empty, and epoll tells what comes later.
            if length < ROOM {
                return Ok(Go::On);
            }
        }
    }
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
