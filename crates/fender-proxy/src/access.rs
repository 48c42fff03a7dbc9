//! The access log: one line for each request and each connection that carried none, whatever became of it.
//!
//! What a line says, and in which order, is a promise (`docs/guide/telemetry.md`): members are added, never renamed.
//! What all lines of a connection say is written once. Query strings, header values, bodies and anything secret never
//! get here.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use fender_identity::SpiffeId;
use fender_policy::{By, PolicyName};
use fender_runtime::clock::SharedClock;
use fender_runtime::id::OpaqueId;
use fender_runtime::lines::Lines;
use fender_runtime::listen::{ListenAddress, PeerAddr};
use rustls::ProtocolVersion;
use tokio::time::Instant;

use crate::fault::Fault;
use crate::json::{Object, key};
use crate::permit::{Allowed, Why};
use crate::provenance::Provenance;
use crate::record::Direction;
use crate::relay::Carried;
use crate::trace::Trace;

/// The log, and the clock by which it is written.
#[derive(Clone, Debug)]
pub(crate) struct AccessLog {
    pub(crate) lines: Lines,
    pub(crate) clock: SharedClock,
}

impl AccessLog {
    fn write(&self, tell: impl FnOnce(&mut Object<'_>)) {
        self.lines.write(|out| {
            let mut line = Object::begin(out);
            line.moment(key!("timestamp"), self.clock.since_1970());
            line.word(key!("target"), "access");
            tell(&mut line);
            line.end_line();
        });
    }
}

/// Whose line it is: the connection's own facts.
#[derive(Debug)]
pub(crate) struct Origin {
    pub(crate) direction: Direction,
    pub(crate) listen: Arc<ListenAddress>,
    pub(crate) provenance: Provenance,
    /// Who the other side proved to be.
    pub(crate) peer: Option<SpiffeId>,
    pub(crate) tls: Option<ProtocolVersion>,
    /// A peer that came without TLS.
    pub(crate) plaintext: bool,
}

impl Origin {
    /// As members of a line.
    pub(crate) fn preamble(&self) -> Preamble {
        let mut out = Vec::with_capacity(256);
        self.write(&mut Object::begin(&mut out));
        Preamble(out.into())
    }

    fn write(&self, line: &mut Object<'_>) {
        line.word(key!("direction"), self.direction.label());
        line.display(key!("listen"), &self.listen);
        line.display(key!("source"), self.provenance.remote());
        if let Some(via) = self.provenance.via() {
            line.display(key!("via"), via);
        }
        if let Some(peer) = &self.peer {
            line.text(key!("peer"), peer.as_str());
        }
        if let Some(version) = self.tls {
            line.word(key!("tls_version"), tls_version(version));
        } else if self.plaintext {
            line.word(key!("tls_version"), "none");
        }
    }
}

/// The facts of a connection, ready for each of its lines.
#[derive(Debug, Default)]
pub(crate) struct Preamble(Box<[u8]>);

fn tls_version(version: ProtocolVersion) -> &'static str {
    // There is no third that we speak.
    if version == ProtocolVersion::TLSv1_2 {
        "1.2"
    } else {
        "1.3"
    }
}

/// The line of one connection, while it is being lived.
#[derive(Debug)]
pub(crate) struct ConnectionLine {
    pub(crate) protocol: &'static str,
    pub(crate) origin: Origin,
    /// What an outbound connection was for.
    pub(crate) destination: Option<Arc<str>>,
    /// What let it in.
    pub(crate) allowed: Option<Allowed>,
    pub(crate) carried: Carried,
    pub(crate) began: Instant,
}

impl ConnectionLine {
    pub(crate) fn begin(
        direction: Direction,
        protocol: &'static str,
        listen: Arc<ListenAddress>,
        from: PeerAddr,
    ) -> Self {
        Self {
            protocol,
            origin: Origin {
                direction,
                listen,
                provenance: from.into(),
                peer: None,
                tls: None,
                plaintext: false,
            },
            destination: None,
            allowed: None,
            carried: Carried::default(),
            began: Instant::now(),
        }
    }

    /// Writes the line. `fault` is the id the peer was told, if it was told one.
    pub(crate) fn write(
        &self,
        log: &AccessLog,
        outcome: Result<(), &Fault>,
        fault: Option<OpaqueId>,
    ) {
        log.write(|line| {
            line.word(key!("kind"), "connection");
            line.word(key!("protocol"), self.protocol);
            self.origin.write(line);
            if let Some(destination) = &self.destination {
                line.text(key!("destination"), destination);
            }
            line.number(key!("received"), self.carried.received);
            line.number(key!("sent"), self.carried.sent);
            line.milliseconds(key!("duration_ms"), self.began.elapsed());
            end(line, self.allowed.as_ref(), outcome, fault);
        });
    }
}

