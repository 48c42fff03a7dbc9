//! The documents as they were read last, and reading on top of them.
//!
//! Most of a mesh stays as it is from one revision to the next. A document is read again if its text is not the same to
//! the byte, or if it refers to one whose text is not; every other object is the one of the reading before, and shared
//! with it. What is left of the size of the mesh is to compare its files and to look whom a change concerns.
//!
//! Only a reading that was right is remembered, so that whatever is wrong now is wrong in what is read again. It is not
//! told from here: then everything is read as if it were new, and told in full.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use fender_identity::WorkloadName;

use crate::documents::{Documents, IDLE, Kind, OutboundTo, Workload, read_upon};
use crate::problem::{MAX_PROBLEMS, Report};
use crate::read::{self, Loaded, Raw, Upon, Whom};
use crate::yaml::Page;
use crate::{ObjectName, Problem, Problems, Source};

/// What was read last, if it was right. It holds the text of those documents once more, and no others.
#[derive(Clone, Debug, Default)]
pub struct Memory(Option<Arc<Reading>>);

/// Documents that are right, and where each of them stands.
#[derive(Debug)]
struct Reading {
    files: Vec<File>,
    documents: Documents,
    whom: Arc<Whom>,
}

#[derive(Clone, Debug)]
struct File {
    name: Arc<str>,
    text: Arc<str>,
    pages: Arc<[Kept]>,
}

/// One document of a file.
#[derive(Clone, Debug)]
struct Kept {
    offset: usize,
    length: usize,
    lines_before: usize,
    raw: Arc<Raw>,
}

impl Memory {
    /// As [`parse`](crate::parse), with less to read; and what to remember for the next time.
    pub fn parse(&self, sources: &[Source]) -> (Result<Documents, Problems>, Self) {
        let before = self.0.as_deref();
        let again = before.and_then(|before| Comparison::of(before, sources)?.read(sources));
        let read = match again {
            Some(read) => Ok(read),
            None => Reading::of_all(sources, before),
        };
        match read {
            Ok(read) => (Ok(read.documents.clone()), Self(Some(Arc::new(read)))),
            Err(problems) => (Err(problems), self.clone()),
        }
    }
}

impl Reading {
    fn of_all(sources: &[Source], before: Option<&Self>) -> Result<Self, Problems> {
        let files = before.into_iter().flat_map(|before| &before.files);
        let structures: HashMap<&str, &Arc<Raw>> = files
            .flat_map(|file| {
                file.pages
                    .iter()
                    .map(|kept| (file.text_of(kept), &kept.raw))
            })
            .collect();
        let structure = |page: &Page<'_>| match structures.get(page.text) {
            Some(raw) => Ok(Arc::clone(raw)),
            None => read::read(page).map(Arc::new),
        };
        let (mut report, upon) = (Report::default(), Upon::default());
        let loaded = read::load(sources, &upon, structure, &mut report);
        let mut pages = loaded.documents.clone().into_iter().peekable();
        let (documents, whom) = read_upon(&upon, loaded, &mut report);
        let (warnings, documents) = report.finish(sources, Some(documents))?;
        let files = sources.iter().map(|source| {
            let own = std::iter::from_fn(|| pages.next_if(|(page, _)| page.is_of(source)));
            File::new(
                source,
                own.map(|(page, raw)| Kept::new(&page, raw)).collect(),
            )
        });
        Ok(Self {
            files: files.collect(),
            documents: Documents {
                warnings,
                ..documents
            },
            whom,
        })
    }
}

impl File {
    fn new(source: &Source, pages: Vec<Kept>) -> Self {
        Self {
            name: source.name.as_str().into(),
            text: source.text.as_str().into(),
            pages: pages.into(),
        }
    }

    fn text_of(&self, kept: &Kept) -> &str {
        self.text
            .get(kept.offset..kept.offset + kept.length)
            .unwrap_or_default()
    }

    /// The document that a line belongs to.
    fn at(&self, line: usize) -> Option<&Kept> {
        let after = self.pages.partition_point(|kept| kept.lines_before < line);
        self.pages.get(after.checked_sub(1)?)
    }
}

