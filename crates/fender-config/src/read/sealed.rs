//! `source.age` and `source.sops` of a `Credential`: which file, and whose identity opens it.

use std::path::PathBuf;

use super::file_path;
use crate::raw::{self, DocumentKey};
use crate::snapshot::{AgeSecret, SopsFile, SopsFormat, SopsKey, SopsSecret};
use crate::yaml::{At, Reader};

pub(super) fn age(reader: &mut Reader<'_>, written: &raw::SourceAge) -> Option<AgeSecret> {
    let (file, identity) = files(reader, &written.file, &written.identity)?;
    Some(AgeSecret { file, identity })
}

pub(super) fn sops(reader: &mut Reader<'_>, written: &raw::SourceSops) -> Option<SopsSecret> {
    let files = files(reader, &written.file, &written.identity);
    let format = match &written.format {
        Some(at) => reader.choose("format", at),
        None => Some(SopsFormat::of(&written.file.value)),
    };
    let key = written.key.as_ref().map(|at| key(reader, at));
    if let (Some(SopsFormat::Binary), Some(at)) = (format, &written.key) {
        let message = "a binary file has no parts, so there is nothing that `key` could name";
        let help = "leave it away, or say which `format` the file has if its name does not";
        reader.wrong(at, "fender::no-parts", message, help);
        return None;
    }
    let (path, identity) = files?;
    Some(SopsSecret {
        file: SopsFile {
            path,
            identity,
            format: format?,
        },
        key: super::whole(key)?,
    })
}

fn files(
    reader: &mut Reader<'_>,
    file: &At<String>,
    identity: &At<String>,
) -> Option<(PathBuf, PathBuf)> {
    let (path, own) = (file_path(reader, file), file_path(reader, identity));
    let (path, own) = (path?, own?);
    if path == own {
        let message = "the file of the identity cannot be the file that it opens";
        let help = "`file` is what was encrypted, `identity` what `age-keygen -o` wrote";
        reader.wrong(identity, "fender::same-file", message, help);
        return None;
    }
    Some((path, own))
}

fn key(reader: &mut Reader<'_>, at: &At<DocumentKey>) -> Option<SopsKey> {
    let key = match &at.value {
        DocumentKey::Dotted(text) => text.parse(),
        DocumentKey::Steps(steps) => SopsKey::new(steps.clone()),
    };
    let help = "write `key: database.password`; a step with a dot in it needs the other form, `key: [ database, \"pass.word\" ]`";
    reader.take(at, "fender::bad-key", help, key)
}
