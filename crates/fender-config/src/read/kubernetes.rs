//! `source.kubernetesSecret` of a `Credential`: which Secret, of which cluster.

use super::{file_path, whole};
use crate::name::check_label;
use crate::raw;
use crate::snapshot::{KubernetesName, KubernetesSecret, SecretCluster};
use crate::yaml::{At, Reader};

/// As Kubernetes limits them.
const LONGEST_KEY: usize = 253;

/// `at` is the whole source, for what is missing in it.
pub(super) fn secret(
    reader: &mut Reader<'_>,
    at: &At<raw::CredentialSource>,
    written: &raw::SourceKubernetesSecret,
) -> Option<KubernetesSecret> {
    let help = "as `kubectl get secrets` shows it";
    let name: Option<KubernetesName> = reader.parse(&written.name, "fender::bad-secret-name", help);
    let namespace = written.namespace.as_ref();
    let namespace = namespace.map(|at| self::namespace(reader, at));
    let key = written.key.as_ref().map(|at| key(reader, at));
    let cluster = match &written.cluster {
        None => Some(SecretCluster::Own),
        Some(written) => cluster(reader, written),
    };
    if written.cluster.is_some() && written.namespace.is_none() {
        reader.wrong(
            at,
            "fender::no-namespace",
            "another cluster is asked, and no namespace of it is named",
            "write `namespace:` beside `cluster:`; only the cluster that Fender runs in has one that is its pod's",
        );
        return None;
    }
    Some(KubernetesSecret {
        cluster: cluster?,
        namespace: whole(namespace)?,
        name: name?,
        key: whole(key)?,
    })
}

fn cluster(reader: &mut Reader<'_>, written: &raw::SecretCluster) -> Option<SecretCluster> {
    let raw::SecretCluster { api, roots, token } = written;
    let help = "write `https://HOST:PORT`, as `kubectl config view` shows it";
    let api = reader.parse(api, "fender::bad-url", help);
    let roots = file_path(reader, &roots.file);
    let token = file_path(reader, &token.file);
    Some(SecretCluster::At {
        api: api?,
        roots: roots?,
        token: token?,
    })
}

fn namespace(reader: &mut Reader<'_>, at: &At<String>) -> Option<KubernetesName> {
    let help = "it is a namespace of the cluster: letters, digits and `-`";
    reader.take(at, "fender::bad-name", help, check_label(&at.value))?;
    reader.parse(at, "fender::bad-name", help)
}

fn key(reader: &mut Reader<'_>, at: &At<String>) -> Option<String> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    if !(1..=LONGEST_KEY).contains(&at.value.len()) || !at.value.bytes().all(allowed) {
        let message = format!(
            "`{}` cannot be a key of a Secret",
            at.value.escape_default()
        );
        let help = "letters, digits, `-`, `_` and `.`; leave `key` out to have all of them as one JSON object";
        reader.wrong(at, "fender::bad-key", message, help);
        return None;
    }
    Some(at.value.clone())
}
