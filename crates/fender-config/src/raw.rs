//! The documents as they are written: close to the text, every text still a text.
//!
//! Unknown fields are refused here. Fields of Istio that cannot be honoured are known, so that they
//! can be refused by name.

mod certificates;
mod credential;
mod istio;
mod limits;
mod port;
mod sealed;
mod words;

use std::collections::BTreeMap;

use fender_identity::tls::{CipherSuite, Group, SessionResumption, TlsVersion};
use fender_policy::Default as Fallback;
#[cfg(test)]
use schemars::JsonSchema;
use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::administrators::Role;
use crate::documents::MtlsMode;
use crate::documents::Via;
use crate::snapshot::{
    AppProtocol, AppProxyProtocol, ClientCertificate, EscapedSlash, ForwardedFields, NotifyMethod,
    NotifySignal, OnExit, OwnCertificate, PathException, Profile, Protocol, SopsFormat, Storage,
    UrlForm,
};
use crate::yaml::{At, Choice, Word};

pub(crate) use certificates::{
    Acme, CertificateFiles, ExternalAccount, PortCertificate, TermsOfService,
};
pub(crate) use credential::{
    AwsParameter, AwsSecretsManager, ConsumerToken, Credential, CredentialSource, Delivery,
    DeliveryFile, DeliveryFiles, DeliverySocket, DeliveryUrl, FilesEntry, Format, Notify,
    RestartNotify, SecretCluster, SourceAws, SourceCommand, SourceDockerSecret,
    SourceKubernetesSecret, SourceVault, StorePassword, VaultLogin, VaultSvid,
};
pub(crate) use istio::{
    AuthorizationPolicy, Condition, IstioDocument, IstioMetadata, MutualTls, PeerAuthentication,
    Rule, RuleOperation, RuleSource, Texts,
};

pub(crate) use limits::Limits;
pub(crate) use port::{Behind, Forwarded};
pub(crate) use sealed::{DocumentKey, SourceAge, SourceSops};

/// Enough of any document to know what it is.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Head {
    pub(crate) api_version: Option<At<String>>,
    pub(crate) kind: Option<At<String>>,
}

#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Document<S> {
    #[serde(rename = "apiVersion")]
    _api_version: String,
    #[serde(rename = "kind")]
    _kind: String,
    pub(crate) metadata: At<Metadata>,
    pub(crate) spec: S,
}

#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields)]
pub(crate) struct Metadata {
    pub(crate) namespace: Option<At<String>>,
    pub(crate) name: At<String>,
    #[serde(default)]
    pub(crate) labels: BTreeMap<String, String>,
    /// Ignored; for other tools.
    #[serde(rename = "annotations")]
    _annotations: Option<BTreeMap<String, String>>,
}

#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Mesh {
    /// The name under which every identity of this mesh stands.
    pub(crate) trust_domain: At<String>,
    pub(crate) profile: Option<At<Word<Profile>>>,
    /// Policies here select workloads of every namespace. Default: fender-system.
    pub(crate) root_namespace: Option<At<String>>,
    pub(crate) lifetimes: Option<Box<Lifetimes>>,
    /// What every connection must be, unless a namespace, a workload or a port says otherwise.
    pub(crate) tls: Option<At<Tls>>,
    /// TLS parameters under a name, to be named wherever `tls` is.
    #[serde(default)]
    pub(crate) tls_profiles: Vec<At<TlsProfile>>,
    /// What HTTP requests may take, unless a namespace, a workload or a port says otherwise.
    pub(crate) limits: Option<At<Limits>>,
    /// What holds in one namespace instead of everywhere.
    #[serde(default)]
    pub(crate) namespaces: Vec<At<Namespace>>,
    /// What sidecars run on.
    pub(crate) snapshot: Option<SnapshotRules>,
    pub(crate) authorization: Option<Authorization>,
    /// Who may administer, and what. Not named: the first administrator, everything.
    pub(crate) administrators: Option<At<Vec<At<Administrator>>>>,
    /// Older sidecars are refused from a moment on.
    pub(crate) minimum_version: Option<MinimumVersion>,
    /// Clusters that vouch for their service accounts.
    #[serde(default)]
    pub(crate) kubernetes: Vec<At<Cluster>>,
    /// Authorities whose certificates workloads may attest with.
    #[serde(default)]
    pub(crate) x509: Vec<At<IssuingAuthority>>,
}

#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Cluster {
    /// By which selectors find it.
    pub(crate) name: At<String>,
    /// The `iss` of its tokens.
    pub(crate) issuer: At<String>,
    /// The audience a token for this control plane has, and no other.
    pub(crate) audience: At<String>,
    /// Verify tokens here, by the keys of the issuer.
    pub(crate) jwks: Option<At<Jwks>>,
    /// Or let the cluster's API verify them.
    pub(crate) token_review: Option<At<TokenReview>>,
}

