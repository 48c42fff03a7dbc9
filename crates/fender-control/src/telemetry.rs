//! What a monitoring system is told: counters, kept where things happen, and gauges, read when somebody asks.
//!
//! How many series there are follows from this file and from how many authorities there are, and never from who calls,
//! what is called or what documents say. None names a workload, a person, an address or a secret.

pub(crate) mod declared;

use std::time::Duration;

use fender_api::code::Code;
use fender_config::snapshot::Profile;
use fender_runtime::deadline::Deadline;
use fender_runtime::metrics::{Exposition, seconds_until};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use tonic::Status;

use crate::control::Control;
use crate::documents::ApplyError;
use crate::store::{StoreError, audit, revocations};

/// How long the database may take before it counts as away.
const ANSWER: Duration = Duration::from_secs(2);

/// What becomes of asking for an identity, and of proposing documents.
const ISSUED: [&str; 3] = ["issued", "refused", "failed"];
const APPLIED: [&str; 3] = ["applied", "refused", "failed"];

type Labels<const N: usize> = [(&'static str, &'static str); N];

/// Cheap to clone; all clones count together.
#[derive(Clone, Debug)]
pub(crate) struct Telemetry {
    issuances: Family<Labels<2>, Counter>,
    refusals: Family<Labels<1>, Counter>,
    applies: Family<Labels<1>, Counter>,
    answers: Family<Labels<2>, Counter>,
}

/// By what an identity was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    Token,
    Kubernetes,
    X509,
    Agent,
    Renewal,
    Administrator,
    /// A certificate, for a token.
    Jwt,
    /// Nothing that is understood.
    Otherwise,
}

impl Asked {
    const ALL: [Self; 8] = [
        Self::Token,
        Self::Kubernetes,
        Self::X509,
        Self::Agent,
        Self::Renewal,
        Self::Administrator,
        Self::Jwt,
        Self::Otherwise,
    ];

    fn as_str(self) -> &'static str {
        match self {
            Self::Token => "token",
            Self::Kubernetes => "kubernetes",
            Self::X509 => "x509",
            Self::Agent => "agent",
            Self::Renewal => "renewal",
            Self::Administrator => "administrator",
            Self::Jwt => "jwt",
            Self::Otherwise => "otherwise",
        }
    }
}

/// What a sidecar says about what it was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Ack,
    Nack,
}

/// About what it says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum About {
    Snapshot,
    Trust,
}

impl Answer {
    const ALL: [Self; 2] = [Self::Ack, Self::Nack];

    fn as_str(self) -> &'static str {
        match self {
            Self::Ack => "ack",
            Self::Nack => "nack",
        }
    }
}

impl About {
    const ALL: [Self; 2] = [Self::Snapshot, Self::Trust];

    fn as_str(self) -> &'static str {
        match self {
            Self::Snapshot => "snapshot",
            Self::Trust => "trust",
        }
    }
}

impl Telemetry {
    /// What is counted is there from the beginning, at zero: the first of something must not look like none.
    pub(crate) fn new() -> Self {
        let this = Self {
            issuances: Family::default(),
            refusals: Family::default(),
            applies: Family::default(),
            answers: Family::default(),
        };
        for asked in Asked::ALL {
            for result in ISSUED {
                drop(
                    this.issuances
                        .get_or_create(&[("kind", asked.as_str()), ("result", result)]),
                );
            }
        }
        for result in APPLIED {
            drop(this.applies.get_or_create(&[("result", result)]));
        }
        for about in About::ALL {
            for answer in Answer::ALL {
                drop(this.answers.get_or_create(&labels(about, answer)));
            }
        }
        this
    }

    /// What became of asking for an identity.
    pub(crate) fn issuance<T>(&self, asked: Asked, result: &Result<T, Status>) {
        let outcome = match result {
            Ok(_) => "issued",
            Err(status) if is_ours(status) => "failed",
            Err(_) => "refused",
        };
        self.issuances
            .get_or_create(&[("kind", asked.as_str()), ("result", outcome)])
            .inc();
        if let Err(status) = result {
            self.refusals
                .get_or_create(&[("reason", Code::of(status).as_str())])
                .inc();
        }
    }

