//! What replicas ask each other: who is connected to which. Everything else they know from the database.
//!
//! Only the control plane itself is answered, and only its own bundle says who that is. Whoever does not answer in time
//! is named, and so is who has more to tell than fits: a status that leaves somebody out says so.

mod answer;

use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use fender_api::code::Code;
use fender_api::proto::control::v1::replicas_client::ReplicasClient;
use fender_api::proto::control::v1::replicas_server::Replicas;
use fender_api::proto::control::v1::{
    ConnectedRequest, ConnectedSidecars, ReplicaStatus, SidecarStatus,
};
use fender_api::tls::{ALPN, MAX_MESSAGE, connect};
use fender_api::url::ControlUrl;
use fender_identity::tls::{self, TlsProfile};
use fender_identity::{SpiffeId, WorkloadName};
use fender_runtime::clock::TlsClock;
use fender_runtime::deadline::Deadline;
use tokio::task::JoinSet;
use tokio_stream::Stream;
use tonic::{Request, Response, Status};

use self::answer::{Heard, messages};
use crate::callers;
use crate::control::Control;
use crate::credentials;
use crate::store::StoreError;
use crate::store::replicas::{self, Seen};
use crate::time::{earlier, seconds};

/// How long another replica may take to tell all of it.
const ANSWER: Duration = Duration::from_secs(3);
/// How many are asked; a registry with more has rows of replicas that are gone.
const MAX_REPLICAS: usize = 32;
/// Workloads asked about at once, at most: a page of the status.
pub(crate) const MAX_WORKLOADS: usize = 1000;

/// Answers the other replicas.
pub(crate) struct PeersService(pub(crate) Arc<Control>);

#[tonic::async_trait]
impl Replicas for PeersService {
    type ConnectedStream = Pin<Box<dyn Stream<Item = Result<ConnectedSidecars, Status>> + Send>>;

    async fn connected(
        &self,
        request: Request<ConnectedRequest>,
    ) -> Result<Response<Self::ConnectedStream>, Status> {
        let control = &self.0;
        let now = control.clock.now();
        let trust_domain = control.authority.trust_domain();
        callers::replica(request.extensions(), trust_domain, &control.store, now).await?;
        let ConnectedRequest {
            workloads,
            credentials,
        } = request.into_inner();
        if workloads.len() > MAX_WORKLOADS {
            return Err(Code::BadRequest.status("too many workloads are asked about at once"));
        }
        // What is no name is nobody's.
        let asked = workloads.iter().filter_map(|name| name.parse().ok());
        let asked: BTreeSet<WorkloadName> = asked.collect();
        let connected = control.connected_here(
            |name| asked.contains(name),
            &credentials.into_iter().collect(),
        );
        let messages = messages(connected).into_iter().map(Ok);
        Ok(Response::new(Box::pin(tokio_stream::iter(
            messages.collect::<Vec<_>>(),
        ))))
    }
}

/// Who is connected anywhere, and which replicas said so.
pub(crate) struct Everywhere {
    pub(crate) sidecars: BTreeMap<WorkloadName, Vec<SidecarStatus>>,
    pub(crate) replicas: Vec<ReplicaStatus>,
}

/// Which replicas have not answered, by name, and why. One that was waited for in vain is not waited for again by the same question.
#[derive(Default)]
pub(crate) struct Unheard(BTreeMap<String, String>);

impl Control {
    /// Of the workloads that are asked for, here; with all that is known of these credentials.
    fn connected_here(
        &self,
        asked: impl Fn(&WorkloadName) -> bool,
        credentials: &BTreeSet<String>,
    ) -> BTreeMap<WorkloadName, Vec<SidecarStatus>> {
        let all_of = |name: &str| credentials.contains(name);
        let mut connected = self.registry.sidecars(asked, all_of);
        let mut known = BTreeMap::new();
        for (workload, sidecars) in &mut connected {
            let used = sidecars.iter_mut().flat_map(|it| &mut it.credentials);
            for used in used.filter(|used| all_of(&used.name)) {
                let current = known.entry((workload.clone(), used.name.clone()));
                let current = current.or_insert_with(|| self.current(workload, &used.name));
                used.current.clone_from(current);
            }
        }
        connected
    }

    /// The generation that this process gives at this moment, if it is what gives it.
    fn current(&self, workload: &WorkloadName, name: &str) -> String {
        let origin = name.parse().ok().and_then(|name| {
            let origin = credentials::authorized(&self.library, workload, &name)?;
            self.sources.known(&name, &origin)
        });
        origin.map_or_else(String::new, |generation| generation.to_string())
    }

