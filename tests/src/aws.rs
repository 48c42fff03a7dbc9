//! AWS: moto, which answers as its APIs do, and a server of ours for what moto does not do: throttle, refuse, take long, redirect, hand
//! out credentials that end soon.

use std::collections::VecDeque;
use std::io::{BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value, json};

use crate::pki::Authority;
use crate::process::{Process, free_address, wait_for_port};
use crate::python::python;

pub const REGION: &str = "eu-central-1";

/// A moto that knows Secrets Manager, Parameter Store and STS. It believes every signature.
pub struct Moto {
    address: SocketAddr,
    _process: Process,
}

impl Moto {
    /// With its log in `directory`.
    pub fn start(directory: &Path) -> Self {
        let address = free_address();
        let mut command = Command::new(python());
        command
            .env_clear()
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .env("HOME", directory)
            .args(["-m", "moto.server", "-H", "127.0.0.1", "-p"])
            .arg(address.port().to_string());
        let log = directory.join("moto.log");
        let mut process = Process::start("moto", &mut command, &log);
        wait_for_port(address, &mut process);
        Self {
            address,
            _process: process,
        }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// `secretsmanager.PutSecretValue` and the like, as an administrator.
    pub fn call(&self, target: &str, question: &Value) -> Value {
        let service = match target.starts_with("AmazonSSM") {
            true => "ssm",
            false => "secretsmanager",
        };
        let body = question.to_string();
        let mut stream = TcpStream::connect(self.address).expect("connect to moto");
        write!(
            stream,
            "POST / HTTP/1.1\r\nHost: {}\r\nContent-Type: application/x-amz-json-1.1\r\nX-Amz-Target: {target}\r\n\
             Authorization: AWS4-HMAC-SHA256 Credential=admin/20270101/{REGION}/{service}/aws4_request, SignedHeaders=host, Signature=00\r\n\
             Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
            self.address,
            body.len()
        )
        .expect("ask moto");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("moto answers");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
        assert!(head.starts_with("HTTP/1.1 200 "), "{target}: {answer}");
        serde_json::from_str(body).unwrap_or_default()
    }

    pub fn create_secret(&self, name: &str, text: &str) {
        let question = json!({ "Name": name, "SecretString": text, "ClientRequestToken": token() });
        self.call("secretsmanager.CreateSecret", &question);
    }

    /// Rotates: what was current is the previous one.
    pub fn put_secret(&self, name: &str, text: &str) {
        let question =
            json!({ "SecretId": name, "SecretString": text, "ClientRequestToken": token() });
        self.call("secretsmanager.PutSecretValue", &question);
    }

    /// A `SecureString`.
    pub fn put_parameter(&self, name: &str, text: &str) {
        let question =
            json!({ "Name": name, "Value": text, "Type": "SecureString", "Overwrite": true });
        self.call("AmazonSSM.PutParameter", &question);
    }
}

/// The id of a version, which the caller makes.
fn token() -> String {
    let since = SystemTime::UNIX_EPOCH.elapsed().expect("it is later");
    format!("{:032}", since.as_nanos())
}

/// What becomes of a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Answers,
    /// Connections are closed before anything is read.
    Away,
    /// 400 ThrottlingException, to be asked again after so many seconds.
    Throttled(u64),
    /// This status with an error of this code.
    Error(u16, &'static str),
    /// 307 to this address.
    Redirect(SocketAddr),
    /// 200, and nothing that AWS answers.
    Nonsense,
    /// 200, and more than any secret is.
    Endless,
    /// Nothing at all, and the connection stays open.
    Silent,
}

/// An AWS of ours: one secret for all names, and roles by web identity.
pub struct FakeAws {
    pub address: SocketAddr,
    scheme: &'static str,
    state: Arc<Mutex<State>>,
}

struct State {
    mode: Mode,
    value: String,
    /// How long a role is given for, in seconds.
    lasts: u64,
    roles: u64,
    /// Heads and bodies.
    asked: VecDeque<String>,
}

impl FakeAws {
    /// Over TLS, by a certificate of `authority`.
    pub fn start(authority: &Authority) -> Self {
        let issued = authority.issue_for_address(Ipv4Addr::LOCALHOST.into());
        let (chain, key) = issued.identity();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("TLS versions")
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .expect("use the certificate");
        Self::listen(Some(Arc::new(config)))
    }

    pub fn in_the_clear() -> Self {
        Self::listen(None)
    }

