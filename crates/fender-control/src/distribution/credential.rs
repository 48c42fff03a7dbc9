//! The values of one credential on their way to one workload, for as long as the documents list it there. It keeps none: a
//! value is read where its source is watched, and sent.

use std::sync::Arc;

use fender_api::code::Code;
use fender_api::proto::control::v1::CredentialValue;
use fender_config::ObjectName;
use fender_config::snapshot::{Origin, Snapshot};
use tokio::sync::{mpsc, watch};
use tonic::Status;

use super::{no_longer_known, not_listed};
use crate::callers::Caller;
use crate::control::Control;
use crate::credentials::{self, Watched};
use crate::documents::InForce;
use crate::registry::Place;

/// One secret on its way to one workload.
pub(super) struct Delivery {
    pub(super) control: Arc<Control>,
    pub(super) caller: Caller,
    /// Among the streams of its workload, for as long as this lasts.
    pub(super) _place: Place,
    pub(super) name: ObjectName,
    pub(super) values: mpsc::Sender<Result<CredentialValue, Status>>,
}

impl Delivery {
    pub(super) async fn run(
        self,
        source: Read,
        snapshots: watch::Receiver<Arc<Snapshot>>,
        documents: watch::Receiver<Arc<InForce>>,
    ) {
        let ended = tokio::select! {
            biased;
            status = self.control.over(&self.caller.peer) => Err(status),
            () = self.values.closed() => Ok(()),
            ended = self.deliver(source, snapshots, documents) => ended,
        };
        if let Err(status) = ended {
            let _ = self.values.try_send(Err(status));
        }
    }

    /// Tells every value until the documents no longer list the credential. Where it is read is no part of a Snapshot, so
    /// the documents are followed as well.
    async fn deliver(
        &self,
        mut source: Read,
        mut snapshots: watch::Receiver<Arc<Snapshot>>,
        mut documents: watch::Receiver<Arc<InForce>>,
    ) -> Result<(), Status> {
        let mut states = (*source.watched).clone();
        states.mark_changed();
        loop {
            tokio::select! {
                biased;
                changed = either(&mut snapshots, &mut documents) => {
                    changed?;
                    let next = self.source().ok_or_else(not_listed)?;
                    if !Arc::ptr_eq(&source.watched, &next.watched) {
                        states = (*next.watched).clone();
                        states.mark_changed();
                        source = next;
                    }
                }
                changed = states.changed() => {
                    changed.map_err(|_| Code::Unavailable.status("the control plane is stopping"))?;
                    let Some(value) = credentials::told(&states.borrow_and_update(), &source.origin) else { continue };
                    self.values
                        .send(Ok(value))
                        .await
                        .map_err(|_| Code::Unavailable.status("the client is gone"))?;
                }
            }
        }
    }

    /// Where the value is read, if the documents in force list it for this workload.
    pub(super) fn source(&self) -> Option<Read> {
        let origin =
            credentials::authorized(&self.control.library, &self.caller.workload, &self.name)?;
        Some(Read {
            watched: self.control.sources.watch(&self.name, &origin),
            origin,
        })
    }
}

/// What is read, and of what.
pub(super) struct Read {
    watched: Watched,
    origin: Origin,
}

/// Resolves when what a workload is told changes, or any document.
async fn either(
    snapshots: &mut watch::Receiver<Arc<Snapshot>>,
    documents: &mut watch::Receiver<Arc<InForce>>,
) -> Result<(), Status> {
    tokio::select! {
        biased;
        changed = snapshots.changed() => changed.map_err(|_| no_longer_known()),
        changed = documents.changed() => {
            changed.map_err(|_| Code::Unavailable.status("the control plane is stopping"))
        }
    }
}
