//! The demo's world: a temporary directory, free ports, documents and the real processes.
//!
//! Everything is started as a user would start it, through this same binary's command line, and
//! everything is gone when the world ends: processes are ended by pid, the directory is removed.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as SocketName, UnixListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;
use tokio::process::{Child, Command};
use tokio::time::Instant;

pub(crate) const TRUST_DOMAIN: &str = "demo.internal";
const PATIENCE: Duration = Duration::from_secs(20);
const STOP_PATIENCE: Duration = Duration::from_secs(8);

/// Where everything listens.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ports {
    pub(crate) control: SocketAddr,
    pub(crate) orders: SocketAddr,
    pub(crate) orders_app: SocketAddr,
    pub(crate) orders_to_inventory: SocketAddr,
    pub(crate) inventory: SocketAddr,
    pub(crate) inventory_app: SocketAddr,
    pub(crate) rogue_to_inventory: SocketAddr,
}

/// Ports in a row, so that whoever sees one knows the others.
const BLOCK: u16 = 10;
const BLOCKS: std::ops::RangeInclusive<u16> = 1843..=3199;

/// Ten ports that no other demo on this machine takes.
struct Block {
    first: u16,
    /// Held as long as the ports are: an abstract name that only one process can have.
    _claim: UnixListener,
}

impl Block {
    /// The first block, with its familiar numbers, unless another demo or program is there.
    fn claim() -> Result<Self> {
        BLOCKS
            .map(|number| number * BLOCK)
            .find_map(|first| {
                let name = SocketName::from_abstract_name(format!("fender-demo-{first}")).ok()?;
                let claim = UnixListener::bind_addr(&name).ok()?;
                let free = |port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok();
                (first..first + BLOCK).all(free).then_some(Self {
                    first,
                    _claim: claim,
                })
            })
            .context("find ten free ports between 18430 and 32000")
    }
}

impl Ports {
    fn within(block: &Block) -> Self {
        let at = |offset| SocketAddr::from((Ipv4Addr::LOCALHOST, block.first + offset));
        Self {
            control: at(0),
            orders: at(3),
            orders_app: at(4),
            orders_to_inventory: at(5),
            inventory: at(6),
            inventory_app: at(7),
            rogue_to_inventory: at(8),
        }
    }
}

pub(crate) struct World {
    pub(crate) ports: Ports,
    _block: Block,
    directory: TempDir,
    binary: PathBuf,
    children: Vec<(&'static str, Child)>,
}

impl World {
    pub(crate) fn new(leaf: &str) -> Result<Self> {
        let directory = tempfile::Builder::new()
            .prefix("fender-demo-")
            .tempdir()
            .context("make a temporary directory")?;
        let block = Block::claim()?;
        let world = Self {
            ports: Ports::within(&block),
            _block: block,
            directory,
            binary: std::env::current_exe().context("find this program")?,
            children: Vec::new(),
        };
        for name in ["documents", "source", "delivered", "logs", "tokens"] {
            fs::create_dir(world.path(name))?;
        }
        fs::write(world.path("documents/demo.yaml"), world.documents(leaf))?;
        Ok(world)
    }

    pub(crate) fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn admin(&self) -> PathBuf {
        self.path("control/admin")
    }

    pub(crate) fn control_url(&self) -> String {
        format!("https://{}", self.ports.control)
    }

    pub(crate) fn set_credential(&self, value: &str) -> Result<()> {
        // As an editor would: a new file in place of the old one.
        let (fresh, path) = (self.path("source/.api-key"), self.path("source/api-key"));
        fs::write(&fresh, value)?;
        fs::rename(&fresh, &path).context("write the credential's source")
    }

