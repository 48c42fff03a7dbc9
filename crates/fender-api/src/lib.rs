//! The protocol between a Fender control plane, its sidecars and its administrators: the messages, their conversions
//! into domain types, gRPC over Fender's own TLS, and the clients that speak it. Beside it, each behind a feature, the protocols
//! that others made.
//!
//! Messages stay at the door: whoever receives one converts it (`TryFrom`, in [`convert`]) before believing any of it.
//! This crate decides nothing about who may ask for what; that is the control plane's.

pub mod addresses;
pub mod admin;
pub mod audit;
pub mod client;
pub mod code;
pub mod convert;
pub mod decision;
pub mod facts;
#[cfg(feature = "otlp")]
pub mod otlp;
pub mod proof;
pub mod proto;
pub mod tls;
pub mod token;
pub mod url;
pub mod usage;
#[cfg(feature = "workload-api")]
pub mod workload;

#[cfg(test)]
mod testing;
