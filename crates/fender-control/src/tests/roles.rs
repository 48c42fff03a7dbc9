//! DESIGN §14, roles; and an operator's mistakes, which the dry run catches and a flag that names them lets pass.

use super::*;
use crate::store::audit::newest;

/// The documents of the shop, with these administrators.
pub(super) fn governed(directory: &Path, administrators: &str) -> String {
    let mesh = format!(
        "apiVersion: fender.dev/v1\nkind: Mesh\nmetadata: {{ name: mesh }}\n\
         spec: {{ trustDomain: acme.test, administrators: [ {administrators} ] }}\n"
    );
    documents(directory, "shop").replace(MESH, &mesh)
}

const FIRST: &str = "{ name: first, role: security }";
const BEN: &str = "{ name: ben, role: operator, namespaces: [ shop ] }";
const CEM: &str = "{ name: cem, role: viewer, namespaces: [ bank ] }";

impl World {
    /// Administrators as the documents name them, besides the first.
    async fn governed() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let documents = governed(directory.path(), &format!("{FIRST}, {BEN}, {CEM}"));
        Self::with(directory, documents).await
    }

    /// A certificate for an administrator, as the first one gets it made.
    async fn certified(&self, name: &str) -> Result<Svid, Status> {
        certificate(
            &mut self.admin().await,
            &format!("spiffe://acme.test/fender/admin/{name}"),
        )
        .await
    }

    pub(super) async fn administrator(&self, name: &str) -> AdminClient<Channel> {
        let svid = self.certified(name).await.unwrap();
        AdminClient::new(self.as_peer(&svid).await)
    }

    pub(super) async fn told(&self) -> Vec<String> {
        let log = newest(self.running.reader(), 1000).await.unwrap();
        log.iter()
            .map(|[actor, action, _, outcome, detail]| {
                format!(
                    "{} {action} {outcome}: {detail}",
                    actor.rsplit('/').next().unwrap()
                )
            })
            .collect()
    }
}

async fn certificate(client: &mut AdminClient<Channel>, id: &str) -> Result<Svid, Status> {
    let key = NewKey::generate().unwrap();
    let csr = key.csr_der(&id.parse().unwrap()).unwrap();
    let request = proto::IssueSvidRequest {
        csr,
        ttl_seconds: 3600,
    };
    let answer = client.issue_svid(request).await?.into_inner();
    Ok(key.into_svid(issued(answer).chain).unwrap())
}

fn proposal(text: &str) -> proto::ApplyRequest {
    proto::ApplyRequest {
        files: vec![proto::SourceFile {
            name: "mesh.yaml".to_owned(),
            text: text.to_owned(),
        }],
        ..proto::ApplyRequest::default()
    }
}

/// What stands against it, as code and first words; the same for the dry run and in earnest.
async fn objections(
    client: &mut AdminClient<Channel>,
    request: proto::ApplyRequest,
) -> Vec<(String, String)> {
    let mut told = Vec::new();
    for dry_run in [true, false] {
        let request = proto::ApplyRequest {
            dry_run,
            ..request.clone()
        };
        let answer = client.apply(request).await.unwrap().into_inner();
        assert_eq!(answer.problems, []);
        assert_eq!(answer.revision, 1, "nothing is applied");
        told.push(answer.objections);
    }
    assert_eq!(told[0], told[1]);
    let objections = told.swap_remove(0).into_iter();
    objections
        .map(|one| (one.code, one.message + " / " + &one.help))
        .collect()
}