    pub(crate) async fn start(&mut self) -> Result<()> {
        self.set_credential("the-demo-credential-number-1")?;
        let control = [
            OsStr::new("control"),
            OsStr::new("--data-dir"),
            self.path("control").as_os_str(),
            OsStr::new("--documents"),
            self.path("documents").as_os_str(),
            OsStr::new("--allow-dir"),
            self.path("source").as_os_str(),
            OsStr::new("--listen"),
            OsStr::new(&self.ports.control.to_string()),
        ]
        .map(OsStr::to_owned);
        self.spawn("control", control)?;
        self.wait_for("the control plane", &["status", "--output", "json"])
            .await?;

        let (orders_app, inventory_app) = (
            self.ports.orders_app.to_string(),
            self.ports.inventory_app.to_string(),
        );
        let inventory = self.ports.orders_to_inventory.to_string();
        let credential = self.path("delivered/api-key");
        self.sidecar(
            "inventory",
            &[
                "demo-app",
                "--name",
                "inventory",
                "--listen",
                &inventory_app,
            ],
        )
        .await?;
        self.sidecar(
            "orders",
            &[
                "demo-app",
                "--name",
                "orders",
                "--listen",
                &orders_app,
                "--inventory",
                &inventory,
                "--credential",
                &credential.to_string_lossy(),
            ],
        )
        .await?;
        self.sidecar("rogue", &[]).await?;
        self.reachable(self.ports.orders_app).await?;
        self.reachable(self.ports.inventory_app).await
    }

    /// A join token, then the sidecar that uses it, then its application if it has one.
    async fn sidecar(&mut self, name: &'static str, app: &[&str]) -> Result<()> {
        let token = self.path(format!("tokens/{name}"));
        let workload = format!("shop/{name}");
        self.run(&[
            "token",
            "create",
            &workload,
            "--ttl",
            "1m",
            "--out",
            &token.to_string_lossy(),
        ])
        .await?;
        let mut arguments: Vec<_> = ["sidecar", "--control", &self.control_url(), "--token-file"]
            .map(Into::into)
            .to_vec();
        arguments.push(token.into_os_string());
        arguments.push("--state".into());
        arguments.push(self.path(format!("state-{name}")).into_os_string());
        arguments.push("--allow-dir".into());
        arguments.push(self.path("delivered").into_os_string());
        if !app.is_empty() {
            arguments.push("--".into());
            arguments.push(self.binary.clone().into_os_string());
            arguments.extend(app.iter().map(Into::into));
        }
        self.spawn(name, arguments)?;
        let socket = self.path(format!("state-{name}/admin.sock"));
        self.wait_for(
            name,
            &["status", "--sidecar", &socket.to_string_lossy(), "--ready"],
        )
        .await
    }

    fn spawn(
        &mut self,
        name: &'static str,
        arguments: impl IntoIterator<Item = std::ffi::OsString>,
    ) -> Result<()> {
        let log = File::create(self.path(format!("logs/{name}.log")))?;
        let child = Command::new(&self.binary)
            .arg("--tethered")
            .args(arguments)
            .env_clear()
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("start {name}"))?;
        self.children.push((name, child));
        Ok(())
    }

