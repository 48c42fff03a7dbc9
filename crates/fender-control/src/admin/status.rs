//! How everything is, page by page: ten thousand workloads do not fit into one message. Only what the administrator has a
//! role for.

use std::ops::Bound;
use std::sync::Arc;

use fender_api::code::Code;
use fender_api::proto::control::v1::{
    SidecarStatus, StatusRequest, StatusResponse, WorkloadStatus,
};
use fender_config::snapshot::Profile;
use fender_config::{Attestor, MinimumVersion, Role, Workload};
use fender_identity::{WorkloadName, WorkloadNameError};
use prost::Message as _;
use tonic::Status;

use crate::callers::{Administrator, failed};
use crate::control::Control;
use crate::peers::Unheard;
use crate::store::certificates;
use crate::time::seconds;

/// What one page may weigh. One workload alone may weigh more: it is not divided.
const PAGE: usize = 2 * 1024 * 1024;
/// Workloads on one page, at most.
const LIMIT: u32 = 1000;

impl Control {
    pub(super) async fn status(
        self: &Arc<Self>,
        request: StatusRequest,
        admin: &Administrator,
    ) -> Result<StatusResponse, Status> {
        let name = |text: &str| match text {
            "" => Ok(None),
            text => text
                .parse::<WorkloadName>()
                .map(Some)
                .map_err(|error: WorkloadNameError| Code::BadRequest.status(error.to_string())),
        };
        let (only, after) = (name(&request.workload)?, name(&request.after)?);
        let in_force = self.library.in_force();
        let asked = |workload: &WorkloadName| {
            admin.rights.hold(Role::Viewer, workload.namespace())
                && (request.namespace.is_empty() || request.namespace == workload.namespace())
                && only.as_ref().is_none_or(|only| only == workload)
        };
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let limit = match request.limit {
            0 => LIMIT,
            limit => limit.min(LIMIT),
        };
        let page: Vec<_> = in_force
            .documents
            .workloads
            .range((from, Bound::Unbounded))
            .filter(|(name, _)| asked(name))
            .take(
                usize::try_from(limit)
                    .unwrap_or(usize::MAX)
                    .saturating_add(1),
            )
            .map(|(_, workload)| workload)
            .collect();
        let whole = page.len() <= usize::try_from(limit).unwrap_or(usize::MAX);

        let minimum = in_force.mesh.minimum_version.as_ref();
        let trust_domain = self.authority.trust_domain();
        let shown = match whole {
            true => &page[..],
            false => page.split_last().map_or(&[][..], |(_, shown)| shown),
        };
        let names: std::collections::BTreeSet<_> =
            shown.iter().map(|workload| &workload.name).collect();
        let everywhere = self
            .connected_everywhere(
                &names,
                &std::collections::BTreeSet::new(),
                &mut Unheard::default(),
            )
            .await
            .map_err(failed)?;
        let (mut sidecars, replicas) = (everywhere.sidecars, everywhere.replicas);
        let ids: Vec<_> = shown
            .iter()
            .map(|workload| workload.spiffe_id(trust_domain).to_string())
            .collect();
        let mut tallies = certificates::tallies(&self.store, &ids)
            .await
            .map_err(failed)?;

        let mut workloads = Vec::new();
        let mut weight = 0;
        let mut next = match whole {
            true => String::new(),
            false => shown
                .last()
                .map(|last| last.name.to_string())
                .unwrap_or_default(),
        };
        for (workload, identity) in shown.iter().zip(ids) {
            let tally = tallies.remove(&identity);
            let status = WorkloadStatus {
                name: workload.name.to_string(),
                refused: self.registry.refused(&workload.name),
                sidecars: outdated(sidecars.remove(&workload.name).unwrap_or_default(), minimum),
                snapshot_version: self
                    .library
                    .snapshot(&workload.name)
                    .map_or(0, |snapshot| snapshot.version),
                attestors: attestors(workload),
                certificates_issued: tally.as_ref().map_or(0, |tally| tally.issued),
                last_not_after_unix: tally.map_or(0, |tally| tally.last_not_after),
                identity,
            };
            weight += status.encoded_len();
            if weight > PAGE && !workloads.is_empty() {
                next = workloads
                    .last()
                    .map(|last: &WorkloadStatus| last.name.clone())
                    .unwrap_or_default();
                break;
            }
            workloads.push(status);
        }
        let state = self.authority.state();
        let authorities = state
            .known
            .iter()
            .map(super::issue::authority_status)
            .collect();
        Ok(StatusResponse {
            trust_domain: trust_domain.to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            revision: in_force.revision,
            development: in_force.mesh.profile == Profile::Development,
            now_unix: seconds(self.clock.now()),
            authorities,
            workloads,
            unrecoverable_unix: seconds(state.horizon.at),
            unrecoverable_because: state.horizon.ends.as_str().to_owned(),
            replicas,
            next,
            minimum_version: minimum
                .map(|least| least.version.to_string())
                .unwrap_or_default(),
            minimum_version_after_unix: minimum.map_or(0, |least| seconds(least.after)),
        })
    }
}

fn attestors(workload: &Workload) -> Vec<String> {
    let mut names: Vec<_> = workload.attest.iter().map(Attestor::name).collect();
    names.dedup();
    names.into_iter().map(str::to_owned).collect()
}

/// The sidecars, each with whether it is older than it may be.
fn outdated(
    mut sidecars: Vec<SidecarStatus>,
    minimum: Option<&MinimumVersion>,
) -> Vec<SidecarStatus> {
    if let Some(minimum) = minimum {
        for sidecar in &mut sidecars {
            sidecar.outdated = minimum.exceeds(&sidecar.version);
        }
    }
    sidecars
}
