//! What runs beside others and serves them: the control plane, the sidecar, the agent; and what becomes a command.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use fender_api::url::ControlUrl;
use fender_config::HttpsUrl;
use fender_control::ReplicaName;
use fender_identity::tls::CaPin;
use fender_identity::{NodeName, TrustDomain, WorkloadName};
use fender_runtime::lines;
use fender_runtime::listen::LocalAddress;

use super::{access_log, ca_pin, directory, duration, local_address, unix_url};

#[derive(Args, Debug, Clone)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Control {
    #[command(subcommand)]
    pub(crate) command: Option<ControlCommand>,
    #[command(flatten)]
    pub(crate) foundation: Foundation,
    /// Where sidecars and administrators connect
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:7443")]
    pub(crate) listen: SocketAddr,
    /// Where the other replicas reach this one [default: where it listens]
    #[arg(long, value_name = "URL", requires = "store")]
    pub(crate) replica_url: Option<ControlUrl>,
    /// A name by which clients reach the control plane, for those that verify names (repeatable)
    #[arg(long = "dns-name", value_name = "NAME")]
    pub(crate) dns_names: Vec<String>,
    /// A directory in which documents may have the control plane read credentials (repeatable; default: none)
    #[arg(long = "allow-dir", value_name = "DIR", value_parser = directory)]
    pub(crate) allow_dir: Vec<PathBuf>,
    /// Where health checks and a monitoring system reach this control plane [default: admin.sock in the data directory]
    #[arg(long, value_name = "PATH", env = "FENDER_ADMIN_SOCKET")]
    pub(crate) admin_socket: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) health: Health,
    /// Put a new administrator's certificate into the data directory and exit
    #[arg(long)]
    pub(crate) reissue_admin: bool,
    #[command(flatten)]
    pub(crate) embedded: Embedded,
}

/// The agent of the one machine that a control plane runs on.
#[derive(Args, Debug, Clone)]
#[group(skip)]
pub(crate) struct Embedded {
    /// Run this machine's agent in the same process, at the path of a Unix socket or unix-abstract:NAME; where there are more machines, `fender agent` is a process of its own
    #[arg(long, value_name = "ADDRESS", value_parser = local_address, requires = "node")]
    pub(crate) agent_socket: Option<LocalAddress>,
    /// Which node this machine is
    #[arg(long, value_name = "NAME", requires = "agent_socket")]
    pub(crate) node: Option<NodeName>,
    /// The socket of this machine's container engine, as unix:///PATH, for the agent
    #[arg(long, value_name = "URL", value_parser = unix_url, requires = "agent_socket")]
    pub(crate) docker: Option<PathBuf>,
}

#[derive(Subcommand, Debug, Clone)]
pub(crate) enum ControlCommand {
    /// Found a control plane and exit: its authority, its first revision, the first administrator's key, each made once
    Init(Foundation),
}

/// What a control plane stands on: the same at its founding and at every start.
#[derive(Args, Debug, Clone)]
#[group(skip)]
pub(crate) struct Foundation {
    /// Where the database, the authority's keys and the first administrator's certificate live
    #[arg(
        long,
        value_name = "DIR",
        env = "FENDER_DATA_DIR",
        default_value = "fender-data"
    )]
    pub(crate) data_dir: PathBuf,
    /// Where the first administrator's certificate is put, to be handed on without the rest [default: admin in the data directory]
    #[arg(long, value_name = "DIR")]
    pub(crate) admin_dir: Option<PathBuf>,
    /// A PostgreSQL database for the registry: postgres://USER@HOST:PORT/DATABASE [default: SQLite in the data directory]
    #[arg(long, value_name = "URL", env = "FENDER_STORE")]
    pub(crate) store: Option<String>,
    /// A file with mode 0600 that holds the password for the database
    #[arg(long, value_name = "FILE", requires = "store")]
    pub(crate) store_password_file: Option<PathBuf>,
    /// Authorities in PEM that vouch for the database's server
    #[arg(long, value_name = "FILE", requires = "store")]
    pub(crate) store_roots: Option<PathBuf>,
    /// A client certificate in PEM for the database
    #[arg(long, value_name = "FILE", requires = "store_key")]
    pub(crate) store_certificate: Option<PathBuf>,
    /// The key of the client certificate, in PEM, with mode 0600
    #[arg(long, value_name = "FILE", requires = "store_certificate")]
    pub(crate) store_key: Option<PathBuf>,
    /// Documents to load at start; they become a new revision when they differ from the current one
    #[arg(long, value_name = "DIR")]
    pub(crate) documents: Option<PathBuf>,
    /// The trust domain, when no `Mesh` document names it
    #[arg(long, value_name = "DOMAIN")]
    pub(crate) trust_domain: Option<TrustDomain>,
    /// What this replica is called among those over one database [default: after an id made at the first start, which the data directory keeps]
    #[arg(long, value_name = "NAME", env = "FENDER_REPLICA")]
    pub(crate) replica: Option<ReplicaName>,
    #[command(flatten)]
    pub(crate) sealing: Sealing,
    #[command(flatten)]
    pub(crate) upstream: Upstream,
}

