//! Who calls. The handshake proved an identity; here it becomes a role, and what the record knows against it is asked.
//!
//! A connection may outlive the certificate it began with, so expiry is looked at again with every call.

use std::net::IpAddr;

use fender_api::code::Code;
use fender_api::tls::ConnectInfo;
use fender_identity::{NodeName, Peer, PeerSvid, Serial, SpiffeId, TrustDomain, WorkloadName};
use rustls::pki_types::UnixTime;
use tonic::{Extensions, Status};

use crate::roles::Rights;
use crate::store::certificates::{self, Known, Standing};
use crate::store::{Store, StoreError};

/// A workload with a certificate of ours.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    pub(crate) peer: PeerSvid,
    pub(crate) workload: WorkloadName,
    pub(crate) source: Origin,
}

/// An administrator with a certificate of ours, and what they may do at the moment of the call.
#[derive(Clone, Debug)]
pub(crate) struct Administrator {
    pub(crate) id: SpiffeId,
    pub(crate) serial: Serial,
    pub(crate) source: Origin,
    pub(crate) rights: Rights,
}

/// Where a call comes from.
#[derive(Clone, Debug)]
pub(crate) struct Origin {
    pub(crate) text: String,
    pub(crate) ip: Option<IpAddr>,
}

fn connection(extensions: &Extensions) -> Result<&ConnectInfo, Status> {
    extensions
        .get::<ConnectInfo>()
        .ok_or_else(|| Code::NotAuthenticated.status("the connection has no known peer"))
}

pub(crate) fn origin(extensions: &Extensions) -> Result<Origin, Status> {
    let remote = &connection(extensions)?.remote;
    Ok(Origin {
        text: remote.to_string(),
        ip: remote.ip(),
    })
}

pub(crate) fn verified(extensions: &Extensions) -> Result<&PeerSvid, Status> {
    match &connection(extensions)?.peer {
        Peer::Verified(peer) => Ok(peer),
        Peer::Anonymous => {
            Err(Code::NotAuthenticated.status("this call needs a client certificate"))
        }
    }
}

/// The peer of a call that only workloads may make.
pub(crate) async fn workload(
    extensions: &Extensions,
    trust_domain: &TrustDomain,
    store: &Store,
    now: UnixTime,
) -> Result<Caller, Status> {
    let peer = verified(extensions)?;
    let workload = workload_of(peer.id(), trust_domain)?;
    in_good_standing(peer, store, now).await?;
    Ok(Caller {
        peer: peer.clone(),
        workload,
        source: origin(extensions)?,
    })
}

pub(crate) fn workload_of(
    id: &SpiffeId,
    trust_domain: &TrustDomain,
) -> Result<WorkloadName, Status> {
    id.workload()
        .filter(|_| id.trust_domain() == trust_domain)
        .ok_or_else(|| Code::Denied.status("only a workload of this trust domain may ask this"))
}

/// The node of a call that only agents may make.
pub(crate) async fn agent(
    extensions: &Extensions,
    trust_domain: &TrustDomain,
    store: &Store,
    now: UnixTime,
) -> Result<(NodeName, Serial, Origin), Status> {
    let peer = verified(extensions)?;
    let node = peer
        .id()
        .node()
        .filter(|_| peer.id().trust_domain() == trust_domain)
        .ok_or_else(|| Code::Denied.status("only the agent of a node may ask this"))?;
    in_good_standing(peer, store, now).await?;
    Ok((node, peer.serial().clone(), origin(extensions)?))
}

/// Makes sure that another replica of this control plane calls, and nobody else.
pub(crate) async fn replica(
    extensions: &Extensions,
    trust_domain: &TrustDomain,
    store: &Store,
    now: UnixTime,
) -> Result<(), Status> {
    let peer = verified(extensions)?;
    if !peer.id().is_control() || peer.id().trust_domain() != trust_domain {
        return Err(Code::Denied.status("only the control plane itself may ask this"));
    }
    in_good_standing(peer, store, now).await.map(drop)
}

/// Whether a peer claims to be an administrator; asked before the body of a call is read.
pub(crate) fn claims_administration(
    extensions: &Extensions,
    trust_domain: &TrustDomain,
) -> Result<(), NotAdministrator> {
    let peer = verified(extensions).map_err(NotAdministrator::Nobody)?;
    let id = peer.id();
    if id.admin_name().is_none() || id.trust_domain() != trust_domain {
        return Err(NotAdministrator::Somebody(id.clone()));
    }
    Ok(())
}

#[derive(Debug)]
pub(crate) enum NotAdministrator {
    Nobody(Status),
    Somebody(SpiffeId),
}

/// The peer of a call that only administrators may make. Which of them may, the documents say.
pub(crate) async fn administrator(
    extensions: &Extensions,
    trust_domain: &TrustDomain,
    store: &Store,
    now: UnixTime,
) -> Result<(PeerSvid, Origin), Status> {
    let peer = verified(extensions)?;
    claims_administration(extensions, trust_domain).map_err(|refused| match refused {
        NotAdministrator::Nobody(status) => status,
        NotAdministrator::Somebody(_) => not_an_administrator(),
    })?;
    in_good_standing(peer, store, now).await?;
    Ok((peer.clone(), origin(extensions)?))
}

pub(crate) fn not_an_administrator() -> Status {
    Code::Denied.status("this call is for administrators, and this certificate is not one's")
}

/// The certificate still lives, was issued here, and was not revoked.
pub(crate) async fn in_good_standing(
    peer: &PeerSvid,
    store: &Store,
    now: UnixTime,
) -> Result<Known, Status> {
    if peer.not_after() < now {
        return Err(Code::NotAuthenticated
            .status("the certificate of this connection has expired: connect again"));
    }
    on_record(peer, store).await
}

/// The certificate was issued here and not revoked.
pub(crate) async fn on_record(peer: &PeerSvid, store: &Store) -> Result<Known, Status> {
    let known = certificates::find(store.reads(), &peer.serial().to_string())
        .await
        .map_err(failed)?
        .filter(|known| peer.showed(&known.leaf) && known.identity == *peer.id())
        .ok_or_else(|| Code::Denied.status("this certificate is not on record here"))?;
    match known.standing {
        Standing::Good => Ok(known),
        Standing::Revoked => Err(Code::Revoked.status("this certificate was revoked")),
    }
}

/// Our own failure: the log knows what, the peer that.
pub(crate) fn failed(error: StoreError) -> Status {
    if matches!(error, StoreError::Revoked) {
        tracing::warn!("a certificate was revoked while it was being issued, and is nobody's");
        return Code::Revoked
            .status("who asked, or for whom, was revoked while this was under way: attest anew");
    }
    tracing::error!(%error, "the store failed a call");
    if error.is_passing() {
        return Code::Unavailable
            .status("the control plane's database is away or busy: ask again, or another replica");
    }
    match error {
        StoreError::Stopped => Code::Unavailable.status("the control plane is stopping"),
        StoreError::Revoked
        | StoreError::Open { .. }
        | StoreError::Migrate { .. }
        | StoreError::Database(_)
        | StoreError::Commit(_)
        | StoreError::Unknown(_)
        | StoreError::Damaged(_) => {
            Code::Internal.status("the control plane failed; its log says why")
        }
    }
}
