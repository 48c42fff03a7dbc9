//! From text to meaning: every document by itself, then the references between them.
//!
//! A document whose structure is broken gives one problem and is then out of the way: what refers
//! to it is not reported missing.

mod administrators;
mod attest;
mod aws;
mod certificates;
mod credential;
mod files;
mod forwarded;
mod kubernetes;
mod limits;
mod mesh;
mod node;
mod peer_authentication;
mod policy;
mod port;
mod sealed;
mod served;
mod sidecar;
mod tls;
mod upstream;
mod vault;
mod vouching;
mod workload;

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use fender_policy::PolicyName;

pub use attest::InvalidDigest;
pub(crate) use attest::{Whom, resolve as resolve_attest};
pub(crate) use certificates::judge_credentials;
pub(crate) use credential::credential;
pub(crate) use mesh::{ROOT_NAMESPACE, mesh};
pub(crate) use node::node;
pub(crate) use peer_authentication::{add as add_peer_authentication, judge as judge_clients};
pub(crate) use policy::policy;
pub(crate) use sidecar::{Alone, DirectPort, sidecar};
pub(crate) use upstream::upstream;
pub(crate) use vouching::Names;
pub(crate) use workload::{Ports, workload};

use crate::documents::{Documents, Kind};
use crate::problem::{Place, Problem, Report};
use crate::raw::{self, Document, Head, IstioDocument};
use crate::suggest::{either, nearest};
use crate::yaml::{At, Page, Reader};
use crate::{MAX_SOURCE_BYTES, Source};

/// All sources of one call.
const MAX_TOTAL_BYTES: usize = 32 * 1024 * 1024;

/// A document whose structure is right.
#[derive(Clone, Debug)]
pub(crate) enum Raw {
    Mesh(Document<raw::Mesh>),
    Workload(Document<raw::Workload>),
    Node(Document<raw::Node>),
    Upstream(Document<raw::Upstream>),
    Credential(Box<Document<raw::Credential>>),
    AuthorizationPolicy(IstioDocument<raw::AuthorizationPolicy>),
    PeerAuthentication(IstioDocument<raw::PeerAuthentication>),
    Sidecar(Document<raw::Sidecar>),
}

impl Raw {
    pub(crate) fn kind(&self) -> Kind {
        match self {
            Self::Mesh(_) => Kind::Mesh,
            Self::Workload(_) => Kind::Workload,
            Self::Node(_) => Kind::Node,
            Self::Upstream(_) => Kind::Upstream,
            Self::Credential(_) => Kind::Credential,
            Self::AuthorizationPolicy(_) => Kind::AuthorizationPolicy,
            Self::PeerAuthentication(_) => Kind::PeerAuthentication,
            Self::Sidecar(_) => Kind::Sidecar,
        }
    }

    /// Namespace, if it has one, and name as they are written.
    pub(crate) fn name(&self) -> (Option<&At<String>>, &At<String>) {
        match self {
            Self::Mesh(document) => named(&document.metadata),
            Self::Workload(document) => named(&document.metadata),
            Self::Node(document) => named(&document.metadata),
            Self::Upstream(document) => named(&document.metadata),
            Self::Credential(document) => named(&document.metadata),
            Self::Sidecar(document) => named(&document.metadata),
            Self::AuthorizationPolicy(document) => istio_named(&document.metadata),
            Self::PeerAuthentication(document) => istio_named(&document.metadata),
        }
    }
}

impl Raw {
    /// By which it is known among all of its kind: `namespace/name`. None if it lacks the namespace it should have.
    pub(crate) fn full_name(&self) -> Option<(Kind, String)> {
        let kind = self.kind();
        let full = match (kind, self.name()) {
            (Kind::Mesh | Kind::Sidecar, _) => String::new(),
            (Kind::Node, (_, name)) => name.value.clone(),
            (_, (Some(namespace), name)) => format!("{}/{}", namespace.value, name.value),
            (_, (None, _)) => return None,
        };
        Some((kind, full))
    }
}

fn named(metadata: &At<raw::Metadata>) -> (Option<&At<String>>, &At<String>) {
    (metadata.value.namespace.as_ref(), &metadata.value.name)
}

fn istio_named(metadata: &At<raw::IstioMetadata>) -> (Option<&At<String>>, &At<String>) {
    (metadata.value.namespace.as_ref(), &metadata.value.name)
}

/// What is read on top of: nothing, or documents that were right and are not read again.
#[derive(Default)]
pub(crate) struct Upon {
    pub(crate) documents: Documents,
    /// Those of them that are not there any more, or read again.
    pub(crate) gone: BTreeSet<(Kind, String)>,
    /// Whom entries of `attest` may refer to, if it is still what it was.
    pub(crate) whom: Option<Arc<Whom>>,
    /// Policies that may select nobody by now, and where they stand.
    pub(crate) doubtful: BTreeMap<PolicyName, Place>,
}

