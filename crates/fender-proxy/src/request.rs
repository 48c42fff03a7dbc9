//! One HTTP request, whatever version carried it: in order, what it is, may it, and on to the app.
//!
//! The path is brought into one spelling and the headers into their final form *before* the decision,
//! so policy judges exactly what the app will see. Nothing reaches the app without a [`Permit`].
//! Query strings are forwarded untouched, and neither matched nor logged (P2).

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use bytes::Bytes;
use fender_identity::Svid;
use fender_runtime::id::OpaqueId;
use fender_wire::{Authority, path};
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HOST, TRANSFER_ENCODING};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri};
use tokio::time::Instant;

use crate::access::RequestLine;
use crate::app::Answered;
use crate::body::{Length, RequestBody, ResponseBody};
use crate::fault::{Fault, OurFault, PeerFault, UpstreamFault};
use crate::headers;
use crate::node::{Node, Token};
use crate::permit::{Ask, AskedRequest, Caller, Permit, Policy};
use crate::tls::InboundTerms;

/// What every request of one connection goes through.
#[derive(Clone, Debug)]
pub(crate) struct Gate {
    pub(crate) node: Arc<Node>,
    pub(crate) terms: Arc<InboundTerms>,
    /// The certificate this connection was served with.
    pub(crate) svid: Arc<Svid>,
    pub(crate) caller: Arc<Caller>,
    pub(crate) policy: Policy,
}

/// A request as the peer put it, its body apart.
#[derive(Debug)]
pub(crate) struct Asked<'a> {
    pub(crate) method: Method,
    /// As it was written, without the query.
    pub(crate) path: &'a str,
    pub(crate) query: Option<&'a str>,
    pub(crate) authority: Option<Authority>,
    pub(crate) headers: HeaderMap,
    /// Another protocol the peer asks for.
    pub(crate) upgrade: Option<HeaderValue>,
}

/// A request that may go on, in the form in which it will.
#[derive(Debug)]
pub(crate) struct Admitted {
    permit: Permit,
    ask: Ask,
    request: Request<()>,
    upgrade: Upgrade,
    exchange: Exchange,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Upgrade {
    Asked,
    NotAsked,
}

impl Gate {
    /// Decides about one request. What is not admitted is answered.
    pub(crate) fn admit(
        &mut self,
        asked: Asked<'_>,
        strips: impl Fn(&str) -> bool,
        token: Option<Token>,
    ) -> Result<Admitted, Box<Response<ResponseBody>>> {
        let mut exchange = Exchange::begin(self, Some(&asked));
        exchange.token = token;
        match self.decide(asked, strips, &mut exchange) {
            Ok((permit, ask, request, upgrade)) => Ok(Admitted {
                permit,
                ask,
                request,
                upgrade,
                exchange,
            }),
            Err(fault) => Err(Box::new(answer(fault, exchange))),
        }
    }

    fn decide(
        &mut self,
        asked: Asked<'_>,
        strips: impl Fn(&str) -> bool,
        exchange: &mut Exchange,
    ) -> Result<(Permit, Ask, Request<()>, Upgrade), Fault> {
        let Asked {
            method,
            authority,
            mut headers,
            query,
            upgrade,
            ..
        } = asked;

        // 1. One spelling of the path (P1–P3).
        let path = path::normalize(asked.path, &self.terms.paths).map_err(PeerFault::from)?;
        exchange.line.path = path.clone().into_owned();
        let uri = target(&path, query)?;

        // 2. What the peer may say, and who it is: that we say (H1).
        if headers
            .keys()
            .any(|name| headers::disguises_framing(name.as_str()))
        {
            return Err(PeerFault::Request("a field looks like one that frames the body").into());
        }
        headers::sanitise(&mut headers, strips);
        let caller = &self.caller;
        headers::identify(&mut headers, self.svid.id(), &caller.peer, caller.from.ip())
            .map_err(|error| OurFault::Unwritable(error.to_string()))?;
        let host = authority.as_ref().map_or("", Authority::as_str).to_owned();
        match HeaderValue::try_from(host.as_str()) {
            Ok(value) if authority.is_some() => headers.insert(HOST, value),
            Ok(_) | Err(_) => headers.remove(HOST),
        };

        // 3. May it: asked with what the app will see, of the newest policy.
        let facts = AskedRequest::new(method.clone(), host, path.into_owned(), headers.clone());
        let ask = Ask {
            caller: caller.clone(),
            request: Some(Arc::new(facts)),
        };
        exchange.ask = Some(ask.clone());
        let permit = self.policy.authorize(&ask)?;
        exchange.line.allowed = Some(permit.allowed().clone());

        // 4. As it goes on.
        let mut request = Request::new(());
        *request.method_mut() = method;
        *request.uri_mut() = uri;
        *request.headers_mut() = headers;
        let upgrade = match upgrade {
            Some(protocol) => {
                headers::upgrade(request.headers_mut(), &protocol);
                Upgrade::Asked
            }
            None => Upgrade::NotAsked,
        };
        Ok((permit, ask, request, upgrade))
    }

