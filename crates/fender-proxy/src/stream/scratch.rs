//! Room to work in, one for each thread: what a connection does not hold while it is idle.
//!
//! Records are read, opened and sealed here, within one poll. What is left at its end (a part of a
//! record, bytes that a socket did not take) is copied to the connection, in its exact size. Nothing
//! here outlives the poll that wrote it but as garbage, and nobody reads what they did not write.

use std::cell::RefCell;

/// Read from a socket at once. 64 KiB: four full records for one system call.
pub(super) const READ: usize = 64 * 1024;
/// A record with everything around it (RFC 8446 §5.2, RFC 5246 §6.2.3).
pub(super) const RECORD: usize = 5 + 16 * 1024 + 2048;
/// What is kept of records that came in part. A handshake message may have 64 KiB, as in rustls.
pub(super) const HELD: usize = 64 * 1024 + RECORD;

thread_local! {
    static SCRATCH: RefCell<Scratch> = const { RefCell::new(Scratch::new()) };
}

/// The room of a thread.
pub(super) struct Scratch {
    /// For what is read: [`HELD`] of before and [`READ`] of now.
    pub(super) input: Vec<u8>,
    pub(super) output: Output,
}

impl Scratch {
    const fn new() -> Self {
        Self {
            input: Vec::new(),
            output: Output::new(),
        }
    }

    /// Works in the room of this thread. Not to be called within itself.
    pub(super) fn with<T>(work: impl FnOnce(&mut Self) -> T) -> T {
        SCRATCH.with_borrow_mut(|scratch| {
            if scratch.input.is_empty() {
                scratch.input = vec![0; HELD + READ];
            }
            scratch.output.filled = 0;
            work(scratch)
        })
    }
}

/// Bytes on their way out. Room that was made once is not made again.
pub(super) struct Output {
    room: Vec<u8>,
    filled: usize,
}

impl Output {
    const fn new() -> Self {
        Self {
            room: Vec::new(),
            filled: 0,
        }
    }

    /// What was put here.
    pub(super) fn bytes(&self) -> &[u8] {
        self.room.get(..self.filled).unwrap_or_default()
    }

    pub(super) fn put(&mut self, bytes: &[u8]) {
        self.room(bytes.len()).copy_from_slice(bytes);
        self.filled += bytes.len();
    }

    /// Room for `wanted` bytes behind what is there; [`Output::filled`] says how many were used.
    pub(super) fn room(&mut self, wanted: usize) -> &mut [u8] {
        let end = self.filled + wanted;
        if self.room.len() < end {
            self.room.resize(end, 0);
        }
        self.room.get_mut(self.filled..end).unwrap_or_default()
    }

    pub(super) fn filled(&mut self, bytes: usize) {
        self.filled += bytes;
    }
}
