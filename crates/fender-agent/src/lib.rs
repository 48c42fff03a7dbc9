//! What stands on a host between the control plane and the processes there: it finds out who calls a local socket, and
//! serves the caller's own identity: to a sidecar by the agent's protocol, to anybody by the SPIFFE Workload API and by
//! Envoy's SDS.
//!
//! It decides nothing about who may be whom: that is the control plane's, by the facts attested here. It never gives
//! two callers the same private key, and answers nobody over a network.

mod agent;
mod attest;
mod authority;
mod call;
mod caller;
mod container;
mod holders;
mod identities;
mod process;
mod programs;
mod sds;
mod server;
mod tenant;
mod tokens;
mod workload;

pub use agent::{Agent, AgentConfig};
pub use caller::UnknownCaller;
pub use container::{Engine, EngineError};
pub use holders::{Holders, Issuer};
pub use identities::{Caller, Entitled, Identities, JwtSvid, Refused};
pub use server::{Limits, serve};
pub use tokens::Tokens;
