//! What agents ask: who a process of their host may be, and a certificate for it.
//!
//! An agent speaks for its own node and no other: which node that is comes from its certificate, never from what it
//! sends. So a compromised host yields the identities that documents place on that host, and nothing else.

mod matching;

use std::sync::Arc;

use fender_api::code::Code;
use fender_api::facts::Facts;
use fender_api::proto::control::v1 as proto;
use fender_api::proto::control::v1::nodes_server::Nodes;
use fender_api::proto::control::v1::{Entitlement, IssueForRequest, SvidResponse};
use fender_config::Node;
use fender_identity::NodeName;
use tonic::{Extensions, Request, Response, Status};

use crate::attest::read_request;
use crate::ca::issue::{Attested, Evidence};
use crate::callers::{self, Origin, failed};
use crate::control::{Control, not_issued};
use crate::documents::InForce;
use matching::{Matching, matching};

pub(crate) struct NodesService(pub(crate) Arc<Control>);

#[tonic::async_trait]
impl Nodes for NodesService {
    async fn entitle(
        &self,
        request: Request<proto::Facts>,
    ) -> Result<Response<Entitlement>, Status> {
        let control = &*self.0;
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
        let control = &*self.0;
        let agent = control.agent(request.extensions()).await?;
        let IssueForRequest { csr, facts } = request.into_inner();
        let facts = read_facts(facts)?;
        let request = read_request(&csr)?;
        let in_force = control.library.in_force();
        let matching = agent.match_with(&in_force, &facts)?;
        let trust_domain = control.authority.trust_domain();
        let hit = matching
            .hits
            .iter()
            .find(|hit| hit.workload.spiffe_id(trust_domain) == request.id)
            .ok_or_else(|| {
                // Whether there is such a workload elsewhere is not this node's to know.
                tracing::warn!(
                    node = %agent.node, %facts, asked = %request.id, source = agent.origin.text,
                    "an agent asked for an identity that these facts do not prove on its node"
                );
                Code::NotAttestable.status("these facts do not prove this identity on this node")
            })?;
        let (workload, attestor) = (hit.workload.name.clone(), hit.attestor.name());
        let (grant, _) = control.grant(&in_force, &request)?;
        if !control.registry.may_renew(&request.id, grant.lifetime) {
            return Err(
                Code::Busy.status("this workload attests more often than all its sidecars need")
            );
        }
        let evidence = Evidence::Agent {
            node: agent.node.clone(),
            attestor,
            facts: facts.clone(),
            source: agent.origin.text,
        };
        let identity = request.id.clone();
        let now = control.clock.now();
        let attested = Attested::new(identity, request, grant, evidence).map_err(not_issued)?;
        let issued = control.authority.issue(attested, now).map_err(not_issued)?;
        let recorded = issued.record(&control.store).await.map_err(failed)?;
        tracing::info!(%workload, node = %agent.node, attestor, %facts, "workload attested by its node's agent");
        Ok(Response::new(control.answer(recorded)))
    }
}

/// The agent of a node.
struct Agent {
    node: NodeName,
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
}

impl Control {
    async fn agent(&self, extensions: &Extensions) -> Result<Agent, Status> {
        let now = self.clock.now();
        let trust_domain = self.authority.trust_domain();
        let (node, origin) = callers::agent(extensions, trust_domain, &self.store, now).await?;
        Ok(Agent { node, origin })
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
