//! Random bytes from the process's one cryptographic generator, and numbers for what nobody has to guess.

use std::cell::Cell;

/// `N` random bytes.
///
/// The generator fails only when the kernel gives no entropy at all; nothing that follows would be
/// safe then, so this does not return.
#[expect(
    clippy::expect_used,
    reason = "an id that is not random is worse than no process"
)]
pub fn bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    aws_lc_rs::rand::fill(&mut bytes).expect("the kernel gives random bytes");
    bytes
}

/// A number in `0.0..=1.0`.
pub fn unit() -> f64 {
    f64::from(u32::from_le_bytes(bytes())) / f64::from(u32::MAX)
}

thread_local! {
    static CHEAP: Cell<u64> = Cell::new(u64::from_le_bytes(bytes()));
}

/// A number that costs next to nothing, to choose by and not to keep a secret with (SplitMix64).
pub fn cheap() -> u64 {
    let next = |state: &Cell<u64>| {
        let stepped = state.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        state.set(stepped);
        let mut mixed = stepped;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    };
    // At the end of a thread there is none any more.
    CHEAP
        .try_with(next)
        .unwrap_or_else(|_| u64::from_le_bytes(bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cheap_numbers_fall_everywhere_alike() {
        let mut sixteenths = [0_u32; 16];
        for _ in 0..16_000 {
            let sixteenth = usize::try_from(cheap() >> 60).unwrap();
            sixteenths[sixteenth] += 1;
        }
        // A thousand each, give or take six standard deviations and more.
        assert!(
            sixteenths.iter().all(|count| (800..1200).contains(count)),
            "{sixteenths:?}"
        );
    }
}
