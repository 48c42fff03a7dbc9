//! The certificate authority: a root, an intermediate under it that signs everything else, and the pipeline every
//! certificate runs through ([`issue`]).
//!
//! Roots and intermediates succeed each other by themselves ([`rotation`] says when). The root's key is opened only to
//! make an intermediate ([`make`]). Each replica signs with intermediates of its own and opens no other. Keys leave this
//! module sealed or not at all.

pub(crate) mod bundle;
pub(crate) mod crl;
pub(crate) mod horizon;
pub(crate) mod issue;
pub(crate) mod jwt;
pub(crate) mod lifetimes;
pub(crate) mod make;
pub(crate) mod offline;
pub(crate) mod rotation;
pub(crate) mod seal;
pub(crate) mod upstream;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, OnceLock};

use aws_lc_rs::digest::{SHA256, digest};
use fender_config::Lifetimes;
use fender_identity::jwt::{KeysError, SigningError};
use fender_identity::tls::CaPin;
use fender_identity::{Bundle, BundleError, Bundles, DenyList, Serial, TrustDomain, Validity};
use rcgen::Issuer;
use rustls::pki_types::{CertificateDer, UnixTime};
use tokio::sync::watch;

use crate::store::authorities::{self, AuthorityRow, Role, Succeed, Succeeded};
use crate::store::replicas::ReplicaName;
use crate::store::{Store, StoreError, audit};
use crate::time::until;
use horizon::Horizon;
use make::{AuthorityKey, Workshop};
use rotation::NoRoot;
use seal::{SealError, SealingKey};
use upstream::{Facts, Upstream, UpstreamError};

/// Steps of one look: a root, an intermediate for whom it signs, one for the control plane, and each again if another
/// process was faster.
const STEPS: usize = 8;

/// What signs, and what the signed chain to.
pub(crate) struct Authority {
    workshop: Workshop,
    state: watch::Sender<Arc<State>>,
    /// Nothing is dated back behind what it denies.
    denied: watch::Sender<Arc<DenyList>>,
    mint: jwt::Mint,
    upstream: Option<Upstream>,
}

/// Replaced as a whole when an authority is made, or another one's turn has come.
pub(crate) struct State {
    /// This replica's; signs for workloads and people.
    pub(crate) issuing: Arc<Issuing>,
    /// Signs for the control plane itself, which callers must recognise who were away for long.
    pub(crate) serving: Arc<Issuing>,
    pub(crate) bundle: Bundle,
    /// The same bundle as verification wants it.
    pub(crate) bundles: Arc<Bundles>,
    /// With roots that have ended besides, for certificates that are judged at their last moment.
    pub(crate) lapsed: Arc<Bundles>,
    pub(crate) known: Vec<Described>,
    pub(crate) horizon: Horizon,
}

/// An intermediate in use.
pub(crate) struct Issuing {
    pub(crate) serial: Serial,
    pub(crate) certificate: CertificateDer<'static>,
    /// What lies between it and its root.
    pub(crate) path: Vec<CertificateDer<'static>>,
    pub(crate) root: CertificateDer<'static>,
    pub(crate) validity: Validity,
    issuer: Issuer<'static, AuthorityKey>,
    /// Set once a leaf under it was followed to the root as a client's and as a server's.
    followed: OnceLock<()>,
    /// From then on it is the root that a leaf is followed to,
    as_root: Bundles,
    /// for as long as whatever is above it is in its time;
    above: Bundle,
    /// unless the names below are limited there: whom that concerns, only the whole way tells.
    limits_names: bool,
}

/// An authority as people are told of it.
#[derive(Clone, Debug)]
pub(crate) struct Described {
    pub(crate) role: Role,
    pub(crate) serial: Serial,
    /// The replica that signs with it.
    pub(crate) holder: Option<ReplicaName>,
    pub(crate) not_after: UnixTime,
    pub(crate) signs_from: UnixTime,
    pub(crate) standing: Standing,
}