#[tokio::test]
async fn an_operator_applies_documents_and_makes_tokens_where_it_operates_and_nowhere_else() {
    let world = World::governed().await;
    let mut ben = world.administrator("ben").await;
    let token = |workload: &str| proto::CreateTokenRequest {
        node: String::new(),
        workload: workload.to_owned(),
        ttl_seconds: 60,
    };
    ben.create_token(token("shop/orders")).await.unwrap();
    assert_eq!(
        refused(ben.create_token(token("bank/ledger")).await),
        Code::Denied
    );

    let text = governed(world.directory.path(), &format!("{FIRST}, {BEN}, {CEM}"));
    let longer = text.replace("credentials: [ smtp ]", "credentials: [ smtp ], drain: 5s");
    let answer = ben.apply(proposal(&longer)).await.unwrap().into_inner();
    assert_eq!((answer.revision, answer.objections), (2, Vec::new()));
    assert!(
        world.told().await[0]
            .starts_with("ben apply done: 1 files, 1 changes; as operator from 127.0.0.1:")
    );
}

#[tokio::test]
async fn attack_an_operator_who_applies_more_than_it_may_is_told_which_document_takes_which_role() {
    let world = World::governed().await;
    let mut ben = world.administrator("ben").await;
    let text = governed(world.directory.path(), &format!("{FIRST}, {BEN}, {CEM}"));
    let raised = text.replace(
        "name: ben, role: operator, namespaces: [ shop ]",
        "name: ben, role: security",
    );
    let told = objections(&mut ben, proposal(&raised)).await;
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(
        told[0].0 == "denied"
            && told[0].1.contains("Mesh `mesh`")
            && told[0].1.contains("role `security`")
    );

    let opened = text.replace(
        "name: locked, labels: { app: locked } }\nspec:\n  {}",
        "name: locked, labels: { app: locked } }\nspec:\n  { attest: [ { token: {} } ] }",
    );
    assert_ne!(opened, text);
    let told = objections(&mut ben, proposal(&opened)).await;
    assert!(
        told[0].1.contains("Workload `shop/locked`") && told[0].1.contains("`attest`"),
        "{told:?}"
    );

    let elsewhere =
        text + "---\n" + &workload("ledger", "{}").replace("namespace: shop", "namespace: bank");
    let told = objections(&mut ben, proposal(&elsewhere)).await;
    assert!(
        told[0].1.contains("Workload `bank/ledger`") && told[0].1.contains("`operator` in `bank`"),
        "{told:?}"
    );
    assert!(
        world.told().await[0]
            .starts_with("ben apply refused: 1 objections; to change Workload `bank/ledger`"),
        "{:?}",
        world.told().await[0]
    );
}

#[tokio::test]
async fn a_viewer_sees_its_namespaces_and_changes_nothing() {
    let world = World::governed().await;
    let mut cem = world.administrator("cem").await;
    let status = cem
        .status(proto::StatusRequest::default())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(status.workloads, [], "all of them are the shop's");
    let mut ben = world.administrator("ben").await;
    let status = ben
        .status(proto::StatusRequest::default())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(status.workloads.len(), 3);

    assert_eq!(refused(cem.apply(proposal(MESH)).await), Code::Denied);
    let dry = proto::ApplyRequest {
        dry_run: true,
        ..proposal(MESH)
    };
    assert_eq!(refused(cem.apply(dry).await), Code::Denied);
    let token = proto::CreateTokenRequest {
        node: String::new(),
        workload: "shop/orders".to_owned(),
        ttl_seconds: 60,
    };
    assert_eq!(refused(cem.create_token(token).await), Code::Denied);
    let person = certificate(&mut cem, "spiffe://acme.test/ns/people/sa/cem").await;
    assert_eq!(refused(person), Code::Denied);
    let told = world.told().await;
    for refusal in ["issue-svid", "create-token", "dry-run", "apply"] {
        let start =
            format!("cem {refusal} refused: takes the role `operator`; as viewer from 127.0.0.1:");
        assert!(
            told.iter().any(|line| line.starts_with(&start)),
            "{start}\n{told:#?}"
        );
    }
}

