//! Between the servers of a local socket and where identities come from.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use fender_identity::{Secret, SpiffeId, Svid, Trust};
use tokio::sync::watch;

use crate::process::Moment;
use crate::tenant::Tenant;

/// The process at the other end of a local socket, as the kernel names it.
#[derive(Clone, Debug)]
pub struct Caller {
    pub uid: u32,
    pub gid: u32,
    pub pid: u32,
    /// Holds on to this very process: its number may be given to another once it has ended.
    pub process: Arc<OwnedFd>,
    /// Whose share of the agent it uses up.
    pub(crate) tenant: Tenant,
    /// What it was when it was let in, where it is to be attested.
    pub(crate) seen: Option<Moment>,
}

/// What a caller may be, at one moment.
#[derive(Clone, Debug)]
pub struct Entitled {
    /// Never empty; the first is the default one. Their keys were made for this caller alone.
    pub svids: Vec<Arc<Svid>>,
    pub trust: Trust,
}

/// A JWT-SVID. Whoever holds the token is believed to be `id` until it expires.
#[derive(Clone, Debug)]
pub struct JwtSvid {
    pub id: SpiffeId,
    pub token: Secret,
}

/// Where the identities of callers come from: the control plane by way of an agent, or a sidecar's own workload.
pub trait Identities: Send + Sync + 'static {
    /// What the caller may be, now and after every change (renewal, rotation, documents, revocation). Ends when it may be
    /// nobody any more.
    fn follow(
        &self,
        caller: &Caller,
    ) -> impl Future<Output = Result<watch::Receiver<Arc<Entitled>>, Refused>> + Send;

    /// A token for `audience` (never empty), as `id` or as the caller's default identity.
    fn jwt_svid(
        &self,
        caller: &Caller,
        audience: &[String],
        id: Option<&SpiffeId>,
    ) -> impl Future<Output = Result<JwtSvid, Refused>> + Send;

    /// By which anybody is recognised, and who is not any more.
    fn trust(&self) -> watch::Receiver<Trust>;
}

/// Why a caller gets nothing. The caller hears no more than the variant.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("no identity is meant for this caller: {why}")]
    Nobody { why: String },
    #[error("identities cannot be had now: {why}")]
    Unavailable { why: String },
}
