use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::*;

struct Dropped(Arc<AtomicBool>);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[tokio::test(start_paused = true)]
async fn closing_waits_for_work_that_ends_in_time() {
    let drain = Drain::new();
    let (end, ended) = oneshot::channel();
    drain.spawn(async move {
        tokio::time::sleep(Duration::from_secs(3)).await;
        end.send(()).unwrap();
    });
    assert!(drain.close(Deadline::after(Duration::from_secs(10))).await);
    assert!(drain.is_stopping());
    assert_eq!(ended.await, Ok(()));
}

#[tokio::test(start_paused = true)]
async fn what_outlives_the_grace_is_forced_and_may_say_why() {
    let drain = Drain::new();
    let (end, ended) = oneshot::channel();
    let own = drain.clone();
    drain.spawn(async move {
        own.forced().await;
        end.send("drained").unwrap();
    });
    assert!(!drain.close(Deadline::after(Duration::from_secs(10))).await);
    assert_eq!(ended.await, Ok("drained"));
}

#[tokio::test(start_paused = true)]
async fn a_task_that_does_not_listen_is_dropped_a_second_after_the_force() {
    let drain = Drain::new();
    let dropped = Arc::new(AtomicBool::new(false));
    let held = Dropped(dropped.clone());
    drain.spawn(async move {
        let _held = held;
        std::future::pending::<()>().await;
    });
    let began = Instant::now();
    assert!(!drain.close(Deadline::after(Duration::from_secs(10))).await);
    assert_eq!(began.elapsed(), Duration::from_secs(10) + LAST_WORDS);
    assert!(dropped.load(Ordering::Relaxed));
}

#[tokio::test(start_paused = true)]
async fn a_set_without_tasks_is_drained() {
    let drain = Drain::new();
    drain.drained().await;
    drop(drain.register());
    drain.drained().await;
    assert!(drain.close(Deadline::after(Duration::ZERO)).await);
}

#[tokio::test(start_paused = true)]
async fn a_panicking_task_does_not_hold_the_drain() {
    let drain = Drain::new();
    drain.spawn(async { panic!("on purpose") });
    assert!(drain.close(Deadline::after(Duration::from_secs(5))).await);
}

#[tokio::test(start_paused = true)]
async fn a_child_stops_alone_but_its_parent_waits_for_it() {
    let parent = Drain::new();
    let child = parent.child();
    child.stop();
    assert!(!parent.is_stopping());

    let registration = child.register();
    assert!(
        Deadline::after(Duration::from_secs(1))
            .bound(parent.drained())
            .await
            .is_err()
    );
    drop(registration);
    parent.drained().await;

    let other = parent.child();
    parent.stop();
    other.stopping().await;
}
