//! A sidecar that runs from a file: who it is, by files or by a SPIFFE Workload API, and what it must do.

use std::path::Path;
use std::sync::Arc;

use fender_config::Source;
use fender_config::snapshot::Snapshot;
use fender_config::standalone::{Identity, Standalone};
use fender_credentials::cache::Owner;
use fender_identity::verify::{Refusal, Role, verify};
use fender_identity::{Bundles, PeerSvid, Svid};
use fender_runtime::clock::{SharedClock, UnixTime};
use fender_runtime::deadline::Deadline;
use fender_runtime::drain::Drain;
use tokio::sync::watch;

use super::{Admit, Feed, documents, files, workload_api};
use crate::exit::{Exit, Failure};
use crate::load;

/// What follows the file, and the files of the identity or the Workload API.
pub(super) struct Following {
    pub(super) svid: Option<watch::Receiver<Arc<Svid>>>,
    pub(super) snapshot: watch::Receiver<Arc<Snapshot>>,
}

/// Every peer that trusts the same bundle must be able to accept it, as a server or as a client.
pub(super) fn vouched_for(svid: &Svid, bundles: &Bundles, now: UnixTime) -> Result<(), Refusal> {
    let anybody = |_: &PeerSvid| Ok(());
    let by = |role| verify(svid.chain(), role, bundles, now, &anybody).map(drop);
    by(Role::Client).or_else(|_| by(Role::Server))
}

/// Who and what the file says, as it is now and as it changes.
pub(super) async fn open(
    file: &Path,
    admit: Admit,
    clock: &SharedClock,
    drain: &Drain,
    deadline: Deadline,
) -> Result<Feed, Failure> {
    let (documents, reloads) = documents::follow(file, admit, drain)?;
    let (identity, name) = {
        let documents = documents.borrow();
        (documents.identity.clone(), documents.name().clone())
    };
    let workload_api = match &identity {
        Some(Identity::WorkloadApi(api)) => Some(workload_api::endpoint(api)),
        Some(Identity::Files(_)) | None => None,
    };
    let following = match identity {
        Some(Identity::Files(files)) => files::follow(documents, files, clock, drain)
            .await
            .map_err(|error| Failure::new(Exit::Usage, error))?,
        Some(Identity::WorkloadApi(api)) => {
            workload_api::follow(documents, api, clock, drain, deadline).await?
        }
        None => documents::nameless(documents, drain),
    };
    let svid = following.svid;
    let owner = match &svid {
        Some(svid) => Owner::Workload(svid.borrow().id().clone()),
        None => Owner::Sidecar(name),
    };
    Ok(Feed {
        svid,
        snapshot: following.snapshot,
        owner,
        session: None,
        workload_api,
        state: None,
        reloads: Some(reloads),
    })
}

/// The documents of a sidecar without a control plane.
pub(crate) fn read(file: &Path) -> Result<Standalone, Failure> {
    let source = load::source(file).map_err(|error| Failure::new(Exit::Usage, error))?;
    parse(source).map_err(Failure::usage)
}

/// The error says what is wrong, where, and what to write instead.
pub(super) fn parse(source: Source) -> Result<Standalone, String> {
    fender_config::standalone::parse(&[source])
        .map_err(|problems| format!("the configuration is refused\n{}", problems.render()))
}
