//! The worker that listens to the control plane for an agent: whom to believe and whom not any more, and when what is
//! placed on its node may have changed.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fender_identity::Svid;
use fender_runtime::backoff::Backoff;
use fender_runtime::deadline::Deadline;
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::Streaming;

use super::Line;
use crate::client::call::{CALL, CallError, error_chain};
use crate::client::update::learn;
use crate::proto::control::v1 as proto;
use crate::proto::control::v1::node_update::Kind;

const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);
/// A stream that lived this long was a good one: the next failure is a new one.
const SETTLED: Duration = Duration::from_secs(10);

pub(super) struct Following {
    pub(super) line: Arc<Line>,
    /// Grows whenever what is placed on the node may have changed.
    pub(super) changes: watch::Sender<u64>,
}

impl Following {
    /// Until the drain stops.
    pub(super) async fn run(self) {
        let stop = self.line.core.drain.clone();
        tokio::select! {
            biased;
            () = stop.stopping() => {}
            () = self.listen() => {}
        }
    }

    async fn listen(&self) {
        let mut renewals = self.line.core.svid.subscribe();
        let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
        // What was received in this life; what was stored may be from another life of the control plane.
        let mut version = 0;
        let mut complained = None;
        loop {
            renewals.mark_unchanged();
            let began = Instant::now();
            match self
                .carry(&mut version, &mut renewals, &mut complained)
                .await
            {
                // With the next certificate at once.
                Ok(()) => continue,
                Err(error) => {
                    complain(&error, &mut complained);
                    self.line.core.was_refused(error.code());
                }
            }
            if began.elapsed() >= SETTLED {
                backoff.reset();
            }
            tokio::select! {
                _ = renewals.changed() => {}
                () = tokio::time::sleep(backoff.next()) => {}
            }
        }
    }

    /// One stream, until there is a new certificate to open it with or it breaks.
    async fn carry(
        &self,
        version: &mut u64,
        renewals: &mut watch::Receiver<Arc<Svid>>,
        complained: &mut Option<Complaint>,
    ) -> Result<(), CallError> {
        let mut stream = self.open(*version).await?;
        if complained.take().is_some() {
            tracing::info!("control plane found again");
        }
        loop {
            let update = tokio::select! {
                biased;
                _ = renewals.changed() => return Ok(()),
                update = stream.message() => update?,
            };
            match update
                .ok_or(CallError::Broken("the stream has ended".to_owned()))?
                .kind
            {
                Some(Kind::Trust(bytes)) => self.believe(&bytes, version).await,
                // Whatever the revision: a stream that begins anew says it anew, because something may have been missed.
                Some(Kind::PlacedAt(revision)) => {
                    tracing::debug!(revision, "what is placed on this node may have changed");
                    self.changes.send_modify(|count| *count += 1);
                }
                // What a newer control plane may say besides is nothing this version must know.
                None => {}
            }
        }
    }

    async fn open(&self, trust_version: u64) -> Result<Streaming<proto::NodeUpdate>, CallError> {
        let deadline = Deadline::after(CALL);
        let ask = |mut nodes: super::Nodes| async move {
            nodes.follow(proto::FollowRequest { trust_version }).await
        };
        self.line.ask(deadline, ask).await
    }

    async fn believe(&self, bytes: &Bytes, version: &mut u64) {
        let core = &self.line.core;
        let (own, known) = (core.svid.borrow().id().clone(), core.trust.borrow().clone());
        let (trust, taken) = learn(bytes, &own, &known);
        let learned = trust.version;
        core.believe(trust).await;
        match taken {
            Ok(()) => {
                *version = learned;
                tracing::info!(version = learned, "trust accepted");
            }
            Err(refused) => {
                tracing::error!(
                    version = refused.version,
                    reason = refused.reason,
                    "trust refused, but for those it denies"
                );
            }
        }
    }
}

/// What was said last of a control plane that tells nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Complaint {
    Lost,
    Refused,
}

/// Once of each kind: that it is away passes, that it refuses this agent is for a person.
fn complain(error: &CallError, before: &mut Option<Complaint>) {
    let code = error.code();
    let now = match code.is_passing() {
        true => Complaint::Lost,
        false => Complaint::Refused,
    };
    let known = before.replace(now) == Some(now);
    let error = error_chain(error);
    match now {
        _ if known => tracing::debug!(%code, %error, "the control plane still tells nothing"),
        Complaint::Lost => {
            tracing::warn!(%code, %error, "control plane lost, going on with what is known");
        }
        Complaint::Refused => tracing::error!(
            %code,
            %error,
            "the control plane refuses this agent: nobody here is given anything new until it is let in again"
        ),
    }
}
