//! JWT-SVIDs for whoever proved to be a workload: its own sidecar, or the agent of its node.
//!
//! Nobody chooses the subject, and a token is never for everybody. What was given is a line in the log, with the token's
//! id and without the token.

use std::time::Duration;

use fender_api::code::Code;
use fender_api::proto::control::v1::{SignJwtRequest, SignedJwt};
use fender_identity::{NodeName, SpiffeId};
use tonic::Status;

use crate::ca::jwt::{TokenError, USUAL};
use crate::callers::Origin;
use crate::control::Control;
use crate::time::seconds;

impl Control {
    /// A token for an identity that the caller proved, or for which the agent of a node speaks. No revocation ends a token,
    /// so what a node has of others it has for the usual time at most.
    pub(crate) fn sign_jwt(
        &self,
        identity: &SpiffeId,
        node: Option<&NodeName>,
        request: SignJwtRequest,
        origin: &Origin,
    ) -> Result<SignedJwt, Status> {
        let SignJwtRequest {
            audience,
            ttl_seconds,
        } = request;
        let in_force = self.library.in_force();
        let described = identity
            .workload()
            .is_some_and(|name| in_force.documents.workloads.contains_key(&name));
        if !described {
            return Err(Code::IdentityUnknown.status("no document describes this identity"));
        }
        if !self.registry.may_have_token(identity, node) {
            return Err(Code::Busy.status("this workload asks for more tokens than it may have"));
        }
        let wanted = (ttl_seconds > 0).then(|| Duration::from_secs(ttl_seconds));
        let lifetime = match node {
            Some(_) => Some(wanted.unwrap_or(USUAL).min(USUAL)),
            None => wanted,
        };
        let now = self.clock.now();
        let token = self
            .authority
            .sign_token(identity, &audience, lifetime, now)
            .map_err(not_signed)?;
        let expires = seconds(token.expires);
        tracing::info!(
            %identity, ?audience, token = %token.id, key = token.key, expires, source = origin.text,
            "token signed"
        );
        let text = token.text.expose_str().unwrap_or_default().to_owned();
        Ok(SignedJwt {
            token: text,
            expires_unix: expires,
        })
    }
}

fn not_signed(error: TokenError) -> Status {
    match error {
        TokenError::Audiences(why) => Code::BadRequest.status(why.to_string()),
        TokenError::NotAWorkload => {
            Code::IdentityReserved.status("this identity is not issued to anybody")
        }
        TokenError::JustRevoked => {
            Code::Unavailable.status("this identity was revoked just now: ask again in a second")
        }
        TokenError::Unverifiable(_) | TokenError::NotAsMeant | TokenError::Sign(_) => {
            tracing::error!(%error, "a token was not signed");
            Code::Internal.status("the control plane could not sign a token; its log says why")
        }
    }
}
