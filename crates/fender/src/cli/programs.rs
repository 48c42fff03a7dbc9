//! What runs beside an application: the sidecar, what replaces it, and what becomes a command.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgGroup, Args, ValueEnum};
use fender_api::otlp::CollectorUrl;
use fender_config::snapshot::ServedName;
use fender_credentials::supervise::RestartPolicy;
use fender_identity::tls::CaPin;
use fender_identity::{TrustDomain, WorkloadName};
use fender_runtime::lines;
use fender_runtime::listen::{ListenAddress, LocalAddress};

#[cfg(not(feature = "stores"))]
use crate::features::AwsPattern;
#[cfg(not(feature = "standalone"))]
use crate::features::ConfigFile;
#[cfg(not(feature = "agent"))]
use crate::features::WorkloadApiSocket;
#[cfg(feature = "stores")]
use fender_providers::aws::AwsPattern;

use super::{
    access_log, ca_pin, credentials_url, directory, duration, local_address, program, variable,
};

/// What `--config` names.
#[cfg(feature = "standalone")]
pub(crate) type ConfigFile = PathBuf;

/// What `--workload-api` names.
#[cfg(feature = "agent")]
type WorkloadApiSocket = PathBuf;

/// What a sidecar is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Role {
    /// Everything its documents say.
    #[default]
    Sidecar,
    /// Credentials alone.
    Watch,
}

#[derive(Args, Debug, Clone)]
pub(crate) struct Sidecar {
    /// Not of the command line: which command it is.
    #[arg(skip)]
    pub(crate) role: Role,
    #[command(flatten)]
    pub(crate) source: Source,
    #[command(flatten)]
    pub(crate) places: Places,
    #[command(flatten)]
    pub(crate) workload_api: WorkloadApi,
    #[command(flatten)]
    pub(crate) telemetry: Telemetry,
    /// How long a supervised application may take to stop before it is killed
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "10s")]
    pub(crate) stop_timeout: Duration,
    /// Whether a supervised application that ends by itself is started again, after a rest that grows: no, on-failure or always; with how often at most, like on-failure:5, and all of these again once it has run for 10s
    #[arg(
        long,
        value_name = "WHEN",
        default_value_t = RestartPolicy::default(),
        env = "FENDER_RESTART"
    )]
    pub(crate) restart: RestartPolicy,
    /// Replace every credential that is delivered by *** in what a supervised application writes to standard output and standard error; they are pipes for it then
    #[arg(long, conflicts_with = "supervise")]
    pub(crate) mask_output: bool,
    /// Without an application, too, keep a small process above the proxy, so that it can be upgraded in place and is started again if it dies
    #[arg(long, conflicts_with = "command")]
    pub(crate) supervise: bool,
    /// Set by the supervisor on the proxy it starts
    #[arg(long, hide = true)]
    pub(crate) supervised: bool,
    /// Set by the supervisor: which run of the application this is
    #[arg(long, hide = true, value_name = "ID")]
    pub(crate) app_run: Option<String>,
    /// The application to start once the sidecar is ready
    #[arg(last = true, value_name = "CMD")]
    pub(crate) command: Vec<std::ffi::OsString>,
}

#[derive(Args, Debug, Clone)]
pub(crate) struct Init {
    #[command(flatten)]
    pub(crate) source: Source,
}

/// Where a sidecar, or `fender watch`, is reached, and whose place it takes.
#[derive(Args, Debug, Clone)]
#[group(skip)]
pub(crate) struct Places {
    /// Where `fender status`, `fender explain` and health checks reach this sidecar [default: admin.sock in the state directory]
    #[arg(long, value_name = "PATH", env = "FENDER_ADMIN_SOCKET")]
    pub(crate) admin_socket: Option<PathBuf>,
    /// A Unix socket at which credentials are handed over to processes of the users that documents name: a path, or @NAME for one in the network namespace, without a file
    #[arg(
        long,
        value_name = "ADDRESS",
        value_parser = local_address,
        env = "FENDER_CREDENTIALS_SOCKET"
    )]
    pub(crate) credentials_socket: Option<LocalAddress>,
    /// Where credentials are served over HTTP to whoever shows a token that was written to its file: a loopback address and port, or unix:PATH for a socket at which the kernel says who asks, too (repeatable, or apart by commas)
    #[arg(
        long,
        value_name = "ADDRESS",
        value_parser = credentials_url,
        value_delimiter = ',',
        env = "FENDER_CREDENTIALS_URL"
    )]
    pub(crate) credentials_url: Vec<ListenAddress>,
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
}

/// As a sidecar's places, but for the words: this is none, and what it has nothing of, `fender explain` cannot show.
#[derive(Args, Debug, Clone)]
#[command(
    mut_arg("admin_socket", |arg| arg.help("Where `fender status` and health checks reach this process [default: admin.sock in the state directory]")),
    mut_arg("upgrade_socket", |arg| arg.help("Where `fender reload` reaches this process, and a successor takes over from it; in a directory of its user's alone [default: upgrade.sock in the state directory]")),
    mut_arg("take_over", |arg| arg.help("Take the place of the process that serves at this upgrade socket; if none does, start as usual"))
)]
pub(crate) struct Watch {
    #[command(flatten)]
    pub(crate) source: Source,
    #[command(flatten)]
    pub(crate) places: Places,
    #[command(flatten)]
    pub(crate) health: Health,
}

