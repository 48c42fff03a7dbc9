//! Several files that change together.
//!
//! In the directory of a set there is, as in a volume of Kubernetes, one directory for each generation, a link `..data` to the one that
//! counts, and for each file a link through `..data`:
//!
//! ```text
//! ..1f0c…/            complete before it has this name
//! ..data              -> ..1f0c…      replaced by renaming, which is the change of all files
//! url.txt             -> ..data/url.txt
//! ```
//!
//! Whoever opens `..data` once and the files relative to it has one generation, whole. One that was replaced stays for
//! [`GRACE`], so that who reads it comes to the end; of those there are at most [`MOST_RETIRED`]. What a crash left behind was
//! never reachable by `..data`, or goes like a generation that was replaced.
//!
//! Two processes may write to one directory for the moment in which one takes over from the other: no name of theirs is the
//! same, and neither removes what the other is building (it is locked) or has just finished (it is young).

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use fender_config::snapshot::{Content, FileEntry, FilesDelivery, Storage, StorePassword};
use fender_identity::Secret;
use fender_runtime::id::OpaqueId;
use rustix::fs::{AtFlags, CWD, Dir, FlockOperation, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use tokio::time::Instant;

use super::{Change, DeliveryError, accounts, directory, holding, restrict};
use crate::allow::AllowDirs;
use crate::render::Material;

/// How long a generation stays that was replaced.
pub(crate) const GRACE: Duration = Duration::from_secs(10);
/// How many of them there are at most, whatever their age: a secret that changes without end fills no memory.
pub(crate) const MOST_RETIRED: usize = 4;

/// The link to the generation that counts.
const DATA: &str = "..data";
/// A generation that is not complete.
const UNFINISHED: &str = "..new-";
/// Links before they are renamed.
const LINK_OF_DATA: &str = "..data-";
const LINK_OF_FILE: &str = "..link-";

const OPEN: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// Where a set is to be written, and how: a [`FilesDelivery`] that may be carried out.
#[derive(Clone, Debug)]
pub(crate) struct SetPlace {
    directory: PathBuf,
    storage: Storage,
    owner: Option<Uid>,
    group: Option<Gid>,
    entries: Vec<FileEntry>,
}

/// One file as it is to be.
pub(crate) struct SetFile {
    name: OsString,
    mode: Mode,
    value: Secret,
}

/// A set that was delivered.
#[derive(Debug)]
pub(crate) struct DeliveredSet {
    place: SetPlace,
    generation: OsString,
    /// Generations that do not count any more.
    retired: BTreeMap<OsString, Retired>,
}

/// Since when it is known that a generation does not count, and when it was made, in seconds and nanoseconds of the file system: of
/// those that a process before has left, the one that counted last is the youngest.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
struct Retired {
    since: Instant,
    made: (i64, i64),
}

impl SetPlace {
    /// Resolves names and checks that the document may have its way. Looks at no directory yet.
    pub(crate) fn new(delivery: &FilesDelivery, allow: &AllowDirs) -> Result<Self, DeliveryError> {
        let path = &delivery.directory;
        allow.check(&path.join(DATA))?;
        let unfit = |why| DeliveryError::unfit(path, why);
        let owner = delivery.owner.as_deref();
        let owner = owner.map(|owner| accounts::user(owner, "owner"));
        let group = delivery.group.as_deref().map(accounts::group);
        Ok(Self {
            directory: path.clone(),
            storage: delivery.storage,
            owner: owner.transpose().map_err(unfit)?,
            group: group.transpose().map_err(unfit)?,
            entries: delivery.entries.clone(),
        })
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// All files of a generation. Takes a while.
    pub(crate) fn render(&self, material: &Material<'_>) -> Result<Vec<SetFile>, DeliveryError> {
        let mut files = Vec::with_capacity(self.entries.len());
        for entry in &self.entries {
            let name = entry.name.as_str();
            let rendered = material.render(&entry.content);
            let rendered = rendered.map_err(|error| DeliveryError::Unrendered {
                path: self.directory.join(name),
                error,
            })?;
            let mut add = |name: &str, value| {
                files.push(SetFile {
                    name: name.into(),
                    mode: Mode::from_raw_mode(entry.mode & 0o777),
                    value,
                });
            };
            add(name, rendered.file);
            if let (Some(password), Content::Pkcs12(store)) = (rendered.password, &entry.content)
                && let StorePassword::Generated(name) = &store.password
            {
                add(name.as_str(), password);
            }
        }
        Ok(files)
    }

    /// Makes the set consist of these files. `held` is what this process has delivered of it. Blocks.
    pub(crate) fn write(
        &self,
        files: &[SetFile],
        held: &mut Option<DeliveredSet>,
        now: Instant,
    ) -> Result<Change, DeliveryError> {
        let (directory, generation, change) = self.replace(files)?;
        let retired = held.take().map(|held| held.retired);
        let delivered = held.insert(DeliveredSet {
            place: self.clone(),
            generation,
            retired: retired.unwrap_or_default(),
        });
        self.link(&directory, files)?;
        delivered.sweep(&directory, now);
        Ok(change)
    }

    fn replace(&self, files: &[SetFile]) -> Result<(OwnedFd, OsString, Change), DeliveryError> {
        let directory = self.open()?;
        if let Some((name, generation, held)) = self.current(&directory, files) {
            for (file, present) in files.iter().zip(&held) {
                let path = self.directory.join(&file.name);
                restrict(present, &path, self.owner, self.group, file.mode)?;
            }
            self.restrict_directory(&generation, files)?;
            return Ok((directory, name, Change::Unchanged));
        }
        let name = self.build(&directory, files)?;
        self.put(&directory, &name, LINK_OF_DATA, OsStr::new(DATA))?;
        Ok((directory, name, Change::Written))
    }

    /// Opens the directory of the set; makes it if nothing but that is missing.
    fn open(&self) -> Result<OwnedFd, DeliveryError> {
        let absent = rustix::fs::statat(CWD, &self.directory, AtFlags::SYMLINK_NOFOLLOW);
        let parent = self.directory.parent().zip(self.directory.file_name());
        if absent.err() == Some(Errno::NOENT)
            && let Some((parent, name)) = parent
        {
            let parent = directory::open(parent, self.storage)?;
            match rustix::fs::mkdirat(&parent, name, Mode::RWXU) {
                // Only links are for everybody to see in it.
                Ok(()) => {
                    let made = rustix::fs::openat(&parent, name, OPEN, Mode::empty());
                    made.and_then(|made| rustix::fs::fchmod(&made, Mode::from_raw_mode(0o755)))
                        .map_err(self.failed("make the directory"))?;
                }
                Err(Errno::EXIST) => {}
                Err(errno) => return Err(self.failed("make the directory")(errno)),
            }
        }
        directory::open(&self.directory, self.storage)
    }

    /// The generation that counts, if it consists of just these files.
    fn current(
        &self,
        directory: &OwnedFd,
        files: &[SetFile],
    ) -> Option<(OsString, OwnedFd, Vec<File>)> {
        let name = counting(directory)?;
        let generation = rustix::fs::openat(directory, &name, OPEN, Mode::empty()).ok()?;
        let stat = rustix::fs::fstat(&generation).ok()?;
        let owner = Uid::from_raw(stat.st_uid);
        let ours = owner == rustix::process::geteuid() || Some(owner) == self.owner;
        if !ours || names(&generation).ok()?.len() != files.len() {
            return None;
        }
        let held = files
            .iter()
            .map(|file| holding(&generation, &file.name, self.owner, &file.value));
        let held = held.collect::<Option<Vec<_>>>()?;
        Some((name, generation, held))
    }

    /// A complete generation, under its name, that does not count yet.
    fn build(&self, directory: &OwnedFd, files: &[SetFile]) -> Result<OsString, DeliveryError> {
        let id = OpaqueId::random();
        let unfinished = OsString::from(format!("{UNFINISHED}{id}"));
        let name = OsString::from(format!("..{id}"));
        let built = self.fill(directory, &unfinished, files).and_then(|locked| {
            rustix::fs::renameat(directory, &unfinished, directory, &name)
                .and_then(|()| rustix::fs::fsync(directory))
                .map_err(self.failed("finish a generation in"))?;
            drop(locked);
            Ok(name)
        });
        if built.is_err() {
            let _ = discard(directory, &unfinished);
        }
        built
    }

    /// The directory stays locked as long as what is returned lives: another process knows by it that it is being built.
    fn fill(
        &self,
        directory: &OwnedFd,
        name: &OsStr,
        files: &[SetFile],
    ) -> Result<OwnedFd, DeliveryError> {
        let failed = |action| self.failed(action);
        let make = failed("make a directory in");
        rustix::fs::mkdirat(directory, name, Mode::RWXU).map_err(&make)?;
        let generation = rustix::fs::openat(directory, name, OPEN, Mode::empty()).map_err(&make)?;
        rustix::fs::flock(&generation, FlockOperation::NonBlockingLockExclusive)
            .map_err(failed("lock a directory in"))?;
        for file in files {
            self.fill_one(&generation, file)?;
        }
        self.restrict_directory(&generation, files)?;
        rustix::fs::fsync(&generation).map_err(failed("sync"))?;
        Ok(generation)
    }

    fn fill_one(&self, generation: &OwnedFd, file: &SetFile) -> Result<(), DeliveryError> {
        let path = self.directory.join(&file.name);
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::RUSR | Mode::WUSR;
        let made = rustix::fs::openat(generation, &file.name, flags, mode);
        let made = File::from(made.map_err(DeliveryError::failed(&path, "make"))?);
        let written = (&made).write_all(file.value.expose());
        written.map_err(|error| DeliveryError::Failed {
            path: path.clone(),
            action: "write",
            error,
        })?;
        restrict(&made, &path, self.owner, self.group, file.mode)?;
        rustix::fs::fsync(&made).map_err(DeliveryError::failed(&path, "sync"))
    }

    /// Whoever may read a file of it may look into a generation, and nobody else.
    fn restrict_directory(
        &self,
        generation: &OwnedFd,
        files: &[SetFile],
    ) -> Result<(), DeliveryError> {
        let files = files.iter().map(|file| file.mode.as_raw_mode());
        let all = files.fold(0, |all, mode| all | mode);
        let class = |bits: u32, look: u32| if all & bits == 0 { 0 } else { look };
        let mode = 0o500 | class(0o070, 0o050) | class(0o007, 0o005);
        let mode = Mode::from_raw_mode(mode);
        restrict(generation, &self.directory, self.owner, self.group, mode)
    }

    /// A link `to`, made beside it and renamed over whatever file or link is there.
    fn put(
        &self,
        directory: &OwnedFd,
        target: &OsStr,
        prefix: &str,
        to: &OsStr,
    ) -> Result<(), DeliveryError> {
        let beside = OsString::from(format!("{prefix}{}", OpaqueId::random()));
        let put = rustix::fs::symlinkat(target, directory, &beside)
            .and_then(|()| rustix::fs::renameat(directory, &beside, directory, to))
            .and_then(|()| rustix::fs::fsync(directory));
        put.map_err(|errno| {
            let _ = rustix::fs::unlinkat(directory, &beside, AtFlags::empty());
            DeliveryError::failed(&self.directory.join(to), "put a link at")(errno)
        })
    }

    /// A link for each file, and none for files that are no longer in the set.
    fn link(&self, directory: &OwnedFd, files: &[SetFile]) -> Result<(), DeliveryError> {
        for file in files {
            let target = through(&file.name);
            let present = rustix::fs::readlinkat(directory, &file.name, Vec::new());
            if !present.is_ok_and(|present| present.as_bytes() == target.as_bytes()) {
                self.put(directory, &target, LINK_OF_FILE, &file.name)?;
            }
        }
        let present = names(directory).map_err(self.failed("look into"))?;
        for name in present {
            if !files.iter().any(|file| file.name == name) && is_link_of_file(directory, &name) {
                rustix::fs::unlinkat(directory, &name, AtFlags::empty())
                    .map_err(self.failed("remove a link in"))?;
            }
        }
        Ok(())
    }

    fn failed(&self, action: &'static str) -> impl Fn(Errno) -> DeliveryError {
        DeliveryError::failed(&self.directory, action)
    }
}

impl DeliveredSet {
    pub(crate) fn place(&self) -> &SetPlace {
        &self.place
    }

    /// When the next of the generations that were replaced may go.
    pub(crate) fn due(&self) -> Option<Instant> {
        let oldest = self.retired.values().min();
        oldest.and_then(|retired| retired.since.checked_add(GRACE))
    }

    /// Removes generations that were replaced long enough before `now`. Blocks.
    pub(crate) fn tidy(&mut self, now: Instant) -> Result<(), DeliveryError> {
        let directory = directory::open(&self.place.directory, self.place.storage);
        match directory {
            Ok(directory) => self.sweep(&directory, now),
            Err(error) => {
                self.retired.clear();
                return Err(error);
            }
        }
        Ok(())
    }

    /// Whatever is not of the generation that counts goes, at once or when its time has come.
    fn sweep(&mut self, directory: &OwnedFd, now: Instant) {
        let Ok(present) = names(directory) else {
            self.retired.clear();
            return;
        };
        for name in &present {
            if is_generation(name) && counting(directory).as_ref() != Some(name) {
                let made = made(directory, name);
                let retired = Retired { since: now, made };
                self.retired.entry(name.clone()).or_insert(retired);
            } else if starts(name, UNFINISHED) && !is_being_built(directory, name) {
                let _ = discard(directory, name);
            } else if starts(name, LINK_OF_FILE) || is_dangling_link(directory, name) {
                let _ = rustix::fs::unlinkat(directory, name, AtFlags::empty());
            }
        }
        self.retired.retain(|name, _| present.contains(name));
        while let Some(name) = self.next_to_go(now) {
            self.retired.remove(&name);
            // By another process it may count again.
            if counting(directory).as_ref() == Some(&name) {
                continue;
            }
            if let Err(errno) = discard(directory, &name) {
                let (path, error) = (
                    self.place.directory.join(&name),
                    std::io::Error::from(errno),
                );
                tracing::error!(path = %path.display(), %error, "cannot remove an old generation of a credential's files");
            }
        }
    }

    fn next_to_go(&self, now: Instant) -> Option<OsString> {
        let (name, retired) = self.retired.iter().min_by_key(|(_, retired)| **retired)?;
        let old = now.saturating_duration_since(retired.since) >= GRACE;
        (old || self.retired.len() > MOST_RETIRED).then(|| name.clone())
    }

    /// Removes the set, unless somebody has put another generation in its place. Blocks.
    pub(crate) fn remove(&self) -> Result<(), DeliveryError> {
        let SetPlace {
            directory: path,
            storage,
            ..
        } = &self.place;
        let directory = directory::open(path, *storage)?;
        match counting(&directory) {
            Some(name) if name != self.generation => return Ok(()),
            Some(_) => {
                // With it all files are gone at once.
                rustix::fs::unlinkat(&directory, DATA, AtFlags::empty())
                    .map_err(self.place.failed("remove the files of"))?;
            }
            None => {}
        }
        for name in names(&directory).map_err(self.place.failed("look into"))? {
            let removed = if is_generation(&name) || starts(&name, UNFINISHED) {
                discard(&directory, &name)
            } else if is_link_of_file(&directory, &name)
                || starts(&name, LINK_OF_FILE)
                || is_dangling_link(&directory, &name)
            {
                rustix::fs::unlinkat(&directory, &name, AtFlags::empty())
            } else {
                continue;
            };
            removed.map_err(DeliveryError::failed(&path.join(&name), "remove"))?;
        }
        rustix::fs::fsync(&directory).map_err(self.place.failed("sync"))
    }
}

/// What `..data` names, if that is a generation.
fn counting(directory: &OwnedFd) -> Option<OsString> {
    let target = rustix::fs::readlinkat(directory, DATA, Vec::new()).ok()?;
    let name = OsStr::from_bytes(target.as_bytes()).to_owned();
    is_generation(&name).then_some(name)
}

/// When a generation came to be complete.
fn made(directory: &OwnedFd, name: &OsStr) -> (i64, i64) {
    let stat = rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW);
    stat.map_or((0, 0), |stat| {
        let seconds = stat.st_ctime;
        let nanoseconds = i64::try_from(stat.st_ctime_nsec).unwrap_or(i64::MAX);
        (seconds, nanoseconds)
    })
}

/// What stands in a directory.
fn names(directory: &OwnedFd) -> rustix::io::Result<Vec<OsString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(OsStr::from_bytes(name).to_owned());
        }
    }
    Ok(names)
}

