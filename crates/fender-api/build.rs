//! Compiles the control protocol with protox, so that no protoc has to be installed.

use std::io;

const PROTO: &str = "fender/control/v1/control.proto";

/// Messages that carry a secret: their `Debug` is written by hand in `src/proto.rs`.
const SECRET: [&str; 3] = [
    ".fender.control.v1.JoinTokenEvidence",
    ".fender.control.v1.CreateTokenResponse",
    ".fender.control.v1.Secret",
];

fn main() -> io::Result<()> {
    println!("cargo:rerun-if-changed=proto/{PROTO}");
    let descriptors = protox::compile([PROTO], ["proto"]).map_err(io::Error::other)?;
    tonic_prost_build::configure()
        .build_transport(false)
        .skip_debug(SECRET)
        // Shared by all streams.
        .bytes(".fender.control.v1.Update")
        .compile_fds(descriptors)
}