/// What an authority is for just now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// In every bundle; it does not sign yet.
    Published,
    /// Certificates are signed under it.
    Signing,
    /// What it vouched for may still be in use.
    Retiring,
}

impl Standing {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Standing::Published => "published",
            Standing::Signing => "signing",
            Standing::Retiring => "retiring",
        }
    }
}

/// What an administrator wants to be made before it is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    Root,
    Intermediate,
}

impl Authority {
    /// Opens what the database holds, and makes what is due: all of it in an empty one.
    pub(crate) async fn open(
        store: &Store,
        sealing: SealingKey,
        trust_domain: TrustDomain,
        replica: ReplicaName,
        lifetimes: &Lifetimes,
        now: UnixTime,
    ) -> Result<Self, CaError> {
        let workshop = Workshop {
            trust_domain,
            replica,
            sealing,
        };
        Self::open_under(None, workshop, store, lifetimes, now).await
    }

    /// The same, with intermediates from another authority, if there is one.
    pub(crate) async fn open_under(
        upstream: Option<Upstream>,
        workshop: Workshop,
        store: &Store,
        lifetimes: &Lifetimes,
        now: UnixTime,
    ) -> Result<Self, CaError> {
        let mut wanting = None;
        if let Some(upstream) = &upstream {
            let brought = upstream.renew(store, &workshop, lifetimes, now).await;
            // With an intermediate from before it can wait.
            match (brought, authorities::all(store).await?.is_empty()) {
                (Err(error), true) => return Err(error),
                (Err(error @ CaError::Upstream(UpstreamError::NotSigned { .. })), false) => {
                    return Err(error);
                }
                (Err(error), false) => {
                    tracing::error!(%error, "no intermediate from upstream; going on with what is there");
                    wanting = Some(error);
                }
                (Ok(()), _) => {}
            }
        }
        let rows = workshop.make_what_is_due(store, lifetimes, now).await?;
        workshop.sign_lists(store, &rows, now).await?;
        let state = State::of(&rows, &workshop, now).map_err(|error| match (error, wanting) {
            (CaError::NoIntermediate, Some(why)) => why,
            (error, _) => error,
        })?;
        let state = watch::Sender::new(Arc::new(state));
        Ok(Self {
            upstream,
            mint: jwt::Mint::open(store, &workshop, lifetimes, now).await?,
            workshop,
            state,
            denied: watch::Sender::default(),
        })
    }

    /// Makes what is due, and takes up what counts now: the clock may have been put right since, or another process made
    /// something. What was in use stays if this fails.
    pub(crate) async fn refresh(
        &self,
        store: &Store,
        lifetimes: &Lifetimes,
        now: UnixTime,
    ) -> Result<(), CaError> {
        if let Some(upstream) = &self.upstream {
            // What was revoked does not wait for whoever does not answer.
            let known = authorities::all(store).await?;
            self.workshop.sign_lists(store, &known, now).await?;
            let brought = upstream.renew(store, &self.workshop, lifetimes, now).await;
            if let Err(error) = brought {
                tracing::error!(%error, "no intermediate from upstream; going on with what is there");
            }
        }
        let rows = self
            .workshop
            .make_what_is_due(store, lifetimes, now)
            .await?;
        // Before anything is signed under an authority whose list nobody has.
        self.workshop.sign_lists(store, &rows, now).await?;
        self.adopt(&rows, now)?;
        self.mint
            .refresh(store, &self.workshop, lifetimes, now)
            .await
    }

