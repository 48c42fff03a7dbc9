//! TLS over a socket, by rustls's unbuffered connections: the protocol is rustls's, the buffers are ours.
//!
//! What the socket has is read at once and opened record by record; what is to be sent is sealed, up
//! to [`BATCH`] bytes of it, and written at once. Between polls a connection holds only what it must:
//! the part of a record that came so far, what a reader had no place for, and what the socket did not
//! take. An idle connection holds nothing.
//!
//! Every alert that rustls makes is sent as far as the socket takes it; the error comes afterwards.
//! After an error nothing is read or written any more.

use std::io::{self, IoSlice};
use std::mem;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use fender_runtime::listen::Socket;
use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncodeTlsData, EncryptError, UnbufferedStatus, WriteTraffic,
};
use rustls::{CommonState, Error, InvalidMessage, ProtocolVersion};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::scratch::{HELD, Output, READ, Scratch};

/// Sealed and written at once: four full records.
const BATCH: usize = 64 * 1024;
/// What one record holds.
const FRAGMENT: usize = 16 * 1024;
/// What rustls and TLS add to each record at most, key updates on the way included.
const OVERHEAD: usize = 128;
/// As little as this, not yet taken by the socket, is written together with what comes next.
const SMALL: usize = 4 * 1024;

/// A side of a TLS connection, as rustls has it.
pub(super) trait Session {
    type Data;

    /// Whether it has something to say before it hears anything.
    const SPEAKS_FIRST: bool;
    /// Whether the last words of a TLS 1.3 handshake are only tickets: they may wait for company.
    const TICKETS_LAST: bool;

    fn process<'c, 'i>(&'c mut self, records: &'i mut [u8])
    -> UnbufferedStatus<'c, 'i, Self::Data>;

    fn state(&self) -> &CommonState;
}

impl Session for UnbufferedServerConnection {
    type Data = ServerConnectionData;

    const SPEAKS_FIRST: bool = false;
    const TICKETS_LAST: bool = true;

    fn process<'c, 'i>(
        &'c mut self,
        records: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(records)
    }

    fn state(&self) -> &CommonState {
        self
    }
}

impl Session for UnbufferedClientConnection {
    type Data = ClientConnectionData;

    const SPEAKS_FIRST: bool = true;
    const TICKETS_LAST: bool = false;

    fn process<'c, 'i>(
        &'c mut self,
        records: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(records)
    }

    fn state(&self) -> &CommonState {
        self
    }
}

/// A socket and the TLS on it.
pub(super) struct Tls<S> {
    socket: Socket,
    session: S,
    /// Records that came in part, and handshake messages of which a part came.
    received: Vec<u8>,
    /// Opened, and not taken by the reader yet.
    opened: BytesMut,
    /// Sealed, and not taken by the socket yet.
    unsent: Unsent,
    reading: Reading,
    writing: Writing,
}

enum Reading {
    Open,
    /// The peer said that nothing follows.
    Ended,
    /// The peer broke the protocol, or told us that we did.
    Failed(Error),
}

#[derive(PartialEq, Eq)]
enum Writing {
    Open,
    /// We said that nothing follows.
    Ended,
}

impl<S: Session> Tls<S> {
    pub(super) fn new(socket: Socket, session: S) -> Self {
        Self {
            socket,
            session,
            received: Vec::new(),
            opened: BytesMut::new(),
            unsent: Unsent::default(),
            reading: Reading::Open,
            writing: Writing::Open,
        }
    }

    pub(super) fn state(&self) -> &CommonState {
        self.session.state()
    }

    pub(super) fn into_socket(self) -> Socket {
        self.socket
    }

    /// Shakes hands. An error comes after the alert that tells the peer.
    pub(super) fn poll_handshake(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.state().is_handshaking() {
            if S::SPEAKS_FIRST {
                self.say(Say::Nothing)?;
            }
            ready!(self.poll_send(cx))?;
            let mut opened = mem::take(&mut self.opened);
            let received = self.poll_receive(cx, &mut opened);
            self.opened = opened;
            ready!(received).map_err(|error| {
                if error.kind() == io::ErrorKind::UnexpectedEof {
                    return io::Error::new(error.kind(), "handshake cut short");
                }
                error
            })?;
        }
        let tickets_only =
            S::TICKETS_LAST && self.state().protocol_version() == Some(ProtocolVersion::TLSv1_3);
        if !tickets_only {
            ready!(self.poll_send(cx))?;
        }
        Poll::Ready(Ok(()))
    }

