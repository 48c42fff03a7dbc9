//! The certificate authority: a self-signed root, an intermediate under it that signs everything else, and the pipeline
//! every certificate runs through ([`issue`]).
//!
//! The root's key is opened only to make an intermediate. A successor is made when the one in use has lived half its
//! life; both chain to the same root, so nobody notices. Keys leave this module sealed or not at all.

pub(crate) mod issue;
pub(crate) mod lifetimes;
pub(crate) mod seal;

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use fender_identity::tls::CaPin;
use fender_identity::{Bundle, BundleError, Bundles, Serial, TrustDomain, Validity};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType, SerialNumber,
};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, UnixTime};
use zeroize::Zeroizing;

use crate::store::authorities::{self, AuthorityRow, Role};
use crate::store::{Store, StoreError};
use seal::{SealError, SealingKey};

/// What signs, and what the signed chain to.
pub(crate) struct Authority {
    trust_domain: TrustDomain,
    sealing: SealingKey,
    state: RwLock<Arc<State>>,
}

/// Replaced as a whole when an authority is made.
pub(crate) struct State {
    pub(crate) issuing: Issuing,
    pub(crate) bundle: Bundle,
    /// The same bundle as verification wants it.
    pub(crate) bundles: Arc<Bundles>,
    pub(crate) root: CertificateDer<'static>,
    pub(crate) known: Vec<Described>,
}

/// The intermediate in use.
pub(crate) struct Issuing {
    pub(crate) serial: Serial,
    pub(crate) certificate: CertificateDer<'static>,
    pub(crate) validity: Validity,
    issuer: Issuer<'static, KeyPair>,
}

/// An authority as people are told of it.
#[derive(Clone, Debug)]
pub(crate) struct Described {
    pub(crate) role: Role,
    pub(crate) serial: Serial,
    pub(crate) not_after: UnixTime,
}

impl Authority {
    /// Opens what the database holds; makes a root and an intermediate if it holds none.
    pub(crate) async fn open(
        store: &Store,
        sealing: SealingKey,
        trust_domain: TrustDomain,
        now: UnixTime,
    ) -> Result<Self, CaError> {
        let mut rows = authorities::all(store).await?;
        if rows.is_empty() {
            rows = found(&sealing, &trust_domain, now)?;
            store.write(authorities::Add(rows.clone())).await?;
            tracing::info!(%trust_domain, "root and intermediate certificate authorities made");
        }
        if let Some(successor) = successor(&rows, &sealing, &trust_domain, now)? {
            store
                .write(authorities::Add(vec![successor.clone()]))
                .await?;
            rows.insert(0, successor);
        }
        let state = RwLock::new(Arc::new(State::of(&rows, &sealing, &trust_domain, now)?));
        Ok(Self {
            trust_domain,
            sealing,
            state,
        })
    }

    /// Makes a successor for an intermediate past its half life, and signs with the one that counts now: the clock may
    /// have been put right since, or another process made one.
    pub(crate) async fn refresh(&self, store: &Store, now: UnixTime) -> Result<(), CaError> {
        let mut rows = authorities::all(store).await?;
        if let Some(successor) = successor(&rows, &self.sealing, &self.trust_domain, now)? {
            store
                .write(authorities::Add(vec![successor.clone()]))
                .await?;
            rows.insert(0, successor);
        }
        let current = self.state();
        let chosen = newest(&rows, Role::Intermediate, now).map(|row| &row.serial);
        if chosen == Some(&current.issuing.serial) && rows.len() == current.known.len() {
            return Ok(());
        }
        let state = Arc::new(State::of(&rows, &self.sealing, &self.trust_domain, now)?);
        *self.state.write().unwrap_or_else(PoisonError::into_inner) = state;
        Ok(())
    }

