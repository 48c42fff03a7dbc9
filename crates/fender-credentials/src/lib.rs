//! Delivery of credentials, their rotation, and the supervision of the application.
//!
//! Secrets come from `fender-providers` or, by the hand of the binary, from a control plane
//! ([`RemoteSecrets`]); they leave as files ([`deliver`]), alone or in sets that change together, of what documents have made of them, at a socket ([`handover`]) or as the environment of a command
//! ([`environment`]), or as what whoever serves the ports shows there ([`PortCertificates`]). [`engine`] keeps files and socket right while the sidecar runs, [`notify`] tells applications of changes, [`supervise`] is the
//! parent of the application and of the proxy beside it, and [`mask`] hides secrets in what the application writes.
//!
//! What was fetched last is kept for a start during an outage, if somebody wants that ([`cache`]).
//!
//! It knows nothing of TLS or policies, writes nowhere that was not allowed on this
//! machine, and keeps no secret longer than it must.

mod allow;
mod certificate;
mod render;
mod sources;
#[cfg(test)]
mod testing;

pub mod cache;
pub mod deliver;
pub mod engine;
pub mod environment;
pub mod handover;
pub mod mask;
pub mod notify;
pub mod supervise;

pub use allow::{AllowDirs, NotAllowed};
pub use cache::{Cache, CacheError};
pub use certificate::{CertificateError, PortCertificates, Standings};
pub use render::RenderError;
pub use sources::{Gathered, NoRemote, RemoteSecrets, Sources, StartError, gather};
