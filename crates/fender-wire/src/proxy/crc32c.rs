//! CRC-32C (Castagnoli, RFC 3720 §B.4), which guards a PROXY header against damage. It is no proof of
//! who wrote it.

use super::extension::CHECKSUM_BYTES;

const POLYNOMIAL: u32 = 0x82f6_3b78;

/// The checksum of `bytes`, of which the four at `hole` count as zero. Bit by bit: a header is short.
pub(super) fn with_hole(bytes: &[u8], hole: usize) -> u32 {
    let is_hole = |at: usize| (hole..hole + CHECKSUM_BYTES).contains(&at);
    !bytes.iter().enumerate().fold(!0, |crc: u32, (at, byte)| {
        let byte = if is_hole(at) { 0 } else { *byte };
        (0..8).fold(crc ^ u32::from(byte), |crc, _| match crc & 1 {
            1 => crc >> 1 ^ POLYNOMIAL,
            _ => crc >> 1,
        })
    })
}

/// Writes the checksum of all bytes into the last four.
pub(super) fn fill(bytes: &mut [u8]) {
    let hole = bytes.len().saturating_sub(CHECKSUM_BYTES);
    let crc = with_hole(bytes, hole).to_be_bytes();
    if let Some(place) = bytes.get_mut(hole..) {
        place.copy_from_slice(&crc);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_that_of_rfc_3720() {
        let beyond = usize::MAX - CHECKSUM_BYTES;
        assert_eq!(with_hole(&[0; 32], beyond), 0x8a91_36aa);
        assert_eq!(with_hole(&[0xff; 32], beyond), 0x62a8_ab43);
        assert_eq!(with_hole(b"123456789", beyond), 0xe306_9283);
    }
}
