//! The Security Token Service: roles are assumed. It is asked by a form and answers in XML, of which four texts are read.
//!
//! <https://docs.aws.amazon.com/STS/latest/APIReference/welcome.html>

use std::time::Duration;

use fender_identity::Secret;

use super::keys::{Granted, Keys};
use super::profile::Role;
use super::sign::{Scope, Signed, sign};
use super::time;
use super::wire::{Address, Failure, Request, Wire, read};
use crate::http::Method;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(15);
const FORM: &str = "application/x-www-form-urlencoded";
/// Whose session it is, where nobody says.
const SESSION: &str = "fender";

/// Where roles are assumed.
#[derive(Debug)]
pub(super) struct Sts<'a> {
    pub(super) wire: &'a dyn Wire,
    pub(super) at: Address,
    pub(super) region: &'a str,
    /// In seconds since 1970.
    pub(super) now: u64,
}

impl Sts<'_> {
    /// By a token that an identity provider of AWS's customer made. Nothing signs that: the token is the proof.
    pub(super) async fn with_web_identity(
        &self,
        role: &Role,
        token: &Secret,
    ) -> Result<Granted, Failure> {
        let parts = [("WebIdentityToken", token.expose_str().unwrap_or_default())];
        let body = form("AssumeRoleWithWebIdentity", role, &parts);
        self.ask(body, Vec::new(), &[token], role).await
    }

    /// By credentials of before.
    pub(super) async fn with_keys(&self, role: &Role, keys: &Keys) -> Result<Granted, Failure> {
        let parts = role.external_id.as_deref().map(|id| ("ExternalId", id));
        let body = form("AssumeRole", role, parts.as_slice());
        let scope = Scope {
            region: self.region,
            service: "sts",
            now: self.now,
        };
        let headers = [content_type()];
        let signed = Signed {
            authority: &self.at.authority,
            headers: &headers,
            body: body.expose(),
        };
        let added = sign(keys, scope, signed);
        let proofs: Vec<_> = keys.parts().collect();
        self.ask(body, added, &proofs, role).await
    }

    async fn ask(
        &self,
        body: Secret,
        added: Vec<(&'static str, Secret)>,
        proofs: &[&Secret],
        role: &Role,
    ) -> Result<Granted, Failure> {
        let mut headers = vec![content_type()];
        headers.extend(added);
        let request = Request {
            method: Method::Post,
            to: self.at.clone(),
            headers,
            body: Some(body),
            patience: PATIENCE,
            roots: None,
        };
        let body = read(self.wire.ask(&request).await, said_in_xml, proofs)?;
        granted(&body, format!("the role `{}`", role.arn)).map_err(Failure::Malformed)
    }
}

fn content_type() -> (&'static str, Secret) {
    ("content-type", Secret::from(FORM.to_owned()))
}

fn form(action: &str, role: &Role, more: &[(&str, &str)]) -> Secret {
    let session = role.session.as_deref().unwrap_or(SESSION);
    let duration = role.duration.map(|seconds| seconds.to_string());
    let mut fields = vec![
        ("Action", action),
        ("Version", "2011-06-15"),
        ("RoleArn", &role.arn),
        ("RoleSessionName", session),
    ];
    fields.extend(
        duration
            .as_deref()
            .map(|seconds| ("DurationSeconds", seconds)),
    );
    fields.extend(more);
    let size: usize = fields
        .iter()
        .map(|(name, value)| name.len() + 3 * value.len() + 2)
        .sum();
    // Sized once: growing would leave copies of a token behind.
    let mut written = Vec::with_capacity(size);
    for (name, value) in fields {
        if !written.is_empty() {
            written.push(b'&');
        }
        written.extend_from_slice(name.as_bytes());
        written.push(b'=');
        for byte in value.bytes() {
            match byte {
                b'-' | b'.' | b'_' | b'~' => written.push(byte),
                _ if byte.is_ascii_alphanumeric() => written.push(byte),
                _ => written.extend_from_slice(format!("%{byte:02X}").as_bytes()),
            }
        }
    }
    Secret::new(written)
}

/// The error repeats none of it.
fn granted(body: &Secret, from: String) -> Result<Granted, String> {
    let unlike = || "its answer is not what STS answers".to_owned();
    let text = body.expose_str().ok_or_else(unlike)?;
    let inside = element(text, "Credentials").ok_or_else(unlike)?;
    let part = |name| leaf(inside, name).ok_or_else(unlike);
    let secret = |name| part(name).map(Secret::from);
    let until = part("Expiration")?;
    Ok(Granted {
        keys: Keys::new(
            secret("AccessKeyId")?,
            secret("SecretAccessKey")?,
            Some(secret("SessionToken")?),
        )?,
        until: Some(time::read(&until).ok_or_else(unlike)?),
        from,
    })
}