    /// Reads what is there to the end of `buffer`; 0 is the clean end.
    pub(super) fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut BytesMut,
    ) -> Poll<io::Result<usize>> {
        let before = buffer.len();
        buffer.extend_from_slice(&mem::take(&mut self.opened));
        while buffer.len() == before {
            match &self.reading {
                Reading::Open => {}
                Reading::Ended => return Poll::Ready(Ok(0)),
                Reading::Failed(error) => return Poll::Ready(Err(invalid(error))),
            }
            let received = self.poll_receive(cx, buffer);
            if received.is_pending() {
                // Whatever waited for company has waited enough.
                let _ = self.poll_send(cx);
            } else if buffer.len() > before {
                // The end, or what was wrong behind these bytes, is told next.
                break;
            }
            ready!(received)?;
        }
        Poll::Ready(Ok(buffer.len() - before))
    }

    pub(super) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        place: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.opened.is_empty() {
            let mut opened = BytesMut::new();
            ready!(self.poll_fill(cx, &mut opened))?;
            self.opened = opened;
        }
        let taken = self.opened.len().min(place.remaining());
        place.put_slice(self.opened.get(..taken).unwrap_or_default());
        self.opened.advance(taken);
        if self.opened.is_empty() {
            self.opened = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }

    /// Seals what there is, up to [`BATCH`] bytes, and writes it. What the socket does not take is
    /// kept, and goes before anything else is taken.
    pub(super) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let Reading::Failed(error) = &self.reading {
            return Poll::Ready(Err(invalid(error)));
        }
        if self.writing == Writing::Ended {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if self.unsent.bytes().len() > SMALL {
            ready!(self.poll_send(cx))?;
        }
        Scratch::with(|Scratch { input, output }| {
            output.put(self.unsent.bytes());
            let taken = self.seal(slices, input, output)?;
            let sent = match Pin::new(&mut self.socket).poll_write(cx, output.bytes()) {
                Poll::Ready(sent) => sent?,
                Poll::Pending => 0,
            };
            self.unsent = Unsent::from(output.bytes().get(sent..).unwrap_or_default());
            Poll::Ready(Ok(taken))
        })
    }

    /// Seals up to [`BATCH`] bytes; small neighbours go into one record. `room` is to put them together.
    fn seal(
        &mut self,
        slices: &[IoSlice<'_>],
        room: &mut [u8],
        output: &mut Output,
    ) -> io::Result<usize> {
        let Self {
            session,
            received,
            opened,
            ..
        } = self;
        let mut seal = |data: &[u8]| {
            let driven = drive(session, received, opened, output, Say::Data(data));
            driven.outcome.map(drop).map_err(|error| invalid(&error))
        };
        let (mut taken, mut together) = (0, 0);
        for slice in slices {
            let slice = slice.get(..BATCH - taken).unwrap_or(slice);
            taken += slice.len();
            if together + slice.len() > FRAGMENT {
                seal(room.get(..together).unwrap_or_default())?;
                together = 0;
            }
            match room.get_mut(together..together + slice.len()) {
                Some(place) if slice.len() <= FRAGMENT && slices.len() > 1 => {
                    place.copy_from_slice(slice);
                    together += slice.len();
                }
                Some(_) | None => seal(slice)?,
            }
        }
        seal(room.get(..together).unwrap_or_default())?;
        Ok(taken)
    }

    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_send(cx))?;
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    /// Says `close_notify` and ends the sending half of the socket. Where the peer has ended before, the socket is for
    /// closing as soon as all is written, which says the same: it is left to that.
    pub(super) fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if mem::replace(&mut self.writing, Writing::Ended) == Writing::Open
            && !matches!(self.reading, Reading::Failed(_))
        {
            self.say(Say::Close)?;
        }
        ready!(self.poll_send(cx))?;
        match self.reading {
            Reading::Ended => Poll::Ready(Ok(())),
            Reading::Open | Reading::Failed(_) => Pin::new(&mut self.socket).poll_shutdown(cx),
        }
    }

    /// Puts what the session has to say behind what is unsent.
    fn say(&mut self, say: Say<'_>) -> io::Result<()> {
        Scratch::with(|Scratch { output, .. }| {
            let driven = drive(
                &mut self.session,
                &mut self.received,
                &mut self.opened,
                output,
                say,
            );
            self.unsent.extend(output.bytes());
            driven.outcome.map(drop).map_err(|error| invalid(&error))
        })
    }

    /// Reads once what the socket has, and opens it onto the end of `opened`.
    fn poll_receive(
        &mut self,
        cx: &mut Context<'_>,
        opened: &mut BytesMut,
    ) -> Poll<io::Result<()>> {
        let outcome = ready!(Scratch::with(|Scratch { input, output }| {
            let held = self.received.len();
            let filled = ready!(read_behind(&mut self.socket, cx, &self.received, input))?;
            let records = input.get_mut(..filled).unwrap_or_default();
            if !self.session.state().is_handshaking() {
                opened.reserve(filled);
            }
            let driven = drive(&mut self.session, records, opened, output, Say::Nothing);
            // A flight of the handshake goes at once, without a copy. An alert and tickets have their own times.
            let mut sent = 0;
            if driven.outcome.is_ok()
                && self.session.state().is_handshaking()
                && self.unsent.bytes().is_empty()
                && !output.bytes().is_empty()
                && let Poll::Ready(taken) =
                    Pin::new(&mut self.socket).poll_write(cx, output.bytes())
            {
                sent = taken?;
            }
            self.unsent
                .extend(output.bytes().get(sent..).unwrap_or_default());
            let rest = records.get(driven.consumed..).unwrap_or_default();
            if held > 0 || !rest.is_empty() {
                self.received = rest.to_vec();
            }
            Poll::Ready(Ok::<_, io::Error>(driven.outcome))
        }))?;
        let error = match outcome {
            Ok(Said::More) if self.received.len() <= HELD => return Poll::Ready(Ok(())),
            Ok(Said::More) => InvalidMessage::HandshakePayloadTooLarge.into(),
            Ok(Said::PeerEnded) => {
                self.reading = Reading::Ended;
                self.received = Vec::new();
                return Poll::Ready(Ok(()));
            }
            Err(error) => error,
        };
        let told = invalid(&error);
        self.reading = Reading::Failed(error);
        self.received = Vec::new();
        // The alert, as far as the socket takes it: a peer that does not read waits in vain.
        let _ = self.poll_send(cx);
        Poll::Ready(Err(told))
    }

    /// Writes what is unsent.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.unsent.bytes().is_empty() {
            let sent = ready!(Pin::new(&mut self.socket).poll_write(cx, self.unsent.bytes()))?;
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.unsent.advance(sent);
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
impl<S> Tls<S> {
    /// How much of records that came in part is kept.
    pub(super) fn received(&self) -> usize {
        self.received.len()
    }

