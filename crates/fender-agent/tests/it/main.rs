//! The local socket as its callers see it: a real socket, real gRPC, identities that a test changes.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test fails loudly"
)]

mod harness;
mod holders;
mod sds;
mod workload;
