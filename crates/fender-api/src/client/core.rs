//! What the workers share: who we are, whom we trust, and the channel that is open just now.

use std::sync::Arc;
use std::time::Duration;

use fender_config::snapshot::Snapshot;
use fender_identity::{Svid, Trust};
use fender_runtime::clock::UnixTime;
use fender_runtime::drain::Drain;
use fender_runtime::id::OpaqueId;
use tokio::sync::{Mutex, Notify, watch};
use tonic::transport::Channel;

use super::OpenError;
use super::call::{CALL, CallError, Caller, Identity, error_chain};
use super::evidence::{Evidence, Expected};
use super::state::{StateDir, StateError};
use crate::code::Code;
use fender_runtime::deadline::Deadline;

#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) caller: Caller,
    pub(crate) evidence: Option<Evidence>,
    pub(crate) state: Option<StateDir>,
    pub(crate) drain: Drain,
    /// Tells this process from others of the same workload.
    pub(crate) instance: OpaqueId,
    /// Of the state directory: the same for the processes that have it one after the other.
    pub(crate) place: Option<OpaqueId>,
    /// The control plane has taken what was reported before the end.
    pub(crate) taken: watch::Sender<bool>,
    pub(crate) svid: watch::Sender<Arc<Svid>>,
    pub(crate) trust: watch::Sender<Trust>,
    /// Who changes what is believed keeps it before the next one does.
    believing: Mutex<()>,
    pub(crate) renewal_grace: watch::Sender<Duration>,
    /// The certificate is good for nothing any more, and there is a token to attest anew with.
    pub(crate) spoilt: Notify,
    /// Set while the stream is up.
    pub(crate) channel: watch::Sender<Option<Channel>>,
}

impl Core {
    pub(crate) fn new(
        caller: Caller,
        identity: Identity,
        evidence: Option<Evidence>,
        state: Option<StateDir>,
        drain: Drain,
        place: Option<OpaqueId>,
    ) -> Arc<Self> {
        Arc::new(Self {
            caller,
            evidence,
            state,
            drain,
            instance: OpaqueId::random(),
            place,
            taken: watch::Sender::new(false),
            svid: watch::Sender::new(identity.svid),
            trust: watch::Sender::new(identity.trust),
            believing: Mutex::default(),
            renewal_grace: watch::Sender::new(identity.renewal_grace),
            spoilt: Notify::new(),
            channel: watch::Sender::new(None),
        })
    }

    /// Gets the next certificate and publishes it. The old one stays if anything fails.
    pub(crate) async fn renew(&self, deadline: Deadline) -> Result<(), CallError> {
        let (current, known) = (self.svid.borrow().clone(), self.trust.borrow().clone());
        match self.caller.renew(&current, &known, deadline).await {
            Ok(renewed) => {
                self.become_known_as(renewed).await;
                Ok(())
            }
            Err(refused) if refused.code().is_passing() => Err(refused),
            Err(refused) => self.attest_anew(refused).await,
        }
    }

    /// A certificate that was revoked has no half of its life to wait for, if somebody made a token to get another by.
    /// Evidence that lasts was there before: whoever revokes has the time to take its entry out of the documents.
    pub(crate) fn was_refused(&self, code: Code) {
        let given = |evidence: &Evidence| !evidence.lasts() && evidence.at_hand();
        if code == Code::Revoked && self.evidence.as_ref().is_some_and(given) {
            self.spoilt.notify_one();
        }
    }

    /// The identity is refused, not merely out of reach: whoever can still prove it gets it back.
    async fn attest_anew(&self, refused: CallError) -> Result<(), CallError> {
        let Some(evidence) = self.evidence.as_ref().filter(|it| it.at_hand()) else {
            return Err(refused);
        };
        let error = error_chain(&refused);
        tracing::warn!(code = %refused.code(), %error, "the certificate is not renewed, attesting anew");
        let attested = self.prove(evidence).await;
        if let Err(error) = attested {
            let error = error_chain(&error);
            tracing::warn!(%error, "attesting anew brought nothing");
            return Err(refused);
        }
        Ok(())
    }