/// Who signs the intermediates, instead of a root that is made and kept here. Secrets are in files.
#[derive(Args, Debug, Clone)]
#[group(skip)]
pub(crate) struct Upstream {
    /// Where the key of the mesh's root is, if not here: people sign the intermediates, see `fender ca create-root`
    #[arg(
        long,
        value_enum,
        value_name = "WHERE",
        conflicts_with_all = ["upstream_certificate", "upstream_vault", "upstream_roots"]
    )]
    pub(crate) root: Option<RootPlace>,
    /// An intermediate authority in PEM, then what lies between it and its root; read again whenever it changes
    #[arg(
        long,
        value_name = "FILE",
        requires = "upstream_key",
        requires = "upstream_roots",
        conflicts_with = "upstream_vault"
    )]
    pub(crate) upstream_certificate: Option<PathBuf>,
    /// The intermediate's key, PKCS#8 on P-256 in PEM, with mode 0600
    #[arg(long, value_name = "FILE", requires = "upstream_certificate")]
    pub(crate) upstream_key: Option<PathBuf>,
    /// The root that intermediates chain to, in PEM [default: the one that Vault names]
    #[arg(long, value_name = "FILE")]
    pub(crate) upstream_roots: Option<PathBuf>,
    /// Vault or OpenBao, whose PKI engine signs the intermediates: https://HOST:PORT
    #[arg(
        long,
        value_name = "URL",
        requires = "upstream_vault_token_file",
        requires = "upstream_vault_ca"
    )]
    pub(crate) upstream_vault: Option<HttpsUrl>,
    /// Where the PKI engine is mounted
    #[arg(long, value_name = "PATH", default_value = "pki", value_parser = vault_path)]
    pub(crate) upstream_vault_mount: String,
    /// Which issuer of the PKI engine signs [default: its default issuer]
    #[arg(long, value_name = "NAME", value_parser = vault_path)]
    pub(crate) upstream_vault_issuer: Option<String>,
    /// The namespace in Vault
    #[arg(long, value_name = "NAME", value_parser = vault_path)]
    pub(crate) upstream_vault_namespace: Option<String>,
    /// A file with mode 0600 that holds a token for Vault; read with every call
    #[arg(long, value_name = "FILE", requires = "upstream_vault")]
    pub(crate) upstream_vault_token_file: Option<PathBuf>,
    /// Authorities in PEM that vouch for Vault's server
    #[arg(long, value_name = "FILE", requires = "upstream_vault")]
    pub(crate) upstream_vault_ca: Option<PathBuf>,
}

#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RootPlace {
    Offline,
}

/// Part of a path in Vault's API: nothing in it can lead elsewhere.
fn vault_path(text: &str) -> Result<String, String> {
    let plain = |part: &str| {
        !part.is_empty()
            && !part.starts_with('.')
            && part
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
    };
    match text.trim_matches('/').split('/').all(plain) {
        true => Ok(text.trim_matches('/').to_owned()),
        false => Err("letters, digits, `-`, `_` and `.`, between slashes".to_owned()),
    }
}

