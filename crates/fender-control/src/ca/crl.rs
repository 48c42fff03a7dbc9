//! Certificate revocation lists (RFC 5280), for verifiers that know no deny list: Envoy, nginx, HAProxy.
//!
//! Each authority signs one, over what it signed and an administrator revoked and that still lives. An intermediate's is
//! signed by the replica that holds it, a root's (which revokes nothing: intermediates are replaced) by whichever is
//! first. They lie in the store, because everybody is told the same; a list is signed anew when what it says changes, and
//! long before its end. It outlives every leaf it is about, so that a replica that is gone leaves no list behind that
//! verifiers would refuse as too old.

use std::time::Duration;

use rcgen::{
    CertificateRevocationListParams, Issuer, KeyIdMethod, RevokedCertParams, SerialNumber,
};
use rustls::pki_types::{CertificateDer, UnixTime};
use x509_parser::prelude::{FromDer as _, ParsedExtension, X509Certificate};

use super::make::{AuthorityKey, Workshop};
use super::{CaError, lifetimes, sha256};
use crate::store::Store;
use crate::store::authorities::{AuthorityRow, Role};
use crate::store::crls::{self, CrlRow, Put, Revoked};
use crate::time::{earlier, later, until};

/// Of an intermediate's: seven lives of the longest leaf.
const LEAVES: Duration = Duration::from_secs(7 * 24 * 3600);
/// Of a root's, whose key is opened for it.
const INTERMEDIATES: Duration = Duration::from_secs(90 * 24 * 3600);
/// How far a list begins in the past, for verifiers whose clock is behind.
const SKEW: Duration = Duration::from_secs(60);

impl Workshop {
    /// Signs every list that is due and whose authority's key is here.
    pub(super) async fn sign_lists(
        &self,
        store: &Store,
        rows: &[AuthorityRow],
        now: UnixTime,
    ) -> Result<(), CaError> {
        let known = crls::all(store).await?;
        for authority in rows.iter().filter(|row| self.signs_list_of(row, now)) {
            let revoked = match authority.role {
                Role::Root => Vec::new(),
                Role::Intermediate => crls::revoked(store, &authority.serial, now).await?,
            };
            let digest = digest(&revoked);
            let before = known.iter().find(|list| list.authority == authority.serial);
            if before.is_some_and(|list| list.digest == digest && !past_half(list, now)) {
                continue;
            }
            let number = before.map_or(1, |list| list.number.saturating_add(1));
            let row = CrlRow {
                digest,
                ..self.list(authority, number, &revoked, now)?
            };
            store.write(Put(row)).await?;
            tracing::info!(
                authority = %authority.serial, number, revoked = revoked.len(),
                "revocation list of the {} certificate authority signed", authority.role.as_str()
            );
        }
        Ok(())
    }

    fn signs_list_of(&self, row: &AuthorityRow, now: UnixTime) -> bool {
        let ours = match row.role {
            Role::Root => true,
            Role::Intermediate => row.holder.as_ref() == Some(&self.replica),
        };
        ours && row.sealed_key.is_some() && row.validity.includes(now)
    }

    fn list(
        &self,
        authority: &AuthorityRow,
        number: u64,
        revoked: &[Revoked],
        now: UnixTime,
    ) -> Result<CrlRow, CaError> {
        sign(authority, &self.issuer(authority)?, number, revoked, now)
    }
}

/// A list by an authority whose key is at hand.
pub(crate) fn sign(
    authority: &AuthorityRow,
    issuer: &Issuer<'_, AuthorityKey>,
    number: u64,
    revoked: &[Revoked],
    now: UnixTime,
) -> Result<CrlRow, CaError> {
    let lives = match authority.role {
        Role::Root => INTERMEDIATES,
        Role::Intermediate => LEAVES.max(lifetimes::WORKLOAD),
    };
    let (this_update, next_update) = (earlier(now, SKEW), later(now, lives));
    let moment_of =
        |moment: UnixTime| rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(moment.as_secs());
    let entry = |one: &Revoked| RevokedCertParams {
        serial_number: SerialNumber::from_slice(one.serial.as_bytes()),
        revocation_time: moment_of(one.at),
        reason_code: None,
        invalidity_date: None,
    };
    let list = CertificateRevocationListParams {
        this_update: moment_of(this_update),
        next_update: moment_of(next_update),
        crl_number: SerialNumber::from(number),
        issuing_distribution_point: None,
        revoked_certs: revoked.iter().map(entry).collect(),
        key_identifier_method: key_identifier(&authority.certificate),
    };
    Ok(CrlRow {
        authority: authority.serial.clone(),
        number,
        list: list.signed_by(issuer)?.into(),
        this_update,
        next_update,
        digest: digest(revoked),
    })
}

/// The one the certificate names: who signed it may have calculated it in another way than we do.
fn key_identifier(certificate: &CertificateDer<'_>) -> KeyIdMethod {
    let parsed = X509Certificate::from_der(certificate);
    let found = parsed.ok().and_then(|(_, certificate)| {
        let mut extensions = certificate.extensions().iter();
        extensions.find_map(|extension| {
            let ParsedExtension::SubjectKeyIdentifier(id) = extension.parsed_extension() else {
                return None;
            };
            Some(id.0.to_vec())
        })
    });
    found.map_or(KeyIdMethod::Sha256, KeyIdMethod::PreSpecified)
}

fn past_half(list: &CrlRow, now: UnixTime) -> bool {
    // One from the future was signed while the clock was ahead.
    list.this_update > now
        || until(list.this_update, now) >= until(list.this_update, list.next_update) / 2
}

fn digest(revoked: &[Revoked]) -> [u8; 32] {
    let serials: Vec<String> = revoked.iter().map(|one| one.serial.to_string()).collect();
    sha256(serials.join(",").as_bytes())
}