impl Upon {
    fn has(&self, name: &(Kind, String)) -> bool {
        !self.gone.contains(name) && self.documents.has(name.0, &name.1)
    }
}

/// Everything that could be read, and what is known of the rest.
pub(crate) struct Loaded<'a> {
    pub(crate) documents: Vec<(Page<'a>, Arc<Raw>)>,
    pub(crate) known: Known<'a>,
}

/// What a reference may lead to.
pub(crate) struct Known<'a> {
    upon: &'a Upon,
    names: BTreeMap<(Kind, String), Place>,
    /// Whether all documents could be read.
    complete: bool,
    /// Every word of those that could not: one of them may be the name somebody refers to.
    words: HashSet<&'a str>,
}

impl<'a> Known<'a> {
    fn upon(upon: &'a Upon) -> Self {
        Self {
            upon,
            names: BTreeMap::new(),
            complete: true,
            words: HashSet::new(),
        }
    }

    pub(crate) fn was_read(&self, name: &(Kind, String)) -> bool {
        self.names.contains_key(name)
    }

    fn has(&self, kind: Kind, name: String) -> bool {
        let name = (kind, name);
        self.names.contains_key(&name) || self.upon.has(&name)
    }

    fn give_up(&mut self, text: &'a str) {
        self.complete = false;
        self.words
            .extend(text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-')));
    }

    /// Certainly not there: neither read, nor possibly in a document that could not be read.
    pub(crate) fn misses(&self, kind: Kind, namespace: &str, name: &str) -> bool {
        !self.has(kind, format!("{namespace}/{name}")) && !self.words.contains(name)
    }

    /// The nearest name of this kind, as a reference from `namespace` would write it.
    pub(crate) fn nearest(&self, kind: Kind, namespace: &str, name: &str) -> Option<&str> {
        let names = || {
            self.names
                .keys()
                .filter(|(of, _)| *of == kind)
                .map(|(_, full)| full.as_str())
        };
        let within = |full: &'_ str| full.split_once('/').is_some_and(|(of, _)| of == namespace);
        nearest(
            name,
            names()
                .filter(|full| within(full))
                .filter_map(|full| Some(full.split_once('/')?.1)),
        )
    }

    pub(crate) fn misses_node(&self, name: &str) -> bool {
        !self.has(Kind::Node, name.to_owned()) && !self.words.contains(name)
    }

    pub(crate) fn nearest_node(&self, name: &str) -> Option<&str> {
        let nodes = self.names.keys().filter(|(of, _)| *of == Kind::Node);
        nearest(name, nodes.map(|(_, node)| node.as_str()))
    }

    /// Where an object is described; the first file if that is not known.
    pub(crate) fn place(&self, kind: Kind, name: &str) -> Place {
        let place = self.names.get(&(kind, name.to_owned()));
        place.cloned().unwrap_or_else(|| Place::whole_file(""))
    }

    pub(crate) fn everything_was_read(&self) -> bool {
        self.complete
    }

    pub(crate) fn any(&self, kind: Kind) -> bool {
        self.names.keys().any(|(of, _)| *of == kind)
            || self.upon.documents.any(kind)
            || !self.complete
    }
}

/// Reads the structure of every document with `structure`.
pub(crate) fn load<'a>(
    sources: &'a [Source],
    upon: &'a Upon,
    mut structure: impl FnMut(&Page<'a>) -> Result<Arc<Raw>, Problem>,
    report: &mut Report,
) -> Loaded<'a> {
    let (mut documents, mut known) = (Vec::new(), Known::upon(upon));
    let mut total = 0;
    for source in sources {
        total += source.text.len();
        if !fits(source, total) {
            report.add(too_large(source));
            known.give_up(&source.text);
            continue;
        }
        for page in Page::split(source) {
            match structure(&page) {
                Ok(raw) => documents.push((page, raw)),
                Err(problem) => {
                    report.add(problem);
                    known.give_up(page.text);
                }
            }
        }
    }
    Loaded::with(documents, known, report)
}

