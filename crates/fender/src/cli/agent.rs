//! The agent of a node.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use fender_identity::tls::CaPin;
use fender_identity::{NodeName, TrustDomain};
use fender_runtime::listen::LocalAddress;

use super::{ca_pin, duration, local_address};

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

/// `unix:///run/docker.sock`, as `DOCKER_HOST` has it.
pub(super) fn unix_url(text: &str) -> Result<PathBuf, String> {
    let path = text.strip_prefix("unix://").map(PathBuf::from);
    path.filter(|path| path.is_absolute())
        .ok_or_else(|| "write it like `unix:///var/run/docker.sock`".to_owned())
}
