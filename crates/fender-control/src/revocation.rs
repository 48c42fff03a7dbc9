//! Ending certificates before their time.
//!
//! A revocation is recorded, then heeded by the authority, then announced: what is issued after it is none of what it
//! concerns. Its streams end, its peers sever it, it cannot renew; whoever it was must attest anew, and not with a join
//! token that was made before. With a node goes everything its agent obtained for others. Nobody ends their own rights by
//! a slip, and the control plane's own certificate is not ended this way at all.

use std::sync::Arc;
use std::time::Duration;

use fender_api::code::Code;
use fender_api::proto::control::v1::denied_before::Whose;
use fender_api::proto::control::v1::revocation::What as Told;
use fender_api::proto::control::v1::revoke_request::What as Asked;
use fender_api::proto::control::v1::{
    DeniedBefore, ListRevocationsResponse, MadeCertificate, Revocation as Message, RevokeRequest,
};
use fender_identity::{NodeName, SpiffeId, WorkloadName};
use tokio::sync::oneshot;
use tonic::Status;

use crate::ca::CaError;
use crate::callers::{Administrator, failed};
use crate::control::Control;
use crate::store::audit::Action;
use crate::store::revocations::{self, Denial, NotRevoked, Revocation, Revoke, What};
use crate::store::{StoreError, certificates};
use crate::time::{moment, seconds};

/// What a reason may weigh.
const MAX_REASON: usize = 512;

/// What is asked for, as the audit log calls it.
pub(crate) fn subject(request: &RevokeRequest) -> String {
    match &request.what {
        Some(Asked::Serial(serial)) => format!("serial {serial}"),
        Some(Asked::Workload(workload)) => format!("workload {workload}"),
        Some(Asked::Administrator(name)) => format!("administrator {name}"),
        Some(Asked::Node(node)) => format!("node {node}"),
        Some(Asked::IssuedBefore(before)) if before.workload.is_empty() => {
            format!("issued before {}", before.moment_unix)
        }
        Some(Asked::IssuedBefore(before)) => {
            format!(
                "workload {} issued before {}",
                before.workload, before.moment_unix
            )
        }
        None => String::new(),
    }
}

impl Control {
    /// In a task of its own: an administrator who hangs up in the middle must not leave a revocation that is recorded and
    /// unknown to everybody.
    pub(crate) async fn revoke(
        self: &Arc<Self>,
        request: RevokeRequest,
        admin: &Administrator,
    ) -> Result<Message, Status> {
        let subject = subject(&request);
        let reason = request.reason.trim().to_owned();
        if reason.is_empty() || reason.len() > MAX_REASON {
            return Err(Code::BadRequest.status(format!(
                "a revocation has a reason of up to {MAX_REASON} bytes"
            )));
        }
        let what = self.what(request, admin).await?;
        let revoke = Revoke {
            what,
            at: self.clock.now(),
            renewal_grace: self.library.in_force().mesh.lifetimes.renewal_grace,
            by: admin.id.clone(),
            entry: self.entry(admin, Action::Revoke, &subject, reason.clone()),
            reason,
        };
        let (answer, revoked) = oneshot::channel();
        let control = Arc::clone(self);
        self.drain.spawn(async move {
            // Whoever asked may be gone: the list shows what came of it.
            let _ = answer.send(control.record_and_announce(revoke).await);
        });
        match revoked.await {
            Ok(Ok(Ok(revocation))) => {
                tracing::warn!(subject, by = %admin.id, certificates = revocation.certificates, "revoked");
                for made in &revocation.made {
                    tracing::warn!(
                        subject, identity = %made.identity, serial = %made.serial,
                        "whoever is revoked had this certificate made, and it lives on"
                    );
                }
                Ok(self.told(revocation))
            }
            Ok(Ok(Err(NotRevoked::Nothing))) => Err(Code::NotFound.status(
                "no certificate is concerned, and no join token: none is on record, or all were revoked before",
            )),
            Ok(Ok(Err(NotRevoked::TooMany))) => Err(Code::Busy.status(
                "the deny list is full: revoke by workload or by a moment, which takes one entry for many certificates",
            )),
            Ok(Err(error)) => Err(failed(error)),
            Err(_) => Err(Code::Unavailable.status("the control plane is stopping")),
        }
    }

    async fn record_and_announce(
        &self,
        revoke: Revoke,
    ) -> Result<Result<Revocation, NotRevoked>, StoreError> {
        let now = revoke.at;
        let revoked = self.store.write(revoke).await?;
        if revoked.is_err() {
            return Ok(revoked);
        }
        if let Err(error) = self.refresh_trust().await {
            // It is on record and so in force for whoever asks here. The streams are told as soon as that is possible, by
            // whoever follows revocations.
            tracing::error!(%error, "a revocation is recorded and not announced yet");
        }
        if let Err(error) = self.store.mark_revoked(now).await {
            // Housekeeping does it again.
            tracing::error!(%error, "a revocation is in force, and the authorities' lists do not name all of it yet");
        }
        Ok(revoked)
    }

