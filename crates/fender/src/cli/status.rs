//! What a sidecar is asked for at its admin socket, and the control plane where this build administers one.

use std::path::PathBuf;

use clap::Args;
#[cfg(feature = "administration")]
use clap::Subcommand;
#[cfg(feature = "administration")]
use fender_config::ObjectName;
#[cfg(feature = "administration")]
use fender_identity::WorkloadName;

#[cfg(feature = "administration")]
use super::Admin;
use super::Output;

#[derive(Args, Debug, Clone)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Status {
    #[cfg(feature = "administration")]
    #[command(subcommand)]
    pub(crate) of: Option<StatusOf>,
    #[cfg(feature = "administration")]
    #[command(flatten)]
    pub(crate) admin: Admin,
    /// Ask the sidecar at this admin socket instead of the control plane
    #[arg(long, value_name = "PATH")]
    pub(crate) sidecar: Option<PathBuf>,
    /// Show nothing: exit 0 if the sidecar is ready, 69 with an error if not
    #[arg(long, requires = "sidecar")]
    pub(crate) ready: bool,
    /// Only workloads of this namespace
    #[cfg(feature = "administration")]
    #[arg(long, value_name = "NAMESPACE", conflicts_with = "sidecar")]
    pub(crate) namespace: Option<String>,
    /// Only this workload
    #[cfg(feature = "administration")]
    #[arg(long, value_name = "NAMESPACE/NAME", conflicts_with = "sidecar")]
    pub(crate) workload: Option<WorkloadName>,
    /// Table or JSON
    #[arg(long, value_enum, default_value_t = Output::Table)]
    pub(crate) output: Output,
}

#[cfg(feature = "administration")]
#[derive(Subcommand, Debug, Clone)]
pub(crate) enum StatusOf {
    /// Show which instance holds which generation of which credential since when, and whether an old one is still in use
    Credentials(StatusCredentials),
}

#[cfg(feature = "administration")]
#[derive(Args, Debug, Clone)]
pub(crate) struct StatusCredentials {
    #[command(flatten)]
    pub(crate) admin: Admin,
    /// Only this credential
    #[arg(value_name = "NAMESPACE/NAME")]
    pub(crate) credential: Option<ObjectName>,
    /// Only credentials of this namespace
    #[arg(long, value_name = "NAMESPACE", conflicts_with = "credential")]
    pub(crate) namespace: Option<String>,
    /// Table or JSON
    #[arg(long, value_enum, default_value_t = Output::Table)]
    pub(crate) output: Output,
}

#[derive(Args, Debug, Clone)]
pub(crate) struct Explain {
    #[cfg(feature = "administration")]
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
