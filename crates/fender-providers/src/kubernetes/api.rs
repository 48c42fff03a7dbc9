//! The API of one cluster: one client and one budget for all that is asked of it. The token and the roots are read anew for
//! every question, because the kubelet replaces them, and the token is shown to the server that the roots vouch for.

use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use fender_config::HttpsUrl;
use fender_config::snapshot::{KubernetesName, SecretCluster};
use fender_identity::Secret;
use fender_runtime::clock::SharedClock;
use fender_runtime::deadline::Deadline;
use tokio::time::Instant;

use super::wire::{self, Listed, NoAnswer, Object, Version};
use crate::FetchError;
use crate::budget::Budget;
use crate::host::ReadFiles;
use crate::http::{HttpClient, HttpError, Method, Question, Streamed};

/// The most that a list or an event may weigh: a Secret of a mebibyte in base64, and as much again of what stands beside it.
pub(super) const MAX_ANSWER: usize = 3 * 1024 * 1024;
/// How long an answer may take, or the head of one that is streamed.
const PATIENCE: Duration = Duration::from_secs(15);
const MAX_ROOTS: u64 = 1024 * 1024;
const MAX_TOKEN: u64 = 64 * 1024;
/// As long as any name.
const MAX_NAMESPACE: u64 = 256;

pub(super) type Opened<'a> = Pin<Box<dyn Future<Output = Result<Streamed, HttpError>> + Send + 'a>>;

/// The way to one server. Only tests make another.
pub(super) trait Transport: fmt::Debug + Send + Sync + 'static {
    /// Asks for what is at a path, showing a token.
    fn open<'a>(&'a self, path: &'a str, token: &'a Secret, deadline: Deadline) -> Opened<'a>;
}

/// How a client is made.
pub(super) trait Dial: fmt::Debug + Send + Sync + 'static {
    fn dial(
        &self,
        api: &HttpsUrl,
        roots: &Secret,
        clock: &SharedClock,
    ) -> Result<Arc<dyn Transport>, String>;
}

#[derive(Clone, Copy, Debug)]
pub(super) struct DialHttps;

impl Dial for DialHttps {
    fn dial(
        &self,
        api: &HttpsUrl,
        roots: &Secret,
        clock: &SharedClock,
    ) -> Result<Arc<dyn Transport>, String> {
        let client = HttpClient::streaming(roots.expose(), MAX_ANSWER, Arc::clone(clock));
        Ok(Arc::new(Https {
            client: client.map_err(|error| error.to_string())?,
            api: api.clone(),
        }))
    }
}

#[derive(Debug)]
struct Https {
    client: HttpClient,
    api: HttpsUrl,
}

impl Transport for Https {
    fn open<'a>(&'a self, path: &'a str, token: &'a Secret, deadline: Deadline) -> Opened<'a> {
        Box::pin(async move {
            let url = self.api.join(path);
            let headers = [("authorization", bearer(token))];
            let question = Question {
                method: Method::Get,
                url: &url,
                headers: &headers,
                body: None,
            };
            self.client.open(question, deadline).await
        })
    }
}

fn bearer(token: &Secret) -> Secret {
    const SCHEME: &[u8] = b"Bearer ";
    let mut header = Vec::with_capacity(SCHEME.len() + token.len());
    header.extend_from_slice(SCHEME);
    header.extend_from_slice(token.expose());
    Secret::new(header)
}

/// Why there is no answer that helps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// The API knows nothing any more of the version that was named.
    Expired,
    /// Anything else.
    Error(FetchError),
}

impl Failure {
    fn outage(why: impl Into<String>) -> Self {
        Self::Error(FetchError::Outage(why.into()))
    }
}

#[derive(Debug)]
pub(super) struct Api {
    cluster: SecretCluster,
    /// None: this process runs in no cluster.
    address: Option<HttpsUrl>,
    dial: Arc<dyn Dial>,
    files: Arc<dyn ReadFiles>,
    clock: SharedClock,
    budget: Budget,
    /// The client, and the roots that it was made from.
    client: Mutex<Option<(Secret, Arc<dyn Transport>)>>,
}

