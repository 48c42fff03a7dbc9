//! What a control plane stands on: the registry, the authority, the documents in force, the first administrator's files.
//!
//! Where there is nothing, all of it is made once: which trust domain this is and which key seals, for ever, and one key
//! for one administrator. That survives a crash in between: what was not finished is done again, what was finished never
//! is. Of several replicas that start at once one decides, and the others go on with what it decided or say why they
//! cannot.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use fender_config::{Lifetimes, Mesh, Source};
use fender_identity::tls::CaPin;
use fender_identity::{SpiffeId, TrustDomain};
use fender_runtime::clock::{SharedClock, UnixTime};
use fender_runtime::deadline::Deadline;
use fender_runtime::drain::Drain;

use crate::ca::issue::Grant;
use crate::ca::make::Workshop;
use crate::ca::seal::{SealError, SealingKey};
use crate::ca::upstream::{Upstream, UpstreamPlace};
use crate::ca::{self, Authority};
use crate::datadir::{Absent, DataDir, Hold};
use crate::documents::{self, Author, Library, Unread};
use crate::evidence::Evidence;
use crate::own::{OwnError, self_attested};
use crate::replica::{self, Presence};
use crate::roles;
use crate::sealing::Sealing;
use crate::start::StartError;
use crate::store::Store;
use crate::store::audit::{self, Action, Outcome};
use crate::store::mesh::{self, Admin, AdminMade, Found, UndertakeAdmin, Undertaken};
use crate::store::place::StorePlace;
use crate::store::replicas::ReplicaName;
use crate::store::{revisions, revocations};
use crate::trust::Announcements;

/// Where in the database the sealed bytes belong by which a sealing key is known to be the right one.
const SEALING_CHECK: &[u8] = b"fender sealing key v1";

/// How long closing the database may take: what was answered is on disk already.
const SETTLE: Duration = Duration::from_secs(10);

/// What a control plane stands on: the same at its founding and at every start.
#[derive(Clone, Debug)]
pub struct Foundation {
    /// Database, keys and the administrator's files; made 0700 if it is not there.
    pub data_dir: PathBuf,
    /// Where the registry is, if not in the data directory.
    pub store: StorePlace,
    /// Where the first administrator's files go, if not into `admin` in the data directory.
    pub admin_dir: Option<PathBuf>,
    /// The documents of a directory, to be put in force if they differ from what is stored.
    pub documents: Option<Vec<Source>>,
    /// For a founding without a `Mesh`, or to be sure which one this is.
    pub trust_domain: Option<TrustDomain>,
    /// Where the key is that seals the authorities' keys.
    pub sealing: Sealing,
    /// What this replica is called, if not after its data directory.
    pub replica: Option<ReplicaName>,
    /// Who signs the intermediates, if not a root of the mesh's own.
    pub upstream: Option<UpstreamPlace>,
}

/// What was founded.
#[derive(Clone, Debug)]
pub struct Founded {
    /// For ever: every certificate carries it.
    pub trust_domain: TrustDomain,
    /// The first administrator, and when their certificate ends.
    pub admin: SpiffeId,
    pub admin_until: UnixTime,
    /// Their `certificate.pem`, `key.pem` and `bundle.pem`.
    pub admin_dir: PathBuf,
    /// The revision of documents in force, and how many workloads it describes.
    pub revision: u64,
    pub workloads: usize,
    /// What sidecars and join tokens pin, and when each of these roots ends.
    pub ca_pins: Vec<(CaPin, UnixTime)>,
    /// What is allowed but probably not meant, one sentence each.
    pub warnings: Vec<String>,
}

/// Founds a control plane that does not serve yet. Where one is, nothing is done.
pub async fn init(foundation: Foundation, clock: SharedClock) -> Result<Founded, StartError> {
    let drain = Drain::new();
    let written = foundation.written()?;
    let standing = Standing::open(&foundation, String::new(), &drain).await?;
    standing.must_be_empty().await?;
    let ground = standing.found(foundation, written.as_ref(), &clock).await?;
    let in_force = ground.library.in_force();
    let trust_domain = ground.authority.trust_domain().clone();
    let founded = Founded {
        admin: first(&trust_domain)?,
        // Another replica founded it meanwhile.
        admin_until: ground.admin_until.ok_or_else(|| StartError::Founded {
            trust_domain: trust_domain.clone(),
        })?,
        admin_dir: ground.data.admin().to_owned(),
        revision: in_force.revision,
        workloads: in_force.documents.workloads.len(),
        ca_pins: ground.authority.dated_pins(),
        trust_domain,
        warnings: ground.warnings.clone(),
    };
    let Ground { presence, .. } = ground;
    presence.leave().await;
    settle(&drain).await;
    Ok(founded)
}

/// A place that is taken, and its registry; whether anything is founded there shows.
pub(crate) struct Standing {
    data: DataDir,
    store: Store,
    presence: Presence,
}

