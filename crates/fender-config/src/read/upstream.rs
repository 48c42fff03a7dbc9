//! The `Upstream`: an external service, reached over TLS that is always verified.

use super::{HOST_HELP, file_path, full_name};
use crate::ObjectName;
use crate::documents::Upstream;
use crate::raw::{self, Document};
use crate::snapshot::{OwnCertificate, Protocol, UpstreamRoots};
use crate::yaml::Reader;

/// Protocols of which an ambassador is planned but not built.
const PLANNED: [&str; 4] = ["postgres", "mysql", "mariadb", "redis"];

pub(crate) fn upstream(
    reader: &mut Reader<'_>,
    document: Document<raw::Upstream>,
) -> Option<Upstream> {
    let Document { metadata, spec, .. } = document;
    let name = full_name(reader, &metadata, ObjectName::new);
    reader.unsupported(
        "login",
        &spec.login,
        "logging in to an upstream is not built yet; without `login` the app does it itself",
    );
    let protocol = protocol(reader, &spec);
    let address = reader.parse(&spec.address, "fender::bad-address", HOST_HELP);
    let tls = spec.tls.as_ref();
    if let Some(at) = tls.and_then(|tls| tls.verify.as_ref()) {
        reader.choose("verify", at);
    }
    let roots = match tls.and_then(|tls| tls.roots.as_ref()) {
        Some(roots) => file_path(reader, &roots.file).map(UpstreamRoots::File),
        None => Some(UpstreamRoots::Mesh),
    };
    let certificate = match tls.and_then(|tls| tls.certificate.as_ref()) {
        Some(at) => reader.choose("certificate", at),
        None => Some(OwnCertificate::default()),
    };
    Some(Upstream {
        name: name?,
        protocol: protocol?,
        address: address?,
        roots: roots?,
        certificate: certificate?,
    })
}

fn protocol(reader: &mut Reader<'_>, spec: &raw::Upstream) -> Option<Protocol> {
    let written = spec.protocol.value.text.as_str();
    if PLANNED.contains(&written) {
        reader.wrong(
            &spec.protocol,
            "fender::unsupported",
            format!("`protocol: {written}` is not supported yet"),
            "`tcp` carries its bytes over TLS as they are; the app then speaks the \
                protocol and logs in itself",
        );
        return None;
    }
    reader.choose("protocol", &spec.protocol)
}
