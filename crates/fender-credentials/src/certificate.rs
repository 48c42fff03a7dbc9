//! A credential as the certificate of a port: chain and key, from what the value holds, and where whoever serves the port finds them.
//!
//! The value is PEM with both, or a JSON object with `tls.crt` and `tls.key`, as a Secret of Kubernetes has them, or with
//! `certificate` and `private_key`, as Vault issues them. What is no certificate now, with its key, for all the names that it is to
//! be shown for, is shown to nobody. No error shows anything of a value, and none of this reaches a port by itself: it knows no TLS.

use std::collections::BTreeMap;
use std::sync::Arc;

use fender_config::ObjectName;
use fender_config::snapshot::PortCertificate;
use fender_identity::tls::{Issued, NamedCertificate, NamedCertificateError, PemPair};
use fender_identity::{PemError, Secret};
use fender_runtime::clock::UnixTime;
use tokio::sync::watch;

use crate::render::{Fields, RenderError};

/// The most that a chain and its key have together, as in files.
const LARGEST: usize = 256 * 1024;

/// Names of the fields of a pair, the chain's first.
const PAIRS: [[&str; 2]; 2] = [["tls.crt", "tls.key"], ["certificate", "private_key"]];
/// What lies beside [`PAIRS`]' second between the leaf and its root: a list or a text. Of the two only the first is taken.
const BETWEEN: [&str; 2] = ["ca_chain", "issuing_ca"];

/// Why a value is not the certificate that a port is to show. Names fields, never what they hold.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum CertificateError {
    #[error("the secret has {length} bytes, and a chain with its key has at most {LARGEST}")]
    TooLarge { length: usize },
    #[error(transparent)]
    Fields(#[from] RenderError),
    #[error(
        "the secret is a JSON object with neither `tls.crt` and `tls.key` nor `certificate` and `private_key`"
    )]
    NoPair,
    #[error(
        "the secret is a JSON object with two certificates, one in `tls.crt` and one in `certificate`"
    )]
    TwoPairs,
    #[error(transparent)]
    Pem(#[from] PemError),
    #[error(transparent)]
    Unusable(#[from] NamedCertificateError),
    #[error("it is not valid yet: it begins at {begins} s after 1970")]
    NotYetValid { begins: u64 },
    #[error("it has expired: it ended {ended} s after 1970")]
    Expired { ended: u64 },
}

/// Chain and key of a value that is a certificate now for all that these ask of it.
pub(crate) fn pair(
    value: &Secret,
    wanted: &[PortCertificate],
    now: UnixTime,
) -> Result<Arc<PemPair>, CertificateError> {
    let length = value.len();
    if length > LARGEST {
        return Err(CertificateError::TooLarge { length });
    }
    let pair = match value.expose().trim_ascii_start().first() {
        Some(b'{') => of_fields(&Fields::read(value)?)?,
        Some(_) | None => PemPair::from_texts([value.expose()], value.expose())?,
    };
    for one in wanted {
        let validity = NamedCertificate::from_pem(&pair, &one.names)?.validity();
        if validity.not_after < now {
            let ended = validity.not_after.as_secs();
            return Err(CertificateError::Expired { ended });
        }
        if !validity.includes(now) {
            let begins = validity.not_before.as_secs();
            return Err(CertificateError::NotYetValid { begins });
        }
    }
    Ok(Arc::new(pair))
}

fn of_fields(fields: &Fields) -> Result<PemPair, CertificateError> {
    let [kubernetes, vault] = PAIRS;
    let is_there = |pair: [&str; 2]| pair.iter().any(|name| fields.has(name));
    let ([chain, key], between) = match (is_there(kubernetes), is_there(vault)) {
        (true, true) => return Err(CertificateError::TwoPairs),
        (false, false) => return Err(CertificateError::NoPair),
        (true, false) => (kubernetes, None),
        (false, true) => (vault, BETWEEN.into_iter().find(|name| fields.has(name))),
    };
    let mut chain = fields.texts(chain)?;
    let key = Secret::new(fields.texts(key)?.concat());
    if let Some(name) = between {
        chain.extend(fields.texts(name)?);
    }
    Ok(PemPair::from_texts(chain, key.expose())?)
}

/// All of them, by what ports ask for.
pub type Standings = BTreeMap<PortCertificate, Issued>;

/// Where whoever serves the ports finds those that come as credentials. Those who hold one of these share one place.
#[derive(Clone, Debug)]
pub struct PortCertificates(watch::Sender<Arc<Standings>>);

impl Default for PortCertificates {
    fn default() -> Self {
        Self(watch::channel(Arc::default()).0)
    }
}

impl PortCertificates {
    /// As they are, and as they become.
    pub fn standings(&self) -> watch::Receiver<Arc<Standings>> {
        self.0.subscribe()
    }

    /// From here on the credential is shown as this, and as nothing else.
    pub(crate) fn put(&self, name: &ObjectName, wanted: &[PortCertificate], pair: &Arc<PemPair>) {
        let issued = Issued {
            pair: Some(Arc::clone(pair)),
            ..Issued::default()
        };
        self.change(name, wanted, |_| issued.clone());
    }

    /// What there is of the credential now is no certificate: the one before stays.
    pub(crate) fn keep(&self, name: &ObjectName, wanted: &[PortCertificate], problem: &str) {
        self.change(name, wanted, |before| Issued {
            problem: Some(problem.to_owned()),
            ..before
        });
    }

    /// Nothing of the credential is shown any more.
    pub(crate) fn withdraw(&self, name: &ObjectName, wanted: &[PortCertificate], why: &str) {
        let issued = Issued {
            withdrawn: true,
            problem: Some(format!("the credential `{name}` was withdrawn: {why}")),
            ..Issued::default()
        };
        self.change(name, wanted, |_| issued.clone());
    }

    /// Whatever it is not asked for any more is forgotten; the rest stays as it is.
    pub(crate) fn retain(&self, name: &ObjectName, wanted: &[PortCertificate]) {
        self.0.send_if_modified(|all| {
            let unwanted =
                |one: &PortCertificate| one.credential() == Some(name) && !wanted.contains(one);
            let news = all.keys().any(unwanted);
            if news {
                Arc::make_mut(all).retain(|one, _| !unwanted(one));
            }
            news
        });
    }

    fn change(
        &self,
        name: &ObjectName,
        wanted: &[PortCertificate],
        become_this: impl Fn(Issued) -> Issued,
    ) {
        self.retain(name, wanted);
        if wanted.is_empty() {
            return;
        }
        self.0.send_modify(|all| {
            let all = Arc::make_mut(all);
            for one in wanted {
                let issued = become_this(all.get(one).cloned().unwrap_or_default());
                all.insert(one.clone(), issued);
            }
        });
    }
}

#[cfg(test)]
pub(crate) mod tests;
