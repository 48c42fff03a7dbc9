//! Both sides of an upgrade prove to be the same workload: each signs what both have made up, in its own role.
//!
//! A proof is worth nothing in another conversation, because the nonces differ, and nothing back at whoever made it,
//! because the roles do.

use std::sync::Arc;

use anyhow::{Context as _, Result};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use fender_config::snapshot::Snapshot;
use fender_identity::verify::{PeerExpectation, Proof, proven};
use fender_identity::{Svid, certificates_from_pem};
use fender_runtime::clock::SharedClock;
use fender_runtime::id::OpaqueId;
use tokio::sync::watch;

use super::wire::Message;

const NAMELESS: &str = "it has no identity, so nothing proves that a successor is the same workload: name one in the Sidecar, or end this one and start another";
const CONTEXT: &str = "fender hand-over v1";
/// Of a certificate chain that is read before anything is known of who shows it.
const LONGEST_CHAIN: usize = 32 * 1024;

/// Who proves something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Predecessor,
    Successor,
}

/// Of both sides, the one of whoever came first.
#[derive(Clone, Copy, Debug)]
pub(super) struct Nonces {
    pub(super) predecessor: OpaqueId,
    pub(super) successor: OpaqueId,
}

impl Nonces {
    fn message(self, side: Side) -> Vec<u8> {
        let side = match side {
            Side::Predecessor => "predecessor",
            Side::Successor => "successor",
        };
        let Self {
            predecessor,
            successor,
        } = self;
        format!("{CONTEXT}\0{side}\0{predecessor}\0{successor}").into_bytes()
    }
}

/// Who we are, and whom we believe.
#[derive(Clone)]
pub(crate) struct Own {
    /// None without an identity: then nothing can be proven, and nobody takes over.
    pub(crate) svid: Option<watch::Receiver<Arc<Svid>>>,
    pub(crate) snapshot: watch::Receiver<Arc<Snapshot>>,
    pub(crate) clock: SharedClock,
}

impl Own {
    fn certificate(&self) -> Result<Arc<Svid>> {
        let svid = self.svid.as_ref().context(NAMELESS)?;
        Ok(svid.borrow().clone())
    }

    pub(super) fn prove(&self, side: Side, nonce: OpaqueId, nonces: Nonces) -> Result<Message> {
        let svid = self.certificate()?;
        let signature = svid
            .sign(&nonces.message(side))
            .context("sign who we are")?;
        Ok(Message::Identity {
            nonce: nonce.to_string(),
            chain: svid.chain_pem(),
            signature: BASE64_STANDARD.encode(signature),
        })
    }

    /// Whether the other is who we are.
    pub(super) fn check(
        &self,
        side: Side,
        nonces: Nonces,
        chain: &str,
        signature: &str,
    ) -> Result<()> {
        anyhow::ensure!(
            chain.len() <= LONGEST_CHAIN,
            "its certificates are too many"
        );
        let chain = certificates_from_pem(chain.as_bytes()).context("read its certificates")?;
        let signature = BASE64_STANDARD
            .decode(signature)
            .context("read its signature")?;
        let proof = Proof {
            chain: &chain,
            message: &nonces.message(side),
            signature: &signature,
        };
        let us = PeerExpectation::Exactly(self.certificate()?.id().clone());
        let snapshot = self.snapshot.borrow().clone();
        proven(proof, &snapshot.trust, self.clock.now(), &|peer| {
            us.admit(peer)
        })
        .context("it does not prove to be this workload")?;
        Ok(())
    }
}
