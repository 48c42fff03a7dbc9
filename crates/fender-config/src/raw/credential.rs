//! The `Credential` as it is written.

#[cfg(test)]
use schemars::JsonSchema;
use serde::Deserialize;

use super::{CertificateFiles, Roots, SourceAge, SourceSops, TokenFile};
use crate::documents::Via;
use crate::snapshot::{NotifyMethod, NotifySignal, OnExit, Storage, UrlForm};
use crate::yaml::{At, Word};

#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Credential {
    pub(crate) source: At<CredentialSource>,
    /// How long the newest value that is known may be used while its source cannot be asked, before the sidecar says that it
    /// is not ready. Default: 24h.
    pub(crate) max_stale: Option<At<String>>,
    /// How it reaches the app. Left out where it is nothing but the certificate of a port.
    pub(crate) deliver: Option<At<Vec<At<Delivery>>>>,
    /// Who is told once another value is in every file of `deliver`: at most 8. Default: nobody.
    pub(crate) notify: Option<At<Vec<At<Notify>>>>,
    /// What becomes of its files when the sidecar ends. Default: wipe.
    pub(crate) on_exit: Option<At<Word<OnExit>>>,
}

#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct CredentialSource {
    pub(crate) file: Option<SourceFile>,
    pub(crate) docker_secret: Option<SourceDockerSecret>,
    pub(crate) command: Option<SourceCommand>,
    pub(crate) environment: Option<SourceEnvironment>,
    pub(crate) vault: Option<Box<SourceVault>>,
    pub(crate) kubernetes_secret: Option<SourceKubernetesSecret>,
    pub(crate) aws: Option<Box<SourceAws>>,
    pub(crate) age: Option<SourceAge>,
    pub(crate) sops: Option<SourceSops>,
}

#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields)]
pub(crate) struct SourceFile {
    pub(crate) path: At<String>,
    /// Who reads it. Default: sidecar.
    pub(crate) via: Option<At<Word<Via>>>,
}

/// A secret of Docker, Compose or Swarm, as mounted into the container.
#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields)]
pub(crate) struct SourceDockerSecret {
    pub(crate) name: At<String>,
    /// Default: /run/secrets.
    pub(crate) directory: Option<At<String>>,
    /// Who reads it. Default: sidecar.
    pub(crate) via: Option<At<Word<Via>>>,
}

/// A variable of the environment that Fender was started with. It is read only if it is allowed locally, by
/// --allow-environment.
#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields)]
pub(crate) struct SourceEnvironment {
    /// Its name; none of Fender's own.
    pub(crate) variable: At<String>,
    /// Whose environment it is. Default: sidecar.
    pub(crate) via: Option<At<Word<Via>>>,
}

/// A plug-in: a program that is asked for the secret, by a line of JSON. It is run only if it is allowed locally, by
/// --allow-command.
#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields)]
pub(crate) struct SourceCommand {
    /// The absolute path of the program.
    pub(crate) program: At<String>,
    /// At most 16, of at most 4096 bytes each. Never a secret: documents are read by many. Default: none.
    pub(crate) arguments: Option<At<Vec<At<String>>>>,
    /// How often it is asked, from 1s to 24h. Default: 5m.
    pub(crate) every: Option<At<String>>,
    /// How long it may take, from 100ms to 2m; then it is killed. Default: 10s.
    pub(crate) timeout: Option<At<String>>,
    /// Who runs it. Default: sidecar.
    pub(crate) via: Option<At<Word<Via>>>,
}

/// HashiCorp Vault or OpenBao. One of `kv1`, `kv2` and `engine` says where in it.
#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields)]
pub(crate) struct SourceVault {
    /// `https://vault.internal:8200`; on loopback also `http://127.0.0.1:8200`.
    pub(crate) address: At<String>,
    /// Who vouches for the server. Default: the roots of the operating system.
    pub(crate) roots: Option<Roots>,
    /// Of Vault, or of OpenBao: in which everything below is.
    pub(crate) namespace: Option<At<String>>,
    pub(crate) login: At<VaultLogin>,
    /// Version 1 of the KV engine.
    pub(crate) kv1: Option<VaultKv1>,
    /// Version 2 of the KV engine.
    pub(crate) kv2: Option<VaultKv2>,
    /// What any other engine gives when its path is read; its lease is renewed.
    pub(crate) engine: Option<VaultEngine>,
    /// How often it is asked for, unless it has a lease. Default: 1m.
    pub(crate) refresh: Option<At<String>>,
    /// Who asks. Default: sidecar.
    pub(crate) via: Option<At<Word<Via>>>,
}

