//! `source.aws` of a `Credential`: which secret or parameter, in which region.

use std::num::NonZeroU64;
use std::time::Duration;

use super::{duration, file_path, whole};
use crate::address::StoreUrl;
use crate::raw;
use crate::snapshot::{
    AwsParameterVersion, AwsPlace, AwsSecret, AwsSecretVersion, AwsStore, InvalidAwsName,
};
use crate::yaml::{At, Reader};

const SHORTEST_REFRESH: Duration = Duration::from_secs(1);
const LONGEST_REFRESH: Duration = Duration::from_secs(24 * 60 * 60);
const LONGEST_KEY: usize = 256;

/// `at` is the whole source, for what is missing in it.
pub(super) fn secret(
    reader: &mut Reader<'_>,
    at: &At<raw::CredentialSource>,
    written: &raw::SourceAws,
) -> Option<AwsSecret> {
    let help = "write it as AWS does: `eu-central-1`";
    let region = reader.parse(&written.region, "fender::bad-aws-name", help);
    let endpoint = written.endpoint.as_ref().map(|at| endpoint(reader, at));
    let roots = written.roots.as_ref();
    let roots = roots.map(|roots| file_path(reader, &roots.file));
    let place = place(reader, at, written);
    let refresh = written
        .refresh
        .as_ref()
        .map_or(Some(AwsSecret::REFRESH), |at| {
            duration(reader, "refresh", at, SHORTEST_REFRESH, LONGEST_REFRESH)
        });
    let (at, key) = place?;
    Some(AwsSecret {
        store: AwsStore {
            region: region?,
            endpoint: whole(endpoint)?,
            roots: whole(roots)?,
        },
        at,
        key,
        refresh: refresh?,
    })
}

fn endpoint(reader: &mut Reader<'_>, at: &At<String>) -> Option<StoreUrl> {
    let help = "write `https://HOST`, or `http://127.0.0.1:PORT` for one on this machine";
    let url: StoreUrl = reader.parse(at, "fender::bad-url", help)?;
    if !url.path().is_empty() {
        let message = "the APIs of AWS are at the root of an endpoint, and this one has a path";
        reader.wrong(at, "fender::bad-url", message, help);
        return None;
    }
    Some(url)
}

fn place(
    reader: &mut Reader<'_>,
    at: &At<raw::CredentialSource>,
    written: &raw::SourceAws,
) -> Option<(AwsPlace, Option<String>)> {
    match (&written.secrets_manager, &written.parameter) {
        (Some(secret), None) => {
            let help =
                "letters, digits and `/_+=.@-`, as the secret is called in AWS, or its whole ARN";
            let id = reader.parse(&secret.secret_id, "fender::bad-aws-name", help);
            let version = secret_version(reader, secret);
            let key = secret.key.as_ref().map(|at| key(reader, at));
            let place = AwsPlace::Secret {
                id: id?,
                version: version?,
            };
            Some((place, whole(key)?))
        }
        (None, Some(parameter)) => {
            let help = "letters, digits and `/_.-`, as the parameter is called in AWS, or its whole ARN; a version is `version` or `label`";
            let name = reader.parse(&parameter.name, "fender::bad-aws-name", help);
            let version = parameter_version(reader, parameter);
            let key = parameter.key.as_ref().map(|at| key(reader, at));
            let place = AwsPlace::Parameter {
                name: name?,
                version: version?,
            };
            Some((place, whole(key)?))
        }
        _ => {
            reader.wrong(
                at,
                "fender::one-of",
                "a secret of AWS is in one place",
                "write one of `secretsManager` and `parameter`; another place is another credential",
            );
            None
        }
    }
}

fn secret_version(
    reader: &mut Reader<'_>,
    secret: &raw::AwsSecretsManager,
) -> Option<AwsSecretVersion> {
    match (&secret.version_stage, &secret.version_id) {
        (None, None) => AwsSecretVersion::stage(AwsSecretVersion::CURRENT).ok(),
        (Some(at), None) => {
            let help =
                "1 to 256 visible characters: `AWSCURRENT`, `AWSPREVIOUS` or a label of yours";
            named(reader, at, AwsSecretVersion::stage, help)
        }
        (None, Some(at)) => {
            let help = "32 to 64 letters, digits and `-`, as AWS shows it";
            named(reader, at, AwsSecretVersion::id, help)
        }
        (Some(at), Some(_)) => {
            let message = "a version is named by its label or by its id";
            let help = "write one of `versionStage` and `versionId`";
            reader.wrong(at, "fender::one-of", message, help);
            None
        }
    }
}

fn parameter_version(
    reader: &mut Reader<'_>,
    parameter: &raw::AwsParameter,
) -> Option<AwsParameterVersion> {
    match (&parameter.version, &parameter.label) {
        (None, None) => Some(AwsParameterVersion::Newest),
        (Some(at), None) => {
            let number = u64::try_from(at.value).ok().and_then(NonZeroU64::new);
            if number.is_none() {
                let message = format!("`version` cannot be {}", at.value);
                let help = "versions begin with 1; leave `version` out to have the newest";
                reader.wrong(at, "fender::bad-number", message, help);
            }
            number.map(AwsParameterVersion::Number)
        }
        (None, Some(at)) => {
            let help = "at most 100 letters, digits and `._-`, not beginning with a digit";
            named(reader, at, AwsParameterVersion::label, help)
        }
        (Some(at), Some(_)) => {
            let message = "a version is named by its number or by its label";
            let help = "write one of `version` and `label`";
            reader.wrong(at, "fender::one-of", message, help);
            None
        }
    }
}

fn named<T>(
    reader: &mut Reader<'_>,
    at: &At<String>,
    of: impl FnOnce(&str) -> Result<T, InvalidAwsName>,
    help: &'static str,
) -> Option<T> {
    match of(&at.value) {
        Ok(named) => Some(named),
        Err(error) => {
            reader.wrong(at, "fender::bad-aws-name", error.to_string(), help);
            None
        }
    }
}

fn key(reader: &mut Reader<'_>, at: &At<String>) -> Option<String> {
    let text = &at.value;
    if text.is_empty() || text.len() > LONGEST_KEY || text.chars().any(char::is_control) {
        let message = format!("`{}` cannot be a key", text.escape_default());
        let help = "one line of at most 256 bytes; without `key` the value is the whole secret";
        reader.wrong(at, "fender::bad-aws-name", message, help);
        return None;
    }
    Some(text.clone())
}
