//! The [`Snapshot`]: everything one sidecar must know, immutable and numbered, and nothing another
//! workload owns.
//!
//! A private key or the value of a secret is never in it. The control plane makes it from the
//! documents and streams it; a standalone sidecar makes the same from its file.

mod aws;
mod command;
mod content;
mod docker;
mod files;
mod kubernetes;
mod limits;
mod notification;
mod sealed;
mod served;
mod template;
mod vault;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU8;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use fender_identity::tls::TlsProfile;
use fender_identity::{SpiffeId, Trust};
use fender_policy::{Action, Policy, PolicySet, Rule};
use ipnet::IpNet;

use crate::address::{AppAddress, HostPort, HttpsUrl, ListenAddr};
use crate::name::ObjectName;

pub use aws::{
    AwsParameterName, AwsParameterVersion, AwsPlace, AwsRegion, AwsSecret, AwsSecretId,
    AwsSecretVersion, AwsService, AwsStore, InvalidAwsName,
};
pub use command::{Command, InvalidArguments};
pub use content::{
    Alias, Content, EntryName, FieldFormat, FieldName, InvalidAlias, InvalidEntryName,
    InvalidFieldName, KeyStore, StorePassword,
};
pub use docker::{DockerSecret, DockerSecretName, InvalidSecretName};
pub use files::{FileEntry, FilesDelivery, OnExit};
pub use kubernetes::{InvalidKubernetesName, KubernetesName, KubernetesSecret, SecretCluster};
pub use limits::RequestLimits;
pub use notification::{
    InvalidLoopbackUrl, LoopbackUrl, Notification, NotifyMethod, NotifySignal, Target,
};
pub use sealed::{AgeSecret, InvalidKey, SopsFile, SopsFormat, SopsKey, SopsSecret, UnknownFormat};
pub use served::{InvalidServedName, ServedName, SocketDelivery, UrlDelivery, UrlForm};
pub use template::{InvalidTemplate, Template};
pub use vault::{
    InvalidVaultPath, VaultCertificate, VaultJwt, VaultLogin, VaultPath, VaultPlace, VaultSecret,
    VaultStore,
};

/// What one sidecar runs on.
#[derive(Clone, Debug, PartialEq)]
pub struct Snapshot {
    pub version: u64,
    /// None of a sidecar alone that only delivers credentials: it has no ports, and shows itself to nobody.
    pub identity: Option<SpiffeId>,
    pub profile: Profile,
    /// Travels apart from all the rest, which does not change with it. The control plane leaves it empty:
    /// it is filled in where it arrives.
    pub trust: Trust,
    /// For what it calls.
    pub tls: TlsProfile,
    pub inbound: Vec<Inbound>,
    pub outbound: Vec<Outbound>,
    /// Only those that select this workload.
    pub policies: Arc<PolicySet>,
    pub credentials: Vec<CredentialSpec>,
    /// How long open connections may take to end once asked.
    pub drain: Duration,
    /// How long it may be used after it was last known to be the newest. None where there is nobody to know.
    pub max_age: Option<Duration>,
}

impl Snapshot {
    /// What is left of one that has become too old: its ports, at which nobody is let in. The app's own way out is closed.
    pub fn closed(&self) -> Self {
        let policies = TOO_OLD.parse().map(|name| Policy {
            name,
            action: Action::Deny,
            rules: vec![Rule::default()],
        });
        Self {
            outbound: Vec::new(),
            policies: Arc::new(PolicySet {
                default: fender_policy::Default::Deny,
                policies: policies.into_iter().collect(),
            }),
            ..self.clone()
        }
    }

    /// Whether it is what is left of one that has become too old.
    pub fn is_closed(&self) -> bool {
        let mut names = self.policies.policies.iter().map(|policy| &policy.name);
        names.any(|name| name.as_str() == TOO_OLD)
    }
}

/// As the policy is called that denies everybody then, so that each denial says why.
const TOO_OLD: &str = "fender-system/snapshot-too-old";

