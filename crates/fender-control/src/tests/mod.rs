//! The control plane as its clients see it: over real TLS and gRPC, in this process, with a clock of its own.

mod administration;
mod attestation;
mod audit;
mod authority;
mod credentials;
mod csr_abuse;
mod distribution;
mod documents;
mod expiry;
mod founding;
mod grpc_abuse;
mod jwt;
mod kubernetes;
mod load;
mod nodes;
mod offline;
mod readmission;
mod renewal;
mod replicas;
mod restart;
mod revisions;
mod revocation;
mod roles;
mod session;
mod skew;
mod sources;
mod telemetry;
mod upstream;
mod vouching;
mod x509;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use fender_api::code::Code;
use fender_api::convert::IssuedSvid;
use fender_api::proto::control::v1 as proto;
use fender_api::proto::control::v1::admin_client::AdminClient;
use fender_api::proto::control::v1::distribution_client::DistributionClient;
use fender_api::proto::control::v1::identity_client::IdentityClient;
use fender_api::tls::{ALPN, Connection, connect};
use fender_config::Source;
use fender_identity::csr::NewKey;
use fender_identity::tls::{self, TlsProfile};
use fender_identity::{Bundle, Bundles, SpiffeId, Svid, TrustDomain};
use fender_providers::environment::Environment;
use fender_runtime::clock::{Clock as _, TestClock, TlsClock, UnixTime};
use fender_runtime::deadline::Deadline;
use fender_runtime::drain::Drain;
use fender_runtime::listen::ListenAddress;
use fender_runtime::program::Runner;
use prost::Message as _;
use tempfile::TempDir;
use tonic::Status;
use tonic::transport::Channel;

use crate::{ControlConfig, Foundation, Running, StartError, start};

const NOW: u64 = 1_800_000_000;
const ORDERS: &str = "spiffe://acme.test/ns/shop/sa/orders";
const INVENTORY: &str = "spiffe://acme.test/ns/shop/sa/inventory";

const MESH: &str = "
apiVersion: fender.dev/v1
kind: Mesh
metadata: { name: mesh }
spec: { trustDomain: acme.test }
";

fn workload(name: &str, rest: &str) -> String {
    format!(
        "---\napiVersion: fender.dev/v1\nkind: Workload\nmetadata: {{ namespace: shop, name: {name}, labels: {{ app: {name} }} }}\nspec:\n  {rest}\n"
    )
}

fn credential(name: &str, path: &Path) -> String {
    format!(
        "---\napiVersion: fender.dev/v1\nkind: Credential\nmetadata: {{ namespace: shop, name: {name} }}\nspec:\n  \
         source: {{ file: {{ path: {}, via: control }} }}\n  \
         deliver: [ {{ file: {{ path: /run/fender/{name}, mode: \"0400\" }} }} ]\n",
        path.display()
    )
}

/// A policy that lets one namespace reach one workload.
fn policy(app: &str, namespace: &str) -> String {
    format!(
        "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{ namespace: shop, name: {app}-callers }}\n\
         spec:\n  selector: {{ matchLabels: {{ app: {app} }} }}\n  action: ALLOW\n  \
         rules: [ {{ from: [ {{ source: {{ namespaces: [ {namespace} ] }} }} ] }} ]\n"
    )
}

/// A data directory, a clock, and a control plane that may be restarted on them.
struct World {
    directory: TempDir,
    clock: Arc<TestClock>,
    drain: Drain,
    running: Running,
}

impl World {
    /// The certificate that follows this one, by a new key.
    async fn next(&self, svid: &Svid) -> Result<Svid, Status> {
        let key = NewKey::generate().unwrap();
        let request = proto::RenewRequest {
            csr: key.csr_der(svid.id()).unwrap(),
            expired: None,
        };
        let answer = IdentityClient::new(self.as_peer(svid).await)
            .renew(request)
            .await?;
        Ok(key.into_svid(issued(answer.into_inner()).chain).unwrap())
    }

