//! TLS parameters as they are written: some of them, at several places. The most specific place wins, field by field:
//! a port over its workload, that over its namespace, that over the mesh. At one place what is written out wins over
//! the profile that is named there.

use std::collections::BTreeMap;

use fender_identity::tls::{CipherSuite, Group, SessionResumption, TlsProfile, TlsVersion};

/// What one place says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsRule {
    /// One of the mesh's profiles.
    pub profile: Option<String>,
    pub parameters: TlsParameters,
}

/// What is not named is left as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsParameters {
    pub minimum: Option<TlsVersion>,
    pub cipher_suites: Option<Vec<CipherSuite>>,
    pub groups: Option<Vec<Group>>,
    pub resumption: Option<SessionResumption>,
}

/// Profiles by name.
pub type TlsProfiles = BTreeMap<String, TlsParameters>;

impl TlsParameters {
    fn over(&self, general: &mut TlsProfile) {
        if let Some(minimum) = self.minimum {
            general.minimum = minimum;
        }
        if let Some(suites) = &self.cipher_suites {
            general.cipher_suites.clone_from(suites);
        }
        if let Some(groups) = &self.groups {
            general.groups.clone_from(groups);
        }
        if let Some(resumption) = self.resumption {
            general.resumption = resumption;
        }
    }
}

impl TlsRule {
    /// What holds at this place, given what holds around it.
    pub(crate) fn over(&self, profiles: &TlsProfiles, general: &TlsProfile) -> TlsProfile {
        let mut effective = general.clone();
        let named = self.profile.as_ref().and_then(|name| profiles.get(name));
        for parameters in named.into_iter().chain([&self.parameters]) {
            parameters.over(&mut effective);
        }
        effective
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_specific_place_wins_field_by_field() {
        let minimum = |minimum| TlsParameters {
            minimum: Some(minimum),
            ..TlsParameters::default()
        };
        let groups = |groups: &[Group]| TlsParameters {
            groups: Some(groups.to_vec()),
            ..TlsParameters::default()
        };
        let profiles = TlsProfiles::from([
            ("old".to_owned(), minimum(TlsVersion::Tls12)),
            ("narrow".to_owned(), groups(&[Group::P256])),
        ]);
        let rule = |profile: &str, parameters: TlsParameters| TlsRule {
            profile: (!profile.is_empty()).then(|| profile.to_owned()),
            parameters,
        };
        let mesh = rule("old", groups(&[Group::P384])).over(&profiles, &TlsProfile::default());
        assert_eq!(mesh.minimum, TlsVersion::Tls12);
        assert_eq!(mesh.groups, [Group::P384]);
        // A profile that says nothing of a field leaves it as it is.
        let namespace = rule("narrow", TlsParameters::default()).over(&profiles, &mesh);
        assert_eq!(namespace.minimum, TlsVersion::Tls12);
        assert_eq!(namespace.groups, [Group::P256]);
        // What is written out wins over the profile beside it.
        let port = rule("old", minimum(TlsVersion::Tls13)).over(&profiles, &namespace);
        assert_eq!(port.minimum, TlsVersion::Tls13);
        assert_eq!(port.groups, [Group::P256]);
        assert_eq!(port.cipher_suites, TlsProfile::default().cipher_suites);
    }
}
