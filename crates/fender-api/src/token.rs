//! Join tokens: what a person carries from the control plane to a sidecar, once.
//!
//! `fender-join-1.PAYLOAD.SECRET`, both parts base64url without padding. The payload says for whom the token is and which
//! roots to expect at first contact; the secret is 256 random bits. The text is itself a secret: it is read from a file
//! only, never from an argument or the environment, and appears in no log, error or `Debug`.
//!
//! Nothing here can tell a forged token from a real one: only the control plane knows its secrets.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL;
use fender_identity::tls::CaPin;
use fender_identity::{Secret, SpiffeId, TrustDomain};
use prost::Message as _;
use zeroize::Zeroizing;

use crate::proto::control::v1::JoinTokenPayload;

mod file;

pub use file::{TokenFile, TokenFileError};

/// What every token of this form begins with, so that scanners of leaked secrets can find one.
pub const PREFIX: &str = "fender-join-1";

/// The longest text that is looked at.
pub const MAX_TEXT: usize = 4096;

/// The most roots a token may pin.
pub const MAX_PINS: usize = 8;

const SECRET_LENGTH: usize = 32;

/// A parsed join token.
#[derive(Clone)]
pub struct JoinToken {
    identity: SpiffeId,
    pins: Vec<CaPin>,
    secret: Secret,
}

impl JoinToken {
    /// A token for a workload or a node's agent. Refuses what [`JoinToken::parse`] would.
    pub fn new(identity: SpiffeId, pins: Vec<CaPin>, secret: Secret) -> Result<Self, TokenError> {
        if identity.workload().is_none() && identity.node().is_none() {
            return Err(TokenError::Nobody(identity.to_string()));
        }
        if pins.is_empty() || pins.len() > MAX_PINS {
            return Err(TokenError::Pins);
        }
        if secret.expose().len() != SECRET_LENGTH {
            return Err(TokenError::Secret);
        }
        Ok(Self {
            identity,
            pins,
            secret,
        })
    }

    /// Reads the text form; white space around it is ignored.
    pub fn parse(text: &str) -> Result<Self, TokenError> {
        let text = text.trim_ascii();
        if text.len() > MAX_TEXT {
            return Err(TokenError::Form);
        }
        let mut parts = text.split('.');
        let (Some(PREFIX), Some(payload), Some(secret), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(TokenError::Form);
        };
        let payload = BASE64URL.decode(payload).map_err(|_| TokenError::Payload)?;
        let payload =
            JoinTokenPayload::decode(payload.as_slice()).map_err(|_| TokenError::Payload)?;
        let identity = SpiffeId::from_str(&payload.identity).map_err(|_| TokenError::Payload)?;
        let pins = payload
            .ca_pins
            .iter()
            .map(|pin| {
                <[u8; 32]>::try_from(pin.as_slice())
                    .map(CaPin::from)
                    .map_err(|_| TokenError::Pins)
            })
            .collect::<Result<Vec<_>, _>>()?;
        let secret = BASE64URL.decode(secret).map_err(|_| TokenError::Secret)?;
        Self::new(identity, pins, Secret::new(secret))
    }

    /// The text form.
    pub fn to_text(&self) -> Secret {
        let payload = JoinTokenPayload {
            identity: self.identity.to_string(),
            ca_pins: self
                .pins
                .iter()
                .map(|pin| pin.as_bytes().to_vec())
                .collect(),
        };
        let payload = BASE64URL.encode(payload.encode_to_vec());
        let secret = Zeroizing::new(BASE64URL.encode(self.secret.expose()));
        Secret::from(format!("{PREFIX}.{payload}.{}", secret.as_str()))
    }

    /// The identity that attests with it.
    pub fn identity(&self) -> &SpiffeId {
        &self.identity
    }

    /// The trust domain its control plane must be of.
    pub fn trust_domain(&self) -> &TrustDomain {
        self.identity.trust_domain()
    }

    /// The roots to trust at first contact.
    pub fn pins(&self) -> &[CaPin] {
        &self.pins
    }

    /// What proves to the control plane that this is its token.
    pub fn secret(&self) -> &Secret {
        &self.secret
    }
}

/// The identity is public, the rest stays closed.
impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinToken")
            .field("identity", &self.identity)
            .finish_non_exhaustive()
    }
}

