//! Standard error, for a process that must not hang because nobody reads it.
//!
//! What is written waits for its reader for a while, and is lost then; until somebody reads again what comes after it does not wait at
//! all. That something was lost is not said: there is nowhere to.

use std::io::{self, IoSlice, Write};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::FileType;
use rustix::io::{Errno, ReadWriteFlags};

/// How long a line waits, the whole of it.
const PATIENCE: Duration = Duration::from_secs(5);

/// Where nobody has read for so long.
static NOBODY_READS: AtomicBool = AtomicBool::new(false);
/// Where the last line was lost behind its beginning: the next one begins on a line of its own.
static CUT: AtomicBool = AtomicBool::new(false);

/// Standard error of this process. Writing a line to it takes some seconds at most, however little is read of it; a terminal that was stopped
/// is waited for.
#[derive(Clone, Copy, Debug, Default)]
pub struct StandardError;

impl Write for StandardError {
    /// All of it, or the rest is lost.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // So no line of ours stands in another.
        let sink = io::stderr().lock();
        let patience = match NOBODY_READS.load(Ordering::Relaxed) {
            true => Duration::ZERO,
            false => PATIENCE,
        };
        let until = Instant::now() + patience;
        if CUT.load(Ordering::Relaxed) {
            CUT.store(offer(&sink, b"\n", until)? == 0, Ordering::Relaxed);
        }
        let written = match CUT.load(Ordering::Relaxed) {
            true => 0,
            false => offer(&sink, bytes, until)?,
        };
        NOBODY_READS.store(written < bytes.len(), Ordering::Relaxed);
        if (1..bytes.len()).contains(&written) {
            CUT.store(true, Ordering::Relaxed);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// How much of it is taken until then.
fn offer(sink: impl AsFd, bytes: &[u8], until: Instant) -> io::Result<usize> {
    let mut written = 0;
    while let Some(rest) = bytes.get(written..).filter(|rest| !rest.is_empty()) {
        let left = until.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).unwrap_or_default();
        let mut ready = [PollFd::new(&sink, PollFlags::OUT)];
        match rustix::event::poll(&mut ready, Some(&left)) {
            Ok(0) => break,
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        }
        match write_at_once(&sink, rest) {
            // There was room, and somebody else was quicker.
            Err(Errno::INTR | Errno::AGAIN) => {}
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(some) => written += some,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(written)
}

/// As much as it takes without waiting. The flags of the open file are not touched: others have it, too.
fn write_at_once(sink: impl AsFd, bytes: &[u8]) -> Result<usize, Errno> {
    let kind = FileType::from_raw_mode(rustix::fs::fstat(&sink)?.st_mode);
    if matches!(kind, FileType::Fifo | FileType::Socket) {
        // Where it stands: neither has places.
        let here = u64::MAX;
        let bytes = [IoSlice::new(bytes)];
        match rustix::io::pwritev2(&sink, &bytes, here, ReadWriteFlags::NOWAIT) {
            // A kernel that cannot.
            Err(Errno::OPNOTSUPP) => {}
            written => return written,
        }
    }
    // It was said that it takes something; a pipe takes a page then (`pipe(7)`).
    const PAGE: usize = 4096;
    rustix::io::write(&sink, bytes.get(..PAGE).unwrap_or(bytes))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read as _;
    use std::os::fd::OwnedFd;

    use super::*;

    #[test]
    fn attack_who_reads_nothing_holds_nobody_up_and_misses_only_that() {
        let (reader, writer) = io::pipe().unwrap();
        let (mut reader, writer) = (File::from(OwnedFd::from(reader)), OwnedFd::from(writer));
        let line = [b'x'; 12 * 1024];
        let mut written = 0;
        loop {
            let some = offer(&writer, &line, Instant::now()).unwrap();
            written += some;
            if some < line.len() {
                break;
            }
        }
        assert_eq!(offer(&writer, b"lost", Instant::now()).unwrap(), 0);
        let mut read = vec![0; written];
        reader.read_exact(&mut read).unwrap();
        assert_eq!(offer(&writer, b"again", Instant::now()).unwrap(), 5);
        drop(writer);
        read.clear();
        reader.read_to_end(&mut read).unwrap();
        assert_eq!(read, b"again");
    }

    /// Whoever writes to the same pipe may take the room between the look and the write.
    #[test]
    fn attack_a_pipe_that_is_full_by_now_takes_nothing_and_is_not_waited_for() {
        let (_reader, pipe) = io::pipe().unwrap();
        let (_peer, socket) = std::os::unix::net::UnixStream::pair().unwrap();
        for writer in [OwnedFd::from(pipe), OwnedFd::from(socket)] {
            let end = loop {
                if let Err(error) = write_at_once(&writer, &[b'x'; 4096]) {
                    break error;
                }
            };
            assert_eq!(end, Errno::AGAIN);
        }
    }
}
