//! Listeners: what they are, and that no two of them want the same address.

use std::net::SocketAddr;

use ipnet::IpNet;

use super::certificates::Holder;
use super::policy::ip_block;
use super::{HOST_HELP, certificates, forwarded, limits, tls};
use crate::documents::InboundPort;
use crate::problem::{Place, Problem};
use crate::raw;
use crate::snapshot::{AppProtocol, AppProxyProtocol, PathRules, Protocol, ProxyProtocol};
use crate::yaml::{At, Reader, Word};
use crate::{AppAddress, HostPort, ListenAddr};

const LISTEN_HELP: &str = "write `0.0.0.0:8443`, `[::]:8443` or `unix:/run/orders.sock`";

/// What one process already listens on.
#[derive(Default)]
pub(super) struct Taken {
    listeners: Vec<(ListenAddr, Place)>,
    /// Where authorities are answered: for as many certificates as there are.
    answering: Vec<SocketAddr>,
}

impl Taken {
    pub(super) fn listen(
        &mut self,
        reader: &mut Reader<'_>,
        at: &At<String>,
    ) -> Option<ListenAddr> {
        let address: ListenAddr = reader.parse(at, "fender::bad-address", LISTEN_HELP)?;
        if matches!(&address, ListenAddr::Tcp(tcp) if tcp.port() == 0) {
            let help = "clients must know the port beforehand; choose one from 1 to 65535";
            reader.wrong(
                at,
                "fender::bad-address",
                format!("`{address}` is not usable here: port 0 is no port"),
                help,
            );
            return None;
        }
        if let Some((taken, place)) = self
            .listeners
            .iter()
            .find(|(taken, _)| overlap(taken, &address))
        {
            let help = if *taken == address {
                format!("it is used at {place}; every listener needs an address of its own")
            } else {
                format!(
                    "`{taken}` at {place} covers it; every listener needs an address of its own"
                )
            };
            reader.wrong(
                at,
                "fender::duplicate-listen",
                format!("`{address}` is listened on twice"),
                help,
            );
            return None;
        }
        self.listeners.push((address.clone(), reader.place(at)));
        Some(address)
    }

    /// Where HTTP-01 is answered, for one more certificate.
    pub(super) fn answer(
        &mut self,
        reader: &mut Reader<'_>,
        at: &At<String>,
    ) -> Option<SocketAddr> {
        match at.value.parse() {
            Ok(ListenAddr::Tcp(address)) if self.answering.contains(&address) => Some(address),
            Ok(ListenAddr::Unix(_)) => {
                let message = format!("no authority can reach `{}`", at.value);
                let help = "write `0.0.0.0:80` or `[::]:80`";
                reader.wrong(at, "fender::bad-address", message, help);
                None
            }
            Ok(ListenAddr::Tcp(address)) => {
                self.listen(reader, at)?;
                self.answering.push(address);
                Some(address)
            }
            Err(_) => self.listen(reader, at).and(None),
        }
    }

    /// An outbound listener lends the workload's identity to whoever reaches it.
    pub(super) fn listen_locally(
        &mut self,
        reader: &mut Reader<'_>,
        at: &At<String>,
    ) -> Option<ListenAddr> {
        let address = self.listen(reader, at)?;
        if matches!(&address, ListenAddr::Tcp(tcp) if !tcp.ip().to_canonical().is_loopback()) {
            let help = "listen on `127.0.0.1`, `[::1]` or `unix:/path`: whoever reaches it \
                speaks with this workload's identity";
            reader.wrong(
                at,
                "fender::not-loopback",
                format!(
                    "an outbound listener may not be reachable from elsewhere, and `{address}` is"
                ),
                help,
            );
            return None;
        }
        Some(address)
    }

