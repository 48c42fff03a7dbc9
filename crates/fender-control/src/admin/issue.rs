//! What is made for administrators: join tokens, certificates for people and administrators, the next authority.

use std::collections::BTreeSet;
use std::time::Duration;

use fender_api::code::Code;
use fender_api::proto::control::v1::{
    Authority as AuthorityStatus, CreateTokenRequest, CreateTokenResponse, IssueSvidRequest,
    SvidResponse,
};
use fender_config::{Attestor, Documents, Role};
use fender_identity::csr;
use fender_identity::{NodeName, Serial, SpiffeId, WorkloadName};
use tonic::Status;

use super::lacks;
use crate::ca::issue::{Attested, Grant};
use crate::ca::{CaError, Described, Wanted, lifetimes, sha256};
use crate::callers::{Administrator, failed};
use crate::control::{Control, not_issued};
use crate::evidence::Evidence;
use crate::roles;
use crate::store::audit::Action;
use crate::store::tokens;
use crate::time::{later, seconds};

/// The longest a join token may wait to be used.
const TOKEN_TTL: Duration = Duration::from_secs(7 * 24 * 3600);
/// Where people's identities lie. No document can describe a workload there.
const PEOPLE: &str = "people";

impl Control {
    pub(super) async fn create_token(
        &self,
        request: CreateTokenRequest,
        admin: &Administrator,
    ) -> Result<CreateTokenResponse, Status> {
        let ttl = Duration::from_secs(request.ttl_seconds);
        if ttl.is_zero() || ttl > TOKEN_TTL {
            return Err(Code::BadRequest.status("a join token lives from one second to seven days"));
        }
        let in_force = self.library.in_force();
        let (identity, attest) = self.bearer(&in_force.documents, &request, admin)?;
        if !attest.contains(&Attestor::Token) {
            let bearer = match (identity.workload(), identity.node()) {
                (Some(workload), _) => format!("workload `{workload}`"),
                (None, Some(node)) => format!("node `{node}`"),
                (None, None) => format!("document of `{identity}`"),
            };
            return Err(Code::NotAttestable.status(format!(
                "the {bearer} does not list `token` under `attest`, so nobody could use this"
            )));
        }

        let mut secret = vec![0; 32];
        aws_lc_rs::rand::fill(&mut secret).map_err(|_| Code::Internal.status("no randomness"))?;
        let now = self.clock.now();
        let expires = later(now, ttl);
        let detail = format!("for {} s", ttl.as_secs());
        let create = tokens::Create {
            secret_sha256: sha256(&secret),
            identity: identity.clone(),
            by: admin.id.clone(),
            through: Some(admin.serial.clone()),
            at: now,
            expires,
            entry: self.entry(admin, Action::CreateToken, identity.as_str(), detail),
        };
        self.store.write(create).await.map_err(failed)?;
        Ok(CreateTokenResponse {
            secret,
            identity: identity.to_string(),
            ca_pins: self
                .authority
                .pins()
                .iter()
                .map(|pin| pin.as_bytes().to_vec())
                .collect(),
            expires_unix: seconds(expires),
        })
    }

