//! Against a collector of this process, at a Unix socket.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Mutex;

use fender_runtime::clock;
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Response, async_trait};

use super::*;
use crate::otlp::{Kind, Outcome, Value};
use crate::proto::opentelemetry::proto::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use crate::proto::opentelemetry::proto::collector::trace::v1::{
    ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use crate::proto::opentelemetry::proto::trace::v1 as proto;

/// How it answers: one after the other, then well.
type Answers = VecDeque<Result<ExportTraceServiceResponse, Status>>;

struct Service {
    answers: Mutex<Answers>,
    heard: mpsc::UnboundedSender<Request<ExportTraceServiceRequest>>,
}

#[async_trait]
impl TraceService for Service {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let answer = self.answers.lock().unwrap().pop_front();
        self.heard.send(request).unwrap();
        answer
            .unwrap_or_else(|| Ok(ExportTraceServiceResponse::default()))
            .map(Response::new)
    }
}

/// An exporter, and where its collector is or will be.
struct Rig {
    directory: tempfile::TempDir,
    exported: Arc<Exported>,
    spans: mpsc::Sender<u8>,
    drain: Drain,
}

impl Rig {
    fn start(capacity: usize) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let url = format!("unix://{}", directory.path().join("otel.sock").display());
        let collector = Collector::new(url.parse().unwrap(), None, clock::system()).unwrap();
        let exported = Arc::<Exported>::default();
        let resource = vec![("service.name", "orders".into())];
        let exporter = Exporter::new(collector, resource, "1.2.3", exported.clone());
        let (spans, taken) = mpsc::channel(capacity);
        let drain = Drain::new();
        drain.spawn(exporter.run(taken, span, drain.clone()));
        Self {
            directory,
            exported,
            spans,
            drain,
        }
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("otel.sock")
    }

    /// A collector that answers so; it ends with the drain.
    fn collect(
        &self,
        answers: Answers,
    ) -> mpsc::UnboundedReceiver<Request<ExportTraceServiceRequest>> {
        let (heard, hears) = mpsc::unbounded_channel();
        let listener = UnixListenerStream::new(UnixListener::bind(self.socket()).unwrap());
        let answers = Mutex::new(answers);
        let service = TraceServiceServer::new(Service { answers, heard });
        let drain = self.drain.clone();
        self.drain.spawn(async move {
            let server = tonic::transport::Server::builder().add_service(service);
            let ended = async move { drain.forced().await };
            let _ = server.serve_with_incoming_shutdown(listener, ended).await;
        });
        hears
    }

    async fn settled(&self, taken: u64, refused: u64, undelivered: u64) {
        let exported = &self.exported;
        while (exported.taken(), exported.refused(), exported.undelivered())
            != (taken, refused, undelivered)
        {
            sleep(Duration::from_millis(10)).await;
        }
    }
}

fn span(number: &u8) -> Span {
    Span {
        trace: [*number; 16],
        id: [*number; 8],
        parent: (*number > 1).then_some([9; 8]),
        kind: Kind::Server,
        name: Cow::Borrowed("GET"),
        began: Duration::from_nanos(1_800_000_000_123_456_789),
        took: Duration::from_micros(5),
        outcome: Outcome::Error,
        attributes: vec![("http.response.status_code", Value::Number(503))],
    }
}

fn spans(request: &ExportTraceServiceRequest) -> &[proto::Span] {
    &request.resource_spans[0].scope_spans[0].spans
}

