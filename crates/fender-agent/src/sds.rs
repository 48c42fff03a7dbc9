//! Envoy's secret discovery: the caller's own certificate and the roots to verify its peers by, under names.
//!
//! | name | secret |
//! |---|---|
//! | `default` | the certificate, with its key, of the caller's default identity |
//! | a SPIFFE ID | that of this identity, if the caller may be it |
//! | `spiffe://TRUST` | the roots of one trust domain |
//! | `ROOTCA` | the roots of the default identity's trust domain |
//! | `ALL` | the roots of every trust domain, each for its own names |
//!
//! Any other name is nobody's secret: nothing is answered and a line is logged. What was sent is not sent again until it
//! changes, whether it was taken or not.
//!
//! <https://www.envoyproxy.io/docs/envoy/latest/configuration/security/secret>

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;

use fender_api::proto::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse};
use fender_api::proto::envoy::service::secret::v3::secret_discovery_service_server::SecretDiscoveryService;
use fender_runtime::drain::Drain;
use futures_util::{Stream, stream};
use tokio::sync::watch;
use tonic::{Request, Response, Status, Streaming};

use crate::call::{Admitted, nobody, stopping};
use crate::server::Calls;
use crate::{Entitled, Identities};
use secret::{Material, SECRET};

mod secret;

/// Names one caller may ask for at once.
const MAX_NAMES: usize = 64;
/// The longest SPIFFE ID.
const MAX_NAME: usize = 2048;
/// How much of somebody else's text is logged.
const SHOWN: usize = 256;

pub(crate) struct SecretDiscovery<I> {
    calls: Calls<I>,
}

impl<I: Identities> SecretDiscovery<I> {
    pub(crate) fn new(calls: Calls<I>) -> Self {
        Self { calls }
    }
}

#[tonic::async_trait]
impl<I: Identities> SecretDiscoveryService for SecretDiscovery<I> {
    type StreamSecretsStream =
        Pin<Box<dyn Stream<Item = Result<DiscoveryResponse, Status>> + Send>>;

    async fn stream_secrets(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamSecretsStream>, Status> {
        let admitted = self.calls.admit(&request)?;
        let entitled = self.calls.follow(&admitted.caller).await?;
        let conversation = Conversation {
            requests: request.into_inner(),
            entitled,
            wanted: Wanted::default(),
            stop: self.calls.drain.clone(),
            admitted,
        };
        let said = stream::unfold(Some(conversation), |conversation| async move {
            let mut conversation = conversation?;
            match conversation.next().await {
                Ok(Some(response)) => Some((Ok(response), Some(conversation))),
                Ok(None) => None,
                Err(status) => Some((Err(status), None)),
            }
        });
        Ok(Response::new(Box::pin(said)))
    }

    async fn fetch_secrets(
        &self,
        request: Request<DiscoveryRequest>,
    ) -> Result<Response<DiscoveryResponse>, Status> {
        let admitted = self.calls.admit(&request)?;
        let entitled = self.calls.follow(&admitted.caller).await?;
        let mut wanted = Wanted::default();
        wanted.hear(request.into_inner(), &admitted)?;
        let response = wanted.news(&entitled.borrow(), &admitted);
        let response = response.ok_or_else(|| {
            Status::not_found("no secret of these names is meant for this process")
        })?;
        Ok(Response::new(response))
    }
}

/// One stream: what is asked, and what changes.
struct Conversation {
    requests: Streaming<DiscoveryRequest>,
    entitled: watch::Receiver<Arc<Entitled>>,
    wanted: Wanted,
    stop: Drain,
    admitted: Admitted,
}

impl Conversation {
    /// The next thing to say; none once the caller has ended the stream. A request is read only when there is room for
    /// its answer.
    async fn next(&mut self) -> Result<Option<DiscoveryResponse>, Status> {
        loop {
            tokio::select! {
                biased;
                () = self.stop.stopping() => return Err(stopping()),
                changed = self.entitled.changed() => changed.map_err(|_| nobody())?,
                request = self.requests.message() => match request? {
                    Some(request) => self.wanted.hear(request, &self.admitted)?,
                    None => return Ok(None),
                },
            }
            let entitled = Arc::clone(&self.entitled.borrow_and_update());
            if let Some(response) = self.wanted.news(&entitled, &self.admitted) {
                return Ok(Some(response));
            }
        }
    }
}

/// The names asked for, and what was last sent under each.
#[derive(Default)]
struct Wanted {
    names: BTreeMap<String, Last>,
    /// Of the last response: its nonce and its version.
    said: u64,
}

enum Last {
    New,
    /// Nobody's secret, and that was logged.
    Unknown,
    Sent(Material),
}

impl Wanted {
    /// A first request, another set of names, or the answer to what was sent.
    fn hear(&mut self, request: DiscoveryRequest, admitted: &Admitted) -> Result<(), Status> {
        let DiscoveryRequest {
            resource_names,
            type_url,
            response_nonce,
            error_detail,
            ..
        } = request;
        if !type_url.is_empty() && type_url != SECRET {
            return Err(Status::invalid_argument(format!(
                "only `{SECRET}` is served here"
            )));
        }
        if resource_names.len() > MAX_NAMES
            || resource_names.iter().any(|name| name.len() > MAX_NAME)
        {
            return Err(Status::invalid_argument(format!(
                "more than {MAX_NAMES} names, or one longer than {MAX_NAME} bytes"
            )));
        }
        // The answer to something older than what was said last: a newer one is under way.
        if !response_nonce.is_empty() && response_nonce != self.said.to_string() {
            return Ok(());
        }
        if let Some(error) = error_detail {
            tracing::warn!(
                pid = admitted.caller.pid,
                nonce = response_nonce,
                reason = tame(&error.message),
                "a secret was not taken; the caller keeps the one before"
            );
        }
        let mut before = std::mem::take(&mut self.names);
        self.names = resource_names
            .into_iter()
            .map(|name| {
                let last = before.remove(&name).unwrap_or(Last::New);
                (name, last)
            })
            .collect();
        Ok(())
    }

    /// The secrets that are not what was last sent under their names.
    fn news(&mut self, entitled: &Entitled, admitted: &Admitted) -> Option<DiscoveryResponse> {
        let mut resources = Vec::new();
        for (name, last) in &mut self.names {
            let Some(material) = Material::named(name, entitled) else {
                if !matches!(last, Last::Unknown) {
                    let caller = &admitted.caller;
                    tracing::warn!(
                        uid = caller.uid,
                        pid = caller.pid,
                        name = tame(name),
                        "no secret of this name is meant for the caller"
                    );
                }
                *last = Last::Unknown;
                continue;
            };
            if matches!(last, Last::Sent(sent) if *sent == material) {
                continue;
            }
            resources.push(material.resource(name));
            *last = Last::Sent(material);
        }
        if resources.is_empty() {
            return None;
        }
        self.said += 1;
        Some(DiscoveryResponse {
            version_info: self.said.to_string(),
            resources,
            type_url: SECRET.to_owned(),
            nonce: self.said.to_string(),
        })
    }
}

/// Somebody else's text, for the log.
fn tame(text: &str) -> String {
    text.chars()
        .filter(|c| !c.is_control())
        .take(SHOWN)
        .collect()
}
