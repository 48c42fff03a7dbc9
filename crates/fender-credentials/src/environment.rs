//! The environment of a command: what it may inherit, and its credentials.
//!
//! Fender's own variables (`FENDER_…`) and listeners (`LISTEN_…`) never reach it. A credential may
//! not name a variable that decides which code runs (`LD_PRELOAD`, `PATH`, …): a document is not
//! remote code. Values must be text without a zero byte; one line feed at the end, which editors and
//! `echo` leave in files, is not part of a value.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::OsStringExt as _;

use fender_identity::Secret;
use zeroize::Zeroize as _;

use crate::mask::{Held, TooMuch};

pub use keep::{Keep, Kept, for_environment, keep, variables};

mod keep;

/// Which of its parent's variables a command inherits.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Inherit {
    /// All but Fender's own.
    All,
    /// These, as far as they are set and not Fender's own.
    Only(Vec<String>),
}

/// Variables that decide which code a program loads or runs.
const LOADERS: &[&str] = &[
    "BASH_ENV",
    "CLASSPATH",
    "CORECLR_ENABLE_PROFILING",
    "CORECLR_PROFILER",
    "CORECLR_PROFILER_PATH",
    "COR_ENABLE_PROFILING",
    "COR_PROFILER",
    "COR_PROFILER_PATH",
    "DOTNET_STARTUP_HOOKS",
    "ENV",
    "ERL_AFLAGS",
    "ERL_FLAGS",
    "ERL_ZFLAGS",
    "GCONV_PATH",
    "GIT_SSH_COMMAND",
    "GLIBC_TUNABLES",
    "IFS",
    "JAVA_TOOL_OPTIONS",
    "JDK_JAVA_OPTIONS",
    "LUA_CPATH",
    "LUA_INIT",
    "LUA_PATH",
    "NODE_OPTIONS",
    "NODE_PATH",
    "OPENSSL_CONF",
    "OPENSSL_ENGINES",
    "OPENSSL_MODULES",
    "PATH",
    "PERL5DB",
    "PERL5LIB",
    "PERL5OPT",
    "PERLLIB",
    "PHPRC",
    "PHP_INI_SCAN_DIR",
    "PROMPT_COMMAND",
    "PYTHONBREAKPOINT",
    "PYTHONHOME",
    "PYTHONPATH",
    "PYTHONSTARTUP",
    "PYTHONUSERBASE",
    "RUBYLIB",
    "RUBYOPT",
    "SHELL",
    "SHELLOPTS",
    "ZDOTDIR",
    "_JAVA_OPTIONS",
];

/// Makes the environment of a command from what `inherited` holds and its credentials, which win.
pub fn build<'a>(
    inherited: impl IntoIterator<Item = (OsString, OsString)>,
    inherit: &Inherit,
    credentials: impl IntoIterator<Item = (&'a str, &'a Secret)>,
) -> Result<Vec<(OsString, OsString)>, EnvironmentError> {
    let mut given = BTreeMap::new();
    for (name, secret) in credentials {
        check_name(name)?;
        if given
            .insert(OsString::from(name), value(name, secret)?)
            .is_some()
        {
            return Err(EnvironmentError::Twice(name.to_owned()));
        }
    }
    let passes = |name: &OsStr| match inherit {
        Inherit::All => true,
        Inherit::Only(names) => names.iter().any(|allowed| name == allowed.as_str()),
    };
    let mut environment: Vec<_> = inherited
        .into_iter()
        .filter(|(name, _)| passes(name) && !is_ours(name) && !given.contains_key(name))
        .collect();
    environment.extend(given);
    Ok(environment)
}

/// The whole environment of an application, for as often as it is started. Its values are wiped when it goes. The copy that the
/// kernel gives the application is the application's; the one that `std::process::Command` makes on the way is freed as it is.
pub struct AppEnvironment {
    variables: Vec<(OsString, OsString)>,
    /// Its values are hidden in what the application writes for as long as it runs with them.
    _held: Vec<Held>,
}

impl AppEnvironment {
    /// Of what [`build`] made.
    pub fn new(variables: Vec<(OsString, OsString)>) -> Self {
        Self::holding(variables, Vec::new())
    }

    pub(crate) fn holding(variables: Vec<(OsString, OsString)>, held: Vec<Held>) -> Self {
        Self {
            variables,
            _held: held,
        }
    }

    pub(crate) fn variables(&self) -> &[(OsString, OsString)] {
        &self.variables
    }
}

/// Whoever is started with one cannot tell it from the other.
impl PartialEq for AppEnvironment {
    fn eq(&self, other: &Self) -> bool {
        self.variables == other.variables
    }
}

impl Eq for AppEnvironment {}

impl Drop for AppEnvironment {
    fn drop(&mut self) {
        for (_, value) in self.variables.drain(..) {
            value.into_vec().zeroize();
        }
    }
}

impl fmt::Debug for AppEnvironment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AppEnvironment").finish_non_exhaustive()
    }
}

/// Whether these variables can be set, each once.
fn check_names<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<(), EnvironmentError> {
    let mut seen = BTreeSet::new();
    for name in names {
        check_name(name)?;
        if !seen.insert(name) {
            return Err(EnvironmentError::Twice(name.to_owned()));
        }
    }
    Ok(())
}

/// Whether a variable speaks to Fender and to nobody it starts.
fn is_ours(name: &OsStr) -> bool {
    let name = name.as_encoded_bytes();
    name.starts_with(b"FENDER_")
        || matches!(name, b"LISTEN_PID" | b"LISTEN_FDS" | b"LISTEN_FDNAMES")
}

