//! What a change of the documents would do, worked out without making it: pure, and the same for a dry run, for an
//! `apply` and for what another replica applied.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use fender_config::snapshot::Snapshot;
use fender_config::{Change, Documents, Memory, Mesh, Source};
use fender_identity::{TrustDomain, WorkloadName};

use super::problem::{NO_MESH, Problem, no_mesh, other_trust_domain};

/// The file made when a trust domain is given and no `Mesh` is written. It stays until one is.
const GENERATED: &str = "(generated)/mesh.yaml";
/// One change, worked out and not yet made.
pub(crate) struct Plan {
    pub(crate) documents: Documents,
    pub(crate) mesh: Mesh,
    pub(crate) files: Arc<[Source]>,
    /// Of every workload that may be told something else than before.
    pub(super) snapshots: BTreeMap<WorkloadName, Snapshot>,
    pub(crate) changes: Vec<Change>,
    pub(crate) warnings: Vec<String>,
    /// Whether a single byte differs from what is in force.
    pub(super) news: News,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum News {
    Nothing,
    Something,
}

/// Whose Snapshots a plan makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    Everybody,
    /// Those that may differ from what is in force.
    Touched,
}

/// Everything wrong with the files, or what they would change.
pub(super) fn plan(
    mut files: Arc<[Source]>,
    before: &Documents,
    before_files: &[Source],
    trust_domain: &TrustDomain,
    scope: Scope,
    memory: &mut Memory,
) -> Result<Plan, Vec<Problem>> {
    let documents = match parse_upon(memory, &files) {
        Err(Unread::NoMesh(_)) if before_files.is_empty() || is_generated(before_files) => {
            let generated = generated_mesh(trust_domain);
            files = files.iter().cloned().chain([generated]).collect();
            parse_upon(memory, &files)
        }
        read => read,
    };
    let documents = documents.map_err(Unread::into_problems)?;
    let Some(mesh) = documents.mesh.clone() else {
        return Err(vec![no_mesh()]);
    };
    if mesh.trust_domain != *trust_domain {
        return Err(vec![other_trust_domain(&mesh.trust_domain, trust_domain)]);
    }

    let names: BTreeSet<_> = match scope {
        Scope::Everybody => documents.workloads.keys().cloned().collect(),
        Scope::Touched => Documents::touched(before, &documents),
    };
    let snapshots = names
        .into_iter()
        .filter_map(|name| {
            let snapshot = documents.snapshot(&name, 0)?;
            Some((name, snapshot))
        })
        .collect();
    let changes = Documents::diff(before, &documents);
    let news = match *files == *before_files {
        true => News::Nothing,
        false => News::Something,
    };
    let warnings = documents
        .warnings
        .iter()
        .map(|warning| Problem::from(warning).to_string())
        .collect();
    Ok(Plan {
        documents,
        mesh,
        files,
        snapshots,
        changes,
        warnings,
        news,
    })
}

/// Why documents were not read.
pub(crate) enum Unread {
    /// No `Mesh` is among them; whatever else is wrong besides is told too.
    NoMesh(Option<fender_config::Problems>),
    Problems(fender_config::Problems),
}

impl Unread {
    fn into_problems(self) -> Vec<Problem> {
        match self {
            Self::NoMesh(Some(problems)) | Self::Problems(problems) => {
                problems.iter().map(Problem::from).collect()
            }
            Self::NoMesh(None) => vec![no_mesh()],
        }
    }
}

/// Reads files on top of what was read last, and remembers them instead.
pub(super) fn read(
    memory: &mut Memory,
    files: &[Source],
) -> Result<Documents, fender_config::Problems> {
    let (documents, now) = memory.parse(files);
    *memory = now;
    documents
}

pub(crate) fn parse(files: &[Source]) -> Result<Documents, Unread> {
    parse_upon(&mut Memory::default(), files)
}

fn parse_upon(memory: &mut Memory, files: &[Source]) -> Result<Documents, Unread> {
    match read(memory, files) {
        Ok(documents) if documents.mesh.is_none() => Err(Unread::NoMesh(None)),
        Ok(documents) => Ok(documents),
        Err(problems) if problems.iter().any(|problem| problem.code == NO_MESH) => {
            Err(Unread::NoMesh(Some(problems)))
        }
        Err(problems) => Err(Unread::Problems(problems)),
    }
}

fn is_generated(files: &[Source]) -> bool {
    files.iter().any(|file| file.name == GENERATED)
}

/// All that can be said of a mesh of which only the trust domain is known.
pub(crate) fn generated_mesh(trust_domain: &TrustDomain) -> Source {
    Source {
        name: GENERATED.to_owned(),
        text: format!(
            "apiVersion: fender.dev/v1\nkind: Mesh\nmetadata: {{ name: mesh }}\nspec: {{ trustDomain: {trust_domain} }}\n"
        ),
    }
}
