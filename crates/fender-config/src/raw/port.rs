//! What a port says beside its addresses.

#[cfg(test)]
use schemars::JsonSchema;
use serde::Deserialize;

use crate::snapshot::ForwardedFields;
use crate::yaml::{At, Word};

#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields)]
pub(crate) struct Forwarded {
    /// In which fields the app is told whom a request comes from. Default: x-forwarded.
    pub(crate) fields: Option<At<Word<ForwardedFields>>>,
    /// Proxies in front that are believed about whom they ask for. Default: none, and what is said of it is removed.
    pub(crate) behind: Option<At<Behind>>,
}

#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields)]
pub(crate) struct Behind {
    /// How many proxies a request passes, each of which adds to `X-Forwarded-For`; from 1 to 16. Default: 1.
    pub(crate) hops: Option<At<i64>>,
    /// The addresses of the last of them.
    pub(crate) from: Option<At<Vec<At<String>>>>,
    /// The SPIFFE IDs of the last of them.
    pub(crate) identities: Option<At<Vec<At<String>>>>,
}
