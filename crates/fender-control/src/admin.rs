//! What administrators may do. Every call is theirs by certificate and takes a role, and is in the audit log with the
//! role and what became of it; a call that changes something is logged in the transaction that changes it.

mod apply;
mod credentials;
mod issue;
mod revisions;
mod status;
mod unspent;

use std::pin::Pin;
use std::sync::Arc;

use fender_api::code::Code;
use fender_api::proto::control::v1::admin_server::Admin;
use fender_api::proto::control::v1::{
    ApplyRequest, ApplyResponse, AuditLogRequest, AuditLogResponse, Authority as AuthorityStatus,
    AuthorityRole, CompareRequest, CompareResponse, CreateTokenRequest, CreateTokenResponse,
    CredentialsAnswer, CredentialsRequest, DecisionRecord, ExplainRequest, IssueSvidRequest,
    ListRevocationsRequest, ListRevocationsResponse, ListTokensRequest, ListTokensResponse,
    RevisionsRequest, RevisionsResponse, Revocation, RevocationListsRequest,
    RevocationListsResponse, RevokeRequest, RevokeTokensRequest, RevokeTokensResponse,
    RotateAuthorityRequest, ShowRevisionRequest, ShowRevisionResponse, StatusRequest,
    StatusResponse, SvidResponse,
};
use fender_config::Role;
use fender_identity::{SpiffeId, csr};
use fender_runtime::id::OpaqueId;
use tokio_stream::Stream;
use tonic::{Extensions, Request, Response, Status};

use crate::ca::Wanted;
use crate::callers::{self, Administrator, NotAdministrator, failed, not_an_administrator};
use crate::control::Control;
use crate::listings::List;
use crate::revocation;
use crate::roles::Rights;
use crate::store::audit::{self, Action, Outcome};
use crate::telemetry::Asked;

/// Refused calls per minute and identity that reach the audit log; the rest only reach the program's own.
pub(crate) const INTRUSIONS: u32 = 30;

/// Entries of the audit log told at once. Every text in one is short, so they fit into a message.
const AUDIT_PAGE: i64 = 256;

pub(crate) struct AdminService(pub(crate) Arc<Control>);

#[tonic::async_trait]
impl Admin for AdminService {
    async fn apply(
        &self,
        request: Request<ApplyRequest>,
    ) -> Result<Response<ApplyResponse>, Status> {
        let control = &self.0;
        let action = apply::action(request.get_ref());
        let admin = control
            .administrator(request.extensions(), Role::Operator, action)
            .await?;
        let answer = control.propose(request.into_inner(), admin).await?;
        Ok(Response::new(answer))
    }

    async fn create_token(
        &self,
        request: Request<CreateTokenRequest>,
    ) -> Result<Response<CreateTokenResponse>, Status> {
        let control = &*self.0;
        let admin = control
            .administrator(request.extensions(), Role::Operator, Action::CreateToken)
            .await?;
        let request = request.into_inner();
        let subject = match request.node.as_str() {
            "" => request.workload.clone(),
            node => format!("node {node}"),
        };
        let made = control.create_token(request, &admin).await;
        control
            .answer_audited(made, &admin, Action::CreateToken, subject)
            .await
    }

    async fn list_tokens(
        &self,
        request: Request<ListTokensRequest>,
    ) -> Result<Response<ListTokensResponse>, Status> {
        let control = &*self.0;
        let admin = control
            .administrator(request.extensions(), Role::Operator, Action::ListTokens)
            .await?;
        let request = request.into_inner();
        let subject = match request.node.as_str() {
            "" => request.workload.clone(),
            node => format!("node {node}"),
        };
        let list = admin.list(Action::ListTokens, subject.clone());
        let after = request.after.clone();
        let listed = control.list_tokens(request, &admin).await;
        if let Ok(page) = &listed {
            control.log_list(&admin, &list, &after).await?;
            control.listings.told(list, page.next.clone());
        }
        control
            .answer_audited(listed, &admin, Action::ListTokens, subject)
            .await
    }

    async fn revoke_tokens(
        &self,
        request: Request<RevokeTokensRequest>,
    ) -> Result<Response<RevokeTokensResponse>, Status> {
        let control = &*self.0;
        let admin = control
            .administrator(request.extensions(), Role::Operator, Action::RevokeTokens)
            .await?;
        let request = request.into_inner();
        let subject = unspent::subject(&request);
        let revoked = control.revoke_tokens(request, &admin).await;
        control
            .answer_audited(revoked, &admin, Action::RevokeTokens, subject)
            .await
    }

