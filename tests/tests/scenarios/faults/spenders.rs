//! Tokens, each shown by its owner and by a thief at once, with keys of their own, at whichever replicas answer them.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use fender_tests::replicas::PEOPLE;
use fender_tests::{Network, Replicas, free_port};

/// How many pairs show tokens at the same time.
const PAIRS: u64 = 2;

/// How many tokens lie ready, for when none can be made.
const STOCK: usize = 10;

/// How the directories are called in which those who show tokens keep what they get.
pub(super) const HELD: &str = "held-";

/// The hosts of the two who show a token.
#[derive(Clone, Copy)]
pub(super) struct Showing {
    pub(super) owner: &'static str,
    pub(super) thief: &'static str,
}

/// What became of the tokens.
pub(super) struct Tally {
    pub(super) tried: u64,
    /// One certificate each.
    pub(super) bought: u64,
    /// Of those, bought when they were shown once more, after everything.
    pub(super) late: u64,
    /// Nobody got anything for it, and what they were told.
    pub(super) lost: Vec<String>,
    /// Both did.
    pub(super) duplicated: Vec<String>,
}

/// Shows tokens until it is told to stop.
pub(super) struct Spenders {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    shop: Shop,
    showing: Showing,
    stop: AtomicBool,
    tried: AtomicU64,
    bought: AtomicU64,
    stock: Mutex<Vec<PathBuf>>,
    unsold: Mutex<Vec<PathBuf>>,
    duplicated: Mutex<Vec<String>>,
}

/// Where tokens are shown.
pub(super) struct Shop {
    network: Arc<Network>,
    directory: PathBuf,
    control: String,
}

impl Spenders {
    pub(super) fn start(mesh: &Replicas, showing: Showing) -> Self {
        let shared = Arc::new(Shared {
            shop: Shop::of(mesh, mesh.urls()),
            showing,
            stop: AtomicBool::new(false),
            tried: AtomicU64::new(0),
            bought: AtomicU64::new(0),
            stock: Mutex::default(),
            unsold: Mutex::default(),
            duplicated: Mutex::default(),
        });
        let spawn = |number| {
            let shared = Arc::clone(&shared);
            // A paced thief: the machine is shared with everything it calls.
            let pause = Duration::from_millis(200 + 100 * number);
            std::thread::spawn(move || shared.spend_all(pause))
        };
        let mut threads: Vec<_> = (0..PAIRS).map(spawn).collect();
        let maker = Arc::clone(&shared);
        threads.push(std::thread::spawn(move || maker.keep_in_stock()));
        Self { shared, threads }
    }

    /// How many tokens bought one certificate; none bought two.
    pub(super) fn bought(&self) -> u64 {
        let duplicated = self.shared.duplicated.lock().unwrap();
        assert_eq!(*duplicated, Vec::<String>::new(), "bought by both");
        self.shared.bought.load(Ordering::Relaxed)
    }

    /// Shows once more what nobody got anything for, now that all is well.
    pub(super) fn finish(mut self) -> Tally {
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().unwrap();
        }
        let shared = &self.shared;
        let in_time = shared.bought.load(Ordering::Relaxed);
        let mut lost = Vec::new();
        for token in std::mem::take(&mut *shared.unsold.lock().unwrap()) {
            lost.extend(shared.spend(&token));
        }
        let bought = shared.bought.load(Ordering::Relaxed);
        let duplicated = std::mem::take(&mut *shared.duplicated.lock().unwrap());
        Tally {
            tried: shared.tried.load(Ordering::Relaxed),
            bought,
            late: bought - in_time,
            lost,
            duplicated,
        }
    }
}

impl Drop for Spenders {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
    }
}

impl Shared {
    /// Whenever a replica can make one.
    fn keep_in_stock(&self) {
        while !self.stop.load(Ordering::Relaxed) {
            let there = self.stock.lock().unwrap().len();
            match (there < STOCK).then(|| self.shop.make_token()).flatten() {
                Some(token) => self.stock.lock().unwrap().push(token),
                None => std::thread::sleep(Duration::from_millis(100)),
            }
        }
    }

    fn spend_all(&self, pause: Duration) {
        while !self.stop.load(Ordering::Relaxed) {
            let token = self.stock.lock().unwrap().pop();
            if let Some(token) = token {
                self.tried.fetch_add(1, Ordering::Relaxed);
                if self.spend(&token).is_some() {
                    self.unsold.lock().unwrap().push(token);
                }
            }
            std::thread::sleep(pause);
        }
    }

    /// The owner and the thief at once; what they were told, if neither got anything.
    fn spend(&self, token: &Path) -> Option<String> {
        let Showing { owner, thief } = self.showing;
        let shown = [("owner", owner), ("thief", thief)];
        let outcomes = shown
            .map(|(who, host)| self.shop.show(token, who, host))
            .map(|child| child.wait_with_output().unwrap());
        let said = || {
            let said = outcomes
                .each_ref()
                .map(|it| String::from_utf8_lossy(&it.stderr));
            said.join("\n--\n")
        };
        match outcomes.iter().filter(|it| it.status.success()).count() {
            0 => return Some(said()),
            1 => drop(self.bought.fetch_add(1, Ordering::Relaxed)),
            _ => self.duplicated.lock().unwrap().push(said()),
        }
        None
    }
}

impl Shop {
    /// At one of these replicas.
    pub(super) fn of(mesh: &Replicas, control: String) -> Self {
        Self {
            network: Arc::clone(&mesh.network),
            directory: mesh.directory.path().to_owned(),
            control,
        }
    }

    fn make_token(&self) -> Option<PathBuf> {
        let token = self.directory.join(format!("token-{}", free_port()));
        let people = self.network.host(PEOPLE);
        let mut command = people.fender();
        command
            .env("FENDER_ADMIN", self.directory.join("admin"))
            .args(["token", "create", "shop/jobs", "--ttl", "4h"])
            .args(["--control", &self.control, "--out"])
            .arg(&token);
        let output = people.run(|| command.output().unwrap());
        output.status.success().then_some(token)
    }

    /// Once more by the same is with the same key, which stays in the state directory.
    pub(super) fn show(&self, token: &Path, who: &str, host: &str) -> Child {
        let name = token.file_name().unwrap().to_string_lossy();
        let copy = self.directory.join(format!("{who}-{name}"));
        fs::copy(token, &copy).unwrap();
        fs::set_permissions(&copy, fs::Permissions::from_mode(0o600)).unwrap();
        let host = self.network.host(host);
        let mut command = host.fender();
        command
            .args(["exec", "--control", &self.control])
            .args(["--start-timeout", "60s", "--token-file"])
            .arg(copy)
            .arg("--state")
            .arg(self.directory.join(format!("{HELD}{who}-{name}")))
            .args(["--", "/bin/true"])
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        host.run(|| command.spawn().unwrap())
    }
}