/// What a control plane needs to serve.
pub(crate) struct Ground {
    pub(crate) data: DataDir,
    pub(crate) store: Store,
    pub(crate) presence: Presence,
    pub(crate) authority: Arc<Authority>,
    pub(crate) library: Library,
    pub(crate) trust: Announcements,
    pub(crate) warnings: Vec<String>,
    /// When the first administrator's certificate ends, if it was made now.
    admin_until: Option<UnixTime>,
}

impl Standing {
    /// `url` is where the other replicas will reach this one.
    pub(crate) async fn open(
        foundation: &Foundation,
        url: String,
        drain: &Drain,
    ) -> Result<Self, StartError> {
        let admin_dir = foundation.admin_dir.as_deref();
        let data = DataDir::open(&foundation.data_dir, admin_dir, Hold::Alone)?;
        let store = open(&foundation.store, &data, drain).await?;
        let name = replica::name(&data, foundation.replica.clone())?;
        let presence = Presence::appear(store.clone(), &data, name, url).await?;
        Ok(Self {
            data,
            store,
            presence,
        })
    }

    /// Whoever founds wants something new: neither what is there nor somebody else's key is touched.
    async fn must_be_empty(&self) -> Result<(), StartError> {
        match mesh::founded(&self.store).await? {
            Some(mesh::Founded {
                trust_domain,
                admin: Admin::Made,
                ..
            }) => Err(StartError::Founded { trust_domain }),
            // A founding that was cut short: it goes on.
            Some(_) => Ok(()),
            None => match self.data.admin_certificate() {
                path if path.exists() => Err(StartError::AdminFilesThere { path }),
                _ => Ok(()),
            },
        }
    }

    /// Makes what is missing, and puts in force what is there.
    pub(crate) async fn found(
        self,
        foundation: Foundation,
        written: Option<&Mesh>,
        clock: &SharedClock,
    ) -> Result<Ground, StartError> {
        let Self {
            data,
            store,
            presence,
        } = self;
        let sealing = sealing_key(&foundation.sealing, &data, &store).await?;
        let asked = foundation.trust_domain.as_ref();
        let written_domain = written.map(|mesh| &mesh.trust_domain);
        let trust_domain = trust_domain(&store, &sealing, asked, written_domain).await?;
        let lifetimes = lifetimes(&store, &trust_domain, written).await?;
        let workshop = Workshop {
            trust_domain: trust_domain.clone(),
            replica: presence.name().clone(),
            sealing,
        };
        let told_of_above = foundation.upstream.is_some();
        let upstream = foundation.upstream;
        let upstream = upstream.map(|place| Upstream::new(place, Arc::clone(clock)));
        let now = clock.now();
        let authority = Authority::open_under(upstream, workshop, &store, &lifetimes, now).await?;
        let authority = Arc::new(authority);
        let (library, mut warnings) = Library::open(
            store.clone(),
            Arc::clone(clock),
            trust_domain.clone(),
            foundation.documents,
            Author {
                id: SpiffeId::control(&trust_domain),
                action: Action::LoadDocuments,
                detail: String::new(),
            },
        )
        .await?;
        if !told_of_above && ca::is_below_another(&store).await? {
            warnings.push(NOT_TOLD_OF_ABOVE.to_owned());
        }
        let trust = Announcements::open(
            store.clone(),
            Arc::clone(&authority),
            Arc::clone(clock),
            library.in_force().mesh.lifetimes,
        )
        .await?;
        let admin_until = first_admin(&data, &store, &authority, clock).await?;
        Ok(Ground {
            data,
            store,
            presence,
            authority,
            library,
            trust,
            warnings,
            admin_until,
        })
    }
}

/// What a forgotten flag comes to.
const NOT_TOLD_OF_ABOVE: &str = "the root's key is elsewhere, and neither `--root offline` nor `--upstream-…` says where: no \
    next intermediate is asked for, and when this one ends nothing is issued any more";

/// The store, wherever it is.
async fn open(place: &StorePlace, data: &DataDir, drain: &Drain) -> Result<Store, StartError> {
    Ok(match place {
        StorePlace::DataDir => Store::open(&data.database()?, drain).await?,
        StorePlace::Postgres(server) => Store::connect(&server.access()?, drain).await?,
    })
}

/// The first administrator: everything is theirs until a `Mesh` says whose it is.
fn first(trust_domain: &TrustDomain) -> Result<SpiffeId, StartError> {
    SpiffeId::admin(trust_domain, roles::FIRST)
        .map_err(|_| StartError::Own(OwnError::Issue(crate::IssueError::Reserved)))
}