/// The line of one request, once it is over.
#[derive(Clone, Debug)]
pub(crate) struct RequestLine<'a> {
    pub(crate) protocol: &'static str,
    pub(crate) preamble: &'a Preamble,
    /// Who a server of the app's proved to be.
    pub(crate) server: Option<&'a SpiffeId>,
    /// What the app called.
    pub(crate) destination: Option<&'a str>,
    /// None where no head could be read.
    pub(crate) asked: Option<Asked<'a>>,
    pub(crate) status: Option<u16>,
    pub(crate) allowed: Option<&'a Allowed>,
    pub(crate) received: u64,
    pub(crate) sent: u64,
    pub(crate) took: Duration,
    /// Until the head of the response was there, if it was not ours.
    pub(crate) first_byte: Option<Duration>,
}

/// What was asked for, without the query.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked<'a> {
    pub(crate) method: &'a str,
    pub(crate) authority: &'a str,
    pub(crate) path: &'a str,
    /// For whom a proxy in front asks.
    pub(crate) client: Option<IpAddr>,
    pub(crate) trace: &'a Trace,
}

impl RequestLine<'_> {
    /// Writes the line. `fault` is the id the peer was told, if it was told one.
    pub(crate) fn write(
        &self,
        log: &AccessLog,
        outcome: Result<(), &Fault>,
        fault: Option<OpaqueId>,
    ) {
        log.write(|line| {
            line.word(key!("kind"), "request");
            line.word(key!("protocol"), self.protocol);
            line.members(&self.preamble.0);
            if let Some(server) = self.server {
                line.text(key!("peer"), server.as_str());
            }
            if let Some(destination) = self.destination {
                line.text(key!("destination"), destination);
            }
            if let Some(asked) = self.asked {
                line.text(key!("method"), asked.method);
                line.text(key!("authority"), asked.authority);
                line.text(key!("path"), asked.path);
                if let Some(client) = asked.client {
                    line.display(key!("client"), client);
                }
            }
            if let Some(status) = self.status {
                line.number(key!("status"), status.into());
            }
            line.number(key!("received"), self.received);
            line.number(key!("sent"), self.sent);
            line.milliseconds(key!("duration_ms"), self.took);
            if let Some(first_byte) = self.first_byte {
                line.milliseconds(key!("first_byte_ms"), first_byte);
            }
            if let Some(asked) = self.asked {
                belongs_to(line, asked.trace);
            }
            end(line, self.allowed, outcome, fault);
        });
    }
}

/// To which trace a request belongs, who called in it, and which span of it is ours.
fn belongs_to(line: &mut Object<'_>, trace: &Trace) {
    let Trace { parent, own, .. } = trace;
    let id = parent.map(|parent| parent.trace);
    let Some(id) = id.or(own.as_ref().map(|own| own.trace)) else {
        return;
    };
    line.hex(key!("trace_id"), id.as_bytes());
    if let Some(parent) = parent {
        line.hex(key!("parent_id"), parent.span.as_bytes());
    }
    if let Some(own) = own {
        line.hex(key!("span_id"), own.id.as_bytes());
    }
}

/// What was decided, and how it ended.
fn end(
    line: &mut Object<'_>,
    allowed: Option<&Allowed>,
    outcome: Result<(), &Fault>,
    fault: Option<OpaqueId>,
) {
    match (outcome, allowed) {
        (Err(Fault::Policy(denied)), _) => {
            line.word(key!("verdict"), "deny");
            if let Why::Policy(decision) = &denied.why {
                decider(line, &decision.by);
            }
            line.display(key!("decision"), denied.id);
        }
        (_, Some(Allowed { by, audits })) => {
            line.word(key!("verdict"), "allow");
            decider(line, by);
            if !audits.is_empty() {
                line.texts(key!("audit"), audits.iter().map(PolicyName::as_str));
            }
        }
        (_, None) => {}
    }
    if let Some(fault) = fault {
        line.display(key!("fault"), fault);
    }
    match outcome {
        Ok(()) => line.word(key!("outcome"), "ok"),
        Err(fault) => {
            line.display(key!("reason"), fault);
            line.word(key!("outcome"), fault.blame().label());
        }
    }
}

fn decider(line: &mut Object<'_>, by: &By) {
    match by {
        By::Policy { name, rule, .. } => {
            line.text(key!("policy"), name.as_str());
            line.number(key!("rule"), *rule as u64);
        }
        By::NoMatch { .. } => {}
        By::Default(default) => line.display(key!("default"), default),
    }
}

#[cfg(test)]
mod tests;
