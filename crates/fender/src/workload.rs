//! The workload's own identity for stores that it logs in to as itself: the certificate that the sidecar serves with, and tokens
//! that the control plane, or the Workload API that it has its identity from, signs for it. A key goes into a TLS handshake and nowhere else.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use fender_api::client::Session;
#[cfg(feature = "standalone")]
use fender_api::workload::{self, Endpoint};
use fender_identity::Svid;
use fender_providers::{FetchError, Reading, Workload};
use fender_runtime::deadline::Deadline;
use tokio::sync::watch;

use crate::source::Feed;

/// What signing a token may take.
const SIGN: Duration = Duration::from_secs(10);

pub(crate) struct OwnIdentity {
    svid: watch::Receiver<Arc<Svid>>,
    signer: Signer,
}

/// Who signs tokens for it.
enum Signer {
    Control(Arc<Session>),
    #[cfg(feature = "standalone")]
    WorkloadApi(Endpoint),
    Nobody,
}

impl OwnIdentity {
    /// None of a sidecar that has no identity.
    pub(crate) fn of(feed: &Feed) -> Option<Arc<Self>> {
        let svid = feed.svid.clone()?;
        let signer = match &feed.session {
            Some(session) => Signer::Control(session.clone()),
            None => without_control(feed),
        };
        Some(Arc::new(Self { svid, signer }))
    }
}

#[cfg(feature = "standalone")]
fn without_control(feed: &Feed) -> Signer {
    match &feed.workload_api {
        Some(endpoint) => Signer::WorkloadApi(endpoint.clone()),
        None => Signer::Nobody,
    }
}

#[cfg(not(feature = "standalone"))]
fn without_control(_: &Feed) -> Signer {
    Signer::Nobody
}

impl Workload for OwnIdentity {
    fn svid(&self) -> watch::Receiver<Arc<Svid>> {
        self.svid.clone()
    }

    fn token<'a>(&'a self, audience: &'a str) -> Reading<'a> {
        Box::pin(async move {
            let limit = Deadline::after(SIGN);
            let outage = |error: &dyn fmt::Display| {
                FetchError::Outage(format!("a JWT-SVID for a login: {error}"))
            };
            match &self.signer {
                Signer::Control(session) => {
                    let signed = session.sign_jwt(&[audience.to_owned()], None, limit).await;
                    signed
                        .map(|signed| signed.token)
                        .map_err(|error| outage(&error))
                }
                #[cfg(feature = "standalone")]
                // An agent that has just started knows nobody yet: no refusal of it takes anything away.
                Signer::WorkloadApi(endpoint) => {
                    let id = self.svid.borrow().id().clone();
                    let signed = workload::jwt_svid(endpoint, audience, &id);
                    match limit.bound(signed).await {
                        Ok(signed) => signed.map_err(|error| outage(&error)),
                        Err(elapsed) => Err(outage(&elapsed)),
                    }
                }
                Signer::Nobody => {
                    let why = "a JWT-SVID for a login is signed by the control plane or the Workload API, and there is none";
                    Err(FetchError::Denied(why.to_owned()))
                }
            }
        })
    }
}

impl fmt::Debug for OwnIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OwnIdentity").finish_non_exhaustive()
    }
}
