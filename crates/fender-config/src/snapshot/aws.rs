//! Where a secret lies in AWS. Never a key: those are this machine's, and no document names them.

use std::fmt;
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use crate::address::StoreUrl;

/// A secret of Secrets Manager or a parameter of Systems Manager, or one key of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct AwsSecret {
    pub store: AwsStore,
    pub at: AwsPlace,
    /// Of the JSON object that is there, this one. None: the whole, as it is.
    pub key: Option<String>,
    /// How often it is asked for.
    pub refresh: Duration,
}

impl AwsSecret {
    /// How often it is asked for where nothing is said: as AWS's own agent does, because each question is paid for.
    pub const REFRESH: Duration = Duration::from_secs(5 * 60);

    /// Every file that the document names.
    pub fn files(&self) -> Vec<PathBuf> {
        self.store.roots.iter().cloned().collect()
    }

    /// An endpoint that the document names and that is not AWS's own for that service and region.
    pub fn foreign_endpoint(&self) -> Option<&StoreUrl> {
        let service = self.at.service();
        let own = |endpoint: &&StoreUrl| self.store.region.owns(service, endpoint);
        self.store.endpoint.as_ref().filter(|url| !own(url))
    }
}

/// A region, and where in it is asked.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AwsStore {
    pub region: AwsRegion,
    /// None: AWS's own, or what this machine says. It has no path.
    pub endpoint: Option<StoreUrl>,
    /// Who vouches for the endpoint, in PEM. None: whom this machine believes.
    pub roots: Option<PathBuf>,
}

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AwsPlace {
    /// Of Secrets Manager.
    Secret {
        id: AwsSecretId,
        version: AwsSecretVersion,
    },
    /// Of Systems Manager's Parameter Store; decrypted where it is encrypted.
    Parameter {
        name: AwsParameterName,
        version: AwsParameterVersion,
    },
}

impl AwsPlace {
    pub fn service(&self) -> AwsService {
        match self {
            Self::Secret { .. } => AwsService::SecretsManager,
            Self::Parameter { .. } => AwsService::Ssm,
        }
    }

    /// The name or ARN, as it is written.
    pub fn name(&self) -> &str {
        match self {
            Self::Secret { id, .. } => id.as_str(),
            Self::Parameter { name, .. } => name.as_str(),
        }
    }
}

impl fmt::Display for AwsPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Secret { id, version } => match version {
                AwsSecretVersion::Stage(stage) if stage == AwsSecretVersion::CURRENT => id.fmt(f),
                AwsSecretVersion::Stage(stage) => write!(f, "{id} ({stage})"),
                AwsSecretVersion::Id(version) => write!(f, "{id} (version {version})"),
            },
            Self::Parameter { name, version } => match version {
                AwsParameterVersion::Newest => name.fmt(f),
                AwsParameterVersion::Number(number) => write!(f, "{name} (version {number})"),
                AwsParameterVersion::Label(label) => write!(f, "{name} (label {label})"),
            },
        }
    }
}

/// Which one of a secret's values.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AwsSecretVersion {
    /// The one that carries this staging label.
    Stage(String),
    Id(String),
}

impl AwsSecretVersion {
    /// The label of the newest.
    pub const CURRENT: &str = "AWSCURRENT";
    const LONGEST_STAGE: usize = 256;
    const ID: std::ops::RangeInclusive<usize> = 32..=64;

    pub fn stage(text: &str) -> Result<Self, InvalidAwsName> {
        let fits = (1..=Self::LONGEST_STAGE).contains(&text.len());
        let graphic = text.bytes().all(|byte| byte.is_ascii_graphic());
        let made = (fits && graphic).then(|| Self::Stage(text.to_owned()));
        made.ok_or_else(|| InvalidAwsName::new(text, "a staging label"))
    }

    pub fn id(text: &str) -> Result<Self, InvalidAwsName> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        let made = Self::ID.contains(&text.len()) && text.bytes().all(plain);
        let made = made.then(|| Self::Id(text.to_owned()));
        made.ok_or_else(|| InvalidAwsName::new(text, "the id of a version"))
    }
}

/// Which one of a parameter's values.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AwsParameterVersion {
    Newest,
    Number(NonZeroU64),
    Label(String),
}

impl AwsParameterVersion {
    const LONGEST_LABEL: usize = 100;

    pub fn label(text: &str) -> Result<Self, InvalidAwsName> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        let fits = (1..=Self::LONGEST_LABEL).contains(&text.len());
        // One that begins with a digit would be taken for a number.
        let begins = !text.starts_with(|first: char| first.is_ascii_digit());
        let made = fits && begins && text.bytes().all(allowed);
        let made = made.then(|| Self::Label(text.to_owned()));
        made.ok_or_else(|| InvalidAwsName::new(text, "a label of a parameter"))
    }
}

/// An API of AWS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AwsService {
    SecretsManager,
    Ssm,
    Sts,
}

