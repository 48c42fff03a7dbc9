//! Istio's `PeerAuthentication`, as it is. What cannot be honoured is an error naming the field.

use std::collections::BTreeMap;

use fender_policy::PolicyName;

use super::{certificates, full_name};
use crate::documents::{InboundPort, MtlsMode, PeerAuthentication, Scope, Selector};
use crate::objects::Objects;
use crate::problem::{Place, Problem, Report};
use crate::raw::{self, IstioDocument};
use crate::snapshot::{Mtls, Protocol};
use crate::yaml::{At, Reader};

/// Reads one more. `root_namespace` is known from the Mesh: one there is for everybody. Two of one reach would leave it to
/// chance which of them holds.
pub(crate) fn add(
    reader: &mut Reader<'_>,
    all: &mut Objects<PolicyName, PeerAuthentication>,
    document: IstioDocument<raw::PeerAuthentication>,
    root_namespace: &str,
) {
    let name = document.metadata.value.name.clone();
    let Some(one) = peer_authentication(reader, document, root_namespace) else {
        return;
    };
    let same = |other: &PeerAuthentication| {
        other.scope() == one.scope() && other.selector.namespace == one.selector.namespace
    };
    if one.scope() != Scope::Workload
        && let Some(other) = all.values().find(|other| same(other))
    {
        let message = format!(
            "`{}` and `{}` say it of the same workloads",
            other.name, one.name
        );
        let help = "keep one of them; Istio would take the older one";
        reader.wrong(&name, "fender::ambiguous", message, help);
        return;
    }
    all.insert(one.name.clone(), one);
}

/// Whether clients can come in as it is said at the ports of a workload, which stands at `place`.
pub(crate) fn judge(
    report: &mut Report,
    place: &Place,
    workload: &str,
    ports: &[InboundPort],
    selecting: &[&PeerAuthentication],
) {
    let mut own = selecting
        .iter()
        .filter(|one| one.scope() == Scope::Workload);
    if let (Some(one), Some(other)) = (own.next(), own.next()) {
        let message = format!(
            "`{}` and `{}` both select `{workload}`",
            one.name, other.name
        );
        report.add(
            Problem::new(place.clone(), "fender::ambiguous", message)
                .help("let one of them select it; Istio would take the older one"),
        );
    }
    certificates::judge_orders(report, place, workload, ports);
    for port in ports {
        let mtls = port.mtls(selecting.iter().copied());
        certificates::judge(report, place, workload, port, mtls);
        if mtls == Mtls::Permissive && port.protocol == Protocol::Tcp {
            let message = format!(
                "the port `{}` of `{workload}` is `tcp`, and PERMISSIVE by a PeerAuthentication",
                port.listen
            );
            let help = "where the server may speak first, a client in the clear waits for it and says nothing by which to \
                know that it speaks no TLS: write `clientCertificate: require` at the port, or give it STRICT or DISABLE \
                in `portLevelMtls`";
            report.add(Problem::new(place.clone(), "fender::permissive-tcp", message).help(help));
        }
    }
    let unknown = |port: &u16| !ports.iter().any(|known| known.number() == Some(*port));
    for one in selecting {
        for port in one.ports.keys().filter(|port| unknown(port)) {
            let message = format!(
                "`{}` speaks of the port `{port}` of `{workload}`, which it does not have",
                one.name
            );
            let listed = ports.iter().map(|port| format!("`{}`", port.listen));
            let help = format!(
                "`portLevelMtls` goes by the port that clients reach: {}",
                listed.collect::<Vec<_>>().join(", ")
            );
            report.warn(Problem::new(place.clone(), "fender::unknown-port", message).help(help));
        }
    }
}

fn peer_authentication(
    reader: &mut Reader<'_>,
    document: IstioDocument<raw::PeerAuthentication>,
    root_namespace: &str,
) -> Option<PeerAuthentication> {
    let IstioDocument { metadata, spec, .. } = document;
    let name: Option<PolicyName> = full_name(reader, &metadata, |namespace, name| {
        format!("{namespace}/{name}").parse()
    });
    let namespace = metadata.value.namespace.map(|at| at.value);
    let namespace = namespace.filter(|namespace| namespace != root_namespace);
    let (mut labels, mut mode, mut ports) = (BTreeMap::new(), None, BTreeMap::new());
    if let Some(spec) = spec.map(|at| at.value) {
        if let Some(at) = spec.selector {
            if namespace.is_none() && !at.value.match_labels.is_empty() {
                let help = format!(
                    "Istio ignores such a document; move it into the namespace of the workload, or leave `selector` out to \
                     mean the whole mesh, of which `{root_namespace}` is the root namespace"
                );
                let message = "a PeerAuthentication of the root namespace selects no workload";
                reader.wrong(&at, "fender::unsupported", message, help);
            }
            labels = at.value.match_labels;
        }
        mode = self::mode(reader, spec.mtls.as_ref());
        if let Some(at) = spec.port_level_mtls {
            if labels.is_empty() {
                let help = "add `selector.matchLabels`, as Istio demands too, or write `mtls`";
                let message = "`portLevelMtls` is for the ports of a workload, and this document selects none";
                reader.wrong(&at, "fender::missing-field", message, help);
            }
            ports = self::ports(reader, &at);
        }
    }
    Some(PeerAuthentication {
        name: name?,
        selector: Selector { namespace, labels },
        mode,
        ports,
    })
}

fn mode(reader: &mut Reader<'_>, written: Option<&At<raw::MutualTls>>) -> Option<MtlsMode> {
    let at = written?.value.mode.as_ref()?;
    reader.choose("mode", at).flatten()
}

fn ports(
    reader: &mut Reader<'_>,
    written: &At<BTreeMap<String, At<raw::MutualTls>>>,
) -> BTreeMap<u16, Option<MtlsMode>> {
    let mut ports = BTreeMap::new();
    for (port, at) in &written.value {
        let mode = mode(reader, Some(at));
        match port.parse() {
            Ok(port) if port != 0 => {
                ports.insert(port, mode);
            }
            Ok(_) | Err(_) => reader.wrong(
                at,
                "fender::bad-port",
                format!("`{port}` is not a port"),
                "a number from 1 to 65535: the port that clients reach",
            ),
        }
    }
    ports
}
