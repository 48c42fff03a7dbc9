//! What a document says of the bounds of HTTP requests.

#[cfg(test)]
use schemars::JsonSchema;
use serde::Deserialize;

use crate::yaml::At;

/// What one HTTP request may take. What is left out is as it is around it: a port is in a workload, that in a namespace,
/// that in the mesh. No bound can be lifted.
#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Limits {
    /// The head of a request, line ends included; more is answered 431: 1KiB to 128KiB, default 32KiB.
    pub(crate) head_bytes: Option<At<String>>,
    /// Fields of a head; more are answered 431: 10 to 256, default 100.
    pub(crate) head_fields: Option<At<i64>>,
    /// From the first byte of a head to its last; a slower one is answered 408: 1s to 1m, default 10s.
    pub(crate) head_time: Option<At<String>>,
    /// The target of a request, path and query; a longer one is answered 414: 256B to 32KiB, default 8KiB.
    pub(crate) target_bytes: Option<At<String>>,
    /// The body of a request; a larger one is answered 413: 1KiB to 1TiB. Default: any size, as nothing is kept of it.
    pub(crate) body_bytes: Option<At<String>>,
    /// How long a connection is kept on which no request is open: 1s to 1h, default 5m.
    pub(crate) idle: Option<At<String>>,
    /// Without a byte moving while a body is awaited or a response cannot be written: 1s to 1h, default 5m.
    pub(crate) stall: Option<At<String>>,
    /// From the whole head of a request to the head of the app's response; a later one is answered 504: 1s to 1d, default 1h.
    pub(crate) response: Option<At<String>>,
    /// From the whole head of a request to the last byte of its response: 1s to 7d, default 1d.
    pub(crate) request: Option<At<String>>,
    /// Requests of one HTTP/2 connection at a time: 1 to 256, default 128.
    pub(crate) streams: Option<At<i64>>,
}
