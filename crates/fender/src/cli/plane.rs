//! What runs a mesh: the control plane, the agents of its nodes, and roots that are kept apart from both.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use fender_api::url::ControlUrl;
use fender_config::HttpsUrl;
use fender_control::ReplicaName;
use fender_identity::{NodeName, TrustDomain};
use fender_providers::aws::AwsPattern;
use fender_runtime::listen::LocalAddress;

use super::{Health, directory, duration, local_address, program, unix_url, variable};

#[derive(Subcommand, Debug)]
pub(crate) enum Plane {
    /// Run the control plane: certificate authority, registry of identities, documents
    Control(Box<Control>),
    /// Show everything at work on this machine, with nothing else installed
    Demo(Demo),
    /// One of the demo's two applications
    #[command(hide = true, name = "demo-app")]
    DemoApp(DemoApp),
}

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
    /// A program that documents may have the control plane run for credentials, by its exact path (repeatable; default: none)
    #[arg(long = "allow-command", value_name = "PATH", value_parser = program)]
    pub(crate) allow_command: Vec<PathBuf>,
    /// A variable of the environment that documents may name as the source of a credential (repeatable; default: none)
    #[arg(long = "allow-environment", value_name = "NAME", value_parser = variable)]
    pub(crate) allow_environment: Vec<String>,
    /// A secret of AWS that documents may have the control plane read with its machine's credentials: secretsmanager:NAME or ssm:NAME, with * at the end for whatever follows (repeatable; default: none)
    #[arg(long = "allow-aws", value_name = "PATTERN")]
    pub(crate) allow_aws: Vec<AwsPattern>,
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

#[derive(Subcommand, Debug)]
pub(crate) enum CaOffline {
    /// Make a root whose key no control plane has, in a directory of its own; asks nobody
    CreateRoot(CaCreateRoot),
    /// Sign the intermediate that a control plane asks for, with such a root; asks nobody
    SignIntermediate(CaSignIntermediate),
    /// Give a control plane the intermediate that was signed for its request
    Import(CaImport),
}

#[derive(Args, Debug, Clone)]
pub(crate) struct CaCreateRoot {
    /// Where the root is made: a directory of its own, readable by nobody else
    #[arg(value_name = "DIR")]
    pub(crate) dir: PathBuf,
    /// The trust domain it is for
    #[arg(long, value_name = "DOMAIN")]
    pub(crate) trust_domain: TrustDomain,
    /// How long it lives
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "10years")]
    pub(crate) lifetime: Duration,
    #[command(flatten)]
    pub(crate) sealing: RootSealing,
}

#[derive(Args, Debug, Clone)]
pub(crate) struct CaSignIntermediate {
    /// The control plane's request: offline/request.pem in its data directory
    #[arg(value_name = "CSR")]
    pub(crate) request: PathBuf,
    /// The directory that `fender ca create-root` made
    #[arg(long, value_name = "DIR")]
    pub(crate) root: PathBuf,
    /// How long the intermediate lives; no longer than its root
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "1year")]
    pub(crate) lifetime: Duration,
    /// Write intermediate and root to this file, which must not be there, instead of standard output
    #[arg(long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) sealing: RootSealing,
}

#[derive(Args, Debug, Clone)]
pub(crate) struct CaImport {
    /// What `fender ca sign-intermediate` wrote: the intermediate, then what lies between, then its root
    #[arg(value_name = "FILE")]
    pub(crate) signed: PathBuf,
    /// The data directory of the control plane that made the request
    #[arg(
        long,
        value_name = "DIR",
        env = "FENDER_DATA_DIR",
        default_value = "fender-data"
    )]
    pub(crate) data_dir: PathBuf,
    /// Yes, the root shall be another than the one before
    #[arg(long)]
    pub(crate) another_root: bool,
}

/// By what the key of a root is sealed that lies in a directory of its own: 32 bytes, as they are, in hex or in base64.
#[derive(Args, Debug, Clone)]
#[group(id = "root_sealing", required = true, multiple = false)]
pub(crate) struct RootSealing {
    /// A file, readable by its owner only, that holds the key which seals the root's key; kept apart from the root
    #[arg(long, value_name = "FILE")]
    pub(crate) sealing_key_file: Option<PathBuf>,
    /// The environment variable that holds it; it is removed from the environment
    #[arg(long, value_name = "NAME")]
    pub(crate) sealing_key_env: Option<String>,
    /// The credential of the service manager that holds it (`LoadCredential=` of systemd)
    #[arg(long, value_name = "NAME")]
    pub(crate) sealing_key_credential: Option<String>,
    /// Store the root's key in the clear: whoever reads the directory is the root
    #[arg(long, value_enum, value_name = "HOW")]
    pub(crate) sealing: Option<NoSealing>,
}

impl From<&RootSealing> for Sealing {
    fn from(root: &RootSealing) -> Self {
        let root = root.clone();
        Self {
            sealing_key_file: root.sealing_key_file,
            sealing_key_env: root.sealing_key_env,
            sealing_key_credential: root.sealing_key_credential,
            sealing: root.sealing,
        }
    }
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
