//! The port at which HTTP-01 is answered (RFC 8555, 8.3), and nothing else: one request for each connection.
//!
//! `/.well-known/acme-challenge/TOKEN` gives what an order in flight has put there, and 404 for any other token. Whatever
//! else is asked of a host for which this sidecar has a certificate is sent on to `https://`; of any other host, 404. So
//! nobody is sent where their request says, and nothing here reaches the application.

use std::collections::BTreeSet;

use bytes::BytesMut;
use fender_runtime::deadline::Deadline;
use fender_runtime::listen::Socket;
use fender_wire::head::TargetForm;
use fender_wire::write::{Answer, Then};
use fender_wire::{HeadReader, RequestHead};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::Challenges;
use crate::Limits;
use crate::fault::PeerFault;
use crate::relay::discard;

const PREFIX: &str = "/.well-known/acme-challenge/";

/// What such a port knows.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct ChallengeTerms {
    /// The names of this sidecar's certificates, of which one may be `*.example.com`.
    pub(crate) names: BTreeSet<String>,
}

/// Reads one request, answers it, and ends the connection. How many bytes went which way is not worth a line of its own.
pub(crate) async fn answer(
    mut socket: Socket,
    terms: &ChallengeTerms,
    challenges: &Challenges,
    limits: &Limits,
    deadline: Deadline,
) -> Result<(), PeerFault> {
    let read = deadline.bound(read(&mut socket, limits)).await?;
    let mut out = BytesMut::new();
    let refused = match read {
        Ok(head) => {
            let said = judge(&head, terms, challenges);
            said.write(head.method(), &mut out);
            None
        }
        Err(PeerFault::Head(error)) => {
            let status = error.status();
            Said::plain(status).write("GET", &mut out);
            Some(PeerFault::Head(error))
        }
        Err(fault) => return Err(fault),
    };
    let patience = Deadline::after(limits.linger.min(deadline.remaining()));
    let sent = async {
        socket.write_all(&out).await?;
        socket.shutdown().await
    };
    match patience.bound(sent).await {
        Ok(Ok(())) => discard(&mut socket, patience, limits.linger_bytes).await,
        Ok(Err(error)) => return Err(PeerFault::Leaves(error.into())),
        Err(elapsed) => return Err(elapsed.into()),
    }
    refused.map_or(Ok(()), Err)
}

async fn read(socket: &mut Socket, limits: &Limits) -> Result<RequestHead, PeerFault> {
    let mut heads = HeadReader::new(limits.head());
    let mut buffer = BytesMut::new();
    loop {
        if let Some(head) = heads.request(&mut buffer)? {
            return Ok(head);
        }
        match socket.read_buf(&mut buffer).await {
            Ok(0) => return Err(PeerFault::Abandons),
            Ok(_) => {}
            Err(error) => return Err(PeerFault::Leaves(error.into())),
        }
    }
}

/// What is said to a request.
#[derive(Debug, PartialEq, Eq)]
struct Said {
    status: u16,
    text: String,
    location: Option<String>,
}

impl Said {
    fn plain(status: u16) -> Self {
        let text = String::new();
        let location = None;
        Self {
            status,
            text,
            location,
        }
    }

    fn write(&self, method: &str, out: &mut BytesMut) {
        let location = self.location.as_deref().map(|to| ("location", to));
        let answer = Answer {
            method,
            status: self.status,
            text: &self.text,
            fields: location.as_slice(),
            then: Then::Close,
        };
        if answer.write(out).is_err() {
            // A target that makes no field: it was read, but is not repeated.
            let plain = Self::plain(404);
            let _ = Answer {
                status: plain.status,
                text: &plain.text,
                fields: &[],
                ..answer
            }
            .write(out);
        }
    }
}

fn judge(head: &RequestHead, terms: &ChallengeTerms, challenges: &Challenges) -> Said {
    if head.form() == TargetForm::Asterisk {
        return Said::plain(404);
    }
    if let Some(token) = head.path().strip_prefix(PREFIX) {
        let reads = matches!(head.method(), "GET" | "HEAD") && head.query().is_none();
        let known = reads.then(|| challenges.authorization(token)).flatten();
        return match known {
            Some(authorization) => Said {
                text: authorization.as_ref().to_owned(),
                ..Said::plain(200)
            },
            None => Said::plain(404),
        };
    }
    let host = head.authority().host();
    if !knows(&terms.names, host) {
        return Said::plain(404);
    }
    let query = head.query().map(|query| format!("?{query}"));
    let location = format!("https://{host}{}{}", head.path(), query.unwrap_or_default());
    Said {
        location: Some(location),
        ..Said::plain(308)
    }
}

fn knows(names: &BTreeSet<String>, host: &str) -> bool {
    let above = host.split_once('.').map(|(_, above)| format!("*.{above}"));
    names.contains(host) || above.is_some_and(|wildcard| names.contains(&wildcard))
}