/// Either `file`, or `url` and `roots`. Files are the control plane's, below its --allow-dir.
#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields)]
pub(crate) struct Jwks {
    pub(crate) file: Option<At<String>>,
    pub(crate) url: Option<At<String>>,
    pub(crate) roots: Option<Roots>,
    /// Shown to the issuer, if it asks who wants to know.
    pub(crate) token: Option<TokenFile>,
}

/// Files are the control plane's, below its --allow-dir.
#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields)]
pub(crate) struct TokenReview {
    /// `https://HOST:PORT`
    pub(crate) api: At<String>,
    pub(crate) roots: Roots,
    /// Of a service account that may create `tokenreviews`.
    pub(crate) token: TokenFile,
}

#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields)]
pub(crate) struct TokenFile {
    pub(crate) file: At<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields)]
pub(crate) struct IssuingAuthority {
    /// By which selectors find it.
    pub(crate) name: At<String>,
    /// A file of the control plane's, below its --allow-dir.
    pub(crate) roots: Roots,
}

#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields)]
pub(crate) struct Administrator {
    /// Their certificate is `spiffe://TRUST/fender/admin/NAME`.
    pub(crate) name: At<String>,
    pub(crate) role: At<Word<Role>>,
    /// Where the role holds; `"*"`: everywhere. Not for `security`, which holds for the mesh.
    pub(crate) namespaces: Option<At<Vec<At<String>>>>,
}

#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields)]
pub(crate) struct MinimumVersion {
    /// `0.2.0`
    pub(crate) version: At<String>,
    /// Until then they are warned of: `2027-01-01T00:00:00Z`.
    pub(crate) after: At<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Lifetimes {
    /// Of a workload's certificate: 5m to 24h, default 1h; from 5s in a development mesh.
    pub(crate) leaf: Option<At<String>>,
    /// How long after expiry a certificate may still renew itself. Default 24h.
    pub(crate) renewal_grace: Option<At<String>>,
    /// Of the authority that signs everything: 7d to 3y, default 1y; from 10s in a development mesh.
    pub(crate) intermediate: Option<At<String>>,
    /// Of the root it chains to: 180d to 20y, default 10y; from 20s in a development mesh. A new one is made at half of it.
    pub(crate) root: Option<At<String>>,
    /// How long one key signs JWT-SVIDs before the next one does: 1d to 90d, default 7d; from 10s in a development mesh.
    /// A token lives an hour at most, and no longer than this.
    pub(crate) jwt_key: Option<At<String>>,
}

#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct SnapshotRules {
    /// A sidecar that has not heard for so long that what it runs on is the newest, or refuses what is newer, lets nobody
    /// in and nothing out any more: 5m to 30d, default 24h; from 1s in a development mesh.
    pub(crate) max_age: Option<At<String>>,
}

#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields)]
pub(crate) struct Namespace {
    pub(crate) name: At<String>,
    pub(crate) tls: Option<At<Tls>>,
    pub(crate) limits: Option<At<Limits>>,
}

/// What is left out is as it is around it: a port is in a workload, that in a namespace, that in the mesh.
#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Tls {
    /// One of `tlsProfiles`. What is written beside it wins.
    pub(crate) profile: Option<At<String>>,
    /// Default: 1.3.
    pub(crate) minimum: Option<At<Word<TlsVersion>>>,
    /// At least one of TLS 1.3. Default: all.
    pub(crate) cipher_suites: Option<At<Vec<At<Word<CipherSuite>>>>>,
    /// How keys are agreed upon, the best one first. Default: X25519MLKEM768, X25519, P-256, P-384.
    pub(crate) groups: Option<At<Vec<At<Word<Group>>>>>,
    /// Whether a client may go on with its session in a later connection. Default: tickets.
    pub(crate) resumption: Option<At<Word<SessionResumption>>>,
}

#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct TlsProfile {
    pub(crate) name: At<String>,
    pub(crate) minimum: Option<At<Word<TlsVersion>>>,
    pub(crate) cipher_suites: Option<At<Vec<At<Word<CipherSuite>>>>>,
    pub(crate) groups: Option<At<Vec<At<Word<Group>>>>>,
    pub(crate) resumption: Option<At<Word<SessionResumption>>>,
}

#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields)]
pub(crate) struct Authorization {
    /// What holds where no ALLOW policy selects the workload. Default: deny.
    pub(crate) default: Option<At<Word<Fallback>>>,
}

