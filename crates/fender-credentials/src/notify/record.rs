//! What was told of which credential to whom, kept in a file if there is a place for it.
//!
//! A value is known again by its digest under a random key. Both are in one file that only the sidecar's user reads, as it reads
//! the values themselves: whoever has the file can try out guesses.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use aws_lc_rs::hmac;
use fender_config::ObjectName;
use fender_config::snapshot::Target;
use fender_identity::Secret;
use fender_runtime::file::{self, Others};
use fender_runtime::random;

const HEAD: &str = "fender-notified 1";
const KEY: usize = 32;
/// What the file may weigh.
const LIMIT: u64 = 8 * 1024 * 1024;

/// Knows a value again, and nothing else about it.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Digest(String);

impl std::fmt::Debug for Digest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Digest(…)")
    }
}

/// Which value of which credential who knows.
pub struct Record {
    file: Option<PathBuf>,
    /// Which run of a supervisor the application belongs to: another has read everything anew.
    app: String,
    key: hmac::Key,
    bytes: [u8; KEY],
    told: Mutex<Told>,
}

/// By target, as text, and credential.
type Told = BTreeMap<String, BTreeMap<ObjectName, Digest>>;

impl Record {
    /// The one in `file`, or a new one. `app` names the run of the application.
    pub fn open(file: Option<PathBuf>, app: &str) -> io::Result<Self> {
        let kept = match &file {
            Some(path) => match file::read(path, LIMIT, Others::Nobody) {
                Ok(bytes) => parse(&String::from_utf8_lossy(&bytes)).or_else(|| {
                    tracing::warn!(path = %path.display(), "the record of notifications makes no sense: begun anew, so a change before this start is not told");
                    None
                }),
                Err(error) if error.is_missing() => None,
                Err(error) => return Err(io::Error::other(error)),
            },
            None => None,
        };
        let (bytes, told) = match kept {
            Some(kept) => kept,
            None => (random::bytes(), Told::new()),
        };
        Ok(Self {
            file,
            app: app.to_owned(),
            key: hmac::Key::new(hmac::HMAC_SHA256, &bytes),
            bytes,
            told: Mutex::new(told),
        })
    }

    pub(super) fn digest(&self, value: &Secret) -> Digest {
        Digest(hexadecimal(hmac::sign(&self.key, value.expose()).as_ref()))
    }

    /// What a target is called here.
    pub(super) fn key(&self, target: &Target) -> String {
        match target {
            Target::App(_) | Target::Restart => format!("{} {target}", self.app),
            Target::Process { .. } | Target::Http { .. } | Target::Command { .. } => {
                format!("- {target}")
            }
        }
    }

    pub(super) fn has(&self, target: &Target, name: &ObjectName, digest: &Digest) -> bool {
        let told = self.told();
        let known = told.get(&self.key(target));
        known.and_then(|known| known.get(name)) == Some(digest)
    }

    /// The first value of a credential that a target ever hears of is no change.
    pub(super) fn begin(&self, target: &Target, name: &ObjectName, digest: &Digest) {
        let mut told = self.told();
        let known = told.entry(self.key(target)).or_default();
        if !known.contains_key(name) {
            known.insert(name.clone(), digest.clone());
            self.keep(&told);
        }
    }

    pub(super) fn acknowledge(&self, target: &Target, told_of: BTreeMap<ObjectName, Digest>) {
        let mut told = self.told();
        told.entry(self.key(target)).or_default().extend(told_of);
        self.keep(&told);
    }

    pub(super) fn forget(&self, target: &Target, name: &ObjectName) {
        let mut told = self.told();
        let known = told.get_mut(&self.key(target));
        if known.is_some_and(|known| known.remove(name).is_some()) {
            self.keep(&told);
        }
    }

    /// Keeps what `known` says of a credential and the name of a target.
    pub(super) fn retain(&self, known: impl Fn(&ObjectName, &str) -> bool) {
        let mut told = self.told();
        let count = |told: &Told| told.values().map(BTreeMap::len).sum::<usize>();
        let before = count(&told);
        told.retain(|target, names| {
            names.retain(|name, _| known(name, target));
            !names.is_empty()
        });
        if count(&told) != before {
            self.keep(&told);
        }
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn keep(&self, told: &Told) {
        let Some(file) = &self.file else {
            return;
        };
        if let Err(error) = write(file, &self.bytes, told) {
            tracing::error!(path = %file.display(), %error, "cannot keep what was told: it may be told again after a restart");
        }
    }
}

fn write(file: &Path, key: &[u8; KEY], told: &Told) -> io::Result<()> {
    let mut text = format!("{HEAD}\nkey {}\n", hexadecimal(key));
    for (target, names) in told {
        for (name, Digest(digest)) in names {
            let _ = writeln!(text, "{digest} {name} {target}");
        }
    }
    file::replace(file, text.as_bytes())
}

fn parse(text: &str) -> Option<([u8; KEY], Told)> {
    let mut lines = text.lines();
    let mut told = Told::new();
    if lines.next()? != HEAD {
        return None;
    }
    let key = bytes(lines.next()?.strip_prefix("key ")?)?;
    for line in lines {
        let mut parts = line.splitn(3, ' ');
        let digest = parts.next().filter(|digest| bytes(digest).is_some())?;
        let name = parts.next()?.parse().ok()?;
        let target = parts.next()?.to_owned();
        let known = told.entry(target).or_default();
        known.insert(name, Digest(digest.to_owned()));
    }
    Some((key, told))
}

fn hexadecimal(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        let _ = write!(text, "{byte:02x}");
    }
    text
}

fn bytes(text: &str) -> Option<[u8; KEY]> {
    let mut bytes = [0; KEY];
    if text.len() != 2 * KEY || !text.is_ascii() {
        return None;
    }
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * at..2 * at + 2)?, 16).ok()?;
    }
    Some(bytes)
}
