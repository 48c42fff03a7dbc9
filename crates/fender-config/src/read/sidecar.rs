//! The `Sidecar`: one that runs alone.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use fender_identity::SpiffeId;
use fender_identity::tls::TlsProfile;

use super::certificates::Holder;
use super::port::{Taken, inbound};
use super::workload::listed;
use super::{HOST_HELP, Known, drain, fallback, file_path, full_name, limits, tls};
use crate::address::InvalidAddress;
use crate::documents::{InboundPort, TlsProfiles};
use crate::raw::{self, Document};
use crate::snapshot::{Protocol, RequestLimits};
use crate::standalone::{Identity, IdentityFiles, WorkloadApi};
use crate::yaml::{At, Reader};
use crate::{HostPort, ListenAddr, ObjectName};

const API_HELP: &str =
    "write `unix:///run/spire/agent.sock`; an API over TCP cannot know who calls";
const ID_HELP: &str = "write `spiffe://example.org/ns/NAMESPACE/sa/NAME`";

/// A validated `Sidecar`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Alone {
    pub(crate) name: ObjectName,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) identity: Option<Identity>,
    /// For what it calls.
    pub(crate) tls: TlsProfile,
    pub(crate) tls_profiles: TlsProfiles,
    pub(crate) limits: RequestLimits,
    pub(crate) inbound: Vec<InboundPort>,
    pub(crate) outbound: Vec<DirectPort>,
    pub(crate) credentials: Vec<ObjectName>,
    pub(crate) drain: Duration,
    pub(crate) authorization: fender_policy::Default,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct DirectPort {
    pub(crate) listen: ListenAddr,
    pub(crate) connect: HostPort,
    pub(crate) expect: SpiffeId,
    pub(crate) protocol: Protocol,
}

pub(crate) fn sidecar(
    reader: &mut Reader<'_>,
    known: &Known<'_>,
    document: Document<raw::Sidecar>,
) -> Option<Alone> {
    let Document { metadata, spec, .. } = document;
    let name = full_name(reader, &metadata, ObjectName::new);
    let identity = spec.identity.as_ref().map(|at| identity(reader, at));
    let listener = spec.inbound.first().map(|at| &at.value.listen);
    let listener = listener.or(spec.outbound.first().map(|at| &at.value.listen));
    if let (None, Some(listener)) = (&identity, listener) {
        reader.wrong(
            listener,
            "fender::no-identity",
            "a sidecar with listeners needs an `identity`",
            "write `identity: { files: { certificate: …, key: …, bundle: … } }` or `identity: { workloadApi: … }`; \
                only what merely delivers credentials does without",
        );
    }
    let tls_profiles = tls::profiles(reader, &spec.tls_profiles);
    let rule = tls::rule(reader, spec.tls.as_ref());
    let tls = tls::effective(
        reader,
        spec.tls.as_ref(),
        &rule,
        &tls_profiles,
        &TlsProfile::default(),
    );
    let limits = limits::limits(reader, spec.limits.as_ref());
    let mut taken = Taken::default();
    let holder = Holder {
        known,
        namespace: name.as_ref().map(ObjectName::namespace),
        credentials: &spec.credentials,
    };
    let ports = spec
        .inbound
        .iter()
        .filter_map(|at| {
            if let Some(advertise) = &at.value.advertise {
                let help = "remove it: it tells other workloads of a mesh where to connect, and \
                    this sidecar is alone";
                reader.wrong(
                    advertise,
                    "fender::unsupported",
                    "`advertise` has no meaning here",
                    help,
                );
            }
            let port = inbound(reader, &mut taken, holder, &at.value, None)?;
            let written = at.value.tls.as_ref();
            tls::effective(reader, written, &port.tls, &tls_profiles, &tls);
            Some(port)
        })
        .collect();
    let outbound = spec
        .outbound
        .iter()
        .filter_map(|at| direct(reader, &mut taken, at))
        .collect();
    spec.inbound
        .iter()
        .for_each(|at| taken.refuse_circle(reader, &at.value.app));
    let drain = drain(reader, spec.drain.as_ref());
    let authorization =
        fallback(reader, spec.authorization.as_ref()).unwrap_or(fender_policy::Default::Deny);
    let name = name?;
    let credentials = listed(reader, known, name.namespace(), &spec.credentials);
    // Named but wrong is a problem; not named is somebody who needs no identity.
    let identity = match identity {
        Some(identity) => Some(identity?),
        None => None,
    };
    let labels = metadata.value.labels;
    Some(Alone {
        name,
        labels,
        identity,
        tls,
        tls_profiles,
        limits,
        inbound: ports,
        outbound,
        credentials,
        drain,
        authorization,
    })
}

