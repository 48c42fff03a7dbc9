//! Whom the mesh believes and whom not any more, as every sidecar is told it.
//!
//! One [`Announced`] for all of them: encoded once, numbered apart from revisions and Snapshots, and published to
//! whoever follows. What it says is decided elsewhere: the roots and the keys of tokens by the authority, the deny list by
//! revocations.
//!
//! It is gathered in the transaction that numbers it, and so after everything that was committed before: of two replicas
//! that announce at once, the one with the higher number knows at least what the other does.

use std::cmp::Reverse;
use std::sync::Arc;

use bytes::Bytes;
use fender_api::convert::MAX_CRLS;
use fender_api::proto::control::v1 as proto;
use fender_config::Lifetimes;
use fender_identity::{Bundles, Trust};
use fender_runtime::clock::SharedClock;
use prost::Message as _;
use rustls::pki_types::{CertificateRevocationListDer, UnixTime};
use tokio::sync::{Mutex, watch};

use crate::ca::{self, Authority, CaError, sha256};
use crate::store::authorities::{self, AuthorityRow};
use crate::store::crls::CrlRow;
use crate::store::jwt_keys::{self, JwtKeyRow};
use crate::store::revocations;
use crate::store::{Command, Connection, Store, StoreError, crls, trust};

/// What all revocation lists in a Trust may weigh: everybody must be able to read it, and the rest of it.
const MAX_CRL_BYTES: usize = 1024 * 1024;

/// A Trust with its number, as it is and as it travels.
#[derive(Debug)]
pub(crate) struct Announced {
    pub(crate) trust: Trust,
    pub(crate) encoded: Bytes,
    /// Of what travels: a sidecar that comes from another replica says what it has by this.
    pub(crate) sha256: [u8; 32],
}

pub(crate) struct Announcements {
    store: Store,
    authority: Arc<Authority>,
    clock: SharedClock,
    newest: watch::Sender<Arc<Announced>>,
    /// What is gathered first is published first.
    turn: Mutex<()>,
}

impl Announcements {
    pub(crate) async fn open(
        store: Store,
        authority: Arc<Authority>,
        clock: SharedClock,
        lifetimes: Lifetimes,
    ) -> Result<Self, CaError> {
        let first = announced(&store, &authority, None, lifetimes, clock.now()).await?;
        Ok(Self {
            store,
            authority,
            clock,
            newest: watch::Sender::new(Arc::new(first)),
            turn: Mutex::default(),
        })
    }

    /// The newest, and every later one.
    pub(crate) fn follow(&self) -> watch::Receiver<Arc<Announced>> {
        self.newest.subscribe()
    }

    /// Of the newest.
    pub(crate) fn version(&self) -> u64 {
        self.newest.borrow().trust.version
    }

    /// To be called whenever something of what is announced may have changed. When this returns, the streams know.
    pub(crate) async fn refresh(&self, lifetimes: Lifetimes) -> Result<(), CaError> {
        let _turn = self.turn.lock().await;
        let now = self.clock.now();
        let before = Some(Arc::clone(&self.newest.borrow()));
        let next = announced(&self.store, &self.authority, before, lifetimes, now).await?;
        self.newest.send_if_modified(|newest| {
            let news = newest.trust.version != next.trust.version;
            if news {
                tracing::info!(version = next.trust.version, "trust announced");
                *newest = Arc::new(next);
            }
            news
        });
        Ok(())
    }
}

/// Before anything is announced, the authority heeds it.
async fn announced(
    store: &Store,
    authority: &Arc<Authority>,
    before: Option<Arc<Announced>>,
    lifetimes: Lifetimes,
    now: UnixTime,
) -> Result<Announced, CaError> {
    let gather = Gather {
        authority: Arc::clone(authority),
        before,
        lifetimes,
        now,
    };
    let trust = store.write(gather).await??;
    authority.heed(Arc::clone(&trust.denied));
    let encoded = proto::Trust::from(&trust).encode_to_vec();
    Ok(Announced {
        trust,
        sha256: sha256(&encoded),
        encoded: encoded.into(),
    })
}

/// Reads all that is announced and numbers it. The same as before keeps its number, also across restarts.
struct Gather {
    authority: Arc<Authority>,
    /// What was announced last.
    before: Option<Arc<Announced>>,
    lifetimes: Lifetimes,
    now: UnixTime,
}

impl Command for Gather {
    type Output = Result<Trust, CaError>;

