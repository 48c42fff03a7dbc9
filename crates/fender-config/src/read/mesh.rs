//! The `Mesh`: what holds for everyone.

use std::collections::BTreeMap;
use std::time::Duration;

use fender_identity::tls::TlsProfile;

use super::administrators::{administrators, minimum_version};
use super::vouching::{authorities, clusters};
use super::{NAME_HELP, duration, fallback, limits, span, tls};
use crate::documents::{Lifetimes, Mesh, Namespace, TlsProfiles};
use crate::name::check_label;
use crate::raw::{self, Document};
use crate::snapshot::Profile;
use crate::yaml::{At, Reader};

const LEAF: Duration = Duration::from_secs(60 * 60);
const MIN_LEAF: Duration = Duration::from_secs(5 * 60);
const MIN_LEAF_IN_DEVELOPMENT: Duration = Duration::from_secs(5);
const MAX_LEAF: Duration = Duration::from_secs(24 * 60 * 60);
const RENEWAL_GRACE: Duration = Duration::from_secs(24 * 60 * 60);
const MAX_RENEWAL_GRACE: Duration = Duration::from_secs(30 * 24 * 60 * 60);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const INTERMEDIATE: Duration = Duration::from_secs(365 * 24 * 60 * 60);
const MIN_INTERMEDIATE: Duration = Duration::from_secs(7 * 24 * 60 * 60);
const MIN_INTERMEDIATE_IN_DEVELOPMENT: Duration = Duration::from_secs(10);
const MAX_INTERMEDIATE: Duration = Duration::from_secs(3 * 365 * 24 * 60 * 60);
const ROOT: Duration = Duration::from_secs(3650 * 24 * 60 * 60);
const MIN_ROOT: Duration = Duration::from_secs(180 * 24 * 60 * 60);
const MIN_ROOT_IN_DEVELOPMENT: Duration = Duration::from_secs(20);
const MAX_ROOT: Duration = Duration::from_secs(7300 * 24 * 60 * 60);
const JWT_KEY: Duration = Duration::from_secs(7 * 24 * 60 * 60);
const MIN_JWT_KEY_IN_DEVELOPMENT: Duration = Duration::from_secs(10);
const MAX_JWT_KEY: Duration = Duration::from_secs(90 * 24 * 60 * 60);
/// As long as the longest certificate: whoever loses the control plane is not closed any sooner by this.
const SNAPSHOT_AGE: Duration = DAY;
const MIN_SNAPSHOT_AGE: Duration = Duration::from_secs(5 * 60);
const MIN_SNAPSHOT_AGE_IN_DEVELOPMENT: Duration = Duration::from_secs(1);
const MAX_SNAPSHOT_AGE: Duration = Duration::from_secs(30 * 24 * 60 * 60);
/// Nothing is signed under a new root before every join token that was made before it has ended.
const MIN_PUBLICATION: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// A root lives at least this often: its publication, and its intermediate.
const ROOT_HOLDS: u32 = 4;

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
    let lifetimes = lifetimes(reader, profile, spec.lifetimes.as_deref());
    let tls = tls::rule(reader, spec.tls.as_ref());
    let tls_profiles = tls::profiles(reader, &spec.tls_profiles);
    let everywhere = tls::effective(
        reader,
        spec.tls.as_ref(),
        &tls,
        &tls_profiles,
        &TlsProfile::default(),
    );
    let limits = limits::limits(reader, spec.limits.as_ref());
    let namespaces = namespaces(reader, &spec.namespaces, &tls_profiles, &everywhere);
    let snapshot_max_age = max_age(reader, profile, spec.snapshot.as_ref());
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
    let clusters = clusters(reader, &spec.kubernetes);
    let authorities = authorities(reader, &spec.x509);
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
        tls_profiles,
        limits,
        namespaces,
        snapshot_max_age,
        authorization,
        administrators,
        minimum_version,
        clusters,
        authorities,
    })
}

fn namespaces(
    reader: &mut Reader<'_>,
    written: &[At<raw::Namespace>],
    profiles: &TlsProfiles,
    everywhere: &TlsProfile,
) -> BTreeMap<String, Namespace> {
    let mut namespaces = BTreeMap::new();
    for raw::Namespace { name, tls, limits } in written.iter().map(|at| &at.value) {
        reader.take(
            name,
            "fender::bad-name",
            NAME_HELP,
            check_label(&name.value),
        );
        let rule = tls::rule(reader, tls.as_ref());
        tls::effective(reader, tls.as_ref(), &rule, profiles, everywhere);
        let namespace = Namespace {
            tls: rule,
            limits: limits::limits(reader, limits.as_ref()),
        };
        if namespaces.insert(name.value.clone(), namespace).is_some() {
            let message = format!("the namespace `{}` is there twice", name.value);
            reader.wrong(name, "fender::duplicate", message, "remove one of them");
        }
    }
    namespaces
}