impl Kept {
    fn page<'a>(&self, source: &'a Source) -> Page<'a> {
        Page::at(source, self.offset, self.length, self.lines_before)
    }

    fn new(page: &Page<'_>, raw: Arc<Raw>) -> Self {
        Self {
            offset: page.offset,
            length: page.text.len(),
            lines_before: page.lines_before,
            raw,
        }
    }
}

/// The files as they are now, beside what they were.
struct Comparison<'a> {
    before: &'a Reading,
    files: Vec<Now<'a>>,
    /// In none of the files any more, at least not with this text.
    gone: Vec<&'a Raw>,
}

/// A file, with what it was if it was there.
enum Now<'a> {
    Same(&'a Source, &'a File),
    Edited(&'a Source, Option<&'a File>, Vec<Slot<'a>>),
}

/// One document of a file as it is now.
struct Slot<'a> {
    page: Page<'a>,
    raw: Arc<Raw>,
    /// Where its text was, if it was in this file.
    was: Option<&'a Kept>,
}

impl<'a> Comparison<'a> {
    /// None if a new text cannot even be read, or two files cannot be told apart.
    fn of(before: &'a Reading, sources: &'a [Source]) -> Option<Self> {
        let mut were: HashMap<&str, &File> = HashMap::new();
        for file in &before.files {
            if were.insert(&file.name, file).is_some() {
                return None;
            }
        }
        let (mut files, mut gone, mut names) = (Vec::new(), Vec::new(), HashSet::new());
        for source in sources {
            if !names.insert(source.name.as_str()) {
                return None;
            }
            files.push(match were.remove(source.name.as_str()) {
                Some(was) if *was.text == *source.text => Now::Same(source, was),
                was => Now::Edited(source, was, slots(source, was, &mut gone)?),
            });
        }
        let left = were.into_values().flat_map(|file| file.pages.iter());
        gone.extend(left.map(|kept| &*kept.raw));
        Some(Self {
            before,
            files,
            gone,
        })
    }

    /// None if anything is wrong, or if everything has to be read.
    fn read(&self, sources: &[Source]) -> Option<Reading> {
        let warnings = &self.before.documents.warnings;
        if !read::fit(sources) || warnings.len() >= MAX_PROBLEMS {
            return None;
        }
        let mut again = self.with_new_text();
        let concerned = self.concerned(&again)?;
        let upon = self.upon(&concerned)?;
        again.extend(concerned);
        let mut report = Report::default();
        for warning in warnings {
            if let Some(warning) = self.carried(warning, &upon) {
                report.warn(warning);
            }
        }
        let loaded = Loaded::of(again, &upon, &mut report);
        let (documents, whom) = read_upon(&upon, loaded, &mut report);
        let (warnings, documents) = report.finish(sources, Some(documents)).ok()?;
        Some(Reading {
            files: self.files.iter().map(Now::file).collect(),
            documents: Documents {
                warnings,
                ..documents
            },
            whom,
        })
    }

    /// Every document whose text is new.
    fn with_new_text(&self) -> Vec<(Page<'a>, Arc<Raw>)> {
        let slots = self.files.iter().flat_map(Now::slots);
        slots
            .filter(|slot| slot.was.is_none())
            .map(|slot| (slot.page, Arc::clone(&slot.raw)))
            .collect()
    }

