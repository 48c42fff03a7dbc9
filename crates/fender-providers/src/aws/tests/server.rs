//! An AWS in memory: what it is asked is written down, and it answers in the words of the documentation.

use std::ops::Deref;
use std::sync::atomic::{AtomicUsize, Ordering};

use fender_identity::Secret;
use serde_json::{Value, json};

use crate::aws::wire::{Asked, Request, Wire};
use crate::exchange::{Exchange, Reply};
use crate::http::{Answer, Method, Wish};

/// Nothing that Fender says may hold it; whatever is secret here begins so.
pub(super) const CANARY: &str = "canary";

/// What was asked is `METHOD URL | NAME: VALUE … | BODY`.
#[derive(Debug, Default)]
pub(super) struct Server {
    exchange: Exchange,
    roles: AtomicUsize,
}

impl Deref for Server {
    type Target = Exchange;

    fn deref(&self) -> &Exchange {
        &self.exchange
    }
}

impl Server {
    /// From now on, this to questions that have this in them.
    pub(super) fn answer(&self, to: &'static str, reply: impl Fn() -> Reply + Send + 'static) {
        self.on(move |asked| asked.contains(to).then(&reply));
    }

    fn reply(&self, asked: &str) -> Reply {
        let (_, url) = asked.split_once(' ').unwrap();
        let (url, _) = url.split_once(' ').unwrap();
        match url {
            _ if url.starts_with("https://secretsmanager.") => {
                Ok(ok(&secret(r#"{"user":"orders","password":"hunter2"}"#)))
            }
            _ if url.starts_with("https://ssm.") => Ok(ok(&parameter("hunter2"))),
            _ if url.starts_with("https://sts.") => {
                let number = self.roles.fetch_add(1, Ordering::Relaxed) + 1;
                Ok(role(&format!("ASIAROLE{number}"), "2027-01-15T09:00:00Z"))
            }
            "http://169.254.170.2/v2/credentials/x" | "http://169.254.170.23/v1/credentials" => {
                Ok(ok(&container("ASIACONTAINER")))
            }
            "http://169.254.169.254/latest/api/token" => Ok(plain("canary-session")),
            "http://169.254.169.254/latest/meta-data/iam/security-credentials/" => {
                Ok(plain("orders-role"))
            }
            "http://169.254.169.254/latest/meta-data/iam/security-credentials/orders-role" => {
                Ok(ok(&container("ASIAINSTANCE")))
            }
            _ => Ok(error(404, "Nothing", "")),
        }
    }
}

impl Wire for std::sync::Arc<Server> {
    fn ask<'a>(&'a self, request: &'a Request) -> Asked<'a> {
        let method = match request.method {
            Method::Get => "GET",
            Method::Post => "POST",
            Method::Put => "PUT",
        };
        let shown = |secret: &Secret| secret.expose_str().unwrap().to_owned();
        let headers = request.headers.iter();
        let headers: Vec<_> = headers
            .map(|(name, value)| format!("{name}: {}", shown(value)))
            .collect();
        let body = request.body.as_ref().map(shown).unwrap_or_default();
        let asked = format!("{method} {} | {} | {body}", request.to, headers.join(", "));
        self.note(asked.clone());
        Box::pin(async move { self.answered(&asked, |asked| self.reply(asked)).await })
    }
}

pub(super) fn plain(text: &str) -> Answer {
    Answer {
        status: 200,
        wish: None,
        body: Secret::from(text.to_owned()),
    }
}

pub(super) fn ok(body: &Value) -> Answer {
    plain(&body.to_string())
}

/// As both services answer.
pub(super) fn error(status: u16, code: &str, message: &str) -> Answer {
    let body = json!({ "__type": code, "message": message });
    Answer {
        status,
        ..ok(&body)
    }
}

pub(super) fn too_many(seconds: u64) -> Answer {
    Answer {
        wish: Some(Wish::Seconds(seconds)),
        ..error(400, "ThrottlingException", "Rate exceeded")
    }
}

/// <https://docs.aws.amazon.com/secretsmanager/latest/apireference/API_GetSecretValue.html>
pub(super) fn secret(text: &str) -> Value {
    json!({
        "ARN": "arn:aws:secretsmanager:eu-central-1:123456789012:secret:smtp-a1b2c3",
        "CreatedDate": 1.523477145713E9, "Name": "smtp", "SecretString": text,
        "VersionId": "EXAMPLE1-90ab-cdef-fedc-ba987SECRET1", "VersionStages": ["AWSCURRENT"]
    })
}

/// <https://docs.aws.amazon.com/systems-manager/latest/APIReference/API_GetParameter.html>
pub(super) fn parameter(text: &str) -> Value {
    json!({ "Parameter": {
        "ARN": "arn:aws:ssm:eu-central-1:123456789012:parameter/smtp", "DataType": "text",
        "LastModifiedDate": 1.582657288E9, "Name": "/smtp", "Type": "SecureString", "Value": text, "Version": 3
    } })
}

/// Good for an hour.
pub(super) fn container(id: &str) -> Value {
    json!({
        "Code": "Success", "Type": "AWS-HMAC", "LastUpdated": "2027-01-15T08:00:00Z",
        "AccessKeyId": id, "SecretAccessKey": "canary-secret-of-role", "Token": "canary-token-of-role",
        "Expiration": "2027-01-15T09:00:00Z"
    })
}

/// <https://docs.aws.amazon.com/STS/latest/APIReference/API_AssumeRoleWithWebIdentity.html>
pub(super) fn role(id: &str, until: &str) -> Answer {
    plain(&format!(
        "<AssumeRoleWithWebIdentityResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\">\
         <AssumeRoleWithWebIdentityResult><Credentials><SessionToken>canary-token-of-role</SessionToken>\
         <SecretAccessKey>canary-secret-of-role</SecretAccessKey><Expiration>{until}</Expiration>\
         <AccessKeyId>{id}</AccessKeyId></Credentials></AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>"
    ))
}

pub(super) fn sts_error(code: &str) -> Answer {
    Answer {
        status: 403,
        ..plain(&format!(
            "<ErrorResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><Error><Type>Sender</Type><Code>{code}</Code>\
             <Message>Not authorized to perform sts:AssumeRoleWithWebIdentity</Message></Error><RequestId>x</RequestId></ErrorResponse>"
        ))
    }
}