/// What a mesh may relax.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Profile {
    #[default]
    Production,
    /// Certificates of seconds, for demonstrations and tests.
    Development,
}

/// A port of the workload: TLS outside, unless it says otherwise, the app on loopback inside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inbound {
    pub listen: ListenAddr,
    pub app: AppAddress,
    pub protocol: Protocol,
    pub mtls: Mtls,
    pub tls: TlsProfile,
    /// Shown to clients that ask for their names instead of the workload's own.
    pub certificates: Vec<PortCertificate>,
    pub paths: PathRules,
    /// Who passes connections on and says whom for.
    pub proxy_protocol: Option<ProxyProtocol>,
    pub app_proxy_protocol: AppProxyProtocol,
    /// Means nothing where the port's protocol is `tcp`.
    pub app_protocol: AppProtocol,
    /// Means nothing where the port's protocol is `tcp`.
    pub forwarded: Forwarded,
    /// Mean nothing where the port's protocol is `tcp`.
    pub limits: RequestLimits,
}

/// H1: what the app is told of the way of a request, and who but us may say of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Forwarded {
    pub fields: ForwardedFields,
    /// None: nobody, and what is said is removed.
    pub behind: Option<Behind>,
}

/// In which fields the app is told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ForwardedFields {
    /// `X-Forwarded-For` and `X-Forwarded-Proto`.
    #[default]
    XForwarded,
    /// That of RFC 7239.
    Forwarded,
    Both,
    Nothing,
}

/// The proxies in front, as the last of them is known. Whoever is not it is believed about nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Behind {
    /// How many of them a request passes.
    pub hops: NonZeroU8,
    /// Of the two lists at least one names somebody.
    pub from: Vec<IpNet>,
    pub identities: Vec<SpiffeId>,
}

impl Behind {
    /// No chain of proxies is longer.
    pub const MOST_HOPS: u8 = 16;

    /// Whether the one who asks is the last of the proxies.
    pub fn believes(&self, address: Option<IpAddr>, identity: Option<&SpiffeId>) -> bool {
        let address = address.map(|address| address.to_canonical());
        let is_listed = |address| self.from.iter().any(|block| block.contains(&address));
        address.is_some_and(is_listed) || identity.is_some_and(|id| self.identities.contains(id))
    }
}

/// Which HTTP the app speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum AppProtocol {
    #[default]
    Http1,
    /// HTTP/2 without TLS, by prior knowledge.
    H2c,
}

/// The senders whose PROXY headers are believed. A connection from one of them begins with a header, one from anybody else
/// does not: either is refused otherwise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxyProtocol {
    /// Never empty.
    pub from: Vec<IpNet>,
}

impl ProxyProtocol {
    /// Whether the one who connects from this address is a sender.
    pub fn lists(&self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        self.from.iter().any(|block| block.contains(&ip))
    }
}

/// Whether the app is told by a PROXY header, before the first byte, who a connection comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum AppProxyProtocol {
    #[default]
    Absent,
    V2,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// HTTP/1.1 and HTTP/2.
    Http,
    /// Bytes both ways; only facts of the connection are authorized.
    Tcp,
}

/// A certificate that a port shows to clients that ask for its names.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortCertificate {
    pub source: CertificateSource,
    /// In lower case; `*` is for whoever asks for no other. With nothing but that, also all that are in the certificate.
    pub names: Vec<String>,
}

