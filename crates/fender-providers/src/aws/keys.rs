//! Credentials of AWS, and how they are read in what the container's and the instance's endpoints answer.

use fender_identity::Secret;
use serde::Deserialize;

use super::time;
use crate::hidden::Hidden;

/// What a request is signed with.
#[derive(Clone, Debug)]
pub(super) struct Keys {
    pub(super) id: Secret,
    pub(super) secret: Secret,
    /// Of temporary ones.
    pub(super) token: Option<Secret>,
}

impl Keys {
    /// Keys are lines of visible characters: anything else would not be sent as it is.
    pub(super) fn new(id: Secret, secret: Secret, token: Option<Secret>) -> Result<Self, String> {
        for (what, part) in [
            ("access key id", Some(&id)),
            ("secret access key", Some(&secret)),
            ("session token", token.as_ref()),
        ] {
            let visible =
                |part: &Secret| !part.is_empty() && part.expose().iter().all(u8::is_ascii_graphic);
            if part.is_some_and(|part| !visible(part)) {
                return Err(format!(
                    "the {what} is empty or holds more than visible characters"
                ));
            }
        }
        Ok(Self { id, secret, token })
    }

    /// All of it, for what must not be repeated in an error.
    pub(super) fn parts(&self) -> impl Iterator<Item = &Secret> {
        [&self.id, &self.secret].into_iter().chain(&self.token)
    }
}

/// Keys, and until when they are good.
#[derive(Clone, Debug)]
pub(super) struct Granted {
    pub(super) keys: Keys,
    /// In seconds since 1970. None: until somebody takes them away.
    pub(super) until: Option<u64>,
    /// Where they are from, for people.
    pub(super) from: String,
}

/// What both endpoints answer; <https://docs.aws.amazon.com/sdkref/latest/guide/feature-container-credentials.html>.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Served {
    /// Of instances: `Success`.
    code: Option<String>,
    access_key_id: Option<Hidden>,
    secret_access_key: Option<Hidden>,
    token: Option<Hidden>,
    expiration: Option<String>,
}

/// The error repeats none of it.
pub(super) fn served(body: &Secret, from: String) -> Result<Granted, String> {
    let unlike = "its answer is not a JSON object with `AccessKeyId`, `SecretAccessKey`, `Token` and `Expiration`";
    let read: Served = serde_json::from_slice(body.expose()).map_err(|_| unlike.to_owned())?;
    if read.code.is_some_and(|code| code != "Success") {
        return Err("it says that there are none at present".to_owned());
    }
    let (Some(id), Some(secret)) = (read.access_key_id, read.secret_access_key) else {
        return Err(unlike.to_owned());
    };
    let until = match read.expiration {
        None => None,
        Some(text) => Some(time::read(&text).ok_or(unlike)?),
    };
    let token = read.token.map(|token| token.0);
    Ok(Granted {
        keys: Keys::new(id.0, secret.0, token)?,
        until,
        from,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: &str = r#"{"Code":"Success","AccessKeyId":"AKIA","SecretAccessKey":"hunter2","Token":"t","Expiration":"2015-08-30T12:36:00Z"}"#;

    fn read(text: &str) -> Result<Granted, String> {
        served(&Secret::from(text.to_owned()), "here".to_owned())
    }

    #[test]
    fn what_an_endpoint_serves_is_read_whole_or_not_at_all() {
        let granted = read(WHOLE).unwrap();
        assert_eq!(granted.keys.secret.expose_str(), Some("hunter2"));
        assert_eq!(granted.until, Some(1_440_938_160));
        assert!(!format!("{granted:?}").contains("hunter2"));
        // The container's endpoint need not say until when.
        let lasting = r#"{"AccessKeyId":"AKIA","SecretAccessKey":"hunter2"}"#;
        assert_eq!(read(lasting).unwrap().until, None);
        for broken in [
            String::new(),
            "hunter2".to_owned(),
            WHOLE.replace("Success", "Failed"),
            WHOLE.replace("AccessKeyId", "Id"),
            WHOLE.replace("AKIA", "A\\nX-Evil: hunter2"),
            WHOLE.replace("\"t\"", "\"\""),
            WHOLE.replace("2015-", "hunter2-"),
        ] {
            let why = read(&broken).unwrap_err();
            assert!(!why.contains("hunter2"), "{why}");
        }
    }
}
