//! The proxy between real TLS clients and real small apps, over loopback.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, in its helpers too"
)]

mod adapter;
mod ambassador;
mod attacks;
mod bounds;
mod challenges;
mod drains;
mod files;
mod forwarded;
mod frames;
mod h2c;
mod h2c_attacks;
mod h2c_bounds;
mod handed;
mod harness;
mod http2;
mod lifetime;
mod limits;
mod parked;
mod plaintext;
mod proxy_protocol;
mod renewal;
mod revocation;
mod shared_connections;
mod streams;
mod trace;
mod trailers;
mod unread;
mod windows;
