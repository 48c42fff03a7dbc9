//! DESIGN I5 and §14: what an authority let in is let in while it trusts the root that vouched, and no longer.

use sqlx::{ConnectOptions as _, Connection as _};

use super::*;
use crate::tests::renewal::renew_expired;

impl World {
    /// The roots of `corporate` are these from now on, and known to be.
    async fn trust(&self, roots: &[&Corporate], known_by: &Corporate) {
        let text: String = roots.iter().map(|authority| authority.pem()).collect();
        self.put(&text);
        let held = known_by.issue(|_| ());
        eventually_patient(|| Box::pin(async { show(self, &held).await.ok() })).await;
    }

    fn put(&self, text: &str) {
        fs::write(self.path("next"), text).unwrap();
        fs::rename(self.path("next"), self.path("corporate.pem")).unwrap();
    }

    async fn attested_by(&self, held: &Held) -> Svid {
        let connection = self.anonymous().await;
        let key = NewKey::generate().unwrap();
        let csr = key.csr_der(&ORDERS.parse().unwrap()).unwrap();
        let message = proof::attestation(&csr, &connection.server_leaf);
        let answer = show_on(&connection.channel, evidence(held, &message), csr).await;
        key.into_svid(issued(answer.unwrap()).chain).unwrap()
    }

    /// As a version before this one recorded it.
    async fn forget_roots(&self, svid: &Svid) {
        let file = self.path("data/control.db");
        let options = sqlx::sqlite::SqliteConnectOptions::new().filename(file);
        let mut db = options.connect().await.unwrap();
        let query = "UPDATE certificates SET attested = json_remove(attested, '$.roots') \
                     WHERE serial = ?1 AND json_extract(attested, '$.roots') IS NOT NULL";
        let changed = sqlx::query(query).bind(svid.serial().to_string());
        let changed = changed.execute(&mut db).await.unwrap();
        assert_eq!(changed.rows_affected(), 1);
        db.close().await.unwrap();
    }
}

#[tokio::test]
async fn attack_what_a_stolen_authority_let_in_does_not_renew_once_its_root_is_replaced() {
    let (world, stolen) = world(BY_SUBJECT).await;
    let first = world.attested_by(&stolen.issue(|_| ())).await;
    let renewed = world.next(&first).await.unwrap();
    let recorded: serde_json::Value = {
        world.attested_by(&stolen.issue(|_| ())).await;
        serde_json::from_str(&world.evidence(ORDERS).await).unwrap()
    };
    let root = crate::ca::sha256(stolen.root.der());
    assert_eq!(
        recorded["roots"],
        serde_json::json!([fender_config::Sha256(root).to_string()])
    );

    let next = Corporate::new();
    world.trust(&[&next], &next).await;
    for svid in [&first, &renewed] {
        assert_eq!(refused(world.next(svid).await), Code::NotAttestable);
    }
    world.clock.advance(Duration::from_secs(2 * 3600));
    let expired = renew_expired(&world, &renewed, ORDERS, |_| {}).await;
    assert_eq!(refused(expired), Code::NotAttestable, "nor once expired");
}

#[tokio::test]
async fn what_another_root_of_the_same_authority_let_in_goes_on() {
    let (world, old) = world(BY_SUBJECT).await;
    let next = Corporate::new();
    world.trust(&[&old, &next], &next).await;
    let by_old = world.attested_by(&old.issue(|_| ())).await;
    let by_next = world.attested_by(&next.issue(|_| ())).await;
    world.next(&by_old).await.unwrap();

    world.trust(&[&next], &next).await;
    eventually_patient(|| Box::pin(async { world.next(&by_old).await.err() })).await;
    assert_eq!(refused(world.next(&by_old).await), Code::NotAttestable);
    world.next(&by_next).await.unwrap();

    // The same root back again: taking it away ended nothing but renewals.
    world.trust(&[&next, &old], &old).await;
    world.next(&by_old).await.unwrap();
}

#[tokio::test]
async fn attack_another_file_of_roots_under_the_same_name() {
    let (world, stolen) = world(BY_SUBJECT).await;
    let svid = world.attested_by(&stolen.issue(|_| ())).await;
    let elsewhere = world.path("other.pem");
    fs::write(&elsewhere, Corporate::new().pem()).unwrap();
    let vouching = format!(
        "  x509: [ {{ name: corporate, roots: {{ file: {} }} }} ]",
        elsewhere.display()
    );
    world.apply(documents_with(&vouching, BY_SUBJECT)).await;
    assert_eq!(refused(world.next(&svid).await), Code::NotAttestable);
}

#[tokio::test]
async fn what_was_recorded_without_its_root_renews_and_is_bound_to_the_roots_of_its_first_renewal()
{
    let (world, old) = world(BY_SUBJECT).await;
    let svid = world.attested_by(&old.issue(|_| ())).await;
    world.forget_roots(&svid).await;
    let next = Corporate::new();
    world.trust(&[&old, &next], &next).await;
    let bound = world.next(&svid).await.unwrap();
    world.next(&bound).await.unwrap();

    // Which of the two it was is not known: neither may go.
    world.trust(&[&next], &next).await;
    eventually_patient(|| Box::pin(async { world.next(&bound).await.err() })).await;
    assert_eq!(refused(world.next(&bound).await), Code::NotAttestable);
    world.trust(&[&old], &old).await;
    assert_eq!(refused(world.next(&bound).await), Code::NotAttestable);
}

#[tokio::test]
async fn roots_that_make_no_sense_put_everybody_off_after_an_hour_and_end_nobody() {
    let (world, corporate) = world(BY_SUBJECT).await;
    let mut svid = world.attested_by(&corporate.issue(|_| ())).await;
    let held = corporate.issue(|_| ());
    world.put("no roots");
    // From when it is noticed an hour and no longer: not to let in, and not to renew.
    let put_off = loop {
        world.clock.advance(Duration::from_secs(40 * 60));
        match Box::pin(world.next(&svid)).await {
            Ok(next) => svid = next,
            Err(status) => break Code::of(&status),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    assert_eq!(put_off, Code::Unavailable);
    assert_eq!(refused(show(&world, &held).await), Code::Unavailable);
    assert_eq!(refused(world.next(&svid).await), Code::Unavailable);

    // Whoever was put off goes on where it was.
    world.put(&corporate.pem());
    eventually_patient(|| Box::pin(async { world.next(&svid).await.ok() })).await;
}

#[tokio::test]
async fn roots_that_are_gone_renew_nobody() {
    let (world, corporate) = world(BY_SUBJECT).await;
    let svid = world.attested_by(&corporate.issue(|_| ())).await;
    fs::remove_file(world.path("corporate.pem")).unwrap();
    eventually_patient(|| async {
        let answer = world.next(&svid).await;
        answer
            .is_err()
            .then(|| assert_eq!(refused(answer), Code::Unavailable))
    })
    .await;
}
