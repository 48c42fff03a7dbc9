//! May it? A [`Permit`] is the proof that policy said yes, and the only thing that leads to the app.
//!
//! Its fields are private and [`Policy::authorize`] is its one constructor. A permit lives as long as
//! the policy that gave it: it is asked again on every snapshot, for a connection of bytes by [`Permit::revoked`] and for a
//! request by [`crate::exchange::Exchange::ended_by`], and [`Caller::cuts`] ends a connection whose peer was deny-listed. A
//! certificate that has expired asks for nothing new; what it was allowed before goes on. A feed that closed is stale, not
//! revoked.

use std::net::IpAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use fender_config::snapshot::{Forwarded, Snapshot};
use fender_identity::{Peer, PeerSvid, SpiffeId};
use fender_policy::{By, Decision, Facts, HttpFacts, PolicyName};
use fender_runtime::clock::SharedClock;
use fender_runtime::drain::Drain;
use fender_runtime::id::OpaqueId;
use fender_wire::trace::PARENT;
use fender_wire::xfcc::Unwritable;
use fender_wire::{Fields, RequestHead};
use tokio::sync::watch;

use crate::access::Preamble;
use crate::crowd::Room;
use crate::headers;
use crate::metrics::Meter;
use crate::provenance::Provenance;
use crate::trace::{Trace, Traces};
use crate::way::{Client, Telling, Told};

/// Who asks: one for each connection.
#[derive(Debug)]
pub(crate) struct Caller {
    pub(crate) peer: Peer,
    pub(crate) provenance: Provenance,
    /// The port it reached.
    pub(crate) port: u16,
    /// It came without TLS, and is nobody.
    pub(crate) plaintext: bool,
    /// The room for requests of its address, where that counts.
    pub(crate) share: Option<Room>,
    /// What the app is told with each of its requests.
    telling: Telling,
    /// What each of its access lines says.
    preamble: Preamble,
    /// Where its requests are counted.
    meter: Arc<Meter>,
    /// Whether the traces that it says its requests belong to are gone on with.
    pub(crate) traces: Traces,
    cut: OnceLock<Cut>,
}

/// Why a whole connection was cut, for the lines of the requests that were cut with it.
#[derive(Clone, Debug)]
pub(crate) enum Cut {
    Denied(Denied),
    Drained,
}

/// What is asked: the facts of one request or of one TCP connection, kept to be judged again.
#[derive(Clone, Debug)]
pub(crate) struct Ask {
    pub(crate) caller: Arc<Caller>,
    pub(crate) request: Option<Arc<AskedRequest>>,
}

/// The facts of one request as the app will see them.
#[derive(Debug)]
pub(crate) struct AskedRequest {
    head: RequestHead,
    /// Where it is not as it was written.
    path: Option<String>,
    trace: Trace,
    /// What a proxy says of whom it asks for.
    told: Option<Told>,
    /// Values that are not UTF-8, readable: one that were left out would escape a DENY rule.
    lossy: Vec<(String, String)>,
}

impl AskedRequest {
    /// `path` is the one spelling of the head's path, where that is another.
    pub(crate) fn new(head: RequestHead, path: Option<String>, trace: Trace) -> Self {
        let lossy = head
            .fields()
            .iter()
            .filter(|field| field.text().is_none())
            .map(|field| {
                (
                    field.name().to_owned(),
                    String::from_utf8_lossy(field.value()).into_owned(),
                )
            })
            .collect();
        Self {
            head,
            path,
            trace,
            told: None,
            lossy,
        }
    }

    pub(crate) fn told(self, told: Option<Told>) -> Self {
        Self { told, ..self }
    }

    /// What we say with it.
    pub(crate) fn said<'a>(&'a self, caller: &'a Caller) -> &'a Fields {
        match &self.told {
            Some(told) => &told.said,
            None => caller.telling.said(),
        }
    }

    /// Whom it comes from in the end.
    fn client(&self) -> Client {
        self.told
            .as_ref()
            .map_or(Client::Caller, |told| told.client)
    }

