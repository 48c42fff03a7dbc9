//! AWS Signature Version 4, of what is asked here: a POST of a body to the root of a host.
//!
//! A signature proves a key without showing it, for this host, this body and some minutes. The session token of temporary
//! credentials is shown; without the key it is worth nothing.
//!
//! <https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html>

use aws_lc_rs::{digest, hmac};
use fender_identity::Secret;
use zeroize::Zeroizing;

use super::keys::Keys;
use super::time;

const ALGORITHM: &str = "AWS4-HMAC-SHA256";

/// What a signature is good for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scope<'a> {
    pub(super) region: &'a str,
    pub(super) service: &'a str,
    /// In seconds since 1970.
    pub(super) now: u64,
}

/// What is signed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Signed<'a> {
    /// As the `Host` header has it.
    pub(super) authority: &'a str,
    /// All that are sent, but those that are made here; in lower case.
    pub(super) headers: &'a [(&'static str, Secret)],
    pub(super) body: &'a [u8],
}

/// The headers to be sent beside those that are signed.
pub(super) fn sign(
    keys: &Keys,
    scope: Scope<'_>,
    signed: Signed<'_>,
) -> Vec<(&'static str, Secret)> {
    let stamp = time::stamp(scope.now);
    let mut added = vec![("x-amz-date", Secret::from(stamp.clone()))];
    let token = keys.token.clone();
    added.extend(token.map(|token| ("x-amz-security-token", token)));

    let host = Secret::from(signed.authority.to_owned());
    let mut headers: Vec<(&str, &Secret)> = vec![("host", &host)];
    headers.extend(signed.headers.iter().map(|(name, value)| (*name, value)));
    headers.extend(added.iter().map(|(name, value)| (*name, value)));
    headers.sort_by_key(|(name, _)| *name);
    let names: Vec<_> = headers.iter().map(|(name, _)| *name).collect();
    let names = names.join(";");

    // It holds the session token.
    let mut canonical = Zeroizing::new(b"POST\n/\n\n".to_vec());
    for (name, value) in headers {
        canonical.extend_from_slice(name.as_bytes());
        canonical.push(b':');
        canonical.extend_from_slice(value.expose().trim_ascii());
        canonical.push(b'\n');
    }
    canonical.extend_from_slice(format!("\n{names}\n{}", hash(signed.body)).as_bytes());

    let day = stamp.get(..8).unwrap_or_default();
    let Scope {
        region, service, ..
    } = scope;
    let credential = format!("{day}/{region}/{service}/aws4_request");
    let to_sign = format!("{ALGORITHM}\n{stamp}\n{credential}\n{}", hash(&canonical));
    let mut key = Zeroizing::new(b"AWS4".to_vec());
    key.extend_from_slice(keys.secret.expose());
    for part in [day, region, service, "aws4_request", &to_sign] {
        key = Zeroizing::new(mac(&key, part.as_bytes()));
    }
    let id = keys.id.expose_str().unwrap_or_default();
    let authorization = format!(
        "{ALGORITHM} Credential={id}/{credential}, SignedHeaders={names}, Signature={}",
        hex(&key)
    );
    added.push(("authorization", Secret::from(authorization)));
    added
}

fn mac(key: &[u8], data: &[u8]) -> Vec<u8> {
    let key = hmac::Key::new(hmac::HMAC_SHA256, key);
    hmac::sign(&key, data).as_ref().to_vec()
}

fn hash(data: &[u8]) -> String {
    hex(digest::digest(&digest::SHA256, data).as_ref())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_440_938_160;
    const TOKEN: &str = "AQoDYXdzEPT//////////wEXAMPLEtc764bNrC9SAPBSM22wDOk4x4HIZ8j4FZTwdQWLWsKWHGBuFqwAeMicRXmxfpSPfIeoIYRqTflfKD8YUuwthAx7mSEI/qkPpKPi/kMcGdQrmGdeehM4IC1NtBmUpp2wUE8phUZampKsburEDy0KPkyQDYwT7WZ0wq5VSXDvp75YU9HFvlRd8Tx6q6fE8YQcHNVXAkiY9q6d+xo0rKwT38xVqr7ZD0u0iPPkUL64lIZbqBAz+scqKmlzm8FDrypNC9Yjc8fPOLn9FX9KSYvKTr4rvx3iSIlTJabIQwj2ICCR/oLxBA==";

    fn authorization(token: Option<&str>, headers: &[(&'static str, &str)], body: &str) -> String {
        let text = |text: &str| Secret::from(text.to_owned());
        let keys = Keys {
            id: text("AKIDEXAMPLE"),
            secret: text("wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"),
            token: token.map(text),
        };
        let scope = Scope {
            region: "us-east-1",
            service: "service",
            now: NOW,
        };
        let headers: Vec<_> = headers
            .iter()
            .map(|(name, value)| (*name, text(value)))
            .collect();
        let signed = Signed {
            authority: "example.amazonaws.com",
            headers: &headers,
            body: body.as_bytes(),
        };
        let added = sign(&keys, scope, signed);
        let (_, date) = &added[0];
        assert_eq!(date.expose_str(), Some("20150830T123600Z"));
        let (_, authorization) = added.last().unwrap();
        authorization.expose_str().unwrap().to_owned()
    }

    type Headers = &'static [(&'static str, &'static str)];

    /// Of AWS's own signing test suite: `post-vanilla`, `post-sts-header-before`, `post-x-www-form-urlencoded`,
    /// `post-header-key-sort` and `post-header-value-case`.
    #[test]
    fn it_signs_as_the_test_suite_of_aws_says() {
        let begin =
            "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, ";
        let form: Headers = &[
            ("content-type", "application/x-www-form-urlencoded"),
            ("content-length", "13"),
            (
                "x-amz-content-sha256",
                "9095672bbd1f56dfc5b65f3e153adc8731a4a654192329106275f4c7b24d0b6e",
            ),
        ];
        let vectors: [(Option<&str>, Headers, &str, &str); 5] = [
            (
                None,
                &[],
                "",
                "SignedHeaders=host;x-amz-date, Signature=5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b",
            ),
            (
                Some(TOKEN),
                &[],
                "",
                "SignedHeaders=host;x-amz-date;x-amz-security-token, Signature=85d96828115b5dc0cfc3bd16ad9e210dd772bbebba041836c64533a82be05ead",
            ),
            (
                None,
                form,
                "Param1=value1",
                "SignedHeaders=content-length;content-type;host;x-amz-content-sha256;x-amz-date, Signature=d3875051da38690788ef43de4db0d8f280229d82040bfac253562e56c3f20e0b",
            ),
            (
                None,
                &[("my-header1", "value1")],
                "",
                "SignedHeaders=host;my-header1;x-amz-date, Signature=c5410059b04c1ee005303aed430f6e6645f61f4dc9e1461ec8f8916fdf18852c",
            ),
            (
                None,
                &[("my-header1", "VALUE1")],
                "",
                "SignedHeaders=host;my-header1;x-amz-date, Signature=cdbc9802e29d2942e5e10b5bccfdd67c5f22c7c4e8ae67b53629efa58b974b7d",
            ),
        ];
        for (token, headers, body, expected) in vectors {
            assert_eq!(
                authorization(token, headers, body),
                format!("{begin}{expected}")
            );
        }
    }
}
