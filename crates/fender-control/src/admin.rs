//! What administrators may do. Every call is theirs by certificate, and in the audit log with what became of it; a call
//! that changes something is logged in the transaction that changes it.

use std::sync::Arc;
use std::time::Duration;

use fender_api::code::Code;
use fender_api::proto::control::v1::admin_server::Admin;
use fender_api::proto::control::v1::{
    ApplyRequest, ApplyResponse, Authority as AuthorityStatus, AuthorityRole, Change,
    CreateTokenRequest, CreateTokenResponse, DecisionRecord, ExplainRequest, IssueSvidRequest,
    Problem, RotateAuthorityRequest, StatusRequest, StatusResponse, SvidResponse, WorkloadStatus,
    change,
};
use fender_config::snapshot::Profile;
use fender_config::{Attestor, Source, What};
use fender_identity::csr;
use fender_identity::{Serial, SpiffeId, WorkloadName};
use fender_runtime::id::OpaqueId;
use tokio::sync::oneshot;
use tonic::{Extensions, Request, Response, Status};

use crate::ca::issue::{Attested, Evidence, Grant};
use crate::ca::{CaError, Described, Wanted, lifetimes, sha256};
use crate::callers::{self, Administrator, NotAdministrator, failed, not_an_administrator};
use crate::control::{Control, not_issued};
use crate::documents::{self, ApplyError, Author};
use crate::store::audit::{self, Action, Outcome};
use crate::store::{certificates, tokens};
use crate::time::{later, seconds};

/// Refused calls per minute and identity that reach the audit log; the rest only reach the program's own.
pub(crate) const INTRUSIONS: u32 = 30;

/// The longest a join token may wait to be used.
const TOKEN_TTL: Duration = Duration::from_secs(7 * 24 * 3600);
/// Where people's identities lie. No document can describe a workload there.
const PEOPLE: &str = "people";

pub(crate) struct AdminService(pub(crate) Arc<Control>);

#[tonic::async_trait]
impl Admin for AdminService {
    async fn apply(
        &self,
        request: Request<ApplyRequest>,
    ) -> Result<Response<ApplyResponse>, Status> {
        let control = &self.0;
        let admin = control.administrator(request.extensions()).await?;
        let ApplyRequest { files, dry_run } = request.into_inner();
        let files = files
            .into_iter()
            .map(|file| Source {
                name: file.name,
                text: file.text,
            })
            .collect();
        let answer = match dry_run {
            true => control.try_out(files, &admin).await?,
            false => control.apply(files, &admin).await?,
        };
        Ok(Response::new(answer))
    }

    async fn create_token(
        &self,
        request: Request<CreateTokenRequest>,
    ) -> Result<Response<CreateTokenResponse>, Status> {
        let control = &*self.0;
        let admin = control.administrator(request.extensions()).await?;
        let request = request.into_inner();
        let subject = request.workload.clone();
        let made = control.create_token(request, &admin).await;
        control
            .answer_audited(made, &admin, Action::CreateToken, subject)
            .await
    }

    async fn status(
        &self,
        request: Request<StatusRequest>,
    ) -> Result<Response<StatusResponse>, Status> {
        let control = &*self.0;
        let admin = control.administrator(request.extensions()).await?;
        control
            .log(&admin, Action::Status, "", Outcome::Done, "")
            .await?;
        Ok(Response::new(control.status().await?))
    }

    async fn explain(
        &self,
        request: Request<ExplainRequest>,
    ) -> Result<Response<DecisionRecord>, Status> {
        let control = &*self.0;
        let admin = control.administrator(request.extensions()).await?;
        let id = request
            .into_inner()
            .id
            .parse::<OpaqueId>()
            .map_err(|_| Code::BadRequest.status("a decision id is 32 hexadecimal digits"))?
            .to_string();
        let found = crate::decisions::find(&control.store, &id)
            .await
            .map_err(failed)?;
        let outcome = match found {
            Some(_) => Outcome::Done,
            None => Outcome::Refused,
        };
        control
            .log(&admin, Action::Explain, &id, outcome, "")
            .await?;
        found.map(Response::new).ok_or_else(|| {
            Code::NotFound
                .status("no decision with this id: it is older than 7 days, or was never reported")
        })
    }

