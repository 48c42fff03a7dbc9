//! The control plane's own certificate: `spiffe://TRUST/fender/control`, issued by its own authority through the same
//! pipeline, renewed at half life and whenever an authority takes over, in memory only. The root goes with the chain, for callers
//! who only know its hash.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use fender_api::tls::ALPN;
use fender_identity::csr::{self, CsrError, KeyError, NewKey};
use fender_identity::tls::{self, ClientCertificate, SessionResumption, TlsError, TlsProfile};
use fender_identity::{SpiffeId, Svid, SvidError, Validity};
use fender_runtime::backoff::Backoff;
use fender_runtime::clock::{SharedClock, TlsClock};
use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, UnixTime};
use tokio::sync::watch;

use crate::ca::issue::{Attested, Grant, IssueError};
use crate::ca::{Authority, lifetimes};
use crate::evidence::Evidence;
use crate::store::{Store, StoreError};
use crate::time::{later, until};

/// How often the wall clock is looked at.
const LOOK: Duration = Duration::from_secs(30);
/// However little is left, renewals never follow each other faster: each is a signature, and a record.
const SHORTEST: Duration = Duration::from_secs(1);

pub(crate) struct Own {
    authority: Arc<Authority>,
    store: Store,
    clock: SharedClock,
    dns_names: Vec<String>,
    config: watch::Sender<Arc<ServerConfig>>,
    svid: watch::Sender<Arc<Svid>>,
    /// When it begins and when its successor is due.
    term: Mutex<(UnixTime, UnixTime)>,
    /// Certificates that open connections may have begun with, and their ends.
    leaves: Mutex<VecDeque<(CertificateDer<'static>, UnixTime)>>,
}

struct Fresh {
    svid: Svid,
    config: Arc<ServerConfig>,
}

impl Own {
    pub(crate) async fn new(
        authority: Arc<Authority>,
        store: Store,
        clock: SharedClock,
        dns_names: Vec<String>,
    ) -> Result<Self, OwnError> {
        let fresh = issue(&authority, &store, &clock, &dns_names).await?;
        let first = term(&fresh.svid, clock.now());
        let own = Self {
            authority,
            store,
            clock,
            dns_names,
            config: watch::Sender::new(Arc::clone(&fresh.config)),
            svid: watch::Sender::new(Arc::new(fresh.svid.clone())),
            term: Mutex::new(first),
            leaves: Mutex::default(),
        };
        own.adopt(fresh);
        Ok(own)
    }

    /// What the next handshake uses.
    pub(crate) fn config(&self) -> watch::Receiver<Arc<ServerConfig>> {
        self.config.subscribe()
    }

    /// What is shown to other replicas.
    pub(crate) fn svid(&self) -> Arc<Svid> {
        Arc::clone(&self.svid.borrow())
    }

    /// The certificates under which a caller may have met us.
    pub(crate) fn leaves(&self) -> Vec<CertificateDer<'static>> {
        let leaves = self.leaves.lock().unwrap_or_else(PoisonError::into_inner);
        leaves.iter().map(|(leaf, _)| leaf.clone()).collect()
    }

    /// Half of its life is over, or it has not begun: then the clock was ahead when it was made, and nobody believes it.
    async fn due(&self) {
        loop {
            let (begins, renew_at) = *self.term.lock().unwrap_or_else(PoisonError::into_inner);
            let now = self.clock.now();
            if now < begins || now >= renew_at {
                return;
            }
            tokio::time::sleep(until(now, renew_at).min(LOOK)).await;
        }
    }

    /// Renews at half life, and when the authorities change, for ever. The one in use stays until there is a better one.
    pub(crate) async fn keep_fresh(&self) {
        let mut authorities = self.authority.changes();
        loop {
            tokio::select! {
                () = self.due() => {}
                // Who signs, or whom to believe: both are in the configuration of the next handshake.
                _ = authorities.changed() => {}
            }
            authorities.mark_unchanged();
            let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60));
            loop {
                match issue(&self.authority, &self.store, &self.clock, &self.dns_names).await {
                    Ok(fresh) => break self.adopt(fresh),
                    Err(error) => {
                        tracing::error!(%error, "renew the control plane's own certificate")
                    }
                }
                tokio::time::sleep(backoff.next()).await;
            }
        }
    }

    fn adopt(&self, fresh: Fresh) {
        let now = self.clock.now();
        let Fresh { svid, config } = fresh;
        if let Some(leaf) = svid.chain().first() {
            let mut leaves = self.leaves.lock().unwrap_or_else(PoisonError::into_inner);
            leaves.retain(|(_, not_after)| *not_after > now);
            leaves.push_back((leaf.clone(), svid.validity().not_after));
        }
        *self.term.lock().unwrap_or_else(PoisonError::into_inner) = term(&svid, now);
        tracing::info!(serial = %svid.serial(), "the control plane has a certificate of its own");
        self.svid.send_replace(Arc::new(svid));
        self.config.send_replace(config);
    }
}

