//! Who somebody is, and how it is proven: SPIFFE IDs, SVIDs, trust bundles, secrets, and the two
//! functions that decide whether a certificate chain or a signed token proves an identity.
//!
//! Pure: no file, socket, task or clock. `now` is an argument, or comes from the `TimeProvider`
//! a TLS configuration was made with. This crate decides *who*; whether they *may* is policy.

mod bundle;
mod certificate;
pub mod csr;
mod der;
pub mod existing;
pub mod jwt;
mod newest;
mod peer;
mod pem;
pub mod pkcs12;
mod secret;
mod spiffe;
mod svid;
pub mod tls;
mod trust;
pub mod verify;

#[cfg(test)]
mod testing;

pub use bundle::{Bundle, BundleError, Bundles};
pub use certificate::{
    Malformed, Serial, SerialError, Validity, concatenated, revoked_serials, uris_of,
};
pub use peer::{Peer, PeerSvid};
pub use pem::{
    PemError, certificates as certificates_from_pem, crl_pem,
    encode_certificates as certificates_to_pem, private_key_pkcs8 as private_key_from_pem,
    request as request_from_pem, rewrite as rewrite_pem,
};
pub use secret::Secret;
pub use spiffe::{NodeName, SpiffeId, SpiffeIdError, TrustDomain, WorkloadName, WorkloadNameError};
pub use svid::{Svid, SvidError};
pub use trust::{Believed, DenyList, Trust};
