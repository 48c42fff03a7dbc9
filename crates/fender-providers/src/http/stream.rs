//! An answer that comes in parts over a long time, read line by line: each line is bounded, and so is the wait for it.

use std::fmt;
use std::pin::Pin;

use bytes::Bytes;
use fender_identity::Secret;
use fender_runtime::clock::SharedClock;
use fender_runtime::deadline::Deadline;
use reqwest::header::RETRY_AFTER;
use zeroize::Zeroize as _;

use super::{HttpClient, HttpClientError, HttpError, Question, Url, Wish, unreachable};

/// Streams of HTTP/2 share a connection, and are no more than its server likes: who streams for long has one of his own.
const ALPN_OF_STREAMS: &[&[u8]] = &[b"http/1.1"];

/// The next part on its way; none after the last.
pub(crate) type Part<'a> =
    Pin<Box<dyn Future<Output = Result<Option<Bytes>, HttpError>> + Send + 'a>>;

/// What a body comes from.
pub(crate) trait Parts: Send {
    fn next(&mut self) -> Part<'_>;
}

impl Parts for reqwest::Response {
    fn next(&mut self) -> Part<'_> {
        Box::pin(async { self.chunk().await.map_err(unreachable) })
    }
}

impl HttpClient {
    /// For answers that are streamed: each has a connection of its own, of which a line may weigh `limit` bytes.
    pub(crate) fn streaming(
        roots: &[u8],
        limit: usize,
        clock: SharedClock,
    ) -> Result<Self, HttpClientError> {
        Self::verifying(None, roots, ALPN_OF_STREAMS, limit, clock)
    }

    /// Asks, and waits for the head of the answer until the deadline.
    pub(crate) async fn open<U: Url>(
        &self,
        question: Question<'_, U>,
        deadline: Deadline,
    ) -> Result<Streamed, HttpError> {
        let request = self.request(question)?;
        let opened = deadline.bound(self.inner.execute(request)).await;
        let response = opened.map_err(|_| HttpError::TimedOut)?;
        let response = response.map_err(unreachable)?;
        let status = response.status().as_u16();
        let wish = response.headers().get(RETRY_AFTER).and_then(Wish::read);
        Ok(Streamed::new(status, wish, Box::new(response), self.limit))
    }
}

/// An answer whose head is there.
pub(crate) struct Streamed {
    pub(crate) status: u16,
    /// When to come back, as the server wishes.
    pub(crate) wish: Option<Wish>,
    parts: Box<dyn Parts>,
    limit: usize,
    /// What has come. It is wiped wherever it goes.
    held: Vec<u8>,
    /// Where of it what was not read yet begins.
    begin: usize,
}

impl Streamed {
    /// A line, or the whole, may weigh `limit` bytes.
    pub(crate) fn new(
        status: u16,
        wish: Option<Wish>,
        parts: Box<dyn Parts>,
        limit: usize,
    ) -> Self {
        Self {
            status,
            wish,
            parts,
            limit,
            held: Vec::new(),
            begin: 0,
        }
    }

    /// The next line without its end, and none after the last.
    pub(crate) async fn line(&mut self, deadline: Deadline) -> Result<Option<Secret>, HttpError> {
        let mut searched = 0;
        loop {
            let unread = self.unread();
            let beyond = unread.get(searched..).unwrap_or_default();
            if let Some(at) = line_end(beyond) {
                return Ok(Some(self.take(searched + at + 1)));
            }
            searched = unread.len();
            let Some(part) = self.part(deadline).await? else {
                return match searched {
                    0 => Ok(None),
                    all => Ok(Some(self.take(all))),
                };
            };
            // What comes behind the end of the line is of the next one.
            self.hold(&part, searched + line_end(&part).unwrap_or(part.len()))?;
        }
    }

    /// All of it.
    pub(crate) async fn whole(mut self, deadline: Deadline) -> Result<Secret, HttpError> {
        while let Some(part) = self.part(deadline).await? {
            let length = self.unread().len() + part.len();
            self.hold(&part, length)?;
        }
        Ok(Secret::new(self.unread().to_vec()))
    }

    async fn part(&mut self, deadline: Deadline) -> Result<Option<Bytes>, HttpError> {
        let part = deadline.bound(self.parts.next()).await;
        part.unwrap_or(Err(HttpError::TimedOut))
    }

