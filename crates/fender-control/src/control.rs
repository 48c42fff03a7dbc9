//! What every service of the control plane shares.

use std::sync::Arc;

use fender_api::code::Code;
use fender_api::convert::IssuedSvid;
use fender_api::proto::control::v1::SvidResponse;
use fender_config::MinimumVersion;
use fender_identity::SpiffeId;
use fender_runtime::clock::SharedClock;
use fender_runtime::drain::Drain;
use tokio::sync::{mpsc, watch};
use tonic::Status;

use crate::ca::Authority;
use crate::ca::issue::{IssueError, Recorded};
use crate::clusters::Clusters;
use crate::credentials::{self, Sources};
use crate::datadir::DataDir;
use crate::decisions::Decisions;
use crate::documents::Library;
use crate::existing::IssuingAuthorities;
use crate::limit::{Failures, Neighbourhood};
use crate::listings::Listings;
use crate::own::Own;
use crate::pace::Pace;
use crate::registry::Registry;
use crate::store::{Store, audit};
use crate::telemetry::Telemetry;
use crate::trust::Announcements;

pub(crate) struct Control {
    pub(crate) clock: SharedClock,
    pub(crate) drain: Drain,
    pub(crate) store: Store,
    pub(crate) authority: Arc<Authority>,
    pub(crate) library: Library,
    pub(crate) trust: Announcements,
    pub(crate) own: Own,
    pub(crate) registry: Registry,
    pub(crate) pace: Pace,
    pub(crate) sources: Arc<Sources>,
    pub(crate) clusters: Clusters,
    pub(crate) authorities: IssuingAuthorities,
    pub(crate) decisions: Decisions,
    pub(crate) telemetry: Telemetry,
    /// As the document in force has it; streams follow it.
    pub(crate) minimum_version: watch::Sender<Option<MinimumVersion>>,
    /// Failed attestations, by where they come from.
    pub(crate) strangers: Failures<Neighbourhood>,
    /// Lists that administrators are reading.
    pub(crate) listings: Listings,
    /// Refused administrative calls, by identity.
    pub(crate) intruders: Failures<SpiffeId>,
    /// Refused administrative calls on their way to the audit log.
    pub(crate) refused: mpsc::Sender<audit::Entry>,
    /// Holds the data directory for as long as anything of this lives.
    pub(crate) _data: DataDir,
}

impl Control {
    /// Forgets what ended processes left, where it is time or the documents in force say otherwise. Judged without anybody waiting
    /// for it.
    pub(crate) fn forget_ended(&self) {
        let judged = self.registry.ended_to_judge();
        let listed = judged.left.iter().map(|(workload, left)| {
            let snapshot = self.library.snapshot(workload);
            let all = snapshot.iter().flat_map(|snapshot| &snapshot.credentials);
            let named = all.map(|spec| (spec.name.to_string(), &spec.name));
            let listed = named.filter(|(text, _)| left.contains(text));
            let listed = listed.map(|(text, name)| {
                let origin = credentials::authorized(&self.library, workload, name);
                let asked = origin.and_then(|origin| self.sources.watched(name, &origin));
                (text, asked)
            });
            (workload.clone(), listed.collect())
        });
        self.registry.ended_judged(&judged, &listed.collect());
    }

    /// How old sidecars may be, as the documents have it. Those who stay connected hear of a change.
    pub(crate) fn put_minimum_version_in_force(&self) {
        self.minimum_version.send_if_modified(|known| {
            // Asked for here, so that of two who do this at once the later one has the newer document.
            let in_force = self.library.in_force();
            let changed = *known != in_force.mesh.minimum_version;
            if changed {
                known.clone_from(&in_force.mesh.minimum_version);
            }
            changed
        });
    }

    /// Others whose word counts, as the documents have them.
    pub(crate) fn put_vouching_in_force(&self) {
        // Each asks in its own turn, so that nobody who began under an older document puts that in force again.
        self.clusters.put_in_force(|| self.library.in_force());
        self.authorities.put_in_force(|| self.library.in_force());
    }

    /// The answer to whoever gets a certificate.
    pub(crate) fn answer(&self, recorded: Recorded) -> SvidResponse {
        let in_force = self.library.in_force();
        SvidResponse::from(&IssuedSvid {
            chain: recorded.into_chain(),
            bundles: (*self.authority.state().bundles).clone(),
            renewal_grace: in_force.mesh.lifetimes.renewal_grace,
        })
    }
}

/// A pipeline that stopped. What it says of the request is the caller's to know, the rest is not.
pub(crate) fn not_issued(error: IssueError) -> Status {
    match error {
        IssueError::OtherIdentity => {
            Code::CsrInvalid.status("the certificate request is for another identity")
        }
        IssueError::Reserved | IssueError::ForeignTrustDomain => {
            Code::IdentityReserved.status("this identity is not issued to anybody")
        }
        IssueError::Lifetime => {
            Code::BadRequest.status("the lifetime is zero or longer than allowed")
        }
        IssueError::JustRevoked => {
            Code::Unavailable.status("this identity was revoked just now: ask again in a second")
        }
        IssueError::IssuerExpired
        | IssueError::DnsNames
        | IssueError::Unverifiable(_)
        | IssueError::NotAsMeant
        | IssueError::Ca(_) => {
            tracing::error!(%error, "a certificate was not issued");
            Code::Internal
                .status("the control plane could not issue a certificate; its log says why")
        }
    }
}
