//! The files of one credential, written and removed on threads that may block.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;

use fender_config::ObjectName;
use fender_identity::Secret;

use crate::deliver::{Change, Delivered, DeliveryError, Place};

/// Files that hold one credential, by path.
#[derive(Debug, Default)]
pub(super) struct Files(BTreeMap<PathBuf, Delivered>);

/// What came of writing.
pub(super) struct Written {
    pub(super) files: Files,
    /// Whether any file got a value it did not hold.
    pub(super) change: Change,
    /// The first failure; the other places were written all the same.
    pub(super) failure: Option<DeliveryError>,
}

impl Files {
    /// Writes to all of `places`; then, if nothing failed, removes what lies elsewhere.
    pub(super) async fn write(self, places: Vec<(Place, Secret)>) -> Written {
        blocking(move || self.write_now(&places))
            .await
            .unwrap_or_else(|error| Written {
                files: Self::default(),
                change: Change::Unchanged,
                failure: Some(error),
            })
    }

    fn write_now(mut self, places: &[(Place, Secret)]) -> Written {
        let mut change = Change::Unchanged;
        let mut failure = None;
        for (place, value) in places {
            match place.write(value) {
                Ok((file, written)) => {
                    if written == Change::Written {
                        change = written;
                    }
                    self.0.insert(place.path().to_owned(), file);
                }
                Err(error) => {
                    failure.get_or_insert(error);
                }
            }
        }
        let left = |path: &PathBuf| !places.iter().any(|(place, _)| place.path() == path);
        if failure.is_none() {
            for (path, file) in self.0.extract_if(.., |path, _| left(path)) {
                warn_unless_removed(&path.display(), file.remove());
            }
        }
        Written {
            files: self,
            change,
            failure,
        }
    }

    /// Removes all of them.
    pub(super) async fn remove(self, credential: &ObjectName) {
        let removed = blocking(move || {
            for (path, file) in self.0 {
                warn_unless_removed(&path.display(), file.remove());
            }
        });
        if let Err(error) = removed.await {
            tracing::error!(%credential, %error, "cannot remove the files of a credential");
        }
    }
}

fn warn_unless_removed(path: &dyn std::fmt::Display, removed: Result<(), DeliveryError>) {
    match removed {
        Ok(()) => tracing::info!(%path, "removed a credential's file"),
        Err(error) => tracing::error!(%path, %error, "cannot remove a credential's file"),
    }
}

async fn blocking<T, F>(work: F) -> Result<T, DeliveryError>
where
    T: Send + 'static,
    F: FnOnce() -> T + Send + 'static,
{
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| DeliveryError::Failed {
            path: PathBuf::from("/"),
            action: "work below",
            error: io::Error::other(error),
        })
}
