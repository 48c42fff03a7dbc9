//! DESIGN §5: numbered revisions that can be looked at and compared, each administrator seeing what is theirs.

use super::roles::governed;
use super::*;

const FIRST: &str = "{ name: first, role: security }";
const VERA: &str = "{ name: vera, role: viewer, namespaces: [ bank ] }";

/// Of another namespace than the shop's.
fn ledger(rest: &str) -> String {
    workload("ledger", rest).replace("namespace: shop", "namespace: bank")
}

/// Three revisions: the shop, then the bank's ledger too, then the ledger changed.
async fn three() -> World {
    let directory = tempfile::tempdir().unwrap();
    let shop = governed(directory.path(), &format!("{FIRST}, {VERA}"));
    let world = World::with(directory, shop.clone()).await;
    for rest in [
        "{ attest: [ { token: {} } ] }",
        "{ attest: [ { token: {} } ], drain: 5s }",
    ] {
        let applied = world.apply(shop.clone() + &ledger(rest)).await;
        assert_eq!(applied.problems, []);
    }
    world
}

async fn compare(
    client: &mut AdminClient<Channel>,
    from: u64,
    to: u64,
) -> Result<proto::CompareResponse, Status> {
    let request = proto::CompareRequest {
        from,
        to,
        files: Vec::new(),
    };
    Ok(client.compare(request).await?.into_inner())
}

fn names(compared: &proto::CompareResponse) -> Vec<&str> {
    let differences = compared.differences.iter();
    differences.map(|one| one.name.as_str()).collect()
}

#[tokio::test]
async fn revisions_are_listed_page_by_page_the_newest_first() {
    let world = three().await;
    let mut admin = world.admin().await;
    let mut page = async |before, limit| {
        let request = proto::RevisionsRequest { before, limit };
        let answer = admin.revisions(request).await.unwrap().into_inner();
        let told = answer.revisions.into_iter();
        (
            told.map(|one| (one.number, one.documents, one.applied_by))
                .collect::<Vec<_>>(),
            answer.in_force,
        )
    };
    let by = |name: &str| format!("spiffe://acme.test/fender/{name}");
    let all = [
        (3, 8, by("admin/first")),
        (2, 8, by("admin/first")),
        (1, 7, by("control")),
    ];
    assert_eq!(page(0, 0).await, (all.to_vec(), 3));
    assert_eq!(page(0, 2).await.0, all[..2]);
    assert_eq!(page(2, 2).await.0, all[2..]);
    assert_eq!(page(1, 2).await.0, []);
}

#[tokio::test]
async fn two_revisions_or_one_and_files_are_compared_in_their_text() {
    let world = three().await;
    let mut admin = world.admin().await;
    let added = compare(&mut admin, 1, 2).await.unwrap();
    assert_eq!(names(&added), ["bank/ledger"]);
    let changed = compare(&mut admin, 2, 0).await.unwrap();
    assert_eq!((changed.from, changed.to), (2, 3));
    let text = &changed.differences[0].text;
    assert!(
        text.contains("\n-  { attest: [ { token: {} } ] }\n+  { attest"),
        "{text}"
    );
    assert_eq!(
        names(&compare(&mut admin, 0, 3).await.unwrap()),
        Vec::<&str>::new()
    );

    let request = proto::CompareRequest {
        from: 0,
        to: 0,
        files: vec![proto::SourceFile {
            name: "mine.yaml".to_owned(),
            text: ledger("{ attest: [ { token: {} } ], drain: 6s }"),
        }],
    };
    let answer = admin.compare(request.clone()).await.unwrap().into_inner();
    assert_eq!(answer.to, 0);
    assert!(answer.differences.iter().any(|one| {
        one.name == "bank/ledger"
            && one
                .text
                .contains("+  { attest: [ { token: {} } ], drain: 6s }")
    }));
    assert_eq!(world.status().await.revision, 3, "nothing was applied");
    let both = proto::CompareRequest { to: 2, ..request };
    assert_eq!(refused(admin.compare(both).await), Code::BadRequest);
}

#[tokio::test]
async fn attack_a_viewer_of_one_namespace_sees_no_document_of_another_nor_who_may_administer() {
    let world = three().await;
    let mut vera = world.administrator("vera").await;
    for (from, to) in [(1, 2), (1, 3), (3, 1)] {
        let seen = compare(&mut vera, from, to).await.unwrap();
        assert_eq!(names(&seen), ["bank/ledger"]);
    }
    let show = |number| proto::ShowRevisionRequest { number };
    let shown = vera.show_revision(show(3)).await.unwrap().into_inner();
    let seen: Vec<_> = shown
        .documents
        .iter()
        .map(|one| one.name.as_str())
        .collect();
    assert_eq!(seen, ["bank/ledger"]);
    assert_eq!(shown.revision.unwrap().documents, 8);
    let shown = vera.show_revision(show(1)).await.unwrap().into_inner();
    assert_eq!(shown.documents, []);

    // What a text says of itself counts as the reader of documents understands it, or not at all.
    let disguised = "kind: Workload\nmetadata: { namespace: bank, name: x }\nmetadata: { namespace: shop, name: orders }\n";
    let request = proto::CompareRequest {
        from: 0,
        to: 0,
        files: vec![proto::SourceFile {
            name: "x.yaml".to_owned(),
            text: disguised.to_owned(),
        }],
    };
    let answer = vera.compare(request).await.unwrap().into_inner();
    assert_eq!(names(&answer), ["bank/ledger"], "of what is in force");

    let first = world.admin().await.show_revision(show(0)).await.unwrap();
    let all = first.into_inner().documents;
    assert_eq!(all.len(), 8);
    assert!(all[0].text.contains("administrators"), "{}", all[0].text);
    let told = world.told().await;
    for expected in [
        "vera compare done: as viewer",
        "vera show-revision done: as viewer",
        "first show-revision done: as security",
    ] {
        assert!(
            told.iter().any(|entry| entry.starts_with(expected)),
            "{expected}: {told:#?}"
        );
    }
}

#[tokio::test]
async fn a_revision_that_never_was_and_one_that_is_not_kept_are_told_apart() {
    let world = three().await;
    let mut admin = world.admin().await;
    let future = compare(&mut admin, 9, 0).await.unwrap_err();
    assert_eq!(Code::of(&future), Code::NotFound);
    assert!(
        future
            .message()
            .contains("there is no revision 9 yet: 3 is in force")
    );
}
