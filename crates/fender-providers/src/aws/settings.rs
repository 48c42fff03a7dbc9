//! What the variables of AWS's SDKs say to this process. They are the operator's: no document sets one, and without them there is nothing
//! to ask AWS with but the instance's own role.
//!
//! They are read once, at the start. Those that hold a secret are taken out of the environment, so that nothing this process
//! starts inherits them.
//!
//! <https://docs.aws.amazon.com/sdkref/latest/guide/settings-reference.html>

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use fender_config::StoreUrl;
use fender_config::snapshot::{AwsRegion, AwsService};
use fender_identity::Secret;

use super::profile;

pub(super) const ACCESS_KEY_ID: &str = "AWS_ACCESS_KEY_ID";
pub(super) const SECRET_ACCESS_KEY: &str = "AWS_SECRET_ACCESS_KEY";
pub(super) const SESSION_TOKEN: &str = "AWS_SESSION_TOKEN";
pub(super) const AUTHORIZATION_TOKEN: &str = "AWS_CONTAINER_AUTHORIZATION_TOKEN";
pub(super) const AUTHORIZATION_TOKEN_FILE: &str = "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE";
pub(super) const RELATIVE_URI: &str = "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI";
pub(super) const FULL_URI: &str = "AWS_CONTAINER_CREDENTIALS_FULL_URI";
pub(super) const ROLE_ARN: &str = "AWS_ROLE_ARN";
pub(super) const ROLE_SESSION_NAME: &str = "AWS_ROLE_SESSION_NAME";
pub(super) const WEB_IDENTITY_TOKEN_FILE: &str = "AWS_WEB_IDENTITY_TOKEN_FILE";
pub(super) const PROFILE: &str = "AWS_PROFILE";
pub(super) const INSTANCE_DISABLED: &str = "AWS_EC2_METADATA_DISABLED";
pub(super) const INSTANCE_ENDPOINT: &str = "AWS_EC2_METADATA_SERVICE_ENDPOINT";
const CREDENTIALS_FILE: &str = "AWS_SHARED_CREDENTIALS_FILE";
const CONFIG_FILE: &str = "AWS_CONFIG_FILE";
const REGION: &str = "AWS_REGION";
const DEFAULT_REGION: &str = "AWS_DEFAULT_REGION";
const CA_BUNDLE: &str = "AWS_CA_BUNDLE";
const ENDPOINT: &str = "AWS_ENDPOINT_URL";
const IGNORE_ENDPOINTS: &str = "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS";
const HOME: &str = "HOME";