impl PortCertificate {
    /// What of the sidecar's file system it names.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        let files = match &self.source {
            CertificateSource::Files(files) => [Some(&files.certificate), Some(&files.key)],
            CertificateSource::Acme(acme) => {
                let account = acme.external_account.as_ref();
                [acme.roots.as_ref(), account.map(|account| &account.key)]
            }
            CertificateSource::Credential(_) => [None, None],
        };
        files.into_iter().flatten().map(PathBuf::as_path)
    }

    /// Who is asked for it, if somebody is.
    pub fn acme(&self) -> Option<&Acme> {
        match &self.source {
            CertificateSource::Files(_) | CertificateSource::Credential(_) => None,
            CertificateSource::Acme(acme) => Some(acme),
        }
    }

    /// The credential that it is, if it is one.
    pub fn credential(&self) -> Option<&ObjectName> {
        match &self.source {
            CertificateSource::Files(_) | CertificateSource::Acme(_) => None,
            CertificateSource::Credential(name) => Some(name),
        }
    }

    /// Whether it lies beside the sidecar.
    pub fn is_in_files(&self) -> bool {
        matches!(self.source, CertificateSource::Files(_))
    }

    /// The names themselves.
    pub fn listed(&self) -> impl Iterator<Item = &str> {
        let names = self.names.iter().map(String::as_str);
        names.filter(|name| *name != ANY_OTHER_NAME)
    }

    /// Whether it is for whoever asks for no other.
    pub fn is_for_others(&self) -> bool {
        self.names.iter().any(|name| name == ANY_OTHER_NAME)
    }
}

/// Whence such a certificate comes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CertificateSource {
    /// PEM beside the sidecar.
    Files(CertificateFiles),
    /// An authority that is asked for it.
    Acme(Acme),
    /// A credential that the workload may have: its value is the chain and the key.
    Credential(ObjectName),
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CertificateFiles {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// An authority that speaks ACME, and as whose customer it is asked.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Acme {
    pub directory: HttpsUrl,
    pub challenge: AcmeChallenge,
    /// A mail address.
    pub contact: Option<String>,
    /// Who vouches for the directory. None: whom the operating system believes.
    pub roots: Option<PathBuf>,
    pub external_account: Option<ExternalAccount>,
}

/// How it convinces itself that a name is ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AcmeChallenge {
    /// RFC 8737, at the port itself.
    TlsAlpn,
    /// RFC 8555, 8.3, at a port that does nothing else.
    Http { listen: SocketAddr },
}

/// How an authority knows its customers (RFC 8555, 7.3.4).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ExternalAccount {
    pub key_id: String,
    /// The file of the HMAC key, in base64url.
    pub key: PathBuf,
}

/// What stands among the names of the certificate that is shown to whoever asks for no other.
pub const ANY_OTHER_NAME: &str = "*";

/// M1: how clients come in at a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mtls {
    /// Over TLS only; what is asked of them there.
    Strict(ClientCertificate),
    /// Over TLS, with a certificate that is right or with none; or in the clear. Without a certificate they are nobody.
    Permissive,
    /// In the clear only, and nobody.
    Disabled,
}

/// What is asked of a client in the TLS handshake.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ClientCertificate {
    /// No certificate, no connection.
    #[default]
    Require,
    /// Without one the peer is anonymous; with one it must be right.
    Accept,
    /// Not asked for: every peer is anonymous.
    Ignore,
}

/// P1 and P3: how paths are brought into one form before they are matched and forwarded.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct PathRules {
    pub escaped_slash: EscapedSlash,
    pub merge_slashes: bool,
    pub exceptions: BTreeSet<PathException>,
}

/// What is refused in a path unless its port says otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PathException {
    /// `/..;x/`
    DotSegmentParameters,
    /// `%C0%AF`
    OverlongUtf8,
    /// `%252F`
    DoubleEncoding,
}

/// What becomes of `%2F` and `%5C` in a path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum EscapedSlash {
    #[default]
    Reject,
    Keep,
    Decode,
}

/// A local listener through which the app reaches something outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outbound {
    pub listen: ListenAddr,
    pub to: Destination,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destination {
    /// A workload of the mesh: it must prove to be exactly `id` (M4).
    Service {
        id: SpiffeId,
        addresses: Vec<HostPort>,
        protocol: Protocol,
    },
    /// An external service, verified by its DNS name.
    Upstream {
        name: ObjectName,
        address: HostPort,
        protocol: Protocol,
        roots: UpstreamRoots,
        certificate: OwnCertificate,
    },
}