/// One of them. Files are below --allow-dir, and read anew with every login.
#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct VaultLogin {
    /// A token that somebody else keeps fresh in a file.
    pub(crate) token: Option<VaultToken>,
    pub(crate) app_role: Option<VaultAppRole>,
    /// The token of a service account.
    pub(crate) kubernetes: Option<VaultKubernetes>,
    pub(crate) jwt: Option<VaultJwt>,
    /// A certificate that is shown in the TLS handshake.
    pub(crate) certificate: Option<VaultCertificate>,
}

#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields)]
pub(crate) struct VaultToken {
    pub(crate) file: At<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct VaultAppRole {
    pub(crate) role_id: At<String>,
    pub(crate) secret_id_file: At<String>,
    /// Default: approle.
    pub(crate) mount: Option<At<String>>,
}

#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct VaultKubernetes {
    pub(crate) role: At<String>,
    /// Default: /var/run/secrets/kubernetes.io/serviceaccount/token.
    pub(crate) token_file: Option<At<String>>,
    /// Default: kubernetes.
    pub(crate) mount: Option<At<String>>,
}

#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct VaultJwt {
    /// Default: the mount's own default.
    pub(crate) role: Option<At<String>>,
    /// Any JWT that somebody keeps fresh in a file. Either this or `svid`.
    pub(crate) token_file: Option<At<String>>,
    /// A JWT-SVID of the workload. With `via: sidecar` alone.
    pub(crate) svid: Option<VaultJwtSvid>,
    /// Default: jwt.
    pub(crate) mount: Option<At<String>>,
}

#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields)]
pub(crate) struct VaultJwtSvid {
    /// One of the `bound_audiences` of Vault's role, and nobody else's.
    pub(crate) audience: At<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields)]
pub(crate) struct VaultCertificate {
    /// Default: any that the certificate matches.
    pub(crate) role: Option<At<String>>,
    /// Either these or `svid`.
    pub(crate) files: Option<CertificateFiles>,
    /// The workload's own certificate, whose key stays in memory. With `via: sidecar` alone.
    pub(crate) svid: Option<VaultSvid>,
    /// Default: cert.
    pub(crate) mount: Option<At<String>>,
}

#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields)]
pub(crate) struct VaultSvid {}

#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields)]
pub(crate) struct VaultKv1 {
    /// Default: secret.
    pub(crate) mount: Option<At<String>>,
    pub(crate) path: At<String>,
    /// Default: all of them, as one JSON object.
    pub(crate) key: Option<At<String>>,
}

#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields)]
pub(crate) struct VaultKv2 {
    /// Default: secret.
    pub(crate) mount: Option<At<String>>,
    /// Without `data/`.
    pub(crate) path: At<String>,
    /// Default: all of them, as one JSON object.
    pub(crate) key: Option<At<String>>,
    /// From 1 on. Default: the newest.
    pub(crate) version: Option<At<i64>>,
}

#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields)]
pub(crate) struct VaultEngine {
    /// With its mount: `database/creds/orders`.
    pub(crate) path: At<String>,
    /// Default: all of them, as one JSON object.
    pub(crate) key: Option<At<String>>,
}

/// A Secret of Kubernetes, watched: list and watch of it by its name must be allowed.
#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields)]
pub(crate) struct SourceKubernetesSecret {
    pub(crate) name: At<String>,
    /// Default: that of the pod.
    pub(crate) namespace: Option<At<String>>,
    /// Default: all of them, as one JSON object.
    pub(crate) key: Option<At<String>>,
    /// Default: the one that Fender runs in, as the service account of its pod.
    pub(crate) cluster: Option<SecretCluster>,
    /// Who asks. Default: sidecar.
    pub(crate) via: Option<At<Word<Via>>>,
}

/// Files are below --allow-dir, and read anew whenever the API is asked.
#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields)]
pub(crate) struct SecretCluster {
    /// `https://HOST:PORT`
    pub(crate) api: At<String>,
    pub(crate) roots: Roots,
    /// Of a service account.
    pub(crate) token: TokenFile,
}

