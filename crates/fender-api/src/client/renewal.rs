//! The worker that keeps the certificate fresh. It alone replaces it.
//!
//! At half of its life, give or take a tenth of that, it asks for the next one; while that fails the old one stays and it
//! tries again, slower and slower, jittered, but often enough for the time that is left. One that was revoked is asked for
//! at once where there is a token at hand.

use std::sync::Arc;
use std::time::Duration;

use fender_identity::{Svid, Validity};
use fender_runtime::backoff::Backoff;
use fender_runtime::clock::{UnixTime, sleep_until};
use fender_runtime::deadline::Deadline;

use super::call::{CALL, error_chain};
use super::core::Core;

/// However odd the clocks are, renewals never follow each other faster.
const PAUSE: Duration = Duration::from_secs(1);

pub(crate) async fn run(core: Arc<Core>) {
    let work = async {
        let mut received = None;
        loop {
            let svid = core.svid.borrow().clone();
            tokio::select! {
                () = sleep_until(&*core.caller.clock, due(&svid, received, jitter())) => {}
                () = core.spoilt.notified() => {}
            }
            renew(&core, &svid).await;
            received = Some(core.caller.clock.now());
            tokio::time::sleep(PAUSE).await;
        }
    };
    tokio::select! {
        biased;
        () = core.drain.stopping() => {}
        () = work => {}
    }
}

/// Half of its life; for one just received not before half of what was left of it then, because an authority may date
/// certificates back by more than a short life.
fn due(svid: &Svid, received: Option<UnixTime>, jitter: f64) -> UnixTime {
    let due = svid.renew_at(jitter);
    let Some(received) = received.map(|moment| moment.as_secs()) else {
        return due;
    };
    let left = svid.validity().not_after.as_secs().saturating_sub(received);
    let wait = Duration::from_secs(left).mul_f64(0.5 + 0.05 * jitter.clamp(-1.0, 1.0));
    due.max(UnixTime::since_unix_epoch(
        Duration::from_secs(received).saturating_add(wait),
    ))
}

/// Until it succeeds.
async fn renew(core: &Core, svid: &Svid) {
    let mut backoff = patience(svid.validity());
    loop {
        match core.renew(Deadline::after(CALL)).await {
            Ok(()) => {
                let svid = core.svid.borrow().clone();
                tracing::info!(id = %svid.id(), serial = %svid.serial(), "certificate renewed");
                return;
            }
            Err(error) => {
                let left = svid.validity().not_after.as_secs();
                let left = left.saturating_sub(core.caller.clock.now().as_secs());
                let (code, error) = (error.code(), error_chain(&error));
                match left {
                    0 => {
                        tracing::error!(%code, %error, "the certificate has expired and cannot be renewed")
                    }
                    // And there was nothing to attest anew with, or that was refused as well.
                    _ if !code.is_passing() => {
                        tracing::error!(%code, %error, seconds_left = left, "the certificate is refused its renewal: it ends then, and this identity with it")
                    }
                    _ => {
                        tracing::warn!(%code, %error, seconds_left = left, "certificate not renewed")
                    }
                }
            }
        }
        tokio::time::sleep(backoff.next()).await;
    }
}

/// About twenty attempts in the half of its life that is left, at most one a minute.
fn patience(validity: Validity) -> Backoff {
    let life = validity
        .not_after
        .as_secs()
        .saturating_sub(validity.not_before.as_secs());
    let cap = Duration::from_secs(life).div_f64(40.0);
    let cap = cap.clamp(Duration::from_millis(250), Duration::from_secs(60));
    Backoff::new(cap.min(Duration::from_secs(1)), cap)
}

/// From -1 to 1.
fn jitter() -> f64 {
    let mut bytes = [0; 4];
    match aws_lc_rs::rand::fill(&mut bytes) {
        Ok(()) => f64::from(i32::from_ne_bytes(bytes)) / f64::from(i32::MAX),
        Err(_) => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Authority, ORDERS, START, id};

    fn at(seconds: u64) -> UnixTime {
        UnixTime::since_unix_epoch(Duration::from_secs(seconds))
    }

    #[test]
    fn a_certificate_dated_back_by_more_than_its_life_is_not_renewed_at_once() {
        let life = Duration::from_secs(70);
        let svid = Authority::new().svid_for(&id(ORDERS), at(START - 60), life, false);
        assert_eq!(due(&svid, Some(at(START)), 0.0), at(START + 5));
        // One that was found in the state directory is as old as it says.
        assert_eq!(due(&svid, None, 0.0), at(START - 25));
    }

    #[test]
    fn a_short_life_is_retried_faster_and_never_slower_than_once_a_minute() {
        let validity = |seconds| Validity {
            not_before: at(0),
            not_after: at(seconds),
        };
        let slowest = |seconds| {
            let mut backoff = patience(validity(seconds));
            (0..20).map(|_| backoff.next()).max().unwrap()
        };
        assert!(slowest(10) <= Duration::from_millis(250));
        assert!(slowest(3600) <= Duration::from_secs(60));
        assert!(slowest(24 * 3600) <= Duration::from_secs(60));
    }

    #[test]
    fn jitter_stays_within_its_bounds() {
        assert!(
            (0..1000)
                .map(|_| jitter())
                .all(|j| (-1.01..=1.0).contains(&j))
        );
    }
}
