//! Istio's kinds, as people bring them.

use std::collections::BTreeMap;

use fender_policy::Action;
#[cfg(test)]
use schemars::JsonSchema;
use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::documents::MtlsMode;
use crate::yaml::{At, Word};

/// Istio's, with what a cluster adds to it.
#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct IstioDocument<S> {
    #[serde(rename = "apiVersion")]
    _api_version: String,
    #[serde(rename = "kind")]
    _kind: String,
    pub(crate) metadata: At<IstioMetadata>,
    pub(crate) spec: Option<At<S>>,
    #[serde(rename = "status")]
    #[cfg_attr(test, schemars(skip))]
    _status: Option<IgnoredAny>,
}

/// Whatever a cluster wrote there is left alone.
#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
pub(crate) struct IstioMetadata {
    pub(crate) namespace: Option<At<String>>,
    pub(crate) name: At<String>,
}

/// Istio's.
#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct PeerAuthentication {
    /// Without it the document is for its namespace, or in the root namespace for the mesh.
    pub(crate) selector: Option<At<Selector>>,
    pub(crate) mtls: Option<At<MutualTls>>,
    /// By the port that clients reach. Only with `selector`.
    pub(crate) port_level_mtls: Option<At<BTreeMap<String, At<MutualTls>>>>,
}

#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields)]
pub(crate) struct MutualTls {
    /// Default: UNSET, which is whatever holds further out, and STRICT where nothing does.
    pub(crate) mode: Option<At<Word<Option<MtlsMode>>>>,
}

#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct AuthorizationPolicy {
    pub(crate) selector: Option<At<Selector>>,
    pub(crate) action: Option<At<Word<Action>>>,
    pub(crate) rules: Option<Vec<At<Rule>>>,
    #[cfg_attr(test, schemars(skip))]
    pub(crate) target_ref: Option<At<IgnoredAny>>,
    #[cfg_attr(test, schemars(skip))]
    pub(crate) target_refs: Option<At<IgnoredAny>>,
    #[cfg_attr(test, schemars(skip))]
    pub(crate) provider: Option<At<IgnoredAny>>,
}

#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Selector {
    #[serde(default)]
    pub(crate) match_labels: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields)]
pub(crate) struct Rule {
    pub(crate) from: Option<At<Vec<At<From>>>>,
    pub(crate) to: Option<At<Vec<At<To>>>>,
    pub(crate) when: Option<At<Vec<At<Condition>>>>,
}

#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields)]
pub(crate) struct From {
    pub(crate) source: At<RuleSource>,
}

/// Texts of a rule.
pub(crate) type Texts = Option<At<Vec<At<String>>>>;

#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct RuleSource {
    pub(crate) principals: Texts,
    pub(crate) not_principals: Texts,
    pub(crate) namespaces: Texts,
    pub(crate) not_namespaces: Texts,
    pub(crate) service_accounts: Texts,
    pub(crate) not_service_accounts: Texts,
    pub(crate) ip_blocks: Texts,
    pub(crate) not_ip_blocks: Texts,
    /// The client behind a balancer that speaks the PROXY protocol; without one, as `ipBlocks`.
    pub(crate) remote_ip_blocks: Texts,
    pub(crate) not_remote_ip_blocks: Texts,
    #[cfg_attr(test, schemars(skip))]
    pub(crate) request_principals: Option<At<IgnoredAny>>,
    #[cfg_attr(test, schemars(skip))]
    pub(crate) not_request_principals: Option<At<IgnoredAny>>,
}

#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields)]
pub(crate) struct To {
    pub(crate) operation: At<RuleOperation>,
}

#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct RuleOperation {
    pub(crate) hosts: Texts,
    pub(crate) not_hosts: Texts,
    pub(crate) ports: Texts,
    pub(crate) not_ports: Texts,
    pub(crate) methods: Texts,
    pub(crate) not_methods: Texts,
    pub(crate) paths: Texts,
    pub(crate) not_paths: Texts,
}

#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Condition {
    pub(crate) key: At<String>,
    pub(crate) values: Texts,
    pub(crate) not_values: Texts,
}