    /// Carries an admitted request to the app and gives its answer, or ours if there is none.
    ///
    /// Dropping the future ends the request.
    pub(crate) async fn forward(
        &self,
        admitted: Admitted,
        body: RequestBody,
    ) -> Response<ResponseBody> {
        let Admitted {
            permit,
            ask,
            mut request,
            upgrade,
            mut exchange,
        } = admitted;
        let mut policy = self.policy.clone();
        declare(request.headers_mut(), body.length());
        exchange.line.received = body.received();
        exchange.line.forwarded = Some(Instant::now());

        let answered = tokio::select! {
            biased;
            denied = permit.revoked(&mut policy, &ask) => Err(denied.into()),
            answered = tokio::time::timeout(
                self.node.limits.response,
                self.terms.app.send(&permit, request.map(|()| body)),
            ) => answered.unwrap_or(Err(UpstreamFault::StaysSilent.into())),
        };
        let revoked = Box::pin(async move { permit.revoked(&mut policy, &ask).await });
        match (answered, upgrade) {
            (Ok(Answered::Response(response)), _) => {
                let (mut head, body) = response.into_parts();
                headers::sanitise_response(&mut head.headers);
                exchange.answered(head.status);
                let body = ResponseBody::app(body, exchange, revoked);
                Response::from_parts(head, body)
            }
            (Ok(Answered::Upgraded(head, tunnel)), Upgrade::Asked) => {
                let (mut head, ()) = head.into_parts();
                let protocol = head.headers.remove(http::header::UPGRADE);
                headers::sanitise_response(&mut head.headers);
                if let Some(protocol) = protocol {
                    head.headers.insert(http::header::UPGRADE, protocol);
                }
                exchange.answered(head.status);
                let body = ResponseBody::tunnel(tunnel, exchange, revoked);
                Response::from_parts(head, body)
            }
            (Ok(Answered::Upgraded(..)), Upgrade::NotAsked) => {
                let fault = UpstreamFault::Breaks("it changed protocols unasked".to_owned());
                answer(fault.into(), exchange)
            }
            (Err(fault), _) => answer(fault, exchange),
        }
    }

