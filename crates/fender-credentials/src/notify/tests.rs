use std::collections::VecDeque;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use fender_config::snapshot::NotifySignal;
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::*;

/// Somebody who answers as the test says, `Ok` when nothing is left, and tells what was heard.
struct Fake {
    answers: Mutex<VecDeque<(Duration, Result<(), NotTold>)>>,
    heard: mpsc::UnboundedSender<(Instant, Target, Vec<String>)>,
}

impl Tell for Fake {
    fn tell<'a>(
        &'a self,
        target: &'a Target,
        changed: &'a [ObjectName],
    ) -> BoxFuture<'a, Result<(), NotTold>> {
        let names = changed.iter().map(|name| name.name().to_owned()).collect();
        let heard = (Instant::now(), target.clone(), names);
        let _ = self.heard.send(heard);
        let answer = self.answers.lock().unwrap().pop_front();
        Box::pin(async move {
            let (takes, answer) = answer.unwrap_or((Duration::ZERO, Ok(())));
            tokio::time::sleep(takes).await;
            answer
        })
    }
}

struct Bench {
    notifier: Notifier,
    heard: mpsc::UnboundedReceiver<(Instant, Target, Vec<String>)>,
    drain: Drain,
    began: Instant,
}

impl Bench {
    fn new(answers: Vec<(Duration, Result<(), NotTold>)>) -> Self {
        Self::on_record(Record::open(None, "run").unwrap(), answers)
    }

    fn on_record(record: Record, answers: Vec<(Duration, Result<(), NotTold>)>) -> Self {
        let (tell, heard) = mpsc::unbounded_channel();
        let fake = Fake {
            answers: Mutex::new(answers.into()),
            heard: tell,
        };
        let drain = Drain::new();
        Self {
            notifier: Notifier::new(Arc::new(fake), record, &drain),
            heard,
            drain,
            began: Instant::now(),
        }
    }

    fn delivered(&self, credential: &str, value: &str, notify: &[Notification]) {
        let generation = Generation::named(value);
        let value = Secret::from(value.to_owned());
        self.notifier
            .delivered(&name(credential), &value, &generation, notify);
    }

    /// Who is told of what, how long after the beginning.
    async fn next(&mut self) -> (Duration, Target, Vec<String>) {
        let (when, target, names) = self.heard.recv().await.unwrap();
        (when - self.began, target, names)
    }

    /// Nobody hears anything for a day.
    async fn assert_silent(&mut self) {
        tokio::time::sleep(Duration::from_secs(24 * 3600)).await;
        assert!(self.heard.try_recv().is_err());
    }

    async fn end(self) {
        self.drain.stop();
        self.drain.drained().await;
    }
}

fn name(credential: &str) -> ObjectName {
    ObjectName::new("shop", credential).unwrap()
}

fn process(file: &str) -> Target {
    Target::Process {
        signal: NotifySignal::Hup,
        pid_file: Path::new("/run").join(file),
    }
}

fn to(target: &Target, after: u64) -> [Notification; 1] {
    [Notification {
        target: target.clone(),
        after: Duration::from_secs(after),
    }]
}