#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Workload {
    /// Who may attest to this identity. Empty: nobody.
    pub(crate) attest: Option<Vec<At<Attest>>>,
    /// Names in the certificate, for clients that verify names.
    #[serde(default)]
    pub(crate) dns_names: Vec<At<String>>,
    #[serde(default)]
    pub(crate) inbound: Vec<At<Inbound>>,
    #[serde(default)]
    pub(crate) outbound: Vec<At<Outbound>>,
    /// Names of Credentials in the same namespace.
    #[serde(default)]
    pub(crate) credentials: Vec<At<String>>,
    /// How long open connections may take to end. Default 30s.
    pub(crate) drain: Option<At<String>>,
    pub(crate) authorization: Option<Authorization>,
    /// For its ports, and for what it calls.
    pub(crate) tls: Option<At<Tls>>,
    /// For its ports.
    pub(crate) limits: Option<At<Limits>>,
}

#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields)]
pub(crate) struct Attest {
    /// A join token.
    pub(crate) token: Option<Token>,
    /// A container, as the engine of its host describes it to the agent there.
    pub(crate) docker: Option<At<DockerSelector>>,
    /// A process, as the kernel of its host describes it to the agent there.
    pub(crate) unix: Option<At<UnixSelector>>,
    /// A service account, by a token that its cluster vouches for.
    pub(crate) kubernetes: Option<At<KubernetesSelector>>,
    /// The holder of a certificate that another authority issued.
    pub(crate) x509: Option<At<X509Selector>>,
}

#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields)]
pub(crate) struct Token {}

#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct UnixSelector {
    /// The Node on which it runs.
    pub(crate) node: Option<At<String>>,
    /// Instead: any Node that lists this group.
    pub(crate) node_group: Option<At<String>>,
    /// The user it runs as. Required.
    #[cfg_attr(test, schemars(required))]
    pub(crate) uid: Option<At<i64>>,
    /// The group it runs as.
    pub(crate) gid: Option<At<i64>>,
    /// Its program, as it sees the file system itself.
    pub(crate) path: Option<At<String>>,
    /// Of its program, 64 hexadecimal digits.
    pub(crate) sha256: Option<At<String>>,
}

#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct DockerSelector {
    /// The Node on which it runs.
    pub(crate) node: Option<At<String>>,
    /// Instead: any Node that lists this group.
    pub(crate) node_group: Option<At<String>>,
    /// The image's id, `sha256:…`, or its digest in a registry, `NAME@sha256:…`. Required.
    #[cfg_attr(test, schemars(required))]
    pub(crate) image: Option<At<String>>,
    /// Labels it must have besides. They prove nothing by themselves.
    #[serde(default)]
    pub(crate) labels: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct KubernetesSelector {
    /// One of the Mesh's `kubernetes`.
    pub(crate) cluster: At<String>,
    pub(crate) namespace: At<String>,
    pub(crate) service_account: At<String>,
    /// The pod the token is bound to.
    pub(crate) pod: Option<At<String>>,
    /// The node that pod runs on.
    pub(crate) node: Option<At<String>>,
}

/// At least one of the fields besides `authority`; all that are given must hold.
#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct X509Selector {
    /// One of the Mesh's `x509`.
    pub(crate) authority: At<String>,
    /// As RFC 4514 writes it: `CN=orders,O=Acme`.
    pub(crate) subject: Option<At<String>>,
    pub(crate) dns_name: Option<At<String>>,
    pub(crate) uri: Option<At<String>>,
    /// Of the certificate in DER, 64 hexadecimal digits.
    pub(crate) sha256: Option<At<String>>,
}

/// A host with an agent.
#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields)]
pub(crate) struct Node {
    /// Names under which selectors find it, beside its own.
    #[serde(default)]
    pub(crate) groups: Vec<At<String>>,
    /// How its agent proves to be this node's. Empty: no agent can.
    pub(crate) attest: Option<Vec<At<Attest>>>,
}

#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Inbound {
    /// Where clients come in: `0.0.0.0:8443`.
    pub(crate) listen: At<String>,
    /// The app, on loopback: `127.0.0.1:8080`, or `unix:/path`.
    pub(crate) app: At<String>,
    pub(crate) protocol: At<Word<Protocol>>,
    /// Where other workloads find it. Default: the first of dnsNames and the port of `listen`.
    pub(crate) advertise: Option<At<String>>,
    /// What is asked of clients in TLS. Default: what PeerAuthentication documents say, and require where none does.
    pub(crate) client_certificate: Option<At<Word<ClientCertificate>>>,
    pub(crate) tls: Option<At<Tls>>,
    /// Shown to clients that ask for their names instead of the workload's own.
    #[serde(default)]
    pub(crate) certificates: Vec<At<PortCertificate>>,
    pub(crate) paths: Option<At<Paths>>,
    /// Which HTTP the app speaks. Default: http1.
    pub(crate) app_protocol: Option<At<Word<AppProtocol>>>,
    /// Balancers that pass connections on and say by a PROXY header where each comes from.
    pub(crate) proxy_protocol: Option<At<ProxyProtocol>>,
    /// Tells the app by a PROXY header who each connection comes from.
    pub(crate) app_proxy_protocol: Option<At<Word<AppProxyProtocol>>>,
    /// What `Forwarded` and `X-Forwarded-*` say to the app, and who else may say it.
    pub(crate) forwarded: Option<At<Forwarded>>,
    pub(crate) limits: Option<At<Limits>>,
}

