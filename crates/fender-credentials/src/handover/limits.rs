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