fn identity(reader: &mut Reader<'_>, at: &At<raw::Identity>) -> Option<Identity> {
    let raw::Identity {
        files: written,
        workload_api,
        uid,
        spiffe_id,
    } = &at.value;
    match (written, workload_api) {
        (Some(written), None) => {
            if let Some(id) = spiffe_id {
                let help = "remove it: the certificate in the file says who this is";
                reader.wrong(
                    id,
                    "fender::unsupported",
                    "`spiffeId` has no meaning beside `files`",
                    help,
                );
            }
            if let Some(uid) = uid {
                let help = "remove it: it says who listens at the socket of a Workload API";
                reader.wrong(
                    uid,
                    "fender::unsupported",
                    "`uid` has no meaning beside `files`",
                    help,
                );
            }
            files(reader, written).map(Identity::Files)
        }
        (None, Some(socket)) => {
            let socket = reader.parse(socket, "fender::bad-address", API_HELP);
            let id = spiffe_id
                .as_ref()
                .map(|id| reader.parse(id, "fender::bad-spiffe-id", ID_HELP));
            let WorkloadApiAddress(socket) = socket?;
            // Named but wrong is a problem; not named is whoever comes first.
            let id = match id {
                Some(id) => Some(id?),
                None => None,
            };
            // The same holds for the number.
            let uid = match uid {
                Some(uid) => Some(super::attest::number(reader, "uid", uid)?),
                None => None,
            };
            Some(Identity::WorkloadApi(WorkloadApi { socket, uid, id }))
        }
        (Some(_), Some(_)) | (None, None) => {
            reader.wrong(
                at,
                "fender::no-identity",
                "an identity comes from either `files` or `workloadApi`",
                "write one of them",
            );
            None
        }
    }
}

/// `unix:///run/spire/agent.sock`, as the SPIFFE standard writes it, or `unix:` with an absolute path, as everywhere else.
struct WorkloadApiAddress(PathBuf);

impl FromStr for WorkloadApiAddress {
    type Err = InvalidAddress;

    fn from_str(text: &str) -> Result<Self, InvalidAddress> {
        let path = text.strip_prefix("unix://").or(text.strip_prefix("unix:"));
        let path = path.filter(|path| path.starts_with('/'));
        match path.map(|path| format!("unix:{path}").parse()) {
            Some(Ok(ListenAddr::Unix(path))) => Ok(Self(path)),
            Some(Err(error)) => Err(error),
            Some(Ok(ListenAddr::Tcp(_))) | None => Err(InvalidAddress::new(
                text,
                "it is not `unix:` with an absolute path",
            )),
        }
    }
}

fn files(reader: &mut Reader<'_>, raw: &raw::IdentityFiles) -> Option<IdentityFiles> {
    let certificate = file_path(reader, &raw.certificate);
    let key = file_path(reader, &raw.key);
    let bundle = file_path(reader, &raw.bundle);
    Some(IdentityFiles {
        certificate: certificate?,
        key: key?,
        bundle: bundle?,
    })
}

fn direct(reader: &mut Reader<'_>, taken: &mut Taken, at: &At<raw::Direct>) -> Option<DirectPort> {
    let listen = taken.listen_locally(reader, &at.value.listen);
    let connect = reader.parse(&at.value.connect, "fender::bad-address", HOST_HELP);
    let expect = reader.parse(&at.value.expect, "fender::bad-spiffe-id", ID_HELP);
    let protocol = reader.choose("protocol", &at.value.protocol);
    Some(DirectPort {
        listen: listen?,
        connect: connect?,
        expect: expect?,
        protocol: protocol?,
    })
}
