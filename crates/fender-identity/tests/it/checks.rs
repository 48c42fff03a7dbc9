//! What must hold for any bytes at all: run by the fuzz target and on its corpus.
//!
//! Each check panics when a promise is broken and otherwise says nothing. `fuzz/` includes this
//! very file.

use std::{sync::LazyLock, time::Duration};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use fender_identity::jwt::{
    self, Audience, Expectations, Keys, MAX_SET, MAX_TOKEN, Purpose, SKEW, svid,
};
use rustls_pki_types::UnixTime;

pub(crate) const ISSUER: &str = "https://issuer.test";
pub(crate) const READER: &str = "fender";
pub(crate) const NOW: u64 = 1_800_000_000;

pub(crate) static KEYS: LazyLock<Keys> = LazyLock::new(|| {
    let text = include_bytes!("../vectors/keys.json");
    Keys::parse(text, Purpose::SignaturesAndEd25519).expect("the vectors' keys")
});

pub(crate) fn now() -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(NOW))
}

/// A token that is accepted is one of ours to the byte, and a set of keys that is read, is written
/// and read alike.
pub(crate) fn jwt(data: &[u8]) {
    keys(data);
    let Ok(token) = std::str::from_utf8(data) else {
        return;
    };
    let expected = Expectations {
        issuer: ISSUER,
        audience: Audience::Only(READER),
    };
    if let Ok(claims) = jwt::verify(token, &KEYS, now(), &expected) {
        assert_eq!(claims.issuer.as_deref(), Some(ISSUER));
        assert_eq!(claims.audiences, [READER]);
        accepted(token, &claims);
    }
    let any = |_: &_| Some(&*KEYS);
    if let Ok(svid) = svid::verify(token, READER, &any, now()) {
        let claims = svid.claims();
        assert_eq!(claims.subject.as_deref(), Some(svid.id().as_str()));
        assert!(claims.audiences.iter().any(|audience| audience == READER));
        accepted(token, claims);
    }
}

fn accepted(token: &str, claims: &jwt::Claims) {
    assert!(token.len() <= MAX_TOKEN);
    assert!(claims.expires.as_secs() + SKEW.as_secs() > NOW);
    let again: Vec<_> = token
        .split('.')
        .map(|part| URL_SAFE_NO_PAD.encode(URL_SAFE_NO_PAD.decode(part).expect("base64url")))
        .collect();
    assert_eq!(again.join("."), token, "two texts would be one token");
}

fn keys(data: &[u8]) {
    for (purpose, usage) in [
        (Purpose::Signatures, "sig"),
        (Purpose::SignaturesAndEd25519, "sig"),
        (Purpose::JwtSvids, "jwt-svid"),
    ] {
        let Ok(read) = Keys::parse(data, purpose) else {
            continue;
        };
        assert!(data.len() <= MAX_SET);
        let again = Keys::parse(read.to_json(usage).as_bytes(), purpose).expect("as we write it");
        assert!(read.iter().eq(again.iter()), "{read:?} {again:?}");
        assert_eq!(again.passed_over(), 0);
    }
}
