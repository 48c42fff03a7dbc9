//! An authority above ours: it signs our intermediates, and its root is the mesh's ([DESIGN I7]).
//!
//! Either an intermediate with its key lies in files, which somebody renews ([`files`]), or a request of ours is signed, and
//! then our key never leaves: by Vault or OpenBao ([`vault`]), or by people with a root that is offline ([`offline`]). Each replica has an intermediate of its own. Whatever comes
//! is tried before it is believed: a certificate is signed under it and verified as every peer will verify ours. What does
//! not hold is not taken, and what is in use stays; [`super::horizon`] says until when.

mod files;
mod offline;
mod vault;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use fender_config::Lifetimes;
use fender_identity::csr::{self, NewKey};
use fender_identity::tls::CaPin;
use fender_identity::verify::{self, MAX_CHAIN, Refusal};
use fender_identity::{
    Bundle, BundleError, Bundles, Serial, SpiffeId, TrustDomain, Validity, uris_of,
};
use rcgen::{
    CertificateParams, ExtendedKeyUsagePurpose, Issuer, KeyUsagePurpose, PublicKeyData as _,
    SanType,
};
use rustls::pki_types::{CertificateDer, UnixTime};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::lifetimes::{self, past_half};
use super::make::{AuthorityKey, Workshop, random_serial, set_validity};
use super::{CaError, rotation};
use crate::datadir::DataDirError;
use crate::store::authorities::{self, AuthorityRow, Role, Succeed, Succeeded};
use crate::store::{Store, audit};
use crate::time::{later, moment, until};
use fender_runtime::clock::SharedClock;

pub use files::FilesUpstream;
pub use offline::{AnotherRoot, OfflineUpstream, import};
pub use vault::VaultUpstream;

/// Where intermediates come from.
#[derive(Clone, Debug)]
pub enum UpstreamPlace {
    Files(FilesUpstream),
    Offline(OfflineUpstream),
    Vault(VaultUpstream),
}

/// The same, with what is known of it while it is used.
pub(crate) struct Upstream {
    place: UpstreamPlace,
    lease: vault::Lease,
    reminder: offline::Reminder,
    clock: SharedClock,
}

/// What an upstream gave.
struct Brought {
    /// The intermediate first, then what lies between it and the root.
    chain: Vec<CertificateDer<'static>>,
    /// One of these signed the last of the chain.
    roots: Vec<CertificateDer<'static>>,
    key: AuthorityKey,
}

impl Upstream {
    pub(crate) fn new(place: UpstreamPlace, clock: SharedClock) -> Self {
        Self {
            place,
            lease: vault::Lease::default(),
            reminder: offline::Reminder::default(),
            clock,
        }
    }

    /// Gets the next intermediate if one is due, or lies ready.
    pub(super) async fn renew(
        &self,
        store: &Store,
        workshop: &Workshop,
        lifetimes: &Lifetimes,
        now: UnixTime,
    ) -> Result<(), CaError> {
        let rows = authorities::all(store).await?;
        match &self.place {
            UpstreamPlace::Files(_) => {}
            UpstreamPlace::Offline(offline) if offline.is_answered() => {}
            UpstreamPlace::Offline(_) if !is_due(&rows, workshop, now) => return Ok(()),
            UpstreamPlace::Offline(offline) => {
                offline.ask(workshop)?;
                let Some(current) = offline::goes_on(&rows, workshop, now) else {
                    let request = offline.request();
                    return Err(UpstreamError::NotSigned { request }.into());
                };
                offline.remind(&self.reminder, current, now);
                return Ok(());
            }
            UpstreamPlace::Vault(vault) => {
                vault.keep_token(&self.lease, &self.clock).await;
                if !is_due(&rows, workshop, now) {
                    return Ok(());
                }
            }
        }
        let fresh = self.next(&rows, workshop, lifetimes, now).await?;
        let Some(intermediate) = fresh.last() else {
            self.taken();
            return Ok(());
        };
        let (serial, ends) = (intermediate.serial.clone(), intermediate.validity.not_after);
        let lives = until(now, ends).as_secs();
        if store.write(succeed(&rows, fresh, workshop, now)).await? == Succeeded::Added {
            tracing::info!(%serial, lives, "an intermediate certificate authority came from upstream");
            self.taken();
        }
        Ok(())
    }

