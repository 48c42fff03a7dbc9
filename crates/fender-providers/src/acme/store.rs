//! What is kept in the state directory: for each authority the account with its key, and what was tried; for each
//! certificate the chain with its key, and until there is one the order with its key. One file each, of mode 0600, replaced
//! whole: no reader ever meets a chain with another's key.

use std::fmt::Write as _;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use aws_lc_rs::digest::{SHA256, digest};
use fender_config::snapshot::{Acme, AcmeChallenge, PortCertificate};
use fender_identity::csr::NewKey;
use fender_identity::tls::{NamedCertificate, PemPair};
use fender_identity::{Secret, private_key_from_pem};
use fender_runtime::clock::UnixTime;
use fender_runtime::file::{self, Others};
use instant_acme::AccountCredentials;

use super::AcmeError;

/// The largest of these files that is read.
const MAX_FILE: u64 = 256 * 1024;
/// How much of a name is in the name of its file.
const MAX_SHOWN: usize = 64;
/// How the name of a file ends that has a key and its chain.
const PAIR: &str = "pem";
/// Of how many of them it is looked at what names they are for.
const MAX_LOOKED_AT: usize = 64;
/// Where the chain begins, behind the key.
const CHAIN: &[u8] = b"-----BEGIN CERTIFICATE-----";

/// What stands before the URLs of an order's file, in front of its key.
const ORDER: &str = "order ";
const ACCOUNT: &str = "account ";

#[derive(Debug)]
pub(super) struct Store(PathBuf);

/// An order that was placed, by whom, and the key that its certificate is to be for.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) account: String,
    pub(super) order: String,
    pub(super) key: NewKey,
}

impl Store {
    pub(super) fn below(state: &Path) -> Self {
        Self(state.join("acme"))
    }

    /// None if there is none yet. One that cannot be used is not replaced: somebody must look at it.
    pub(super) fn account(&self, acme: &Acme) -> Result<Option<AccountCredentials>, AcmeError> {
        let path = self.account_path(acme);
        let Some(text) = read(&path)? else {
            return Ok(None);
        };
        let damaged = |_| {
            AcmeError::Ours(format!(
                "`{}` is damaged: remove it, and the sidecar makes another account",
                path.display()
            ))
        };
        serde_json::from_slice(text.expose())
            .map(Some)
            .map_err(damaged)
    }

    pub(super) fn keep_account(
        &self,
        acme: &Acme,
        account: &AccountCredentials,
    ) -> Result<(), AcmeError> {
        let text = serde_json::to_vec(account);
        let text = Secret::new(text.map_err(|error| AcmeError::Ours(error.to_string()))?);
        self.write(&self.account_path(acme), &text)
    }

    /// Puts an account aside that its authority denies. Its key is not destroyed: the authority may be wrong.
    pub(super) fn forget_account(&self, acme: &Acme) -> Result<(), AcmeError> {
        let path = self.account_path(acme);
        match std::fs::rename(&path, path.with_extension("forgotten.json")) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(&path, &error)),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Tries it, for as long as that can be known.
    pub(super) fn can_be_written(&self) -> Result<(), AcmeError> {
        let path = self.0.join("trial");
        self.write(&path, &Secret::new(b"can it be kept?\n".to_vec()))?;
        std::fs::remove_file(&path).map_err(|error| failed(&path, &error))
    }

    /// None if there is none yet.
    pub(super) fn pair(&self, wanted: &PortCertificate) -> Result<Option<PemPair>, AcmeError> {
        let text = read(&self.certificate_path(wanted))?;
        Ok(text.as_ref().and_then(split))
    }

