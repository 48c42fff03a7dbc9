//! Documents that were read before.
//!
//! Most of a mesh stays as it is from one revision to the next. A document whose text is the same to the byte is not read
//! again: its structure depends on nothing else. What it means beside the others is worked out anew each time.

use std::collections::HashMap;
use std::sync::Arc;

use crate::documents::parse_with;
use crate::read::Raw;
use crate::yaml::Page;
use crate::{Documents, Problem, Problems, Source};

/// What was read last. It holds the text of those documents once more, and no others.
#[derive(Clone, Debug, Default)]
pub struct Memory(HashMap<Arc<str>, Arc<Raw>>);

impl Memory {
    /// As [`parse`](crate::parse), with less to read; and what to remember for the next time.
    pub fn parse(&self, sources: &[Source]) -> (Result<Documents, Problems>, Self) {
        let mut recall = Recall::upon(self);
        let documents = parse_with(sources, &mut recall);
        (documents, recall.now)
    }
}

/// One reading, on top of the one before.
pub(crate) struct Recall<'a> {
    before: &'a Memory,
    now: Memory,
}

impl<'a> Recall<'a> {
    pub(crate) fn upon(before: &'a Memory) -> Self {
        Self {
            before,
            now: Memory::default(),
        }
    }

    /// The structure of a document: remembered, or read with `read`. What cannot be read is not remembered.
    pub(crate) fn structure(
        &mut self,
        page: &Page<'_>,
        read: impl FnOnce(&Page<'_>) -> Result<Raw, Problem>,
    ) -> Result<Arc<Raw>, Problem> {
        let (text, raw) = match self.before.0.get_key_value(page.text) {
            Some((text, raw)) => (Arc::clone(text), Arc::clone(raw)),
            None => (page.text.into(), Arc::new(read(page)?)),
        };
        self.now.0.insert(text, Arc::clone(&raw));
        Ok(raw)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(name: &str, text: &str) -> Source {
        Source {
            name: name.to_owned(),
            text: text.to_owned(),
        }
    }

    const MESH: &str = "apiVersion: fender.dev/v1\nkind: Mesh\nmetadata: { name: mesh }\nspec: { trustDomain: acme.test }\n";

    fn workload(name: &str) -> String {
        format!(
            "---\napiVersion: fender.dev/v1\nkind: Workload\nmetadata: {{ namespace: shop, name: {name} }}\n\
             spec: {{ attest: [ {{ token: {{}} }} ], outbound: [ {{ listen: \"127.0.0.1:9000\", service: orders }} ] }}\n"
        )
    }

    #[test]
    fn a_problem_in_a_document_that_moved_is_told_where_it_is_now() {
        let (first, memory) = Memory::default().parse(&[
            source("mesh.yaml", MESH),
            source("a.yaml", &workload("web")),
        ]);
        let first = first.unwrap_err();
        let moved = format!("# a line\n# and another\n{}", workload("web"));
        let files = [source("mesh.yaml", MESH), source("b.yaml", &moved)];
        let again = memory.parse(&files).0.unwrap_err();
        let place = |problems: &Problems| {
            let problem = problems.iter().next().unwrap();
            (problem.file.clone(), problem.line, problem.message.clone())
        };
        let (file, line, message) = place(&first);
        assert_eq!(file, "a.yaml");
        assert_eq!(place(&again), ("b.yaml".to_owned(), line + 2, message));
        assert_eq!(again.render(), crate::parse(&files).unwrap_err().render());
    }

    #[test]
    fn what_is_left_out_is_forgotten() {
        let files = [
            source("mesh.yaml", MESH),
            source("a.yaml", &workload("orders")),
        ];
        let (_, memory) = Memory::default().parse(&files);
        assert_eq!(memory.0.len(), 2);
        let (documents, memory) = memory.parse(&files[..1]);
        assert!(documents.unwrap().workloads.is_empty());
        assert_eq!(memory.0.len(), 1);
    }
}
