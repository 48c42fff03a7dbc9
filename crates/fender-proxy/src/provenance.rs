//! Whom a connection comes from: the one who connected, or the one for whom a balancer did.
//!
//! A balancer says so by a PROXY header before the TLS that it passes through. It is believed only if its
//! address is listed, and then it must say it: a sender that may choose would be one whose address
//! others can wear. Nobody else may send one. What is believed is the client's address and nothing more:
//! who the client *is* the handshake that follows proves, and no header says anything about that.

use std::io;
use std::net::{IpAddr, SocketAddr};

use bytes::BytesMut;
use fender_config::snapshot::ProxyProtocol;
use fender_runtime::listen::{PeerAddr, Socket};
use fender_wire::proxy::{self, Endpoints, Header, Progress, Proxied, Transport};
use tokio::io::AsyncReadExt;

use crate::fault::PeerFault;

/// Where a connection comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Provenance {
    /// The one who connected.
    from: PeerAddr,
    passed_on: Option<PassedOn>,
}

/// A connection that somebody else made to the one who connected here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct PassedOn {
    source: SocketAddr,
    destination: SocketAddr,
}

impl From<PeerAddr> for Provenance {
    fn from(from: PeerAddr) -> Self {
        Self {
            from,
            passed_on: None,
        }
    }
}

impl Provenance {
    /// Whom it comes from in the end: who is named in lines and to the app.
    pub(crate) fn remote(&self) -> PeerAddr {
        match self.passed_on {
            Some(passed_on) => passed_on.source.into(),
            None => self.from,
        }
    }

    /// Who passed it on, if somebody did.
    pub(crate) fn via(&self) -> Option<PeerAddr> {
        self.passed_on.map(|_| self.from)
    }

    /// The address of the connection itself.
    pub(crate) fn source_ip(&self) -> Option<IpAddr> {
        self.from.ip()
    }

    /// Where the one in the end connected to, if that was not here.
    pub(crate) fn destination(&self) -> Option<SocketAddr> {
        self.passed_on.map(|passed_on| passed_on.destination)
    }
}

/// Says whether a connection from there must say whom it comes from.
pub(crate) fn may_pass_on(from: &PeerAddr, senders: Option<&ProxyProtocol>) -> bool {
    let both = senders.zip(from.ip());
    both.is_some_and(|(senders, ip)| senders.lists(ip))
}

/// Reads what a connection must begin with, and no byte of what comes after.
///
/// Not cancel safe: what was read of a header is lost.
pub(crate) async fn find(
    socket: &mut Socket,
    from: PeerAddr,
    senders: Option<&ProxyProtocol>,
) -> Result<Provenance, PeerFault> {
    let Some(senders) = senders else {
        // Whoever sends a header here finds that it is not TLS.
        return Ok(from.into());
    };
    if may_pass_on(&from, Some(senders)) {
        return provenance(from, read(socket).await?);
    }
    refuse_header(socket).await?;
    Ok(from.into())
}

fn provenance(from: PeerAddr, header: Header) -> Result<Provenance, PeerFault> {
    let passed_on = match header {
        Header::Local => None,
        Header::Proxied(Proxied {
            endpoints:
                Endpoints::Ip {
                    transport: Transport::Stream,
                    source,
                    destination,
                },
            ..
        }) => Some(PassedOn {
            source,
            destination,
        }),
        // Policies would have nothing to judge, or worse, the balancer's own address.
        Header::Proxied(_) => return Err(PeerFault::NamesNobody),
    };
    Ok(Provenance { from, passed_on })
}

async fn read(socket: &mut Socket) -> Result<Header, PeerFault> {
    let mut bytes = BytesMut::new();
    loop {
        let more = match proxy::read(&bytes).map_err(PeerFault::Introduction)? {
            Progress::Complete(header) => return Ok(header),
            Progress::Needs(more) => more,
        };
        let taken = (&mut *socket).take(more as u64).read_buf(&mut bytes).await;
        if taken.map_err(|error| PeerFault::handshake(&error))? == 0 {
            return Err(PeerFault::handshake(&io::ErrorKind::UnexpectedEof.into()));
        }
    }
}

/// Looks at the first byte, which stays: TLS never begins like a PROXY header.
async fn refuse_header(socket: &Socket) -> Result<(), PeerFault> {
    let Socket::Tcp(stream) = socket else {
        return Ok(());
    };
    let mut first = [0];
    // An end or an error the handshake will meet again.
    if stream.peek(&mut first).await.is_ok() && proxy::SIGNATURE.starts_with(&first) {
        return Err(PeerFault::IsNoSender);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_one_who_connected_and_the_one_it_comes_from_are_told_apart() {
        let balancer: PeerAddr = SocketAddr::from(([10, 0, 0, 1], 40000)).into();
        let direct = Provenance::from(balancer);
        assert_eq!((direct.remote(), direct.via()), (balancer, None));
        let header = Header::Proxied(Proxied {
            endpoints: Endpoints::Ip {
                transport: Transport::Stream,
                source: "[::ffff:192.0.2.7]:51000".parse().unwrap(),
                destination: "198.51.100.9:443".parse().unwrap(),
            },
            extensions: vec![],
        });
        let passed_on = provenance(balancer, header).unwrap();
        // Rules that name an IPv4 network hold for it too.
        assert_eq!(passed_on.remote().to_string(), "192.0.2.7:51000");
        assert_eq!(passed_on.via(), Some(balancer));
        assert_eq!(passed_on.source_ip(), balancer.ip());
        assert_eq!(provenance(balancer, Header::Local).unwrap(), direct);
    }

    #[test]
    fn a_header_that_names_nobody_a_policy_could_judge_is_refused() {
        let balancer: PeerAddr = SocketAddr::from(([10, 0, 0, 1], 40000)).into();
        let ends = |transport| Endpoints::Ip {
            transport,
            source: "192.0.2.7:51000".parse().unwrap(),
            destination: "198.51.100.9:443".parse().unwrap(),
        };
        let unix = Endpoints::Unix {
            transport: Transport::Stream,
            source: Box::new([0; 108]),
            destination: Box::new([0; 108]),
        };
        for endpoints in [Endpoints::Unknown, ends(Transport::Datagram), unix] {
            let header = Header::Proxied(Proxied {
                endpoints,
                extensions: vec![],
            });
            let refused = provenance(balancer, header);
            assert!(
                matches!(refused, Err(PeerFault::NamesNobody)),
                "{refused:?}"
            );
        }
    }
}
