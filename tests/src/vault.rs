//! A server that answers as the documentation of Vault's HTTP API says, since no current Vault can be had here: AppRole,
//! certificate and JWT logins, tokens, KV 2, leased database credentials. It checks what it is shown, as the real one would, and
//! writes down what it was asked. <https://developer.hashicorp.com/vault/api-docs>

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use serde_json::{Value, json};

use crate::pki::Authority;
use http::{Request, denied, errors, ok, reply, serve};

mod http;

pub const ROLE_ID: &str = "db02de05-fa39-4855-059b-67221c5c2f63";
/// The beginning of every token; nothing that Fender writes may hold it.
pub const TOKEN: &str = "hvs.canary-token-";

/// What becomes of a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Answers,
    /// Connections are closed before anything is read.
    Away,
    /// 503, as a Vault that somebody sealed.
    Sealed,
    /// 429, to be asked again after so many seconds.
    TooOften(u64),
    /// 307 to this address, as a standby that does not forward.
    Standby(SocketAddr),
    /// 200, and no answer that a Vault gives.
    Nonsense,
}

pub struct Vault {
    pub address: SocketAddr,
    scheme: &'static str,
    state: Arc<Mutex<State>>,
}

struct State {
    mode: Mode,
    secret_id: String,
    namespace: Option<String>,
    tokens: BTreeSet<String>,
    /// By their path in `secret`: each version, the newest last; none where one was deleted.
    secrets: BTreeMap<String, Vec<Option<Value>>>,
    denied: BTreeSet<String>,
    /// What is answered with 500, and what is not answered.
    failing: BTreeSet<String>,
    hanging: BTreeSet<String>,
    /// How long every answer takes.
    latency: Duration,
    /// How many questions wait for an answer, but for those that hang, and how many ever did.
    inside: usize,
    most_inside: usize,
    /// The tokens that leases end with, by the ids of the leases.
    leases: BTreeMap<String, String>,
    refuses_logins: bool,
    /// Who alone may log in by a certificate or a JWT, if it matters: a SPIFFE ID, as a role of Vault names it.
    bound_to: Option<String>,
    /// Who did: SPIFFE IDs, each with the serial number of a certificate or the time of a token.
    shown: Vec<String>,
    /// In seconds; a renewal gives the second.
    lease: (u64, u64),
    asked: Vec<String>,
    made: u64,
}

impl Vault {
    /// Over TLS, by a certificate of `authority`, which also vouches for clients.
    pub fn start(authority: &Authority) -> Self {
        Self::believing(authority, &[])
    }

    /// The same, where the authorities of `bundle` vouch for clients as well.
    pub fn start_believing(authority: &Authority, bundle: &Path) -> Self {
        let more = CertificateDer::pem_file_iter(bundle).expect("read a bundle");
        let more: Vec<_> = more.map(|root| root.expect("a certificate")).collect();
        Self::believing(authority, &more)
    }

