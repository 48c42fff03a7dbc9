//! HTTP/1 connections of those who ask, on our own head parser and body decoder (P4).
//!
//! One task drives both directions of both connections, one request at a time; answers come in the
//! order of the requests. A second request cannot be read out of the first one's body, and a body is
//! read only as fast as the other side takes it.
//!
//! `100 Continue` is sent by us, after the decision and never before it. After a head or a body that
//! could not be read in one way only, nothing else on the connection is believed: it is answered and
//! closed.

mod peer;
mod turn;

use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::task::Poll;

use bytes::{BufMut, BytesMut};
use fender_wire::write::{self, HeadWriter};
use fender_wire::{Framing, RequestHead, ResponseHead, Version};
use tokio::io::AsyncWriteExt;

use crate::Limits;
use crate::call::{Asks, Call};
use crate::exchange::Answer;
use crate::fault::{Fault, OurFault, PeerFault, UpstreamFault};
use crate::headers;
use crate::node::Closing;
use crate::permit::Policy;
use crate::relay::{Carried, relay};
use crate::request::{Admitted, AfterFault, Desk};
use crate::stream::Stream;
use peer::{Heard, Peer};
use turn::{Body, Turn};

pub(crate) const PROTOCOL: &str = "http/1.1";

/// Serves the requests of one connection until either side ends it.
pub(crate) async fn serve(
    desk: impl Desk,
    mut policy: Policy,
    stream: Stream,
    closing: &Closing,
) -> Result<(), Fault> {
    let node = desk.entrance().node.clone();
    let mut limits = node.limits.clone();
    desk.renew(&mut limits);
    let mut peer = Peer::new(stream, &limits);
    let mut last_call = pin!(closing.last_call(&node.limits, &node.policy));
    let mut heard = Heard::Nothing;
    loop {
        let head = match peer.head(heard, &limits, last_call.as_mut()).await {
            Ok(Some(head)) => head,
            Ok(None) => return Box::pin(peer.linger(&limits)).await,
            // There is nobody left to answer.
            Err(fault @ PeerFault::Leaves(_)) => return Err(fault.into()),
            Err(fault) => return Box::pin(refuse(&desk, fault, peer, &limits)).await,
        };
        // What a document changed meanwhile holds from here on, for the head that follows too.
        desk.renew(&mut limits);
        // Boxed, as all that is not needed between requests, so that a connection is small while it is idle.
        match Box::pin(exchange(
            &desk,
            &mut policy,
            &mut peer,
            head,
            closing,
            &limits,
        ))
        .await
        {
            Next::Request => heard = Heard::Requests,
            Next::Close => return Box::pin(peer.linger(&limits)).await,
            Next::Over => return Ok(()),
        }
    }
}

/// Which fields of a response go back.
type Returns = fn(&ResponseHead, &[u8]) -> bool;

/// Answers a head that could not be read, and ends the connection.
async fn refuse(
    desk: &impl Desk,
    fault: PeerFault,
    mut peer: Peer,
    limits: &Limits,
) -> Result<(), Fault> {
    let answer = desk.refuse(fault, PROTOCOL);
    match peer
        .answer(&answer, Dialect::REFUSED, Then::Close, limits)
        .await
    {
        Ok(_) => peer.linger(limits).await,
        // The request has its line.
        Err(_) => Ok(()),
    }
}

/// What becomes of a connection after an exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Request,
    /// Something of the request may be unread; the connection ends.
    Close,
    /// The connection ended with the exchange.
    Over,
}

/// Whether a connection is kept after a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    Keep,
    Close,
}

