//! Filling in templates.
//!
//! The engine is bounded in steps and in what it writes, and finds nothing but the secret: no file, no other template, no
//! function. What stands in a place is one line: a value with more is refused there, unless a filter makes a text of it that
//! is more than a line to nobody. The engine works on copies of the fields that are not wiped when they are given back.
//!
//! Of an error of the engine only what kind of error it is and the line are told: its own words can show values.

use std::collections::BTreeMap;
use std::io;

use fender_config::snapshot::Template;
use fender_identity::Secret;
use minijinja::value::ValueKind;
use minijinja::{Environment, Error, ErrorKind, Output, State, UndefinedBehavior, Value};
use zeroize::Zeroizing;

use super::fields::{Field, Fields, ODD};
use super::{LARGEST, RenderError, escape};

/// Steps of the engine; a template of 16 KiB without loops has some thousands.
const STEPS: u64 = 100_000;
/// All fields, by name: for names that are no words of the syntax.
const FIELDS: &str = "fields";
/// The value where it has no fields.
const VALUE: &str = "value";

pub(super) fn render(
    template: &Template,
    value: &Secret,
    fields: Result<&Fields, RenderError>,
) -> Result<Secret, RenderError> {
    let context = context(value, fields.as_ref().ok().copied())?;
    let environment = environment();
    let engine = environment.template_from_str(template.as_str());
    // It was read when the document was.
    let engine = engine.map_err(|error| failure(&error))?;
    let mut page = Page(Vec::new());
    let Err(error) = engine.render_captured_to(context, &mut page) else {
        return Ok(Secret::new(page.0));
    };
    let _wiped = Secret::new(page.0);
    if page_is_full(&error) {
        return Err(RenderError::TooLarge);
    }
    if error.kind() == ErrorKind::UndefinedError {
        let wanted = engine.undeclared_variables(true);
        return match fields {
            Ok(fields) => Err(absent(fields, wanted, &error)),
            Err(error) if !wanted.contains(VALUE) => Err(error),
            Err(_) => Err(failure(&error)),
        };
    }
    Err(failure(&error))
}

fn context(value: &Secret, fields: Option<&Fields>) -> Result<Value, RenderError> {
    if let Some(fields) = fields {
        let named = || {
            fields
                .0
                .iter()
                .map(|(name, field)| (name.as_str(), of(field)))
        };
        let mut context: BTreeMap<&str, Value> = named().collect();
        context.insert(FIELDS, Value::from_pairs(named()));
        return Ok(Value::from(context));
    }
    let text = value.expose_str().ok_or_else(|| RenderError::Template {
        line: 1,
        why: "the secret is no text".to_owned(),
    })?;
    // The line feed that an editor left is no part of it, as in an environment.
    let line = text.strip_suffix('\n');
    let line = line.map_or(text, |line| line.strip_suffix('\r').unwrap_or(line));
    Ok(Value::from(BTreeMap::from([(VALUE, Value::from(line))])))
}

fn of(field: &Field) -> Value {
    match field {
        Field::Text(text) => Value::from(text.as_str()),
        Field::Whole(number) => Value::from(*number),
        Field::Flag(flag) => Value::from(*flag),
        Field::Null => Value::from(()),
        // Whatever is done with it, it is not written.
        Field::Odd => Value::from(f64::NAN),
        Field::List(items) => items.iter().map(of).collect(),
        Field::Map(fields) => Value::from_pairs(
            fields
                .iter()
                .map(|(name, field)| (name.as_str(), of(field))),
        ),
    }
}

fn environment() -> Environment<'static> {
    let mut environment = Environment::empty();
    environment.set_debug(false);
    environment.set_syntax(Template::syntax());
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_fuel(Some(STEPS));
    environment.set_formatter(write);
    environment.add_test("defined", |value: &Value| !value.is_undefined());
    environment.add_test("undefined", |value: &Value| value.is_undefined());
    for (name, filter) in FILTERS {
        environment.add_filter(name, move |value: &Value| apply(value, name, filter));
    }
    environment
}

/// Writes a value into the text; what breaks the line it stands in is refused.
fn write(out: &mut Output<'_>, _: &mut State<'_, '_>, value: &Value) -> Result<(), Error> {
    let text = plain(value)?;
    if !value.is_safe() && text.chars().any(escape::breaks) {
        return Err(why(
            "a value has line breaks or control characters; use the filter of the format it stands in, or `multiline`",
        ));
    }
    out.write_str(&text).map_err(Error::from)
}

type Filter = fn(&Value, &mut Zeroizing<String>) -> Result<(), Error>;

/// What it makes is as plain as what it is given, and no more than a line.
const TRIM: &str = "trim";

const FILTERS: [(&str, Filter); Template::FILTERS.len()] = [
    ("json", json),
    // A text in JSON is a double-quoted scalar, and a list or an object a flow collection.
    ("yaml", json),
    ("dotenv", |value, out| {
        let lines = "a value has lines or quotes that readers of dotenv files do not read alike";
        escape::dotenv(&plain(value)?, out).ok_or_else(|| why(lines))
    }),
    ("properties", |value, out| {
        escape::properties(&plain(value)?, false, out);
        Ok(())
    }),
    ("shell", |value, out| {
        escape::shell(&plain(value)?, out).ok_or_else(|| why("no word of a shell holds a NUL"))
    }),
    ("xml", |value, out| {
        let odd = "a value has characters that no XML document holds";
        escape::xml(&plain(value)?, out).ok_or_else(|| why(odd))
    }),
    ("urlencode", |value, out| {
        escape::url(&plain(value)?, out);
        Ok(())
    }),
    ("base64", |value, out| {
        use base64::Engine as _;
        let text = plain(value)?;
        base64::engine::general_purpose::STANDARD.encode_string(text.as_bytes(), out);
        Ok(())
    }),
    ("multiline", |value, out| {
        let text = plain(value)?;
        let odd = |character: char| escape::breaks(character) && !"\n\r\t".contains(character);
        if text.chars().any(odd) {
            return Err(why(
                "a value has control characters other than line breaks and tabs",
            ));
        }
        out.push_str(&text);
        Ok(())
    }),
    (TRIM, |value, out| {
        out.push_str(plain(value)?.trim());
        Ok(())
    }),
];

