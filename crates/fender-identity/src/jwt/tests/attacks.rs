//! What has been tried against readers of tokens, here and elsewhere.

use super::*;

fn header(change: impl FnOnce(&mut Json)) -> Json {
    let mut header = json!({ "alg": "RS256", "kid": "one" });
    change(&mut header);
    header
}

/// Parsed, and what the set became.
fn set(entries: Json) -> Result<Keys, KeysError> {
    let text = json!({ "keys": entries }).to_string();
    Keys::parse(text.as_bytes(), Purpose::Signatures)
}

fn rsa_entry() -> Json {
    let text = Keys::new(vec![RSA.key("one")]).unwrap().to_json("sig");
    serde_json::from_str::<Json>(&text).unwrap()["keys"][0].clone()
}

#[test]
fn attack_hmac_with_the_public_key_as_its_secret() {
    let entry = rsa_entry();
    let public = RSA.public();
    let PublicKey::Rsa { modulus, .. } = &public else {
        unreachable!()
    };
    for secret in [modulus.as_ref(), entry.to_string().as_bytes()] {
        for (algorithm, hmac) in [
            ("HS256", aws_lc_rs::hmac::HMAC_SHA256),
            ("HS512", aws_lc_rs::hmac::HMAC_SHA512),
        ] {
            let header = header(|header| header["alg"] = json!(algorithm));
            let signed = format!(
                "{}.{}",
                base64(header.to_string()),
                base64(good().to_string())
            );
            let key = aws_lc_rs::hmac::Key::new(hmac, secret);
            let tag = aws_lc_rs::hmac::sign(&key, signed.as_bytes());
            let algorithm = algorithm.to_owned();
            assert_eq!(
                verified(&format!("{signed}.{}", base64(tag))),
                Err(Refusal::Algorithm { algorithm })
            );
        }
    }
}

#[test]
fn attack_no_signature() {
    for algorithm in ["none", "None", "NONE", "nOnE", "", "RS1", "rs256"] {
        let header = header(|header| header["alg"] = json!(algorithm)).to_string();
        for signature in ["", "AA"] {
            let token = format!(
                "{}.{}.{signature}",
                base64(&header),
                base64(good().to_string())
            );
            let algorithm = algorithm.to_owned();
            assert_eq!(verified(&token), Err(Refusal::Algorithm { algorithm }));
        }
    }
    let (signed, _) = token(&good())
        .rsplit_once('.')
        .map(|(s, t)| (s.to_owned(), t.to_owned()))
        .unwrap();
    assert_eq!(
        verified(&format!("{signed}.")),
        Err(Refusal::WrongSignature)
    );
}

#[test]
fn attack_an_algorithm_of_another_type_of_key() {
    for (key, algorithm, named) in [
        ("one", "ES256", Algorithm::Es256),
        ("two", "RS256", Algorithm::Rs256),
        ("two", "ES384", Algorithm::Es384),
        ("one", "EdDSA", Algorithm::EdDsa),
    ] {
        let token = RSA.mint(&json!({ "alg": algorithm, "kid": key }), &good());
        let algorithm = named;
        assert_eq!(
            verified(&token),
            Err(Refusal::AlgorithmOfAnotherKey { algorithm })
        );
    }
}

#[test]
fn attack_another_key_than_the_one_named() {
    let theirs = Signer::Rsa(RsaKeyPair::generate(KeySize::Rsa2048).unwrap());
    let token = theirs.mint(&header(|_| ()), &good());
    assert_eq!(verified(&token), Err(Refusal::WrongSignature));
    let unknown = RSA.mint(&header(|header| header["kid"] = json!("../one")), &good());
    let id = "../one".to_owned();
    assert_eq!(verified(&unknown), Err(Refusal::UnknownKey { id }));
    let absent = RSA.mint(&header(|header| header["kid"] = json!(["one"])), &good());
    assert!(matches!(
        verified(&absent),
        Err(Refusal::Member { name: "kid", .. })
    ));
}

