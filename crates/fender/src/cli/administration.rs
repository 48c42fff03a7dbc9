//! What administrators ask the control plane for.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use fender_api::audit::Head;
use fender_identity::{NodeName, Serial, WorkloadName};
use fender_runtime::clock::UnixTime;

#[cfg(feature = "control-plane")]
use super::CaOffline;
use super::{Output, duration, moment};

/// How an administrator reaches the control plane.
#[derive(Args, Debug, Clone)]
pub(crate) struct Admin {
    /// The control plane; of several replicas each (repeatable, or apart by commas)
    #[arg(
        long,
        value_name = "URL",
        env = "FENDER_CONTROL",
        value_delimiter = ',',
        default_value = "https://127.0.0.1:7443"
    )]
    pub(crate) control: Vec<String>,
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

#[derive(Args, Debug, Clone)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Revisions {
    #[command(subcommand)]
    pub(crate) command: Option<RevisionsCommand>,
    #[command(flatten)]
    pub(crate) admin: Admin,
    /// How many at most
    #[arg(long, value_name = "NUMBER", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) last: u32,
    /// Only older ones than this
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) before: Option<u64>,
    /// Table or JSON
    #[arg(long, value_enum, default_value_t = Output::Table)]
    pub(crate) output: Output,
}

#[derive(Subcommand, Debug, Clone)]
pub(crate) enum RevisionsCommand {
    /// Show the documents of a revision, those that you may see
    Show(RevisionsShow),
}

#[derive(Args, Debug, Clone)]
pub(crate) struct RevisionsShow {
    #[command(flatten)]
    pub(crate) admin: Admin,
    /// Which [default: the one in force]
    #[arg(value_name = "NUMBER", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) number: Option<u64>,
    /// Documents as they were written, or JSON
    #[arg(long, value_enum, default_value_t = Output::Table)]
    pub(crate) output: Output,
}

#[derive(Args, Debug, Clone)]
pub(crate) struct Diff {
    #[command(flatten)]
    pub(crate) admin: Admin,
    /// The revision before [default: the one in force]
    #[arg(value_name = "FROM", value_parser = clap::value_parser!(u64).range(1..), required_unless_present = "file")]
    pub(crate) from: Option<u64>,
    /// The revision afterwards [default: the one in force]
    #[arg(value_name = "TO", value_parser = clap::value_parser!(u64).range(1..), conflicts_with = "file")]
    pub(crate) to: Option<u64>,
    /// Documents instead of a revision: a directory, or one file
    #[arg(short, long = "file", value_name = "PATH")]
    pub(crate) file: Option<PathBuf>,
}

#[derive(Subcommand, Debug)]
pub(crate) enum Token {
    /// Make a join token for one workload, or for the agent of one node: it works once
    Create(TokenCreate),
    /// Show the join tokens that can still be used; never the tokens themselves
    List(TokenList),
    /// Take join tokens back that are not used yet
    Revoke(TokenRevoke),
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
pub(crate) struct TokenList {
    #[command(flatten)]
    pub(crate) admin: Admin,
    /// Only those for this workload
    #[arg(long, value_name = "NAMESPACE/NAME", conflicts_with = "node")]
    pub(crate) workload: Option<WorkloadName>,
    /// Only those for the agent of this node
    #[arg(long, value_name = "NAME")]
    pub(crate) node: Option<NodeName>,
    /// Table or JSON
    #[arg(long, value_enum, default_value_t = Output::Table)]
    pub(crate) output: Output,
}

#[derive(Args, Debug, Clone)]
pub(crate) struct TokenRevoke {
    #[command(flatten)]
    pub(crate) admin: Admin,
    /// The one token that `fender token list` calls so
    #[arg(
        value_name = "ID",
        required_unless_present_any = ["workload", "node"],
        conflicts_with_all = ["workload", "node"]
    )]
    pub(crate) id: Option<String>,
    /// All for this workload
    #[arg(long, value_name = "NAMESPACE/NAME", conflicts_with = "node")]
    pub(crate) workload: Option<WorkloadName>,
    /// All for the agent of this node
    #[arg(long, value_name = "NAME")]
    pub(crate) node: Option<NodeName>,
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
    #[cfg(feature = "control-plane")]
    #[command(flatten)]
    Offline(CaOffline),
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
    /// Every certificate a node's agent has now, and every one that workloads have by its word
    Node(RevokeNode),
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
pub(crate) struct RevokeNode {
    #[command(flatten)]
    pub(crate) admin: Admin,
    /// The node, as its document calls it
    #[arg(value_name = "NAME")]
    pub(crate) node: NodeName,
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

#[derive(Args, Debug, Clone)]
pub(crate) struct Crl {
    #[command(flatten)]
    pub(crate) admin: Admin,
    /// Write `crl.pem` into this directory, in place of the one before; `-`: to standard output
    #[arg(long, value_name = "DIR", default_value = "-")]
    pub(crate) output: PathBuf,
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