    /// Makes a successor now, for an administrator. A root is published now and signs later; the answer says when.
    pub(crate) async fn rotate(
        &self,
        store: &Store,
        lifetimes: &Lifetimes,
        wanted: Wanted,
        now: UnixTime,
        entry: impl FnOnce(&Serial) -> audit::Entry,
    ) -> Result<Described, CaError> {
        let rows = authorities::all(store).await?;
        let current = rotation::signing_root(&rows, now).ok_or_else(|| no_root(&rows, now))?;
        let row = match wanted {
            Wanted::Root => {
                if let Some(announced) = rotation::announced_root(&rows, now) {
                    return Err(CaError::Announced {
                        serial: announced.serial.clone(),
                        in_seconds: until(now, announced.signs_from).as_secs(),
                    });
                }
                if current.sealed_key.is_none() {
                    return Err(CaError::KeyElsewhere);
                }
                let signs_from = rotation::signs_from(current, lifetimes, now);
                self.workshop.root(lifetimes.root, signs_from, now)?
            }
            Wanted::Intermediate => {
                self.workshop
                    .intermediate(current, lifetimes.intermediate, now)?
            }
        };
        let entry = Some(entry(&row.serial));
        let serial = row.serial.clone();
        match store.write(succeed(&rows, row, entry)).await? {
            Succeeded::Added => {}
            Succeeded::Overtaken => return Err(CaError::Overtaken),
        }
        self.refresh(store, lifetimes, now).await?;
        let state = self.state();
        let made = state.known.iter().find(|known| known.serial == serial);
        made.cloned().ok_or(CaError::NoIntermediate)
    }

    fn adopt(&self, rows: &[AuthorityRow], now: UnixTime) -> Result<(), CaError> {
        let fresh = State::of(rows, &self.workshop, now)?;
        self.state.send_if_modified(|state| {
            let changed = !fresh.is_same(state);
            *state = Arc::new(fresh);
            changed
        });
        Ok(())
    }

    pub(crate) fn trust_domain(&self) -> &TrustDomain {
        &self.workshop.trust_domain
    }

    /// Whose intermediates sign here.
    pub(crate) fn replica(&self) -> &ReplicaName {
        &self.workshop.replica
    }

    pub(crate) fn state(&self) -> Arc<State> {
        Arc::clone(&self.state.borrow())
    }

    /// Every change of what signs or of what is believed.
    pub(crate) fn changes(&self) -> watch::Receiver<Arc<State>> {
        self.state.subscribe()
    }

    /// From now on, what is issued is none of what this list denies.
    pub(crate) fn heed(&self, denied: Arc<DenyList>) {
        self.denied.send_replace(denied);
    }

    /// What a join token pins, and until when there is a root to it.
    pub(crate) fn dated_pins(&self) -> Vec<(CaPin, UnixTime)> {
        let state = self.state();
        let roots = state.bundle.roots().iter();
        roots
            .filter_map(|root| Some((CaPin::of(root), Facts::read(root).ok()?.validity.not_after)))
            .collect()
    }

    /// What a join token pins.
    pub(crate) fn pins(&self) -> Vec<CaPin> {
        self.state().bundle.roots().iter().map(CaPin::of).collect()
    }
}

/// Whether the key of the root that was made last is not here.
pub(crate) async fn is_below_another(store: &Store) -> Result<bool, CaError> {
    let rows = authorities::all(store).await?;
    Ok(rotation::latest_root(&rows).is_some_and(is_elsewhere))
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority")
            .field("trust_domain", &self.workshop.trust_domain)
            .finish_non_exhaustive()
    }
}

impl Workshop {
    /// Everything that is due, one step after the other; what is there at the end.
    async fn make_what_is_due(
        &self,
        store: &Store,
        lifetimes: &Lifetimes,
        now: UnixTime,
    ) -> Result<Vec<AuthorityRow>, CaError> {
        for _ in 0..STEPS {
            let rows = authorities::all(store).await?;
            let Some(row) = self.next(&rows, lifetimes, now)? else {
                return Ok(rows);
            };
            let (role, serial, signs_from) =
                (row.role.as_str(), row.serial.clone(), row.signs_from);
            if store.write(succeed(&rows, row, None)).await? == Succeeded::Added {
                let signs_in = until(now, signs_from).as_secs();
                tracing::info!(trust_domain = %self.trust_domain, %serial, signs_in, "{role} certificate authority made");
            }
        }
        Ok(authorities::all(store).await?)
    }

