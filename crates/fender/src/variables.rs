//! Variables of this process's environment that documents may name, and that nothing it starts inherits.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;

use fender_config::HttpsUrl;
use fender_config::snapshot::{CredentialSource, CredentialSpec, Origin};
use fender_identity::Secret;
use fender_providers::environment::Environment;
use fender_providers::kubernetes;
use fender_runtime::sys;

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

/// The API of the Kubernetes cluster that this process runs in, if it does.
pub(crate) fn cluster() -> Option<HttpsUrl> {
    let read = |name| std::env::var_os(name)?.into_string().ok();
    let host = read(kubernetes::HOST_VARIABLE);
    let port = read(kubernetes::PORT_VARIABLE);
    kubernetes::own_api(host.as_deref(), port.as_deref())
}

/// The variable that a credential comes from, if it does.
pub(crate) fn of(spec: &CredentialSpec) -> Option<&str> {
    match &spec.source {
        CredentialSource::Direct(Origin::Environment { variable }) => Some(variable),
        CredentialSource::Direct(_) | CredentialSource::Control => None,
    }
}