    async fn issue_svid(
        &self,
        request: Request<IssueSvidRequest>,
    ) -> Result<Response<SvidResponse>, Status> {
        let control = &*self.0;
        let admin = control.administrator(request.extensions()).await?;
        let request = request.into_inner();
        let subject = csr::parse(&request.csr)
            .map(|csr| csr.id.to_string())
            .unwrap_or_default();
        let issued = control.issue_svid(request, &admin).await;
        control
            .answer_audited(issued, &admin, Action::IssueSvid, subject)
            .await
    }

    async fn rotate_authority(
        &self,
        request: Request<RotateAuthorityRequest>,
    ) -> Result<Response<AuthorityStatus>, Status> {
        let control = &*self.0;
        let admin = control.administrator(request.extensions()).await?;
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
}

fn authority_status(authority: &Described) -> AuthorityStatus {
    AuthorityStatus {
        subject: authority.role.as_str().to_owned(),
        serial: authority.serial.to_string(),
        not_after_unix: seconds(authority.not_after),
        standing: authority.standing.as_str().to_owned(),
        signs_from_unix: seconds(authority.signs_from),
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
    async fn administrator(&self, extensions: &Extensions) -> Result<Administrator, Status> {
        let now = self.clock.now();
        callers::administrator(extensions, self.authority.trust_domain(), &self.store, now).await
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

    fn entry(
        &self,
        admin: &Administrator,
        action: Action,
        subject: &str,
        detail: String,
    ) -> audit::Entry {
        let from = format!("from {}", admin.source.text);
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

    async fn try_out(
        &self,
        files: Vec<Source>,
        admin: &Administrator,
    ) -> Result<ApplyResponse, Status> {
        let revision = self.library.in_force().revision;
        match self.library.plan(files).await {
            Ok(plan) => {
                self.log(admin, Action::DryRun, "documents", Outcome::Done, "")
                    .await?;
                let mut warnings = plan.warnings;
                warnings.extend(self.sources.not_allowed(&plan.documents));
                Ok(shown(revision, &plan.changes, warnings))
            }
            Err(error) => self.not_applied(error, admin, Action::DryRun).await,
        }
    }

    /// In a task of its own: an administrator who hangs up in the middle must not leave a revision half in force.
    async fn apply(
        self: &Arc<Self>,
        files: Vec<Source>,
        admin: &Administrator,
    ) -> Result<ApplyResponse, Status> {
        let author = Author {
            id: admin.id.clone(),
            action: Action::Apply,
        };
        let (answer, applied) = oneshot::channel();
        let control = Arc::clone(self);
        self.drain.spawn(async move {
            // Whoever asked may be gone: the status shows what came of it.
            let _ = answer.send(control.library.apply(files, author).await);
        });
        match applied.await {
            Ok(Ok(done)) => {
                let mut warnings = done.warnings;
                warnings.extend(self.sources.not_allowed(&self.library.in_force().documents));
                Ok(shown(done.revision, &done.changes, warnings))
            }
            Ok(Err(error)) => self.not_applied(error, admin, Action::Apply).await,
            Err(_) => Err(Code::Unavailable.status("the control plane is stopping")),
        }
    }

    async fn not_applied(
        &self,
        error: ApplyError,
        admin: &Administrator,
        action: Action,
    ) -> Result<ApplyResponse, Status> {
        match error {
            ApplyError::Problems(problems) => self.refuse(problems, admin, action).await,
            ApplyError::Store(error) => Err(failed(error)),
            ApplyError::Failed => Err(Code::Internal
                .status("the control plane could not read the documents; its log says why")),
        }
    }

    async fn refuse(
        &self,
        problems: Vec<documents::Problem>,
        admin: &Administrator,
        action: Action,
    ) -> Result<ApplyResponse, Status> {
        let detail = match problems.first() {
            Some(first) => format!("{} problems; {first}", problems.len()),
            None => String::new(),
        };
        let detail: String = detail.chars().take(512).collect();
        self.log(admin, action, "documents", Outcome::Refused, &detail)
            .await?;
        let number = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        let problems = problems
            .into_iter()
            .map(|problem| Problem {
                line: number(problem.line),
                column: number(problem.column),
                file: problem.file,
                code: problem.code.to_owned(),
                message: problem.message,
                help: problem.help.unwrap_or_default(),
            })
            .collect();
        Ok(ApplyResponse {
            revision: self.library.in_force().revision,
            changes: Vec::new(),
            problems,
            warnings: Vec::new(),
        })
    }

    async fn create_token(
        &self,
        request: CreateTokenRequest,
        admin: &Administrator,
    ) -> Result<CreateTokenResponse, Status> {
        let workload: WorkloadName =
            request
                .workload
                .parse()
                .map_err(|error: fender_identity::WorkloadNameError| {
                    Code::BadRequest.status(error.to_string())
                })?;
        let ttl = Duration::from_secs(request.ttl_seconds);
        if ttl.is_zero() || ttl > TOKEN_TTL {
            return Err(Code::BadRequest.status("a join token lives from one second to seven days"));
        }
        let in_force = self.library.in_force();
        let document = in_force.documents.workloads.get(&workload).ok_or_else(|| {
            Code::IdentityUnknown.status(format!(
                "no document describes the workload `{workload}`: apply one first"
            ))
        })?;
        if !document.attest.contains(&Attestor::Token) {
            return Err(Code::NotAttestable.status(format!(
                "the workload `{workload}` does not list `token` under `attest`, so nobody could use this"
            )));
        }

        let mut secret = vec![0; 32];
        aws_lc_rs::rand::fill(&mut secret).map_err(|_| Code::Internal.status("no randomness"))?;
        let now = self.clock.now();
        let identity = document.spiffe_id(self.authority.trust_domain());
        let expires = later(now, ttl);
        let detail = format!("for {} s", ttl.as_secs());
        let create = tokens::Create {
            secret_sha256: sha256(&secret),
            identity: identity.clone(),
            by: admin.id.clone(),
            at: now,
            expires,
            entry: self.entry(admin, Action::CreateToken, identity.as_str(), detail),
        };
        self.store.write(create).await.map_err(failed)?;
        Ok(CreateTokenResponse {
            secret,
            identity: identity.to_string(),
            ca_pins: self
                .authority
                .pins()
                .iter()
                .map(|pin| pin.as_bytes().to_vec())
                .collect(),
            expires_unix: seconds(expires),
        })
    }

    /// A certificate for a person: nobody else's identity can be had this way.
    async fn issue_svid(
        &self,
        request: IssueSvidRequest,
        admin: &Administrator,
    ) -> Result<SvidResponse, Status> {
        let csr =
            csr::parse(&request.csr).map_err(|error| Code::CsrInvalid.status(error.to_string()))?;
        let person = csr.id.workload().filter(|name| {
            name.namespace() == PEOPLE && csr.id.trust_domain() == self.authority.trust_domain()
        });
        if person.is_none() {
            return Err(Code::IdentityReserved.status(format!(
                "certificates for people are `spiffe://{}/ns/{PEOPLE}/sa/NAME`",
                self.authority.trust_domain()
            )));
        }
        let lifetime = Duration::from_secs(request.ttl_seconds);
        if lifetime.is_zero() || lifetime > lifetimes::PERSON {
            return Err(
                Code::BadRequest.status("a person's certificate lives from one second to 24 hours")
            );
        }

        let identity = csr.id.clone();
        let detail = format!("for {} s", lifetime.as_secs());
        let entry = self.entry(admin, Action::IssueSvid, identity.as_str(), detail);
        let evidence = Evidence::Administrator {
            by: admin.id.clone(),
            source: admin.source.text.clone(),
        };
        let grant = Grant {
            lifetime,
            dns_names: Vec::new(),
        };
        let attested = Attested::new(identity, csr, grant, evidence).map_err(not_issued)?;
        let issued = self
            .authority
            .issue(attested, self.clock.now())
            .map_err(not_issued)?;
        let recorded = issued
            .record_audited(&self.store, entry)
            .await
            .map_err(failed)?;
        Ok(self.answer(recorded))
    }

    async fn rotate_authority(
        &self,
        wanted: Wanted,
        admin: &Administrator,
    ) -> Result<AuthorityStatus, Status> {
        let lifetimes = self.library.in_force().mesh.lifetimes;
        let entry = |serial: &Serial| {
            self.entry(
                admin,
                Action::RotateAuthority,
                &serial.to_string(),
                String::new(),
            )
        };
        let made = self
            .authority
            .rotate(&self.store, &lifetimes, wanted, self.clock.now(), entry)
            .await
            .map_err(not_rotated)?;
        tracing::info!(serial = %made.serial, by = %admin.id, "{} certificate authority made for an administrator", made.role.as_str());
        Ok(authority_status(&made))
    }

    async fn status(&self) -> Result<StatusResponse, Status> {
        let in_force = self.library.in_force();
        let mut sidecars = self.registry.sidecars();
        let mut tallies: std::collections::HashMap<_, _> = certificates::tallies(&self.store)
            .await
            .map_err(failed)?
            .into_iter()
            .map(|tally| (tally.identity.clone(), tally))
            .collect();
        let workloads = in_force
            .documents
            .workloads
            .values()
            .map(|workload| {
                let identity = workload
                    .spiffe_id(self.authority.trust_domain())
                    .to_string();
                let tally = tallies.remove(&identity);
                WorkloadStatus {
                    name: workload.name.to_string(),
                    sidecars: sidecars.remove(&workload.name).unwrap_or_default(),
                    certificates_issued: tally.as_ref().map_or(0, |tally| tally.issued),
                    last_not_after_unix: tally.map_or(0, |tally| tally.last_not_after),
                    identity,
                }
            })
            .collect();
        let state = self.authority.state();
        let authorities = state.known.iter().map(authority_status).collect();
        Ok(StatusResponse {
            trust_domain: self.authority.trust_domain().to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            revision: in_force.revision,
            development: in_force.mesh.profile == Profile::Development,
            now_unix: seconds(self.clock.now()),
            authorities,
            workloads,
            unrecoverable_unix: seconds(state.horizon.at),
            unrecoverable_because: state.horizon.ends.as_str().to_owned(),
        })
    }
}

fn not_rotated(error: CaError) -> Status {
    match error {
        CaError::Announced { .. } | CaError::KeyElsewhere | CaError::Overtaken => {
            Code::BadRequest.status(error.to_string())
        }
        CaError::Store(error) => failed(error),
        CaError::RootExpired
        | CaError::BeforeRoot { .. }
        | CaError::NoIntermediate
        | CaError::Make(_)
        | CaError::Bundle(_)
        | CaError::Seal(_) => {
            tracing::error!(%error, "an authority was not made");
            Code::Internal.status("the control plane could not make an authority; its log says why")
        }
    }
}

fn shown(revision: u64, changes: &[fender_config::Change], warnings: Vec<String>) -> ApplyResponse {
    let changes = changes
        .iter()
        .map(|change| Change {
            kind: change.kind.to_string(),
            name: change.name.clone(),
            what: match change.what {
                What::Added => change::What::Added,
                What::Changed => change::What::Changed,
                What::Removed => change::What::Removed,
            }
            .into(),
        })
        .collect();
    ApplyResponse {
        revision,
        changes,
        problems: Vec::new(),
        warnings,
    }
}