/// Why a text is not a join token. None of the text is repeated.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TokenError {
    /// Not three parts behind the prefix.
    #[error(
        "this is not a join token; one begins with `fender-join-1.` and comes from `fender token create`"
    )]
    Form,
    /// The middle part is damaged.
    #[error(
        "the join token is damaged: its payload cannot be read; make a new one with `fender token create`"
    )]
    Payload,
    /// None, too many or misshapen pins.
    #[error(
        "the join token is damaged: it pins no root certificate; make a new one with `fender token create`"
    )]
    Pins,
    /// The last part is not 256 bits.
    #[error(
        "the join token is damaged: its secret is cut off; make a new one with `fender token create`"
    )]
    Secret,
    /// For somebody who joins in no such way.
    #[error("a join token is for a workload or a node, `{0}` is neither")]
    Nobody(String),
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn token(secret: [u8; 32]) -> JoinToken {
        JoinToken::new(
            "spiffe://acme.test/ns/shop/sa/orders".parse().unwrap(),
            vec![CaPin::from([7; 32]), CaPin::from([8; 32])],
            Secret::new(secret.to_vec()),
        )
        .unwrap()
    }

    #[test]
    fn a_token_survives_its_text_form() {
        let text = token([9; 32]).to_text();
        let text = text.expose_str().unwrap();
        let read = JoinToken::parse(&format!("\n{text}\r\n ")).unwrap();
        assert_eq!(
            read.identity().workload().unwrap().to_string(),
            "shop/orders"
        );
        assert_eq!(read.trust_domain().as_str(), "acme.test");
        assert_eq!(read.pins(), [CaPin::from([7; 32]), CaPin::from([8; 32])]);
        assert!(read.secret().ct_eq(&Secret::new(vec![9; 32])));
    }

    #[test]
    fn a_token_is_never_shown() {
        let token = token(*b"0123456789abcdef0123456789abcdef");
        let shown = format!("{token:?} {:?}", token.to_text());
        let text = token.to_text();
        let secret = text.expose_str().unwrap().rsplit('.').next().unwrap();
        assert!(!shown.contains(secret));
        assert!(!shown.contains("0123456789"));
        assert!(!shown.contains("48, 49, 50"));
    }

    #[test]
    fn an_error_about_a_token_repeats_none_of_it() {
        let text = token([1; 32]).to_text();
        let text = text.expose_str().unwrap();
        let secret = text.rsplit('.').next().unwrap();
        for cut in 0..text.len() {
            if let Err(error) = JoinToken::parse(&text[..cut]) {
                assert!(
                    !format!("{error} {error:?}").contains(&secret[..8]),
                    "{error}"
                );
            }
        }
    }

    #[test]
    fn a_token_cut_off_anywhere_is_refused() {
        let text = token([1; 32]).to_text();
        let text = text.expose_str().unwrap();
        for cut in 0..text.len() {
            assert!(JoinToken::parse(&text[..cut]).is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn what_is_not_a_token_is_refused() {
        let text = token([1; 32]).to_text();
        let text = text.expose_str().unwrap();
        let longer = format!("{text}.x");
        let padded = format!("{text}=");
        let other = text.replacen("fender-join-1", "fender-join-2", 1);
        let huge = "a".repeat(MAX_TEXT + 1);
        for wrong in ["", ".", "..", &longer, &padded, &other, &huge] {
            assert!(JoinToken::parse(wrong).is_err());
        }
    }

    #[test]
    fn a_token_that_pins_nothing_is_refused() {
        let identity: SpiffeId = "spiffe://acme.test/ns/shop/sa/orders".parse().unwrap();
        let made = JoinToken::new(identity, Vec::new(), Secret::new(vec![0; 32]));
        assert_eq!(made.unwrap_err(), TokenError::Pins);
    }

    #[test]
    fn a_token_for_the_control_plane_is_refused() {
        let identity: SpiffeId = "spiffe://acme.test/fender/control".parse().unwrap();
        let made = JoinToken::new(
            identity,
            vec![CaPin::from([7; 32])],
            Secret::new(vec![0; 32]),
        );
        assert!(matches!(made, Err(TokenError::Nobody(_))));
    }

    proptest! {
        #[test]
        fn any_text_is_parsed_or_refused(text in ".{0,200}") {
            let _ = JoinToken::parse(&text);
            let _ = JoinToken::parse(&format!("fender-join-1.{text}"));
        }
    }
}
