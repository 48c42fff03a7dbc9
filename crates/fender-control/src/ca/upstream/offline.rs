//! An intermediate that people sign with a root whose key is offline ([`crate::ca::offline`]).
//!
//! The control plane makes a key, keeps it sealed, and lays a request beside it. Somebody carries the request to the root
//! and what was signed back, and [`import`] lays it down where it is found at the next look. From there on it is an
//! intermediate from files like any other: tried, and then believed. Until it comes, what is in use signs on, and the log
//! says every day that somebody must act, and until when.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use fender_identity::tls::CaPin;
use fender_identity::{certificates_from_pem, certificates_to_pem};
use fender_runtime::clock::UnixTime;
use rcgen::PublicKeyData as _;
use rustls::pki_types::CertificateDer;

use super::{Brought, Facts, UpstreamError, signed_by};
use crate::ca::make::{AuthorityKey, Workshop};
use crate::ca::offline::{Made, OfflineError, read, read_request};
use crate::ca::{CaError, rotation};
use crate::datadir::{self, DataDir, Hold};
use crate::store::authorities::AuthorityRow;
use crate::time::{later, until};

/// In the data directory.
const DIRECTORY: &str = "offline";
const REQUEST: &str = "request.pem";
const KEY: &str = "request-key";
const SIGNED: &str = "signed.pem";
/// By which the last was signed that was brought.
const ROOT: &str = "root.pem";
/// The same, where whoever brought it said that it shall be another than the one before: the registry may know one that this
/// directory does not.
const ANOTHER_ROOT: &str = "another-root.pem";

/// How often the log says again that a request waits.
const REMIND: Duration = Duration::from_secs(24 * 3600);

/// Where requests lie, and what comes back.
#[derive(Clone, Debug)]
pub struct OfflineUpstream {
    directory: PathBuf,
}

/// When the log says next that a request waits.
#[derive(Debug, Default)]
pub(super) struct Reminder(Mutex<Option<UnixTime>>);

impl OfflineUpstream {
    pub fn in_data_dir(data_dir: &Path) -> Self {
        Self {
            directory: data_dir.join(DIRECTORY),
        }
    }

    /// Where the request lies, or will.
    pub fn request(&self) -> PathBuf {
        self.directory.join(REQUEST)
    }

    /// Without a request that waits, what lies there was brought too late, and answers nothing.
    pub(super) fn is_answered(&self) -> bool {
        self.directory.join(SIGNED).exists() && self.request().exists()
    }

    /// Makes a key and a request, unless they lie there, the key opens, and the request is by it.
    pub(super) fn ask(&self, workshop: &Workshop) -> Result<(), CaError> {
        if self.waits(workshop) {
            return Ok(());
        }
        let key = AuthorityKey::generate()?;
        let sealed = workshop.sealing.seal(&place(workshop), &key.to_pkcs8())?;
        let text = workshop.request(&key)?;
        datadir::make_private(&self.directory).map_err(UpstreamError::Directory)?;
        // What is there goes first: nobody may sign for a key that is about to be replaced, nor bring what they signed.
        self.remove(SIGNED)?;
        self.remove(REQUEST)?;
        let written = datadir::write_private(&self.directory.join(KEY), &sealed)
            .and_then(|()| datadir::write_private(&self.request(), text.as_bytes()));
        written.map_err(UpstreamError::Directory)?;
        Ok(())
    }

    fn waits(&self, workshop: &Workshop) -> bool {
        let asked = read_request(&self.request());
        self.key(workshop).is_ok_and(|key| {
            asked.is_ok_and(|asked| asked.public_key_der == key.subject_public_key_info())
        })
    }

    /// Whether whoever brought it said that this shall be the root, whatever the one before was.
    pub(super) fn is_meant(&self, root: &CertificateDer<'_>) -> bool {
        let meant = read(&self.directory.join(ANOTHER_ROOT)).ok();
        let meant = meant.and_then(|text| certificates_from_pem(&text).ok());
        meant.is_some_and(|meant| meant.as_slice() == std::slice::from_ref(root))
    }

    /// What came back, with the key it is for.
    pub(super) fn read(&self, workshop: &Workshop) -> Result<Brought, UpstreamError> {
        let path = self.directory.join(SIGNED);
        let unread = |error: OfflineError| UpstreamError::Content {
            path: path.clone(),
            why: error.to_string(),
        };
        let text = read(&path).map_err(unread)?;
        let mut chain = certificates_from_pem(&text).map_err(|error| unread(error.into()))?;
        let root = chain.pop().ok_or(UpstreamError::NoCertificate)?;
        let key = self
            .key(workshop)
            .map_err(|error| UpstreamError::Key(Box::new(error)))?;
        Ok(Brought {
            chain,
            roots: vec![root],
            key,
        })
    }

    /// What came back is in the registry: its request is answered.
    pub(super) fn answered(&self) {
        // The key last: an answer without it could not be read again, a request without it is made anew.
        for name in [SIGNED, ANOTHER_ROOT, REQUEST, KEY] {
            if let Err(error) = self.remove(name) {
                tracing::warn!(%error, "a request that was answered cannot be removed");
                return;
            }
        }
    }

