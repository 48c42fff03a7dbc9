//! Several files of a credential change together: for readers, across kills, and never to be read by anybody else (DESIGN §9).

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use fender_tests::pki::{Authority, Template};
use fender_tests::process::{PATIENCE, binary, chosen};
use fender_tests::{Process, wait_until};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::process::Signal;
use tempfile::TempDir;

use crate::standalone::ORDERS;

mod changes;
mod guide;
mod watched;

/// The files of a set, each with what it holds of generation `n`.
const FILES: [&str; 5] = ["url.txt", "app.json", ".env", "app.properties", "app.yaml"];

/// Large enough that writing one takes several calls' time.
const PAD: usize = 48 * 1024;

fn expected(n: u64) -> BTreeMap<&'static str, String> {
    let pad = pad(n);
    BTreeMap::from([
        ("url.txt", format!("db://u{n}:{pad}@{n}\n")),
        (
            "app.json",
            format!("{{\"n\": \"u{n}\", \"pad\": \"{pad}\"}}\n"),
        ),
        (".env", format!("n=u{n}\npad={pad}\n")),
        ("app.properties", format!("n=u{n}\npad={pad}\n")),
        ("app.yaml", format!("\"n\": \"u{n}\"\n\"pad\": \"{pad}\"\n")),
    ])
}

/// Of another length with each generation, so that a part of one is no other.
fn pad(n: u64) -> String {
    let letter = char::from(b'a' + u8::try_from(n % 26).unwrap());
    letter
        .to_string()
        .repeat(PAD + usize::try_from(n % 101).unwrap())
}

/// Which generation these files are, all of them and whole; a panic says what they are instead.
fn generation(files: &BTreeMap<&str, String>) -> u64 {
    let env = &files[".env"];
    let number = env.strip_prefix("n=u").and_then(|rest| rest.lines().next());
    let number = number.and_then(|number| number.parse().ok());
    let n = number.unwrap_or_else(|| panic!("a short file: {} bytes", env.len()));
    for (name, text) in expected(n) {
        let found = &files[name];
        assert!(
            *found == text,
            "`{name}` is not whole or not of generation {n}: {} bytes of {}, beginning {:?}",
            found.len(),
            text.len(),
            found.chars().take(24).collect::<String>()
        );
    }
    n
}

/// A sidecar that does nothing but deliver.
struct Quay {
    directory: TempDir,
    more: String,
}

