//! One reading of one X.509 certificate: the facts that the rules of [`crate::verify`] are about.
//!
//! Reads only; decides nothing about trust. The size is capped before the first byte is parsed, and
//! what is ambiguous (trailing bytes, an extension twice, a name that is not text) is malformed.

mod remembered;

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use aws_lc_rs::digest;
use rustls_pki_types::{CertificateDer, UnixTime};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::oid_registry::{OID_X509_EXT_KEY_USAGE, OID_X509_EXT_SUBJECT_ALT_NAME};
use x509_parser::prelude::FromDer;
use x509_parser::revocation_list::CertificateRevocationList;
use x509_parser::time::ASN1Time;
use x509_parser::x509::X509Version;

/// The largest certificate that is looked at.
pub(crate) const MAX_CERTIFICATE: usize = 16 * 1024;
const MAX_SERIAL: usize = 20;

/// When a certificate counts. Both ends are included, as X.509 says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Validity {
    pub not_before: UnixTime,
    pub not_after: UnixTime,
}

impl Validity {
    pub fn includes(&self, now: UnixTime) -> bool {
        self.not_before <= now && now <= self.not_after
    }
}

/// The certificates that a revocation list names, as its issuer means them; whose list it is, is not looked at.
pub fn revoked_serials(list: &[u8]) -> Result<Vec<Serial>, Malformed> {
    let (rest, list) = CertificateRevocationList::from_der(list).map_err(|_| Malformed::NotX509)?;
    if !rest.is_empty() {
        return Err(Malformed::NotX509);
    }
    list.iter_revoked_certificates()
        .map(|revoked| Serial::from_bytes(revoked.raw_serial()).map_err(|_| Malformed::NotX509))
        .collect()
}

/// The number an authority gave a certificate. Shown in lower-case hex.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Serial(Box<[u8]>);

impl Serial {
    /// Big-endian, at most 20 bytes without leading zeros.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, SerialError> {
        let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
        let significant = bytes.get(zeros..).unwrap_or_default();
        match significant.len() {
            0 => Err(SerialError),
            1..=MAX_SERIAL => Ok(Self(significant.into())),
            _ => Err(SerialError),
        }
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for Serial {
    type Err = SerialError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::from_bytes(&from_hex(text).ok_or(SerialError)?)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("serial number is not a positive number of at most 20 bytes in hex")]
pub struct SerialError;

/// Why bytes are not a certificate we read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Malformed {
    #[error("it is larger than {MAX_CERTIFICATE} bytes")]
    TooLarge,
    #[error("it is not DER of an X.509 version 3 certificate")]
    NotX509,
    #[error("an extension is there twice or cannot be read")]
    Extension,
    #[error("a subject alternative name cannot be read")]
    Name,
    #[error("its serial number is not a positive number of at most 20 bytes")]
    Serial,
    #[error("its validity lies before 1970")]
    Validity,
}

/// What the key usage extension says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct KeyUsage {
    pub(crate) critical: bool,
    pub(crate) digital_signature: bool,
    pub(crate) signs_certificates: bool,
    pub(crate) signs_crls: bool,
}

/// The facts of one certificate.
#[derive(Clone, Debug)]
pub(crate) struct Certificate {
    pub(crate) serial: Serial,
    pub(crate) validity: Validity,
    pub(crate) uris: Vec<String>,
    pub(crate) is_ca: bool,
    pub(crate) key_usage: Option<KeyUsage>,
}

impl Certificate {
    pub(crate) fn read(der: &[u8]) -> Result<Self, Malformed> {
        if der.len() > MAX_CERTIFICATE {
            return Err(Malformed::TooLarge);
        }
        remembered::read(der, Self::parse)
    }

    fn parse(der: &[u8]) -> Result<Self, Malformed> {
        let (rest, certificate) = X509Certificate::from_der(der).map_err(|_| Malformed::NotX509)?;
        if !rest.is_empty() || certificate.version() != X509Version::V3 {
            return Err(Malformed::NotX509);
        }
        Ok(Self {
            serial: Serial::from_bytes(certificate.raw_serial()).map_err(|_| Malformed::Serial)?,
            validity: Validity {
                not_before: unix_time(certificate.validity().not_before)?,
                not_after: unix_time(certificate.validity().not_after)?,
            },
            uris: uris(&certificate)?,
            is_ca: certificate
                .basic_constraints()
                .map_err(|_| Malformed::Extension)?
                .is_some_and(|constraints| constraints.value.ca),
            key_usage: key_usage(&certificate)?,
        })
    }

    /// May its key sign other certificates? Without the extension, X.509 says any use is fine.
    pub(crate) fn may_sign_certificates(&self) -> bool {
        self.is_ca && self.key_usage.is_none_or(|usage| usage.signs_certificates)
    }
}

/// Certificates in DER, one after the other without anything between: how the SPIFFE Workload API carries a chain and a
/// bundle. At most `most` of them.
pub fn concatenated(
    mut bytes: &[u8],
    most: usize,
) -> Result<Vec<CertificateDer<'static>>, Malformed> {
    let mut certificates = Vec::new();
    while !bytes.is_empty() {
        let (rest, _) = X509Certificate::from_der(bytes).map_err(|_| Malformed::NotX509)?;
        let length = bytes.len().saturating_sub(rest.len());
        let (certificate, rest) = bytes.split_at_checked(length).ok_or(Malformed::NotX509)?;
        if certificate.len() > MAX_CERTIFICATE || certificates.len() >= most {
            return Err(Malformed::TooLarge);
        }
        certificates.push(CertificateDer::from(certificate.to_vec()));
        bytes = rest;
    }
    Ok(certificates)
}

