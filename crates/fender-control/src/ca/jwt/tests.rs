//! DESIGN I6: keys of tokens succeed each other without a token that somebody cannot verify.

use fender_identity::DenyList;
use tempfile::TempDir;

use super::super::seal::SealingKey;
use super::super::tests::lifetimes;
use super::*;
use crate::time::earlier;
use fender_runtime::drain::Drain;

const HOUR: u64 = 3600;
const DAY: u64 = 24 * HOUR;
const NOW: u64 = 1_800_000_000;
const ORDERS: &str = "spiffe://acme.test/ns/shop/sa/orders";

fn at(seconds: u64) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(seconds))
}

fn row(id: &str, made_at: u64, signs_from: u64) -> JwtKeyRow {
    JwtKeyRow {
        id: id.to_owned(),
        sealed_key: Vec::new(),
        made_at: at(made_at),
        signs_from: at(signs_from),
    }
}

fn names(rows: &[JwtKeyRow], now: u64) -> Vec<&str> {
    let published = published(rows, &lifetimes(), at(now));
    published.into_iter().map(|row| row.id.as_str()).collect()
}

#[test]
fn a_key_is_published_a_day_before_it_signs_and_kept_until_its_last_token_has_ended() {
    let first = row("first", NOW, NOW);
    let mut rows = vec![first];
    let week = NOW + 7 * DAY;
    assert_eq!(due(&rows, &lifetimes(), at(week - DAY - 1)), None);
    let from = due(&rows, &lifetimes(), at(week - DAY));
    assert_eq!(from, Some(at(week)));
    rows.push(row("second", week - DAY, week));
    // Announced once, not at every look.
    assert_eq!(due(&rows, &lifetimes(), at(week - 1)), None);
    let signs = |now| signing(&rows, at(now)).unwrap().id.as_str();
    assert_eq!((signs(week - 1), signs(week)), ("first", "second"));
    assert_eq!(names(&rows, week - 1), ["first", "second"]);
    // The longest token that the first one signed in its last second, read by somebody whose clock is behind.
    assert_eq!(names(&rows, week + HOUR + 60), ["first", "second"]);
    assert_eq!(names(&rows, week + 3 * HOUR), ["second"]);
}

#[test]
fn a_control_plane_that_was_away_signs_on_with_the_old_key_until_the_new_one_is_known() {
    let mut rows = vec![row("old", NOW, NOW)];
    let back = NOW + 300 * DAY;
    assert_eq!(due(&rows, &lifetimes(), at(back)), Some(at(back + DAY)));
    rows.push(row("new", back, back + DAY));
    assert_eq!(signing(&rows, at(back)).unwrap().id, "old");
    assert_eq!(names(&rows, back), ["old", "new"]);
}

#[test]
fn a_key_made_while_the_clock_was_ahead_waits_for_its_time_and_holds_up_nothing() {
    let ahead = NOW + 500 * DAY;
    let rows = vec![row("first", NOW, NOW), row("ahead", ahead, ahead + DAY)];
    let week = NOW + 7 * DAY;
    assert_eq!(names(&rows, week), ["first"]);
    assert_eq!(due(&rows, &lifetimes(), at(week)), Some(at(week + DAY)));
    assert_eq!(names(&rows, ahead), ["first", "ahead"]);
}

#[test]
fn a_clock_that_is_put_back_behind_every_key_leaves_one_to_sign() {
    let rows = vec![row("first", NOW, NOW), row("second", NOW, NOW + DAY)];
    assert_eq!(signing(&rows, at(NOW - 600)).unwrap().id, "first");
    assert_eq!(due(&rows, &lifetimes(), at(NOW - 600)), None);
}

#[test]
fn of_too_many_keys_the_youngest_are_published() {
    let rows: Vec<_> = (0..200)
        .map(|n| row(&format!("{n:03}"), NOW, NOW + n))
        .collect();
    let names = names(&rows, NOW);
    assert_eq!(names.len(), MAX_KEYS);
    assert_eq!(names.last(), Some(&"199"));
}

async fn authority() -> (TempDir, Store, Authority) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("control.db");
    let store = Store::open(&path, &Drain::new()).await.unwrap();
    let authority = open(&store, 1).await.unwrap();
    (directory, store, authority)
}

async fn open(store: &Store, sealing: u8) -> Result<Authority, CaError> {
    let sealing = SealingKey::new(&[sealing; 32]).unwrap();
    let domain = "acme.test".parse().unwrap();
    let here = "here".parse().unwrap();
    Authority::open(store, sealing, domain, here, &lifetimes(), at(NOW)).await
}

fn ledger() -> Vec<String> {
    vec!["ledger".to_owned()]
}

fn read(authority: &Authority, token: &Token, now: u64) -> Result<svid::JwtSvid, Refusal> {
    let bundles = authority.jwt_bundles();
    let keys = |domain: &TrustDomain| bundles.get(domain);
    svid::verify(token.text.expose_str().unwrap(), "ledger", &keys, at(now))
}

