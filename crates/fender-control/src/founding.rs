//! The first start: which trust domain this is, for ever; and the first administrator's files.
//!
//! Both survive a crash in between: what was not finished is done again, what was finished never is.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use fender_config::{Lifetimes, Mesh, Source};
use fender_identity::{SpiffeId, TrustDomain};
use fender_runtime::clock::SharedClock;
use fender_runtime::drain::Drain;

use crate::ca::issue::{Evidence, Grant};
use crate::ca::seal::SealingKey;
use crate::ca::{self, Authority};
use crate::datadir::{Absent, DataDir, Hold};
use crate::documents::{self, Unread};
use crate::own::{OwnError, self_attested};
use crate::roles;
use crate::sealing::Sealing;
use crate::start::{self, StartError};
use crate::store::Store;
use crate::store::audit::{self, Action, Outcome};
use crate::store::mesh::{self, Admin, AdminMade, Found};
use crate::store::place::StorePlace;
use crate::store::{authorities, revisions, revocations};

/// The trust domain of this data directory, settled now if it is new.
pub(crate) async fn trust_domain(
    store: &Store,
    asked: Option<&TrustDomain>,
    written: Option<&TrustDomain>,
) -> Result<TrustDomain, StartError> {
    if let (Some(asked), Some(written)) = (asked, written)
        && asked != written
    {
        return Err(StartError::TrustDomainsDiffer {
            asked: asked.clone(),
            written: written.clone(),
        });
    }
    let wanted = asked.or(written);
    match (mesh::founded(store).await?, wanted) {
        (Some(founded), Some(wanted)) if founded.trust_domain != *wanted => {
            Err(StartError::TrustDomainChanged {
                held: founded.trust_domain,
                wanted: wanted.clone(),
            })
        }
        (Some(founded), _) => Ok(founded.trust_domain),
        (None, Some(wanted)) => {
            store
                .write(Found {
                    trust_domain: wanted.clone(),
                })
                .await?;
            Ok(wanted.clone())
        }
        (None, None) => Err(StartError::NoMesh),
    }
}

/// The key that belongs to the database; a new one only while nothing is sealed.
pub(crate) async fn sealing_key(
    sealing: &Sealing,
    data: &DataDir,
    store: &Store,
) -> Result<SealingKey, StartError> {
    let absent = match authorities::all(store).await?.is_empty() {
        true => Absent::Make,
        false => Absent::Refuse,
    };
    Ok(sealing.key(data, absent)?)
}

/// How long authorities live: as the given documents say, or those in force, or nobody.
pub(crate) async fn lifetimes(
    store: &Store,
    trust_domain: &TrustDomain,
    written: Option<&Mesh>,
) -> Result<Lifetimes, StartError> {
    if let Some(mesh) = written {
        return Ok(mesh.lifetimes);
    }
    let stored = revisions::current(store).await?;
    let stored = stored.map(|stored| stored.files).unwrap_or_default();
    let generated = [documents::generated_mesh(trust_domain)];
    // What cannot be read any more is told when the documents are put in force.
    let read = |files: &[Source]| documents::parse(files).ok().and_then(|read| read.mesh);
    let mesh = read(&stored).or_else(|| read(&generated));
    mesh.map(|mesh| mesh.lifetimes).ok_or(StartError::NoMesh)
}

/// The `Mesh` among the given documents, if there is one; refuses what can never be put in force.
pub(crate) fn written(
    sources: Option<&[Source]>,
    asked: Option<&TrustDomain>,
) -> Result<Option<Mesh>, StartError> {
    let Some(sources) = sources else {
        return Ok(None);
    };
    let refused = |problems: fender_config::Problems| StartError::Documents {
        rendered: problems.render(),
    };
    match (documents::parse(sources), asked) {
        (Ok(documents), _) => Ok(documents.mesh),
        (Err(Unread::Problems(problems)), _) => Err(refused(problems)),
        (Err(Unread::NoMesh(_)), Some(asked)) => {
            let with_mesh = [sources, &[documents::generated_mesh(asked)]].concat();
            fender_config::parse(&with_mesh).map_err(refused)?;
            Ok(None)
        }
        // What was put in force before may supply it.
        (Err(Unread::NoMesh(_)), None) => Ok(None),
    }
}

/// Writes the first administrator's files, unless that was done before.
pub(crate) async fn first_admin(
    data: &DataDir,
    store: &Store,
    authority: &Authority,
    clock: &SharedClock,
) -> Result<(), StartError> {
    match mesh::founded(store).await? {
        Some(founded) if founded.admin == Admin::Made => return Ok(()),
        Some(_) | None => {}
    }
    write_admin(data, store, authority, clock, Action::Initialize).await?;
    store.write(AdminMade { at: clock.now() }).await?;
    tracing::info!(directory = %data.admin().display(), "the first administrator's key and certificate are written");
    Ok(())
}

async fn write_admin(
    data: &DataDir,
    store: &Store,
    authority: &Authority,
    clock: &SharedClock,
    action: Action,
) -> Result<(), StartError> {
    let now = clock.now();
    let id = SpiffeId::admin(authority.trust_domain(), roles::FIRST)
        .map_err(|_| StartError::Own(OwnError::Issue(crate::IssueError::Reserved)))?;
    let entry = audit::Entry {
        time: now,
        actor: SpiffeId::control(authority.trust_domain()),
        action,
        subject: id.to_string(),
        outcome: Outcome::Done,
        detail: "files in the data directory".to_owned(),
    };
    let grant = Grant {
        lifetime: ca::lifetimes::ADMIN,
        dns_names: Vec::new(),
    };
    let (key, attested) = self_attested(id, grant, Evidence::DataDirectory)?;
    let issued = authority.issue(attested, now).map_err(OwnError::from)?;
    let recorded = issued.record_audited(store, entry).await?;
    let svid = key
        .into_svid(recorded.into_chain())
        .map_err(OwnError::from)?;
    data.write_admin(&svid, &authority.state().bundle)?;
    Ok(())
}

/// Makes the administrator's files of a data directory anew: for whoever owns the directory, and let the old ones
/// expire or lost them. A control plane may be running on it.
pub async fn reissue_admin(
    data_dir: &Path,
    admin_dir: Option<&Path>,
    sealing: &Sealing,
    place: &StorePlace,
    clock: SharedClock,
) -> Result<(), StartError> {
    let drain = Drain::new();
    let data = DataDir::open(data_dir, admin_dir, Hold::Shared)?;
    if matches!(place, StorePlace::DataDir) && !data.has_database() {
        return Err(StartError::NotADataDir {
            path: data_dir.to_owned(),
        });
    }
    let store = start::open(place, &data, &drain).await?;
    let Some(founded) = mesh::founded(&store).await? else {
        return Err(StartError::NotADataDir {
            path: data_dir.to_owned(),
        });
    };
    let lifetimes = lifetimes(&store, &founded.trust_domain, None).await?;
    let authority = Authority::open(
        &store,
        sealing_key(sealing, &data, &store).await?,
        founded.trust_domain,
        &lifetimes,
        clock.now(),
    )
    .await?;
    // Whatever the renewal grace is: what is out of force by then denies nobody who is issued now.
    let revocations = revocations::in_force(store.reads(), clock.now(), Duration::ZERO).await?;
    authority.heed(Arc::new(revocations::deny_list(
        revocations,
        authority.trust_domain(),
    )));
    write_admin(&data, &store, &authority, &clock, Action::ReissueAdmin).await?;
    drop(store);
    drain.drained().await;
    Ok(())
}
