//! Makes authorities: a root under itself, an intermediate under a root. The key of a root is open only in here, for as
//! long as it takes to sign.

use std::time::Duration;

use fender_identity::{Serial, TrustDomain, Validity};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType, SerialNumber, SigningKey,
};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, UnixTime};
use zeroize::{Zeroize as _, Zeroizing};

use super::seal::{SealError, SealingKey};
use super::{CaError, lifetimes, sha256};
use crate::store::authorities::{AuthorityRow, Role};
use crate::store::replicas::ReplicaName;

/// Certificates below a root: an intermediate, and one more for whoever puts one in between.
const ROOT_DEPTH: u8 = 2;

/// What seals and names the authorities of one trust domain, for one replica.
pub(crate) struct Workshop {
    pub(crate) trust_domain: TrustDomain,
    /// Whose intermediates are made and opened here.
    pub(crate) replica: ReplicaName,
    pub(crate) sealing: SealingKey,
}

/// An authority's key, wiped when it is dropped.
pub(crate) struct AuthorityKey(KeyPair);

impl AuthorityKey {
    pub(crate) fn generate() -> Result<Self, CaError> {
        Ok(Self(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?))
    }

    /// PKCS#8, DER.
    pub(crate) fn from_pkcs8(der: &[u8]) -> Result<Self, CaError> {
        Ok(Self(KeyPair::try_from(&PrivatePkcs8KeyDer::from(der))?))
    }

    pub(crate) fn to_pkcs8(&self) -> Zeroizing<Vec<u8>> {
        Zeroizing::new(self.0.serialize_der())
    }
}

impl Drop for AuthorityKey {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl PublicKeyData for AuthorityKey {
    fn der_bytes(&self) -> &[u8] {
        self.0.der_bytes()
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        PublicKeyData::algorithm(&self.0)
    }
}

impl SigningKey for AuthorityKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        self.0.sign(message)
    }
}

/// A root and the key that made it.
pub(crate) struct NewRoot {
    pub(crate) row: AuthorityRow,
    pub(crate) key: AuthorityKey,
}

impl NewRoot {
    pub(crate) fn make(
        trust_domain: &TrustDomain,
        lifetime: Duration,
        signs_from: UnixTime,
        now: UnixTime,
    ) -> Result<Self, CaError> {
        let key = AuthorityKey::generate()?;
        let serial = random_serial()?;
        let validity = lifetimes::root_validity(now, lifetime);
        let certificate = params(Role::Root, trust_domain, &serial, validity)?
            .self_signed(&key)?
            .into();
        let row = AuthorityRow {
            serial,
            role: Role::Root,
            root: None,
            holder: None,
            certificate,
            path: Vec::new(),
            sealed_key: None,
            validity,
            signs_from,
        };
        Ok(Self { row, key })
    }
}

impl Workshop {
    /// A root whose key stays here, sealed.
    pub(crate) fn root(
        &self,
        lifetime: Duration,
        signs_from: UnixTime,
        now: UnixTime,
    ) -> Result<AuthorityRow, CaError> {
        let NewRoot { row, key } = NewRoot::make(&self.trust_domain, lifetime, signs_from, now)?;
        self.sealed(row, &key)
    }

    /// An intermediate under a root whose key is here.
    pub(crate) fn intermediate(
        &self,
        root: &AuthorityRow,
        lifetime: Duration,
        now: UnixTime,
    ) -> Result<AuthorityRow, CaError> {
        let key = self.open(root)?;
        self.intermediate_with(root, key, lifetime, now)
    }

    /// An intermediate under a root whose key was brought.
    pub(crate) fn intermediate_with(
        &self,
        root: &AuthorityRow,
        root_key: AuthorityKey,
        lifetime: Duration,
        now: UnixTime,
    ) -> Result<AuthorityRow, CaError> {
        let key = AuthorityKey::generate()?;
        let validity = lifetimes::validity(now, lifetime, root.validity.not_after);
        let above = (&root.certificate, root_key);
        let (serial, certificate) = below(above, &self.trust_domain, &key, validity)?;
        let row = AuthorityRow {
            serial,
            role: Role::Intermediate,
            root: Some(root.serial.clone()),
            holder: Some(self.replica.clone()),
            certificate,
            path: Vec::new(),
            sealed_key: None,
            validity,
            signs_from: validity.not_before,
        };
        self.sealed(row, &key)
    }