/// `..` and 128 bits in hexadecimal.
fn is_generation(name: &OsStr) -> bool {
    let digits = name.as_bytes().strip_prefix(b"..");
    digits.is_some_and(|digits| {
        digits.len() == 32
            && digits
                .iter()
                .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(b))
    })
}

fn starts(name: &OsStr, prefix: &str) -> bool {
    name.as_bytes().starts_with(prefix.as_bytes())
}

/// `..data/NAME`
fn through(name: &OsStr) -> OsString {
    let mut target = OsString::from(DATA);
    target.push("/");
    target.push(name);
    target
}

fn is_link_of_file(directory: &OwnedFd, name: &OsStr) -> bool {
    let target = rustix::fs::readlinkat(directory, name, Vec::new());
    target.is_ok_and(|target| target.as_bytes() == through(name).as_bytes())
}

/// A link that was to become `..data`, and whose generation is gone.
fn is_dangling_link(directory: &OwnedFd, name: &OsStr) -> bool {
    starts(name, LINK_OF_DATA)
        && rustix::fs::readlinkat(directory, name, Vec::new()).is_ok_and(|target| {
            let stat = rustix::fs::statat(directory, &target, AtFlags::SYMLINK_NOFOLLOW);
            stat.err() == Some(Errno::NOENT)
        })
}