fn said_in_xml(body: &Secret) -> Option<(String, String)> {
    let error = element(body.expose_str()?, "Error")?;
    let text = leaf(error, "Message").unwrap_or_default();
    Some((leaf(error, "Code")?, text))
}

/// What is inside the one element of that name; none if there are several, or anything but elements and text in the document.
fn element<'a>(xml: &'a str, name: &str) -> Option<&'a str> {
    if xml.contains("<!") {
        return None;
    }
    let (open, close) = (format!("<{name}>"), format!("</{name}>"));
    let (_, after) = xml.split_once(&open)?;
    let (inside, rest) = after.split_once(&close)?;
    (!inside.contains(&open) && !rest.contains(&open)).then_some(inside)
}

/// The text of an element that has no other in it.
fn leaf(xml: &str, name: &str) -> Option<String> {
    let text = element(xml, name)?;
    if text.contains('<') {
        return None;
    }
    let mut parts = text.split('&');
    let mut plain = parts.next()?.to_owned();
    for part in parts {
        let (entity, rest) = part.split_once(';')?;
        plain.push(match entity {
            "amp" => '&',
            "lt" => '<',
            "gt" => '>',
            "quot" => '"',
            "apos" => '\'',
            _ => return None,
        });
        plain.push_str(rest);
    }
    Some(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the documentation has it.
    pub(super) const ANSWER: &str = r#"<AssumeRoleResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/">
  <AssumeRoleResult>
    <AssumedRoleUser><AssumedRoleId>ARO123EXAMPLE123:TestAR</AssumedRoleId></AssumedRoleUser>
    <Credentials>
      <AccessKeyId>ASIAIOSFODNN7EXAMPLE</AccessKeyId>
      <SecretAccessKey>wJalrXUtnFEMI/K7MDENG/bPxRfiCYzEXAMPLEKEY</SecretAccessKey>
      <SessionToken>AQoDYXdz==</SessionToken>
      <Expiration>2019-11-09T13:34:41Z</Expiration>
    </Credentials>
  </AssumeRoleResult>
</AssumeRoleResponse>"#;

    fn read(text: &str) -> Result<Granted, String> {
        granted(&Secret::from(text.to_owned()), String::new())
    }

    #[test]
    fn credentials_are_read_in_the_answer() {
        let granted = read(ANSWER).unwrap();
        assert_eq!(granted.keys.id.expose_str(), Some("ASIAIOSFODNN7EXAMPLE"));
        assert_eq!(granted.keys.token.unwrap().expose_str(), Some("AQoDYXdz=="));
        assert_eq!(granted.until, Some(1_573_306_481));
    }

    #[test]
    fn attack_xml_that_says_more_than_one_thing() {
        let twice = "<AccessKeyId>OTHER</AccessKeyId>";
        for broken in [
            String::new(),
            "hunter2".to_owned(),
            ANSWER.replace("</Credentials>", ""),
            ANSWER.replace("<Expiration>", "<Expires>"),
            ANSWER.replace("    </Credentials>", &format!("{twice}</Credentials>")),
            ANSWER.replace("AQoDYXdz==", "<![CDATA[x]]>"),
            ANSWER.replace("AQoDYXdz==", "<b>x</b>"),
            ANSWER.replace("AQoDYXdz==", "&bomb;"),
            format!("<!DOCTYPE x>{ANSWER}"),
            format!("{ANSWER}{ANSWER}"),
        ] {
            let why = read(&broken).unwrap_err();
            assert!(!why.contains("hunter2"), "{why}");
        }
    }

    #[test]
    fn errors_are_read_with_their_entities() {
        let body = "<ErrorResponse><Error><Type>Sender</Type><Code>AccessDenied</Code><Message>Not &quot;yours&quot;</Message></Error></ErrorResponse>";
        let said = said_in_xml(&Secret::from(body.to_owned()));
        assert_eq!(
            said,
            Some(("AccessDenied".to_owned(), "Not \"yours\"".to_owned()))
        );
    }

    #[test]
    fn a_form_escapes_whatever_could_be_another_field() {
        let role = Role {
            arn: "arn:aws:iam::1:role/a&Action=Evil".to_owned(),
            session: None,
            external_id: None,
            duration: Some(900),
        };
        let form = form("AssumeRole", &role, &[("ExternalId", "é=1")]);
        assert_eq!(
            form.expose_str(),
            Some(
                "Action=AssumeRole&Version=2011-06-15&RoleArn=arn%3Aaws%3Aiam%3A%3A1%3Arole%2Fa%26Action%3DEvil\
                 &RoleSessionName=fender&DurationSeconds=900&ExternalId=%C3%A9%3D1"
            )
        );
    }
}
