//! What a revocation ends, on record and on its way there.

use fender_identity::{DenyList, NodeName, Serial, SpiffeId};

use super::*;
use crate::evidence::Evidence;
use crate::store::certificates::{Record, Standing, find};
use crate::store::revocations::{self, Denial, NotRevoked, Revocation, Revoke, What};
use crate::store::tokens;

const NOW: u64 = 100 * DAY;
const HOUR: u64 = 3600;
const GOOD: &str = "SELECT count(*) AS n FROM certificate_standing WHERE revoked = 0";
const MARKED: &str = "SELECT count(*) AS n FROM certificates WHERE revoked_at IS NOT NULL";
const ORDERS: &str = "spiffe://acme.test/ns/shop/sa/orders";

fn node() -> NodeName {
    "edge-1".parse().unwrap()
}

fn agent() -> SpiffeId {
    SpiffeId::for_agent(&"acme.test".parse().unwrap(), &node())
}

fn serial(number: u64) -> Serial {
    Serial::from_bytes(&number.to_be_bytes()).unwrap()
}

fn on_node(number: u64, not_after: u64) -> CertificateRow {
    let mut row = certificate(number, not_after);
    row.provenance.node = Some(node());
    row
}

fn entry() -> Entry {
    Entry {
        time: at(NOW),
        actor: "spiffe://acme.test/fender/admin/first".parse().unwrap(),
        action: Action::Revoke,
        subject: String::new(),
        outcome: Outcome::Done,
        detail: String::new(),
    }
}

async fn revoke(store: &Store, what: What) -> Result<Revocation, NotRevoked> {
    let revoke = Revoke {
        what,
        at: at(NOW),
        renewal_grace: Duration::from_secs(DAY),
        by: entry().actor,
        reason: "stolen".to_owned(),
        entry: entry(),
    };
    store.write(revoke).await.unwrap()
}

async fn token(store: &Store, number: u8, identity: &SpiffeId) {
    let create = created(number, identity, entry().actor, None);
    store.write(create).await.unwrap();
}

fn created(
    number: u8,
    identity: &SpiffeId,
    by: SpiffeId,
    through: Option<Serial>,
) -> tokens::Create {
    tokens::Create {
        secret_sha256: [number; 32],
        identity: identity.clone(),
        by,
        through,
        at: at(NOW),
        expires: at(NOW + HOUR),
        entry: entry(),
    }
}

async fn record(store: &Store, row: CertificateRow) -> Result<(), StoreError> {
    store.write(Record(row)).await
}

async fn deny_list(store: &Store) -> DenyList {
    let grace = Duration::from_secs(DAY);
    let in_force = revocations::in_force(store.reads(), at(NOW), grace).await;
    revocations::deny_list(in_force.unwrap(), &"acme.test".parse().unwrap())
}

pub(super) async fn attack_a_longer_grace_does_not_bring_back_what_was_revoked(
    store: Store,
    _: Drain,
) {
    with_authority(&store).await;
    // Ended before the grace of today, within it, and not at all.
    for (number, ends) in [(1, NOW - 3 * DAY), (2, NOW - HOUR), (3, NOW + HOUR)] {
        record(&store, certificate(number, ends)).await.unwrap();
    }
    let revoked = revoke(&store, What::Identity(ORDERS.parse().unwrap())).await;
    assert_eq!(revoked.unwrap().certificates, 1, "the one that lives");
    assert_eq!(count(&store, GOOD).await, 0, "and every one is revoked");
    let again = revoke(&store, What::Identity(ORDERS.parse().unwrap())).await;
    assert_eq!(again.unwrap_err(), NotRevoked::Nothing);
}

/// Rows as they are after long: hundreds that live, and thousands that ended.
struct Fill {
    identity: SpiffeId,
    living: u64,
    ended: u64,
}

impl Command for Fill {
    type Output = ();

