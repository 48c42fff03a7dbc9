//! Files that a secret is delivered into: where they lie, whose they are, and what they hold.

use std::path::PathBuf;

use super::credential::account;
use super::file_path;
use crate::raw;
use crate::snapshot::{
    Alias, Content, EntryName, FieldFormat, FieldName, FileDelivery, FileEntry, FilesDelivery,
    InvalidTemplate, KeyStore, Storage, StorePassword, Template,
};
use crate::tree::Spot;
use crate::yaml::{At, Page, Reader, Word};

const MODE: u32 = 0o400;
const MAX_MODE: u32 = 0o777;
/// Anybody but owner and group.
const OTHERS: u32 = 0o007;
/// Generous: what is below it is a few links and directories.
const LONGEST_DIRECTORY: usize = 3 * 1024;

pub(super) fn file(
    reader: &mut Reader<'_>,
    file: &raw::DeliveryFile,
) -> Option<(FileDelivery, Content)> {
    let place = place(
        reader,
        &file.path,
        file.mode.as_ref(),
        Owners::new(&file.owner, &file.group),
        file.storage.as_ref(),
    );
    let content = content(
        reader,
        Written {
            field: file.field.as_ref(),
            template: file.template.as_ref(),
            format: file.format.as_ref(),
            fields: file.fields.as_ref(),
            password: file.password.as_ref(),
            alias: file.alias.as_ref(),
        },
    );
    let content = content?;
    if let (Content::Pkcs12(store), Some(at)) = (&content, &file.password)
        && matches!(store.password, StorePassword::Generated(_))
    {
        let help = "deliver both in one set, `files: { directory: …, entries: [ … ] }`, or name the `field` that holds it";
        let message =
            "a password that is generated has no file here: the store and it must change together";
        reader.wrong(at, "fender::no-place-for-password", message, help);
        return None;
    }
    Some((place?, content))
}

/// Where a consumer finds its token.
pub(super) fn token(reader: &mut Reader<'_>, file: &raw::ConsumerToken) -> Option<FileDelivery> {
    place(
        reader,
        &file.path,
        file.mode.as_ref(),
        Owners::new(&file.owner, &file.group),
        file.storage.as_ref(),
    )
}

/// Several that change together.
pub(super) fn set(reader: &mut Reader<'_>, files: &raw::DeliveryFiles) -> Option<FilesDelivery> {
    let directory = file_path(reader, &files.directory);
    if files.directory.value.len() > LONGEST_DIRECTORY {
        let message = format!("a directory has a path of at most {LONGEST_DIRECTORY} bytes");
        let help = "deliver to a directory nearer to the root";
        reader.wrong(&files.directory, "fender::bad-path", message, help);
    }
    let mode = mode_or(reader, files.mode.as_ref(), MODE);
    let storage = storage(reader, files.storage.as_ref());
    let owners = Owners::new(&files.owner, &files.group).read(reader);
    let most = FilesDelivery::MOST_ENTRIES;
    let count = files.entries.value.len();
    if count == 0 || count > most {
        let message = match count {
            0 => "`entries` is empty, so nothing would be delivered".to_owned(),
            _ => format!("`entries` names {count} files, and {most} is the most"),
        };
        let help = "write one for each file: `entries: [ { name: url.txt, template: \"…\" } ]`";
        reader.wrong(&files.entries, "fender::bad-entries", message, help);
        return None;
    }
    let entries = files.entries.value.iter();
    // All of them are looked at before one that is wrong ends it.
    let entries: Vec<_> = entries.map(|at| entry(reader, &at.value, mode)).collect();
    let entries = entries.into_iter().collect::<Option<Vec<_>>>()?;
    if let Some(name) = FilesDelivery::twice(&entries) {
        let message = format!("two files of the set go by the name `{name}`");
        let help = "each file, a generated password too, has a name of its own";
        reader.wrong(&files.entries, "fender::duplicate-entry", message, help);
        return None;
    }
    Some(FilesDelivery {
        directory: directory?,
        storage: storage?,
        owner: owners.0,
        group: owners.1,
        entries,
    })
}

