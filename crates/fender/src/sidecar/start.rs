//! How a sidecar comes up, in order: who it is and what it must do, its secrets, and only then its ports.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use fender_api::client::Received;
use fender_config::snapshot::{CredentialSpec, Delivery, Target};
use fender_credentials::PortCertificates;
use fender_credentials::cache::Hand;
use fender_credentials::engine::{self, OnExit, Settings};
use fender_credentials::handover::Handovers;
use fender_credentials::notify::{App, NoApp, Notifier, Record, Ways};
use fender_credentials::supervise::Hider;
use fender_proxy::{Challenges, Inputs, Limits, Proxy};
use fender_runtime::clock;
use fender_runtime::deadline::Deadline;
use fender_runtime::lines::Lines;
use fender_runtime::listen::{ListenAddress, Listeners};
use fender_runtime::sys;
use tokio::sync::{Mutex, mpsc, watch};

use super::attend::Serving;
#[cfg(feature = "agent")]
use super::callers;
use super::confine::Reach;
use super::drains::Drains;
use super::notices::BySupervisor;
use super::status::Status;
use super::upgrade::{self, Desk, Request, Succession};
use super::{Local, acme, asked, paths, records, spans, usage};
use crate::admin_socket;
use crate::cli::{self, Role};
use crate::exit::{Exit, Failure};
use crate::source::{self, Feed, Tenure};
use crate::stores::{self, Machine, Whose};

/// Where `fender status` finds a sidecar that has a state directory.
const ADMIN_SOCKET: &str = "admin.sock";
/// In the state directory: what applications were told.
const NOTIFIED: &str = "notified";
/// How many may wait for an upgrade or a reload.
const REQUESTS: usize = 8;

