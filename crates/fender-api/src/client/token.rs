//! JWT-SVIDs from the control plane: asked for over the workload's own connection, and looked at before anybody gets one.

use std::time::Duration;

use fender_identity::jwt::svid;
use fender_identity::{Secret, SpiffeId, Trust, TrustDomain};
use fender_runtime::clock::UnixTime;
use fender_runtime::deadline::Deadline;

use super::call::{CallError, bounded};
use super::core::Core;
use crate::proto::control::v1 as proto;
use crate::proto::control::v1::identity_client::IdentityClient;
use crate::tls::MAX_MESSAGE;

/// A JWT-SVID. Whoever holds the token is believed to be its subject until it expires.
#[derive(Clone, Debug)]
pub struct SignedToken {
    /// In compact form.
    pub token: Secret,
    /// Its end.
    pub expires: UnixTime,
}

pub(crate) fn request(audience: &[String], lifetime: Option<Duration>) -> proto::SignJwtRequest {
    proto::SignJwtRequest {
        audience: audience.to_vec(),
        ttl_seconds: lifetime.map_or(0, |lifetime| lifetime.as_secs().max(1)),
    }
}

impl Core {
    /// A token for this workload's own identity.
    pub(super) async fn sign_jwt(
        &self,
        audience: &[String],
        lifetime: Option<Duration>,
        deadline: Deadline,
    ) -> Result<SignedToken, CallError> {
        let (svid, trust) = (self.svid.borrow().clone(), self.trust.borrow().clone());
        let open = self.channel.borrow().clone();
        let channel = match open {
            Some(channel) => channel,
            None => {
                let connected = self
                    .caller
                    .connect(svid.id(), Some(&svid), &trust, deadline);
                connected.await?.channel
            }
        };
        let mut identity = IdentityClient::new(channel).max_decoding_message_size(MAX_MESSAGE);
        let answer = bounded(deadline, identity.sign_jwt(request(audience, lifetime))).await?;
        // What came meanwhile may hold the key.
        let trust = self.trust.borrow().clone();
        accept(answer, svid.id(), audience, &trust, self.caller.clock.now())
    }
}

/// Only what would convince its reader: our subject, for exactly these, signed by a key of our trust domain.
pub(crate) fn accept(
    answer: proto::SignedJwt,
    id: &SpiffeId,
    audience: &[String],
    trust: &Trust,
    now: UnixTime,
) -> Result<SignedToken, CallError> {
    let wrong = |why: &str| CallError::Answer(why.to_owned());
    let reader = audience
        .first()
        .ok_or_else(|| wrong("a token for nobody"))?;
    let keys = |trust_domain: &TrustDomain| trust.jwt.get(trust_domain);
    let read = svid::verify(&answer.token, reader, &keys, now)
        .map_err(|refusal| wrong(&refusal.to_string()))?;
    if read.id() != id {
        return Err(wrong("the token is another's"));
    }
    if read.claims().audiences != audience {
        return Err(wrong("the token is not for whom it was asked"));
    }
    Ok(SignedToken {
        expires: read.claims().expires,
        token: Secret::from(answer.token),
    })
}

#[cfg(test)]
mod tests {
    use fender_identity::jwt::{JwtBundles, Keys, SigningKey, Statement};

    use super::*;
    use crate::testing::{ORDERS, START, id};

    fn at(seconds: u64) -> UnixTime {
        UnixTime::since_unix_epoch(Duration::from_secs(seconds))
    }

    #[test]
    fn attack_a_token_that_is_not_what_was_asked_for_is_refused() {
        let key = SigningKey::generate().unwrap();
        let keys = Keys::new(vec![key.public().clone()]).unwrap();
        let jwt: JwtBundles = [(id(ORDERS).trust_domain().clone(), keys)]
            .into_iter()
            .collect();
        let trust = Trust {
            jwt: jwt.into(),
            ..Trust::default()
        };
        let signed = |key: &SigningKey, subject: &str, audiences: &[String]| {
            let token = key.sign(&Statement {
                subject: &id(subject),
                audiences,
                issued: at(START),
                expires: at(START + 300),
                token_id: "1",
            });
            proto::SignedJwt {
                token: token.unwrap().expose_str().unwrap().to_owned(),
                expires_unix: 0,
            }
        };
        let take = |answer| {
            accept(
                answer,
                &id(ORDERS),
                &["ledger".to_owned()],
                &trust,
                at(START),
            )
        };
        let (ledger, both) = (
            ["ledger".to_owned()],
            ["ledger".to_owned(), "bank".to_owned()],
        );
        let taken = take(signed(&key, ORDERS, &ledger)).unwrap();
        assert_eq!(taken.expires, at(START + 300));
        let admin = "spiffe://acme.test/ns/shop/sa/admin";
        let stranger = SigningKey::generate().unwrap();
        for answer in [
            signed(&key, admin, &ledger),
            signed(&key, ORDERS, &both),
            signed(&stranger, ORDERS, &ledger),
        ] {
            assert!(matches!(take(answer), Err(CallError::Answer(_))));
        }
    }
}