    async fn run(&self, db: &mut Connection) -> Result<(), StoreError> {
        let living = (1..=self.living).map(|number| (number, NOW + HOUR));
        let ended = (1..=self.ended).map(|number| (self.living + number, NOW - number * 60));
        let rows: Vec<_> = living
            .chain(ended)
            .map(|(number, ends)| CertificateRow {
                identity: self.identity.clone(),
                ..certificate(number, ends)
            })
            .collect();
        certificates::insert(db, &rows).await
    }
}

pub(super) async fn attack_thousands_that_ended_are_revoked_without_a_row_being_touched(
    store: Store,
    _: Drain,
) {
    const LIVING: u64 = 2100;
    const ENDED: u64 = 5000;
    with_authority(&store).await;
    let orders: SpiffeId = ORDERS.parse().unwrap();
    let fill = Fill {
        identity: orders.clone(),
        living: LIVING,
        ended: ENDED,
    };
    store.write(fill).await.unwrap();
    let revoked = revoke(&store, What::Before(None, at(NOW))).await.unwrap();
    assert!((LIVING..LIVING + 10).contains(&revoked.certificates));
    assert_eq!(count(&store, MARKED).await, 0, "the rule is enough");
    assert_eq!(count(&store, GOOD).await, 0);

    // Nobody renews with one that ended days ago, however long the grace becomes, nor had asked before.
    let last = serial(LIVING + ENDED);
    let known = find(store.reads(), &last.to_string()).await.unwrap();
    assert_eq!(known.unwrap().standing, Standing::Revoked);
    let mut late = certificate(100_000, NOW + HOUR);
    late.validity.not_before = at(NOW + 10);
    late.provenance.through = Some(last);
    let late = record(&store, late).await.unwrap_err();
    assert!(matches!(late, StoreError::Revoked), "{late}");

    // Only what lives is marked, a part at a time.
    let mark = || revocations::Mark { now: at(NOW) };
    assert_eq!(store.write(mark()).await.unwrap(), More::Perhaps);
    assert_eq!(count(&store, MARKED).await, 2000);
    store.mark_revoked(at(NOW)).await.unwrap();
    assert_eq!(u64::try_from(count(&store, MARKED).await), Ok(LIVING));
    let authority = "01".parse().unwrap();
    let listed = crls::revoked(&store, &authority, at(NOW)).await.unwrap();
    assert_eq!(listed.len(), 2100);
    assert!(listed.iter().all(|one| one.at == at(NOW)));
}

pub(super) async fn attack_a_rule_stays_as_long_as_anything_it_ended_is_on_record(
    store: Store,
    _: Drain,
) {
    with_authority(&store).await;
    record(&store, certificate(1, NOW - 3 * DAY)).await.unwrap();
    revoke(&store, What::Identity(ORDERS.parse().unwrap()))
        .await
        .unwrap();
    // Long out of force, and the certificate not yet forgotten.
    let forget = |days| revocations::Forget {
        now: at(NOW + days * DAY),
        renewal_grace: Duration::from_secs(DAY),
    };
    store.write(forget(30)).await.unwrap();
    assert_eq!(count(&store, GOOD).await, 0);
    let gone = certificates::Forget {
        now: at(NOW + 30 * DAY),
        renewal_grace: Duration::from_secs(DAY),
    };
    store.write(gone).await.unwrap();
    store.write(forget(1)).await.unwrap();
    let rules = "SELECT count(*) AS n FROM revocations";
    assert_eq!(count(&store, rules).await, 1, "it is still told");
    store.write(forget(30)).await.unwrap();
    assert_eq!(count(&store, rules).await, 0);
}

