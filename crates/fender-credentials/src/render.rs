//! What a file holds, made of the value of a secret.
//!
//! A pure function of the value and the document: the same of both is the same bytes, so that what has not changed is not
//! written again. Nothing is guessed: a field that is not there, a number that would lose digits or a text that its format
//! cannot hold is an error, and no error shows anything of a value. What is made has at most 1 MiB.

use fender_config::ObjectName;
use fender_config::snapshot::{Content, FieldName, KeyStore, StorePassword};
use fender_identity::pkcs12::Contents;
use fender_identity::{Secret, rewrite_pem};

mod escape;
mod fields;
mod format;
mod template;

use fields::Field;
pub(crate) use fields::Fields;

/// The most that one file holds, in bytes.
pub(crate) const LARGEST: usize = 1024 * 1024;

/// Why a value does not become what its document wants. Names fields, never what they hold.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum RenderError {
    #[error("the secret is no JSON object, so it has no fields{0}")]
    NoFields(&'static str),
    #[error("the secret has no field {}", named(.0))]
    Missing(Vec<String>),
    #[error("the field `{field}` {why}")]
    Field { field: String, why: &'static str },
    #[error("the template cannot be filled in, line {line}: {why}")]
    Template { line: usize, why: String },
    #[error("{0}")]
    Pem(String),
    #[error("the PKCS#12 store cannot be made: {0}")]
    Store(String),
    #[error("it would have more than {LARGEST} bytes")]
    TooLarge,
}

fn named(fields: &[String]) -> String {
    let quoted = fields.iter().map(|field| format!("`{field}`"));
    quoted.collect::<Vec<_>>().join(", ")
}

/// A file, and the password that was made for it, if one was.
pub(crate) struct Rendered {
    pub(crate) file: Secret,
    pub(crate) password: Option<Secret>,
}

impl From<Secret> for Rendered {
    fn from(file: Secret) -> Self {
        Self {
            file,
            password: None,
        }
    }
}

/// A value that several files are made of.
pub(crate) struct Material<'a> {
    value: &'a Secret,
    credential: &'a ObjectName,
    /// Read when they are first needed.
    fields: std::cell::OnceCell<Result<Fields, RenderError>>,
}

impl<'a> Material<'a> {
    pub(crate) fn new(value: &'a Secret, credential: &'a ObjectName) -> Self {
        Self {
            value,
            credential,
            fields: std::cell::OnceCell::new(),
        }
    }

    /// Makes one file. Takes a while: a store is sealed by many rounds of a hash.
    pub(crate) fn render(&self, content: &Content) -> Result<Rendered, RenderError> {
        let file = match content {
            Content::Value => self.value.clone(),
            Content::Field(name) => {
                let mut text = zeroize::Zeroizing::new(String::new());
                self.field(name)?.plain(name.as_str(), &mut text)?;
                Secret::new(text.as_bytes().to_vec())
            }
            Content::Template(written) => template::render(written, self.value, self.fields())?,
            Content::Fields { format, fields } => {
                let all = self.fields()?;
                format::write(*format, &all.named(fields)?)?
            }
            Content::Pem { fields } => self.pem(fields)?,
            Content::Pkcs12(store) => return self.store(store),
        };
        bounded(file).map(Rendered::from)
    }

    fn fields(&self) -> Result<&Fields, RenderError> {
        let read = || Fields::read(self.value);
        self.fields.get_or_init(read).as_ref().map_err(Clone::clone)
    }

    fn field(&self, name: &FieldName) -> Result<&Field, RenderError> {
        self.fields()?.get(name.as_str())
    }

    fn pem(&self, fields: &[FieldName]) -> Result<Secret, RenderError> {
        let mut texts = Vec::new();
        for name in fields {
            self.field(name)?.texts(name.as_str(), &mut texts)?;
        }
        if fields.is_empty() {
            texts.push(self.value.expose());
        }
        rewrite_pem(texts).map_err(|error| match fields {
            [] if self.fields().is_ok() => RenderError::Pem(
                "the secret is a JSON object and no PEM text: name the `fields` that are"
                    .to_owned(),
            ),
            _ => RenderError::Pem(error.to_string()),
        })
    }

    fn store(&self, store: &KeyStore) -> Result<Rendered, RenderError> {
        let failed =
            |error: fender_identity::pkcs12::Pkcs12Error| RenderError::Store(error.to_string());
        let contents = Contents::from_pem(self.pem(&store.fields)?.expose()).map_err(failed)?;
        let alias = store.alias.as_ref().map(|alias| alias.as_str());
        let alias = alias.unwrap_or(self.credential.name());
        let (password, made) = match &store.password {
            StorePassword::Generated(_) => (contents.password(), true),
            StorePassword::Field(name) => match self.field(name)? {
                Field::Text(text) => (Secret::new(text.as_bytes().to_vec()), false),
                Field::Whole(_)
                | Field::Flag(_)
                | Field::Null
                | Field::Odd
                | Field::List(_)
                | Field::Map(_) => {
                    return Err(RenderError::Field {
                        field: name.to_string(),
                        why: "is no text, and a password is one",
                    });
                }
            },
        };
        let file = bounded(contents.encode(alias, &password).map_err(failed)?)?;
        Ok(Rendered {
            file,
            password: made.then_some(password),
        })
    }
}

fn bounded(file: Secret) -> Result<Secret, RenderError> {
    match file.len() {
        0..=LARGEST => Ok(file),
        _ => Err(RenderError::TooLarge),
    }
}

#[cfg(test)]
mod tests;
