//! Random bytes from the process's one cryptographic generator.

/// `N` random bytes.
///
/// The generator fails only when the kernel gives no entropy at all; nothing that follows would be
/// safe then, so this does not return.
#[expect(
    clippy::expect_used,
    reason = "an id that is not random is worse than no process"
)]
pub(crate) fn bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    aws_lc_rs::rand::fill(&mut bytes).expect("the kernel gives random bytes");
    bytes
}

/// A number in `0.0..=1.0`.
pub(crate) fn unit() -> f64 {
    f64::from(u32::from_le_bytes(bytes())) / f64::from(u32::MAX)
}