#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields)]
pub(crate) struct ProxyProtocol {
    pub(crate) version: At<Word<ProxyVersion>>,
    /// The addresses of the balancers: each connection from them must begin with a header, and none from elsewhere may.
    pub(crate) from: At<Vec<At<String>>>,
}

/// The one version that is read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ProxyVersion;

#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Paths {
    /// What becomes of `%2F` and `%5C`. Default: reject.
    pub(crate) escaped_slash: Option<At<Word<EscapedSlash>>>,
    /// Whether `//` becomes `/`. Default: false.
    #[serde(default)]
    pub(crate) merge_slashes: bool,
    /// What of this is let through, though other servers may read it in another way. Default: nothing.
    #[serde(default)]
    pub(crate) exceptions: Vec<At<Word<PathException>>>,
}

#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields)]
pub(crate) struct Outbound {
    /// Where the app connects, on loopback or `unix:/path`.
    pub(crate) listen: At<String>,
    /// A workload of the mesh, `namespace/name` or a name in the same namespace.
    pub(crate) service: Option<At<String>>,
    /// Which of its inbound ports, if it has several.
    pub(crate) port: Option<At<i64>>,
    /// Where to connect instead of where it says it is found.
    pub(crate) address: Option<At<String>>,
    /// The name of an Upstream in the same namespace.
    pub(crate) upstream: Option<At<String>>,
}

#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields)]
pub(crate) struct Upstream {
    pub(crate) protocol: At<Word<Protocol>>,
    /// `host:port`
    pub(crate) address: At<String>,
    pub(crate) tls: Option<UpstreamTls>,
    #[cfg_attr(test, schemars(skip))]
    pub(crate) login: Option<At<IgnoredAny>>,
}

#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct UpstreamTls {
    pub(crate) verify: Option<At<Word<Verify>>>,
    /// Default: the roots of the mesh.
    pub(crate) roots: Option<Roots>,
    /// Whether the workload shows its own certificate. Default: withhold.
    pub(crate) certificate: Option<At<Word<OwnCertificate>>>,
}

/// Chain and name; there is no less.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Verify;

#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields)]
pub(crate) struct Roots {
    pub(crate) file: At<String>,
}

/// A sidecar without a control plane.
#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Sidecar {
    /// Not needed by `fender exec`, which talks to nobody.
    pub(crate) identity: Option<At<Identity>>,
    /// For its ports, and for what it calls.
    pub(crate) tls: Option<At<Tls>>,
    /// TLS parameters under a name, to be named wherever `tls` is.
    #[serde(default)]
    pub(crate) tls_profiles: Vec<At<TlsProfile>>,
    /// For its ports.
    pub(crate) limits: Option<At<Limits>>,
    #[serde(default)]
    pub(crate) inbound: Vec<At<Inbound>>,
    #[serde(default)]
    pub(crate) outbound: Vec<At<Direct>>,
    #[serde(default)]
    pub(crate) credentials: Vec<At<String>>,
    pub(crate) drain: Option<At<String>>,
    pub(crate) authorization: Option<Authorization>,
}

/// Either `files`, or `workloadApi` with or without `uid` and `spiffeId`.
#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Identity {
    pub(crate) files: Option<IdentityFiles>,
    /// The socket of any SPIFFE Workload API: `unix:///run/spire/agent.sock`
    pub(crate) workload_api: Option<At<String>>,
    /// The user that must listen there, if it is neither root nor the sidecar's own.
    pub(crate) uid: Option<At<i64>>,
    /// Which of the identities given there to take; the first if none is named.
    pub(crate) spiffe_id: Option<At<String>>,
}

/// PEM files. Trust domain and SPIFFE ID come from the certificate.
#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields)]
pub(crate) struct IdentityFiles {
    pub(crate) certificate: At<String>,
    pub(crate) key: At<String>,
    pub(crate) bundle: At<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields)]
pub(crate) struct Direct {
    pub(crate) listen: At<String>,
    /// `host:port`
    pub(crate) connect: At<String>,
    /// The SPIFFE ID the other side must prove.
    pub(crate) expect: At<String>,
    pub(crate) protocol: At<Word<Protocol>>,
}
