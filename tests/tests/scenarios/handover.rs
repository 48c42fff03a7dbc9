//! Credentials are handed over at a socket: to processes of the users that a document names, and to nobody else, whatever
//! they try (DESIGN §9).

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use fender_tests::pki::{Authority, Template};
use fender_tests::process::{PATIENCE, binary, installed, output};
use fender_tests::{Process, wait_until};
use tempfile::TempDir;

use crate::standalone::ORDERS;

mod attacks;

/// Who the sidecar is, and who may have its credentials; the last may have nothing.
const SIDECAR: u32 = 4400;
const APP: u32 = 4401;
const JOB: u32 = 4402;
const STRANGER: u32 = 4403;

/// The value; nothing that Fender writes but its output may hold it.
const CANARY: &str = "canary-8e40b1f7-socket";

const CLIENT: &str = include_str!("../../python/handover.py");

/// A place for a sidecar that hands credentials over, and a name of its own for the socket.
struct Counter {
    directory: TempDir,
    socket: String,
}

impl Counter {
    fn new(test: &str) -> Self {
        let directory = tempfile::Builder::new()
            .prefix("fender-handover-")
            .tempdir()
            .unwrap();
        let counter = Self {
            directory,
            socket: format!("@fender-test-{}-{test}", std::process::id()),
        };
        let mode = |path: &Path, mode| {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        };
        // Other users execute it.
        mode(counter.directory.path(), 0o755);
        fs::copy(binary(), counter.path("fender")).unwrap();
        mode(&counter.path("fender"), 0o755);
        let authority = Authority::new("example.org");
        let identity = counter.path("identity");
        authority.issue(&Template::svid(ORDERS)).write(&identity);
        authority.write_bundle(&identity);
        for own in ["run", "private"] {
            fs::create_dir(counter.path(own)).unwrap();
        }
        counter.replace("smtp", CANARY);
        counter.replace("report", "for the job alone");
        counter.configure("");
        mode(&counter.path("private"), 0o700);
        counter.give_all(SIDECAR);
        counter
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Everything that is the sidecar's, to its user.
    fn give_all(&self, user: u32) {
        let files = fs::read_dir(self.path("identity")).unwrap();
        let files = files.map(|entry| entry.unwrap().path());
        let own = ["identity", "run", "private", "smtp", "report"].map(|own| self.path(own));
        for path in files.chain(own) {
            chown(path, Some(user), Some(user)).unwrap();
        }
    }

    /// What a source holds.
    fn replace(&self, name: &str, text: &str) {
        let fresh = self.path("fresh");
        fs::write(&fresh, text).unwrap();
        fs::set_permissions(&fresh, fs::Permissions::from_mode(0o400)).unwrap();
        chown(&fresh, Some(SIDECAR), Some(SIDECAR)).unwrap();
        fs::rename(&fresh, self.path(name)).unwrap();
    }

    /// `smtp` is for the app, `report` for the job; and what is `more`.
    fn configure(&self, more: &str) {
        self.configure_for(&[APP], more);
    }

    fn configure_for(&self, users: &[u32], more: &str) {
        let identity = self.path("identity");
        let identity = identity.display();
        let directory = self.directory.path().display();
        let names = match more.is_empty() {
            true => "smtp, report",
            false => "smtp, report, more",
        };
        let text = format!(
            r#"apiVersion: fender.dev/v1
kind: Sidecar
metadata: {{ namespace: shop, name: orders }}
spec:
  identity: {{ files: {{ certificate: {identity}/certificate.pem, key: {identity}/key.pem, bundle: {identity}/bundle.pem }} }}
  credentials: [ {names} ]
---
apiVersion: fender.dev/v1
kind: Credential
metadata: {{ namespace: shop, name: smtp }}
spec:
  source: {{ file: {{ path: {directory}/smtp }} }}
  maxStale: 1s
  deliver: [ {{ socket: {{ users: {users:?} }} }} ]
---
apiVersion: fender.dev/v1
kind: Credential
metadata: {{ namespace: shop, name: report }}
spec:
  source: {{ file: {{ path: {directory}/report }} }}
  deliver: [ {{ socket: {{ name: report.key, users: [ {JOB} ] }} }} ]
{more}"#
        );
        fs::write(self.path("sidecar.yaml"), text).unwrap();
    }

    fn command(&self, user: u32) -> Command {
        let mut command = Command::new(installed("setpriv"));
        command
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin")
            .current_dir("/")
            .args([format!("--reuid={user}"), format!("--regid={user}")])
            .args(["--clear-groups", "--inh-caps=-all", "--"]);
        command
    }

    fn arguments(&self) -> Vec<String> {
        let path = |name: &str| self.path(name).to_string_lossy().into_owned();
        [
            &path("fender"),
            "--log",
            "debug",
            "sidecar",
            "--config",
            &path("sidecar.yaml"),
            "--admin-socket",
            &path("run/admin.sock"),
            "--upgrade-socket",
            &path("private/upgrade.sock"),
            "--credentials-socket",
            &self.socket,
        ]
        .map(ToOwned::to_owned)
        .into()
    }

    fn begin(&self, adjust: impl FnOnce(&mut Command)) -> Process {
        let mut command = self.command(SIDECAR);
        command.args(self.arguments());
        adjust(&mut command);
        Process::start("sidecar", &mut command, &self.path("log"))
    }

    fn start(&self) -> Process {
        let mut process = self.begin(|_| {});
        process.wait_ready(&self.path("run/admin.sock"));
        process
    }

    fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    fn reload(&self) {
        let socket = self.path("private/upgrade.sock");
        let told = output(
            binary(),
            &["reload", "--sidecar", &socket.to_string_lossy()],
        );
        assert_eq!(told.0, 0, "{told:?}");
    }

    /// `fender get NAME` as this user: code, output, error.
    fn get(&self, user: u32, name: &str) -> (i32, String, String) {
        self.get_by(user, &[name, "--sidecar-uid", &SIDECAR.to_string()])
    }

    fn get_by(&self, user: u32, arguments: &[&str]) -> (i32, String, String) {
        let mut command = self.command(user);
        command
            .arg(self.path("fender"))
            .args(["get", "--socket", &self.socket])
            .args(arguments);
        run(&mut command)
    }

    fn script(&self, user: u32, arguments: &[&str]) -> Command {
        let mut command = self.command(user);
        command
            .arg(installed("python3"))
            .args(["-c", CLIENT, &self.socket])
            .args(arguments)
            .stdin(Stdio::null());
        command
    }

    /// The client that is none of Fender's.
    fn client(&self, user: u32, arguments: &[&str]) -> (i32, String, String) {
        run(&mut self.script(user, arguments))
    }
}

fn run(command: &mut Command) -> (i32, String, String) {
    let output = command.stdin(Stdio::null()).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (
        output.status.code().unwrap_or(-1),
        text(&output.stdout),
        text(&output.stderr),
    )
}

/// A client that goes on until its input ends; dropped, it does.
struct Client(Child);

impl Client {
    /// With its first line.
    fn start(command: &mut Command) -> (Self, String) {
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut client = Self(child.unwrap());
        let mut line = String::new();
        BufReader::new(client.0.stdout.as_mut().unwrap())
            .read_line(&mut line)
            .unwrap();
        (client, line)
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn the_users_that_a_document_names_get_the_value_and_nothing_else() {
    let counter = Counter::new("named");
    let mut sidecar = counter.start();
    assert_eq!(counter.get(APP, "smtp"), (0, CANARY.into(), String::new()));
    assert_eq!(counter.get(JOB, "report.key").1, "for the job alone");
    assert_eq!(counter.client(APP, &["read", "smtp"]).1, CANARY);

    // A change at the source is there with the next question.
    counter.replace("smtp", "another value\n\0");
    wait_until("the change is handed over", PATIENCE, || {
        counter.get(APP, "smtp").1 == "another value\n\0"
    });

    // There is something, but no secret is that large; and in the end there is nothing.
    counter.replace("smtp", &"x".repeat(2 * 1024 * 1024));
    wait_until("it is too old", PATIENCE, || {
        let (code, out, err) = counter.get(APP, "smtp");
        match code {
            75 => err.contains("maxStale") && out.is_empty(),
            _ => {
                assert_eq!((code, out.as_str()), (0, "another value\n\0"), "{err}");
                false
            }
        }
    });
    counter.replace("smtp", "a third value");
    wait_until("it is handed over again", PATIENCE, || {
        counter.get(APP, "smtp").1 == "a third value"
    });
    fs::remove_file(counter.path("smtp")).unwrap();
    wait_until("it is withdrawn", PATIENCE, || {
        let (code, out, err) = counter.get(APP, "smtp");
        match code {
            66 => err.contains("took it back") && out.is_empty(),
            _ => false,
        }
    });
    assert_eq!(
        counter.get(JOB, "report.key").0,
        0,
        "the other one is as it was"
    );

    // What has no value yet says so.
    let path = counter.path("later");
    counter.replace("later", &"x".repeat(2 * 1024 * 1024));
    counter.configure(&format!(
        "---\napiVersion: fender.dev/v1\nkind: Credential\nmetadata: {{ namespace: shop, name: more }}\nspec:\n  source: {{ file: {{ path: {} }} }}\n  deliver: [ {{ socket: {{ users: [ {APP} ] }} }} ]\n",
        path.display()
    ));
    counter.reload();
    wait_until(
        "the new one is known and has no value yet",
        PATIENCE,
        || {
            let (code, out, err) = counter.get(APP, "more");
            assert_eq!(out, "");
            code == 75 && err.contains("does not have `more` yet")
        },
    );
    counter.replace("later", "at last");
    wait_until("the new one is handed over", PATIENCE, || {
        counter.get(APP, "more").1 == "at last"
    });

    sidecar.assert_running();
    let metrics = crate::telemetry::get(&counter.path("run/admin.sock"), "/metrics").1;
    assert!(
        metrics.contains("fender_credential_handovers_total{answer=\"withdrawn\"}"),
        "{metrics}"
    );
    for told in [counter.log(), metrics] {
        assert!(!told.contains(CANARY), "{told}");
    }
}

#[test]
fn a_value_is_written_to_a_file_whole_for_its_user_alone_and_through_no_link() {
    let counter = Counter::new("output");
    let _sidecar = counter.start();
    let home = counter.path("home");
    let private = |path: &Path, mode| {
        fs::create_dir(path).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        chown(path, Some(APP), Some(APP)).unwrap();
    };
    private(&home, 0o755);
    private(&counter.path("open"), 0o777);
    let sidecar = SIDECAR.to_string();
    let get = |name: &str, file: &Path| {
        let file = file.to_str().unwrap();
        counter.get_by(APP, &[name, "--sidecar-uid", &sidecar, "--output", file])
    };
    let file = home.join("smtp");
    let look = || fs::symlink_metadata(&file).unwrap();

    // What was there is replaced, not written into: whoever holds it open keeps what it was.
    fs::write(
        &file,
        "older, and longer than what comes now: for everybody",
    )
    .unwrap();
    let before = fs::File::open(&file).unwrap();
    let (code, out, err) = get("smtp", &file);
    assert_eq!((code, out.as_str()), (0, ""), "{err}");
    assert!(!err.contains(CANARY), "{err}");
    assert_eq!(fs::read_to_string(&file).unwrap(), CANARY);
    assert_eq!((look().uid(), look().mode() & 0o7777), (APP, 0o600));
    assert_ne!(before.metadata().unwrap().ino(), look().ino());

    let inode = look().ino();
    assert_eq!(get("smtp", &file).0, 0);
    assert_eq!(look().ino(), inode, "the same value is not written again");
    counter.replace("smtp", "second");
    wait_until("the new value is there", PATIENCE, || {
        assert_eq!(get("smtp", &file).0, 0);
        fs::read_to_string(&file).unwrap() == "second"
    });

    // No value, no change.
    assert_eq!(get("none", &file).0, 66);
    assert_eq!(fs::read_to_string(&file).unwrap(), "second");

    // A link is replaced, and what it leads to is left alone; a directory that is one is refused.
    let (target, link) = (home.join("target"), home.join("link"));
    fs::write(&target, "not ours").unwrap();
    std::os::unix::fs::symlink(&target, &link).unwrap();
    let (code, _, err) = get("smtp", &link);
    assert_eq!(code, 0, "{err}");
    assert_eq!(fs::read_to_string(&target).unwrap(), "not ours");
    assert!(fs::symlink_metadata(&link).unwrap().is_file());
    std::os::unix::fs::symlink(&home, counter.path("elsewhere")).unwrap();
    for unfit in ["elsewhere/smtp", "open/smtp"] {
        let (code, _, err) = get("smtp", &counter.path(unfit));
        assert_eq!(code, 64, "{unfit}: {err}");
    }
    assert_eq!(fs::read_dir(counter.path("open")).unwrap().count(), 0);
    // Nobody may write there but the sidecar.
    let (code, _, err) = get("smtp", &counter.path("run/smtp"));
    assert_eq!(code, 69, "{err}");
    let mut left: Vec<_> = fs::read_dir(&home)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    left.sort();
    assert_eq!(
        left,
        ["link", "smtp", "target"],
        "nothing half done is left"
    );
}

#[test]
fn what_is_wrong_with_a_question_shows_in_its_exit_code() {
    let counter = Counter::new("codes");
    let sidecar_uid = SIDECAR.to_string();
    let nobody = counter.get(APP, "smtp");
    assert_eq!(nobody.0, 69, "{nobody:?}");
    assert!(nobody.2.contains(&counter.socket[1..]), "{nobody:?}");
    let _sidecar = counter.start();
    let bad = counter.get_by(APP, &["../smtp", "--sidecar-uid", &sidecar_uid]);
    assert_eq!(bad.0, 64, "{bad:?}");
    // Its user was not named: it could be anybody who took the name.
    let stranger = counter.get_by(APP, &["smtp"]);
    assert_eq!((stranger.0, stranger.1.as_str()), (77, ""), "{stranger:?}");
    assert!(
        stranger.2.contains(&format!("user {SIDECAR}")),
        "{stranger:?}"
    );
}

#[test]
fn an_application_inherits_neither_socket_nor_value() {
    let counter = Counter::new("inherit");
    let seen = counter.path("run/seen");
    let script = format!(
        "ls -l /proc/$$/fd > {0}.new; mv {0}.new {0}",
        seen.display()
    );
    let mut sidecar = counter.begin(|command| {
        command.args(["--", "/bin/sh", "-c", &script]);
    });
    assert_eq!(sidecar.wait(PATIENCE).code(), Some(0), "{}", counter.log());
    let seen = fs::read_to_string(seen).unwrap();
    assert!(seen.contains("/dev/null"), "{seen}");
    for inherited in ["socket:", "memfd:", "anon_inode"] {
        assert!(!seen.contains(inherited), "{seen}");
    }
}

#[test]
fn a_successor_hands_over_where_the_one_before_did() {
    let counter = Counter::new("successor");
    let mut first = counter.start();
    assert_eq!(counter.get(APP, "smtp").1, CANARY);
    let mut second = counter.begin(|command| {
        command
            .arg("--take-over")
            .arg(counter.path("private/upgrade.sock"));
    });
    while first.is_running() {
        // Whichever of the two answers.
        assert_eq!(counter.get(APP, "smtp"), (0, CANARY.into(), String::new()));
    }
    second.wait_ready(&counter.path("run/admin.sock"));
    assert_eq!(counter.get(APP, "smtp").1, CANARY);
}

#[test]
fn a_document_that_hands_over_needs_a_socket_and_users_that_exist() {
    let counter = Counter::new("needs");
    let mut command = counter.command(SIDECAR);
    let arguments = counter.arguments();
    let (without, _) = arguments.split_at(arguments.len() - 2);
    let (code, out, err) = run(command.args(without));
    assert_eq!(code, 64, "{out}{err}");
    assert!(err.contains("--credentials-socket"), "{err}");
    let text = fs::read_to_string(counter.path("sidecar.yaml")).unwrap();
    for (users, why) in [("no-such-user", "no-such-user"), ("nobody", "65534")] {
        let text = text.replace(&format!("[{APP}]"), &format!("[ {users} ]"));
        fs::write(counter.path("sidecar.yaml"), text).unwrap();
        let (code, out, err) = run(counter.command(SIDECAR).args(counter.arguments()));
        assert_eq!(code, 64, "{out}{err}");
        assert!(err.contains(users) && err.contains(why), "{err}");
    }
}

#[test]
fn a_path_is_for_everybody_and_the_value_is_not() {
    let mut counter = Counter::new("path");
    counter.socket = counter
        .path("run/handover.sock")
        .to_string_lossy()
        .into_owned();
    let _sidecar = counter.start();
    assert_eq!(counter.get(APP, "smtp").1, CANARY);
    assert_eq!(counter.client(APP, &["read", "smtp"]).1, CANARY);
    assert_eq!(counter.get(STRANGER, "smtp").0, 77);
}
