//! Against a real HTTPS server that answers whatever a test wants.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use fender_runtime::clock::{TestClock, UnixTime};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType, date_time_ymd};
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;

use super::*;

pub(crate) const NOW: u64 = 1_800_000_000;
const PATIENCE: Duration = Duration::from_secs(60);

/// A server for `127.0.0.1` that sends every connection the same bytes, with its address for `ADDRESS` in them, and says
/// what it was asked.
pub(crate) struct Server {
    address: SocketAddr,
    roots: String,
    pub(crate) asked: mpsc::UnboundedReceiver<String>,
    task: tokio::task::JoinHandle<()>,
}

impl Server {
    pub(crate) async fn answering(answer: impl Into<Vec<u8>>) -> Self {
        Self::named("127.0.0.1", answer.into(), End::Close).await
    }

    async fn named(name: &str, answer: Vec<u8>, end: End) -> Self {
        let (authority, ca) = authority();
        let key = KeyPair::generate().unwrap();
        let mut params = params();
        params.subject_alt_names = vec![match name.parse() {
            Ok(ip) => SanType::IpAddress(ip),
            Err(_) => SanType::DnsName(name.try_into().unwrap()),
        }];
        let issuer = Issuer::from_params(&authority, &ca);
        let leaf = params.signed_by(&key, &issuer).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(
            rustls::crypto::aws_lc_rs::default_provider(),
        ))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![leaf.der().clone()],
            PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der())),
        )
        .unwrap();
        let roots = authority.self_signed(&ca).unwrap().pem();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let answer = match String::from_utf8(answer) {
            Ok(text) => text.replace("ADDRESS", &address.to_string()).into_bytes(),
            Err(error) => error.into_bytes(),
        };
        let (told, asked) = mpsc::unbounded_channel();
        #[expect(clippy::disallowed_methods, reason = "ends with the test")]
        let task = tokio::spawn(async move {
            let acceptor = TlsAcceptor::from(Arc::new(config));
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                let Ok(mut stream) = acceptor.accept(socket).await else {
                    continue;
                };
                let mut request = Vec::new();
                let mut part = [0; 4096];
                while !complete(&request) {
                    match stream.read(&mut part).await {
                        Ok(read) if read > 0 => request.extend_from_slice(&part[..read]),
                        Ok(_) | Err(_) => break,
                    }
                }
                let _ = told.send(String::from_utf8_lossy(&request).into_owned());
                let _ = stream.write_all(&answer).await;
                let _ = stream.flush().await;
                match end {
                    End::Close => drop(stream.shutdown().await),
                    End::Never => std::future::pending().await,
                }
            }
        });
        Self {
            address,
            roots,
            asked,
            task,
        }
    }

    pub(crate) fn client(&self, limit: usize) -> HttpClient {
        HttpClient::new(self.roots.as_bytes(), limit, clock()).unwrap()
    }

    pub(crate) fn roots(&self) -> &str {
        &self.roots
    }

    pub(crate) fn url(&self, path: &str) -> HttpsUrl {
        format!("https://{}{path}", self.address).parse().unwrap()
    }

    async fn get(&self, client: &HttpClient) -> Result<Answer, HttpError> {
        ask(client, &self.url("/x"), Deadline::after(PATIENCE)).await
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[derive(Clone, Copy)]
enum End {
    Close,
    Never,
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

fn clock() -> Arc<TestClock> {
    TestClock::new(UnixTime::since_unix_epoch(Duration::from_secs(NOW)))
}

fn params() -> CertificateParams {
    let mut params = CertificateParams::default();
    let epoch = date_time_ymd(1970, 1, 1);
    params.not_before = epoch + Duration::from_secs(NOW - 3600);
    params.not_after = epoch + Duration::from_secs(NOW + 3600);
    params
}

fn authority() -> (CertificateParams, KeyPair) {
    let mut params = params();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    (params, KeyPair::generate().unwrap())
}

async fn ask(client: &HttpClient, url: &HttpsUrl, deadline: Deadline) -> Result<Answer, HttpError> {
    let question = Question {
        method: Method::Get,
        url,
        headers: &[],
        body: None,
    };
    client.ask(question, deadline).await
}

fn ok(body: &str) -> String {
    format!(
        "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
}

#[tokio::test]
async fn a_question_is_sent_whole_and_its_answer_read_whole() {
    let mut server = Server::answering("HTTP/1.1 201 Created\r\ncontent-length: 2\r\n\r\n{}").await;
    let url = server.url("/apis/x");
    let question = Question {
        method: Method::Post,
        url: &url,
        headers: &[("authorization", Secret::from("Bearer abc".to_owned()))],
        body: Some(Secret::from("{\"a\":1}".to_owned())),
    };
    let client = server.client(1024);
    let answer = client
        .ask(question, Deadline::after(PATIENCE))
        .await
        .unwrap();
    assert_eq!(answer.status, 201);
    assert!(answer.is_success());
    assert_eq!(answer.body.expose(), b"{}");
    let asked = server.asked.recv().await.unwrap();
    assert!(asked.starts_with("POST /apis/x HTTP/1.1\r\n"), "{asked}");
    for part in [
        "authorization: Bearer abc\r\n",
        "content-type: application/json\r\n",
        "\r\n\r\n{\"a\":1}",
    ] {
        assert!(asked.contains(part), "{part} in {asked}");
    }
}

#[tokio::test]
async fn attack_a_redirect_is_not_followed() {
    let mut elsewhere = Server::answering(ok("stolen")).await;
    let location = elsewhere.url("/steal");
    let server = Server::answering(format!(
        "HTTP/1.1 307 Temporary Redirect\r\nlocation: {location}\r\ncontent-length: 0\r\n\r\n"
    ))
    .await;
    let answer = server.get(&server.client(1024)).await.unwrap();
    assert_eq!(answer.status, 307);
    assert!(!answer.is_success());
    assert!(elsewhere.asked.try_recv().is_err());
}

#[tokio::test]
async fn attack_a_server_that_other_roots_vouch_for() {
    let (server, other) = (
        Server::answering(ok("x")).await,
        Server::answering(ok("x")).await,
    );
    let refused = server.get(&other.client(1024)).await.unwrap_err();
    assert!(
        matches!(&refused, HttpError::Unreachable(why) if why.contains("certificate")),
        "{refused}"
    );
}

#[tokio::test]
async fn attack_a_server_of_another_name() {
    let server = Server::named("api.internal", ok("x").into(), End::Close).await;
    let refused = server.get(&server.client(1024)).await.unwrap_err();
    assert!(
        matches!(&refused, HttpError::Unreachable(why) if why.contains("certificate")),
        "{refused}"
    );
}

#[tokio::test]
async fn attack_a_server_whose_certificate_has_expired() {
    let server = Server::answering(ok("x")).await;
    let clock = clock();
    let client = HttpClient::new(server.roots.as_bytes(), 1024, clock.clone()).unwrap();
    assert!(server.get(&client).await.is_ok());
    clock.advance(Duration::from_secs(2 * 3600));
    let client = HttpClient::new(server.roots.as_bytes(), 1024, clock).unwrap();
    assert!(matches!(
        server.get(&client).await,
        Err(HttpError::Unreachable(_))
    ));
}

#[tokio::test]
async fn attack_an_answer_without_end() {
    let limit = 1000;
    let long = "x".repeat(limit + 1);
    for answer in [
        ok(&long),
        format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3e9\r\n{long}\r\n0\r\n\r\n"),
        format!("HTTP/1.1 200 OK\r\n\r\n{long}"),
    ] {
        let server = Server::answering(answer).await;
        assert_eq!(
            server.get(&server.client(limit)).await.unwrap_err(),
            HttpError::TooLarge { limit }
        );
    }
    let server = Server::answering(ok(&"x".repeat(limit))).await;
    assert_eq!(
        server.get(&server.client(limit)).await.unwrap().body.len(),
        limit
    );
}

#[tokio::test]
async fn attack_a_server_that_never_answers() {
    let begun = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nab".to_vec();
    let server = Server::named("127.0.0.1", begun, End::Never).await;
    let deadline = Deadline::after(Duration::from_millis(300));
    let late = ask(&server.client(1024), &server.url("/"), deadline).await;
    assert_eq!(late.unwrap_err(), HttpError::TimedOut);
}

#[tokio::test]
async fn attack_a_header_with_a_line_end() {
    let mut server = Server::answering(ok("x")).await;
    let url = server.url("/");
    let question = Question {
        method: Method::Get,
        url: &url,
        headers: &[("authorization", Secret::from("a\r\nx-evil: b".to_owned()))],
        body: None,
    };
    let refused = server
        .client(10)
        .ask(question, Deadline::after(PATIENCE))
        .await;
    assert_eq!(
        refused.unwrap_err(),
        HttpError::Header {
            name: "authorization"
        }
    );
    assert!(server.asked.try_recv().is_err());
}

#[tokio::test]
async fn an_error_shows_neither_url_nor_secret() {
    let server = Server::answering("nonsense\r\n\r\n").await;
    let url = server.url("/hunter2");
    let question = Question {
        method: Method::Get,
        url: &url,
        headers: &[("x-vault-token", Secret::from("hunter2".to_owned()))],
        body: None,
    };
    let client = server.client(10);
    let error = client
        .ask(question, Deadline::after(PATIENCE))
        .await
        .unwrap_err();
    assert!(!format!("{error} {error:?}").contains("hunter2"));
}

#[test]
fn no_roots_are_no_client() {
    assert!(matches!(
        HttpClient::new(b"", 10, clock()),
        Err(HttpClientError::Roots(_))
    ));
}

/// A server in the clear that answers one question with these bytes.
async fn in_the_clear(answer: String) -> StoreUrl {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    #[expect(clippy::disallowed_methods, reason = "ends with the test")]
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = Vec::new();
        let mut part = [0; 4096];
        while !complete(&request) {
            let read = stream.read(&mut part).await.unwrap();
            request.extend_from_slice(&part[..read]);
        }
        let _ = stream.write_all(answer.as_bytes()).await;
        let _ = stream.shutdown().await;
    });
    format!("http://{address}/v1").parse().unwrap()
}

async fn ask_store(client: &HttpClient, url: &StoreUrl) -> Result<Answer, HttpError> {
    let question = Question {
        method: Method::Get,
        url,
        headers: &[],
        body: None,
    };
    client.ask(question, Deadline::after(PATIENCE)).await
}

#[tokio::test]
async fn a_store_on_loopback_is_asked_in_the_clear_and_says_when_to_come_back() {
    let answer = "HTTP/1.1 429 -\r\nretry-after: 7\r\ncontent-length: 2\r\n\r\n{}".to_owned();
    let url = in_the_clear(answer).await;
    let client = HttpClient::in_the_clear(1024, clock()).unwrap();
    let answer = ask_store(&client, &url).await.unwrap();
    assert_eq!((answer.status, answer.wish), (429, Some(Wish::Seconds(7))));
    assert_eq!(answer.body.expose(), b"{}");
}

#[tokio::test]
async fn attack_no_client_of_one_scheme_speaks_the_other() {
    let mut server = Server::answering(ok("x")).await;
    let url = in_the_clear(ok("x")).await;
    assert!(ask_store(&server.client(1024), &url).await.is_err());
    let client = HttpClient::in_the_clear(1024, clock()).unwrap();
    let url: StoreUrl = server.url("/x").to_string().parse().unwrap();
    let refused = ask_store(&client, &url).await.unwrap_err();
    assert!(
        matches!(&refused, HttpError::Unreachable(why) if why.contains("certificate")),
        "{refused}"
    );
    assert!(server.asked.try_recv().is_err());
}

#[tokio::test]
async fn attack_a_head_without_end() {
    let client = HttpClient::in_the_clear(1024, clock()).unwrap();
    let many = "x: y\r\n".repeat(HEAD_FIELDS + 1);
    let long = format!("x: {}\r\n", "y".repeat(1024 * 1024));
    for fields in [many, long] {
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n{fields}\r\n");
        let url = in_the_clear(head).await;
        let refused = ask_store(&client, &url).await.unwrap_err();
        assert!(matches!(refused, HttpError::Unreachable(_)), "{refused}");
    }
}

#[test]
fn a_client_shows_the_certificate_that_it_was_given() {
    let key = KeyPair::generate().unwrap();
    let chain = params().self_signed(&key).unwrap().pem().into_bytes();
    let pair = fender_identity::tls::PemPair {
        chain,
        key: Secret::from(key.serialize_pem()),
    };
    let shown = ShownCertificate::from_pem(&pair).unwrap();
    let (authority, ca) = authority();
    let roots = authority.self_signed(&ca).unwrap().pem();
    assert!(HttpClient::showing(&shown, roots.as_bytes(), 10, clock()).is_ok());
    assert!(HttpClient::showing(&shown, b"", 10, clock()).is_err());
}
