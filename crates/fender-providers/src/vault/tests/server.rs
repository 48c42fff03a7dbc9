//! A Vault in memory: what it is asked is written down, and it answers in the words of the API's documentation.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use fender_config::snapshot::VaultStore;
use fender_identity::Secret;
use fender_runtime::clock::SharedClock;
use serde_json::{Value, json};

use crate::exchange::{Exchange, Reply};
use crate::http::{Answer, HttpError, Method, Wish};
use crate::vault::dial::{Dial, Pem, Shown};
use crate::vault::wire::{Asked, Call, SharedTransport, Transport};

/// What was asked is `METHOD PATH | TOKEN | BODY`.
#[derive(Debug, Default)]
pub(super) struct Server {
    exchange: Exchange,
    numbers: AtomicUsize,
}

impl Deref for Server {
    type Target = Exchange;

    fn deref(&self) -> &Exchange {
        &self.exchange
    }
}

impl Server {
    /// From now on, this to questions that begin so.
    pub(super) fn answer(&self, to: &'static str, reply: impl Fn() -> Reply + Send + 'static) {
        self.on(move |asked| asked.starts_with(to).then(&reply));
    }

    /// The same, once.
    pub(super) fn answer_once(&self, to: &'static str, reply: Reply) {
        let mut reply = Some(reply);
        self.on(move |asked| asked.starts_with(to).then(|| reply.take()).flatten());
    }

    /// How many of these begin so.
    pub(super) fn count(asked: &[String], begin: &str) -> usize {
        asked.iter().filter(|one| one.starts_with(begin)).count()
    }

    fn number(&self) -> usize {
        self.numbers.fetch_add(1, Ordering::Relaxed) + 1
    }

    fn reply(&self, asked: &str) -> Reply {
        let (question, _) = asked.split_once(" | ").unwrap_or((asked, ""));
        match question.split_whitespace().collect::<Vec<_>>()[..] {
            ["POST", path] if path.starts_with("auth/") && path.ends_with("/login") => {
                ok(&login(&format!("hvs.{}", self.number()), 3600))
            }
            ["GET", "auth/token/lookup-self"] => ok(&lookup(3600)),
            ["POST", "auth/token/renew-self"] => ok(&login("hvs.renewed", 3600)),
            ["POST", "auth/token/revoke-self"] | ["POST", "sys/leases/revoke"] => empty(),
            ["POST", "sys/leases/renew"] => ok(&renewal("ignored", 3600)),
            ["GET", path] if path.starts_with("secret/data/") => ok(&versioned(
                &json!({ "user": "orders", "password": "hunter2" }),
            )),
            ["GET", path] if path.starts_with("kv/") => {
                ok(&plain(&json!({ "password": "hunter2" })))
            }
            ["GET", path] if path.starts_with("database/creds/") => {
                ok(&leased(self.number(), 3600, true))
            }
            _ => Ok(status(404, &json!({ "errors": [] }))),
        }
    }
}

impl Transport for Server {
    fn ask<'a>(&'a self, call: &'a Call) -> Asked<'a> {
        let method = match call.method {
            Method::Get => "GET",
            Method::Post => "POST",
            Method::Put => "PUT",
        };
        let shown = |secret: &Option<Secret>| {
            let text = secret.as_ref().and_then(Secret::expose_str);
            text.unwrap_or("-").to_owned()
        };
        let asked = format!(
            "{method} {} | {} | {}",
            call.path,
            shown(&call.token),
            shown(&call.body)
        );
        self.note(asked.clone());
        Box::pin(async move { self.answered(&asked, |asked| self.reply(asked)).await })
    }
}

/// The same server, to whoever dials.
#[derive(Debug)]
struct Line(Arc<Server>);

impl Transport for Line {
    fn ask<'a>(&'a self, call: &'a Call) -> Asked<'a> {
        self.0.ask(call)
    }
}

impl Dial for Arc<Server> {
    fn dial(&self, _: &VaultStore, pem: Pem, _: &SharedClock) -> Result<SharedTransport, String> {
        if let Some(shown) = pem.shown {
            let shown = match shown {
                Shown::Files(pair) => String::from_utf8(pair.chain).unwrap(),
                Shown::Svid(svid) => format!("{} {}", svid.id(), svid.serial()),
            };
            self.note(format!("shown {shown}"));
        }
        Ok(Arc::new(Line(Arc::clone(self))))
    }
}

pub(super) fn status(status: u16, body: &Value) -> Answer {
    Answer {
        status,
        wish: None,
        body: Secret::from(body.to_string()),
    }
}

pub(super) fn ok(body: &Value) -> Reply {
    Ok(status(200, body))
}

pub(super) fn empty() -> Reply {
    Ok(Answer {
        status: 204,
        wish: None,
        body: Secret::new(Vec::new()),
    })
}

pub(super) fn denied() -> Reply {
    let body = json!({ "errors": ["1 error occurred:\n\t* permission denied\n\n"] });
    Ok(status(403, &body))
}

