//! A secret in the environment of this process, put there by whoever started it.
//!
//! The variables that may be named are read once, at the start, and taken out of the environment, so that nothing this process
//! starts inherits them; an environment never changes from outside, so they are never read again. What the kernel shows of the
//! environment a process began with stays, for root and its own user.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use fender_identity::Secret;

#[cfg(feature = "stores")]
use crate::aws::AwsAccess;
use crate::{FetchError, Fetched, Generation, Source};

/// There is nothing new to learn.
const INTERVAL: Duration = Duration::from_secs(3600);

/// The variables that documents may name, as they were at the start, and what is there for AWS. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Environment {
    variables: Arc<BTreeMap<String, Result<Fetched, Nothing>>>,
    #[cfg(feature = "stores")]
    aws: AwsAccess,
}

/// Why a variable holds nothing.
#[derive(Clone, Copy, Debug)]
enum Nothing {
    Unset,
    Empty,
}

impl Environment {
    /// These, with what they held, if they were set.
    pub fn taken(variables: impl IntoIterator<Item = (String, Option<Secret>)>) -> Self {
        let fetched = |value: Secret| Fetched {
            value,
            generation: Generation::random(),
        };
        let variables = variables.into_iter().map(|(name, value)| {
            let value = match value {
                None => Err(Nothing::Unset),
                // Whoever sets a variable to nothing means that there is none.
                Some(value) if value.is_empty() => Err(Nothing::Empty),
                Some(value) => Ok(fetched(value)),
            };
            (name, value)
        });
        Self {
            variables: Arc::new(variables.collect()),
            #[cfg(feature = "stores")]
            aws: AwsAccess::default(),
        }
    }

    /// The same, with credentials for AWS.
    #[cfg(feature = "stores")]
    #[must_use]
    pub fn with_aws(self, aws: AwsAccess) -> Self {
        Self { aws, ..self }
    }

    /// What this machine has for AWS, and what documents may do with it.
    #[cfg(feature = "stores")]
    pub fn aws(&self) -> &AwsAccess {
        &self.aws
    }

    /// Whether documents may name this one.
    pub fn allows(&self, variable: &str) -> bool {
        self.variables.contains_key(variable)
    }

    /// What a variable holds.
    pub fn source(&self, variable: &str) -> EnvironmentSource {
        EnvironmentSource(match self.variables.get(variable) {
            Some(Ok(fetched)) => Ok(fetched.clone()),
            Some(Err(Nothing::Unset)) => Err(FetchError::Missing(format!(
                "the environment variable `{variable}` was not set when this process started"
            ))),
            Some(Err(Nothing::Empty)) => Err(FetchError::Missing(format!(
                "the environment variable `{variable}` was set, but to nothing, when this process started"
            ))),
            None => Err(FetchError::Denied(format!(
                "the environment variable `{variable}` is not allowed on this machine; name it with --allow-environment"
            ))),
        })
    }
}

/// A variable.
#[derive(Debug)]
pub struct EnvironmentSource(Result<Fetched, FetchError>);

impl Source for EnvironmentSource {
    async fn fetch(&self) -> Result<Fetched, FetchError> {
        self.0.clone()
    }

    fn interval(&self) -> Duration {
        INTERVAL
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment() -> Environment {
        let secret = |text: &str| Some(Secret::from(text.to_owned()));
        Environment::taken([
            ("SMTP".to_owned(), secret("hunter2\n")),
            ("EMPTY".to_owned(), secret("")),
            ("UNSET".to_owned(), None),
        ])
    }

    #[tokio::test]
    async fn a_variable_is_its_bytes_and_always_the_same_value() {
        let environment = environment();
        let one = environment.source("SMTP").fetch().await.unwrap();
        let two = environment.clone().source("SMTP").fetch().await.unwrap();
        assert_eq!(one.value.expose(), b"hunter2\n");
        assert_eq!(one.generation, two.generation);
        assert!(!format!("{environment:?}").contains("hunter2"));
    }

    #[tokio::test]
    async fn a_variable_that_was_not_set_is_missing() {
        for (variable, why) in [
            ("EMPTY", "`EMPTY` was set, but to nothing,"),
            ("UNSET", "`UNSET` was not set"),
        ] {
            let error = environment().source(variable).fetch().await.unwrap_err();
            assert!(matches!(error, FetchError::Missing(_)), "{error}");
            assert!(error.to_string().contains(why), "{error}");
        }
    }

    #[tokio::test]
    async fn attack_no_variable_is_read_that_was_not_allowed() {
        // Every process has this one.
        for variable in ["PATH", "smtp", "SMTP ", ""] {
            assert!(!environment().allows(variable));
            let error = environment().source(variable).fetch().await.unwrap_err();
            assert!(matches!(error, FetchError::Denied(_)), "{error}");
        }
    }
}
