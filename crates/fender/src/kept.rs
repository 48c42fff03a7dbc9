//! The encrypted cache of credentials, as the command line names it. It is opened before a process confines itself: its key lies where the
//! confined process reads nothing.

use std::path::Path;

use fender_credentials::Cache;
use fender_credentials::cache::{KeyPlace, Opened};

use crate::exit::Failure;
use crate::{cli, variables};

/// None if nobody wants one.
pub(crate) fn open(source: &cli::Source) -> Result<Option<Opened>, Failure> {
    let key = match (
        &source.credentials_cache_key,
        &source.credentials_cache_key_credential,
    ) {
        (Some(file), _) => Some(("--credentials-cache-key", KeyPlace::File(file.clone()))),
        (None, Some(name)) => {
            let flag = "--credentials-cache-key-credential";
            let path = variables::service_credential(flag, name)?;
            Some((flag, KeyPlace::Credential(path)))
        }
        (None, None) => None,
    };
    let (Some(directory), Some((key_flag, key))) = (&source.credentials_cache, key) else {
        return Ok(None);
    };
    // A document from elsewhere could have the key delivered, or put a file in the place of another.
    for (flag, path) in [
        ("--credentials-cache", directory.as_path()),
        (key_flag, key.path()),
    ] {
        let mut allowed = source.allow_dir.iter();
        if let Some(allowed) = allowed.find(|allowed| overlap(allowed, path)) {
            return Err(Failure::usage(format!(
                "{flag}: `{}` and `{}`, which documents may use (--allow-dir), lie in each other; keep them apart",
                path.display(),
                allowed.display()
            )));
        }
    }
    Cache::open(directory, &key)
        .map(Some)
        .map_err(Failure::usage_of)
}

/// By their texts and by what they lead to, as far as that exists.
fn overlap(one: &Path, other: &Path) -> bool {
    let within = |one: &Path, other: &Path| one.starts_with(other) || other.starts_with(one);
    let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
    within(one, other) || within(&real(one), &real(other))
}
