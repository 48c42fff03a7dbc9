//! Bundles and issued certificates on the wire.

use std::time::Duration;

use fender_identity::{Bundle, Bundles};
use rustls_pki_types::CertificateDer;

use super::{InvalidField, parse};
use crate::proto::control::v1 as proto;

/// Bundles by trust domain. The same domain twice is refused: which of the two would hold?
pub fn bundles_from_proto(
    field: &str,
    messages: Vec<proto::Bundle>,
) -> Result<Bundles, InvalidField> {
    let mut bundles = Bundles::default();
    for (i, message) in messages.into_iter().enumerate() {
        let bundle = bundle(message).map_err(|error| error.at(field, i))?;
        if bundles.get(bundle.trust_domain()).is_some() {
            return Err(InvalidField::new(
                format!("{field}[{i}].trust_domain"),
                format!("`{}` is there twice", bundle.trust_domain()),
            ));
        }
        bundles.insert(bundle);
    }
    Ok(bundles)
}

/// All of them.
pub fn bundles_to_proto(bundles: &Bundles) -> Vec<proto::Bundle> {
    bundles.iter().map(proto::Bundle::from).collect()
}

fn bundle(message: proto::Bundle) -> Result<Bundle, InvalidField> {
    let trust_domain = parse("trust_domain", &message.trust_domain)?;
    let roots = message
        .roots
        .into_iter()
        .map(CertificateDer::from)
        .collect();
    Bundle::new(trust_domain, roots).map_err(|error| InvalidField::new("roots", error))
}

impl From<&Bundle> for proto::Bundle {
    fn from(bundle: &Bundle) -> Self {
        Self {
            trust_domain: bundle.trust_domain().to_string(),
            roots: bundle.roots().iter().map(|root| root.to_vec()).collect(),
        }
    }
}

/// What the control plane answers to a request for a certificate. Nothing in it is verified yet.
#[derive(Clone, Debug)]
pub struct IssuedSvid {
    /// Leaf first, without the root.
    pub chain: Vec<CertificateDer<'static>>,
    /// Whom to trust.
    pub bundles: Bundles,
    /// How long after expiry the certificate may renew itself.
    pub renewal_grace: Duration,
}

impl TryFrom<proto::SvidResponse> for IssuedSvid {
    type Error = InvalidField;

    fn try_from(message: proto::SvidResponse) -> Result<Self, InvalidField> {
        if message.chain.is_empty() {
            return Err(InvalidField::new("chain", "is empty"));
        }
        Ok(Self {
            chain: message
                .chain
                .into_iter()
                .map(CertificateDer::from)
                .collect(),
            bundles: bundles_from_proto("bundles", message.bundles)?,
            renewal_grace: Duration::from_secs(message.renewal_grace_seconds),
        })
    }
}

impl From<&IssuedSvid> for proto::SvidResponse {
    fn from(issued: &IssuedSvid) -> Self {
        Self {
            chain: issued
                .chain
                .iter()
                .map(|certificate| certificate.to_vec())
                .collect(),
            bundles: bundles_to_proto(&issued.bundles),
            renewal_grace_seconds: issued.renewal_grace.as_secs(),
        }
    }
}