    /// Two workloads, one credential for each; one workload nobody can attest to.
    async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let documents = documents(directory.path(), "shop");
        Self::with(directory, documents).await
    }

    async fn with(directory: TempDir, documents: String) -> Self {
        let clock = TestClock::new(at(NOW));
        let drain = Drain::new();
        let config = config(&directory.path().join("data"), Some(documents));
        let running = start(config, clock.clone(), drain.clone()).await.unwrap();
        Self {
            directory,
            clock,
            drain,
            running,
        }
    }

    /// Ends the control plane, in order, and starts another one without documents.
    async fn restart(self) -> Self {
        self.restart_with(None).await.unwrap()
    }

    async fn restart_with(self, documents: Option<String>) -> Result<Self, StartError> {
        self.stop().await.start(documents).await
    }

    /// Ends the control plane, in order.
    async fn stop(self) -> Stopped {
        let Self {
            directory,
            clock,
            drain,
            running,
        } = self;
        let address = running.address;
        drop(running);
        assert!(
            drain.close(Deadline::after(Duration::from_secs(60))).await,
            "it drains by itself"
        );
        Stopped {
            directory,
            clock,
            address,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn now(&self) -> u64 {
        self.clock.now().as_secs()
    }

    /// A long time passes, and the control plane notices: it looks at the wall clock every half minute.
    async fn advance(&self, by: Duration) {
        let config = self.pinned();
        let leaf = self.anonymous().await.server_leaf;
        self.clock.advance(by);
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(31)).await;
        tokio::time::resume();
        eventually(|| async {
            let connection = self.connect(config.clone()).await.ok()?;
            (connection.server_leaf != leaf).then_some(())
        })
        .await;
    }

    fn bundle(&self) -> Bundle {
        let pem = fs::read(self.running.admin_dir.join("bundle.pem")).unwrap();
        Bundle::from_pem("acme.test".parse().unwrap(), &pem).unwrap()
    }

    /// A connection as a workload with a join token makes it: the root's hash is all it knows.
    async fn anonymous(&self) -> Connection {
        self.connect(self.pinned()).await.unwrap()
    }

    fn pinned(&self) -> Arc<rustls::ClientConfig> {
        let trust: TrustDomain = "acme.test".parse().unwrap();
        let clock = Arc::new(TlsClock(self.clock.clone()));
        let pins = self.running.ca_pins.clone();
        tls::client_pinned(&TlsProfile::default(), trust, pins, ALPN, clock).unwrap()
    }

    async fn as_peer(&self, svid: &Svid) -> Channel {
        self.try_as_peer(svid).await.unwrap().channel
    }

    async fn try_as_peer(&self, svid: &Svid) -> Result<Connection, fender_api::tls::ConnectError> {
        let mut bundles = Bundles::new();
        bundles.insert(self.bundle());
        let config = tls::client(
            &TlsProfile::default(),
            Some(svid),
            Arc::new(bundles),
            control(),
            ALPN,
            Arc::new(TlsClock(self.clock.clone())),
        );
        self.connect(config.unwrap()).await
    }

    async fn connect(
        &self,
        config: Arc<rustls::ClientConfig>,
    ) -> Result<Connection, fender_api::tls::ConnectError> {
        let url = format!("https://{}", self.running.address).parse().unwrap();
        connect(
            &url,
            config,
            tls::server_name(&control()),
            Deadline::after(Duration::from_secs(60)),
        )
        .await
    }

    fn admin_svid(&self) -> Svid {
        let read = |name| fs::read(self.running.admin_dir.join(name)).unwrap();
        Svid::from_pem(&read("certificate.pem"), &read("key.pem")).unwrap()
    }

    async fn admin(&self) -> AdminClient<Channel> {
        AdminClient::new(self.as_peer(&self.admin_svid()).await)
    }

    async fn token(
        &self,
        workload: &str,
        ttl_seconds: u64,
    ) -> Result<proto::CreateTokenResponse, Status> {
        let request = proto::CreateTokenRequest {
            workload: workload.to_owned(),
            node: String::new(),
            ttl_seconds,
        };
        self.admin()
            .await
            .create_token(request)
            .await
            .map(|response| response.into_inner())
    }

    async fn attest(&self, secret: &[u8], key: &NewKey, id: &str) -> Result<Vec<Vec<u8>>, Status> {
        let channel = self.anonymous().await.channel;
        attest(&channel, secret, key.csr_der(&id.parse().unwrap()).unwrap())
            .await
            .map(|svid| svid.chain)
    }

    /// A workload that has done everything right.
    async fn attested(&self, workload: &str) -> Svid {
        let token = self.token(workload, 600).await.unwrap();
        let key = NewKey::generate().unwrap();
        let chain = self
            .attest(&token.secret, &key, &token.identity)
            .await
            .unwrap();
        key.into_svid(chain.into_iter().map(Into::into).collect())
            .unwrap()
    }

    async fn apply(&self, documents: String) -> proto::ApplyResponse {
        self.apply_or_try(documents, false).await
    }

    async fn apply_or_try(&self, documents: String, dry_run: bool) -> proto::ApplyResponse {
        let files = vec![proto::SourceFile {
            name: "mesh.yaml".to_owned(),
            text: documents,
        }];
        let request = proto::ApplyRequest {
            files,
            dry_run,
            // Whatever a test takes away, it means to.
            delete_in_use: ["orders", "inventory", "locked"]
                .map(|name| format!("shop/{name}"))
                .to_vec(),
            ..proto::ApplyRequest::default()
        };
        self.admin()
            .await
            .apply(request)
            .await
            .unwrap()
            .into_inner()
    }

    async fn status(&self) -> proto::StatusResponse {
        self.admin()
            .await
            .status(proto::StatusRequest::default())
            .await
            .unwrap()
            .into_inner()
    }

    async fn subscribe(&self, svid: &Svid, running: u64) -> Sidecar {
        Sidecar::subscribe(self.as_peer(svid).await, running)
            .await
            .unwrap()
    }
}