/// Who may vouch for an upstream. Never the operating system's roots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UpstreamRoots {
    /// The mesh's own.
    Mesh,
    /// PEM certificates in a file beside the sidecar.
    File(PathBuf),
}

/// Whether the workload shows its certificate to an upstream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum OwnCertificate {
    Present,
    #[default]
    Withhold,
}

/// A secret the workload may have, by reference: where from, and how it reaches the app.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CredentialSpec {
    pub name: ObjectName,
    pub source: CredentialSource,
    /// For how long it may be outdated before the sidecar is not ready.
    pub max_stale: Duration,
    pub deliver: Vec<Delivery>,
    /// Who is told when it has changed.
    pub notify: Vec<Notification>,
    /// What becomes of its files at the end.
    pub on_exit: OnExit,
}

/// Who asks for a secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CredentialSource {
    /// The sidecar itself, of this.
    Direct(Origin),
    /// The control plane, which sends it on the workload's own stream; of what does not travel.
    Control(Lifetime),
}

/// For how long a secret is good whose source does not travel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Lifetime {
    /// Until there is another.
    #[default]
    Lasting,
    /// While the control plane goes on renewing it, which it does as long as somebody takes it.
    Leased,
}

/// What holds a secret, as seen by who asks for it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Origin {
    /// A file inside the directories that were locally allowed.
    File { path: PathBuf },
    /// What an engine mounted into the container.
    DockerSecret(DockerSecret),
    /// A program that was locally allowed.
    Command(Command),
    /// A variable that was locally allowed.
    Environment { variable: String },
    /// HashiCorp Vault or OpenBao.
    Vault(Box<VaultSecret>),
    /// A Secret of Kubernetes, watched.
    KubernetesSecret(Box<KubernetesSecret>),
    /// AWS Secrets Manager or Systems Manager, with the credentials that the machine has locally.
    Aws(Box<AwsSecret>),
    /// A file that age encrypted.
    Age(AgeSecret),
    /// A file that SOPS encrypted.
    Sops(SopsSecret),
}

impl Origin {
    /// Whether what it gives ends unless somebody renews it.
    pub fn lifetime(&self) -> Lifetime {
        match self {
            Self::Vault(secret) if matches!(secret.at, VaultPlace::Engine { .. }) => {
                Lifetime::Leased
            }
            Self::Vault(_)
            | Self::File { .. }
            | Self::DockerSecret(_)
            | Self::Command(_)
            | Self::Environment { .. }
            | Self::KubernetesSecret(_)
            | Self::Aws(_)
            | Self::Age(_)
            | Self::Sops(_) => Lifetime::Lasting,
        }
    }

    /// Every file that is read to have it, where it is asked for: what must be allowed there.
    pub fn files(&self) -> Vec<PathBuf> {
        match self {
            Self::File { path } => vec![path.clone()],
            Self::DockerSecret(secret) => vec![secret.path()],
            // These are no files that are read: they are allowed in another way.
            Self::Command(_) | Self::Environment { .. } => Vec::new(),
            Self::Vault(secret) => secret.files(),
            Self::KubernetesSecret(secret) => secret.files(),
            Self::Aws(secret) => secret.files(),
            Self::Age(secret) => secret.files(),
            Self::Sops(secret) => secret.files(),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// One file, and what it holds.
    File(FileDelivery, Content),
    /// Several that change together.
    Files(FilesDelivery),
    /// For `fender exec`.
    Environment { variable: String },
    /// At the sidecar's own socket, to processes of certain users.
    Socket(SocketDelivery),
    /// Over HTTP on loopback, to whoever shows a token.
    Url(UrlDelivery),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileDelivery {
    pub path: PathBuf,
    /// Permission bits, no more than `0o777`.
    pub mode: u32,
    /// A name or a number; the sidecar's own if none is given.
    pub owner: Option<String>,
    pub group: Option<String>,
    pub storage: Storage,
}

/// What kind of file system a secret may be written to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Storage {
    /// tmpfs; a disk is refused.
    #[default]
    Memory,
    Disk,
}
