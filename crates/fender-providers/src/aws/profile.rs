//! The files that AWS's tools share: `~/.aws/credentials` and `~/.aws/config`. What a profile in them says, and nothing is asked yet.
//!
//! Understood are keys, and roles with the profile, the endpoint or the file that they are assumed from. A profile that wants
//! a program run, a person at a browser or a second factor is refused in words.
//!
//! <https://docs.aws.amazon.com/sdkref/latest/guide/file-format.html>

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use fender_identity::Secret;
use fender_runtime::file::{self, Others};

use super::keys::Keys;

/// The largest of these files.
pub(super) const LIMIT: u64 = 1024 * 1024;
/// How many roles one after the other.
const MOST_ROLES: usize = 5;

/// What a profile is, by its name.
#[derive(Debug, Default)]
pub(super) struct Profiles(BTreeMap<String, BTreeMap<String, Secret>>);

/// How a profile's credentials are come by: from `base`, then one role after the other.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) base: Base,
    pub(super) roles: Vec<Role>,
}

#[derive(Debug)]
pub(super) enum Base {
    Keys(Keys),
    Environment,
    Container,
    Instance,
    WebIdentity { role: Role, token: PathBuf },
}

/// A role to be assumed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Role {
    pub(super) arn: String,
    pub(super) session: Option<String>,
    pub(super) external_id: Option<String>,
    /// In seconds.
    pub(super) duration: Option<u32>,
}

/// What stands in both files; what is in the file of credentials counts more.
pub(super) fn read(
    credentials: Option<&Secret>,
    config: Option<&Secret>,
) -> Result<Profiles, String> {
    let mut profiles = Profiles::default();
    let of_config = |header: &str| match header.strip_prefix("profile") {
        Some(name) if name.starts_with([' ', '\t']) => {
            Some(name.trim().trim_matches('"').to_owned())
        }
        _ => (header == "default").then(|| header.to_owned()),
    };
    if let Some(text) = config {
        profiles
            .add(text, of_config)
            .map_err(|why| format!("config: {why}"))?;
    }
    if let Some(text) = credentials {
        let named = |header: &str| Some(header.to_owned());
        profiles
            .add(text, named)
            .map_err(|why| format!("credentials: {why}"))?;
    }
    Ok(profiles)
}

/// The files that profiles name in their turn. For the start, which reads before it is confined.
pub(super) fn files_named(files: &[Option<PathBuf>; 2]) -> Vec<PathBuf> {
    let [credentials, config] = files;
    let text = |path: &Option<PathBuf>| {
        let read = file::read(path.as_deref()?, LIMIT, Others::Whoever).ok()?;
        Some(Secret::new(read))
    };
    let profiles = read(text(credentials).as_ref(), text(config).as_ref()).unwrap_or_default();
    let named = profiles.0.values();
    let named = named.filter_map(|profile| profile.get("web_identity_token_file"));
    named
        .filter_map(|path| path.expose_str().map(PathBuf::from))
        .collect()
}

impl Profiles {
    fn add(&mut self, text: &Secret, name: impl Fn(&str) -> Option<String>) -> Result<(), String> {
        let text = text.expose_str().ok_or("it is not UTF-8")?;
        let mut section: Option<String> = None;
        for (number, line) in text.lines().enumerate() {
            // What is indented belongs to a setting that has parts, and none of those is ours.
            let nested = line.starts_with([' ', '\t']);
            let line = uncommented(line);
            if line.is_empty() || nested {
                continue;
            }
            if let Some(header) = line.strip_prefix('[') {
                let header = header
                    .strip_suffix(']')
                    .ok_or_else(|| format!("line {}: no `]`", number + 1))?;
                section = name(header.trim());
                if let Some(name) = &section {
                    self.0.entry(name.clone()).or_default();
                }
                continue;
            }
            let (key, value) = line
                .split_once('=')
                .ok_or_else(|| format!("line {}: neither a section nor a setting", number + 1))?;
            if let Some(profile) = section.as_ref().and_then(|name| self.0.get_mut(name)) {
                let value = Secret::from(value.trim().to_owned());
                profile.insert(key.trim().to_ascii_lowercase(), value);
            }
        }
        Ok(())
    }

    fn text(&self, profile: &str, key: &str) -> Option<&str> {
        let value = self.0.get(profile)?.get(key)?.expose_str()?;
        (!value.is_empty()).then_some(value)
    }

    pub(super) fn has(&self, profile: &str) -> bool {
        self.0.contains_key(profile)
    }

    pub(super) fn region(&self, profile: &str) -> Option<&str> {
        self.text(profile, "region")
    }