    /// Whatever else refers to what is new or gone. None if that is said of everybody.
    fn concerned(&self, new: &[(Page<'a>, Arc<Raw>)]) -> Option<Vec<(Page<'a>, Arc<Raw>)>> {
        let changed = new.iter().map(|(_, raw)| &**raw);
        let changed = Changed::of(changed.chain(self.gone.iter().copied()))?;
        let names = changed.concerned(&self.before.documents);
        if names.is_empty() {
            return Some(Vec::new());
        }
        let is_concerned = |raw: &Raw| match raw.name() {
            (Some(namespace), name) if raw.kind() == Kind::Workload => {
                names.contains(&(namespace.value.as_str(), name.value.as_str()))
            }
            _ => false,
        };
        let concerned = self.kept().filter(|(_, raw)| is_concerned(raw));
        Some(
            concerned
                .map(|(page, raw)| (page, Arc::clone(raw)))
                .collect(),
        )
    }

    /// What stands beside what is read again.
    fn upon(&self, concerned: &[(Page<'_>, Arc<Raw>)]) -> Option<Upon> {
        let documents = &self.before.documents;
        let concerned = concerned.iter().map(|(_, raw)| &**raw);
        let gone = self.gone.iter().copied().chain(concerned);
        let gone: BTreeSet<_> = gone.map(Raw::full_name).collect::<Option<_>>()?;
        let idle = documents.warnings.iter().filter_map(|warning| {
            let (_, _, raw) = self.found(warning)?;
            raw.full_name().filter(|_| is_idle(warning, raw))
        });
        let bereft = gone
            .iter()
            .filter(|(kind, _)| *kind == Kind::Workload)
            .filter_map(|(_, name)| documents.workloads.get(&name.parse().ok()?))
            .flat_map(|workload| documents.policies_about(workload))
            .map(|policy| (Kind::AuthorizationPolicy, policy.policy.name.to_string()));
        let doubtful: BTreeSet<_> = idle
            .chain(bereft)
            .filter(|name| !gone.contains(name))
            .collect();
        let mut places = BTreeMap::new();
        if !doubtful.is_empty() {
            for (page, raw) in self.kept() {
                if raw.kind() == Kind::AuthorizationPolicy
                    && let Some(name) = raw.full_name().filter(|name| doubtful.contains(name))
                {
                    places.insert(name.1.parse().ok()?, page.place(raw.name().1.location));
                }
            }
        }
        Some(Upon {
            documents: documents.clone(),
            gone,
            whom: Some(Arc::clone(&self.before.whom)),
            doubtful: places,
        })
    }

    /// A warning about a document that is not read again, where it stands now.
    fn carried(&self, warning: &Problem, upon: &Upon) -> Option<Problem> {
        let (was, now, raw) = self.found(warning)?;
        if is_idle(warning, raw) || upon.gone.contains(&raw.full_name()?) {
            return None;
        }
        Some(warning.moved(was, now))
    }

    /// The document that a warning is about, if it is still there: how many lines were before it, and how many are.
    fn found(&self, warning: &Problem) -> Option<(usize, usize, &Raw)> {
        let file = self
            .files
            .iter()
            .find(|file| file.source().name == warning.file)?;
        match file {
            Now::Same(_, was) => {
                let kept = was.at(warning.line)?;
                Some((kept.lines_before, kept.lines_before, &kept.raw))
            }
            Now::Edited(_, was, slots) => {
                let kept = (*was)?.at(warning.line)?;
                let mut slots = slots.iter();
                let slot =
                    slots.find(|slot| slot.was.is_some_and(|was| std::ptr::eq(was, kept)))?;
                Some((kept.lines_before, slot.page.lines_before, &slot.raw))
            }
        }
    }

    /// Every document whose text was there before, where it is now.
    fn kept(&self) -> impl Iterator<Item = (Page<'a>, &Arc<Raw>)> {
        self.files.iter().flat_map(|file| {
            let same = match file {
                Now::Same(source, was) => Some((source, &was.pages)),
                Now::Edited(..) => None,
            };
            let same = same.into_iter().flat_map(|(source, pages)| {
                pages.iter().map(|kept| (kept.page(source), &kept.raw))
            });
            let edited = file.slots().filter(|slot| slot.was.is_some());
            same.chain(edited.map(|slot| (slot.page, &slot.raw)))
        })
    }
}

/// The documents of a file that was edited: what is taken over from what it was, and what is read. Everything else that it
/// was is gone.
fn slots<'a>(
    source: &'a Source,
    was: Option<&'a File>,
    gone: &mut Vec<&'a Raw>,
) -> Option<Vec<Slot<'a>>> {
    let mut were: HashMap<&str, Vec<&Kept>> = HashMap::new();
    for (file, kept) in was
        .into_iter()
        .flat_map(|file| file.pages.iter().map(move |kept| (file, kept)))
    {
        were.entry(file.text_of(kept)).or_default().push(kept);
    }
    let slot = |page: Page<'a>| {
        let was = were.get_mut(page.text).and_then(Vec::pop);
        let raw = match was {
            Some(was) => Arc::clone(&was.raw),
            None => Arc::new(read::read(&page).ok()?),
        };
        Some(Slot { page, raw, was })
    };
    let slots = Page::split(source)
        .into_iter()
        .map(slot)
        .collect::<Option<_>>()?;
    gone.extend(were.into_values().flatten().map(|kept| &*kept.raw));
    Some(slots)
}

impl<'a> Now<'a> {
    fn source(&self) -> &'a Source {
        match self {
            Self::Same(source, _) | Self::Edited(source, ..) => source,
        }
    }