impl AwsService {
    /// As it stands in host names and signatures.
    pub fn name(self) -> &'static str {
        match self {
            Self::SecretsManager => "secretsmanager",
            Self::Ssm => "ssm",
            Self::Sts => "sts",
        }
    }
}

/// A region: `eu-central-1`. It becomes part of a host name and can be nothing else in one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AwsRegion(String);

/// By what the names of regions begin, the domain of a partition and the one of its endpoints with IPv6.
const PARTITIONS: [(&str, &str, &str); 7] = [
    ("cn-", "amazonaws.com.cn", "api.amazonwebservices.com.cn"),
    ("eusc-", "amazonaws.eu", "api.amazonwebservices.eu"),
    ("us-iso-", "c2s.ic.gov", "api.aws.ic.gov"),
    ("us-isob-", "sc2s.sgov.gov", "api.aws.scloud"),
    ("eu-isoe-", "cloud.adc-e.uk", "api.cloud-aws.adc-e.uk"),
    ("us-isof-", "csp.hci.ic.gov", "api.aws.hci.ic.gov"),
    ("", "amazonaws.com", "api.aws"),
];

impl AwsRegion {
    const LONGEST: usize = 32;

    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn domains(&self) -> (&'static str, &'static str) {
        let mut partitions = PARTITIONS.iter();
        let found = partitions.find(|(begin, ..)| self.0.starts_with(begin));
        found.map_or(("amazonaws.com", "api.aws"), |(_, plain, dual)| {
            (plain, dual)
        })
    }

    /// The host at which AWS serves an API in this region.
    pub fn host(&self, service: AwsService) -> String {
        format!("{}.{self}.{}", service.name(), self.domains().0)
    }

    /// Whether AWS itself answers there: at the API's own host in this region, also with FIPS or IPv6, or at an interface endpoint of
    /// a VPC. Not every host below AWS's domain is: what its customers run has names there, too, and certificates for them.
    pub fn owns(&self, service: AwsService, endpoint: &StoreUrl) -> bool {
        let StoreUrl::Https(url) = endpoint else {
            return false;
        };
        let host = url.authority();
        let (plain, dual) = self.domains();
        let name = service.name();
        let known = [
            format!("{name}.{self}.{plain}"),
            format!("{name}-fips.{self}.{plain}"),
            format!("{name}.{self}.{dual}"),
            format!("{name}-fips.{self}.{dual}"),
        ];
        let of_vpc = |host: &str| {
            let first = host.strip_suffix(&format!(".{name}.{self}.vpce.{plain}"));
            first.is_some_and(|first| first.starts_with("vpce-") && !first.contains('.'))
        };
        known.contains(&host) || of_vpc(&host)
    }
}

impl FromStr for AwsRegion {
    type Err = InvalidAwsName;

    fn from_str(text: &str) -> Result<Self, InvalidAwsName> {
        let word = |part: &str| {
            !part.is_empty()
                && part
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
        };
        let parts: Vec<_> = text.split('-').collect();
        let numbered = parts
            .last()
            .is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit()));
        let lettered = text.starts_with(|first: char| first.is_ascii_lowercase());
        let right = text.len() <= Self::LONGEST
            && parts.len() >= 3
            && numbered
            && lettered
            && parts.iter().all(|part| word(part));
        let made = right.then(|| Self(text.to_owned()));
        made.ok_or_else(|| InvalidAwsName::new(text, "a region of AWS"))
    }
}

impl fmt::Display for AwsRegion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A name or an ARN in Secrets Manager.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AwsSecretId(String);

impl AwsSecretId {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for AwsSecretId {
    type Err = InvalidAwsName;

    fn from_str(text: &str) -> Result<Self, InvalidAwsName> {
        let made = is_name(text, b"/_+=.@-!").then(|| Self(text.to_owned()));
        made.ok_or_else(|| InvalidAwsName::new(text, "the name or ARN of a secret"))
    }
}

impl fmt::Display for AwsSecretId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A name or an ARN in Parameter Store, without a version.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AwsParameterName(String);

impl AwsParameterName {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for AwsParameterName {
    type Err = InvalidAwsName;