    async fn status(
        &self,
        request: Request<StatusRequest>,
    ) -> Result<Response<StatusResponse>, Status> {
        let control = &self.0;
        let admin = control
            .administrator(request.extensions(), Role::Viewer, Action::Status)
            .await?;
        let request = request.into_inner();
        let of = match request.workload.as_str() {
            "" => request.namespace.clone(),
            workload => workload.to_owned(),
        };
        let list = admin.list(Action::Status, of);
        control.log_list(&admin, &list, &request.after).await?;
        let page = control.status(request, &admin).await?;
        control.listings.told(list, page.next.clone());
        Ok(Response::new(page))
    }

    type CredentialsStream = Pin<Box<dyn Stream<Item = Result<CredentialsAnswer, Status>> + Send>>;

    async fn credentials(
        &self,
        request: Request<CredentialsRequest>,
    ) -> Result<Response<Self::CredentialsStream>, Status> {
        let control = &self.0;
        let admin = control
            .administrator(request.extensions(), Role::Viewer, Action::Credentials)
            .await?;
        let request = request.into_inner();
        let subject = match request.name.as_str() {
            "" => request.namespace.clone(),
            name => name.to_owned(),
        };
        let told = control.held_credentials(request, &admin).await;
        let told = control
            .answer_read(told, &admin, Action::Credentials, subject)
            .await?;
        Ok(told.map(|told| {
            let told = tokio_stream::iter(told.into_iter().map(Ok));
            Box::pin(told) as Self::CredentialsStream
        }))
    }

    async fn explain(
        &self,
        request: Request<ExplainRequest>,
    ) -> Result<Response<DecisionRecord>, Status> {
        let control = &*self.0;
        let admin = control
            .administrator(request.extensions(), Role::Viewer, Action::Explain)
            .await?;
        let id = request
            .into_inner()
            .id
            .parse::<OpaqueId>()
            .map_err(|_| Code::BadRequest.status("a decision id is 32 hexadecimal digits"))?
            .to_string();
        // Who has no role where it was decided learns no more than that they have none.
        let found = crate::decisions::find(&control.store, &id)
            .await
            .map_err(failed)?
            .filter(|record| {
                let namespace = record.workload.split_once('/').map_or("", |(of, _)| of);
                admin.rights.hold(Role::Viewer, namespace)
            });
        let outcome = match found {
            Some(_) => Outcome::Done,
            None => Outcome::Refused,
        };
        control
            .log(&admin, Action::Explain, &id, outcome, "")
            .await?;
        found.map(Response::new).ok_or_else(|| {
            Code::NotFound
                .status("no decision with this id that you may see: it is of a namespace in which you have no role, older than 7 days, or was never reported")
        })
    }

    async fn issue_svid(
        &self,
        request: Request<IssueSvidRequest>,
    ) -> Result<Response<SvidResponse>, Status> {
        let control = &*self.0;
        let admin = control
            .administrator(request.extensions(), Role::Operator, Action::IssueSvid)
            .await?;
        let request = request.into_inner();
        let subject = csr::parse(&request.csr)
            .map(|csr| csr.id.to_string())
            .unwrap_or_default();
        let issued = control.issue_svid(request, &admin).await;
        control.telemetry.issuance(Asked::Administrator, &issued);
        control
            .answer_audited(issued, &admin, Action::IssueSvid, subject)
            .await
    }

    async fn rotate_authority(
        &self,
        request: Request<RotateAuthorityRequest>,
    ) -> Result<Response<AuthorityStatus>, Status> {
        let control = &*self.0;
        let admin = control
            .administrator(
                request.extensions(),
                Role::Security,
                Action::RotateAuthority,
            )
            .await?;
        let (wanted, subject) = match request.into_inner().role() {
            AuthorityRole::Root => (Ok(Wanted::Root), "root"),
            AuthorityRole::Intermediate => (Ok(Wanted::Intermediate), "intermediate"),
            AuthorityRole::Unspecified => (
                Err(Code::BadRequest.status("an authority is a root or an intermediate")),
                "",
            ),
        };
        let made = match wanted {
            Ok(wanted) => control.rotate_authority(wanted, &admin).await,
            Err(refused) => Err(refused),
        };
        control
            .answer_audited(made, &admin, Action::RotateAuthority, subject.to_owned())
            .await
    }

    async fn revoke(
        &self,
        request: Request<RevokeRequest>,
    ) -> Result<Response<Revocation>, Status> {
        let control = &self.0;
        let admin = control
            .administrator(request.extensions(), Role::Security, Action::Revoke)
            .await?;
        let request = request.into_inner();
        let subject = revocation::subject(&request);
        let revoked = control.revoke(request, &admin).await;
        control
            .answer_audited(revoked, &admin, Action::Revoke, subject)
            .await
    }

