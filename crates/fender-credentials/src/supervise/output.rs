//! What the application writes, on its way through this process: masked, and otherwise as it is.
//!
//! The application writes into pipes, which are the same for every run of it. A thread of its own reads each, masks and
//! writes; it reads nothing more before everything is written, so whoever reads slowly slows down the application and nobody
//! else, as a pipe does, and nothing piles up here. Whoever is gone is gone for the application, too.
//!
//! Where standard output and standard error are one thing, as at a terminal, both are one pipe: their order stays, and what is
//! half on one and half on the other is seen as it will be read. At a terminal that is the application's these threads write in the
//! background, and are not stopped for it (`stty tostop`).
//!
//! At the end what lies in the pipes is still written, but nobody is waited for who was left behind with them.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::Stdio;
use std::time::Duration;

use fender_runtime::sys;
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use tokio::sync::mpsc;

use crate::mask::{Masks, Stream};

/// What is read at once.
const PIECE: usize = 16 * 1024;
/// How long the end waits for a reader that takes nothing.
const PATIENCE: Duration = Duration::from_secs(10);

/// The pipes, and who reads them.
pub(super) struct Output {
    standard_output: OwnedFd,
    /// None: the same.
    standard_error: Option<OwnedFd>,
    /// Closed at the end, which every thread hears.
    over: OwnedFd,
    /// Ends when every thread has.
    done: mpsc::Receiver<()>,
}

impl Output {
    /// Reads and masks from now on.
    pub(super) fn open(masks: &Masks) -> io::Result<Self> {
        let (ends, over) = io::pipe()?;
        let (tell, done) = mpsc::channel(1);
        let (stdout, stderr) = (io::stdout(), io::stderr());
        let one = is_one(stdout.as_fd(), stderr.as_fd());
        let begin = |sink: BorrowedFd<'_>| -> io::Result<OwnedFd> {
            let (reader, writer) = io::pipe()?;
            let relay = Relay {
                reader: reader.into(),
                ends: ends.as_fd().try_clone_to_owned()?,
                sink: sink.try_clone_to_owned()?.into(),
                stream: Stream::new(masks.clone()),
                _done: tell.clone(),
            };
            std::thread::Builder::new()
                .name("mask".to_owned())
                .spawn(move || relay.run())?;
            Ok(writer.into())
        };
        Ok(Self {
            standard_output: begin(stdout.as_fd())?,
            standard_error: (!one).then(|| begin(stderr.as_fd())).transpose()?,
            over: over.into(),
            done,
        })
    }

    /// For another run of the application: its standard output and its standard error.
    pub(super) fn ends(&self) -> io::Result<[Stdio; 2]> {
        let error = self.standard_error.as_ref();
        let error = error.unwrap_or(&self.standard_output);
        Ok([
            self.standard_output.try_clone()?.into(),
            error.try_clone()?.into(),
        ])
    }

    /// The application has ended: waits until what it has written is where it belongs.
    pub(super) async fn close(self) {
        let Self {
            standard_output,
            standard_error,
            over,
            mut done,
        } = self;
        drop((standard_output, standard_error, over));
        if tokio::time::timeout(PATIENCE, done.recv()).await.is_err() {
            tracing::warn!("what the application has written last is lost: nobody reads it");
        }
    }
}

/// Whether two descriptors are of one file, terminal, pipe or socket.
fn is_one(one: BorrowedFd<'_>, other: BorrowedFd<'_>) -> bool {
    let identity = |of: BorrowedFd<'_>| {
        let stat = rustix::fs::fstat(of).ok()?;
        Some((stat.st_dev, stat.st_ino))
    };
    identity(one).is_some_and(|it| identity(other) == Some(it))
}

/// One pipe and where it leads.
struct Relay {
    reader: OwnedFd,
    ends: OwnedFd,
    sink: File,
    stream: Stream,
    _done: mpsc::Sender<()>,
}

impl Relay {
    fn run(mut self) {
        if let Err(error) = sys::write_in_background() {
            tracing::warn!(%error, "what the application writes is not passed on to a terminal that stops whoever writes in the background");
        }
        match self.carry() {
            Ok(()) => {}
            // The application hears of it as it would without us.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
            Err(error) => {
                tracing::warn!(%error, "what the application writes is not passed on any more")
            }
        }
    }

    fn carry(&mut self) -> io::Result<()> {
        let mut piece = zeroize::Zeroizing::new(vec![0; PIECE]);
        let mut out = Vec::with_capacity(2 * PIECE);
        // At the end: what is in the pipe is all that the application has written.
        let mut left = None;
        loop {
            if left.is_none() && self.is_over()? {
                left = Some(rustix::io::ioctl_fionread(&self.reader)?);
            }
            let most = left.map_or(PIECE, |left| {
                usize::try_from(left).unwrap_or(PIECE).min(PIECE)
            });
            let room = piece.get_mut(..most).unwrap_or_default();
            let read = match room.is_empty() {
                true => 0,
                false => match rustix::io::read(&self.reader, &mut *room) {
                    Ok(read) => read,
                    Err(Errno::INTR) => continue,
                    Err(error) => return Err(error.into()),
                },
            };
            if read == 0 {
                self.stream.finish(&mut out);
                return self.write(&out);
            }
            left = left.map(|left| left.saturating_sub(read as u64));
            self.stream
                .pass(room.get(..read).unwrap_or_default(), &mut out);
            self.write(&out)?;
            out.clear();
        }
    }

    /// Waits until there is something to read, or the end: whether it is that.
    fn is_over(&self) -> io::Result<bool> {
        let mut both = [
            PollFd::new(&self.reader, PollFlags::IN),
            PollFd::new(&self.ends, PollFlags::IN),
        ];
        loop {
            match rustix::event::poll(&mut both, None) {
                Ok(_) => return Ok(both.iter().skip(1).any(|it| !it.revents().is_empty())),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Also to a terminal that somebody else has made one of those that do not wait.
    fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.sink.write(bytes) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let mut sink = [PollFd::new(&self.sink, PollFlags::OUT)];
                    match rustix::event::poll(&mut sink, None) {
                        Ok(_) | Err(Errno::INTR) => {}
                        Err(error) => return Err(error.into()),
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