/// One request and its response.
async fn exchange<D: Desk>(
    desk: &D,
    policy: &mut Policy,
    peer: &mut Peer,
    head: RequestHead,
    closing: &Closing,
    limits: &Limits,
) -> Next {
    let dialect = Dialect::of(&head);
    let framing = head.framing();
    let (keep_alive, expects) = (head.keep_alive(), head.expect_continue());
    let then = || match keep_alive && !closing.has_begun() {
        true => Then::Keep,
        false => Then::Close,
    };
    let admitted = match desk.admit(head, PROTOCOL, policy, limits) {
        Ok(admitted) => admitted,
        Err(answer) => {
            let then = match framing {
                Framing::None | Framing::Length(0) => then(),
                // Reading on would let the refused cost us as much as the admitted.
                Framing::Length(_) | Framing::Chunked | Framing::UntilClose => Then::Close,
            };
            let answered = Box::pin(peer.answer(&answer, dialect, then, limits));
            return answered.await.into();
        }
    };
    let Admitted {
        pass,
        onward,
        mut exchange,
    } = admitted;
    if expects && dialect.version == Version::Http11 {
        peer.out.buffer().put_slice(write::CONTINUE);
        if let Err(fault) = peer.write_out(limits).await {
            exchange.fail(fault.into());
            return Next::Over;
        }
    }

    let mut turn = Turn::new(peer, policy, &mut exchange, framing, limits);
    let then = |turn: &Turn<'_>| match turn.body() {
        Body::Broken => Then::Close,
        Body::Open | Body::Done => then(),
    };
    // Matched once: a future holds what is moved to another name twice.
    let fault = match desk.send(&pass, &onward, &mut turn).await {
        Ok((head, call)) if head.status() == SWITCHING_PROTOCOLS => {
            if onward.upgrades {
                // Boxed, like what is answered here: most requests carry no room for it.
                Box::pin(tunnel(turn, &head, call, D::RETURNS, limits)).await;
                return Next::Over;
            }
            let why = "it changed protocols unasked".to_owned();
            UpstreamFault::Breaks(why).into()
        }
        Ok((head, mut call)) => {
            let then = then(&turn);
            let responded = turn
                .respond(&head, &mut call, D::RETURNS, dialect, then)
                .await;
            let rest = turn.rest();
            return match responded {
                Ok(then) => {
                    exchange.succeed();
                    after(then, peer, rest, limits).await
                }
                Err(fault) => {
                    // Where the end of the connection is that of the response, this must not look like it.
                    peer.io.cut_off();
                    exchange.fail(fault);
                    Next::Over
                }
            };
        }
        // Nobody waits for an answer.
        Err(fault @ Fault::Peer(PeerFault::Abandons | PeerFault::Leaves(_))) => {
            exchange.fail(fault);
            return Next::Over;
        }
        Err(fault) => fault,
    };
    let then = match D::AFTER_FAULT {
        AfterFault::GoesOn => then(&turn),
        AfterFault::Ends => Then::Close,
    };
    let rest = turn.rest();
    let answer = exchange.answer(fault);
    let answered = Box::pin(peer.answer(&answer, dialect, then, limits));
    match answered.await {
        Ok(then) => after(then, peer, rest, limits).await,
        Err(_) => Next::Over,
    }
}

const SWITCHING_PROTOCOLS: u16 = 101;

/// Reads an unwanted rest of the request and throws it away, if that is soon done: then the connection
/// can be kept.
async fn after(
    then: Then,
    peer: &mut Peer,
    rest: Option<fender_wire::Decoder>,
    limits: &Limits,
) -> Next {
    match (then, rest) {
        (Then::Keep, None) => Next::Request,
        (Then::Keep, Some(mut rest)) => match peer.skip(&mut rest, limits).await {
            Ok(()) => Next::Request,
            Err(_) => Next::Close,
        },
        (Then::Close, _) => Next::Close,
    }
}

impl From<Result<Then, PeerFault>> for Next {
    fn from(answered: Result<Then, PeerFault>) -> Self {
        match answered {
            Ok(Then::Keep) => Self::Request,
            Ok(Then::Close) => Self::Close,
            Err(_) => Self::Over,
        }
    }
}

/// After `101`: bytes both ways, for as long as the permission lasts.
async fn tunnel(
    turn: Turn<'_>,
    head: &ResponseHead,
    call: Call,
    returns: Returns,
    limits: &Limits,
) {
    // An upgrade comes without a body, so nothing of the request is open.
    let (peer, policy, exchange) = turn.into_parts();
    exchange.answered(head.status());
    if let Err(fault) = switch(peer, head, returns, limits).await {
        return exchange.fail(fault);
    }
    let Some(mut far) = call.into_tunnel() else {
        return exchange.fail(UpstreamFault::Breaks("it is gone".to_owned()).into());
    };
    let mut carried = Carried::default();
    let ended = {
        let both = async {
            let ahead = async {
                far.io.write_all(&peer.read).await?;
                far.io.flush().await?;
                peer.io.write_all(&far.read).await?;
                peer.io.flush().await
            };
            ahead.await.map_err(PeerFault::from)?;
            relay(
                &mut peer.io,
                &mut far.io,
                limits.half_closed,
                &mut carried,
                || exchange.moved(),
            )
            .await?;
            Ok::<(), Fault>(())
        };
        let mut both = pin!(both);
        poll_fn(|cx| match exchange.ended_by(policy) {
            Some(fault) => Poll::Ready(Err(fault)),
            None => both.as_mut().poll(cx),
        })
        .await
    };
    exchange.carried(carried);
    match ended {
        Ok(()) => exchange.succeed(),
        Err(fault) => exchange.fail(fault),
    }
}