/// Where the key is that seals the authorities' keys in the database: 32 bytes, as they are, in hex or in base64.
#[derive(Args, Debug, Clone)]
#[group(skip)]
pub(crate) struct Sealing {
    /// A file, readable by its owner only, that holds the key which seals the authorities' keys [default: key in the data directory, made at the first start]
    #[arg(long, value_name = "FILE", group = "sealing_source")]
    pub(crate) sealing_key_file: Option<PathBuf>,
    /// The environment variable that holds it; it is removed from the environment
    #[arg(long, value_name = "NAME", group = "sealing_source")]
    pub(crate) sealing_key_env: Option<String>,
    /// The credential of the service manager that holds it (`LoadCredential=` of systemd)
    #[arg(long, value_name = "NAME", group = "sealing_source")]
    pub(crate) sealing_key_credential: Option<String>,
    /// Store the authorities' keys in the clear: whoever reads the database is the authority
    #[arg(long, value_enum, value_name = "HOW", group = "sealing_source")]
    pub(crate) sealing: Option<NoSealing>,
}

#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoSealing {
    NoneKeysInPlain,
}

#[derive(Args, Debug, Clone)]
pub(crate) struct Sidecar {
    #[command(flatten)]
    pub(crate) source: Source,
    /// Where `fender status`, `fender explain` and health checks reach this sidecar [default: admin.sock in the state directory]
    #[arg(long, value_name = "PATH", env = "FENDER_ADMIN_SOCKET")]
    pub(crate) admin_socket: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) workload_api: WorkloadApi,
    #[command(flatten)]
    pub(crate) telemetry: Telemetry,
    /// How long a supervised application may take to stop before it is killed
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "10s")]
    pub(crate) stop_timeout: Duration,
    /// Where a successor takes over from this sidecar, and `fender upgrade` and `fender reload` reach it; in a directory of its user's alone [default: upgrade.sock in the state directory]
    #[arg(
        long,
        value_name = "PATH",
        value_parser = directory,
        env = "FENDER_UPGRADE_SOCKET"
    )]
    pub(crate) upgrade_socket: Option<PathBuf>,
    /// Take the place of the sidecar that serves at this upgrade socket, without a connection lost; if none does, start as usual
    #[arg(
        long,
        value_name = "PATH",
        value_parser = directory,
        overrides_with = "take_over"
    )]
    pub(crate) take_over: Option<PathBuf>,
    /// Without an application, too, keep a small process above the proxy, so that it can be upgraded in place and is started again if it dies
    #[arg(long, conflicts_with = "command")]
    pub(crate) supervise: bool,
    /// Set by the supervisor on the proxy it starts
    #[arg(long, hide = true)]
    pub(crate) supervised: bool,
    /// The application to start once the sidecar is ready
    #[arg(last = true, value_name = "CMD")]
    pub(crate) command: Vec<std::ffi::OsString>,
}

/// Where others are told how it goes.
#[derive(Args, Debug, Clone)]
#[group(skip)]
pub(crate) struct Health {
    /// An address at which anybody who reaches it gets /livez, /readyz, /startupz and /metrics, for probes and monitoring systems that cannot use the admin socket [default: none]
    #[arg(long, value_name = "ADDRESS", env = "FENDER_TELEMETRY_LISTEN")]
    pub(crate) telemetry_listen: Option<SocketAddr>,
}

/// What a sidecar tells of its work.
#[derive(Args, Debug, Clone)]
#[group(skip)]
pub(crate) struct Telemetry {
    /// Where the access log goes, a line of JSON for each request: stderr, stdout, a file with its directory, or off; a file that was renamed is made anew
    #[arg(
        long,
        value_name = "WHERE",
        env = "FENDER_ACCESS_LOG",
        default_value = "stderr",
        value_parser = access_log
    )]
    pub(crate) access_log: lines::Destination,
    /// Whose traces are gone on with, by the fields `traceparent` and `tracestate`: those of callers of this mesh, or of anybody; other callers' do not reach the application
    #[arg(
        long,
        value_enum,
        value_name = "WHO",
        env = "FENDER_TRACES_FROM",
        default_value_t = TracesFrom::Mesh
    )]
    pub(crate) traces_from: TracesFrom,
    #[command(flatten)]
    pub(crate) health: Health,
}