impl Api {
    pub(super) fn new(
        cluster: SecretCluster,
        address: Option<HttpsUrl>,
        dial: Arc<dyn Dial>,
        files: Arc<dyn ReadFiles>,
        clock: SharedClock,
    ) -> Self {
        Self {
            cluster,
            address,
            dial,
            files,
            clock,
            budget: Budget::new(),
            client: Mutex::default(),
        }
    }

    /// When it is worth asking again after a failure that was everybody's.
    pub(super) fn retry_at(&self) -> Option<Instant> {
        self.budget.closed().map(|closed| closed.until)
    }

    /// The namespace of the pod, as the kubelet says.
    pub(super) async fn own_namespace(&self) -> Result<KubernetesName, FetchError> {
        let path = std::path::Path::new(SecretCluster::NAMESPACE);
        let read = self.files.read(path, MAX_NAMESPACE).await;
        let read = read.map_err(|error| {
            FetchError::Outage(format!(
                "namespace of this pod: {error}; or write `namespace:`"
            ))
        })?;
        let name = read.expose_str().unwrap_or_default().trim().parse();
        name.map_err(|_| {
            let why = format!("`{}` holds no name of a namespace", path.display());
            FetchError::Outage(why)
        })
    }

    /// What there is now.
    pub(super) async fn list(&self, object: &Object) -> Result<Listed, FetchError> {
        let deadline = Deadline::after(PATIENCE);
        let answer = self.ask(&object.path(), object, deadline).await;
        let streamed = answer.map_err(|failure| match failure {
            Failure::Error(error) => error,
            Failure::Expired => FetchError::Outage(format!("{object}: answers with status 410")),
        })?;
        let text = streamed.whole(deadline).await;
        let text = text.map_err(|error| unread(object, &error))?;
        wire::list(&text, object).map_err(|error| malformed(object, &error))
    }

    /// What happens from a version on, for so long.
    pub(super) async fn watch(
        &self,
        object: &Object,
        since: &Version,
        for_: Duration,
    ) -> Result<Streamed, Failure> {
        let path = format!(
            "{}&watch=1&allowWatchBookmarks=true&resourceVersion={since}&timeoutSeconds={}",
            object.path(),
            for_.as_secs()
        );
        self.ask(&path, object, Deadline::after(PATIENCE)).await
    }

    /// Asks as whoever the token says we are. One that is not known is read once more: another may be there by now.
    async fn ask(
        &self,
        path: &str,
        object: &Object,
        deadline: Deadline,
    ) -> Result<Streamed, Failure> {
        const UNAUTHORIZED: u16 = 401;
        let transport = self.transport().await.map_err(Failure::Error)?;
        let token = self.token().await.map_err(Failure::Error)?;
        let streamed = self.send(&*transport, path, &token, deadline).await?;
        if streamed.status != UNAUTHORIZED {
            return judged(streamed, object);
        }
        drop(streamed);
        let newer = self.token().await.map_err(Failure::Error)?;
        if newer.ct_eq(&token) {
            return Err(self.unknown(object));
        }
        let streamed = self.send(&*transport, path, &newer, deadline).await?;
        match streamed.status {
            UNAUTHORIZED => Err(self.unknown(object)),
            _ => judged(streamed, object),
        }
    }

    /// That the API does not know who we are says nothing of the Secret.
    fn unknown(&self, object: &Object) -> Failure {
        Failure::outage(format!(
            "{object}: the API answers with status 401: it does not know the token in `{}`, which may have ended",
            self.cluster.token().display()
        ))
    }

