//! The files of one credential, written and removed on threads that may block.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;

use fender_config::ObjectName;
use fender_config::snapshot::Content;
use fender_identity::Secret;
use tokio::time::Instant;

use crate::deliver::set::{DeliveredSet, SetPlace};
use crate::deliver::{Change, Delivered, DeliveryError, Place};
use crate::render::Material;

/// Files that hold one credential, by path, and sets of them, by directory.
#[derive(Debug, Default)]
pub(super) struct Files {
    files: BTreeMap<PathBuf, Delivered>,
    sets: BTreeMap<PathBuf, DeliveredSet>,
}

/// What is to be written.
#[derive(Debug)]
pub(super) struct Work {
    pub(super) credential: ObjectName,
    pub(super) value: Secret,
    pub(super) files: Vec<(Place, Holds)>,
    pub(super) sets: Vec<SetPlace>,
}

/// What one file is to hold.
#[derive(Clone, Debug)]
pub(super) enum Holds {
    /// What is made of the value.
    Made(Content),
    /// This, whatever the value.
    Token(Secret),
}

/// What came of writing.
pub(super) struct Written {
    pub(super) files: Files,
    /// Whether any file got a value it did not hold.
    pub(super) change: Change,
    /// The first failure; the other places were written all the same.
    pub(super) failure: Option<DeliveryError>,
}

impl Files {
    /// Writes to all places; then, if nothing failed, removes what lies elsewhere.
    pub(super) async fn write(self, work: Work) -> Written {
        let now = Instant::now();
        blocking(move || self.write_now(&work, now))
            .await
            .unwrap_or_else(|error| Written {
                files: Self::default(),
                change: Change::Unchanged,
                failure: Some(error),
            })
    }

    fn write_now(mut self, work: &Work, now: Instant) -> Written {
        let mut change = Change::Unchanged;
        let mut failure = None;
        let material = Material::new(&work.value, &work.credential);
        let mut note = |result: Result<Change, DeliveryError>| match result {
            Ok(Change::Written) => change = Change::Written,
            Ok(Change::Unchanged) => {}
            Err(error) => {
                failure.get_or_insert(error);
            }
        };
        for (place, holds) in &work.files {
            note(self.write_file(place, holds, &material));
        }
        for set in &work.sets {
            note(self.write_set(set, &material, now));
        }
        if failure.is_none() {
            self.remove_others(work);
        }
        Written {
            files: self,
            change,
            failure,
        }
    }

    fn write_file(
        &mut self,
        place: &Place,
        holds: &Holds,
        material: &Material<'_>,
    ) -> Result<Change, DeliveryError> {
        let value = match holds {
            Holds::Token(token) => token.clone(),
            Holds::Made(content) => {
                let rendered = material.render(content);
                let rendered = rendered.map_err(|error| DeliveryError::Unrendered {
                    path: place.path().to_owned(),
                    error,
                });
                rendered?.file
            }
        };
        let (file, change) = place.write(&value)?;
        self.files.insert(place.path().to_owned(), file);
        Ok(change)
    }

    fn write_set(
        &mut self,
        place: &SetPlace,
        material: &Material<'_>,
        now: Instant,
    ) -> Result<Change, DeliveryError> {
        let files = place.render(material)?;
        let directory = place.directory().to_owned();
        let mut held = self.sets.remove(&directory);
        let written = place.write(&files, &mut held, now);
        self.sets.extend(held.map(|set| (directory, set)));
        written
    }

    fn remove_others(&mut self, work: &Work) {
        let is_file = |path: &PathBuf| work.files.iter().any(|(place, _)| place.path() == path);
        for (path, file) in self.files.extract_if(.., |path, _| !is_file(path)) {
            warn_unless_removed(&path.display(), file.remove());
        }
        let is_set = |path: &PathBuf| work.sets.iter().any(|set| set.directory() == path);
        for (path, set) in self.sets.extract_if(.., |path, _| !is_set(path)) {
            warn_unless_removed(&path.display(), set.remove());
        }
    }

    /// When something of the generations before may go.
    pub(super) fn due(&self) -> Option<Instant> {
        self.sets.values().filter_map(DeliveredSet::due).min()
    }

    /// Removes what may go by `now`.
    pub(super) async fn tidy(mut self, now: Instant) -> Self {
        let tidied = blocking(move || {
            for set in self.sets.values_mut() {
                if let Err(error) = set.tidy(now) {
                    let path = set.place().directory().display();
                    tracing::error!(%path, %error, "cannot remove old generations of a credential's files");
                }
            }
            self
        });
        tidied.await.unwrap_or_default()
    }

    /// Removes all of them.
    pub(super) async fn remove(self, credential: &ObjectName) {
        let removed = blocking(move || {
            for (path, file) in self.files {
                warn_unless_removed(&path.display(), file.remove());
            }
            for (path, set) in self.sets {
                warn_unless_removed(&path.display(), set.remove());
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
