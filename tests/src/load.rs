//! A load that must not lose a request: connections that are kept, each with one request at a time.
//!
//! A connection that the server ends is replaced, as every client does; a request that was on its way when it ended is
//! a failure, and so is whatever the server did to a connection but to end it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use http::{Request, StatusCode};
use tokio::task::{JoinHandle, JoinSet};

use crate::Client;
use crate::client::Connection;

/// What an answer may take.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Whoever is refused does not ask again at once.
const PAUSE: Duration = Duration::from_millis(10);
/// More are not told.
const TOLD: usize = 20;

#[derive(Clone, Copy)]
enum Version {
    Http1,
    Http2,
}

pub struct Load {
    workers: JoinSet<Tally>,
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
}

/// What came of it.
#[derive(Debug, Default)]
pub struct Tally {
    pub answered: u64,
    pub connections: u64,
    pub failures: Vec<String>,
}

impl Load {
    /// For how long, if it is started by hand, on a machine that does nothing else: `FENDER_LOAD_SECONDS=30`.
    pub fn by_hand() -> Option<Duration> {
        let seconds = std::env::var("FENDER_LOAD_SECONDS").ok()?;
        Some(Duration::from_secs(
            seconds.parse().expect("a number of seconds"),
        ))
    }

    /// So many connections of each version ask for `path` until it is over.
    pub fn start(client: &Client, path: &str, http1: usize, http2: usize) -> Self {
        let (stop, answered) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let mut workers = JoinSet::new();
        let versions = std::iter::repeat_n(Version::Http1, http1)
            .chain(std::iter::repeat_n(Version::Http2, http2));
        for version in versions {
            let worker = Worker {
                client: client.clone(),
                path: path.to_owned(),
                version,
                stop: stop.clone(),
                answered: answered.clone(),
                tally: Tally::default(),
            };
            workers.spawn(worker.run());
        }
        Self {
            workers,
            stop,
            answered,
        }
    }

    /// Requests answered so far.
    pub fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    /// Resolves when so many more were answered.
    pub async fn goes_on_for(&self, requests: u64) {
        let until = self.answered() + requests;
        while self.answered() < until {
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Ends it.
    pub async fn finish(self) -> Tally {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Tally::default();
        for tally in self.workers.join_all().await {
            all.answered += tally.answered;
            all.connections += tally.connections;
            all.failures.extend(tally.failures);
        }
        all
    }
}

struct Worker {
    client: Client,
    path: String,
    version: Version,
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    tally: Tally,
}

impl Worker {
    async fn run(mut self) -> Tally {
        while !self.stop.load(Ordering::Relaxed) {
            match Kept::open(&self.client, self.version).await {
                Ok(connection) => {
                    self.tally.connections += 1;
                    self.ask(connection).await;
                }
                Err(error) => {
                    self.fails(format!("connect: {error:#}"));
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
        self.tally
    }

    /// Until the server ends the connection, or it is over.
    async fn ask(&mut self, mut connection: Kept) {
        while !self.stop.load(Ordering::Relaxed) {
            let offered = tokio::time::timeout(TIMEOUT, connection.offer(&self.path)).await;
            match offered.context("no answer in time").flatten() {
                Ok(Some(StatusCode::OK)) => {
                    self.tally.answered += 1;
                    self.answered.fetch_add(1, Ordering::Relaxed);
                }
                Ok(Some(status)) => self.fails(format!("answered {status}")),
                Ok(None) => match connection.ended().await {
                    Ok(()) => return,
                    Err(error) => return self.fails(format!("ended: {error:#}")),
                },
                Err(error) => return self.fails(format!("{error:#}")),
            }
        }
    }

    fn fails(&mut self, why: String) {
        let version = match self.version {
            Version::Http1 => "HTTP/1.1",
            Version::Http2 => "HTTP/2",
        };
        if self.tally.failures.len() < TOLD {
            self.tally.failures.push(format!("{version}: {why}"));
        }
    }
}

fn is_too_late(error: &std::io::Error) -> bool {
    error.kind() == std::io::ErrorKind::BrokenPipe
}

/// h2 answers the server's ping before it sends what is queued, so that a request can be behind the server's last word on what it
/// takes. That word is a promise that nothing was done for it (RFC 9113, section 6.8), and clients send it again by themselves. A
/// request that the server did take is not ended so.
fn is_not_taken(error: &h2::Error) -> bool {
    error.is_go_away() && error.is_remote() && error.reason() == Some(h2::Reason::NO_ERROR)
}

/// A connection that is kept.
enum Kept {
    Http1(Connection),
    /// By h2 itself, which tells a request that it did not send from one that the server did not take.
    Http2 {
        sender: h2::client::SendRequest<hyper::body::Bytes>,
        driver: JoinHandle<Result<(), h2::Error>>,
    },
}

impl Kept {
    async fn open(client: &Client, version: Version) -> Result<Self> {
        match version {
            Version::Http1 => {
                let connection = client.with_alpn(&[b"http/1.1"]).open().await?;
                Ok(Self::Http1(connection))
            }
            Version::Http2 => {
                let stream = client.with_alpn(&[b"h2"]).connect().await?;
                let (sender, connection) = h2::client::handshake(stream).await?;
                let driver = tokio::spawn(connection);
                Ok(Self::Http2 { sender, driver })
            }
        }
    }

    /// Asks; nothing if the connection was ending and the request never left.
    async fn offer(&mut self, path: &str) -> Result<Option<StatusCode>> {
        match self {
            Self::Http1(connection) => {
                let answer = connection.offer(path).await?;
                Ok(answer.map(|answer| answer.status))
            }
            Self::Http2 { sender, .. } => {
                let request = Request::get(format!("https://localhost{path}")).body(())?;
                let Ok(mut ready) = sender.clone().ready().await else {
                    return Ok(None);
                };
                let response = match ready.send_request(request, true) {
                    Ok((response, _)) => response.await,
                    Err(_) => return Ok(None),
                };
                let response = match response {
                    Err(error) if is_not_taken(&error) => return Ok(None),
                    response => response.context("send the request")?,
                };
                let status = response.status();
                let mut body = response.into_body();
                while let Some(some) = body.data().await {
                    let length = some.context("read the answer")?.len();
                    body.flow_control().release_capacity(length)?;
                }
                Ok(Some(status))
            }
        }
    }

    /// How the server ended it.
    async fn ended(self) -> Result<()> {
        match self {
            Self::Http1(connection) => connection.ended().await,
            Self::Http2 { sender, driver } => {
                drop(sender);
                match driver.await.context("drive the connection")? {
                    // The server had ended it, and our own goodbye came after that.
                    Err(error) if error.get_io().is_some_and(is_too_late) => Ok(()),
                    ended => Ok(ended?),
                }
            }
        }
    }
}