    fn listen(tls: Option<Arc<ServerConfig>>) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("listen");
        let address = listener.local_addr().expect("an address");
        let state = Arc::new(Mutex::new(State {
            mode: Mode::Answers,
            value: "canary-0".to_owned(),
            lasts: 3600,
            roles: 0,
            asked: VecDeque::new(),
        }));
        let scheme = if tls.is_some() { "https" } else { "http" };
        let served = Arc::clone(&state);
        // Ends with the process of the test.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (state, tls) = (Arc::clone(&served), tls.clone());
                std::thread::spawn(move || match tls {
                    Some(config) => {
                        let connection = ServerConnection::new(config).expect("a connection");
                        serve(StreamOwned::new(connection, stream), &state);
                    }
                    None => serve(stream, &state),
                });
            }
        });
        Self {
            address,
            scheme,
            state,
        }
    }

    pub fn url(&self) -> String {
        format!("{}://{}", self.scheme, self.address)
    }

    pub fn be(&self, mode: Mode) {
        self.state().mode = mode;
    }

    pub fn write(&self, value: &str) {
        self.state().value = value.to_owned();
    }

    pub fn give_roles_for(&self, seconds: u64) {
        self.state().lasts = seconds;
    }

    /// How many questions had this in them.
    pub fn count(&self, part: &str) -> usize {
        let state = self.state();
        state.asked.iter().filter(|one| one.contains(part)).count()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no test panicked with it")
    }
}

/// One question a connection.
fn serve<S: Read + Write>(stream: S, state: &Mutex<State>) {
    if state.lock().expect("unharmed").mode == Mode::Away {
        return;
    }
    let mut stream = BufReader::new(stream);
    let Some(asked) = question(&mut stream) else {
        return;
    };
    let (mode, answer) = {
        let mut state = state.lock().expect("unharmed");
        state.asked.push_back(asked.clone());
        (state.mode, state.answer(&asked))
    };
    let (status, more, body) = match mode {
        Mode::Answers => (200, String::new(), answer),
        // It has become that since.
        Mode::Away => return,
        Mode::Throttled(seconds) => (
            400,
            format!("Retry-After: {seconds}\r\n"),
            error("ThrottlingException"),
        ),
        Mode::Error(status, code) => (status, String::new(), error(code)),
        Mode::Redirect(to) => (307, format!("Location: http://{to}/\r\n"), String::new()),
        Mode::Nonsense => (200, String::new(), format!("{{ \"{}", value(state))),
        Mode::Endless => (200, String::new(), "canary ".repeat(256 * 1024)),
        Mode::Silent => {
            // Until the other side has had enough.
            let mut one = [0];
            let _ended = stream.read(&mut one);
            return;
        }
    };
    let head = format!(
        "HTTP/1.1 {status} X\r\nContent-Length: {}\r\nConnection: close\r\n{more}\r\n",
        body.len()
    );
    let stream = stream.get_mut();
    let _sent = stream
        .write_all(format!("{head}{body}").as_bytes())
        .and_then(|()| stream.flush());
}

fn value(state: &Mutex<State>) -> String {
    state.lock().expect("unharmed").value.clone()
}

fn error(code: &str) -> String {
    json!({ "__type": code, "message": "in the words of AWS" }).to_string()
}

fn question(stream: &mut impl std::io::BufRead) -> Option<String> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if stream.read_line(&mut head).ok()? == 0 {
            return None;
        }
    }
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        let length = name.eq_ignore_ascii_case("content-length");
        length.then(|| value.trim().parse::<usize>().ok()).flatten()
    });
    let mut body = vec![0; length.unwrap_or_default()];
    stream.read_exact(&mut body).ok()?;
    Some(format!("{head}{}", String::from_utf8_lossy(&body)))
}

impl State {
    fn answer(&mut self, asked: &str) -> String {
        if asked.contains("Action=AssumeRoleWithWebIdentity") {
            self.roles += 1;
            let until = SystemTime::now() + Duration::from_secs(self.lasts);
            let since = until
                .duration_since(SystemTime::UNIX_EPOCH)
                .expect("it is later");
            return format!(
                "<R><Result><Credentials><AccessKeyId>ASIA{}</AccessKeyId><SecretAccessKey>canary-role-key</SecretAccessKey>\
                 <SessionToken>canary-role-token</SessionToken><Expiration>{}</Expiration></Credentials></Result></R>",
                self.roles,
                rfc3339(since.as_secs())
            );
        }
        json!({ "SecretString": self.value, "VersionId": "0", "VersionStages": ["AWSCURRENT"] })
            .to_string()
    }
}

/// <https://howardhinnant.github.io/date_algorithms.html#civil_from_days>
fn rfc3339(seconds: u64) -> String {
    let (days, rest) = (seconds / 86400, seconds % 86400);
    let z = days + 719_468;
    let (era, doe) = (z / 146_097, z % 146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let day = doy - (153 * mp + 2) / 5 + 1;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    let year = yoe + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}
