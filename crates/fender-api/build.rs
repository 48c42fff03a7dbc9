//! Compiles the protocols with protox, so that no protoc has to be installed.

use std::io;

/// Fender's own.
const OWN: [&str; 2] = [
    "fender/control/v1/control.proto",
    "fender/agent/v1/agent.proto",
];

/// The protocols that others made, each behind a feature of this crate.
const OTHERS: [(&str, &str); 3] = [
    ("CARGO_FEATURE_OTLP", "otlp/trace_service.proto"),
    ("CARGO_FEATURE_WORKLOAD_API", "spiffe/workload.proto"),
    ("CARGO_FEATURE_SDS", "envoy/sds.proto"),
];

/// What `envoy/sds.proto` names only inside of an `Any`.
const SECRETS: &str = "envoy/tls.proto";

/// Messages that carry a secret: their `Debug` is written by hand in `src/proto.rs`.
const SECRET: [&str; 9] = [
    ".fender.control.v1.JoinTokenEvidence",
    ".fender.control.v1.CreateTokenResponse",
    ".fender.control.v1.Secret",
    ".fender.control.v1.SignedJwt",
    ".X509SVID",
    ".JWTSVID",
    ".ValidateJWTSVIDRequest",
    ".envoy.config.core.v3.DataSource",
    ".envoy.service.discovery.v3.DiscoveryResponse",
];

fn main() -> io::Result<()> {
    println!("cargo:rerun-if-changed=proto");
    let mut protos = OWN.to_vec();
    for (feature, proto) in OTHERS {
        if std::env::var_os(feature).is_some() {
            protos.push(proto);
        }
    }
    if protos.contains(&"envoy/sds.proto") {
        protos.push(SECRETS);
    }
    let descriptors = protox::compile(protos, ["proto"]).map_err(io::Error::other)?;
    tonic_prost_build::configure()
        .build_transport(false)
        .skip_debug(SECRET)
        // Shared by all streams.
        .bytes(".fender.control.v1.Update")
        .bytes(".fender.control.v1.NodeUpdate")
        .compile_fds(descriptors)
}
