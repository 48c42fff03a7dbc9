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
mod harness;
mod http2;
mod lifetime;
mod plaintext;
mod proxy_protocol;
mod renewal;
mod revocation;
mod streams;
mod trace;
