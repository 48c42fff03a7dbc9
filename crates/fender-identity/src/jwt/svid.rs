//! JWT-SVIDs: tokens whose subject is a SPIFFE ID, signed by a key of its trust domain.
//!
//! A bearer token, so it must say for whom it is and until when, and the reader must be named. The
//! standard allows three members in the header and nine algorithms; Ed25519 is not one of them.
//!
//! <https://github.com/spiffe/spiffe/blob/main/standards/JWT-SVID.md>

use rustls_pki_types::UnixTime;

use super::{Algorithm, Claims, Header, Keys, Parts, Refusal};
use super::{Audience, check_audience, check_time, read_claims};
use crate::{SpiffeId, SpiffeIdError, TrustDomain};

/// What a bundle calls the use of the keys that sign them.
pub const USE: &str = "jwt-svid";

/// Names that one token may be for.
pub const MAX_AUDIENCES: usize = 16;
/// The longest of them, in bytes.
pub const MAX_AUDIENCE: usize = 1024;

/// Whether a token may be made for these: for somebody, and not for everybody.
pub fn check_audiences(audiences: &[String]) -> Result<(), NotAudiences> {
    if audiences.is_empty() || audiences.iter().any(String::is_empty) {
        return Err(NotAudiences::Nobody);
    }
    if audiences.len() > MAX_AUDIENCES || audiences.iter().any(|name| name.len() > MAX_AUDIENCE) {
        return Err(NotAudiences::TooMany);
    }
    Ok(())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAudiences {
    #[error("a token is for somebody: name an audience")]
    Nobody,
    #[error("more than {MAX_AUDIENCES} audiences, or one longer than {MAX_AUDIENCE} bytes")]
    TooMany,
}

/// A verified JWT-SVID.
#[derive(Clone, Debug, PartialEq)]
pub struct JwtSvid {
    id: SpiffeId,
    claims: Claims,
}

impl JwtSvid {
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    pub fn claims(&self) -> &Claims {
        &self.claims
    }
}

/// Who shows `token` to `audience`, by the keys of the trust domain the token names.
pub fn verify<'k>(
    token: &str,
    audience: &str,
    keys: &dyn Fn(&TrustDomain) -> Option<&'k Keys>,
    now: UnixTime,
) -> Result<JwtSvid, Refusal> {
    // 1. Three parts, and a header with nothing the standard does not list.
    let parts = Parts::split(token)?;
    let header = Header::read(&parts.header)?;
    header.only(&["alg", "kid", "typ"])?;
    header.check_type(&["JWT", "JOSE"])?;
    // 2. Whom it claims to be of: that trust domain's keys are looked at and no others.
    let claims = read_claims(&parts.payload)?;
    let subject = claims.subject.as_deref();
    let id: SpiffeId = subject
        .ok_or(Refusal::Missing { name: "sub" })?
        .parse()
        .map_err(|error: SpiffeIdError| Refusal::NotSpiffe(error))?;
    let trust_domain = id.trust_domain();
    let keys =
        keys(trust_domain).ok_or_else(|| Refusal::ForeignTrustDomain(trust_domain.clone()))?;
    // 3. The key, its algorithm, the signature.
    let key = keys.find(header.key_id.as_deref())?;
    let algorithm = key.allow(&header.algorithm)?;
    if algorithm == Algorithm::EdDsa {
        let algorithm = algorithm.to_string();
        return Err(Refusal::Algorithm { algorithm });
    }
    if !key.verifies(algorithm, parts.signed, &parts.signature) {
        return Err(Refusal::WrongSignature);
    }
    // 4. Good now, and for this reader.
    check_time(&claims, now)?;
    check_audience(&claims, Audience::OneOf(&[audience.to_owned()]))?;
    Ok(JwtSvid { id, claims })
}