    /// What was brought is on record.
    fn taken(&self) {
        match &self.place {
            UpstreamPlace::Offline(offline) => offline.answered(),
            UpstreamPlace::Files(_) | UpstreamPlace::Vault(_) => {}
        }
    }

    /// An intermediate that was not known before, after its root if that was not either; nothing if there is none.
    pub(super) async fn next(
        &self,
        rows: &[AuthorityRow],
        workshop: &Workshop,
        lifetimes: &Lifetimes,
        now: UnixTime,
    ) -> Result<Vec<AuthorityRow>, UpstreamError> {
        let brought = match &self.place {
            UpstreamPlace::Files(files) => files.read()?,
            UpstreamPlace::Offline(offline) => offline.read(workshop)?,
            UpstreamPlace::Vault(vault) => {
                vault
                    .sign(workshop, lifetimes.intermediate, &self.clock)
                    .await?
            }
        };
        // By its bytes: serials are an issuer's own, and file authorities count from one.
        let found = first(&brought.chain)?;
        if rows.iter().any(|row| row.certificate == *found) {
            return Ok(Vec::new());
        }
        let fresh = brought.into_rows(rows, workshop, lifetimes, now)?;
        self.check_root(rows, &fresh)?;
        for new in &fresh {
            if rows.iter().any(|row| row.serial == new.serial) {
                return Err(UpstreamError::SerialTaken {
                    serial: new.serial.clone(),
                });
            }
        }
        Ok(fresh)
    }

    /// Who names a root beside each certificate is believed once: from then on, another root is an operator's word.
    fn check_root(
        &self,
        rows: &[AuthorityRow],
        fresh: &[AuthorityRow],
    ) -> Result<(), UpstreamError> {
        let is_upstreams = |row: &&AuthorityRow| row.role == Role::Root && row.sealed_key.is_none();
        let Some(root) = fresh.iter().find(is_upstreams) else {
            return Ok(());
        };
        if !rows.iter().any(|row| is_upstreams(&row)) {
            return Ok(());
        }
        match &self.place {
            UpstreamPlace::Files(_) => Ok(()),
            UpstreamPlace::Offline(offline) if offline.is_meant(&root.certificate) => Ok(()),
            UpstreamPlace::Offline(_) => Err(UpstreamError::ImportedRoot {
                pin: CaPin::of(&root.certificate),
            }),
            UpstreamPlace::Vault(vault) if vault.roots.is_some() => Ok(()),
            UpstreamPlace::Vault(_) => Err(UpstreamError::AnotherRoot {
                serial: root.serial.clone(),
            }),
        }
    }
}

fn succeed(
    rows: &[AuthorityRow],
    fresh: Vec<AuthorityRow>,
    workshop: &Workshop,
    now: UnixTime,
) -> Succeed {
    let roots = rows.iter().filter(|row| row.role == Role::Root);
    // A new root is believed by the whole mesh: that is for the log.
    let root = fresh.iter().find(|row| row.role == Role::Root);
    let entry = root.map(|root| audit::Entry {
        time: now,
        actor: SpiffeId::control(&workshop.trust_domain),
        action: audit::Action::RotateAuthority,
        subject: root.serial.to_string(),
        outcome: audit::Outcome::Done,
        detail: "the root of the upstream authority".to_owned(),
    });
    Succeed {
        known_roots: roots.map(|row| row.serial.clone()).collect::<BTreeSet<_>>(),
        rows: fresh,
        entry,
    }
}

/// Whether this replica needs another: under a root that is kept elsewhere it has none whose life is not half over.
fn is_due(rows: &[AuthorityRow], workshop: &Workshop, now: UnixTime) -> bool {
    let Some(root) = rotation::latest_root(rows).filter(|root| root.sealed_key.is_none()) else {
        return true;
    };
    let mut ours = rows.iter().filter(|row| {
        row.root.as_ref() == Some(&root.serial) && row.holder.as_ref() == Some(&workshop.replica)
    });
    !ours.any(|row| row.validity.includes(now) && !past_half(row.validity, now))
}

