//! What the scenarios share: real processes, certificates of friends and attackers, clients.
//!
//! Nothing here is a mock, but where the real thing cannot be had and says how it answers ([`vault`], [`kubernetes`]). Every process is started in a temporary directory, on a port below the
//! ephemeral range, and stopped by its pid. What cannot be started is a failure.

pub mod app;
pub mod aws;
pub mod client;
pub mod clock;
pub mod docker;
pub mod kubernetes;
pub mod load;
pub mod mesh;
pub mod network;
pub mod openssl;
pub mod pebble;
pub mod pki;
pub mod postgres;
pub mod process;
pub mod python;
pub mod recorder;
pub mod replicas;
pub mod sealed;
pub mod vault;

pub use app::Nginx;
pub use client::Client;
pub use load::Load;
pub use mesh::Mesh;
pub use network::Network;
pub use postgres::Postgres;
pub use process::{Process, binary, free_port, installed, wait_until};
pub use recorder::Recorder;
pub use replicas::Replicas;