/// `mode` is what holds for the set, if that can be read.
fn entry(reader: &mut Reader<'_>, entry: &raw::FilesEntry, mode: Option<u32>) -> Option<FileEntry> {
    let name = entry_name(reader, &entry.name);
    let mode = entry
        .mode
        .as_ref()
        .map_or(mode, |at| mode_or(reader, Some(at), MODE));
    let content = content(
        reader,
        Written {
            field: entry.field.as_ref(),
            template: entry.template.as_ref(),
            format: entry.format.as_ref(),
            fields: entry.fields.as_ref(),
            password: entry.password.as_ref(),
            alias: entry.alias.as_ref(),
        },
    );
    Some(FileEntry {
        name: name?,
        mode: mode?,
        content: content?,
    })
}

fn entry_name(reader: &mut Reader<'_>, at: &At<String>) -> Option<EntryName> {
    let help = "it is one part of a path; names that begin with `..` are the set's own";
    reader.parse(at, "fender::bad-entry-name", help)
}

/// Whose files they are, as written.
struct Owners<'a> {
    owner: Option<&'a At<String>>,
    group: Option<&'a At<String>>,
}

impl<'a> Owners<'a> {
    fn new(owner: &'a Option<At<String>>, group: &'a Option<At<String>>) -> Self {
        Self {
            owner: owner.as_ref(),
            group: group.as_ref(),
        }
    }

    fn read(self, reader: &mut Reader<'_>) -> (Option<String>, Option<String>) {
        let owner = self.owner;
        let owner = owner.and_then(|at| account(reader, "the owner of a file", at));
        let group = self.group;
        let group = group.and_then(|at| account(reader, "the group of a file", at));
        (owner, group)
    }
}

fn place(
    reader: &mut Reader<'_>,
    path: &At<String>,
    mode: Option<&At<String>>,
    owners: Owners<'_>,
    written: Option<&At<Word<Storage>>>,
) -> Option<FileDelivery> {
    let path: Option<PathBuf> = file_path(reader, path);
    let mode = mode_or(reader, mode, MODE);
    let storage = storage(reader, written);
    let (owner, group) = owners.read(reader);
    Some(FileDelivery {
        path: path?,
        mode: mode?,
        owner,
        group,
        storage: storage?,
    })
}

fn storage(reader: &mut Reader<'_>, at: Option<&At<Word<Storage>>>) -> Option<Storage> {
    at.map_or(Some(Storage::default()), |at| reader.choose("storage", at))
}

fn mode_or(reader: &mut Reader<'_>, at: Option<&At<String>>, otherwise: u32) -> Option<u32> {
    let Some(at) = at else {
        return Some(otherwise);
    };
    let digits = at.value.strip_prefix("0o").unwrap_or(&at.value);
    let octal = (3..=4).contains(&digits.len())
        && digits.bytes().all(|digit| (b'0'..=b'7').contains(&digit));
    let mode = u32::from_str_radix(digits, 8)
        .ok()
        .filter(|mode| octal && *mode <= MAX_MODE);
    match mode {
        None => reader.wrong(
            at,
            "fender::bad-mode",
            format!("`{}` is not the mode of a file", at.value),
            "write the permission bits in octal, between quotes: `mode: \"0400\"`",
        ),
        Some(mode) if mode & OTHERS != 0 => reader.warn(
            at,
            "fender::open-mode",
            format!(
                "with mode `{}` every user of the machine may use the secret",
                at.value
            ),
            "`0400` is for the owner, `0440` for a group",
        ),
        Some(_) => {}
    }
    mode
}

/// What a file holds, as written.
#[derive(Clone, Copy)]
struct Written<'a> {
    field: Option<&'a At<String>>,
    template: Option<&'a At<String>>,
    format: Option<&'a At<Word<raw::Format>>>,
    fields: Option<&'a At<Vec<At<String>>>>,
    password: Option<&'a At<raw::StorePassword>>,
    alias: Option<&'a At<String>>,
}

