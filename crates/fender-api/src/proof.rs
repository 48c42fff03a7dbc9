//! What the key of an expired certificate signs to renew itself: the request, and the server it is meant for.
//!
//! Binding the server's own leaf means that a proof shown to one server is worth nothing at another.

use aws_lc_rs::digest::{SHA256, digest};

const CONTEXT: &[u8] = b"fender renew v1\0";

/// The bytes to sign and to verify: context, SHA-256 of the request, SHA-256 of the server's leaf certificate.
pub fn renewal(csr: &[u8], server_leaf: &[u8]) -> Vec<u8> {
    let mut message = Vec::with_capacity(CONTEXT.len() + 64);
    message.extend_from_slice(CONTEXT);
    message.extend_from_slice(digest(&SHA256, csr).as_ref());
    message.extend_from_slice(digest(&SHA256, server_leaf).as_ref());
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proof_is_bound_to_its_request_and_to_its_server() {
        let proof = renewal(b"csr", b"leaf");
        assert_eq!(proof.len(), CONTEXT.len() + 64);
        assert_ne!(proof, renewal(b"csr", b"other leaf"));
        assert_ne!(proof, renewal(b"other csr", b"leaf"));
    }
}
