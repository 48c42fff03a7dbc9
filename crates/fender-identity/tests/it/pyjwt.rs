//! Tokens that PyJWT minted with keys it published: `tests/vectors/mint.py` makes them.

use fender_identity::jwt::{Audience, Claims, Expectations, Refusal, svid, verify};

use crate::checks::{ISSUER, KEYS, READER, now};

const EXPECTED: Expectations<'static> = Expectations {
    issuer: ISSUER,
    audience: Audience::Only(READER),
};

fn token(name: &str) -> &'static str {
    let lines = include_str!("../vectors/jwt.txt").lines();
    let mut named = lines.filter_map(|line| line.split_once(' '));
    let found = named.find(|(found, _)| *found == name);
    found.unwrap_or_else(|| panic!("no vector {name}")).1
}

fn verified(name: &str) -> Result<Claims, Refusal> {
    verify(token(name), &KEYS, now(), &EXPECTED)
}

#[test]
fn what_pyjwt_signs_verifies_here() {
    for name in [
        "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA",
        "fraction",
    ] {
        let claims = verified(name).unwrap_or_else(|refusal| panic!("{name}: {refusal}"));
        assert_eq!(claims.id.as_deref(), Some("one"), "{name}");
    }
}

#[test]
fn what_pyjwt_signs_otherwise_is_refused_here() {
    for name in ["none", "hs256"] {
        assert!(
            matches!(verified(name), Err(Refusal::Algorithm { .. })),
            "{name}"
        );
    }
    assert!(matches!(
        verified("two-audiences"),
        Err(Refusal::WrongAudience { .. })
    ));
    assert!(matches!(
        verified("no-audience"),
        Err(Refusal::Missing { name: "aud" })
    ));
}

#[test]
fn a_jwt_svid_of_pyjwt_is_read() {
    let any = |_: &_| Some(&*KEYS);
    for name in ["RS256", "PS512", "ES256", "ES512", "two-audiences"] {
        let svid = svid::verify(token(name), READER, &any, now()).unwrap();
        assert_eq!(svid.id().as_str(), "spiffe://mesh.test/ns/shop/sa/orders");
    }
}
