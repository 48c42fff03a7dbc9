//! Every command, flag and environment variable of the `fender` binary, in one place.
//!
//! These types are what was typed. They hold paths and names, never a secret: a token or a key
//! is given as a file, so that it shows neither in `ps` nor in a shell's history.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use clap::{Args, Parser, Subcommand, ValueEnum};
use fender_api::audit::Head;
use fender_identity::tls::{CaPin, CaPinError};
use fender_identity::{NodeName, Serial, TrustDomain, WorkloadName};
use fender_runtime::clock::UnixTime;
use fender_runtime::telemetry::LogFormat;

const AFTER_HELP: &str = "\
Exit codes: 0 done, 64 bad usage or documents, 66 credential missing, 69 unavailable, \
75 timeout, 77 refused; a supervised application's own code otherwise.";

#[derive(Parser, Debug)]
#[command(name = "fender", version, about = "The security sidecar: credentials, TLS, identity and authorization beside an application", after_help = AFTER_HELP)]
#[command(disable_help_subcommand = true)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) log: Log,
    /// End when the process that started this one ends
    #[arg(long, global = true, hide = true)]
    pub(crate) tethered: bool,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Args, Debug, Clone)]
pub(crate) struct Log {
    /// How log lines are written to standard error
    #[arg(long, global = true, value_enum, default_value_t = Format::Text, env = "FENDER_LOG_FORMAT", value_name = "FORMAT")]
    pub(crate) log_format: Format,
    /// What is logged: a level, or levels by module such as `info,fender_proxy=debug`
    #[arg(
        long,
        global = true,
        default_value = "info",
        env = "FENDER_LOG",
        value_name = "LEVELS"
    )]
    pub(crate) log: String,
}

#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    Text,
    Json,
}

impl From<Format> for LogFormat {
    fn from(format: Format) -> Self {
        match format {
            Format::Text => Self::Text,
            Format::Json => Self::Json,
        }
    }
}

#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// Run the control plane: certificate authority, registry of identities, documents
    Control(Control),
    /// Run the sidecar beside an application
    Sidecar(Sidecar),
    /// Run the agent of a node: it attests processes and containers of this host
    Agent(Agent),
    /// Put credentials into the environment of a command and become it
    Exec(Exec),
    /// Validate documents and make them the mesh's next revision
    Apply(Apply),
    /// Make a join token, with which one sidecar proves who it is
    #[command(subcommand)]
    Token(Token),
    /// Show workloads, certificates and connected sidecars
    Status(Status),
    /// Show why a request or connection was denied
    Explain(Explain),
    /// Certificates for people
    #[command(subcommand)]
    Svid(SvidCommand),
    /// The certificate authority
    #[command(subcommand)]
    Ca(Ca),
    /// End certificates before their time, open connections included
    #[command(subcommand)]
    Revoke(Revoke),
    /// Show what was revoked and may still be in use
    Revocations(Revocations),
    /// Who asked the control plane for what, when, and what became of it
    #[command(subcommand)]
    AuditLog(AuditLog),
    /// Print the JSON Schema of the documents
    Schema,
    /// Show everything at work on this machine, with nothing else installed
    Demo(Demo),
    /// Print this command line's reference as Markdown
    #[command(hide = true)]
    Reference,
    /// One of the demo's two applications
    #[command(hide = true, name = "demo-app")]
    DemoApp(DemoApp),
}

