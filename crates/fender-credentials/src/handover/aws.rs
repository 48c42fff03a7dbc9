//! What AWS SDKs expect of a container's credentials: a JSON object of four texts.
//!
//! Reference: the container credential provider of the AWS SDKs and Tools Reference Guide, and
//! `ContainerMetadataFetcher` of botocore.

use std::borrow::Cow;

use fender_identity::Secret;
use serde::Deserialize;

/// Other fields, as `AccountId`, are passed on.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ContainerCredentials<'a> {
    #[serde(borrow)]
    access_key_id: Cow<'a, str>,
    #[serde(borrow)]
    secret_access_key: Cow<'a, str>,
    #[serde(borrow)]
    token: Cow<'a, str>,
    #[serde(borrow)]
    expiration: Cow<'a, str>,
}

/// Whether an SDK can use it. The error repeats none of it.
pub(super) fn check(value: &Secret) -> Result<(), &'static str> {
    const NONE: &str = "is not what AWS SDKs read: a JSON object with the texts `AccessKeyId`, `SecretAccessKey`, `Token` and \
        `Expiration`";
    let read: ContainerCredentials<'_> =
        serde_json::from_slice(value.expose()).map_err(|_| NONE)?;
    let texts = [
        &read.access_key_id,
        &read.secret_access_key,
        &read.token,
        &read.expiration,
    ];
    match texts.iter().any(|text| text.is_empty()) {
        true => Err(NONE),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_an_sdk_can_use_is_served_to_one() {
        let check = |text: &str| check(&Secret::from(text.to_owned()));
        let whole = r#"{"AccessKeyId":"AKIA","SecretAccessKey":"s\u0041","Token":"t","Expiration":"2030-01-01T00:00:00Z","AccountId":"1"}"#;
        assert_eq!(check(whole), Ok(()));
        for broken in [
            String::new(),
            "hunter2".to_owned(),
            whole.replace("Token", "SessionToken"),
            whole.replace("\"AKIA\"", "7"),
            whole.replace("AKIA", ""),
            format!("[{whole}]"),
            format!("{whole}x"),
        ] {
            let why = check(&broken).unwrap_err();
            assert!(!why.contains("hunter2"), "{why}");
        }
    }
}
