//! meshload: as many sidecars as a control plane can hold, simulated in one process.
//!
//! Each has a key, a certificate and a TLS connection of its own, and speaks the real protocol; there is no proxy behind
//! it. Everything runs on one thread, so that it can be pinned to one core while the control plane has another. It does
//! what the lines of its standard input say, one after the other, and answers each with one line of JSON; what the
//! control plane spends meanwhile is measured from outside, between the lines.

mod grpc;
mod mesh;
mod sidecar;

use std::cell::Cell;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use fender_api::admin::AdminIdentity;
use fender_api::proto::control::v1 as proto;
use fender_api::proto::control::v1::admin_client::AdminClient;
use fender_api::tls::{self, ALPN};
use fender_identity::tls::TlsProfile;
use fender_identity::{Bundles, Svid};
use fender_runtime::clock::{self, TlsClock};
use fender_runtime::deadline::Deadline;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use h2::client::SendRequest;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::task::AbortHandle;
use tonic::transport::Channel;

use mesh::Mesh;
use sidecar::{Request, Seen, Server};

pub type Failed = Box<dyn std::error::Error>;

const USAGE: &str = "\
usage: meshload CONTROL-URL ADMIN-DIRECTORY WORKLOADS

then, line by line on standard input:
  found                 apply the mesh's documents
  tokens                make a join token for every workload
  attest N fresh|kept   N workloads attest, each on a connection of its own, or many on one
  connect AT-ONCE       everybody opens their stream and acknowledges the first Snapshot
  renew N               N renewals on the connections that are open
  apply N|all           change what N workloads are told and wait for the last acknowledgement
  status                what the control plane says of them
  disconnect            everybody goes
";

/// Calls in flight, where not said otherwise.
const AT_ONCE: usize = 256;
/// Calls on one anonymous connection, which lives for half a minute only.
const CALLS_EACH: usize = 32;
/// The longest a change may take to reach everybody.
const PATIENCE: Duration = Duration::from_secs(120);

fn main() -> Result<(), Failed> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [url, admin, workloads] = arguments.as_slice() else {
        return Err(USAGE.into());
    };
    let limit = getrlimit(Resource::Nofile);
    setrlimit(
        Resource::Nofile,
        Rlimit {
            current: limit.maximum,
            ..limit
        },
    )?;
    rustls::crypto::aws_lc_rs::default_provider()
        .install_default()
        .map_err(|_| "a cryptography provider is there already")?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let (admin, workloads) = (PathBuf::from(admin), workloads.parse()?);
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let mut load = Load::new(url, admin, workloads).await?;
        let mut lines = BufReader::new(tokio_stdin()?).lines();
        while let Some(line) = lines.next_line().await? {
            let answer = match load.command(&line).await {
                Ok(answer) => answer,
                Err(error) => json!({ "error": error.to_string() }),
            };
            println!("{answer}");
        }
        Ok::<_, Failed>(())
    })?;
    // Leave at once: tearing 10,000 connections down politely is not the point.
    std::process::exit(0);
}

/// Standard input without a thread of its own: it is a pipe.
fn tokio_stdin() -> Result<tokio::net::unix::pipe::Receiver, Failed> {
    let input = std::fs::File::open("/dev/stdin")?;
    Ok(tokio::net::unix::pipe::Receiver::from_file(input)?)
}

struct Load {
    server: Server,
    admin: AdminClient<Channel>,
    mesh: Mesh,
    tokens: Vec<Vec<u8>>,
    /// By workload, as far as they have attested.
    svids: Vec<Rc<Svid>>,
    streams: Vec<(SendRequest<Bytes>, AbortHandle)>,
    seen: Rc<Seen>,
}

impl Load {
    async fn new(url: &str, admin: PathBuf, workloads: usize) -> Result<Self, Failed> {
        let identity = AdminIdentity::load(&admin)?;
        let mut bundles = Bundles::new();
        bundles.insert(identity.bundle().clone());
        let id = sidecar::control()?;
        let (url, clock) = (url.parse()?, Arc::new(TlsClock(clock::system())));
        let bundles = Arc::new(bundles);
        let config = fender_identity::tls::client(
            TlsProfile::default(),
            Some(identity.svid()),
            Arc::clone(&bundles),
            id.clone(),
            ALPN,
            clock,
        )?;
        let name = fender_identity::tls::server_name(&id);
        let deadline = Deadline::after(Duration::from_secs(10));
        let connection = tls::connect(&url, config, name, deadline).await?;
        let address = tokio::net::lookup_host((url.host(), url.port()))
            .await?
            .next();
        Ok(Self {
            server: Server {
                address: address.ok_or("the control plane has no address")?,
                id,
                bundles,
            },
            admin: AdminClient::new(connection.channel)
                .max_decoding_message_size(tls::MAX_STATUS)
                .max_encoding_message_size(tls::MAX_APPLY),
            mesh: Mesh::new(workloads),
            tokens: Vec::new(),
            svids: Vec::new(),
            streams: Vec::new(),
            seen: Rc::default(),
        })
    }