    pub(super) fn unsent(&self) -> usize {
        self.unsent.bytes().len()
    }

    /// All the room that is kept between polls.
    pub(super) fn held(&self) -> usize {
        self.received.capacity() + self.opened.capacity() + self.unsent.bytes.capacity()
    }
}

/// Reads behind a copy of `held`; the number of bytes that are then in `input`. The end of the socket
/// is an error: a TLS peer has a word for the end.
fn read_behind(
    socket: &mut Socket,
    cx: &mut Context<'_>,
    held: &[u8],
    input: &mut [u8],
) -> Poll<io::Result<usize>> {
    let Some((before, room)) = input.split_at_mut_checked(held.len()) else {
        return Poll::Ready(Err(io::ErrorKind::OutOfMemory.into()));
    };
    let mut room = ReadBuf::new(room.get_mut(..READ).unwrap_or_default());
    ready!(Pin::new(socket).poll_read(cx, &mut room))?;
    let read = room.filled().len();
    if read == 0 {
        return Poll::Ready(Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            "peer closed without close_notify: what it sent may be cut short",
        )));
    }
    before.copy_from_slice(held);
    Poll::Ready(Ok(held.len() + read))
}

fn invalid(error: &Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error.clone())
}

/// What the session is to say as soon as it may.
#[derive(Clone, Copy)]
enum Say<'a> {
    Nothing,
    Data(&'a [u8]),
    Close,
}

/// How far the session came.
struct Driven {
    /// So many bytes of the records are done with.
    consumed: usize,
    outcome: Result<Said, Error>,
}

enum Said {
    /// What is needed next comes from the peer or from us.
    More,
    PeerEnded,
}

