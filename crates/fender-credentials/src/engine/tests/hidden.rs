//! Nothing is delivered that would be seen in what the application writes.

use std::os::fd::OwnedFd;

use tokio::net::UnixStream;

use super::*;
use crate::mask::Masks;
use crate::supervise::hidden::{Hider, Proxies, hear};
use crate::testing::masked;

/// A bench with whoever hides, who goes when the drain does.
fn hiding() -> (Bench, Masks, Drain) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let (masks, hides) = (Masks::new(), Drain::new());
    let theirs = OwnedFd::from(theirs.into_std().unwrap());
    let hearing = hear(theirs, masks.clone(), Proxies::default());
    let stops = hides.clone();
    hides.spawn(async move {
        tokio::select! {
            () = hearing => {}
            () = stops.stopping() => {}
        }
    });
    let mut bench = Bench::new();
    bench.settings.hider = Some(Arc::new(Hider::over(ours)));
    (bench, masks, hides)
}

#[tokio::test]
async fn a_value_is_hidden_before_it_is_delivered_and_not_delivered_when_nobody_hides_it() {
    let (bench, masks, hides) = hiding();
    bench.remote.says("db", current("value-one"));
    bench.publish(vec![bench.spec("db", &["a"])]);
    let mut held = bench.start().await.unwrap();
    bench.holds(&[("a", "value-one")]);
    assert_eq!(masked(&masks, "value-one"), "***");
    bench.remote.says("db", current("value-two"));
    holding(&mut held, "db", |holding| {
        holding == Some(&delivered("value-two"))
    })
    .await;
    assert_eq!(masked(&masks, "value-one value-two"), "*** ***");

    hides.stop();
    hides.drained().await;
    bench.remote.says("db", current("value-three"));
    holding(
        &mut held,
        "db",
        |holding| matches!(holding, Some(Holding::Outdated { why, .. }) if why.contains("hides")),
    )
    .await;
    bench.holds(&[("a", "value-two")]);
    bench.end().await;
}

#[tokio::test]
async fn nothing_is_delivered_at_start_when_nobody_hides_it_or_it_is_too_much() {
    let (bench, _, hides) = hiding();
    let huge: String = (0..100_000).map(|number| format!("{number} ")).collect();
    bench.remote.says("db", current(&huge));
    bench.remote.says("small", current("value-one"));
    bench.publish(vec![bench.spec("db", &["a"]), bench.spec("small", &["b"])]);
    let error = bench.start().await.unwrap_err();
    assert_eq!(error.exit_code(), 64, "{error}");
    assert!(error.to_string().contains("cannot be masked"), "{error}");
    bench.holds(&[]);

    hides.stop();
    hides.drained().await;
    bench.remote.says("db", current("value-one"));
    let error = bench.start().await.unwrap_err();
    assert!(error.to_string().contains("is not delivered"), "{error}");
    bench.end().await;
}

/// More of them than are remembered of what was replaced.
#[tokio::test]
async fn attack_a_dozen_values_that_cannot_be_written_leave_the_delivered_one_hidden() {
    use std::os::unix::fs::PermissionsExt as _;
    let (bench, masks, hides) = hiding();
    let mode = |mode| {
        let permissions = fs::Permissions::from_mode(mode);
        fs::set_permissions(bench.directory.path(), permissions).unwrap();
    };
    let other = |number: u32| format!("value-other-{number}");
    bench.remote.says("db", current("value-one"));
    bench.publish(vec![bench.spec("db", &["a"])]);
    let mut held = bench.start().await.unwrap();
    let name = ObjectName::new("shop", "db").unwrap();
    // Where everybody may write, nothing is written.
    mode(0o777);
    for number in 1..=12 {
        bench.remote.says("db", current(&other(number)));
        let newer = Generation::named(other(number));
        let failed = |all: &Holdings| {
            all.get(&name)
                .is_some_and(|it| it.newer == Some(newer.clone()))
        };
        held.wait_for(failed).await.unwrap();
        bench.holds(&[("a", "value-one")]);
        assert_eq!(masked(&masks, "value-one"), "***", "{number}");
    }
    mode(0o700);
    for number in 13..=30 {
        bench.remote.says("db", current(&other(number)));
        let is = delivered(&other(number));
        holding(&mut held, "db", |holding| holding == Some(&is)).await;
        bench.holds(&[("a", &other(number))]);
        assert_eq!(masked(&masks, &other(number)), "***");
    }
    // What was replaced long ago is not held for ever.
    assert_eq!(masked(&masks, "value-one"), "value-one");
    hides.stop();
    hides.drained().await;
    bench.end().await;
}
