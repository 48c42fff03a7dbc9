//! A set that another user watches: by every event, and as fast as it can.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use fender_tests::process::{PATIENCE, chosen, installed};
use fender_tests::wait_until;
use rustix::process::Signal;

use super::{Quay, generation};

/// Who the files belong to, and somebody else.
const APP: u32 = 4501;
const STRANGER: u32 = 4502;

const WATCHER: &str = include_str!("../../../python/watcher.py");

fn as_user(user: u32) -> Command {
    let mut command = Command::new(installed("setpriv"));
    command
        .env_clear()
        .env("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin")
        .current_dir("/")
        .args([format!("--reuid={user}"), format!("--regid={user}")])
        .args(["--clear-groups", "--inh-caps=-all", "--"]);
    command
}

/// A process that goes on until its input ends.
struct Spy(Child);

impl Spy {
    fn start(allowed: &str, directories: &[&Path]) -> Self {
        let mut command = as_user(STRANGER);
        command
            .arg(installed("python3"))
            .args(["-c", WATCHER, allowed]);
        let child = command
            .args(directories)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        let mut spy = Self(child.unwrap());
        let mut line = String::new();
        // Byte by byte, so that the rest is there for the end.
        let out = spy.0.stdout.as_mut().unwrap();
        BufReader::with_capacity(1, out)
            .read_line(&mut line)
            .unwrap();
        assert_eq!(line, "watching\n");
        spy
    }

    fn end(mut self) -> String {
        drop(self.0.stdin.take());
        let mut told = String::new();
        self.0
            .stdout
            .as_mut()
            .unwrap()
            .read_to_string(&mut told)
            .unwrap();
        told
    }
}

impl Drop for Spy {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// DESIGN §9: no file can be read by anybody else at any instant, not while it is made and not while it goes.
#[test]
fn attack_another_user_who_watches_every_event_never_reads_a_file() {
    let rotations = chosen("FENDER_WATCHED_ROTATIONS", 30) as u64;
    let quay = Quay::new();
    for (name, mode) in [("single", 0o755), ("set", 0o755)] {
        fs::create_dir(quay.path(name)).unwrap();
        fs::set_permissions(quay.path(name), fs::Permissions::from_mode(mode)).unwrap();
    }
    let single = quay.path("single/secret");
    let file = format!(
        "    - file: {{ path: {}, owner: \"{APP}\", template: \"{{{{ n }}}}\" }}\n",
        single.display()
    );
    let owner = format!("        owner: \"{APP}\"\n");
    // One that everybody may read, so that the watcher gets as far as the others.
    let open = "          - { name: open.txt, template: \"{{ n }}\", mode: \"0444\" }\n";
    quay.configure(&(file + &quay.set(&owner) + open));
    let spy = Spy::start("open.txt", &[&quay.path("single"), &quay.path("set")]);
    let mut sidecar = quay.start();
    for n in 1..=rotations {
        quay.rotate(n);
        wait_until("the change is delivered", PATIENCE, || {
            sidecar.assert_running();
            generation(&quay.read().unwrap()) == n
                && fs::read_to_string(&single).unwrap() == format!("u{n}")
        });
    }
    // Whose they are may read them, and so the others are what keeps the watcher out.
    let mut cat = as_user(APP);
    let read = cat
        .arg(installed("cat"))
        .arg(&single)
        .arg(quay.path("set/.env"))
        .output()
        .unwrap();
    assert!(read.status.success(), "{read:?}");
    for name in ["set/.env", "set/app.yaml", "set/..data"] {
        assert_eq!(fs::metadata(quay.path(name)).unwrap().uid(), APP, "{name}");
    }
    sidecar.signal(Signal::TERM);
    sidecar.wait(PATIENCE);
    let told = spy.end();
    println!("{told}");
    let count = |what: &str| -> u64 {
        let line = told.lines().find_map(|line| line.strip_prefix(what));
        line.unwrap().trim().parse().unwrap()
    };
    assert!(!told.contains("LEAKED"), "{told}");
    assert!(
        count("events") > rotations && count("attempts") > rotations,
        "{told}"
    );
    assert!(
        count("allowed") > 0,
        "the watcher could not read what it may: {told}"
    );
    assert!(!fs::exists(single).unwrap() && quay.names("set").is_empty());
}