/// A sidecar without ports, and so with nothing to tell of them.
impl From<Watch> for Sidecar {
    fn from(watch: Watch) -> Self {
        Self {
            role: Role::Watch,
            source: watch.source,
            places: watch.places,
            workload_api: WorkloadApi {
                workload_api: None,
                workload_api_uid: Vec::new(),
            },
            telemetry: Telemetry {
                access_log: lines::Destination::Nowhere,
                traces_from: TracesFrom::Mesh,
                tracing: Tracing {
                    otlp_endpoint: None,
                    otlp_roots: None,
                    traces_begin: fender_proxy::Share::NONE,
                },
                health: watch.health,
            },
            stop_timeout: Duration::ZERO,
            restart: RestartPolicy::default(),
            mask_output: false,
            supervise: false,
            supervised: false,
            app_run: None,
            command: Vec::new(),
        }
    }
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
    pub(crate) tracing: Tracing,
    #[command(flatten)]
    pub(crate) health: Health,
}

/// Which requests become spans, and who gets them.
#[derive(Args, Debug, Clone)]
#[group(skip)]
pub(crate) struct Tracing {
    /// A collector of OpenTelemetry that takes spans by OTLP/gRPC: https://HOST:PORT, http://HOST:PORT for one that nobody listens to on the way, or unix:///PATH [default: none, and no span is made]
    #[arg(long, value_name = "URL", env = "FENDER_OTLP_ENDPOINT")]
    pub(crate) otlp_endpoint: Option<CollectorUrl>,
    /// Authorities in PEM that vouch for a collector behind https; read again for each connection
    #[arg(
        long,
        value_name = "FILE",
        env = "FENDER_OTLP_ROOTS",
        requires = "otlp_endpoint"
    )]
    pub(crate) otlp_roots: Option<PathBuf>,
    /// Of the requests that belong to no trace, the share for which one is begun, from 0 to 1; whether other requests are recorded was decided where their trace began
    #[arg(
        long,
        value_name = "SHARE",
        env = "FENDER_TRACES_BEGIN",
        default_value = "0",
        requires = "otlp_endpoint"
    )]
    pub(crate) traces_begin: fender_proxy::Share,
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

/// A credential, and the sidecar that hands it over.
#[derive(Args, Debug, Clone)]
pub(crate) struct Get {
    /// What it is asked for by: its name, unless its document says another
    #[arg(value_name = "NAME")]
    pub(crate) name: ServedName,
    /// Write it to this file instead of standard output: whole or not at all, for this user alone
    #[arg(long, value_name = "FILE", value_parser = directory)]
    pub(crate) output: Option<PathBuf>,
    /// The credentials socket of the sidecar
    #[arg(
        long,
        value_name = "ADDRESS",
        value_parser = local_address,
        env = "FENDER_CREDENTIALS_SOCKET",
        default_value = "@fender-credentials"
    )]
    pub(crate) socket: LocalAddress,
    /// The user that the sidecar runs as; nothing is asked of whoever else listens there [default: root and this user]
    #[arg(long, value_name = "UID", env = "FENDER_SIDECAR_UID")]
    pub(crate) sidecar_uid: Option<u32>,
    /// How long to wait for the answer, as of a sidecar that does not have its credentials yet
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "10s")]
    pub(crate) timeout: Duration,
}

/// Who beside the proxy may have the workload's identity.
#[derive(Args, Debug, Clone)]
#[group(skip)]
pub(crate) struct WorkloadApi {
    /// Serve the SPIFFE Workload API and Envoy's SDS at this Unix socket, to processes of the sidecar's own user; each gets a key of its own
    #[arg(long, value_name = "PATH")]
    #[cfg_attr(feature = "agent", arg(value_parser = directory))]
    #[cfg_attr(not(feature = "agent"), arg(hide = true))]
    pub(crate) workload_api: Option<WorkloadApiSocket>,
    /// A user whose processes may call there, too (repeatable)
    #[arg(long, value_name = "UID", requires = "workload_api")]
    #[cfg_attr(not(feature = "agent"), arg(hide = true))]
    pub(crate) workload_api_uid: Vec<u32>,
}

/// Each is a place where a sidecar can have its configuration from.
const WHENCE: &[&str] = match cfg!(feature = "standalone") {
    true => &["control", "config"],
    false => &["control"],
};