#[derive(Args, Debug, Clone)]
pub(crate) struct Control {
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
    /// Where sidecars and administrators connect
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:7443")]
    pub(crate) listen: SocketAddr,
    /// The trust domain, when no `Mesh` document names it
    #[arg(long, value_name = "DOMAIN")]
    pub(crate) trust_domain: Option<TrustDomain>,
    /// A name by which clients reach the control plane, for those that verify names (repeatable)
    #[arg(long = "dns-name", value_name = "NAME")]
    pub(crate) dns_names: Vec<String>,
    /// A directory in which documents may have the control plane read credentials (repeatable; default: none)
    #[arg(long = "allow-dir", value_name = "DIR", value_parser = directory)]
    pub(crate) allow_dir: Vec<PathBuf>,
    /// Put a new administrator's certificate into the data directory and exit
    #[arg(long)]
    pub(crate) reissue_admin: bool,
    #[command(flatten)]
    pub(crate) sealing: Sealing,
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
    /// How long a supervised application may take to stop before it is killed
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "10s")]
    pub(crate) stop_timeout: Duration,
    /// Set by the supervisor on the proxy it starts
    #[arg(long, hide = true)]
    pub(crate) supervised: bool,
    /// The application to start once the sidecar is ready
    #[arg(last = true, value_name = "CMD")]
    pub(crate) command: Vec<std::ffi::OsString>,
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
    /// The control plane
    #[arg(
        long,
        value_name = "URL",
        env = "FENDER_CONTROL",
        required_unless_present = "config"
    )]
    pub(crate) control: Option<String>,
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
    /// The socket of this host's agent, which says who this is
    #[arg(
        long,
        value_name = "PATH",
        conflicts_with_all = ["config", "token_file", "kubernetes_token_file", "x509_certificate"]
    )]
    pub(crate) agent: Option<PathBuf>,
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
    /// The control plane
    #[arg(long, value_name = "URL", env = "FENDER_CONTROL")]
    pub(crate) control: String,
    /// A file holding a join token made with `fender token create --node`; deleted once used
    #[arg(long, value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
    /// Where the agent's own key and certificate are kept across restarts
    #[arg(long, value_name = "DIR")]
    pub(crate) state: PathBuf,
    /// The Unix socket at which sidecars of this host ask, in a directory that only its user writes to
    #[arg(long, value_name = "PATH", value_parser = directory)]
    pub(crate) socket: PathBuf,
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

/// How an administrator reaches the control plane.
#[derive(Args, Debug, Clone)]
pub(crate) struct Admin {
    /// The control plane
    #[arg(
        long,
        value_name = "URL",
        env = "FENDER_CONTROL",
        default_value = "https://127.0.0.1:7443"
    )]
    pub(crate) control: String,
    /// The administrator's certificate.pem, key.pem and bundle.pem
    #[arg(
        long,
        value_name = "DIR",
        env = "FENDER_ADMIN",
        default_value = "fender-data/admin"
    )]
    pub(crate) admin: PathBuf,
}

#[derive(Args, Debug, Clone)]
pub(crate) struct Apply {
    #[command(flatten)]
    pub(crate) admin: Admin,
    /// A directory of YAML documents, or one file
    #[arg(
        short,
        long = "file",
        value_name = "PATH",
        required_unless_present = "revision"
    )]
    pub(crate) file: Option<PathBuf>,
    /// Apply the documents of an earlier revision again
    #[arg(long, value_name = "NUMBER", conflicts_with = "file")]
    pub(crate) revision: Option<u64>,
    /// Validate and show the difference; change nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Only if this revision is still in force
    #[arg(long, value_name = "NUMBER")]
    pub(crate) upon: Option<u64>,
    /// Yes, this administrator shall lose the role `security` (repeatable)
    #[arg(long = "cut-off-admin", value_name = "NAME")]
    pub(crate) cut_off_admins: Vec<String>,
    /// Yes, this workload shall go although something runs as it (repeatable)
    #[arg(long = "delete-in-use", value_name = "NAMESPACE/NAME")]
    pub(crate) delete_in_use: Vec<WorkloadName>,
}

#[derive(Subcommand, Debug)]
pub(crate) enum Token {
    /// Make a join token for one workload, or for the agent of one node: it works once
    Create(TokenCreate),
}

#[derive(Args, Debug, Clone)]
pub(crate) struct TokenCreate {
    #[command(flatten)]
    pub(crate) admin: Admin,
    /// The workload it is for
    #[arg(
        value_name = "NAMESPACE/NAME",
        required_unless_present = "node",
        conflicts_with = "node"
    )]
    pub(crate) workload: Option<WorkloadName>,
    /// The node it is for: its agent joins with it
    #[arg(long, value_name = "NAME")]
    pub(crate) node: Option<NodeName>,
    /// How long it can be used
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "10m")]
    pub(crate) ttl: Duration,
    /// Write it to this file, readable by its owner only, instead of standard output
    #[arg(long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
}

#[derive(Args, Debug, Clone)]
pub(crate) struct Status {
    #[command(flatten)]
    pub(crate) admin: Admin,
    /// Ask the sidecar at this admin socket instead of the control plane
    #[arg(long, value_name = "PATH")]
    pub(crate) sidecar: Option<PathBuf>,
    /// Show nothing: exit 0 if the sidecar is ready, 69 with an error if not
    #[arg(long, requires = "sidecar")]
    pub(crate) ready: bool,
    /// Only workloads of this namespace
    #[arg(long, value_name = "NAMESPACE", conflicts_with = "sidecar")]
    pub(crate) namespace: Option<String>,
    /// Only this workload
    #[arg(long, value_name = "NAMESPACE/NAME", conflicts_with = "sidecar")]
    pub(crate) workload: Option<WorkloadName>,
    /// Table or JSON
    #[arg(long, value_enum, default_value_t = Output::Table)]
    pub(crate) output: Output,
}