    /// The next authority to make, if one is due and its key is at hand.
    fn next(
        &self,
        rows: &[AuthorityRow],
        lifetimes: &Lifetimes,
        now: UnixTime,
    ) -> Result<Option<AuthorityRow>, CaError> {
        // Whoever keeps a root's key elsewhere wants no root that is kept here.
        let elsewhere = rotation::latest_root(rows).is_some_and(is_elsewhere);
        if !elsewhere && let Some(signs_from) = rotation::root_due(rows, lifetimes, now) {
            if rotation::why_no_root(rows, now) == NoRoot::Ended
                && rotation::signing_root(rows, now).is_none()
            {
                tracing::error!(
                    "every root certificate has ended: a new one is made, and whoever knows only the old ones must attest anew"
                );
            }
            return self.root(lifetimes.root, signs_from, now).map(Some);
        }
        let roots = [
            rotation::signing_root(rows, now),
            rotation::serving_root(rows, now),
        ];
        for root in roots.into_iter().flatten() {
            if !is_elsewhere(root)
                && rotation::intermediate_due(rows, root, &self.replica, lifetimes, now)
            {
                return self
                    .intermediate(root, lifetimes.intermediate, now)
                    .map(Some);
            }
        }
        Ok(None)
    }
}

fn is_elsewhere(root: &AuthorityRow) -> bool {
    root.sealed_key.is_none()
}

fn succeed(rows: &[AuthorityRow], made: AuthorityRow, entry: Option<audit::Entry>) -> Succeed {
    let roots = rows.iter().filter(|row| row.role == Role::Root);
    Succeed {
        known_roots: roots.map(|row| row.serial.clone()).collect::<BTreeSet<_>>(),
        rows: vec![made],
        entry,
    }
}

fn no_root(rows: &[AuthorityRow], now: UnixTime) -> CaError {
    match rotation::why_no_root(rows, now) {
        NoRoot::NotYet { begins } => CaError::BeforeRoot {
            seconds: until(now, begins).as_secs(),
        },
        NoRoot::Never | NoRoot::Ended => CaError::RootExpired,
    }
}

impl State {
    fn of(rows: &[AuthorityRow], workshop: &Workshop, now: UnixTime) -> Result<Self, CaError> {
        let signing = rotation::signing_root(rows, now).ok_or_else(|| no_root(rows, now))?;
        let issuing = Arc::new(Issuing::of(rows, signing, workshop, now)?);
        let serving = match rotation::serving_root(rows, now) {
            Some(root) if root.serial != signing.serial => {
                match Issuing::of(rows, root, workshop, now) {
                    Ok(serving) if serving.validity.includes(now) => Arc::new(serving),
                    // A root that is kept elsewhere, under which nobody signed again.
                    Ok(_) | Err(CaError::NoIntermediate) => Arc::clone(&issuing),
                    Err(error) => return Err(error),
                }
            }
            Some(_) | None => Arc::clone(&issuing),
        };
        let trust_domain = &workshop.trust_domain;
        let bundle = bundle::living(rows, trust_domain, now)?;
        let lapsed = bundle::with_ended(rows, trust_domain, now)?;
        let known = rows
            .iter()
            .filter(|row| row.validity.not_after > now)
            .map(|row| describe(row, rows, signing, now))
            .collect();
        Ok(Self {
            issuing,
            serving,
            bundles: Arc::new(bundle.clone().into()),
            bundle,
            lapsed: Arc::new(lapsed.into()),
            known,
            horizon: horizon::horizon(rows, signing, &workshop.replica, now),
        })
    }

