//! A root whose key no control plane has: a directory of its owner's, where people make it and sign intermediates with it,
//! on a machine that need not be connected to anything (DESIGN §14).
//!
//! The key is opened for one signature at a time, and only here. What is signed is ours to say: of a request the key is
//! taken, and the trust domain must be the root's; a request that asks for anything else is refused, because whoever made
//! it expects what they would not get. Every intermediate that was signed is kept beside the root, for whoever asks later.
//!
//! It renews nothing by itself and knows no control plane. What a control plane does is in [`super::upstream`].

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use fender_identity::csr::{self, AuthorityCsr, CsrError};
use fender_identity::tls::CaPin;
use fender_identity::{
    PemError, Serial, TrustDomain, Validity, certificates_from_pem, certificates_to_pem,
};
use fender_runtime::clock::UnixTime;
use rcgen::PublicKeyData as _;
use rustls::pki_types::CertificateDer;

use super::make::{AuthorityKey, NewRoot, below};
use super::seal::SealingKey;
use super::upstream::{Facts, UpstreamError, signed_by};
use super::{CaError, lifetimes, sha256};
use crate::datadir::{self, DataDirError};
use crate::sealing::Sealing;
use crate::time::{later, until};

const ROOT: &str = "root.pem";
const KEY: &str = "root-key";
/// Every intermediate that was signed, by its serial.
const SIGNED: &str = "signed";

/// The last second of the year 9999: no certificate can name a later one.
const LAST: u64 = 253_402_300_799;

/// More than a request or a chain needs.
const MAX_FILE: u64 = 256 * 1024;

/// A root or an intermediate that was made.
#[derive(Clone, Debug)]
pub struct Made {
    pub trust_domain: TrustDomain,
    pub serial: Serial,
    pub until: UnixTime,
    /// An intermediate, then its root; or a root.
    pub pem: String,
}

/// Makes a root in a directory that is made for it, 0700.
pub fn create_root(
    directory: &Path,
    trust_domain: &TrustDomain,
    lifetime: Duration,
    sealing: &Sealing,
    now: UnixTime,
) -> Result<Made, OfflineError> {
    let sealing = sealing.apart()?.ok_or(OfflineError::NoSealing)?;
    if later(now, lifetime).as_secs() > LAST {
        return Err(OfflineError::TooLong);
    }
    datadir::make_private(directory)?;
    for name in [ROOT, KEY] {
        let path = directory.join(name);
        if path.exists() {
            return Err(OfflineError::There { path });
        }
    }
    let NewRoot { row, key } = NewRoot::make(trust_domain, lifetime, now, now)?;
    let sealed = sealing.seal(&place(&row.certificate), &key.to_pkcs8());
    datadir::write_private(&directory.join(KEY), &sealed.map_err(CaError::from)?)?;
    // The certificate last: without it there is no root, and the key of one that is not there is nobody's.
    let pem = certificates_to_pem(&[row.certificate]);
    datadir::write_private(&directory.join(ROOT), pem.as_bytes())?;
    Ok(Made {
        trust_domain: trust_domain.clone(),
        serial: row.serial,
        until: row.validity.not_after,
        pem,
    })
}

/// Signs the intermediate that a control plane asks for.
pub fn sign_intermediate(
    directory: &Path,
    request: &Path,
    lifetime: Duration,
    sealing: &Sealing,
    now: UnixTime,
) -> Result<Made, OfflineError> {
    let sealing = sealing.apart()?.ok_or(OfflineError::NoSealing)?;
    datadir::check_ours(directory)?;
    let root = Root::open(directory, &sealing, now)?;
    let asked = read_request(request)?;
    if asked.trust_domain != root.trust_domain {
        return Err(OfflineError::OtherTrustDomain {
            asked: asked.trust_domain,
            own: root.trust_domain,
        });
    }
    let validity = lifetimes::validity(now, lifetime, root.validity.not_after);
    let trust_domain = root.trust_domain.clone();
    let above = (&root.certificate, root.key);
    let (serial, certificate) = below(above, &trust_domain, &asked.key, validity)?;
    // What was signed is looked at before anybody has it.
    let facts = Facts::read(&certificate)?;
    signed_by(&certificate, &root.certificate)?;
    if !facts.is_intermediate(&trust_domain, &asked.public_key_der) {
        return Err(OfflineError::NotAsMeant);
    }
    let pem = certificates_to_pem(&[certificate, root.certificate]);
    let kept = directory.join(SIGNED);
    datadir::make_private(&kept)?;
    datadir::write_private(&kept.join(format!("{serial}.pem")), pem.as_bytes())?;
    Ok(Made {
        trust_domain,
        serial,
        until: validity.not_after,
        pem,
    })
}

/// A root that may sign now.
struct Root {
    trust_domain: TrustDomain,
    certificate: CertificateDer<'static>,
    validity: Validity,
    key: AuthorityKey,
}

impl Root {
    fn open(directory: &Path, sealing: &SealingKey, now: UnixTime) -> Result<Self, OfflineError> {
        let path = directory.join(ROOT);
        let not_ours = |why: &str| OfflineError::NotARoot {
            path: path.clone(),
            why: why.to_owned(),
        };
        let certificates = certificates_from_pem(&read(&path)?)?;
        let [certificate] = certificates.as_slice() else {
            return Err(not_ours("it holds more than one certificate"));
        };
        let facts = Facts::read(certificate)?;
        signed_by(certificate, certificate).map_err(|_| not_ours("it is not signed by itself"))?;
        let trust_domain = facts.trust_domain();
        let trust_domain = trust_domain.ok_or_else(|| not_ours("it names no trust domain"))?;
        if !facts.validity.includes(now) {
            return Err(match until(now, facts.validity.not_before).is_zero() {
                true => OfflineError::Ended {
                    since: until(facts.validity.not_after, now).as_secs(),
                },
                false => OfflineError::NotBegun {
                    seconds: until(now, facts.validity.not_before).as_secs(),
                },
            });
        }
        let sealed = read(&directory.join(KEY))?;
        let key = sealing.open(&place(certificate), &sealed);
        let key = AuthorityKey::from_pkcs8(&key.map_err(CaError::from)?)?;
        if key.subject_public_key_info() != facts.public_key {
            return Err(not_ours("the key beside it is another's"));
        }
        Ok(Self {
            trust_domain,
            certificate: certificate.clone(),
            validity: facts.validity,
            key,
        })
    }
}

