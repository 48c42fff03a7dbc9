//! The `Credential` as it is written.

use schemars::JsonSchema;
use serde::Deserialize;

use crate::documents::Via;
use crate::snapshot::{NotifyMethod, NotifySignal, Storage};
use crate::yaml::{At, Word};

#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Credential {
    pub(crate) source: At<CredentialSource>,
    /// How long the newest value that is known may be used while its source cannot be asked, before the sidecar says that it
    /// is not ready. Default: 24h.
    pub(crate) max_stale: Option<At<String>>,
    /// How it reaches the app.
    pub(crate) deliver: At<Vec<At<Delivery>>>,
    /// Who is told once another value is in every file of `deliver`: at most 8. Default: nobody.
    pub(crate) notify: Option<At<Vec<At<Notify>>>>,
}

#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct CredentialSource {
    pub(crate) file: Option<SourceFile>,
    pub(crate) docker_secret: Option<SourceDockerSecret>,
    pub(crate) command: Option<SourceCommand>,
    pub(crate) environment: Option<SourceEnvironment>,
}

#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct SourceFile {
    pub(crate) path: At<String>,
    /// Who reads it. Default: sidecar.
    pub(crate) via: Option<At<Word<Via>>>,
}

/// A secret of Docker, Compose or Swarm, as mounted into the container.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
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
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct SourceEnvironment {
    /// Its name; none of Fender's own.
    pub(crate) variable: At<String>,
    /// Whose environment it is. Default: sidecar.
    pub(crate) via: Option<At<Word<Via>>>,
}

/// A plug-in: a program that is asked for the secret, by a line of JSON. It is run only if it is allowed locally, by
/// --allow-command.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
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

#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Delivery {
    pub(crate) file: Option<DeliveryFile>,
    pub(crate) environment: Option<Environment>,
}

#[derive(Clone, Debug, Deserialize, JsonSchema)]
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
}

#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Environment {
    pub(crate) variable: At<String>,
}

/// One of `signal`, `http`, `command` and `restart`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
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

#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct SignalNotify {
    pub(crate) signal: At<Word<NotifySignal>>,
    /// The file that holds the number of the process. Default: the application that the sidecar supervises.
    pub(crate) pid_file: Option<At<String>>,
}

#[derive(Clone, Debug, Deserialize, JsonSchema)]
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
#[derive(Clone, Debug, Deserialize, JsonSchema)]
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
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RestartNotify {}
