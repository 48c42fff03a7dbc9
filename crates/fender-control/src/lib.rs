//! The control plane: certificate authority, registry of identities, and the place where documents live and become one
//! Snapshot per workload.
//!
//! [`start`] shows the whole of it in order. It knows nothing of proxies or of how credentials are delivered. It is one
//! replica of any number over one database: there is no leader, and no state that is not in the database, except who is
//! connected. No secret value is stored, logged or
//! put into a Snapshot. The anonymous may attest, or prove to hold the key of a certificate that has just expired; nothing
//! else.

mod admin;
mod attest;
mod ca;
mod callers;
mod clusters;
mod control;
mod credentials;
mod datadir;
mod decisions;
mod differences;
mod distribution;
mod documents;
mod embedded;
mod evidence;
mod existing;
mod followed;
mod founding;
mod jwt;
mod limit;
mod listings;
mod maintenance;
mod nodes;
mod own;
mod pace;
mod peers;
mod registry;
mod renewal;
mod replica;
mod revocation;
mod roles;
mod sealing;
mod start;
mod store;
mod telemetry;
mod time;
mod trust;
mod turns;

#[cfg(test)]
mod tests;

pub use ca::CaError;
pub use ca::issue::IssueError;
pub use ca::seal::SealError;
pub use ca::upstream::{
    FilesUpstream, OfflineUpstream, UpstreamError, UpstreamPlace, VaultUpstream,
};
/// A root whose key no control plane has.
pub mod offline {
    pub use crate::ca::offline::{Made, OfflineError, create_root, sign_intermediate};
    pub use crate::ca::upstream::{AnotherRoot, import};
}

pub use datadir::DataDirError;
pub use embedded::NodeTokenError;
pub use founding::{Foundation, Founded, init, reissue_admin};
pub use own::OwnError;
pub use sealing::Sealing;
pub use start::{ControlConfig, Running, StartError, start};
pub use store::StoreError;
pub use store::audit::Chain;
pub use store::place::{PlaceError, Postgres, StorePlace};
pub use store::replicas::{ReplicaName, ReplicaNameError};
pub use telemetry::declared::METRICS;