    /// Of those that were got for other names the one that is good for the most of these, if there is any. What cannot be
    /// read is passed over.
    pub(super) fn stand_in(&self, wanted: &PortCertificate, now: UnixTime) -> Option<PemPair> {
        let entries = std::fs::read_dir(&self.0).ok()?;
        let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
        let mut pairs: Vec<_> = paths
            .filter(|path| path.extension().is_some_and(|end| end == PAIR))
            .filter_map(|path| Some((path.metadata().ok()?.modified().ok()?, path)))
            .collect();
        pairs.sort_unstable();
        let newest = pairs.into_iter().rev().take(MAX_LOOKED_AT);
        let fitting = newest.filter_map(|(_, path)| {
            let pair = split(&read(&path).ok()??)?;
            let whole = NamedCertificate::from_pem(&pair, &[]).ok()?;
            let part = whole.standing_in(&wanted.names)?;
            let validity = part.validity();
            let rank = (part.names().len(), validity.not_after.as_secs());
            validity.includes(now).then_some((rank, pair))
        });
        let best = fitting.max_by_key(|(rank, _)| *rank);
        best.map(|(_, pair)| pair)
    }

    pub(super) fn keep_pair(
        &self,
        wanted: &PortCertificate,
        pair: &PemPair,
    ) -> Result<(), AcmeError> {
        // Sized once: growing would leave copies of the key behind.
        let mut text = Vec::with_capacity(pair.key.len() + pair.chain.len());
        text.extend_from_slice(pair.key.expose());
        text.extend_from_slice(&pair.chain);
        self.write(&self.certificate_path(wanted), &Secret::new(text))
    }

    /// None if there is none. One that cannot be read, or that others could have read, is not taken up.
    pub(super) fn order(&self, wanted: &PortCertificate) -> Option<Pending> {
        let path = self.order_path(wanted);
        let read = read(&path).and_then(|text| {
            let damaged = || AcmeError::Ours(format!("`{}` is damaged", path.display()));
            text.map(|text| pending(&text).ok_or_else(damaged))
                .transpose()
        });
        read.unwrap_or_else(|error| {
            tracing::warn!(%error, "an order is not taken up again");
            None
        })
    }

    pub(super) fn keep_order(
        &self,
        wanted: &PortCertificate,
        pending: &Pending,
    ) -> Result<(), AcmeError> {
        let Pending {
            account,
            order,
            key,
        } = pending;
        if [account, order].into_iter().any(|url| url.contains('\n')) {
            return Err(AcmeError::Refused("its URLs have several lines".to_owned()));
        }
        let (head, key) = (
            format!("{ACCOUNT}{account}\n{ORDER}{order}\n"),
            key.to_pem(),
        );
        // Sized once, as above.
        let mut text = Vec::with_capacity(head.len() + key.len());
        text.extend_from_slice(head.as_bytes());
        text.extend_from_slice(key.expose());
        self.write(&self.order_path(wanted), &Secret::new(text))
    }

    pub(super) fn forget_order(&self, wanted: &PortCertificate) -> Result<(), AcmeError> {
        remove(&self.order_path(wanted))
    }

    /// What was tried with one's authority; none if that came to an end.
    pub(super) fn attempts(&self, wanted: &PortCertificate) -> Result<Option<Secret>, AcmeError> {
        read(&self.attempts_path(wanted))
    }

    pub(super) fn keep_attempts(
        &self,
        wanted: &PortCertificate,
        text: Vec<u8>,
    ) -> Result<(), AcmeError> {
        self.write(&self.attempts_path(wanted), &Secret::new(text))
    }

    pub(super) fn forget_attempts(&self, wanted: &PortCertificate) -> Result<(), AcmeError> {
        remove(&self.attempts_path(wanted))
    }

    fn write(&self, path: &Path, text: &Secret) -> Result<(), AcmeError> {
        let mut directory = std::fs::DirBuilder::new();
        let made = directory.recursive(true).mode(0o700).create(&self.0);
        made.map_err(|error| failed(&self.0, &error))?;
        file::replace(path, text.expose()).map_err(|error| failed(path, &error))
    }

    /// One account for each customer of each authority.
    fn account_path(&self, acme: &Acme) -> PathBuf {
        self.0.join(format!("account-{}.json", customer(acme)))
    }

