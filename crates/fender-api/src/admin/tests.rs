use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use fender_runtime::clock::Clock as _;
use fender_runtime::drain::Drain;

use super::*;
use crate::code::EXIT_REFUSED;
use crate::testing::{Authority, Control, DOMAIN, ORDERS, id};

fn directory(mode: u32) -> tempfile::TempDir {
    let id = SpiffeId::admin(&DOMAIN.parse().unwrap(), "first").unwrap();
    directory_of(&Authority::new(), &id, mode)
}

fn directory_of(ca: &Authority, id: &SpiffeId, mode: u32) -> tempfile::TempDir {
    let svid = ca.svid(id);
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("certificate.pem"), svid.chain_pem()).unwrap();
    fs::write(dir.path().join("bundle.pem"), ca.bundle().to_pem()).unwrap();
    let key = dir.path().join("key.pem");
    fs::write(&key, svid.key_pem().expose()).unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(mode)).unwrap();
    dir
}

#[test]
fn an_admin_directory_is_an_identity() {
    let dir = directory(0o600);
    let identity = AdminIdentity::load(dir.path()).unwrap();
    assert_eq!(identity.svid().id().admin_name(), Some("first"));
    assert_eq!(identity.bundle().trust_domain().as_str(), DOMAIN);
}

#[test]
fn an_admin_key_others_may_read_is_refused_with_the_way_out() {
    let dir = directory(0o644);
    let error = AdminIdentity::load(dir.path()).unwrap_err();
    assert!(error.to_string().contains("chmod 0400"), "{error}");
    assert_eq!(error.exit_code(), EXIT_USAGE);
}

#[test]
fn what_was_applied_survives_the_wire() {
    let applied = Applied {
        revision: 3,
        changes: vec![
            Change {
                kind: "Workload".into(),
                name: "shop/orders".into(),
                what: What::Added,
            },
            Change {
                kind: "Upstream".into(),
                name: "shop/db".into(),
                what: What::Removed,
            },
            Change {
                kind: "Mesh".into(),
                name: "mesh".into(),
                what: What::Changed,
            },
        ],
        problems: vec![Problem {
            file: "shop.yaml".into(),
            line: 3,
            column: 7,
            code: "unknown-field".into(),
            message: "unknown field `lisen`".into(),
            help: "did you mean `listen`?".into(),
        }],
        warnings: vec!["the mesh allows by default".into()],
        objections: vec![Objection {
            code: "denied".into(),
            message: "takes `security`".into(),
            help: "ask ada".into(),
        }],
        differences: vec![Difference {
            kind: "Workload".into(),
            name: "shop/orders".into(),
            text: "+ spec: {}\n".into(),
        }],
    };
    assert_eq!(
        Applied::try_from(proto::ApplyResponse::from(&applied)).unwrap(),
        applied
    );
}

fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(20))
}

fn tried(files: &[fender_config::Source]) -> Proposal {
    Proposal {
        what: Proposed::Files(files.to_vec()),
        trial: Trial::DryRun,
        upon: None,
        consents: Consents::default(),
    }
}

async fn connected(who: &SpiffeId) -> (std::sync::Arc<Control>, Drain, Admin) {
    let (control, _) = Control::new();
    let drain = Drain::new();
    let url = control.start(&drain);
    let identity = AdminIdentity::load(directory_of(&control.ca, who, 0o400).path()).unwrap();
    let admin = Admin::connect(
        &url.clone().into(),
        &identity,
        control.clock.clone(),
        soon(),
    )
    .await
    .unwrap();
    (control, drain, admin)
}

fn first() -> SpiffeId {
    SpiffeId::admin(&DOMAIN.parse().unwrap(), "first").unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_token_arrives_whole_and_is_not_shown() {
    let (control, _drain, mut admin) = connected(&first()).await;
    let orders: WorkloadName = "shop/orders".parse().unwrap();
    let made = admin
        .create_token(
            &Bearer::Workload(orders.clone()),
            Duration::from_secs(600),
            soon(),
        )
        .await
        .unwrap();
    assert_eq!(made.token.identity().workload(), Some(orders));
    assert_eq!(made.token.pins(), [CaPin::of(&control.ca.root)]);
    assert_eq!(made.expires.as_secs() - control.clock.now().as_secs(), 600);
    assert!(!format!("{made:?}").contains("1, 1, 1"));
}

#[tokio::test(start_paused = true)]
async fn a_person_gets_a_certificate_for_a_key_made_here() {
    let (control, _drain, mut admin) = connected(&first()).await;
    let ann = "people/ann".parse().unwrap();
    let (svid, bundle) = admin
        .issue_svid(&ann, Duration::from_secs(60), soon())
        .await
        .unwrap();
    assert_eq!(svid.id().as_str(), "spiffe://acme.test/ns/people/sa/ann");
    assert_eq!(bundle.roots(), control.ca.bundle().roots());

    *control.issue_for.lock().unwrap() = Some(id(ORDERS));
    let error = admin
        .issue_svid(&ann, Duration::from_secs(60), soon())
        .await
        .unwrap_err();
    assert_eq!(error.code(), Some(Code::AnswerInvalid));
}

#[tokio::test(start_paused = true)]
async fn documents_that_are_too_large_are_told_one_by_one_and_not_as_a_broken_call() {
    let (_control, _drain, mut admin) = connected(&first()).await;
    let source = |name: &str, bytes| fender_config::Source {
        name: name.to_owned(),
        text: "a".repeat(bytes),
    };
    let files = [source("huge.yaml", 10_000_000), source("small.yaml", 3)];
    let applied = admin.apply(tried(&files), soon()).await.unwrap();
    let names: Vec<_> = applied
        .problems
        .iter()
        .map(|problem| problem.file.as_str())
        .collect();
    assert_eq!(names, ["huge.yaml", "small.yaml"]);
    assert_eq!(applied.revision, 0);
}

#[tokio::test(start_paused = true)]
async fn a_workload_is_no_administrator() {
    let (_control, _drain, mut admin) = connected(&id(ORDERS)).await;
    let error = admin.apply(tried(&[]), soon()).await.unwrap_err();
    assert_eq!(
        (error.code(), error.exit_code()),
        (Some(Code::Denied), EXIT_REFUSED)
    );
}

#[tokio::test(start_paused = true)]
async fn an_expired_admin_certificate_is_told_before_anybody_is_asked() {
    let (control, _) = Control::new();
    let drain = Drain::new();
    let url = control.start(&drain);
    let dir = directory_of(&control.ca, &first(), 0o400);
    let identity = AdminIdentity::load(dir.path()).unwrap();
    control.clock.jump(Duration::from_secs(6 * 86_400));
    let connected = Admin::connect(
        &url.clone().into(),
        &identity,
        control.clock.clone(),
        soon(),
    )
    .await;
    assert!(matches!(connected, Err(AdminError::Expired { .. })));
}

#[tokio::test(start_paused = true)]
async fn a_control_plane_that_tells_the_same_entries_again_is_not_asked_for_ever() {
    let (_control, _drain, mut admin) = connected(&first()).await;
    assert_eq!(admin.audit_log(0, 0, 0, soon()).await.unwrap().len(), 1);
    let error = admin.audit_log(1, 0, 0, soon()).await.unwrap_err();
    assert_eq!(error.code(), Some(Code::AnswerInvalid));
}