pub(super) async fn start(
    args: &cli::Sidecar,
    reach: Reach,
    local: Local,
    listeners: Listeners,
    access: Lines,
    drains: &Drains,
) -> Result<(Serving, Legacy), Failure> {
    let clock = clock::system();
    let deadline = Deadline::after(args.source.start_timeout);
    let tracing = &args.telemetry.tracing;
    let collector = spans::collector(tracing, &clock)?;

    // Who we are, and what we must do.
    let tenure = match args.places.take_over {
        Some(_) => Tenure::Succeed,
        None => Tenure::Own,
    };
    let admit = Box::new(move |documents: &_| reach.admit(documents));
    let feed = source::open(&args.source, tenure, admit, &clock, &drains.work, deadline).await?;
    #[cfg(not(feature = "acme"))]
    if args.role == Role::Sidecar {
        acme::check(&feed.snapshot.borrow())?;
    }

    // Whoever asks how it goes is answered from here on.
    let status = Arc::new(Status::new(
        feed.svid.clone(),
        feed.snapshot.clone(),
        feed.link(),
        feed.session.clone(),
        Arc::clone(&clock),
    ));
    // A successor leaves that to the sidecar before, until it serves.
    if tenure == Tenure::Own {
        open_admin_socket(args, &listeners, &status, drains)?;
    }

    // Where they are asked for: whoever comes now waits until there is something. A successor takes the socket over.
    let handovers = asked::handovers(args);
    let mut opened = match tenure {
        Tenure::Own => asked::open(args, &listeners)?,
        Tenure::Succeed => asked::Opened::default(),
    };

    // Its secrets, all or none. Those of a sidecar that goes on are not a successor's to remove.
    let (on_exit, leaves) = watch::channel(match tenure {
        Tenure::Own => OnExit::Wipe,
        Tenure::Succeed => OnExit::Keep,
    });
    let on_end = leaves.clone();
    // What was leased stays with whoever is left with the files.
    let keeps_leases = move || *on_end.borrow() == OnExit::Keep;
    let sources = stores::sources(
        &args.source,
        Whose::Feed(&feed),
        Machine::try_from(local)?,
        keeps_leases,
        &clock,
        &drains.credentials,
    );
    let allow = sources.allow.clone();
    // Where there is a sidecar before, the cache is that one's as well: nothing in it is changed until it has handed over.
    let cache = sources.hand();
    if let (Some(socket), Some(_)) = (&args.places.take_over, &cache)
        && upgrade::has_one_before(socket).await
    {
        give(cache.as_ref()).await?;
    }
    let (app, notices) = BySupervisor::new();
    let has_app = args.supervised && !args.supervise;
    let app: Arc<dyn App> = match has_app {
        true => Arc::new(app),
        false => Arc::new(NoApp),
    };
    let ways = Ways {
        allow: sources.allow.clone(),
        programs: sources.programs.clone(),
        app,
    };
    let record = args.source.state.as_ref().map(|state| state.join(NOTIFIED));
    let record = Record::open(record, args.app_run.as_deref().unwrap_or_default())
        .context("read what applications were told")
        .map_err(Failure::unavailable)?;
    let notifier = Notifier::new(Arc::new(ways), record, &drains.credentials);
    let notified = notifier.outcomes();
    let hider = match args.supervised && args.mask_output {
        true => Some(Hider::from_stdin().await.map_err(Failure::unavailable)?),
        false => None,
    };
    let hider = hider.map(Arc::new);
    // For ports, where there are any.
    let svid = feed.svid.clone().filter(|_| args.role == Role::Sidecar);
    let certificates = svid.as_ref().map(|_| PortCertificates::default());
    let settings = Settings {
        certificates: certificates.clone(),
        sources,
        on_exit: leaves,
        notifier,
        handovers: handovers.clone(),
        hider,
    };
    let holdings = engine::start(
        feed.snapshot.clone(),
        settings,
        deadline,
        &drains.credentials,
    )
    .await
    .map_err(|error| Failure::new(Exit::from_code(error.exit_code()), error))?;
    let snapshot = feed.snapshot.borrow().clone();
    for credential in snapshot.credentials.iter().filter(|spec| is_for_exec(spec)) {
        tracing::warn!(
            credential = %credential.name,
            "is to be delivered into an environment, which is what `fender exec` does, and not this process"
        );
    }
    let told = |spec: &CredentialSpec| spec.notify.iter().any(|one| is_the_app(&one.target));
    for credential in snapshot
        .credentials
        .iter()
        .filter(|spec| !has_app && told(spec))
    {
        tracing::warn!(
            credential = %credential.name,
            "its application is to be told of changes, and this process supervises none: it was started without `-- CMD`"
        );
    }
    let used = usage::Sources {
        snapshot: feed.snapshot.clone(),
        holdings,
        notified,
        taken: handovers.as_ref().map(Handovers::takings),
        clock: Arc::clone(&clock),
    };
    status.set_credentials(used.clone());
    let reports = feed.session.as_ref().map(|session| session.reports.clone());
    if let Some(reports) = reports.clone() {
        drains.work.spawn(usage::report(used, reports));
    }

    // D2: what another sidecar serves with, if this one is to take its place.
    let own = upgrade::Own {
        svid: feed.svid.clone(),
        snapshot: feed.snapshot.clone(),
        clock: Arc::clone(&clock),
    };
    let succession = match &args.places.take_over {
        Some(socket) => upgrade::begin(socket, &own, &listeners).await?,
        None => None,
    };
    match succession {
        // It may have come only now.
        Some(_) => give(cache.as_ref()).await?,
        None => {
            on_exit.send_replace(OnExit::Wipe);
            take(cache.as_ref());
        }
    }
    if tenure == Tenure::Succeed {
        open_admin_socket(args, &listeners, &status, drains)?;
        opened = asked::open(args, &listeners)?;
    }
    if let Some(handovers) = handovers {
        asked::serve(opened, &handovers, drains);
        status.set_handovers(handovers);
    }

    // Local processes that ask for the identity themselves.
    #[cfg(feature = "agent")]
    if let Some(session) = &feed.session {
        callers::serve(
            &args.workload_api,
            session,
            &clock,
            &listeners,
            &drains.local,
        )
        .map_err(Failure::unavailable)?;
    }

    // Certificates for consumers, from whoever issues them; and the data plane.
    let (owns, owned) = watch::channel(tenure == Tenure::Own);
    let (records, recorded) = mpsc::channel(records::WAITING);
    drains.work.spawn(records::carry(
        recorded,
        Arc::clone(&status.decisions),
        reports,
        drains.work.clone(),
    ));
    let certificates = certificates.unwrap_or_default();
    let proxy = svid
        .map(|svid| {
            let served = paths::within(feed.snapshot.clone(), &allow, &drains.work);
            let challenges = Arc::new(Challenges::default());
            let state = args.source.state.clone();
            let issued = acme::issued(
                served.clone(),
                state,
                owned.clone(),
                &challenges,
                &clock,
                &drains.inbound,
            );
            let exported = Arc::clone(&status.exported);
            let recording = collector.map(|collector| {
                let own = svid.borrow().id().clone();
                spans::record(
                    collector,
                    tracing.traces_begin,
                    &own,
                    exported,
                    &drains.work,
                )
            });
            Proxy::start(Inputs {
                svid,
                snapshot: served,
                issued,
                credentials: certificates.standings(),
                challenges,
                clock,
                inbound: drains.inbound.clone(),
                outbound: drains.outbound.clone(),
                listeners: listeners.clone(),
                records,
                access,
                traces: args.telemetry.traces_from.into(),
                recording,
                limits: Limits::within(sys::descriptor_limit()),
            })
        })
        .transpose()
        .map_err(Failure::unavailable)?;
    status.set_started(proxy);
    let requests =
        open_upgrade_socket(args, &listeners, &feed, own, (owned, cache.clone()), drains)?;

    let serving = Serving {
        feed,
        status,
        on_exit,
        requests,
        notices,
    };
    let legacy = Legacy {
        succession,
        listeners,
        owns,
        cache,
    };
    Ok((serving, legacy))
}

