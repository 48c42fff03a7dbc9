//! Whence a sidecar knows who it is and what it must do: a control plane, files, or a SPIFFE Workload API.
//!
//! All give the same two watches; nothing behind them can tell the difference. A file that only delivers credentials needs no
//! identity: then there is one watch.

#[cfg(not(feature = "standalone"))]
mod absent;
#[cfg(feature = "standalone")]
mod documents;
#[cfg(feature = "standalone")]
mod files;
#[cfg(feature = "standalone")]
mod standalone;
#[cfg(feature = "standalone")]
mod workload_api;

use std::path::Path;
use std::sync::Arc;

use fender_api::addresses::Addresses;
use fender_api::client::{
    self, AgentSocket, ControlRoots, Evidence, FirstContact, Link, OpenError, Session,
    SessionConfig, StateDir, StateError,
};
use fender_api::token::TokenFile;
#[cfg(feature = "standalone")]
use fender_api::workload::Endpoint;
use fender_config::snapshot::Snapshot;
use fender_config::standalone::Standalone;
use fender_credentials::cache::Owner;
use fender_identity::tls::CaPin;
use fender_identity::{SpiffeId, Svid};
use fender_runtime::clock::SharedClock;
use fender_runtime::deadline::Deadline;
use fender_runtime::drain::Drain;
use tokio::sync::watch;

use crate::exit::{Exit, Failure};
use crate::{cli, render};

#[cfg(not(feature = "standalone"))]
pub(crate) use absent::{Reloaded, Reloads, read_standalone};
#[cfg(feature = "standalone")]
pub(crate) use documents::{Reloaded, Reloads};
#[cfg(feature = "standalone")]
pub(crate) use standalone::read as read_standalone;

#[cfg(not(feature = "standalone"))]
use absent as standalone;

/// Identity and configuration, as they are now and as they change.
pub(crate) struct Feed {
    /// None of a file without an identity, which has no ports.
    pub(crate) svid: Option<watch::Receiver<Arc<Svid>>>,
    pub(crate) snapshot: watch::Receiver<Arc<Snapshot>>,
    /// Whose is what is kept of its credentials.
    pub(crate) owner: Owner,
    pub(crate) session: Option<Arc<Session>>,
    /// Who gave the identity and signs tokens of it, where that is no control plane.
    #[cfg(feature = "standalone")]
    pub(crate) workload_api: Option<Endpoint>,
    /// Where the session is kept, if it is.
    pub(crate) state: Option<StateDir>,
    /// Has a standalone sidecar's file read again; none where a control plane says what changed.
    pub(crate) reloads: Option<Reloads>,
}

/// How the state directory is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tenure {
    /// It is nobody else's.
    Own,
    /// Or it is a predecessor's, who will hand it over.
    Succeed,
}

/// Says whether what a file names lies within what this process may touch, and else what does not.
pub(crate) type Admit = Box<dyn Fn(&Standalone) -> Result<(), String> + Send + Sync>;

/// What is said of the control plane.
pub(crate) enum LinkState {
    Alone,
    Control(watch::Receiver<Link>),
}

impl LinkState {
    pub(crate) fn describe(&self) -> String {
        match self {
            Self::Alone => "none (standalone)".to_owned(),
            Self::Control(link) => match &*link.borrow() {
                Link::Connected => "connected".to_owned(),
                Link::Lost { since, because } => {
                    let since = render::moment(i64::try_from(since.as_secs()).unwrap_or_default());
                    format!("lost since {since}: {because}")
                }
            },
        }
    }
}

impl Feed {
    pub(crate) fn link(&self) -> LinkState {
        match &self.session {
            Some(session) => LinkState::Control(session.link.clone()),
            None => LinkState::Alone,
        }
    }
}

