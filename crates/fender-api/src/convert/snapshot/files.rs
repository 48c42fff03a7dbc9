//! What files of a credential hold, and sets of them, on the wire.

use fender_config::snapshot as domain;

use super::{path, some_text};
use crate::convert::{InvalidField, each, parse, parse_all, required, texts, unknown};
use crate::proto::control::v1 as proto;

pub(super) fn set(message: proto::FilesDelivery) -> Result<domain::FilesDelivery, InvalidField> {
    let entries = each("entries", message.entries, entry)?;
    let most = domain::FilesDelivery::MOST_ENTRIES;
    if entries.is_empty() || entries.len() > most {
        let why = format!("{} files are named; 1 to {most} may be", entries.len());
        return Err(InvalidField::new("entries", why));
    }
    if let Some(name) = domain::FilesDelivery::twice(&entries) {
        let why = format!("`{name}` is there twice");
        return Err(InvalidField::new("entries", why));
    }
    Ok(domain::FilesDelivery {
        directory: path("directory", message.directory)?,
        storage: storage(message.storage)?,
        owner: some_text(message.owner),
        group: some_text(message.group),
        entries,
    })
}

pub(super) fn from_set(set: &domain::FilesDelivery) -> proto::FilesDelivery {
    let entries = set.entries.iter().map(|entry| proto::FileEntry {
        name: entry.name.to_string(),
        mode: entry.mode,
        content: from_content(&entry.content),
    });
    proto::FilesDelivery {
        directory: set.directory.display().to_string(),
        storage: from_storage(set.storage).into(),
        owner: set.owner.clone().unwrap_or_default(),
        group: set.group.clone().unwrap_or_default(),
        entries: entries.collect(),
    }
}

fn entry(message: proto::FileEntry) -> Result<domain::FileEntry, InvalidField> {
    Ok(domain::FileEntry {
        name: parse("name", &message.name)?,
        mode: mode(message.mode)?,
        content: content(message.content)?,
    })
}

pub(super) fn content(message: Option<proto::Content>) -> Result<domain::Content, InvalidField> {
    use proto::content::Kind;
    let within = |error: InvalidField| error.within("content");
    let Some(message) = message else {
        return Ok(domain::Content::Value);
    };
    let content = match required("kind", message.kind).map_err(within)? {
        Kind::Field(field) => parse("field", &field).map(domain::Content::Field),
        Kind::Template(template) => parse("template", &template).map(domain::Content::Template),
        Kind::Fields(it) => fields(it).map_err(|error| error.within("fields")),
        Kind::Pem(it) => field_names(&it.fields)
            .map(|fields| domain::Content::Pem { fields })
            .map_err(|error| error.within("pem")),
        Kind::Pkcs12(it) => store(it)
            .map(domain::Content::Pkcs12)
            .map_err(|error| error.within("pkcs12")),
    };
    content.map_err(within)
}

pub(super) fn from_content(content: &domain::Content) -> Option<proto::Content> {
    use proto::content::Kind;
    let kind = match content {
        domain::Content::Value => return None,
        domain::Content::Field(field) => Kind::Field(field.to_string()),
        domain::Content::Template(template) => Kind::Template(template.as_str().to_owned()),
        domain::Content::Fields { format, fields } => Kind::Fields(proto::FieldsContent {
            format: match format {
                domain::FieldFormat::Json => proto::FieldFormat::Json,
                domain::FieldFormat::Yaml => proto::FieldFormat::Yaml,
                domain::FieldFormat::Dotenv => proto::FieldFormat::Dotenv,
                domain::FieldFormat::Properties => proto::FieldFormat::Properties,
            }
            .into(),
            fields: texts(fields),
        }),
        domain::Content::Pem { fields } => Kind::Pem(proto::PemContent {
            fields: texts(fields),
        }),
        domain::Content::Pkcs12(store) => Kind::Pkcs12(from_store(store)),
    };
    Some(proto::Content { kind: Some(kind) })
}

fn fields(message: proto::FieldsContent) -> Result<domain::Content, InvalidField> {
    let format = match proto::FieldFormat::try_from(message.format) {
        Ok(proto::FieldFormat::Json) => domain::FieldFormat::Json,
        Ok(proto::FieldFormat::Yaml) => domain::FieldFormat::Yaml,
        Ok(proto::FieldFormat::Dotenv) => domain::FieldFormat::Dotenv,
        Ok(proto::FieldFormat::Properties) => domain::FieldFormat::Properties,
        Ok(proto::FieldFormat::Unspecified) | Err(_) => {
            return Err(unknown("format", message.format));
        }
    };
    let fields = field_names(&message.fields)?;
    Ok(domain::Content::Fields { format, fields })
}

fn field_names(names: &[String]) -> Result<Vec<domain::FieldName>, InvalidField> {
    let most = domain::Content::MOST_FIELDS;
    if names.len() > most {
        let why = format!("{} fields are named; {most} may be", names.len());
        return Err(InvalidField::new("fields", why));
    }
    parse_all("fields", names)
}

fn store(message: proto::KeyStore) -> Result<domain::KeyStore, InvalidField> {
    use proto::key_store::Password;
    Ok(domain::KeyStore {
        fields: field_names(&message.fields)?,
        alias: some_text(message.alias)
            .map(|alias| parse("alias", &alias))
            .transpose()?,
        password: match required("password", message.password)? {
            Password::Field(field) => domain::StorePassword::Field(parse("field", &field)?),
            Password::Generate(name) => domain::StorePassword::Generated(parse("generate", &name)?),
        },
    })
}

fn from_store(store: &domain::KeyStore) -> proto::KeyStore {
    use proto::key_store::Password;
    proto::KeyStore {
        fields: texts(&store.fields),
        alias: store
            .alias
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default(),
        password: Some(match &store.password {
            domain::StorePassword::Field(field) => Password::Field(field.to_string()),
            domain::StorePassword::Generated(name) => Password::Generate(name.to_string()),
        }),
    }
}

pub(super) fn mode(mode: u32) -> Result<u32, InvalidField> {
    if mode > 0o777 {
        let why = format!("{mode:o} is more than permission bits");
        return Err(InvalidField::new("mode", why));
    }
    Ok(mode)
}

pub(super) fn storage(number: i32) -> Result<domain::Storage, InvalidField> {
    match proto::Storage::try_from(number) {
        Ok(proto::Storage::Memory) => Ok(domain::Storage::Memory),
        Ok(proto::Storage::Disk) => Ok(domain::Storage::Disk),
        Ok(proto::Storage::Unspecified) | Err(_) => Err(unknown("storage", number)),
    }
}

pub(super) fn from_storage(storage: domain::Storage) -> proto::Storage {
    match storage {
        domain::Storage::Memory => proto::Storage::Memory,
        domain::Storage::Disk => proto::Storage::Disk,
    }
}

/// A control plane that does not know the word has what it does with it done: wiping.
pub(super) fn on_exit(number: i32) -> Result<domain::OnExit, InvalidField> {
    match proto::OnExit::try_from(number) {
        Ok(proto::OnExit::Wipe | proto::OnExit::Unspecified) => Ok(domain::OnExit::Wipe),
        Ok(proto::OnExit::Keep) => Ok(domain::OnExit::Keep),
        Err(_) => Err(unknown("on_exit", number)),
    }
}

pub(super) fn from_on_exit(on_exit: domain::OnExit) -> proto::OnExit {
    match on_exit {
        domain::OnExit::Wipe => proto::OnExit::Wipe,
        domain::OnExit::Keep => proto::OnExit::Keep,
    }
}