    /// After all listeners are known: an app that is one of them would be a circle.
    pub(super) fn refuse_circle(&self, reader: &mut Reader<'_>, at: &At<String>) {
        let Ok(app) = at.value.parse::<ListenAddr>() else {
            return;
        };
        if let Some((taken, place)) = self
            .listeners
            .iter()
            .find(|(taken, _)| overlap(taken, &app))
        {
            let problem = Problem::new(
                reader.place(at),
                "fender::circle",
                format!("the app `{app}` is the sidecar itself, which listens on `{taken}`"),
            );
            reader.report.add(problem.help(format!(
                "the listener is at {place}; give the app a port of its own"
            )));
        }
    }
}

fn overlap(one: &ListenAddr, other: &ListenAddr) -> bool {
    match (one, other) {
        (ListenAddr::Tcp(one), ListenAddr::Tcp(other)) => {
            one.port() == other.port()
                && (one.ip() == other.ip()
                    || one.is_ipv4() == other.is_ipv4()
                        && (one.ip().is_unspecified() || other.ip().is_unspecified()))
        }
        (ListenAddr::Unix(one), ListenAddr::Unix(other)) => one == other,
        (ListenAddr::Tcp(_), ListenAddr::Unix(_)) | (ListenAddr::Unix(_), ListenAddr::Tcp(_)) => {
            false
        }
    }
}

/// `found_by` is the name under which others find the workload, if it has one.
pub(super) fn inbound(
    reader: &mut Reader<'_>,
    taken: &mut Taken,
    holder: Holder<'_>,
    inbound: &raw::Inbound,
    found_by: Option<&str>,
) -> Option<InboundPort> {
    let listen = taken.listen(reader, &inbound.listen);
    let app = app(reader, &inbound.app);
    let protocol = reader.choose("protocol", &inbound.protocol);
    let client_certificate = match &inbound.client_certificate {
        Some(at) => Some(reader.choose("clientCertificate", at)?),
        None => None,
    };
    let tls = tls::rule(reader, inbound.tls.as_ref());
    let certificates = certificates::read(reader, taken, holder, &inbound.certificates);
    let paths = paths(reader, inbound.paths.as_ref(), protocol);
    let app_protocol = app_protocol(reader, inbound.app_protocol.as_ref(), protocol);
    let forwarded = forwarded::forwarded(reader, inbound.forwarded.as_ref(), protocol);
    let limits = limits::of_port(reader, inbound.limits.as_ref(), protocol);
    let proxy_protocol = proxy_protocol(reader, inbound.proxy_protocol.as_ref(), listen.as_ref());
    let app_proxy_protocol =
        app_proxy_protocol(reader, inbound.app_proxy_protocol.as_ref(), listen.as_ref());
    let advertise = match &inbound.advertise {
        Some(at) => reader.parse(at, "fender::bad-address", HOST_HELP),
        None => found_by
            .zip(listen.as_ref())
            .and_then(|(host, listen)| match listen {
                ListenAddr::Tcp(tcp) => HostPort::new(host, tcp.port()).ok(),
                ListenAddr::Unix(_) => None,
            }),
    };
    Some(InboundPort {
        listen: listen?,
        app: app?,
        protocol: protocol?,
        advertise,
        client_certificate,
        tls,
        certificates,
        paths,
        proxy_protocol: proxy_protocol?,
        app_proxy_protocol: app_proxy_protocol?,
        app_protocol: app_protocol?,
        forwarded: forwarded?,
        limits,
    })
}

fn app_protocol(
    reader: &mut Reader<'_>,
    written: Option<&At<Word<AppProtocol>>>,
    protocol: Option<Protocol>,
) -> Option<AppProtocol> {
    let Some(at) = written else {
        return Some(AppProtocol::default());
    };
    if protocol == Some(Protocol::Tcp) {
        reader.wrong(
            at,
            "fender::not-http",
            "`appProtocol` says which HTTP the app speaks, and this port is `tcp`",
            "remove `appProtocol`, or write `protocol: http`",
        );
    }
    reader.choose("appProtocol", at)
}

