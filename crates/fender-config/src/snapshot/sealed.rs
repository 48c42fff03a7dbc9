//! Secrets in files that are encrypted, by age or by SOPS, and what opens them. Never an identity: the file that holds it.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// A file encrypted by age, whole.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct AgeSecret {
    pub file: PathBuf,
    /// The file of the age identities, one of which opens it.
    pub identity: PathBuf,
}

impl AgeSecret {
    /// Every file that is read to have it.
    pub fn files(&self) -> Vec<PathBuf> {
        vec![self.file.clone(), self.identity.clone()]
    }
}

/// What is in a file encrypted by SOPS, or a part of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SopsSecret {
    pub file: SopsFile,
    /// Which part. None: all of it, as JSON or, if the file is binary, as it is.
    pub key: Option<SopsKey>,
}

impl SopsSecret {
    /// Every file that is read to have it.
    pub fn files(&self) -> Vec<PathBuf> {
        vec![self.file.path.clone(), self.file.identity.clone()]
    }
}

/// A file encrypted by SOPS for age recipients.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SopsFile {
    pub path: PathBuf,
    /// The file of the age identities, one of which opens it.
    pub identity: PathBuf,
    pub format: SopsFormat,
}

/// How a file encrypted by SOPS is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SopsFormat {
    Yaml,
    Json,
    Dotenv,
    Ini,
    /// Any other file, as one value.
    Binary,
}

impl SopsFormat {
    pub(crate) const NAMED: &[(&str, Self)] = &[
        ("yaml", Self::Yaml),
        ("json", Self::Json),
        ("dotenv", Self::Dotenv),
        ("ini", Self::Ini),
        ("binary", Self::Binary),
    ];

    /// What SOPS takes a file of this name for.
    pub fn of(name: &str) -> Self {
        match name.rsplit_once('.').map(|(_, ending)| ending) {
            Some("yaml" | "yml") => Self::Yaml,
            Some("json") => Self::Json,
            Some("env") => Self::Dotenv,
            Some("ini") => Self::Ini,
            Some(_) | None => Self::Binary,
        }
    }
}

impl fmt::Display for SopsFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = Self::NAMED.iter().find(|(_, format)| format == self);
        f.write_str(word.map_or("", |(word, _)| word))
    }
}

impl FromStr for SopsFormat {
    type Err = UnknownFormat;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let known = Self::NAMED.iter().find(|(word, _)| *word == text);
        known.map(|(_, format)| *format).ok_or(UnknownFormat)
    }
}

/// No format of SOPS is called that.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is no format of SOPS")]
pub struct UnknownFormat;

/// The way to a part of a document: names of fields and, in a list, numbers from 0.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SopsKey(Vec<String>);

impl SopsKey {
    /// How many steps a way may have.
    pub const MOST_STEPS: usize = 32;
    /// The longest of them, in bytes.
    pub const LONGEST_STEP: usize = 256;

    /// Of one step at least, none of them empty.
    pub fn new(steps: Vec<String>) -> Result<Self, InvalidKey> {
        let usable = |step: &String| {
            (1..=Self::LONGEST_STEP).contains(&step.len()) && !step.chars().any(char::is_control)
        };
        if !(1..=Self::MOST_STEPS).contains(&steps.len()) {
            return Err(InvalidKey::Steps);
        }
        match steps.iter().find(|step| !usable(step)) {
            Some(step) => Err(InvalidKey::Step {
                step: step.escape_default().to_string(),
            }),
            None => Ok(Self(steps)),
        }
    }

    pub fn steps(&self) -> &[String] {
        &self.0
    }
}

/// Steps between dots.
impl FromStr for SopsKey {
    type Err = InvalidKey;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::new(text.split('.').map(str::to_owned).collect())
    }
}

impl fmt::Display for SopsKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("."))
    }
}

/// Nothing is found that way.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidKey {
    #[error("a key has from 1 to {} steps", SopsKey::MOST_STEPS)]
    Steps,
    #[error(
        "`{step}` is no step of a key: from 1 to {} bytes, none of them a control character",
        SopsKey::LONGEST_STEP
    )]
    Step { step: String },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_file_says_its_format_as_it_does_to_sops() {
        for (name, format) in [
            ("secrets.yaml", SopsFormat::Yaml),
            ("secrets.enc.yml", SopsFormat::Yaml),
            ("secrets.json", SopsFormat::Json),
            ("prod.env", SopsFormat::Dotenv),
            ("app.ini", SopsFormat::Ini),
            ("server.key", SopsFormat::Binary),
            ("yaml", SopsFormat::Binary),
            ("secrets.yaml.age", SopsFormat::Binary),
        ] {
            assert_eq!(SopsFormat::of(name), format, "{name}");
            assert_eq!(format.to_string().parse(), Ok(format));
        }
    }

    #[test]
    fn a_key_is_a_way_of_some_steps() {
        let key: SopsKey = "database.users.0.password".parse().unwrap();
        assert_eq!(key.steps(), ["database", "users", "0", "password"]);
        let key = SopsKey::new(vec!["a.b".to_owned(), "c".to_owned()]).unwrap();
        assert_eq!(key.steps().len(), 2);
        let long = "x".repeat(257);
        let deep = ["x"; 33].join(".");
        for key in ["", ".", "a..b", ".a", "a.", "a\nb", &long, &deep] {
            assert!(key.parse::<SopsKey>().is_err(), "{key:?}");
        }
        assert_eq!(SopsKey::new(Vec::new()), Err(InvalidKey::Steps));
    }
}
