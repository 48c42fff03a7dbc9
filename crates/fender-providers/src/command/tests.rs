use std::fs;
use std::path::PathBuf;

use fender_runtime::clock::{TestClock, UnixTime};
use fender_runtime::drain::Drain;
use tempfile::TempDir;

use super::*;
use crate::{State, watch};

/// What runs the scripts: a file that was written a moment ago cannot be run itself while another test forks.
const SHELL: &str = "/bin/sh";
const NOW: Duration = Duration::from_secs(1_800_000_000);

/// A plug-in of a few lines of shell.
struct Plugin {
    directory: TempDir,
}

impl Plugin {
    fn new(script: &str) -> Self {
        let plugin = Self {
            directory: tempfile::tempdir().unwrap(),
        };
        plugin.becomes(script);
        plugin
    }

    fn becomes(&self, script: &str) {
        fs::write(self.path("plugin"), script).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn source(&self, arguments: &[&str]) -> CommandSource {
        self.run_by(shell(), arguments)
    }

    fn run_by(&self, runner: Runner, arguments: &[&str]) -> CommandSource {
        let script = [self.path("plugin").to_str().unwrap().to_owned()].into_iter();
        let arguments = arguments.iter().map(ToString::to_string);
        let command = Command {
            program: SHELL.into(),
            arguments: script.chain(arguments).collect(),
            every: Duration::from_secs(600),
            timeout: Duration::from_secs(100),
        };
        let clock = TestClock::new(UnixTime::since_unix_epoch(NOW));
        CommandSource::new(name(), command, runner, clock)
    }
}

fn shell() -> Runner {
    Runner::here([SHELL.into()])
}

fn name() -> ObjectName {
    ObjectName::new("shop", "smtp").unwrap()
}

fn prints(answer: &str) -> String {
    format!("cat > /dev/null; printf '%s' '{answer}'")
}

async fn error(script: &str) -> FetchError {
    Plugin::new(script).source(&[]).fetch().await.unwrap_err()
}

#[tokio::test]
async fn a_plugin_is_asked_by_a_line_of_json_and_its_arguments() {
    let plugin = Plugin::new(
        r#"read -r line
printf '%s\n' "$line" > "$1"
printf '%s\n' "$@" >> "$1"
printf '{"version":1,"value":"hunter2"}\n'"#,
    );
    let heard = plugin.path("heard");
    let arguments = [heard.to_str().unwrap(), "$(id)", "a b"];
    let source = plugin.source(&arguments);
    let fetched = source.fetch().await.unwrap();
    assert_eq!(fetched.value.expose(), b"hunter2");
    let heard = fs::read_to_string(&heard).unwrap();
    let lines: Vec<_> = heard.lines().collect();
    let question: serde_json::Value = serde_json::from_str(lines[0]).unwrap();
    let expected = serde_json::json!({ "version": 1, "operation": "fetch", "namespace": "shop", "name": "smtp" });
    assert_eq!(question, expected);
    assert_eq!(lines[1..], arguments, "no shell read them");
    let again = source.fetch().await.unwrap();
    assert_eq!(
        again.generation, fetched.generation,
        "the same value is no news"
    );
    assert!(!format!("{source:?}").contains("hunter2"));
}

#[tokio::test]
async fn what_a_plugin_says_of_a_failure_decides_what_becomes_of_the_value() {
    for (kind, withdraws) in [("outage", false), ("denied", true), ("missing", true)] {
        let answer = format!(r#"{{"version":1,"error":{{"kind":"{kind}","message":"so it is"}}}}"#);
        let error = error(&prints(&answer)).await;
        assert_eq!(error.is_refusal(), withdraws, "{error}");
        assert!(error.to_string().contains("so it is"), "{error}");
    }
}

#[tokio::test]
async fn an_answer_counts_only_if_its_program_succeeds() {
    let answer = r#"printf '{"version":1,"value":"hunter2"}'"#;
    let refusal = r#"printf '{"version":1,"error":{"kind":"missing","message":"x"}}'"#;
    for script in [
        format!("{answer}; exit 1"),
        format!("{refusal}; exit 2"),
        format!("{answer}; kill -9 $$"),
        format!("{answer}; exit 255"),
    ] {
        let error = error(&script).await;
        assert!(matches!(error, FetchError::Outage(_)), "{script}: {error}");
        assert!(!error.to_string().contains("hunter2"));
    }
}

#[tokio::test]
async fn no_word_of_a_plugin_is_repeated_but_its_message() {
    let error = error("echo 'password=hunter2' >&2; echo 'hunter2'; exit 3").await;
    let text = format!("{error} {error:?}");
    assert!(!text.contains("hunter2"), "{text}");
    assert!(
        text.contains("exit code 3") && text.contains("17 bytes"),
        "{text}"
    );
    let plugin = Plugin::new("echo hunter2 >&2; echo hunter2");
    let error = plugin.source(&[]).fetch().await.unwrap_err();
    let text = format!("{error} {error:?}");
    assert!(matches!(error, FetchError::Malformed(_)), "{text}");
    assert!(
        !text.contains("hunter2") && text.contains("8 bytes"),
        "{text}"
    );
}

#[tokio::test]
async fn attack_a_plugin_that_never_stops_talking_is_ended() {
    let error = error("cat /dev/zero").await;
    assert!(matches!(error, FetchError::Malformed(_)), "{error}");
    let most = "x".repeat(LIMIT);
    let plugin = Plugin::new("cat > /dev/null; cat \"$1\"");
    let file = plugin.path("answer");
    let answers = |value: &str| {
        fs::write(&file, format!("{{\"version\":1,\"value\":\"{value}\"}}")).unwrap();
        plugin.source(&[file.to_str().unwrap()])
    };
    assert_eq!(answers(&most).fetch().await.unwrap().value.len(), LIMIT);
    let error = answers(&format!("{most}x")).fetch().await.unwrap_err();
    assert!(error.to_string().contains("larger than 1 MiB"), "{error}");
}

#[tokio::test]
async fn a_program_that_was_not_allowed_is_not_run() {
    let plugin = Plugin::new("touch \"$1\"");
    let ran = plugin.path("ran");
    let source = plugin.run_by(Runner::here(["/bin/true".into()]), &[ran.to_str().unwrap()]);
    let error = source.fetch().await.unwrap_err();
    assert!(matches!(error, FetchError::Denied(_)), "{error}");
    assert!(error.to_string().contains("--allow-command"), "{error}");
    assert!(!ran.exists());
}

#[tokio::test]
async fn a_program_that_is_not_there_is_an_outage_and_withdraws_nothing() {
    let plugin = Plugin::new("");
    let gone = plugin.path("gone");
    let mut source = plugin.run_by(Runner::here([gone.clone()]), &[]);
    source.command.program = gone;
    let error = source.fetch().await.unwrap_err();
    assert!(matches!(error, FetchError::Outage(_)), "{error}");
}

#[tokio::test]
async fn a_value_is_asked_for_again_before_it_expires() {
    let expiring = |seconds: u64| {
        let moment = std::time::UNIX_EPOCH + NOW + Duration::from_secs(seconds);
        let moment = humantime::format_rfc3339_seconds(moment);
        Plugin::new(&prints(&format!(
            r#"{{"version":1,"value":"x","expires":"{moment}"}}"#
        )))
    };
    for (seconds, next) in [(90, 60), (1, 1), (86_400, 600)] {
        let plugin = expiring(seconds);
        let source = plugin.source(&[]);
        source.fetch().await.unwrap();
        let (most, least) = (
            Duration::from_secs(next),
            Duration::from_secs(next) * 9 / 10,
        );
        let next = source.interval();
        assert!(next <= most && next >= least, "{seconds}: {next:?}");
        let end = NOW + Duration::from_secs(seconds);
        assert_eq!(source.standing(), Standing::Until(end));
    }
    let error = expiring(0).source(&[]).fetch().await.unwrap_err();
    assert!(matches!(error, FetchError::Outage(_)), "{error}");
    assert!(error.to_string().contains("expired"), "{error}");
}

#[tokio::test]
async fn a_plugin_that_fails_is_asked_again_soon_and_then_more_rarely() {
    let plugin = Plugin::new("exit 1");
    let source = plugin.source(&[]);
    for most in [1, 2, 4, 8] {
        source.fetch().await.unwrap_err();
        let next = source.interval();
        assert!(next <= Duration::from_secs(most) && next >= Duration::from_secs(most) / 2);
    }
    plugin.becomes(&prints(r#"{"version":1,"value":"x"}"#));
    source.fetch().await.unwrap();
    assert!(source.interval() >= Duration::from_secs(540));
    plugin.becomes(&prints(
        r#"{"version":1,"error":{"kind":"denied","message":"no"}}"#,
    ));
    source.fetch().await.unwrap_err();
    assert_eq!(
        source.interval(),
        Duration::from_secs(600),
        "it said what it has to say"
    );
}

#[tokio::test]
async fn attack_a_document_cannot_have_a_program_asked_without_pause() {
    let plugin = Plugin::new(&prints(r#"{"version":1,"value":"x"}"#));
    let mut source = plugin.source(&[]);
    source.command.every = Duration::ZERO;
    source.fetch().await.unwrap();
    assert!(source.interval() >= Duration::from_secs(1));
}

/// A value that is another each time, as of a service that makes one for each who asks, would never agree with itself.
#[tokio::test]
async fn a_plugin_whose_every_answer_is_new_is_believed_at_once() {
    let plugin =
        Plugin::new(r#"echo x >> "$1"; printf '{"version":1,"value":"%s"}' "$(wc -l < "$1")""#);
    let asked = plugin.path("asked");
    let mut source = plugin.source(&[asked.to_str().unwrap()]);
    source.command.every = Duration::from_secs(1);
    let drain = Drain::new();
    let mut states = watch(source, &drain);
    let mut values = Vec::new();
    while values.len() < 3 {
        states.changed().await.unwrap();
        let state = states.borrow_and_update().clone();
        let State::Current(fetched) = state else {
            panic!("{state:?}")
        };
        let value = fetched.value.expose_str().unwrap().trim().to_owned();
        values.push(value);
    }
    assert_eq!(values, ["1", "2", "3"], "nobody asked twice for one value");
    drain.stop();
    drain.drained().await;
}

/// DESIGN §9: no stampede.
#[tokio::test]
async fn five_hundred_secrets_of_one_plugin_are_asked_for_a_few_at_once() {
    let plugin = Plugin::new(
        r#"echo + >> "$1"; cat > /dev/null; echo - >> "$1"; printf '{"version":1,"value":"x"}'"#,
    );
    let log = plugin.path("log");
    let runner = shell();
    let drain = Drain::new();
    let arguments = [log.to_str().unwrap()];
    let sources = (0..500).map(|_| watch(plugin.run_by(runner.clone(), &arguments), &drain));
    let all: Vec<_> = sources.collect();
    for mut states in all {
        let state = states.wait_for(|state| state.value().is_some()).await;
        assert!(state.is_ok());
    }
    drain.stop();
    drain.drained().await;
    let (mut running, mut most, mut asked) = (0_i32, 0, 0);
    for line in fs::read_to_string(&log).unwrap().lines() {
        running += if line == "+" { 1 } else { -1 };
        asked += i32::from(line == "+");
        most = most.max(running);
    }
    assert_eq!((asked, running), (500, 0));
    // On a slow machine some take long, and have places of their own.
    let room = 2 * fender_runtime::program::AT_ONCE;
    assert!(most <= i32::try_from(room).unwrap(), "{most}");
}

#[tokio::test]
async fn one_plugin_that_hangs_holds_up_no_other() {
    let hangs = Plugin::new("exec sleep 1000");
    let works = Plugin::new(&prints(r#"{"version":1,"value":"x"}"#));
    let runner = shell();
    let drain = Drain::new();
    let hanging = watch(hangs.run_by(runner.clone(), &[]), &drain);
    let fetched = works.run_by(runner, &[]).fetch().await.unwrap();
    assert_eq!(fetched.value.expose(), b"x");
    assert!(hanging.borrow().value().is_none());
    drain.stop();
    drain.drained().await;
}

#[test]
fn a_question_is_one_line() {
    let plugin = Plugin::new("");
    let question = plugin.source(&[]).question();
    assert_eq!(question.iter().filter(|byte| **byte == b'\n').count(), 1);
    assert!(question.ends_with(b"}\n"));
}
