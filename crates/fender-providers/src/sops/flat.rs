//! Documents in which every value is a text: dotenv, and INI with its sections. What SOPS keeps about such a file is flat as
//! well: `age__list_0__map_enc` is the field `enc` of the first of `age`.

use std::collections::HashSet;

use super::Fault;
use super::value::{MOST, Text, Value};

/// What a name begins with that belongs to SOPS.
const OF_SOPS: &str = "sops_";
const MAP: &str = "__map_";
const LIST: &str = "__list_";
/// How much SOPS may keep.
const MOST_KEPT: usize = 2048;
/// How many items a list of what SOPS keeps may have.
const LONGEST: usize = 128;

/// The values, and under `sops` what SOPS keeps.
pub(super) fn dotenv(text: &str) -> Result<Value, Fault> {
    let (mut fields, mut names) = (Vec::new(), HashSet::new());
    let mut kept = Vec::new();
    for line in text.split('\n') {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (name, value) = line
            .split_once('=')
            .ok_or_else(|| Fault::of("has a line that is neither `NAME=value` nor a comment"))?;
        let value = Value::Text(Text::from(value.replace("\\n", "\n").as_str()));
        match name.strip_prefix(OF_SOPS) {
            Some(name) => kept.push((name.to_owned(), value)),
            None => Value::add(&mut fields, &mut names, name.to_owned(), value)?,
        }
        enough(fields.len() + kept.len())?;
    }
    fields.push(("sops".to_owned(), unflatten(kept)?));
    Ok(Value::Fields(fields))
}

pub(super) fn ini(text: &str) -> Result<Value, Fault> {
    let mut sections = vec![("DEFAULT".to_owned(), (Vec::new(), HashSet::new()))];
    let mut count = 0;
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let line = line.trim();
        if line.is_empty() || line.starts_with([';', '#']) {
            continue;
        }
        count += 1;
        enough(count)?;
        if let Some(rest) = line.strip_prefix('[') {
            let name = rest
                .rsplit_once(']')
                .map(|(name, _)| name.trim())
                .ok_or_else(|| Fault::of("has a section whose name does not end"))?;
            if sections
                .iter()
                .any(|(section, _)| section == name && name != "DEFAULT")
            {
                return Err(Fault::new(format!(
                    "has the section `{}` twice",
                    super::value::shown(name)
                )));
            }
            if name != "DEFAULT" {
                sections.push((name.to_owned(), (Vec::new(), HashSet::new())));
            }
            continue;
        }
        let (name, value) = line
            .split_once(['=', ':'])
            .ok_or_else(|| Fault::of("has a line that is neither `name = value` nor a comment"))?;
        let value = Value::Text(Text::from(quoted(value.trim(), &mut lines)?.as_str()));
        if let Some((_, (fields, names))) = sections.last_mut() {
            Value::add(
                fields,
                names,
                name.trim().trim_matches(['`', '"']).to_owned(),
                value,
            )?;
        }
    }
    let sections = sections.into_iter().map(|(name, (fields, _))| {
        if name != "sops" {
            return Ok((name, Value::Fields(fields)));
        }
        let kept = fields.into_iter().map(|(name, value)| match &value {
            Value::Text(text) => {
                let text = text.as_str().unwrap_or_default().replace("\\n", "\n");
                (name, Value::Text(Text::from(text.as_str())))
            }
            Value::Null
            | Value::Bool(_)
            | Value::Int(_)
            | Value::Float(_)
            | Value::List(_)
            | Value::Fields(_) => (name, value),
        });
        Ok((name, unflatten(kept.collect())?))
    });
    sections.collect::<Result<_, _>>().map(Value::Fields)
}

