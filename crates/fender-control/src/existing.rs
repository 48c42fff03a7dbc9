//! Authorities of others, whose certificates may be shown to become somebody here.
//!
//! What such a certificate is good for elsewhere is not looked at: it is good here for what a document's selector names,
//! and a selector that names nothing of the certificate cannot be written. The proof is bound to the request and to this
//! server, so whoever listens in at one place learns nothing to show at another.
//!
//! Which root vouched goes on record. What it let in is let in while its authority trusts that root, and no longer: whoever
//! takes a root away because its key was stolen ends what the thief has made with it, and every renewal of that.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use fender_config::{IssuingAuthority, Sha256, X509Selector};
use fender_identity::existing::{self, Proven, Roots, Shown};
use fender_identity::verify::{Proof, Refusal};
use fender_runtime::clock::{SharedClock, UnixTime};
use fender_runtime::deadline::Deadline;
use fender_runtime::drain::Drain;

use crate::credentials::Sources;
use crate::documents::InForce;
use crate::followed::Followed;

/// A file system that takes longer than this is away.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(5);

/// The authorities of the mesh's document in force.
pub(crate) struct IssuingAuthorities {
    sources: Arc<Sources>,
    clock: SharedClock,
    drain: Drain,
    live: Mutex<BTreeMap<String, Live>>,
}

/// An authority, and the roots it has now.
struct Live {
    file: PathBuf,
    roots: Arc<Followed<Roots>>,
}

/// What an authority vouches for.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Vouched {
    pub(crate) authority: String,
    pub(crate) shown: Shown,
    /// SHA-256 of the root by which it did. Of what was recorded before roots were: none, until its first renewal binds it to
    /// all that the authority has then. Which of them it was cannot be told any more, so none of them may go.
    pub(crate) roots: Vec<[u8; 32]>,
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
    pub(crate) fn new(sources: Arc<Sources>, clock: SharedClock, drain: Drain) -> Self {
        Self {
            sources,
            clock,
            drain,
            live: Mutex::default(),
        }
    }

    /// From now on these count.
    pub(crate) fn put_in_force(&self, newest: impl FnOnce() -> Arc<InForce>) {
        let mut live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        let in_force = newest();
        let authorities = &in_force.mesh.authorities;
        live.retain(|name, known| {
            let authority = authorities.get(name);
            authority.is_some_and(|authority| authority.roots == known.file)
        });
        for (name, authority) in authorities {
            if !live.contains_key(name) {
                live.insert(name.clone(), self.begin(authority));
            }
        }
    }

    fn begin(&self, authority: &IssuingAuthority) -> Live {
        let roots = Followed::begin(
            format!("roots of the authority `{}`", authority.name),
            self.sources.watch_file(&authority.roots),
            |text| Roots::from_pem(text).map_err(|error| error.to_string()),
            &self.clock,
            &self.drain,
        );
        Live {
            file: authority.roots.clone(),
            roots: Arc::new(roots),
        }
    }

    /// Everything that authorities vouch for by this proof, whose message is one of `messages`.
    pub(crate) async fn verify(
        &self,
        proof: Proof<'_>,
        messages: &[Vec<u8>],
        now: UnixTime,
    ) -> Result<Vec<Vouched>, NotVouched> {
        let all: Vec<(String, Arc<Followed<Roots>>)> = {
            let live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
            live.iter()
                .map(|(name, known)| (name.clone(), Arc::clone(&known.roots)))
                .collect()
        };
        let deadline = Deadline::after(PATIENCE);
        let mut vouched = Vec::new();
        let mut why = NotVouched::Refused("no authority is described in the Mesh".to_owned());
        for (authority, roots) in all {
            let roots = match roots.value(now, deadline).await {
                Ok(roots) => roots,
                Err(error) => {
                    why = NotVouched::Away(format!("authority `{authority}`: {error}"));
                    continue;
                }
            };
            match any(proof, messages, &roots, now) {
                Ok(Proven { shown, root }) => vouched.push(Vouched {
                    authority,
                    shown,
                    roots: vec![root],
                }),
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

    /// By which roots an authority that vouched once vouches still.
    pub(crate) async fn still(
        &self,
        vouched: &Vouched,
        now: UnixTime,
    ) -> Result<Vec<[u8; 32]>, NotVouched> {
        let authority = &vouched.authority;
        let trusted = {
            let live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
            live.get(authority).map(|known| Arc::clone(&known.roots))
        };
        let trusted = trusted.ok_or_else(|| {
            NotVouched::Refused(format!("the Mesh describes no authority `{authority}`"))
        })?;
        let trusted = trusted.value(now, Deadline::after(PATIENCE)).await;
        let trusted = trusted
            .map_err(|error| NotVouched::Away(format!("authority `{authority}`: {error}")))?;
        let trusted = trusted.sha256();
        match vouched.roots.as_slice() {
            [] => Ok(trusted.to_vec()),
            recorded => match recorded.iter().find(|root| !trusted.contains(root)) {
                None => Ok(recorded.to_vec()),
                Some(gone) => Err(NotVouched::Refused(format!(
                    "the authority `{authority}` does not trust the root `{}` any more",
                    Sha256(*gone)
                ))),
            },
        }
    }
}

fn any(
    proof: Proof<'_>,
    messages: &[Vec<u8>],
    roots: &Roots,
    now: UnixTime,
) -> Result<Proven, Refusal> {
    let mut why = Refusal::KeyNotProven;
    for message in messages {
        match existing::verify(Proof { message, ..proof }, roots, now) {
            Err(Refusal::KeyNotProven) => {}
            Err(refusal) => why = refusal,
            proven @ Ok(_) => return proven,
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