#[tokio::test]
async fn attack_nobody_but_security_makes_an_administrator_and_only_one_that_a_document_names() {
    let world = World::governed().await;
    let mut ben = world.administrator("ben").await;
    for name in ["ben", "first", "cem"] {
        let made = certificate(&mut ben, &format!("spiffe://acme.test/fender/admin/{name}")).await;
        assert_eq!(refused(made), Code::Denied, "{name}");
    }
    assert_eq!(refused(world.certified("eve").await), Code::IdentityUnknown);
    let control = certificate(
        &mut world.admin().await,
        "spiffe://acme.test/fender/control",
    )
    .await;
    assert_eq!(refused(control), Code::IdentityReserved);
}

#[tokio::test]
async fn attack_an_operator_is_no_other_person_than_itself() {
    let world = World::governed().await;
    let mut ben = world.administrator("ben").await;
    certificate(&mut ben, "spiffe://acme.test/ns/people/sa/ben")
        .await
        .unwrap();
    let other = certificate(&mut ben, "spiffe://acme.test/ns/people/sa/ada").await;
    assert_eq!(refused(other), Code::Denied);
    certificate(
        &mut world.admin().await,
        "spiffe://acme.test/ns/people/sa/ada",
    )
    .await
    .unwrap();
}

#[tokio::test]
async fn attack_a_role_that_was_taken_away_is_gone_with_the_next_call_of_an_open_connection() {
    let world = World::governed().await;
    let mut ben = world.administrator("ben").await;
    ben.status(proto::StatusRequest::default()).await.unwrap();
    world.apply(governed(world.directory.path(), FIRST)).await;
    let answer = ben.status(proto::StatusRequest::default()).await;
    assert_eq!(refused(answer), Code::Denied);
    eventually(|| async {
        let told = world.told().await;
        told.iter()
            .any(|line| line.starts_with("ben any-administration refused"))
            .then_some(())
    })
    .await;
}

#[tokio::test]
async fn who_would_cut_themselves_off_is_told_so_and_may_mean_it() {
    let world = World::new().await;
    let without = governed(world.directory.path(), "{ name: ada, role: security }");
    let mut first = world.admin().await;
    let told = objections(&mut first, proposal(&without)).await;
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(
        told[0].0 == "cuts-off-admin" && told[0].1.contains("--cut-off-admin first"),
        "{told:?}"
    );
    assert!(
        told[0]
            .1
            .contains("nobody who has it would have a valid certificate"),
        "ada has none yet: {told:?}"
    );

    let other = proto::ApplyRequest {
        cut_off_admins: vec!["ada".to_owned()],
        ..proposal(&without)
    };
    assert_eq!(
        objections(&mut first, other).await.len(),
        1,
        "the wrong name does not help"
    );
    let meant = proto::ApplyRequest {
        cut_off_admins: vec!["first".to_owned()],
        ..proposal(&without)
    };
    let answer = first.apply(meant).await.unwrap().into_inner();
    assert_eq!((answer.revision, answer.objections), (2, Vec::new()));
    assert_eq!(
        refused(first.status(proto::StatusRequest::default()).await),
        Code::Denied
    );
}

#[tokio::test]
async fn another_security_administrator_with_a_certificate_may_drop_the_first_one() {
    let world = World::new().await;
    let both = "{ name: ada, role: security }, { name: first, role: security }";
    world.apply(governed(world.directory.path(), both)).await;
    let mut ada = world.administrator("ada").await;
    let alone = governed(world.directory.path(), "{ name: ada, role: security }");
    let answer = ada.apply(proposal(&alone)).await.unwrap().into_inner();
    assert_eq!((answer.revision, answer.objections), (3, Vec::new()));

    let none = governed(world.directory.path(), BEN);
    let answer = ada.apply(proposal(&none)).await.unwrap().into_inner();
    assert_eq!(answer.objections.len(), 1, "the last one");
    assert_eq!(answer.revision, 3);
}

