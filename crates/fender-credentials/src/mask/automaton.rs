//! All that is looked for at once, after Aho and Corasick (1975): a tree of what may come next, with for each place the longest end of
//! what was read that is a beginning as well. It knows of a byte in one step, on average, however much is looked for.
//!
//! It reads no stream and keeps no position: a position is a number that its user keeps.

use zeroize::Zeroizing;

use super::skip::Skip;

/// The place where nothing is begun.
pub(super) const START: u32 = 0;

/// The tree, as columns. The bytes are what can be read back of the secrets: they are wiped.
pub(super) struct Automaton {
    /// By which byte a place is reached.
    byte: Zeroizing<Vec<u8>>,
    /// The first place after it; 0 for none.
    child: Vec<u32>,
    /// The next one after the same place; 0 for none.
    sibling: Vec<u32>,
    /// Where the longest end of what was read stands that is a beginning, too.
    shorter: Vec<u32>,
    /// How many bytes lead here.
    depth: Vec<u32>,
    /// How many of the bytes before are the beginning of something that may go on.
    open: Vec<u32>,
    /// How many bytes the longest thing has that ends here; 0 if nothing does.
    ends: Vec<u32>,
    /// What comes after the start, by its byte.
    first: Zeroizing<Vec<u32>>,
    /// What need not be read.
    skip: Skip,
}

impl Automaton {
    /// Finds these, none of which is empty.
    pub(super) fn of(patterns: &[Zeroizing<Vec<u8>>]) -> Self {
        // Room for all at once: a table that grows leaves copies behind.
        let most = patterns.iter().map(|it| it.len()).sum::<usize>() + 1;
        let mut tree = Self {
            byte: Zeroizing::new(Vec::with_capacity(most)),
            child: Vec::with_capacity(most),
            sibling: Vec::with_capacity(most),
            shorter: Vec::with_capacity(most),
            depth: Vec::with_capacity(most),
            open: Vec::with_capacity(most),
            ends: Vec::with_capacity(most),
            first: Zeroizing::new(vec![START; 256]),
            skip: Skip::of(patterns),
        };
        tree.push(0, START, 0);
        for pattern in patterns {
            tree.insert(pattern);
        }
        tree.connect();
        tree
    }

    /// Where one stands after `byte`.
    pub(super) fn step(&self, mut place: u32, byte: u8) -> u32 {
        loop {
            if place == START {
                return get(&self.first, u32::from(byte));
            }
            match self.after(place, byte) {
                START => place = get(&self.shorter, place),
                next => return next,
            }
        }
    }

    /// How many bytes before are the longest beginning that one stands in.
    pub(super) fn depth(&self, place: u32) -> usize {
        get(&self.depth, place) as usize
    }

    /// Where nothing can begin.
    pub(super) fn skip(&self) -> &Skip {
        &self.skip
    }

    /// How many of the bytes before may be the beginning of something that has not ended.
    pub(super) fn open(&self, place: u32) -> usize {
        get(&self.open, place) as usize
    }

    /// How many of the bytes before are something, if they are.
    pub(super) fn found(&self, place: u32) -> Option<usize> {
        let length = get(&self.ends, place) as usize;
        (length > 0).then_some(length)
    }

    fn push(&mut self, byte: u8, sibling: u32, depth: u32) -> u32 {
        let place = u32::try_from(self.byte.len()).unwrap_or(u32::MAX);
        self.byte.push(byte);
        self.child.push(START);
        self.sibling.push(sibling);
        self.shorter.push(START);
        self.depth.push(depth);
        self.open.push(0);
        self.ends.push(0);
        place
    }

    /// The place after this one by `byte`, if there is one.
    fn after(&self, place: u32, byte: u8) -> u32 {
        let mut next = get(&self.child, place);
        while next != START && self.byte_of(next) != byte {
            next = get(&self.sibling, next);
        }
        next
    }

    fn byte_of(&self, place: u32) -> u8 {
        self.byte.get(place as usize).copied().unwrap_or_default()
    }

    fn insert(&mut self, pattern: &[u8]) {
        let mut place = START;
        for (depth, byte) in (1..).zip(pattern.iter().copied()) {
            let known = match place {
                START => get(&self.first, u32::from(byte)),
                _ => self.after(place, byte),
            };
            if known != START {
                place = known;
                continue;
            }
            let next = self.push(byte, get(&self.child, place), depth);
            put(&mut self.child, place, next);
            if place == START {
                put(&mut self.first, u32::from(byte), next);
            }
            place = next;
        }
        let length = get(&self.depth, place);
        put(&mut self.ends, place, length);
    }

    /// Breadth first: what is shorter is connected before.
    fn connect(&mut self) {
        let mut level = vec![START];
        while !level.is_empty() {
            let mut deeper = Vec::new();
            for place in level {
                let mut next = get(&self.child, place);
                while next != START {
                    let shorter = match place {
                        START => START,
                        _ => self.step(get(&self.shorter, place), self.byte_of(next)),
                    };
                    put(&mut self.shorter, next, shorter);
                    let ends = get(&self.ends, next).max(get(&self.ends, shorter));
                    put(&mut self.ends, next, ends);
                    let open = match get(&self.child, next) {
                        START => get(&self.open, shorter),
                        _ => get(&self.depth, next),
                    };
                    put(&mut self.open, next, open);
                    deeper.push(next);
                    next = get(&self.sibling, next);
                }
            }
            level = deeper;
        }
    }
}

fn get(column: &[u32], at: u32) -> u32 {
    column.get(at as usize).copied().unwrap_or_default()
}

fn put(column: &mut [u32], at: u32, value: u32) {
    if let Some(cell) = column.get_mut(at as usize) {
        *cell = value;
    }
}
