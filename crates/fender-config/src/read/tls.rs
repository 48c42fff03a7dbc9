//! TLS parameters: what is written at one place, and what comes of it together with the places around it.

use fender_identity::tls::{CipherSuite, TlsProfile, Unusable};

use super::NAME_HELP;
use crate::documents::{TlsParameters, TlsProfiles, TlsRule};
use crate::name::check_label;
use crate::raw;
use crate::suggest::{either, nearest};
use crate::yaml::{At, Choice, Reader, Word};

/// What one place says.
pub(super) fn rule(reader: &mut Reader<'_>, written: Option<&At<raw::Tls>>) -> TlsRule {
    let Some(raw::Tls {
        profile,
        minimum,
        cipher_suites,
        groups,
        resumption,
    }) = written.map(|at| &at.value)
    else {
        return TlsRule::default();
    };
    TlsRule {
        profile: profile.as_ref().map(|at| at.value.clone()),
        parameters: TlsParameters {
            minimum: minimum.as_ref().and_then(|at| reader.choose("minimum", at)),
            cipher_suites: suites(reader, cipher_suites.as_ref()),
            groups: list(reader, "groups", groups.as_ref()),
            resumption: resumption
                .as_ref()
                .and_then(|at| reader.choose("resumption", at)),
        },
    }
}

/// The named profiles.
pub(super) fn profiles(reader: &mut Reader<'_>, written: &[At<raw::TlsProfile>]) -> TlsProfiles {
    let mut profiles = TlsProfiles::new();
    for raw::TlsProfile {
        name,
        minimum,
        cipher_suites,
        groups,
        resumption,
    } in written.iter().map(|at| &at.value)
    {
        reader.take(
            name,
            "fender::bad-name",
            NAME_HELP,
            check_label(&name.value),
        );
        let parameters = TlsParameters {
            minimum: minimum.as_ref().and_then(|at| reader.choose("minimum", at)),
            cipher_suites: suites(reader, cipher_suites.as_ref()),
            groups: list(reader, "groups", groups.as_ref()),
            resumption: resumption
                .as_ref()
                .and_then(|at| reader.choose("resumption", at)),
        };
        if profiles.insert(name.value.clone(), parameters).is_some() {
            let message = format!("the TLS profile `{}` is there twice", name.value);
            reader.wrong(name, "fender::duplicate", message, "remove one of them");
        }
    }
    profiles
}

/// What holds at a place, given what holds around it. A profile that is not there is told, and what no peer could connect
/// with; the latter where it is written, or else it was told further out.
pub(super) fn effective(
    reader: &mut Reader<'_>,
    written: Option<&At<raw::Tls>>,
    rule: &TlsRule,
    profiles: &TlsProfiles,
    general: &TlsProfile,
) -> TlsProfile {
    let Some(at) = written else {
        return general.clone();
    };
    if let Some(name) = &at.value.profile
        && !profiles.contains_key(&name.value)
    {
        let names = || profiles.keys().map(String::as_str);
        let help = match nearest(&name.value, names()) {
            Some(meant) => format!("did you mean `{meant}`?"),
            None if profiles.is_empty() => {
                "there are none: list it under `tlsProfiles`, which the Mesh and a Sidecar have"
                    .to_owned()
            }
            None => format!("it is {}", either(names())),
        };
        let message = format!("there is no TLS profile `{}`", name.value);
        reader.wrong(name, "fender::missing-reference", message, help);
    }
    let effective = rule.over(profiles, general);
    if let Err(unusable) = effective.check()
        && general.check().is_ok()
    {
        let message = format!("no peer could connect with these TLS parameters: {unusable}");
        let help = match unusable {
            Unusable::NoSuite13 => {
                "add `TLS_AES_128_GCM_SHA256` to `cipherSuites`: TLS 1.3 is never left out"
            }
            Unusable::NoSuite12 => {
                "add `TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256` to `cipherSuites`, or write `minimum: \"1.3\"`"
            }
            Unusable::NoGroup => "leave `groups` out, or write `[ X25519MLKEM768, X25519 ]`",
            Unusable::NoGroup12 => "add `X25519` to `groups`, or write `minimum: \"1.3\"`",
        };
        reader.wrong(at, "fender::unusable-tls", message, help);
    }
    effective
}

type List<T> = At<Vec<At<Word<T>>>>;

/// Cipher suites of TLS 1.2 have two names each, and people know either.
fn suites(
    reader: &mut Reader<'_>,
    written: Option<&List<CipherSuite>>,
) -> Option<Vec<CipherSuite>> {
    for at in written.into_iter().flat_map(|list| &list.value) {
        let mut names = CipherSuite::NAMED.iter().map(|(name, _)| *name);
        if let Some(name) = names.find(|name| of_openssl(name).as_ref() == Some(&at.value.text)) {
            let message = format!("`{}` is what OpenSSL calls it", at.value.text);
            reader.wrong(
                at,
                "fender::unknown-word",
                message,
                format!("write `{name}`"),
            );
            return None;
        }
    }
    list(reader, "cipherSuites", written)
}

fn of_openssl(name: &str) -> Option<String> {
    let (exchange, rest) = name.strip_prefix("TLS_")?.split_once("_WITH_")?;
    let rest = rest
        .replace("AES_", "AES")
        .replace("POLY1305_SHA256", "POLY1305");
    Some(format!("{exchange}-{rest}").replace('_', "-"))
}

fn list<T: Choice + PartialEq>(
    reader: &mut Reader<'_>,
    field: &str,
    written: Option<&List<T>>,
) -> Option<Vec<T>> {
    let written = written?;
    let mut list = Vec::new();
    for at in &written.value {
        match reader.choose(field, at) {
            Some(choice) if list.contains(&choice) => {
                let message = format!("`{}` is there twice", at.value.text);
                reader.wrong(at, "fender::duplicate", message, "remove one of them");
            }
            choice => list.extend(choice),
        }
    }
    if written.value.is_empty() {
        let help = "leave the field out to mean all that are good";
        let message = format!("`{field}` is an empty list, with which no peer could connect");
        reader.wrong(written, "fender::empty-list", message, help);
    }
    // What is wrong was told, and what is left of it would be told again.
    (list.len() == written.value.len() && !list.is_empty()).then_some(list)
}