#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Output {
    Table,
    Json,
}

#[derive(Args, Debug, Clone)]
pub(crate) struct Explain {
    #[command(flatten)]
    pub(crate) admin: Admin,
    /// Ask the sidecar at this admin socket instead of the control plane
    #[arg(long, value_name = "PATH")]
    pub(crate) sidecar: Option<PathBuf>,
    /// The decision id, from the `x-fender-decision` header of the answer
    #[arg(value_name = "ID")]
    pub(crate) id: String,
    /// Table or JSON
    #[arg(long, value_enum, default_value_t = Output::Table)]
    pub(crate) output: Output,
}

#[derive(Subcommand, Debug)]
pub(crate) enum SvidCommand {
    /// Write a client certificate for a person or an administrator: certificate.pem, key.pem and bundle.pem
    Write(SvidWrite),
}

#[derive(Args, Debug, Clone)]
pub(crate) struct SvidWrite {
    #[command(flatten)]
    pub(crate) admin: Admin,
    /// Where to write the files; made if absent
    #[arg(value_name = "DIR")]
    pub(crate) dir: PathBuf,
    /// The person: the identity is `spiffe://TRUST/ns/people/sa/NAME`
    #[arg(long, value_name = "NAME", env = "USER", default_value = "operator")]
    pub(crate) name: String,
    /// An administrator whom the `Mesh` names, instead of a person: the identity is `spiffe://TRUST/fender/admin/NAME`
    #[arg(long = "for-admin", value_name = "NAME")]
    pub(crate) for_admin: Option<String>,
    /// How long the certificate is valid: a person's at most 24h, an administrator's at most 90 days
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "8h")]
    pub(crate) ttl: Duration,
}

#[derive(Subcommand, Debug)]
pub(crate) enum Ca {
    /// Make the next intermediate, or root, now instead of when it is due
    Rotate(CaRotate),
}

#[derive(Args, Debug, Clone)]
pub(crate) struct CaRotate {
    #[command(flatten)]
    pub(crate) admin: Admin,
    /// Make a root: it is in every bundle at once and signs when every sidecar has had time to learn of it
    #[arg(long)]
    pub(crate) root: bool,
}

#[derive(Subcommand, Debug)]
pub(crate) enum Revoke {
    /// One certificate
    Serial(RevokeSerial),
    /// Every certificate a workload has now; it must attest anew
    Workload(RevokeWorkload),
    /// Every workload's certificate that was issued before a moment
    IssuedBefore(RevokeIssuedBefore),
    /// Every certificate an administrator has now
    Admin(RevokeAdmin),
}

/// Why, for whoever reads the list of revocations or the audit log.
#[derive(Args, Debug, Clone)]
pub(crate) struct Reason {
    /// Why: it is shown with the revocation and in the audit log
    #[arg(long, value_name = "TEXT")]
    pub(crate) reason: String,
}

#[derive(Args, Debug, Clone)]
pub(crate) struct RevokeSerial {
    #[command(flatten)]
    pub(crate) admin: Admin,
    /// The certificate's serial number in hex, as `fender status` shows it
    #[arg(value_name = "SERIAL")]
    pub(crate) serial: Serial,
    #[command(flatten)]
    pub(crate) why: Reason,
    /// Even if it is the certificate that is asked with
    #[arg(long)]
    pub(crate) myself: bool,
}

#[derive(Args, Debug, Clone)]
pub(crate) struct RevokeWorkload {
    #[command(flatten)]
    pub(crate) admin: Admin,
    /// The workload
    #[arg(value_name = "NAMESPACE/NAME")]
    pub(crate) workload: WorkloadName,
    #[command(flatten)]
    pub(crate) why: Reason,
}

#[derive(Args, Debug, Clone)]
pub(crate) struct RevokeIssuedBefore {
    #[command(flatten)]
    pub(crate) admin: Admin,
    /// The moment, like `2027-01-31T08:00:00Z`; it lies in the past
    #[arg(value_name = "TIME", value_parser = moment)]
    pub(crate) moment: UnixTime,
    /// Only certificates of this workload
    #[arg(long, value_name = "NAMESPACE/NAME")]
    pub(crate) workload: Option<WorkloadName>,
    #[command(flatten)]
    pub(crate) why: Reason,
}

