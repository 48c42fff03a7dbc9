//! What follows the header: chunks of 64 KiB, each sealed by itself, the last one marked (age v1, "Payload").

use fender_identity::Secret;
use zeroize::Zeroizing;

use super::{FileKey, TAG, Unopened, aead, hkdf};

const CHUNK: usize = 64 * 1024;
const NONCE: usize = 16;

/// The whole of it, of at most `limit` bytes, or nothing.
pub(super) fn open(key: &FileKey, payload: &[u8], limit: usize) -> Result<Secret, Unopened> {
    let malformed = || Unopened::malformed("was cut off or changed");
    let (nonce, sealed) = payload.split_at_checked(NONCE).ok_or_else(malformed)?;
    let chunks = sealed.len().div_ceil(CHUNK + TAG);
    let length = sealed.len().saturating_sub(chunks * TAG);
    if length > limit {
        return Err(Unopened::malformed(&format!(
            "holds more than {} KiB",
            limit / 1024
        )));
    }
    let opening = hkdf(key.expose(), nonce, b"payload")?;
    let aead = aead(&opening);
    let mut all = Zeroizing::new(Vec::with_capacity(length));
    let mut rest = sealed.chunks(CHUNK + TAG).peekable();
    let mut number = 0_u64;
    loop {
        // There is always one, if only an empty one.
        let chunk = rest.next().ok_or_else(malformed)?;
        let is_last = rest.peek().is_none();
        let mut chunk = Zeroizing::new(chunk.to_vec());
        let opened = aead.open(&counter(number, is_last), &mut chunk);
        let opened = opened.ok_or_else(malformed)?;
        if is_last && opened.is_empty() && number > 0 {
            return Err(malformed());
        }
        all.extend_from_slice(opened);
        if is_last {
            return Ok(Secret::new(std::mem::take(&mut *all)));
        }
        number += 1;
    }
}

/// Eleven bytes of a number, and one that says whether it is the last.
fn counter(number: u64, is_last: bool) -> [u8; 12] {
    let mut nonce = [0; 12];
    for (to, from) in nonce.iter_mut().skip(3).zip(number.to_be_bytes()) {
        *to = from;
    }
    if let Some(mark) = nonce.last_mut() {
        *mark = u8::from(is_last);
    }
    nonce
}
