//! Matching a request path: as text, or by one of Istio's templates.
//!
//! The path is the normalised one, without its query; the same bytes are forwarded (P1, P2).

use std::fmt;
use std::str::FromStr;

use crate::TextMatch;

/// A pattern for a path.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum PathMatch {
    Text(TextMatch),
    Template(PathTemplate),
}

impl PathMatch {
    pub fn matches(&self, path: &str) -> bool {
        match self {
            Self::Text(text) => text.matches(path),
            Self::Template(template) => template.matches(path),
        }
    }
}

impl FromStr for PathMatch {
    type Err = InvalidTemplate;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.contains("{*}") || text.contains("{**}") {
            Ok(Self::Template(text.parse()?))
        } else {
            Ok(Self::Text(text.into()))
        }
    }
}

impl fmt::Display for PathMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => text.fmt(f),
            Self::Template(template) => template.fmt(f),
        }
    }
}

/// `/reports/{*}/pages/{**}`: `{*}` stands for one non-empty segment, `{**}` for any text, slashes
/// included, and may appear once, as the last operator.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PathTemplate {
    /// Before `{**}`, or all of it. Each begins after a slash.
    head: Vec<Segment>,
    /// What must follow `{**}`, from its slash on.
    tail: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Segment {
    Literal(String),
    Any,
}

impl PathTemplate {
    pub fn matches(&self, path: &str) -> bool {
        let mut rest = path;
        for segment in &self.head {
            let Some(after_slash) = rest.strip_prefix('/') else {
                return false;
            };
            let end = after_slash.find('/').unwrap_or(after_slash.len());
            let (value, left) = after_slash.split_at(end);
            let matched = match segment {
                Segment::Literal(literal) => value == literal,
                Segment::Any => !value.is_empty(),
            };
            if !matched {
                return false;
            }
            rest = left;
        }
        match &self.tail {
            None => rest.is_empty(),
            Some(tail) => rest
                .strip_prefix('/')
                .is_some_and(|any| any.ends_with(tail.as_str())),
        }
    }
}

impl FromStr for PathTemplate {
    type Err = InvalidTemplate;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refuse = |why| InvalidTemplate {
            template: text.to_owned(),
            why,
        };
        let body = text
            .strip_prefix('/')
            .ok_or_else(|| refuse("it does not begin with `/`"))?;
        let (mut head, mut tail) = (Vec::new(), None::<String>);
        for part in body.split('/') {
            match (part, &mut tail) {
                ("{*}" | "{**}", Some(_)) => {
                    return Err(refuse("`{**}` must be the last operator"));
                }
                ("{**}", None) => tail = Some(String::new()),
                ("{*}", None) => head.push(Segment::Any),
                (literal, _) if literal.contains(['{', '}', '*']) => {
                    return Err(refuse(
                        "`{*}` and `{**}` stand alone between two slashes, and no other `*`, \
                            `{` or `}` may appear",
                    ));
                }
                (literal, None) => head.push(Segment::Literal(literal.to_owned())),
                (literal, Some(tail)) => {
                    tail.push('/');
                    tail.push_str(literal);
                }
            }
        }
        Ok(Self { head, tail })
    }
}

impl fmt::Display for PathTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for segment in &self.head {
            match segment {
                Segment::Literal(literal) => write!(f, "/{literal}")?,
                Segment::Any => f.write_str("/{*}")?,
            }
        }
        match &self.tail {
            Some(tail) => write!(f, "/{{**}}{tail}"),
            None => Ok(()),
        }
    }
}

/// The text is not a path template.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{template}` is not a path template: {why}")]
pub struct InvalidTemplate {
    template: String,
    why: &'static str,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The examples of Istio's reference.
    #[test]
    fn templates_match_as_istio_documents_them() {
        for (template, path, matches) in [
            ("/foo/{*}", "/foo/bar", true),
            ("/foo/{*}", "/foo/bar/baz", false),
            ("/foo/{*}", "/foo/", false),
            ("/foo/{**}/", "/foo/bar/", true),
            ("/foo/{**}/", "/foo/bar/baz.txt/", true),
            ("/foo/{**}/", "/foo//", true),
            ("/foo/{**}/", "/foo/bar", false),
            ("/foo/{**}/", "/foo/", false),
            ("/foo/{*}/bar/{**}", "/foo/buzz/bar/", true),
            ("/foo/{*}/bar/{**}", "/foo/buzz/bar/baz", true),
            ("/foo/{*}/bar/{**}", "/foo/buzz/bar", false),
            ("/{**}", "/", true),
            ("/{**}", "/any/thing", true),
            ("/{*}/baz/{**}", "/foo/bar/baz/x", false),
        ] {
            let parsed: PathTemplate = template.parse().unwrap();
            assert_eq!(parsed.matches(path), matches, "{template} on {path}");
            assert_eq!(parsed.to_string(), template);
        }
    }

    #[test]
    fn a_template_that_could_be_misread_is_refused() {
        for template in [
            "/{**}/{*}",
            "/{**}/{**}",
            "/a{*}",
            "/{*}b",
            "/{x}",
            "{*}",
            "/{*}/b*",
            "/{**}/b*",
        ] {
            assert!(template.parse::<PathTemplate>().is_err(), "{template}");
        }
    }

    #[test]
    fn a_path_without_operators_is_text() {
        assert_eq!(
            "/a*".parse(),
            Ok(PathMatch::Text(TextMatch::Prefix("/a".to_owned())))
        );
        assert_eq!("*".parse(), Ok(PathMatch::Text(TextMatch::Present)));
        assert!("a{*}".parse::<PathMatch>().is_err());
    }
}
