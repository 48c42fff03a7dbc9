//! Variables of this process's environment that documents may name, and that nothing it starts inherits.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;

#[cfg(feature = "stores")]
use fender_config::HttpsUrl;
use fender_config::snapshot::{CredentialSource, CredentialSpec, Origin};
use fender_identity::Secret;
#[cfg(feature = "stores")]
use fender_providers::aws::{AllowAws, AwsAccess, AwsPattern, AwsSettings};
use fender_providers::environment::Environment;
#[cfg(feature = "stores")]
use fender_providers::kubernetes;
use fender_runtime::sys;

use crate::exit::Failure;

/// Reads these and takes them out of the environment. To be called before threads.
pub(crate) fn take(names: impl IntoIterator<Item = String>) -> Environment {
    let taken = names.into_iter().map(|name| {
        let value = sys::take_variable(&name);
        let value = value.map(OsString::into_vec).map(Secret::new);
        (name, value)
    });
    // One that is named twice is there only the first time.
    let mut variables = std::collections::BTreeMap::new();
    for (name, value) in taken {
        variables.entry(name).or_insert(value);
    }
    Environment::taken(variables)
}

/// The file of a credential that the service manager gives this process: below `CREDENTIALS_DIRECTORY`, as systemd sets it.
pub(crate) fn service_credential(flag: &str, name: &str) -> Result<PathBuf, Failure> {
    let directory = std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from);
    let directory = directory.filter(|directory| directory.is_absolute());
    let directory = directory.ok_or_else(|| {
        Failure::usage(format!(
            "{flag} needs a service manager that sets CREDENTIALS_DIRECTORY"
        ))
    })?;
    if name.is_empty() || name.contains('/') || name.starts_with('.') {
        return Err(Failure::usage(format!(
            "{flag} `{name}` is not the name of a credential"
        )));
    }
    Ok(directory.join(name))
}

/// The API of the Kubernetes cluster that this process runs in, if it does.
#[cfg(feature = "stores")]
pub(crate) fn cluster() -> Option<HttpsUrl> {
    let read = |name| std::env::var_os(name)?.into_string().ok();
    let host = read(kubernetes::HOST_VARIABLE);
    let port = read(kubernetes::PORT_VARIABLE);
    kubernetes::own_api(host.as_deref(), port.as_deref())
}

/// What is there for AWS, if anybody is to ask it: read, and what is secret of it taken out of the environment. To be called before
/// threads.
#[cfg(feature = "stores")]
pub(crate) fn take_aws(is_asked: bool, allow: AllowAws) -> AwsAccess {
    if !is_asked {
        return AwsAccess::default();
    }
    let secret = |value: OsString| Secret::new(value.into_vec());
    let taken = AwsSettings::SECRETS
        .into_iter()
        .map(|name| (name, sys::take_variable(name)));
    let read = AwsSettings::OTHERS
        .into_iter()
        .map(|name| (name, std::env::var_os(name)));
    let set = taken.chain(read);
    let set = set.filter_map(|(name, value)| Some((name, secret(value?))));
    AwsAccess {
        settings: AwsSettings::new(set),
        allow,
    }
}

/// What documents from elsewhere may have read of AWS, and whether they may anything.
#[cfg(feature = "stores")]
pub(crate) fn allowed_aws(patterns: &[AwsPattern]) -> (bool, AllowAws) {
    (!patterns.is_empty(), AllowAws::These(patterns.to_vec()))
}

/// Whether a credential comes from AWS.
#[cfg(feature = "stores")]
pub(crate) fn is_of_aws(spec: &CredentialSpec) -> bool {
    matches!(&spec.source, CredentialSource::Direct(Origin::Aws(_)))
}

/// The variable that a credential comes from, if it does.
pub(crate) fn of(spec: &CredentialSpec) -> Option<&str> {
    match &spec.source {
        CredentialSource::Direct(Origin::Environment { variable }) => Some(variable),
        CredentialSource::Direct(_) | CredentialSource::Control(_) => None,
    }
}
