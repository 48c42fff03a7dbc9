//! What becomes of what was delivered when the source does not answer, or says no.

use super::*;
use crate::testing::{logged, remember_log};

fn away(value: &str, why: &str) -> State {
    State::Stale {
        last: Some(fetched(value)),
        error: FetchError::Outage(why.to_owned()),
        since: None,
    }
}

fn is_outdated(why: &'static str) -> impl Fn(Option<&Holding>) -> bool {
    move |holding| matches!(holding, Some(Holding::Outdated { why: known, .. }) if known.contains(why))
}

fn is(value: &'static str) -> impl Fn(Option<&Holding>) -> bool {
    move |holding| holding == Some(&delivered(value))
}

#[tokio::test(start_paused = true)]
async fn an_outage_keeps_good_files_and_says_so() {
    let bench = Bench::new();
    bench.remote.says("db", current("one"));
    bench.publish(vec![bench.spec("db", &["a"])]);
    let mut held = bench.start().await.unwrap();
    bench.remote.says("db", away("one", "away"));
    let outdated = |holding: Option<&Holding>| matches!(holding, Some(Holding::Outdated { generation, .. }) if generation.as_str() == "one");
    holding(&mut held, "db", outdated).await;
    bench.holds(&[("a", "one")]);
    bench.end().await;
}

/// From the cache, or from a control plane that cannot read it itself.
#[tokio::test(start_paused = true)]
async fn a_start_with_what_is_not_the_newest_says_so_at_once_and_counts_from_when_it_was() {
    let bench = Bench::new();
    let began = Instant::now();
    let since = began - Duration::from_secs(40);
    let stale = State::Stale {
        last: Some(fetched("one")),
        error: FetchError::Outage("away".to_owned()),
        since: Some(since),
    };
    bench.remote.says("db", stale);
    bench.publish(vec![bench.spec("db", &["a"])]);
    let held = bench.start().await.unwrap();
    bench.holds(&[("a", "one")]);
    let name = ObjectName::new("shop", "db").unwrap();
    assert_eq!(
        held.borrow()[&name].holding,
        Holding::Outdated {
            generation: Generation::named("one"),
            why: "secret cannot be fetched: away".to_owned(),
            since,
            too_old: Some(since + MAX_STALE),
        }
    );
    bench.remote.says("db", current("one"));
    let mut held = held;
    holding(&mut held, "db", is("one")).await;
    bench.end().await;
}

