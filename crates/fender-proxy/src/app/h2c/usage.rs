//! Whether a connection to the app is in use, so that one which is not makes room for others.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::timeout;

/// The uses of one connection.
#[derive(Debug, Default)]
pub(super) struct Usage {
    open: AtomicUsize,
    changed: Notify,
}

/// One use; it ends when this is dropped.
#[derive(Debug)]
pub(super) struct Use(Arc<Usage>);

impl Usage {
    pub(super) fn begin(self: &Arc<Self>) -> Use {
        self.open.fetch_add(1, Ordering::AcqRel);
        self.changed.notify_one();
        Use(self.clone())
    }

    pub(super) fn is_idle(&self) -> bool {
        self.open.load(Ordering::Acquire) == 0
    }

    /// Resolves when nothing has been open for so long.
    pub(super) async fn rests_for(&self, limit: Duration) {
        loop {
            let begun = match self.is_idle() {
                true => timeout(limit, self.changed.notified()).await,
                false => {
                    self.changed.notified().await;
                    Ok(())
                }
            };
            if begun.is_err() && self.is_idle() {
                return;
            }
        }
    }
}

impl Drop for Use {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::AcqRel);
        self.0.changed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{Instant, sleep};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_connection_rests_from_the_end_of_its_last_use() {
        let usage = Arc::<Usage>::default();
        let limit = Duration::from_secs(1);
        let begun = Instant::now();
        let uses = async {
            let (one, other) = (usage.begin(), usage.begin());
            sleep(limit * 5).await;
            drop(one);
            sleep(limit * 5).await;
            drop(other);
            sleep(limit / 2).await;
            drop(usage.begin());
        };
        let ((), ()) = tokio::join!(uses, usage.rests_for(limit));
        assert_eq!(begun.elapsed(), limit * 23 / 2);
    }
}
