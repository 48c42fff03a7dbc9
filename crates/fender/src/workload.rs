//! The workload's own identity for stores that it logs in to as itself: the certificate that the sidecar serves with, and tokens
//! that the control plane signs for it. A key goes into a TLS handshake and nowhere else.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use fender_api::client::Session;
use fender_identity::Svid;
use fender_providers::{FetchError, Reading, Workload};
use fender_runtime::deadline::Deadline;
use tokio::sync::watch;

use crate::source::Feed;

/// What the control plane may take to sign a token.
const SIGN: Duration = Duration::from_secs(10);

pub(crate) struct OwnIdentity {
    svid: watch::Receiver<Arc<Svid>>,
    /// None: nobody signs tokens for it.
    session: Option<Arc<Session>>,
}

impl OwnIdentity {
    /// None of a sidecar that has no identity.
    pub(crate) fn of(feed: &Feed) -> Option<Arc<Self>> {
        let svid = feed.svid.clone()?;
        Some(Arc::new(Self {
            svid,
            session: feed.session.clone(),
        }))
    }
}

impl Workload for OwnIdentity {
    fn svid(&self) -> watch::Receiver<Arc<Svid>> {
        self.svid.clone()
    }

    fn token<'a>(&'a self, audience: &'a str) -> Reading<'a> {
        Box::pin(async move {
            let Some(session) = &self.session else {
                let why =
                    "a JWT-SVID for a login is signed by the control plane, and there is none";
                return Err(FetchError::Denied(why.to_owned()));
            };
            let audience = [audience.to_owned()];
            let signed = session
                .sign_jwt(&audience, None, Deadline::after(SIGN))
                .await;
            let signed = signed
                .map_err(|error| FetchError::Outage(format!("a JWT-SVID for a login: {error}")))?;
            Ok(signed.token)
        })
    }
}

impl fmt::Debug for OwnIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OwnIdentity").finish_non_exhaustive()
    }
}