fn content(reader: &mut Reader<'_>, written: Written<'_>) -> Option<Content> {
    let Written {
        field,
        template,
        format,
        ..
    } = written;
    match (field, template, format) {
        (None, None, None) => without_format(reader, written).map(|()| Content::Value),
        (Some(at), None, None) => {
            let field = field_name(reader, at);
            without_format(reader, written)?;
            field.map(Content::Field)
        }
        (None, Some(at), None) => {
            let template = read_template(reader, at);
            without_format(reader, written)?;
            template.map(Content::Template)
        }
        (None, None, Some(at)) => formatted(reader, at, written),
        (_, Some(at), _) | (Some(at), _, Some(_)) => {
            reader.wrong(
                at,
                "fender::one-of",
                "a file holds one of `field`, `template` and `format`",
                "write one of them; without any, the file holds the value as it is",
            );
            None
        }
    }
}

/// Nothing is written that says something only beside a format.
fn without_format(reader: &mut Reader<'_>, written: Written<'_>) -> Option<()> {
    let fields = written.fields.map(|at| ("fields", at.location));
    let odd = fields.or(written.password.map(|at| ("password", at.location)));
    let odd = odd.or(written.alias.map(|at| ("alias", at.location)));
    let Some((field, location)) = odd else {
        return Some(());
    };
    let at = At {
        value: (),
        location,
    };
    let message = format!("`{field}` says nothing here: it belongs to a `format`");
    reader.wrong(
        &at,
        "fender::no-format",
        message,
        "add `format: …`, or leave it out",
    );
    None
}

fn formatted(
    reader: &mut Reader<'_>,
    at: &At<Word<raw::Format>>,
    written: Written<'_>,
) -> Option<Content> {
    let format = reader.choose("format", at);
    let fields = field_names(reader, written.fields);
    let (format, fields) = (format?, fields?);
    if format == raw::Format::Pkcs12 {
        return store(reader, at, fields, written);
    }
    let store_only = Written {
        fields: None,
        ..written
    };
    if store_only.password.is_some() || store_only.alias.is_some() {
        let message = "`password` and `alias` belong to `format: pkcs12`";
        let help = "leave them out: files of the other formats have neither";
        reader.wrong(at, "fender::no-store", message, help);
        return None;
    }
    let format = match format {
        raw::Format::Json => FieldFormat::Json,
        raw::Format::Yaml => FieldFormat::Yaml,
        raw::Format::Dotenv => FieldFormat::Dotenv,
        raw::Format::Properties => FieldFormat::Properties,
        raw::Format::Pem | raw::Format::Pkcs12 => return Some(Content::Pem { fields }),
    };
    Some(Content::Fields { format, fields })
}

fn store(
    reader: &mut Reader<'_>,
    at: &At<Word<raw::Format>>,
    fields: Vec<FieldName>,
    written: Written<'_>,
) -> Option<Content> {
    let alias = written.alias.map(|at| {
        let help =
            "applications find the entry by it; without one it is the name of the credential";
        reader.parse::<Alias>(at, "fender::bad-alias", help)
    });
    let Some(password) = written.password else {
        let help = "name the field that holds it, `password: { field: storePassword }`, or the file of the set into which one is \
            written, `password: { generate: store.password }`";
        let message = "a PKCS#12 store without a `password` is opened by nobody's library";
        reader.wrong(at, "fender::no-password", message, help);
        return None;
    };
    let password = match (&password.value.field, &password.value.generate) {
        (Some(field), None) => field_name(reader, field).map(StorePassword::Field),
        (None, Some(name)) => entry_name(reader, name).map(StorePassword::Generated),
        (None, None) | (Some(_), Some(_)) => {
            reader.wrong(
                password,
                "fender::one-of",
                "the password of a store is a `field` or is generated",
                "write `{ field: storePassword }` or `{ generate: store.password }`",
            );
            None
        }
    };
    let alias = match alias {
        Some(alias) => Some(alias?),
        None => None,
    };
    Some(Content::Pkcs12(KeyStore {
        fields,
        alias,
        password: password?,
    }))
}

