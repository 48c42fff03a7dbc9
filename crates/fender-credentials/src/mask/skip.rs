//! Where nothing that is looked for can begin, told without looking at each byte, after Wu and Manber (1994): of the window in which
//! something would begin only the last three bytes are looked at, and they tell how far the next place is at which something may.
//!
//! It says where to look, and never that something is there: what it does not skip the automaton decides. Blocks that
//! look alike to it cost time and nothing else.

use zeroize::Zeroizing;

/// How many bytes are looked at.
const BLOCK: usize = 3;
/// Longer windows gain little.
const LONGEST: usize = 16;
/// The table's size, as a power of two: for each block that may be met eight places, within these bounds.
const SMALLEST: u32 = 12;
const LARGEST: u32 = 18;

pub(super) struct Skip {
    /// How many bytes at the beginning of each pattern are known; 0 if some are too short for that.
    window: usize,
    /// By a block at the end of a window: so many places on nothing begins. It tells of the patterns, and is wiped.
    table: Zeroizing<Vec<u8>>,
    /// What is left of a hash.
    shift: u32,
}

impl Skip {
    pub(super) fn of(patterns: &[Zeroizing<Vec<u8>>]) -> Self {
        let shortest = patterns.iter().map(|pattern| pattern.len()).min();
        let window = shortest.unwrap_or_default().min(LONGEST);
        if window < BLOCK {
            let (window, table, shift) = (0, Zeroizing::default(), 0);
            return Self {
                window,
                table,
                shift,
            };
        }
        let farthest = window - BLOCK + 1;
        let blocks = (patterns.len() * farthest * 8).next_power_of_two();
        let bits = blocks.ilog2().clamp(SMALLEST, LARGEST);
        let mut skip = Self {
            window,
            table: Zeroizing::new(vec![farthest as u8; 1 << bits]),
            shift: u32::BITS - bits,
        };
        for pattern in patterns {
            let known = pattern.get(..window).unwrap_or_default();
            for (at, block) in known.windows(BLOCK).enumerate() {
                let far = (farthest - 1 - at) as u8;
                let place = skip.place(block);
                if let Some(known) = skip.table.get_mut(place) {
                    *known = far.min(*known);
                }
            }
        }
        skip
    }

    /// How many bytes of a beginning it looks at; 0 if it skips nothing.
    pub(super) fn window(&self) -> usize {
        self.window
    }

    /// The first place from `begin` on at which something may begin, or at which too little follows to know.
    pub(super) fn next(&self, bytes: &[u8], mut begin: usize) -> usize {
        loop {
            let end = begin + self.window;
            let block = end.checked_sub(BLOCK).and_then(|from| bytes.get(from..end));
            let Some(block) = block else {
                return begin;
            };
            match self.table.get(self.place(block)) {
                Some(0) | None => return begin,
                Some(far) => begin += usize::from(*far),
            }
        }
    }

    fn place(&self, block: &[u8]) -> usize {
        let block = block
            .iter()
            .fold(0, |all, byte| all << 8 | u32::from(*byte));
        (block.wrapping_mul(0x9e37_79b1) >> self.shift) as usize
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn skip(patterns: &[&str]) -> Skip {
        let patterns = patterns.iter().map(|text| text.as_bytes().to_vec());
        Skip::of(&patterns.map(Zeroizing::new).collect::<Vec<_>>())
    }

    #[test]
    fn what_cannot_begin_is_passed_over_and_what_follows_too_little_is_not() {
        let one = skip(&["secret-of-mine"]);
        assert_eq!(one.window(), 14);
        let text = format!("{}secret-of-mine, and no more", ".".repeat(100));
        assert_eq!(one.next(text.as_bytes(), 0), 100);
        assert_eq!(one.next(text.as_bytes(), 100), 100);
        // The next window would be longer than what there is.
        let next = one.next(text.as_bytes(), 101);
        assert!((text.len() - 13..text.len()).contains(&next), "{next}");
        assert_eq!(one.next(b"", 0), 0);
    }

    #[test]
    fn what_is_shorter_than_a_block_or_nothing_at_all_skips_nothing() {
        for patterns in [&["ab", "secret"][..], &[]] {
            let none = skip(patterns);
            assert_eq!(none.window(), 0, "{patterns:?}");
            assert_eq!(none.next(b"secret", 0), 0);
            assert_eq!(none.next(b"secret", 4), 4);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn attack_no_beginning_is_passed_over(
            patterns in prop::collection::vec("[abc]{3,20}", 1..8),
            text in "[abc]{0,80}",
        ) {
            let patterns: Vec<_> = patterns.iter().map(String::as_str).collect();
            let skip = skip(&patterns);
            for begin in 0..=text.len() {
                let next = skip.next(text.as_bytes(), begin);
                prop_assert!(next >= begin && next <= text.len().max(begin));
                for passed in begin..next {
                    prop_assert!(!patterns.iter().any(|pattern| text[passed..].starts_with(pattern)));
                }
            }
        }
    }
}
