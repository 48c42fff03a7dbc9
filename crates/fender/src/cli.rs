//! Every command, flag and environment variable of the `fender` binary, in one place.
//!
//! These types are what was typed. They hold paths and names, never a secret: a token or a key
//! is given as a file, so that it shows neither in `ps` nor in a shell's history.

#[cfg(feature = "administration")]
mod administration;
#[cfg(feature = "agent")]
mod agent;
#[cfg(feature = "control-plane")]
mod plane;
mod programs;
mod status;

use std::net::SocketAddr;
use std::path::{Component, PathBuf};
use std::time::Duration;
#[cfg(feature = "administration")]
use std::time::SystemTime;

use clap::{Args, Parser, Subcommand, ValueEnum};
use fender_identity::tls::{CaPin, CaPinError};
#[cfg(feature = "administration")]
use fender_runtime::clock::UnixTime;
use fender_runtime::lines;
use fender_runtime::listen::{ListenAddress, LocalAddress};
use fender_runtime::telemetry::LogFormat;

use crate::features;

#[cfg(feature = "administration")]
pub(crate) use administration::*;
#[cfg(feature = "agent")]
pub(crate) use agent::*;
#[cfg(feature = "control-plane")]
pub(crate) use plane::*;
pub(crate) use programs::*;
pub(crate) use status::*;

const AFTER_HELP: &str = "\
Exit codes: 0 done, 64 bad usage or documents, 66 credential missing, 69 unavailable, \
75 timeout, 77 refused; a supervised application's own code otherwise.";

#[derive(Parser, Debug)]
#[command(name = "fender", version, long_version = features::VERSION.as_str(), about = "The security sidecar: credentials, TLS, identity and authorization beside an application", after_help = AFTER_HELP)]
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
pub(crate) enum ReferenceOf {
    CommandLine,
    Metrics,
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
    #[cfg(feature = "control-plane")]
    #[command(flatten)]
    Plane(Plane),
    /// Run the agent of a node: it attests processes and containers of this host
    #[cfg(feature = "agent")]
    Agent(Agent),
    /// Run the sidecar beside an application
    Sidecar(Box<Sidecar>),
    /// Replace a running sidecar by the program that lies at its path now, without a connection lost
    Upgrade(Upgrade),
    /// Have a sidecar that runs from a file read it again, and show what is wrong with it
    Reload(Upgrade),
    /// Deliver credentials as files, all or none, and end: before an application starts
    Init(Box<Init>),
    /// Deliver credentials and keep them fresh, beside an application; a sidecar without ports
    Watch(Box<Watch>),
    /// Put credentials into the environment of a command and become it
    Exec(Box<Exec>),
    /// Ask a sidecar for a credential at its credentials socket, and write the value to standard output
    Get(Get),
    /// Validate documents and make them the mesh's next revision
    #[cfg(feature = "administration")]
    Apply(Apply),
    /// Which revisions of the documents there are, and what they say
    #[cfg(feature = "administration")]
    Revisions(Revisions),
    /// Show what differs between revisions, or between one and a directory, document by document
    #[cfg(feature = "administration")]
    Diff(Diff),
    /// Make a join token, with which one sidecar proves who it is
    #[cfg(feature = "administration")]
    #[command(subcommand)]
    Token(Token),
    /// Show workloads, certificates and connected sidecars
    #[cfg_attr(
        not(feature = "administration"),
        command(about = "Show what a sidecar does and how it is")
    )]
    Status(Status),
    /// Show why a request or connection was denied
    Explain(Explain),
    /// Certificates for people
    #[cfg(feature = "administration")]
    #[command(subcommand)]
    Svid(SvidCommand),
    /// The certificate authority
    #[cfg(feature = "administration")]
    #[command(subcommand)]
    Ca(Ca),
    /// End certificates before their time, open connections included
    #[cfg(feature = "administration")]
    #[command(subcommand)]
    Revoke(Revoke),
    /// Show what was revoked and may still be in use
    #[cfg(feature = "administration")]
    Revocations(Revocations),
    /// Write the revocation lists of the mesh's authorities, for servers that are not Fender
    #[cfg(feature = "administration")]
    Crl(Crl),
    /// Who asked the control plane for what, when, and what became of it
    #[cfg(feature = "administration")]
    #[command(subcommand)]
    AuditLog(AuditLog),
    /// Print the JSON Schema of the documents
    #[cfg(feature = "standalone")]
    Schema,
    /// Started by a sidecar and by the control plane, to run programs for them
    #[command(hide = true, name = "run-programs")]
    RunPrograms(RunPrograms),
    /// Print a page of the reference as Markdown
    #[command(hide = true)]
    Reference { of: ReferenceOf },
}

#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Output {
    Table,
    Json,
}

fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text)
        .map_err(|error| format!("{error}; write it like `90s`, `10m` or `8h`"))
}

#[cfg(feature = "administration")]
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

/// A relative path begins where this process does now.
fn access_log(text: &str) -> Result<lines::Destination, String> {
    let destination: lines::Destination = text
        .parse()
        .map_err(|error: lines::InvalidDestination| error.to_string())?;
    match &destination {
        lines::Destination::File(path) => std::path::absolute(path)
            .map(lines::Destination::File)
            .map_err(|error| error.to_string()),
        lines::Destination::StandardError
        | lines::Destination::StandardOutput
        | lines::Destination::Nowhere => Ok(destination),
    }
}

/// Documents name absolute paths, so a directory is compared as one.
fn directory(text: &str) -> Result<PathBuf, String> {
    std::path::absolute(text).map_err(|error| error.to_string())
}

/// Documents name programs by their absolute paths, letter by letter.
fn program(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    let plain = path.is_absolute()
        && path
            .components()
            .all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    match plain && !text.ends_with('/') {
        true => Ok(path),
        false => Err("it must be the absolute path of a program, without `..`".to_owned()),
    }
}

/// One that may hold a credential: none of Fender's own.
fn variable(text: &str) -> Result<String, String> {
    let plain = text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    let begins = text.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_');
    match plain && begins && !text.starts_with("FENDER_") {
        true => Ok(text.to_owned()),
        false => Err("it must be the name of a variable, and none of Fender's own".to_owned()),
    }
}

/// A relative path begins where this process does now.
fn local_address(text: &str) -> Result<LocalAddress, String> {
    let address: LocalAddress = text
        .parse()
        .map_err(|error: fender_runtime::listen::InvalidAddress| error.to_string())?;
    Ok(match address {
        LocalAddress::Path(path) => {
            LocalAddress::Path(std::path::absolute(path).map_err(|error| error.to_string())?)
        }
        named @ LocalAddress::Abstract(_) => named,
    })
}

/// An address that nobody reaches from elsewhere.
fn credentials_url(text: &str) -> Result<ListenAddress, String> {
    if text.starts_with("unix") || text.starts_with('@') {
        return local_address(text).map(|address| (&address).into());
    }
    let address: SocketAddr = text
        .parse()
        .map_err(|_| "write it like `127.0.0.1:8201` or `unix:/run/fender/url.sock`".to_owned())?;
    match address.ip().is_loopback() && address.port() != 0 {
        true => Ok(ListenAddress::Tcp(address)),
        false => Err("it must be loopback, with a port: `127.0.0.1:8201`".to_owned()),
    }
}
