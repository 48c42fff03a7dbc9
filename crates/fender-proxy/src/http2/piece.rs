//! What one connection holds of responses whose bytes are not written yet.
//!
//! h2 keeps what it is handed until the socket takes it, though the stream is over for everybody else by then: a peer that
//! opens wide windows and reads nothing could have as much held as it may open streams, for next to nothing of its own. So
//! each piece of a body takes room on its connection when it is handed over, and gives it back when it was written or
//! thrown away.

use bytes::{Buf, Bytes};
use tokio::sync::OwnedSemaphorePermit;

#[derive(Debug)]
pub(super) struct Piece {
    data: Bytes,
    /// None: it is of our own making, and small.
    _room: Option<OwnedSemaphorePermit>,
}

impl Piece {
    pub(super) fn new(data: Bytes, room: OwnedSemaphorePermit) -> Self {
        Self {
            data,
            _room: Some(room),
        }
    }

    pub(super) fn of_ours(data: Bytes) -> Self {
        Self { data, _room: None }
    }
}

impl Buf for Piece {
    fn remaining(&self) -> usize {
        self.data.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.data.chunk()
    }

    fn advance(&mut self, count: usize) {
        self.data.advance(count);
    }
}
