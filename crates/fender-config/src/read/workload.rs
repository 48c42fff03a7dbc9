//! The `Workload`, in two steps: by itself, then its references, once all documents are known.

use std::collections::{BTreeMap, BTreeSet};

use fender_identity::WorkloadName;
use fender_identity::tls::TlsProfile;

use super::attest::{self, Whom, Whose, attest};
use super::certificates::Holder;
use super::port::{Taken, inbound};
use super::{HOST_HELP, Known, NAME_HELP, Upon, drain, fallback, full_name, limits, tls};
use crate::address::is_host_name;
use crate::documents::{Documents, Kind, Mesh, OutboundPort, OutboundTo, Workload};
use crate::problem::{Place, Report};
use crate::raw::{self, Document};
use crate::snapshot::Mtls;
use crate::yaml::{At, Page, Reader};
use crate::{HostPort, InboundPort, ListenAddr, ObjectName};

/// Human certificates live there: `spiffe://TRUST/ns/people/sa/NAME`.
const PEOPLE: &str = "people";

/// A workload whose references are not looked up yet.
pub(crate) struct Unresolved<'a> {
    page: Page<'a>,
    /// Its `attest`, `outbound` and `credentials` are still empty.
    workload: Workload,
    attest: Vec<attest::Entry>,
    outbound: Vec<(ListenAddr, At<raw::Outbound>)>,
    credentials: Vec<At<String>>,
    tls: Option<At<raw::Tls>>,
    /// What its ports say of TLS.
    port_tls: Vec<Option<At<raw::Tls>>>,
    /// A port that could not be read may be the one somebody means.
    knows_its_ports: bool,
}

pub(crate) fn workload<'a>(
    page: Page<'a>,
    report: &mut Report,
    known: &Known<'_>,
    document: Document<raw::Workload>,
) -> Option<Unresolved<'a>> {
    let reader = &mut Reader { page, report };
    let Document { metadata, spec, .. } = document;
    let name = full_name(reader, &metadata, WorkloadName::new);
    if let Some(at) = metadata
        .value
        .namespace
        .as_ref()
        .filter(|at| at.value == PEOPLE)
    {
        let help = "choose another namespace; people get theirs with `fender svid write`";
        reader.wrong(
            at,
            "fender::reserved",
            "the namespace `people` is reserved for the certificates of people",
            help,
        );
    }
    let attest = attest(reader, &metadata, spec.attest.as_deref(), Whose::Workload);
    let dns_names = dns_names(reader, &spec.dns_names);
    let mut taken = Taken::default();
    let found_by = dns_names.first().map(String::as_str);
    let holder = Holder {
        known,
        namespace: name.as_ref().map(WorkloadName::namespace),
        credentials: &spec.credentials,
    };
    let (ports, port_tls): (Vec<InboundPort>, Vec<_>) = spec
        .inbound
        .iter()
        .filter_map(|at| {
            let port = inbound(reader, &mut taken, holder, &at.value, found_by)?;
            Some((port, at.value.tls.clone()))
        })
        .unzip();
    let knows_its_ports = ports.len() == spec.inbound.len();
    let outbound = spec
        .outbound
        .into_iter()
        .filter_map(|at| Some((taken.listen_locally(reader, &at.value.listen)?, at)))
        .collect();
    spec.inbound
        .iter()
        .for_each(|at| taken.refuse_circle(reader, &at.value.app));
    let drain = drain(reader, spec.drain.as_ref());
    let authorization = fallback(reader, spec.authorization.as_ref());
    let tls = tls::rule(reader, spec.tls.as_ref());
    let limits = limits::limits(reader, spec.limits.as_ref());
    let workload = Workload {
        name: name?,
        labels: metadata.value.labels,
        attest: BTreeSet::new(),
        dns_names,
        inbound: ports,
        outbound: Vec::new(),
        credentials: Vec::new(),
        drain,
        authorization,
        tls,
        limits,
    };
    Some(Unresolved {
        page,
        workload,
        attest,
        outbound,
        credentials: spec.credentials,
        tls: spec.tls,
        port_tls,
        knows_its_ports,
    })
}

fn dns_names(reader: &mut Reader<'_>, written: &[At<String>]) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for at in written {
        let name = at.value.to_ascii_lowercase();
        if !is_host_name(&name) {
            let message = format!(
                "`{}` is not a DNS name that a certificate may carry",
                at.value
            );
            let help = "labels of letters, digits and `-`, joined by dots; no `*`, no IP \
                address, no dot at the end";
            reader.wrong(at, "fender::bad-dns-name", message, help);
        } else if names.contains(&name) {
            reader.wrong(
                at,
                "fender::duplicate",
                format!("the DNS name `{name}` is there twice"),
                "remove one of them",
            );
        } else {
            names.push(name);
        }
    }
    names
}

/// What is known of the workloads others refer to.
pub(crate) struct Ports<'a> {
    read: BTreeMap<WorkloadName, Option<Workload>>,
    upon: &'a Upon,
}