    /// The client a proxy asks for, as it says.
    pub(crate) fn named_client(&self) -> Option<IpAddr> {
        match self.client() {
            Client::Named(client) => Some(client),
            Client::Caller | Client::Unknown => None,
        }
    }

    pub(crate) fn head(&self) -> &RequestHead {
        &self.head
    }

    pub(crate) fn trace(&self) -> &Trace {
        &self.trace
    }

    /// Says whether a field goes on to the app as it is.
    fn passes(&self, name: &[u8]) -> bool {
        headers::passes(&self.head, name) && self.trace.passes(name)
    }

    pub(crate) fn method(&self) -> &str {
        self.head.method()
    }

    pub(crate) fn host(&self) -> &str {
        self.head.authority().as_str()
    }

    pub(crate) fn path(&self) -> &str {
        self.path.as_deref().unwrap_or(self.head.path())
    }

    /// Every value by itself (A7), of the field as it goes on.
    fn header<'a>(&'a self, name: &str, said: &'a Fields) -> Vec<&'a str> {
        if name == "host" {
            return vec![self.host()];
        }
        if name == PARENT
            && let Some(said) = self.trace.said()
        {
            return vec![said];
        }
        let ours = said.iter().filter(|field| field.is(name));
        let theirs = self
            .head
            .fields()
            .iter()
            .filter(|field| field.is(name) && self.passes(field.name_bytes()));
        let text = ours.chain(theirs).filter_map(|field| field.text());
        let lossy = self
            .lossy
            .iter()
            .filter(|(lossy, _)| lossy.eq_ignore_ascii_case(name) && self.passes(lossy.as_bytes()));
        text.chain(lossy.map(|(_, value)| value.as_str())).collect()
    }
}

impl Ask {
    pub(crate) fn source_ip(&self) -> Option<IpAddr> {
        self.caller.provenance.source_ip()
    }

    pub(crate) fn remote_ip(&self) -> Option<IpAddr> {
        match self.request.as_ref().map(|request| request.client()) {
            Some(Client::Named(client)) => Some(client),
            Some(Client::Unknown) => None,
            Some(Client::Caller) | None => self.caller.provenance.remote().ip(),
        }
    }

    /// The question as policy takes it.
    pub(crate) fn with_facts<R>(&self, judge: impl FnOnce(&Facts<'_>) -> R) -> R {
        let (peer, port) = (&self.caller.peer, self.caller.port);
        let (source_ip, remote_ip) = (self.source_ip(), self.remote_ip());
        match &self.request {
            None => judge(&Facts {
                peer,
                source_ip,
                remote_ip,
                port,
                http: None,
            }),
            Some(request) => {
                let header = |name: &str| request.header(name, request.said(&self.caller));
                let http = HttpFacts {
                    method: request.method(),
                    host: request.host(),
                    path: request.path(),
                    header: &header,
                };
                judge(&Facts {
                    peer,
                    source_ip,
                    remote_ip,
                    port,
                    http: Some(http),
                })
            }
        }
    }
}

/// Policy said yes to one [`Ask`].
#[derive(Debug)]
#[must_use = "a permit that leads nowhere was not needed"]
pub(crate) struct Permit {
    allowed: Allowed,
}

/// What said yes, for the access line.
#[derive(Clone, Debug)]
pub(crate) struct Allowed {
    pub(crate) by: By,
    /// AUDIT policies that matched.
    pub(crate) audits: Vec<PolicyName>,
}

impl Permit {
    pub(crate) fn allowed(&self) -> &Allowed {
        &self.allowed
    }

    /// Resolves when a newer policy says no to the same question.
    ///
    /// Cancel safe.
    pub(crate) async fn revoked(&self, policy: &mut Policy, ask: &Ask) -> Denied {
        loop {
            policy.changed().await;
            if let Err(denied) = policy.uphold(ask) {
                return denied;
            }
        }
    }
}

/// Policy said no, or does not say yes any more.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{why}")]
pub(crate) struct Denied {
    pub(crate) id: OpaqueId,
    pub(crate) why: Why,
    pub(crate) snapshot: Arc<Snapshot>,
}

#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum Why {
    #[error("{}", described(.0))]
    Policy(Decision),
    #[error("the peer's certificate is on the deny list")]
    Revoked,
    #[error("the peer's certificate has expired")]
    Expired,
}