    fn believing(authority: &Authority, more: &[CertificateDer<'static>]) -> Self {
        let issued = authority.issue_for_address(Ipv4Addr::LOCALHOST.into());
        let (chain, key) = issued.identity();
        let mut roots = RootCertStore::empty();
        for root in more.iter().cloned().chain([authority.root()]) {
            roots.add(root).expect("add the root");
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let clients =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
                .allow_unauthenticated()
                .build()
                .expect("make a verifier");
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("TLS versions")
            .with_client_cert_verifier(clients)
            .with_single_cert(chain, key)
            .expect("use the certificate");
        Self::listen(Some(Arc::new(config)))
    }

    /// In the clear.
    pub fn in_the_clear() -> Self {
        Self::listen(None)
    }

    fn listen(tls: Option<Arc<ServerConfig>>) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("listen");
        let address = listener.local_addr().expect("an address");
        let state = Arc::new(Mutex::new(State {
            mode: Mode::Answers,
            secret_id: "canary-secret-id".to_owned(),
            namespace: None,
            tokens: BTreeSet::new(),
            secrets: BTreeMap::new(),
            denied: BTreeSet::new(),
            failing: BTreeSet::new(),
            hanging: BTreeSet::new(),
            latency: Duration::ZERO,
            inside: 0,
            most_inside: 0,
            leases: BTreeMap::new(),
            refuses_logins: false,
            bound_to: None,
            shown: Vec::new(),
            lease: (3600, 3600),
            asked: Vec::new(),
            made: 0,
        }));
        let scheme = if tls.is_some() { "https" } else { "http" };
        let served = Arc::clone(&state);
        // Ends with the process of the test.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (state, tls) = (Arc::clone(&served), tls.clone());
                std::thread::spawn(move || {
                    if state.lock().expect("nobody panicked").mode != Mode::Away {
                        serve(stream, tls, |request| waited(&state, request));
                    }
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

    /// A file with the secret id that is right.
    pub fn write_secret_id(&self, directory: &Path) -> PathBuf {
        let path = directory.join("secret-id");
        fs::write(&path, format!("{}\n", self.state().secret_id)).expect("write a file");
        path
    }

    /// A file with a token that is right.
    pub fn write_token(&self, directory: &Path) -> PathBuf {
        let path = directory.join("vault-token");
        let token = self.state().token();
        fs::write(&path, token).expect("write a file");
        path
    }

    pub fn be(&self, mode: Mode) {
        self.state().mode = mode;
    }

    /// From now on everything is in this namespace.
    pub fn set_namespace(&self, namespace: &str) {
        self.state().namespace = Some(namespace.to_owned());
    }

    /// Another version of a secret.
    pub fn write(&self, path: &str, data: Value) {
        let mut state = self.state();
        let versions = state.secrets.entry(path.to_owned()).or_default();
        versions.push(Some(data));
    }

    /// Deletes the newest version.
    pub fn delete(&self, path: &str) {
        let mut state = self.state();
        let versions = state.secrets.get_mut(path).expect("there is a secret");
        *versions.last_mut().expect("there is a version") = None;
    }

    /// Whether the policy of every token lacks this path.
    pub fn deny(&self, path: &str, is_denied: bool) {
        let mut state = self.state();
        if is_denied {
            state.denied.insert(path.to_owned());
        } else {
            state.denied.remove(path);
        }
    }

    /// Whether this path is answered with 500.
    pub fn fail(&self, path: &str) {
        self.state().failing.insert(path.to_owned());
    }

    /// This path is not answered any more.
    pub fn hang(&self, path: &str) {
        self.state().hanging.insert(path.to_owned());
    }

    /// Every path is answered again.
    pub fn mend(&self) {
        let mut state = self.state();
        state.failing.clear();
        state.hanging.clear();
    }

    /// How long every answer takes from now on.
    pub fn take_time(&self, latency: Duration) {
        self.state().latency = latency;
    }

    /// The most questions that ever waited at once, but for those that hang.
    pub fn most_at_once(&self) -> usize {
        self.state().most_inside
    }

    /// Whether every login is answered with 400.
    pub fn refuse_logins(&self, refuses: bool) {
        self.state().refuses_logins = refuses;
    }

    /// From now on a certificate or a JWT logs in only if it is of this SPIFFE ID.
    pub fn bind_to(&self, id: &str) {
        self.state().bound_to = Some(id.to_owned());
    }

    /// Who has logged in by a certificate or a JWT: each with the serial number of that certificate, or the audience.
    pub fn shown(&self) -> Vec<String> {
        self.state().shown.clone()
    }

    /// Every token and lease is known no more, as after somebody revoked them.
    pub fn revoke_all(&self) {
        let mut state = self.state();
        state.tokens.clear();
        state.leases.clear();
    }

    /// For how many seconds leases are given, and for how many they are renewed.
    pub fn set_lease(&self, given: u64, renewed: u64) {
        self.state().lease = (given, renewed);
    }

    pub fn tokens(&self) -> usize {
        self.state().tokens.len()
    }

    pub fn leases(&self) -> Vec<String> {
        self.state().leases.keys().cloned().collect()
    }

    /// What was asked, as `METHOD PATH`.
    pub fn asked(&self) -> Vec<String> {
        self.state().asked.clone()
    }

    /// How many questions began so.
    pub fn count(&self, begin: &str) -> usize {
        let state = self.state();
        state
            .asked
            .iter()
            .filter(|one| one.starts_with(begin))
            .count()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nobody panicked")
    }
}

/// Whom a JWT is of and whom it is for, if it has not ended. Who signed it is not looked at: that a JWT-SVID is right is shown by the tests of
/// who verifies it.
fn bearer(token: &str) -> Option<(String, Vec<String>)> {
    let payload = URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()?;
    let claims: Value = serde_json::from_slice(&payload).ok()?;
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .ok()?;
    if claims["exp"].as_u64()? <= now.as_secs() {
        return None;
    }
    let audience = match &claims["aud"] {
        Value::String(one) => vec![one.clone()],
        Value::Array(several) => several
            .iter()
            .filter_map(Value::as_str)
            .map(str::to_owned)
            .collect(),
        _ => Vec::new(),
    };
    Some((claims["sub"].as_str()?.to_owned(), audience))
}

/// The answer, after the time it takes.
fn waited(shared: &Mutex<State>, request: &Request) -> String {
    let lock = || shared.lock().expect("nobody panicked");
    let mut state = lock();
    while state.hanging.contains(&request.path) {
        drop(state);
        std::thread::sleep(Duration::from_millis(50));
        state = lock();
    }
    state.inside += 1;
    state.most_inside = state.most_inside.max(state.inside);
    let latency = state.latency;
    drop(state);
    std::thread::sleep(latency);
    let mut state = lock();
    // Before anybody can know of the answer: who counts is never ahead of who asks.
    state.inside -= 1;
    state.answer(request)
}

impl State {
    fn answer(&mut self, request: &Request) -> String {
        let Request { method, path, .. } = request;
        self.asked.push(format!("{method} {path}"));
        match self.mode {
            Mode::Answers | Mode::Away => {}
            Mode::Sealed => return errors(503, &["Vault is sealed"]),
            Mode::TooOften(seconds) => {
                let more = format!("retry-after: {seconds}\r\n");
                let body = json!({ "errors": ["rate limit quota exceeded"] });
                return reply(429, &more, &body);
            }
            Mode::Standby(address) => {
                let more = format!("location: https://{address}/v1/{path}\r\n");
                return reply(307, &more, &json!({}));
            }
            Mode::Nonsense => return reply(200, "", &json!("<html>canary-nonsense</html>")),
        }
        let field = |name: &str| request.fields.get(name).map(String::as_str);
        if field("x-vault-request") != Some("true") {
            return errors(412, &["missing header X-Vault-Request"]);
        }
        if field("x-vault-namespace") != self.namespace.as_deref() {
            return errors(404, &["no handler for route"]);
        }
        if let Some(mount) = path
            .strip_prefix("auth/")
            .and_then(|path| path.strip_suffix("/login"))
        {
            return self.login(mount, request);
        }
        let token = field("x-vault-token").unwrap_or_default();
        if !self.tokens.contains(token) || self.denied.contains(path) {
            return denied();
        }
        if self.failing.contains(path) {
            return errors(500, &["internal error"]);
        }
        let (token, path) = (token.to_owned(), path.clone());
        self.serve(method, &path, &token, &request.body)
    }

    fn login(&mut self, mount: &str, request: &Request) -> String {
        let text = |name: &str| request.body.get(name).and_then(Value::as_str);
        let allowed = match mount {
            "approle" => {
                text("role_id") == Some(ROLE_ID) && text("secret_id") == Some(&self.secret_id)
            }
            "cert" => match &request.certificate {
                Some((id, serial)) => self.bound(id, serial),
                None => false,
            },
            "jwt" => match text("jwt").and_then(bearer) {
                Some((id, audience)) if audience == ["vault"] => self.bound(&id, "vault"),
                Some(_) | None => false,
            },
            _ => return errors(404, &["no handler for route"]),
        };
        if !allowed || self.refuses_logins {
            return errors(400, &["invalid role or secret ID"]);
        }
        let token = self.token();
        ok(&json!({
            "request_id": "5f8e0f4d-2a5e-4d2d-8f5a-0d4a1a3f7b5e", "lease_id": "", "renewable": false,
            "lease_duration": 0, "data": null, "wrap_info": null, "warnings": null, "auth": auth(&token)
        }))
    }

    /// Whether the role lets in who shows this; what was shown is written down.
    fn bound(&mut self, id: &str, more: &str) -> bool {
        self.shown.push(format!("{id} {more}"));
        self.bound_to.as_ref().is_none_or(|bound| bound == id)
    }

    fn serve(&mut self, method: &str, path: &str, token: &str, body: &Value) -> String {
        match (method, path) {
            ("GET", "auth/token/lookup-self") => ok(
                &json!({ "data": { "id": token, "ttl": 3600, "renewable": true, "policies": ["default"] } }),
            ),
            ("POST", "auth/token/renew-self") => ok(&json!({ "auth": auth(token) })),
            ("POST", "auth/token/revoke-self") => {
                self.tokens.remove(token);
                // And with a token whatever was leased to it.
                self.leases.retain(|_, of| of != token);
                reply(204, "", &Value::Null)
            }
            ("POST", "sys/leases/renew") => {
                let id = body.get("lease_id").and_then(Value::as_str);
                let id = id.unwrap_or_default();
                if !self.leases.contains_key(id) {
                    return errors(400, &["lease not found"]);
                }
                ok(&json!({ "lease_id": id, "renewable": true, "lease_duration": self.lease.1 }))
            }
            ("POST", "sys/leases/revoke") => {
                let id = body.get("lease_id").and_then(Value::as_str);
                self.leases.remove(id.unwrap_or_default());
                reply(204, "", &Value::Null)
            }
            ("GET", "database/creds/orders") => {
                self.made += 1;
                let number = self.made;
                let id = format!("database/creds/orders/lease-{number}");
                self.leases.insert(id.clone(), token.to_owned());
                ok(&json!({
                    "request_id": "6d0dd2a7-8c6a-4d1e-9e0a-5c3f4b2a1d00",
                    "lease_id": id, "lease_duration": self.lease.0, "renewable": true,
                    "data": {
                        "username": format!("canary-user-{number}"),
                        "password": format!("canary-password-{number}")
                    },
                    "wrap_info": null, "warnings": null, "auth": null
                }))
            }
            ("GET", _) => match path.strip_prefix("secret/data/") {
                Some(path) => self.secret(path),
                None => errors(404, &[]),
            },
            _ => errors(405, &["unsupported operation"]),
        }
    }

    fn secret(&self, path: &str) -> String {
        let Some(versions) = self.secrets.get(path) else {
            return errors(404, &[]);
        };
        let newest = versions.last().cloned().flatten();
        let (status, deletion) = match &newest {
            Some(_) => (200, ""),
            None => (404, "2018-03-22T02:36:43.986212308Z"),
        };
        let metadata = json!({
            "created_time": "2018-03-22T02:24:06.945319214Z", "custom_metadata": null,
            "deletion_time": deletion, "destroyed": false, "version": versions.len()
        });
        let body = json!({
            "request_id": "8a5e4d9b-6c55-4c7c-9a3e-3b2d5e9c4f10", "lease_id": "", "renewable": false,
            "lease_duration": 0, "data": { "data": newest, "metadata": metadata },
            "wrap_info": null, "warnings": null, "auth": null
        });
        reply(status, "", &body)
    }

    /// A new one.
    fn token(&mut self) -> String {
        self.made += 1;
        let token = format!("{TOKEN}{}", self.made);
        self.tokens.insert(token.clone());
        token
    }
}

fn auth(token: &str) -> Value {
    json!({
        "client_token": token, "accessor": "fd6c9a00-d2dc-3b11-0be5-af7ae0e1d374",
        "policies": ["default"], "token_policies": ["default"], "metadata": { "role_name": "orders" },
        "lease_duration": 3600, "renewable": true, "entity_id": "", "token_type": "service",
        "orphan": true, "mfa_requirement": null, "num_uses": 0
    })
}
