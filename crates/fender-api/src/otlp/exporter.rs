//! Carries spans to a collector, in batches, in the background.
//!
//! Whoever leaves spans never waits: they come through a bounded channel, which is full while a collector is away. A batch is
//! tried again with growing pauses, for so long and no longer; at the end of the process what is there is delivered first, for
//! as long as that may take. Every span is counted: taken, refused, or delivered to nobody.

use std::error::Error as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use fender_runtime::backoff::Backoff;
use fender_runtime::deadline::Deadline;
use fender_runtime::drain::Drain;
use fender_runtime::id::OpaqueId;
use fender_runtime::random;
use tokio::sync::mpsc;
use tokio::time::sleep;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use super::{Attribute, Collector, Span, request};
use crate::client::error_chain;
use crate::proto::opentelemetry::proto::collector::trace::v1::trace_service_client::TraceServiceClient;

/// The most spans of one message: some hundred KiB, where collectors take 4 MiB.
const BATCH: usize = 512;
/// How long a span waits for others to share its message.
const GATHER: Duration = Duration::from_millis(500);
const CONNECT: Duration = Duration::from_secs(5);
/// What a collector may take to answer: what OpenTelemetry's own exporters allow.
const CALL: Duration = Duration::from_secs(10);
/// How long a batch is tried. Spans that are late are worth little, and others come.
const PATIENCE: Duration = Duration::from_secs(60);
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);
/// How long the end of the process waits for a collector, and how long a pause is by then. Less than its drain allows.
const FAREWELL: Duration = Duration::from_millis(1500);
const HURRIED_PAUSE: Duration = Duration::from_millis(200);
/// How much of a collector's words is kept.
const MOST_WORDS: usize = 256;
/// An answer is a number and a sentence.
const LARGEST_ANSWER: usize = 64 * 1024;

/// What became of spans since the start.
#[derive(Debug, Default)]
pub struct Exported {
    taken: AtomicU64,
    refused: AtomicU64,
    undelivered: AtomicU64,
}

impl Exported {
    /// The collector has them.
    pub fn taken(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }

    /// The collector does not want them.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// There was no collector for too long.
    pub fn undelivered(&self) -> u64 {
        self.undelivered.load(Ordering::Relaxed)
    }
}

/// The way to one collector.
#[derive(Debug)]
pub struct Exporter {
    collector: Collector,
    /// Who tells.
    resource: Vec<Attribute>,
    version: &'static str,
    exported: Arc<Exported>,
    client: Option<TraceServiceClient<Channel>>,
    /// Belongs to no recorded trace: delivering spans is to make none, wherever it leads through.
    traceparent: Option<MetadataValue<Ascii>>,
    state: State,
}

/// As it was last said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Delivers,
    Fails,
}

/// Why a batch was not taken.
#[derive(Debug)]
struct Failure {
    why: String,
    then: Then,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    /// It may be taken later.
    Again,
    Never,
}

impl Exporter {
    pub fn new(
        collector: Collector,
        resource: Vec<Attribute>,
        version: &'static str,
        exported: Arc<Exported>,
    ) -> Self {
        let traceparent = format!("00-{}-{:016x}-00", OpaqueId::random(), random::cheap() | 1);
        Self {
            collector,
            resource,
            version,
            exported,
            client: None,
            traceparent: traceparent.parse().ok(),
            state: State::Delivers,
        }
    }

    /// Delivers what comes, each as `tell` says it, until the drain stops; then what is left.
    pub async fn run<T>(
        mut self,
        mut spans: mpsc::Receiver<T>,
        tell: fn(&T) -> Span,
        drain: Drain,
    ) {
        let mut batch = Vec::new();
        let farewell = async {
            drain.stopping().await;
            sleep(FAREWELL).await;
        };
        tokio::select! {
            biased;
            () = self.carry(&mut spans, &mut batch, tell, &drain) => {}
            () = farewell => {}
        }
        let left = batch.len() + spans.len();
        if left > 0 {
            self.lose(left);
            tracing::warn!(spans = left, collector = %self.collector.url(), "spans were delivered to nobody: this is the end");
        }
    }

    async fn carry<T>(
        &mut self,
        spans: &mut mpsc::Receiver<T>,
        batch: &mut Vec<T>,
        tell: fn(&T) -> Span,
        drain: &Drain,
    ) {
        loop {
            if drain.is_stopping() {
                // What was left before is still there.
                spans.close();
            }
            let first = tokio::select! {
                biased;
                span = spans.recv() => span,
                () = drain.stopping(), if !drain.is_stopping() => continue,
            };
            let Some(first) = first else {
                return;
            };
            batch.push(first);
            if spans.len() < BATCH {
                pause(GATHER, drain).await;
            }
            while batch.len() < BATCH
                && let Ok(span) = spans.try_recv()
            {
                batch.push(span);
            }
            self.deliver(batch, tell, drain).await;
        }
    }