#[tokio::test]
async fn to_delete_a_workload_that_something_runs_as_is_told_and_may_be_meant() {
    let world = World::new().await;
    let text = documents(world.directory.path(), "shop");
    let (_, rest) = text.split_once("---\napiVersion: fender.dev/v1\nkind: Workload\nmetadata: { namespace: shop, name: inventory").unwrap();
    let gone = text.replace(&["---\napiVersion: fender.dev/v1\nkind: Workload\nmetadata: { namespace: shop, name: inventory", rest.split_once("---").unwrap().0].concat(), "");
    assert!(!gone.contains("name: inventory,") && gone.contains("name: orders"));
    let mut first = world.admin().await;
    let dry = proto::ApplyRequest {
        dry_run: true,
        ..proposal(&gone)
    };
    let answer = first.apply(dry.clone()).await.unwrap().into_inner();
    assert_eq!(answer.objections, [], "nobody runs as it");

    let inventory = world.attested("shop/inventory").await;
    let told = objections(&mut first, proposal(&gone)).await;
    assert!(
        told[0].0 == "deletes-in-use" && told[0].1.contains("valid for 3600 s"),
        "{told:?}"
    );
    let mut sidecar = world.subscribe(&inventory, 0).await;
    sidecar.next().await.unwrap();
    let told = objections(&mut first, proposal(&gone)).await;
    assert!(told[0].1.contains("1 sidecars are connected"), "{told:?}");
    assert!(told[0].1.contains("--delete-in-use shop/inventory"));

    let locked = text.replace(
        "{ attest: [ { token: {} } ], credentials: [ ledger ] }",
        "{ credentials: [ ledger ] }",
    );
    assert_eq!(
        objections(&mut first, proposal(&locked)).await.len(),
        1,
        "that nobody may attest to is the same"
    );

    let meant = proto::ApplyRequest {
        delete_in_use: vec!["shop/inventory".to_owned()],
        ..proposal(&gone)
    };
    assert_eq!(first.apply(meant).await.unwrap().into_inner().revision, 2);
    assert_eq!(refused(sidecar.next().await), Code::IdentityUnknown);
}

#[tokio::test]
async fn a_change_made_for_another_revision_is_refused() {
    let world = World::new().await;
    let mut first = world.admin().await;
    let text = documents(world.directory.path(), "web");
    let upon = |upon| proto::ApplyRequest {
        upon: Some(upon),
        ..proposal(&text)
    };
    assert_eq!(refused(first.apply(upon(7)).await), Code::RevisionChanged);
    assert_eq!(first.apply(upon(1)).await.unwrap().into_inner().revision, 2);
    assert_eq!(refused(first.apply(upon(1)).await), Code::RevisionChanged);
    assert!(
        world
            .told()
            .await
            .iter()
            .any(|line| line.starts_with("first apply refused: revision-changed"))
    );
}

#[tokio::test]
async fn an_earlier_revision_comes_back_as_a_new_one_validated_again() {
    let world = World::new().await;
    let mut first = world.admin().await;
    world.apply(documents(world.directory.path(), "web")).await;
    let back = |revision, dry_run| proto::ApplyRequest {
        revision,
        dry_run,
        ..proto::ApplyRequest::default()
    };
    let tried = first.apply(back(1, true)).await.unwrap().into_inner();
    assert_eq!((tried.changes.len(), tried.revision), (1, 2));
    assert_eq!(tried.differences.len(), 1);
    assert!(
        tried.differences[0].text.contains("\n-") && tried.differences[0].text.contains("[ shop ]")
    );

    let applied = first.apply(back(1, false)).await.unwrap().into_inner();
    assert_eq!((applied.revision, applied.changes.len()), (3, 1));
    let same = world.apply(documents(world.directory.path(), "shop")).await;
    assert_eq!(same.revision, 3, "it is what revision 1 was");
    assert!(
        world
            .told()
            .await
            .iter()
            .any(|line| line.contains("those of revision 1; as security"))
    );
    assert_eq!(refused(first.apply(back(9, false)).await), Code::NotFound);
}

