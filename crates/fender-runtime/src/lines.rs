//! Lines that a thread of its own writes: the access log.
//!
//! Whoever serves puts a line together and goes on. It is copied into a buffer, under a lock that is held for as long as
//! that takes; the thread takes the whole buffer some milliseconds after its first line and writes it at once. So nobody
//! waits for a disk or a reader, and no line pays for a wake-up of its own. What does not fit, because whoever reads is
//! slower than what happens, is dropped whole and counted.
//!
//! A file is appended to. One that was renamed or removed is made anew before the next write: rotation needs no signal.
//! Lines of the last milliseconds are lost when the process is killed; [`Writer`] writes them at every other end.

use std::cell::Cell;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use crate::telemetry::WholeLines;

/// How much may wait to be written. 4 MiB: some ten thousand lines, while a disk hesitates.
const WAITING: usize = 4 * 1024 * 1024;
/// How long a line waits for others to share its write.
const GATHER: Duration = Duration::from_millis(50);
/// From so much on nothing more is waited for.
const ENOUGH: usize = 64 * 1024;
/// What a buffer keeps of its memory once it is empty.
const KEPT: usize = 128 * 1024;
const KEPT_FOR_ONE: usize = 16 * 1024;
/// How long the end of the process waits for a destination that takes nothing.
const FAREWELL: Duration = Duration::from_secs(2);
/// People who read logs are not always who runs the process; strangers are neither.
const MODE: u32 = 0o640;

/// Where lines go.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub enum Destination {
    #[default]
    StandardError,
    StandardOutput,
    File(PathBuf),
    Nowhere,
}

impl FromStr for Destination {
    type Err = InvalidDestination;

    fn from_str(text: &str) -> Result<Self, InvalidDestination> {
        match text {
            "stderr" => Ok(Self::StandardError),
            "stdout" => Ok(Self::StandardOutput),
            "off" => Ok(Self::Nowhere),
            path if path.contains('/') => Ok(Self::File(path.into())),
            other => Err(InvalidDestination(other.to_owned())),
        }
    }
}

/// Neither a stream nor a path.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error(
    "`{0}` is neither `stderr`, `stdout` nor `off`; a file is written with its directory, such as `./{0}`"
)]
pub struct InvalidDestination(String);

/// The way in. Clones lead to the same place.
#[derive(Clone, Debug, Default)]
pub struct Lines(Option<Arc<Shared>>);

impl Lines {
    /// Nothing is written, and nothing is put together.
    pub fn off() -> Self {
        Self(None)
    }

    /// Lets `format` append one line, with its end, unless nobody will read it.
    pub fn write(&self, format: impl FnOnce(&mut Vec<u8>)) {
        let Some(shared) = &self.0 else {
            return;
        };
        let mut line = SCRATCH.try_with(Cell::take).unwrap_or_default();
        line.clear();
        format(&mut line);
        shared.push(&line);
        if line.capacity() <= KEPT_FOR_ONE {
            let _ = SCRATCH.try_with(|scratch| scratch.set(line));
        }
    }

    /// How many lines were lost since the start: there was no room, or they could not be written.
    pub fn dropped(&self) -> u64 {
        let dropped = |shared: &Arc<Shared>| shared.dropped.load(Ordering::Relaxed);
        self.0.as_ref().map_or(0, dropped)
    }
}