    fn remove(&self, name: &str) -> Result<(), UpstreamError> {
        let path = self.directory.join(name);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(UpstreamError::File { path, source })
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }

    fn key(&self, workshop: &Workshop) -> Result<AuthorityKey, CaError> {
        let path = self.directory.join(KEY);
        let sealed = fs::read(&path).map_err(|source| UpstreamError::File { path, source })?;
        AuthorityKey::from_pkcs8(&workshop.sealing.open(&place(workshop), &sealed)?)
    }

    /// Says that somebody must act: once a day, and louder when an eighth of the life of what is in use is left.
    pub(super) fn remind(&self, reminder: &Reminder, current: &AuthorityRow, now: UnixTime) {
        let mut next = reminder.0.lock().unwrap_or_else(PoisonError::into_inner);
        if next.is_some_and(|next| now < next) {
            return;
        }
        *next = Some(later(now, REMIND));
        let validity = current.validity;
        let (left, whole) = (
            until(now, validity.not_after),
            until(validity.not_before, validity.not_after),
        );
        let (request, seconds_left) = (self.request(), left.as_secs());
        match left < whole / 8 {
            true => {
                tracing::error!(request = %request.display(), seconds_left, "the next intermediate must be signed with the root's key, which is offline: without it nothing is issued any more when this one ends");
            }
            false => {
                tracing::warn!(request = %request.display(), seconds_left, "the next intermediate waits to be signed with the root's key, which is offline: `fender ca sign-intermediate`, then `fender ca import`");
            }
        }
    }
}

/// The intermediate of this replica that signs now, or one that can be made here.
pub(super) fn goes_on<'a>(
    rows: &'a [AuthorityRow],
    workshop: &Workshop,
    now: UnixTime,
) -> Option<&'a AuthorityRow> {
    let root = rotation::signing_root(rows, now)?;
    if root.sealed_key.is_some() {
        return Some(root);
    }
    rotation::intermediate(rows, root, &workshop.replica, now)
        .filter(|current| current.validity.includes(now))
}

/// Binds a waiting key to the trust domain and the replica it is for.
fn place(workshop: &Workshop) -> Vec<u8> {
    format!(
        "fender intermediate request v1\0{}\0{}\0",
        workshop.trust_domain, workshop.replica
    )
    .into_bytes()
}

/// Whether what is brought may chain to another root than what was brought before. The whole mesh comes to believe it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnotherRoot {
    Refused,
    Allowed,
}

/// Takes what was signed with the root's key for the request that waits in a data directory. What can be seen without
/// the request's key is looked at here, so that whoever carried it is told at once; it is tried by whoever uses it.
pub fn import(
    data_dir: &Path,
    signed: &Path,
    another: AnotherRoot,
    now: UnixTime,
) -> Result<Made, OfflineError> {
    let data = DataDir::open(data_dir, None, Hold::Shared)?;
    let place = OfflineUpstream::in_data_dir(data.path());
    let request = place.request();
    if !request.exists() {
        return Err(OfflineError::NotAsked { path: request });
    }
    let asked = read_request(&request)?;
    let chain =
        certificates_from_pem(&read(signed)?).map_err(|source| OfflineError::NotSigned {
            path: signed.to_owned(),
            source,
        })?;
    let no_root = || OfflineError::NoRoot {
        path: signed.to_owned(),
    };
    let [intermediate, .., root] = chain.as_slice() else {
        return Err(no_root());
    };
    let facts = Facts::read(intermediate)?;
    if facts.public_key != asked.public_key_der {
        return Err(UpstreamError::OtherKey.into());
    }
    facts.check(&asked.trust_domain)?;
    signed_by(root, root).map_err(|_| no_root())?;
    for pair in chain.windows(2) {
        if let [below, above] = pair {
            signed_by(below, above)?;
        }
    }
    for certificate in &chain {
        if !Facts::read(certificate)?.validity.includes(now) {
            return Err(OfflineError::OutOfTime);
        }
    }
    let known = place.directory.join(ROOT);
    if known.exists() && another == AnotherRoot::Refused {
        let before = certificates_from_pem(&read(&known)?)?;
        if before.as_slice() != std::slice::from_ref(root) {
            return Err(OfflineError::AnotherRoot {
                pin: CaPin::of(root),
            });
        }
    }
    let root = certificates_to_pem(std::slice::from_ref(root));
    datadir::write_private(&known, root.as_bytes())?;
    if another == AnotherRoot::Allowed {
        let meant = place.directory.join(ANOTHER_ROOT);
        datadir::write_private(&meant, root.as_bytes())?;
    }
    let text = certificates_to_pem(&chain);
    datadir::write_private(&place.directory.join(SIGNED), text.as_bytes())?;
    Ok(Made {
        trust_domain: asked.trust_domain,
        serial: facts.serial,
        until: facts.validity.not_after,
        pem: text,
    })
}