#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TracesFrom {
    Mesh,
    Anybody,
}

impl From<TracesFrom> for fender_proxy::TracesFrom {
    fn from(from: TracesFrom) -> Self {
        match from {
            TracesFrom::Mesh => Self::Mesh,
            TracesFrom::Anybody => Self::Anybody,
        }
    }
}

/// A sidecar of this machine.
#[derive(Args, Debug, Clone)]
pub(crate) struct Upgrade {
    /// The upgrade socket of the sidecar: what its --upgrade-socket says, or upgrade.sock in its state directory
    #[arg(long, value_name = "PATH", env = "FENDER_UPGRADE_SOCKET")]
    pub(crate) sidecar: PathBuf,
}

/// Who beside the proxy may have the workload's identity.
#[derive(Args, Debug, Clone)]
#[group(skip)]
pub(crate) struct WorkloadApi {
    /// Serve the SPIFFE Workload API and Envoy's SDS at this Unix socket, to processes of the sidecar's own user; each gets a key of its own
    #[arg(long, value_name = "PATH", value_parser = directory)]
    pub(crate) workload_api: Option<PathBuf>,
    /// A user whose processes may call there, too (repeatable)
    #[arg(long, value_name = "UID", requires = "workload_api")]
    pub(crate) workload_api_uid: Vec<u32>,
}

/// Where identity and configuration come from: a control plane, or a file; and what they may touch here.
#[derive(Args, Debug, Clone)]
#[group(skip)]
pub(crate) struct Source {
    /// The control plane; of several replicas each (repeatable, or apart by commas)
    #[arg(
        long,
        value_name = "URL",
        env = "FENDER_CONTROL",
        value_delimiter = ',',
        required_unless_present = "config"
    )]
    pub(crate) control: Vec<String>,
    /// A file holding a join token; deleted once used
    #[arg(long, value_name = "FILE", conflicts_with = "config")]
    pub(crate) token_file: Option<PathBuf>,
    /// A file holding a projected service-account token of a Kubernetes cluster that the mesh knows
    #[arg(
        long,
        value_name = "FILE",
        conflicts_with_all = ["config", "token_file", "x509_certificate"],
        requires_all = ["trust_domain", "workload", "first_contact"]
    )]
    pub(crate) kubernetes_token_file: Option<PathBuf>,
    /// A certificate of another authority that the mesh knows, with its chain
    #[arg(
        long,
        value_name = "FILE",
        conflicts_with_all = ["config", "token_file"],
        requires_all = ["x509_key", "trust_domain", "workload", "first_contact"]
    )]
    pub(crate) x509_certificate: Option<PathBuf>,
    /// The key of that certificate
    #[arg(long, value_name = "FILE", requires = "x509_certificate")]
    pub(crate) x509_key: Option<PathBuf>,
    /// The socket of this host's agent, which says who this is: a path, or unix-abstract:NAME
    #[arg(
        long,
        value_name = "ADDRESS",
        conflicts_with_all = ["config", "token_file", "kubernetes_token_file", "x509_certificate"]
    )]
    pub(crate) agent: Option<LocalAddress>,
    /// The user that the agent runs as; whoever else listens at its socket hears nothing
    #[arg(long, value_name = "UID", requires = "agent", default_value_t = 0)]
    pub(crate) agent_uid: u32,
    /// The trust domain of the control plane, where no join token says it
    #[arg(long, value_name = "NAME", conflicts_with = "config")]
    pub(crate) trust_domain: Option<TrustDomain>,
    /// SHA-256 of a root the control plane must be vouched for by, as sha256:HEX (repeatable)
    #[arg(
        long,
        value_name = "HASH",
        value_parser = ca_pin,
        group = "first_contact",
        conflicts_with_all = ["config", "bundle"]
    )]
    pub(crate) ca_pin: Vec<CaPin>,
    /// The roots the control plane must be vouched for by, instead of their hashes
    #[arg(
        long,
        value_name = "FILE",
        group = "first_contact",
        conflicts_with = "config"
    )]
    pub(crate) bundle: Option<PathBuf>,
    /// Where key, certificate and configuration are kept across restarts
    #[arg(long, value_name = "DIR", conflicts_with = "config")]
    pub(crate) state: Option<PathBuf>,
    /// Run from this file, without a control plane
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// The identity that is expected; a token or state for another one is refused
    #[arg(long, value_name = "NAMESPACE/NAME", conflicts_with = "config")]
    pub(crate) workload: Option<WorkloadName>,
    /// A directory in which documents from the control plane may read and write files (repeatable; default: none)
    #[arg(long = "allow-dir", value_name = "DIR", value_parser = directory)]
    pub(crate) allow_dir: Vec<PathBuf>,
    /// How long to wait at start for identity, configuration and credentials
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "60s")]
    pub(crate) start_timeout: Duration,
}

