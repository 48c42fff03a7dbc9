//! `fender crl`: the revocation lists of the mesh's authorities, for whoever verifies its certificates and is not Fender.

use std::fs;
use std::io::Write as _;
use std::path::Path;

use anyhow::Context as _;
use fender_identity::crl_pem;
use fender_runtime::deadline::Deadline;
use fender_runtime::id::OpaqueId;

use crate::admin::{CALL_TIME, connect, refused};
use crate::exit::{Failure, Outcome};
use crate::{cli, print};

const FILE: &str = "crl.pem";

pub(crate) async fn write(args: cli::Crl) -> Outcome {
    let lists = connect(&args.admin)
        .await?
        .revocation_lists(Deadline::after(CALL_TIME))
        .await
        .map_err(refused)?;
    let pem: String = lists.iter().map(|list| crl_pem(list)).collect();
    if args.output == Path::new("-") {
        return print(&pem);
    }
    let path = args.output.join(FILE);
    replace(&path, &pem)
        .with_context(|| format!("write `{}`", path.display()))
        .map_err(Failure::unavailable)?;
    print(&format!("{} lists in {}\n", lists.len(), path.display()))
}

/// Whoever reads it meanwhile finds the old file or the new one. It is no secret.
fn replace(path: &Path, text: &str) -> std::io::Result<()> {
    let fresh = path.with_file_name(format!(".{FILE}.{}", OpaqueId::random()));
    let written = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(&fresh)
        .and_then(|mut file| {
            file.write_all(text.as_bytes())
                .and_then(|()| file.sync_all())
        })
        .and_then(|()| fs::rename(&fresh, path));
    written.inspect_err(|_| {
        // What could not be put in place must not stay beside it.
        let _ = fs::remove_file(&fresh);
    })
}