/// DESIGN §9: stale is served up to `max-stale`, counted from the first failure, whatever fails after it.
#[tokio::test(start_paused = true)]
async fn the_age_of_a_stale_value_counts_from_the_first_failure_until_it_is_known_to_be_the_newest()
{
    let bench = Bench::new();
    let stale = |why: &str| away("one", why);
    let age = |holding: Option<&Holding>, reason: &str| match holding {
        Some(Holding::Outdated {
            why,
            since,
            too_old,
            ..
        }) if why.contains(reason) => Some((*since, too_old.unwrap())),
        _ => None,
    };
    bench.remote.says("db", current("one"));
    bench.publish(vec![bench.spec("db", &["a"])]);
    let mut held = bench.start().await.unwrap();
    let mut ages = Vec::new();
    for reason in ["away", "still away"] {
        bench.remote.says("db", stale(reason));
        holding(&mut held, "db", |holding| age(holding, reason).is_some()).await;
        let name = ObjectName::new("shop", "db").unwrap();
        let holdings = held.borrow().clone();
        let known = holdings.get(&name).map(|held| &held.holding);
        ages.push(age(known, reason).unwrap());
        tokio::time::sleep(MAX_STALE / 2).await;
    }
    assert_eq!(ages[0], ages[1]);
    assert_eq!(ages[0].1, ages[0].0 + MAX_STALE);

    bench.remote.says("db", current("one"));
    holding(&mut held, "db", is("one")).await;
    bench.remote.says("db", stale("away again"));
    holding(&mut held, "db", |holding| {
        age(holding, "again").is_some_and(|(since, _)| since >= ages[0].1)
    })
    .await;
    bench.holds(&[("a", "one")]);
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_refusal_withdraws_the_files_and_a_new_value_brings_them_back() {
    let bench = Bench::new();
    bench.remote.says("db", current("one"));
    bench.publish(vec![bench.spec("db", &["a", "b"])]);
    let mut held = bench.start().await.unwrap();
    bench
        .remote
        .says("db", State::Withdrawn(FetchError::Denied("403".to_owned())));
    let withdrawn = |holding: Option<&Holding>| matches!(holding, Some(Holding::Withdrawn { .. }));
    holding(&mut held, "db", withdrawn).await;
    bench.holds(&[]);
    bench.remote.says("db", current("two"));
    holding(&mut held, "db", is("two")).await;
    bench.holds(&[("a", "two"), ("b", "two")]);
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn that_a_value_is_the_newest_again_is_said_where_no_new_one_says_so() {
    remember_log();
    let bench = Bench::new();
    bench.remote.says("again", current("one"));
    bench.publish(vec![bench.spec("again", &["a"])]);
    let mut held = bench.start().await.unwrap();
    let again = || logged("shop/again", "is the newest again").len();
    for (value, lines) in [("one", 1), ("two", 1), ("two", 2)] {
        let last = bench.files()[0].1.clone();
        bench.remote.says("again", away(&last, "away"));
        holding(&mut held, "again", is_outdated("away")).await;
        bench.remote.says("again", current(value));
        holding(&mut held, "again", is(value)).await;
        assert_eq!(again(), lines, "{value}");
    }
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn that_a_value_is_older_than_max_stale_is_said_once_and_once_that_it_is_not_any_more() {
    remember_log();
    let bench = Bench::new();
    bench.remote.says("aged", current("one"));
    bench.publish(vec![bench.spec("aged", &["a"])]);
    let mut held = bench.start().await.unwrap();
    let said = || {
        let lines = |said| logged("shop/aged", said).len();
        let fresh = lines("is the newest again, and was older than its `maxStale`");
        (lines("is older than its `maxStale` by now"), fresh)
    };
    let late = Duration::from_secs(1);
    bench.remote.says("aged", away("one", "away"));
    holding(&mut held, "aged", is_outdated("away")).await;
    tokio::time::sleep(MAX_STALE - late).await;
    assert_eq!(said(), (0, 0));
    tokio::time::sleep(2 * late).await;
    assert_eq!(said(), (1, 0));
    // Another reason, and a long time, are nothing new.
    bench
        .remote
        .says("aged", away("one", "away for other reasons"));
    holding(&mut held, "aged", is_outdated("other reasons")).await;
    tokio::time::sleep(3 * MAX_STALE).await;
    assert_eq!(said(), (1, 0));
    bench.remote.says("aged", current("two"));
    holding(&mut held, "aged", is("two")).await;
    assert_eq!(said(), (1, 1));

    // And all of it once more, by another `maxStale`, from where it is counted already.
    bench.remote.says("aged", away("two", "away"));
    holding(&mut held, "aged", is_outdated("away")).await;
    tokio::time::sleep(2 * MAX_STALE).await;
    assert_eq!(said(), (2, 1));
    bench.publish(vec![CredentialSpec {
        max_stale: 4 * MAX_STALE,
        ..bench.spec("aged", &["a"])
    }]);
    let longer = |holding: Option<&Holding>| matches!(holding, Some(Holding::Outdated { since, too_old, .. }) if *too_old == Some(*since + 4 * MAX_STALE));
    holding(&mut held, "aged", longer).await;
    assert_eq!(said(), (2, 1));
    tokio::time::sleep(3 * MAX_STALE).await;
    assert_eq!(said(), (3, 1));
    bench.end().await;
}