pub(super) async fn a_node_is_revoked_with_its_agent_and_all_that_began_with_its_word(
    store: Store,
    _: Drain,
) {
    with_authority(&store).await;
    let mut own = on_node(1, NOW + HOUR);
    own.identity = agent();
    record(&store, own).await.unwrap();
    record(&store, on_node(2, NOW + HOUR)).await.unwrap();
    record(&store, on_node(3, NOW - HOUR)).await.unwrap();
    record(&store, certificate(4, NOW + HOUR)).await.unwrap();
    token(&store, 1, &agent()).await;

    let revoked = revoke(&store, What::Node(node(), agent())).await.unwrap();
    assert_eq!(revoked.certificates, 2, "one ended an hour ago");
    let Denial::Node(_, _, listed) = revoked.denial else {
        panic!("a node's")
    };
    assert_eq!(listed.len(), 2, "what has ended needs no place");
    let denied = deny_list(&store).await;
    assert_eq!(
        denied.serials().cloned().collect::<Vec<_>>(),
        [serial(1), serial(2)]
    );
    assert!(denied.begins(&agent()).is_some());
    assert_eq!(
        count(&store, GOOD).await,
        1,
        "what others vouched for is spared"
    );
    let waiting = tokens::unspent(store.reads(), at(NOW), &[]).await.unwrap();
    assert!(waiting.is_empty(), "{waiting:?}");
}

pub(super) async fn attack_a_node_that_obtained_more_than_a_list_takes_is_revoked_all_the_same(
    store: Store,
    _: Drain,
) {
    with_authority(&store).await;
    for number in 1..=200 {
        record(&store, on_node(number, NOW + HOUR)).await.unwrap();
    }
    let mut other = on_node(1000, NOW + HOUR);
    other.identity = "spiffe://acme.test/ns/shop/sa/inventory".parse().unwrap();
    record(&store, other).await.unwrap();
    let revoked = revoke(&store, What::Node(node(), agent())).await.unwrap();
    assert_eq!(revoked.certificates, 201);
    let denied = deny_list(&store).await;
    assert!(
        denied.begins(&ORDERS.parse().unwrap()).is_some(),
        "as a whole"
    );
    assert_eq!(denied.serials().count(), 1);
    assert_eq!(count(&store, GOOD).await, 0);
}

pub(super) async fn attack_what_a_revoked_agent_was_obtaining_is_undone(store: Store, _: Drain) {
    with_authority(&store).await;
    let mut own = on_node(1, NOW + HOUR);
    own.identity = agent();
    record(&store, own).await.unwrap();
    let obtained = |number, through| {
        let mut row = on_node(number, NOW + HOUR);
        row.provenance.through = Some(serial(through));
        // After any rule: only that it came through the agent speaks against it.
        row.validity.not_before = at(NOW + 10);
        row
    };
    record(&store, obtained(2, 1)).await.unwrap();
    revoke(&store, What::Certificate(serial(1))).await.unwrap();
    let late = record(&store, obtained(3, 1)).await.unwrap_err();
    assert!(matches!(late, StoreError::Revoked), "{late}");

    // Revoked as a node: also what comes through no certificate, as the agent's own attestation.
    revoke(&store, What::Node(node(), agent())).await.unwrap();
    let mut own = on_node(4, NOW + HOUR);
    own.identity = agent();
    own.validity.not_before = at(NOW - 10);
    let late = record(&store, own.clone()).await.unwrap_err();
    assert!(matches!(late, StoreError::Revoked), "{late}");
    own.validity.not_before = at(NOW + 20);
    record(&store, own).await.unwrap();
}

pub(super) async fn a_revoked_identity_takes_its_join_tokens_with_it(store: Store, _: Drain) {
    with_authority(&store).await;
    let orders: SpiffeId = ORDERS.parse().unwrap();
    token(&store, 1, &orders).await;
    token(&store, 2, &orders).await;
    let inventory = "spiffe://acme.test/ns/shop/sa/inventory".parse().unwrap();
    token(&store, 3, &inventory).await;
    // There is no certificate yet, and a token is reason enough.
    let revoked = revoke(&store, What::Identity(orders.clone()))
        .await
        .unwrap();
    assert_eq!(revoked.certificates, 0);
    let left = tokens::unspent(store.reads(), at(NOW), &[]).await.unwrap();
    assert_eq!(left.len(), 1);
    assert_eq!(left[0].identity, inventory);

    // One that was being spent at that moment buys nothing.
    let spend = tokens::Spend {
        secret_sha256: [1; 32],
        certificate: certificate(9, NOW + HOUR),
        at: at(NOW),
    };
    let spent = store.write(spend).await.unwrap();
    assert!(matches!(
        spent,
        tokens::Spent::Refused(tokens::Worthless::Withdrawn)
    ));
}