/// Whether a process that lives has it locked.
fn is_being_built(directory: &OwnedFd, name: &OsStr) -> bool {
    let Ok(generation) = rustix::fs::openat(directory, name, OPEN, Mode::empty()) else {
        return true;
    };
    let locked = rustix::fs::flock(&generation, FlockOperation::NonBlockingLockExclusive);
    locked.err() == Some(Errno::WOULDBLOCK)
}

/// Removes a directory with the files in it; what else somebody has put there stays, and the directory with it.
fn discard(directory: &OwnedFd, name: &OsStr) -> rustix::io::Result<()> {
    // It may belong to whoever reads it, and may not be written to.
    let own = (rustix::process::geteuid(), rustix::process::getegid());
    let _ = rustix::fs::chownat(
        directory,
        name,
        Some(own.0),
        Some(own.1),
        AtFlags::SYMLINK_NOFOLLOW,
    );
    let generation = match rustix::fs::openat(directory, name, OPEN, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(()),
        opened => opened?,
    };
    let _ = rustix::fs::fchmod(&generation, Mode::RWXU);
    for file in names(&generation)? {
        match rustix::fs::unlinkat(&generation, &file, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT | Errno::ISDIR) => {}
            Err(errno) => return Err(errno),
        }
    }
    match rustix::fs::unlinkat(directory, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(errno),
    }
}

#[cfg(test)]
mod tests;
