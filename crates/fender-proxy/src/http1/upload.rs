//! A request body on its way to the app: owner of the connection's reading half until it ends.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use fender_runtime::deadline::Deadline;
use fender_wire::body::{BodyLimits, Decoder, Framing};
use fender_wire::{Fields, Frame as Step};
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use tokio::sync::oneshot;
use tokio::time::Sleep;

use super::{Reader, append};
use crate::Limits;
use crate::fault::PeerFault;

/// Bytes of one request body, as they arrive.
pub(crate) struct Upload {
    /// None once the body is complete or broken.
    borrowed: Option<Borrowed>,
    decoder: Option<Decoder>,
    /// What is still to come, where that was declared.
    left: Option<u64>,
    stall: Duration,
    timer: Option<Pin<Box<Sleep>>>,
}

/// The reader, and the way back for it.
pub(crate) struct Borrowed {
    reader: Reader,
    back: oneshot::Sender<Returned>,
}

/// The reader, back from a body.
#[derive(Debug)]
pub(crate) struct Returned {
    pub(crate) reader: Reader,
    pub(crate) rest: Rest,
}

/// What is left of a body when its reader comes back.
#[derive(Debug)]
pub(crate) enum Rest {
    Nothing,
    /// Nobody wanted it.
    Unread(Box<Decoder>),
    /// Where the next request would begin cannot be known.
    Broken,
}

impl Borrowed {
    pub(crate) fn new(reader: Reader, back: oneshot::Sender<Returned>) -> Self {
        Self { reader, back }
    }

    fn hand_back(self, rest: Rest) {
        // If nobody waits, the connection is over.
        let _ = self.back.send(Returned {
            reader: self.reader,
            rest,
        });
    }
}

impl Upload {
    pub(crate) fn new(borrowed: Borrowed, framing: Framing, limits: &Limits) -> Self {
        let left = match framing {
            Framing::Length(length) => Some(length),
            Framing::None | Framing::Chunked | Framing::UntilClose => None,
        };
        Self {
            borrowed: Some(borrowed),
            decoder: Some(Decoder::new(framing, BodyLimits::default())),
            left,
            stall: limits.stall,
            timer: None,
        }
    }

    fn poll_step(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Step, PeerFault>>> {
        loop {
            let (Some(Borrowed { reader, .. }), Some(decoder)) =
                (&mut self.borrowed, &mut self.decoder)
            else {
                return Poll::Ready(None);
            };
            match decoder.decode(&mut reader.buffer) {
                Ok(Step::NeedMore) => {}
                Ok(step @ (Step::Data(_) | Step::End(_))) => {
                    self.timer = None;
                    return Poll::Ready(Some(Ok(step)));
                }
                Err(error) => return Poll::Ready(Some(Err(error.into()))),
            }
            match reader.poll_fill(cx) {
                Poll::Ready(Ok(0)) => {
                    let early = decoder.end_of_stream().err().map(PeerFault::from);
                    return Poll::Ready(Some(Err(early.unwrap_or(PeerFault::Abandons))));
                }
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
                Poll::Pending => {
                    let stall = self.stall;
                    let timer = self
                        .timer
                        .get_or_insert_with(|| Box::pin(tokio::time::sleep(stall)));
                    return timer
                        .as_mut()
                        .poll(cx)
                        .map(|()| Some(Err(PeerFault::Stalls)));
                }
            }
        }
    }

    fn complete(&mut self) {
        self.decoder = None;
        if let Some(borrowed) = self.borrowed.take() {
            borrowed.hand_back(Rest::Nothing);
        }
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = PeerFault;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, PeerFault>>> {
        let this = &mut *self;
        match std::task::ready!(this.poll_step(cx)) {
            None => Poll::Ready(None),
            Some(Ok(Step::Data(data))) => {
                if let Some(left) = &mut this.left {
                    *left = left.saturating_sub(data.len() as u64);
                    // Whoever counts the bytes does not ask again after the last one.
                    if *left == 0 {
                        this.complete();
                    }
                }
                Poll::Ready(Some(Ok(Frame::data(data))))
            }
            Some(Ok(Step::End(trailers))) => {
                this.complete();
                Poll::Ready(frame_of(&trailers).map(Ok))
            }
            Some(Ok(Step::NeedMore)) => Poll::Pending,
            Some(Err(fault)) => {
                this.decoder = None;
                if let Some(borrowed) = this.borrowed.take() {
                    borrowed.hand_back(Rest::Broken);
                }
                Poll::Ready(Some(Err(fault)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.borrowed.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        match self.left {
            Some(left) => SizeHint::with_exact(left),
            None => SizeHint::default(),
        }
    }
}

fn frame_of(trailers: &Fields) -> Option<Frame<Bytes>> {
    if trailers.is_empty() {
        return None;
    }
    let mut map = HeaderMap::with_capacity(trailers.len());
    append(&mut map, trailers);
    Some(Frame::trailers(map))
}

impl Drop for Upload {
    /// The app did not want the rest.
    fn drop(&mut self) {
        if let (Some(borrowed), Some(decoder)) = (self.borrowed.take(), self.decoder.take()) {
            borrowed.hand_back(Rest::Unread(Box::new(decoder)));
        }
    }
}

impl fmt::Debug for Upload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upload")
            .field("left", &self.left)
            .finish_non_exhaustive()
    }
}

/// Reads an unwanted rest and throws it away, if that is soon done: then the connection can be kept.
pub(super) async fn skip(
    decoder: &mut Decoder,
    reader: &mut Reader,
    limits: &Limits,
) -> Result<(), PeerFault> {
    let deadline = Deadline::after(limits.linger);
    let mut skipped = 0;
    loop {
        match decoder.decode(&mut reader.buffer)? {
            Step::End(_) => return Ok(()),
            Step::Data(data) => {
                skipped += data.len();
                if skipped > limits.linger_bytes {
                    return Err(PeerFault::Abandons);
                }
            }
            Step::NeedMore => match deadline.bound(reader.fill()).await {
                Ok(Ok(read)) if read > 0 => {}
                Ok(_) => return Err(PeerFault::Abandons),
                Err(_) => return Err(PeerFault::Stalls),
            },
        }
    }
}