    pub(crate) fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    pub(crate) fn state(&self) -> Arc<State> {
        Arc::clone(&self.state.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// What a join token pins.
    pub(crate) fn pins(&self) -> Vec<CaPin> {
        self.state().bundle.roots().iter().map(CaPin::of).collect()
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority")
            .field("trust_domain", &self.trust_domain)
            .finish_non_exhaustive()
    }
}

impl State {
    fn of(
        rows: &[AuthorityRow],
        sealing: &SealingKey,
        trust_domain: &TrustDomain,
        now: UnixTime,
    ) -> Result<Self, CaError> {
        // Every root that still lives, so that what an older one vouches for holds during a rotation.
        let roots: Vec<_> = rows
            .iter()
            .filter(|row| row.role == Role::Root && row.validity.not_after > now)
            .map(|row| row.certificate.clone())
            .collect();
        let root = roots.first().cloned().ok_or(CaError::RootExpired)?;
        let issuing = newest(rows, Role::Intermediate, now).ok_or(CaError::NoIntermediate)?;
        let issuing = Issuing {
            serial: issuing.serial.clone(),
            certificate: issuing.certificate.clone(),
            validity: issuing.validity,
            issuer: issuer(issuing, sealing, trust_domain)?,
        };
        let bundle = Bundle::new(trust_domain.clone(), roots)?;
        let mut bundles = Bundles::default();
        bundles.insert(bundle.clone());
        let known = rows
            .iter()
            .map(|row| Described {
                role: row.role,
                serial: row.serial.clone(),
                not_after: row.validity.not_after,
            })
            .collect();
        Ok(Self {
            issuing,
            bundle,
            bundles: Arc::new(bundles),
            root,
            known,
        })
    }
}

/// The youngest that is valid now. One made while the clock was ahead must not sign before its time comes; if there is
/// no other, it is named all the same, and its signatures are refused when they are checked.
fn newest(rows: &[AuthorityRow], role: Role, now: UnixTime) -> Option<&AuthorityRow> {
    let youngest = |valid: &dyn Fn(&AuthorityRow) -> bool| {
        rows.iter()
            .filter(|row| row.role == role && valid(row))
            .max_by_key(|row| row.validity.not_after)
    };
    youngest(&|row| row.validity.includes(now)).or_else(|| youngest(&|_| true))
}

fn found(
    sealing: &SealingKey,
    trust_domain: &TrustDomain,
    now: UnixTime,
) -> Result<Vec<AuthorityRow>, CaError> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let serial = random_serial()?;
    let validity = lifetimes::validity(now, lifetimes::ROOT, forever());
    let certificate = ca_params(Role::Root, trust_domain, &serial, validity)?.self_signed(&key)?;
    let root = sealed(
        Role::Root,
        serial,
        validity,
        certificate.into(),
        &key,
        sealing,
        trust_domain,
    )?;
    let intermediate = intermediate(&root, sealing, trust_domain, now)?;
    Ok(vec![intermediate, root])
}

/// The next intermediate, if it is time for one.
fn successor(
    rows: &[AuthorityRow],
    sealing: &SealingKey,
    trust_domain: &TrustDomain,
    now: UnixTime,
) -> Result<Option<AuthorityRow>, CaError> {
    let current = newest(rows, Role::Intermediate, now).ok_or(CaError::NoIntermediate)?;
    let usable = current.validity.includes(now);
    if usable && !lifetimes::past_half(current.validity, now) {
        return Ok(None);
    }
    let root = newest(rows, Role::Root, now).ok_or(CaError::RootExpired)?;
    if root.validity.not_after <= now {
        return Err(CaError::RootExpired);
    }
    if !root.validity.includes(now) {
        // Nothing made before the root begins could ever be verified.
        return Ok(None);
    }
    let successor = intermediate(root, sealing, trust_domain, now)?;
    if usable && successor.validity.not_after <= current.validity.not_after {
        // The root ends first: a successor would gain nothing.
        return Ok(None);
    }
    tracing::info!(serial = %successor.serial, "intermediate certificate authority made anew");
    Ok(Some(successor))
}

fn intermediate(
    root: &AuthorityRow,
    sealing: &SealingKey,
    trust_domain: &TrustDomain,
    now: UnixTime,
) -> Result<AuthorityRow, CaError> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let serial = random_serial()?;
    let validity = lifetimes::validity(now, lifetimes::INTERMEDIATE, root.validity.not_after);
    let certificate = ca_params(Role::Intermediate, trust_domain, &serial, validity)?
        .signed_by(&key, &issuer(root, sealing, trust_domain)?)?;
    let certificate = certificate.into();
    sealed(
        Role::Intermediate,
        serial,
        validity,
        certificate,
        &key,
        sealing,
        trust_domain,
    )
}