impl<'a> Ports<'a> {
    pub(crate) fn of(workloads: &[Unresolved<'_>], upon: &'a Upon) -> Self {
        let ports = |unresolved: &Unresolved<'_>| {
            unresolved
                .knows_its_ports
                .then(|| unresolved.workload.clone())
        };
        let read = workloads
            .iter()
            .map(|unresolved| (unresolved.workload.name.clone(), ports(unresolved)))
            .collect();
        Self { read, upon }
    }

    /// None if its own document is wrong, which is told there.
    fn get(&self, workload: &WorkloadName) -> Option<&Workload> {
        match self.read.get(workload) {
            Some(read) => read.as_ref(),
            None => Some(self.upon.documents.workloads.get(workload)?),
        }
    }
}

impl Unresolved<'_> {
    pub(crate) fn start(&self) -> Place {
        self.page.start()
    }

    pub(crate) fn resolve(
        self,
        known: &Known<'_>,
        ports: &Ports<'_>,
        whom: &Whom,
        documents: &Documents,
        report: &mut Report,
    ) -> Workload {
        let Self {
            page,
            mut workload,
            attest,
            outbound,
            credentials,
            tls,
            port_tls,
            ..
        } = self;
        let reader = &mut Reader { page, report };
        let namespace = workload.name.namespace();
        // What is wrong with the Mesh is told there.
        let own_tls = documents.mesh.as_ref().map(|mesh| {
            let (rule, profiles) = (&workload.tls, &mesh.tls_profiles);
            let general = mesh.tls_of(namespace);
            let own = tls::effective(reader, tls.as_ref(), rule, profiles, &general);
            for (port, written) in workload.inbound.iter().zip(&port_tls) {
                tls::effective(reader, written.as_ref(), &port.tls, profiles, &own);
            }
            (mesh, own)
        });
        let from = From {
            known,
            ports,
            documents,
            namespace,
            tls: own_tls.as_ref().map(|(mesh, own)| (*mesh, own)),
        };
        let outbound: Vec<OutboundPort> = outbound
            .into_iter()
            .filter_map(|(listen, at)| {
                Some(OutboundPort {
                    listen,
                    to: destination(reader, &from, &at)?,
                })
            })
            .collect();
        let credentials = listed(reader, known, namespace, &credentials);
        workload.attest = attest::resolve(reader, known, whom, attest);
        workload.outbound = outbound;
        workload.credentials = credentials;
        workload
    }
}

/// The credentials a list names, each once.
pub(super) fn listed(
    reader: &mut Reader<'_>,
    known: &Known<'_>,
    namespace: &str,
    list: &[At<String>],
) -> Vec<ObjectName> {
    let mut names = Vec::new();
    for at in list {
        match refer(reader, known, Kind::Credential, namespace, at) {
            Some(name) if names.contains(&name) => {
                let message = format!("the Credential `{name}` is listed twice");
                reader.wrong(at, "fender::duplicate", message, "remove one of them");
            }
            name => names.extend(name),
        }
    }
    names
}

/// Where references come from.
struct From<'a> {
    known: &'a Known<'a>,
    ports: &'a Ports<'a>,
    documents: &'a Documents,
    namespace: &'a str,
    /// The mesh, and how the workload calls others.
    tls: Option<(&'a Mesh, &'a TlsProfile)>,
}

fn destination(
    reader: &mut Reader<'_>,
    from: &From<'_>,
    at: &At<raw::Outbound>,
) -> Option<OutboundTo> {
    match (&at.value.service, &at.value.upstream) {
        (Some(service), None) => self::service(reader, from, &at.value, service),
        (None, Some(upstream)) => {
            for (field, value) in [
                ("port", at.value.port.is_some()),
                ("address", at.value.address.is_some()),
            ] {
                if value {
                    let help = "the Upstream says where it is";
                    reader.wrong(
                        at,
                        "fender::one-of",
                        format!("`{field}` belongs to a `service`, not to an `upstream`"),
                        help,
                    );
                }
            }
            refer(reader, from.known, Kind::Upstream, from.namespace, upstream)
                .map(OutboundTo::Upstream)
        }
        (None, None) | (Some(_), Some(_)) => {
            let help = "write `service: namespace/name` for a workload of the mesh, or \
                `upstream: name` for an external service";
            reader.wrong(
                at,
                "fender::one-of",
                "an outbound listener leads either to a `service` or to an `upstream`",
                help,
            );
            None
        }
    }
}