/// Writes `101`; the connection is not ours to read from here on.
async fn switch(
    peer: &mut Peer,
    head: &ResponseHead,
    returns: Returns,
    limits: &Limits,
) -> Result<(), Fault> {
    let mut writer = HeadWriter::response(peer.out.buffer(), head.status());
    for field in head.fields().iter() {
        if returns(head, field.name_bytes()) && !field.is("content-length") {
            writer.copy(field);
        }
    }
    if let Some(protocol) = head.upgrade() {
        writer
            .upgrade(protocol)
            .map_err(|error| OurFault::Unwritable(error.to_string()))?;
    }
    writer.end();
    Ok(peer.write_out(limits).await?)
}

/// How a response to a request must be written.
#[derive(Clone, Copy, Debug)]
struct Dialect {
    version: Version,
    asks: Asks,
    trailers: Trailers,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trailers {
    Taken,
    LeftOut,
}

impl Dialect {
    const REFUSED: Self = Self {
        version: Version::Http11,
        asks: Asks::Whole,
        trailers: Trailers::LeftOut,
    };

    fn of(head: &RequestHead) -> Self {
        let takes_trailers = head
            .fields()
            .all("te")
            .filter_map(|value| std::str::from_utf8(value).ok())
            .any(|value| value.split(',').any(|coding| coding.trim() == "trailers"));
        Self {
            version: head.version(),
            asks: match head.method() {
                "HEAD" => Asks::HeadOnly,
                _ => Asks::Whole,
            },
            trailers: match takes_trailers {
                true => Trailers::Taken,
                false => Trailers::LeftOut,
            },
        }
    }

    /// How the body of this response is framed on its way back.
    fn framing(self, head: &ResponseHead) -> Framing {
        match (head.framing(), self.version) {
            (framing @ (Framing::None | Framing::Length(_)), _) => framing,
            (Framing::Chunked | Framing::UntilClose, Version::Http11) => Framing::Chunked,
            (Framing::Chunked | Framing::UntilClose, Version::Http10) => Framing::UntilClose,
        }
    }

    /// What becomes of the connection.
    fn then(self, wished: Then) -> Then {
        match self.version {
            Version::Http10 => Then::Close,
            Version::Http11 => wished,
        }
    }
}

/// A peer that goes without a word. Between two requests that harms nobody.
pub(crate) fn hangs_up(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
    )
}

/// Writes the head of a response on its way back.
fn write_head(
    out: &mut BytesMut,
    head: &ResponseHead,
    returns: Returns,
    framing: Framing,
    then: Then,
) {
    let mut writer = HeadWriter::response(out, head.status());
    for field in head.fields().iter() {
        // A 204 has no length (RFC 9110 §8.6): who believed one would wait for a body.
        let replaced =
            field.is("content-length") && (framing != Framing::None || head.status() == 204);
        if !replaced && returns(head, field.name_bytes()) {
            writer.copy(field);
        }
    }
    writer.framing(framing);
    if then == Then::Close {
        writer.close();
    }
    writer.end();
}

/// Writes an answer of ours.
fn write_answer(out: &mut BytesMut, answer: &Answer, asks: Asks, then: Then) {
    let mut writer = HeadWriter::response(out, answer.status);
    let (name, id) = &answer.field;
    // All are of our own making and fit.
    let _ = writer.field("content-type", b"application/json");
    let _ = writer.field("cache-control", headers::NO_STORE.as_bytes());
    let _ = writer.field(name, id.as_bytes());
    writer.framing(Framing::Length(answer.text.len() as u64));
    if then == Then::Close {
        writer.close();
    }
    writer.end();
    if asks == Asks::Whole {
        out.put_slice(answer.text.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::Gate;

    /// What is allocated, moved and freed with each request, besides what is on the heap. It is a budget, like that of a
    /// connection.
    #[test]
    fn an_open_request_is_small() {
        fn size<F>(
            _: impl Fn(
                &'static Gate,
                &'static mut Policy,
                &'static mut Peer,
                RequestHead,
                &'static Closing,
                &'static Limits,
            ) -> F,
        ) -> usize {
            size_of::<F>()
        }
        let request = size(exchange::<Gate>);
        assert!(request <= 3584, "a request: {request} bytes");
    }
}