impl Brought {
    fn into_rows(
        self,
        known: &[AuthorityRow],
        workshop: &Workshop,
        lifetimes: &Lifetimes,
        now: UnixTime,
    ) -> Result<Vec<AuthorityRow>, UpstreamError> {
        let intermediate = first(&self.chain)?.clone();
        let facts = Facts::read(&intermediate)?;
        facts.check(&workshop.trust_domain)?;
        facts.lives_for(lifetimes.leaf.saturating_mul(2), now)?;
        // The leaf below it and, in our own chain, the root above it must fit as well.
        if self.chain.len() + 2 > MAX_CHAIN {
            return Err(UpstreamError::TooLong);
        }
        if facts.public_key != self.key.subject_public_key_info() {
            return Err(UpstreamError::OtherKey);
        }
        let root = self.root(workshop, now)?;
        let root_facts = Facts::read(&root)?;
        let mut rows = Vec::new();
        if known.iter().all(|row| row.certificate != root) {
            let current = rotation::signing_root(known, now);
            rows.push(AuthorityRow {
                serial: root_facts.serial.clone(),
                role: Role::Root,
                root: None,
                holder: None,
                certificate: root,
                path: Vec::new(),
                sealed_key: None,
                validity: root_facts.validity,
                // Where another root vouches, everybody hears of this one before they meet it.
                signs_from: current
                    .map_or(now, |current| rotation::signs_from(current, lifetimes, now)),
            });
        }
        let row = AuthorityRow {
            serial: facts.serial,
            role: Role::Intermediate,
            root: Some(root_facts.serial),
            holder: Some(workshop.replica.clone()),
            certificate: intermediate,
            path: self.chain.get(1..).unwrap_or_default().to_vec(),
            sealed_key: None,
            validity: facts.validity,
            signs_from: facts.validity.not_before,
        };
        let sealed = workshop.sealed(row, &self.key);
        rows.push(sealed.map_err(|error| UpstreamError::Key(Box::new(error)))?);
        Ok(rows)
    }

    /// The root by which a certificate that is signed here would be believed.
    fn root(
        &self,
        workshop: &Workshop,
        now: UnixTime,
    ) -> Result<CertificateDer<'static>, UpstreamError> {
        let leaf = self.probe(workshop, now)?;
        let chain: Vec<_> = std::iter::once(leaf).chain(self.chain.clone()).collect();
        let mut refused = UpstreamError::NoRoot;
        for root in &self.roots {
            let bundle = Bundle::new(workshop.trust_domain.clone(), vec![root.clone()])?;
            let bundles = Bundles::from(bundle);
            let verified = [verify::Role::Client, verify::Role::Server]
                .into_iter()
                .try_for_each(|role| {
                    verify::verify(&chain, role, &bundles, now, &|_| Ok(())).map(drop)
                });
            match verified {
                Ok(()) => return Ok(root.clone()),
                Err(why) => refused = UpstreamError::Unfit(why),
            }
        }
        Err(refused)
    }

    /// A certificate of a key that is thrown away, signed as ours are.
    fn probe(
        &self,
        workshop: &Workshop,
        now: UnixTime,
    ) -> Result<CertificateDer<'static>, UpstreamError> {
        let unmade = |error: CaError| UpstreamError::Key(Box::new(error));
        let id = SpiffeId::control(&workshop.trust_domain);
        let key = NewKey::generate().map_err(|_| UpstreamError::Probe)?;
        let request = key.csr_der(&id).map_err(|_| UpstreamError::Probe)?;
        let request = csr::parse(&request).map_err(|_| UpstreamError::Probe)?;
        let mut params = CertificateParams::default();
        let serial = random_serial().map_err(unmade)?;
        params.serial_number = Some(rcgen::SerialNumber::from_slice(serial.as_bytes()));
        let ends = later(now, Duration::from_secs(60));
        set_validity(
            &mut params,
            lifetimes::validity(now, Duration::from_secs(60), ends),
        );
        let name = id
            .as_str()
            .try_into()
            .map_err(CaError::from)
            .map_err(unmade)?;
        params.subject_alt_names = vec![SanType::URI(name)];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let again = AuthorityKey::from_pkcs8(&self.key.to_pkcs8()).map_err(unmade)?;
        let issuer = Issuer::from_ca_cert_der(first(&self.chain)?, again)
            .map_err(CaError::from)
            .map_err(unmade)?;
        let signed = params.signed_by(&request.key, &issuer);
        let signed = signed.map_err(CaError::from).map_err(unmade)?;
        Ok(signed.der().clone())
    }
}

