//! Documents as administrators propose them: tried or applied, and what stands against it.
//!
//! Whether they are right is the library's to say. Here it is asked whether *this* administrator may apply them, and
//! whether somebody would lose what they need: an administrator their role, a running workload its identity. The latter
//! may be meant, and then is named.

use std::collections::BTreeSet;
use std::sync::Arc;

use fender_api::code::Code;
use fender_api::proto::control::v1 as proto;
use fender_api::proto::control::v1::{ApplyRequest, ApplyResponse, Change, Problem, change};
use fender_config::{DocumentName, Role, Source, What};
use fender_identity::{SpiffeId, WorkloadName};
use tokio::sync::oneshot;
use tonic::Status;

use crate::callers::{Administrator, failed};
use crate::control::Control;
use crate::differences;
use crate::documents::{self, ApplyError, Author, InForce, Objection, Plan, Review, check_upon};
use crate::roles::{self, Rights};
use crate::store::StoreError;
use crate::store::audit::{Action, Outcome};
use crate::store::certificates;
use crate::time::seconds;

/// Objections told one by one; the rest only as a number.
const TOLD: usize = 50;

/// How a proposal is called in the audit log.
pub(super) fn action(request: &ApplyRequest) -> Action {
    match request.dry_run {
        true => Action::DryRun,
        false => Action::Apply,
    }
}

/// What is done on purpose, each by its name.
#[derive(Clone, Debug, Default)]
struct Consents {
    cut_off_admins: BTreeSet<String>,
    delete_in_use: BTreeSet<WorkloadName>,
}

impl Control {
    pub(super) async fn propose(
        self: &Arc<Self>,
        request: ApplyRequest,
        admin: Administrator,
    ) -> Result<ApplyResponse, Status> {
        let action = action(&request);
        let ApplyRequest {
            files,
            dry_run,
            upon,
            revision,
            cut_off_admins,
            delete_in_use,
        } = request;
        let files = match revision {
            0 => files
                .into_iter()
                .map(|file| Source {
                    name: file.name,
                    text: file.text,
                })
                .collect(),
            number => self.files_of(number).await?,
        };
        let delete_in_use = delete_in_use.iter().map(|name| name.parse());
        let consents = Consents {
            cut_off_admins: cut_off_admins.into_iter().collect(),
            delete_in_use: delete_in_use.collect::<Result<_, _>>().map_err(
                |error: fender_identity::WorkloadNameError| {
                    Code::BadRequest.status(error.to_string())
                },
            )?,
        };
        let review = Reviewer {
            control: Arc::clone(self),
            admin: admin.clone(),
            consents,
        };
        let answer = match dry_run {
            true => self.try_out(files, upon, &review).await,
            false => {
                let applied = self.apply(files, upon, revision, review).await;
                self.telemetry.apply(&applied);
                applied
            }
        };
        match answer {
            Ok(answer) => Ok(answer),
            Err(error) => self.not_applied(error, &admin, action).await,
        }
    }

    async fn try_out(
        &self,
        files: Vec<Source>,
        upon: Option<u64>,
        review: &Reviewer,
    ) -> Result<ApplyResponse, ApplyError> {
        let before = self.library.in_force();
        check_upon(upon, before.revision)?;
        let plan = self.library.plan(files.into()).await?;
        let objections = review.objections(&before, &plan).await?;
        let told = match objections.is_empty() {
            true => String::new(),
            false => format!("{} objections", objections.len()),
        };
        self.log(
            &review.admin,
            Action::DryRun,
            "documents",
            Outcome::Done,
            &told,
        )
        .await
        .map_err(|_| ApplyError::Failed)?;

        let mut warnings = plan.warnings;
        warnings.extend(self.sources.not_allowed(&plan.documents));
        let rights = review.admin.rights.clone();
        let differences = tokio::task::spawn_blocking(move || {
            differences::between(&before.files, &plan.files, |name| visible(name, &rights))
        });
        Ok(ApplyResponse {
            objections: told_of(objections),
            differences: differences.await.map_err(|_| ApplyError::Failed)?,
            ..shown(self.library.in_force().revision, &plan.changes, warnings)
        })
    }

