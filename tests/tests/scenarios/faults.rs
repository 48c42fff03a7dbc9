//! What may break, with real processes: replicas, their database, the network between them, their clocks, their disk. No token
//! buys two certificates, no serial is used twice, every certificate anybody holds is on record, and sidecars serve all the time.
//!
//! Here is what goes on meanwhile, and what must be true afterwards.

mod clocks;
mod disk;
mod network;
mod spenders;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use fender_tests::process::PATIENCE;
use fender_tests::replicas::{OUTBOUND, SERVICES};
use fender_tests::{Client, Process, Replicas, wait_until};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use crate::control_loss::Load;
use spenders::{HELD, Showing, Spenders};

/// Services call each other, their certificates are renewed, and tokens are shown.
struct Trade {
    sidecars: Vec<Process>,
    loads: Vec<(String, Load)>,
    collector: Collector,
    spenders: Spenders,
}

struct Mark {
    bought: u64,
    /// By each load.
    answered: Vec<u64>,
}

impl Trade {
    /// In a mesh that has its documents; with the replicas that each sidecar knows.
    fn start(mesh: &Replicas, controls: [String; 3], showing: Showing) -> Self {
        let sidecars = SERVICES.iter().zip(controls);
        let sidecars = sidecars
            .map(|(service, control)| mesh.sidecar(service, &control))
            .collect();
        // Each application calls the next service through its sidecar: an mTLS connection for each of its own, new ones
        // and kept ones.
        let loads = SERVICES.map(|service| {
            let next = Client::plain(([127, 0, 0, 1], OUTBOUND).into());
            let load = mesh.network.host(service).run(|| Load::of(next, 2, 2));
            (format!("{service} to the next"), load)
        });
        Self {
            sidecars,
            loads: loads.into(),
            collector: Collector::start(SERVICES.map(|service| mesh.state(service)).into()),
            spenders: Spenders::start(mesh, showing),
        }
    }

    /// How far it has come.
    fn mark(&self) -> Mark {
        Mark {
            bought: self.spenders.bought(),
            answered: self.loads.iter().map(|(_, load)| load.answered()).collect(),
        }
    }

    /// From now on tokens buy certificates, sidecars are connected and requests are answered.
    fn goes_on(&mut self, mesh: &Replicas, when: &str) {
        let now = self.mark();
        self.goes_on_since(&now, mesh, when);
    }

    fn goes_on_since(&mut self, mark: &Mark, mesh: &Replicas, when: &str) {
        self.sidecars.iter_mut().for_each(Process::assert_running);
        wait_until(&format!("tokens buy certificates {when}"), PATIENCE, || {
            self.spenders.bought() >= mark.bought + 3
        });
        wait_until(&format!("sidecars are connected {when}"), PATIENCE, || {
            SERVICES.iter().all(|service| {
                mesh.sidecar_status(service)
                    .is_some_and(|status| status["link"] == "connected")
            })
        });
        wait_until(&format!("requests are answered {when}"), PATIENCE, || {
            let mut each = mark.answered.iter().zip(&self.loads);
            each.all(|(before, (_, load))| load.answered() > *before)
        });
    }

    /// How many certificates sidecars have had since they had their first.
    fn renewals(&self) -> usize {
        let seen = self.collector.seen.lock().unwrap();
        seen.values().map(|had| had.len() - 1).sum()
    }

    fn each_has_renewed(&self) -> bool {
        let seen = self.collector.seen.lock().unwrap();
        seen.len() == SERVICES.len() && seen.values().all(|had| had.len() > 1)
    }