impl<'a> Loaded<'a> {
    /// Of documents whose structure is right.
    pub(crate) fn of(
        documents: Vec<(Page<'a>, Arc<Raw>)>,
        upon: &'a Upon,
        report: &mut Report,
    ) -> Self {
        Self::with(documents, Known::upon(upon), report)
    }

    fn with(
        documents: Vec<(Page<'a>, Arc<Raw>)>,
        mut known: Known<'a>,
        report: &mut Report,
    ) -> Self {
        for (page, raw) in &documents {
            register(page, raw, &mut known, report);
        }
        Self { documents, known }
    }
}

/// Whether none of them is longer than it may be, nor all together.
pub(crate) fn fit(sources: &[Source]) -> bool {
    let mut total = 0;
    sources.iter().all(|source| {
        total += source.text.len();
        fits(source, total)
    })
}

fn fits(source: &Source, total: usize) -> bool {
    source.text.len() <= MAX_SOURCE_BYTES && total <= MAX_TOTAL_BYTES
}

fn too_large(source: &Source) -> Problem {
    let message = format!(
        "the file is longer than {} MiB, or all together are longer than {} MiB",
        MAX_SOURCE_BYTES >> 20,
        MAX_TOTAL_BYTES >> 20
    );
    Problem::new(
        Place::whole_file(&source.name),
        "fender::too-large",
        message,
    )
    .help("split it into several files")
}

const FENDER: &str = "fender.dev/v1";
pub(crate) const ISTIO: [&str; 2] = ["security.istio.io/v1", "security.istio.io/v1beta1"];
const KINDS: [&str; 8] = [
    "Mesh",
    "Workload",
    "Node",
    "Upstream",
    "Credential",
    "AuthorizationPolicy",
    "PeerAuthentication",
    "Sidecar",
];

/// The structure of a document by itself.
pub(crate) fn read(page: &Page<'_>) -> Result<Raw, Problem> {
    let tree = page.tree()?;
    let head: Head = tree.read()?;
    let missing = |field: &str| {
        Problem::new(
            page.start(),
            "fender::missing-field",
            format!("the document has no `{field}`"),
        )
        .help(format!(
            "it begins with `apiVersion: {FENDER}` and `kind:`, which is {}",
            either(KINDS)
        ))
    };
    let kind = head.kind.ok_or_else(|| missing("kind"))?;
    let version = head.api_version.ok_or_else(|| missing("apiVersion"))?;
    let wants = |right: &[&str]| {
        if right.contains(&version.value.as_str()) {
            return Ok(());
        }
        let message = format!(
            "`{}` is not an apiVersion of `{}`",
            version.value, kind.value
        );
        Err(Problem::new(
            page.place(version.location),
            "fender::unknown-version",
            message,
        )
        .help(format!("it is {}", either(right.iter().copied()))))
    };
    let fender = || wants(&[FENDER]);
    match kind.value.as_str() {
        "Mesh" => fender().and_then(|()| tree.read().map(Raw::Mesh)),
        "Workload" => fender().and_then(|()| tree.read().map(Raw::Workload)),
        "Node" => fender().and_then(|()| tree.read().map(Raw::Node)),
        "Upstream" => fender().and_then(|()| tree.read().map(Raw::Upstream)),
        "Credential" => fender().and_then(|()| tree.read().map(Box::new).map(Raw::Credential)),
        "Sidecar" => fender().and_then(|()| tree.read().map(Raw::Sidecar)),
        "AuthorizationPolicy" => {
            wants(&ISTIO).and_then(|()| tree.read().map(Raw::AuthorizationPolicy))
        }
        "PeerAuthentication" => {
            wants(&ISTIO).and_then(|()| tree.read().map(Raw::PeerAuthentication))
        }
        other => {
            let problem =
                |message| Problem::new(page.place(kind.location), "fender::unknown-kind", message);
            Err(match nearest(other, KINDS) {
                _ if version.value.contains("istio.io/") => {
                    problem(format!("Istio's `{other}` is not supported")).help(
                        "of Istio's kinds, `AuthorizationPolicy` and `PeerAuthentication` are; remove this \
                        document, and what it asked for with it",
                    )
                }
                Some(meant) => problem(format!("unknown kind `{other}`"))
                    .help(format!("did you mean `{meant}`?")),
                None => problem(format!("unknown kind `{other}`"))
                    .help(format!("it is {}", either(KINDS))),
            })
        }
    }
}

fn register(page: &Page<'_>, raw: &Raw, known: &mut Known<'_>, report: &mut Report) {
    let Some(name) = raw.full_name() else { return };
    let place = page.place(raw.name().1.location);
    let stands = known.upon.has(&name);
    let (kind, full) = name.clone();
    let first = match known.names.entry(name) {
        Entry::Vacant(free) if !stands => {
            free.insert(place);
            return;
        }
        Entry::Vacant(_) => Place::whole_file(""),
        Entry::Occupied(first) => first.get().clone(),
    };
    let message = if full.is_empty() {
        format!("there is more than one `{kind}`")
    } else {
        format!("the {kind} `{full}` is there twice")
    };
    let help = format!("the first one is at {first}; keep one of them");
    report.add(Problem::new(place, "fender::duplicate", message).help(help));
}

/// Namespace and name, if both are there and right.
fn full_name<T, E: std::fmt::Display>(
    reader: &mut Reader<'_>,
    metadata: &At<impl Named>,
    make: impl Fn(&str, &str) -> Result<T, E>,
) -> Option<T> {
    let Some(namespace) = metadata.value.namespace() else {
        reader.wrong(
            metadata,
            "fender::missing-field",
            "the metadata has no `namespace`",
            "every object but the Mesh and a Node belongs to a namespace: `metadata: { \
                namespace: shop, name: orders }`",
        );
        return None;
    };
    match make(&namespace.value, &metadata.value.name().value) {
        Ok(name) => Some(name),
        Err(error) => {
            let at = if make(&namespace.value, "x").is_ok() {
                metadata.value.name()
            } else {
                namespace
            };
            reader.wrong(at, "fender::bad-name", error.to_string(), NAME_HELP);
            None
        }
    }
}

trait Named {
    fn namespace(&self) -> Option<&At<String>>;
    fn name(&self) -> &At<String>;
}

impl Named for raw::Metadata {
    fn namespace(&self) -> Option<&At<String>> {
        self.namespace.as_ref()
    }

    fn name(&self) -> &At<String> {
        &self.name
    }
}

impl Named for raw::IstioMetadata {
    fn namespace(&self) -> Option<&At<String>> {
        self.namespace.as_ref()
    }

    fn name(&self) -> &At<String> {
        &self.name
    }
}

/// How names are written.
const NAME_HELP: &str =
    "lower-case letters, digits and `-`, at most 63, such as `orders` or `orders-v2`";
/// How the other side of a connection is written.
const HOST_HELP: &str = "write `inventory.internal:8443`, `10.0.0.9:8443` or `[2001:db8::9]:8443`";

/// A span of time within bounds.
fn duration(
    reader: &mut Reader<'_>,
    field: &str,
    at: &At<String>,
    min: Duration,
    max: Duration,
) -> Option<Duration> {
    let Ok(duration) = humantime::parse_duration(&at.value) else {
        let message = format!("`{}` is not a span of time", at.value);
        reader.wrong(
            at,
            "fender::bad-duration",
            message,
            "write it like `30s`, `5m` or `1h`",
        );
        return None;
    };
    if (min..=max).contains(&duration) {
        return Some(duration);
    }
    let message = format!("`{field}` may not be `{}`", at.value);
    let (min, max) = (span(min), span(max));
    reader.wrong(
        at,
        "fender::bad-duration",
        message,
        format!("it lies between `{min}` and `{max}`"),
    );
    None
}

/// A span of time as people write it. Days stay days: a month has no length.
fn span(span: Duration) -> String {
    const DAY: u64 = 24 * 60 * 60;
    match span.as_secs() {
        seconds if seconds >= DAY && seconds.is_multiple_of(DAY) => format!("{}d", seconds / DAY),
        _ => humantime::format_duration(span).to_string(),
    }
}

/// The path of a file: absolute, without `..`.
/// What is not written is right; what is written must be.
fn whole<T>(written: Option<Option<T>>) -> Option<Option<T>> {
    match written {
        None => Some(None),
        Some(read) => read.map(Some),
    }
}

fn file_path(reader: &mut Reader<'_>, at: &At<String>) -> Option<PathBuf> {
    let refused = if !at.value.starts_with('/') {
        Some("it is relative, and no two processes agree on where it begins: write it from `/`")
    } else if at.value.split('/').any(|part| part == "..") {
        Some("it may not contain `..`: write where it leads")
    } else if at.value.ends_with('/') || at.value.contains('\0') {
        Some("it does not name a file")
    } else {
        None
    };
    match refused {
        None => Some(PathBuf::from(&at.value)),
        Some(help) => {
            reader.wrong(
                at,
                "fender::bad-path",
                format!("`{}` is not usable as a path", at.value),
                help,
            );
            None
        }
    }
}

fn fallback(
    reader: &mut Reader<'_>,
    authorization: Option<&raw::Authorization>,
) -> Option<fender_policy::Default> {
    let at = authorization?.default.as_ref()?;
    reader.choose("default", at)
}

const DRAIN: Duration = Duration::from_secs(30);
/// The longest drain a document can ask for.
pub const MAX_DRAIN: Duration = Duration::from_secs(3600);

fn drain(reader: &mut Reader<'_>, at: Option<&At<String>>) -> Duration {
    at.and_then(|at| duration(reader, "drain", at, Duration::ZERO, MAX_DRAIN))
        .unwrap_or(DRAIN)
}
