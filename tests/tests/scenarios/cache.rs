//! A start during an outage has its credentials from the encrypted cache, with their true age, as long as `maxStale` allows and
//! nobody said no (DESIGN §9); and whoever has the directory of the cache has nothing.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use fender_tests::process::{PATIENCE, binary, free_address, installed, output};
use fender_tests::vault::{Mode, Vault};
use fender_tests::{Mesh, Process, wait_until};
use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::control_loss::one_service;
use crate::deliverers::alone;

/// In every value; nothing that Fender writes may hold it, but the file that it is delivered to.
const CANARY: &str = "canary-e3b7c1d2-cached-value";

/// A Vault with one secret, a Sidecar without an identity that wants it, and room for a cache.
struct World {
    vault: Vault,
    directory: TempDir,
    config: PathBuf,
}

impl World {
    fn new(max_stale: &str) -> Self {
        let vault = Vault::in_the_clear();
        vault.write("shop/smtp", json!({ "password": CANARY }));
        let spec = format!(
            "source: {{ vault: {{ address: \"{}\", login: {{ token: {{ file: DIR/vault-token }} }}, \
             kv2: {{ path: shop/smtp, key: password }}, refresh: 1s }} }}, maxStale: {max_stale}, \
             deliver: [ {{ file: {{ path: DIR/out/smtp, storage: disk }} }}, {{ environment: {{ variable: SMTP }} }} ]",
            vault.url()
        );
        let (directory, config) = alone(&[("smtp", spec)]);
        vault.write_token(directory.path());
        fs::create_dir(directory.path().join("keys")).unwrap();
        Self {
            vault,
            directory,
            config,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn delivered(&self) -> Option<String> {
        fs::read_to_string(self.path("out/smtp")).ok()
    }

    fn arguments(&self, command: &str) -> Command {
        self.arguments_from(&self.config, command)
    }

    fn arguments_from(&self, config: &Path, command: &str) -> Command {
        let mut arguments = Command::new(binary());
        arguments
            .args(["--log", "debug", command, "--config"])
            .arg(config)
            .arg("--credentials-cache")
            .arg(self.path("cache"))
            .arg("--credentials-cache-key")
            .arg(self.path("keys/key"))
            .stdin(Stdio::null());
        arguments
    }

    /// `fender watch`, ready.
    fn watch(&self, log: &str) -> Process {
        let mut command = self.arguments("watch");
        command.arg("--admin-socket").arg(self.path("admin.sock"));
        let mut process = Process::start("watch", &mut command, &self.path(log));
        process.wait_ready(&self.path("admin.sock"));
        process
    }

    /// What a command that ends says, and its exit code.
    fn run(&self, command: &str, more: &[&str]) -> (i32, String, String) {
        self.run_from(&self.config, command, more)
    }

    fn run_from(&self, config: &Path, command: &str, more: &[&str]) -> (i32, String, String) {
        let mut command = self.arguments_from(config, command);
        command.args(["--start-timeout", "10s"]).args(more);
        let output = command.output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        let (out, log) = (text(output.stdout), text(output.stderr));
        assert!(!log.contains(CANARY), "{log}");
        (output.status.code().unwrap_or(-1), out, log)
    }

    fn status(&self) -> Value {
        let socket = self.path("admin.sock");
        let arguments = ["status", "--output", "json", "--sidecar"];
        let arguments = arguments.map(std::ffi::OsString::from);
        let (_, out, err) = output(binary(), &[&arguments[..], &[socket.into()]].concat());
        assert!(!out.contains(CANARY) && !err.contains(CANARY), "{out}{err}");
        serde_json::from_str(&out).unwrap()
    }

    fn kept(&self) -> Vec<PathBuf> {
        files(&self.path("cache"))
    }

    /// Nothing in the cache, and no log, holds the value in any form.
    fn assert_nothing_is_shown(&self) {
        assert_hidden(&self.path("cache"));
        for entry in fs::read_dir(self.directory.path()).unwrap() {
            let path = entry.unwrap().path();
            if path.to_string_lossy().ends_with(".log") {
                let log = fs::read_to_string(&path).unwrap();
                assert!(!log.is_empty() && !log.contains(CANARY), "{log}");
            }
        }
    }
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).unwrap();
    entries.map(|entry| entry.unwrap().path()).collect()
}

fn assert_hidden(cache: &Path) {
    let hex: String = CANARY.bytes().map(|byte| format!("{byte:02x}")).collect();
    let forms = [
        CANARY.to_owned(),
        STANDARD.encode(CANARY).trim_end_matches('=').to_owned(),
        URL_SAFE.encode(CANARY).trim_end_matches('=').to_owned(),
        hex.to_uppercase(),
        hex,
    ];
    let kept = files(cache);
    assert!(!kept.is_empty());
    for path in kept {
        let bytes = fs::read(&path).unwrap();
        for form in &forms {
            let found = bytes
                .windows(form.len())
                .any(|part| part == form.as_bytes());
            assert!(!found, "{} holds {form}", path.display());
        }
    }
}

#[test]
fn a_restart_during_an_outage_starts_from_the_cache_and_says_how_old_it_is() {
    let world = World::new("1h");
    let mut first = world.watch("first.log");
    assert_eq!(world.delivered().as_deref(), Some(CANARY));
    let newer = format!("{CANARY}-2");
    world.vault.write("shop/smtp", json!({ "password": newer }));
    wait_until("the newer value is delivered", PATIENCE, || {
        world.delivered().as_deref() == Some(&newer)
    });
    first.signal(Signal::TERM);
    assert!(first.wait(PATIENCE).success(), "{}", first.log());
    assert_eq!(world.delivered(), None, "the end wipes what was delivered");
    assert_eq!(world.kept().len(), 1, "and not what is kept");
    world.assert_nothing_is_shown();

    world.vault.be(Mode::Away);
    let mut second = world.watch("second.log");
    assert_eq!(world.delivered().as_deref(), Some(&*newer));
    let status = world.status();
    let credential = &status["credentials"][0];
    assert_eq!(credential["state"], "outdated", "{status}");
    let told = status.to_string();
    assert!(told.contains("from the credentials cache"), "{told}");
    assert!(second.log().contains("what was kept of it is used"));

    // It is back for a while: what was new by then is kept. Whoever is killed leaves what was kept before.
    let newest = format!("{CANARY}-3");
    world
        .vault
        .write("shop/smtp", json!({ "password": newest }));
    world.vault.be(Mode::Answers);
    wait_until("the newest value is delivered", PATIENCE, || {
        world.delivered().as_deref() == Some(&newest)
    });
    wait_until("and is no more outdated", PATIENCE, || {
        world.status()["credentials"][0]["state"] == "delivered"
    });
    second.signal(Signal::TERM);
    second.wait(PATIENCE);
    world.vault.be(Mode::Sealed);
    let mut third = world.watch("third.log");
    assert_eq!(world.delivered().as_deref(), Some(&*newest));
    third.kill();
    let mut fourth = world.watch("fourth.log");
    assert_eq!(world.delivered().as_deref(), Some(&*newest));
    world.assert_nothing_is_shown();
    fourth.signal(Signal::TERM);
    fourth.wait(PATIENCE);
}

#[test]
fn init_and_exec_begin_with_it_too_and_past_max_stale_nobody_does() {
    let world = World::new("2s");
    let (code, _, log) = world.run("init", &[]);
    assert_eq!(code, 0, "{log}");
    world.vault.be(Mode::Away);
    // Until it is too old for that, each start has it; how many there are depends on the machine, and so does who notices it and says so:
    // this start, or the one before at its end.
    wait_until("what is kept is too old", PATIENCE, || {
        let (code, _, log) = world.run("init", &[]);
        assert!(code == 0 || code == 75, "{code}: {log}");
        code == 75
    });
    assert_eq!(world.kept().len(), 0);

    let world = World::new("1h");
    let show = ["--", "/bin/sh", "-c", "printf %s \"$SMTP\""];
    assert_eq!(world.run("exec", &show).1, CANARY);
    world.vault.be(Mode::Away);
    let (code, out, log) = world.run("exec", &show);
    assert_eq!((code, &*out), (0, CANARY), "{log}");
    assert!(log.contains("what was kept of it is used"), "{log}");
    let stays = [&["--supervise"], &show[..]].concat();
    let (code, out, log) = world.run("exec", &stays);
    assert_eq!((code, &*out), (0, CANARY), "{log}");
    fs::remove_file(world.path("out/smtp")).unwrap_or_default();
    assert_eq!(world.run("init", &[]).0, 0);
    assert_eq!(world.delivered().as_deref(), Some(CANARY));
    assert_hidden(&world.path("cache"));
}

#[test]
fn a_no_is_believed_and_what_is_kept_goes_with_it() {
    let world = World::new("1h");
    assert_eq!(world.run("init", &[]).0, 0);
    assert_eq!(world.kept().len(), 1);
    world.vault.deny("secret/data/shop/smtp", true);
    let (code, _, log) = world.run("init", &[]);
    assert_eq!(code, 66, "{log}");
    assert_eq!(world.kept().len(), 0);
    world.vault.be(Mode::Away);
    let (code, _, log) = world.run("init", &[]);
    assert_eq!(code, 75, "{log}");

    // What no document names any more goes as well.
    world.vault.be(Mode::Answers);
    world.vault.deny("secret/data/shop/smtp", false);
    assert_eq!(world.run("init", &[]).0, 0);
    assert_eq!(world.kept().len(), 1);
    crate::deliverers::write_alone(world.directory.path(), &[]);
    assert_eq!(world.run("init", &[]).0, 0);
    assert_eq!(world.kept().len(), 0);
}

/// `--take-over` may stand in a command line for good: where nobody serves, it is a start like any other.
#[test]
fn a_no_is_believed_by_who_would_take_over_and_finds_nobody() {
    let world = World::new("1h");
    assert_eq!(world.run("init", &[]).0, 0);
    assert_eq!(world.kept().len(), 1);
    world.vault.deny("secret/data/shop/smtp", true);
    let nobody = world.path("nobody.sock");
    let (code, _, log) = world.run("watch", &["--take-over", nobody.to_str().unwrap()]);
    assert_eq!(code, 66, "{log}");
    assert_eq!(world.kept().len(), 0, "{log}");
}

#[test]
fn attack_what_was_changed_exposed_or_put_together_is_refused_by_name() {
    let world = World::new("1h");
    assert_eq!(world.run("init", &[]).0, 0);
    world.vault.be(Mode::Away);
    let file = world.kept().remove(0);
    let whole = fs::read(&file).unwrap();
    let mut flipped = whole.clone();
    *flipped.last_mut().unwrap() ^= 1;
    fs::write(&file, flipped).unwrap();
    let (code, _, log) = world.run("init", &[]);
    assert_eq!(code, 75, "{log}");
    assert!(
        log.contains("does not open") && log.contains(".sealed"),
        "{log}"
    );
    fs::write(&file, whole).unwrap();
    assert_eq!(world.run("init", &[]).0, 0);

    let key = world.path("keys/key");
    fs::set_permissions(&key, Permissions::from_mode(0o644)).unwrap();
    let (code, _, log) = world.run("init", &[]);
    assert_eq!(code, 64, "{log}");
    assert!(
        log.contains("keys/key") && log.contains("chmod go="),
        "{log}"
    );
    fs::set_permissions(&key, Permissions::from_mode(0o600)).unwrap();

    fs::set_permissions(world.path("cache"), Permissions::from_mode(0o777)).unwrap();
    let (code, _, log) = world.run("watch", &[]);
    assert_eq!(code, 64, "{log}");
    assert!(log.contains("open to others"), "{log}");
    fs::set_permissions(world.path("cache"), Permissions::from_mode(0o700)).unwrap();

    let refused = |arguments: &[&str]| {
        let (code, _, log) = output(binary(), arguments);
        assert_eq!(code, 64, "{log}");
        log
    };
    let config = world.config.to_str().unwrap();
    let cache = world.path("cache");
    let cache = cache.to_str().unwrap();
    let one = refused(&["init", "--config", config, "--credentials-cache", cache]);
    assert!(one.contains("--credentials-cache-key"), "{one}");
    let beside = format!("{cache}/key");
    let both = [
        "--credentials-cache",
        cache,
        "--credentials-cache-key",
        &beside,
    ];
    let beside = refused(&[&["init", "--config", config], &both[..]].concat());
    assert!(beside.contains("lies together with the cache"), "{beside}");

    // A document that came from elsewhere would have the key delivered.
    let keys = world.path("keys");
    let keys = keys.to_str().unwrap();
    let key = format!("{keys}/key");
    let both = [
        "--credentials-cache",
        cache,
        "--credentials-cache-key",
        &key,
    ];
    let reached = refused(
        &[
            &[
                "watch",
                "--control",
                "https://127.0.0.1:1",
                "--allow-dir",
                keys,
            ],
            &both[..],
        ]
        .concat(),
    );
    assert!(reached.contains("keep them apart"), "{reached}");
}

/// Neither has an identity: they are told apart by the names of their `Sidecar` documents.
#[test]
fn attack_two_sidecars_in_one_directory_neither_read_nor_remove_what_is_the_others() {
    let world = World::new("1h");
    let other = world.path("other.yaml");
    let text = fs::read_to_string(&world.config).unwrap();
    let renamed = text.replace("name: job }", "name: other }");
    assert_ne!(renamed, text);
    fs::write(&other, &renamed).unwrap();
    assert_eq!(world.run("init", &[]).0, 0);
    let ours = world.kept().remove(0);
    world.vault.be(Mode::Away);
    let (code, _, log) = world.run_from(&other, "init", &[]);
    assert_eq!(code, 75, "{log}");
    world.vault.be(Mode::Answers);
    let show = ["--", "/bin/sh", "-c", "printf %s \"$SMTP\""];
    assert_eq!(world.run_from(&other, "exec", &show).1, CANARY);
    assert_eq!(world.kept().len(), 2);
    let mut kept = world.kept().into_iter();
    let theirs = kept.find(|path| *path != ours).unwrap();

    // What is ours, under the name of theirs.
    let whole = fs::read(&theirs).unwrap();
    fs::copy(&ours, &theirs).unwrap();
    world.vault.be(Mode::Away);
    let (code, out, log) = world.run_from(&other, "exec", &show);
    assert_eq!((code, &*out), (75, ""), "{log}");
    let file = theirs.file_name().unwrap().to_string_lossy();
    assert!(
        log.contains(&*file) && log.contains("of another workload, Sidecar or credential"),
        "{log}"
    );
    fs::write(&theirs, whole).unwrap();
    assert_eq!(world.run_from(&other, "exec", &show).1, CANARY);
    let stays = [&["--supervise"], &show[..]].concat();
    assert_eq!(world.run_from(&other, "exec", &stays).1, CANARY);

    // Their document names nothing any more: that is nothing to us.
    let nothing = renamed.replace("credentials: [ smtp ]", "credentials: [ ]");
    assert_ne!(nothing, renamed);
    fs::write(&other, nothing).unwrap();
    let (_, _, log) = world.run_from(&other, "init", &[]);
    assert_eq!(world.kept(), [ours], "{log}");
    assert_eq!(world.run("exec", &show).1, CANARY);
}

/// Who the unit in the guide runs as here, and somebody else.
const UNIT: u32 = 4410;
const OTHER: u32 = 4411;
const GUIDE: &str = include_str!("../../../docs/guide/credentials-cache.md");

/// A credential of root's that an access control list lets the unit's user read, as systemd gives it: mode 0440 is the list's mask.
struct Given {
    directory: TempDir,
    file: PathBuf,
}

impl Given {
    fn new(name: &str) -> Self {
        let directory = tempfile::tempdir_in("/dev/shm").unwrap();
        let file = directory.path().join(name);
        fs::write(&file, [7; 32]).unwrap();
        let given = Self { directory, file };
        given.lets(0o400, &[(USER, UNIT)]);
        let mode = fs::metadata(&given.file).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o440);
        let readable = list(5, &[(USER, UNIT)]);
        set_list(given.directory.path(), &readable);
        given
    }

