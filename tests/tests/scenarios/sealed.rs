//! Secrets in files that age or SOPS encrypted reach the application, by the sidecar and through the control plane, whatever
//! becomes of the files (DESIGN §9). The files are written by the programs themselves.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use fender_tests::process::{PATIENCE, binary, free_address, output};
use fender_tests::{Mesh, Process, sealed, wait_until};
use rustix::process::Signal;

use crate::control_loss::one_service;

/// In every value; nothing that Fender writes, but where it is to, may hold it.
const CANARY: &str = "canary";

struct World {
    mesh: Mesh,
    identity: PathBuf,
    recipient: String,
}

impl World {
    /// A workload `shop/orders` with these credentials: for each its name and its source, in which IDENTITY and DIR are paths.
    fn new(credentials: &[(&str, String)], write: impl FnOnce(&Path, &str)) -> Self {
        let mesh = Mesh::start(&one_service("1h", free_address(), free_address()));
        fs::create_dir(mesh.path("delivered")).unwrap();
        let directory = mesh.path("sealed");
        fs::create_dir(&directory).unwrap();
        let identity = directory.join("identity");
        let recipient = sealed::identity(&identity);
        write(&directory, &recipient);
        let names: Vec<_> = credentials.iter().map(|(name, _)| *name).collect();
        let listed = format!(
            "  dnsNames: [ localhost ]\n  credentials: [ {} ]\n",
            names.join(", ")
        );
        let documents = fs::read_to_string(mesh.path("documents/mesh.yaml")).unwrap();
        let mut documents = documents.replace("  dnsNames: [ localhost ]\n", &listed);
        for (name, source) in credentials {
            let source = source
                .replace("IDENTITY", identity.to_str().unwrap())
                .replace("DIR", directory.to_str().unwrap());
            documents += &format!(
                "---\napiVersion: fender.dev/v1\nkind: Credential\nmetadata: {{ namespace: shop, name: {name} }}\nspec:\n  \
                 source: {{ {source} }}\n  maxStale: 1s\n  deliver: [ {{ file: {{ path: \"{}\", storage: disk }} }} ]\n",
                mesh.path(format!("delivered/{name}")).display(),
            );
        }
        let (code, out, err) = mesh.apply(&documents);
        assert_eq!(code, 0, "{out}{err}");
        assert!(!err.contains("--allow-dir"), "{err}");
        Self {
            mesh,
            identity,
            recipient,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.mesh.path("sealed").join(name)
    }

    fn delivered(&self, name: &str) -> Option<String> {
        fs::read_to_string(self.mesh.path("delivered").join(name)).ok()
    }

    fn wait_for(&self, name: &str, text: Option<&str>) {
        let what = format!("`{name}` holds {text:?}");
        wait_until(&what, PATIENCE, || self.delivered(name).as_deref() == text);
    }

    fn told(&self) -> String {
        let socket = self.mesh.admin_socket("shop/orders");
        let socket = socket.to_string_lossy();
        let (_, out, err) = output(binary(), &["status", "--sidecar", &socket]);
        format!("{out}{err}")
    }

    fn wait_until_outdated(&self, name: &str) {
        let outdated = format!("shop/{name} outdated for ");
        wait_until("the credential is outdated", PATIENCE, || {
            self.told().contains(&outdated)
        });
    }

    fn wait_until_current(&self, name: &str) {
        let outdated = format!("shop/{name} outdated for ");
        wait_until("the credential is current", PATIENCE, || {
            !self.told().contains(&outdated)
        });
    }

    /// Nothing that was written, but where it was to be written to, holds a secret or an identity.
    fn assert_nothing_is_shown(&self) {
        for log in fs::read_dir(self.mesh.path("logs")).unwrap() {
            let log = log.unwrap().path();
            let text = fs::read_to_string(&log).unwrap();
            let shown = text.contains(CANARY) || text.contains("AGE-SECRET-KEY");
            assert!(!shown, "{}:\n{text}", log.display());
        }
        assert!(!self.told().contains(CANARY), "{}", self.told());
    }

    fn end(&self, mut sidecar: Process) {
        sidecar.assert_running();
        self.assert_nothing_is_shown();
        sidecar.signal(Signal::TERM);
        assert!(sidecar.wait(PATIENCE).success(), "{}", sidecar.log());
        assert_eq!(
            fs::read_dir(self.mesh.path("delivered")).unwrap().count(),
            0
        );
    }
}

/// What an attacker, a full disk or a torn copy leaves: `change` of the bytes of a file, and the file as it was.
fn damaged(file: &Path, change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let whole = fs::read(file).unwrap();
    let mut changed = whole.clone();
    change(&mut changed);
    fs::write(file, changed).unwrap();
    whole
}

fn the_file_follows_age(via: &str) {
    let source = format!("age: {{ file: \"DIR/smtp.age\", identity: \"IDENTITY\", via: {via} }}");
    let world = World::new(&[("smtp", source)], |directory, recipient| {
        sealed::age(
            b"canary-1",
            &[recipient],
            false,
            &directory.join("smtp.age"),
        );
    });
    let file = world.path("smtp.age");
    let ours = world.recipient.clone();
    let write = |value: &str, recipients: &[&str], armoured: bool| {
        sealed::age(value.as_bytes(), recipients, armoured, &file);
    };
    let sidecar = world.mesh.sidecar("shop/orders", &[]);
    assert_eq!(world.delivered("smtp").as_deref(), Some("canary-1"));
    write("canary-2", &[&ours], true);
    world.wait_for("smtp", Some("canary-2"));

    // Damage keeps what there was.
    for change in [
        (|bytes: &mut Vec<u8>| bytes.truncate(bytes.len() - 40)) as fn(&mut Vec<u8>),
        |bytes| {
            let middle = bytes.len() / 2;
            bytes[middle] = if bytes[middle] == b'A' { b'B' } else { b'A' };
        },
        |bytes| *bytes = b"hunter2".to_vec(),
    ] {
        let whole = damaged(&file, change);
        world.wait_until_outdated("smtp");
        assert_eq!(world.delivered("smtp").as_deref(), Some("canary-2"));
        fs::write(&file, whole).unwrap();
        world.wait_until_current("smtp");
    }

    // It is for somebody else, and then for us again.
    let other = world.path("other");
    let theirs = sealed::identity(&other);
    write("canary-3", &[&theirs], false);
    world.wait_for("smtp", None);
    write("canary-4", &[&theirs, &ours], false);
    world.wait_for("smtp", Some("canary-4"));

    // The identity changes: both for a while, then the new one alone.
    let old = fs::read_to_string(&world.identity).unwrap();
    let new = fs::read_to_string(&other).unwrap();
    fs::write(&world.identity, format!("{old}{new}")).unwrap();
    write("canary-5", &[&theirs], false);
    world.wait_for("smtp", Some("canary-5"));
    fs::write(&world.identity, new).unwrap();
    write("canary-6", &[&theirs], false);
    world.wait_for("smtp", Some("canary-6"));

    // What others may read opens nothing; what is gone says nothing of the secret.
    fs::set_permissions(&world.identity, Permissions::from_mode(0o640)).unwrap();
    world.wait_for("smtp", None);
    fs::set_permissions(&world.identity, Permissions::from_mode(0o600)).unwrap();
    world.wait_for("smtp", Some("canary-6"));
    fs::rename(&world.identity, world.path("away")).unwrap();
    world.wait_until_outdated("smtp");
    assert_eq!(world.delivered("smtp").as_deref(), Some("canary-6"));
    fs::rename(world.path("away"), &world.identity).unwrap();
    world.wait_until_current("smtp");

    fs::remove_file(&file).unwrap();
    world.wait_for("smtp", None);
    write("canary-7", &[&theirs], true);
    world.wait_for("smtp", Some("canary-7"));
    world.end(sidecar);
}

#[test]
fn the_file_follows_age_by_the_sidecar() {
    the_file_follows_age("sidecar");
}

#[test]
fn the_file_follows_age_through_the_control_plane() {
    the_file_follows_age("control");
}

const DATABASE: &str = "# canary-comment\ndatabase:\n  user: canary-user\n  password: canary-1\n  port: 5432\nnote_unencrypted: seen\n";

fn the_files_follow_sops(via: &str) {
    let of = |rest: &str| {
        format!("sops: {{ file: \"DIR/secrets.yaml\", identity: \"IDENTITY\"{rest}, via: {via} }}")
    };
    let credentials = [
        ("password", of(", key: database.password")),
        ("port", of(", key: [ database, port ]")),
        ("all", of("")),
    ];
    let world = World::new(&credentials, |directory, recipient| {
        let file = directory.join("secrets.yaml");
        sealed::sops_encrypt(DATABASE.as_bytes(), recipient, &[], &file);
    });
    let file = world.path("secrets.yaml");
    let all = |password: &str, port: u32| {
        format!(
            "{{\"database\":{{\"user\":\"canary-user\",\"password\":\"{password}\",\"port\":{port}}},\"note_unencrypted\":\"seen\"}}"
        )
    };
    let sidecar = world.mesh.sidecar("shop/orders", &[]);
    assert_eq!(world.delivered("password").as_deref(), Some("canary-1"));
    assert_eq!(world.delivered("port").as_deref(), Some("5432"));
    assert_eq!(world.delivered("all"), Some(all("canary-1", 5432)));

    sealed::sops_set(
        &file,
        &world.identity,
        "[\"database\"][\"password\"]",
        "\"canary-2\"",
    );
    world.wait_for("password", Some("canary-2"));
    world.wait_for("all", Some(&all("canary-2", 5432)));
    // Another key of the data changes no value.
    sealed::sops_rotate(&file, &world.identity);
    sealed::sops_set(&file, &world.identity, "[\"database\"][\"port\"]", "6432");
    world.wait_for("port", Some("6432"));
    world.wait_for("all", Some(&all("canary-2", 6432)));

    // Whoever writes the file without the key changes nothing: neither a value in the clear, nor which there are.
    let text = fs::read_to_string(&file).unwrap();
    let user = text.lines().find(|line| line.contains(" user:")).unwrap();
    let password = text
        .lines()
        .find(|line| line.contains(" password:"))
        .unwrap();
    let swapped = text
        .replace(user, "USER")
        .replace(password, &user.replace("user:", "password:"));
    let swapped = swapped.replace("USER", &password.replace("password:", "user:"));
    for attack in [
        text.replace("note_unencrypted: seen", "note_unencrypted: sewn"),
        text.replace(&format!("{user}\n"), ""),
        text.replace("    port:", "    part:"),
        text.replace("type:int", "type:str").replace(
            "unencrypted_suffix: _unencrypted",
            "encrypted_suffix: _none",
        ),
        swapped,
        text[..text.len() / 3].to_owned(),
    ] {
        assert_ne!(attack, text);
        fs::write(&file, &attack).unwrap();
        for name in ["password", "port", "all"] {
            world.wait_until_outdated(name);
        }
        assert_eq!(world.delivered("password").as_deref(), Some("canary-2"));
        assert_eq!(world.delivered("port").as_deref(), Some("6432"));
        assert_eq!(world.delivered("all"), Some(all("canary-2", 6432)));
        fs::write(&file, &text).unwrap();
        for name in ["password", "port", "all"] {
            world.wait_until_current(name);
        }
    }

    // A part that is gone is withdrawn, and no other.
    let without = DATABASE.replace("  port: 5432\n", "");
    sealed::sops_encrypt(without.as_bytes(), &world.recipient, &[], &file);
    world.wait_for("port", None);
    world.wait_for("password", Some("canary-1"));
    let others = sealed::identity(&world.path("other"));
    sealed::sops_encrypt(DATABASE.as_bytes(), &others, &[], &file);
    for name in ["password", "all"] {
        world.wait_for(name, None);
    }
    let both = format!("{others},{}", world.recipient);
    sealed::sops_encrypt(DATABASE.as_bytes(), &both, &[], &file);
    for (name, value) in [
        ("password", "canary-1"),
        ("port", "5432"),
        ("all", &all("canary-1", 5432)),
    ] {
        world.wait_for(name, Some(value));
    }
    world.end(sidecar);
}

#[test]
fn the_files_follow_sops_by_the_sidecar() {
    the_files_follow_sops("sidecar");
}

#[test]
fn the_files_follow_sops_through_the_control_plane() {
    the_files_follow_sops("control");
}

/// The exit code, what the command was given, and what Fender logged.
fn exec(directory: &Path, source: &str, patience: &str) -> (i32, String, String) {
    let config = directory.join("job.yaml");
    let documents = format!(
        "apiVersion: fender.dev/v1\nkind: Sidecar\nmetadata: {{ namespace: shop, name: job }}\nspec: {{ credentials: [ smtp ] }}\n---\n\
         apiVersion: fender.dev/v1\nkind: Credential\nmetadata: {{ namespace: shop, name: smtp }}\nspec:\n  \
         source: {{ {} }}\n  deliver: [ {{ environment: {{ variable: SMTP }} }} ]\n",
        source.replace("DIR", directory.to_str().unwrap())
    );
    fs::write(&config, documents).unwrap();
    let config = config.to_str().unwrap();
    // Backwards, so that what Fender wrote of it can be told apart.
    let script = "printf %s \"$SMTP\" | rev";
    let arguments = [
        "--log",
        "debug",
        "exec",
        "--config",
        config,
        "--start-timeout",
        patience,
        "--",
        "/bin/sh",
        "-c",
        script,
    ];
    output(binary(), &arguments)
}

#[test]
fn exec_reads_every_format_of_sops_and_its_exit_code_says_what_was_wrong() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let ours = sealed::identity(&path.join("identity"));
    let theirs = sealed::identity(&path.join("other"));
    let write = |name: &str, text: &str, recipient: &str, options: &[&str]| {
        sealed::sops_encrypt(text.as_bytes(), recipient, options, &path.join(name));
    };
    write(
        "a.json",
        r#"{"smtp":{"password":"canary-json","ports":[25,587]}}"#,
        &ours,
        &[],
    );
    write(
        "a.env",
        "SMTP_HOST=mail\nSMTP_PASSWORD=canary-env\n",
        &ours,
        &[],
    );
    write("a.ini", "[smtp]\npassword = canary-ini\n", &ours, &[]);
    write("a.key", "canary-binary", &ours, &["--input-type", "binary"]);
    write(
        "a.yaml",
        "smtp:\n  password: canary-yaml\n  host: mail\n",
        &ours,
        &["--encrypted-regex", "^pass"],
    );
    write("b.yaml", "smtp: { password: canary }\n", &theirs, &[]);
    sealed::age(b"canary-age", &[&ours], true, &path.join("a.age"));
    fs::write(path.join("broken.json"), "{").unwrap();
    fs::write(path.join("none"), "canary-no-identity").unwrap();
    fs::set_permissions(path.join("none"), Permissions::from_mode(0o600)).unwrap();
    fs::copy(path.join("identity"), path.join("open")).unwrap();
    fs::set_permissions(path.join("open"), Permissions::from_mode(0o644)).unwrap();
    let sops = |file: &str, rest: &str| {
        format!("sops: {{ file: DIR/{file}, identity: DIR/identity{rest} }}")
    };
    for (source, code, value) in [
        (sops("a.json", ", key: smtp.password"), 0, "canary-json"),
        (sops("a.json", ", key: smtp.ports.1"), 0, "587"),
        (sops("a.json", ", key: smtp.ports"), 0, "[25,587]"),
        (sops("a.env", ", key: SMTP_PASSWORD"), 0, "canary-env"),
        (sops("a.ini", ", key: smtp.password"), 0, "canary-ini"),
        (sops("a.key", ""), 0, "canary-binary"),
        (sops("a.yaml", ", key: smtp.password"), 0, "canary-yaml"),
        (sops("a.yaml", ", key: smtp.host"), 0, "mail"),
        (
            sops("a.json", ", format: yaml, key: smtp.password"),
            0,
            "canary-json",
        ),
        (sops("a.json", ", key: smtp.user"), 66, ""),
        (sops("b.yaml", ""), 66, ""),
        (sops("absent.yaml", ""), 66, ""),
        (sops("broken.json", ""), 75, ""),
        (
            "age: { file: DIR/a.age, identity: DIR/identity }".to_owned(),
            0,
            "canary-age",
        ),
        (
            "age: { file: DIR/a.age, identity: DIR/other }".to_owned(),
            66,
            "",
        ),
        (
            "age: { file: DIR/a.age, identity: DIR/open }".to_owned(),
            66,
            "",
        ),
        (
            "age: { file: DIR/a.age, identity: DIR/none }".to_owned(),
            75,
            "",
        ),
        (
            "age: { file: DIR/identity, identity: DIR/other }".to_owned(),
            75,
            "",
        ),
    ] {
        // What makes no sense is waited for until there is no more time; all else is known at once, however long that takes.
        let patience = if code == 75 { "2s" } else { "60s" };
        let (ended, said, err) = exec(path, &source, patience);
        let said: String = said.chars().rev().collect();
        assert_eq!((ended, said.as_str()), (code, value), "{source}: {err}");
        assert!(
            !err.contains(CANARY) && !err.contains("AGE-SECRET"),
            "{err}"
        );
    }
}