    /// In a task of its own: an administrator who hangs up in the middle must not leave a revision half in force.
    async fn apply(
        self: &Arc<Self>,
        files: Vec<Source>,
        upon: Option<u64>,
        again: u64,
        review: Reviewer,
    ) -> Result<ApplyResponse, ApplyError> {
        let role = review.admin.rights.highest().map_or("nobody", Role::as_str);
        let again = match again {
            0 => String::new(),
            number => format!("; those of revision {number}"),
        };
        let author = Author {
            id: review.admin.id.clone(),
            action: Action::Apply,
            detail: format!("{again}; as {role} from {}", review.admin.source.text),
        };
        let (answer, applied) = oneshot::channel();
        let control = Arc::clone(self);
        self.drain.spawn(async move {
            let applied = control.library.apply(files, upon, &review, author).await;
            // Whoever asked may be gone: the status shows what came of it.
            let _ = answer.send(applied);
        });
        let done = applied.await.map_err(|_| StoreError::Stopped)??;
        let mut warnings = done.warnings;
        warnings.extend(self.sources.not_allowed(&self.library.in_force().documents));
        Ok(shown(done.revision, &done.changes, warnings))
    }

    async fn not_applied(
        &self,
        error: ApplyError,
        admin: &Administrator,
        action: Action,
    ) -> Result<ApplyResponse, Status> {
        match error {
            ApplyError::Problems(problems) => self.refuse(problems, admin, action).await,
            ApplyError::Objections(objections) => {
                let detail = match objections.first() {
                    Some(first) => {
                        format!("{} objections; {}", objections.len(), first.message)
                    }
                    None => String::new(),
                };
                let detail: String = detail.chars().take(512).collect();
                self.log(admin, action, "documents", Outcome::Refused, &detail)
                    .await?;
                Ok(ApplyResponse {
                    revision: self.library.in_force().revision,
                    objections: told_of(objections),
                    ..ApplyResponse::default()
                })
            }
            ApplyError::NotUpon { upon, in_force } => {
                let refused = Code::RevisionChanged.status(format!(
                    "revision {in_force} is in force, and not {upon}: look at what changed, and apply upon {in_force}"
                ));
                let code = Code::of(&refused).as_str();
                self.log(admin, action, "documents", Outcome::Refused, code)
                    .await?;
                Err(refused)
            }
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
            problems,
            ..ApplyResponse::default()
        })
    }
}

/// Whether an administrator may read a document. The `Mesh` says who may do what: that is not for everybody.
pub(super) fn visible(name: &DocumentName, rights: &Rights) -> bool {
    rights.security() || rights.hold(Role::Viewer, &name.namespace)
}

/// One administrator, and what they say they mean.
struct Reviewer {
    control: Arc<Control>,
    admin: Administrator,
    consents: Consents,
}

impl Review for Reviewer {
    async fn objections(
        &self,
        before: &InForce,
        plan: &Plan,
    ) -> Result<Vec<Objection>, StoreError> {
        // As the documents in force have it now: a role may have been taken away since the call began.
        let name = self.admin.id.admin_name().unwrap_or_default();
        let rights = Rights::of(&before.mesh, name);
        let mut all: Vec<_> =
            roles::missing(&rights, &before.documents, &plan.documents, &plan.changes)
                .into_iter()
                .map(|missing| lacking(missing, name))
                .collect();
        if all.is_empty() {
            all.extend(self.cut_off(before, plan, name).await?);
            all.extend(self.in_use(before, plan).await?);
        }
        Ok(all)
    }
}

impl Reviewer {
    /// Administrators who would lose the role `security`: whoever applies this, and the last who could undo it.
    async fn cut_off(
        &self,
        before: &InForce,
        plan: &Plan,
        own: &str,
    ) -> Result<Vec<Objection>, StoreError> {
        let after = roles::security(&plan.mesh);
        let lost: Vec<_> = roles::security(&before.mesh)
            .into_iter()
            .filter(|name| !after.contains(name))
            .collect();
        if lost.is_empty() {
            return Ok(Vec::new());
        }
        let anybody_left = self.can_still_call(&after).await?;
        let cut_off = lost
            .into_iter()
            .filter(|name| *name == own || !anybody_left)
            .filter(|name| !self.consents.cut_off_admins.contains(*name));
        Ok(cut_off
            .map(|name| Objection {
                code: Code::CutsOffAdmin,
                message: match (name == own, anybody_left) {
                    (true, true) => format!("you, `{name}`, would lose the role `security`"),
                    (_, false) => format!(
                        "`{name}` would lose the role `security`, and nobody who has it would have a valid certificate"
                    ),
                    (false, true) => format!("`{name}` would lose the role `security`"),
                },
                help: format!(
                    "keep `{{ name: {name}, role: security }}` among `spec.administrators`, or say that it is meant: \
                     --cut-off-admin {name}"
                ),
            })
            .collect())
    }

