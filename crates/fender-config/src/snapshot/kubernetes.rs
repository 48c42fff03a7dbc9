//! Where a secret lies in Kubernetes, and whose word opens it. Never a token: the files that hold one.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::address::HttpsUrl;
use crate::name::check_label;

/// One key of a Secret of a cluster, or all of them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct KubernetesSecret {
    pub cluster: SecretCluster,
    /// None: that of the pod, which only [`SecretCluster::Own`] knows.
    pub namespace: Option<KubernetesName>,
    pub name: KubernetesName,
    /// None: all of them, as one JSON object.
    pub key: Option<String>,
}

impl KubernetesSecret {
    /// Every file that is read to ask for it.
    pub fn files(&self) -> Vec<PathBuf> {
        let access = [self.cluster.roots(), self.cluster.token()];
        let namespace = match self.namespace {
            Some(_) => None,
            None => Some(Path::new(SecretCluster::NAMESPACE)),
        };
        let files = access.into_iter().chain(namespace);
        files.map(Path::to_owned).collect()
    }
}

/// The API of a cluster, and as whom it is asked.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SecretCluster {
    /// The one that whoever asks runs in, as the service account of its pod.
    Own,
    At {
        api: HttpsUrl,
        /// Who vouches for it, in PEM.
        roots: PathBuf,
        /// Of a service account.
        token: PathBuf,
    },
}

impl SecretCluster {
    /// Where the kubelet puts the namespace of a pod.
    pub const NAMESPACE: &str = "/var/run/secrets/kubernetes.io/serviceaccount/namespace";
    /// Where it puts what vouches for the API.
    pub const ROOTS: &str = "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt";
    /// Where it puts the token of the pod's service account, and another one before it ends.
    pub const TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";

    /// Who vouches for the API, in PEM.
    pub fn roots(&self) -> &Path {
        match self {
            Self::Own => Path::new(Self::ROOTS),
            Self::At { roots, .. } => roots,
        }
    }

    /// The file of the token that is shown to it.
    pub fn token(&self) -> &Path {
        match self {
            Self::Own => Path::new(Self::TOKEN),
            Self::At { token, .. } => token,
        }
    }
}

/// The name of an object of a cluster (RFC 1123): labels joined by dots. It stands in a URL as it is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KubernetesName(String);

impl KubernetesName {
    const LONGEST: usize = 253;

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for KubernetesName {
    type Err = InvalidKubernetesName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_label = |label: &str| check_label(label).is_ok();
        if text.len() > Self::LONGEST || !text.split('.').all(is_label) {
            return Err(InvalidKubernetesName(text.escape_default().to_string()));
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for KubernetesName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Nothing in a cluster is called so.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no name of an object in a cluster")]
pub struct InvalidKubernetesName(String);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attack_a_name_that_leads_elsewhere_in_the_api() {
        for text in ["smtp", "smtp-2.shop", "0"] {
            assert_eq!(text.parse::<KubernetesName>().unwrap().as_str(), text);
        }
        let long = ["a"; 127].join(".") + "b";
        for text in [
            "", ".", "..", "a.", "a/b", "../x", "A", "a_b", "a b", "a%2fb", "a?b", "a=b", "a,b",
            "é", &long,
        ] {
            assert!(text.parse::<KubernetesName>().is_err(), "{text:?}");
        }
        let error = "\u{1b}[2J".parse::<KubernetesName>().unwrap_err();
        assert!(!error.to_string().contains('\u{1b}'), "{error}");
    }

    #[test]
    fn every_file_that_is_read_is_named() {
        let files = |cluster, namespace: Option<&str>| {
            let secret = KubernetesSecret {
                cluster,
                namespace: namespace.map(|name| name.parse().unwrap()),
                name: "smtp".parse().unwrap(),
                key: None,
            };
            secret.files()
        };
        let [roots, token, namespace] = [
            SecretCluster::ROOTS,
            SecretCluster::TOKEN,
            SecretCluster::NAMESPACE,
        ]
        .map(PathBuf::from);
        assert_eq!(
            files(SecretCluster::Own, None),
            [roots.clone(), token.clone(), namespace]
        );
        assert_eq!(files(SecretCluster::Own, Some("shop")), [roots, token]);
        let at = SecretCluster::At {
            api: "https://10.0.0.1:6443".parse().unwrap(),
            roots: "/r".into(),
            token: "/t".into(),
        };
        assert_eq!(
            files(at, Some("shop")),
            [PathBuf::from("/r"), PathBuf::from("/t")]
        );
    }
}
