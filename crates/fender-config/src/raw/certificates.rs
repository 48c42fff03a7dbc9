//! What a port shows beside the workload's own certificate, as it is written.

#[cfg(test)]
use schemars::JsonSchema;
use serde::Deserialize;

use super::Roots;
use crate::yaml::{At, Word};

/// One of `files`, `acme` and `credential`.
#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields)]
pub(crate) struct PortCertificate {
    /// Where it lies, if somebody else renews it.
    pub(crate) files: Option<At<CertificateFiles>>,
    /// Who issues it, if the sidecar asks for it and renews it itself.
    pub(crate) acme: Option<At<Acme>>,
    /// A Credential of the same namespace, one of the workload's `credentials`, whose value is chain and key: PEM with both, or a
    /// JSON object with `tls.crt` and `tls.key`, or with `certificate` and `private_key`.
    pub(crate) credential: Option<At<String>>,
    /// DNS names, also `*.example.com`; `*` alone is whoever asks for any other name, or for none. Default: all that are in
    /// the certificate. With `acme` they are what is asked for; with `credential` they must be written.
    pub(crate) names: Option<At<Vec<At<String>>>>,
}

/// PEM files beside the sidecar, below its --allow-dir. They are followed.
#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields)]
pub(crate) struct CertificateFiles {
    /// The leaf first, then what is between it and its root.
    pub(crate) certificate: At<String>,
    /// Of that leaf; nobody but its owner and its group may read it.
    pub(crate) key: At<String>,
}

/// An authority that speaks ACME (RFC 8555).
#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Acme {
    /// `https://acme-v02.api.letsencrypt.org/directory`
    pub(crate) directory: At<String>,
    /// That somebody has read the authority's terms of service: `agreed`.
    pub(crate) terms_of_service: At<Word<TermsOfService>>,
    /// Where the authority writes if something is wrong: a mail address.
    pub(crate) contact: Option<At<String>>,
    /// Where HTTP-01 is answered, `0.0.0.0:80`; nothing else is served there. Default: TLS-ALPN-01, answered at this port.
    pub(crate) http_challenge: Option<At<String>>,
    /// Who vouches for the directory's own certificate. Default: the roots of the operating system.
    pub(crate) roots: Option<Roots>,
    /// How the authority knows whose customer this is.
    pub(crate) external_account: Option<At<ExternalAccount>>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct TermsOfService;

#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct ExternalAccount {
    pub(crate) key_id: At<String>,
    /// The HMAC key, in base64url as authorities give it; below --allow-dir.
    pub(crate) key: At<String>,
}