#[tokio::test]
async fn a_token_signed_just_before_a_rotation_is_verified_until_it_ends() {
    let (_directory, store, authority) = authority().await;
    let orders = ORDERS.parse().unwrap();
    let week = NOW + 7 * DAY;
    let refresh = async |now| {
        authority
            .refresh(&store, &lifetimes(), at(now))
            .await
            .unwrap();
    };
    refresh(week - DAY).await;
    assert_eq!(jwt_keys::all(&store).await.unwrap().len(), 2);
    refresh(week - 1).await;
    let hour = Some(Duration::from_secs(HOUR));
    let last = authority
        .sign_token(&orders, &ledger(), hour, at(week - 1))
        .unwrap();
    refresh(week).await;
    let first = authority
        .sign_token(&orders, &ledger(), None, at(week))
        .unwrap();
    assert_ne!(first.key, last.key);
    for now in [week, week + HOUR / 2, week + HOUR - 2] {
        refresh(now).await;
        assert!(read(&authority, &last, now).is_ok(), "{now}");
    }
    assert_eq!(first.expires, at(week + 300), "five minutes are usual");
    // Whoever verified one still can; the key itself is forgotten when nobody needs it.
    let succeeded_before = earlier(at(week + DAY), lingers(&lifetimes()));
    store
        .write(jwt_keys::Forget { succeeded_before })
        .await
        .unwrap();
    let left = jwt_keys::all(&store).await.unwrap();
    assert_eq!(
        left.iter().map(|row| &row.id).collect::<Vec<_>>(),
        [&first.key]
    );
}

#[tokio::test]
async fn two_replicas_that_start_at_once_sign_with_one_key() {
    let (_directory, store, one) = authority().await;
    let (two, three) = tokio::join!(open(&store, 1), open(&store, 1));
    let keys = jwt_keys::all(&store).await.unwrap();
    assert_eq!(keys.len(), 1);
    let token = two
        .unwrap()
        .sign_token(&ORDERS.parse().unwrap(), &ledger(), None, at(NOW));
    for authority in [&one, &three.unwrap()] {
        assert!(read(authority, token.as_ref().unwrap(), NOW).is_ok());
    }
}

#[tokio::test]
async fn a_token_is_never_for_nobody_of_nobody_or_for_long() {
    let (_directory, _store, authority) = authority().await;
    let orders: SpiffeId = ORDERS.parse().unwrap();
    let sign = |id: &SpiffeId, audiences: &[String], lifetime| {
        authority.sign_token(id, audiences, lifetime, at(NOW))
    };
    let many: Vec<String> = (0..17).map(|n| n.to_string()).collect();
    for audiences in [vec![], vec![String::new()], many, vec!["a".repeat(1025)]] {
        let refused = sign(&orders, &audiences, None);
        assert!(matches!(refused, Err(TokenError::Audiences(_))));
    }
    for id in [
        "spiffe://acme.test/fender/control",
        "spiffe://acme.test/fender/admin/first",
        "spiffe://acme.test/fender/agent/edge-1",
        "spiffe://other.test/ns/shop/sa/orders",
    ] {
        let refused = sign(&id.parse().unwrap(), &ledger(), None);
        assert!(matches!(refused, Err(TokenError::NotAWorkload)), "{id}");
    }
    let year = Some(Duration::from_secs(365 * DAY));
    let cut = sign(&orders, &ledger(), year).unwrap();
    assert_eq!(cut.expires, at(NOW + HOUR));
}

#[tokio::test]
async fn attack_no_token_is_dated_behind_a_revocation() {
    let (_directory, _store, authority) = authority().await;
    let orders: SpiffeId = ORDERS.parse().unwrap();
    let mut denied = DenyList::default();
    denied.deny_identity_before(orders.clone(), at(NOW + 1));
    authority.heed(Arc::new(denied));
    let sign = |now| authority.sign_token(&orders, &ledger(), None, at(now));
    assert!(matches!(sign(NOW), Err(TokenError::JustRevoked)));
    // Nobody could tell it from one signed before, in the same second.
    assert!(matches!(sign(NOW + 1), Err(TokenError::JustRevoked)));
    assert!(sign(NOW + 2).is_ok());
}

#[tokio::test]
async fn attack_a_key_laid_into_the_database_is_neither_published_nor_used() {
    let (_directory, store, authority) = authority().await;
    let theirs = SigningKey::generate().unwrap();
    let rows = jwt_keys::all(&store).await.unwrap();
    let thief = Workshop {
        trust_domain: "acme.test".parse().unwrap(),
        replica: "here".parse().unwrap(),
        sealing: SealingKey::new(&[9; 32]).unwrap(),
    };
    let laid = Succeed {
        known: rows.iter().map(|row| row.id.clone()).collect(),
        row: JwtKeyRow {
            id: theirs.id().to_owned(),
            sealed_key: thief
                .sealing
                .seal(
                    &thief.jwt_place(theirs.id()),
                    theirs.to_pkcs8().unwrap().expose(),
                )
                .unwrap(),
            made_at: at(NOW),
            signs_from: at(NOW),
        },
    };
    store.write(laid).await.unwrap();
    assert!(matches!(
        authority.refresh(&store, &lifetimes(), at(NOW)).await,
        Err(CaError::Seal(_))
    ));
    // What was in use stays.
    let token = authority
        .sign_token(&ORDERS.parse().unwrap(), &ledger(), None, at(NOW))
        .unwrap();
    assert_eq!(token.key, rows[0].id);
    // One of ours under another's name.
    let moved = JwtKeyRow {
        id: "another".to_owned(),
        ..rows[0].clone()
    };
    let workshop = Workshop {
        trust_domain: "acme.test".parse().unwrap(),
        replica: "here".parse().unwrap(),
        sealing: SealingKey::new(&[1; 32]).unwrap(),
    };
    assert!(matches!(
        workshop.open_jwt_key(&moved),
        Err(CaError::Seal(_))
    ));
    assert!(workshop.open_jwt_key(&rows[0]).is_ok());
}