/// AWS Secrets Manager or Systems Manager's Parameter Store, with the credentials of the machine that asks. One of
/// `secretsManager` and `parameter` says what of it. Documents from a control plane name only what is allowed locally, by
/// --allow-aws.
#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct SourceAws {
    /// `eu-central-1`.
    pub(crate) region: At<String>,
    /// Where it is asked. One that is not AWS's own must be in AWS_ENDPOINT_URL or its like of the machine that asks. Default:
    /// what stands there, or AWS's own.
    pub(crate) endpoint: Option<At<String>>,
    /// Who vouches for the endpoint. Default: the roots in AWS_CA_BUNDLE, or of the operating system.
    pub(crate) roots: Option<Roots>,
    pub(crate) secrets_manager: Option<AwsSecretsManager>,
    pub(crate) parameter: Option<AwsParameter>,
    /// How often it is asked for, from 1s to 24h. Default: 5m.
    pub(crate) refresh: Option<At<String>>,
    /// Who asks. Default: sidecar.
    pub(crate) via: Option<At<Word<Via>>>,
}

/// A secret of Secrets Manager.
#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct AwsSecretsManager {
    /// Its name or its ARN.
    pub(crate) secret_id: At<String>,
    /// The label of a version. Default: AWSCURRENT.
    pub(crate) version_stage: Option<At<String>>,
    pub(crate) version_id: Option<At<String>>,
    /// Of the JSON object that the secret is. Default: the whole secret.
    pub(crate) key: Option<At<String>>,
}

/// A parameter of Systems Manager; a SecureString is decrypted.
#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields)]
pub(crate) struct AwsParameter {
    /// Its name or its ARN.
    pub(crate) name: At<String>,
    /// From 1 on. Default: the newest.
    pub(crate) version: Option<At<i64>>,
    pub(crate) label: Option<At<String>>,
    /// Of the JSON object that the parameter is. Default: the whole parameter.
    pub(crate) key: Option<At<String>>,
}

#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields)]
pub(crate) struct Delivery {
    pub(crate) file: Option<DeliveryFile>,
    pub(crate) files: Option<DeliveryFiles>,
    pub(crate) environment: Option<Environment>,
    pub(crate) socket: Option<DeliverySocket>,
    pub(crate) url: Option<DeliveryUrl>,
}

/// What it holds is one of `field`, `template` and `format`; without any, the value as it is.
#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields)]
pub(crate) struct DeliveryFile {
    pub(crate) path: At<String>,
    /// Octal. Default: 0400.
    pub(crate) mode: Option<At<String>>,
    /// A name or a number.
    pub(crate) owner: Option<At<String>>,
    pub(crate) group: Option<At<String>>,
    /// Default: memory, which refuses a directory that is not on tmpfs.
    pub(crate) storage: Option<At<Word<Storage>>>,
    /// The field of the secret that it holds.
    pub(crate) field: Option<At<String>>,
    /// Text with places for fields: `{{ password | json }}`. At most 16 KiB.
    pub(crate) template: Option<At<String>>,
    /// What fields are written as.
    pub(crate) format: Option<At<Word<Format>>>,
    /// Of `format`, at most 64. Default: all; with pem and pkcs12, the value itself.
    pub(crate) fields: Option<At<Vec<At<String>>>>,
    /// Of `format: pkcs12`.
    pub(crate) password: Option<At<StorePassword>>,
    /// Of the entry in the store of `format: pkcs12`. Default: the name of the credential.
    pub(crate) alias: Option<At<String>>,
}

/// Several files in one directory that change together: whoever opens `..data` in it once finds files of one generation there.
#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields)]
pub(crate) struct DeliveryFiles {
    /// Of the set alone; it is made if only its last part is missing.
    pub(crate) directory: At<String>,
    /// Octal, of files that have no mode of their own. Default: 0400.
    pub(crate) mode: Option<At<String>>,
    /// A name or a number.
    pub(crate) owner: Option<At<String>>,
    pub(crate) group: Option<At<String>>,
    /// Default: memory, which refuses a directory that is not on tmpfs.
    pub(crate) storage: Option<At<Word<Storage>>>,
    /// At least 1, at most 32.
    pub(crate) entries: At<Vec<At<FilesEntry>>>,
}

