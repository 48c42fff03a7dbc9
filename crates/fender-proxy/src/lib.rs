//! The data plane: what stands between the network and one application.
//!
//! *Inbound* (the adapter) ends mTLS, decides who may call what, and hands the call to the app on
//! loopback. *Outbound* (the ambassador) carries the app's own calls to other workloads with the
//! workload's identity, and accepts only the identity it expects there.
//!
//! This crate has never heard of the control plane: it follows two watches, the SVID and the
//! Snapshot, and says what happened in access lines and decision records. It makes no key, reads no
//! document, and keeps no connection whose permission ended.
//!
//! [`Proxy::start`] is the door. A connection's day is written in `inbound.rs`.

#![forbid(unsafe_code)]

mod access;
mod app;
mod call;
mod certificates;
mod challenges;
mod crowd;
mod exchange;
mod fault;
mod frames;
mod headers;
mod http1;
mod http2;
mod inbound;
mod inflow;
mod introduction;
mod json;
mod limits;
mod metrics;
mod node;
mod outbound;
mod outgoing;
mod paced;
mod patience;
mod permit;
mod pool;
mod provenance;
mod proxy;
mod record;
mod relay;
mod request;
mod span;
mod stream;
mod tcp;
mod tls;
mod trace;
mod way;

pub use certificates::{CertificateStatus, Standings};
pub use challenges::Challenges;
pub use limits::Limits;
pub use metrics::Counts;
pub use metrics::declared::METRICS;
pub use proxy::{Inputs, ListenerStatus, Proxy, Running, StartError, Status};
pub use record::{Direction, Reason, Record, RecordedFacts, RecordedRequest};
pub use span::{InvalidShare, Recording, Share, Span};
pub use trace::TracesFrom;

/// For `fuzz/`: what must hold for any bytes at all.
#[cfg(feature = "fuzzing")]
pub mod fuzzing {
    /// The first words of whoever connected: see `stream::checks`.
    pub fn hello(data: &[u8]) {
        crate::stream::checks::hello(data);
    }
}