fn first<'a>(
    chain: &'a [CertificateDer<'static>],
) -> Result<&'a CertificateDer<'static>, UpstreamError> {
    chain.first().ok_or(UpstreamError::NoCertificate)
}

/// What counts of an authority's certificate.
pub(super) struct Facts {
    pub(super) serial: Serial,
    pub(super) validity: Validity,
    pub(super) public_key: Vec<u8>,
    signs: bool,
    /// How many authorities may follow below it, if that is limited.
    depth: Option<u32>,
    uris: Vec<String>,
    /// Whether it limits the names of whoever is below, of whatever kind.
    pub(super) limits_names: bool,
    limits_uris: bool,
}

impl Facts {
    pub(super) fn read(der: &CertificateDer<'_>) -> Result<Self, UpstreamError> {
        let malformed = || UpstreamError::Malformed;
        let (rest, read) = X509Certificate::from_der(der).map_err(|_| malformed())?;
        if !rest.is_empty() {
            return Err(malformed());
        }
        let usage = read.key_usage().map_err(|_| malformed())?;
        let signs =
            usage.is_some_and(|usage| usage.value.key_cert_sign() && usage.value.crl_sign());
        let constraints = read.basic_constraints().map_err(|_| malformed())?;
        let names = read.subject_alternative_name().map_err(|_| malformed())?;
        let uris = match names {
            Some(names) => uris_of(&names.value.general_names).ok_or_else(malformed)?,
            None => Vec::new(),
        };
        let limits = read.name_constraints().map_err(|_| malformed())?;
        let limits_names = limits.is_some();
        let limits_uris = limits.is_some_and(|limits| {
            let trees = [
                &limits.value.permitted_subtrees,
                &limits.value.excluded_subtrees,
            ];
            let mut all = trees.into_iter().flatten().flatten();
            all.any(|tree| matches!(tree.base, GeneralName::URI(_)))
        });
        Ok(Self {
            serial: Serial::from_bytes(read.raw_serial()).map_err(|_| malformed())?,
            validity: Validity {
                not_before: moment(read.validity().not_before.timestamp()),
                not_after: moment(read.validity().not_after.timestamp()),
            },
            public_key: read.public_key().raw.to_vec(),
            signs: signs && read.is_ca(),
            depth: constraints.and_then(|it| it.value.path_len_constraint),
            uris,
            limits_names,
            limits_uris,
        })
    }

    /// What the probe would not say, or not as clearly.
    pub(super) fn check(&self, trust_domain: &TrustDomain) -> Result<(), UpstreamError> {
        if !self.signs {
            return Err(UpstreamError::NotACa);
        }
        if self.limits_uris {
            return Err(UpstreamError::LimitsUris);
        }
        let own = format!("spiffe://{trust_domain}");
        if let Some(found) = self.uris.iter().find(|uri| **uri != own) {
            let found = found
                .chars()
                .filter(|c| !c.is_control())
                .take(256)
                .collect();
            return Err(UpstreamError::OtherTrustDomain { found });
        }
        Ok(())
    }

    fn lives_for(&self, needed: Duration, now: UnixTime) -> Result<(), UpstreamError> {
        let left = until(now, self.validity.not_after);
        match left < needed {
            true => Err(UpstreamError::TooShort {
                seconds: left.as_secs(),
                needed: needed.as_secs(),
            }),
            false => Ok(()),
        }
    }

