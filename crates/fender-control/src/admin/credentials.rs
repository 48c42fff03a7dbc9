//! Who holds which generation of which credential, and what is known of its use: of the workloads that the administrator has
//! a role for, as their sidecars say it: those that are connected, and those that said what they leave and have ended.
//!
//! It tells facts. Whether an old one is still in use is for whoever shows them to conclude, in one place.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use fender_api::code::Code;
use fender_api::proto::control::v1::credentials_answer::Kind;
use fender_api::proto::control::v1::{
    CredentialHolder, CredentialHolders, CredentialRoute, CredentialsAnswer, CredentialsHead,
    CredentialsRequest, ReplicaStatus, SidecarStatus,
};
use fender_config::snapshot::Delivery;
use fender_config::{Credential, ObjectName, Role};
use fender_identity::WorkloadName;
use tonic::Status;

use crate::callers::{Administrator, failed};
use crate::control::Control;
use crate::peers::{MAX_WORKLOADS, Unheard, more_than_fits};
use crate::registry::same;
use crate::time::seconds;

/// Holders in one message.
const TOLD_AT_ONCE: usize = 64;
/// Workloads that replicas are asked about at once: much is told of each, and an answer has a bound.
const ASKED_AT_ONCE: usize = 100;
const _: () = assert!(ASKED_AT_ONCE <= MAX_WORKLOADS);

impl Control {
    pub(super) async fn held_credentials(
        self: &Arc<Self>,
        request: CredentialsRequest,
        admin: &Administrator,
    ) -> Result<Vec<CredentialsAnswer>, Status> {
        let only = match request.name.as_str() {
            "" => None,
            name => Some(name.parse::<ObjectName>().map_err(|error| {
                Code::BadRequest.status(format!("`{name}` is no name of a credential: {error}"))
            })?),
        };
        let in_force = self.library.in_force();
        let mut listed: BTreeMap<&ObjectName, Vec<&WorkloadName>> = BTreeMap::new();
        for (name, workload) in in_force.documents.workloads.range(..) {
            let namespace = name.namespace();
            let asked = request.namespace.is_empty() || request.namespace == namespace;
            if !asked || !admin.rights.hold(Role::Viewer, namespace) {
                continue;
            }
            for credential in &workload.credentials {
                if only.as_ref().is_none_or(|only| only == credential) {
                    listed.entry(credential).or_default().push(name);
                }
            }
        }
        let workloads: BTreeSet<_> = listed.values().flatten().copied().collect();
        let workloads: Vec<_> = workloads.into_iter().collect();
        let mut sidecars: BTreeMap<WorkloadName, Vec<SidecarStatus>> = BTreeMap::new();
        let mut replicas: Vec<ReplicaStatus> = Vec::new();
        let mut unheard = Unheard::default();
        // Also of none: who serves this registry is told all the same.
        for some in workloads
            .chunks(ASKED_AT_ONCE)
            .chain(workloads.is_empty().then_some(&[][..]))
        {
            let some: BTreeSet<_> = some.iter().copied().collect();
            let theirs = listed
                .iter()
                .filter(|(_, by)| by.iter().any(|it| some.contains(it)));
            let credentials = theirs.map(|(name, _)| name.to_string()).collect();
            let everywhere = self.connected_everywhere(&some, &credentials, &mut unheard);
            let everywhere = everywhere.await.map_err(failed)?;
            sidecars.extend(everywhere.sidecars);
            // Who was silent once has left somebody out.
            for replica in everywhere.replicas {
                match replicas.iter_mut().find(|it| it.name == replica.name) {
                    Some(known) => add(known, replica),
                    None => replicas.push(replica),
                }
            }
        }
        let head = CredentialsHead {
            now_unix: seconds(self.clock.now()),
            revision: in_force.revision,
            replicas,
        };
        let mut answers = vec![answer(Kind::Head(head))];
        for (name, workloads) in listed {
            let Some(credential) = in_force.documents.credentials.get(name) else {
                continue;
            };
            for workload in workloads {
                let connected = sidecars.get(workload).map_or(&[][..], Vec::as_slice);
                let holders = holders(name, connected);
                let route = route(credential);
                let told = |holders: &[CredentialHolder]| {
                    answer(Kind::Holders(CredentialHolders {
                        name: name.to_string(),
                        workload: workload.to_string(),
                        route: route.into(),
                        holders: holders.to_vec(),
                    }))
                };
                match holders.is_empty() {
                    true => answers.push(told(&[])),
                    false => answers.extend(holders.chunks(TOLD_AT_ONCE).map(told)),
                }
            }
        }
        Ok(answers)
    }
}

