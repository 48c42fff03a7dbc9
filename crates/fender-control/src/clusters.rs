//! Kubernetes clusters whose word counts for their service accounts.
//!
//! A projected token is a bearer token: whoever holds it is the service account, until it expires. So it must be made for
//! this control plane and nobody else, and how many keys one token may bring is counted. Who verifies it is the document's
//! choice: we, by the keys the cluster's issuer publishes, or the cluster's own API (TokenReview), which also knows of
//! pods that were deleted. Without an answer there is no identity. What is said of a service account is fact for the
//! record and for a document's selector; no name in a token becomes an identity by itself.
//!
//! <https://kubernetes.io/docs/reference/access-authn-authz/service-accounts-admin/#bound-service-account-tokens>

mod keys;
mod replay;
mod review;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use fender_config::{Cluster, KubernetesSelector, Vouching};
use fender_identity::jwt::{self, Audience, Claims, Expectations, Refusal};
use fender_runtime::clock::SharedClock;
use fender_runtime::deadline::Deadline;
use fender_runtime::drain::Drain;

use crate::ca::sha256;
use crate::credentials::Sources;
use crate::documents::InForce;
use crate::limit::Neighbourhood;
use keys::{Asked, PublishedKeys};
use replay::Replays;
use review::{Review, Reviewer};

/// What the control plane spends on one token.
const VERIFY: std::time::Duration = std::time::Duration::from_secs(10);

const SUBJECT: &str = "system:serviceaccount:";

/// The clusters of the mesh's document in force.
pub(crate) struct Clusters {
    sources: Arc<Sources>,
    clock: SharedClock,
    drain: Drain,
    live: Mutex<BTreeMap<String, Arc<Live>>>,
    replays: Replays,
}

/// A cluster with what verifies its tokens.
struct Live {
    cluster: Cluster,
    verifier: Verifier,
}

enum Verifier {
    Keys(PublishedKeys),
    Review(Box<Reviewer>),
}

/// What a cluster vouches for.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Vouched {
    pub(crate) whose: ServiceAccount,
    /// SHA-256 of the token.
    pub(crate) token: [u8; 32],
    pub(crate) token_id: Option<String>,
    expires: fender_runtime::clock::UnixTime,
}

/// A service account of one cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ServiceAccount {
    /// As the Mesh calls it.
    pub(crate) cluster: String,
    /// By which it would be another cluster if the Mesh called another one so.
    pub(crate) issuer: String,
    pub(crate) account: Account,
}

/// A service account, and what its token is bound to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Account {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) pod: Option<String>,
    pub(crate) pod_uid: Option<String>,
    pub(crate) node: Option<String>,
}

/// Why nobody vouches for a token. For our own log; whoever showed it learns which of the three it is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotVouched {
    #[error("{0}")]
    Refused(String),
    /// Nobody could say.
    #[error("{0}")]
    Away(String),
    #[error("{0}")]
    Busy(&'static str),
}

impl Clusters {
    pub(crate) fn new(sources: Arc<Sources>, clock: SharedClock, drain: Drain) -> Self {
        Self {
            sources,
            clock,
            drain,
            live: Mutex::default(),
            replays: Replays::default(),
        }
    }

    /// From now on these count. One that is as it was keeps what it knows; keys are fetched before they are needed.
    pub(crate) fn put_in_force(&self, newest: impl FnOnce() -> Arc<InForce>) {
        let mut live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        let in_force = newest();
        let clusters = &in_force.mesh.clusters;
        live.retain(|name, known| clusters.get(name) == Some(&known.cluster));
        for (name, cluster) in clusters {
            if !live.contains_key(name) {
                live.insert(name.clone(), Arc::new(self.begin(cluster)));
            }
        }
    }

    fn begin(&self, cluster: &Cluster) -> Live {
        let verifier = match &cluster.vouching {
            Vouching::Keys(source) => Verifier::Keys(PublishedKeys::follow(
                &cluster.name,
                source,
                &self.sources,
                &self.clock,
                &self.drain,
            )),
            Vouching::Review(review) => {
                let reviewer = Reviewer::new(
                    &cluster.name,
                    review,
                    &self.sources,
                    &self.clock,
                    &self.drain,
                );
                Verifier::Review(Box::new(reviewer))
            }
        };
        Live {
            cluster: cluster.clone(),
            verifier,
        }
    }

    /// Everything that clusters vouch for by this token. A cluster that it is not from does not see it.
    pub(crate) async fn verify(
        &self,
        token: &str,
        source: Option<Neighbourhood>,
    ) -> Result<Vec<Vouched>, NotVouched> {
        let all: Vec<Arc<Live>> = {
            let live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
            live.values().cloned().collect()
        };
        let deadline = Deadline::after(VERIFY);
        let mut vouched = Vec::new();
        let mut why = NotVouched::Refused("no cluster is described in the Mesh".to_owned());
        for live in all {
            match live.verify(token, source, &self.clock, deadline).await {
                Ok(found) => vouched.push(found),
                Err(NotVouched::Refused(reason)) => {
                    // An outage weighs more: the token may be good all the same.
                    if matches!(why, NotVouched::Refused(_)) {
                        why = NotVouched::Refused(reason);
                    }
                }
                Err(passing) => why = passing,
            }
        }
        if vouched.is_empty() {
            Err(why)
        } else {
            Ok(vouched)
        }
    }

