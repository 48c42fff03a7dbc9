//! `fender get NAME`: a credential from a sidecar's credentials socket to standard output, and nothing else there; or to a
//! file, as a sidecar writes them: whole or not at all, for this user alone from its first moment, through no link.
//!
//! It writes no log line with a value in it. Whose process listens at the socket is looked at before anything is asked of it.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::Path;

use anyhow::Context as _;
use fender_config::snapshot::{FileDelivery, Storage};
use fender_credentials::AllowDirs;
use fender_credentials::deliver::{Change, DeliveryError, Place};
use fender_credentials::handover::{self, AskError, Refusal};
use fender_identity::Secret;
use fender_runtime::deadline::Deadline;

use crate::cli;
use crate::exit::{Exit, Failure, Outcome};

pub(crate) async fn get(args: cli::Get) -> Outcome {
    let users = match args.sidecar_uid {
        Some(user) => BTreeSet::from([user]),
        None => BTreeSet::from([0, rustix::process::geteuid().as_raw()]),
    };
    let deadline = Deadline::after(args.timeout);
    let received = handover::ask(&args.socket, &args.name, &users, deadline)
        .await
        .map_err(failure)?;
    if !received.age.is_zero() {
        let age = humantime::format_duration(received.age);
        tracing::warn!(credential = %args.name, %age, "the sidecar could not make sure that this is the newest value");
    }
    if let Some(file) = args.output {
        return write(&file, received.value).await;
    }
    let mut out = std::io::stdout().lock();
    out.write_all(received.value.expose())
        .and_then(|()| out.flush())
        .context("write the value to standard output")
        .map_err(Failure::unavailable)?;
    Ok(Exit::Done)
}

/// Whoever names the file on a command line says where a secret may lie: on a disk, too.
async fn write(file: &Path, value: Secret) -> Outcome {
    let delivery = FileDelivery {
        path: file.to_owned(),
        mode: 0o600,
        owner: None,
        group: None,
        storage: Storage::Disk,
    };
    let place = Place::new(&delivery, &AllowDirs::Any).map_err(unwritten)?;
    let written = tokio::task::spawn_blocking(move || place.write(&value));
    let (_, change) = written
        .await
        .map_err(Failure::unavailable)?
        .map_err(unwritten)?;
    match change {
        Change::Written => tracing::info!(file = %file.display(), "written"),
        Change::Unchanged => tracing::info!(file = %file.display(), "holds this value already"),
    }
    Ok(Exit::Done)
}

fn unwritten(error: DeliveryError) -> Failure {
    let of_the_system = matches!(
        error,
        DeliveryError::Failed { .. } | DeliveryError::Unsealed { .. }
    );
    let exit = match of_the_system {
        true => Exit::Unavailable,
        false => Exit::Usage,
    };
    Failure::new(exit, error)
}

fn failure(error: AskError) -> Failure {
    let exit = match &error {
        AskError::Nobody { .. } | AskError::Useless { .. } => Exit::Unavailable,
        AskError::Stranger { .. } => Exit::Refused,
        AskError::Late { .. } => Exit::Timeout,
        AskError::Refused { refusal, .. } => match refusal {
            Refusal::Waiting | Refusal::Outdated => Exit::Timeout,
            Refusal::Withdrawn | Refusal::Missing => Exit::Missing,
            Refusal::Denied => Exit::Refused,
            Refusal::Busy | Refusal::Malformed => Exit::Unavailable,
        },
    };
    Failure::new(exit, error)
}
