//! What happens by itself: the own certificate and the authorities are renewed, what nobody needs any more is
//! forgotten, refused calls reach the audit log. One failure is logged and tried again; it never ends the task.

use std::sync::Arc;
use std::time::Duration;

use fender_config::Lifetimes;
use fender_runtime::backoff::Backoff;
use rustls::pki_types::UnixTime;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::ca::jwt;
use crate::control::Control;
use crate::store::audit::Chain;
use crate::store::certificates::More;
use crate::store::{
    Reader, Store, StoreError, Topic, audit, authorities, certificates, decisions, jwt_keys,
    replicas, revisions, revocations,
};
use crate::time::{earlier, later};

/// Much more often than an authority is due, so that a suspended machine or a moved clock is soon noticed.
const LOOK: Duration = Duration::from_secs(60);
/// In a development mesh, whose authorities may live for seconds.
const SHORTEST_LOOK: Duration = Duration::from_millis(250);
const HOUSEKEEPING: Duration = Duration::from_secs(3600);
/// How far the clock is followed from one round of forgetting to the next. If it jumps ahead by years, there is time to
/// put it right before every record that is still needed is gone.
const STRIDE: Duration = Duration::from_secs(24 * 3600);

pub(crate) async fn keep(control: Arc<Control>) {
    tokio::select! {
        biased;
        () = control.drain.stopping() => {}
        () = control.own.keep_fresh() => {}
        () = control.library.keep_up() => {}
        () = announce(&control) => {}
        () = renew_authorities(&control) => {}
        () = keep_house(&control) => {}
    }
}

/// Announces whom to believe, and whom not any more, as soon as this or another replica changed it. Apart from
/// everything that may take its time: a revocation waits for nothing, and is tried again at once.
async fn announce(control: &Control) {
    let mut authorities = control.store.reads().changes(Topic::Authorities);
    let mut revocations = control.store.reads().changes(Topic::Revocations);
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
    loop {
        let began = Instant::now();
        let next = match control.refresh_trust().await {
            Ok(()) => {
                backoff.reset();
                next_look(began, look(&control.library.in_force().mesh.lifetimes))
            }
            Err(error) => {
                tracing::error!(%error, "announce whom to believe");
                Instant::now() + backoff.next()
            }
        };
        tokio::select! {
            () = tokio::time::sleep_until(next) => {}
            Ok(()) = authorities.changed() => {}
            Ok(()) = revocations.changed() => {}
        }
    }
}

/// Takes up what another replica made as soon as it is told, and makes what is due: authorities, and the lists of what
/// they signed and was revoked.
async fn renew_authorities(control: &Control) {
    let mut authorities = control.store.reads().changes(Topic::Authorities);
    let mut revocations = control.store.reads().changes(Topic::Revocations);
    loop {
        // At once, too: another replica may have made one between the first look and here.
        let began = Instant::now();
        let (lifetimes, now) = (
            control.library.in_force().mesh.lifetimes,
            control.clock.now(),
        );
        let renewed = control.authority.refresh(&control.store, &lifetimes, now);
        if let Err(error) = renewed.await {
            tracing::error!(%error, "renew the certificate authorities");
        }
        tokio::select! {
            () = tokio::time::sleep_until(next_look(began, look(&lifetimes))) => {}
            Ok(()) = authorities.changed() => {}
            Ok(()) = revocations.changed() => {}
        }
    }
}

async fn keep_house(control: &Control) {
    let mut forgotten = (Instant::now(), control.clock.now());
    loop {
        tokio::time::sleep(LOOK).await;
        control.forget_ended();
        if forgotten.0.elapsed() < HOUSEKEEPING {
            continue;
        }
        let now = control.clock.now();
        let believed = believed(now, forgotten.1);
        forgotten = (Instant::now(), believed);
        if let Err(error) = forget(control, believed).await {
            tracing::warn!(%error, "forget what nobody needs any more");
        }
    }
}

fn look(lifetimes: &Lifetimes) -> Duration {
    let shortest = lifetimes
        .intermediate
        .min(lifetimes.publication)
        .min(lifetimes.jwt_key)
        / 20;
    shortest.clamp(SHORTEST_LOOK, LOOK)
}

/// When to look again after a look that began then: it is as old as its beginning. However long it took, it is not the next one
/// that follows at once.
fn next_look(began: Instant, every: Duration) -> Instant {
    (began + every).max(Instant::now() + SHORTEST_LOOK)
}

fn believed(now: UnixTime, before: UnixTime) -> UnixTime {
    now.min(later(before, STRIDE))
}

async fn forget(control: &Control, now: UnixTime) -> Result<(), StoreError> {
    let lifetimes = control.library.in_force().mesh.lifetimes;
    let renewal_grace = lifetimes.renewal_grace;
    while control.store.write(decisions::Forget { now }).await? == More::Perhaps {}
    // What a crash left undone.
    control.store.mark_revoked(now).await?;
    while control
        .store
        .write(certificates::Forget { now, renewal_grace })
        .await?
        == More::Perhaps
    {}
    // After the certificates: a rule stays until the last of them is gone.
    control
        .store
        .write(revocations::Forget { now, renewal_grace })
        .await?;
    while control.store.write(revisions::Forget { now }).await? == More::Perhaps {}
    let before = earlier(now, renewal_grace.saturating_add(STRIDE));
    control.store.write(authorities::Forget { before }).await?;
    let succeeded_before = earlier(now, jwt::lingers(&lifetimes));
    let forget = jwt_keys::Forget { succeeded_before };
    control.store.write(forget).await?;
    control.store.write(replicas::Forget).await
}

/// Whoever vouches for others is known, and its keys are at hand, before anybody attests; sidecars that have become too old hear
/// of it; and what was left of a credential that is listed no more is forgotten.
pub(crate) async fn follow_mesh(control: Arc<Control>) {
    let mut changes = control.library.changes();
    loop {
        changes.mark_unchanged();
        control.put_vouching_in_force();
        control.put_minimum_version_in_force();
        control.forget_ended();
        tokio::select! {
            () = control.drain.stopping() => return,
            changed = changes.changed() => {
                if changed.is_err() {
                    return;
                }
            }
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_changes_while_a_look_is_under_way_is_not_left_for_another_minute() {
        let began = Instant::now();
        assert_eq!(next_look(began, LOOK), began + LOOK);
        // A suspended machine, say: what was looked at is as old as the beginning.
        tokio::time::advance(LOOK + Duration::from_secs(1)).await;
        assert_eq!(next_look(began, LOOK), Instant::now() + SHORTEST_LOOK);
    }

    #[test]
    fn a_clock_that_jumps_ahead_by_years_is_followed_by_a_day_and_back_at_once() {
        let at = |seconds| UnixTime::since_unix_epoch(Duration::from_secs(seconds));
        let (before, hour, day) = (at(1_800_000_000), 3600, 24 * 3600);
        assert_eq!(
            believed(at(1_800_000_000 + hour), before),
            at(1_800_000_000 + hour)
        );
        assert_eq!(believed(at(2_500_000_000), before), at(1_800_000_000 + day));
        assert_eq!(believed(at(1_700_000_000), before), at(1_700_000_000));
    }
}