    /// Of these workloads, over all replicas; with all that is known of these credentials.
    pub(crate) async fn connected_everywhere(
        self: &Arc<Self>,
        workloads: &BTreeSet<&WorkloadName>,
        credentials: &BTreeSet<String>,
        unheard: &mut Unheard,
    ) -> Result<Everywhere, StoreError> {
        let here = self.authority.replica();
        let mut all = Everywhere {
            sidecars: BTreeMap::new(),
            replicas: Vec::new(),
        };
        all.add(
            here.as_str(),
            self.connected_here(|name| workloads.contains(name), credentials)
                .into_iter(),
        );
        let names: Vec<_> = workloads.iter().map(ToString::to_string).collect();
        let mut asking = JoinSet::new();
        for (at, seen) in replicas::all(&self.store).await?.into_iter().enumerate() {
            all.replicas.push(self.described(&seen));
            if seen.life.name == *here {
                continue;
            }
            if seen.is_silent() {
                all.problem(at, format!("silent for {} s", seen.seen_ago));
                continue;
            }
            if let Some(problem) = unheard.0.get(seen.life.name.as_str()) {
                all.problem(at, problem.clone());
                continue;
            }
            if at >= MAX_REPLICAS {
                all.problem(at, "not asked: too many replicas".to_owned());
                continue;
            }
            let request = ConnectedRequest {
                workloads: names.clone(),
                credentials: credentials.iter().cloned().collect(),
            };
            let control = Arc::clone(self);
            asking.spawn(async move {
                let name = seen.life.name.clone();
                (at, name, control.ask(&seen.life.url, request).await)
            });
        }
        while let Some(answered) = asking.join_next().await {
            let Ok((at, name, answer)) = answered else {
                continue;
            };
            match answer {
                Ok(Heard { told, untold, .. }) => {
                    all.add(name.as_str(), told.into_iter());
                    if untold > 0 {
                        tracing::warn!(replica = %name, untold, "another replica has more to tell than fits");
                        all.untold(at, untold);
                    }
                }
                Err(problem) => {
                    tracing::warn!(replica = %name, problem, "another replica does not tell who is connected to it");
                    unheard.0.insert(name.to_string(), problem.clone());
                    all.problem(at, problem);
                }
            }
        }
        Ok(all)
    }

    fn described(&self, seen: &Seen) -> ReplicaStatus {
        let started = earlier(self.clock.now(), Duration::from_secs(seen.started_ago));
        ReplicaStatus {
            name: seen.life.name.to_string(),
            url: seen.life.url.clone(),
            version: seen.life.version.clone(),
            started_unix: seconds(started),
            seen_seconds_ago: seen.seen_ago,
            problem: String::new(),
            untold: 0,
            here: seen.life.name == *self.authority.replica(),
        }
    }

    /// What a replica tells, or why it is not known.
    async fn ask(&self, url: &str, request: ConnectedRequest) -> Result<Heard, String> {
        match Deadline::after(ANSWER).bound(self.hear(url, request)).await {
            Ok(told) => told,
            Err(_) => Err(format!("did not answer within {} s", ANSWER.as_secs())),
        }
    }

    async fn hear(&self, url: &str, request: ConnectedRequest) -> Result<Heard, String> {
        let url: ControlUrl = url.parse().map_err(|_| "has no address".to_owned())?;
        let id = SpiffeId::control(self.authority.trust_domain());
        let trust = self.trust.follow().borrow().trust.clone();
        let config = tls::client(
            &TlsProfile::default(),
            Some(&*self.own.svid()),
            trust,
            id.clone(),
            ALPN,
            Arc::new(TlsClock(Arc::clone(&self.clock))),
        )
        .map_err(|error| error.to_string())?;
        let connection = connect(&url, config, tls::server_name(&id), Deadline::after(ANSWER))
            .await
            .map_err(|error| error.to_string())?;
        let refused = |status: Status| match status.message() {
            "" => status.code().to_string(),
            message => message.chars().take(256).collect(),
        };
        let mut client =
            ReplicasClient::new(connection.channel).max_decoding_message_size(MAX_MESSAGE);
        let mut answer = client
            .connected(request)
            .await
            .map_err(refused)?
            .into_inner();
        let mut heard = Heard::default();
        while let Some(some) = answer.message().await.map_err(refused)? {
            heard.take(some)?;
        }
        Ok(heard)
    }
}

/// So many more are missing of those that a replica knows.
pub(crate) fn more_than_fits(replica: &mut ReplicaStatus, untold: u64) {
    replica.untold = replica.untold.saturating_add(untold);
    let untold = replica.untold;
    replica.problem = format!("{untold} of them are more than fits into its answer");
}

impl Everywhere {
    fn add(
        &mut self,
        replica: &str,
        told: impl Iterator<Item = (WorkloadName, Vec<SidecarStatus>)>,
    ) {
        for (workload, sidecars) in told {
            let connected = sidecars.into_iter().map(|sidecar| SidecarStatus {
                replica: replica.to_owned(),
                ..sidecar
            });
            self.sidecars.entry(workload).or_default().extend(connected);
        }
    }

    /// This one knows of more than it told.
    fn untold(&mut self, at: usize, untold: u64) {
        if let Some(replica) = self.replicas.get_mut(at) {
            more_than_fits(replica, untold);
        }
    }

    fn problem(&mut self, at: usize, problem: String) {
        if let Some(replica) = self.replicas.get_mut(at) {
            replica.problem = problem;
        }
    }
}
