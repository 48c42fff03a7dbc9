//! Trust, bundles and issued certificates on the wire.

use std::time::Duration;

use fender_identity::jwt::{JwtBundles, Keys, Purpose, svid};
use fender_identity::{Bundle, Bundles, DenyList, Serial, Trust, TrustDomain};
use rustls_pki_types::{CertificateDer, UnixTime};

use super::{InvalidField, parse, required};
use crate::proto::control::v1 as proto;

/// Revocation lists in one Trust: one of each authority that signs, old ones and replicas' included.
pub const MAX_CRLS: usize = 256;

impl TryFrom<proto::Trust> for Trust {
    type Error = InvalidField;

    fn try_from(message: proto::Trust) -> Result<Self, InvalidField> {
        if message.version == 0 {
            return Err(InvalidField::new("version", "0 means no Trust"));
        }
        if message.crls.len() > MAX_CRLS {
            let why = format!("{} are more than {MAX_CRLS}", message.crls.len());
            return Err(InvalidField::new("crls", why));
        }
        Ok(Self {
            version: message.version,
            bundles: bundles_from_proto("bundles", message.bundles)?.into(),
            denied: denied(message.denials.unwrap_or_default())?.into(),
            crls: message.crls.into_iter().map(Into::into).collect(),
            jwt: jwt_bundles(message.jwt_bundles)?.into(),
        })
    }
}

impl From<&Trust> for proto::Trust {
    fn from(trust: &Trust) -> Self {
        Self {
            version: trust.version,
            bundles: bundles_to_proto(&trust.bundles),
            denials: Some((&*trust.denied).into()),
            crls: trust.crls.iter().map(|crl| crl.to_vec()).collect(),
            jwt_bundles: trust.jwt.iter().map(jwt_bundle).collect(),
        }
    }
}

fn jwt_bundles(messages: Vec<proto::JwtBundle>) -> Result<JwtBundles, InvalidField> {
    let mut all = JwtBundles::default();
    for (i, message) in messages.into_iter().enumerate() {
        let at = |error: InvalidField| error.at("jwt_bundles", i);
        let trust_domain = parse("trust_domain", &message.trust_domain).map_err(at)?;
        if all.get(&trust_domain).is_some() {
            let why = format!("`{trust_domain}` is there twice");
            return Err(at(InvalidField::new("trust_domain", why)));
        }
        let keys = Keys::parse(message.keys.as_bytes(), Purpose::JwtSvids)
            .map_err(|error| at(InvalidField::new("keys", error)))?;
        all.insert(trust_domain, keys);
    }
    Ok(all)
}

fn jwt_bundle((trust_domain, keys): (&TrustDomain, &Keys)) -> proto::JwtBundle {
    proto::JwtBundle {
        trust_domain: trust_domain.to_string(),
        keys: keys.to_json(svid::USE),
    }
}

/// The deny list alone: it holds even when the rest of a Trust cannot be read.
pub(crate) fn denied(message: proto::Denials) -> Result<DenyList, InvalidField> {
    let (serials, rules) = (message.serials.len(), message.rules.len());
    if serials > DenyList::MAX_SERIALS {
        let why = format!("{serials} are more than {}", DenyList::MAX_SERIALS);
        return Err(InvalidField::new("denials.serials", why));
    }
    if rules > DenyList::MAX_RULES {
        let why = format!("{rules} are more than {}", DenyList::MAX_RULES);
        return Err(InvalidField::new("denials.rules", why));
    }
    let mut list = DenyList::default();
    for (i, serial) in message.serials.iter().enumerate() {
        let serial = Serial::from_bytes(serial)
            .map_err(|error| InvalidField::new(format!("denials.serials[{i}]"), error))?;
        list.deny_serial(serial);
    }
    for (i, rule) in message.rules.into_iter().enumerate() {
        deny_before(&mut list, rule).map_err(|error| error.at("denials.rules", i))?;
    }
    Ok(list)
}

fn deny_before(list: &mut DenyList, rule: proto::DeniedBefore) -> Result<(), InvalidField> {
    use proto::denied_before::Whose;
    let seconds = u64::try_from(rule.moment_unix)
        .map_err(|_| InvalidField::new("moment_unix", "lies before 1970"))?;
    let moment = UnixTime::since_unix_epoch(Duration::from_secs(seconds));
    match required("whose", rule.whose)? {
        Whose::Identity(id) => list.deny_identity_before(parse("identity", &id)?, moment),
        Whose::TrustDomain(name) => {
            list.deny_workloads_before(parse("trust_domain", &name)?, moment)
        }
    }
    Ok(())
}

impl From<&DenyList> for proto::Denials {
    fn from(list: &DenyList) -> Self {
        use proto::denied_before::Whose;
        let rule = |whose, moment: UnixTime| proto::DeniedBefore {
            whose: Some(whose),
            moment_unix: i64::try_from(moment.as_secs()).unwrap_or(i64::MAX),
        };
        let identities = list
            .identities()
            .map(|(id, moment)| rule(Whose::Identity(id.to_string()), moment));
        let workloads = list
            .workloads()
            .map(|(domain, moment)| rule(Whose::TrustDomain(domain.to_string()), moment));
        Self {
            serials: list
                .serials()
                .map(|serial| serial.as_bytes().to_vec())
                .collect(),
            rules: identities.chain(workloads).collect(),
        }
    }
}

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
