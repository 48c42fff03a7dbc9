//! The next certificate for whoever has one. It is for the same identity, and nothing that was shown when the line of
//! renewals began has to be shown again; but it is judged again: an entry of the document's `attest` must still admit it.
//!
//! What is judged is what was recorded, by the documents and by the roots that they name, as both are now. Whether a
//! process still runs the same program, or a pod still exists, this does not find out; attesting anew does, and whoever is
//! refused here may do that.

use std::collections::BTreeSet;

use fender_api::code::Code;
use fender_api::proof;
use fender_api::proto::control::v1::{ExpiredProof, RenewRequest, SvidResponse};
use fender_config::Attestor;
use fender_identity::verify::{self, Proof, Refusal};
use fender_identity::{PeerSvid, SpiffeId};
use rustls::pki_types::{CertificateDer, UnixTime};
use tonic::Status;

use crate::attest::{read_request, unavailable};
use crate::ca::issue::Attested;
use crate::callers::{self, Origin, failed};
use crate::control::{Control, not_issued};
use crate::documents::InForce;
use crate::evidence::{Basis, Evidence, Line};
use crate::store::certificates::{self, Known};
use crate::{clusters, existing, nodes};

impl Control {
    pub(crate) async fn renew(
        &self,
        request: RenewRequest,
        connected: Option<PeerSvid>,
        origin: Origin,
    ) -> Result<SvidResponse, Status> {
        let now = self.clock.now();
        let in_force = self.library.in_force();
        let request_key = read_request(&request.csr)?;
        let (peer, expired) = match (request.expired, connected) {
            (Some(proof), _) => (self.expired(&in_force, &request.csr, proof).await?, true),
            (None, Some(peer)) => (peer, false),
            (None, None) => {
                return Err(
                    Code::NotAuthenticated.status("renewal needs the certificate it renews")
                );
            }
        };
        if peer.id().node().is_none() {
            callers::workload_of(peer.id(), self.authority.trust_domain())?;
        }
        let known = match expired {
            true => callers::on_record(&peer, &self.store).await?,
            false => callers::in_good_standing(&peer, &self.store, now).await?,
        };
        if request_key.id != *peer.id() {
            return Err(Code::CsrInvalid
                .status("a renewal is for the identity of the certificate it renews"));
        }

        let (grant, attest) = self.grant(&in_force, &request_key)?;
        let mut line = line(&peer, known)?;
        if let Err(why) = still_admitted(&in_force, attest, &line.basis, now) {
            return Err(no_longer_admitted(peer.id(), &line.basis, &why));
        }
        self.still_vouched(peer.id(), &mut line.basis, now).await?;
        if !self
            .pace
            .admits(peer.id(), &line.basis, Some(&line.first), grant.lifetime)
        {
            return Err(Code::Busy.status(
                "this sidecar, its node, or all sidecars of this workload renew more often than they need",
            ));
        }
        let evidence = Evidence::Certificate {
            serial: peer.serial().clone(),
            expired,
            line,
            source: origin.text,
        };
        let attested =
            Attested::new(peer.id().clone(), request_key, grant, evidence).map_err(not_issued)?;
        let issued = self.authority.issue(attested, now).map_err(not_issued)?;
        let recorded = issued.record(&self.store).await.map_err(failed)?;
        tracing::info!(id = %peer.id(), expired, "certificate renewed");
        Ok(self.answer(recorded))
    }

    /// Whether the root by which somebody was let in still counts. What was recorded without one is bound to those of now.
    async fn still_vouched(
        &self,
        id: &SpiffeId,
        basis: &mut Basis,
        now: UnixTime,
    ) -> Result<(), Status> {
        let Basis::X509(vouched) = basis else {
            return Ok(());
        };
        self.put_vouching_in_force();
        match self.authorities.still(vouched, now).await {
            Ok(roots) => {
                vouched.roots = roots;
                Ok(())
            }
            Err(existing::NotVouched::Refused(why)) => Err(no_longer_admitted(id, basis, &why)),
            Err(existing::NotVouched::Away(why)) => Err(unavailable(&why)),
        }
    }

