//! Standard error, for a process that must not hang because nobody reads it.
//!
//! What is written waits for its reader for a while, and is lost then; until somebody reads again what comes after it does not wait at
//! all. That something was lost is not said: there is nowhere to.
//!
//! A terminal is opened once more, because it has no calls that do not wait but for a file that is open so, and the one that was inherited
//! is open for others, too. Where this user may not open it, one that takes part of a line and no more is waited for.

use std::io::{self, IoSlice, IsTerminal as _, Write};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::{Errno, ReadWriteFlags};

/// How long a line waits, the whole of it.
const PATIENCE: Duration = Duration::from_secs(5);
/// Before it is tried again where there was room, and not enough.
const PAUSE: Duration = Duration::from_millis(1);

/// Where nobody has read for so long.
static NOBODY_READS: AtomicBool = AtomicBool::new(false);
/// Where the last line was lost behind its beginning: the next one begins on a line of its own.
static CUT: AtomicBool = AtomicBool::new(false);

/// Standard error of this process. Writing a line to it takes some seconds at most, however little is read of it, or if it is a terminal that
/// was stopped.
#[derive(Clone, Copy, Debug, Default)]
pub struct StandardError;

impl Write for StandardError {
    /// All of it, or the rest is lost.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // So no line of ours stands in another.
        let inherited = io::stderr().lock();
        let sink = terminal().unwrap_or(inherited.as_fd());
        let until = patience();
        let written = match begin_line(sink, until)? {
            true => offer(sink, bytes, until)?,
            false => 0,
        };
        left_off(written, bytes.len());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The same for a thread that has nothing else to do: no line is lost, and the rest of the process is held up no longer than by a line of its
/// own, however long this thread waits.
#[derive(Debug, Default)]
pub(crate) struct WholeLines {
    /// Whether the line that comes first was begun before and cut.
    again: bool,
}

impl Write for WholeLines {
    /// Some whole lines of these.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            let inherited = io::stderr().lock();
            let sink = terminal().unwrap_or(inherited.as_fd());
            let taken = offer_lines(sink, bytes, &mut self.again)?;
            drop(inherited);
            if taken > 0 {
                return Ok(taken);
            }
            wait_for_room()?;
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// How many bytes of whole lines are taken now. One of which a part was taken counts as not taken: it comes again, on a line of its own.
///
/// Such a one is waited for whatever became of those before it, and so it gets through to whoever reads a little at a time, however long it is.
fn offer_lines(sink: BorrowedFd<'_>, bytes: &[u8], again: &mut bool) -> io::Result<usize> {
    if !begin_line(sink, Instant::now())? {
        return Ok(0);
    }
    let written = offer(sink, bytes, Instant::now())?;
    let (now, rest) = bytes.split_at(written);
    let was_cut = written > 0 && std::mem::take(again);
    if rest.is_empty() {
        left_off(written, bytes.len());
        return Ok(written);
    }
    let whole = now.iter().rposition(|byte| *byte == b'\n');
    let whole = whole.map_or(0, |at| at + 1);
    if whole == written {
        return Ok(written);
    }
    let end = rest.iter().position(|byte| *byte == b'\n');
    let end = written + end.map_or(rest.len(), |at| at + 1);
    let line = bytes.get(written..end).unwrap_or_default();
    let until = match was_cut && whole == 0 {
        true => Instant::now() + PATIENCE,
        false => patience(),
    };
    let more = offer(sink, line, until)?;
    left_off(written + more - whole, end - whole);
    // Its end alone comes before whatever is next.
    let missing = line.get(more..).unwrap_or_default();
    *again = !matches!(missing, b"" | b"\n");
    Ok(if *again { whole } else { end })
}

/// Waits, for as long as it takes, and keeps nobody from writing meanwhile.
fn wait_for_room() -> io::Result<()> {
    let inherited = io::stderr();
    let sink = terminal().unwrap_or(inherited.as_fd());
    match rustix::event::poll(&mut [PollFd::new(&sink, PollFlags::OUT)], None) {
        Ok(_) => {}
        Err(Errno::INTR) => return Ok(()),
        Err(error) => return Err(error.into()),
    }
    // There may be room, and too little of it.
    std::thread::sleep(PAUSE);
    Ok(())
}

/// Until when a line may wait that begins now.
fn patience() -> Instant {
    let now = Instant::now();
    match NOBODY_READS.load(Ordering::Relaxed) {
        true => now,
        false => now + PATIENCE,
    }
}

/// Ends the line that was cut, if one was. Whether another one can begin.
fn begin_line(sink: BorrowedFd<'_>, until: Instant) -> io::Result<bool> {
    if CUT.load(Ordering::Relaxed) {
        CUT.store(offer(sink, b"\n", until)? == 0, Ordering::Relaxed);
    }
    Ok(!CUT.load(Ordering::Relaxed))
}

/// So much of a line was taken.
fn left_off(written: usize, length: usize) {
    NOBODY_READS.store(written < length, Ordering::Relaxed);
    if (1..length).contains(&written) {
        CUT.store(true, Ordering::Relaxed);
    }
}

/// Opens the terminal, if it is one, while this process may: before it confines itself.
pub(super) fn prepare() {
    let _ = terminal();
}

fn terminal() -> Option<BorrowedFd<'static>> {
    static TERMINAL: OnceLock<Option<OwnedFd>> = OnceLock::new();
    let terminal = TERMINAL.get_or_init(|| {
        let inherited = io::stderr();
        let is_terminal = inherited.is_terminal();
        is_terminal.then(|| reopened(inherited).ok()).flatten()
    });
    terminal.as_ref().map(AsFd::as_fd)
}

/// The same terminal by an open file of this process's own, at which no call waits.
fn reopened(terminal: impl AsFd) -> io::Result<OwnedFd> {
    let itself = format!("/proc/self/fd/{}", terminal.as_fd().as_raw_fd());
    let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(itself, flags, Mode::empty())?)
}