    /// Answers what could not even be read as a request.
    pub(crate) fn refuse(&self, fault: PeerFault) -> Response<ResponseBody> {
        answer(fault.into(), Exchange::begin(self, None))
    }
}

/// The target as it goes on: the normalised path and the query as it came.
fn target(path: &str, query: Option<&str>) -> Result<Uri, PeerFault> {
    let text = match query {
        Some(query) => Bytes::from(format!("{path}?{query}")),
        None => Bytes::copy_from_slice(path.as_bytes()),
    };
    let target = PathAndQuery::from_maybe_shared(text);
    let target = target.map_err(|_| PeerFault::Request("the target cannot be forwarded"))?;
    if target.path() != path || target.query() != query {
        return Err(PeerFault::Request(
            "the target cannot be forwarded as it was matched",
        ));
    }
    Ok(Uri::from(target))
}

/// Tells the app how long the body is: exactly one way of saying it.
fn declare(headers: &mut HeaderMap, length: Length) {
    headers.remove(TRANSFER_ENCODING);
    let declared = headers.remove(CONTENT_LENGTH);
    match length {
        // Some apps insist on hearing it.
        Length::None => {
            if let Some(zero) = declared.filter(|declared| declared == "0") {
                headers.insert(CONTENT_LENGTH, zero);
            }
        }
        Length::Known(length) => {
            headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
        }
        Length::Chunked => {
            headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        }
    }
}

/// Our own answer to a request that failed, and the end of its line. It names no policy, no address
/// and no reason, only an id under which we wrote them down (A5).
fn answer(fault: Fault, mut exchange: Exchange) -> Response<ResponseBody> {
    let (status, error) = fault
        .answer()
        .unwrap_or((StatusCode::INTERNAL_SERVER_ERROR, "internal error"));
    let (name, kind, id): (HeaderName, _, _) = match &fault {
        Fault::Policy(denied) => (headers::DECISION, "decision", denied.id),
        Fault::Peer(_) | Fault::Upstream(_) | Fault::Ours(_) => {
            let id = OpaqueId::random();
            exchange.told = Some(id);
            (headers::FAULT, "fault", id)
        }
    };
    exchange.line.status = Some(status.as_u16());
    exchange.fail(fault);
    let text = format!("{{\"error\":\"{error}\",\"{kind}\":\"{id}\"}}\n");
    let mut response = Response::new(ResponseBody::ours(text.into(), exchange));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Ok(id) = HeaderValue::try_from(id.to_string()) {
        headers.insert(name, id);
    }
    response
}

/// One request from its first byte to its line in the access log, which is written exactly once:
/// when it ends, however it ends.
#[derive(Debug)]
pub(crate) struct Exchange {
    node: Arc<Node>,
    line: RequestLine,
    caller: Arc<Caller>,
    ask: Option<Ask>,
    /// The fault id the peer was told.
    told: Option<OpaqueId>,
    state: State,
    /// Keeps the connection from being idle.
    token: Option<Token>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Open,
    Ended,
}

impl Exchange {
    fn begin(gate: &Gate, asked: Option<&Asked<'_>>) -> Self {
        let line = RequestLine {
            method: asked.map(|asked| asked.method.clone()),
            authority: asked.and_then(|asked| asked.authority.clone()),
            path: asked.map_or_else(String::new, |asked| asked.path.to_owned()),
            status: None,
            allowed: None,
            received: Arc::new(AtomicU64::new(0)),
            sent: 0,
            began: Instant::now(),
            forwarded: None,
            answered: None,
        };
        let node = gate.node.clone();
        node.counters.request();
        Self {
            node,
            line,
            caller: gate.caller.clone(),
            ask: None,
            told: None,
            state: State::Open,
            token: None,
        }
    }

    /// The app has begun to answer.
    fn answered(&mut self, status: StatusCode) {
        self.line.answered = Some(Instant::now());
        self.line.status = Some(status.as_u16());
    }

    /// Counts what goes to the peer, and says how much went before it.
    pub(crate) fn sent(&mut self, bytes: usize) -> u64 {
        let before = self.line.sent;
        self.line.sent = before.saturating_add(bytes as u64);
        before
    }

    /// What a connection that changed protocols carried.
    pub(crate) fn carried(&mut self, carried: crate::relay::Carried) {
        self.line.sent = carried.sent;
        self.line.received = Arc::new(AtomicU64::new(carried.received));
    }

    pub(crate) fn succeed(&mut self) {
        if self.state == State::Open {
            self.state = State::Ended;
            self.token = None;
            self.write(Ok(()));
        }
    }

    pub(crate) fn fail(&mut self, fault: Fault) {
        if self.state == State::Open {
            self.state = State::Ended;
            self.token = None;
            self.node.counters.fault(fault.blame());
            if let (Fault::Policy(denied), Some(ask)) = (&fault, &self.ask) {
                self.node.records.leave(denied, ask);
            }
            self.write(Err(&fault));
        }
    }

    fn write(&self, outcome: Result<(), &Fault>) {
        let preamble = &self.caller.preamble;
        self.line
            .write(&self.node.access, preamble, outcome, self.told);
    }
}

impl Drop for Exchange {
    /// Nobody waited for the end: the connection was cut, or the peer has gone.
    fn drop(&mut self) {
        let fault = match self.caller.cut() {
            // The record is the connection's to leave.
            Some(cut) => {
                self.ask = None;
                cut.clone().into()
            }
            None => PeerFault::Abandons.into(),
        };
        self.fail(fault);
    }
}