fn described(decision: &Decision) -> String {
    match &decision.by {
        By::Policy { name, action, rule } => {
            format!("denied by {action} policy `{name}`, rule {rule}")
        }
        By::NoMatch { considered } => {
            format!("denied: none of {considered} ALLOW policies matched")
        }
        By::Default(default) => format!("denied: no ALLOW policy, and the default is {default}"),
    }
}

/// The newest policy, as one connection follows it.
#[derive(Clone, Debug)]
pub(crate) struct Policy {
    feed: watch::Receiver<Arc<Snapshot>>,
    newest: Arc<Snapshot>,
    clock: SharedClock,
}

impl Policy {
    pub(crate) fn new(mut feed: watch::Receiver<Arc<Snapshot>>, clock: SharedClock) -> Self {
        let newest = feed.borrow_and_update().clone();
        Self {
            feed,
            newest,
            clock,
        }
    }

    /// Only takes the channel's lock when there is something new.
    pub(crate) fn newest(&mut self) -> &Arc<Snapshot> {
        if self.has_news() {
            self.newest = self.feed.borrow_and_update().clone();
        }
        &self.newest
    }

    /// The newest, without asking it: what is open is still to be judged by it.
    pub(crate) fn peek(&self) -> Arc<Snapshot> {
        match self.has_news() {
            true => self.feed.borrow().clone(),
            false => self.newest.clone(),
        }
    }

    /// How long a drain that begins now may take.
    pub(crate) fn drain(&self) -> Duration {
        self.feed.borrow().drain
    }

    /// Whether there may be a newer policy than the one that was asked last. Costs next to nothing.
    pub(crate) fn has_news(&self) -> bool {
        match self.feed.has_changed() {
            Ok(changed) => changed,
            Err(_) => !Arc::ptr_eq(&self.feed.borrow(), &self.newest),
        }
    }

    /// Whether the peer is on the newest deny list. It is looked at without asking, as by [`Self::peek`].
    pub(crate) fn denies(&self, peer: &Peer) -> Option<Denied> {
        let snapshot = self.peek();
        is_denied(peer.svid(), &snapshot).then(|| Denied::because(Why::Revoked, snapshot))
    }

    /// Answers a new question with the newest policy.
    pub(crate) fn authorize(&mut self, ask: &Ask) -> Result<Permit, Denied> {
        let svid = ask.caller.peer.svid();
        if svid.is_some_and(|svid| svid.not_after() < self.clock.now()) {
            return Err(Denied::because(Why::Expired, self.newest().clone()));
        }
        self.uphold(ask)
    }

    /// Answers an old question with the newest policy.
    pub(crate) fn uphold(&mut self, ask: &Ask) -> Result<Permit, Denied> {
        let snapshot = self.newest();
        if is_denied(ask.caller.peer.svid(), snapshot) {
            return Err(Denied::because(Why::Revoked, snapshot.clone()));
        }
        let decision = ask.with_facts(|facts| snapshot.policies.decide(facts));
        if decision.is_allowed() {
            let Decision { by, audits, .. } = decision;
            Ok(Permit {
                allowed: Allowed { by, audits },
            })
        } else {
            Err(Denied::because(Why::Policy(decision), snapshot.clone()))
        }
    }

    /// Resolves when a newer snapshot is there; never once the feed has closed.
    async fn changed(&mut self) {
        if self.feed.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
        // Waiting has marked it as seen.
        self.newest = self.feed.borrow_and_update().clone();
    }
}

fn is_denied(svid: Option<&PeerSvid>, snapshot: &Snapshot) -> bool {
    svid.is_some_and(|svid| snapshot.trust.denied.denies(svid))
}

impl Denied {
    fn because(why: Why, snapshot: Arc<Snapshot>) -> Self {
        Self {
            id: OpaqueId::random(),
            why,
            snapshot,
        }
    }
}

