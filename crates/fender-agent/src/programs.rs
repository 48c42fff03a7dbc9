//! The digests of programs, and whose turn it is to have one read.
//!
//! Reading a program is the one thing here that is slow, and the caller chooses how slow: its size, its disk. So each tenant
//! has one turn at a time, all together a few; a turn ends when the reading has really ended, and not when whoever waited
//! has gone away; and whoever has gone away, or waited for too long, is read for no longer.
//!
//! A digest is remembered only where the file system vouches that the file is the same: by a change time that nobody can
//! set, which lay well in the past when the reading began. Where a file may change without one, it is read every time.

use std::collections::HashMap;
use std::fs::File;
use std::hash::Hash;
use std::io::{self, Read as _};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use fender_config::Sha256;
use fender_runtime::clock::UnixTime;
use fender_runtime::deadline::Deadline;
use rustix::fs::{AtFlags, Statx, StatxFlags};
use tokio::sync::Semaphore;

/// The largest program that is hashed.
pub(crate) const MAX_PROGRAM: u64 = 1024 * 1024 * 1024;
/// Programs that are read at once, for all tenants together.
const READING: usize = 4;
/// Digests that are remembered.
const REMEMBERED: usize = 1024;
/// A change younger than this may be followed by another with the same time on it.
const SETTLED: u64 = 2;
const BUFFER: usize = 128 * 1024;

/// A file system whose contents are whatever a process of some user says at the moment.
const FUSE: i64 = 0x6573_5546;
/// One that shows the files of others, which may be of that kind.
const OVERLAY: i64 = 0x794c_7630;
/// Those that set the change time with every change of the contents, mapped memory included: ext4, XFS, btrfs.
const DATED: [i64; 3] = [0xef53, 0x5846_5342, 0x9123_683e];

/// Who may have something read, and when.
#[derive(Debug)]
pub(crate) struct Turns<K> {
    all: Arc<Semaphore>,
    tenants: Mutex<HashMap<K, Weak<Semaphore>>>,
}

impl<K: Eq + Hash + Clone> Turns<K> {
    pub(crate) fn new() -> Self {
        Self {
            all: Arc::new(Semaphore::new(READING)),
            tenants: Mutex::default(),
        }
    }

    /// Does what blocks, in the turn of a tenant. Whoever stops waiting leaves a flag for the work to look at; the turn is
    /// given back when the work returns.
    pub(crate) async fn take<T: Send + 'static>(
        &self,
        tenant: &K,
        deadline: Deadline,
        work: impl FnOnce(&AtomicBool) -> T + Send + 'static,
    ) -> Result<T, Late> {
        let of_tenant = self.of_tenant(tenant);
        let turn = async {
            let own = of_tenant.acquire_owned().await.map_err(|_| Late)?;
            let place = Arc::clone(&self.all).acquire_owned().await;
            Ok::<_, Late>((own, place.map_err(|_| Late)?))
        };
        let turn = deadline.bound(turn).await.map_err(|_| Late)??;
        let waiting = Waiting(Arc::default());
        let given_up = Arc::clone(&waiting.0);
        let working = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            work(&given_up)
        });
        match deadline.bound(working).await {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(_)) | Err(_) => Err(Late),
        }
    }

    fn of_tenant(&self, tenant: &K) -> Arc<Semaphore> {
        let mut tenants = self.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(turn) = tenants.get(tenant).and_then(Weak::upgrade) {
            return turn;
        }
        tenants.retain(|_, turn| turn.strong_count() > 0);
        let turn = Arc::new(Semaphore::new(1));
        tenants.insert(tenant.clone(), Arc::downgrade(&turn));
        turn
    }
}

/// Dropped by whoever waited, however it ended.
struct Waiting(Arc<AtomicBool>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The turn did not come, or was not over, in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("its program could not be read in time")]
pub(crate) struct Late;

/// The digests of programs that did not change.
#[derive(Debug, Default)]
pub(crate) struct Digests {
    remembered: Mutex<HashMap<Version, Remembered>>,
}

#[derive(Debug)]
struct Remembered {
    digest: Sha256,
    /// Of a count of all uses; the smallest one is forgotten first.
    used: u64,
}

/// One state of one file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Version {
    device: (u32, u32),
    inode: u64,
    size: u64,
    modified: (i64, u32),
    changed: (i64, u32),
}

impl From<&Statx> for Version {
    fn from(of: &Statx) -> Self {
        Self {
            device: (of.stx_dev_major, of.stx_dev_minor),
            inode: of.stx_ino,
            size: of.stx_size,
            modified: (of.stx_mtime.tv_sec, of.stx_mtime.tv_nsec),
            changed: (of.stx_ctime.tv_sec, of.stx_ctime.tv_nsec),
        }
    }
}