/// What a replica said of some workloads, to what it said of others. That it did not answer is worse than that it left some out.
fn add(known: &mut ReplicaStatus, replica: ReplicaStatus) {
    let is_silent = |it: &ReplicaStatus| it.untold == 0 && !it.problem.is_empty();
    if is_silent(known) {
        return;
    }
    if is_silent(&replica) || known.untold == 0 {
        *known = replica;
    } else if replica.untold > 0 {
        more_than_fits(known, replica.untold);
    }
}

fn answer(kind: Kind) -> CredentialsAnswer {
    CredentialsAnswer { kind: Some(kind) }
}

/// Those who are connected, whatever they have said; and of those who have ended, who left it where nobody has held it since.
fn holders(name: &ObjectName, sidecars: &[SidecarStatus]) -> Vec<CredentialHolder> {
    let name = name.to_string();
    let reported = |sidecar: &SidecarStatus| {
        let mut reported = sidecar.credentials.iter();
        reported.find(|used| used.name == name).cloned()
    };
    let holds =
        |sidecar: &SidecarStatus| reported(sidecar).is_some_and(|used| !used.generation.is_empty());
    // The replica that one was connected to does not know who came to another.
    let replaced = |ended: &SidecarStatus| {
        let later = |it: &SidecarStatus| it.ended_unix == 0 || it.ended_unix > ended.ended_unix;
        let mut others = sidecars.iter();
        others.any(|it| same(it, ended) && later(it) && holds(it))
    };
    let shown = sidecars
        .iter()
        .filter(|it| it.ended_unix == 0 || (holds(it) && !replaced(it)));
    let holders = shown.map(|sidecar| CredentialHolder {
        instance: sidecar.instance.clone(),
        address: sidecar.address.clone(),
        replica: sidecar.replica.clone(),
        reported: reported(sidecar),
        ended_unix: sidecar.ended_unix,
    });
    holders.collect()
}

fn route(credential: &Credential) -> CredentialRoute {
    let environment = |delivery: &Delivery| matches!(delivery, Delivery::Environment { .. });
    match credential.asked_by_control() {
        _ if !credential.deliver.is_empty() && credential.deliver.iter().all(environment) => {
            CredentialRoute::Environment
        }
        Some(_) => CredentialRoute::Control,
        None => CredentialRoute::Direct,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(problem: &str) -> ReplicaStatus {
        ReplicaStatus {
            problem: problem.to_owned(),
            ..ReplicaStatus::default()
        }
    }

    fn cut(untold: u64) -> ReplicaStatus {
        let mut replica = said("");
        more_than_fits(&mut replica, untold);
        replica
    }

    fn sum(answers: impl IntoIterator<Item = ReplicaStatus>) -> (u64, String) {
        let mut known = said("");
        for answer in answers {
            add(&mut known, answer);
        }
        (known.untold, known.problem)
    }

    #[test]
    fn what_replicas_left_out_is_counted_together_and_silence_is_not_forgotten() {
        let left_out = "5 of them are more than fits into its answer";
        assert_eq!(sum([said(""), said("")]), (0, String::new()));
        let all = [cut(2), said(""), cut(3)];
        assert_eq!(sum(all), (5, left_out.to_owned()));
        let silent = (0, "no answer".to_owned());
        assert_eq!(sum([cut(2), said("no answer"), cut(3)]), silent);
        assert_eq!(sum([said("no answer"), cut(2), said("")]), silent);
    }
}
