//! Several files that change together.

use std::path::PathBuf;

use super::{Content, EntryName, Storage, StorePassword};

/// A directory whose files are all of one generation of the secret, to whoever opens `..data` in it once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FilesDelivery {
    /// It is the set's alone.
    pub directory: PathBuf,
    pub storage: Storage,
    /// A name or a number; the sidecar's own if none is given.
    pub owner: Option<String>,
    pub group: Option<String>,
    /// One at least, each of another name.
    pub entries: Vec<FileEntry>,
}

/// One file of a set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileEntry {
    pub name: EntryName,
    /// Permission bits, no more than `0o777`.
    pub mode: u32,
    pub content: Content,
}

impl FilesDelivery {
    /// How many files a set may have, passwords that are made for stores not counted.
    pub const MOST_ENTRIES: usize = 32;

    /// The first name by which two files would go.
    pub fn twice(entries: &[FileEntry]) -> Option<&EntryName> {
        let mut names: Vec<_> = entries.iter().flat_map(FileEntry::names).collect();
        names.sort();
        names
            .windows(2)
            .find_map(|pair| pair.first().filter(|name| pair.get(1) == Some(name)))
            .copied()
    }
}

impl FileEntry {
    /// Every file that comes of it: its own, and that of the password of a store.
    pub fn names(&self) -> impl Iterator<Item = &EntryName> {
        let password = match &self.content {
            Content::Pkcs12(store) => match &store.password {
                StorePassword::Generated(name) => Some(name),
                StorePassword::Field(_) => None,
            },
            Content::Value
            | Content::Field(_)
            | Content::Template(_)
            | Content::Fields { .. }
            | Content::Pem { .. } => None,
        };
        [&self.name].into_iter().chain(password)
    }
}

/// What becomes of what was delivered when the sidecar ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OnExit {
    /// It is removed.
    #[default]
    Wipe,
    /// It stays.
    Keep,
}
