//! Who gets an identity: whoever brings the join token made for it, and whoever shows what its document asks for. Whoever
//! had one and asks for the next is [`crate::renewal`]'s.
//!
//! The identity comes from the token, the document or the certificate before; the request must only agree. An anonymous
//! caller learns nothing about workloads, only about the join token they hold: what else was shown is refused with one and
//! the same sentence, and our log says which selector failed.

use std::collections::BTreeSet;
use std::sync::Arc;

use fender_api::code::Code;
use fender_api::proof;
use fender_api::proto::control::v1::attest_request::Evidence as Shown;
use fender_api::proto::control::v1::identity_server::Identity;
use fender_api::proto::control::v1::{
    AttestRequest, JoinTokenEvidence, KubernetesEvidence, RenewRequest, SignJwtRequest, SignedJwt,
    SvidResponse, X509Evidence,
};
use fender_config::Attestor;
use fender_identity::SpiffeId;
use fender_identity::csr::{self, Csr};
use fender_identity::verify::Proof;
use rustls::pki_types::CertificateDer;
use tonic::{Request, Response, Status};

use crate::ca::issue::{Attested, Grant};
use crate::ca::sha256;
use crate::callers::{self, Origin, failed};
use crate::control::{Control, not_issued};
use crate::documents::InForce;
use crate::evidence::Evidence;
use crate::limit::Neighbourhood;
use crate::store::tokens::{self, Bearer, Worth, Worthless};
use crate::telemetry::Asked;

/// Attestations that may fail per minute and address before the address has to wait.
pub(crate) const STRANGER_FAILURES: u32 = 120;

pub(crate) struct IdentityService(pub(crate) Arc<Control>);

#[tonic::async_trait]
impl Identity for IdentityService {
    async fn attest(
        &self,
        request: Request<AttestRequest>,
    ) -> Result<Response<SvidResponse>, Status> {
        let control = &*self.0;
        let origin = callers::origin(request.extensions())?;
        let request = request.into_inner();
        let source = origin.text.clone();
        let whence = origin.ip.map(Neighbourhood::of);
        let asked = asked(&request);
        let attested = control.attest(request, origin).await;
        control.telemetry.issuance(asked, &attested);
        match attested {
            Ok(response) => Ok(Response::new(response)),
            Err(refused) => {
                let code = Code::of(&refused);
                // That somebody else is away or busy is no failure of whoever asks.
                let Some(whence) = whence.filter(|_| !code.is_passing()) else {
                    tracing::warn!(%source, %code, reason = refused.message(), "attestation put off");
                    return Err(refused);
                };
                // Neighbours share an address: whoever shows what is good is let in however often the others failed, and
                // these are told nothing more. To look costs about what their handshakes cost us anyway.
                if control.strangers.exceeded(&whence) {
                    tracing::debug!(%source, %code, reason = refused.message(), "attestation refused");
                    return Err(Code::Busy
                        .status("too many failed attempts from this address: wait a minute"));
                }
                control.strangers.count(whence);
                tracing::warn!(%source, %code, reason = refused.message(), "attestation refused");
                Err(refused)
            }
        }
    }

    async fn renew(
        &self,
        request: Request<RenewRequest>,
    ) -> Result<Response<SvidResponse>, Status> {
        let control = &*self.0;
        let origin = callers::origin(request.extensions())?;
        let connected = request
            .extensions()
            .get::<fender_api::tls::ConnectInfo>()
            .and_then(|info| info.peer.svid().cloned());
        let source = origin.text.clone();
        let renewed = control.renew(request.into_inner(), connected, origin).await;
        control.telemetry.issuance(Asked::Renewal, &renewed);
        match renewed {
            Ok(response) => Ok(Response::new(response)),
            Err(refused) => {
                tracing::warn!(%source, code = %Code::of(&refused), reason = refused.message(), "renewal refused");
                Err(refused)
            }
        }
    }

    async fn sign_jwt(
        &self,
        request: Request<SignJwtRequest>,
    ) -> Result<Response<SignedJwt>, Status> {
        let control = &*self.0;
        let now = control.clock.now();
        let trust_domain = control.authority.trust_domain();
        let caller =
            callers::workload(request.extensions(), trust_domain, &control.store, now).await?;
        let signed = control.sign_jwt(caller.peer.id(), None, request.into_inner(), &caller.source);
        control.telemetry.issuance(Asked::Jwt, &signed);
        signed.map(Response::new)
    }
}

/// As it is counted.
fn asked(request: &AttestRequest) -> Asked {
    match &request.evidence {
        Some(Shown::JoinToken(_)) => Asked::Token,
        Some(Shown::Kubernetes(_)) => Asked::Kubernetes,
        Some(Shown::X509(_)) => Asked::X509,
        None => Asked::Otherwise,
    }
}