/// What a sidecar that is ready has yet to take over, if there was one before it.
pub(super) struct Legacy {
    succession: Option<Succession>,
    listeners: Listeners,
    /// Whoever waits for what it takes over: to write into the state directory, and to hand it on.
    owns: watch::Sender<bool>,
    /// What is kept of credentials: not this one's to change before it is told so.
    cache: Option<Hand>,
}

impl Legacy {
    /// Everything is ready: all of it is ours from here on, and nobody else's. Not cancel safe.
    pub(super) async fn settle(self, serving: &Serving) -> Result<(), Failure> {
        let lock = match self.succession {
            Some(succession) => succession.complete().await?,
            None => None,
        };
        serving.on_exit.send_replace(OnExit::Wipe);
        take(self.cache.as_ref());
        for listen in self.listeners.close_leftover() {
            tracing::info!(%listen, "no longer listening where the sidecar before did");
        }
        let Some(state) = &serving.feed.state else {
            self.owns.send_replace(true);
            return Ok(());
        };
        let received = match lock {
            Some(lock) => state.receive(lock),
            None => state.claim(),
        };
        // The lock of a directory that is not this one, in another container for instance.
        let received = match received {
            Ok(Received::AnotherOne) => state.claim(),
            received => received,
        };
        match (received.map_err(Failure::usage_of)?, &serving.feed.session) {
            (Received::Behind, Some(session)) => session.keep_identity().await,
            (Received::Behind | Received::Nothing | Received::AnotherOne, _) => {}
        }
        self.owns.send_replace(true);
        Ok(())
    }
}

async fn give(cache: Option<&Hand>) -> Result<(), Failure> {
    match cache {
        Some(cache) if !cache.give(upgrade::CACHE).await => Err(Failure::unavailable(
            upgrade::the_cache_is_being_written(upgrade::CACHE),
        )),
        Some(_) | None => Ok(()),
    }
}

fn take(cache: Option<&Hand>) {
    if let Some(cache) = cache {
        cache.take();
    }
}

fn open_admin_socket(
    args: &cli::Sidecar,
    listeners: &Listeners,
    status: &Arc<Status>,
    drains: &Drains,
) -> Result<(), Failure> {
    if let Some(address) = args.telemetry.health.telemetry_listen {
        let listener = admin_socket::bind_tcp(address, listeners).map_err(Failure::unavailable)?;
        drains.local.spawn(admin_socket::serve(
            listener,
            Arc::clone(status),
            drains.local.clone(),
        ));
    }
    let Some(path) = admin_socket_path(args) else {
        tracing::info!(
            "no admin socket: `fender status` and `fender explain` need --admin-socket or --state"
        );
        return Ok(());
    };
    let listener = admin_socket::bind(&path, listeners).map_err(Failure::unavailable)?;
    drains.local.spawn(admin_socket::serve(
        listener,
        Arc::clone(status),
        drains.local.clone(),
    ));
    Ok(())
}

/// Where this sidecar can be succeeded, and what is asked there.
fn open_upgrade_socket(
    args: &cli::Sidecar,
    listeners: &Listeners,
    feed: &Feed,
    own: upgrade::Own,
    (owned, cache): (watch::Receiver<bool>, Option<Hand>),
    drains: &Drains,
) -> Result<mpsc::Receiver<Request>, Failure> {
    let (requests, requested) = mpsc::channel(REQUESTS);
    let socket = upgrade::socket(
        args.places.upgrade_socket.as_deref(),
        args.source.state.as_deref(),
    );
    let Some(socket) = socket else {
        return Ok(requested);
    };
    let listener = listeners
        .open(&ListenAddress::Unix(socket))
        .context("open the upgrade socket")
        .map_err(Failure::unavailable)?;
    let desk = Desk {
        listeners: listeners.clone(),
        own,
        state: feed.state.clone(),
        cache,
        owned,
        ending: drains.inbound.clone(),
        requests,
        turn: Mutex::default(),
    };
    drains.local.spawn(upgrade::serve(
        listener,
        Arc::new(desk),
        drains.local.clone(),
    ));
    Ok(requested)
}

fn is_the_app(target: &Target) -> bool {
    matches!(target, Target::App(_) | Target::Restart)
}

fn is_for_exec(credential: &CredentialSpec) -> bool {
    let environment = |delivery| matches!(delivery, &Delivery::Environment { .. });
    credential.deliver.iter().any(environment)
}

fn admin_socket_path(args: &cli::Sidecar) -> Option<PathBuf> {
    let in_state = || {
        args.source
            .state
            .as_ref()
            .map(|state| state.join(ADMIN_SOCKET))
    };
    args.places.admin_socket.clone().or_else(in_state)
}
