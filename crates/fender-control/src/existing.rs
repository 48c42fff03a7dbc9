//! Authorities of others, whose certificates may be shown to become somebody here.
//!
//! What such a certificate is good for elsewhere is not looked at: it is good here for what a document's selector names,
//! and a selector that names nothing of the certificate cannot be written. The proof is bound to the request and to this
//! server, so whoever listens in at one place learns nothing to show at another.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use fender_config::{IssuingAuthority, X509Selector};
use fender_identity::existing::{self, Roots, Shown};
use fender_identity::verify::{Proof, Refusal};
use fender_runtime::clock::UnixTime;
use fender_runtime::deadline::Deadline;

use crate::credentials::{Sources, Watched, read};

/// A file system that takes longer than this is away.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(5);

/// The authorities of the mesh's document in force.
pub(crate) struct IssuingAuthorities {
    sources: Arc<Sources>,
    live: Mutex<BTreeMap<String, (PathBuf, Watched)>>,
}

/// What an authority vouches for.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Vouched {
    pub(crate) authority: String,
    pub(crate) shown: Shown,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotVouched {
    #[error("{0}")]
    Refused(String),
    /// Nobody could say.
    #[error("{0}")]
    Away(String),
}

impl IssuingAuthorities {
    pub(crate) fn new(sources: Arc<Sources>) -> Self {
        Self {
            sources,
            live: Mutex::default(),
        }
    }

    /// From now on these count.
    pub(crate) fn put_in_force(&self, authorities: &BTreeMap<String, IssuingAuthority>) {
        let mut live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        live.retain(|name, (roots, _)| {
            authorities
                .get(name)
                .is_some_and(|authority| authority.roots == *roots)
        });
        for (name, authority) in authorities {
            live.entry(name.clone()).or_insert_with(|| {
                let roots = authority.roots.clone();
                let watched = self.sources.watch(&roots);
                (roots, watched)
            });
        }
    }

    /// Everything that authorities vouch for by this proof, whose message is one of `messages`.
    pub(crate) async fn verify(
        &self,
        proof: Proof<'_>,
        messages: &[Vec<u8>],
        now: UnixTime,
    ) -> Result<Vec<Vouched>, NotVouched> {
        let all: Vec<(String, Watched)> = {
            let live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
            live.iter()
                .map(|(name, (_, watched))| (name.clone(), Arc::clone(watched)))
                .collect()
        };
        let deadline = Deadline::after(PATIENCE);
        let mut vouched = Vec::new();
        let mut why = NotVouched::Refused("no authority is described in the Mesh".to_owned());
        for (authority, watched) in all {
            let roots = match read(&watched, deadline).await {
                Ok(text) => Roots::from_pem(text.expose()).map_err(|error| error.to_string()),
                Err(error) => Err(error),
            };
            let roots = match roots {
                Ok(roots) => roots,
                Err(error) => {
                    why = NotVouched::Away(format!("authority `{authority}`: {error}"));
                    continue;
                }
            };
            match any(proof, messages, &roots, now) {
                Ok(shown) => vouched.push(Vouched { authority, shown }),
                Err(refusal) if matches!(why, NotVouched::Refused(_)) => {
                    why = NotVouched::Refused(format!("authority `{authority}`: {refusal}"));
                }
                Err(_) => {}
            }
        }
        if vouched.is_empty() {
            Err(why)
        } else {
            Ok(vouched)
        }
    }
}

fn any(
    proof: Proof<'_>,
    messages: &[Vec<u8>],
    roots: &Roots,
    now: UnixTime,
) -> Result<Shown, Refusal> {
    let mut why = Refusal::KeyNotProven;
    for message in messages {
        match existing::verify(Proof { message, ..proof }, roots, now) {
            Err(Refusal::KeyNotProven) => {}
            Err(refusal) => why = refusal,
            shown @ Ok(_) => return shown,
        }
    }
    Err(why)
}

/// Nothing if the selector admits it, else what differs.
pub(crate) fn differs(selector: &X509Selector, vouched: &Vouched) -> Option<String> {
    let X509Selector {
        authority,
        subject,
        dns_name,
        uri,
        sha256,
    } = selector;
    let shown = &vouched.shown;
    if *authority != vouched.authority {
        return Some(format!("the authority is `{}`", vouched.authority));
    }
    if subject.is_some() && *subject != shown.subject {
        return Some(match &shown.subject {
            Some(found) => format!("the subject is `{found}`"),
            None => "the subject is empty or no plain text".to_owned(),
        });
    }
    let lacks = |wanted: &Option<String>, found: &[String]| {
        wanted
            .as_ref()
            .is_some_and(|wanted| !found.contains(wanted))
    };
    if lacks(dns_name, &shown.dns_names) {
        return Some(format!("its DNS names are {:?}", shown.dns_names));
    }
    if lacks(uri, &shown.uris) {
        return Some(format!("its URIs are {:?}", shown.uris));
    }
    if sha256.is_some_and(|wanted| wanted.0 != shown.sha256) {
        return Some("it is another certificate than the one named by `sha256`".to_owned());
    }
    None
}
