//! What several tests of this program begin with.

use fender_config::Source;
use fender_config::snapshot::Snapshot;
use fender_config::standalone::{self, Standalone};
use fender_identity::Bundles;

/// A sidecar by its document.
pub(crate) fn sidecar(text: &str) -> Standalone {
    let source = Source {
        name: "sidecar.yaml".to_owned(),
        text: text.to_owned(),
    };
    standalone::parse(&[source]).unwrap()
}

/// What it is told, as `shop/orders`.
pub(crate) fn snapshot(text: &str) -> Snapshot {
    let own = "spiffe://mesh.test/ns/shop/sa/orders".parse().unwrap();
    sidecar(text).snapshot(&own, Bundles::new(), 1)
}