/// What is set of the variables of AWS's SDKs. Clones are the same.
#[derive(Clone, Default)]
pub struct AwsSettings(Arc<BTreeMap<&'static str, Secret>>);

impl AwsSettings {
    /// Those that hold a secret: to be taken out of the environment.
    pub const SECRETS: [&str; 4] = [
        ACCESS_KEY_ID,
        SECRET_ACCESS_KEY,
        SESSION_TOKEN,
        AUTHORIZATION_TOKEN,
    ];
    /// The others.
    pub const OTHERS: [&str; 20] = [
        ROLE_ARN,
        ROLE_SESSION_NAME,
        WEB_IDENTITY_TOKEN_FILE,
        PROFILE,
        CREDENTIALS_FILE,
        CONFIG_FILE,
        RELATIVE_URI,
        FULL_URI,
        AUTHORIZATION_TOKEN_FILE,
        INSTANCE_DISABLED,
        INSTANCE_ENDPOINT,
        REGION,
        DEFAULT_REGION,
        CA_BUNDLE,
        ENDPOINT,
        "AWS_ENDPOINT_URL_SECRETS_MANAGER",
        "AWS_ENDPOINT_URL_SSM",
        "AWS_ENDPOINT_URL_STS",
        IGNORE_ENDPOINTS,
        HOME,
    ];

    /// These, with what they hold. One that is set to nothing is not set.
    pub fn new(variables: impl IntoIterator<Item = (&'static str, Secret)>) -> Self {
        let set = variables.into_iter();
        Self(Arc::new(
            set.filter(|(_, value)| !value.is_empty()).collect(),
        ))
    }

    /// Every file that is read for credentials or roots, as far as it can be told now: what a confined process must be able to read.
    /// Reads the profiles, which name files themselves.
    pub fn files(&self) -> Vec<PathBuf> {
        let named = [WEB_IDENTITY_TOKEN_FILE, AUTHORIZATION_TOKEN_FILE, CA_BUNDLE];
        let named = named.into_iter().filter_map(|name| self.path(name));
        let profiles = self.profile_files().into_iter().flatten();
        // One in its usual place need not be there.
        let profiles = profiles.filter(|file| file.is_file());
        let files: Vec<_> = named.chain(profiles).collect();
        let in_profiles = profile::files_named(&self.profile_files());
        files.into_iter().chain(in_profiles).collect()
    }

    /// The file of credentials and the file of configuration, which need not be there.
    pub(super) fn profile_files(&self) -> [Option<PathBuf>; 2] {
        let usual = |name: &str| Some(self.path(HOME)?.join(".aws").join(name));
        [
            self.path(CREDENTIALS_FILE).or_else(|| usual("credentials")),
            self.path(CONFIG_FILE).or_else(|| usual("config")),
        ]
    }

    /// Whether somebody says that there are profiles.
    pub(super) fn names_profiles(&self) -> bool {
        let names = [PROFILE, CREDENTIALS_FILE];
        names.iter().any(|name| self.0.contains_key(name))
    }

    pub(super) fn secret(&self, name: &str) -> Option<&Secret> {
        self.0.get(name)
    }

    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.secret(name)?.expose_str()
    }

    pub(super) fn path(&self, name: &str) -> Option<PathBuf> {
        self.text(name).map(PathBuf::from)
    }

    pub(super) fn is_true(&self, name: &str) -> bool {
        self.text(name)
            .is_some_and(|text| text.eq_ignore_ascii_case("true"))
    }

    /// Who vouches for servers, if somebody says so.
    pub(super) fn roots(&self) -> Option<PathBuf> {
        self.path(CA_BUNDLE)
    }

    /// Which region this machine is in, if somebody says so.
    pub(super) fn region(&self) -> Option<Result<AwsRegion, String>> {
        let text = self.text(REGION).or_else(|| self.text(DEFAULT_REGION))?;
        Some(text.parse().map_err(|error| format!("{REGION}: {error}")))
    }

    /// Where a service is asked instead of at AWS's own, if somebody says so.
    pub(super) fn endpoint(&self, service: AwsService) -> Option<Result<StoreUrl, String>> {
        if self.is_true(IGNORE_ENDPOINTS) {
            return None;
        }
        let own = match service {
            AwsService::SecretsManager => "AWS_ENDPOINT_URL_SECRETS_MANAGER",
            AwsService::Ssm => "AWS_ENDPOINT_URL_SSM",
            AwsService::Sts => "AWS_ENDPOINT_URL_STS",
        };
        let name = [own, ENDPOINT]
            .into_iter()
            .find(|name| self.0.contains_key(name))?;
        let text = self.text(name).unwrap_or_default();
        let parsed = text.parse::<StoreUrl>();
        Some(match parsed {
            Ok(url) if url.path().is_empty() => Ok(url),
            Ok(_) => Err(format!(
                "{name}: the APIs of AWS are at the root of an endpoint"
            )),
            Err(error) => Err(format!("{name}: {error}")),
        })
    }
}

impl fmt::Debug for AwsSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(set: &[(&'static str, &str)]) -> AwsSettings {
        let secret = |text: &&str| Secret::from((*text).to_owned());
        AwsSettings::new(set.iter().map(|(name, value)| (*name, secret(value))))
    }

    #[test]
    fn a_services_own_endpoint_comes_before_that_of_all() {
        let set = settings(&[
            (ENDPOINT, "http://127.0.0.1:5000"),
            ("AWS_ENDPOINT_URL_STS", "https://sts.internal/"),
        ]);
        let at = |service| set.endpoint(service).unwrap().unwrap().to_string();
        assert_eq!(at(AwsService::Sts), "https://sts.internal");
        assert_eq!(at(AwsService::Ssm), "http://127.0.0.1:5000");
        let ignored = settings(&[
            (ENDPOINT, "http://127.0.0.1:5000"),
            (IGNORE_ENDPOINTS, "TRUE"),
        ]);
        assert_eq!(ignored.endpoint(AwsService::Ssm), None);
        for wrong in ["http://aws.internal", "https://aws.internal/x", "aws"] {
            let error = settings(&[(ENDPOINT, wrong)]).endpoint(AwsService::Ssm);
            let error = error.unwrap().unwrap_err();
            assert!(error.contains(ENDPOINT), "{error}");
        }
    }

    #[test]
    fn what_is_set_to_nothing_is_not_set_and_nothing_is_shown() {
        let set = settings(&[(SECRET_ACCESS_KEY, "hunter2"), (PROFILE, "")]);
        assert!(!set.names_profiles());
        assert_eq!(format!("{set:?}"), r#"{"AWS_SECRET_ACCESS_KEY"}"#);
    }

    #[test]
    fn every_file_of_the_chain_is_named() {
        let home = tempfile::tempdir().unwrap();
        let home = home.path();
        std::fs::create_dir(home.join(".aws")).unwrap();
        let set = settings(&[
            (HOME, home.to_str().unwrap()),
            (WEB_IDENTITY_TOKEN_FILE, "/token"),
            (CA_BUNDLE, "/ca.pem"),
        ]);
        let fixed = ["/token", "/ca.pem"].map(PathBuf::from);
        assert_eq!(set.files(), fixed);
        let config = "[profile p]\nrole_arn = r\nweb_identity_token_file = /in-profile\n";
        std::fs::write(home.join(".aws/config"), config).unwrap();
        let [one, two] = fixed;
        let all = [one, two, home.join(".aws/config"), "/in-profile".into()];
        assert_eq!(set.files(), all);
    }
}