#[derive(Args, Debug, Clone)]
pub(crate) struct Agent {
    /// The control plane; of several replicas each (repeatable, or apart by commas)
    #[arg(
        long,
        value_name = "URL",
        env = "FENDER_CONTROL",
        value_delimiter = ',',
        required = true
    )]
    pub(crate) control: Vec<String>,
    /// A file holding a join token made with `fender token create --node`; deleted once used
    #[arg(long, value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
    /// A file holding a projected service-account token of a Kubernetes cluster that the mesh knows
    #[arg(
        long,
        value_name = "FILE",
        conflicts_with_all = ["token_file", "x509_certificate"],
        requires_all = ["node", "trust_domain", "agents_first_contact"]
    )]
    pub(crate) kubernetes_token_file: Option<PathBuf>,
    /// A certificate of another authority that the mesh knows, with its chain
    #[arg(
        long,
        value_name = "FILE",
        conflicts_with = "token_file",
        requires_all = ["x509_key", "node", "trust_domain", "agents_first_contact"]
    )]
    pub(crate) x509_certificate: Option<PathBuf>,
    /// The key of that certificate
    #[arg(long, value_name = "FILE", requires = "x509_certificate")]
    pub(crate) x509_key: Option<PathBuf>,
    /// The node whose agent this is, as its document calls it, where no join token says it
    #[arg(long, value_name = "NAME")]
    pub(crate) node: Option<NodeName>,
    /// The trust domain of the control plane, where no join token says it
    #[arg(long, value_name = "NAME")]
    pub(crate) trust_domain: Option<TrustDomain>,
    /// SHA-256 of a root the control plane must be vouched for by, as sha256:HEX (repeatable)
    #[arg(
        long,
        value_name = "HASH",
        value_parser = ca_pin,
        group = "agents_first_contact",
        conflicts_with = "bundle"
    )]
    pub(crate) ca_pin: Vec<CaPin>,
    /// The roots the control plane must be vouched for by, instead of their hashes
    #[arg(long, value_name = "FILE", group = "agents_first_contact")]
    pub(crate) bundle: Option<PathBuf>,
    /// Where the agent's own key and certificate are kept across restarts
    #[arg(long, value_name = "DIR")]
    pub(crate) state: PathBuf,
    /// Where processes of this host ask: the path of a Unix socket, in a directory that only its user writes to, or unix-abstract:NAME
    #[arg(long, value_name = "ADDRESS", value_parser = local_address)]
    pub(crate) socket: LocalAddress,
    /// The socket of this host's container engine, as unix:///PATH; without it nobody is attested by container
    #[arg(long, value_name = "URL", value_parser = unix_url)]
    pub(crate) docker: Option<PathBuf>,
    /// How long to wait at start for the control plane
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "60s")]
    pub(crate) start_timeout: Duration,
}

#[derive(Args, Debug, Clone)]
pub(crate) struct Exec {
    #[command(flatten)]
    pub(crate) source: Source,
    /// The command to become
    #[arg(last = true, required = true, value_name = "CMD")]
    pub(crate) command: Vec<std::ffi::OsString>,
}
