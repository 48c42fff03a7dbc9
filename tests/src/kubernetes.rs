//! The API of a cluster as far as Secrets go, since no cluster can be had here. It answers as Kubernetes documents it: lists,
//! watches with a history, bookmarks and 410, and rules that name single Secrets (`resourceNames`), which let in only whoever
//! asks for exactly one of them. It checks the token it is shown, and writes down what it was asked.
//! <https://kubernetes.io/docs/reference/using-api/api-concepts/>

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value, json};

use crate::pki::Authority;

/// The beginning of every token; nothing that Fender writes may hold it.
pub const TOKEN: &str = "canary-service-account-token-";

const PATIENCE: Duration = Duration::from_secs(20);

/// What becomes of a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Answers,
    /// Connections are closed before anything is read.
    Away,
    /// This status, and after how many seconds to come again.
    Status(u16, Option<u64>),
    /// 200, and no answer that an API gives.
    Nonsense,
    /// Lists are answered, and what a watch sends is one line without end.
    Endless,
}

pub struct Api {
    pub address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    mode: Mode,
    tokens: BTreeSet<String>,
    made: u64,
    /// Of the one Role there is: whose names, and what may be done with them.
    names: BTreeSet<String>,
    verbs: BTreeSet<&'static str>,
    /// By namespace and name: as JSON.
    secrets: BTreeMap<(String, String), Value>,
    version: u64,
    history: Vec<Happened>,
    /// Up to here nothing is remembered.
    forgotten: u64,
    /// A watch that began before the newest of these ends: properly, or in the middle of a chunk.
    closed: u64,
    cut: u64,
    asked: Vec<String>,
}

struct Happened {
    version: u64,
    /// None: a bookmark, or whatever else everybody is sent.
    whose: Option<(String, String)>,
    line: String,
}