/// A request for an intermediate, from its file.
pub(super) fn read_request(path: &Path) -> Result<AuthorityCsr, OfflineError> {
    let der = fender_identity::request_from_pem(&read(path)?).map_err(|source| {
        OfflineError::NotARequest {
            path: path.to_owned(),
            source,
        }
    })?;
    Ok(csr::parse_authority(&der)?)
}

pub(super) fn read(path: &Path) -> Result<Vec<u8>, OfflineError> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MAX_FILE + 1).read_to_end(&mut bytes))
        .map_err(at(path))?;
    match u64::try_from(bytes.len()) {
        Ok(length) if length <= MAX_FILE => Ok(bytes),
        Ok(_) | Err(_) => Err(OfflineError::TooLarge {
            path: path.to_owned(),
        }),
    }
}

/// Where a sealed root's key belongs: to this very certificate.
fn place(certificate: &CertificateDer<'_>) -> Vec<u8> {
    let mut place = b"fender offline root v1\0".to_vec();
    place.extend_from_slice(&sha256(certificate));
    place
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> OfflineError {
    let path = path.to_owned();
    move |source| OfflineError::File { path, source }
}

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OfflineError {
    #[error("read `{}`: {source}", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("`{}` is larger than {MAX_FILE} bytes", path.display())]
    TooLarge { path: PathBuf },
    #[error("`{}` is there already: a root is made once; for another one name another directory", path.display())]
    There { path: PathBuf },
    #[error(
        "say by what the root's key is sealed: `--sealing-key-file FILE`, another `--sealing-key-…`, or `--sealing \
         none-keys-in-plain`; a key beside what it seals would seal nothing"
    )]
    NoSealing,
    #[error("no certificate can name a time after the year 9999: give a shorter `--lifetime`")]
    TooLong,
    #[error("`{}` is no root to sign with: {why}", path.display())]
    NotARoot { path: PathBuf, why: String },
    #[error(
        "the root ended {since} s ago and signs nothing more: make another one, in another directory, and have the \
         control plane's request signed by it"
    )]
    Ended { since: u64 },
    #[error("the root begins in {seconds} s: is this machine's clock right?")]
    NotBegun { seconds: u64 },
    #[error("the request is for the trust domain `{asked}`, and the root is of `{own}`")]
    OtherTrustDomain {
        asked: TrustDomain,
        own: TrustDomain,
    },
    #[error("what was signed is not what was meant: nothing is given out")]
    NotAsMeant,
    #[error(
        "no request waits at `{}`: a control plane with `--root offline` lays one there at its first start, and at half of \
         the life of the intermediate in use", path.display()
    )]
    NotAsked { path: PathBuf },
    #[error(
        "`{}` is no request for an intermediate: {source}; a control plane with `--root offline` lays one in \
         `offline/request.pem` of its data directory", path.display()
    )]
    NotARequest { path: PathBuf, source: PemError },
    #[error("`{}` is not what `fender ca sign-intermediate` writes: {source}", path.display())]
    NotSigned { path: PathBuf, source: PemError },
    #[error(
        "`{}` holds no root after the intermediate, as `fender ca sign-intermediate` writes it", path.display()
    )]
    NoRoot { path: PathBuf },
    #[error("a certificate in the chain has ended, or has not begun")]
    OutOfTime,
    #[error(
        "the root is another than the one before, sha256:{pin}: if that is right, compare it with what `fender ca \
         create-root` said, and give `--another-root`; it is published first and signs later, like every new root"
    )]
    AnotherRoot { pin: CaPin },
    #[error("the request: {0}")]
    Request(#[from] CsrError),
    #[error(transparent)]
    Pem(#[from] PemError),
    #[error(transparent)]
    Upstream(#[from] UpstreamError),
    #[error(transparent)]
    Directory(#[from] DataDirError),
    #[error(transparent)]
    Ca(#[from] CaError),
}

impl OfflineError {
    /// What the process exits with: 77 for what is refused, 64 for a wrong use, 69 for what this machine fails at.
    pub fn exit_code(&self) -> u8 {
        use fender_api::code::{EXIT_REFUSED, EXIT_UNAVAILABLE, EXIT_USAGE};
        match self {
            Self::Directory(_) => EXIT_UNAVAILABLE,
            Self::File { .. }
            | Self::There { .. }
            | Self::NoSealing
            | Self::TooLong
            | Self::TooLarge { .. }
            | Self::NotARequest { .. }
            | Self::NotSigned { .. }
            | Self::NoRoot { .. }
            | Self::NotAsked { .. } => EXIT_USAGE,
            Self::NotARoot { .. }
            | Self::Ended { .. }
            | Self::NotBegun { .. }
            | Self::OtherTrustDomain { .. }
            | Self::NotAsMeant
            | Self::OutOfTime
            | Self::AnotherRoot { .. }
            | Self::Request(_)
            | Self::Pem(_)
            | Self::Upstream(_)
            | Self::Ca(_) => EXIT_REFUSED,
        }
    }
}