/// Lets the session work on `records` until it needs more, then says what is to be said.
///
/// `records` begins where the last call stopped consuming. What is opened goes to `opened`, what is
/// to be sent to `output`, in their order; after an error that is the alert.
fn drive<S: Session>(
    session: &mut S,
    records: &mut [u8],
    opened: &mut BytesMut,
    output: &mut Output,
    say: Say<'_>,
) -> Driven {
    let mut consumed = 0;
    let mut said = Said::More;
    loop {
        let rest = records.get_mut(consumed..).unwrap_or_default();
        let UnbufferedStatus { mut discard, state } = session.process(rest);
        let finished = match state {
            Ok(ConnectionState::ReadTraffic(mut traffic)) => loop {
                match traffic.next_record() {
                    Some(Ok(record)) => {
                        discard += record.discard;
                        opened.extend_from_slice(record.payload);
                    }
                    Some(Err(error)) => break Some(Err(error)),
                    None => break None,
                }
            },
            Ok(ConnectionState::EncodeTlsData(mut data)) => {
                encode(&mut data, output);
                None
            }
            // It is in the output, before anything that is sealed later.
            Ok(ConnectionState::TransmitTlsData(data)) => {
                data.done();
                None
            }
            Ok(ConnectionState::PeerClosed) => {
                said = Said::PeerEnded;
                None
            }
            Ok(ConnectionState::WriteTraffic(traffic)) => Some(say.over(traffic, output)),
            Ok(ConnectionState::BlockedHandshake | ConnectionState::Closed) => match say {
                Say::Nothing | Say::Close => Some(Ok(())),
                Say::Data(_) => Some(Err(Error::HandshakeNotComplete)),
            },
            // Early data is never offered.
            Ok(_) => Some(Err(Error::General("unexpected state of TLS".to_owned()))),
            Err(error) => Some(Err(error)),
        };
        consumed += discard;
        match finished {
            None => {}
            Some(Ok(())) => {
                return Driven {
                    consumed,
                    outcome: Ok(said),
                };
            }
            Some(Err(error)) => {
                let rest = records.get_mut(consumed..).unwrap_or_default();
                while session.state().wants_write()
                    && let Ok(ConnectionState::EncodeTlsData(mut alert)) =
                        session.process(rest).state
                {
                    encode(&mut alert, output);
                }
                return Driven {
                    consumed,
                    outcome: Err(error),
                };
            }
        }
    }
}

fn encode<D>(data: &mut EncodeTlsData<'_, D>, output: &mut Output) {
    let needed = match data.encode(&mut []) {
        Err(EncodeError::InsufficientSize(error)) => error.required_size,
        Ok(_) | Err(EncodeError::AlreadyEncoded) => 0,
    };
    if let Ok(encoded) = data.encode(output.room(needed)) {
        output.filled(encoded);
    }
}

impl Say<'_> {
    fn over<D>(self, mut traffic: WriteTraffic<'_, D>, output: &mut Output) -> Result<(), Error> {
        let data = match self {
            Self::Nothing => return Ok(()),
            Self::Data(data) => data,
            Self::Close => &[],
        };
        let mut room = data.len() + OVERHEAD * (1 + data.len() / FRAGMENT);
        loop {
            let place = output.room(room);
            let sealed = match self {
                Self::Nothing | Self::Data(_) => traffic.encrypt(data, place),
                Self::Close => traffic.queue_close_notify(place),
            };
            match sealed {
                Ok(sealed) => {
                    output.filled(sealed);
                    return Ok(());
                }
                Err(EncryptError::InsufficientSize(error)) if error.required_size > room => {
                    room = error.required_size;
                }
                Err(EncryptError::InsufficientSize(_) | EncryptError::EncryptExhausted) => {
                    return Err(Error::EncryptError);
                }
            }
        }
    }
}

/// Bytes that were sealed and not yet taken by the socket.
#[derive(Default)]
struct Unsent {
    bytes: Vec<u8>,
    sent: usize,
}

impl Unsent {
    fn bytes(&self) -> &[u8] {
        self.bytes.get(self.sent..).unwrap_or_default()
    }

    fn extend(&mut self, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.bytes.extend_from_slice(bytes);
        }
    }

    /// Holds no memory when all is sent.
    fn advance(&mut self, sent: usize) {
        self.sent += sent;
        if self.sent >= self.bytes.len() {
            *self = Self::default();
        }
    }
}

impl From<&[u8]> for Unsent {
    fn from(bytes: &[u8]) -> Self {
        Self {
            bytes: bytes.to_vec(),
            sent: 0,
        }
    }
}
