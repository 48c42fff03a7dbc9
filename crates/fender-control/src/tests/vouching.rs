//! What the tests of attestation by others' word share: a server with roots of its own, and what came of an attempt.

use std::sync::Mutex;

use fender_api::proto::control::v1::attest_request::Evidence;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType, date_time_ymd};
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use sqlx::{ConnectOptions as _, Connection as _, Row as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::*;

/// Valid for as long as any test looks.
pub(super) fn params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(2040, 1, 1);
    params
}

pub(super) fn authority() -> (CertificateParams, KeyPair) {
    let mut params = params();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    (params, KeyPair::generate().unwrap())
}

/// What is answered to a request.
type Answers = dyn Fn(&str) -> (u16, String) + Send;

/// What a server answers, and what it was asked.
#[derive(Default)]
struct Script {
    answer: Mutex<(u16, String)>,
    /// Instead of the same answer to everything.
    answers: Mutex<Option<Box<Answers>>>,
    asked: Mutex<Vec<String>>,
}

/// An HTTPS server on loopback, by roots that its own file holds.
pub(super) struct Server {
    pub(super) url: String,
    pub(super) roots: PathBuf,
    script: Arc<Script>,
    task: tokio::task::JoinHandle<()>,
}

impl Server {
    pub(super) async fn start(roots: PathBuf) -> Self {
        let (authority, ca) = authority();
        let key = KeyPair::generate().unwrap();
        let mut leaf = params();
        leaf.subject_alt_names = vec![SanType::IpAddress("127.0.0.1".parse().unwrap())];
        let leaf = leaf
            .signed_by(&key, &Issuer::from_params(&authority, &ca))
            .unwrap();
        fs::write(&roots, authority.self_signed(&ca).unwrap().pem()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![leaf.der().clone()], key)
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        let script = Arc::new(Script::default());
        let told = Arc::clone(&script);
        #[expect(clippy::disallowed_methods, reason = "ends with the test")]
        let task = tokio::spawn(async move {
            let acceptor = TlsAcceptor::from(Arc::new(config));
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                let Ok(mut stream) = acceptor.accept(socket).await else {
                    continue;
                };
                let mut request = Vec::new();
                let mut part = [0; 8192];
                while !complete(&request) {
                    match stream.read(&mut part).await {
                        Ok(read) if read > 0 => request.extend_from_slice(&part[..read]),
                        Ok(_) | Err(_) => break,
                    }
                }
                let request = String::from_utf8(request).unwrap();
                let (status, body) = match &*told.answers.lock().unwrap() {
                    Some(answers) => answers(&request),
                    None => told.answer.lock().unwrap().clone(),
                };
                told.asked.lock().unwrap().push(request);
                let (extra, body) = match status {
                    307 => (format!("location: {body}\r\n"), String::new()),
                    _ => (String::new(), body),
                };
                let answer = format!(
                    "HTTP/1.1 {status} x\r\n{extra}content-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
                    body.len()
                );
                let _ = stream.write_all(answer.as_bytes()).await;
                let _ = stream.shutdown().await;
            }
        });
        Self {
            url,
            roots,
            script,
            task,
        }
    }

    pub(super) fn answer(&self, status: u16, body: impl Into<String>) {
        *self.script.answer.lock().unwrap() = (status, body.into());
    }

    pub(super) fn answer_by(&self, answers: impl Fn(&str) -> (u16, String) + Send + 'static) {
        *self.script.answers.lock().unwrap() = Some(Box::new(answers));
    }

    /// Everything it was asked, oldest first.
    pub(super) fn asked(&self) -> Vec<String> {
        self.script.asked.lock().unwrap().clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn complete(request: &[u8]) -> bool {
    let text = String::from_utf8_lossy(request);
    let Some((head, body)) = text.split_once("\r\n\r\n") else {
        return false;
    };
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "))
        .map_or(0, |length| length.parse().unwrap());
    body.len() >= length
}

/// A mesh whose spec holds `vouching` besides, and the workload `orders` that attests by `attest`.
pub(super) fn documents_with(vouching: &str, attest: &str) -> String {
    let mesh = format!(
        "apiVersion: fender.dev/v1\nkind: Mesh\nmetadata: {{ name: mesh }}\nspec:\n  trustDomain: acme.test\n{vouching}\n"
    );
    let orders = workload("orders", &format!("{{ attest: [ {attest} ] }}"));
    let inventory = workload("inventory", "{ attest: [ { token: {} } ] }");
    [mesh, orders, inventory].concat()
}

impl World {
    /// Shows `evidence` for a request of this key.
    pub(super) async fn show(
        &self,
        evidence: Evidence,
        key: &NewKey,
        id: &str,
    ) -> Result<proto::SvidResponse, Status> {
        let channel = self.anonymous().await.channel;
        let csr = key.csr_der(&id.parse().unwrap()).unwrap();
        show_on(&channel, evidence, csr).await
    }

    /// What is on record of the newest certificate of an identity.
    pub(super) async fn evidence(&self, id: &str) -> String {
        let file = self.path("data/control.db");
        let options = sqlx::sqlite::SqliteConnectOptions::new().filename(file);
        let mut connection = options.connect().await.unwrap();
        let query = "SELECT evidence FROM certificates WHERE identity = ?1 ORDER BY rowid DESC";
        let row = sqlx::query(query).bind(id).fetch_one(&mut connection).await;
        let evidence = row.unwrap().get(0);
        connection.close().await.unwrap();
        evidence
    }
}

pub(super) async fn show_on(
    channel: &Channel,
    evidence: Evidence,
    csr: Vec<u8>,
) -> Result<proto::SvidResponse, Status> {
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