#[derive(Args, Debug, Clone)]
pub(crate) struct RevokeAdmin {
    #[command(flatten)]
    pub(crate) admin: Admin,
    /// The administrator: the identity is `spiffe://TRUST/fender/admin/NAME`
    #[arg(value_name = "NAME")]
    pub(crate) name: String,
    #[command(flatten)]
    pub(crate) why: Reason,
    /// Even if it is the administrator who asks
    #[arg(long)]
    pub(crate) myself: bool,
}

#[derive(Args, Debug, Clone)]
pub(crate) struct Revocations {
    #[command(flatten)]
    pub(crate) admin: Admin,
    /// Table or JSON
    #[arg(long, value_enum, default_value_t = Output::Table)]
    pub(crate) output: Output,
}

#[derive(Subcommand, Debug)]
pub(crate) enum AuditLog {
    /// Show the newest entries
    List(AuditLogList),
    /// Write all of it to a file, one JSON object a line, and verify it
    Export(AuditLogExport),
    /// Verify that no entry was changed, removed or moved
    Verify(AuditLogVerify),
}

#[derive(Args, Debug, Clone)]
pub(crate) struct AuditLogList {
    #[command(flatten)]
    pub(crate) admin: Admin,
    /// How many at most [default: 50, or all with --since]
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) last: Option<u64>,
    /// Only since a moment, like `2027-01-31T08:00:00Z`
    #[arg(long, value_name = "TIME", value_parser = moment)]
    pub(crate) since: Option<UnixTime>,
    /// Table or JSON
    #[arg(long, value_enum, default_value_t = Output::Table)]
    pub(crate) output: Output,
}

#[derive(Args, Debug, Clone)]
pub(crate) struct AuditLogExport {
    #[command(flatten)]
    pub(crate) admin: Admin,
    /// The file, readable by its owner only; one that exists is not overwritten
    #[arg(long, value_name = "FILE")]
    pub(crate) out: PathBuf,
}

#[derive(Args, Debug, Clone)]
pub(crate) struct AuditLogVerify {
    #[command(flatten)]
    pub(crate) admin: Admin,
    /// An exported file, instead of what the control plane has; nobody is asked
    #[arg(long, value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
    /// The head that was noted when it was last verified or exported: without it, entries cut off at the end do not show
    #[arg(long, value_name = "NUMBER:HASH")]
    pub(crate) head: Option<Head>,
}

#[derive(Args, Debug, Clone)]
pub(crate) struct Demo {
    /// Run the story with short lifetimes, print one line per expectation and exit: 0 only if all held
    #[arg(long)]
    pub(crate) check: bool,
}

#[derive(Args, Debug, Clone)]
pub(crate) struct DemoApp {
    #[arg(long)]
    pub(crate) name: String,
    #[arg(long)]
    pub(crate) listen: SocketAddr,
    /// The plain-text address at which the other application is reached
    #[arg(long)]
    pub(crate) inventory: Option<SocketAddr>,
    /// A file holding a credential
    #[arg(long)]
    pub(crate) credential: Option<PathBuf>,
}

fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text)
        .map_err(|error| format!("{error}; write it like `90s`, `10m` or `8h`"))
}

fn moment(text: &str) -> Result<UnixTime, String> {
    let moment = humantime::parse_rfc3339(text)
        .map_err(|error| format!("{error}; write it like `2027-01-31T08:00:00Z`"))?;
    moment
        .duration_since(SystemTime::UNIX_EPOCH)
        .map(UnixTime::since_unix_epoch)
        .map_err(|_| "it lies before 1970".to_owned())
}

/// `sha256:` and 64 hexadecimal digits.
fn ca_pin(text: &str) -> Result<CaPin, String> {
    let digits = text.strip_prefix("sha256:");
    let digits = digits.ok_or("it does not begin with `sha256:`")?;
    digits
        .parse()
        .map_err(|error: CaPinError| error.to_string())
}

/// `unix:///run/docker.sock`, as `DOCKER_HOST` has it.
fn unix_url(text: &str) -> Result<PathBuf, String> {
    let path = text.strip_prefix("unix://").map(PathBuf::from);
    path.filter(|path| path.is_absolute())
        .ok_or_else(|| "write it like `unix:///var/run/docker.sock`".to_owned())
}

/// Documents name absolute paths, so a directory is compared as one.
fn directory(text: &str) -> Result<PathBuf, String> {
    std::path::absolute(text).map_err(|error| error.to_string())
}