/// Opens what the command line names.
pub(crate) async fn open(
    source: &cli::Source,
    tenure: Tenure,
    admit: Admit,
    clock: &SharedClock,
    drain: &Drain,
    deadline: Deadline,
) -> Result<Feed, Failure> {
    if let Some(file) = &source.config {
        let state = opened(source, tenure)?;
        let feed = standalone::open(file, admit, clock, drain, deadline).await?;
        return Ok(Feed { state, ..feed });
    }
    let control = control(&source.control)?;
    let state = opened(source, tenure)?;
    let config = SessionConfig {
        control,
        evidence: evidence(source)?,
        state: state.clone(),
        clock: clock.clone(),
        drain: drain.clone(),
        version: env!("CARGO_PKG_VERSION"),
        workload: source.workload.clone(),
    };
    let session = client::open(config, deadline).await.map_err(refused)?;
    let id = session.svid.borrow().id().clone();
    Ok(Feed {
        owner: Owner::Workload(id),
        svid: Some(session.svid.clone()),
        snapshot: session.snapshot.clone(),
        session: Some(Arc::new(session)),
        #[cfg(feature = "standalone")]
        workload_api: None,
        state,
        reloads: None,
    })
}

fn opened(source: &cli::Source, tenure: Tenure) -> Result<Option<StateDir>, Failure> {
    let state = source.state.as_ref().map(|path| state(path, tenure));
    state.transpose()
}

fn state(path: &Path, tenure: Tenure) -> Result<StateDir, Failure> {
    let opened = match (StateDir::open(path), tenure) {
        (Err(StateError::InUse { .. }), Tenure::Succeed) => StateDir::visit(path),
        (opened, _) => opened,
    };
    opened.map_err(|error| Failure::new(Exit::Usage, error))
}

/// What the command line gives to prove an identity with.
fn evidence(source: &cli::Source) -> Result<Option<Evidence>, Failure> {
    if let Some(file) = &source.token_file {
        return Ok(Some(Evidence::Token(TokenFile::new(file))));
    }
    if let Some(socket) = &source.agent {
        let socket = AgentSocket::new(socket.clone(), source.agent_uid);
        return Ok(Some(Evidence::Agent(socket)));
    }
    if let Some(token) = &source.kubernetes_token_file {
        return Ok(Some(Evidence::Kubernetes {
            token: token.clone(),
            contact: first_contact(source)?,
        }));
    }
    match (&source.x509_certificate, &source.x509_key) {
        (Some(certificate), Some(key)) => Ok(Some(Evidence::X509 {
            certificate: certificate.clone(),
            key: key.clone(),
            contact: first_contact(source)?,
        })),
        (None, _) | (_, None) => Ok(None),
    }
}

/// There is no trust on first use: without roots nothing is shown to anybody.
fn first_contact(source: &cli::Source) -> Result<FirstContact, Failure> {
    let (Some(trust_domain), Some(workload)) = (&source.trust_domain, &source.workload) else {
        return Err(Failure::usage(
            "say who this is and where it belongs: --workload NAMESPACE/NAME and --trust-domain NAME".to_owned(),
        ));
    };
    Ok(FirstContact {
        identity: SpiffeId::for_workload(trust_domain, workload),
        roots: control_roots(source.bundle.as_deref(), &source.ca_pin)?,
    })
}

/// By what the control plane is recognised where no join token says it.
pub(crate) fn control_roots(
    bundle: Option<&Path>,
    pins: &[CaPin],
) -> Result<ControlRoots, Failure> {
    match (bundle, pins) {
        (Some(bundle), _) => Ok(ControlRoots::Bundle(bundle.to_owned())),
        (None, []) => Err(Failure::usage(
            "say by what the control plane is recognised: --ca-pin sha256:… or --bundle FILE",
        )),
        (None, pins) => Ok(ControlRoots::Pins(pins.to_vec())),
    }
}

/// Where `--control` says the control plane's replicas are.
pub(crate) fn control(urls: &[String]) -> Result<Addresses, Failure> {
    Addresses::parse(urls).map_err(|error| Failure::usage(format!("--control: {error}")))
}

pub(crate) fn refused(error: OpenError) -> Failure {
    let exit = Exit::from_code(error.exit_code());
    match error.code() {
        Some(code) => Failure::coded(exit, code.as_str(), error),
        None => Failure::new(exit, error),
    }
}
