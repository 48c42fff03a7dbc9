//! The name of a policy, `namespace/name`. It is shown to operators and never to a peer (A5).

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// `namespace/name`. Cheap to clone: every decision carries one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PolicyName(Arc<str>);

impl PolicyName {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub fn namespace(&self) -> &str {
        self.0
            .split_once('/')
            .map_or("", |(namespace, _)| namespace)
    }

    pub fn name(&self) -> &str {
        self.0.split_once('/').map_or("", |(_, name)| name)
    }
}

impl FromStr for PolicyName {
    type Err = InvalidPolicyName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refuse = || InvalidPolicyName(text.to_owned());
        let (namespace, name) = text.split_once('/').ok_or_else(refuse)?;
        if is_label(namespace) && is_subdomain(name) {
            Ok(Self(text.into()))
        } else {
            Err(refuse())
        }
    }
}

impl fmt::Display for PolicyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The text is not `namespace/name`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a policy name: it has the form `namespace/name`, in \
        lower-case letters, digits and `-`"
)]
pub struct InvalidPolicyName(String);

/// RFC 1123 label.
fn is_label(text: &str) -> bool {
    (1..=63).contains(&text.len())
        && !text.starts_with('-')
        && !text.ends_with('-')
        && text
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

/// What Kubernetes allows as the name of an object: labels joined by dots.
fn is_subdomain(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(is_label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_name_is_a_namespace_and_a_name() {
        let name: PolicyName = "shop/allow-web.v2".parse().unwrap();
        assert_eq!((name.namespace(), name.name()), ("shop", "allow-web.v2"));
        for wrong in [
            "",
            "shop",
            "/x",
            "shop/",
            "Shop/x",
            "shop/x/y",
            "shop/-x",
            "a.b/c",
            "shop/x..y",
        ] {
            assert!(wrong.parse::<PolicyName>().is_err(), "{wrong}");
        }
    }
}