/// The trust domain of this registry, settled now with the sealing key if it is new.
async fn trust_domain(
    store: &Store,
    sealing: &SealingKey,
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
    let founded = match (mesh::founded(store).await?, wanted) {
        (Some(founded), _) => founded,
        (None, Some(wanted)) => {
            let found = Found {
                trust_domain: wanted.clone(),
                sealing_check: sealing.seal(SEALING_CHECK, &[])?,
            };
            store.write(found).await?
        }
        (None, None) => return Err(StartError::NoMesh),
    };
    if let Some(wanted) = wanted
        && founded.trust_domain != *wanted
    {
        return Err(StartError::TrustDomainChanged {
            held: founded.trust_domain,
            wanted: wanted.clone(),
        });
    }
    opens(sealing, &founded)?;
    Ok(founded.trust_domain)
}

/// Refuses another sealing key than the one this registry was founded with, before anything is tried with it.
fn opens(sealing: &SealingKey, founded: &mesh::Founded) -> Result<(), StartError> {
    match sealing.open(SEALING_CHECK, &founded.sealing_check) {
        Ok(_) => Ok(()),
        Err(SealError::Closed) => Err(StartError::OtherSealingKey),
        Err(error @ (SealError::Sealed | SealError::InPlain | SealError::Crypto)) => {
            Err(error.into())
        }
    }
}

/// The key that belongs to the database; a new one only while nothing is sealed.
async fn sealing_key(
    sealing: &Sealing,
    data: &DataDir,
    store: &Store,
) -> Result<SealingKey, StartError> {
    let absent = match mesh::founded(store).await? {
        None => Absent::Make,
        Some(_) => Absent::Refuse,
    };
    Ok(sealing.key(data, absent)?)
}

/// How long authorities live: as the given documents say, or those in force, or nobody.
async fn lifetimes(
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

impl Foundation {
    /// The `Mesh` among the given documents, if there is one; refuses what can never be put in force.
    pub(crate) fn written(&self) -> Result<Option<Mesh>, StartError> {
        let Some(sources) = &self.documents else {
            return Ok(None);
        };
        let refused = |problems: fender_config::Problems| StartError::Documents {
            rendered: problems.render(),
        };
        match (documents::parse(sources), &self.trust_domain) {
            (Ok(documents), _) => Ok(documents.mesh),
            (Err(Unread::Problems(problems)), _) => Err(refused(problems)),
            (Err(Unread::NoMesh(_)), Some(asked)) => {
                let with_mesh = [&sources[..], &[documents::generated_mesh(asked)]].concat();
                fender_config::parse(&with_mesh).map_err(refused)?;
                Ok(None)
            }
            // What was put in force before may supply it.
            (Err(Unread::NoMesh(_)), None) => Ok(None),
        }
    }
}

/// Writes the first administrator's files, unless that was done before or another replica is about to; when their
/// certificate ends.
async fn first_admin(
    data: &DataDir,
    store: &Store,
    authority: &Authority,
    clock: &SharedClock,
) -> Result<Option<UnixTime>, StartError> {
    let undertake = UndertakeAdmin {
        by: authority.replica().clone(),
    };
    match store.write(undertake).await? {
        Undertaken::Others => return Ok(None),
        Undertaken::Ours => {}
    }
    let until = write_admin(data, store, authority, clock, Action::Initialize).await?;
    store.write(AdminMade { at: clock.now() }).await?;
    tracing::info!(directory = %data.admin().display(), "the first administrator's key and certificate are written");
    Ok(Some(until))
}

async fn write_admin(
    data: &DataDir,
    store: &Store,
    authority: &Authority,
    clock: &SharedClock,
    action: Action,
) -> Result<UnixTime, StartError> {
    let now = clock.now();
    let id = first(authority.trust_domain())?;
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
    Ok(svid.validity().not_after)
}

/// Makes the administrator's files of a data directory anew: for whoever owns the directory, and let the old ones
/// expire or lost them. A control plane may be running on it.
pub async fn reissue_admin(
    data_dir: &Path,
    admin_dir: Option<&Path>,
    sealing: &Sealing,
    place: &StorePlace,
    replica: Option<ReplicaName>,
    clock: SharedClock,
) -> Result<(), StartError> {
    let drain = Drain::new();
    let data = DataDir::open(data_dir, admin_dir, Hold::Shared)?;
    if matches!(place, StorePlace::DataDir) && !data.has_database() {
        return Err(StartError::NotADataDir {
            path: data_dir.to_owned(),
        });
    }
    let store = open(place, &data, &drain).await?;
    let Some(founded) = mesh::founded(&store).await? else {
        return Err(StartError::NotADataDir {
            path: data_dir.to_owned(),
        });
    };
    let sealing = sealing_key(sealing, &data, &store).await?;
    opens(&sealing, &founded)?;
    let lifetimes = lifetimes(&store, &founded.trust_domain, None).await?;
    let authority = Authority::open(
        &store,
        sealing,
        founded.trust_domain,
        replica::name(&data, replica)?,
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
    settle(&drain).await;
    Ok(())
}

/// To be called when nobody can reach the writer any more: it ends when everything is on disk, and whoever follows what
/// other replicas do ends too.
async fn settle(drain: &Drain) {
    drain.close(Deadline::after(SETTLE)).await;
}
