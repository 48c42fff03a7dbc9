//! An API in memory, with a history, that answers as the documentation of Kubernetes has it.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use fender_config::HttpsUrl;
use fender_identity::Secret;
use fender_runtime::clock::SharedClock;
use fender_runtime::deadline::Deadline;
use tokio::sync::mpsc;

use super::super::api::{Dial, MAX_ANSWER, Opened, Transport};
use crate::http::{HttpError, Part, Parts, Streamed, Wish};

/// What nothing that can be printed may hold.
pub(super) const CANARY: &str = "canary-77aa31";

type Fields = Vec<(String, Vec<u8>)>;

#[derive(Default)]
pub(super) struct Server(Mutex<State>);

#[derive(Default)]
struct State {
    /// By their paths.
    secrets: BTreeMap<String, (u64, Fields)>,
    version: u64,
    /// What happened: at which version, to what, and as an event says it.
    history: Vec<(u64, String, String)>,
    /// Since when it is remembered.
    since: u64,
    watches: Vec<(String, mpsc::UnboundedSender<Bytes>)>,
    token: Option<String>,
    fails: Fails,
    asked: Vec<String>,
    dialled: usize,
}

/// How questions fail.
#[derive(Clone, Copy, Default)]
pub(super) struct Fails {
    pub(super) list: Option<u16>,
    pub(super) watch: Option<u16>,
    pub(super) wish: Option<u64>,
    /// Nobody is there.
    pub(super) away: bool,
    /// A watch ends as it begins.
    pub(super) closes: bool,
}

impl Server {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    pub(super) fn write(&self, name: &str, fields: &[(&str, &[u8])]) {
        let fields: Vec<_> = fields
            .iter()
            .map(|(key, value)| ((*key).to_owned(), value.to_vec()))
            .collect();
        let mut state = self.state();
        state.version += 1;
        let version = state.version;
        let path = path(name);
        let known = state.secrets.insert(path.clone(), (version, fields));
        let kind = if known.is_some() { "MODIFIED" } else { "ADDED" };
        let event = state.event(kind, &path);
        state.happened(path, event);
    }

    pub(super) fn delete(&self, name: &str) {
        let mut state = self.state();
        state.version += 1;
        let (path, version) = (path(name), state.version);
        state.secrets.get_mut(&path).unwrap().0 = version;
        let event = state.event("DELETED", &path);
        state.secrets.remove(&path);
        state.happened(path, event);
    }

    /// Something happens elsewhere, and every watch is told how far the history has come.
    pub(super) fn bookmark(&self) {
        let mut state = self.state();
        state.version += 10;
        let version = state.version;
        state.send(
            None,
            &format!(
                r#"{{"type":"BOOKMARK","object":{{"kind":"Secret","apiVersion":"v1","metadata":{{"resourceVersion":"{version}","creationTimestamp":null}}}}}}"#
            ),
        );
    }

    /// What any watch sends besides.
    pub(super) fn say(&self, text: &str) {
        self.state().send(None, text);
    }

    /// Every watch ends, as all do after a while.
    pub(super) fn close(&self) {
        self.state().watches.clear();
    }

    /// Nothing is remembered any more.
    pub(super) fn forget(&self) {
        let mut state = self.state();
        state.version += 1;
        state.since = state.version;
    }

    pub(super) fn fail(&self, fails: Fails) {
        self.state().fails = fails;
    }

    /// The one token that is known; without this any is.
    pub(super) fn know(&self, token: &str) {
        self.state().token = Some(token.to_owned());
    }

    /// What was asked, without what is the same in all of them.
    pub(super) fn asked(&self) -> Vec<String> {
        self.state().asked.clone()
    }

    pub(super) fn lists(&self) -> usize {
        let is_list = |asked: &&String| !asked.contains("&watch=1");
        self.state().asked.iter().filter(is_list).count()
    }

    pub(super) fn watching(&self) -> usize {
        let mut state = self.state();
        state.watches.retain(|(_, watch)| !watch.is_closed());
        state.watches.len()
    }

    pub(super) fn dialled(&self) -> usize {
        self.state().dialled
    }
}

fn path(name: &str) -> String {
    format!("/api/v1/namespaces/shop/secrets?fieldSelector=metadata.name%3D{name}")
}