/// When it begins and when its successor is due: at half of what is left when it is made. It begins in the past, so that of
/// one that its authority does not let live for long any more, half of its life may be over at once.
fn term(svid: &Svid, now: UnixTime) -> (UnixTime, UnixTime) {
    let Validity {
        not_before,
        not_after,
    } = svid.validity();
    let half = until(now, not_after) / 2;
    (not_before, later(now, half.max(SHORTEST)))
}

async fn issue(
    authority: &Authority,
    store: &Store,
    clock: &SharedClock,
    dns_names: &[String],
) -> Result<Fresh, OwnError> {
    let id = SpiffeId::control(authority.trust_domain());
    let grant = Grant {
        lifetime: lifetimes::CONTROL,
        dns_names: dns_names.to_vec(),
    };
    let (key, attested) = self_attested(id, grant, Evidence::Control)?;
    let issued = authority.issue(attested, clock.now())?;
    let mut chain = issued.record(store).await?.into_chain();
    let state = authority.state();
    chain.push(state.serving.root.clone());

    let svid = key.into_svid(chain)?;
    // Who is revoked is asked with each call here, and not by the trust of a configuration.
    let profile = TlsProfile {
        resumption: SessionResumption::Never,
        ..TlsProfile::default()
    };
    let config = tls::server(
        &profile,
        &svid,
        Arc::clone(&state.bundles),
        ClientCertificate::Accept,
        ALPN,
        Arc::new(TlsClock(Arc::clone(clock))),
    )?;
    Ok(Fresh { svid, config })
}

/// A key made here, and the request for it, for identities that are this process's to give.
pub(crate) fn self_attested(
    id: SpiffeId,
    grant: Grant,
    evidence: Evidence,
) -> Result<(NewKey, Attested), OwnError> {
    let key = NewKey::generate()?;
    let request = csr::parse(&key.csr_der(&id)?)?;
    Ok((key, Attested::new(id, request, grant, evidence)?))
}

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OwnError {
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error(transparent)]
    Csr(#[from] CsrError),
    #[error(transparent)]
    Issue(#[from] IssueError),
    #[error(transparent)]
    Svid(#[from] SvidError),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, SanType};

    use super::*;

    /// One that ends in so many seconds, and begins as ours do.
    fn ends_in(seconds: u64, now: UnixTime) -> Svid {
        let epoch = rcgen::date_time_ymd(1970, 1, 1);
        let mut params = CertificateParams::default();
        let id = "spiffe://acme.test/fender/control".try_into().unwrap();
        params.subject_alt_names = vec![SanType::URI(id)];
        params.key_usages = vec![rcgen::KeyUsagePurpose::DigitalSignature];
        let validity = lifetimes::validity(
            now,
            lifetimes::CONTROL,
            later(now, Duration::from_secs(seconds)),
        );
        params.not_before = epoch + Duration::from_secs(validity.not_before.as_secs());
        params.not_after = epoch + Duration::from_secs(validity.not_after.as_secs());
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Svid::from_pem(pem.as_bytes(), key.serialize_pem().as_bytes()).unwrap()
    }

    #[test]
    fn under_an_authority_that_is_about_to_end_renewals_do_not_follow_each_other_at_once() {
        let now = UnixTime::since_unix_epoch(Duration::from_secs(1_800_000_000));
        let due_in = |seconds| {
            let (_, due) = term(&ends_in(seconds, now), now);
            until(now, due).as_secs()
        };
        assert_eq!(due_in(24 * 3600), 12 * 3600);
        assert_eq!(due_in(600), 300, "half of what is left");
        assert_eq!((due_in(60), due_in(1), due_in(0)), (30, 1, 1));
    }
}