    /// What became of documents; of a dry run nothing does.
    pub(crate) fn apply<T>(&self, result: &Result<T, ApplyError>) {
        let outcome = match result {
            Ok(_) => "applied",
            Err(
                ApplyError::Problems(_) | ApplyError::Objections(_) | ApplyError::NotUpon { .. },
            ) => "refused",
            Err(ApplyError::Failed | ApplyError::Store(_)) => "failed",
        };
        self.applies.get_or_create(&[("result", outcome)]).inc();
    }

    /// What a sidecar said.
    pub(crate) fn answer(&self, about: About, answer: Answer) {
        self.answers.get_or_create(&labels(about, answer)).inc();
    }
}

fn labels(about: About, answer: Answer) -> Labels<2> {
    [("of", about.as_str()), ("answer", answer.as_str())]
}

/// Whether we are to blame, and not who asked.
fn is_ours(status: &Status) -> bool {
    matches!(Code::of(status), Code::Internal | Code::Unavailable)
}

/// Whether certificates can be issued and recorded now.
pub(crate) async fn is_ready(control: &Control) -> bool {
    let now = control.clock.now();
    let state = control.authority.state();
    let signs = state.issuing.validity.includes(now) && state.serving.validity.includes(now);
    signs && within(control.store.reads().answers()).await.is_some()
}

/// In the OpenMetrics text format. What the database does not tell in time is left out.
pub(crate) async fn metrics(control: &Control) -> String {
    let now = control.clock.now();
    let in_force = control.library.in_force();
    let state = control.authority.state();
    let mut told = Exposition::default();

    told.gauge(&declared::READY, i64::from(is_ready(control).await));
    told.gauge(
        &declared::UNRECOVERABLE,
        seconds_until(now, state.horizon.at),
    );
    let expiry = Family::<[(&'static str, String); 3], Gauge>::default();
    for authority in &state.known {
        let labels = [
            ("role", authority.role.as_str().to_owned()),
            ("standing", authority.standing.as_str().to_owned()),
            ("serial", authority.serial.to_string()),
        ];
        expiry
            .get_or_create(&labels)
            .set(seconds_until(now, authority.not_after));
    }
    told.register(&declared::AUTHORITY_EXPIRY, expiry);
    told.gauge(
        &declared::DEVELOPMENT,
        i64::from(in_force.mesh.profile == Profile::Development),
    );
    told.gauge(&declared::REVISION, whole(in_force.revision));
    told.gauge(&declared::TRUST_VERSION, whole(control.trust.version()));
    told.gauge(
        &declared::WORKLOADS,
        i64::try_from(in_force.documents.workloads.len()).unwrap_or(i64::MAX),
    );
    let (connected, refusing) = control.registry.tally();
    told.gauge(
        &declared::SIDECARS,
        i64::try_from(connected).unwrap_or(i64::MAX),
    );
    told.gauge(
        &declared::SIDECARS_REFUSING,
        i64::try_from(refusing).unwrap_or(i64::MAX),
    );
    if let Some(head) = within(audit::length(control.store.reader())).await {
        told.gauge(&declared::AUDIT_ENTRIES, whole(head));
    }
    let grace = in_force.mesh.lifetimes.renewal_grace;
    if let Some(revoked) = within(revocations::in_force(control.store.reads(), now, grace)).await {
        told.gauge(
            &declared::REVOCATIONS,
            i64::try_from(revoked.len()).unwrap_or(i64::MAX),
        );
    }

    let counted = &control.telemetry;
    told.register(&declared::ISSUANCES, counted.issuances.clone());
    told.register(&declared::REFUSALS, counted.refusals.clone());
    told.register(&declared::APPLIES, counted.applies.clone());
    told.register(&declared::ANSWERS, counted.answers.clone());
    control.store.reads().meter().tell(&mut told);
    told.text()
}

async fn within<T>(asked: impl Future<Output = Result<T, StoreError>>) -> Option<T> {
    match Deadline::after(ANSWER).bound(asked).await {
        Ok(Ok(answer)) => Some(answer),
        Ok(Err(error)) => {
            tracing::debug!(%error, "the database does not tell");
            None
        }
        Err(_) => None,
    }
}

fn whole(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
