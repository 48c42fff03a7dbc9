//! Lines between two processes of one machine, and descriptors that travel with them.
//!
//! A line ends with a line feed and holds 64 KiB at most; 64 descriptors may come with one. What is longer, or comes
//! with more, ends the conversation. Nothing is read beyond what was sent with the line: the stream can be used for
//! something else between two of them.
//!
//! It does not know who is at the other end, and waits for as long as its caller does.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use tokio::io::Interest;
use tokio::net::UnixStream;

/// Longer lines are nobody's.
const LONGEST: usize = 64 * 1024;
/// How many descriptors one line may bring. The kernel's limit is 253.
pub const DESCRIPTORS: usize = 64;
/// What is read at once.
const PIECE: usize = 4096;

/// One end of a conversation.
#[derive(Debug)]
pub struct Courier {
    stream: UnixStream,
    heard: Vec<u8>,
    brought: Vec<OwnedFd>,
}

impl Courier {
    /// Over a connected socket, of which nothing was read that belongs to a line.
    pub fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            heard: Vec::new(),
            brought: Vec::new(),
        }
    }

    /// The socket, for the kernel's word about the other end.
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// The socket, to speak otherwise over it.
    pub fn into_stream(self) -> UnixStream {
        self.stream
    }

    /// Says a line, without its end, and sends descriptors along; they stay open here. Not cancel safe.
    pub async fn say(&self, line: &str, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let text = format!("{line}\n");
        if text.len() > LONGEST || descriptors.len() > DESCRIPTORS {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let (mut rest, mut along) = (text.as_bytes(), descriptors);
        while !rest.is_empty() {
            self.stream.writable().await?;
            match self
                .stream
                .try_io(Interest::WRITABLE, || send(&self.stream, rest, along))
            {
                Ok(sent) => {
                    rest = rest.get(sent..).unwrap_or_default();
                    // They went with the first byte.
                    along = &[];
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// The next line and what came with it; nothing once the other end is closed. Cancel safe.
    pub async fn hear(&mut self) -> io::Result<Option<(String, Vec<OwnedFd>)>> {
        let invalid = |why| io::Error::new(io::ErrorKind::InvalidData, why);
        loop {
            if self.heard.last() == Some(&b'\n') {
                let mut line = std::mem::take(&mut self.heard);
                line.pop();
                let line = String::from_utf8(line).map_err(|_| invalid("a line is not UTF-8"))?;
                return Ok(Some((line, std::mem::take(&mut self.brought))));
            }
            if self.heard.len() > LONGEST || self.brought.len() > DESCRIPTORS {
                return Err(invalid("a line is too long, or brings too much"));
            }
            self.stream.readable().await?;
            let (heard, brought) = (&mut self.heard, &mut self.brought);
            let stream = &self.stream;
            match stream.try_io(Interest::READABLE, || receive(stream, heard, brought)) {
                Ok(0) => return Ok(None),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // It was killed before it had read what we said.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
                Err(error) => return Err(error),
            }
        }
    }
}

fn send(stream: &UnixStream, bytes: &[u8], along: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !along.is_empty() && !control.push(SendAncillaryMessage::ScmRights(along)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let sent = rustix::net::sendmsg(
        stream,
        &[IoSlice::new(bytes)],
        &mut control,
        SendFlags::NOSIGNAL | SendFlags::DONTWAIT,
    )?;
    Ok(sent)
}

/// What is there of this line. Descriptors are closed to programs that this one may start, from their first moment.
fn receive(
    stream: &UnixStream,
    heard: &mut Vec<u8>,
    brought: &mut Vec<OwnedFd>,
) -> io::Result<usize> {
    let mut piece = [0; PIECE];
    // Looked at first: what the kernel gives beyond the line's end would bring the next one's descriptors.
    let peek = RecvFlags::PEEK | RecvFlags::DONTWAIT;
    let (there, _) = rustix::net::recv(stream, &mut piece, peek)?;
    let line = piece.iter().take(there).position(|byte| *byte == b'\n');
    let wanted = line.map_or(there, |end| end + 1);
    let piece = piece.get_mut(..wanted).unwrap_or_default();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::net::recvmsg(
        stream,
        &mut [IoSliceMut::new(piece)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT,
    )?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = message {
            brought.extend(descriptors);
        }
    }
    if received.flags.contains(ReturnFlags::CTRUNC) {
        let message = "descriptors were lost on their way: too many, or too many are open here";
        return Err(io::Error::other(message));
    }
    heard.extend(piece.iter().take(received.bytes));
    Ok(received.bytes)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    fn pair() -> (Courier, Courier) {
        let (one, other) = UnixStream::pair().unwrap();
        (Courier::new(one), Courier::new(other))
    }

    #[tokio::test]
    async fn a_line_arrives_whole_with_what_was_sent_along_and_with_nothing_else() {
        let (here, mut there) = pair();
        let (file, mut end) = UnixStream::pair().unwrap();
        let long = "x".repeat(3 * PIECE);
        // All of it is there before the first is heard.
        here.say("before", &[]).await.unwrap();
        here.say(&long, &[file.as_fd(), file.as_fd()])
            .await
            .unwrap();
        here.say("next", &[]).await.unwrap();
        here.say("last", &[file.as_fd()]).await.unwrap();
        drop(file);
        let (line, none) = there.hear().await.unwrap().unwrap();
        assert_eq!((line.as_str(), none.len()), ("before", 0));
        let (line, mut along) = there.hear().await.unwrap().unwrap();
        assert_eq!((line == long, along.len()), (true, 2));
        let (line, none) = there.hear().await.unwrap().unwrap();
        assert_eq!((line.as_str(), none.len()), ("next", 0));
        let (line, one) = there.hear().await.unwrap().unwrap();
        assert_eq!((line.as_str(), one.len()), ("last", 1));

        // What arrived is the file itself, and is not inherited by programs.
        let arrived = along.pop().unwrap();
        let flags = rustix::io::fcntl_getfd(&arrived).unwrap();
        assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
        let arrived = std::os::unix::net::UnixStream::from(arrived);
        io::Write::write_all(&mut &arrived, b"ahoy").unwrap();
        let mut heard = [0; 4];
        end.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b"ahoy");
    }

    #[tokio::test]
    async fn the_end_is_no_line() {
        let (here, mut there) = pair();
        here.into_stream().write_all(b"half").await.unwrap();
        assert!(there.hear().await.unwrap().is_none());
    }

    #[tokio::test]
    async fn attack_a_line_without_an_end_is_not_collected() {
        let (here, mut there) = pair();
        let mut endless = here.into_stream();
        let flood = async { while endless.write_all(&[b'x'; 4096]).await.is_ok() {} };
        let heard = async {
            let error = there.hear().await.unwrap_err();
            drop(there);
            error.kind()
        };
        let (kind, ()) = tokio::join!(heard, flood);
        assert_eq!(kind, io::ErrorKind::InvalidData);
    }

    #[tokio::test]
    async fn attack_descriptors_without_a_line_are_not_collected() {
        let (here, mut there) = pair();
        let many = vec![here.stream().as_fd(); DESCRIPTORS];
        for _ in 0..2 {
            send(here.stream(), b"x", &many).unwrap();
        }
        let error = there.hear().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}
