//! A TCP connection from a peer, once it is known who that is: one decision, then bytes both ways.
//!
//! Only facts of the connection are judged; an HTTP-only attribute never allows here (A3). A denied
//! peer learns nothing: the connection closes.

use fender_runtime::deadline::Deadline;

use crate::access::ConnectionLine;
use crate::fault::Fault;
use crate::permit::{Ask, Policy};
use crate::relay::relay;
use crate::request::Gate;
use crate::stream::Stream;

/// Not cancel safe: losing it ends the connection.
pub(crate) async fn carry(
    gate: &Gate,
    policy: &mut Policy,
    stream: Stream,
    deadline: Deadline,
    line: &mut ConnectionLine,
) -> Result<(), Fault> {
    let ask = Ask {
        caller: gate.entrance.caller.clone(),
        request: None,
    };

    let permit = policy.authorize(&ask)?; // may it
    line.allowed = Some(permit.allowed().clone());
    let (app, introduction) = (&gate.terms.app, gate.introduction.as_ref());
    let app = app.connect(&permit, introduction, deadline).await?; // where
    let app = Stream::plain(app);
    let half_closed = gate.entrance.node.limits.half_closed;

    tokio::select! {
        biased; // a revoked peer loses even a race it was about to win
        denied = permit.revoked(policy, &ask) => Err(denied.into()),
        carried = relay(stream, app, half_closed, &mut line.carried, || {}) => Ok(carried?),
    }
}