impl Api {
    /// At an address of loopback, with a certificate of `authority`.
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
        let config = Arc::new(config);
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("listen");
        let address = listener.local_addr().expect("an address");
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                mode: Mode::Answers,
                tokens: BTreeSet::new(),
                made: 0,
                names: BTreeSet::new(),
                verbs: ["list", "watch"].into(),
                secrets: BTreeMap::new(),
                version: 100,
                history: Vec::new(),
                forgotten: 0,
                closed: 0,
                cut: 0,
                asked: Vec::new(),
            }),
            changed: Condvar::new(),
        });
        let served = Arc::clone(&shared);
        // Ends with the process of the test.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (shared, config) = (Arc::clone(&served), Arc::clone(&config));
                std::thread::spawn(move || serve(stream, config, &shared));
            }
        });
        Self { address, shared }
    }

    pub fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// A file with the one token that is known from now on, put in place at once.
    pub fn write_token(&self, path: &Path) {
        let token = self.token();
        let new = path.with_extension("new");
        fs::write(&new, token).expect("write a file");
        fs::rename(new, path).expect("put a file in its place");
    }

    /// The one token that is known from now on.
    pub fn token(&self) -> String {
        let mut state = self.state();
        state.made += 1;
        let token = format!("{TOKEN}{}", state.made);
        state.tokens = [token.clone()].into();
        token
    }

    /// No token is known any more.
    pub fn forget_tokens(&self) {
        self.state().tokens.clear();
    }

    /// What becomes of questions from now on; of a watch as well.
    pub fn be(&self, mode: Mode) {
        self.change(|state| {
            state.mode = mode;
            state.version += 1;
            state.cut = state.version;
        });
    }

    /// Whether the Role names this Secret. A watch goes on as it is.
    pub fn allow(&self, name: &str, allowed: bool) {
        let mut state = self.state();
        match allowed {
            true => state.names.insert(name.to_owned()),
            false => state.names.remove(name),
        };
    }

    /// Whether the Role lets Secrets be watched, and not only listed.
    pub fn allow_watching(&self, allowed: bool) {
        let mut state = self.state();
        match allowed {
            true => state.verbs.insert("watch"),
            false => state.verbs.remove("watch"),
        };
    }

    /// Makes a Secret, or changes it.
    pub fn write(&self, namespace: &str, name: &str, data: &[(&str, &[u8])]) {
        self.put(namespace, name, data, false);
    }

    /// Makes a Secret that nobody may change any more.
    pub fn write_immutable(&self, namespace: &str, name: &str, data: &[(&str, &[u8])]) {
        self.put(namespace, name, data, true);
    }

    fn put(&self, namespace: &str, name: &str, data: &[(&str, &[u8])], immutable: bool) {
        let whose = (namespace.to_owned(), name.to_owned());
        let data: serde_json::Map<_, _> = data
            .iter()
            .map(|(key, value)| ((*key).to_owned(), json!(STANDARD.encode(value))))
            .collect();
        self.change(|state| {
            state.version += 1;
            let mut secret = json!({
                "kind": "Secret", "apiVersion": "v1",
                "metadata": {
                    "name": name, "namespace": namespace, "uid": "5f0f4a50-6f2e-4a52-8f5f-3d1f6a3a7c11",
                    "resourceVersion": state.version.to_string(), "creationTimestamp": "2026-01-01T00:00:00Z",
                    "managedFields": [{ "manager": "kubectl-create", "operation": "Update", "apiVersion": "v1",
                        "fieldsType": "FieldsV1", "fieldsV1": { "f:data": { ".": {}, "f:password": {} } } }]
                },
                "data": data, "type": "Opaque"
            });
            if immutable {
                secret["immutable"] = json!(true);
            }
            let known = state.secrets.insert(whose.clone(), secret.clone());
            let kind = if known.is_some() { "MODIFIED" } else { "ADDED" };
            state.happened(Some(whose), kind, &secret);
        });
    }

    pub fn delete(&self, namespace: &str, name: &str) {
        let whose = (namespace.to_owned(), name.to_owned());
        self.change(|state| {
            state.version += 1;
            let mut secret = state.secrets.remove(&whose).expect("there is a Secret");
            secret["metadata"]["resourceVersion"] = json!(state.version.to_string());
            state.happened(Some(whose), "DELETED", &secret);
        });
    }

    /// Tells every watch how far the history has come.
    pub fn bookmark(&self) {
        self.change(|state| {
            state.version += 1;
            let object = json!({
                "kind": "Secret", "apiVersion": "v1",
                "metadata": { "resourceVersion": state.version.to_string(), "creationTimestamp": null }
            });
            state.happened(None, "BOOKMARK", &object);
        });
    }

    /// Every watch is told of another Secret than it asked for.
    pub fn tell_of(&self, name: &str, data: Value) {
        self.change(|state| {
            state.version += 1;
            let object = json!({
                "kind": "Secret", "apiVersion": "v1",
                "metadata": { "name": name, "namespace": "shop", "resourceVersion": state.version.to_string() },
                "data": data
            });
            state.happened(None, "MODIFIED", &object);
        });
    }

    /// Nothing that has happened is remembered, and every watch is told so.
    pub fn compact(&self) {
        self.change(|state| {
            state.version += 1;
            state.forgotten = state.version;
            let status = json!({
                "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                "message": "too old resource version", "reason": "Expired", "code": 410
            });
            state.happened(None, "ERROR", &status);
        });
    }

    /// Every watch ends as it does after its time.
    pub fn close(&self) {
        self.change(|state| {
            state.version += 1;
            state.closed = state.version;
        });
    }

    /// Every watch breaks off.
    pub fn cut(&self) {
        self.change(|state| {
            state.version += 1;
            state.cut = state.version;
        });
    }

    /// What was asked, each as its path.
    pub fn asked(&self) -> Vec<String> {
        self.state().asked.clone()
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state());
        self.shared.changed.notify_all();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().expect("nobody panicked")
    }
}

impl State {
    fn happened(&mut self, whose: Option<(String, String)>, kind: &str, object: &Value) {
        let line = json!({ "type": kind, "object": object }).to_string();
        self.history.push(Happened {
            version: self.version,
            whose,
            line,
        });
    }
}

type Tls = StreamOwned<ServerConnection, TcpStream>;

/// One connection, with one question after another until one is for a watch.
fn serve(stream: TcpStream, config: Arc<ServerConfig>, shared: &Shared) {
    if shared.state.lock().expect("nobody panicked").mode == Mode::Away {
        return;
    }
    let patient = stream
        .set_read_timeout(Some(PATIENCE))
        .and_then(|()| stream.set_write_timeout(Some(PATIENCE)));
    let Ok(connection) = patient
        .map_err(|_| ())
        .and_then(|()| ServerConnection::new(config).map_err(|_| ()))
    else {
        return;
    };
    let mut stream = StreamOwned::new(connection, stream);
    while let Ok(true) = converse(&mut stream, shared) {}
}

/// Whether there may be another question.
fn converse(stream: &mut Tls, shared: &Shared) -> std::io::Result<bool> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        if stream.read(&mut byte)? == 0 || head.len() > 64 * 1024 {
            return Ok(false);
        }
        head.extend_from_slice(&byte);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
    let token = head
        .lines()
        .find_map(|line| line.strip_prefix("authorization: Bearer "))
        .unwrap_or_default();
    let mut state = shared.state.lock().expect("nobody panicked");
    state.asked.push(path.clone());
    let answered = state.answer(&path, token);
    drop(state);
    match answered {
        Answer::Whole(text) => {
            stream.write_all(text.as_bytes())?;
            stream.flush()?;
            Ok(true)
        }
        Answer::Gone => Ok(false),
        Answer::Watch(whose, since, begun) => {
            stream.write_all(
                b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n",
            )?;
            stream.flush()?;
            watch(stream, shared, &whose, since, begun)?;
            Ok(false)
        }
    }
}