#[test]
fn attack_a_key_brought_along_in_the_header() {
    let theirs = Signer::Rsa(RsaKeyPair::generate(KeySize::Rsa2048).unwrap());
    let own = Keys::new(vec![theirs.key("one")]).unwrap().to_json("sig");
    let own: Json = serde_json::from_str(&own).unwrap();
    let header = header(|header| {
        header["jwk"] = own["keys"][0].clone();
        header["jku"] = json!("https://evil.test/keys");
        header["x5u"] = json!("https://evil.test/chain");
        header["x5c"] = json!(["MIIB"]);
    });
    let token = theirs.mint(&header, &good());
    assert_eq!(verified(&token), Err(Refusal::WrongSignature));
}

#[test]
fn attack_one_key_id_for_two_keys() {
    assert_eq!(
        Keys::new(vec![RSA.key("one"), P256.key("one")]),
        Err(KeysError::IdTwice {
            id: "one".to_owned()
        })
    );
    let hidden = json!({ "kty": "oct", "k": "AAAA", "kid": "one" });
    assert_eq!(
        set(json!([hidden, rsa_entry()])),
        Err(KeysError::IdTwice {
            id: "one".to_owned()
        }),
        "also of a key that is passed over"
    );
}

#[test]
fn attack_keys_that_are_none() {
    let with = |change: &dyn Fn(&mut Json)| {
        let mut entry = rsa_entry();
        change(&mut entry);
        set(json!([entry]))
    };
    let text = |bytes: &[u8]| json!(base64(bytes));
    let changes: [&dyn Fn(&mut Json); 15] = [
        &|key| *key = json!({ "kty": "oct", "k": "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", "kid": "one" }),
        &|key| key["alg"] = json!("HS256"),
        &|key| key["alg"] = json!("ES256"),
        &|key| key["alg"] = json!("RSA-OAEP"),
        &|key| key["use"] = json!("enc"),
        &|key| key["use"] = json!(1),
        &|key| key["key_ops"] = json!(["sign"]),
        &|key| key["key_ops"] = json!("verify"),
        &|key| key["kid"] = json!(1),
        &|key| key["kid"] = json!("x".repeat(257)),
        &|key| key["e"] = text(&[1]),
        &|key| key["e"] = text(&[0, 3]),
        &|key| key["e"] = text(&[4]),
        &|key| key["n"] = text(&[0xff; 128]),
        &|key| key["n"] = text(&[0xff; 1025]),
    ];
    for (change, number) in changes.into_iter().zip(1..) {
        assert_eq!(with(change), Err(KeysError::Empty), "change {number}");
    }
    let off_curve = json!({ "kty": "EC", "crv": "P-256", "kid": "k", "x": base64([1; 32]), "y": base64([1; 32]) });
    let short = json!({ "kty": "EC", "crv": "P-256", "kid": "k", "x": base64([1; 31]), "y": base64([1; 33]) });
    let koblitz = json!({ "kty": "EC", "crv": "secp256k1", "kid": "k", "x": base64([1; 32]), "y": base64([1; 32]) });
    for entry in [off_curve, short, koblitz, json!({}), json!({ "kty": "EC" })] {
        assert_eq!(set(json!([entry])), Err(KeysError::Empty), "{entry}");
    }
}