    /// Ends it, prints the numbers and holds everything against the record.
    fn settle(self, mesh: &Replicas) {
        let renewals = self.renewals();
        let tally = self.spenders.finish();
        let mut certificates = Certificates::new();
        for (serial, leaf) in self.collector.finish().into_values().flatten() {
            remember(&mut certificates, serial, leaf);
        }
        let of_sidecars = certificates.len();
        for entry in fs::read_dir(mesh.directory.path()).unwrap() {
            let entry = entry.unwrap();
            if entry.file_name().to_string_lossy().starts_with(HELD)
                && let Some((serial, leaf)) = held(&entry.path())
            {
                remember(&mut certificates, serial, leaf);
            }
        }
        let for_tokens = (certificates.len() - of_sidecars).to_string();
        let recorded = |(serial, leaf): &(&String, &Vec<u8>)| {
            let select = "SELECT encode(leaf, 'hex') FROM certificates WHERE serial =";
            mesh.server
                .sql("fender", &format!("{select} '{serial}'"))
                .eq(&hex(leaf))
        };
        let (on_record, missing): (Vec<_>, Vec<_>) = certificates.iter().partition(recorded);
        let done: Vec<_> = self
            .loads
            .into_iter()
            .map(|(what, load)| (what, load.finish()))
            .collect();
        let answered: u64 = done.iter().map(|(_, done)| done.answered).sum();
        let failed: Vec<_> = done.iter().filter(|it| !it.1.failures.is_empty()).collect();
        println!(
            "{} tokens, each shown by two at once: {} bought one certificate ({} of them only when all was well), {} none, \
             {} two",
            tally.tried,
            tally.bought,
            tally.late,
            tally.lost.len(),
            tally.duplicated.len(),
        );
        println!(
            "{} certificates held, {renewals} of them renewals: {} on record as they are held, {} missing or different",
            certificates.len(),
            on_record.len(),
            missing.len(),
        );
        println!(
            "{answered} requests answered; of {} callers {} saw a failure",
            done.len(),
            failed.len()
        );

        assert_eq!(tally.lost, Vec::<String>::new(), "lost");
        assert_eq!(tally.duplicated, Vec::<String>::new(), "duplicated");
        assert_eq!(missing, [], "missing on record");
        for (what, done) in done {
            assert_eq!(done.failures, Vec::<String>::new(), "{what}");
        }
        // The record knows no two certificates for one token either, none that nobody got, and no token spent for nothing.
        let count = |what: &str| {
            let select = format!("SELECT count(*) FROM {what}");
            mesh.server.sql("fender", &select)
        };
        let twice = count(
            "(SELECT evidence::json ->> 'token' FROM certificates WHERE evidence::json ->> 'attestor' = 'token' \
             GROUP BY 1 HAVING count(*) > 1) AS twice",
        );
        assert_eq!(twice, "0");
        let issued = count("certificates WHERE identity LIKE '%/sa/jobs'");
        assert_eq!(issued, for_tokens);
        let spent = count("tokens WHERE identity LIKE '%/sa/jobs' AND spent_on IS NOT NULL");
        assert_eq!(spent, for_tokens);
        mesh.fender_ok(0, &["audit-log", "verify"]);
    }
}

/// By serial.
type Certificates = BTreeMap<String, Vec<u8>>;

/// No serial stands for two certificates.
fn remember(certificates: &mut Certificates, serial: String, leaf: Vec<u8>) {
    let before = certificates.insert(serial.clone(), leaf.clone());
    assert!(
        before.is_none_or(|before| before == leaf),
        "{serial} is used twice"
    );
}

/// Every certificate that sidecars are seen to hold, each sidecar's by itself.
struct Collector {
    seen: Arc<Mutex<BTreeMap<PathBuf, Certificates>>>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Collector {
    fn start(states: Vec<PathBuf>) -> Self {
        let seen: Arc<Mutex<BTreeMap<_, _>>> = Arc::default();
        let stop = Arc::new(AtomicBool::new(false));
        let (into, stopped) = (Arc::clone(&seen), stop.clone());
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                for state in &states {
                    if let Some((serial, leaf)) = held(state) {
                        let mut seen = into.lock().unwrap();
                        remember(seen.entry(state.clone()).or_default(), serial, leaf);
                    }
                }
                std::thread::sleep(Duration::from_millis(100));
            }
        });
        Self { seen, stop, thread }
    }

    fn finish(self) -> BTreeMap<PathBuf, Certificates> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
        std::mem::take(&mut *self.seen.lock().unwrap())
    }
}

/// The certificate in a state directory.
fn held(state: &Path) -> Option<(String, Vec<u8>)> {
    let pem = fs::read(state.join("svid.pem")).ok()?;
    let leaf = CertificateDer::pem_slice_iter(&pem).next()?.ok()?;
    let (_, read) = x509_parser::parse_x509_certificate(&leaf).ok()?;
    Some((hex(read.raw_serial()), leaf.to_vec()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