thread_local! {
    /// In which this thread puts a line together.
    static SCRATCH: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

struct Shared {
    pending: Mutex<Pending>,
    /// There is something to write, or it is the end.
    wake: Condvar,
    /// Everything was written.
    over: Condvar,
    dropped: AtomicU64,
}

#[derive(Default)]
struct Pending {
    bytes: Vec<u8>,
    state: State,
}

#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
enum State {
    #[default]
    Open,
    Ending,
    Over,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, line: &[u8]) {
        let mut pending = self.lock();
        let before = pending.bytes.len();
        let after = before + line.len();
        if after > WAITING || pending.state == State::Over {
            drop(pending);
            self.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        pending.bytes.extend_from_slice(line);
        drop(pending);
        // A call to the kernel: for the first line, and for the one with which there is enough.
        if before == 0 || (before < ENOUGH && after >= ENOUGH) {
            self.wake.notify_one();
        }
    }

    /// Waits for lines and takes them; says whether these are the last.
    fn take(&self, taken: &mut Vec<u8>) -> State {
        let open = |pending: &Pending| pending.state == State::Open;
        let nothing = |pending: &mut Pending| open(pending) && pending.bytes.is_empty();
        let few = |pending: &mut Pending| open(pending) && pending.bytes.len() < ENOUGH;
        let pending = self.wake.wait_while(self.lock(), nothing);
        let pending = pending.unwrap_or_else(PoisonError::into_inner);
        let gathered = self.wake.wait_timeout_while(pending, GATHER, few);
        let (mut pending, _) = gathered.unwrap_or_else(PoisonError::into_inner);
        std::mem::swap(taken, &mut pending.bytes);
        pending.state
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

/// The thread that writes. Dropped, it has written what was there, or waited long enough for it.
#[derive(Debug)]
#[must_use = "nothing is written any more once this is dropped"]
pub struct Writer(Option<Arc<Shared>>);

/// Opens a destination and starts its thread, which inherits what confines the caller.
pub fn open(destination: &Destination) -> io::Result<(Lines, Writer)> {
    match destination {
        Destination::Nowhere => Ok((Lines::off(), Writer(None))),
        Destination::StandardError => start(WholeLines::default()),
        Destination::StandardOutput => start(WholeBatches),
        Destination::File(path) => start(Appended::open(path.clone())?),
    }
}

/// Starts the thread for any writer, which gets whole lines.
pub fn start(sink: impl Write + Send + 'static) -> io::Result<(Lines, Writer)> {
    let shared = Arc::new(Shared {
        pending: Mutex::default(),
        wake: Condvar::new(),
        over: Condvar::new(),
        dropped: AtomicU64::new(0),
    });
    let own = shared.clone();
    thread::Builder::new()
        .name("access-log".to_owned())
        .spawn(move || run(&own, sink))?;
    Ok((Lines(Some(shared.clone())), Writer(Some(shared))))
}

impl Drop for Writer {
    fn drop(&mut self) {
        let Some(shared) = &self.0 else {
            return;
        };
        let mut pending = shared.lock();
        pending.state = State::Ending;
        shared.wake.notify_one();
        let writing = |pending: &mut Pending| pending.state != State::Over;
        // What a stuck destination has not taken by then is lost.
        let _ = shared.over.wait_timeout_while(pending, FAREWELL, writing);
    }
}

fn run(shared: &Shared, mut sink: impl Write) {
    let mut taken = Vec::new();
    let mut lost = 0_u64;
    loop {
        let state = shared.take(&mut taken);
        if !taken.is_empty() {
            match sink.write_all(&taken).and_then(|()| sink.flush()) {
                Ok(()) if lost > 0 => {
                    tracing::warn!(lost, "the access log is written again");
                    lost = 0;
                }
                Ok(()) => {}
                Err(error) => {
                    let lines = taken.iter().filter(|byte| **byte == b'\n').count() as u64;
                    shared.dropped.fetch_add(lines, Ordering::Relaxed);
                    // Once: whoever cannot write has no use for a line about each line.
                    if lost == 0 {
                        tracing::error!(%error, "the access log cannot be written");
                    }
                    lost += lines;
                }
            }
            taken.clear();
            taken.shrink_to(KEPT);
        }
        if state == State::Ending {
            let mut pending = shared.lock();
            if pending.bytes.is_empty() {
                pending.state = State::Over;
                shared.over.notify_all();
                return;
            }
        }
    }
}

/// Standard output, locked for a whole batch: nothing else lands in one of ours.
struct WholeBatches;

impl Write for WholeBatches {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut locked = io::stdout().lock();
        locked.write_all(bytes)?;
        locked.flush()?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A file that lines are appended to, wherever its name leads at the moment.
struct Appended {
    path: PathBuf,
    file: File,
    /// Device and number, by which a file is known whatever it is called.
    identity: (u64, u64),
}

impl Appended {
    fn open(path: PathBuf) -> io::Result<Self> {
        let (file, identity) = append(&path)?;
        Ok(Self {
            path,
            file,
            identity,
        })
    }

    /// Follows the name. The old file is kept for as long as there is no other.
    fn follow(&mut self) {
        let stays = std::fs::metadata(&self.path)
            .is_ok_and(|there| (there.dev(), there.ino()) == self.identity);
        if !stays && let Ok((file, identity)) = append(&self.path) {
            (self.file, self.identity) = (file, identity);
        }
    }
}

fn append(path: &Path) -> io::Result<(File, (u64, u64))> {
    let named =
        |error: io::Error| io::Error::new(error.kind(), format!("`{}`: {error}", path.display()));
    // Opening a pipe would wait for its reader.
    if std::fs::metadata(path).is_ok_and(|there| there.file_type().is_fifo()) {
        let error = io::Error::new(io::ErrorKind::InvalidInput, "a pipe is no place for a log");
        return Err(named(error));
    }
    let mut options = OpenOptions::new();
    let file = options.append(true).create(true).mode(MODE).open(path);
    let file = file.map_err(named)?;
    let metadata = file.metadata().map_err(named)?;
    Ok((file, (metadata.dev(), metadata.ino())))
}

impl Write for Appended {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    /// A batch goes to one file whole; the next follows the name.
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.follow();
        self.file.write_all(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