    /// A request for an intermediate of this key, in PEM, for whoever signs it elsewhere.
    pub(crate) fn request(&self, key: &AuthorityKey) -> Result<String, CaError> {
        let mut params = CertificateParams::default();
        let mut name = DistinguishedName::new();
        name.push(DnType::OrganizationName, "Fender");
        name.push(
            DnType::CommonName,
            format!("Fender intermediate {}", self.replica),
        );
        params.distinguished_name = name;
        let own = format!("spiffe://{}", self.trust_domain);
        params.subject_alt_names = vec![SanType::URI(own.try_into()?)];
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        Ok(params.serialize_request(key)?.pem()?)
    }

    /// What signs with an authority.
    pub(crate) fn issuer(
        &self,
        row: &AuthorityRow,
    ) -> Result<Issuer<'static, AuthorityKey>, CaError> {
        Ok(Issuer::from_ca_cert_der(&row.certificate, self.open(row)?)?)
    }

    pub(crate) fn sealed(
        &self,
        row: AuthorityRow,
        key: &AuthorityKey,
    ) -> Result<AuthorityRow, CaError> {
        let sealed = self.sealing.seal(&self.place(&row), &key.to_pkcs8())?;
        Ok(AuthorityRow {
            sealed_key: Some(sealed),
            ..row
        })
    }

    fn open(&self, row: &AuthorityRow) -> Result<AuthorityKey, CaError> {
        let sealed = row.sealed_key.as_ref().ok_or(CaError::KeyElsewhere)?;
        AuthorityKey::from_pkcs8(&self.sealing.open(&self.place(row), sealed)?)
    }

    /// Binds a sealed key to its row: role, serial, certificate, trust domain and, of an intermediate, to this replica: it
    /// opens nobody else's.
    fn place(&self, row: &AuthorityRow) -> Vec<u8> {
        let holder = match row.role {
            Role::Root => "",
            Role::Intermediate => self.replica.as_str(),
        };
        let mut place = format!(
            "fender authority v1\0{}\0{}\0{}\0{holder}\0",
            self.trust_domain,
            row.role.as_str(),
            row.serial
        )
        .into_bytes();
        place.extend_from_slice(&sha256(&row.certificate));
        place
    }
}

/// An intermediate of a key, under a root.
pub(crate) fn below(
    (root, root_key): (&CertificateDer<'_>, AuthorityKey),
    trust_domain: &TrustDomain,
    key: &impl PublicKeyData,
    validity: Validity,
) -> Result<(Serial, CertificateDer<'static>), CaError> {
    let serial = random_serial()?;
    let issuer = Issuer::from_ca_cert_der(root, root_key)?;
    let params = params(Role::Intermediate, trust_domain, &serial, validity)?;
    let certificate = params.signed_by(key, &issuer)?;
    Ok((serial, certificate.into()))
}

fn params(
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
        Role::Root => ROOT_DEPTH,
        Role::Intermediate => 0,
    }));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    // SPIFFE: a signing certificate carries its trust domain's own id, which has no path.
    params.subject_alt_names = vec![SanType::URI(format!("spiffe://{trust_domain}").try_into()?)];
    params.use_authority_key_identifier_extension = role == Role::Intermediate;
    Ok(params)
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

/// rcgen's dates are of a crate nothing else here needs, so they are reached from one of its own.
pub(crate) fn set_validity(params: &mut CertificateParams, validity: Validity) {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + Duration::from_secs(validity.not_before.as_secs());
    params.not_after = epoch + Duration::from_secs(validity.not_after.as_secs());
}