/// What is left of a control plane that has ended.
struct Stopped {
    directory: TempDir,
    clock: Arc<TestClock>,
    address: std::net::SocketAddr,
}

impl Stopped {
    /// Where it was before.
    async fn start(self, documents: Option<String>) -> Result<World, StartError> {
        let drain = Drain::new();
        let config = ControlConfig {
            listen: self.address.to_string().parse().unwrap(),
            ..config(&self.directory.path().join("data"), documents)
        };
        let running = start(config, self.clock.clone(), drain.clone()).await?;
        Ok(World {
            directory: self.directory,
            clock: self.clock,
            drain,
            running,
        })
    }
}

fn config(data_dir: &Path, documents: Option<String>) -> ControlConfig {
    ControlConfig {
        foundation: Foundation {
            data_dir: data_dir.to_owned(),
            store: crate::StorePlace::DataDir,
            admin_dir: None,
            documents: documents.map(|text| {
                vec![Source {
                    name: "mesh.yaml".to_owned(),
                    text,
                }]
            }),
            trust_domain: None,
            sealing: crate::Sealing::DataDirectory,
            replica: None,
            upstream: None,
        },
        listen: "127.0.0.1:0".parse::<ListenAddress>().unwrap(),
        replica_url: None,
        dns_names: vec!["control.internal".to_owned()],
        // What the tests lay beside the data directory.
        allow_dirs: data_dir.parent().map(Path::to_owned).into_iter().collect(),
        programs: Runner::here([PLUGIN.into()]),
        environment: Environment::taken([(
            "SMTP".to_owned(),
            Some(fender_identity::Secret::from("hunter2".to_owned())),
        )]),
        cluster: None,
    }
}

/// What documents may have the control plane run.
const PLUGIN: &str = "/bin/sh";

fn documents(directory: &Path, callers: &str) -> String {
    let (smtp, ledger) = (directory.join("smtp"), directory.join("ledger"));
    [
        MESH.to_owned(),
        workload("orders", "{ attest: [ { token: {} } ], dnsNames: [ orders.shop.internal ], credentials: [ smtp ] }"),
        workload("inventory", "{ attest: [ { token: {} } ], credentials: [ ledger ] }"),
        workload("locked", "{}"),
        policy("inventory", callers),
        credential("smtp", &smtp),
        credential("ledger", &ledger),
    ]
    .concat()
}

fn at(seconds: u64) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(seconds))
}

fn control() -> SpiffeId {
    "spiffe://acme.test/fender/control".parse().unwrap()
}