    fn lets(&self, mode: u32, others: &[(u16, u32)]) {
        fs::set_permissions(&self.file, Permissions::from_mode(mode)).unwrap();
        set_list(&self.file, &list(4, others));
    }
}

/// Kinds of entries of such a list (`acl(5)`): a user, a group.
const USER: u16 = 2;
const GROUP: u16 = 8;

/// The owner and these may do that, and nobody else anything.
fn list(may: u16, others: &[(u16, u32)]) -> Vec<u8> {
    let nobody = u32::MAX;
    let named = others.iter().map(|(kind, id)| (*kind, may, *id));
    let all = [(1, may, nobody)].into_iter().chain(named);
    let mut all: Vec<_> = all
        .chain([(4, 0, nobody), (16, may, nobody), (32, 0, nobody)])
        .collect();
    all.sort_unstable();
    let mut list = 2_u32.to_le_bytes().to_vec();
    for (kind, may, id) in all {
        list.extend(kind.to_le_bytes());
        list.extend(may.to_le_bytes());
        list.extend(id.to_le_bytes());
    }
    list
}

fn set_list(path: &Path, list: &[u8]) {
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(path, "system.posix_acl_access", list, flags).unwrap();
}

/// What the unit in the guide says, after `=`.
fn of_unit(beginning: &str) -> &'static str {
    let line = GUIDE.lines().find_map(|line| line.strip_prefix(beginning));
    line.unwrap_or_else(|| panic!("the guide has no {beginning}"))
}