    /// Runs a command of this binary to its end, as the demo's administrator.
    pub(crate) async fn run(&self, arguments: &[&str]) -> Result<String> {
        let output = self.command(arguments).output().await?;
        ensure!(
            output.status.success(),
            "`fender {}` failed: {}",
            arguments.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command
            .arg("--tethered")
            .args(arguments)
            .env_clear()
            .env("FENDER_ADMIN", self.admin())
            .env("FENDER_CONTROL", self.control_url())
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }

    /// Repeats a command until it succeeds.
    async fn wait_for(&mut self, who: &str, arguments: &[&str]) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if self.run(arguments).await.is_ok() {
                return Ok(());
            }
            self.all_running().await?;
            ensure!(
                Instant::now() < deadline,
                "{who} is not ready after {}s\n{}",
                PATIENCE.as_secs(),
                self.log_tail(who)
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn reachable(&self, address: SocketAddr) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while tokio::net::TcpStream::connect(address).await.is_err() {
            ensure!(Instant::now() < deadline, "nothing listens on {address}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    pub(crate) async fn all_running(&mut self) -> Result<()> {
        let mut ended = None;
        for (name, child) in &mut self.children {
            if let Some(status) = child.try_wait()? {
                ended = Some((*name, status));
            }
        }
        match ended {
            Some((name, status)) => bail!("{name} ended: {status}\n{}", self.log_tail(name)),
            None => Ok(()),
        }
    }

    pub(crate) fn log_tail(&self, name: &str) -> String {
        let text = fs::read_to_string(self.path(format!("logs/{name}.log"))).unwrap_or_default();
        let lines: Vec<_> = text.lines().rev().take(12).collect();
        lines
            .into_iter()
            .rev()
            .map(|line| format!("    {line}\n"))
            .collect()
    }

    /// Ends every process, sidecars before the control plane, and removes the directory.
    pub(crate) async fn end(mut self) -> Result<()> {
        for (_, child) in &self.children {
            terminate(child);
        }
        for (name, child) in self.children.iter_mut().rev() {
            if tokio::time::timeout(STOP_PATIENCE, child.wait())
                .await
                .is_err()
            {
                child.kill().await.with_context(|| format!("kill {name}"))?;
            }
        }
        let path = self.directory.path().to_owned();
        self.directory
            .close()
            .with_context(|| format!("remove {}", path.display()))
    }

    fn documents(&self, leaf: &str) -> String {
        let Ports {
            orders,
            orders_app,
            orders_to_inventory,
            inventory,
            inventory_app,
            rogue_to_inventory,
            ..
        } = self.ports;
        let (source, delivered) = (self.path("source/api-key"), self.path("delivered/api-key"));
        let (source, delivered) = (source.display(), delivered.display());
        format!(
            r#"apiVersion: fender.dev/v1
kind: Mesh
metadata: {{ name: demo }}
spec:
  trustDomain: {TRUST_DOMAIN}
  profile: development
  lifetimes: {{ leaf: {leaf} }}
---
apiVersion: fender.dev/v1
kind: Workload
metadata: {{ namespace: shop, name: orders, labels: {{ app: orders }} }}
spec:
  attest: [ {{ token: {{}} }} ]
  dnsNames: [ localhost ]
  inbound:  [ {{ listen: "{orders}", app: "{orders_app}", protocol: http }} ]
  outbound: [ {{ listen: "{orders_to_inventory}", service: shop/inventory }} ]
  credentials: [ api-key ]
---
apiVersion: fender.dev/v1
kind: Workload
metadata: {{ namespace: shop, name: inventory, labels: {{ app: inventory }} }}
spec:
  attest: [ {{ token: {{}} }} ]
  dnsNames: [ localhost ]
  inbound: [ {{ listen: "{inventory}", app: "{inventory_app}", protocol: http, advertise: "{inventory}" }} ]
---
apiVersion: fender.dev/v1
kind: Workload
metadata: {{ namespace: shop, name: rogue }}
spec:
  attest: [ {{ token: {{}} }} ]
  outbound: [ {{ listen: "{rogue_to_inventory}", service: shop/inventory }} ]
---
apiVersion: fender.dev/v1
kind: Credential
metadata: {{ namespace: shop, name: api-key }}
spec:
  source: {{ file: {{ path: "{source}", via: control }} }}
  deliver: [ {{ file: {{ path: "{delivered}", mode: "0400", storage: disk }} }} ]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{ namespace: shop, name: people-may-read-orders }}
spec:
  selector: {{ matchLabels: {{ app: orders }} }}
  action: ALLOW
  rules:
    - from: [ {{ source: {{ namespaces: [ people ] }} }} ]
      to: [ {{ operation: {{ methods: [ GET ] }} }} ]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{ namespace: shop, name: orders-may-ask-inventory }}
spec:
  selector: {{ matchLabels: {{ app: inventory }} }}
  action: ALLOW
  rules:
    - from: [ {{ source: {{ principals: [ "{TRUST_DOMAIN}/ns/shop/sa/orders" ] }} }} ]
      to: [ {{ operation: {{ methods: [ GET ], paths: [ "/stock/*" ] }} }} ]
"#
        )
    }
}

fn terminate(child: &Child) {
    let pid = child
        .id()
        .and_then(|id| i32::try_from(id).ok())
        .and_then(rustix::process::Pid::from_raw);
    if let Some(pid) = pid {
        // It may have ended by itself, which is what is wanted.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
    }
}