pub(super) async fn a_token_is_listed_by_the_beginning_of_its_hash_and_withdrawn_by_it(
    store: Store,
    _: Drain,
) {
    with_authority(&store).await;
    let orders: SpiffeId = ORDERS.parse().unwrap();
    for number in [5, 1, 9] {
        token(&store, number, &orders).await;
    }
    let listed = |after: Vec<u8>| {
        let store = store.clone();
        async move {
            let page = tokens::unspent(store.reads(), at(NOW), &after).await;
            let page = page.unwrap().into_iter();
            page.map(|token| token.secret_sha256[0]).collect::<Vec<_>>()
        }
    };
    assert_eq!(listed(Vec::new()).await, [1, 5, 9]);
    assert_eq!(listed(vec![1; 8]).await, [5, 9]);
    let found = tokens::called(store.reads(), at(NOW), &[5; 8])
        .await
        .unwrap();
    let withdraw = tokens::Withdraw {
        which: tokens::Which::One(found.unwrap().secret_sha256),
        at: at(NOW),
        entry: entry(),
    };
    assert_eq!(store.write(withdraw).await.unwrap(), 1);
    assert_eq!(listed(Vec::new()).await, [1, 9]);
    let gone = tokens::called(store.reads(), at(NOW), &[5; 8]).await;
    assert!(gone.unwrap().is_none());
    assert!(
        tokens::unspent(store.reads(), at(NOW + HOUR), &[])
            .await
            .unwrap()
            .is_empty(),
        "what has expired cannot be used"
    );
}

pub(super) async fn attack_what_a_revoked_administrator_began_comes_to_nothing(
    store: Store,
    _: Drain,
) {
    with_authority(&store).await;
    let domain = "acme.test".parse().unwrap();
    let admin = |name| SpiffeId::admin(&domain, name).unwrap();
    let orders: SpiffeId = ORDERS.parse().unwrap();
    let made = |number, by: &SpiffeId, through| {
        let mut row = certificate(number, NOW + HOUR);
        row.identity = "spiffe://acme.test/ns/people/sa/ada".parse().unwrap();
        let evidence = Evidence::Administrator {
            by: by.clone(),
            through: serial(through),
            source: String::new(),
        };
        row.provenance = evidence.provenance(&row.identity);
        // After any rule.
        row.validity.not_before = at(NOW + 10);
        row
    };
    for (number, name) in [(1, "ev"), (2, "eve")] {
        let mut own = certificate(number, NOW + HOUR);
        own.identity = admin(name);
        record(&store, own).await.unwrap();
    }
    let (other, eve) = (admin("ev"), admin("eve"));
    for (number, by, through) in [(1, &other, 1), (2, &eve, 2)] {
        let create = created(number, &orders, by.clone(), Some(serial(through)));
        store.write(create).await.unwrap();
        record(&store, made(10 + through, by, through))
            .await
            .unwrap();
    }

    let revoked = revoke(&store, What::Identity(eve.clone())).await.unwrap();
    // What she had made is named, and nobody loses it unseen.
    let named: Vec<_> = revoked.made.iter().map(|made| &made.serial).collect();
    assert_eq!(named, [&serial(12)]);
    let left = tokens::unspent(store.reads(), at(NOW), &[]).await.unwrap();
    let left: Vec<_> = left.iter().map(|token| token.by.as_str()).collect();
    assert_eq!(left, [other.as_str()]);

    // What she asked for just before.
    let late = store
        .write(created(3, &orders, eve.clone(), Some(serial(2))))
        .await
        .unwrap_err();
    assert!(matches!(late, StoreError::Revoked), "{late}");
    let late = record(&store, made(13, &eve, 2)).await.unwrap_err();
    assert!(matches!(late, StoreError::Revoked), "{late}");
    record(&store, made(14, &other, 1)).await.unwrap();
    let revoked = revoke(&store, What::Identity(other)).await.unwrap();
    assert_eq!(revoked.made.len(), 2, "what the other one had made");
}