fn field_name(reader: &mut Reader<'_>, at: &At<String>) -> Option<FieldName> {
    let help = "write the name as it is in the secret";
    reader.parse(at, "fender::bad-field-name", help)
}

/// None of it: all fields, or the value itself.
fn field_names(
    reader: &mut Reader<'_>,
    at: Option<&At<Vec<At<String>>>>,
) -> Option<Vec<FieldName>> {
    let Some(at) = at else {
        return Some(Vec::new());
    };
    let most = Content::MOST_FIELDS;
    if at.value.is_empty() || at.value.len() > most {
        let message = match at.value.is_empty() {
            true => "`fields` is empty, so the file would hold nothing".to_owned(),
            false => format!("`fields` names {}, and {most} is the most", at.value.len()),
        };
        let help = "without `fields` the file holds all of them";
        reader.wrong(at, "fender::bad-fields", message, help);
        return None;
    }
    let names: Vec<_> = at.value.iter().map(|at| field_name(reader, at)).collect();
    let names = names.into_iter().collect::<Option<Vec<_>>>()?;
    let mut seen = std::collections::BTreeSet::new();
    if let Some((name, at)) = names
        .iter()
        .zip(&at.value)
        .find(|(name, _)| !seen.insert(*name))
    {
        let message = format!("`fields` names `{name}` twice");
        reader.wrong(
            at,
            "fender::duplicate-field-name",
            message,
            "keep one of them",
        );
        return None;
    }
    Some(names)
}

fn read_template(reader: &mut Reader<'_>, at: &At<String>) -> Option<Template> {
    match at.value.parse::<Template>() {
        Ok(template) => Some(template),
        Err(error) => {
            let (spot, exact) = within(reader.page, at, &error);
            let (line, column) = position(&at.value, error.at.start);
            let message = if exact {
                error.to_string()
            } else {
                format!("{error} (line {line}, column {column} of the template)")
            };
            let help = format!(
                "places are `{{{{ password | json }}}}`; filters are {}",
                Template::FILTERS
                    .map(|filter| format!("`{filter}`"))
                    .join(", ")
            );
            let at = At {
                value: (),
                location: spot,
            };
            reader.wrong(&at, "fender::bad-template", message, help);
            None
        }
    }
}

/// Lines and columns, in characters, from 1.
fn position(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or_default();
    let line = before.rsplit('\n').next().unwrap_or_default();
    (before.matches('\n').count() + 1, line.chars().count() + 1)
}

/// Where in the document the mistake stands, and whether that is exact: the lines of a literal block and the characters of a
/// text on one line stand for themselves, others are folded and escaped.
fn within(page: Page<'_>, at: &At<String>, error: &InvalidTemplate) -> (Spot, bool) {
    let number = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
    let marked = at.value.get(error.at.clone()).unwrap_or_default();
    let marked = marked.lines().next().unwrap_or_default();
    let length = number(marked.chars().count().max(1));
    let (line, column) = position(&at.value, error.at.start);
    let wanted = at.value.lines().nth(line - 1).unwrap_or_default();
    let spot = at.location;
    let first = usize::try_from(spot.line).unwrap_or(usize::MAX);
    // Of a block the spot is its header or its first line; of anything else the line itself.
    for candidate in [first + line - 1, first + line] {
        let text = page.text.lines().nth(candidate - 1).unwrap_or_default();
        let Some(found) = text.find(wanted).filter(|_| !wanted.is_empty()) else {
            continue;
        };
        let indent = text.get(..found).unwrap_or_default().chars().count();
        let spot = Spot {
            line: number(candidate),
            column: number(indent + column),
            length,
        };
        return (spot, true);
    }
    (spot, false)
}