    /// How this profile's credentials are come by. None if it says nothing of any; one that is not there is an error.
    pub(super) fn plan(&self, name: &str) -> Result<Option<Plan>, String> {
        let mut roles = Vec::new();
        let mut seen = BTreeSet::new();
        let mut name = name;
        loop {
            let says = |key: &str| self.text(name, key);
            if !self.0.contains_key(name) {
                return Err(format!("there is no profile `{name}`"));
            }
            let own_keys = || -> Result<Option<Keys>, String> {
                let secret = |key: &str| says(key).map(|text| Secret::from(text.to_owned()));
                let (id, key) = (secret("aws_access_key_id"), secret("aws_secret_access_key"));
                match (id, key) {
                    (Some(id), Some(key)) => {
                        let made = Keys::new(id, key, secret("aws_session_token"));
                        made.map(Some)
                            .map_err(|why| format!("profile `{name}`: {why}"))
                    }
                    (None, None) => Ok(None),
                    _ => Err(format!(
                        "profile `{name}` has one of `aws_access_key_id` and `aws_secret_access_key` without the other"
                    )),
                }
            };
            let again = !seen.insert(name.to_owned());
            let role = says("role_arn").filter(|_| !again);
            let Some(arn) = role else {
                // A profile that names itself means its own keys.
                if let Some(keys) = own_keys()? {
                    roles.reverse();
                    let base = Base::Keys(keys);
                    return Ok(Some(Plan { base, roles }));
                }
                self.refuse_others(name)?;
                return match (roles.is_empty(), again) {
                    (true, _) => Ok(None),
                    (false, true) => Err(format!("profile `{name}` is assumed from itself")),
                    (false, false) => Err(format!("profile `{name}` has no credentials")),
                };
            };
            if says("mfa_serial").is_some() {
                return Err(format!(
                    "profile `{name}` wants a second factor (`mfa_serial`), and nobody is here to give one"
                ));
            }
            let duration = says("duration_seconds");
            let duration = duration.map(str::parse).transpose();
            let role = Role {
                arn: arn.to_owned(),
                session: says("role_session_name").map(ToOwned::to_owned),
                external_id: says("external_id").map(ToOwned::to_owned),
                duration: duration
                    .map_err(|_| format!("profile `{name}`: `duration_seconds` is no number"))?,
            };
            let ways = (
                says("web_identity_token_file"),
                says("source_profile"),
                says("credential_source"),
            );
            let base = match ways {
                (Some(token), None, None) => Base::WebIdentity {
                    role,
                    token: token.into(),
                },
                (None, Some(source), None) => {
                    roles.push(role);
                    if roles.len() > MOST_ROLES {
                        return Err(format!("more than {MOST_ROLES} roles one after the other"));
                    }
                    name = source;
                    continue;
                }
                (None, None, Some(source)) => {
                    roles.push(role);
                    match source {
                        "Environment" => Base::Environment,
                        "EcsContainer" => Base::Container,
                        "Ec2InstanceMetadata" => Base::Instance,
                        _ => {
                            return Err(format!(
                                "profile `{name}`: nobody knows that `credential_source`"
                            ));
                        }
                    }
                }
                _ => {
                    return Err(format!(
                        "profile `{name}` has a `role_arn`, which wants one of `source_profile`, `credential_source` and `web_identity_token_file`"
                    ));
                }
            };
            roles.reverse();
            return Ok(Some(Plan { base, roles }));
        }
    }

    /// Ways that are not for a program that runs by itself.
    fn refuse_others(&self, name: &str) -> Result<(), String> {
        let says = |key: &str| self.text(name, key).is_some();
        if says("credential_process") {
            return Err(format!(
                "profile `{name}` wants a program run (`credential_process`), which Fender does not; have its output served, or written into a \
                 file of credentials"
            ));
        }
        if says("sso_session") || says("sso_start_url") || says("login_session") {
            return Err(format!(
                "profile `{name}` is for a person at a browser (IAM Identity Center), and nobody is here; give Fender a role"
            ));
        }
        Ok(())
    }
}

