//! Fields with their names, as JSON, YAML, dotenv and properties.

use fender_config::snapshot::FieldFormat;
use fender_identity::Secret;
use zeroize::Zeroizing;

use super::fields::{Field, ODD, refuse};
use super::{LARGEST, RenderError, escape};

pub(super) fn write(format: FieldFormat, fields: &[(&str, &Field)]) -> Result<Secret, RenderError> {
    let mut text = Zeroizing::new(String::new());
    match format {
        FieldFormat::Json => {
            object(fields.iter().copied(), &mut text)?;
            text.push('\n');
        }
        FieldFormat::Yaml if fields.is_empty() => text.push_str("{}\n"),
        FieldFormat::Yaml => {
            for (name, field) in fields {
                escape::json(name, &mut text);
                text.push_str(": ");
                value(name, field, &mut text)?;
                text.push('\n');
            }
        }
        FieldFormat::Dotenv => {
            for (name, field) in fields {
                dotenv(name, field, &mut text)?;
            }
        }
        FieldFormat::Properties => {
            for (name, field) in fields {
                let mut plain = Zeroizing::new(String::new());
                field.plain(name, &mut plain)?;
                escape::properties(name, true, &mut text);
                text.push('=');
                escape::properties(&plain, false, &mut text);
                text.push('\n');
            }
        }
    }
    if text.len() > LARGEST {
        return Err(RenderError::TooLarge);
    }
    Ok(Secret::new(std::mem::take(&mut *text).into_bytes()))
}

fn dotenv(name: &str, field: &Field, text: &mut Zeroizing<String>) -> Result<(), RenderError> {
    let first = name.bytes().next();
    let is_variable = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
        && first.is_some_and(|first| !first.is_ascii_digit());
    if !is_variable {
        let why = "cannot be the name of a variable; name the `fields` that can, or use a template";
        return Err(refuse(name, why));
    }
    let mut plain = Zeroizing::new(String::new());
    field.plain(name, &mut plain)?;
    text.push_str(name);
    text.push('=');
    let written = escape::dotenv(&plain, text);
    written.ok_or_else(|| {
        let why = "has lines or quotes that readers of dotenv files do not read alike; deliver it as JSON or as a file of its own";
        refuse(name, why)
    })?;
    text.push('\n');
    Ok(())
}

/// One object in JSON, which is YAML too.
fn object<'a>(
    fields: impl IntoIterator<Item = (&'a str, &'a Field)>,
    text: &mut Zeroizing<String>,
) -> Result<(), RenderError> {
    text.push('{');
    for (at, (name, field)) in fields.into_iter().enumerate() {
        if at > 0 {
            text.push_str(", ");
        }
        escape::json(name, text);
        text.push_str(": ");
        value(name, field, text)?;
    }
    text.push('}');
    Ok(())
}

/// One value in JSON, which is YAML too.
pub(super) fn value(
    name: &str,
    field: &Field,
    text: &mut Zeroizing<String>,
) -> Result<(), RenderError> {
    match field {
        Field::Text(value) => escape::json(value, text),
        Field::Whole(_) | Field::Flag(_) => field.plain(name, text)?,
        Field::Null => text.push_str("null"),
        Field::Odd => return Err(refuse(name, ODD)),
        Field::List(items) => {
            text.push('[');
            for (at, item) in items.iter().enumerate() {
                if at > 0 {
                    text.push_str(", ");
                }
                value(name, item, text)?;
            }
            text.push(']');
        }
        Field::Map(fields) => {
            object(
                fields.iter().map(|(name, field)| (name.as_str(), field)),
                text,
            )?;
        }
    }
    Ok(())
}