fn check_name(name: &str) -> Result<(), EnvironmentError> {
    let refuse = |why| {
        Err(EnvironmentError::Name {
            name: name.to_owned(),
            why,
        })
    };
    let starts = name.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_');
    if !starts
        || !name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
    {
        return refuse("may hold only letters, digits and `_`, and begins with no digit");
    }
    if is_ours(OsStr::new(name)) {
        return refuse("is kept for Fender itself");
    }
    if name.starts_with("LD_") || LOADERS.contains(&name) {
        return refuse("decides which code runs, so no credential may set it");
    }
    Ok(())
}

fn value(name: &str, secret: &Secret) -> Result<OsString, EnvironmentError> {
    let text = secret.expose_str().filter(|text| !text.contains('\0'));
    let text = text.ok_or_else(|| EnvironmentError::Value(name.to_owned()))?;
    let line = text
        .strip_suffix('\n')
        .map(|line| line.strip_suffix('\r').unwrap_or(line));
    Ok(line.unwrap_or(text).into())
}

/// Why there is no environment.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum EnvironmentError {
    #[error("environment variable `{name}` {why}")]
    Name { name: String, why: &'static str },
    #[error("environment variable `{0}` is set by two credentials")]
    Twice(String),
    #[error(transparent)]
    TooMuch(#[from] TooMuch),
    #[error("the value for environment variable `{0}` is no text; deliver it as a file")]
    Value(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(text: &str) -> Secret {
        Secret::from(text.to_owned())
    }

    fn parent() -> Vec<(OsString, OsString)> {
        [
            ("HOME", "/root"),
            ("PATH", "/bin"),
            ("PASSWORD", "old"),
            ("FENDER_TOKEN_FILE", "/run/token"),
            ("FENDER_", ""),
            ("LISTEN_FDS", "3"),
        ]
        .map(|(name, value)| (name.into(), value.into()))
        .to_vec()
    }

    fn shown(environment: &[(OsString, OsString)]) -> String {
        let pair = |(name, value): &(OsString, OsString)| {
            format!("{}={}", name.display(), value.display())
        };
        environment.iter().map(pair).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn fenders_own_variables_never_reach_the_command() {
        let all = build(parent(), &Inherit::All, []).unwrap();
        assert_eq!(shown(&all), "HOME=/root PATH=/bin PASSWORD=old");
        let asked = Inherit::Only(vec![
            "FENDER_TOKEN_FILE".to_owned(),
            "LISTEN_FDS".to_owned(),
        ]);
        assert_eq!(build(parent(), &asked, []), Ok(Vec::new()));
    }

    #[test]
    fn a_command_inherits_what_it_may_and_its_credentials_win() {
        let value = secret("new");
        let some = Inherit::Only(vec!["PATH".to_owned(), "PASSWORD".to_owned()]);
        let built = build(parent(), &some, [("PASSWORD", &value)]).unwrap();
        assert_eq!(shown(&built), "PATH=/bin PASSWORD=new");
        let none = build(parent(), &Inherit::Only(Vec::new()), []);
        assert_eq!(none, Ok(Vec::new()), "an empty list lets nothing through");
    }

    #[test]
    fn a_credential_cannot_choose_what_code_runs() {
        let value = secret("/tmp/evil.so");
        for name in [
            "LD_PRELOAD",
            "LD_AUDIT",
            "PATH",
            "BASH_ENV",
            "NODE_OPTIONS",
            "PYTHONPATH",
            "OPENSSL_CONF",
            "DOTNET_STARTUP_HOOKS",
            "LUA_INIT",
        ] {
            let error = build([], &Inherit::All, [(name, &value)]).unwrap_err();
            assert!(error.to_string().contains("code"), "{error}");
        }
    }

    #[test]
    fn a_variable_needs_a_name_that_no_shell_misreads() {
        let value = secret("x");
        for name in [
            "",
            "1A",
            "A=B",
            "A B",
            "Ä",
            "A\0",
            "FENDER_STATE",
            "LISTEN_PID",
        ] {
            let error = build([], &Inherit::All, [(name, &value)]).unwrap_err();
            assert!(matches!(error, EnvironmentError::Name { .. }), "{name}");
        }
    }

    #[test]
    fn bytes_that_are_no_text_are_refused_and_never_shown() {
        for bytes in [b"hunter2\0hunter3".to_vec(), b"hunter2\xff".to_vec()] {
            let value = Secret::new(bytes);
            let error = build([], &Inherit::All, [("PASSWORD", &value)]).unwrap_err();
            assert_eq!(error, EnvironmentError::Value("PASSWORD".to_owned()));
            assert!(!format!("{error} {error:?}").contains("hunter"));
        }
    }

    #[test]
    fn the_line_feed_an_editor_left_is_not_part_of_a_value() {
        for (text, expected) in [
            ("pw\n", "P=pw"),
            ("pw\r\n", "P=pw"),
            ("pw\n\n", "P=pw\n"),
            ("a\nb", "P=a\nb"),
        ] {
            let value = secret(text);
            assert_eq!(
                shown(&build([], &Inherit::All, [("P", &value)]).unwrap()),
                expected
            );
        }
    }

    #[test]
    fn two_credentials_for_one_variable_are_a_mistake() {
        let value = secret("x");
        let both = [("P", &value), ("P", &value)];
        let error = build([], &Inherit::All, both).unwrap_err();
        assert_eq!(error, EnvironmentError::Twice("P".to_owned()));
    }
}
