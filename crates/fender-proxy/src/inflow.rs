//! The body that comes on a stream of HTTP/2, in little more memory than its bytes while nobody takes it.
//!
//! h2 keeps each DATA frame as it came: a place in a list, and a share of the buffer that it was read into, which is all kept for
//! the sake of one byte. Flow control counts neither. So a body is looked at whenever something of it has come, and what is not
//! taken at once is copied together ([`Inflow::park`]): then what is held is what the windows let in, which are finite for all
//! connections together. Room for more is given when bytes were passed on, never when they are parked or only taken: so what is
//! gathered for one write to an HTTP/1 application, and the write that waits, are within the window of their stream. To one that
//! speaks HTTP/2 they are passed on when h2 has them, which holds as much as it was told to besides.
//!
//! For that to hold, only so much may be read of a connection before its bodies are looked at: [`crate::paced`] sees to it.

use std::collections::VecDeque;
use std::mem;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use h2::RecvStream;
use http::HeaderMap;

/// The least and the most that is made room for at once: as much again as is held, between them.
const PIECE: (usize, usize) = (256, 16 * 1024);

/// A body on its way in.
#[derive(Debug)]
pub(crate) struct Inflow {
    stream: RecvStream,
    parked: VecDeque<BytesMut>,
    /// Of what was taken, so much is not passed on yet.
    taken: usize,
    /// What came behind what is parked.
    failed: Option<h2::Error>,
}

impl Inflow {
    pub(crate) fn new(stream: RecvStream) -> Self {
        Self {
            stream,
            parked: VecDeque::new(),
            taken: 0,
            failed: None,
        }
    }

    /// Whether all of it is taken, and no trailers are to come.
    pub(crate) fn is_end_stream(&self) -> bool {
        self.parked.is_empty() && self.failed.is_none() && self.stream.is_end_stream()
    }

    /// Takes the next piece, which is never empty and no larger than a frame. None once there are only trailers, or nothing.
    pub(crate) fn poll_data(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, h2::Error>>> {
        let data = match self.parked.pop_front() {
            Some(parked) => Some(Ok(parked.freeze())),
            None => ready!(self.poll_stream(cx)),
        };
        if let Some(Ok(data)) = &data {
            self.taken += data.len();
        }
        Poll::Ready(data)
    }

    /// What was taken so far is held no more: as much more may come.
    pub(crate) fn passed_on(&mut self) {
        if self.taken > 0 {
            let passed = mem::take(&mut self.taken);
            // Of a stream that is over there is nothing to release.
            let _ = self.stream.flow_control().release_capacity(passed);
        }
    }

    /// After all data.
    pub(crate) fn poll_trailers(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<HeaderMap>, h2::Error>> {
        self.stream.poll_trailers(cx)
    }

    /// Copies what has come and is not taken, and will be woken for what comes.
    pub(crate) fn park(&mut self, cx: &mut Context<'_>) {
        while let Poll::Ready(Some(piece)) = self.poll_stream(cx) {
            match piece {
                Ok(data) => self.hold(&data),
                Err(error) => {
                    self.failed = Some(error);
                    return;
                }
            }
        }
    }

    fn poll_stream(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, h2::Error>>> {
        if let Some(error) = self.failed.take() {
            return Poll::Ready(Some(Err(error)));
        }
        loop {
            let data = ready!(self.stream.poll_data(cx));
            if !matches!(&data, Some(Ok(data)) if data.is_empty()) {
                return Poll::Ready(data);
            }
        }
    }

    fn hold(&mut self, mut data: &[u8]) {
        if let Some(last) = self.parked.back_mut() {
            let room = last.capacity() - last.len();
            let (fits, rest) = data.split_at(room.min(data.len()));
            last.extend_from_slice(fits);
            data = rest;
        }
        if data.is_empty() {
            return;
        }
        let held: usize = self.parked.iter().map(BytesMut::len).sum();
        let room = held.clamp(PIECE.0, PIECE.1).max(data.len());
        let mut piece = BytesMut::with_capacity(room);
        piece.extend_from_slice(data);
        self.parked.push_back(piece);
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use fender_runtime::drain::Drain;
    use h2::Ping;
    use http::Request;
    use tokio::io::duplex;

    use super::*;

    const WINDOW: usize = 64 * 1024;

    /// What comes without waiting for more.
    async fn take(inflow: &mut Inflow) -> usize {
        let mut taken = 0;
        poll_fn(|cx| {
            while let Poll::Ready(Some(data)) = inflow.poll_data(cx) {
                taken += data.unwrap().len();
            }
            Poll::Ready(())
        })
        .await;
        taken
    }

    #[tokio::test]
    async fn what_was_taken_counts_against_the_window_until_it_is_passed_on() {
        let tasks = Drain::new();
        let (near, far) = duplex(1 << 20);
        let mut builder = h2::server::Builder::new();
        builder
            .initial_window_size(u32::try_from(WINDOW).unwrap())
            .initial_connection_window_size(1 << 20);
        let (server, client) = tokio::join!(
            builder.handshake::<_, Bytes>(near),
            h2::client::handshake(far)
        );
        let (mut server, (sender, mut connection)) = (server.unwrap(), client.unwrap());
        let mut pings = connection.ping_pong().unwrap();
        tasks.spawn(async move {
            let _ = connection.await;
        });
        let request = Request::post("https://o/").body(()).unwrap();
        let mut sender = sender.ready().await.unwrap();
        let (_response, mut stream) = sender.send_request(request, false).unwrap();
        let body = Bytes::from(vec![b'x'; 3 * WINDOW]);
        stream.send_data(body, true).unwrap();
        let (request, _respond) = server.accept().await.unwrap().unwrap();
        tasks.spawn(async move { while server.accept().await.is_some() {} });

        let mut inflow = Inflow::new(request.into_body());
        for last in [false, false, true] {
            let mut taken = 0;
            // What was said before the answer to the second has been heard, and been answered.
            for _ in 0..3 {
                pings.ping(Ping::opaque()).await.unwrap();
                taken += take(&mut inflow).await;
            }
            assert_eq!(taken, WINDOW);
            assert_eq!(inflow.is_end_stream(), last);
            inflow.passed_on();
        }
    }
}