    /// Whether a token may bring this key too.
    pub(crate) fn admit(&self, vouched: &Vouched, key: &[u8; 32]) -> Result<(), NotVouched> {
        self.replays
            .admit(vouched.token, vouched.expires, key, self.clock.now())
    }
}

impl Live {
    async fn verify(
        &self,
        token: &str,
        source: Option<Neighbourhood>,
        clock: &SharedClock,
        deadline: Deadline,
    ) -> Result<Vouched, NotVouched> {
        let cluster = &self.cluster;
        let refused = |why: Refusal| self.refused(&why.to_string());
        let expected = Expectations {
            issuer: &cluster.issuer,
            audience: Audience::Only(&cluster.audience),
        };
        let unverified = jwt::unverified(token, clock.now(), &expected).map_err(refused)?;
        let (claims, account) = match &self.verifier {
            Verifier::Keys(published) => {
                let claims = self
                    .by_keys(published, token, &expected, clock, deadline)
                    .await?;
                let account = account_of(&claims).map_err(|why| self.refused(why))?;
                (claims, account)
            }
            Verifier::Review(reviewer) => {
                let answer = reviewer
                    .ask(token, &cluster.audience, source, deadline)
                    .await;
                match answer {
                    Ok(Review::Authenticated(account)) => (unverified.vouched_for(), account),
                    Ok(Review::Refused(why)) => return Err(self.refused(&why)),
                    Err(NotVouched::Away(why)) => return Err(self.away(&why)),
                    Err(other) => return Err(other),
                }
            }
        };
        Ok(Vouched {
            whose: ServiceAccount {
                cluster: cluster.name.clone(),
                issuer: cluster.issuer.clone(),
                account,
            },
            token: sha256(token.as_bytes()),
            token_id: claims.id,
            expires: claims.expires,
        })
    }

    async fn by_keys(
        &self,
        published: &PublishedKeys,
        token: &str,
        expected: &Expectations<'_>,
        clock: &SharedClock,
        deadline: Deadline,
    ) -> Result<Claims, NotVouched> {
        let verify = async || {
            let keys = published.keys(clock.now(), deadline).await;
            let keys = keys.map_err(|why| self.away(&why))?;
            Ok(jwt::verify(token, &keys, clock.now(), expected))
        };
        match verify().await? {
            Ok(claims) => return Ok(claims),
            Err(why) if why.newer_keys_might_help() => match published.ask(deadline).await {
                Asked::Answered => {}
                Asked::Nobody => return Err(self.refused(&why.to_string())),
                Asked::TooSoon => {
                    return Err(NotVouched::Busy(
                        "the token is signed with a key that is not known yet: try again in half a minute",
                    ));
                }
            },
            Err(why) => return Err(self.refused(&why.to_string())),
        }
        verify()
            .await?
            .map_err(|why| self.refused(&why.to_string()))
    }

    fn refused(&self, why: &str) -> NotVouched {
        NotVouched::Refused(format!("cluster `{}`: {why}", self.cluster.name))
    }

    fn away(&self, why: &str) -> NotVouched {
        NotVouched::Away(format!("cluster `{}`: {why}", self.cluster.name))
    }
}

/// The service account in a verified token. What is said twice must agree.
fn account_of(claims: &Claims) -> Result<Account, &'static str> {
    let subject = claims.subject.as_deref().unwrap_or_default();
    let (namespace, name) = account_name(subject).ok_or("the token is of no service account")?;
    let bound = |path: &[&str]| {
        let path: Vec<&str> = [&["kubernetes.io"], path].concat();
        claims.text_at(&path).map(str::to_owned)
    };
    let said = (bound(&["namespace"]), bound(&["serviceaccount", "name"]));
    if said != (Some(namespace.clone()), Some(name.clone())) {
        return Err(
            "subject and `kubernetes.io` claims of the token name different service accounts",
        );
    }
    Ok(Account {
        namespace,
        name,
        pod: bound(&["pod", "name"]),
        pod_uid: bound(&["pod", "uid"]),
        node: bound(&["node", "name"]),
    })
}

/// `system:serviceaccount:NAMESPACE:NAME`
fn account_name(subject: &str) -> Option<(String, String)> {
    let (namespace, name) = subject.strip_prefix(SUBJECT)?.split_once(':')?;
    let plain = |part: &str| !part.is_empty() && !part.contains(':');
    (plain(namespace) && plain(name)).then(|| (namespace.to_owned(), name.to_owned()))
}

/// Nothing if the selector admits it, else what differs.
pub(crate) fn differs(selector: &KubernetesSelector, whose: &ServiceAccount) -> Option<String> {
    let account = &whose.account;
    let is = |found: &Option<String>| match found {
        Some(found) => format!("is `{found}`"),
        None => "is not in the token".to_owned(),
    };
    if selector.cluster != whose.cluster {
        return Some(format!("the cluster is `{}`", whose.cluster));
    }
    if selector.namespace != account.namespace || selector.service_account != account.name {
        return Some(format!(
            "the service account is `{}/{}`",
            account.namespace, account.name
        ));
    }
    if selector.pod.is_some() && selector.pod != account.pod {
        return Some(format!("the pod {}", is(&account.pod)));
    }
    if selector.node.is_some() && selector.node != account.node {
        return Some(format!("the node {}", is(&account.node)));
    }
    None
}
