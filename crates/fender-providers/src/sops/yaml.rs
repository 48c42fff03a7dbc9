//! A document in YAML, as SOPS writes it: one mapping whose names are texts.
//!
//! Anchors and aliases, merge keys, tags beyond YAML's own and a second document are refused: SOPS writes none of them into a
//! file that it encrypts, but for documents after `---`, which are together what no single value is.

use std::collections::HashSet;

use granit_parser::{Event, Options, Parser, ScalarStyle, Tag};

use super::value::{DEEPEST, MOST, Value};
use super::{Fault, plain};

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "the events are the parser's, and it may gain more"
)]
pub(super) fn read(text: &str) -> Result<Value, Fault> {
    let mut options = Options::default();
    options.emit_comments = false;
    options.flow_nesting_limit = DEEPEST;
    options.block_nesting_limit = DEEPEST;
    let parser = Parser::new_from_str_with_options(text, options);
    let mut reader = Reader { parser, left: MOST };
    let mut document = None;
    loop {
        match reader.next()? {
            Event::StreamStart | Event::DocumentStart(..) | Event::DocumentEnd => {}
            Event::StreamEnd => break,
            _ if document.is_some() => {
                return Err(Fault::of(
                    "has several documents; only a file of one is read",
                ));
            }
            event => document = Some(reader.value(event, 0)?),
        }
    }
    match document {
        Some(value @ Value::Fields(_)) => Ok(value),
        Some(_) | None => Err(Fault::of("is no mapping")),
    }
}

struct Reader<'a> {
    parser: Parser<'a, granit_parser::StrInput<'a>>,
    /// How many nodes there may still be.
    left: usize,
}

impl<'a> Reader<'a> {
    fn next(&mut self) -> Result<Event<'a>, Fault> {
        match self.parser.next_event() {
            Some(Ok((event, _))) => Ok(event),
            // What is wrong may be told by where it is alone: the text around it may hold what is not encrypted.
            Some(Err(error)) => {
                let line = error.marker().line();
                Err(Fault::new(format!("is not YAML from line {line} on")))
            }
            None => Ok(Event::StreamEnd),
        }
    }

    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "the events are the parser's, and it may gain more"
    )]
    fn value(&mut self, event: Event<'a>, depth: usize) -> Result<Value, Fault> {
        self.left = self.left.checked_sub(1).ok_or_else(too_many)?;
        if depth > DEEPEST {
            return Err(Fault::of("is too deep"));
        }
        match event {
            Event::Scalar(_, _, anchor, _)
            | Event::SequenceStart(_, anchor, _)
            | Event::MappingStart(_, anchor, _)
                if anchor != 0 =>
            {
                Err(anchors())
            }
            Event::Scalar(text, style, _, tag) => {
                plain::resolve(&text, style == ScalarStyle::Plain, suffix(tag.as_deref())?)
            }
            Event::SequenceStart(_, _, tag) => {
                is_core(tag.as_deref(), "seq")?;
                let mut items = Vec::new();
                loop {
                    match self.next()? {
                        Event::SequenceEnd => return Ok(Value::List(items)),
                        event => items.push(self.value(event, depth + 1)?),
                    }
                }
            }
            Event::MappingStart(_, _, tag) => {
                is_core(tag.as_deref(), "map")?;
                let (mut fields, mut names) = (Vec::new(), HashSet::new());
                loop {
                    let name = match self.next()? {
                        Event::MappingEnd => return Ok(Value::Fields(fields)),
                        event => self.name(event)?,
                    };
                    let event = self.next()?;
                    let value = self.value(event, depth + 1)?;
                    Value::add(&mut fields, &mut names, name, value)?;
                }
            }
            Event::Alias(_) | Event::UnresolvedAlias(_) | Event::Anchor(..) => Err(anchors()),
            _ => Err(Fault::of("is not YAML")),
        }
    }

    fn name(&mut self, event: Event<'a>) -> Result<String, Fault> {
        let Event::Scalar(text, style, anchor, tag) = event else {
            return Err(Fault::of("has a field whose name is no text"));
        };
        if anchor != 0 {
            return Err(anchors());
        }
        let is_plain = style == ScalarStyle::Plain;
        if is_plain && text == "<<" {
            return Err(Fault::of("has a merge key, and those are not read"));
        }
        match plain::resolve(&text, is_plain, suffix(tag.as_deref())?)? {
            Value::Text(name) => name
                .as_str()
                .map(str::to_owned)
                .ok_or_else(|| Fault::of("has a field whose name is no text")),
            Value::Null
            | Value::Bool(_)
            | Value::Int(_)
            | Value::Float(_)
            | Value::List(_)
            | Value::Fields(_) => Err(Fault::of(
                "has a field whose name is no text; write it between quotes",
            )),
        }
    }
}

fn suffix<'t>(tag: Option<&'t Tag>) -> Result<Option<&'t str>, Fault> {
    let core = |tag: &'t Tag| {
        let known = tag.is_yaml_core_schema().then(|| tag.suffix());
        known.ok_or_else(|| Fault::of("has a tag that is not YAML's own"))
    };
    tag.map(core).transpose()
}

fn is_core(tag: Option<&Tag>, suffix: &str) -> Result<(), Fault> {
    match tag {
        Some(tag) if !tag.is_yaml_core_schema_tag(suffix) => {
            Err(Fault::of("has a tag that is not YAML's own"))
        }
        Some(_) | None => Ok(()),
    }
}

fn anchors() -> Fault {
    Fault::of("has anchors or aliases, and those are not read")
}

fn too_many() -> Fault {
    Fault::new(format!("has more than {MOST} values"))
}