    async fn run(&self, db: &mut Connection) -> Result<Self::Output, StoreError> {
        let authorities = authorities::seen_by(&mut *db).await?;
        let keys = jwt_keys::seen_by(&mut *db).await?;
        let lists = crls::seen_by(&mut *db).await?;
        let grace = self.lifetimes.renewal_grace;
        let revoked = revocations::in_force(&mut *db, self.now, grace).await?;
        let denied = revocations::deny_list(revoked, self.authority.trust_domain());
        let mut trust = match (self.believed(&authorities, &keys), &self.before) {
            (Ok(believed), _) => believed,
            // Whom to refuse does not wait until it can be read again whom to believe.
            (Err(error), Some(before)) => {
                tracing::error!(%error, "whom to believe cannot be read: announced as before, with those who are denied now");
                before.trust.clone()
            }
            (Err(error), None) => return Ok(Err(error)),
        };
        trust.denied = Arc::new(denied);
        trust.crls = told(lists, &authorities, self.now).into();
        let digest = sha256(&proto::Trust::from(&trust).encode_to_vec());
        trust.version = trust::Number { digest }.run(db).await?;
        Ok(Ok(trust))
    }
}

/// The lists that still count, of the youngest authorities first, as far as there is room. Who is on one that is left out is
/// denied inside the mesh all the same: the deny list does not depend on them.
fn told(
    mut lists: Vec<CrlRow>,
    authorities: &[AuthorityRow],
    now: UnixTime,
) -> Vec<CertificateRevocationListDer<'static>> {
    lists.retain(|row| row.next_update > now);
    let began = |row: &CrlRow| {
        let of = authorities
            .iter()
            .find(|authority| authority.serial == row.authority);
        of.map(|authority| authority.validity.not_before)
    };
    lists.sort_by_cached_key(|row| Reverse(began(row)));
    let (mut told, mut room) = (Vec::new(), MAX_CRL_BYTES);
    for row in lists {
        let bytes = row.list.len();
        match room.checked_sub(bytes) {
            Some(left) if told.len() < MAX_CRLS => {
                room = left;
                told.push(row.list);
            }
            Some(_) | None => tracing::error!(
                authority = %row.authority, bytes,
                "a revocation list is not told to anybody: at most {MAX_CRLS} of {MAX_CRL_BYTES} bytes in all are. Fender's \
                 own deny list holds; what reads these lists does not refuse who is on it"
            ),
        }
    }
    told
}

impl Gather {
    fn believed(&self, authorities: &[AuthorityRow], keys: &[JwtKeyRow]) -> Result<Trust, CaError> {
        let trust_domain = self.authority.trust_domain();
        let bundle = ca::bundle::living(authorities, trust_domain, self.now)?;
        Ok(Trust {
            jwt: self
                .authority
                .jwt_bundles_of(keys, &self.lifetimes, self.now)?,
            ..Trust::from(Bundles::from(bundle))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::authorities::Role;
    use crate::time::moment;
    use fender_identity::{Serial, Validity};

    const NOW: i64 = 1000;

    fn serial(number: i64) -> Serial {
        Serial::from_bytes(&number.to_be_bytes()).unwrap()
    }

    fn authority(began: i64) -> AuthorityRow {
        AuthorityRow {
            serial: serial(began),
            role: Role::Intermediate,
            root: None,
            holder: None,
            certificate: Vec::new().into(),
            path: Vec::new(),
            sealed_key: None,
            validity: Validity {
                not_before: moment(began),
                not_after: moment(NOW * 2),
            },
            signs_from: moment(began),
        }
    }

    /// The first byte says whose it is.
    fn list(of: i64, bytes: usize, next_update: i64) -> CrlRow {
        let mut list = vec![0; bytes];
        list[0] = of.try_into().unwrap_or(u8::MAX);
        CrlRow {
            authority: serial(of),
            number: 1,
            list: list.into(),
            this_update: moment(0),
            next_update: moment(next_update),
            digest: [0; 32],
        }
    }

    fn whose(lists: Vec<CrlRow>) -> Vec<u8> {
        let authorities: Vec<_> = (1..=300).map(authority).collect();
        let told = told(lists, &authorities, moment(NOW));
        told.iter().map(|list| list[0]).collect()
    }

    #[test]
    fn lists_of_the_youngest_authorities_are_told_first_and_old_ones_not_at_all() {
        let lists = vec![list(1, 8, NOW + 1), list(3, 8, NOW), list(2, 8, NOW + 1)];
        assert_eq!(whose(lists), [2, 1]);
    }

    #[test]
    fn attack_lists_that_grow_leave_room_for_the_rest_of_a_trust() {
        let half = MAX_CRL_BYTES / 2;
        let lists = vec![
            list(4, half, NOW + 1),
            list(3, MAX_CRL_BYTES, NOW + 1),
            list(2, half, NOW + 1),
            list(1, 1, NOW + 1),
        ];
        assert_eq!(whose(lists), [4, 2], "and no byte more");
        let many = (1..=300).map(|of| list(of, 1, NOW + 1)).collect();
        assert_eq!(whose(many).len(), MAX_CRLS);
    }
}