/// The inner option is whether there is one; the outer, whether it is right.
fn proxy_protocol(
    reader: &mut Reader<'_>,
    written: Option<&At<raw::ProxyProtocol>>,
    listen: Option<&ListenAddr>,
) -> Option<Option<ProxyProtocol>> {
    let Some(at) = written else {
        return Some(None);
    };
    refuse_unix(reader, at, "proxyProtocol", listen);
    let raw::ProxyProtocol { version, from } = &at.value;
    let raw::ProxyVersion = reader.choose("version", version)?;
    if from.value.is_empty() {
        reader.wrong(
            from,
            "fender::empty-list",
            "`from` is an empty list: nobody could connect with a PROXY header",
            "list the addresses of the balancers, or remove `proxyProtocol`",
        );
        return None;
    }
    let blocks: Vec<Option<IpNet>> = from
        .value
        .iter()
        .map(|at| sender_block(reader, at))
        .collect();
    let from = blocks.into_iter().collect::<Option<_>>()?;
    Some(Some(ProxyProtocol { from }))
}

/// A sender says where its connections come from, so whoever is one is believed to be anywhere.
pub(super) fn sender_block(reader: &mut Reader<'_>, at: &At<String>) -> Option<IpNet> {
    let block = ip_block(reader, at)?;
    if block.prefix_len() == 0 {
        reader.wrong(
            at,
            "fender::everybody-is-believed",
            format!("`{block}` lets everybody say that they come from anywhere"),
            "list the addresses of the balancers and no others",
        );
        return None;
    }
    Some(block)
}

fn app_proxy_protocol(
    reader: &mut Reader<'_>,
    written: Option<&At<Word<AppProxyProtocol>>>,
    listen: Option<&ListenAddr>,
) -> Option<AppProxyProtocol> {
    let Some(at) = written else {
        return Some(AppProxyProtocol::Absent);
    };
    refuse_unix(reader, at, "appProxyProtocol", listen);
    reader.choose("appProxyProtocol", at)
}

/// Who comes over a Unix socket has no address: none that could be listed, none that could be passed on.
fn refuse_unix<T>(reader: &mut Reader<'_>, at: &At<T>, field: &str, listen: Option<&ListenAddr>) {
    if let Some(listen @ ListenAddr::Unix(_)) = listen {
        reader.wrong(
            at,
            "fender::no-address",
            format!("`{field}` is about addresses, and who connects to `{listen}` has none"),
            format!("listen on `IP:PORT`, or remove `{field}`"),
        );
    }
}

fn app(reader: &mut Reader<'_>, at: &At<String>) -> Option<AppAddress> {
    match at.value.parse::<AppAddress>() {
        Ok(app) => Some(app),
        Err(error) => {
            let help = "write `127.0.0.1:8080`, `[::1]:8080` or `unix:/path`, and let the app \
                listen there only";
            reader.wrong(at, "fender::bad-app", error.to_string(), help);
            None
        }
    }
}

fn paths(
    reader: &mut Reader<'_>,
    written: Option<&At<raw::Paths>>,
    protocol: Option<Protocol>,
) -> PathRules {
    let Some(at) = written else {
        return PathRules::default();
    };
    if protocol == Some(Protocol::Tcp) {
        reader.wrong(
            at,
            "fender::not-http",
            "`paths` says how HTTP paths are read, and this port is `tcp`",
            "remove `paths`, or write `protocol: http`",
        );
    }
    let escaped_slash = at
        .value
        .escaped_slash
        .as_ref()
        .and_then(|word| reader.choose("escapedSlash", word));
    let exceptions = at.value.exceptions.iter();
    PathRules {
        escaped_slash: escaped_slash.unwrap_or_default(),
        merge_slashes: at.value.merge_slashes,
        exceptions: exceptions
            .filter_map(|word| reader.choose("exceptions", word))
            .collect(),
    }
}