impl Control {
    async fn attest(&self, request: AttestRequest, origin: Origin) -> Result<SvidResponse, Status> {
        let request_key = read_request(&request.csr)?;
        match request.evidence {
            Some(Shown::JoinToken(token)) => self.by_join_token(request_key, token, origin).await,
            Some(Shown::Kubernetes(shown)) => self.by_kubernetes(request_key, shown, origin).await,
            Some(Shown::X509(shown)) => {
                self.by_x509(&request.csr, request_key, shown, origin).await
            }
            None => Err(Code::BadRequest.status("no evidence this control plane understands")),
        }
    }

    async fn by_join_token(
        &self,
        request_key: Csr,
        token: JoinTokenEvidence,
        origin: Origin,
    ) -> Result<SvidResponse, Status> {
        let now = self.clock.now();
        if token.secret.len() != 32 {
            return Err(refusal(Worthless::Unknown));
        }
        let secret_sha256 = sha256(&token.secret);

        // Only a token that is worth something is worth a signature, and an answer about its workload.
        let bearer = Bearer {
            secret_sha256: &secret_sha256,
            identity: &request_key.id,
            key_sha256: &request_key.spki_sha256,
        };
        let worth = tokens::worth(self.store.reads(), &bearer, now)
            .await
            .map_err(failed)?;
        if let Worth::Worthless(why) = worth {
            return Err(refusal(why));
        }
        let in_force = self.library.in_force();
        let (grant, attest) = self.grant(&in_force, &request_key)?;
        if !attest.contains(&Attestor::Token) {
            return Err(Code::NotAttestable
                .status("the document of this identity does not list `token` under `attest`"));
        }

        let evidence = Evidence::JoinToken {
            token: secret_sha256,
            source: origin.text.clone(),
        };
        let id = request_key.id.clone();
        let attested =
            Attested::new(id.clone(), request_key, grant, evidence).map_err(not_issued)?;
        let issued = self.authority.issue(attested, now).map_err(not_issued)?;
        let recorded = issued
            .spend(&self.store, secret_sha256, now)
            .await
            .map_err(failed)?
            .map_err(refusal)?;
        tracing::info!(%id, source = origin.text, "attested with a join token");
        Ok(self.answer(recorded))
    }

    /// A service account's token, verified before anything is said of a workload.
    async fn by_kubernetes(
        &self,
        request_key: Csr,
        shown: KubernetesEvidence,
        origin: Origin,
    ) -> Result<SvidResponse, Status> {
        use crate::clusters::{NotVouched, differs};
        let not_vouched = |why: NotVouched| match why {
            NotVouched::Refused(why) => evidence_refused(&why),
            NotVouched::Away(why) => unavailable(&why),
            NotVouched::Busy(why) => Code::Busy.status(why),
        };
        let in_force = self.library.in_force();
        self.put_vouching_in_force();
        let vouched = self
            .clusters
            .verify(&shown.token, origin.ip.map(Neighbourhood::of))
            .await
            .map_err(not_vouched)?;
        let (grant, attest) = self.attestable(&in_force, &request_key)?;
        let selectors = attest.iter().filter_map(|attestor| match attestor {
            Attestor::Kubernetes(selector) => Some(selector),
            Attestor::Token | Attestor::Unix(_) | Attestor::Docker(_) | Attestor::X509(_) => None,
        });
        let vouched = matching(&request_key.id, selectors, &vouched, |selector, vouched| {
            differs(selector, &vouched.whose)
        })?;
        self.clusters
            .admit(vouched, &request_key.spki_sha256)
            .map_err(not_vouched)?;
        let evidence = Evidence::Kubernetes {
            vouched: Box::new(vouched.clone()),
            source: origin.text,
        };
        self.issue(request_key, grant, evidence).await
    }

    /// A certificate of another authority, whose key signed this request for this server.
    async fn by_x509(
        &self,
        request: &[u8],
        request_key: Csr,
        shown: X509Evidence,
        origin: Origin,
    ) -> Result<SvidResponse, Status> {
        use crate::existing::{NotVouched, differs};
        let in_force = self.library.in_force();
        self.put_vouching_in_force();
        let chain: Vec<_> = shown.chain.into_iter().map(CertificateDer::from).collect();
        let leaves = self.own.leaves();
        let messages: Vec<_> = leaves
            .iter()
            .map(|leaf| proof::attestation(request, leaf))
            .collect();
        let proof = Proof {
            chain: &chain,
            message: &[],
            signature: &shown.signature,
        };
        let vouched = self.authorities.verify(proof, &messages, self.clock.now());
        let vouched = vouched.await.map_err(|why| match why {
            NotVouched::Refused(why) => evidence_refused(&why),
            NotVouched::Away(why) => unavailable(&why),
        })?;
        let (grant, attest) = self.attestable(&in_force, &request_key)?;
        let selectors = attest.iter().filter_map(|attestor| match attestor {
            Attestor::X509(selector) => Some(selector),
            Attestor::Token | Attestor::Unix(_) | Attestor::Docker(_) | Attestor::Kubernetes(_) => {
                None
            }
        });
        let vouched = matching(&request_key.id, selectors, &vouched, differs)?;
        let evidence = Evidence::X509 {
            vouched: Box::new(vouched.clone()),
            source: origin.text,
        };
        self.issue(request_key, grant, evidence).await
    }