    pub(crate) async fn refresh_trust(&self) -> Result<(), CaError> {
        let lifetimes = self.library.in_force().mesh.lifetimes;
        self.trust.refresh(lifetimes).await
    }

    async fn what(&self, request: RevokeRequest, admin: &Administrator) -> Result<What, Status> {
        let bad = |error: &dyn std::fmt::Display| Code::BadRequest.status(error.to_string());
        let trust_domain = self.authority.trust_domain();
        let identity = |text: &str| {
            let name: WorkloadName = text.parse().map_err(|error| bad(&error))?;
            Ok::<_, Status>(SpiffeId::for_workload(trust_domain, &name))
        };
        let what = match request.what {
            Some(Asked::Serial(serial)) => {
                What::Certificate(serial.parse().map_err(|error| bad(&error))?)
            }
            Some(Asked::Workload(workload)) => What::Identity(identity(&workload)?),
            Some(Asked::Administrator(name)) => {
                let id = SpiffeId::admin(trust_domain, &name).map_err(|error| bad(&error))?;
                What::Identity(id)
            }
            Some(Asked::Node(node)) => {
                let node: NodeName = node.parse().map_err(|error| bad(&error))?;
                let agent = SpiffeId::for_agent(trust_domain, &node);
                What::Node(node, agent)
            }
            Some(Asked::IssuedBefore(before)) => {
                let begins = moment(before.moment_unix);
                if begins > self.clock.now() {
                    return Err(Code::BadRequest.status(
                        "the moment is still to come: what is not issued yet cannot be revoked",
                    ));
                }
                let whose = match before.workload.as_str() {
                    "" => None,
                    workload => Some(identity(workload)?),
                };
                What::Before(whose, begins)
            }
            None => return Err(Code::BadRequest.status("nothing is named that could be revoked")),
        };
        let whose = self.owner(&what).await?;
        if whose.as_ref().is_some_and(SpiffeId::is_control) {
            return Err(Code::BadRequest.status(
                "this is the control plane's own certificate: it renews by itself, and a new intermediate replaces what signed it",
            ));
        }
        let own = match &what {
            What::Certificate(serial) => *serial == admin.serial,
            What::Identity(id) | What::Before(Some(id), _) => *id == admin.id,
            What::Before(None, _) | What::Node(..) => false,
        };
        if own && !request.myself {
            return Err(Code::BadRequest.status(
                "this would revoke the certificate you ask with: say `--myself` if you mean it",
            ));
        }
        Ok(what)
    }

    /// Whose certificates are meant, if one identity's.
    async fn owner(&self, what: &What) -> Result<Option<SpiffeId>, Status> {
        match what {
            What::Certificate(serial) => {
                let known = certificates::find(self.store.reads(), &serial.to_string())
                    .await
                    .map_err(failed)?;
                Ok(known.map(|known| known.identity))
            }
            What::Identity(id) | What::Node(_, id) => Ok(Some(id.clone())),
            What::Before(whose, _) => Ok(whose.clone()),
        }
    }

    pub(crate) async fn revocations(&self) -> Result<ListRevocationsResponse, Status> {
        let grace: Duration = self.library.in_force().mesh.lifetimes.renewal_grace;
        let revocations = revocations::in_force(self.store.reads(), self.clock.now(), grace)
            .await
            .map_err(failed)?
            .into_iter()
            .map(|revocation| self.told(revocation))
            .collect();
        Ok(ListRevocationsResponse { revocations })
    }

    fn told(&self, revocation: Revocation) -> Message {
        let before = |whose, moment| {
            Told::Before(DeniedBefore {
                whose: Some(whose),
                moment_unix: seconds(moment),
            })
        };
        let what = match revocation.denial {
            Denial::Serial(serial) => Told::Serial(serial.to_string()),
            Denial::Identity(id, moment) => before(Whose::Identity(id.to_string()), moment),
            Denial::Node(node, ..) => Told::Node(node.to_string()),
            Denial::Workloads(moment) => {
                let domain = self.authority.trust_domain().to_string();
                before(Whose::TrustDomain(domain), moment)
            }
        };
        Message {
            number: revocation.number,
            what: Some(what),
            reason: revocation.reason,
            revoked_by: revocation.by,
            revoked_at_unix: seconds(revocation.at),
            certificates: revocation.certificates,
            until_unix: seconds(revocation.until),
            made: revocation
                .made
                .iter()
                .map(|made| MadeCertificate {
                    identity: made.identity.to_string(),
                    serial: made.serial.to_string(),
                    until_unix: seconds(made.until),
                })
                .collect(),
        }
    }
}