/// Without what follows a `#` or `;` at the beginning or after a blank.
fn uncommented(line: &str) -> &str {
    let marks = |at: &usize| {
        let before = line
            .get(..*at)
            .and_then(|before| before.chars().next_back());
        before.is_none_or(|before| before == ' ' || before == '\t')
    };
    let mut found = line.match_indices(['#', ';']).map(|(at, _)| at);
    let end = found.find(marks).unwrap_or(line.len());
    line.get(..end).unwrap_or_default().trim()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn profiles(credentials: &str, config: &str) -> Profiles {
        let secret = |text: &str| Secret::from(text.to_owned());
        read(Some(&secret(credentials)), Some(&secret(config))).unwrap()
    }

    fn plan(config: &str, name: &str) -> Result<Option<Plan>, String> {
        let keys =
            "[base]\naws_access_key_id = AKIDBASE\naws_secret_access_key = hunter2 # not this\n";
        profiles(keys, config).plan(name)
    }

    #[test]
    fn keys_are_read_and_the_file_of_credentials_counts_more() {
        let read = profiles(
            "; comment\n[default]\naws_access_key_id=AKIDCRED\naws_secret_access_key = a#b\n",
            "[default]\naws_access_key_id = AKIDCONF\nregion = eu-central-1 ; here\ns3 =\n  region = nested\n\n[services x]\nregion = none\n",
        );
        assert_eq!(read.region("default"), Some("eu-central-1"));
        let Some(Plan {
            base: Base::Keys(keys),
            roles,
        }) = read.plan("default").unwrap()
        else {
            panic!("{read:?}")
        };
        assert!(roles.is_empty());
        assert_eq!(keys.id.expose_str(), Some("AKIDCRED"));
        assert_eq!(keys.secret.expose_str(), Some("a#b"));
        assert!(!format!("{read:?}").contains("a#b"));
    }

    #[test]
    fn roles_are_assumed_one_after_the_other_from_the_keys_on() {
        let config = "[profile one]\nrole_arn = r1\nsource_profile = base\nexternal_id = e\nduration_seconds = 900\n\
                      [profile \"two\"]\nrole_arn = r2\nsource_profile = one\n";
        let Some(Plan {
            base: Base::Keys(keys),
            roles,
        }) = plan(config, "two").unwrap()
        else {
            panic!()
        };
        assert_eq!(keys.secret.expose_str(), Some("hunter2"));
        let arns: Vec<_> = roles.iter().map(|role| role.arn.as_str()).collect();
        assert_eq!(arns, ["r1", "r2"]);
        assert_eq!(
            (roles[0].external_id.as_deref(), roles[0].duration),
            (Some("e"), Some(900))
        );
    }

    #[test]
    fn a_role_may_come_from_a_file_or_from_where_this_runs() {
        let config = "[profile w]\nrole_arn = r\nweb_identity_token_file = /t\n\
                      [profile i]\nrole_arn = r\ncredential_source = Ec2InstanceMetadata\n\
                      [profile self]\nrole_arn = r\nsource_profile = self\naws_access_key_id = A\naws_secret_access_key = b\n\
                      [profile empty]\nregion = eu-central-1\n";
        let of = |name: &str| plan(config, name).unwrap();
        assert!(
            matches!(of("w"), Some(Plan { base: Base::WebIdentity { .. }, roles }) if roles.is_empty())
        );
        assert!(matches!(of("i"), Some(Plan { base: Base::Instance, roles }) if roles.len() == 1));
        assert!(
            matches!(of("self"), Some(Plan { base: Base::Keys(_), roles }) if roles.len() == 1)
        );
        assert!(of("empty").is_none());
    }

    #[test]
    fn what_wants_a_person_or_a_program_is_refused_in_words() {
        let mut chain = String::new();
        for number in 0..9 {
            chain += &format!(
                "[profile p{number}]\nrole_arn = r\nsource_profile = p{}\n",
                number + 1
            );
        }
        for (config, said) in [
            (
                "[profile x]\ncredential_process = /bin/x --password hunter2\n",
                "credential_process",
            ),
            ("[profile x]\nsso_session = s\n", "Identity Center"),
            (
                "[profile x]\nrole_arn = r\nsource_profile = base\nmfa_serial = m\n",
                "second factor",
            ),
            ("[profile x]\nrole_arn = r\n", "wants one of"),
            (
                "[profile x]\nrole_arn = r\ncredential_source = Wherever\n",
                "credential_source",
            ),
            (
                "[profile x]\nrole_arn = r\nsource_profile = absent\n",
                "no profile `absent`",
            ),
            (
                "[profile x]\nrole_arn = r\nsource_profile = x\n",
                "from itself",
            ),
            ("[profile x]\naws_access_key_id = A\n", "without the other"),
            (
                "[profile x]\nrole_arn = r\nsource_profile = y\n[profile y]\nrole_arn = r\nsource_profile = x\n",
                "from itself",
            ),
            (&chain.replace("p0]", "x]"), "more than 5"),
            ("", "no profile `x`"),
        ] {
            let error = plan(config, "x").unwrap_err();
            assert!(
                error.contains(said) && !error.contains("hunter2"),
                "{error}"
            );
        }
    }

    #[test]
    fn a_file_that_is_none_names_its_line_and_nothing_of_it() {
        let broken = Secret::from("[default]\nhunter2\n".to_owned());
        let error = read(Some(&broken), None).unwrap_err();
        assert_eq!(
            error,
            "credentials: line 2: neither a section nor a setting"
        );
        let open = Secret::from("[hunter2\n".to_owned());
        assert_eq!(
            read(None, Some(&open)).unwrap_err(),
            "config: line 1: no `]`"
        );
    }
}