    /// What the documents give the identity of a request, and to whom; nobody is told that there is no such identity.
    fn attestable<'d>(
        &self,
        in_force: &'d InForce,
        request: &Csr,
    ) -> Result<(Grant, &'d BTreeSet<Attestor>), Status> {
        self.grant(in_force, request)
            .map_err(|_| evidence_refused("no document describes the identity of the request"))
    }

    async fn issue(
        &self,
        request_key: Csr,
        grant: Grant,
        evidence: Evidence,
    ) -> Result<SvidResponse, Status> {
        let attestor = evidence.attestor();
        let id = request_key.id.clone();
        self.pace(&id, &evidence, &grant)?;
        let attested =
            Attested::new(id.clone(), request_key, grant, evidence).map_err(not_issued)?;
        let issued = self
            .authority
            .issue(attested, self.clock.now())
            .map_err(not_issued)?;
        let recorded = issued.record(&self.store).await.map_err(failed)?;
        tracing::info!(%id, attestor, "attested");
        Ok(self.answer(recorded))
    }

    /// Whether whoever attests anew may have one more certificate.
    pub(crate) fn pace(
        &self,
        identity: &SpiffeId,
        evidence: &Evidence,
        grant: &Grant,
    ) -> Result<(), Status> {
        let admitted = evidence
            .basis()
            .is_some_and(|basis| self.pace.admits(identity, &basis, None, grant.lifetime));
        match admitted {
            true => Ok(()),
            false => Err(Code::Busy
                .status("more is attested here, or for this workload, than all its sidecars need")),
        }
    }

    /// What the documents give the identity of a request, and by what it may attest.
    pub(crate) fn grant<'a>(
        &self,
        in_force: &'a InForce,
        request: &Csr,
    ) -> Result<(Grant, &'a BTreeSet<Attestor>), Status> {
        let unknown = || Code::IdentityUnknown.status("no document describes this identity");
        if request.id.trust_domain() != self.authority.trust_domain() {
            return Err(unknown());
        }
        let lifetime = in_force.mesh.lifetimes.leaf;
        let documents = &in_force.documents;
        if let Some(node) = request.id.node() {
            let document = documents.nodes.get(&node).ok_or_else(unknown)?;
            let dns_names = Vec::new();
            return Ok((
                Grant {
                    lifetime,
                    dns_names,
                },
                &document.attest,
            ));
        }
        let name = request.id.workload().ok_or_else(unknown)?;
        let document = documents.workloads.get(&name).ok_or_else(unknown)?;
        let dns_names = document.dns_names.clone();
        Ok((
            Grant {
                lifetime,
                dns_names,
            },
            &document.attest,
        ))
    }
}

pub(crate) fn read_request(der: &[u8]) -> Result<Csr, Status> {
    csr::parse(der).map_err(|error| Code::CsrInvalid.status(error.to_string()))
}

/// What is vouched for that a selector of the identity's document admits.
fn matching<'v, S: 'v, V>(
    id: &SpiffeId,
    selectors: impl Iterator<Item = &'v S>,
    vouched: &'v [V],
    differs: impl Fn(&S, &V) -> Option<String>,
) -> Result<&'v V, Status> {
    let mut why = Vec::new();
    for (selector, number) in selectors.zip(1..) {
        for vouched in vouched {
            match differs(selector, vouched) {
                None => return Ok(vouched),
                Some(difference) => why.push(format!("selector {number}: {difference}")),
            }
        }
    }
    Err(evidence_refused(&match why.as_slice() {
        [] => format!("the document of `{id}` does not list this way under `attest`"),
        why => format!("`{id}`: {}", why.join("; ")),
    }))
}

/// The reason is for our log alone.
fn evidence_refused(why: &str) -> Status {
    tracing::warn!(why, "evidence refused");
    Code::EvidenceRefused
        .status("what was shown does not prove this identity; the control plane's log says why")
}

pub(crate) fn unavailable(why: &str) -> Status {
    tracing::error!(why, "evidence cannot be verified at present");
    Code::Unavailable.status("what was shown cannot be verified just now")
}

fn refusal(why: Worthless) -> Status {
    match why {
        Worthless::Unknown => Code::TokenUnknown.status("this join token was not made here"),
        Worthless::OtherIdentity => {
            Code::TokenWrongIdentity.status("this join token is for another identity")
        }
        Worthless::Spent => {
            Code::TokenSpent.status("this join token was already used: make a new one")
        }
        Worthless::Expired => {
            Code::TokenExpired.status("this join token has expired: make a new one")
        }
        Worthless::Withdrawn => {
            Code::Revoked.status("this join token was withdrawn: make a new one")
        }
    }
}
