//! Files that change together, kept by the engine.

use fender_config::snapshot::{FileEntry, FilesDelivery};

use super::*;

fn set(bench: &Bench, template: &str) -> CredentialSpec {
    let entry = |name: &str, content| FileEntry {
        name: name.parse().unwrap(),
        mode: 0o400,
        content,
    };
    let delivery = FilesDelivery {
        directory: bench.path("set"),
        storage: Storage::Disk,
        owner: None,
        group: None,
        entries: vec![
            entry("raw", Content::Value),
            entry("text", Content::Template(template.parse().unwrap())),
        ],
    };
    CredentialSpec {
        deliver: vec![Delivery::Files(delivery)],
        ..bench.spec("db", &[])
    }
}

/// Of the generations and of the files.
fn present(bench: &Bench) -> (usize, Option<String>, Option<String>) {
    let names = fs::read_dir(bench.path("set")).into_iter().flatten();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let generations = names.filter(|name| name.starts_with("..") && name != "..data");
    let read = |name: &str| fs::read_to_string(bench.path("set").join(name)).ok();
    (generations.count(), read("raw"), read("text"))
}

fn has(generations: usize, raw: &str, text: &str) -> (usize, Option<String>, Option<String>) {
    (generations, Some(raw.to_owned()), Some(text.to_owned()))
}

/// Files come and go on other threads, which the clock of the test waits for.
async fn until(reached: impl Fn() -> bool) {
    for _ in 0..100_000 {
        if reached() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    panic!("never reached");
}

#[tokio::test(start_paused = true)]
async fn a_generation_that_was_replaced_goes_by_itself_and_all_of_them_at_the_end() {
    let bench = Bench::new();
    bench.remote.says("db", current("one"));
    bench.publish(vec![set(&bench, "<{{ value }}>")]);
    let mut held = bench.start().await.unwrap();
    assert_eq!(present(&bench), has(1, "one", "<one>"));
    bench.remote.says("db", current("two"));
    holding(&mut held, "db", |it| it == Some(&delivered("two"))).await;
    assert_eq!(present(&bench), has(2, "two", "<two>"));
    // Nothing is asked for: the engine's own clock says when. What is removed is removed on another thread.
    tokio::time::sleep(crate::deliver::set::GRACE).await;
    until(|| present(&bench).0 == 1).await;
    assert_eq!(present(&bench), has(1, "two", "<two>"));

    // Another document for the same value is another generation; one that drops the set takes it away.
    bench.publish(vec![set(&bench, "[{{ value }}]")]);
    until(|| present(&bench).2.as_deref() == Some("[two]")).await;
    bench.publish(vec![bench.spec("db", &["single"])]);
    until(|| fs::read_dir(bench.path("set")).unwrap().count() == 0).await;
    bench.holds(&[("single", "two")]);
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_value_that_does_not_fit_is_an_error_at_start_and_an_outage_later() {
    let bench = Bench::new();
    bench.remote.says("db", current("one"));
    bench.publish(vec![set(&bench, "{{ user }}")]);
    let error = bench.start().await.unwrap_err();
    assert_eq!(error.exit_code(), 66);
    assert!(error.to_string().contains("no JSON object"), "{error}");
    assert_eq!(present(&bench), (0, None, None));

    bench.remote.says("db", current(r#"{"user": "orders"}"#));
    let mut held = bench.start().await.unwrap();
    bench.remote.says("db", current(r#"{"name": "hunter2"}"#));
    let outdated = |it: Option<&Holding>| match it {
        Some(Holding::Outdated { why, .. }) => {
            why.contains("no field `user`") && !why.contains("hunter2")
        }
        _ => false,
    };
    holding(&mut held, "db", outdated).await;
    assert_eq!(present(&bench).2.as_deref(), Some("orders"));
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn what_its_document_keeps_stays_at_the_end_without_the_generations_before() {
    let bench = Bench::new();
    bench.remote.says("db", current("one"));
    let kept = CredentialSpec {
        on_exit: OnExit::Keep,
        ..set(&bench, "{{ value }}")
    };
    bench.publish(vec![kept]);
    let mut held = bench.start().await.unwrap();
    bench.remote.says("db", current("two"));
    holding(&mut held, "db", |it| it == Some(&delivered("two"))).await;
    bench.drain.stop();
    bench.drain.drained().await;
    assert_eq!(present(&bench), has(1, "two", "two"));
}