#[test]
fn attack_the_key_that_a_service_manager_gives_opens_the_cache_for_its_units_user_and_for_nobody_else()
 {
    let (name, _) = of_unit("LoadCredentialEncrypted=").split_once(':').unwrap();
    assert_eq!(
        of_unit("Environment=FENDER_CREDENTIALS_CACHE_KEY_CREDENTIAL="),
        name
    );
    assert!(!of_unit("Environment=FENDER_CREDENTIALS_CACHE=").is_empty());
    let (world, given) = (World::new("1h"), Given::new(name));
    let root = world.directory.path();
    fs::copy(binary(), root.join("fender")).unwrap();
    fs::set_permissions(root, Permissions::from_mode(0o755)).unwrap();
    for own in ["", "out", "vault-token", "sidecar.yaml"] {
        std::os::unix::fs::chown(root.join(own), Some(UNIT), Some(UNIT)).unwrap();
    }
    let run = |user: u32, with: &[(&str, &Path)]| {
        let mut command = Command::new(installed("setpriv"));
        command
            .env_clear()
            .current_dir("/")
            .args([format!("--reuid={user}"), format!("--regid={user}")])
            .args(["--clear-groups", "--inh-caps=-all", "--"])
            .arg(root.join("fender"))
            .args(["exec", "--start-timeout", "10s", "--config"])
            .arg(&world.config)
            .args(["--", "/bin/sh", "-c", "printf %s \"$SMTP\""])
            .env("FENDER_CREDENTIALS_CACHE", root.join("cache"))
            .env("FENDER_CREDENTIALS_CACHE_KEY_CREDENTIAL", name)
            .envs(with.iter().copied())
            .stdin(Stdio::null());
        let output = command.output().unwrap();
        let log = String::from_utf8(output.stderr).unwrap();
        assert!(!log.contains(CANARY), "{log}");
        let out = String::from_utf8(output.stdout).unwrap();
        (output.status.code().unwrap_or(-1), out, log)
    };
    let here = [("CREDENTIALS_DIRECTORY", given.directory.path())];
    assert_eq!(run(UNIT, &here).1, CANARY);
    world.vault.be(Mode::Away);
    let (code, out, log) = run(UNIT, &here);
    assert_eq!((code, &*out), (0, CANARY), "{log}");
    assert!(log.contains("what was kept of it is used"), "{log}");
    assert_hidden(&world.path("cache"));

    let refused = |user: u32, with: &[(&str, &Path)], why: &str| {
        let (code, out, log) = run(user, with);
        assert_eq!((code, &*out), (64, ""), "{log}");
        assert!(log.contains(why), "{log}");
    };
    given.lets(0o400, &[(USER, UNIT), (GROUP, OTHER)]);
    refused(UNIT, &here, "is open to the group 4411, by its access");
    given.lets(0o400, &[(USER, UNIT), (USER, OTHER)]);
    refused(UNIT, &here, "is open to the user 4411, by its access");
    // Without a list it is a group that reads.
    rustix::fs::removexattr(&given.file, "system.posix_acl_access").unwrap();
    fs::set_permissions(&given.file, Permissions::from_mode(0o440)).unwrap();
    std::os::unix::fs::chown(&given.file, None, Some(UNIT)).unwrap();
    refused(UNIT, &here, "is open to others (mode 440)");
    std::os::unix::fs::chown(&given.file, Some(OTHER), None).unwrap();
    refused(UNIT, &here, "belongs to the user 4411");
    refused(UNIT, &[], "needs a service manager that sets");
    let file = given.file.as_path();
    let both = [here[0], ("FENDER_CREDENTIALS_CACHE_KEY", file)];
    refused(UNIT, &both, "cannot be used with");
}