impl Caller {
    pub(crate) fn new(peer: Peer, provenance: Provenance, port: u16) -> Self {
        Self {
            peer,
            provenance,
            port,
            plaintext: false,
            share: None,
            telling: Telling::default(),
            preamble: Preamble::default(),
            meter: Arc::default(),
            traces: Traces::BegunAnew,
            cut: OnceLock::new(),
        }
    }

    /// Somebody of whom the app is told, with each request, that they called `own`.
    pub(crate) fn told_to_the_app(
        self,
        own: &SpiffeId,
        rules: &Forwarded,
    ) -> Result<Self, Unwritable> {
        let telling = self.telling_by(own, rules)?;
        Ok(Self { telling, ..self })
    }

    /// What the app would be told by these rules.
    pub(crate) fn telling_by(
        &self,
        own: &SpiffeId,
        rules: &Forwarded,
    ) -> Result<Telling, Unwritable> {
        let identity = headers::identity_of(own, &self.peer)?;
        Ok(Telling::of(self, identity, rules))
    }

    /// Somebody whose requests leave lines, and are counted.
    pub(crate) fn written_down(self, preamble: Preamble, meter: Arc<Meter>) -> Self {
        Self {
            preamble,
            meter,
            ..self
        }
    }

    pub(crate) fn traced(self, traces: Traces) -> Self {
        Self { traces, ..self }
    }

    pub(crate) fn meter(&self) -> &Meter {
        &self.meter
    }

    pub(crate) fn preamble(&self) -> &Preamble {
        &self.preamble
    }

    /// By the rules with which its connection began.
    pub(crate) fn telling(&self) -> &Telling {
        &self.telling
    }

    /// Why its connection was cut, if it was.
    pub(crate) fn cut(&self) -> Option<&Cut> {
        self.cut.get()
    }

    /// Resolves when this connection must end whatever it carries, and says so to what it carries.
    ///
    /// Cancel safe.
    pub(crate) async fn cuts(&self, policy: &mut Policy, drain: &Drain) -> Cut {
        let cut = tokio::select! {
            biased;
            denied = self.deny_listed(policy) => Cut::Denied(denied),
            () = drain.forced() => Cut::Drained,
        };
        self.cut.get_or_init(|| cut).clone()
    }

    /// Resolves when its peer was deny-listed (I4).
    async fn deny_listed(&self, policy: &mut Policy) -> Denied {
        loop {
            let snapshot = policy.newest().clone();
            if is_denied(self.peer.svid(), &snapshot) {
                return Denied::because(Why::Revoked, snapshot);
            }
            policy.changed().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use fender_config::snapshot::Profile;
    use fender_identity::tls::TlsProfile;
    use fender_identity::{Bundles, Trust};
    use fender_policy::PolicySet;
    use fender_runtime::clock::SystemClock;

    use super::*;

    fn snapshot(version: u64) -> Arc<Snapshot> {
        Arc::new(Snapshot {
            version,
            identity: None,
            profile: Profile::Production,
            trust: Trust::from(Bundles::new()),
            tls: TlsProfile::default(),
            inbound: vec![],
            outbound: vec![],
            policies: Arc::new(PolicySet {
                default: fender_policy::Default::Deny,
                policies: vec![],
            }),
            credentials: vec![],
            drain: Duration::ZERO,
            max_age: None,
        })
    }

    /// Else a request whose permission ended would go on until the next change.
    #[test]
    fn looking_at_the_newest_policy_leaves_the_news_to_who_judges_by_it() {
        let (changes, feed) = watch::channel(snapshot(1));
        let mut policy = Policy::new(feed, Arc::new(SystemClock));
        changes.send_replace(snapshot(2));
        assert_eq!(policy.peek().version, 2);
        assert!(policy.denies(&Peer::Anonymous).is_none());
        assert!(policy.has_news());
        assert_eq!(policy.newest().version, 2);
        assert!(!policy.has_news());
        assert_eq!(policy.peek().version, 2);
    }
}