    /// Whom a join token is asked for, and by what they may attest.
    fn bearer<'a>(
        &self,
        documents: &'a Documents,
        request: &CreateTokenRequest,
        admin: &Administrator,
    ) -> Result<(SpiffeId, &'a BTreeSet<Attestor>), Status> {
        let bad =
            |error: fender_identity::WorkloadNameError| Code::BadRequest.status(error.to_string());
        let unknown = |what: String| {
            Code::IdentityUnknown
                .status(format!("no document describes the {what}: apply one first"))
        };
        let trust_domain = self.authority.trust_domain();
        match (request.workload.as_str(), request.node.as_str()) {
            (workload, "") => {
                let workload: WorkloadName = workload.parse().map_err(bad)?;
                if !admin.rights.hold(Role::Operator, workload.namespace()) {
                    let what = format!("a token for `{workload}`");
                    return Err(lacks(admin, Role::Operator, &what));
                }
                let document = documents.workloads.get(&workload);
                let document = document.ok_or_else(|| unknown(format!("workload `{workload}`")))?;
                Ok((document.spiffe_id(trust_domain), &document.attest))
            }
            ("", node) => {
                let node: NodeName = node.parse().map_err(bad)?;
                // Its agent may speak for workloads of every namespace.
                if !admin.rights.security() {
                    let what = format!("a token for the node `{node}`");
                    return Err(lacks(admin, Role::Security, &what));
                }
                let document = documents.nodes.get(&node);
                let document = document.ok_or_else(|| unknown(format!("node `{node}`")))?;
                Ok((SpiffeId::for_agent(trust_domain, &node), &document.attest))
            }
            (_, _) => Err(Code::BadRequest.status("a join token is for a workload or for a node")),
        }
    }

    /// A certificate for a person or an administrator: nobody else's identity can be had this way.
    pub(super) async fn issue_svid(
        &self,
        request: IssueSvidRequest,
        admin: &Administrator,
    ) -> Result<SvidResponse, Status> {
        let csr =
            csr::parse(&request.csr).map_err(|error| Code::CsrInvalid.status(error.to_string()))?;
        let longest = self.may_have_issued(&csr.id, admin)?;
        let lifetime = Duration::from_secs(request.ttl_seconds);
        if lifetime.is_zero() || lifetime > longest {
            return Err(Code::BadRequest.status(format!(
                "such a certificate lives from one second to {} hours",
                longest.as_secs() / 3600
            )));
        }

        let identity = csr.id.clone();
        let detail = format!("for {} s", lifetime.as_secs());
        let entry = self.entry(admin, Action::IssueSvid, identity.as_str(), detail);
        let evidence = Evidence::Administrator {
            by: admin.id.clone(),
            through: admin.serial.clone(),
            source: admin.source.text.clone(),
        };
        let grant = Grant {
            lifetime,
            dns_names: Vec::new(),
        };
        let attested = Attested::new(identity, csr, grant, evidence).map_err(not_issued)?;
        let issued = self
            .authority
            .issue(attested, self.clock.now())
            .map_err(not_issued)?;
        let recorded = issued
            .record_audited(&self.store, entry)
            .await
            .map_err(failed)?;
        Ok(self.answer(recorded))
    }

    pub(super) async fn rotate_authority(
        &self,
        wanted: Wanted,
        admin: &Administrator,
    ) -> Result<AuthorityStatus, Status> {
        let lifetimes = self.library.in_force().mesh.lifetimes;
        let entry = |serial: &Serial| {
            self.entry(
                admin,
                Action::RotateAuthority,
                &serial.to_string(),
                String::new(),
            )
        };
        let made = self
            .authority
            .rotate(&self.store, &lifetimes, wanted, self.clock.now(), entry)
            .await
            .map_err(not_rotated)?;
        // So that whoever is connected knows a new root before this is answered.
        self.trust.refresh(lifetimes).await.map_err(not_rotated)?;
        tracing::info!(serial = %made.serial, by = %admin.id, "{} certificate authority made for an administrator", made.role.as_str());
        Ok(authority_status(&made))
    }

    /// How long the certificate may be that this administrator may have made for this identity.
    ///
    /// A person is let in wherever policies name them: to be one takes a role in their namespace, except for oneself. An
    /// administrator is made only by who may name one, and only once a document does.
    fn may_have_issued(&self, id: &SpiffeId, admin: &Administrator) -> Result<Duration, Status> {
        let trust_domain = self.authority.trust_domain();
        if id.trust_domain() != trust_domain {
            return Err(Code::IdentityReserved.status("this identity is not issued to anybody"));
        }
        if let Some(name) = id.admin_name() {
            if !admin.rights.security() {
                return Err(lacks(
                    admin,
                    Role::Security,
                    "an administrator's certificate",
                ));
            }
            if !roles::is_named(&self.library.in_force().mesh, name) {
                return Err(Code::IdentityUnknown.status(format!(
                    "no document names the administrator `{name}`: add them to `spec.administrators` of the `Mesh`"
                )));
            }
            return Ok(lifetimes::ADMIN);
        }
        let person = id.workload().filter(|name| name.namespace() == PEOPLE);
        let Some(person) = person else {
            return Err(Code::IdentityReserved.status(format!(
                "certificates for people are `spiffe://{trust_domain}/ns/{PEOPLE}/sa/NAME`"
            )));
        };
        let oneself = admin.id.admin_name() == Some(person.name());
        if !oneself && !admin.rights.hold(Role::Operator, PEOPLE) {
            let what = format!("a certificate for `{person}`, who is somebody else than you,");
            return Err(lacks(admin, Role::Operator, &what));
        }
        Ok(lifetimes::PERSON)
    }
}

pub(super) fn authority_status(authority: &Described) -> AuthorityStatus {
    AuthorityStatus {
        subject: authority.role.as_str().to_owned(),
        serial: authority.serial.to_string(),
        not_after_unix: seconds(authority.not_after),
        standing: authority.standing.as_str().to_owned(),
        signs_from_unix: seconds(authority.signs_from),
        holder: authority
            .holder
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default(),
    }
}

fn not_rotated(error: CaError) -> Status {
    match error {
        CaError::Announced { .. } | CaError::KeyElsewhere | CaError::Overtaken => {
            Code::BadRequest.status(error.to_string())
        }
        CaError::Store(error) => failed(error),
        CaError::RootExpired
        | CaError::BeforeRoot { .. }
        | CaError::NoIntermediate
        | CaError::Upstream(_)
        | CaError::NoJwtKey
        | CaError::JwtKeyMisnamed
        | CaError::JwtKeys(_)
        | CaError::Sign(_)
        | CaError::Make(_)
        | CaError::Bundle(_)
        | CaError::Seal(_) => {
            tracing::error!(%error, "an authority was not made");
            Code::Internal.status("the control plane could not make an authority; its log says why")
        }
    }
}
