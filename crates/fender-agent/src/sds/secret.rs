//! What is behind a name, and how Envoy wants to have it.

use std::sync::Arc;

use fender_api::proto::envoy::config::core::v3::data_source::Specifier;
use fender_api::proto::envoy::config::core::v3::{DataSource, TypedExtensionConfig};
use fender_api::proto::envoy::extensions::transport_sockets::tls::v3::secret::Type;
use fender_api::proto::envoy::extensions::transport_sockets::tls::v3::spiffe_cert_validator_config::TrustDomain as Vouching;
use fender_api::proto::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, Secret, SpiffeCertValidatorConfig, TlsCertificate,
};
use fender_identity::{Bundle, Svid, Trust};
use rustls_pki_types::CertificateRevocationListDer;
use prost::Message;
use prost_types::Any;

use crate::Entitled;

pub(super) const SECRET: &str =
    "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";
const SPIFFE_VALIDATOR: &str =
    "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig";

type Lists = Arc<[CertificateRevocationListDer<'static>]>;

/// A secret before it is written out: cheap to compare with the next one.
pub(super) enum Material {
    Certificate(Arc<Svid>),
    /// Whoever one of these roots vouches for: for the default identity's own trust domain, whose authority signs no
    /// names but its own.
    Own(Bundle, Lists),
    /// Each root for the names of its own trust domain.
    Bound(Vec<Bundle>),
}

impl PartialEq for Material {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Certificate(one), Self::Certificate(other)) => one.chain() == other.chain(),
            (Self::Own(one, lists), Self::Own(other, others)) => one == other && lists == others,
            (Self::Bound(one), Self::Bound(other)) => one == other,
            (Self::Certificate(_) | Self::Own(..) | Self::Bound(_), _) => false,
        }
    }
}

impl Material {
    pub(super) fn named(name: &str, entitled: &Entitled) -> Option<Self> {
        let default = entitled.svids.first()?;
        let own = default.id().trust_domain();
        let Trust { bundles, crls, .. } = &entitled.trust;
        match name {
            "default" => Some(Self::Certificate(Arc::clone(default))),
            "ROOTCA" => {
                let bundle = bundles.get(own)?.clone();
                Some(Self::Own(bundle, Arc::clone(crls)))
            }
            "ALL" => Some(Self::Bound(bundles.iter().cloned().collect())),
            _ => {
                if let Some(svid) = entitled
                    .svids
                    .iter()
                    .find(|svid| svid.id().as_str() == name)
                {
                    return Some(Self::Certificate(Arc::clone(svid)));
                }
                let trust_domain = name.strip_prefix("spiffe://")?.parse().ok()?;
                let bundle = bundles.get(&trust_domain)?.clone();
                Some(match trust_domain == *own {
                    true => Self::Own(bundle, Arc::clone(crls)),
                    false => Self::Bound(vec![bundle]),
                })
            }
        }
    }

    pub(super) fn resource(&self, name: &str) -> Any {
        let secret = Secret {
            name: name.to_owned(),
            r#type: Some(match self {
                Self::Certificate(svid) => Type::TlsCertificate(TlsCertificate {
                    certificate_chain: Some(inline(svid.chain_pem().into_bytes())),
                    private_key: Some(inline(svid.key_pem().expose().to_vec())),
                }),
                Self::Own(bundle, lists) => Type::ValidationContext(own(bundle, lists)),
                Self::Bound(bundles) => Type::ValidationContext(bound(bundles)),
            }),
        };
        any(SECRET, &secret)
    }
}

/// Roots, and who is not believed any more. With a list, Envoy asks for that of the leaf's own issuer and no other.
fn own(bundle: &Bundle, lists: &Lists) -> CertificateValidationContext {
    let crl: String = lists
        .iter()
        .map(|list| fender_identity::crl_pem(list))
        .collect();
    let revoked = (!crl.is_empty()).then(|| inline(crl.into_bytes()));
    CertificateValidationContext {
        trusted_ca: Some(inline(bundle.to_pem().into_bytes())),
        only_verify_leaf_cert_crl: revoked.is_some(),
        crl: revoked,
        ..CertificateValidationContext::default()
    }
}

/// Envoy's own validator for SPIFFE, which takes no certificate revocation list.
fn bound(bundles: &[Bundle]) -> CertificateValidationContext {
    let vouching = |bundle: &Bundle| Vouching {
        name: bundle.trust_domain().to_string(),
        trust_bundle: Some(inline(bundle.to_pem().into_bytes())),
    };
    let validator = SpiffeCertValidatorConfig {
        trust_domains: bundles.iter().map(vouching).collect(),
    };
    CertificateValidationContext {
        custom_validator_config: Some(TypedExtensionConfig {
            name: "envoy.tls.cert_validator.spiffe".to_owned(),
            typed_config: Some(any(SPIFFE_VALIDATOR, &validator)),
        }),
        ..CertificateValidationContext::default()
    }
}

fn any(type_url: &str, message: &impl Message) -> Any {
    Any {
        type_url: type_url.to_owned(),
        value: message.encode_to_vec(),
    }
}

fn inline(bytes: Vec<u8>) -> DataSource {
    DataSource {
        specifier: Some(Specifier::InlineBytes(bytes)),
    }
}