/// How much of it is taken until then.
fn offer(sink: impl AsFd, bytes: &[u8], until: Instant) -> io::Result<usize> {
    let mut written = 0;
    while let Some(rest) = bytes.get(written..).filter(|rest| !rest.is_empty()) {
        let left = until.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).unwrap_or_default();
        let mut ready = [PollFd::new(&sink, PollFlags::OUT)];
        match rustix::event::poll(&mut ready, Some(&timeout)) {
            Ok(0) => break,
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        }
        match write_at_once(&sink, rest) {
            // There was room, and somebody else was quicker; or a terminal has some, and the next character needs more.
            Err(Errno::AGAIN) if left.is_zero() => break,
            Err(Errno::AGAIN) => std::thread::sleep(PAUSE.min(left)),
            Err(Errno::INTR) => {}
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
    if kind == FileType::RegularFile {
        return rustix::io::write(&sink, bytes);
    }
    // It was said that it takes something; a pipe takes a page then (`pipe(7)`), and a terminal what it has room for.
    const PAGE: usize = 4096;
    rustix::io::write(&sink, bytes.get(..PAGE).unwrap_or(bytes))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read as _;

    use rustix::pty::OpenptFlags;
    use rustix::termios::Action;

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

    /// A record of many lines waits; what was cut comes again.
    #[test]
    fn lines_that_are_not_taken_at_once_come_later_whole_and_none_is_lost() {
        let (reader, writer) = io::pipe().unwrap();
        let (mut reader, writer) = (File::from(OwnedFd::from(reader)), OwnedFd::from(writer));
        let lines: Vec<u8> = (0..40_000)
            .flat_map(|number| format!("line {number}\n").into_bytes())
            .collect();
        let (mut rest, mut read, mut cuts) = (lines.as_slice(), Vec::new(), 0);
        let mut again = false;
        while !rest.is_empty() {
            // As after a first line that nobody read.
            NOBODY_READS.store(true, Ordering::Relaxed);
            let taken = offer_lines(writer.as_fd(), rest, &mut again).unwrap();
            rest = &rest[taken..];
            cuts += usize::from(CUT.load(Ordering::Relaxed));
            let mut some = [0; 60_001];
            let length = reader.read(&mut some).unwrap();
            read.extend_from_slice(&some[..length]);
        }
        drop(writer);
        reader.read_to_end(&mut read).unwrap();
        CUT.store(false, Ordering::Relaxed);
        let read = String::from_utf8(read).unwrap();
        let mut expected = lines.split_inclusive(|byte| *byte == b'\n');
        let mut wanted = expected.next();
        let mut broken = 0;
        for line in read.split_inclusive('\n') {
            match wanted {
                Some(whole) if whole == line.as_bytes() => wanted = expected.next(),
                Some(whole) => {
                    assert!(whole.starts_with(line.trim_end().as_bytes()), "{line}");
                    broken += 1;
                }
                None => panic!("{line} came after the last one"),
            }
        }
        assert!(wanted.is_none(), "{wanted:?} is missing");
        assert!(cuts > 0 && broken > 0, "{cuts} cuts, {broken} broken lines");
    }

    /// A caller chooses how long a path is.
    #[test]
    fn attack_a_line_longer_than_what_is_read_at_once_comes_through_and_those_behind_it() {
        let (reader, writer) = io::pipe().unwrap();
        let (mut reader, writer) = (File::from(OwnedFd::from(reader)), OwnedFd::from(writer));
        // Full, for a reader that takes a page whenever it has shown what it got; and nobody read the line before.
        let filling = [b'-'; 4096];
        while offer(&writer, &filling, Instant::now()).unwrap() == filling.len() {}
        let bites = std::thread::spawn(move || {
            let mut read = Vec::new();
            let mut bite = [0; 4096];
            while let Ok(length @ 1..) = reader.read(&mut bite) {
                read.extend_from_slice(&bite[..length]);
            }
            read
        });
        let line = [b"x".repeat(200_000).as_slice(), b"\n"].concat();
        let lines = [line.as_slice(), b"next\n"].concat();
        let (mut rest, mut again) = (lines.as_slice(), false);
        NOBODY_READS.store(true, Ordering::Relaxed);
        while !rest.is_empty() {
            rest = &rest[offer_lines(writer.as_fd(), rest, &mut again).unwrap()..];
        }
        drop(writer);
        let read = bites.join().unwrap();
        let read = read.split(|byte| *byte == b'\n');
        let whole = read.filter(|read| read.ends_with(&line[..200_000])).count();
        assert_eq!(whole, 1, "once, and whole");
    }

    /// As one that was stopped, or whose window does not keep up.
    #[test]
    fn attack_a_terminal_that_takes_nothing_is_not_waited_for() {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY;
        let master = rustix::pty::openpt(flags).unwrap();
        rustix::pty::unlockpt(&master).unwrap();
        let name = rustix::pty::ptsname(&master, Vec::new()).unwrap();
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let inherited = rustix::fs::open(name, flags, Mode::empty()).unwrap();
        let terminal = reopened(&inherited).unwrap();

        // Stopped, as by Ctrl-S: nobody knows for how long.
        rustix::termios::tcflow(&inherited, Action::OOff).unwrap();
        assert_eq!(offer(&terminal, b"lost", Instant::now()).unwrap(), 0);
        assert_eq!(write_at_once(&terminal, b"lost"), Err(Errno::AGAIN));
        rustix::termios::tcflow(&inherited, Action::OOn).unwrap();
        assert_eq!(offer(&terminal, b"first", Instant::now()).unwrap(), 5);

        // Nobody reads, and what room there is is less than a line.
        let line = [b"x".repeat(1000).as_slice(), b"\n"].concat();
        let mut written = 0;
        loop {
            let some = offer(&terminal, &line, Instant::now()).unwrap();
            written += some;
            if some < line.len() {
                break;
            }
        }
        assert!(written > 0);
        let mut master = File::from(master);
        let mut read = 0;
        while read < written {
            read += master.read(&mut [0; 4096]).unwrap();
        }
        let line = b"again";
        assert_eq!(offer(&terminal, line, Instant::now()).unwrap(), line.len());
        // Whoever shares the one that was inherited writes to it as before.
        let flags = rustix::fs::fcntl_getfl(&inherited).unwrap();
        assert!(!flags.contains(OFlags::NONBLOCK), "{flags:?}");
    }
}
