//! One order, from the first question to the certificate.
//!
//! Answers are given only while the order runs, whatever becomes of it. One that an authority has not finished is found
//! again, with everything that was proven for it.

use std::sync::Arc;
use std::time::Duration;

use fender_config::snapshot::{AcmeChallenge, PortCertificate};
use fender_identity::csr::NewKey;
use fender_identity::tls::{ChallengeCertificate, NamedCertificate, PemPair};
use instant_acme::{
    Account, AuthorizationHandle, AuthorizationStatus, CertificateIdentifier, ChallengeStatus,
    ChallengeType, Identifier, NewOrder, Order, OrderStatus, RetryPolicy,
};

use super::{AcmeError, Answer, Answers, clean};

/// How an order is looked at again: soon at first, and for two minutes.
const LOOKS: RetryPolicy = RetryPolicy::new()
    .initial_delay(Duration::from_millis(250))
    .backoff(1.5)
    .timeout(Duration::from_secs(120));

/// The longest token that is answered for; those in use have 43 letters.
const MAX_TOKEN: usize = 256;

/// What is given for one order. Dropped, all of it is withdrawn.
#[derive(Debug)]
pub(super) struct Given {
    answers: Arc<dyn Answers>,
    all: Vec<Answer>,
}

impl Given {
    pub(super) fn new(answers: Arc<dyn Answers>) -> Self {
        let all = Vec::new();
        Self { answers, all }
    }

    /// One that was given for the same before stands no longer.
    fn give(&mut self, answer: Answer) {
        self.answers.give(&answer);
        self.all.retain(|before| !before.is_instead_of(&answer));
        self.all.push(answer);
    }

    pub(super) fn withdraw(&mut self) {
        for answer in self.all.drain(..) {
            self.answers.withdraw(&answer);
        }
    }
}

impl Drop for Given {
    fn drop(&mut self) {
        self.withdraw();
    }
}

/// Asks for a certificate. `replaces` is the one that it is to be put in the place of.
pub(super) async fn place(
    account: &Account,
    wanted: &PortCertificate,
    replaces: Option<CertificateIdentifier<'_>>,
) -> Result<Order, AcmeError> {
    let identifiers: Vec<_> = wanted
        .listed()
        .map(|name| Identifier::Dns(name.to_owned()))
        .collect();
    let mut asked = NewOrder::new(&identifiers);
    let replacing = replaces.is_some();
    if let Some(replaces) = replaces {
        asked = asked.replaces(replaces);
    }
    match account.new_order(&asked).await.map_err(AcmeError::from) {
        Ok(order) => Ok(order),
        Err(error @ (AcmeError::Forgotten | AcmeError::RateLimited(_))) => Err(error),
        // Whatever it has against the replacing (another account's certificate, say), it may do without.
        Err(_) if replacing => Err(AcmeError::NotReplaceable),
        Err(error) => Err(error),
    }
}

