//! Join tokens that are made already: which there are, and taking them back. Who may make a token may see it listed and
//! take it back. Nobody is shown the token: only its hash is here, and of that only the beginning is told.

use fender_api::code::Code;
use fender_api::proto::control::v1::revoke_tokens_request::Which as Asked;
use fender_api::proto::control::v1::{
    ListTokensRequest, ListTokensResponse, RevokeTokensRequest, RevokeTokensResponse, UnspentToken,
};
use fender_config::Role;
use fender_identity::{NodeName, SpiffeId, WorkloadName};
use tonic::Status;

use super::lacks;
use crate::callers::{Administrator, failed};
use crate::control::Control;
use crate::store::audit::Action;
use crate::store::tokens::{self, PAGE, Unspent, Which};
use crate::time::seconds;

/// What is asked for, as the audit log calls it.
pub(super) fn subject(request: &RevokeTokensRequest) -> String {
    match &request.which {
        Some(Asked::Id(id)) => format!("token {id}"),
        Some(Asked::Workload(workload)) => workload.clone(),
        Some(Asked::Node(node)) => format!("node {node}"),
        None => String::new(),
    }
}

impl Control {
    pub(super) async fn list_tokens(
        &self,
        request: ListTokensRequest,
        admin: &Administrator,
    ) -> Result<ListTokensResponse, Status> {
        let only = match (request.workload.as_str(), request.node.as_str()) {
            ("", "") => None,
            (workload, "") => Some(self.bearer_of(workload, "", admin)?),
            (workload, node) => Some(self.bearer_of(workload, node, admin)?),
        };
        let after = match request.after.as_str() {
            "" => Vec::new(),
            after => id(after)?,
        };
        let page = tokens::unspent(self.store.reads(), self.clock.now(), &after)
            .await
            .map_err(failed)?;
        let next = match (page.len() < PAGE, page.last()) {
            (false, Some(last)) => tokens::short(&last.secret_sha256),
            (true, _) | (false, None) => String::new(),
        };
        let tokens = page
            .into_iter()
            .filter(|token| only.as_ref().is_none_or(|only| *only == token.identity))
            .filter(|token| may_have(&token.identity, admin).is_ok())
            .map(told)
            .collect();
        Ok(ListTokensResponse { tokens, next })
    }

    pub(super) async fn revoke_tokens(
        &self,
        request: RevokeTokensRequest,
        admin: &Administrator,
    ) -> Result<RevokeTokensResponse, Status> {
        let subject = subject(&request);
        let now = self.clock.now();
        let none = || {
            Code::NotFound
                .status("no join token that can still be used is called so, or is for this bearer")
        };
        let (which, whose) = match request.which {
            Some(Asked::Id(text)) => {
                let found = tokens::called(self.store.reads(), now, &id(&text)?)
                    .await
                    .map_err(failed)?
                    // Whom others make tokens for is not told to whoever guesses.
                    .filter(|token| may_have(&token.identity, admin).is_ok())
                    .ok_or_else(none)?;
                (Which::One(found.secret_sha256), found.identity)
            }
            Some(Asked::Workload(workload)) => {
                let whose = self.bearer_of(&workload, "", admin)?;
                (Which::Of(whose.clone()), whose)
            }
            Some(Asked::Node(node)) => {
                let whose = self.bearer_of("", &node, admin)?;
                (Which::Of(whose.clone()), whose)
            }
            None => return Err(Code::BadRequest.status("no token is named")),
        };
        let withdraw = tokens::Withdraw {
            which,
            at: now,
            entry: self.entry(admin, Action::RevokeTokens, &subject, format!("of {whose}")),
        };
        match self.store.write(withdraw).await.map_err(failed)? {
            0 => Err(none()),
            revoked => {
                tracing::info!(%whose, revoked, by = %admin.id, "join tokens revoked");
                Ok(RevokeTokensResponse { revoked })
            }
        }
    }

    /// Whom tokens are for; the bearer's document may be gone by now.
    fn bearer_of(
        &self,
        workload: &str,
        node: &str,
        admin: &Administrator,
    ) -> Result<SpiffeId, Status> {
        let trust_domain = self.authority.trust_domain();
        let bad =
            |error: fender_identity::WorkloadNameError| Code::BadRequest.status(error.to_string());
        let identity = match (workload, node) {
            (workload, "") => {
                let workload: WorkloadName = workload.parse().map_err(bad)?;
                SpiffeId::for_workload(trust_domain, &workload)
            }
            ("", node) => {
                let node: NodeName = node.parse().map_err(bad)?;
                SpiffeId::for_agent(trust_domain, &node)
            }
            (_, _) => {
                return Err(Code::BadRequest.status("a join token is for a workload or for a node"));
            }
        };
        may_have(&identity, admin).map_err(|role| {
            lacks(
                admin,
                role,
                &format!("to look after the tokens of `{identity}`"),
            )
        })?;
        Ok(identity)
    }
}

/// Whether an administrator may make tokens for this bearer, and so look after them; if not, the role it takes.
fn may_have(identity: &SpiffeId, admin: &Administrator) -> Result<(), Role> {
    match identity.workload() {
        Some(workload) if admin.rights.hold(Role::Operator, workload.namespace()) => Ok(()),
        Some(_) => Err(Role::Operator),
        None if admin.rights.security() => Ok(()),
        None => Err(Role::Security),
    }
}

/// What [`tokens::short`] prints.
fn id(text: &str) -> Result<Vec<u8>, Status> {
    let digit = |digit: u8| char::from(digit).to_digit(16);
    let bytes = text
        .as_bytes()
        .chunks(2)
        .map(|pair| match pair {
            [high, low] => u8::try_from(digit(*high)? * 16 + digit(*low)?).ok(),
            _ => None,
        })
        .collect::<Option<Vec<_>>>();
    bytes
        .filter(|bytes| text.len() == tokens::short(&[0; 32]).len() && !bytes.is_empty())
        .ok_or_else(|| {
            Code::BadRequest.status("a join token is called by 16 hexadecimal digits, as `fender token list` shows them")
        })
}

fn told(token: Unspent) -> UnspentToken {
    UnspentToken {
        id: tokens::short(&token.secret_sha256),
        identity: token.identity.to_string(),
        created_by: token.by,
        created_unix: seconds(token.created),
        expires_unix: seconds(token.expires),
    }
}