impl State {
    fn event(&self, kind: &str, path: &str) -> String {
        format!(r#"{{"type":"{kind}","object":{}}}"#, self.secret(path))
    }

    fn secret(&self, path: &str) -> String {
        let (version, fields) = &self.secrets[path];
        let name = path.rsplit_once("%3D").unwrap().1;
        let fields: Vec<_> = fields
            .iter()
            .map(|(key, value)| format!("\"{key}\":\"{}\"", STANDARD.encode(value)))
            .collect();
        format!(
            r#"{{"kind":"Secret","apiVersion":"v1","metadata":{{"name":"{name}","namespace":"shop","uid":"0c9b","resourceVersion":"{version}"}},"data":{{{}}},"type":"Opaque"}}"#,
            fields.join(",")
        )
    }

    fn happened(&mut self, path: String, event: String) {
        self.send(Some(&path), &event);
        self.history.push((self.version, path, event));
    }

    fn send(&mut self, path: Option<&str>, text: &str) {
        for (of, watch) in &self.watches {
            if path.is_none_or(|path| path == of) {
                let _ = watch.send(Bytes::from(format!("{text}\n")));
            }
        }
    }

    fn answer(&mut self, asked: &str, token: &str) -> Result<Streamed, HttpError> {
        self.asked.push(asked.to_owned());
        let fails = self.fails;
        if fails.away {
            return Err(HttpError::Unreachable("connection refused".to_owned()));
        }
        let failed = |status| {
            let wish = fails.wish.map(Wish::Seconds);
            let body = format!(r#"{{"kind":"Status","message":"{CANARY}","code":{status}}}"#);
            Ok(Streamed::new(
                status,
                wish,
                Box::new(Whole::of(body)),
                MAX_ANSWER,
            ))
        };
        if self.token.as_ref().is_some_and(|known| known != token) {
            return failed(401);
        }
        let Some((path, rest)) = asked.split_once("&watch=1") else {
            if let Some(status) = fails.list {
                return failed(status);
            }
            let items = match self.secrets.contains_key(asked) {
                true => self.secret(asked),
                false => String::new(),
            };
            let body = format!(
                r#"{{"kind":"SecretList","apiVersion":"v1","metadata":{{"resourceVersion":"{}"}},"items":[{items}]}}"#,
                self.version
            );
            return Ok(Streamed::new(
                200,
                None,
                Box::new(Whole::of(body)),
                MAX_ANSWER,
            ));
        };
        if let Some(status) = fails.watch {
            return failed(status);
        }
        let since = rest
            .split('&')
            .find_map(|part| part.strip_prefix("resourceVersion="));
        let since: u64 = since.unwrap().parse().unwrap();
        if since < self.since {
            return failed(410);
        }
        let (watch, parts) = mpsc::unbounded_channel();
        for (version, of, event) in &self.history {
            if *version > since && of == path {
                watch.send(Bytes::from(format!("{event}\n"))).unwrap();
            }
        }
        if !fails.closes {
            self.watches.push((path.to_owned(), watch));
        }
        Ok(Streamed::new(
            200,
            None,
            Box::new(Channel(parts)),
            MAX_ANSWER,
        ))
    }
}

struct Whole(VecDeque<Bytes>);

impl Whole {
    fn of(body: String) -> Self {
        Self([Bytes::from(body)].into())
    }
}

impl Parts for Whole {
    fn next(&mut self) -> Part<'_> {
        let part = self.0.pop_front();
        Box::pin(std::future::ready(Ok(part)))
    }
}

struct Channel(mpsc::UnboundedReceiver<Bytes>);

impl Parts for Channel {
    fn next(&mut self) -> Part<'_> {
        Box::pin(async { Ok(self.0.recv().await) })
    }
}

impl Dial for Arc<Server> {
    fn dial(
        &self,
        _: &HttpsUrl,
        _: &Secret,
        _: &SharedClock,
    ) -> Result<Arc<dyn Transport>, String> {
        self.state().dialled += 1;
        Ok(Arc::new(Arc::clone(self)))
    }
}

impl Transport for Arc<Server> {
    fn open<'a>(&'a self, path: &'a str, token: &'a Secret, _: Deadline) -> Opened<'a> {
        let answer = self.state().answer(path, token.expose_str().unwrap());
        Box::pin(std::future::ready(answer))
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Server")
    }
}
