//! What agents ask: who a process of their host may be, and a certificate for it.
//!
//! An agent speaks for its own node and no other: which node that is comes from its certificate, never from what it
//! sends. So a compromised host yields the identities that documents place on that host, and nothing else.

mod follow;
mod matching;

use std::sync::Arc;

use fender_api::code::Code;
use fender_api::facts::Facts;
use fender_api::proto::control::v1 as proto;
use fender_api::proto::control::v1::nodes_server::Nodes;
use fender_api::proto::control::v1::{
    Entitlement, FollowRequest, IssueForRequest, SignJwtForRequest, SignedJwt, SvidResponse,
};
use fender_config::Node;
use fender_identity::{NodeName, Serial, SpiffeId, SpiffeIdError, TrustDomain};
use tonic::{Extensions, Request, Response, Status};

use crate::attest::read_request;
use crate::ca::issue::Attested;
use crate::callers::{self, Origin, failed};
use crate::control::{Control, not_issued};
use crate::documents::InForce;
use crate::evidence::Evidence;
use crate::telemetry::Asked;
use follow::Followers;
pub(crate) use matching::differs;
use matching::{Hit, Matching, kept, matching};

pub(crate) struct NodesService {
    control: Arc<Control>,
    followers: Followers,
}

impl NodesService {
    pub(crate) fn new(control: Arc<Control>) -> Self {
        Self {
            control,
            followers: Followers::default(),
        }
    }
}

#[tonic::async_trait]
impl Nodes for NodesService {
    type FollowStream = follow::Updates;

    async fn entitle(
        &self,
        request: Request<proto::Facts>,
    ) -> Result<Response<Entitlement>, Status> {
        let control = &*self.control;
        let agent = control.agent(request.extensions()).await?;
        let facts = read_facts(Some(request.into_inner()))?;
        let in_force = control.library.in_force();
        let matching = agent.match_with(&in_force, &facts)?;
        let trust_domain = control.authority.trust_domain();
        let identities = matching
            .hits
            .iter()
            .map(|hit| hit.workload.spiffe_id(trust_domain).to_string())
            .collect();
        Ok(Response::new(Entitlement { identities }))
    }

    async fn issue_for(
        &self,
        request: Request<IssueForRequest>,
    ) -> Result<Response<SvidResponse>, Status> {
        let control = &*self.control;
        let agent = control.agent(request.extensions()).await?;
        let issued = control.issue_for(agent, request.into_inner()).await;
        control.telemetry.issuance(Asked::Agent, &issued);
        issued.map(Response::new)
    }

    async fn sign_jwt_for(
        &self,
        request: Request<SignJwtForRequest>,
    ) -> Result<Response<SignedJwt>, Status> {
        let control = &*self.control;
        let agent = control.agent(request.extensions()).await?;
        let SignJwtForRequest {
            identity,
            facts,
            token,
        } = request.into_inner();
        let facts = read_facts(facts)?;
        let identity: SpiffeId = identity
            .parse()
            .map_err(|error: SpiffeIdError| Code::BadRequest.status(error.to_string()))?;
        let in_force = control.library.in_force();
        let matching = agent.match_with(&in_force, &facts)?;
        agent.choose(
            &matching,
            &identity,
            &facts,
            control.authority.trust_domain(),
        )?;
        let (node, token) = (Some(&agent.node), token.unwrap_or_default());
        let signed = control.sign_jwt(&identity, node, token, &agent.origin);
        control.telemetry.issuance(Asked::Jwt, &signed);
        signed.map(Response::new)
    }

    async fn follow(
        &self,
        request: Request<FollowRequest>,
    ) -> Result<Response<Self::FollowStream>, Status> {
        let agent = self.control.agent(request.extensions()).await?;
        let peer = callers::verified(request.extensions())?.clone();
        let known = request.into_inner().trust_version;
        let updates = follow::follow(&self.control, &self.followers, agent.node, peer, known)?;
        Ok(Response::new(updates))
    }
}

impl Control {
    async fn issue_for(
        &self,
        agent: Agent,
        request: IssueForRequest,
    ) -> Result<SvidResponse, Status> {
        let IssueForRequest { csr, facts } = request;
        let facts = read_facts(facts)?;
        let request = read_request(&csr)?;
        let in_force = self.library.in_force();
        let matching = agent.match_with(&in_force, &facts)?;
        let trust_domain = self.authority.trust_domain();
        let hit = agent.choose(&matching, &request.id, &facts, trust_domain)?;
        let (workload, attestor) = (hit.workload.name.clone(), hit.attestor.name());
        let (grant, attest) = self.grant(&in_force, &request)?;
        let evidence = Evidence::Agent {
            node: agent.node.clone(),
            agent: agent.serial,
            attestor,
            facts: kept(&facts, attest),
            source: agent.origin.text,
        };
        self.pace(&request.id, &evidence, &grant)?;
        let identity = request.id.clone();
        let now = self.clock.now();
        let attested = Attested::new(identity, request, grant, evidence).map_err(not_issued)?;
        let issued = self.authority.issue(attested, now).map_err(not_issued)?;
        let recorded = issued.record(&self.store).await.map_err(failed)?;
        tracing::info!(%workload, node = %agent.node, attestor, %facts, "workload attested by its node's agent");
        Ok(self.answer(recorded))
    }
}

/// The agent of a node.
struct Agent {
    node: NodeName,
    /// Of the certificate it asks with.
    serial: Serial,
    origin: Origin,
}

impl Agent {
    /// The workloads of this node that the facts prove; an error that names each selector that failed if there is none.
    fn match_with<'a>(&self, in_force: &'a InForce, facts: &Facts) -> Result<Matching<'a>, Status> {
        let node: &Node = in_force.documents.nodes.get(&self.node).ok_or_else(|| {
            Code::IdentityUnknown.status(format!("no document describes the node `{}`", self.node))
        })?;
        let matching = matching(&in_force.documents, node, facts);
        if matching.hits.is_empty() {
            let why = matching.why_none();
            tracing::warn!(node = %self.node, %facts, %why, "no workload is meant for this process");
            return Err(Code::NotAttestable.status(why));
        }
        Ok(matching)
    }

    /// The match that is of this identity.
    fn choose<'m, 'a>(
        &self,
        matching: &'m Matching<'a>,
        asked: &SpiffeId,
        facts: &Facts,
        trust_domain: &TrustDomain,
    ) -> Result<&'m Hit<'a>, Status> {
        let is_it = |hit: &&Hit<'_>| hit.workload.spiffe_id(trust_domain) == *asked;
        matching.hits.iter().find(is_it).ok_or_else(|| {
            // Whether there is such a workload elsewhere is not this node's to know.
            tracing::warn!(
                node = %self.node, %facts, %asked, source = self.origin.text,
                "an agent asked for an identity that these facts do not prove on its node"
            );
            Code::NotAttestable.status("these facts do not prove this identity on this node")
        })
    }
}

impl Control {
    async fn agent(&self, extensions: &Extensions) -> Result<Agent, Status> {
        let now = self.clock.now();
        let trust_domain = self.authority.trust_domain();
        let (node, serial, origin) =
            callers::agent(extensions, trust_domain, &self.store, now).await?;
        Ok(Agent {
            node,
            serial,
            origin,
        })
    }
}

fn read_facts(facts: Option<proto::Facts>) -> Result<Facts, Status> {
    facts
        .unwrap_or_default()
        .try_into()
        .map_err(|error: fender_api::convert::InvalidField| {
            Code::BadRequest.status(error.to_string())
        })
}