/// What has become of an order that was placed before. None: it is over, or the authority does not know it any more.
pub(super) async fn find(account: &Account, url: &str) -> Result<Option<Order>, AcmeError> {
    let found = account.order(url.to_owned()).await;
    match found.map_err(AcmeError::from) {
        Ok(mut order) => {
            let is_over = order.state().status == OrderStatus::Invalid;
            Ok((!is_over).then_some(order))
        }
        Err(AcmeError::Refused(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Proves what is still to be proven, and fetches the certificate.
pub(super) async fn finish(
    order: &mut Order,
    key: &NewKey,
    wanted: &PortCertificate,
    challenge: AcmeChallenge,
    given: &mut Given,
) -> Result<PemPair, AcmeError> {
    let names: Vec<String> = wanted.listed().map(str::to_owned).collect();
    if order.state().status == OrderStatus::Pending {
        let kind = kind(challenge);
        let mut authorizations = order.authorizations();
        while let Some(authorization) = authorizations.next().await {
            prove(authorization?, &names, kind, given).await?;
        }
        match order.poll_ready(&LOOKS).await.map_err(AcmeError::from) {
            Ok(OrderStatus::Ready) => {}
            Ok(_) => return Err(unproven(order, kind, None).await),
            Err(error @ AcmeError::Refused(_)) => {
                return Err(unproven(order, kind, Some(error)).await);
            }
            Err(error) => return Err(error),
        }
    }
    given.withdraw();

    if order.state().status == OrderStatus::Ready {
        let request = key.csr_der_for_names(&names);
        let request = request.map_err(|error| AcmeError::Ours(error.to_string()))?;
        order.finalize_csr(&request).await?;
    }
    let chain = match order
        .poll_certificate(&LOOKS)
        .await
        .map_err(AcmeError::from)
    {
        Ok(chain) => chain,
        Err(refused @ AcmeError::Refused(_)) => return Err(refused),
        Err(_) if order.state().status == OrderStatus::Invalid => return Err(invalid()),
        Err(error) => return Err(error),
    };
    let pair = PemPair {
        chain: chain.into_bytes(),
        key: key.to_pem(),
    };
    // An authority that gives something else than it was asked for changes nothing.
    NamedCertificate::from_pem(&pair, &wanted.names)?;
    Ok(pair)
}

/// Answers for one name, if the authority does not believe it already.
async fn prove(
    mut authorization: AuthorizationHandle<'_>,
    names: &[String],
    kind: Kind,
    given: &mut Given,
) -> Result<(), AcmeError> {
    let name = authorization.identifier().to_string();
    // Nothing is proven for anybody that was not asked for.
    if !names.contains(&name) {
        let why = format!(
            "it wants `{}` to be proven, which was not asked for",
            clean(&name)
        );
        return Err(AcmeError::Refused(why));
    }
    match authorization.status {
        AuthorizationStatus::Valid => return Ok(()),
        AuthorizationStatus::Pending => {}
        status @ (AuthorizationStatus::Invalid
        | AuthorizationStatus::Revoked
        | AuthorizationStatus::Expired
        | AuthorizationStatus::Deactivated) => {
            let why = format!("its authorization is {status:?}").to_ascii_lowercase();
            return Err(AcmeError::Unproven { name, why });
        }
    }
    let Some(mut challenge) = authorization.challenge(kind.challenge.clone()) else {
        let challenge = kind.name;
        return Err(AcmeError::NoChallenge { name, challenge });
    };
    let authorization = challenge.key_authorization();
    let answer = match kind.how {
        AcmeChallenge::TlsAlpn => {
            let made = ChallengeCertificate::new(&name, authorization.digest().as_ref());
            Answer::TlsAlpn(made.map_err(|error| AcmeError::Ours(error.to_string()))?)
        }
        AcmeChallenge::Http { .. } if !is_token(&challenge.token) => {
            let why = "its token is not base64url (RFC 8555, 8.3)".to_owned();
            return Err(AcmeError::Refused(why));
        }
        AcmeChallenge::Http { .. } => Answer::Http {
            token: challenge.token.clone(),
            authorization: authorization.as_str().to_owned(),
        },
    };
    given.give(answer);
    // One that it is looking at already cannot be begun again (RFC 8555, 7.5.1).
    if challenge.status == ChallengeStatus::Pending {
        challenge.set_ready().await?;
    }
    Ok(())
}

/// It becomes part of a URL of ours.
fn is_token(text: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
    (1..=MAX_TOKEN).contains(&text.len()) && text.bytes().all(fits)
}

#[derive(Clone, Copy)]
struct Kind {
    how: AcmeChallenge,
    challenge: &'static ChallengeType,
    name: &'static str,
}

fn kind(how: AcmeChallenge) -> Kind {
    let (challenge, name) = match how {
        AcmeChallenge::TlsAlpn => (&ChallengeType::TlsAlpn01, "TLS-ALPN-01"),
        AcmeChallenge::Http { .. } => (&ChallengeType::Http01, "HTTP-01"),
    };
    Kind {
        how,
        challenge,
        name,
    }
}

/// What the authority makes of the answers, or else what it says of the order.
async fn unproven(order: &mut Order, kind: Kind, told: Option<AcmeError>) -> AcmeError {
    let mut authorizations = order.authorizations();
    while let Some(Ok(mut authorization)) = authorizations.next().await {
        if authorization.refresh().await.is_err() {
            break;
        }
        let mut challenges = authorization.challenges.iter();
        let failed = challenges.find(|one| one.r#type == *kind.challenge);
        if let Some(why) = failed.and_then(|challenge| challenge.error.as_ref()) {
            return AcmeError::Unproven {
                name: clean(&authorization.identifier().to_string()),
                why: clean(&why.to_string()),
            };
        }
    }
    told.unwrap_or_else(invalid)
}

fn invalid() -> AcmeError {
    AcmeError::Refused("the order is invalid".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attack_a_token_is_no_path_and_no_page() {
        assert!(is_token("evaGxfADs6pSRb2LAv9IZf17Dt3juxGJ-PCt92wr_oA"));
        for token in [
            "", "..", "a/b", "a%2Fb", "<script>", "a b", "a\r\nb", "\u{e9}",
        ] {
            assert!(!is_token(token), "{token}");
        }
        assert!(!is_token(&"a".repeat(MAX_TOKEN + 1)));
    }
}