    async fn list_revocations(
        &self,
        request: Request<ListRevocationsRequest>,
    ) -> Result<Response<ListRevocationsResponse>, Status> {
        let control = &*self.0;
        let admin = control
            .administrator(request.extensions(), Role::Security, Action::Revocations)
            .await?;
        control
            .log(&admin, Action::Revocations, "", Outcome::Done, "")
            .await?;
        Ok(Response::new(control.revocations().await?))
    }

    async fn revocation_lists(
        &self,
        request: Request<RevocationListsRequest>,
    ) -> Result<Response<RevocationListsResponse>, Status> {
        let control = &*self.0;
        // Every sidecar is told the same: who may see anything may see these.
        let admin = control
            .administrator(request.extensions(), Role::Viewer, Action::Revocations)
            .await?;
        control
            .log(&admin, Action::Revocations, "lists", Outcome::Done, "")
            .await?;
        let announced = control.trust.follow().borrow().clone();
        let lists = announced.trust.crls.iter();
        Ok(Response::new(RevocationListsResponse {
            lists: lists.map(|list| list.to_vec()).collect(),
        }))
    }

    async fn audit_log(
        &self,
        request: Request<AuditLogRequest>,
    ) -> Result<Response<AuditLogResponse>, Status> {
        let control = &*self.0;
        let admin = control
            .administrator(request.extensions(), Role::Security, Action::AuditLog)
            .await?;
        let request = request.into_inner();
        let of = match request.since_unix {
            0 => String::new(),
            since => format!("since {since}"),
        };
        let list = admin.list(Action::AuditLog, of);
        let after = match request.after {
            0 => String::new(),
            after => after.to_string(),
        };
        control.log_list(&admin, &list, &after).await?;
        let page = control.audit_log(request).await?;
        // Only whoever asks for more finds out that this was all.
        let next = page.entries.last().map(|entry| entry.sequence.to_string());
        control.listings.told(list, next.unwrap_or_default());
        Ok(Response::new(page))
    }

    async fn revisions(
        &self,
        request: Request<RevisionsRequest>,
    ) -> Result<Response<RevisionsResponse>, Status> {
        let control = &*self.0;
        let admin = control
            .administrator(request.extensions(), Role::Viewer, Action::Revisions)
            .await?;
        let request = request.into_inner();
        let list = admin.list(Action::Revisions, String::new());
        let before = match request.before {
            0 => String::new(),
            before => before.to_string(),
        };
        control.log_list(&admin, &list, &before).await?;
        let page = control.revisions(request).await?;
        // Only whoever asks for more finds out that this was all.
        let next = page.revisions.last().map(|last| last.number.to_string());
        control.listings.told(list, next.unwrap_or_default());
        Ok(Response::new(page))
    }

    async fn show_revision(
        &self,
        request: Request<ShowRevisionRequest>,
    ) -> Result<Response<ShowRevisionResponse>, Status> {
        let control = &*self.0;
        let admin = control
            .administrator(request.extensions(), Role::Viewer, Action::ShowRevision)
            .await?;
        let number = request.into_inner().number;
        let subject = revisions::subject(number);
        let shown = control.show_revision(number, &admin).await;
        control
            .answer_read(shown, &admin, Action::ShowRevision, subject)
            .await
    }

    async fn compare(
        &self,
        request: Request<CompareRequest>,
    ) -> Result<Response<CompareResponse>, Status> {
        let control = &*self.0;
        let admin = control
            .administrator(request.extensions(), Role::Viewer, Action::Compare)
            .await?;
        let request = request.into_inner();
        let subject = revisions::compared(&request);
        let compared = control.compare(request, &admin).await;
        control
            .answer_read(compared, &admin, Action::Compare, subject)
            .await
    }
}

/// Turns away whoever does not even claim to be an administrator, before the body of the call is read.
pub(crate) fn gate(
    control: Arc<Control>,
) -> impl FnMut(Request<()>) -> Result<Request<()>, Status> + Clone {
    move |request| {
        let trust_domain = control.authority.trust_domain();
        match callers::claims_administration(request.extensions(), trust_domain) {
            Ok(()) => Ok(request),
            Err(NotAdministrator::Nobody(status)) => Err(status),
            Err(NotAdministrator::Somebody(id)) => {
                control.turned_away(id);
                Err(not_an_administrator())
            }
        }
    }
}