fn apply(value: &Value, name: &str, filter: Filter) -> Result<Value, Error> {
    let mut text = Zeroizing::new(String::new());
    filter(value, &mut text)?;
    if text.len() > LARGEST {
        return Err(why("a filter makes more than 1 MiB"));
    }
    let text = std::mem::take(&mut *text);
    Ok(match name {
        TRIM if !value.is_safe() => Value::from(text),
        _ => Value::from_safe_string(text),
    })
}

/// The text of a text, a whole number or a truth value.
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "the engine's kinds may grow, and what is not known is refused"
)]
fn plain(value: &Value) -> Result<Zeroizing<String>, Error> {
    let text = match value.kind() {
        ValueKind::String => value.as_str().map(str::to_owned),
        ValueKind::Bool => Some(value.is_true().to_string()),
        ValueKind::Number => {
            let whole = i128::try_from(value.clone()).ok();
            let whole = whole.filter(|_| value.is_integer());
            Some(whole.ok_or_else(|| why(ODD))?.to_string())
        }
        ValueKind::Undefined => return Err(Error::from(ErrorKind::UndefinedError)),
        ValueKind::None => {
            return Err(why(
                "a value is null: there is nothing that could be written",
            ));
        }
        _ => None,
    };
    let text = text.ok_or_else(|| {
        why("a value is a list or an object; write it with `json` or `yaml`, or take it apart")
    })?;
    Ok(Zeroizing::new(text))
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "the engine's kinds may grow, and what is not known is refused"
)]
fn json(value: &Value, out: &mut Zeroizing<String>) -> Result<(), Error> {
    match value.kind() {
        ValueKind::String => escape::json(&plain(value)?, out),
        ValueKind::None => out.push_str("null"),
        ValueKind::Seq => {
            out.push('[');
            for (at, item) in value.try_iter()?.enumerate() {
                out.push_str(if at > 0 { ", " } else { "" });
                json(&item, out)?;
            }
            out.push(']');
        }
        ValueKind::Map => {
            out.push('{');
            for (at, name) in value.try_iter()?.enumerate() {
                out.push_str(if at > 0 { ", " } else { "" });
                escape::json(&plain(&name)?, out);
                out.push_str(": ");
                json(&value.get_item(&name)?, out)?;
            }
            out.push('}');
        }
        _ => out.push_str(&plain(value)?),
    }
    Ok(())
}

/// Words of ours, which show no value.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Why(&'static str);

fn why(words: &'static str) -> Error {
    Error::new(ErrorKind::InvalidOperation, words).with_source(Why(words))
}

fn failure(error: &Error) -> RenderError {
    let ours = sources(error).find_map(|source| source.downcast_ref::<Why>());
    RenderError::Template {
        line: error.line().unwrap_or(1),
        why: match (ours, error.kind()) {
            (Some(Why(words)), _) => (*words).to_owned(),
            (None, ErrorKind::UndefinedError) => "a field is not there".to_owned(),
            (None, ErrorKind::OutOfFuel) => "it has too many steps".to_owned(),
            (None, kind) => kind.to_string(),
        },
    }
}

fn sources<'a>(error: &'a Error) -> impl Iterator<Item = &'a (dyn std::error::Error + 'static)> {
    let first: &(dyn std::error::Error + 'static) = error;
    std::iter::successors(Some(first), |error| error.source())
}

/// Of the fields that a template names those that are not there.
fn absent(fields: &Fields, wanted: impl IntoIterator<Item = String>, error: &Error) -> RenderError {
    let mut absent: Vec<_> = wanted
        .into_iter()
        .filter(|path| path.split('.').next() != Some(FIELDS) && !is_there(fields, path))
        .collect();
    absent.sort();
    match absent.is_empty() {
        true => failure(error),
        false => RenderError::Missing(absent),
    }
}

fn is_there(fields: &Fields, path: &str) -> bool {
    let mut parts = path.split('.');
    let mut here = parts.next().and_then(|name| fields.0.get(name));
    for name in parts {
        here = match here {
            Some(Field::Map(fields)) => fields.get(name),
            _ => None,
        };
    }
    here.is_some()
}

/// What is written, up to its end.
struct Page(Vec<u8>);

#[derive(Debug, thiserror::Error)]
#[error("the page is full")]
struct Full;

impl io::Write for &mut Page {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > LARGEST {
            return Err(io::Error::other(Full));
        }
        if self.0.capacity() < self.0.len() + bytes.len() {
            // Growing leaves a copy behind, so it is done by hand.
            let mut larger = Vec::with_capacity((self.0.len() + bytes.len()).next_power_of_two());
            larger.extend_from_slice(&self.0);
            drop(Zeroizing::new(std::mem::replace(&mut self.0, larger)));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn page_is_full(error: &Error) -> bool {
    let io = sources(error).filter_map(|source| source.downcast_ref::<io::Error>());
    let mut inner = io.filter_map(io::Error::get_ref);
    inner.any(|error| error.is::<Full>())
}
