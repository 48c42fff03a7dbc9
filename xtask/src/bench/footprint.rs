//! What an idle sidecar holds in memory: alone, and under a control plane.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::Workshop;
use super::process::{self, Process};
use super::rig::{free_port, is_listening};
use crate::command;

const CORE: usize = 0;

pub(super) fn report(workshop: &Workshop) -> Result<String> {
    let mut page = String::from("| | RSS MB | PSS MB | processes |\n|---|--:|--:|--:|\n");
    let alone = start_alone(workshop)?;
    row(&mut page, "sidecar, standalone", &alone)?;
    drop(alone);
    let (control, sidecar) = start_mesh(workshop)?;
    row(&mut page, "sidecar, with a control plane", &sidecar)?;
    row(&mut page, "control plane, one sidecar", &control)?;
    Ok(page)
}

fn row(page: &mut String, name: &str, process: &Process) -> Result<()> {
    // Long enough for what start-up allocated to be given back.
    std::thread::sleep(Duration::from_secs(2));
    let pids = process.pids();
    let memory = process::memory(&pids)?;
    let megabytes = |bytes: u64| bytes as f64 / 1e6;
    writeln!(
        page,
        "| {name} | {:.1} | {:.1} | {} |",
        megabytes(memory.resident),
        megabytes(memory.proportional),
        pids.len()
    )?;
    Ok(())
}

fn start_alone(workshop: &Workshop) -> Result<Process> {
    let directory = workshop.work.join("alone");
    fs::create_dir_all(&directory).context("make a directory")?;
    let port = free_port()?;
    let template = fs::read_to_string(workshop.root.join("bench/conf/fender.yaml"))
        .context("read the sidecar's template")?;
    let text = template
        .replace("@@PKI@@", &workshop.pki.to_string_lossy())
        .replace("@@MTLS@@", &port.to_string())
        .replace("@@APP@@", "9");
    fs::write(directory.join("fender.yaml"), text).context("write a configuration")?;
    let fender = workshop.fender.to_string_lossy();
    let command = [&*fender, "sidecar", "--config", "fender.yaml"];
    let mut process = Process::start(CORE, &command, &directory, &directory.join("log"))?;
    process.wait_until("listener", || is_listening(port))?;
    Ok(process)
}

fn start_mesh(workshop: &Workshop) -> Result<(Process, Process)> {
    let directory = workshop.work.join("mesh");
    fs::create_dir_all(directory.join("documents")).context("make a directory")?;
    let (control_port, port) = (free_port()?, free_port()?);
    fs::write(directory.join("documents/bench.yaml"), documents(port))
        .context("write documents")?;
    let fender = workshop.fender.to_string_lossy();
    let url = format!("https://127.0.0.1:{control_port}");

    let address = format!("127.0.0.1:{control_port}");
    let command = [
        &*fender,
        "control",
        "--data-dir",
        "data",
        "--documents",
        "documents",
        "--listen",
        &address,
    ];
    let mut control = Process::start(CORE, &command, &directory, &directory.join("control.log"))?;
    let admin = directory.join("data/admin/certificate.pem");
    control.wait_until("listener", || admin.is_file() && is_listening(control_port))?;

    create_token(workshop, &directory, &url)?;
    let command = [
        &*fender,
        "sidecar",
        "--control",
        &url,
        "--token-file",
        "token",
        "--state",
        "state",
    ];
    let mut sidecar = Process::start(CORE, &command, &directory, &directory.join("sidecar.log"))?;
    sidecar.wait_until("listener", || is_listening(port))?;
    Ok((control, sidecar))
}

fn create_token(workshop: &Workshop, directory: &Path, url: &str) -> Result<()> {
    let mut create = std::process::Command::new(&workshop.fender);
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