/// A reference within the namespace, written `name` or `namespace/name`.
pub(super) fn refer(
    reader: &mut Reader<'_>,
    known: &Known<'_>,
    kind: Kind,
    namespace: &str,
    at: &At<String>,
) -> Option<ObjectName> {
    let (of, name) = at.value.split_once('/').unwrap_or((namespace, &at.value));
    let full = reader.take(at, "fender::bad-name", NAME_HELP, ObjectName::new(of, name))?;
    if of != namespace {
        let message = format!("the {kind} `{full}` belongs to another namespace");
        let help = format!(
            "references across namespaces need a grant, and grants are not \
                supported yet: describe it in `{namespace}` too"
        );
        reader.wrong(at, "fender::foreign-namespace", message, help);
        return None;
    }
    if known.misses(kind, of, name) {
        let help = match known.nearest(kind, of, name) {
            Some(meant) => format!("did you mean `{meant}`?"),
            None => {
                format!("write a `kind: {kind}` document with this name in the namespace `{of}`")
            }
        };
        reader.wrong(
            at,
            "fender::missing-reference",
            format!("there is no {kind} `{full}`"),
            help,
        );
        return None;
    }
    Some(full)
}

fn service(
    reader: &mut Reader<'_>,
    from: &From<'_>,
    outbound: &raw::Outbound,
    at: &At<String>,
) -> Option<OutboundTo> {
    let (of, name) = at
        .value
        .split_once('/')
        .unwrap_or((from.namespace, &at.value));
    let workload = reader.take(
        at,
        "fender::bad-name",
        NAME_HELP,
        WorkloadName::new(of, name),
    )?;
    let address: Option<HostPort> = match &outbound.address {
        Some(written) => Some(reader.parse(written, "fender::bad-address", HOST_HELP)?),
        None => None,
    };
    if from.known.misses(Kind::Workload, of, name) {
        let help = match from.known.nearest(Kind::Workload, of, name) {
            Some(meant) => format!("did you mean `{of}/{meant}`?"),
            None => {
                format!("write a `kind: Workload` document with this name in the namespace `{of}`")
            }
        };
        reader.wrong(
            at,
            "fender::missing-reference",
            format!("there is no Workload `{workload}`"),
            help,
        );
        return None;
    }
    let called = from.ports.get(&workload)?;
    let port = choose_port(reader, outbound, at, &workload, &called.inbound)?;
    if from.documents.mtls(called, port) == Mtls::Disabled {
        let message = format!(
            "`{workload}` speaks no TLS at `{}`, since a PeerAuthentication disables it",
            port.listen
        );
        let help = "a sidecar calls others by mTLS only, and only whom it expects: make that port STRICT or PERMISSIVE, or \
            let the app call it by itself";
        reader.wrong(at, "fender::no-tls", message, help);
    }
    if let Some((mesh, ours)) = from.tls {
        let theirs = called.tls.over(&mesh.tls_profiles, &mesh.tls_of(of));
        let theirs = port.tls.over(&mesh.tls_profiles, &theirs);
        if ours.check().is_ok() && theirs.check().is_ok() && !ours.meets(&theirs) {
            let message =
                format!("this workload and `{workload}` could never agree on a TLS connection");
            let help = "their `tls` has no group or no cipher suite in common: name the same profile at both, or \
                widen one of them";
            reader.wrong(at, "fender::no-common-tls", message, help);
        }
    }
    let Some(address) = address.or_else(|| port.advertise.clone()) else {
        let message = format!("nobody knows where `{workload}` is found");
        let help = "give it `dnsNames` or its inbound port `advertise: host:port`, or \
            write `address: host:port` here";
        reader.wrong(at, "fender::no-address", message, help);
        return None;
    };
    Some(OutboundTo::Service {
        workload,
        address,
        protocol: port.protocol,
    })
}

fn choose_port<'p>(
    reader: &mut Reader<'_>,
    outbound: &raw::Outbound,
    at: &At<String>,
    workload: &WorkloadName,
    inbound: &'p [InboundPort],
) -> Option<&'p InboundPort> {
    let number = |port: &InboundPort| match &port.listen {
        ListenAddr::Tcp(tcp) => Some(tcp.port()),
        ListenAddr::Unix(_) => port.advertise.as_ref().map(HostPort::port),
    };
    let listed = || {
        let ports: Vec<String> = inbound
            .iter()
            .filter_map(number)
            .map(|port| format!("`{port}`"))
            .collect();
        ports.join(", ")
    };
    let found = match (&outbound.port, inbound) {
        (_, []) => {
            let help = "give it an `inbound` port, or remove this outbound listener";
            reader.wrong(
                at,
                "fender::no-inbound",
                format!("`{workload}` has no inbound port, so it cannot be called"),
                help,
            );
            return None;
        }
        (None, [only]) => return Some(only),
        (None, _) => {
            let help = format!("write `port:` with one of {}", listed());
            reader.wrong(
                at,
                "fender::which-port",
                format!("`{workload}` has several inbound ports"),
                help,
            );
            return None;
        }
        (Some(port), _) => inbound
            .iter()
            .find(|candidate| number(candidate).map(i64::from) == Some(port.value)),
    };
    if let (None, Some(port)) = (found, &outbound.port) {
        let help = format!("its inbound ports are {}", listed());
        reader.wrong(
            port,
            "fender::missing-reference",
            format!("`{workload}` has no inbound port `{}`", port.value),
            help,
        );
    }
    found
}
