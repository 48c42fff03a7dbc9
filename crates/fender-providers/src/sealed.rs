//! Encrypted files: what is encrypted and the file of what opens it are read together, and opened once for each pair of
//! contents, however many credentials are in it.
//!
//! Neither is kept: of both only a digest is, to know them again. What was opened is, for as long as somebody follows it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest;
use fender_identity::Secret;
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::{FetchError, ReadFiles};

/// The most that an encrypted file may have: 1 MiB in base64, and a header.
const LARGEST: u64 = 2 * 1024 * 1024;
/// The most that a file of identities may have.
const LARGEST_IDENTITY: u64 = 64 * 1024;
/// What was read at the same moment is read once for all. Shorter than the time between two looks at a change.
const SAME_MOMENT: Duration = Duration::from_millis(50);

type Open<T> = dyn Fn(&Secret, &Secret) -> Result<T, FetchError> + Send + Sync;

/// A file, and the file of the identities that open it.
pub(crate) struct Pair<T> {
    file: PathBuf,
    identity: PathBuf,
    files: Arc<dyn ReadFiles>,
    open: Arc<Open<T>>,
    last: Mutex<Last<T>>,
}

struct Last<T> {
    answer: Option<(Instant, Result<Arc<T>, FetchError>)>,
    /// What the last two contents opened as.
    opened: Option<(Contents, Result<Arc<T>, FetchError>)>,
}

/// By which contents are known again. Both are beyond guessing, or nothing that is secret.
#[derive(PartialEq, Eq)]
struct Contents([Vec<u8>; 2]);

impl Contents {
    fn of(file: &Secret, identity: &Secret) -> Self {
        let digest = |secret: &Secret| digest::digest(&digest::SHA256, secret.expose());
        Self([file, identity].map(|secret| digest(secret).as_ref().to_vec()))
    }
}

impl<T: Send + Sync + 'static> Pair<T> {
    /// `open` may take long: it is run where that holds up nobody.
    pub(crate) fn new(
        file: &Path,
        identity: &Path,
        files: Arc<dyn ReadFiles>,
        open: impl Fn(&Secret, &Secret) -> Result<T, FetchError> + Send + Sync + 'static,
    ) -> Self {
        Self {
            file: file.to_owned(),
            identity: identity.to_owned(),
            files,
            open: Arc::new(open),
            last: Mutex::new(Last {
                answer: None,
                opened: None,
            }),
        }
    }

    /// What the file opens as now.
    pub(crate) async fn read(&self) -> Result<Arc<T>, FetchError> {
        let mut last = self.last.lock().await;
        if let Some((at, answer)) = &last.answer
            && at.elapsed() < SAME_MOMENT
        {
            return answer.clone();
        }
        let answer = self.look(&mut last).await;
        last.answer = Some((Instant::now(), answer.clone()));
        answer
    }

    async fn look(&self, last: &mut Last<T>) -> Result<Arc<T>, FetchError> {
        let file = self.files.read(&self.file, LARGEST).await?;
        let identity = self.files.read_private(&self.identity, LARGEST_IDENTITY);
        let identity = identity.await.map_err(of_identity)?;
        let contents = Contents::of(&file, &identity);
        if let Some((known, opened)) = &last.opened
            && *known == contents
        {
            return opened.clone();
        }
        let open = Arc::clone(&self.open);
        let opened = tokio::task::spawn_blocking(move || open(&file, &identity)).await;
        let opened = opened
            .map_err(|_| {
                FetchError::Malformed(format!("`{}` cannot be opened", self.file.display()))
            })
            .flatten()
            .map(Arc::new);
        last.opened = Some((contents, opened.clone()));
        opened
    }
}

/// A missing identity says nothing of the secret, which was not asked for yet.
fn of_identity(error: FetchError) -> FetchError {
    match error {
        FetchError::Missing(why) => FetchError::Outage(format!("its identity is missing: {why}")),
        FetchError::Outage(_) | FetchError::Denied(_) | FetchError::Malformed(_) => error,
    }
}

impl<T> fmt::Debug for Pair<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, identity, .. } = self;
        let mut shown = f.debug_struct("Pair");
        shown.field("file", file).field("identity", identity);
        shown.finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
