//! What a key signs to prove itself outside a handshake: the request, and the server it is meant for. An expired
//! certificate renews itself so, and a certificate of another authority attests so; neither proof is worth the other.
//!
//! Binding the server's own leaf means that a proof shown to one server is worth nothing at another.

use aws_lc_rs::digest::{SHA256, digest};

const RENEWAL: &[u8] = b"fender renew v1\0";
const ATTESTATION: &[u8] = b"fender attest x509 v1\0";

/// The bytes to sign and to verify: context, SHA-256 of the request, SHA-256 of the server's leaf certificate.
pub fn renewal(csr: &[u8], server_leaf: &[u8]) -> Vec<u8> {
    message(RENEWAL, csr, server_leaf)
}

/// The same, by the key of a certificate that another authority issued.
pub fn attestation(csr: &[u8], server_leaf: &[u8]) -> Vec<u8> {
    message(ATTESTATION, csr, server_leaf)
}

fn message(context: &[u8], csr: &[u8], server_leaf: &[u8]) -> Vec<u8> {
    let mut message = Vec::with_capacity(context.len() + 64);
    message.extend_from_slice(context);
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
        assert_eq!(proof.len(), RENEWAL.len() + 64);
        assert_ne!(proof, renewal(b"csr", b"other leaf"));
        assert_ne!(proof, renewal(b"other csr", b"leaf"));
        assert_ne!(proof, attestation(b"csr", b"leaf"));
    }
}
