//! Credentials are served over HTTP on loopback: to whoever shows its token, and not to whoever can merely make the
//! application send a request (DESIGN §9).

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use fender_tests::pki::{Authority, Template};
use fender_tests::process::{PATIENCE, binary, free_address, output, wait_for_port};
use fender_tests::python::script;
use fender_tests::{Client, Process, wait_until};
use tempfile::TempDir;

use crate::standalone::{CALLER, ORDERS};

/// The value; nothing that Fender writes but its answer may hold it.
const CANARY: &str = "canary-51c7fa90-url";
const AWS: &str = r#"{"AccessKeyId":"AKIDEXAMPLE","SecretAccessKey":"wJalrXUtnFEMI","Token":"session","Expiration":"2099-01-01T00:00:00Z"}"#;

/// A sidecar that serves credentials at a URL, before an application that fetches whatever it is told to.
struct Served {
    directory: TempDir,
    authority: Authority,
    inbound: SocketAddr,
    url: SocketAddr,
    _app: Process,
}

impl Served {
    fn new() -> Self {
        let directory = tempfile::Builder::new()
            .prefix("fender-url-")
            .tempdir()
            .unwrap();
        let path = |name: &str| directory.path().join(name);
        let authority = Authority::new("example.org");
        let identity = path("identity");
        authority.issue(&Template::svid(ORDERS)).write(&identity);
        authority.write_bundle(&identity);
        fs::write(path("smtp"), CANARY).unwrap();
        fs::write(path("aws"), AWS).unwrap();
        fs::create_dir(path("tokens")).unwrap();
        let (inbound, url, app) = (free_address(), free_address(), free_address());
        let (identity, own) = (identity.display(), directory.path().display());
        let text = format!(
            r#"apiVersion: fender.dev/v1
kind: Sidecar
metadata: {{ namespace: shop, name: orders }}
spec:
  identity: {{ files: {{ certificate: {identity}/certificate.pem, key: {identity}/key.pem, bundle: {identity}/bundle.pem }} }}
  inbound: [ {{ listen: "{inbound}", app: "{app}", protocol: http }} ]
  credentials: [ smtp, aws ]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{ namespace: shop, name: callers }}
spec:
  action: ALLOW
  rules: [ {{ from: [ {{ source: {{ serviceAccounts: [ shop/caller ] }} }} ] }} ]
---
apiVersion: fender.dev/v1
kind: Credential
metadata: {{ namespace: shop, name: smtp }}
spec:
  source: {{ file: {{ path: {own}/smtp }} }}
  deliver:
    - url: {{ token: {{ path: {own}/tokens/app, storage: disk }} }}
    - url: {{ token: {{ path: {own}/tokens/job, mode: "0440", storage: disk }} }}
---
apiVersion: fender.dev/v1
kind: Credential
metadata: {{ namespace: shop, name: aws }}
spec:
  source: {{ file: {{ path: {own}/aws }} }}
  deliver: [ {{ url: {{ name: role, form: aws, token: {{ path: {own}/tokens/aws, storage: disk }} }} }} ]
"#
        );
        fs::write(path("sidecar.yaml"), text).unwrap();
        let mut command = script("fetches.py");
        command.arg(app.port().to_string());
        let mut process = Process::start("app", &mut command, &path("app.log"));
        wait_for_port(app, &mut process);
        Self {
            directory,
            authority,
            inbound,
            url,
            _app: process,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn command(&self, url: &str) -> Command {
        let mut command = Command::new(binary());
        command
            .env_clear()
            .args(["--log", "debug", "sidecar", "--config"]);
        command.arg(self.path("sidecar.yaml"));
        command.arg("--admin-socket").arg(self.path("admin.sock"));
        command.args(["--credentials-url", url]);
        command
    }

    fn start(&self) -> Process {
        let mut command = self.command(&self.url.to_string());
        let mut process = Process::start("sidecar", &mut command, &self.path("log"));
        process.wait_ready(&self.path("admin.sock"));
        process
    }

    fn token(&self, consumer: &str) -> String {
        fs::read_to_string(self.path("tokens").join(consumer)).unwrap()
    }

    /// What is answered to these bytes: status, and everything as text.
    fn say(&self, bytes: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(self.url).unwrap();
        // It may be refused before all of it is sent.
        let _ = stream.write_all(bytes.as_bytes());
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        let text = String::from_utf8_lossy(&answer).into_owned();
        let status = text.get(9..12).and_then(|digits| digits.parse().ok());
        (status.unwrap_or(0), text)
    }

    /// Asks as a consumer does, with what is to be different.
    fn ask(&self, path: &str, authorization: &str, more: &str) -> (u16, String) {
        self.say(&format!(
            "GET {path} HTTP/1.1\r\nHost: {}\r\n{authorization}{more}\r\n",
            self.url
        ))
    }

    fn get(&self, name: &str, token: &str) -> (u16, String) {
        let authorization = format!("Authorization: Bearer {token}\r\n");
        self.ask(&format!("/v1/credentials/{name}"), &authorization, "")
    }
}

#[test]
fn whoever_shows_its_token_gets_the_value_and_nobody_else() {
    let served = Served::new();
    let sidecar = served.start();
    let tokens = ["app", "job", "aws"].map(|consumer| served.token(consumer));
    for token in &tokens {
        assert_eq!(token.len(), 64, "256 bits");
        assert!(token.bytes().all(|byte| byte.is_ascii_hexdigit()));
    }
    let mode = |name: &str| {
        let file = fs::metadata(served.path("tokens").join(name)).unwrap();
        file.permissions().mode() & 0o7777
    };
    assert_eq!((mode("app"), mode("job")), (0o400, 0o440));
    let [app, job, aws] = &tokens;
    for token in [app, job] {
        let (status, text) = served.get("smtp", token);
        assert_eq!(status, 200, "{text}");
        assert!(text.ends_with(&format!("\r\n\r\n{CANARY}")), "{text}");
        assert!(
            text.to_lowercase().contains("cache-control: no-store"),
            "{text}"
        );
    }
    // Another's token, none, and a credential that is not there: all the same.
    let (status, nobodys) = served.get("nothing", app);
    assert_eq!(status, 401);
    let close = format!("{}0", &app[..63]);
    let other = if close == *app {
        format!("{}1", &app[..63])
    } else {
        close
    };
    for token in [
        aws,
        &other,
        &app[..63].to_owned(),
        &format!("{app}0"),
        &String::new(),
    ] {
        assert_eq!(served.get("smtp", token), (401, nobodys.clone()));
    }
    assert_eq!(
        served.ask("/v1/credentials/smtp", "", ""),
        (401, nobodys.clone())
    );
    let basic = format!("Authorization: Basic {app}\r\n");
    assert_eq!(served.ask("/v1/credentials/smtp", &basic, "").0, 401);
    assert_eq!(
        served.get("role", aws).0,
        401,
        "another form is another path"
    );

    fs::write(served.path("smtp"), "another value").unwrap();
    wait_until("the change is served", PATIENCE, || {
        served.get("smtp", app).1.ends_with("another value")
    });
    fs::remove_file(served.path("smtp")).unwrap();
    wait_until("it is withdrawn", PATIENCE, || {
        let (status, text) = served.get("smtp", app);
        assert!(!text.contains(CANARY));
        matches!(status, 404 | 401)
    });
    drop(sidecar);
    let log = fs::read_to_string(served.path("log")).unwrap();
    for secret in [CANARY, app, job, aws] {
        assert!(!log.contains(secret), "{log}");
    }

    // Another process, other tokens.
    fs::write(served.path("smtp"), CANARY).unwrap();
    let _sidecar = served.start();
    assert_ne!(served.token("app"), *app);
    assert_eq!(served.get("smtp", &served.token("app")).0, 200);
    assert_eq!(served.get("smtp", app).0, 401);
}

#[test]
fn attack_a_request_that_a_consumer_would_not_make_itself_is_refused_with_the_right_token_too() {
    let served = Served::new();
    let _sidecar = served.start();
    let token = served.token("app");
    let bearer = format!("Authorization: Bearer {token}\r\n");
    let (path, url) = ("/v1/credentials/smtp", served.url);
    let port = url.port();
    // So many are not answered in a second: each is asked until it is.
    let refused = |status: u16, request: &str| {
        wait_until(request, PATIENCE, || {
            let (answered, text) = served.say(request);
            assert!(!text.contains(CANARY), "{request}{text}");
            assert!([status, 429].contains(&answered), "{answered} to {request}");
            answered == status
        });
    };
    for field in [
        "Origin: http://127.0.0.1",
        "Origin: null",
        "Forwarded: for=10.0.0.1",
        "X-Forwarded-For: 127.0.0.1",
        "X-Forwarded-Host: localhost",
        "X_Forwarded_For: 127.0.0.1",
        "X-Real-IP: 127.0.0.1",
        "Via: 1.1 proxy",
        "Sec-Fetch-Site: same-origin",
        "Referer: http://attacker.example/",
    ] {
        let head = format!("GET {path} HTTP/1.1\r\nHost: {url}\r\n{bearer}{field}\r\n\r\n");
        refused(403, &head);
    }
    for host in [
        "attacker.example".to_owned(),
        format!("attacker.example:{port}"),
        format!("127.0.0.1.attacker.example:{port}"),
        "127.0.0.1".to_owned(),
        format!("127.0.0.1:{}", port - 1),
        format!("127.1:{port}"),
        String::new(),
    ] {
        refused(
            403,
            &format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n{bearer}\r\n"),
        );
    }
    let twice =
        format!("GET {path} HTTP/1.1\r\nHost: {url}\r\nHost: attacker.example\r\n{bearer}\r\n");
    refused(403, &twice);
    let absolute =
        format!("GET http://attacker.example{path} HTTP/1.1\r\nHost: {url}\r\n{bearer}\r\n");
    refused(403, &absolute);
    for method in ["POST", "PUT", "HEAD", "OPTIONS", "TRACE", "DELETE"] {
        refused(
            405,
            &format!("{method} {path} HTTP/1.1\r\nHost: {url}\r\n{bearer}\r\n"),
        );
    }
    for target in [
        "/v1/credentials/smtp?x",
        "/v1/credentials/%73mtp",
        "/v1/credentials//smtp",
        "//v1/credentials/smtp",
        "/v1/credentials/x/../smtp",
        "/v1/./credentials/smtp",
        "/v1/credentials/smtp/",
        "/V1/credentials/smtp",
        "/v1/credentials/",
        "/",
    ] {
        refused(
            404,
            &format!("GET {target} HTTP/1.1\r\nHost: {url}\r\n{bearer}\r\n"),
        );
    }
    let start = format!("GET {path} HTTP/1.1\r\nHost: {url}\r\n{bearer}");
    refused(400, &format!("{start}Content-Length: 3\r\n\r\nabc"));
    refused(
        400,
        &format!("{start}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    );
    refused(
        400,
        &format!("{start}Upgrade: h2c\r\nConnection: upgrade\r\n\r\n"),
    );
    refused(
        400,
        &format!("GET {path} HTTP/1.0\r\nHost: {url}\r\n{bearer}\r\n"),
    );
    refused(401, &format!("{start}{bearer}\r\n"));
    // A head without an end.
    let (status, text) = served.say(&format!("{start}X: {}\r\n\r\n", "a".repeat(64 * 1024)));
    assert!(status != 200 && !text.contains(CANARY), "{status} {text}");
    assert_eq!(served.get("smtp", &token).0, 200);
}

/// How many of ten thousand requests, which several callers make as fast as they can, are answered with this; and how long all of them took.
fn flood(served: &Served, token: &str, answered: u16, beside: impl FnOnce()) -> (u32, Duration) {
    const CALLERS: u32 = 4;
    const EACH: u32 = 2500;
    let count = AtomicU32::new(0);
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..CALLERS {
            scope.spawn(|| {
                for _ in 0..EACH {
                    let (status, text) = served.get("smtp", token);
                    // Nothing at all where every connection was taken for too long.
                    assert!([answered, 429, 0].contains(&status), "{status}");
                    assert_eq!(text.contains(CANARY), status == 200);
                    count.fetch_add(u32::from(status == answered), Ordering::Relaxed);
                }
            });
        }
        beside();
    });
    let (count, took) = (count.into_inner(), begun.elapsed());
    println!(
        "{} requests in {took:?}: {count} of {answered}",
        CALLERS * EACH
    );
    (count, took)
}

/// So many at once, and so many in each second: no machine is too slow for fewer.
fn at_most(each_second: u32, took: Duration) -> u32 {
    each_second + (f64::from(each_second) * took.as_secs_f64()).ceil() as u32
}

#[test]
fn attack_guessing_without_end_takes_nothing_from_consumers() {
    /// As the guide has it.
    const STRANGERS: u32 = 20;
    let served = Served::new();
    let _sidecar = served.start();
    let token = served.token("app");
    let (count, took) = flood(&served, &"0".repeat(64), 401, || {
        for _ in 0..10 {
            assert_eq!(served.get("smtp", &token).0, 200);
        }
    });
    assert!(
        (1..=at_most(STRANGERS, took)).contains(&count),
        "{count} in {took:?}"
    );
}

#[test]
fn attack_a_consumer_that_asks_without_end_is_bounded_and_takes_nothing_from_another() {
    /// As the guide has it.
    const CONSUMER: u32 = 100;
    let served = Served::new();
    let _sidecar = served.start();
    let (app, job) = (served.token("app"), served.token("job"));
    let (count, took) = flood(&served, &app, 200, || {
        for _ in 0..10 {
            assert_eq!(served.get("smtp", &job).0, 200);
        }
    });
    assert!(
        (1..=at_most(CONSUMER, took)).contains(&count),
        "{count} in {took:?}"
    );
}

#[tokio::test]
async fn attack_an_application_that_fetches_what_it_is_told_to_gets_no_credential() {
    let served = Served::new();
    let _sidecar = served.start();
    let issued = served.authority.issue(&Template::svid(CALLER));
    let client = Client::new(
        &[served.authority.root()],
        Some(issued.identity()),
        served.inbound,
    );
    let fetched = async |url: &str| {
        let answer = client.get(&format!("/fetch?{url}")).await.unwrap();
        assert_eq!(answer.status, 200);
        answer.text()
    };
    // The application is as careless as it says.
    let marker = served.path("marker");
    fs::write(&marker, "fetched").unwrap();
    let came = fetched(&format!("file://{}", marker.display())).await;
    assert!(came.ends_with(" fetched"), "{came}");
    for url in [
        format!("http://{}/v1/credentials/smtp", served.url),
        format!("http://localhost:{}/v1/credentials/smtp", served.url.port()),
        format!("http://{}/v1/aws/role", served.url),
        format!("http://user:pass@{}/v1/aws/role", served.url),
    ] {
        let came = fetched(&url).await;
        assert!(
            !came.contains(CANARY) && !came.contains("AKIDEXAMPLE"),
            "{came}"
        );
        assert!(
            came.starts_with("401 ") || came.starts_with("000 "),
            "{url}: {came}"
        );
    }
}

#[test]
fn an_aws_sdk_finds_its_credentials_as_in_a_container_of_aws() {
    let served = Served::new();
    let _sidecar = served.start();
    let found = |token: &str| {
        let mut command = script("aws.py");
        command
            .env("HOME", served.directory.path())
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .env(
                "AWS_CONTAINER_CREDENTIALS_FULL_URI",
                format!("http://{}/v1/aws/role", served.url),
            )
            .env(
                "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
                served.path("tokens").join(token),
            );
        let output = command.output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (
            output.status.success(),
            text(&output.stdout),
            text(&output.stderr),
        )
    };
    let (_, out, err) = found("aws");
    assert_eq!(
        out, "container-role AKIDEXAMPLE wJalrXUtnFEMI session\n",
        "{err}"
    );
    let (success, out, _) = found("app");
    assert!(
        !success && out.is_empty(),
        "another consumer's token: {out}"
    );
}

#[test]
fn what_an_sdk_could_not_read_is_not_served_to_one() {
    let served = Served::new();
    fs::write(served.path("aws"), "hunter2 is no JSON").unwrap();
    let output = served.command(&served.url.to_string()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(64), "{text}");
    assert!(
        text.contains("AccessKeyId") && !text.contains("hunter2"),
        "{text}"
    );
    assert!(
        !served.path("tokens/aws").exists(),
        "nothing is left behind"
    );
}

#[test]
fn attack_a_url_is_on_loopback_and_its_port_nobody_elses() {
    let served = Served::new();
    let fender = binary();
    for address in ["0.0.0.0:8201", "10.0.0.1:8201", "[::]:8201", "127.0.0.1:0"] {
        let (code, _, err) = output(
            &fender,
            &["sidecar", "--config", "/x", "--credentials-url", address],
        );
        assert_eq!(code, 64, "{err}");
        assert!(err.contains("loopback"), "{err}");
    }
    let _squatter = std::net::TcpListener::bind(served.url).unwrap();
    let output = served.command(&served.url.to_string()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(69), "{text}");
    assert!(text.contains("--credentials-url"), "{text}");
}
