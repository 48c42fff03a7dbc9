//! The heads of HTTP/2 frames in what goes over a connection, wherever it is cut.
//!
//! h2 does not say what it read or wrote. So the bytes are looked at on their way, at the nine before each frame; what is in
//! the frames is nobody's business here, and whether they are good is h2's.

/// RFC 9113 §3.4.
pub(crate) const PREFACE: usize = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".len();
/// RFC 9113 §4.1.
pub(crate) const FRAME_HEAD: usize = 9;

/// What a frame says before its payload, as far as anybody here wants to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FrameHead {
    pub(crate) kind: u8,
    pub(crate) stream: u32,
}

/// Follows one direction of a connection.
#[derive(Debug)]
pub(crate) struct FrameHeads {
    /// Bytes before the head of the next frame.
    skip: usize,
    /// Of the head, those that were seen, and how many.
    head: u128,
    seen: usize,
}

impl FrameHeads {
    /// The first frame comes behind so many bytes: [`PREFACE`] of a client's, none of a server's.
    pub(crate) fn behind(bytes: usize) -> Self {
        Self {
            skip: bytes,
            head: 0,
            seen: 0,
        }
    }

    /// Takes what went over, and tells each head whose last byte was in it.
    pub(crate) fn take(&mut self, mut bytes: &[u8], mut each: impl FnMut(FrameHead)) {
        loop {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = bytes.get(skipped..).unwrap_or_default();
            let Some((byte, rest)) = bytes.split_first() else {
                return;
            };
            bytes = rest;
            self.head = self.head << 8 | u128::from(*byte);
            self.seen += 1;
            if self.seen == FRAME_HEAD {
                each(self.whole());
            }
        }
    }

    fn whole(&mut self) -> FrameHead {
        let [.., l2, l1, l0, kind, _, s3, s2, s1, s0] = self.head.to_be_bytes();
        (self.head, self.seen) = (0, 0);
        self.skip = usize::from(l2) << 16 | usize::from(l1) << 8 | usize::from(l0);
        FrameHead {
            kind,
            stream: u32::from_be_bytes([s3 & 0x7f, s2, s1, s0]),
        }
    }
}