#[test]
fn attack_sets_that_are_none() {
    assert_eq!(set(json!([1])), Err(KeysError::NotAKey { number: 1 }));
    let parse = |text: &str| Keys::parse(text.as_bytes(), Purpose::Signatures);
    assert_eq!(parse("{}"), Err(KeysError::NotASet));
    assert!(matches!(
        parse(r#"{"keys":[],"keys":[]}"#),
        Err(KeysError::Json(_))
    ));
    let length = MAX_SET + 1;
    assert_eq!(
        parse(&" ".repeat(length)),
        Err(KeysError::TooLarge { length })
    );
    let many: Vec<_> = (0..129).map(|_| json!({})).collect();
    assert_eq!(set(json!(many)), Err(KeysError::TooMany { count: 129 }));
}

#[test]
fn attack_a_token_without_an_end() {
    for end in [
        None,
        Some(json!("1900000000")),
        Some(json!(-1)),
        Some(json!(null)),
        Some(json!(1e300)),
    ] {
        let claims = claims(|claims| match &end {
            Some(end) => claims["exp"] = end.clone(),
            None => drop(claims.as_object_mut().unwrap().remove("exp")),
        });
        let refusal = verified(&token(&claims)).unwrap_err();
        assert!(
            matches!(
                refusal,
                Refusal::Missing { name: "exp" } | Refusal::Member { name: "exp", .. }
            ),
            "{end:?}: {refusal}"
        );
    }
}

#[test]
fn attack_a_token_out_of_its_time() {
    let with =
        |name: &str, time: u64| verified(&token(&claims(|claims| claims[name] = json!(time))));
    assert!(matches!(
        with("exp", NOW - 60),
        Err(Refusal::Expired { .. })
    ));
    assert!(matches!(
        with("nbf", NOW + 61),
        Err(Refusal::NotYetValid { .. })
    ));
    assert!(matches!(
        with("iat", NOW + 61),
        Err(Refusal::NotYetValid { .. })
    ));
    let backwards = claims(|claims| {
        claims["iat"] = json!(NOW + 30);
        claims["exp"] = json!(NOW - 30);
    });
    assert_eq!(verified(&token(&backwards)), Err(Refusal::Backwards));
    let far = at(NOW + 400 * DAY);
    assert!(matches!(
        verify(&token(&good()), &keys(), far, &EXPECTED),
        Err(Refusal::Expired { .. })
    ));
}

#[test]
fn attack_a_token_of_another_issuer() {
    for issuer in [
        "https://issuer.test/",
        "https://ISSUER.test",
        "",
        "https://issuer.test\u{0}",
    ] {
        let claims = claims(|claims| claims["iss"] = json!(issuer));
        assert!(
            matches!(verified(&token(&claims)), Err(Refusal::WrongIssuer { .. })),
            "{issuer:?}"
        );
    }
    let none = claims(|claims| drop(claims.as_object_mut().unwrap().remove("iss")));
    assert_eq!(
        verified(&token(&none)),
        Err(Refusal::Missing { name: "iss" })
    );
    let list = claims(|claims| claims["iss"] = json!([ISSUER]));
    assert!(matches!(
        verified(&token(&list)),
        Err(Refusal::Member { name: "iss", .. })
    ));
}

#[test]
fn attack_a_token_made_for_others() {
    for audience in [
        json!("other"),
        json!("Fender"),
        json!("fender "),
        json!(["other"]),
        json!([READER, "https://kubernetes.default.svc"]),
        json!([READER, READER]),
    ] {
        let claims = claims(|claims| claims["aud"] = audience.clone());
        assert!(
            matches!(
                verified(&token(&claims)),
                Err(Refusal::WrongAudience { .. })
            ),
            "{audience}"
        );
    }
    for audience in [json!([]), json!([1]), json!(true), json!({ "aud": READER })] {
        let claims = claims(|claims| claims["aud"] = audience.clone());
        assert!(verified(&token(&claims)).is_err(), "{audience}");
    }
}

#[test]
fn attack_a_token_cut_or_prolonged() {
    let token = token(&good());
    for length in 0..token.len() {
        assert!(verified(&token[..length]).is_err(), "{length}");
    }
    for more in ["A", "AA", ".", ".AA", "=", " ", "\n", "\0"] {
        assert!(verified(&format!("{token}{more}")).is_err(), "{more:?}");
        assert!(verified(&format!("{more}{token}")).is_err(), "{more:?}");
    }
    assert_eq!(verified(""), Err(Refusal::NotThreeParts { found: 1 }));
    assert_eq!(
        verified("a.b.c.d.e"),
        Err(Refusal::NotThreeParts { found: 5 })
    );
}

#[test]
fn attack_any_bit_changed() {
    let token = token(&good());
    for index in 0..token.len() {
        let mut changed = token.clone().into_bytes();
        changed[index] = if changed[index] == b'A' { b'B' } else { b'A' };
        let changed = String::from_utf8(changed).unwrap();
        assert!(verified(&changed).is_err(), "{index}");
    }
}

#[test]
fn attack_a_huge_token() {
    let claims = claims(|claims| claims["x"] = json!("x".repeat(MAX_TOKEN)));
    assert!(matches!(
        verified(&token(&claims)),
        Err(Refusal::TooLong { .. })
    ));
}

#[test]
fn attack_a_member_twice() {
    let header = r#"{"alg":"none","kid":"one","alg":"RS256"}"#;
    let twice = RSA.mint_bytes("RS256", header, &good().to_string());
    assert!(matches!(
        verified(&twice),
        Err(Refusal::NotJson {
            part: Part::Header,
            ..
        })
    ));
    let payload = good().to_string().replacen('{', r#"{"aud":"other","#, 1);
    let twice = RSA.mint_bytes("RS256", r#"{"alg":"RS256","kid":"one"}"#, &payload);
    assert!(matches!(
        verified(&twice),
        Err(Refusal::NotJson {
            part: Part::Payload,
            ..
        })
    ));
}

#[test]
fn attack_a_token_within_a_token() {
    let inner = token(&good());
    let nested = RSA.mint_bytes("RS256", r#"{"alg":"RS256","kid":"one"}"#, &inner);
    assert!(matches!(verified(&nested), Err(Refusal::NotJson { .. })));
    for name in ["cty", "crit", "enc", "zip"] {
        let token = RSA.mint(&header(|header| header[name] = json!("JWT")), &good());
        let name = name.to_owned();
        assert_eq!(verified(&token), Err(Refusal::Header { name }));
    }
}

#[test]
fn attack_a_token_of_another_type() {
    for kind in ["logout+jwt", "dpop+jwt", "secevent+jwt", "JWE"] {
        let token = RSA.mint(&header(|header| header["typ"] = json!(kind)), &good());
        let found = kind.to_owned();
        assert_eq!(verified(&token), Err(Refusal::Type { found }));
    }
}

#[test]
fn attack_another_way_to_write_the_same_bytes() {
    let token = P256.mint(&json!({ "alg": "ES256", "kid": "two" }), &good());
    assert!(verified(&token).is_ok());
    // 64 bytes leave four bits of the last character without a meaning.
    let (rest, last) = token.split_at(token.len() - 1);
    let alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let value = alphabet.find(last).unwrap();
    for low in 1..16 {
        let other = &alphabet[value + low..=value + low];
        assert_eq!(
            verified(&format!("{rest}{other}")),
            Err(Refusal::NotBase64 {
                part: Part::Signature
            })
        );
    }
    assert!(verified(&format!("{token}==")).is_err());
}

#[test]
fn attack_an_ecdsa_signature_in_another_form() {
    let der = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).unwrap();
    let signer = Signer::Ecdsa(der);
    let keys = Keys::new(vec![signer.key("two")]).unwrap();
    let token = signer.mint(&json!({ "alg": "ES256", "kid": "two" }), &good());
    assert_eq!(
        verify(&token, &keys, at(NOW), &EXPECTED),
        Err(Refusal::WrongSignature)
    );
}

#[test]
fn attack_an_ecdsa_signature_of_zeros() {
    let token = P256.mint(&json!({ "alg": "ES256", "kid": "two" }), &good());
    let (signed, signature) = token.rsplit_once('.').unwrap();
    let signature = URL_SAFE_NO_PAD.decode(signature).unwrap();
    let (r, s) = signature.split_at(32);
    let order = hex("ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551");
    let zero = [0_u8; 32];
    for forged in [
        [zero.as_slice(), &zero].concat(),
        [r, &zero].concat(),
        [&zero, s].concat(),
        [order.as_slice(), &order].concat(),
        [r, &order].concat(),
        [s, r].concat(),
        vec![0; 63],
        vec![0; 65],
        Vec::new(),
    ] {
        assert_eq!(
            verified(&format!("{signed}.{}", base64(&forged))),
            Err(Refusal::WrongSignature),
            "{forged:?}"
        );
    }
}

#[test]
fn attack_a_jwt_svid_of_another_trust_domain() {
    let ours = Keys::new(vec![RSA.key("one")]).unwrap();
    let theirs = Keys::new(vec![P256.key("one")]).unwrap();
    let keys = |asked: &TrustDomain| match asked.as_str() {
        "mesh.test" => Some(&ours),
        "other.test" => Some(&theirs),
        _ => None,
    };
    let verify = |token: &str| svid::verify(token, READER, &keys, at(NOW)).map(drop);
    // A key of theirs names one of ours.
    let posing = P256.mint(&json!({ "alg": "ES256", "kid": "one" }), &good());
    assert!(verify(&posing).is_err());
    let of = |subject: Json| token(&claims(|claims| claims["sub"] = subject));
    assert!(verify(&of(json!("spiffe://other.test/ns/shop/sa/orders"))).is_err());
    assert_eq!(
        verify(&of(json!("spiffe://third.test/a"))),
        Err(Refusal::ForeignTrustDomain(domain("third.test")))
    );
    for subject in [
        "orders",
        "spiffe://mesh.test",
        "spiffe://mesh.test/../a",
        "https://mesh.test/a",
    ] {
        assert!(
            matches!(verify(&of(json!(subject))), Err(Refusal::NotSpiffe(_))),
            "{subject}"
        );
    }
}

#[test]
fn attack_a_jwt_svid_beyond_the_standard() {
    let ed25519 = Signer::Ed25519(Ed25519KeyPair::generate().unwrap());
    let keys = Keys::new(vec![RSA.key("one"), ed25519.key("ed")]).unwrap();
    let any = |_: &TrustDomain| Some(&keys);
    let verify = |token: &str| svid::verify(token, READER, &any, at(NOW)).map(drop);
    assert_eq!(verify(&token(&good())), Ok(()));

    let token_of = |header: Json| RSA.mint(&header, &good());
    let extra = verify(&token_of(header(|header| {
        header["jku"] = json!("https://evil.test")
    })));
    assert_eq!(
        extra,
        Err(Refusal::Header {
            name: "jku".to_owned()
        })
    );
    let kind = verify(&token_of(header(|header| header["typ"] = json!("at+jwt"))));
    assert_eq!(
        kind,
        Err(Refusal::Type {
            found: "at+jwt".to_owned()
        })
    );
    let ed = ed25519.mint(&json!({ "alg": "EdDSA", "kid": "ed" }), &good());
    assert_eq!(
        verify(&ed),
        Err(Refusal::Algorithm {
            algorithm: "EdDSA".to_owned()
        })
    );

    for absent in ["sub", "aud", "exp"] {
        let claims = claims(|claims| drop(claims.as_object_mut().unwrap().remove(absent)));
        assert!(
            matches!(verify(&token(&claims)), Err(Refusal::Missing { .. })),
            "{absent}"
        );
    }
    let other = claims(|claims| claims["aud"] = json!(["other"]));
    assert!(matches!(
        verify(&token(&other)),
        Err(Refusal::WrongAudience { .. })
    ));
    let old = claims(|claims| claims["exp"] = json!(NOW - 60));
    assert!(verify(&token(&old)).is_err());
}

fn hex(text: &str) -> Vec<u8> {
    crate::certificate::from_hex(text).unwrap()
}