/// What stands between quotes, over several lines between three; everything up to a comment without.
fn quoted(value: &str, lines: &mut std::str::Lines<'_>) -> Result<String, Fault> {
    let endless = || Fault::of("has a value whose quotes do not end");
    if let Some(rest) = value.strip_prefix("\"\"\"") {
        let mut whole = rest.to_owned();
        while !whole.contains("\"\"\"") {
            whole.push('\n');
            whole.push_str(lines.next().ok_or_else(endless)?);
        }
        let inside = whole
            .split_once("\"\"\"")
            .map(|(inside, _)| inside.to_owned());
        return inside.ok_or_else(endless);
    }
    for quote in ['`', '"'] {
        if let Some(rest) = value.strip_prefix(quote) {
            let inside = rest.split_once(quote).map(|(inside, _)| inside.to_owned());
            return inside.ok_or_else(endless);
        }
    }
    if value.ends_with('\\') {
        return Err(Fault::of(
            "has a value that goes on in the next line, and that is not read",
        ));
    }
    let uncommented = value.split(['#', ';']).next().unwrap_or_default();
    Ok(uncommented.trim().to_owned())
}

fn enough(count: usize) -> Result<(), Fault> {
    match count > MOST {
        true => Err(Fault::new(format!("has more than {MOST} values"))),
        false => Ok(()),
    }
}

/// Puts each value where its name says.
fn unflatten(flat: Vec<(String, Value)>) -> Result<Value, Fault> {
    if flat.len() > MOST_KEPT {
        return Err(unfit());
    }
    let mut root = Value::Fields(Vec::new());
    for (name, value) in flat {
        let mut place = &mut root;
        for step in steps(&name)? {
            place = into(place, step)?;
        }
        match place {
            Value::Null => *place = value,
            Value::Bool(_)
            | Value::Int(_)
            | Value::Float(_)
            | Value::Text(_)
            | Value::List(_)
            | Value::Fields(_) => return Err(unfit()),
        }
    }
    Ok(root)
}

enum Step<'a> {
    Field(&'a str),
    Item(usize),
}

fn steps(name: &str) -> Result<Vec<Step<'_>>, Fault> {
    const MOST_STEPS: usize = 8;
    let mut steps = Vec::new();
    let mut rest = name;
    let mut is_item = false;
    loop {
        let map = rest.find(MAP).map(|at| (at, MAP));
        let list = rest.find(LIST).map(|at| (at, LIST));
        let next = [map, list].into_iter().flatten().min();
        let step = next.and_then(|(at, _)| rest.get(..at)).unwrap_or(rest);
        steps.push(match is_item {
            true => Step::Item(step.parse().map_err(|_| unfit())?),
            false => Step::Field(step),
        });
        let Some((at, mark)) = next else {
            return Ok(steps);
        };
        if steps.len() == MOST_STEPS {
            return Err(unfit());
        }
        is_item = mark == LIST;
        rest = rest.get(at + mark.len()..).unwrap_or_default();
    }
}

/// The place of one step, made if it is not there. What is not there yet is null.
fn into<'a>(place: &'a mut Value, step: Step<'_>) -> Result<&'a mut Value, Fault> {
    match (place, step) {
        (place @ Value::Null, Step::Field(name)) => {
            *place = Value::Fields(Vec::new());
            into(place, Step::Field(name))
        }
        (place @ Value::Null, Step::Item(number)) => {
            *place = Value::List(Vec::new());
            into(place, Step::Item(number))
        }
        (Value::Fields(fields), Step::Field(name)) => {
            let at = fields.iter().position(|(field, _)| field == name);
            let at = at.unwrap_or_else(|| {
                fields.push((name.to_owned(), Value::Null));
                fields.len() - 1
            });
            fields.get_mut(at).map(|(_, value)| value).ok_or_else(unfit)
        }
        (Value::List(items), Step::Item(number)) if number < LONGEST => {
            while items.len() <= number {
                items.push(Value::Null);
            }
            items.get_mut(number).ok_or_else(unfit)
        }
        _ => Err(unfit()),
    }
}

fn unfit() -> Fault {
    Fault::of("has no metadata of SOPS that fits together")
}
