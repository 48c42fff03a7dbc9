//! A TCP connection from a peer, once it is known who that is: one decision, then bytes both ways.
//!
//! Only facts of the connection are judged; an HTTP-only attribute never allows here (A3). A denied
//! peer learns nothing: the connection closes. An app whose peer was cut off, or went without the farewell
//! of TLS, is cut off too: what it got may not be all that there was to come.

use fender_runtime::deadline::Deadline;

use crate::access::ConnectionLine;
use crate::fault::Fault;
use crate::permit::{Ask, Policy};
use crate::relay::{Unended, relay};
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
    let mut app = Unended::new(app);
    let half_closed = gate.entrance.node.limits.half_closed;

    tokio::select! {
        biased; // a revoked peer loses even a race it was about to win
        denied = permit.revoked(policy, &ask) => Err(denied.into()),
        carried = relay(stream, &mut app.socket, half_closed, &mut line.carried, || {}) => {
            carried?;
            app.ended();
            Ok(())
        }
    }
}