pub(crate) fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
    hash
}

/// Bytes from an even number of hex digits.
pub(crate) fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| {
        char::from(byte)
            .to_digit(16)
            .and_then(|digit| u8::try_from(digit).ok())
    };
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    if !rest.is_empty() {
        return None;
    }
    pairs
        .iter()
        .map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?))
        .collect()
}

fn unix_time(time: ASN1Time) -> Result<UnixTime, Malformed> {
    let seconds = u64::try_from(time.timestamp()).map_err(|_| Malformed::Validity)?;
    Ok(UnixTime::since_unix_epoch(Duration::from_secs(seconds)))
}

fn uris(certificate: &X509Certificate<'_>) -> Result<Vec<String>, Malformed> {
    let extension = certificate
        .get_extension_unique(&OID_X509_EXT_SUBJECT_ALT_NAME)
        .map_err(|_| Malformed::Extension)?;
    let Some(extension) = extension else {
        return Ok(Vec::new());
    };
    let ParsedExtension::SubjectAlternativeName(names) = extension.parsed_extension() else {
        return Err(Malformed::Extension);
    };
    uris_of(&names.general_names).ok_or(Malformed::Name)
}

/// The URIs among names; none if any name cannot be read.
pub fn uris_of(names: &[GeneralName<'_>]) -> Option<Vec<String>> {
    if names
        .iter()
        .any(|name| matches!(name, GeneralName::Invalid(..)))
    {
        return None;
    }
    let uri = |name: &GeneralName<'_>| match name {
        GeneralName::URI(uri) => Some((*uri).to_owned()),
        GeneralName::OtherName(..)
        | GeneralName::RFC822Name(_)
        | GeneralName::DNSName(_)
        | GeneralName::X400Address(_)
        | GeneralName::DirectoryName(_)
        | GeneralName::EDIPartyName(_)
        | GeneralName::IPAddress(_)
        | GeneralName::RegisteredID(_)
        | GeneralName::Invalid(..) => None,
    };
    Some(names.iter().filter_map(uri).collect())
}

fn key_usage(certificate: &X509Certificate<'_>) -> Result<Option<KeyUsage>, Malformed> {
    let extension = certificate
        .get_extension_unique(&OID_X509_EXT_KEY_USAGE)
        .map_err(|_| Malformed::Extension)?;
    let Some(extension) = extension else {
        return Ok(None);
    };
    let ParsedExtension::KeyUsage(usage) = extension.parsed_extension() else {
        return Err(Malformed::Extension);
    };
    Ok(Some(KeyUsage {
        critical: extension.critical,
        digital_signature: usage.digital_signature(),
        signs_certificates: usage.key_cert_sign(),
        signs_crls: usage.crl_sign(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::root;

    #[test]
    fn a_serial_is_shown_in_hex_and_read_back() {
        let serial = Serial::from_bytes(&[0, 0, 0x0a, 0xff]).unwrap();
        assert_eq!(serial.to_string(), "0aff");
        assert_eq!("0aff".parse(), Ok(serial.clone()));
        assert_eq!(
            "00000AFF".parse(),
            Ok(serial),
            "leading zeros are not part of the number"
        );
    }

    #[test]
    fn a_serial_is_positive_and_short() {
        let longest = "f".repeat(40);
        assert_eq!(longest.parse::<Serial>().unwrap().to_string(), longest);
        for bad in ["", "00", "0", "abc", "0x0a", "+1", "zz", &"f".repeat(42)] {
            assert_eq!(bad.parse::<Serial>(), Err(SerialError), "{bad}");
        }
    }

    #[test]
    fn attack_bytes_after_the_end() {
        let mut der = root("root").der().to_vec();
        assert!(Certificate::read(&der).is_ok());
        der.push(0);
        assert_eq!(Certificate::read(&der).unwrap_err(), Malformed::NotX509);
    }

    #[test]
    fn attack_one_that_is_larger_than_any_is_not_parsed() {
        let mut der = root("root").der().to_vec();
        der.resize(MAX_CERTIFICATE + 1, 0);
        assert_eq!(Certificate::read(&der).unwrap_err(), Malformed::TooLarge);
        der.pop();
        assert_eq!(Certificate::read(&der).unwrap_err(), Malformed::NotX509);
    }

    #[test]
    fn certificates_one_after_the_other_are_taken_apart() {
        let (one, other) = (root("one"), root("other"));
        let both = [one.der().as_ref(), other.der().as_ref()].concat();
        assert_eq!(
            concatenated(&both, 2).unwrap(),
            [one.der().clone(), other.der().clone()]
        );
        assert_eq!(concatenated(&[], 2).unwrap(), []);
    }

    #[test]
    fn attack_more_certificates_than_asked_for_or_something_between_them() {
        let one = root("one").der().to_vec();
        let both = [one.clone(), one.clone()].concat();
        assert_eq!(concatenated(&both, 1).unwrap_err(), Malformed::TooLarge);
        let between = [one.clone(), vec![0], one.clone()].concat();
        assert_eq!(concatenated(&between, 9).unwrap_err(), Malformed::NotX509);
        let cut = &one[..one.len() - 1];
        assert_eq!(concatenated(cut, 9).unwrap_err(), Malformed::NotX509);
    }

    #[test]
    fn attack_certificate_of_an_older_version() {
        let mut der = root("root").der().to_vec();
        let version = der
            .windows(5)
            .position(|bytes| bytes == [0xa0, 3, 2, 1, 2])
            .unwrap()
            + 4;
        for older in [0, 1] {
            der[version] = older;
            assert_eq!(Certificate::read(&der).unwrap_err(), Malformed::NotX509);
        }
    }
}