impl Digests {
    /// Of the very file that is open. None for what is too large, and for what has no contents of its own.
    pub(crate) fn of(
        &self,
        program: &mut File,
        now: UnixTime,
        given_up: &AtomicBool,
    ) -> Result<Option<Sha256>, NotRead> {
        let before = statx(program)?;
        let regular = u32::from(before.stx_mode) & 0o170_000 == 0o100_000;
        if !regular || before.stx_size > MAX_PROGRAM || !has_contents(program, &before)? {
            return Ok(None);
        }
        let version = Version::from(&before);
        if let Some(digest) = self.recall(&version) {
            return Ok(Some(digest));
        }
        let Some(digest) = read(program, given_up)? else {
            return Ok(None);
        };
        if Version::from(&statx(program)?) != version {
            return Err(NotRead::Changed);
        }
        if is_dated(program)? && is_settled(version.changed, now) {
            self.remember(version, digest);
        }
        Ok(Some(digest))
    }

    fn recall(&self, version: &Version) -> Option<Sha256> {
        let mut remembered = self.lock();
        let used = next(&remembered);
        let found = remembered.get_mut(version)?;
        found.used = used;
        Some(found.digest)
    }

    fn remember(&self, version: Version, digest: Sha256) {
        let mut remembered = self.lock();
        if remembered.len() >= REMEMBERED {
            let oldest = remembered.iter().min_by_key(|(_, it)| it.used);
            if let Some(oldest) = oldest.map(|(version, _)| *version) {
                remembered.remove(&oldest);
            }
        }
        let used = next(&remembered);
        remembered.insert(version, Remembered { digest, used });
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Version, Remembered>> {
        self.remembered
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

fn next(remembered: &HashMap<Version, Remembered>) -> u64 {
    remembered.values().map(|it| it.used).max().unwrap_or(0) + 1
}

/// Why there is no digest.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotRead {
    #[error("its program changed while it was read")]
    Changed,
    #[error("nobody waits for it any more")]
    GivenUp,
    #[error(transparent)]
    Io(#[from] io::Error),
}

fn read(program: &mut File, given_up: &AtomicBool) -> Result<Option<Sha256>, NotRead> {
    let mut digest = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
    let mut buffer = vec![0; BUFFER];
    let mut left = MAX_PROGRAM;
    loop {
        if given_up.load(Ordering::Relaxed) {
            return Err(NotRead::GivenUp);
        }
        let read = program.read(&mut buffer)?;
        let Some(bytes) = buffer.get(..read).filter(|bytes| !bytes.is_empty()) else {
            break;
        };
        digest.update(bytes);
        left = left.saturating_sub(read as u64);
        if left == 0 {
            return Ok(None);
        }
    }
    let digest = digest.finish();
    Ok(<[u8; 32]>::try_from(digest.as_ref()).ok().map(Sha256))
}

/// The contents are the file's, and the same for every reader.
fn has_contents(program: &File, of: &Statx) -> io::Result<bool> {
    match kind(program)? {
        FUSE => Ok(false),
        // Whoever has a mount namespace of their own may lay one file system over another. Only what is mounted for us
        // as well was mounted by somebody who may.
        OVERLAY => is_mounted_here(of),
        _ => Ok(true),
    }
}

fn is_dated(program: &File) -> io::Result<bool> {
    Ok(DATED.contains(&kind(program)?))
}

fn is_settled((seconds, _): (i64, u32), now: UnixTime) -> bool {
    u64::try_from(seconds).is_ok_and(|changed| changed + SETTLED < now.as_secs())
}

fn kind(file: &File) -> io::Result<i64> {
    let kind = rustix::fs::fstatfs(file)?.f_type;
    #[allow(
        clippy::unnecessary_cast,
        reason = "its width differs between architectures"
    )]
    Ok(kind as i64)
}

fn is_mounted_here(of: &Statx) -> io::Result<bool> {
    if !StatxFlags::from_bits_retain(of.stx_mask).contains(StatxFlags::MNT_ID) {
        return Ok(false);
    }
    let number = of.stx_mnt_id.to_string();
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    Ok(mounts
        .lines()
        .any(|line| line.split(' ').next() == Some(&*number)))
}

fn statx(file: &File) -> io::Result<Statx> {
    let wanted = StatxFlags::BASIC_STATS | StatxFlags::MNT_ID;
    Ok(rustix::fs::statx(file, "", AtFlags::EMPTY_PATH, wanted)?)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    const FAR: u64 = 60;

    /// Where programs lie: a file system in memory has no change times to go by.
    fn program() -> tempfile::NamedTempFile {
        let test = std::env::current_exe().unwrap();
        tempfile::NamedTempFile::new_in(test.parent().unwrap()).unwrap()
    }

    fn later(file: &File) -> UnixTime {
        let changed = u64::try_from(statx(file).unwrap().stx_ctime.tv_sec).unwrap();
        UnixTime::since_unix_epoch(Duration::from_secs(changed + FAR))
    }

    fn open(path: &std::path::Path) -> File {
        File::open(path).unwrap()
    }

    fn digest(digests: &Digests, path: &std::path::Path, now: UnixTime) -> Option<Sha256> {
        digests
            .of(&mut open(path), now, &AtomicBool::new(false))
            .unwrap()
    }

    #[test]
    fn a_program_that_did_not_change_is_read_once_and_one_that_did_is_read_again() {
        let file = program();
        std::fs::write(file.path(), "one").unwrap();
        let digests = Digests::default();
        let now = later(file.as_file());
        let first = digest(&digests, file.path(), now).unwrap();
        // Reading the second time fails at once, if it reads.
        let nobody_waits = AtomicBool::new(true);
        let again = digests.of(&mut open(file.path()), now, &nobody_waits);
        assert_eq!(again.unwrap(), Some(first));
        std::fs::write(file.path(), "two").unwrap();
        let now = later(file.as_file());
        assert_ne!(digest(&digests, file.path(), now).unwrap(), first);
    }

    #[test]
    fn attack_contents_put_back_with_their_old_times_are_not_taken_for_what_they_were() {
        let mut file = program();
        file.write_all(b"good").unwrap();
        let times = file.as_file().metadata().unwrap().modified().unwrap();
        let digests = Digests::default();
        let good = digest(&digests, file.path(), later(file.as_file()));
        std::fs::write(file.path(), "evil").unwrap();
        file.as_file().set_modified(times).unwrap();
        assert_ne!(digest(&digests, file.path(), later(file.as_file())), good);
    }

    #[test]
    fn attack_a_change_as_young_as_the_reading_is_not_remembered() {
        let file = program();
        std::fs::write(file.path(), "good").unwrap();
        let digests = Digests::default();
        let changed = later(file.as_file()).as_secs() - FAR;
        let now = UnixTime::since_unix_epoch(Duration::from_secs(changed + SETTLED));
        digest(&digests, file.path(), now).unwrap();
        assert!(digests.lock().is_empty());
    }

    #[test]
    fn no_more_are_remembered_than_there_is_room_for() {
        let digests = Digests::default();
        let version = |inode| Version {
            device: (0, 0),
            inode,
            size: 0,
            modified: (0, 0),
            changed: (0, 0),
        };
        for inode in 0..=REMEMBERED as u64 {
            digests.remember(version(inode), Sha256([0; 32]));
            digests.recall(&version(0));
        }
        assert_eq!(digests.lock().len(), REMEMBERED);
        assert!(digests.recall(&version(0)).is_some(), "in use");
        assert!(
            digests.recall(&version(1)).is_none(),
            "not used for longest"
        );
    }

    /// Work that goes on until it is let go.
    fn stuck() -> (mpsc::Sender<()>, impl FnOnce(&AtomicBool) + Send) {
        let (let_go, wait) = mpsc::channel::<()>();
        (let_go, move |_: &AtomicBool| {
            let _ = wait.recv();
        })
    }

    #[tokio::test]
    async fn attack_one_user_takes_no_other_users_turn() {
        let turns = Turns::new();
        let (let_go, work) = stuck();
        let far = Deadline::after(Duration::from_secs(600));
        let mut first = std::pin::pin!(turns.take(&1, far, work));
        assert!(futures_util::poll!(&mut first).is_pending());
        let mut others = Vec::new();
        for _ in 0..100 {
            let (sender, work) = stuck();
            others.push((Box::pin(turns.take(&1, far, work)), sender));
        }
        for (other, _) in &mut others {
            assert!(futures_util::poll!(other).is_pending());
        }
        assert_eq!(turns.take(&2, far, |_| "read").await, Ok("read"));
        drop(let_go);
        first.await.unwrap();
    }

    #[tokio::test]
    async fn attack_whoever_hangs_up_while_it_is_read_does_not_get_another_turn_before_that_ends() {
        let turns = Turns::new();
        let far = Deadline::after(Duration::from_secs(600));
        let (let_go, work) = stuck();
        let (began, begun) = tokio::sync::oneshot::channel();
        let (saw, seen) = tokio::sync::oneshot::channel();
        let work = move |given_up: &AtomicBool| {
            let _ = began.send(());
            work(given_up);
            let _ = saw.send(given_up.load(Ordering::Relaxed));
        };
        {
            let mut call = std::pin::pin!(turns.take(&1, far, work));
            tokio::select! {
                _ = &mut call => panic!("it is stuck"),
                begun = begun => begun.unwrap(),
            }
            // Hung up here.
        }
        let soon = Deadline::after(Duration::ZERO);
        assert_eq!(turns.take(&1, soon, |_| ()).await, Err(Late));
        assert_eq!(turns.all.available_permits(), READING - 1);
        drop(let_go);
        assert!(seen.await.unwrap(), "the work can see that nobody waits");
        assert_eq!(turns.take(&1, far, |_| ()).await, Ok(()));
    }

    #[tokio::test]
    async fn whoever_is_gone_leaves_nothing_behind() {
        let turns = Turns::new();
        let far = Deadline::after(Duration::from_secs(600));
        for uid in 0..100 {
            turns.take(&uid, far, |_| ()).await.unwrap();
        }
        assert!(turns.tenants.lock().unwrap().len() <= 2);
    }
}