#[tokio::test]
async fn a_status_comes_page_by_page_and_only_what_was_asked_for() {
    let world = World::new().await;
    let mut first = world.admin().await;
    let mut names = Vec::new();
    let mut after = String::new();
    loop {
        let request = proto::StatusRequest {
            after,
            limit: 2,
            ..proto::StatusRequest::default()
        };
        let page = first.status(request).await.unwrap().into_inner();
        assert!(page.workloads.len() <= 2);
        names.extend(page.workloads.into_iter().map(|workload| workload.name));
        after = page.next;
        if after.is_empty() {
            break;
        }
    }
    assert_eq!(names, ["shop/inventory", "shop/locked", "shop/orders"]);
    let asked = [
        ("shop", "", 3),
        ("bank", "", 0),
        ("", "shop/orders", 1),
        ("bank", "shop/orders", 0),
    ];
    for (namespace, workload, count) in asked {
        let request = proto::StatusRequest {
            namespace: namespace.to_owned(),
            workload: workload.to_owned(),
            ..proto::StatusRequest::default()
        };
        let page = first.status(request).await.unwrap().into_inner();
        assert_eq!(page.workloads.len(), count, "{namespace} {workload}");
    }
}

#[tokio::test]
async fn a_sidecar_that_is_too_old_is_warned_of_until_the_date_and_refused_after_it() {
    let directory = tempfile::tempdir().unwrap();
    let dated = |after: &str| {
        let mesh = MESH.replace(
            "trustDomain: acme.test",
            &format!(
                "trustDomain: acme.test, minimumVersion: {{ version: 0.2.0, after: {after} }}"
            ),
        );
        documents(directory.path(), "shop").replace(MESH, &mesh)
    };
    let (soon, past) = (dated("2027-01-15T08:10:00Z"), dated("2027-01-15T07:59:59Z"));
    let world = World::with(directory, soon).await;
    let orders = world.attested("shop/orders").await;
    let mut sidecar = world.subscribe(&orders, 0).await;
    sidecar.next().await.unwrap();
    let status = world.status().await;
    assert_eq!(status.minimum_version, "0.2.0");
    assert_eq!(status.minimum_version_after_unix, 1_800_000_600);
    let shown = status
        .workloads
        .iter()
        .flat_map(|workload| &workload.sidecars);
    assert_eq!(
        shown.map(|sidecar| sidecar.outdated).collect::<Vec<_>>(),
        [true]
    );

    // Whoever is connected already is not spared, and the status says why they are gone.
    world.apply(past).await;
    assert_eq!(refused(sidecar.next().await), Code::VersionRefused);
    let mut late = world.subscribe(&orders, 0).await;
    assert_eq!(refused(late.next().await), Code::VersionRefused);
    let status = world.status().await;
    let told = |status: &proto::StatusResponse| {
        let refused = status.workloads.iter().flat_map(|one| &one.refused);
        refused
            .map(|one| (one.version.clone(), one.reason.clone()))
            .collect::<Vec<_>>()
    };
    let reason = "this mesh takes no sidecar older than 0.2.0: update this one";
    assert_eq!(told(&status), [("0.1.0".to_owned(), reason.to_owned())]);
    let connected = status.workloads.iter().flat_map(|one| &one.sidecars);
    assert_eq!(connected.count(), 0);

    // Until it is let in again.
    world.apply(documents(world.directory.path(), "shop")).await;
    world.subscribe(&orders, 0).await.next().await.unwrap();
    assert!(told(&world.status().await).is_empty());
}

#[tokio::test]
async fn attack_an_operator_does_not_read_what_others_did() {
    let world = World::governed().await;
    let mut ben = world.administrator("ben").await;
    for after in [0, 1] {
        let request = proto::AuditLogRequest {
            after,
            ..proto::AuditLogRequest::default()
        };
        assert_eq!(refused(ben.audit_log(request).await), Code::Denied);
    }
    assert!(world.told().await[0].starts_with("ben audit-log refused: takes the role `security`"));
}
