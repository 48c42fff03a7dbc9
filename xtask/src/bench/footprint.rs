//! What Fender's processes hold in memory when nothing happens: a sidecar alone, one under a control
//! plane, and that control plane.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::net::{free_port, is_listening};
use super::process::{self, Process};
use super::results::Footprint;
use super::subject::{Spec, Subject};
use super::{SUBJECT_CORE, Workshop};
use crate::command;

pub(super) fn measure(workshop: &Workshop) -> Result<Vec<Footprint>> {
    let spec = Spec::of("fender").context("no row for Fender")?;
    let alone = Subject::prepare(spec, workshop)?.start()?;
    let mut footprints = vec![of("sidecar, standalone", &alone)?];
    drop(alone);
    let (control, sidecar) = start_mesh(workshop)?;
    footprints.push(of("sidecar, with a control plane", &sidecar)?);
    footprints.push(of("control plane, one sidecar", &control)?);
    Ok(footprints)
}

fn of(name: &str, process: &Process) -> Result<Footprint> {
    // Long enough for what start-up allocated to be given back.
    std::thread::sleep(Duration::from_secs(2));
    let memory = process::memory(&process.pids())?;
    Ok(Footprint {
        process: name.to_owned(),
        rss_mb: memory.resident as f64 / 1e6,
        pss_mb: memory.proportional as f64 / 1e6,
    })
}

fn start_mesh(workshop: &Workshop) -> Result<(Process, Process)> {
    let directory = workshop.work.join("mesh");
    fs::create_dir_all(directory.join("documents")).context("make a directory")?;
    let (control_port, port) = (free_port()?, free_port()?);
    fs::write(directory.join("documents/bench.yaml"), documents(port))
        .context("write documents")?;
    let address = format!("127.0.0.1:{control_port}");
    let url = format!("https://{address}");
    let fender = |arguments: &[&str]| {
        let mut command = Command::new(&workshop.fender);
        command.current_dir(&directory).args(arguments);
        command
    };

    let mut control = fender(&["control", "--data-dir", "data", "--documents", "documents"]);
    control.args(["--listen", &address]);
    let mut control = Process::start(SUBJECT_CORE, control, &directory.join("control.log"))?;
    let admin = directory.join("data/admin/certificate.pem");
    control.wait_until("listener", || admin.is_file() && is_listening(control_port))?;

    create_token(workshop, &directory, &url)?;
    let mut sidecar = fender(&["sidecar", "--token-file", "token", "--state", "state"]);
    sidecar.args(["--control", &url]);
    let mut sidecar = Process::start(SUBJECT_CORE, sidecar, &directory.join("sidecar.log"))?;
    sidecar.wait_until("listener", || is_listening(port))?;
    Ok((control, sidecar))
}

fn create_token(workshop: &Workshop, directory: &Path, url: &str) -> Result<()> {
    let mut create = Command::new(&workshop.fender);
    create
        .current_dir(directory)
        .args(["token", "create", "bench/server", "--out", "token"]);
    command::output(create.args(["--admin", "data/admin", "--control", url]))?;
    Ok(())
}

fn documents(port: u16) -> String {
    format!(
        r#"apiVersion: fender.dev/v1
kind: Mesh
metadata: {{ name: bench }}
spec:
  trustDomain: {trust_domain}
---
apiVersion: fender.dev/v1
kind: Workload
metadata: {{ namespace: bench, name: server }}
spec:
  attest: [ {{ token: {{}} }} ]
  inbound: [ {{ listen: "127.0.0.1:{port}", app: "127.0.0.1:9", protocol: http }} ]
"#,
        trust_domain = super::pki::TRUST_DOMAIN,
    )
}