    fn attempts_path(&self, wanted: &PortCertificate) -> PathBuf {
        let customer = wanted.acme().map(customer).unwrap_or_default();
        self.0.join(format!("attempts-{customer}.json"))
    }

    fn certificate_path(&self, wanted: &PortCertificate) -> PathBuf {
        self.0.join(format!("{}.{PAIR}", stem(wanted)))
    }

    fn order_path(&self, wanted: &PortCertificate) -> PathBuf {
        self.0.join(format!("{}.order", stem(wanted)))
    }
}

fn customer(acme: &Acme) -> String {
    let account = acme.external_account.as_ref();
    let customer = account.map_or("", |account| account.key_id.as_str());
    short_hash(&[&acme.directory.to_string(), customer])
}

/// How the files of one certificate are called: by what is asked for and whom it is asked of; how it is proven may change.
pub(super) fn stem(wanted: &PortCertificate) -> String {
    let directory = wanted.acme().map(|acme| acme.directory.to_string());
    let mut names: Vec<&str> = wanted.listed().collect();
    names.sort_unstable();
    // For people; as much as always fits into the name of a file.
    let first = names.first().copied().unwrap_or_default();
    let first: String = first.chars().take(MAX_SHOWN).collect();
    let directory = directory.unwrap_or_default();
    names.push(&directory);
    format!("{first}-{}", short_hash(&names))
}

/// What tells one way of asking for a certificate from another.
pub(super) fn way(wanted: &PortCertificate) -> String {
    let Some(acme) = wanted.acme() else {
        return String::new();
    };
    let challenge = match acme.challenge {
        AcmeChallenge::TlsAlpn => "tls-alpn-01".to_owned(),
        AcmeChallenge::Http { listen } => format!("http-01 {listen}"),
    };
    let account = acme.external_account.as_ref();
    let files = [acme.roots.as_ref(), account.map(|account| &account.key)];
    let [roots, key] = files.map(|file| file.map(|file| file.display().to_string()));
    short_hash(&[
        &challenge,
        acme.contact.as_deref().unwrap_or_default(),
        &roots.unwrap_or_default(),
        &key.unwrap_or_default(),
    ])
}

/// Two lines, and a key.
fn pending(text: &Secret) -> Option<Pending> {
    let mut lines = text.expose().split(|byte| *byte == b'\n');
    let mut url = |before: &str| {
        let line = std::str::from_utf8(lines.next()?).ok()?;
        line.strip_prefix(before).map(str::to_owned)
    };
    let (account, order) = (url(ACCOUNT)?, url(ORDER)?);
    let key = private_key_from_pem(text.expose()).ok()?;
    let key = NewKey::from_pkcs8(&key).ok()?;
    Some(Pending {
        account,
        order,
        key,
    })
}

/// Behind the key is its chain.
fn split(text: &Secret) -> Option<PemPair> {
    let bytes = text.expose();
    let chain = bytes.windows(CHAIN.len()).position(|part| part == CHAIN)?;
    let (key, chain) = bytes.split_at_checked(chain)?;
    Some(PemPair {
        chain: chain.to_vec(),
        key: Secret::new(key.to_vec()),
    })
}

fn short_hash(parts: &[&str]) -> String {
    let hash = digest(&SHA256, parts.join("\n").as_bytes());
    hash.as_ref()
        .iter()
        .take(8)
        .fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
}

fn read(path: &Path) -> Result<Option<Secret>, AcmeError> {
    match file::read(path, MAX_FILE, Others::Nobody) {
        Ok(bytes) => Ok(Some(Secret::new(bytes))),
        Err(error) if error.is_missing() => Ok(None),
        Err(error) => Err(AcmeError::Ours(error.to_string())),
    }
}

/// Whether it is there or not.
fn remove(path: &Path) -> Result<(), AcmeError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(path, &error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn failed(path: &Path, error: &io::Error) -> AcmeError {
    AcmeError::Ours(format!("`{}`: {error}", path.display()))
}

#[cfg(test)]
mod tests;