/// A sidecar of `shop/orders` with a cache below `kept`.
fn keeping(mesh: &Mesh, token: Option<&Path>, kept: &Path, log: &str) -> Process {
    let mut command = mesh.sidecar_command("shop/orders", token);
    command
        .arg("--credentials-cache")
        .arg(kept.join("cache"))
        .arg("--credentials-cache-key")
        .arg(kept.join("keys/key"));
    Process::start("shop/orders", &mut command, &mesh.path(log))
}

#[test]
fn a_sidecar_that_knows_who_it_is_starts_without_its_control_plane_and_with_what_that_fetched() {
    let mut mesh = Mesh::start(&one_service("1h", free_address(), free_address()));
    fs::write(mesh.path("source"), CANARY).unwrap();
    fs::create_dir(mesh.path("out")).unwrap();
    let listed = "  dnsNames: [ localhost ]\n  credentials: [ smtp ]\n";
    let documents = fs::read_to_string(mesh.path("documents/mesh.yaml"))
        .unwrap()
        .replace("  dnsNames: [ localhost ]\n", listed)
        + &format!(
            "---\napiVersion: fender.dev/v1\nkind: Credential\nmetadata: {{ namespace: shop, name: smtp }}\nspec:\n  \
             source: {{ file: {{ path: \"{}\", via: control }} }}\n  deliver: [ {{ file: {{ path: \"{}\", storage: disk }} }} ]\n",
            mesh.path("source").display(),
            mesh.path("out/smtp").display()
        );
    let (code, out, err) = mesh.apply(&documents);
    assert_eq!(code, 0, "{out}{err}");
    let kept = tempfile::tempdir().unwrap();
    fs::create_dir(kept.path().join("keys")).unwrap();
    let token = mesh.token("shop/orders", "5m");
    let mut sidecar = keeping(&mesh, Some(&token), kept.path(), "logs/first.log");
    mesh.wait_ready("shop/orders", &mut sidecar);
    let delivered = || fs::read_to_string(mesh.path("out/smtp")).ok();
    assert_eq!(delivered().as_deref(), Some(CANARY));
    sidecar.signal(Signal::TERM);
    assert!(sidecar.wait(PATIENCE).success(), "{}", sidecar.log());
    assert_eq!(delivered(), None);
    assert_hidden(&kept.path().join("cache"));

    mesh.stop_control();
    let mut sidecar = keeping(&mesh, None, kept.path(), "logs/second.log");
    mesh.wait_ready("shop/orders", &mut sidecar);
    let delivered = fs::read_to_string(mesh.path("out/smtp")).unwrap();
    assert_eq!(delivered, CANARY);
    let socket = mesh.admin_socket("shop/orders");
    let (_, out, _) = output(
        binary(),
        &["status", "--sidecar", &socket.to_string_lossy()],
    );
    assert!(out.contains("shop/smtp outdated for "), "{out}");
    assert!(!sidecar.log().contains(CANARY));
    sidecar.signal(Signal::TERM);
    assert!(sidecar.wait(PATIENCE).success(), "{}", sidecar.log());
}