    /// Who holds the key of a certificate that may have expired. The proof counts for this request and this server only.
    ///
    /// Whoever asks may be a stranger, and a chain can be made to take long: it is followed only for a leaf on record.
    async fn expired(
        &self,
        in_force: &InForce,
        request: &[u8],
        proof: ExpiredProof,
    ) -> Result<PeerSvid, Status> {
        let chain: Vec<_> = proof.chain.into_iter().map(CertificateDer::from).collect();
        let state = self.authority.state();
        let grace = in_force.mesh.lifetimes.renewal_grace;
        let invalid = || {
            Code::ProofInvalid
                .status("the expired certificate, or the signature by its key, does not hold")
        };
        let shown = chain.first().ok_or_else(invalid)?;
        if !certificates::is_leaf_on_record(self.store.reads(), shown)
            .await
            .map_err(failed)?
        {
            return Err(invalid());
        }
        let mut refusal = None;
        for leaf in self.own.leaves() {
            let message = proof::renewal(request, &leaf);
            let shown = Proof {
                chain: &chain,
                message: &message,
                signature: &proof.signature,
            };
            match verify::lapsed(shown, &state.lapsed, self.clock.now(), grace, &|_| Ok(())) {
                Ok(peer) => return Ok(peer),
                Err(why) => refusal = Some(why),
            }
        }
        Err(match refusal {
            Some(Refusal::Expired { .. }) => Code::RenewalExpired
                .status("the certificate expired longer ago than the mesh allows: attest anew with a join token"),
            Some(_) | None => invalid(),
        })
    }
}

/// The line that a certificate on record belongs to.
fn line(peer: &PeerSvid, known: Known) -> Result<Line, Status> {
    // Nobody attested to be the control plane, an administrator or a person.
    let attested = known.attested.ok_or_else(|| {
        Code::Denied.status("this certificate was given by an administrator, who gives the next")
    })?;
    Ok(Line {
        first: known.lineage.unwrap_or_else(|| peer.serial().clone()),
        basis: Basis::from_json(&attested).map_err(failed)?,
    })
}

/// Whether the documents in force still admit what was once attested; if not, why not.
fn still_admitted(
    in_force: &InForce,
    attest: &BTreeSet<Attestor>,
    basis: &Basis,
    now: UnixTime,
) -> Result<(), String> {
    match basis {
        Basis::Token => match attest.contains(&Attestor::Token) {
            true => Ok(()),
            false => Err("`token` is not listed any more".to_owned()),
        },
        Basis::Kubernetes(whose) => {
            // The same name may stand for another cluster by now.
            let cluster = in_force.mesh.clusters.get(&whose.cluster);
            if cluster.is_none_or(|cluster| cluster.issuer != whose.issuer) {
                return Err(format!(
                    "the Mesh describes no cluster `{}` whose issuer is `{}`",
                    whose.cluster, whose.issuer
                ));
            }
            one_admits(attest, |attestor| match attestor {
                Attestor::Kubernetes(selector) => Some(clusters::differs(selector, whose)),
                Attestor::Token | Attestor::Unix(_) | Attestor::Docker(_) | Attestor::X509(_) => {
                    None
                }
            })
        }
        Basis::X509(vouched) => {
            if !in_force.mesh.authorities.contains_key(&vouched.authority) {
                return Err(format!(
                    "the Mesh describes no authority `{}`",
                    vouched.authority
                ));
            }
            if vouched.shown.validity.not_after < now {
                return Err("the certificate that was shown has ended".to_owned());
            }
            one_admits(attest, |attestor| match attestor {
                Attestor::X509(selector) => Some(existing::differs(selector, vouched)),
                Attestor::Token
                | Attestor::Unix(_)
                | Attestor::Docker(_)
                | Attestor::Kubernetes(_) => None,
            })
        }
        Basis::Agent { node, facts } => {
            let node = in_force.documents.nodes.get(node);
            let node = node.ok_or("no document describes the node any more")?;
            one_admits(attest, |attestor| nodes::differs(attestor, node, facts))
        }
    }
}

/// Asks each entry of `attest` what differs: nothing, if it is for another way to attest.
fn one_admits(
    attest: &BTreeSet<Attestor>,
    differs: impl Fn(&Attestor) -> Option<Option<String>>,
) -> Result<(), String> {
    let mut why = Vec::new();
    for difference in attest.iter().filter_map(differs) {
        match difference {
            None => return Ok(()),
            Some(difference) => why.push(difference),
        }
    }
    Err(match why.as_slice() {
        [] => "this way is not listed any more, or not for this node".to_owned(),
        why => why.join("; "),
    })
}

/// Which selector failed is for our log alone.
fn no_longer_admitted(id: &SpiffeId, basis: &Basis, why: &str) -> Status {
    tracing::warn!(%id, attestor = basis.attestor(), why, "what was attested once is not admitted any more");
    Code::NotAttestable.status(
        "the document does not admit any more what this identity was attested by: attest anew",
    )
}
