//! Standard error, for a process that must not hang because nobody reads it.
//!
//! What is written waits for its reader for a while, and is lost then; until somebody reads again what comes after it does not wait at
//! all. That something was lost is not said: there is nowhere to.

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;

/// How long a line waits.
const PATIENCE: Timespec = Timespec {
    tv_sec: 5,
    tv_nsec: 0,
};
/// What takes anything takes so much at once (`pipe(7)`: a page).
const PIECE: usize = 4096;

/// Where nobody has read for so long.
static NOBODY_READS: AtomicBool = AtomicBool::new(false);

/// Standard error of this process; writing to it takes some seconds at most, however little is read of it.
#[derive(Clone, Copy, Debug, Default)]
pub struct StandardError;

impl Write for StandardError {
    /// All of it, or it is lost.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // So no line stands in another.
        let mut sink = io::stderr().lock();
        let mut rest = bytes;
        while !rest.is_empty() {
            let patience = match NOBODY_READS.load(Ordering::Relaxed) {
                true => Timespec::default(),
                false => PATIENCE,
            };
            let (done, lost) = offer(&mut sink, rest, &patience)?;
            NOBODY_READS.store(lost, Ordering::Relaxed);
            rest = rest.get(done..).unwrap_or_default();
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

/// How much is done with, and whether it is lost.
fn offer(
    mut sink: impl Write + AsFd,
    bytes: &[u8],
    patience: &Timespec,
) -> io::Result<(usize, bool)> {
    let takes = loop {
        let mut ready = [PollFd::new(&sink, PollFlags::OUT)];
        match rustix::event::poll(&mut ready, Some(patience)) {
            Ok(ready) => break ready > 0,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    };
    if !takes {
        return Ok((bytes.len(), true));
    }
    let piece = bytes.get(..PIECE).unwrap_or(bytes);
    loop {
        match sink.write(piece) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // Somebody else was quicker, on what does not wait.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Ok((bytes.len(), true));
            }
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            written => return Ok((written?, false)),
        }
    }
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
        let writer = File::from(writer);
        let line = [b'x'; 3 * PIECE];
        let none = Timespec::default();
        let mut written = 0;
        loop {
            let (some, lost) = offer(&writer, &line, &none).unwrap();
            if lost {
                assert_eq!(some, line.len());
                break;
            }
            assert!(some <= PIECE);
            written += some;
        }
        let mut read = vec![0; written];
        reader.read_exact(&mut read).unwrap();
        assert_eq!(offer(&writer, b"again", &none).unwrap(), (5, false));
        drop(writer);
        read.clear();
        reader.read_to_end(&mut read).unwrap();
        assert_eq!(read, b"again");
    }
}
