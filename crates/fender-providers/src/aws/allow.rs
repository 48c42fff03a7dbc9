//! What of AWS documents may name on this machine.
//!
//! Asking AWS takes no login from a document: it is done with whatever credentials the machine has, a role of the instance for
//! instance. A document that came over the network therefore names only what somebody on the machine allowed, as it may
//! read files only below certain directories, and sends requests nowhere but to AWS itself or where the machine's own
//! settings lead.

use std::fmt;
use std::str::FromStr;

use fender_config::snapshot::{AwsSecret, AwsService};

use super::settings::AwsSettings;

/// What documents may have read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AllowAws {
    /// Anything, anywhere: the documents are local.
    Any,
    /// These; an empty list allows nothing.
    These(Vec<AwsPattern>),
}

impl AllowAws {
    /// Whether a document may have this read.
    pub(super) fn check(
        &self,
        secret: &AwsSecret,
        settings: &AwsSettings,
    ) -> Result<(), AwsNotAllowed> {
        let Self::These(patterns) = self else {
            return Ok(());
        };
        let (service, name) = (secret.at.service(), secret.at.name());
        if !patterns.iter().any(|one| one.matches(service, name)) {
            return Err(AwsNotAllowed {
                what: format!("{}:{name}", service.name()),
                why: "is nothing of AWS that documents may have read; name it with --allow-aws",
            });
        }
        let known = || settings.endpoint(service).and_then(Result::ok);
        match secret.foreign_endpoint() {
            Some(foreign) if known().as_ref() != Some(foreign) => Err(AwsNotAllowed {
                what: foreign.to_string(),
                why: "is no endpoint of AWS for that service and region; documents may name another only if AWS_ENDPOINT_URL or its like names \
                      it, too",
            }),
            Some(_) | None => Ok(()),
        }
    }
}

/// A secret by its name or ARN, letter by letter as a document writes it: `secretsmanager:shop/smtp`, `ssm:/shop/smtp`. A `*` at the
/// end stands for whatever follows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AwsPattern {
    service: AwsService,
    begin: String,
    open: bool,
}

impl AwsPattern {
    fn matches(&self, service: AwsService, name: &str) -> bool {
        self.service == service
            && match self.open {
                true => name.starts_with(&self.begin),
                false => name == self.begin,
            }
    }
}

impl FromStr for AwsPattern {
    type Err = InvalidAwsPattern;

    fn from_str(text: &str) -> Result<Self, InvalidAwsPattern> {
        let (service, name) = text.split_once(':').ok_or(InvalidAwsPattern)?;
        let services = [AwsService::SecretsManager, AwsService::Ssm];
        let mut services = services.into_iter();
        let service = services.find(|known| known.name() == service);
        let (begin, open) = match name.strip_suffix('*') {
            Some(begin) => (begin, true),
            None => (name, false),
        };
        let plain = begin.bytes().all(|b| b.is_ascii_graphic() && b != b'*');
        if name.is_empty() || !plain {
            return Err(InvalidAwsPattern);
        }
        Ok(Self {
            service: service.ok_or(InvalidAwsPattern)?,
            begin: begin.to_owned(),
            open,
        })
    }
}

impl fmt::Display for AwsPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rest = if self.open { "*" } else { "" };
        write!(f, "{}:{}{rest}", self.service.name(), self.begin)
    }
}

/// That names nothing of AWS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "it is neither `secretsmanager:NAME` nor `ssm:NAME`; NAME is a name or an ARN as documents write it, and a `*` may stand at its end"
)]
pub struct InvalidAwsPattern;

/// A document names something of AWS that it may not.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{what}` {why}")]
pub struct AwsNotAllowed {
    /// What it names.
    pub what: String,
    /// What is wrong with that, and the way out.
    pub why: &'static str,
}

#[cfg(test)]
mod tests {
    use fender_config::snapshot::{AwsPlace, AwsSecretVersion, AwsStore};
    use fender_identity::Secret;

    use super::*;

    fn secret(id: &str, endpoint: Option<&str>) -> AwsSecret {
        AwsSecret {
            store: AwsStore {
                region: "eu-central-1".parse().unwrap(),
                endpoint: endpoint.map(|url| url.parse().unwrap()),
                roots: None,
            },
            at: AwsPlace::Secret {
                id: id.parse().unwrap(),
                version: AwsSecretVersion::Stage("AWSCURRENT".to_owned()),
            },
            key: None,
            refresh: AwsSecret::REFRESH,
        }
    }

    fn check(patterns: &[&str], secret: &AwsSecret) -> Result<(), AwsNotAllowed> {
        let patterns = patterns.iter().map(|text| text.parse().unwrap());
        let endpoint = Secret::from("http://127.0.0.1:5000".to_owned());
        let settings = AwsSettings::new([("AWS_ENDPOINT_URL", endpoint)]);
        AllowAws::These(patterns.collect()).check(secret, &settings)
    }

    #[test]
    fn what_is_allowed_is_allowed_letter_by_letter_or_by_its_beginning() {
        for pattern in [
            "secretsmanager:shop/smtp",
            "secretsmanager:shop/*",
            "secretsmanager:*",
        ] {
            assert_eq!(check(&[pattern], &secret("shop/smtp", None)), Ok(()));
            assert_eq!(pattern.parse::<AwsPattern>().unwrap().to_string(), pattern);
        }
    }

    #[test]
    fn attack_a_document_that_reads_what_nobody_allowed() {
        let arn = "arn:aws:secretsmanager:eu-central-1:1:secret:shop/smtp-AbCdEf";
        for (patterns, id) in [
            (&[][..], "shop/smtp"),
            (&["ssm:*"], "shop/smtp"),
            (&["secretsmanager:shop/smtp"], "shop/smtp2"),
            (&["secretsmanager:shop/smtp"], "shop/SMTP"),
            (&["secretsmanager:shop/*"], "shop"),
            (&["secretsmanager:shop/*"], arn),
        ] {
            let error = check(patterns, &secret(id, None)).unwrap_err();
            assert!(error.to_string().contains("--allow-aws"), "{error}");
        }
    }

    #[test]
    fn attack_a_document_that_has_requests_signed_for_a_host_of_its_own() {
        let all = &["secretsmanager:*"];
        for endpoint in [
            "https://evil.example",
            "https://secretsmanager.eu-central-1.amazonaws.com.evil.example",
            "https://abc.execute-api.eu-central-1.amazonaws.com",
            "http://127.0.0.1:5001",
        ] {
            let error = check(all, &secret("smtp", Some(endpoint))).unwrap_err();
            assert!(error.to_string().contains("AWS_ENDPOINT_URL"), "{error}");
        }
        for endpoint in [
            "http://127.0.0.1:5000",
            "https://secretsmanager.eu-central-1.amazonaws.com",
            "https://vpce-1-a.secretsmanager.eu-central-1.vpce.amazonaws.com",
        ] {
            assert_eq!(check(all, &secret("smtp", Some(endpoint))), Ok(()));
        }
    }

    #[test]
    fn what_names_nothing_of_aws_is_no_pattern() {
        for text in [
            "",
            "shop/smtp",
            "s3:x",
            "ssm:",
            "ssm:a*b",
            "ssm:a b",
            "sts:*",
        ] {
            assert!(text.parse::<AwsPattern>().is_err(), "{text}");
        }
    }
}
