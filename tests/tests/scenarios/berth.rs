//! Where one sidecar after the other lies: a configuration, its certificates, its applications, its sockets.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use fender_tests::pki::{Authority, Template};
use fender_tests::process::{
    PATIENCE, Process, binary, free_address, is_ready, output, put_program,
};
use fender_tests::{Client, Nginx};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::standalone::{CALLER, ORDERS};

pub(crate) struct Berth {
    directory: TempDir,
    pub(crate) authority: Authority,
    pub(crate) address: SocketAddr,
    tunnel: SocketAddr,
    _nginx: Nginx,
    _echo: JoinSet<()>,
}

impl Berth {
    /// Nobody lies here yet. `drain` is what documents say.
    pub(crate) fn new(drain: &str) -> Self {
        let directory = tempfile::Builder::new()
            .prefix("fender-test-")
            .tempdir()
            .unwrap();
        let nginx = Nginx::start(directory.path());
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let echo = listener.local_addr().unwrap();
        let listener = TcpListener::from_std(listener).unwrap();
        let authority = Authority::new("example.org");
        let identity = directory.path().join("identity");
        authority.issue(&Template::svid(ORDERS)).write(&identity);
        authority.write_bundle(&identity);
        let berth = Self {
            address: free_address(),
            tunnel: free_address(),
            authority,
            directory,
            _nginx: nginx,
            _echo: JoinSet::from_iter([serve_tunnels(listener)]),
        };
        let app = berth._nginx.address;
        let Self {
            address, tunnel, ..
        } = &berth;
        let identity = identity.display();
        berth.configure(&format!(
            r#"apiVersion: fender.dev/v1
kind: Sidecar
metadata: {{ namespace: shop, name: orders }}
spec:
  drain: {drain}
  identity: {{ files: {{ certificate: {identity}/certificate.pem, key: {identity}/key.pem, bundle: {identity}/bundle.pem }} }}
  inbound:
    - {{ listen: "{address}", app: "{app}", protocol: http }}
    - {{ listen: "{tunnel}", app: "{echo}", protocol: http }}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{ namespace: shop, name: callers }}
spec:
  action: ALLOW
  rules: [ {{ from: [ {{ source: {{ serviceAccounts: [ shop/caller ] }} }} ] }} ]
"#
        ));
        // The path at which it is replaced.
        symlink(binary(), berth.program()).unwrap();
        berth
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn program(&self) -> PathBuf {
        self.path("fender")
    }

    pub(crate) fn replace_program_by_script(&self, script: &Path, text: &str) {
        let (written, fresh) = (self.path("written"), self.path("fresh"));
        fs::write(&written, text).unwrap();
        put_program(&written, &fresh);
        fs::rename(&fresh, script).unwrap();
        symlink(script, &fresh).unwrap();
        fs::rename(fresh, self.program()).unwrap();
    }

    /// What the application serves below `/file/`.
    pub(crate) fn put_file(&self, name: &str, bytes: &[u8]) {
        let home = format!("nginx-{}/files", self._nginx.address.port());
        fs::write(self.path(&home).join(name), bytes).unwrap();
    }

    pub(crate) fn config(&self) -> String {
        fs::read_to_string(self.path("sidecar.yaml")).unwrap()
    }

    pub(crate) fn configure(&self, text: &str) {
        let fresh = self.path("sidecar.yaml.new");
        fs::write(&fresh, text).unwrap();
        fs::rename(fresh, self.path("sidecar.yaml")).unwrap();
    }

    pub(crate) fn upgrade_socket(&self) -> PathBuf {
        self.path("private/upgrade.sock")
    }

    pub(crate) fn admin_socket(&self) -> String {
        self.path("admin.sock").to_string_lossy().into_owned()
    }

    pub(crate) fn arguments(&self) -> Vec<String> {
        self.arguments_for(&self.path("sidecar.yaml"))
    }

    fn arguments_for(&self, config: &Path) -> Vec<String> {
        let (upgrade, access) = (self.upgrade_socket(), self.path("access.log"));
        [
            "--log",
            "debug",
            "sidecar",
            "--access-log",
            &access.to_string_lossy(),
            "--admin-socket",
            &self.admin_socket(),
            "--upgrade-socket",
            &upgrade.to_string_lossy(),
            "--config",
            &config.to_string_lossy(),
        ]
        .map(ToOwned::to_owned)
        .into()
    }

    pub(crate) fn command(&self) -> Command {
        self.command_for(&self.path("sidecar.yaml"))
    }

    pub(crate) fn command_for(&self, config: &Path) -> Command {
        let mut command = Command::new(self.program());
        command
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin")
            .args(self.arguments_for(config));
        command
    }

