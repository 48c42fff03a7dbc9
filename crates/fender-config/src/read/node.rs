//! The `Node`: a host whose agent may speak for what runs there.

use std::collections::BTreeSet;

use fender_identity::NodeName;

use super::NAME_HELP;
use super::attest::{Entry, Whose, attest};
use crate::documents::Node;
use crate::name::check_label;
use crate::raw::{self, Document};
use crate::yaml::Reader;

/// Its `attest` is still empty: whom the entries refer to is to be looked up.
pub(crate) fn node(
    reader: &mut Reader<'_>,
    document: Document<raw::Node>,
) -> Option<(Node, Vec<Entry>)> {
    let Document { metadata, spec, .. } = document;
    let name = reader.parse::<NodeName>(&metadata.value.name, "fender::bad-name", NAME_HELP);
    if let Some(at) = &metadata.value.namespace {
        reader.wrong(
            at,
            "fender::bad-name",
            format!("a Node does not belong to the namespace `{}`", at.value),
            "remove `namespace`: workloads of every namespace may run on a host",
        );
    }
    let mut groups = BTreeSet::new();
    for at in &spec.groups {
        let named = reader.take(at, "fender::bad-name", NAME_HELP, check_label(&at.value));
        if named.is_some() && !groups.insert(at.value.clone()) {
            let message = format!("the group `{}` is listed twice", at.value);
            reader.wrong(at, "fender::duplicate", message, "remove one of them");
        }
    }
    let entries = attest(reader, &metadata, spec.attest.as_deref(), Whose::Node);
    let node = Node {
        name: name?,
        groups,
        attest: BTreeSet::new(),
    };
    Some((node, entries))
}