async fn attest(
    channel: &Channel,
    secret: &[u8],
    csr: Vec<u8>,
) -> Result<proto::SvidResponse, Status> {
    let evidence = proto::attest_request::Evidence::JoinToken(proto::JoinTokenEvidence {
        secret: secret.to_vec(),
    });
    let request = proto::AttestRequest {
        csr,
        evidence: Some(evidence),
        version: "0.1.0".to_owned(),
    };
    IdentityClient::new(channel.clone())
        .attest(request)
        .await
        .map(|response| response.into_inner())
}

#[track_caller]
fn refused<T: std::fmt::Debug>(result: Result<T, Status>) -> Code {
    Code::of(&result.unwrap_err())
}

fn issued(response: proto::SvidResponse) -> IssuedSvid {
    response.try_into().unwrap()
}

/// The far end of a stream.
struct Sidecar {
    reports: tokio::sync::mpsc::Sender<proto::Report>,
    updates: tonic::Streaming<proto::Update>,
}

impl Sidecar {
    async fn subscribe(channel: Channel, running: u64) -> Result<Self, Status> {
        let hello = proto::Hello {
            snapshot_version: running,
            ..proto::Hello::default()
        };
        Self::greet(channel, hello).await
    }

    async fn greet(channel: Channel, hello: proto::Hello) -> Result<Self, Status> {
        let (reports, outgoing) = tokio::sync::mpsc::channel(16);
        let hello = proto::Hello {
            sidecar_version: "0.1.0".to_owned(),
            instance: match hello.instance.as_str() {
                "" => "0123456789abcdef0123456789abcdef".to_owned(),
                instance => instance.to_owned(),
            },
            ..hello
        };
        reports
            .send(report(proto::report::Kind::Hello(hello)))
            .await
            .unwrap();
        let stream = tokio_stream::wrappers::ReceiverStream::new(outgoing);
        let updates = DistributionClient::new(channel)
            .subscribe(stream)
            .await?
            .into_inner();
        Ok(Self { reports, updates })
    }

    async fn update(&mut self) -> Result<proto::update::Kind, Status> {
        let update = self.updates.message().await?;
        let update = update.expect("an update before the end");
        Ok(update.kind.expect("an update that says something"))
    }

    /// The next Snapshot, whatever is said of trust before it.
    async fn next(&mut self) -> Result<proto::Snapshot, Status> {
        loop {
            match self.update().await? {
                proto::update::Kind::Snapshot(snapshot) => return Ok(snapshot),
                proto::update::Kind::Trust(_) | proto::update::Kind::Taken(_) => {}
            }
        }
    }

    /// Until what was reported before the end was taken.
    async fn taken(&mut self) {
        while !matches!(self.update().await.unwrap(), proto::update::Kind::Taken(_)) {}
    }

    /// What is said next, which must be about trust.
    async fn next_trust(&mut self) -> Result<proto::Trust, Status> {
        match self.update().await? {
            proto::update::Kind::Trust(bytes) => Ok(proto::Trust::decode(bytes).unwrap()),
            proto::update::Kind::Snapshot(_) | proto::update::Kind::Taken(_) => {
                panic!("trust goes first")
            }
        }
    }

    async fn report(&self, kind: proto::report::Kind) {
        self.reports.send(report(kind)).await.unwrap();
    }
}

fn report(kind: proto::report::Kind) -> proto::Report {
    proto::Report { kind: Some(kind) }
}

/// Asks until the answer is the wanted one: for what happens a moment after a report was sent.
async fn eventually<T, F: Future<Output = Option<T>>>(mut ask: impl FnMut() -> F) -> T {
    let deadline = Deadline::after(Duration::from_secs(60));
    deadline
        .bound(async {
            loop {
                if let Some(answer) = ask().await {
                    return answer;
                }
                tokio::task::yield_now().await;
            }
        })
        .await
        .expect("it happens in time")
}

/// The same, ten times a second: an address that is refused more often has to wait a minute.
async fn eventually_patient<T, F: Future<Output = Option<T>>>(mut ask: impl FnMut() -> F) -> T {
    eventually(|| {
        let asked = ask();
        async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            asked.await
        }
    })
    .await
}
