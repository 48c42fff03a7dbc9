//! A secret of many fields as one JSON object.

use std::io;

use fender_identity::Secret;

/// A field holds bytes that JSON has no text for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not text (UTF-8), so there is no JSON for all fields: name one with `key`")]
pub(crate) struct NotText(String);

/// A field's value.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Part<'a> {
    Text(&'a Secret),
    /// What is JSON already, as it was written.
    Json(&'a Secret),
}

impl<'a> From<&'a Secret> for Part<'a> {
    fn from(text: &'a Secret) -> Self {
        Self::Text(text)
    }
}

/// All fields, in their order; texts as texts. It is written into room of the right size, so that nothing is left behind.
pub(crate) fn object<'a, P: Into<Part<'a>>>(
    fields: impl Iterator<Item = (&'a str, P)> + Clone,
) -> Result<Secret, NotText> {
    let mut size = Counter(0);
    write(fields.clone(), &mut size)?;
    let mut text = Vec::with_capacity(size.0);
    write(fields, &mut text)?;
    Ok(Secret::new(text))
}

fn write<'a, P: Into<Part<'a>>, W: io::Write>(
    fields: impl Iterator<Item = (&'a str, P)>,
    to: &mut W,
) -> Result<(), NotText> {
    let mut before = "{";
    for (name, part) in fields {
        let part = part.into();
        let not_text = || NotText(name.escape_default().to_string());
        let (Part::Text(value) | Part::Json(value)) = part;
        let value = value.expose_str().ok_or_else(not_text)?;
        // Neither a counter nor memory fails.
        let written = to
            .write_all(before.as_bytes())
            .and_then(|()| Ok(serde_json::to_writer(&mut *to, name)?))
            .and_then(|()| to.write_all(b":"))
            .and_then(|()| match part {
                Part::Text(_) => Ok(serde_json::to_writer(&mut *to, value)?),
                Part::Json(_) => to.write_all(value.as_bytes()),
            });
        written.map_err(|_| not_text())?;
        before = ",";
    }
    let end = if before == "{" { "{}" } else { "}" };
    to.write_all(end.as_bytes())
        .map_err(|_| NotText(String::new()))
}

struct Counter(usize);

impl io::Write for Counter {
    fn write(&mut self, part: &[u8]) -> io::Result<usize> {
        self.0 += part.len();
        Ok(part.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(fields: &[(&str, &[u8])]) -> Result<String, NotText> {
        let fields: Vec<_> = fields
            .iter()
            .map(|(name, value)| (*name, Secret::new(value.to_vec())))
            .collect();
        let object = object(fields.iter().map(|(name, value)| (*name, value)))?;
        Ok(object.expose_str().unwrap().to_owned())
    }

    #[test]
    fn fields_are_texts_of_one_object() {
        assert_eq!(whole(&[]).unwrap(), "{}");
        let text = whole(&[("a", b"1"), ("b\"", "é\n\"\\\u{1}".as_bytes())]).unwrap();
        assert_eq!(text, r#"{"a":"1","b\"":"é\n\"\\\u0001"}"#);
        let read: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(read["b\""], "é\n\"\\\u{1}");
    }

    #[test]
    fn bytes_that_are_no_text_are_refused_by_name_and_not_shown() {
        let refused = whole(&[("a", b"1"), ("key", b"hunter2\xff")]).unwrap_err();
        let said = format!("{refused} {refused:?}");
        assert!(said.contains("`key` is not text"), "{said}");
        assert!(!said.contains("hunter2"), "{said}");
    }
}
