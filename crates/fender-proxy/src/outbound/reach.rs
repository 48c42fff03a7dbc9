//! Where a call of the app's goes, and the proof that it arrived there.

use std::time::Duration;

use fender_config::HostPort;
use fender_identity::Peer;
use fender_runtime::deadline::Deadline;
use tokio::net::{TcpStream, lookup_host};

use crate::fault::UpstreamFault;
use crate::stream::Stream;
use crate::tls::{self, OutboundTerms};

/// A connection to the destination that has proven to be it: the first address that can be had.
pub(super) async fn reach(
    terms: &OutboundTerms,
    deadline: Deadline,
) -> Result<(Stream, Peer), UpstreamFault> {
    let mut worst = None;
    for (address, left) in terms
        .addresses
        .iter()
        .zip((1..=terms.addresses.len()).rev())
    {
        // A dead address may not eat the time of those after it.
        let share = u32::try_from(left).map_or(Duration::ZERO, |left| deadline.remaining() / left);
        match Deadline::after(share)
            .bound(reach_one(terms, address))
            .await
        {
            Ok(Ok(reached)) => return Ok(reached),
            Ok(Err(fault)) => worst = Some(graver(worst, fault)),
            Err(_) => {
                let late = UpstreamFault::TakesTooLong(terms.addresses.len());
                worst = Some(graver(worst, late));
            }
        }
    }
    Err(worst.unwrap_or(UpstreamFault::TakesTooLong(0)))
}

/// An impostor is worth more attention than a machine that is down.
fn graver(one: Option<UpstreamFault>, other: UpstreamFault) -> UpstreamFault {
    match one {
        Some(one @ UpstreamFault::ProvesWrongIdentity { .. }) => one,
        Some(_) | None => other,
    }
}

async fn reach_one(
    terms: &OutboundTerms,
    address: &HostPort,
) -> Result<(Stream, Peer), UpstreamFault> {
    let unreachable = |error| UpstreamFault::Unreachable {
        address: address.to_string(),
        error,
    };
    let mut last = std::io::ErrorKind::NotFound.into();
    for candidate in lookup_host((address.host(), address.port()))
        .await
        .map_err(unreachable)?
    {
        match TcpStream::connect(candidate).await {
            Ok(stream) => {
                stream.set_nodelay(true).map_err(unreachable)?;
                return tls::connect(stream.into(), terms, address).await;
            }
            Err(error) => last = error,
        }
    }
    Err(unreachable(last))
}