fn fails() -> (Duration, Result<(), NotTold>) {
    (Duration::ZERO, Err(NotTold::Later("away".to_owned())))
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[tokio::test(start_paused = true)]
async fn only_a_change_is_told_and_never_the_same_bytes() {
    let mut bench = Bench::new(Vec::new());
    let nginx = process("nginx.pid");
    let notify = to(&nginx, 2);
    bench.delivered("smtp", "one", &notify);
    bench.delivered("smtp", "one", &notify);
    bench.assert_silent().await;
    bench.began = Instant::now();
    bench.delivered("smtp", "two", &notify);
    let told = bench.next().await;
    assert_eq!(told, (seconds(2), nginx, vec!["smtp".to_owned()]));
    bench.delivered("smtp", "two", &notify);
    bench.assert_silent().await;
    bench.end().await;
}

/// As an application that nobody here has started.
#[tokio::test(start_paused = true)]
async fn who_can_never_be_told_is_tried_once_and_stays_pending_until_nobody_names_it() {
    let never = || (Duration::ZERO, Err(NotTold::Never("nobody is".to_owned())));
    let mut bench = Bench::new(vec![never(), never()]);
    let notify = to(&Target::Restart, 1);
    let outcomes = bench.notifier.outcomes();
    bench.delivered("smtp", "one", &notify);
    for value in ["two", "three"] {
        bench.delivered("smtp", value, &notify);
        if value == "two" {
            assert_eq!(bench.next().await.1, Target::Restart);
        }
        bench.assert_silent().await;
    }
    let outcome = outcomes.borrow()[&Target::Restart].clone();
    assert_eq!((outcome.failed, outcome.pending), (1, vec![name("smtp")]));
    assert_eq!(outcome.problem.as_deref(), Some("nobody is"));

    bench.notifier.dropped(&name("smtp"));
    bench.delivered("smtp", "four", &notify);
    bench.delivered("smtp", "five", &notify);
    assert_eq!(bench.next().await.1, Target::Restart);
    bench.assert_silent().await;
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn what_changes_within_the_time_after_the_first_change_is_told_at_once() {
    let mut bench = Bench::new(Vec::new());
    let nginx = process("nginx.pid");
    let notify = to(&nginx, 10);
    for credential in ["a", "b", "c", "d"] {
        bench.delivered(credential, "one", &notify);
    }
    bench.began = Instant::now();
    for credential in ["c", "a", "b"] {
        bench.delivered(credential, "two", &notify);
        tokio::time::sleep(seconds(4)).await;
        bench.delivered(credential, "three", &notify);
    }
    // Each change would begin a time of its own otherwise.
    let (when, _, names) = bench.next().await;
    assert_eq!((when, names.join(" ")), (seconds(10), "a b c".to_owned()));
    // The last change came at twelve.
    let (when, _, names) = bench.next().await;
    assert_eq!((when, names.join(" ")), (seconds(22), "b".to_owned()));
    bench.assert_silent().await;
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn what_is_not_acknowledged_is_told_again_and_delays_nobody_else() {
    let mut bench = Bench::new((0..4).map(|_| fails()).collect());
    let (away, here) = (process("away.pid"), process("here.pid"));
    bench.delivered("a", "one", &to(&away, 0));
    bench.delivered("b", "one", &to(&here, 30));
    let mut outcomes = bench.notifier.outcomes();
    bench.delivered("a", "two", &to(&away, 0));
    bench.delivered("b", "two", &to(&here, 30));
    let began = Instant::now();
    let mut times = Vec::new();
    for _ in 0..5 {
        let (_, target, _) = bench.next().await;
        assert_eq!(target, away);
        times.push(began.elapsed());
    }
    for (wait, most) in times.windows(2).zip([1, 2, 4, 8]) {
        let wait = wait[1] - wait[0];
        assert!(
            wait <= seconds(most) && wait * 2 >= seconds(most),
            "{times:?}"
        );
    }
    let (_, target, _) = bench.next().await;
    assert_eq!((target, began.elapsed()), (here.clone(), seconds(30)));
    let known = outcomes
        .wait_for(|known| known[&here].acknowledged == 1)
        .await
        .unwrap();
    assert_eq!((known[&away].acknowledged, known[&away].failed), (1, 4));
    assert_eq!(
        (&known[&away].problem, known[&away].pending.len()),
        (&None, 0)
    );
    drop(known);
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn what_is_pending_and_why_is_known() {
    let mut bench = Bench::new(vec![fails()]);
    let nginx = process("nginx.pid");
    let mut outcomes = bench.notifier.outcomes();
    bench.delivered("smtp", "one", &to(&nginx, 0));
    bench.delivered("smtp", "two", &to(&nginx, 0));
    bench.next().await;
    let known = outcomes
        .wait_for(|known| known[&nginx].failed == 1)
        .await
        .unwrap()
        .clone();
    assert_eq!(known[&nginx].pending, [name("smtp")]);
    assert_eq!(known[&nginx].problem.as_deref(), Some("away"));
    // It has the first one, about which there was nothing to tell.
    let knows = |known: &Outcomes| {
        let known = &known[&nginx].knows[&name("smtp")];
        (known.generation.to_string(), known.acknowledged.is_some())
    };
    assert_eq!(knows(&known), ("one".to_owned(), false));
    bench.next().await;
    let known = outcomes
        .wait_for(|known| known[&nginx].acknowledged == 1)
        .await
        .unwrap()
        .clone();
    assert!(known[&nginx].pending.is_empty() && known[&nginx].problem.is_none());
    assert_eq!(knows(&known), ("two".to_owned(), true));
    // Nobody names it any more.
    bench.delivered("smtp", "two", &[]);
    assert!(outcomes.borrow().is_empty());
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_change_while_somebody_is_told_is_told_afterwards() {
    let mut bench = Bench::new(vec![(seconds(20), Ok(()))]);
    let notify = to(&process("nginx.pid"), 1);
    bench.delivered("smtp", "one", &notify);
    bench.began = Instant::now();
    bench.delivered("smtp", "two", &notify);
    assert_eq!(bench.next().await.0, seconds(1));
    tokio::time::sleep(seconds(5)).await;
    bench.delivered("smtp", "three", &notify);
    // What it acknowledges is what it was told of, not what came meanwhile.
    let target = &notify[0].target;
    let mut outcomes = bench.notifier.outcomes();
    let first = outcomes.wait_for(|known| known[target].acknowledged == 1);
    let known = first.await.unwrap()[target].knows[&name("smtp")].clone();
    let when = known.acknowledged.unwrap() - bench.began;
    assert_eq!((when, known.generation.as_str()), (seconds(21), "two"));
    assert_eq!(bench.next().await.0, seconds(22));
    bench.assert_silent().await;
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn what_was_withdrawn_is_not_told_until_there_is_another_value() {
    let mut bench = Bench::new(Vec::new());
    let notify = to(&process("nginx.pid"), 10);
    bench.delivered("smtp", "one", &notify);
    bench.delivered("smtp", "two", &notify);
    bench.notifier.withdrawn(&name("smtp"));
    bench.assert_silent().await;
    bench.delivered("smtp", "one", &notify);
    bench.assert_silent().await;
    bench.delivered("smtp", "three", &notify);
    assert_eq!(bench.next().await.2, ["smtp"]);
    bench.notifier.dropped(&name("smtp"));
    assert!(bench.notifier.0.targets().is_empty());
    bench.end().await;
}

struct Kept(TempDir);

impl Kept {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn file(&self) -> PathBuf {
        self.0.path().join("notified")
    }

    fn record(&self, run: &str) -> Record {
        Record::open(Some(self.file()), run).unwrap()
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_not_acknowledged_before_the_end_is_told_after_the_next_start() {
    let kept = Kept::new();
    let notify = to(&process("nginx.pid"), 1);
    let mut bench = Bench::on_record(kept.record("run"), vec![fails()]);
    bench.delivered("smtp", "hunter1", &notify);
    bench.delivered("smtp", "hunter2", &notify);
    bench.next().await;
    bench.end().await;

    let mut bench = Bench::on_record(kept.record("another"), Vec::new());
    bench.delivered("smtp", "hunter2", &notify);
    assert_eq!(bench.next().await.2, ["smtp"]);
    let mut outcomes = bench.notifier.outcomes();
    let acknowledged = |known: &Outcomes| known.values().any(|one| one.acknowledged == 1);
    outcomes.wait_for(acknowledged).await.unwrap();
    bench.end().await;

    let mut bench = Bench::on_record(kept.record("another"), Vec::new());
    bench.delivered("smtp", "hunter2", &notify);
    bench.assert_silent().await;
    bench.end().await;

    let text = fs::read_to_string(kept.file()).unwrap();
    assert!(!text.contains("hunter"), "{text}");
    let mode = fs::metadata(kept.file()).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o600);
}

#[tokio::test(start_paused = true)]
async fn an_application_that_was_started_anew_has_read_everything_anew() {
    let kept = Kept::new();
    for target in [Target::Restart, Target::App(NotifySignal::Usr1)] {
        let notify = to(&target, 1);
        let bench = Bench::on_record(kept.record("one"), Vec::new());
        bench.delivered("smtp", "one", &notify);
        bench.end().await;
        // The same application, beside a proxy that was started again.
        let mut bench = Bench::on_record(kept.record("one"), Vec::new());
        bench.delivered("smtp", "two", &notify);
        assert_eq!(bench.next().await.1, target);
        bench.end().await;
        let mut bench = Bench::on_record(kept.record("two"), Vec::new());
        bench.delivered("smtp", "three", &notify);
        bench.assert_silent().await;
        bench.end().await;
    }
}

#[test]
fn a_record_keeps_only_what_documents_still_say() {
    let kept = Kept::new();
    let nginx = process("nginx.pid");
    let record = kept.record("run");
    let digest = record.digest(&Secret::from("one".to_owned()));
    record.begin(&nginx, &name("a"), &digest);
    record.begin(&nginx, &name("b"), &digest);
    record.retain(|name, _| name.name() == "b");
    let record = kept.record("run");
    assert!(!record.has(&nginx, &name("a"), &digest));
    assert!(
        record.has(&nginx, &name("b"), &digest),
        "it is the same after a restart"
    );
}

#[test]
fn a_record_that_makes_no_sense_is_begun_anew_and_one_that_others_read_is_refused() {
    let kept = Kept::new();
    for text in [
        "",
        "fender-notified 2\n",
        "fender-notified 1\nkey 00\n",
        "\u{fffd}",
    ] {
        fs::write(kept.file(), text).unwrap();
        fs::set_permissions(kept.file(), fs::Permissions::from_mode(0o600)).unwrap();
        let record = kept.record("run");
        let digest = record.digest(&Secret::from("one".to_owned()));
        assert!(!record.has(&Target::Restart, &name("a"), &digest));
    }
    fs::set_permissions(kept.file(), fs::Permissions::from_mode(0o644)).unwrap();
    assert!(Record::open(Some(kept.file()), "run").is_err());
}

#[test]
fn a_digest_is_another_under_another_key() {
    let digest = |record: Record| record.digest(&Secret::from("hunter2".to_owned()));
    let open = || Record::open(None, "").unwrap();
    assert_ne!(digest(open()), digest(open()));
    assert!(!format!("{:?}", digest(open())).contains(|c: char| c.is_ascii_digit()));
}