    fn from_str(text: &str) -> Result<Self, InvalidAwsName> {
        let made = is_name(text, b"/_.-").then(|| Self(text.to_owned()));
        made.ok_or_else(|| InvalidAwsName::new(text, "the name or ARN of a parameter"))
    }
}

impl fmt::Display for AwsParameterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Letters, digits and `marks`; in an ARN, the five colons before its resource, and one more in it.
fn is_name(text: &str, marks: &[u8]) -> bool {
    const LONGEST: usize = 2048;
    let arn = text.starts_with("arn:");
    let colons = text.bytes().filter(|byte| *byte == b':').count();
    let plain =
        |byte: u8| byte.is_ascii_alphanumeric() || marks.contains(&byte) || (byte == b':' && arn);
    (1..=LONGEST).contains(&text.len())
        && text.bytes().all(plain)
        && (!arn || (5..=6).contains(&colons))
}

/// Nothing in AWS is called so.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` cannot be {what}")]
pub struct InvalidAwsName {
    text: String,
    what: &'static str,
}

impl InvalidAwsName {
    fn new(text: &str, what: &'static str) -> Self {
        let text = text.escape_default().to_string();
        Self { text, what }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_region_knows_where_its_apis_are() {
        for (region, host) in [
            ("eu-central-1", "ssm.eu-central-1.amazonaws.com"),
            ("us-gov-west-1", "ssm.us-gov-west-1.amazonaws.com"),
            ("cn-north-1", "ssm.cn-north-1.amazonaws.com.cn"),
            ("us-isob-east-1", "ssm.us-isob-east-1.sc2s.sgov.gov"),
            ("eusc-de-east-1", "ssm.eusc-de-east-1.amazonaws.eu"),
        ] {
            let region: AwsRegion = region.parse().unwrap();
            assert_eq!(region.host(AwsService::Ssm), host);
        }
    }

    #[test]
    fn attack_a_region_that_makes_another_host() {
        for text in [
            "",
            "eu",
            "eu-central",
            "eu-central-",
            "-central-1",
            "eu--1",
            "eu-central-1.evil.example",
            "evil.example/eu-central-1",
            "eu-central-1@evil",
            "EU-CENTRAL-1",
            "eu-central-1\n",
            "1-1-1",
            "a-a-00000000000000000000000000000000",
        ] {
            assert!(text.parse::<AwsRegion>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn an_endpoint_of_aws_itself_needs_nobodys_leave() {
        let region: AwsRegion = "eu-central-1".parse().unwrap();
        for host in [
            "secretsmanager.eu-central-1.amazonaws.com",
            "secretsmanager-fips.eu-central-1.amazonaws.com",
            "secretsmanager.eu-central-1.api.aws",
            "vpce-0123abcd-xyz.secretsmanager.eu-central-1.vpce.amazonaws.com",
        ] {
            let url: StoreUrl = format!("https://{host}").parse().unwrap();
            assert!(region.owns(AwsService::SecretsManager, &url), "{host}");
            assert!(!region.owns(AwsService::Ssm, &url), "{host}");
        }
    }

    #[test]
    fn attack_an_endpoint_below_awss_domain_that_a_customer_runs() {
        let region: AwsRegion = "eu-central-1".parse().unwrap();
        for url in [
            "https://abc.execute-api.eu-central-1.amazonaws.com",
            "https://bucket.s3.amazonaws.com",
            "https://x.secretsmanager.eu-central-1.amazonaws.com",
            "https://secretsmanager.eu-central-1.amazonaws.com.evil.example",
            "https://secretsmanager.eu-west-1.amazonaws.com",
            "https://secretsmanager.eu-central-1.amazonaws.com:8443",
            "https://vpce-1.vpce-svc-2.eu-central-1.vpce.amazonaws.com",
            "https://evil.vpce-1.secretsmanager.eu-central-1.vpce.amazonaws.com",
            "https://evil-secretsmanager.eu-central-1.amazonaws.com",
            "https://127.0.0.1",
            "http://127.0.0.1:5000",
        ] {
            let parsed: StoreUrl = url.parse().unwrap();
            assert!(!region.owns(AwsService::SecretsManager, &parsed), "{url}");
        }
    }

    #[test]
    fn names_are_what_aws_allows() {
        let arn = "arn:aws:secretsmanager:eu-central-1:123456789012:secret:shop/smtp-AbCdEf";
        for id in ["shop/smtp", "rds!db-1", "a+b=c.d@e_f-1", arn] {
            assert!(id.parse::<AwsSecretId>().is_ok(), "{id}");
        }
        let arn = "arn:aws:ssm:eu-central-1:123456789012:parameter/shop/smtp";
        for name in ["/shop/smtp", "smtp", "/aws/reference/x", arn] {
            assert!(name.parse::<AwsParameterName>().is_ok(), "{name}");
        }
        let long = "a".repeat(2049);
        for text in ["", "a b", "a\nb", "a:1", "é", "a\"", "arn:aws", &long] {
            assert!(text.parse::<AwsSecretId>().is_err(), "{text:?}");
            assert!(text.parse::<AwsParameterName>().is_err(), "{text:?}");
        }
        assert!(AwsParameterVersion::label("prod").is_ok());
        for label in ["", "1prod", "a:b", "a b"] {
            assert!(AwsParameterVersion::label(label).is_err(), "{label:?}");
        }
        assert!(AwsSecretVersion::id("4e3a1cdb-e996-464d-b4a6-955e15a09b44").is_ok());
        assert!(AwsSecretVersion::id("1").is_err());
        assert!(AwsSecretVersion::stage("").is_err());
    }
}
