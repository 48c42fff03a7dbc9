//! Asking a cluster about a token: TokenReview of `authentication.k8s.io/v1`.
//!
//! The API is the only one who is shown the token, verified by its own roots. A redirect is not followed, an answer that is
//! not exactly "authenticated, for this audience, a service account" is a no, and no answer is no identity. An old API that
//! does not know audiences answers without them, and that is a no as well.
//!
//! <https://kubernetes.io/docs/reference/kubernetes-api/authentication-resources/token-review-v1/>

use std::path::Path;

use fender_config::TokenReview;
use fender_identity::Secret;
use fender_identity::jwt::{Object, Value, parse_object};
use fender_providers::http::{HttpClient, Method, Question};
use fender_runtime::clock::SharedClock;
use fender_runtime::deadline::Deadline;
use fender_runtime::drain::Drain;

use super::keys::bearer;
use super::{Account, NotVouched, account_name};
use crate::credentials::Sources;
use crate::followed::Followed;
use crate::limit::Neighbourhood;
use crate::turns::Turns;

const PATH: &str = "/apis/authentication.k8s.io/v1/tokenreviews";
const MAX_ANSWER: usize = 64 * 1024;
/// Questions under way at once: whoever may attest may not make us flood the cluster.
const CONCURRENT: usize = 16;
/// Of them, for whoever calls from one place.
const PER_SOURCE: usize = 4;

pub(super) struct Reviewer {
    review: TokenReview,
    roots: Followed<Secret>,
    token: Followed<Secret>,
    clock: SharedClock,
    turns: Turns<Option<Neighbourhood>>,
}

/// What the cluster says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Review {
    Authenticated(Account),
    Refused(String),
}

impl Reviewer {
    pub(super) fn new(
        cluster: &str,
        review: &TokenReview,
        sources: &Sources,
        clock: &SharedClock,
        drain: &Drain,
    ) -> Self {
        let follow = |what, path: &Path| {
            let what = format!("{what} for the API of the cluster `{cluster}`");
            Followed::bytes(what, sources.watch_file(path), clock, drain)
        };
        Self {
            roots: follow("roots", &review.roots),
            token: follow("token", &review.token),
            review: review.clone(),
            clock: clock.clone(),
            turns: Turns::new(CONCURRENT, PER_SOURCE),
        }
    }

    pub(super) async fn ask(
        &self,
        token: &str,
        audience: &str,
        source: Option<Neighbourhood>,
        deadline: Deadline,
    ) -> Result<Review, NotVouched> {
        let Some(_turn) = self.turns.turn(source, deadline).await else {
            return Err(NotVouched::Busy(
                "too many tokens are being reviewed at once: try again in a while",
            ));
        };
        self.answer(token, audience, deadline)
            .await
            .map_err(NotVouched::Away)
    }

    async fn answer(
        &self,
        token: &str,
        audience: &str,
        deadline: Deadline,
    ) -> Result<Review, String> {
        let now = self.clock.now();
        let roots = self.roots.value(now, deadline).await?;
        let headers = [bearer(&*self.token.value(now, deadline).await?)?];
        let client = HttpClient::new(roots.expose(), MAX_ANSWER, self.clock.clone())
            .map_err(|error| error.to_string())?;
        let body = serde_json::json!({
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": { "token": token, "audiences": [audience] },
        });
        let question = Question {
            method: Method::Post,
            url: &self.review.api.join(PATH),
            headers: &headers,
            body: Some(Secret::from(body.to_string())),
        };
        let answer = client
            .ask(question, deadline)
            .await
            .map_err(|error| error.to_string())?;
        if !matches!(answer.status, 200 | 201) {
            return Err(format!(
                "the API answers a TokenReview with status {}; may the token of `tokenReview` create `tokenreviews`?",
                answer.status
            ));
        }
        let answer = parse_object(answer.body.expose())
            .map_err(|why| format!("the API's answer cannot be used: {why}"))?;
        Ok(decide(&answer, audience))
    }
}

/// Reads the answer. What is missing is a no.
fn decide(answer: &Object, audience: &str) -> Review {
    let refused = |why: &str| Review::Refused(why.to_owned());
    let is =
        |name: &str, expected: &str| answer.get(name).and_then(Value::as_text) == Some(expected);
    if !is("kind", "TokenReview") || !is("apiVersion", "authentication.k8s.io/v1") {
        return refused("the API's answer is no TokenReview");
    }
    let Some(status) = answer.get("status") else {
        return refused("the API's answer has no status");
    };
    if status.member("authenticated") != Some(&Value::Bool(true)) {
        return Review::Refused(match status.member("error").and_then(Value::as_text) {
            Some(error) => format!(
                "the API does not authenticate the token: {}",
                printable(error)
            ),
            None => "the API does not authenticate the token".to_owned(),
        });
    }
    if texts(status.member("audiences")) != [audience] {
        return refused("the API does not say that the token is for our audience and no other");
    }
    let user = status.member("user");
    let username = user.and_then(|user| user.member("username"));
    let account = username.and_then(Value::as_text).and_then(account_name);
    let Some((namespace, name)) = account else {
        return refused("the API says that the token is of no service account");
    };
    let extra = user.and_then(|user| user.member("extra"));
    let bound = |name: &str| {
        let values = texts(extra.and_then(|extra| extra.member(name)));
        match values.as_slice() {
            [only] => Some((*only).to_owned()),
            _ => None,
        }
    };
    Review::Authenticated(Account {
        namespace,
        name,
        pod: bound("authentication.kubernetes.io/pod-name"),
        pod_uid: bound("authentication.kubernetes.io/pod-uid"),
        node: bound("authentication.kubernetes.io/node-name"),
    })
}

fn texts(value: Option<&Value>) -> Vec<&str> {
    match value {
        Some(Value::List(items)) => items
            .iter()
            .map(|item| item.as_text().unwrap_or_default())
            .collect(),
        Some(_) | None => Vec::new(),
    }
}

/// Somebody else's text, for our log.
fn printable(text: &str) -> String {
    text.chars()
        .take(200)
        .flat_map(char::escape_debug)
        .collect()
}
