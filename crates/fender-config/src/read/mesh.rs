//! The `Mesh`: what holds for everyone.

use std::time::Duration;

use super::administrators::{administrators, minimum_version};
use super::{NAME_HELP, duration, fallback, tls};
use crate::documents::{Lifetimes, Mesh};
use crate::name::check_label;
use crate::raw::{self, Document};
use crate::snapshot::Profile;
use crate::yaml::Reader;

const LEAF: Duration = Duration::from_secs(60 * 60);
const MIN_LEAF: Duration = Duration::from_secs(5 * 60);
const MIN_LEAF_IN_DEVELOPMENT: Duration = Duration::from_secs(5);
const MAX_LEAF: Duration = Duration::from_secs(24 * 60 * 60);
const RENEWAL_GRACE: Duration = Duration::from_secs(24 * 60 * 60);
const MAX_RENEWAL_GRACE: Duration = Duration::from_secs(30 * 24 * 60 * 60);

pub(crate) const ROOT_NAMESPACE: &str = "fender-system";

pub(crate) fn mesh(reader: &mut Reader<'_>, document: Document<raw::Mesh>) -> Option<Mesh> {
    let Document { metadata, spec, .. } = document;
    let metadata = metadata.value;
    let named = reader.take(
        &metadata.name,
        "fender::bad-name",
        NAME_HELP,
        check_label(&metadata.name.value),
    );
    let root_namespace = match &spec.root_namespace {
        Some(at) => {
            reader.take(at, "fender::bad-name", NAME_HELP, check_label(&at.value))?;
            at.value.clone()
        }
        None => ROOT_NAMESPACE.to_owned(),
    };
    if let Some(at) = metadata
        .namespace
        .as_ref()
        .filter(|at| at.value != root_namespace)
    {
        let message = format!("a Mesh does not belong to the namespace `{}`", at.value);
        reader.wrong(
            at,
            "fender::bad-name",
            message,
            "remove `namespace`: a Mesh holds for all of them",
        );
    }
    let profile = spec
        .profile
        .as_ref()
        .map_or(Some(Profile::default()), |at| reader.choose("profile", at))
        .unwrap_or_default();
    let lifetimes = lifetimes(reader, profile, spec.lifetimes.as_ref());
    let tls = tls(reader, spec.tls.as_ref());
    let authorization =
        fallback(reader, spec.authorization.as_ref()).unwrap_or(fender_policy::Default::Deny);
    if let (Some(at), fender_policy::Default::Allow | fender_policy::Default::Audit) = (
        spec.authorization
            .as_ref()
            .and_then(|written| written.default.as_ref()),
        authorization,
    ) {
        let message = format!(
            "`default: {authorization}` lets every peer call every workload that \
                no ALLOW policy selects"
        );
        reader.warn(
            at,
            "fender::open-default",
            message,
            "with `deny`, the default, such a workload is closed until a policy opens it",
        );
    }
    let administrators = administrators(reader, spec.administrators.as_ref());
    let minimum_version = minimum_version(reader, spec.minimum_version.as_ref());
    let trust_domain = reader.parse(
        &spec.trust_domain,
        "fender::bad-trust-domain",
        "write it like a DNS name: `example.org`",
    )?;
    named?;
    Some(Mesh {
        name: metadata.name.value,
        trust_domain,
        profile,
        root_namespace,
        lifetimes,
        tls,
        authorization,
        administrators,
        minimum_version,
    })
}

fn lifetimes(
    reader: &mut Reader<'_>,
    profile: Profile,
    written: Option<&raw::Lifetimes>,
) -> Lifetimes {
    let shortest = match profile {
        Profile::Production => MIN_LEAF,
        Profile::Development => MIN_LEAF_IN_DEVELOPMENT,
    };
    let leaf = written
        .and_then(|lifetimes| lifetimes.leaf.as_ref())
        .and_then(|at| duration(reader, "leaf", at, shortest, MAX_LEAF));
    let renewal_grace = written
        .and_then(|lifetimes| lifetimes.renewal_grace.as_ref())
        .and_then(|at| {
            duration(
                reader,
                "renewalGrace",
                at,
                Duration::ZERO,
                MAX_RENEWAL_GRACE,
            )
        });
    Lifetimes {
        leaf: leaf.unwrap_or(LEAF),
        renewal_grace: renewal_grace.unwrap_or(RENEWAL_GRACE),
    }
}
