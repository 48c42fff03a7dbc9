//! gRPC over Fender's own TLS.
//!
//! tonic's own TLS takes neither a certificate resolver nor a clock, so it is not used: [`serve`](server) hands tonic
//! finished connections, [`connect`] hands it one. Who the other side is was decided before tonic sees a byte.

use std::time::Duration;

mod client;
mod server;

pub(crate) use client::Once;
pub use client::{ConnectError, Connection, connect};
pub use server::{ConnectInfo, IncomingLimits, ServerStream, TlsIncoming, server};

/// The largest message either side takes.
pub const MAX_MESSAGE: usize = 4 * 1024 * 1024;

/// The largest `Apply`: documents are refused one by one, with their names, rather than as a message too large.
pub const MAX_APPLY: usize = 16 * 1024 * 1024;

/// The largest answer an administrator takes: a status names every sidecar, and what one says of itself must not hide the
/// others.
pub const MAX_STATUS: usize = 64 * 1024 * 1024;

/// gRPC is HTTP/2 and nothing else.
pub const ALPN: &[&[u8]] = &[b"h2"];

/// How often an idle connection is asked whether it still lives, and how long it may take to answer: together the time in
/// which a vanished peer is noticed.
pub const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
/// See [`KEEPALIVE_INTERVAL`].
pub const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

pub(crate) const MAX_HEADER_LIST: u32 = 16 * 1024;

#[cfg(test)]
mod tests;
