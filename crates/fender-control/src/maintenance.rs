//! What happens by itself: the own certificate and the intermediate are renewed, what nobody needs any more is
//! forgotten, refused calls reach the audit log. One failure is logged and tried again; it never ends the task.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use crate::control::Control;
use crate::store::audit::Chain;
use crate::store::certificates::More;
use crate::store::{Reader, Store, StoreError, audit, certificates, decisions};

const HOUSEKEEPING: Duration = Duration::from_secs(3600);

pub(crate) async fn keep(control: Arc<Control>) {
    tokio::select! {
        biased;
        () = control.drain.stopping() => {}
        () = control.own.keep_fresh() => {}
        () = keep_house(&control) => {}
    }
}

/// Hourly: much more often than anything here is due, so that a suspended machine or a moved clock is soon noticed.
async fn keep_house(control: &Control) {
    loop {
        tokio::time::sleep(HOUSEKEEPING).await;
        let now = control.clock.now();
        if let Err(error) = control.authority.refresh(&control.store, now).await {
            tracing::error!(%error, "renew the intermediate certificate authority");
        }
        if let Err(error) = forget(control).await {
            tracing::warn!(%error, "forget what nobody needs any more");
        }
    }
}

async fn forget(control: &Control) -> Result<(), StoreError> {
    let now = control.clock.now();
    let renewal_grace = control.library.in_force().mesh.lifetimes.renewal_grace;
    while control.store.write(decisions::Forget { now }).await? == More::Perhaps {}
    while control
        .store
        .write(certificates::Forget { now, renewal_grace })
        .await?
        == More::Perhaps
    {}
    Ok(())
}

/// Follows the audit log's chain once, and says loudly when somebody changed it. Serving does not wait for the answer:
/// the log may be long, and refusing to start would help whoever did it.
pub(crate) async fn check_audit_log(reader: Reader) {
    match audit::verify(&reader).await {
        Ok(Chain::Whole { entries, head }) => {
            tracing::info!(
                entries,
                head = head.unwrap_or_default(),
                "the audit log's chain is whole"
            );
        }
        Ok(Chain::Broken { sequence }) => {
            tracing::error!(
                sequence,
                "the audit log was changed: its chain breaks at this entry"
            );
        }
        Err(error) => tracing::warn!(%error, "follow the audit log's chain"),
    }
}

/// Writes refused calls to the audit log until nobody can refuse any more.
pub(crate) async fn record_refusals(mut refused: mpsc::Receiver<audit::Entry>, store: Store) {
    while let Some(entry) = refused.recv().await {
        if let Err(error) = store.write(audit::Append(entry)).await {
            tracing::error!(%error, "record a refused administrative call");
        }
    }
}