    /// Keeps a part, if what it belongs to is not too long by it. Growing leaves no copy behind.
    fn hold(&mut self, part: &[u8], length: usize) -> Result<(), HttpError> {
        if length > self.limit {
            return Err(HttpError::TooLarge { limit: self.limit });
        }
        if self.held.len() + part.len() > self.held.capacity() {
            let unread = self.unread();
            let needed = unread.len() + part.len();
            let mut roomier = Vec::with_capacity(needed.next_power_of_two());
            roomier.extend_from_slice(unread);
            self.held.zeroize();
            self.held = roomier;
            self.begin = 0;
        }
        self.held.extend_from_slice(part);
        Ok(())
    }

    fn unread(&self) -> &[u8] {
        self.held.get(self.begin..).unwrap_or_default()
    }

    /// So many bytes, without the line end they end with.
    fn take(&mut self, length: usize) -> Secret {
        let line = self.unread().get(..length).unwrap_or_default();
        let line = Secret::new(line.trim_ascii_end().to_vec());
        self.begin += length;
        if self.begin >= self.held.len() {
            self.held.zeroize();
            self.begin = 0;
        }
        line
    }
}

fn line_end(bytes: &[u8]) -> Option<usize> {
    bytes.iter().position(|byte| *byte == b'\n')
}

impl Drop for Streamed {
    fn drop(&mut self) {
        self.held.zeroize();
    }
}

impl fmt::Debug for Streamed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Streamed")
            .field("status", &self.status)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::VecDeque;
    use std::time::Duration;

    use super::*;

    /// Parts that are there, and then nothing or no end.
    struct Listed {
        parts: VecDeque<Bytes>,
        ends: bool,
    }

    impl Parts for Listed {
        fn next(&mut self) -> Part<'_> {
            Box::pin(async {
                match self.parts.pop_front() {
                    Some(part) => Ok(Some(part)),
                    None if self.ends => Ok(None),
                    None => std::future::pending().await,
                }
            })
        }
    }

    fn streamed(parts: &[&'static str], limit: usize, ends: bool) -> Streamed {
        let parts = parts.iter().map(|part| Bytes::from_static(part.as_bytes()));
        let parts = parts.collect();
        Streamed::new(200, None, Box::new(Listed { parts, ends }), limit)
    }

    fn soon() -> Deadline {
        Deadline::after(Duration::from_secs(5))
    }

    async fn lines(mut streamed: Streamed) -> Result<Vec<String>, HttpError> {
        let mut lines = Vec::new();
        while let Some(line) = streamed.line(soon()).await? {
            lines.push(line.expose_str().unwrap().to_owned());
        }
        Ok(lines)
    }

    #[tokio::test]
    async fn lines_are_whole_however_they_come() {
        for parts in [
            &["a\nbc\r\n\nd"][..],
            &["a", "\n", "b", "c\r", "\n\n", "d"],
            &["a\nb", "c\r\n\n", "", "d"],
        ] {
            let lines = lines(streamed(parts, 10, true)).await.unwrap();
            assert_eq!(lines, ["a", "bc", "", "d"], "{parts:?}");
        }
        assert!(lines(streamed(&[], 10, true)).await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn attack_a_line_without_end_is_not_kept() {
        let limit = HttpError::TooLarge { limit: 4 };
        for parts in [
            &["aaaaa"][..],
            &["aa", "aaa"],
            &["a\nbb", "bbb\n"],
            &["aa", "aaa\n"],
        ] {
            let refused = lines(streamed(parts, 4, false)).await.unwrap_err();
            assert_eq!(refused, limit, "{parts:?}");
        }
        let whole = streamed(&["aa", "aaa"], 4, false).whole(soon()).await;
        assert_eq!(whole.unwrap_err(), limit);
        let lines = lines(streamed(&["aaaa\n", "bbbb\ncc", "cc\n"], 4, true)).await;
        assert_eq!(lines.unwrap(), ["aaaa", "bbbb", "cccc"]);
    }

    #[tokio::test(start_paused = true)]
    async fn attack_who_sends_nothing_is_not_waited_for() {
        let mut silent = streamed(&["a\n", "b"], 4, false);
        assert_eq!(silent.line(soon()).await.unwrap().unwrap().expose(), b"a");
        assert_eq!(silent.line(soon()).await.unwrap_err(), HttpError::TimedOut);
    }

    #[tokio::test]
    async fn what_is_held_is_in_no_debug_text() {
        let mut held = streamed(&["hunter2", "\nhunter2"], 100, true);
        held.line(soon()).await.unwrap();
        assert!(!format!("{held:?}").contains("hunter2"));
        let whole = streamed(&["hunt", "er2"], 100, true).whole(soon()).await;
        assert_eq!(whole.unwrap().expose(), b"hunter2");
    }
}