/// What it holds is one of `field`, `template` and `format`; without any, the value as it is.
#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields)]
pub(crate) struct FilesEntry {
    /// At most 128 letters, digits, `-`, `_` and `.`, not beginning with `..`.
    pub(crate) name: At<String>,
    /// Octal. Default: that of the set.
    pub(crate) mode: Option<At<String>>,
    /// The field of the secret that it holds.
    pub(crate) field: Option<At<String>>,
    /// Text with places for fields: `{{ password | json }}`. At most 16 KiB.
    pub(crate) template: Option<At<String>>,
    /// What fields are written as.
    pub(crate) format: Option<At<Word<Format>>>,
    /// Of `format`, at most 64. Default: all; with pem and pkcs12, the value itself.
    pub(crate) fields: Option<At<Vec<At<String>>>>,
    /// Of `format: pkcs12`.
    pub(crate) password: Option<At<StorePassword>>,
    /// Of the entry in the store of `format: pkcs12`. Default: the name of the credential.
    pub(crate) alias: Option<At<String>>,
}

/// What fields are written as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    Json,
    Yaml,
    Dotenv,
    Properties,
    Pem,
    Pkcs12,
}

/// One of `field` and `generate`.
#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields)]
pub(crate) struct StorePassword {
    /// The field of the secret that holds it.
    pub(crate) field: Option<At<String>>,
    /// The name of the file, in the same set, into which one that was made here is written.
    pub(crate) generate: Option<At<String>>,
}

/// The file in which a consumer finds its token.
#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields)]
pub(crate) struct ConsumerToken {
    pub(crate) path: At<String>,
    /// Octal. Default: 0400.
    pub(crate) mode: Option<At<String>>,
    /// A name or a number.
    pub(crate) owner: Option<At<String>>,
    pub(crate) group: Option<At<String>>,
    /// Default: memory, which refuses a directory that is not on tmpfs.
    pub(crate) storage: Option<At<Word<Storage>>>,
}

/// At the socket that the sidecar opens with `--credentials-socket`.
#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields)]
pub(crate) struct DeliverySocket {
    /// What it is asked for by. Default: the name of the credential.
    pub(crate) name: Option<At<String>>,
    /// Whose processes receive it, by name or number; nobody else's do.
    pub(crate) users: At<Vec<At<String>>>,
}

/// At the address that the sidecar opens with `--credentials-url`.
#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields)]
pub(crate) struct DeliveryUrl {
    /// The last part of the path. Default: the name of the credential.
    pub(crate) name: Option<At<String>>,
    /// `value` is served at `/v1/credentials/NAME`, `aws`, for AWS SDKs, at `/v1/aws/NAME`. Default: value.
    pub(crate) form: Option<At<Word<UrlForm>>>,
    /// The file in which the consumer finds its token.
    pub(crate) token: ConsumerToken,
}

#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields)]
pub(crate) struct Environment {
    pub(crate) variable: At<String>,
}

/// One of `signal`, `http`, `command` and `restart`.
#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields)]
pub(crate) struct Notify {
    pub(crate) signal: Option<SignalNotify>,
    pub(crate) http: Option<HttpNotify>,
    pub(crate) command: Option<NotifyCommand>,
    pub(crate) restart: Option<RestartNotify>,
    /// From the first change until it is told, up to 5m: what changes meanwhile, of all credentials that name the same, is told
    /// with it. Default: 1s.
    pub(crate) after: Option<At<String>>,
}

#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct SignalNotify {
    pub(crate) signal: At<Word<NotifySignal>>,
    /// The file that holds the number of the process. Default: the application that the sidecar supervises.
    pub(crate) pid_file: Option<At<String>>,
}

#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields)]
pub(crate) struct HttpNotify {
    /// Of this machine's loopback: `http://127.0.0.1:PORT/PATH`.
    pub(crate) url: At<String>,
    /// Default: POST.
    pub(crate) method: Option<At<Word<NotifyMethod>>>,
    /// How long the answer may take, from 100ms to 2m. Default: 10s.
    pub(crate) timeout: Option<At<String>>,
}

/// A program that is allowed locally, by --allow-command.
#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields)]
pub(crate) struct NotifyCommand {
    /// The absolute path of the program.
    pub(crate) program: At<String>,
    /// At most 16, of at most 4096 bytes each. Default: none.
    pub(crate) arguments: Option<At<Vec<At<String>>>>,
    /// How long it may take, from 100ms to 2m; then it is killed. Default: 10s.
    pub(crate) timeout: Option<At<String>>,
}

/// The application that the sidecar supervises is stopped and started.
#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields)]
pub(crate) struct RestartNotify {}
