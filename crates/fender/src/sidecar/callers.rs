//! The local processes that a sidecar gives its workload's identity to: its own user's, and those of the users named on
//! the command line.
//!
//! Each process receives a key of its own, made here when it first asks, with a certificate of its own from the control
//! plane; the proxy's key is never handed out.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use fender_agent::{
    Caller, Entitled, Holders, Identities, Issuer, JwtSvid, Limits, Refused, Tokens,
};
use fender_api::client::{CallError, Session};
use fender_identity::{SpiffeId, Svid, Trust};
use fender_runtime::clock::SharedClock;
use fender_runtime::deadline::Deadline;
use fender_runtime::drain::Drain;
use fender_runtime::listen::{ListenAddress, Listeners};
use tokio::sync::watch;

use crate::cli;

/// What asking the control plane for a certificate may take.
const ISSUE: Duration = Duration::from_secs(10);

/// Opens the socket, and serves it until the drain stops.
pub(super) fn serve(
    args: &cli::WorkloadApi,
    session: &Arc<Session>,
    clock: &SharedClock,
    listeners: &Listeners,
    drain: &Drain,
) -> Result<()> {
    let Some(path) = &args.workload_api else {
        return Ok(());
    };
    let listener = listeners
        .open(&ListenAddress::Unix(path.clone()))
        .context("open the socket of the Workload API")?;
    let mut users = BTreeSet::from([rustix::process::geteuid().as_raw()]);
    if !args.workload_api_uid.is_empty() {
        // The kernel says who connects; the mode would keep out those who may.
        listener
            .admit_everybody()
            .context("open the socket of the Workload API")?;
        users.extend(&args.workload_api_uid);
    }
    tracing::info!(socket = %path.display(), ?users, "serving the Workload API and Envoy's secret discovery");
    let own = Own {
        session: Arc::clone(session),
        users,
        clock: Arc::clone(clock),
        tokens: Tokens::default(),
        changes: watch::Sender::new(0),
    };
    let holders = Holders::new(own, Arc::clone(clock), drain.clone());
    drain.spawn(fender_agent::serve(
        listener,
        Arc::new(Handed(holders)),
        Arc::clone(clock),
        Limits::default(),
        drain.clone(),
    ));
    Ok(())
}

/// A sidecar's own identity, for the users that may have it.
struct Own {
    session: Arc<Session>,
    users: BTreeSet<u32>,
    clock: SharedClock,
    tokens: Tokens,
    /// Never changes: who may have it is said at the start.
    changes: watch::Sender<u64>,
}

/// What the server of the socket asks.
struct Handed(Holders<Own>);

impl Identities for Handed {
    async fn follow(&self, caller: &Caller) -> Result<watch::Receiver<Arc<Entitled>>, Refused> {
        self.0.issuer().check(caller)?;
        self.0.follow(caller).await
    }

    async fn jwt_svid(
        &self,
        caller: &Caller,
        audience: &[String],
        id: Option<&SpiffeId>,
    ) -> Result<JwtSvid, Refused> {
        let own = self.0.issuer();
        own.check(caller)?;
        let us = own.session.svid.borrow().id().clone();
        if let Some(id) = id.filter(|id| **id != us) {
            let why = format!("it asked for `{id}`, this workload is `{us}`");
            return Err(Refused::Nobody { why });
        }
        let begins = own.session.trust().borrow().denied.begins(&us);
        let sign = own.session.sign_jwt(audience, None, Deadline::after(ISSUE));
        let given = own
            .tokens
            .give(&us, audience, begins, &own.clock, sign)
            .await;
        given.map_err(|error| refused(&error))
    }

    fn trust(&self) -> watch::Receiver<Trust> {
        self.0.issuer().trust()
    }
}

impl Own {
    fn check(&self, caller: &Caller) -> Result<(), Refused> {
        if self.users.contains(&caller.uid) {
            return Ok(());
        }
        let why = format!(
            "uid {} is neither the sidecar's nor named by --workload-api-uid",
            caller.uid
        );
        Err(Refused::Nobody { why })
    }
}

impl Issuer for Own {
    async fn issue(
        &self,
        _: &Caller,
        kept: Option<&[Arc<Svid>]>,
    ) -> Result<Vec<Arc<Svid>>, Refused> {
        if let Some(svid) = kept.and_then(<[_]>::first) {
            return Ok(vec![Arc::clone(svid)]);
        }
        let issued = self.session.further_svid(Deadline::after(ISSUE)).await;
        let issued = issued.map_err(|error| refused(&error))?;
        Ok(vec![Arc::new(issued)])
    }

    fn trust(&self) -> watch::Receiver<Trust> {
        self.session.trust()
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}

fn refused(error: &CallError) -> Refused {
    let why = error.to_string();
    match error.code().is_passing() {
        true => Refused::Unavailable { why },
        false => Refused::Nobody { why },
    }
}
