//! One stream of what an application writes, on its way.

use std::sync::Arc;

use zeroize::{Zeroize as _, Zeroizing};

use super::automaton::{Automaton, START};
use super::forms::PIECE;
use super::{MARK, Masks};

/// How much is looked at at once.
const CHUNK: usize = 16 * 1024;

/// Masks what passes. What it holds back is wiped.
pub struct Stream {
    masks: Masks,
    automaton: Arc<Automaton>,
    /// Where in the automaton the last byte looked at stands.
    place: u32,
    /// What was not passed on yet; at first and last what may be the beginning of a secret.
    held: Zeroizing<Vec<u8>>,
    /// How much of that was looked at.
    seen: usize,
    /// What of that is secret: in order, and apart from each other.
    secret: Vec<(usize, usize)>,
    /// Whether the last byte that was passed on was masked.
    masking: bool,
}

impl Stream {
    /// Masks what `masks` hides, as it changes.
    pub fn new(masks: Masks) -> Self {
        Self {
            automaton: masks.automaton(),
            masks,
            place: START,
            held: Zeroizing::new(Vec::with_capacity(CHUNK + PIECE)),
            seen: 0,
            secret: Vec::new(),
            masking: false,
        }
    }

    /// Puts into `out` what can be passed on once `more` has come.
    pub fn pass(&mut self, more: &[u8], out: &mut Vec<u8>) {
        self.follow();
        for chunk in more.chunks(CHUNK) {
            self.held.extend_from_slice(chunk);
            self.look();
            self.release(self.held.len() - self.automaton.open(self.place), out);
        }
    }

    /// The same with the rest: nothing comes any more.
    pub fn finish(&mut self, out: &mut Vec<u8>) {
        self.release(self.held.len(), out);
        self.place = START;
    }

    /// Looks again for what is to be hidden by now.
    fn follow(&mut self) {
        let newest = self.masks.automaton();
        if Arc::ptr_eq(&newest, &self.automaton) {
            return;
        }
        self.automaton = newest;
        (self.place, self.seen) = (START, 0);
        // What was a secret is one.
        let before = std::mem::take(&mut self.secret);
        self.look();
        for (begin, end) in before {
            self.secret.push((begin, end));
        }
        self.secret.sort_unstable();
        let mut apart: Vec<(usize, usize)> = Vec::new();
        for (begin, end) in self.secret.drain(..) {
            match apart.last_mut() {
                Some(last) if begin <= last.1 => last.1 = last.1.max(end),
                Some(_) | None => apart.push((begin, end)),
            }
        }
        self.secret = apart;
    }

    fn look(&mut self) {
        let (skip, window) = (self.automaton.skip(), self.automaton.skip().window());
        let mut at = self.seen;
        // Where something may begin, as far as that was asked.
        let mut asked = None;
        while at < self.held.len() {
            // What goes on has begun here, or later.
            let depth = self.automaton.depth(self.place);
            let begin = at.saturating_sub(depth);
            if depth < window && asked != Some(begin) {
                let next = skip.next(&self.held, begin);
                // What was read is not read again: where something may begin in it, the automaton knows.
                asked = Some(begin);
                if next > begin && next >= at {
                    (at, self.place) = (next, START);
                    asked = Some(next);
                }
            }
            let Some(byte) = self.held.get(at).copied() else {
                break;
            };
            at += 1;
            self.place = self.automaton.step(self.place, byte);
            let Some(length) = self.automaton.found(self.place) else {
                continue;
            };
            // What was found before ended before.
            let mut begin = at.saturating_sub(length);
            while let Some(last) = self.secret.pop_if(|last| last.1 >= begin) {
                begin = begin.min(last.0);
            }
            self.secret.push((begin, at));
        }
        self.seen = self.held.len();
    }

    /// Passes on the first `count` bytes.
    fn release(&mut self, count: usize, out: &mut Vec<u8>) {
        let mut at = 0;
        let mut passed = 0;
        while at < count {
            let next = self.secret.get(passed).copied();
            match next {
                Some((begin, end)) if begin <= at => {
                    if !self.masking {
                        out.extend_from_slice(MARK);
                        self.masking = true;
                    }
                    at = end.min(count);
                    passed += usize::from(end <= count);
                }
                Some((begin, _)) => at = self.plain(at, begin.min(count), out),
                None => at = self.plain(at, count, out),
            }
        }
        self.secret.drain(..passed);
        for (begin, end) in &mut self.secret {
            (*begin, *end) = (begin.saturating_sub(count), end.saturating_sub(count));
        }
        let rest = self.held.len().saturating_sub(count);
        self.held.copy_within(count.., 0);
        if let Some(gone) = self.held.get_mut(rest..) {
            gone.zeroize();
        }
        self.held.truncate(rest);
        self.seen = self.seen.saturating_sub(count);
    }

    fn plain(&mut self, begin: usize, end: usize, out: &mut Vec<u8>) -> usize {
        out.extend_from_slice(self.held.get(begin..end).unwrap_or_default());
        self.masking = false;
        end
    }
}
