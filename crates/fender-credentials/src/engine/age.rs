//! Since when what is in use may not be the newest any more, and whether that is longer than its document allows. It is said
//! once when it is, and once when that is over; what is in use stays either way.

use std::time::Duration;

use fender_config::ObjectName;
use fender_providers::Generation;
use tokio::time::Instant;

pub(crate) struct Age {
    /// Since when it may not be the newest.
    since: Option<Instant>,
    /// How long that may be.
    most: Duration,
    /// Whether it was said that it is longer.
    is_said: bool,
}

impl Age {
    /// Of what is the newest, where `maxStale` is `most`.
    pub(crate) fn of(most: Duration) -> Self {
        Self {
            since: None,
            most,
            is_said: false,
        }
    }

    /// Its document has another `maxStale`.
    pub(crate) fn allow(&mut self, most: Duration) {
        if self.most != most {
            self.most = most;
            self.is_said = false;
        }
    }

    /// What there is was the newest then, and nobody knows since.
    pub(crate) fn not_newest_since(&mut self, since: Option<Instant>) {
        if let Some(since) = since {
            let known = self.since.map_or(since, |known| known.min(since));
            self.since = Some(known);
        }
    }

    /// It may not be the newest: since when. If nobody has said, since now.
    pub(crate) fn since(&mut self) -> Instant {
        *self.since.get_or_insert_with(Instant::now)
    }

    /// From when on that is too long; none if that is never.
    pub(crate) fn too_old(&self) -> Option<Instant> {
        self.since?.checked_add(self.most)
    }

    /// When that is to be said.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.too_old().filter(|_| !self.is_said)
    }

    /// It is due.
    pub(crate) fn say(&mut self, credential: &ObjectName) {
        self.is_said = true;
        let max_stale_seconds = self.most.as_secs();
        tracing::warn!(
            %credential,
            max_stale_seconds,
            "credential is older than its `maxStale` by now, because the newest cannot be had or delivered: what there is stays"
        );
    }

    /// It is the newest. Somebody else says so if it is a new one.
    pub(crate) fn is_newest(
        &mut self,
        credential: &ObjectName,
        generation: &Generation,
        new: bool,
    ) {
        let was_outdated = self.since.is_some();
        let was_too_old = self.is_said;
        self.forget();
        if was_too_old {
            tracing::info!(%credential, %generation, "credential is the newest again, and was older than its `maxStale`");
        } else if was_outdated && !new {
            tracing::info!(%credential, %generation, "credential is the newest again");
        }
    }

    /// Nothing is in use.
    pub(crate) fn forget(&mut self) {
        (self.since, self.is_said) = (None, false);
    }
}