#[tokio::test]
async fn spans_arrive_as_they_were_told_in_one_message_and_make_no_trace_themselves() {
    let rig = Rig::start(8);
    let mut hears = rig.collect(Answers::new());
    for number in [1, 2] {
        rig.spans.send(number).await.unwrap();
    }
    let heard = hears.recv().await.unwrap();
    let traceparent = heard
        .metadata()
        .get("traceparent")
        .unwrap()
        .to_str()
        .unwrap();
    assert!(
        traceparent.starts_with("00-") && traceparent.ends_with("-00"),
        "{traceparent}"
    );
    assert_eq!(traceparent.len(), 55, "{traceparent}");
    let message = heard.into_inner();
    let resource = message.resource_spans[0].resource.as_ref().unwrap();
    assert_eq!(resource.attributes[0].key, "service.name");
    let scope = message.resource_spans[0].scope_spans[0]
        .scope
        .as_ref()
        .unwrap();
    assert_eq!(
        (scope.name.as_str(), scope.version.as_str()),
        ("fender", "1.2.3")
    );
    let [begun, joined] = spans(&message) else {
        panic!("{message:?}");
    };
    assert_eq!(
        (begun.parent_span_id.as_slice(), begun.flags),
        ([].as_slice(), 0x101)
    );
    assert_eq!(
        (joined.parent_span_id.as_slice(), joined.flags),
        ([9; 8].as_slice(), 0x301)
    );
    assert_eq!(
        (joined.trace_id.as_slice(), joined.span_id.as_slice()),
        ([2; 16].as_slice(), [2; 8].as_slice())
    );
    assert_eq!(
        (joined.name.as_str(), joined.kind()),
        ("GET", proto::span::SpanKind::Server)
    );
    assert_eq!(joined.start_time_unix_nano, 1_800_000_000_123_456_789);
    assert_eq!(joined.end_time_unix_nano, 1_800_000_000_123_461_789);
    assert_eq!(
        joined.status.unwrap().code(),
        proto::status::StatusCode::Error
    );
    rig.settled(2, 0, 0).await;
}

#[tokio::test]
async fn what_may_be_taken_later_is_told_again_and_what_is_refused_is_not() {
    let rig = Rig::start(8);
    let rejected = ExportTraceServiceResponse {
        partial_success: Some(ExportTracePartialSuccess {
            // More than there were: nobody is believed about that.
            rejected_spans: i64::MAX,
            error_message: String::new(),
        }),
    };
    let answers = [
        Err(Status::unavailable("not yet")),
        Ok(ExportTraceServiceResponse::default()),
        Err(Status::invalid_argument("never")),
        Ok(rejected),
    ];
    let mut hears = rig.collect(answers.into());
    rig.spans.send(1).await.unwrap();
    for _ in 0..2 {
        let heard = hears.recv().await.unwrap().into_inner();
        assert_eq!(spans(&heard)[0].trace_id, [1; 16]);
    }
    rig.settled(1, 0, 0).await;
    rig.spans.send(2).await.unwrap();
    rig.settled(1, 1, 0).await;
    rig.spans.send(3).await.unwrap();
    rig.settled(1, 2, 0).await;
}

#[tokio::test]
async fn a_collector_that_comes_late_gets_what_waited_for_it() {
    let rig = Rig::start(8);
    rig.spans.send(1).await.unwrap();
    // It was looked for in vain: its place is taken from the channel, and the batch is not lost.
    while rig.spans.capacity() < 8 {
        sleep(Duration::from_millis(10)).await;
    }
    let mut hears = rig.collect(Answers::new());
    let heard = hears.recv().await.unwrap().into_inner();
    assert_eq!(spans(&heard)[0].trace_id, [1; 16]);
    rig.settled(1, 0, 0).await;
}

#[tokio::test]
async fn the_end_delivers_what_is_there_without_waiting_for_more() {
    let rig = Rig::start(2000);
    let mut hears = rig.collect(Answers::new());
    for _ in 0..1100 {
        rig.spans.send(1).await.unwrap();
    }
    rig.drain.stop();
    let mut delivered = 0;
    while delivered < 1100 {
        let heard = hears.recv().await.unwrap().into_inner();
        assert!(spans(&heard).len() <= BATCH);
        delivered += spans(&heard).len();
    }
    rig.settled(1100, 0, 0).await;
    assert!(
        rig.spans.send(1).await.is_err(),
        "nothing is taken any more"
    );
}

#[tokio::test(start_paused = true)]
async fn a_collector_that_never_comes_costs_spans_and_holds_up_no_end() {
    let rig = Rig::start(8);
    for number in 1..=3 {
        rig.spans.send(number).await.unwrap();
    }
    sleep(PATIENCE + LONGEST_PAUSE + CONNECT).await;
    rig.settled(0, 0, 3).await;
    for number in 1..=5 {
        rig.spans.send(number).await.unwrap();
    }
    // Less than what a sidecar gives it.
    assert!(
        rig.drain
            .close(Deadline::after(Duration::from_secs(2)))
            .await
    );
    rig.settled(0, 0, 8).await;
}
