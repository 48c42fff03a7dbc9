//! `fender init`: every file or none, then it is over (DESIGN §9). From a file without an identity, from a control plane, and as
//! the service of Compose that others wait for.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::{Command, Stdio};

use fender_tests::docker::Engine;
use fender_tests::process::{PATIENCE, binary, free_address, installed, put_program};
use fender_tests::{Mesh, wait_until};
use serde_json::Value;
use tempfile::TempDir;

use crate::deliverers::{alone, by_control, file, replace, write_alone};

/// The value; nothing that Fender writes may hold it, but the file.
const CANARY: &str = "canary-5b0e9a47-init";

fn init(config: &Path, more: &[&str]) -> (i32, String) {
    let output = Command::new(binary())
        .env("FENDER_LOG", "debug")
        .args(["init", "--config"])
        .arg(config)
        .args(more)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let log = String::from_utf8(output.stderr).unwrap();
    assert!(output.stdout.is_empty());
    assert!(!log.contains(CANARY), "the value is in the log:\n{log}");
    (output.status.code().unwrap_or(-1), log)
}

/// What lies where files are delivered.
fn delivered(directory: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(directory.join("out"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn files_are_left_behind_and_equal_bytes_are_not_written_again() {
    let (directory, config) = alone(&[file("smtp"), file("ledger")]);
    let path = |name: &str| directory.path().join(name);
    fs::write(path("smtp"), CANARY).unwrap();
    fs::write(path("ledger"), "one").unwrap();
    let (code, log) = init(&config, &[]);
    assert_eq!(code, 0, "{log}");
    assert_eq!(fs::read_to_string(path("out/smtp")).unwrap(), CANARY);
    let first = fs::metadata(path("out/smtp")).unwrap();
    assert_eq!(first.permissions().mode() & 0o7777, 0o440);

    fs::write(path("ledger"), "two").unwrap();
    let (code, log) = init(&config, &[]);
    assert_eq!(code, 0, "{log}");
    assert_eq!(fs::metadata(path("out/smtp")).unwrap().ino(), first.ino());
    assert_eq!(fs::read_to_string(path("out/ledger")).unwrap(), "two");
    assert_eq!(delivered(directory.path()), ["ledger", "smtp"]);
}

#[test]
fn all_of_them_or_none_and_the_exit_code_says_why() {
    let (directory, config) = alone(&[file("smtp"), file("ledger")]);
    let path = |name: &str| directory.path().join(name);
    fs::write(path("smtp"), CANARY).unwrap();

    let (code, log) = init(&config, &[]);
    assert_eq!(code, 66, "one is missing:\n{log}");
    assert!(log.contains("`shop/ledger`"), "{log}");
    assert!(delivered(directory.path()).is_empty());

    // No secret is that large.
    fs::write(path("ledger"), "x".repeat(2 * 1024 * 1024)).unwrap();
    let (code, log) = init(&config, &["--start-timeout", "2s"]);
    assert_eq!(code, 75, "one makes no sense:\n{log}");
    assert!(log.contains("malformed"), "{log}");
    assert!(delivered(directory.path()).is_empty());

    // The second cannot be written: the first does not stay either.
    fs::write(path("ledger"), "one").unwrap();
    fs::create_dir(path("open")).unwrap();
    fs::set_permissions(path("open"), fs::Permissions::from_mode(0o777)).unwrap();
    let (name, spec) = file("ledger");
    let elsewhere = spec.replace("DIR/out/", "DIR/open/");
    write_alone(directory.path(), &[file("smtp"), (name, elsewhere)]);
    let (code, log) = init(&config, &[]);
    assert_eq!(code, 64, "{log}");
    assert!(delivered(directory.path()).is_empty());
    assert_eq!(fs::read_dir(path("open")).unwrap().count(), 0);

    fs::write(&config, "kind: Nonsense\n").unwrap();
    assert_eq!(init(&config, &[]).0, 64);
}

#[test]
fn what_needs_a_process_that_stays_is_not_delivered_and_that_is_said() {
    let elsewhere = "source: { file: { path: \"DIR/smtp\" } }, \
         deliver: [ { environment: { variable: V } }, { socket: { users: [ root ] } } ]"
        .to_owned();
    let (directory, config) = alone(&[file("ledger"), ("smtp", elsewhere)]);
    fs::write(directory.path().join("ledger"), CANARY).unwrap();
    // Not even asked for: there is none.
    let (code, log) = init(&config, &[]);
    assert_eq!(code, 0, "{log}");
    assert!(
        log.contains("shop/smtp") && log.contains("not delivered"),
        "{log}"
    );
    assert_eq!(delivered(directory.path()), ["ledger"]);
}

#[test]
fn a_control_plane_says_what_and_where_and_this_machine_where_it_may() {
    let mesh = by_control(free_address(), CANARY);
    let init = |more: &[&str]| {
        let mut command = mesh.command();
        command.env_remove("FENDER_ADMIN").arg("init").args(more);
        command.arg("--state").arg(mesh.state("shop/orders"));
        let output = command.output().unwrap();
        let log = String::from_utf8(output.stderr).unwrap();
        assert!(!log.contains(CANARY), "{log}");
        (output.status.code(), log)
    };
    let token = mesh.token("shop/orders", "5m");
    let (code, log) = init(&["--token-file", token.to_str().unwrap()]);
    assert_eq!(code, Some(77), "{log}");
    assert!(log.contains("--allow-dir"), "{log}");
    assert!(!mesh.path("out/smtp").exists());
    // It is known by now: the token is spent, and the state directory says who it is.
    let (code, log) = init(&["--allow-dir", mesh.directory.path().to_str().unwrap()]);
    assert_eq!(code, Some(0), "{log}");
    assert_eq!(fs::read_to_string(mesh.path("out/smtp")).unwrap(), CANARY);
}

/// What `fender status credentials` knows of the one credential.
fn known(mesh: &Mesh) -> Value {
    let shown = mesh.fender_ok(&["status", "credentials", "shop/smtp", "--output", "json"]);
    assert!(!shown.contains(CANARY), "{shown}");
    let status: Value = serde_json::from_str(&shown).unwrap();
    status["credentials"][0].clone()
}

/// Who is gone is known by what it left, whether that is still the newest, and until somebody takes its place.
#[test]
fn what_an_init_container_delivered_is_known_when_it_has_ended() {
    let mesh = by_control(free_address(), CANARY);
    let init = |state: &Path, token: Option<&Path>| {
        let mut command = mesh.command();
        command
            .env_remove("FENDER_ADMIN")
            .args(["init", "--allow-dir"]);
        command.arg(mesh.directory.path()).arg("--state").arg(state);
        if let Some(token) = token {
            command.arg("--token-file").arg(token);
        }
        let output = command.output().unwrap();
        let log = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(0), "{log}");
        assert!(!log.contains("did not take"), "{log}");
    };
    let state = mesh.state("shop/orders");
    init(&state, Some(&mesh.token("shop/orders", "5m")));
    // Told before it ended: there is nothing to wait for.
    let all = known(&mesh);
    let left = &all["holders"][0];
    assert_eq!(
        (&all["instances"], &all["hold_newest"], &all["old_in_use"]),
        (&1.into(), &1.into(), &0.into()),
        "{all}"
    );
    assert_eq!(
        (&left["state"], &left["files"], &left["compared"]),
        (&"delivered".into(), &1.into(), &true.into())
    );
    let ended = left["ended"].as_str().unwrap();
    let table = mesh.fender_ok(&["status", "credentials"]);
    assert!(
        table.contains("delivered by init, ended "),
        "{ended} {table}"
    );
    let generation = left["generation"].clone();

    // Another value: what lies there is an old one, which nobody but the control plane can know.
    replace(&mesh.path("source"), "another");
    wait_until("what lies there is old", PATIENCE, || {
        let all = known(&mesh);
        assert_eq!(all["holders"][0]["generation"], generation);
        all["old_in_use"] == 1 && all["hold_newest"] == 0
    });
    let table = mesh.fender_ok(&["status", "credentials"]);
    for expected in [
        "0 of 1 instance hold the newest; 1 STILL USES AN OLD ONE",
        "NOT THE NEWEST by init, ended ",
    ] {
        assert!(table.contains(expected), "{table}");
    }

    // One elsewhere does not make up for it; one of the same state directory takes its place.
    let elsewhere = mesh.path("elsewhere");
    init(&elsewhere, Some(&mesh.token("shop/orders", "5m")));
    let all = known(&mesh);
    assert_eq!(
        (&all["instances"], &all["old_in_use"]),
        (&2.into(), &1.into())
    );
    init(&state, None);
    let all = known(&mesh);
    assert_eq!(
        (&all["instances"], &all["hold_newest"], &all["old_in_use"]),
        (&2.into(), &2.into(), &0.into()),
        "{all}"
    );
}

/// `examples/compose-init` in a directory of its own, on an engine of its own.
struct Example {
    engine: Engine,
    directory: TempDir,
    /// In memory, where its README has it.
    credentials: TempDir,
}

impl Example {
    fn prepare() -> Self {
        let memory = tempfile::Builder::new()
            .prefix("fender-init-")
            .tempdir_in("/dev/shm");
        let example = Self {
            engine: Engine::start(),
            directory: tempfile::tempdir().unwrap(),
            credentials: memory.unwrap(),
        };
        fs::set_permissions(
            example.credentials.path(),
            fs::Permissions::from_mode(0o755),
        )
        .unwrap();
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/compose-init");
        crate::compose::copy(&from, example.directory.path());
        put_program(&binary(), &example.directory.path().join("image/fender"));
        put_program(
            &installed("busybox"),
            &example.directory.path().join("app/busybox"),
        );
        let variable = format!("CREDENTIALS={}\n", example.credentials.path().display());
        fs::write(example.directory.path().join(".env"), variable).unwrap();
        example
    }

    fn compose(&self, arguments: &[&str]) -> (i32, String) {
        let (code, out, err) = self.engine.compose(self.directory.path(), arguments);
        (code, out + &err)
    }
}

#[test]
fn an_application_of_compose_starts_when_its_credentials_are_there_and_not_before() {
    let example = Example::prepare();
    let secret = example.directory.path().join("smtp-password");
    fs::write(&secret, "").unwrap();
    let (code, text) = example.compose(&["build"]);
    assert_eq!(code, 0, "{text}");

    // An empty secret is malformed: the service ends with its code, and the job is never made to run.
    let (code, text) = example.compose(&[
        "run",
        "--rm",
        "-T",
        "credentials",
        "init",
        "--config",
        "/job.yaml",
        "--start-timeout",
        "1s",
    ]);
    assert_eq!(code, 75, "{text}");
    assert!(text.contains("malformed"), "{text}");
    assert_eq!(fs::read_dir(example.credentials.path()).unwrap().count(), 0);

    fs::write(&secret, "correct horse").unwrap();
    let (code, text) = example.compose(&["up", "--no-color"]);
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("13 /run/credentials/smtp"), "{text}");
    let delivered = fs::metadata(example.credentials.path().join("smtp")).unwrap();
    assert_eq!((delivered.uid(), delivered.mode() & 0o7777), (1000, 0o400));
    assert!(!text.contains("correct horse"), "{text}");

    // Without it there is no job: what ran is gone, and nothing new says a word.
    let (code, text) = example.compose(&["down"]);
    assert_eq!(code, 0, "{text}");
    fs::write(&secret, "x".repeat(600 * 1024)).unwrap();
    let changed = "command: [ init, --config, /job.yaml, --start-timeout, 1s ]";
    let file = example.directory.path().join("docker-compose.yml");
    let project = fs::read_to_string(&file).unwrap();
    let quick = project.replace("command: [ init, --config, /job.yaml ]", changed);
    assert_ne!(quick, project);
    fs::write(&file, quick).unwrap();
    let (_, text) = example.compose(&["up", "--no-color"]);
    assert!(!text.contains("/run/credentials/smtp\n"), "{text}");
    let (code, text) = example.compose(&["ps", "--quiet", "job"]);
    let job = text.trim();
    let (_, state, _) = example
        .engine
        .docker(&["inspect", "--format", "{{.State.Status}}", job]);
    assert!(
        code != 0 || job.is_empty() || state.trim() == "created",
        "{text} {state}"
    );
    let (code, text) = example.compose(&["down"]);
    assert_eq!(code, 0, "{text}");
}