impl Quay {
    fn new() -> Self {
        let directory = tempfile::Builder::new()
            .prefix("fender-sets-")
            .tempdir_in("/dev/shm");
        let quay = Self {
            directory: directory.unwrap(),
            more: String::new(),
        };
        fs::set_permissions(quay.directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let identity = quay.path("identity");
        let authority = Authority::new("example.org");
        authority.issue(&Template::svid(ORDERS)).write(&identity);
        authority.write_bundle(&identity);
        for own in ["run", "private", "sources"] {
            fs::create_dir(quay.path(own)).unwrap();
            fs::set_permissions(quay.path(own), fs::Permissions::from_mode(0o700)).unwrap();
        }
        quay.rotate(0);
        quay
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn replace(&self, text: &str) {
        let fresh = self.path("sources/fresh");
        fs::write(&fresh, text).unwrap();
        fs::rename(fresh, self.path("sources/db")).unwrap();
    }

    fn rotate(&self, n: u64) {
        self.replace(&format!(r#"{{"n": "u{n}", "pad": "{}"}}"#, pad(n)));
    }

    fn configure(&self, deliver: &str) {
        let (identity, directory) = (self.path("identity"), self.directory.path().display());
        let identity = identity.display();
        let more = &self.more;
        let text = format!(
            r#"apiVersion: fender.dev/v1
kind: Sidecar
metadata: {{ namespace: shop, name: orders }}
spec:
  identity: {{ files: {{ certificate: {identity}/certificate.pem, key: {identity}/key.pem, bundle: {identity}/bundle.pem }} }}
  credentials: [ db ]
---
apiVersion: fender.dev/v1
kind: Credential
metadata: {{ namespace: shop, name: db }}
spec:
  source: {{ file: {{ path: {directory}/sources/db }} }}
{more}  deliver:
{deliver}"#
        );
        fs::write(self.path("sidecar.yaml"), text).unwrap();
    }

    /// The set of [`FILES`], with these fields of its own.
    fn set(&self, fields: &str) -> String {
        format!(
            r#"    - files:
        directory: {}
{fields}        entries:
          - {{ name: url.txt, template: "db://{{{{ n }}}}:{{{{ pad }}}}@{{% for x in [ n[1:] ] %}}{{{{ x }}}}{{% endfor %}}\n" }}
          - {{ name: app.json, format: json }}
          - {{ name: .env, format: dotenv }}
          - {{ name: app.properties, format: properties }}
          - {{ name: app.yaml, format: yaml, mode: "0440" }}
"#,
            self.path("set").display()
        )
    }

    fn begin(&self) -> Process {
        let mut command = Command::new(binary());
        command
            .args(["sidecar", "--config"])
            .arg(self.path("sidecar.yaml"))
            .arg("--admin-socket")
            .arg(self.path("run/admin.sock"))
            .arg("--upgrade-socket")
            .arg(self.path("private/upgrade.sock"));
        Process::start("sidecar", &mut command, &self.path("log"))
    }

    fn start(&self) -> Process {
        let mut process = self.begin();
        process.wait_ready(&self.path("run/admin.sock"));
        process
    }

    /// By `..data`, opened once.
    fn read(&self) -> std::io::Result<BTreeMap<&'static str, String>> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let data = openat(CWD, self.path("set/..data"), flags, Mode::empty())?;
        let mut files = BTreeMap::new();
        for name in FILES {
            let file = openat(&data, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
            let mut text = String::new();
            File::from(file).read_to_string(&mut text)?;
            files.insert(name, text);
        }
        Ok(files)
    }

    fn names(&self, directory: &str) -> Vec<String> {
        let entries = fs::read_dir(self.path(directory)).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.collect();
        names.sort();
        names
    }

    /// Links, one generation, and nothing that was left over.
    fn is_tidy(&self) -> bool {
        let own = self.names("set");
        own.iter().filter(|name| name.starts_with("..")).count() == 2
    }
}

/// DESIGN §9: no reader ever sees two generations or a part of a file, however often they change.
#[test]
fn twenty_readers_never_see_two_generations_or_a_short_file() {
    const READERS: usize = 20;
    const PLAIN: usize = 2;
    /// So that the other tests have their share of the machine.
    const PACE: Duration = Duration::from_millis(4);
    // As long as this, and as many: the source is looked at twice a second.
    let time = Duration::from_secs(chosen("FENDER_ROTATION_SECONDS", 60) as u64);
    let rotations = chosen("FENDER_ROTATIONS", 100) as u64;
    let quay = Quay::new();
    quay.configure(&quay.set(""));
    let mut sidecar = quay.start();
    let stop = AtomicBool::new(false);
    let newest = AtomicU64::new(0);
    // What each reader has read to its end, one more than the generation.
    let seen: Vec<_> = (0..READERS).map(|_| AtomicU64::new(0)).collect();
    let (reads, overtaken, plain) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let (mut last, mut took) = (0, Duration::ZERO);
    std::thread::scope(|scope| {
        // However this ends, so do they.
        struct Stop<'a>(&'a AtomicBool);
        impl Drop for Stop<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let ending = Stop(&stop);
        for seen in &seen {
            let (quay, stop, newest) = (&quay, &stop, &newest);
            let (reads, overtaken) = (&reads, &overtaken);
            scope.spawn(move || {
                let mut before = 0;
                while !stop.load(Ordering::Relaxed) {
                    let begun = Instant::now();
                    match quay.read() {
                        Ok(files) => {
                            let n = generation(&files);
                            assert!(n >= before, "{n} came after {before}");
                            before = n;
                            newest.fetch_max(n, Ordering::Relaxed);
                            seen.store(n + 1, Ordering::Relaxed);
                            reads.fetch_add(1, Ordering::Relaxed);
                            std::thread::sleep(PACE);
                        }
                        // A reader that a busy machine has kept for longer than a generation stays finds nothing, and begins again.
                        Err(error) => {
                            let took = begun.elapsed();
                            assert_eq!(error.kind(), std::io::ErrorKind::NotFound);
                            assert!(took >= Duration::from_secs(10), "{error} after {took:?}");
                            overtaken.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                }
            });
        }
        for at in 0..PLAIN {
            let (quay, stop, plain) = (&quay, &stop, &plain);
            scope.spawn(move || {
                // Paths one after the other: each file is whole, whatever the others are.
                for name in FILES.iter().cycle().skip(at) {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let text = fs::read_to_string(quay.path("set").join(name)).unwrap();
                    let digits: String = text.chars().skip_while(|c| !c.is_ascii_digit()).collect();
                    let digits: String = digits.chars().take_while(char::is_ascii_digit).collect();
                    assert_eq!(text, expected(digits.parse().unwrap())[name]);
                    plain.fetch_add(1, Ordering::Relaxed);
                    std::thread::sleep(PACE);
                }
            });
        }
        let begun = Instant::now();
        while last < rotations || begun.elapsed() < time {
            last += 1;
            quay.rotate(last);
            // Nobody is more than one generation behind when the next one comes, so nobody can be overtaken by many of them.
            wait_until("every reader has the newest generation", PATIENCE, || {
                sidecar.assert_running();
                seen.iter().all(|seen| seen.load(Ordering::Relaxed) > last)
            });
        }
        took = begun.elapsed();
        drop(ending);
    });
    println!(
        "{took:?}: {} generations, {} reads of five files by {READERS} readers, {} overtaken, {} plain reads",
        newest.load(Ordering::Relaxed) + 1,
        reads.load(Ordering::Relaxed),
        overtaken.load(Ordering::Relaxed),
        plain.load(Ordering::Relaxed)
    );
    assert_eq!(newest.load(Ordering::Relaxed), last);
    wait_until("old generations are gone", PATIENCE, || quay.is_tidy());
    sidecar.signal(Signal::TERM);
    sidecar.wait(PATIENCE);
    assert!(quay.names("set").is_empty(), "{:?}", quay.names("set"));
}

/// DESIGN §9, issue 5: a kill at any moment leaves a complete generation, and the next start carries on.
#[test]
fn two_hundred_kills_leave_a_complete_generation_every_time() {
    let kills = chosen("FENDER_KILLS", 200) as u64;
    let quay = Quay::new();
    quay.configure(&quay.set(""));
    quay.start().kill();
    assert_eq!(generation(&quay.read().unwrap()), 0);

    let mut random = Random(0x5eed_cafe);
    let (mut value, mut delivered, mut shortest) = (0, 0, PATIENCE);
    let (mut before, mut after, mut left) = (0, 0, 0);
    for kill in 0..kills {
        // Each start finds another value than the one before has delivered, and so writes; it goes on changing meanwhile.
        let mut rotate = || {
            value += 1;
            quay.rotate(value);
        };
        rotate();
        // What earlier kills have left goes when a start comes as far as that.
        let known = quay.names("set");
        let begun = Instant::now();
        let mut sidecar = quay.begin();
        let writes = |sidecar: &mut Process| {
            sidecar.assert_running();
            let mut own = quay.names("set").into_iter();
            own.any(|name| name.starts_with("..new-") && !known.contains(&name))
                || generation(&quay.read().unwrap()) > delivered
        };
        match kill % 4 {
            // At any moment of a start.
            0 if kill > 0 => {
                let wait = shortest.mul_f64(random.unit());
                while begun.elapsed() < wait {
                    rotate();
                    std::thread::sleep(Duration::from_micros(random.next() % 5000));
                }
            }
            // At any moment of the few milliseconds in which a generation is written and comes to count.
            _ => {
                while !writes(&mut sidecar) {
                    assert!(begun.elapsed() < PATIENCE, "the start does not deliver");
                }
                shortest = shortest.min(begun.elapsed());
                std::thread::sleep(Duration::from_micros(random.next() % 1500));
            }
        }
        sidecar.kill();
        let present = generation(&quay.read().unwrap());
        assert!(
            (delivered..=value).contains(&present),
            "{present} after {delivered}"
        );
        match present > delivered {
            true => after += 1,
            false => before += 1,
        }
        delivered = present;
        let mut own = quay.names("set").into_iter();
        left += u64::from(own.any(|name| name.starts_with("..new-") && !known.contains(&name)));
    }
    println!(
        "{kills} kills: {before} before the change counted, {after} after it, {left} times with an unfinished generation; a start took {} ms",
        shortest.as_millis()
    );

    // What the kills left behind goes with the next start that lives.
    let last = value + 1;
    quay.rotate(last);
    let mut sidecar = quay.start();
    assert_eq!(generation(&quay.read().unwrap()), last);
    wait_until("what was left behind is gone", PATIENCE, || quay.is_tidy());
    sidecar.signal(Signal::TERM);
    sidecar.wait(PATIENCE);
    assert!(quay.names("set").is_empty());
}

/// Xorshift: another moment each time, and the same ones with each run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}