/// Where identity and configuration come from: a control plane, or a file; and what they may touch here.
#[derive(Args, Debug, Clone)]
#[group(skip)]
#[command(group(ArgGroup::new("whence").args(WHENCE.iter().copied()).required(true).multiple(true)))]
pub(crate) struct Source {
    /// The control plane; of several replicas each (repeatable, or apart by commas)
    #[arg(
        long,
        value_name = "URL",
        env = "FENDER_CONTROL",
        value_delimiter = ','
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
    /// Where key, certificate and configuration are kept across restarts, and certificates from ACME authorities
    #[arg(long, value_name = "DIR")]
    pub(crate) state: Option<PathBuf>,
    /// Run from this file, without a control plane
    #[arg(long, value_name = "FILE")]
    #[cfg_attr(not(feature = "standalone"), arg(hide = true))]
    pub(crate) config: Option<ConfigFile>,
    /// The identity that is expected; a token or state for another one is refused
    #[arg(long, value_name = "NAMESPACE/NAME", conflicts_with = "config")]
    pub(crate) workload: Option<WorkloadName>,
    /// A directory in which documents from the control plane may read and write files (repeatable; default: none)
    #[arg(long = "allow-dir", value_name = "DIR", value_parser = directory)]
    pub(crate) allow_dir: Vec<PathBuf>,
    /// A program that documents from the control plane may have run, by its exact path (repeatable; default: none)
    #[arg(long = "allow-command", value_name = "PATH", value_parser = program)]
    pub(crate) allow_command: Vec<PathBuf>,
    /// A variable of the environment that documents from the control plane may name as the source of a credential; the application does not inherit it (repeatable; default: none)
    #[arg(long = "allow-environment", value_name = "NAME", value_parser = variable)]
    pub(crate) allow_environment: Vec<String>,
    /// A secret of AWS that documents from the control plane may have read with this machine's credentials: secretsmanager:NAME or ssm:NAME, with * at the end for whatever follows (repeatable; default: none)
    #[arg(long = "allow-aws", value_name = "PATTERN")]
    #[cfg_attr(not(feature = "stores"), arg(hide = true))]
    pub(crate) allow_aws: Vec<AwsPattern>,
    /// A directory in which what was fetched last is kept, encrypted, so that a start during an outage has its credentials: no longer than their maxStale [default: none]
    #[arg(
        long,
        value_name = "DIR",
        value_parser = directory,
        requires = "cache_key",
        env = "FENDER_CREDENTIALS_CACHE"
    )]
    pub(crate) credentials_cache: Option<PathBuf>,
    /// The file of the key of that cache, in a directory apart from it; made if it is not there
    #[arg(
        long,
        value_name = "FILE",
        value_parser = directory,
        requires = "credentials_cache",
        group = "cache_key",
        env = "FENDER_CREDENTIALS_CACHE_KEY"
    )]
    pub(crate) credentials_cache_key: Option<PathBuf>,
    /// The credential of the service manager that is the key of that cache, instead of a file (`LoadCredentialEncrypted=` of systemd): 32 bytes
    #[arg(
        long,
        value_name = "NAME",
        requires = "credentials_cache",
        group = "cache_key",
        env = "FENDER_CREDENTIALS_CACHE_KEY_CREDENTIAL"
    )]
    pub(crate) credentials_cache_key_credential: Option<String>,
    /// How long to wait at start for identity, configuration and credentials
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "60s")]
    pub(crate) start_timeout: Duration,
}

#[derive(Args, Debug, Clone)]
pub(crate) struct Exec {
    #[command(flatten)]
    pub(crate) source: Source,
    /// Stay as the parent of the command: its credentials are kept fresh and leases renewed for as long as it runs, it is started again for a new value if a document's `notify` says so, and every signal reaches it
    #[arg(long)]
    pub(crate) supervise: bool,
    /// How long a supervised command may take to stop before it is killed
    #[arg(
        long,
        value_name = "TIME",
        value_parser = duration,
        default_value = "10s",
        requires = "supervise"
    )]
    pub(crate) stop_timeout: Duration,
    /// Whether a supervised command that ends by itself is started again, after a rest that grows: no, on-failure or always; with how often at most, like on-failure:5, and all of these again once it has run for 10s
    #[arg(
        long,
        value_name = "WHEN",
        default_value_t = RestartPolicy::default(),
        env = "FENDER_RESTART"
    )]
    pub(crate) restart: RestartPolicy,
    /// Replace every value that was put into the environment by *** in what a supervised command writes to standard output and standard error; they are pipes for it then
    #[arg(long, requires = "supervise")]
    pub(crate) mask_output: bool,
    /// The command to become, or to start
    #[arg(last = true, required = true, value_name = "CMD")]
    pub(crate) command: Vec<std::ffi::OsString>,
}

/// What a helper may run for the process at its standard input.
#[derive(Args, Debug, Clone)]
pub(crate) struct RunPrograms {
    /// Set by the helper on the process that it has run them: who starts another if that dies
    #[arg(long, hide = true, value_name = "PID")]
    pub(crate) watched_by: Option<i32>,
    #[arg(required = true, value_name = "PATH", value_parser = program)]
    pub(crate) allowed: Vec<PathBuf>,
}