    async fn prove(&self, evidence: &Evidence) -> Result<(), OpenError> {
        let expected = Expected::Exactly(self.svid.borrow().id().clone());
        let attempt = evidence.prepare(&expected, self.state.as_ref())?;
        let limit = Deadline::after(CALL);
        let identity = attempt.make(&self.caller, limit).await?;
        self.become_known_as(identity).await;
        attempt.done(self.state.as_ref())
    }

    async fn become_known_as(&self, mut identity: Identity) {
        let _turn = self.believing.lock().await;
        identity.trust = Trust {
            bundles: identity.trust.bundles,
            ..self.trust.borrow().clone()
        };
        if let Some(state) = &self.state
            && let Err(error) = save_identity(state.clone(), &identity).await
        {
            // The new certificate is good all the same; only a restart would miss it.
            tracing::error!(%error, "the new certificate could not be kept");
        }
        self.renewal_grace.send_replace(identity.renewal_grace);
        self.trust.send_replace(identity.trust);
        self.svid.send_replace(identity.svid);
    }

    /// Writes down what is in use.
    pub(crate) async fn keep_identity(&self) {
        let _turn = self.believing.lock().await;
        let identity = Identity {
            svid: self.svid.borrow().clone(),
            trust: self.trust.borrow().clone(),
            renewal_grace: *self.renewal_grace.borrow(),
        };
        if let Some(state) = &self.state
            && let Err(error) = save_identity(state.clone(), &identity).await
        {
            tracing::error!(%error, "the certificate in use could not be kept");
        }
    }

    /// A certificate of another key, published to nobody.
    pub(crate) async fn further(&self, deadline: Deadline) -> Result<Svid, CallError> {
        let (current, known) = (self.svid.borrow().clone(), self.trust.borrow().clone());
        let issued = self.caller.renew(&current, &known, deadline).await?;
        Ok(Arc::unwrap_or_clone(issued.svid))
    }

    /// Takes over and keeps what was learned of whom to believe.
    pub(crate) async fn believe(&self, trust: Trust) {
        let _turn = self.believing.lock().await;
        self.trust.send_replace(trust.clone());
        let Some(state) = self.state.clone() else {
            return;
        };
        let grace = *self.renewal_grace.borrow();
        if let Err(error) = on_disk(move || state.save_trust(&trust, grace)).await {
            tracing::error!(%error, "whom to believe could not be kept");
        }
    }

    /// Keeps when the Snapshot was last known to be the newest.
    pub(crate) async fn note_fresh(&self, moment: UnixTime) {
        let Some(state) = self.state.clone() else {
            return;
        };
        if let Err(error) = on_disk(move || state.save_fresh(moment)).await {
            tracing::error!(%error, "how fresh the snapshot is could not be kept");
        }
    }

    /// Keeps a Snapshot that was published.
    pub(crate) async fn keep(&self, snapshot: Arc<Snapshot>) {
        let Some(state) = self.state.clone() else {
            return;
        };
        if let Err(error) = on_disk(move || state.save_snapshot(&snapshot)).await {
            tracing::error!(%error, "the snapshot could not be kept");
        }
    }
}

/// The certificate comes last: a state directory has an identity once it has one.
pub(crate) async fn save_identity(state: StateDir, identity: &Identity) -> Result<(), StateError> {
    let (svid, trust) = (identity.svid.clone(), identity.trust.clone());
    let grace = identity.renewal_grace;
    on_disk(move || {
        state.save_trust(&trust, grace)?;
        state.save_svid(&svid)
    })
    .await
}

/// Syncing a file may take its time, and not the time of whoever shares this thread.
async fn on_disk(
    write: impl FnOnce() -> Result<(), StateError> + Send + 'static,
) -> Result<(), StateError> {
    match tokio::task::spawn_blocking(write).await {
        Ok(written) => written,
        Err(join) => match join.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime is shutting down: nobody is left to tell.
            Err(_) => Ok(()),
        },
    }
}