fn max_age(
    reader: &mut Reader<'_>,
    profile: Profile,
    written: Option<&raw::SnapshotRules>,
) -> Duration {
    let shortest = match profile {
        Profile::Production => MIN_SNAPSHOT_AGE,
        Profile::Development => MIN_SNAPSHOT_AGE_IN_DEVELOPMENT,
    };
    let written = written.and_then(|snapshot| snapshot.max_age.as_ref());
    written
        .and_then(|at| duration(reader, "maxAge", at, shortest, MAX_SNAPSHOT_AGE))
        .unwrap_or(SNAPSHOT_AGE)
}

fn lifetimes(
    reader: &mut Reader<'_>,
    profile: Profile,
    written: Option<&raw::Lifetimes>,
) -> Lifetimes {
    let (shortest_leaf, shortest_intermediate, shortest_root, shortest_jwt_key) = match profile {
        Profile::Production => (MIN_LEAF, MIN_INTERMEDIATE, MIN_ROOT, DAY),
        Profile::Development => (
            MIN_LEAF_IN_DEVELOPMENT,
            MIN_INTERMEDIATE_IN_DEVELOPMENT,
            MIN_ROOT_IN_DEVELOPMENT,
            MIN_JWT_KEY_IN_DEVELOPMENT,
        ),
    };
    let mut read = |field, at: Option<&At<String>>, shortest, longest, otherwise| {
        at.and_then(|at| duration(reader, field, at, shortest, longest))
            .unwrap_or(otherwise)
    };
    let at = |choose: fn(&raw::Lifetimes) -> Option<&At<String>>| written.and_then(choose);
    let leaf_at = at(|lifetimes| lifetimes.leaf.as_ref());
    let grace_at = at(|lifetimes| lifetimes.renewal_grace.as_ref());
    let intermediate_at = at(|lifetimes| lifetimes.intermediate.as_ref());
    let root_at = at(|lifetimes| lifetimes.root.as_ref());
    let jwt_key_at = at(|lifetimes| lifetimes.jwt_key.as_ref());

    let leaf = read("leaf", leaf_at, shortest_leaf, MAX_LEAF, LEAF);
    let renewal_grace = read(
        "renewalGrace",
        grace_at,
        Duration::ZERO,
        MAX_RENEWAL_GRACE,
        RENEWAL_GRACE,
    );
    let intermediate = read(
        "intermediate",
        intermediate_at,
        shortest_intermediate,
        MAX_INTERMEDIATE,
        INTERMEDIATE,
    );
    let root = read("root", root_at, shortest_root, MAX_ROOT, ROOT);
    let jwt_key = read("jwtKey", jwt_key_at, shortest_jwt_key, MAX_JWT_KEY, JWT_KEY);
    let publication = match profile {
        // Whatever this document said before, no certificate is older than a day.
        Profile::Production => MIN_PUBLICATION.max(DAY.saturating_add(renewal_grace)),
        Profile::Development => leaf.saturating_mul(2).saturating_add(renewal_grace),
    };
    let lifetimes = Lifetimes {
        leaf,
        renewal_grace,
        intermediate,
        root,
        publication,
        jwt_key,
    };
    if let Some(at) = root_at.or(intermediate_at) {
        check_authorities(reader, at, &lifetimes);
    }
    lifetimes
}

/// What must fit into the life of a root for its successor to take over without anybody noticing.
fn check_authorities(reader: &mut Reader<'_>, at: &At<String>, lifetimes: &Lifetimes) {
    let needed = lifetimes
        .intermediate
        .max(lifetimes.publication)
        .saturating_mul(ROOT_HOLDS);
    if lifetimes.root < needed {
        let message = format!(
            "a root that lives `{}` is too short for an intermediate of `{}` and `{}` in which a new root reaches every \
             sidecar before it signs",
            span(lifetimes.root),
            span(lifetimes.intermediate),
            span(lifetimes.publication),
        );
        let help = format!(
            "`root` must be at least `{}`: make it longer, or `intermediate`, `leaf` and `renewalGrace` shorter",
            span(needed)
        );
        reader.wrong(at, "fender::bad-duration", message, help);
    }
    if lifetimes.intermediate < lifetimes.leaf.saturating_mul(2) {
        let message =
            "an intermediate must live at least twice as long as what it signs".to_owned();
        reader.wrong(
            at,
            "fender::bad-duration",
            message,
            "make `intermediate` longer or `leaf` shorter",
        );
    }
}