    /// Whether any of them has a certificate to call with.
    async fn can_still_call(&self, names: &[&str]) -> Result<bool, StoreError> {
        let trust_domain = self.control.authority.trust_domain();
        let ids: Vec<_> = names
            .iter()
            .filter_map(|name| SpiffeId::admin(trust_domain, name).ok())
            .map(|id| id.to_string())
            .collect();
        let now = self.control.clock.now();
        Ok(!certificates::in_use(&self.control.store, &ids, now)
            .await?
            .is_empty())
    }

    /// Workloads that somebody runs as, and nobody could be any more.
    async fn in_use(&self, before: &InForce, plan: &Plan) -> Result<Vec<Objection>, StoreError> {
        let trust_domain = self.control.authority.trust_domain();
        let orphaned: Vec<_> = roles::orphaned(&before.documents, &plan.documents, &plan.changes)
            .into_iter()
            .filter(|name| !self.consents.delete_in_use.contains(name))
            .collect();
        if orphaned.is_empty() {
            return Ok(Vec::new());
        }
        let ids: Vec<_> = orphaned
            .iter()
            .map(|name| SpiffeId::for_workload(trust_domain, name).to_string())
            .collect();
        let now = self.control.clock.now();
        let valid = certificates::in_use(&self.control.store, &ids, now).await?;
        let connected = self.control.registry.counts();
        let objection = |(name, id): (&WorkloadName, &String)| {
            let sidecars = connected.get(name).copied().unwrap_or(0);
            let until = valid.get(id).copied();
            let message = match (sidecars, until) {
                (0, None) => return None,
                (0, Some(until)) => {
                    format!(
                        "`{name}` has a certificate that is valid for {} s",
                        until - seconds(now)
                    )
                }
                (sidecars, _) => format!("`{name}` is in use: {sidecars} sidecars are connected"),
            };
            Some(Objection {
                code: Code::DeletesInUse,
                message,
                help: format!(
                    "whoever runs as it would hear of no change and could not renew; if that is meant: \
                     --delete-in-use {name}"
                ),
            })
        };
        Ok(orphaned
            .into_iter()
            .zip(&ids)
            .filter_map(objection)
            .collect())
    }
}

fn lacking(missing: roles::Missing, own: &str) -> Objection {
    let roles::Missing {
        kind,
        name,
        role,
        why,
    } = missing;
    let place = match name.split_once('/') {
        Some((namespace, _)) if role != Role::Security => format!(" in `{namespace}`"),
        Some(_) | None => String::new(),
    };
    Objection {
        code: Code::Denied,
        message: format!(
            "to change {kind} `{name}` like this takes the role `{role}`{place}: {why}"
        ),
        help: format!(
            "`{own}` does not hold it: ask somebody who does, or leave the document as it is in force"
        ),
    }
}

fn told_of(objections: Vec<Objection>) -> Vec<proto::Objection> {
    let more = objections.len().saturating_sub(TOLD);
    let code = objections.first().map(|first| first.code);
    let mut told: Vec<_> = objections
        .into_iter()
        .take(TOLD)
        .map(|objection| proto::Objection {
            code: objection.code.as_str().to_owned(),
            message: objection.message,
            help: objection.help,
        })
        .collect();
    if let (1.., Some(code)) = (more, code) {
        told.push(proto::Objection {
            code: code.as_str().to_owned(),
            message: format!("and {more} more"),
            help: String::new(),
        });
    }
    told
}

pub(super) fn change(change: &fender_config::Change) -> Change {
    Change {
        kind: change.kind.to_string(),
        name: change.name.clone(),
        what: match change.what {
            What::Added => change::What::Added,
            What::Changed => change::What::Changed,
            What::Removed => change::What::Removed,
        }
        .into(),
    }
}

fn shown(revision: u64, changes: &[fender_config::Change], warnings: Vec<String>) -> ApplyResponse {
    ApplyResponse {
        revision,
        changes: changes.iter().map(change).collect(),
        warnings,
        ..ApplyResponse::default()
    }
}