    async fn command(&mut self, line: &str) -> Result<Value, Failed> {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["found"] => self
                .apply()
                .await
                .map(|(seconds, revision)| json!({ "seconds": seconds, "revision": revision })),
            ["tokens"] => self.make_tokens().await,
            ["attest", count, "fresh"] => self.attest(count.parse()?, 1).await,
            ["attest", count, "kept"] => self.attest(count.parse()?, CALLS_EACH).await,
            ["connect", at_once] => self.connect(at_once.parse()?).await,
            ["renew", count] => self.renew(count.parse()?).await,
            ["apply", "all"] => {
                self.mesh.change_everybody();
                self.change(self.streams.len()).await
            }
            ["apply", count] => {
                let count = count.parse()?;
                self.mesh.change(count);
                self.change(count).await
            }
            ["status"] => self.status().await,
            ["disconnect"] => self.disconnect().await,
            _ => Err(USAGE.into()),
        }
    }

    async fn apply(&mut self) -> Result<(f64, u64), Failed> {
        let files = self.mesh.files().into_iter().map(|file| proto::SourceFile {
            name: file.name,
            text: file.text,
        });
        let request = proto::ApplyRequest {
            files: files.collect(),
            ..Default::default()
        };
        let began = Instant::now();
        let answer = self.admin.apply(request).await?.into_inner();
        if let Some(problem) = answer.problems.first() {
            return Err(format!("{}:{}: {}", problem.file, problem.line, problem.message).into());
        }
        Ok((began.elapsed().as_secs_f64(), answer.revision))
    }

    async fn make_tokens(&mut self) -> Result<Value, Failed> {
        let began = Instant::now();
        let admin = self.admin.clone();
        let jobs = (0..self.mesh.len()).map(|at| {
            let mut admin = admin.clone();
            async move {
                let request = proto::CreateTokenRequest {
                    workload: Mesh::workload(at),
                    ttl_seconds: 3600,
                    ..Default::default()
                };
                Ok::<_, Failed>(admin.create_token(request).await?.into_inner().secret)
            }
        });
        let made = in_turns(jobs.collect(), AT_ONCE.min(48)).await;
        self.tokens = made.into_iter().collect::<Result<_, _>>()?;
        Ok(rate(self.tokens.len(), began))
    }

    /// The next workloads that have no certificate yet; so many calls on each connection.
    async fn attest(&mut self, count: usize, each: usize) -> Result<Value, Failed> {
        let first = self.svids.len();
        let last = (first + count).min(self.tokens.len());
        let requests = (first..last).map(|at| Ok((at, Request::new(at)?, self.token(at)?)));
        let mut requests = requests.collect::<Result<Vec<_>, Failed>>()?;
        let mut groups = Vec::new();
        while !requests.is_empty() {
            let rest = requests.split_off(each.min(requests.len()));
            groups.push(std::mem::replace(&mut requests, rest));
        }

        let began = Instant::now();
        let config = self.server.config(None)?;
        let server = &self.server;
        let jobs: Vec<_> = groups
            .into_iter()
            .map(|group| {
                let config = Arc::clone(&config);
                async move {
                    let first = group.first().map_or(0, |(at, _, _)| *at);
                    let connection = server.open(first, config).await?;
                    let mut svids = Vec::new();
                    let calls =
                        group.into_iter().map(|(at, request, token)| {
                            let connection = &connection;
                            async move {
                                Ok::<_, Failed>((at, request.attest(connection, token).await?))
                            }
                        });
                    for call in together(calls.collect()).await {
                        svids.push(call?);
                    }
                    Ok::<_, Failed>(svids)
                }
            })
            .collect();
        let mut svids = Vec::new();
        for done in in_turns(jobs, AT_ONCE.div_ceil(each)).await {
            svids.extend(done?);
        }
        let answer = rate(svids.len(), began);
        svids.sort_by_key(|(at, _)| *at);
        self.svids
            .extend(svids.into_iter().map(|(_, svid)| Rc::new(svid)));
        Ok(answer)
    }

    fn token(&self, at: usize) -> Result<Vec<u8>, Failed> {
        Ok(self
            .tokens
            .get(at)
            .ok_or("no token: make them first")?
            .clone())
    }

    async fn connect(&mut self, at_once: usize) -> Result<Value, Failed> {
        self.seen.forget();
        let began = Instant::now();
        let retries = Cell::new(0_usize);
        let (server, seen, counted) = (&self.server, &self.seen, &retries);
        let jobs: Vec<_> = self
            .svids
            .iter()
            .enumerate()
            .map(|(at, svid)| async move {
                // As a sidecar does: again after a pause that grows, up to the patience of the bench.
                let mut pause = Duration::from_millis(200);
                loop {
                    match sidecar::subscribe(server, at, svid, Rc::clone(seen)).await {
                        Ok(stream) => return Ok::<_, Failed>(stream),
                        Err(error) if began.elapsed() > PATIENCE => return Err(error),
                        Err(_) => {
                            counted.set(counted.get() + 1);
                            tokio::time::sleep(pause + Duration::from_millis((at % 200) as u64))
                                .await;
                            pause = (pause * 2).min(Duration::from_secs(2));
                        }
                    }
                }
            })
            .collect();
        for stream in in_turns(jobs, at_once).await {
            self.streams.push(stream?);
        }
        let connected = began.elapsed().as_secs_f64();
        let wanted = self.streams.len();
        self.wait(|seen| seen.total() >= wanted).await?;
        Ok(json!({
            "streams": wanted,
            "retries": retries.get(),
            "connected_seconds": connected,
            "seconds": began.elapsed().as_secs_f64(),
        }))
    }

    async fn renew(&mut self, count: usize) -> Result<Value, Failed> {
        if self.streams.is_empty() {
            return Err("nobody is connected".into());
        }
        let mut jobs = Vec::new();
        for (at, (connection, _)) in self.streams.iter().enumerate().cycle().take(count) {
            let request = Request::new(at)?;
            jobs.push(async move { request.renew(connection).await.map(drop) });
        }
        let began = Instant::now();
        for done in in_turns(jobs, AT_ONCE).await {
            done?;
        }
        Ok(rate(count, began))
    }

    async fn change(&mut self, touched: usize) -> Result<Value, Failed> {
        self.seen.forget();
        let began = Instant::now();
        let (answered, revision) = self.apply().await?;
        self.wait(|seen| seen.of(revision).0 >= touched).await?;
        let (acks, last) = self.seen.of(revision);
        let others = self.seen.total() - acks;
        if acks != touched || others != 0 {
            return Err(format!(
                "{touched} were touched, {acks} acknowledged, and {others} something else"
            )
            .into());
        }
        Ok(json!({
            "acks": acks,
            "answered_seconds": answered,
            "seconds": last.saturating_duration_since(began).as_secs_f64(),
        }))
    }

    async fn wait(&self, holds: impl Fn(&Seen) -> bool) -> Result<(), Failed> {
        let waiting = async {
            loop {
                let changed = self.seen.changed.notified();
                if let Some(failure) = self.seen.failures.borrow().first() {
                    return Err(Failed::from(failure.clone()));
                }
                if holds(&self.seen) {
                    return Ok(());
                }
                changed.await;
            }
        };
        tokio::time::timeout(PATIENCE, waiting)
            .await
            .map_err(|_| format!("only {} acknowledged in time", self.seen.total()))?
    }

    /// Page by page, as `fender status` reads it.
    async fn status(&mut self) -> Result<Value, Failed> {
        let began = Instant::now();
        let (mut workloads, mut after) = (Vec::new(), String::new());
        loop {
            let request = proto::StatusRequest {
                after,
                ..Default::default()
            };
            let page = self.admin.status(request).await?.into_inner();
            workloads.extend(page.workloads);
            after = page.next;
            if after.is_empty() {
                break;
            }
        }
        let sidecars = workloads.iter().flat_map(|workload| &workload.sidecars);
        let issued: u64 = workloads
            .iter()
            .map(|workload| workload.certificates_issued)
            .sum();
        Ok(json!({
            "sidecars": sidecars.clone().count(),
            "behind": sidecars.filter(|sidecar| sidecar.snapshot_sent != sidecar.snapshot_acked).count(),
            "certificates": issued,
            "seconds": began.elapsed().as_secs_f64(),
        }))
    }

    async fn disconnect(&mut self) -> Result<Value, Failed> {
        let streams = self.streams.len();
        for (_, task) in self.streams.drain(..) {
            task.abort();
        }
        tokio::task::yield_now().await;
        Ok(json!({ "streams": streams }))
    }
}

fn rate(count: usize, began: Instant) -> Value {
    let seconds = began.elapsed().as_secs_f64();
    json!({ "count": count, "seconds": seconds, "per_second": count as f64 / seconds })
}

/// All of these futures at the same time.
async fn together<T>(jobs: Vec<impl Future<Output = T>>) -> Vec<T> {
    let count = jobs.len();
    in_turns(jobs, count).await
}

/// These futures, so many at a time, on this task; the results in the order of the futures.
async fn in_turns<T>(jobs: Vec<impl Future<Output = T>>, at_once: usize) -> Vec<T> {
    let jobs = jobs.into_iter().enumerate();
    let mut waiting = jobs.map(|(at, job)| async move { (at, job.await) });
    let mut running: FuturesUnordered<_> = waiting.by_ref().take(at_once.max(1)).collect();
    let mut results = Vec::new();
    while let Some(result) = running.next().await {
        results.push(result);
        running.extend(waiting.next());
    }
    results.sort_by_key(|(at, _)| *at);
    results.into_iter().map(|(_, result)| result).collect()
}
