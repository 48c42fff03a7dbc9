//! What the socket lets its clients take.

use std::time::Duration;

/// The bounds of the socket at which credentials are handed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketLimits {
    /// Connections to the credentials socket at a time, of all users; who comes when all are taken for a second is closed.
    /// 128: hand-overs take microseconds.
    pub socket_connections: usize,
    /// Of those, of one user; the next is told `busy`. A connection whose answer the client does not take counts until it does
    /// or closes: its descriptor is on its way for as long. 16: eight users must be at fault before others wait.
    pub socket_connections_per_user: usize,
    /// The line that asks, in bytes, its end included. 128: the longest name fits.
    pub socket_request_bytes: usize,
    /// From the connection to the end of that line. 5 s: a client has nothing to think about.
    pub socket_request: Duration,
    /// Lines about refused clients in one second. 10: enough to see an attack, not to be one.
    pub socket_lines: u32,
}

impl Default for SocketLimits {
    fn default() -> Self {
        Self {
            socket_connections: 128,
            socket_connections_per_user: 16,
            socket_request_bytes: 128,
            socket_request: Duration::from_secs(5),
            socket_lines: 10,
        }
    }
}

/// The bounds of the URL at which credentials are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UrlLimits {
    /// Connections to the credentials URL at a time; who comes when all are taken for a second is closed. 64: each carries one
    /// request.
    pub url_connections: usize,
    /// Of those at a Unix socket, of one user; the next is closed. 16: four users must be at fault before others wait.
    pub url_connections_per_user: usize,
    /// A head there, in bytes. 8 KiB, hyper's least: a token and a few fields.
    pub url_head_bytes: usize,
    /// Its fields. 32.
    pub url_fields: usize,
    /// From the connection to the end of that head. 5 s.
    pub url_head: Duration,
    /// From the connection to its end. 10 s: a value has a megabyte at most, and goes nowhere but to this host.
    pub url_connection: Duration,
    /// Requests of one consumer in a second; more are answered 429. 100: an SDK asks every few minutes.
    pub url_requests: u32,
    /// Answers a second, of all together, to requests that show no good token; more are answered 429. 20: whoever guesses at 256
    /// bits is in no hurry. Consumers are counted apart.
    pub url_strangers: u32,
    /// Lines about refused requests in one second. 10.
    pub url_lines: u32,
}

impl Default for UrlLimits {
    fn default() -> Self {
        Self {
            url_connections: 64,
            url_connections_per_user: 16,
            url_head_bytes: 8 * 1024,
            url_fields: 32,
            url_head: Duration::from_secs(5),
            url_connection: Duration::from_secs(10),
            url_requests: 100,
            url_strangers: 20,
            url_lines: 10,
        }
    }
}