pub(super) fn away() -> Reply {
    Err(HttpError::Unreachable("connection refused".to_owned()))
}

pub(super) fn too_many(seconds: u64) -> Reply {
    Ok(Answer {
        wish: Some(Wish::Seconds(seconds)),
        ..status(
            429,
            &json!({ "errors": ["request path \"secret/data/smtp\": rate limit quota exceeded"] }),
        )
    })
}

/// <https://developer.hashicorp.com/vault/api-docs/auth/approle#login-with-approle>; 0 seconds is for ever.
pub(super) fn login(token: &str, seconds: u64) -> Value {
    json!({
        "request_id": "5f8e0f4d-2a5e-4d2d-8f5a-0d4a1a3f7b5e", "lease_id": "", "renewable": false, "lease_duration": 0,
        "data": null, "wrap_info": null, "warnings": null,
        "auth": {
            "client_token": token,
            "accessor": "fd6c9a00-d2dc-3b11-0be5-af7ae0e1d374",
            "policies": ["default", "orders"], "token_policies": ["default", "orders"],
            "metadata": { "role_name": "orders" },
            "lease_duration": seconds, "renewable": true,
            "entity_id": "", "token_type": "service", "orphan": true, "mfa_requirement": null, "num_uses": 0
        }
    })
}

/// <https://developer.hashicorp.com/vault/api-docs/auth/token#lookup-a-token-self>
pub(super) fn lookup(seconds: u64) -> Value {
    json!({
        "request_id": "d4bd9a4f-4c4a-8f9c-3d9a-1c1f0f6c2b11", "lease_id": "", "renewable": false, "lease_duration": 0,
        "data": {
            "accessor": "8609694a-cdbc-db9b-d345-e782dbb562ed",
            "creation_time": 1523979354, "creation_ttl": 2764800, "display_name": "approle", "entity_id": "",
            "expire_time": "2018-05-19T11:35:54.466476215-04:00", "explicit_max_ttl": 0,
            "id": "cf64a70f-3a12-3f6c-791d-6cef6d390eed", "issue_time": "2018-04-17T11:35:54.466476078-04:00",
            "meta": { "role_name": "orders" }, "num_uses": 0, "orphan": true, "path": "auth/approle/login",
            "policies": ["default", "orders"], "renewable": true, "ttl": seconds
        },
        "wrap_info": null, "warnings": null, "auth": null
    })
}

/// <https://developer.hashicorp.com/vault/api-docs/secret/kv/kv-v1#read-secret>
pub(super) fn plain(data: &Value) -> Value {
    json!({ "auth": null, "data": data, "lease_duration": 2764800, "lease_id": "", "renewable": false })
}

/// <https://developer.hashicorp.com/vault/api-docs/secret/kv/kv-v2#read-secret-version>
pub(super) fn versioned(data: &Value) -> Value {
    json!({
        "request_id": "8a5e4d9b-6c55-4c7c-9a3e-3b2d5e9c4f10", "lease_id": "", "renewable": false, "lease_duration": 0,
        "data": {
            "data": data,
            "metadata": {
                "created_time": "2018-03-22T02:24:06.945319214Z",
                "custom_metadata": { "owner": "jdoe", "mission_critical": "false" },
                "deletion_time": "", "destroyed": false, "version": 2
            }
        },
        "wrap_info": null, "warnings": null, "auth": null
    })
}

/// What comes with the 404 for a version that was deleted.
pub(super) fn deleted(destroyed: bool) -> Reply {
    let body = json!({
        "request_id": "8a5e4d9b-6c55-4c7c-9a3e-3b2d5e9c4f10", "lease_id": "", "renewable": false, "lease_duration": 0,
        "data": {
            "data": null,
            "metadata": {
                "created_time": "2018-03-22T02:24:06.945319214Z", "custom_metadata": null,
                "deletion_time": "2018-03-22T02:36:43.986212308Z", "destroyed": destroyed, "version": 3
            }
        },
        "wrap_info": null, "warnings": null, "auth": null
    });
    Ok(status(404, &body))
}

/// <https://developer.hashicorp.com/vault/api-docs/secret/databases#generate-credentials>
pub(super) fn leased(number: usize, seconds: u64, renewable: bool) -> Value {
    json!({
        "request_id": "6d0dd2a7-8c6a-4d1e-9e0a-5c3f4b2a1d00",
        "lease_id": format!("database/creds/orders/lease-{number}"),
        "lease_duration": seconds, "renewable": renewable,
        "data": { "username": format!("v-orders-{number}"), "password": format!("A1a-{number}") },
        "wrap_info": null, "warnings": null, "auth": null
    })
}

/// <https://developer.hashicorp.com/vault/api-docs/system/leases#renew-lease>
pub(super) fn renewal(id: &str, seconds: u64) -> Value {
    json!({ "lease_id": id, "renewable": true, "lease_duration": seconds })
}