impl Control {
    /// The administrator who calls, if they hold the role anywhere. Where it must hold is for the call to ask.
    async fn administrator(
        &self,
        extensions: &Extensions,
        role: Role,
        action: Action,
    ) -> Result<Administrator, Status> {
        let now = self.clock.now();
        let trust_domain = self.authority.trust_domain();
        let (peer, source) =
            callers::administrator(extensions, trust_domain, &self.store, now).await?;
        let in_force = self.library.in_force();
        let id = peer.id().clone();
        let rights = Rights::of(&in_force.mesh, id.admin_name().unwrap_or_default());
        let admin = Administrator {
            id,
            serial: peer.serial().clone(),
            source,
            rights,
        };
        if admin.rights.highest().is_none() {
            self.turned_away(admin.id);
            return Err(Code::Denied.status(
                "no document names you as an administrator: `spec.administrators` of the `Mesh` does",
            ));
        }
        if admin.rights.hold_somewhere(role) {
            return Ok(admin);
        }
        self.log(&admin, action, "", Outcome::Refused, &takes(role))
            .await?;
        Err(lacks(&admin, role, "this call"))
    }

    /// Records the attempt, up to a bound per identity: a workload must not be able to fill the log.
    fn turned_away(&self, id: SpiffeId) {
        tracing::warn!(%id, "administrative call refused: not an administrator");
        if self.intruders.exceeded(&id) {
            return;
        }
        self.intruders.count(id.clone());
        let entry = audit::Entry {
            time: self.clock.now(),
            actor: id,
            action: Action::AnyAdministration,
            subject: String::new(),
            outcome: Outcome::Refused,
            detail: "not an administrator".to_owned(),
        };
        if self.refused.try_send(entry).is_err() {
            tracing::warn!("a refused administrative call did not reach the audit log");
        }
    }

    pub(crate) fn entry(
        &self,
        admin: &Administrator,
        action: Action,
        subject: &str,
        detail: String,
    ) -> audit::Entry {
        let role = admin.rights.highest().map_or("nobody", Role::as_str);
        let from = format!("as {role} from {}", admin.source.text);
        audit::Entry {
            time: self.clock.now(),
            actor: admin.id.clone(),
            action,
            subject: subject.chars().take(512).collect(),
            outcome: Outcome::Done,
            detail: if detail.is_empty() {
                from
            } else {
                format!("{detail}; {from}")
            },
        }
    }

    async fn log(
        &self,
        admin: &Administrator,
        action: Action,
        subject: &str,
        outcome: Outcome,
        detail: &str,
    ) -> Result<(), Status> {
        let entry = audit::Entry {
            outcome,
            ..self.entry(admin, action, subject, detail.to_owned())
        };
        self.store.write(audit::Append(entry)).await.map_err(failed)
    }

    /// A list is an entry where it begins, and where somebody begins in the middle of it.
    async fn log_list(
        &self,
        admin: &Administrator,
        list: &List,
        after: &str,
    ) -> Result<(), Status> {
        if self.listings.goes_on(list, after) {
            return Ok(());
        }
        let from = match after {
            "" => String::new(),
            after => format!(
                "from behind {}",
                after.chars().take(128).collect::<String>()
            ),
        };
        self.log(admin, list.action, &list.of, Outcome::Done, &from)
            .await
    }

    /// What succeeded is in the log with what it changed; what was refused is logged here.
    async fn answer_audited<T>(
        &self,
        result: Result<T, Status>,
        admin: &Administrator,
        action: Action,
        subject: String,
    ) -> Result<Response<T>, Status> {
        match result {
            Ok(answer) => Ok(Response::new(answer)),
            Err(status) => {
                let code = Code::of(&status).as_str();
                self.log(admin, action, &subject, Outcome::Refused, code)
                    .await?;
                Err(status)
            }
        }
    }

    /// What only reads is logged here, whatever came of it: before the answer is given.
    async fn answer_read<T>(
        &self,
        result: Result<T, Status>,
        admin: &Administrator,
        action: Action,
        subject: String,
    ) -> Result<Response<T>, Status> {
        if result.is_ok() {
            self.log(admin, action, &subject, Outcome::Done, "").await?;
        }
        self.answer_audited(result, admin, action, subject).await
    }

    async fn audit_log(&self, request: AuditLogRequest) -> Result<AuditLogResponse, Status> {
        let skipped = match request.last {
            0 => 0,
            last => audit::length(self.store.reader())
                .await
                .map_err(failed)?
                .saturating_sub(last),
        };
        let after = request.after.max(skipped);
        let entries = audit::page(self.store.reader(), after, request.since_unix, AUDIT_PAGE)
            .await
            .map_err(failed)?;
        Ok(AuditLogResponse { entries })
    }
}

impl Administrator {
    fn list(&self, action: Action, of: String) -> List {
        List {
            reader: self.serial.clone(),
            action,
            of,
        }
    }
}

fn takes(role: Role) -> String {
    format!("takes the role `{role}`")
}

/// A call that takes more than the administrator holds.
fn lacks(admin: &Administrator, role: Role, what: &str) -> Status {
    let held = admin.rights.highest().map_or("nobody", Role::as_str);
    Code::Denied.status(format!(
        "{what} takes the role `{role}` there, and you are `{held}`"
    ))
}