    /// Tries until it is delivered, or must not or need not be tried again. Dropped in between, the batch is whole.
    async fn deliver<T>(&mut self, batch: &mut Vec<T>, tell: fn(&T) -> Span, drain: &Drain) {
        let patience = Deadline::after(PATIENCE);
        let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
        loop {
            let failure = match self.attempt(batch, tell).await {
                Ok(rejected) => {
                    let taken = batch.len() - rejected;
                    count(&self.exported.taken, taken);
                    count(&self.exported.refused, rejected);
                    if std::mem::replace(&mut self.state, State::Delivers) == State::Fails {
                        tracing::info!(collector = %self.collector.url(), "spans are delivered again");
                    }
                    break;
                }
                Err(failure) => failure,
            };
            self.client = None;
            // Once: whoever collects nothing has no use for a line about each batch.
            if std::mem::replace(&mut self.state, State::Fails) == State::Delivers {
                tracing::warn!(collector = %self.collector.url(), why = failure.why, "spans cannot be delivered");
            }
            match failure.then {
                Then::Never => {
                    count(&self.exported.refused, batch.len());
                    break;
                }
                Then::Again if patience.remaining().is_zero() => {
                    self.lose(batch.len());
                    break;
                }
                Then::Again => pause(backoff.next(), drain).await,
            }
        }
        batch.clear();
    }

    /// How many of them the collector did not take.
    async fn attempt<T>(&mut self, batch: &[T], tell: fn(&T) -> Span) -> Result<usize, Failure> {
        let later = |why| Failure {
            why,
            then: Then::Again,
        };
        let mut client = match self.client.take() {
            Some(client) => client,
            None => {
                let connected = Deadline::after(CONNECT)
                    .bound(self.collector.connect())
                    .await;
                let connected =
                    connected.map_err(|_| later("it cannot be connected in time".to_owned()))?;
                let channel = connected.map_err(|error| later(error_chain(&error)))?;
                TraceServiceClient::new(channel).max_decoding_message_size(LARGEST_ANSWER)
            }
        };
        let spans = batch.iter().map(tell);
        let mut request = Request::new(request(&self.resource, self.version, spans));
        request.set_timeout(CALL);
        if let Some(traceparent) = &self.traceparent {
            request
                .metadata_mut()
                .insert("traceparent", traceparent.clone());
        }
        let answered = Deadline::after(CALL).bound(client.export(request)).await;
        let answer = answered.map_err(|_| later("it does not answer in time".to_owned()))?;
        let answer = answer.map_err(|status| refusal(&status))?;
        self.client = Some(client);
        let rejected = answer.into_inner().partial_success;
        let rejected = rejected.map_or(0, |partial| partial.rejected_spans);
        Ok(usize::try_from(rejected).unwrap_or(0).min(batch.len()))
    }

    fn lose(&self, spans: usize) {
        count(&self.exported.undelivered, spans);
    }
}

/// Waits, but not for long once the drain has stopped.
async fn pause(wait: Duration, drain: &Drain) {
    let hurried = wait.min(HURRIED_PAUSE);
    if drain.is_stopping() {
        return sleep(hurried).await;
    }
    tokio::select! {
        () = sleep(wait) => {}
        () = drain.stopping() => {}
    }
}

fn count(number: &AtomicU64, more: usize) {
    number.fetch_add(more as u64, Ordering::Relaxed);
}

/// Which answers may be others later is said by OTLP. That a collector is full counts as one, also where it does not say when to
/// come back: it is not tried for long. So does a connection that broke, which is nobody's answer.
fn refusal(status: &Status) -> Failure {
    if status.source().is_some() {
        return Failure {
            why: error_chain(status),
            then: Then::Again,
        };
    }
    let words = status.message();
    let words = words.get(..words.floor_char_boundary(MOST_WORDS));
    let then = match status.code() {
        Code::Cancelled
        | Code::DeadlineExceeded
        | Code::Aborted
        | Code::OutOfRange
        | Code::Unavailable
        | Code::DataLoss
        | Code::ResourceExhausted => Then::Again,
        Code::Ok
        | Code::Unknown
        | Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::FailedPrecondition
        | Code::Unimplemented
        | Code::Internal
        | Code::Unauthenticated => Then::Never,
    };
    Failure {
        why: format!("{}: {}", status.code(), words.unwrap_or_default()),
        then,
    }
}

#[cfg(test)]
mod tests;