    /// The one trust domain that it names.
    pub(super) fn trust_domain(&self) -> Option<TrustDomain> {
        match self.uris.as_slice() {
            [only] => only.strip_prefix("spiffe://")?.parse().ok(),
            _ => None,
        }
    }

    /// An intermediate as one that is made here: of this key, and nothing may follow below it but leaves.
    pub(super) fn is_intermediate(&self, trust_domain: &TrustDomain, public_key: &[u8]) -> bool {
        self.check(trust_domain).is_ok()
            && self.trust_domain().as_ref() == Some(trust_domain)
            && self.depth == Some(0)
            && self.public_key == public_key
    }
}

/// Whether the key of one certificate made the signature of another.
pub(super) fn signed_by(
    below: &CertificateDer<'_>,
    above: &CertificateDer<'_>,
) -> Result<(), UpstreamError> {
    let read = |der| {
        X509Certificate::from_der(der)
            .map(|(_, read)| read)
            .map_err(|_| UpstreamError::Malformed)
    };
    let (below, above) = (read(below)?, read(above)?);
    below
        .verify_signature(Some(above.public_key()))
        .map_err(|_| UpstreamError::OtherIssuer)
}

/// Why an upstream gave no intermediate that could be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UpstreamError {
    #[error("read `{}`: {source}", path.display())]
    File {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("`{}` holds a private key or a token and can be read by others: run `chmod go= {}`", path.display(), path.display())]
    Exposed { path: PathBuf },
    #[error("`{}`: {why}", path.display())]
    Content { path: PathBuf, why: String },
    #[error("the upstream authority: {0}")]
    Server(String),
    #[error("upstream gave no certificate")]
    NoCertificate,
    #[error(
        "this control plane has no intermediate to sign with, and the root's key is offline: have `{}` signed by `fender ca \
         sign-intermediate` where the root is, bring back what it writes, run `fender ca import` on it, and start again",
        request.display()
    )]
    NotSigned { request: PathBuf },
    #[error("a certificate of the chain was not signed by the one after it")]
    OtherIssuer,
    #[error(transparent)]
    Directory(#[from] DataDirError),
    #[error("no root is given that the upstream intermediate could chain to")]
    NoRoot,
    #[error("a certificate from upstream cannot be read")]
    Malformed,
    #[error(
        "the upstream certificate is no authority that may sign certificates and revocation lists"
    )]
    NotACa,
    #[error(
        "the upstream intermediate constrains URI names, which no verifier of TLS here understands: have it signed without"
    )]
    LimitsUris,
    #[error("the upstream intermediate is for `{found}`, which is another trust domain")]
    OtherTrustDomain { found: String },
    #[error(
        "the upstream intermediate ends in {seconds} s, and must live for {needed} s: twice what it signs"
    )]
    TooShort { seconds: u64, needed: u64 },
    #[error(
        "the chain from upstream is too long: peers take {MAX_CHAIN} certificates, leaf included"
    )]
    TooLong,
    #[error("the upstream intermediate is for another key than the one given")]
    OtherKey,
    #[error("what is signed under the upstream intermediate would not be believed: {0}")]
    Unfit(Refusal),
    #[error(
        "an authority of the serial {serial} is on record with another certificate: have upstream sign with another serial"
    )]
    SerialTaken { serial: Serial },
    #[error(
        "upstream names another root than before, {serial}: if that is right, give it by `--upstream-roots`"
    )]
    AnotherRoot { serial: Serial },
    #[error(
        "what was imported chains to another root than the one that the mesh knows, sha256:{pin}: if that is right, compare it \
         with what `fender ca create-root` said, and import it again with `--another-root`"
    )]
    ImportedRoot { pin: CaPin },
    #[error("a root from upstream is not usable: {0}")]
    Root(#[from] BundleError),
    #[error("the key of an upstream intermediate: {0}")]
    Key(Box<CaError>),
    #[error("no certificate could be made to try an upstream intermediate with")]
    Probe,
}