    /// All that lie here write one log.
    pub(crate) fn start(&self, command: &mut Command) -> Process {
        Process::start("berthed", command, &self.path("log"))
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// What all of them say of requests.
    pub(crate) fn access_log(&self) -> String {
        fs::read_to_string(self.path("access.log")).unwrap_or_default()
    }

    pub(crate) fn is_ready(&self) -> bool {
        is_ready(&self.path("admin.sock"))
    }

    pub(crate) fn wait_ready(&self, process: &mut Process) {
        process.wait_ready(&self.path("admin.sock"));
    }

    /// `fender upgrade` or `fender reload`: code, output, error.
    pub(crate) fn ask(&self, command: &str) -> (i32, String, String) {
        let socket = self.upgrade_socket();
        output(binary(), &[command, "--sidecar", &socket.to_string_lossy()])
    }

    pub(crate) fn client(&self) -> Client {
        self.client_at(self.address)
    }

    fn client_at(&self, address: SocketAddr) -> Client {
        let issued = self.authority.issue(&Template::svid(CALLER));
        Client::new(&[self.authority.root()], Some(issued.identity()), address)
    }

    /// Which process listens at the address. Looking into processes that hide their memory takes root.
    pub(crate) fn serving(&self) -> u32 {
        let holders = self.holders();
        assert_eq!(
            holders.len(),
            1,
            "run the tests as root, and one sidecar at a time: {holders:?}"
        );
        holders[0]
    }

    pub(crate) fn kill_serving(&self) {
        let pid = rustix::process::Pid::from_raw(self.serving() as i32).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    }

    /// The processes that accept at the address: those that have its listening socket open.
    fn holders(&self) -> Vec<u32> {
        let port = format!(":{:04X} ", self.address.port());
        let table = fs::read_to_string("/proc/net/tcp").unwrap();
        let listening = table.lines().filter(|line| line.contains(" 0A "));
        let inode = listening
            .filter(|line| {
                line.split_whitespace()
                    .nth(1)
                    .is_some_and(|local| format!("{local} ").ends_with(&port))
            })
            .filter_map(|line| line.split_whitespace().nth(9).map(ToOwned::to_owned))
            .next()
            .expect("the address is listened on");
        let socket = format!("socket:[{inode}]");
        let processes = fs::read_dir("/proc").unwrap().filter_map(Result::ok);
        let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let holds = |pid: &u32| {
            let open = fs::read_dir(format!("/proc/{pid}/fd"))
                .into_iter()
                .flatten();
            open.filter_map(Result::ok).any(|file| {
                fs::read_link(file.path()).is_ok_and(|to| to.to_string_lossy() == socket)
            })
        };
        pids.filter(holds).collect()
    }

    /// Whether a process has a socket that is connected to where successors are received.
    pub(crate) fn waits_for_upgrade_socket(&self, pid: u32) -> bool {
        // In the listener's queue: a connected socket of that name that nobody has accepted.
        let table = fs::read_to_string("/proc/net/unix").unwrap();
        let path = self.upgrade_socket();
        let named = table
            .lines()
            .filter(|line| line.ends_with(path.to_str().unwrap()));
        assert!(Path::new(&format!("/proc/{pid}")).exists());
        named.count() > 1
    }
}

/// A WebSocket, or what a proxy sees of one.
pub(crate) struct Tunnel(tokio_rustls::client::TlsStream<TcpStream>);

impl Tunnel {
    pub(crate) async fn open(berth: &Berth) -> Self {
        let client = berth.client_at(berth.tunnel).with_alpn(&[b"http/1.1"]);
        let mut stream = client.connect().await.unwrap();
        let request =
            "GET /chat HTTP/1.1\r\nhost: o\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        assert!(
            head.starts_with(b"HTTP/1.1 101 "),
            "{}",
            String::from_utf8_lossy(&head)
        );
        Self(stream)
    }

    pub(crate) async fn echoes(&mut self) {
        self.0.write_all(b"ahoy").await.unwrap();
        let mut heard = [0; 4];
        self.0.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b"ahoy");
    }

    /// Whatever ends it, it ends.
    pub(crate) async fn end(mut self) {
        let mut rest = Vec::new();
        let read = tokio::time::timeout(PATIENCE, self.0.read_to_end(&mut rest)).await;
        let _ = read.expect("the tunnel is cut");
        assert!(rest.is_empty());
    }
}

/// An application that answers every request with a tunnel to itself.
async fn serve_tunnels(listener: TcpListener) {
    let mut tunnels = JoinSet::<std::io::Result<u64>>::new();
    while let Ok((mut socket, _)) = listener.accept().await {
        tunnels.spawn(async move {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(socket.read_u8().await?);
            }
            let answer = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
            socket.write_all(answer.as_bytes()).await?;
            let (mut read, mut write) = socket.split();
            tokio::io::copy(&mut read, &mut write).await
        });
    }
}
