//! Identity from files, without a control plane: read, verified, then followed.
//!
//! Whoever issues the certificate replaces the files; the sidecar looks at them twice a second,
//! reads what changed and serves it once certificate, key and bundle fit together. Until then, and
//! whenever they do not or the certificate is not valid now, it keeps what it has and says so once. It never takes another identity
//! than the one it started with: a certificate of somebody else is a mistake, not a renewal.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use fender_config::snapshot::Snapshot;
use fender_config::standalone::IdentityFiles;
use fender_identity::{Bundle, Bundles, Secret, Svid};
use fender_runtime::clock::{SharedClock, UnixTime};
use fender_runtime::drain::Drain;
use fender_runtime::file::{self, Others};
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

use super::documents::{self, Documents, LOOK_EVERY};
use super::standalone::{Following, vouched_for};

const FILE_LIMIT: u64 = 256 * 1024;

/// What the files hold, as they were read. Two are equal if their bytes are.
struct Bytes {
    certificate: Vec<u8>,
    key: Secret,
    bundle: Vec<u8>,
}

impl Bytes {
    fn read(files: &IdentityFiles) -> Result<Self> {
        Ok(Self {
            certificate: read(&files.certificate)?,
            key: Secret::new(read(&files.key)?),
            bundle: read(&files.bundle)?,
        })
    }

    fn equals(&self, other: &Self) -> bool {
        self.certificate == other.certificate
            && self.key.ct_eq(&other.key)
            && self.bundle == other.bundle
    }

    fn verify(&self, files: &IdentityFiles, now: UnixTime) -> Result<(Svid, Bundles)> {
        let name = |path: &PathBuf| path.display().to_string();
        let svid = Svid::from_pem(&self.certificate, self.key.expose()).with_context(|| {
            format!(
                "use certificate `{}` with key `{}`",
                name(&files.certificate),
                name(&files.key)
            )
        })?;
        ensure!(
            svid.validity().includes(now),
            "certificate `{}` is not valid now: put a current one in its place",
            name(&files.certificate)
        );
        let bundle = Bundle::from_pem(svid.id().trust_domain().clone(), &self.bundle)
            .with_context(|| format!("use trust bundle `{}`", name(&files.bundle)))?;
        let mut bundles = Bundles::new();
        bundles.insert(bundle);
        vouched_for(&svid, &bundles, now).with_context(|| {
            format!(
                "verify certificate `{}` by trust bundle `{}`, as every peer will",
                name(&files.certificate),
                name(&files.bundle)
            )
        })?;
        Ok((svid, bundles))
    }
}

impl Bytes {
    /// Reads and verifies on a thread that may block: the files may lie on a network.
    async fn load(files: Arc<IdentityFiles>) -> Result<Self> {
        let read = tokio::task::spawn_blocking(move || Self::read(&files));
        read.await.context("read the identity's files")?
    }
}

/// Reads the files, which must be right, and follows them until the drain stops.
pub(super) async fn follow(
    documents: Documents,
    files: IdentityFiles,
    clock: &SharedClock,
    drain: &Drain,
) -> Result<Following> {
    let files = Arc::new(files);
    let bytes = Bytes::load(Arc::clone(&files)).await?;
    let (svid, bundles) = bytes.verify(&files, clock.now())?;
    let snapshot = documents.borrow().snapshot(svid.id(), bundles, 1);
    let (svid_sender, svid) = watch::channel(Arc::new(svid));
    let (snapshot_sender, snapshot) = watch::channel(Arc::new(snapshot));
    documents::apply(documents.clone(), snapshot_sender.clone(), drain);
    let follower = Follower {
        documents,
        files,
        clock: Arc::clone(clock),
        seen: bytes,
        svid: svid_sender,
        snapshot: snapshot_sender,
    };
    let stopping = drain.clone();
    drain.spawn(async move {
        tokio::select! {
            () = stopping.stopping() => {}
            () = follower.run() => {}
        }
    });
    Ok(Following {
        svid: Some(svid),
        snapshot,
    })
}

struct Follower {
    documents: Documents,
    files: Arc<IdentityFiles>,
    clock: SharedClock,
    seen: Bytes,
    svid: watch::Sender<Arc<Svid>>,
    snapshot: watch::Sender<Arc<Snapshot>>,
}

impl Follower {
    async fn run(mut self) {
        let mut tick = tokio::time::interval(LOOK_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut complaint = String::new();
        loop {
            tick.tick().await;
            match self.look().await {
                Ok(()) => complaint.clear(),
                Err(error) => {
                    let text = format!("{error:#}");
                    // Files are replaced one after the other, so the first look may see half of it.
                    if text != complaint {
                        tracing::warn!(
                            error = text,
                            "the identity's files cannot be used; keeping the certificate in use"
                        );
                        complaint = text;
                    }
                }
            }
        }
    }

    async fn look(&mut self) -> Result<()> {
        let bytes = Bytes::load(Arc::clone(&self.files)).await?;
        if bytes.equals(&self.seen) {
            return Ok(());
        }
        let (svid, bundles) = bytes.verify(&self.files, self.clock.now())?;
        let current = self.svid.borrow().id().clone();
        ensure!(
            *svid.id() == current,
            "certificate `{}` is for `{}`, this sidecar is `{current}`; restart it to change its identity",
            self.files.certificate.display(),
            svid.id()
        );
        tracing::info!(serial = %svid.serial(), not_after = svid.validity().not_after.as_secs(), "serving the certificate found in the files");
        // Bundle first: a peer with a certificate of a new root may come as soon as ours is new.
        documents::publish(&self.snapshot, &self.documents, Some(bundles.into()));
        self.svid.send_replace(Arc::new(svid));
        self.seen = bytes;
        Ok(())
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    Ok(file::read(path, FILE_LIMIT, Others::Whoever)?)
}