fn ca_params(
    role: Role,
    trust_domain: &TrustDomain,
    serial: &Serial,
    validity: Validity,
) -> Result<CertificateParams, CaError> {
    let number = serial.to_string();
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, "Fender");
    // Successors differ in name, which helps people and tools that search by it.
    let short = number.get(..8).unwrap_or(&number);
    name.push(
        DnType::CommonName,
        format!("Fender {} {short}", role.as_str()),
    );

    let mut params = CertificateParams::default();
    params.serial_number = Some(SerialNumber::from_slice(serial.as_bytes()));
    params.distinguished_name = name;
    set_validity(&mut params, validity);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(match role {
        Role::Root => 1,
        Role::Intermediate => 0,
    }));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    // SPIFFE: a signing certificate carries its trust domain's own id, which has no path.
    params.subject_alt_names = vec![SanType::URI(format!("spiffe://{trust_domain}").try_into()?)];
    params.use_authority_key_identifier_extension = role == Role::Intermediate;
    Ok(params)
}

fn sealed(
    role: Role,
    serial: Serial,
    validity: Validity,
    certificate: CertificateDer<'static>,
    key: &KeyPair,
    sealing: &SealingKey,
    trust_domain: &TrustDomain,
) -> Result<AuthorityRow, CaError> {
    let plain = Zeroizing::new(key.serialize_der());
    let sealed_key = sealing.seal(&place(role, &serial, &certificate, trust_domain), &plain)?;
    Ok(AuthorityRow {
        serial,
        role,
        certificate,
        sealed_key,
        validity,
    })
}

fn issuer(
    row: &AuthorityRow,
    sealing: &SealingKey,
    trust_domain: &TrustDomain,
) -> Result<Issuer<'static, KeyPair>, CaError> {
    let place = place(row.role, &row.serial, &row.certificate, trust_domain);
    let plain = sealing.open(&place, &row.sealed_key)?;
    let key = KeyPair::try_from(&PrivatePkcs8KeyDer::from(plain.as_slice()))?;
    Ok(Issuer::from_ca_cert_der(&row.certificate, key)?)
}

/// Binds a sealed key to its row: role, serial, certificate and trust domain.
fn place(
    role: Role,
    serial: &Serial,
    certificate: &CertificateDer<'_>,
    trust_domain: &TrustDomain,
) -> Vec<u8> {
    let mut place = format!(
        "fender authority v1\0{trust_domain}\0{}\0{serial}\0",
        role.as_str()
    )
    .into_bytes();
    place.extend_from_slice(&sha256(certificate));
    place
}

/// 16 bytes, the first from 0x40 to 0x7f: positive, never shortened by DER, 126 random bits.
pub(crate) fn random_serial() -> Result<Serial, CaError> {
    let mut bytes = [0_u8; 16];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| SealError::Crypto)?;
    if let Some(first) = bytes.first_mut() {
        *first = *first & 0x3f | 0x40;
    }
    Serial::from_bytes(&bytes).map_err(|_| CaError::Seal(SealError::Crypto))
}

pub(crate) fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest(&SHA256, bytes).as_ref());
    hash
}

/// No issuer ends before.
fn forever() -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(u64::from(u32::MAX) * 4))
}

/// rcgen's dates are of a crate nothing else here needs, so they are reached from one of its own.
fn set_validity(params: &mut CertificateParams, validity: Validity) {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + Duration::from_secs(validity.not_before.as_secs());
    params.not_after = epoch + Duration::from_secs(validity.not_after.as_secs());
}

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CaError {
    #[error("the root certificate has expired: restore the clock, or make a new trust domain")]
    RootExpired,
    #[error("the database holds no intermediate certificate authority")]
    NoIntermediate,
    #[error("make a certificate: {0}")]
    Make(#[from] rcgen::Error),
    #[error("the bundle is not usable: {0}")]
    Bundle(#[from] BundleError),
    #[error(transparent)]
    Seal(#[from] SealError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

#[cfg(test)]
mod tests;