    /// Takes a turn, asks, and says how it went to whoever waits for one.
    async fn send(
        &self,
        transport: &dyn Transport,
        path: &str,
        token: &Secret,
        deadline: Deadline,
    ) -> Result<Streamed, Failure> {
        let turn = self.budget.turn().await;
        let turn = turn.map_err(|closed| Failure::outage(closed.why))?;
        match transport.open(path, token, deadline).await {
            Ok(streamed) => {
                match streamed.status {
                    // Too many at once, or whoever stands before it has nobody behind.
                    status @ (429 | 502 | 503 | 504) => {
                        let wish = streamed.wish;
                        let wish = wish.map(|wish| wish.within(self.clock.now().as_secs()));
                        let why = format!("the API answers with status {status}");
                        turn.turned_away(why, wish.map(Duration::from_secs));
                    }
                    _ => turn.answered(),
                }
                Ok(streamed)
            }
            Err(error @ HttpError::Unreachable(_)) => {
                let why = error.to_string();
                turn.turned_away(why.clone(), None);
                Err(Failure::outage(why))
            }
            Err(error) => {
                turn.unanswered(error.to_string());
                Err(Failure::outage(error.to_string()))
            }
        }
    }

    async fn transport(&self) -> Result<Arc<dyn Transport>, FetchError> {
        let Some(address) = &self.address else {
            return Err(FetchError::Outage(
                "Fender runs in no cluster: KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are not set; write `cluster:`"
                    .to_owned(),
            ));
        };
        let roots = self.files.read(self.cluster.roots(), MAX_ROOTS).await;
        let roots = roots.map_err(|error| unusable(&error.to_string()))?;
        let mut client = self.client.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((made_from, transport)) = &*client
            && made_from.ct_eq(&roots)
        {
            return Ok(Arc::clone(transport));
        }
        let transport = self.dial.dial(address, &roots, &self.clock);
        let transport = transport.map_err(|why| unusable(&why))?;
        *client = Some((roots, Arc::clone(&transport)));
        Ok(transport)
    }

    /// That there is none says nothing of the secret: somebody may be about to write it.
    async fn token(&self) -> Result<Secret, FetchError> {
        let path = self.cluster.token();
        let read = self.files.read(path, MAX_TOKEN).await;
        let read = read.map_err(|error| unusable(&error.to_string()))?;
        let token = read.expose().trim_ascii();
        if token.is_empty() || !token.iter().all(u8::is_ascii_graphic) {
            let why = format!(
                "`{}` does not hold one line of visible characters",
                path.display()
            );
            return Err(unusable(&why));
        }
        Ok(Secret::new(token.to_vec()))
    }
}

fn unusable(why: &str) -> FetchError {
    FetchError::Outage(format!("access to the cluster: {why}"))
}

pub(super) fn unread(object: &Object, error: &HttpError) -> FetchError {
    match error {
        HttpError::TooLarge { .. } => FetchError::Malformed(format!("{object}: {error}")),
        HttpError::Unreachable(_) | HttpError::TimedOut | HttpError::Header { .. } => {
            FetchError::Outage(format!("{object}: {error}"))
        }
    }
}

pub(super) fn malformed(object: &Object, error: &NoAnswer) -> FetchError {
    FetchError::Malformed(format!("{object}: {error}"))
}

/// What an answer says by its status. Its text may hold anything, and is not repeated.
fn judged(streamed: Streamed, object: &Object) -> Result<Streamed, Failure> {
    let status = streamed.status;
    let error = match status {
        200 => return Ok(streamed),
        410 => return Err(Failure::Expired),
        403 => FetchError::Denied(format!(
            "{object}: the API answers with status 403: does a Role let this service account `list` and `watch` `secrets` of that \
             name?"
        )),
        300..=399 => FetchError::Outage(format!(
            "{object}: the API answers with status {status}, which sends us elsewhere, and a token is shown to nobody else"
        )),
        404 => FetchError::Malformed(format!(
            "{object}: answers with status 404, as no Kubernetes API does: is it one?"
        )),
        429 | 500..=599 => {
            FetchError::Outage(format!("{object}: the API answers with status {status}"))
        }
        _ => FetchError::Malformed(format!("{object}: the API answers with status {status}")),
    };
    Err(Failure::Error(error))
}
