//! The `kubernetes` and `x509` of a Mesh: others whose word counts at attestation.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use super::{NAME_HELP, file_path};
use crate::HttpsUrl;
use crate::documents::{Cluster, IssuingAuthority, KeySource, TokenReview, Vouching};
use crate::name::check_label;
use crate::raw;
use crate::yaml::{At, Reader};

/// Each is asked about what anybody shows.
const MAX: usize = 16;
const URL_HELP: &str = "write it as `https://HOST[:PORT][/PATH]`";
const LONGEST: usize = 512;

/// What the Mesh calls those whose word counts, right or wrong.
#[derive(Debug, Default)]
pub(crate) struct Names {
    pub(crate) clusters: BTreeSet<String>,
    pub(crate) authorities: BTreeSet<String>,
}

impl Names {
    pub(crate) fn add(&mut self, mesh: &raw::Mesh) {
        let clusters = mesh.kubernetes.iter().map(|at| &at.value.name.value);
        self.clusters.extend(clusters.cloned());
        let authorities = mesh.x509.iter().map(|at| &at.value.name.value);
        self.authorities.extend(authorities.cloned());
    }
}

pub(crate) fn clusters(
    reader: &mut Reader<'_>,
    written: &[At<raw::Cluster>],
) -> BTreeMap<String, Cluster> {
    let mut clusters = BTreeMap::new();
    for at in few(reader, written, "kubernetes") {
        let raw::Cluster {
            name,
            issuer,
            audience,
            jwks,
            token_review,
        } = &at.value;
        let new = named(reader, &clusters, name);
        let issuer = exact(reader, "issuer", issuer);
        let audience = exact(reader, "audience", audience);
        let vouching = match (jwks, token_review) {
            (Some(jwks), None) => keys(reader, jwks).map(Vouching::Keys),
            (None, Some(review)) => self::review(reader, review).map(Vouching::Review),
            (None, None) | (Some(_), Some(_)) => {
                let help = "write `jwks` with the keys of the cluster's issuer, or `tokenReview` to ask its API";
                let message = "a cluster has either `jwks` or `tokenReview`";
                reader.wrong(at, "fender::one-of", message, help);
                None
            }
        };
        if let (Some(name), Some(issuer), Some(audience), Some(vouching)) =
            (new, issuer, audience, vouching)
        {
            let cluster = Cluster {
                name: name.clone(),
                issuer,
                audience,
                vouching,
            };
            clusters.insert(name, cluster);
        }
    }
    clusters
}

pub(crate) fn authorities(
    reader: &mut Reader<'_>,
    written: &[At<raw::IssuingAuthority>],
) -> BTreeMap<String, IssuingAuthority> {
    let mut authorities = BTreeMap::new();
    for at in few(reader, written, "x509") {
        let raw::IssuingAuthority { name, roots } = &at.value;
        let new = named(reader, &authorities, name);
        let roots = file_path(reader, &roots.file);
        if let (Some(name), Some(roots)) = (new, roots) {
            let authority = IssuingAuthority {
                name: name.clone(),
                roots,
            };
            authorities.insert(name, authority);
        }
    }
    authorities
}

fn few<'w, T>(reader: &mut Reader<'_>, written: &'w [At<T>], field: &str) -> &'w [At<T>] {
    if let Some(first_too_many) = written.get(MAX) {
        let message = format!("`{field}` lists {}, more than {MAX}", written.len());
        let help = "each of them is asked about whatever anybody shows: list those that are needed";
        reader.wrong(first_too_many, "fender::too-many", message, help);
    }
    written.get(..MAX).unwrap_or(written)
}

fn named<T>(
    reader: &mut Reader<'_>,
    known: &BTreeMap<String, T>,
    at: &At<String>,
) -> Option<String> {
    reader.take(at, "fender::bad-name", NAME_HELP, check_label(&at.value))?;
    if known.contains_key(&at.value) {
        let message = format!("`{}` is there twice", at.value);
        let help = "selectors find it by its name: give one of them another";
        reader.wrong(at, "fender::duplicate", message, help);
        return None;
    }
    Some(at.value.clone())
}

/// Compared to the byte with what a token says.
fn exact(reader: &mut Reader<'_>, field: &str, at: &At<String>) -> Option<String> {
    let text = &at.value;
    if text.is_empty() || text.len() > LONGEST || text.chars().any(|c| c.is_control() || c == ' ') {
        let message = format!("`{field}` is empty, too long, or holds blanks");
        let help = match field {
            "issuer" => "copy the `iss` of one of the cluster's tokens, to the letter",
            _ => "a text that only this control plane uses: `fender`, or its URL",
        };
        reader.wrong(at, "fender::bad-text", message, help);
        return None;
    }
    Some(text.clone())
}

fn keys(reader: &mut Reader<'_>, at: &At<raw::Jwks>) -> Option<KeySource> {
    let raw::Jwks {
        file,
        url,
        roots,
        token,
    } = &at.value;
    match (file, url, roots) {
        (Some(file), None, None) if token.is_none() => file_path(reader, file).map(KeySource::File),
        (None, Some(url), Some(roots)) => {
            let url = reader.parse::<HttpsUrl>(url, "fender::bad-url", URL_HELP);
            let roots = file_path(reader, &roots.file);
            let token: Option<Option<PathBuf>> = match token {
                Some(token) => file_path(reader, &token.file).map(Some),
                None => Some(None),
            };
            Some(KeySource::Url {
                url: url?,
                roots: roots?,
                token: token?,
            })
        }
        _ => {
            let help = "write `jwks: { file: PATH }`, or `jwks: { url: https://…, roots: { file: PATH } }`; no \
                authority is trusted by default";
            let message = "`jwks` has either a `file`, or a `url` and its `roots`";
            reader.wrong(at, "fender::one-of", message, help);
            None
        }
    }
}

fn review(reader: &mut Reader<'_>, at: &At<raw::TokenReview>) -> Option<TokenReview> {
    let raw::TokenReview { api, roots, token } = &at.value;
    let api = reader.parse::<HttpsUrl>(api, "fender::bad-url", URL_HELP);
    let roots = file_path(reader, &roots.file);
    let token = file_path(reader, &token.file);
    Some(TokenReview {
        api: api?,
        roots: roots?,
        token: token?,
    })
}