    /// Whether nothing that a certificate or a handshake depends on differs.
    fn is_same(&self, other: &Self) -> bool {
        self.issuing.serial == other.issuing.serial
            && self.serving.serial == other.serving.serial
            && self.bundle == other.bundle
    }
}

impl Issuing {
    fn of(
        rows: &[AuthorityRow],
        root: &AuthorityRow,
        workshop: &Workshop,
        now: UnixTime,
    ) -> Result<Self, CaError> {
        let row = rotation::intermediate(rows, root, &workshop.replica, now)
            .ok_or(CaError::NoIntermediate)?;
        let bundle = |certificates| Bundle::new(workshop.trust_domain.clone(), certificates);
        let above = row
            .path
            .iter()
            .chain([&root.certificate])
            .cloned()
            .collect();
        let above = bundle(above)?;
        // Of one that cannot be read nothing is known.
        let limits = |of: &CertificateDer<'_>| !Facts::read(of).is_ok_and(|it| !it.limits_names);
        Ok(Self {
            serial: row.serial.clone(),
            certificate: row.certificate.clone(),
            path: row.path.clone(),
            root: root.certificate.clone(),
            validity: row.validity,
            issuer: workshop.issuer(row)?,
            followed: OnceLock::new(),
            as_root: bundle(vec![row.certificate.clone()])?.into(),
            limits_names: above.roots().iter().any(limits),
            above,
        })
    }

    /// Whether the way above it needs no following: it was, says the same of every leaf, and nothing of it has ended since.
    fn leads_to_root(&self, now: UnixTime) -> bool {
        self.followed.get().is_some() && !self.limits_names && self.above.is_current(now)
    }

    /// From this one up; the root is not part of it.
    pub(crate) fn chain(&self) -> impl Iterator<Item = CertificateDer<'static>> {
        std::iter::once(&self.certificate)
            .chain(&self.path)
            .cloned()
    }
}

fn describe(
    row: &AuthorityRow,
    rows: &[AuthorityRow],
    signing: &AuthorityRow,
    now: UnixTime,
) -> Described {
    let signs = match &row.holder {
        Some(holder) => rotation::intermediate(rows, signing, holder, now)
            .is_some_and(|chosen| chosen.serial == row.serial),
        None => row.serial == signing.serial,
    };
    Described {
        role: row.role,
        serial: row.serial.clone(),
        holder: row.holder.clone(),
        not_after: row.validity.not_after,
        signs_from: row.signs_from,
        standing: match (signs, row.signs_from > now) {
            (true, _) => Standing::Signing,
            (false, true) => Standing::Published,
            (false, false) => Standing::Retiring,
        },
    }
}

pub(crate) fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest(&SHA256, bytes).as_ref());
    hash
}

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CaError {
    #[error("every root certificate has ended, and the key to make a new one is kept elsewhere")]
    RootExpired,
    #[error(
        "the clock shows a time {seconds} s before the first root certificate begins: put it right; if it is right, the \
         authority was founded while it was ahead, and a new data directory is needed"
    )]
    BeforeRoot { seconds: u64 },
    #[error("the database holds no intermediate certificate authority")]
    NoIntermediate,
    #[error(
        "the root's key is kept elsewhere: the next intermediate comes from the upstream authority by itself, or is signed \
         by whoever keeps the root offline"
    )]
    KeyElsewhere,
    #[error("the root {serial} is published already and signs in {in_seconds} s: wait for it")]
    Announced { serial: Serial, in_seconds: u64 },
    #[error(
        "another process made an authority at the same moment: look at `fender status`, and try again"
    )]
    Overtaken,
    #[error(transparent)]
    Upstream(#[from] UpstreamError),
    #[error("the database holds no key that signs tokens")]
    NoJwtKey,
    #[error("a key that signs tokens is in the database under another's name")]
    JwtKeyMisnamed,
    #[error("the keys of tokens are not usable: {0}")]
    JwtKeys(#[from] KeysError),
    #[error(transparent)]
    Sign(#[from] SigningError),
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