    /// None of a file that is as it was.
    fn slots(&self) -> std::slice::Iter<'_, Slot<'a>> {
        match self {
            Self::Same(..) => [].iter(),
            Self::Edited(_, _, slots) => slots.iter(),
        }
    }

    fn file(&self) -> File {
        match self {
            Self::Same(_, was) => File::clone(was),
            Self::Edited(source, _, slots) => {
                let pages = slots
                    .iter()
                    .map(|slot| Kept::new(&slot.page, Arc::clone(&slot.raw)));
                File::new(source, pages.collect())
            }
        }
    }
}

/// The names of what changed, as others refer to it.
#[derive(Default)]
struct Changed {
    workloads: HashSet<WorkloadName>,
    /// Upstreams and credentials.
    objects: HashSet<(Kind, ObjectName)>,
}

impl Changed {
    /// None for what is said of everybody: the `Mesh`, the groups of a `Node`, and how clients come in.
    fn of<'a>(changed: impl Iterator<Item = &'a Raw>) -> Option<Self> {
        let mut all = Self::default();
        for raw in changed {
            let kind = raw.kind();
            let (Some(namespace), name) = raw.name() else {
                return None;
            };
            match kind {
                Kind::Workload => {
                    all.workloads
                        .insert(WorkloadName::new(&namespace.value, &name.value).ok()?);
                }
                Kind::Upstream | Kind::Credential => {
                    let name = ObjectName::new(&namespace.value, &name.value).ok()?;
                    all.objects.insert((kind, name));
                }
                Kind::AuthorizationPolicy => {}
                Kind::Mesh | Kind::Node | Kind::PeerAuthentication | Kind::Sidecar => return None,
            }
        }
        Some(all)
    }

    /// Namespace and name of the workloads that refer to any of it.
    fn concerned<'a>(&self, documents: &'a Documents) -> HashSet<(&'a str, &'a str)> {
        if self.workloads.is_empty() && self.objects.is_empty() {
            return HashSet::new();
        }
        let workloads = documents.workloads.values();
        workloads
            .filter(|workload| self.is_referred_to_by(workload))
            .map(|workload| (workload.name.namespace(), workload.name.name()))
            .collect()
    }

    fn is_referred_to_by(&self, workload: &Workload) -> bool {
        let object = |kind, name: &ObjectName| {
            !self.objects.is_empty() && self.objects.contains(&(kind, name.clone()))
        };
        workload
            .credentials
            .iter()
            .any(|name| object(Kind::Credential, name))
            || workload.outbound.iter().any(|port| match &port.to {
                OutboundTo::Service { workload, .. } => self.workloads.contains(workload),
                OutboundTo::Upstream(name) => object(Kind::Upstream, name),
            })
    }
}

/// Whether a warning says that a policy selects nobody, which may be otherwise by now.
fn is_idle(warning: &Problem, raw: &Raw) -> bool {
    warning.code == IDLE && raw.kind() == Kind::AuthorizationPolicy
}

#[cfg(test)]
pub(crate) mod tests;