enum Answer {
    Whole(String),
    Gone,
    /// Of what, from which version on, and at which it began.
    Watch((String, String), u64, u64),
}

fn whole(status: u16, more: &str, body: &Value) -> Answer {
    let body = body.to_string();
    let length = body.len();
    Answer::Whole(format!(
        "HTTP/1.1 {status} -\r\ncontent-type: application/json\r\n{more}content-length: {length}\r\n\r\n{body}"
    ))
}

fn status(code: u16, more: &str, reason: &str) -> Answer {
    let body = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": format!("canary {reason}"), "reason": reason, "code": code
    });
    whole(code, more, &body)
}

impl State {
    fn answer(&self, path: &str, token: &str) -> Answer {
        match self.mode {
            Mode::Away => return Answer::Gone,
            Mode::Status(code, after) => {
                let after = after.map(|seconds| format!("retry-after: {seconds}\r\n"));
                return status(code, &after.unwrap_or_default(), "Told");
            }
            Mode::Nonsense => return whole(200, "", &json!("<html>canary-nonsense</html>")),
            Mode::Answers | Mode::Endless => {}
        }
        if !self.tokens.contains(token) {
            return status(401, "", "Unauthorized");
        }
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        let query: BTreeMap<_, _> = query
            .split('&')
            .filter_map(|part| part.split_once('='))
            .collect();
        let Some(namespace) = path
            .strip_prefix("/api/v1/namespaces/")
            .and_then(|rest| rest.strip_suffix("/secrets"))
        else {
            return status(404, "", "NotFound");
        };
        let name = query
            .get("fieldSelector")
            .and_then(|selector| selector.strip_prefix("metadata.name%3D"));
        let verb = match query.get("watch") {
            Some(&"1") => "watch",
            Some(_) | None => "list",
        };
        let Some(name) = name.filter(|name| self.names.contains(*name)) else {
            return status(403, "", "Forbidden");
        };
        if !self.verbs.contains(verb) {
            return status(403, "", "Forbidden");
        }
        let whose = (namespace.to_owned(), name.to_owned());
        if verb == "list" {
            let items: Vec<_> = self.secrets.get(&whose).into_iter().collect();
            return whole(
                200,
                "",
                &json!({
                    "kind": "SecretList", "apiVersion": "v1",
                    "metadata": { "resourceVersion": self.version.to_string() }, "items": items
                }),
            );
        }
        let since = query
            .get("resourceVersion")
            .and_then(|since| since.parse().ok());
        let seconds = query.get("timeoutSeconds");
        let seconds = seconds.and_then(|seconds| seconds.parse::<u64>().ok());
        match (since, seconds) {
            (Some(since), Some(_)) if since < self.forgotten => status(410, "", "Expired"),
            (Some(since), Some(1..=600)) => Answer::Watch(whose, since, self.version),
            _ => status(400, "", "BadRequest"),
        }
    }
}

/// Sends what happens until the watch is to end.
fn watch(
    stream: &mut Tls,
    shared: &Shared,
    whose: &(String, String),
    mut since: u64,
    begun: u64,
) -> std::io::Result<()> {
    let mut state = shared.state.lock().expect("nobody panicked");
    loop {
        if state.mode == Mode::Endless {
            drop(state);
            loop {
                stream.write_all(b"1000\r\n")?;
                stream.write_all(&[b'x'; 0x1000])?;
                stream.write_all(b"\r\n")?;
            }
        }
        let lines: Vec<_> = state
            .history
            .iter()
            .filter(|happened| happened.version > since)
            .filter(|happened| happened.whose.as_ref().is_none_or(|of| of == whose))
            // What everybody is sent, is sent to whoever is there.
            .filter(|happened| happened.whose.is_some() || happened.version > begun)
            .map(|happened| format!("{}\n", happened.line))
            .collect();
        since = since.max(state.version);
        let (cut, closed) = (state.cut > begun, state.closed > begun);
        drop(state);
        if cut {
            // In the middle of what it says, without a farewell.
            stream.write_all(b"40\r\n{\"type\":\"MODIF")?;
            return stream.flush();
        }
        for line in lines {
            write!(stream, "{:x}\r\n{line}\r\n", line.len())?;
        }
        if closed {
            stream.write_all(b"0\r\n\r\n")?;
            stream.conn.send_close_notify();
            return stream.flush();
        }
        stream.flush()?;
        state = shared.state.lock().expect("nobody panicked");
        state = shared
            .changed
            .wait_while(state, |state| state.version <= since)
            .expect("nobody panicked");
    }
}
