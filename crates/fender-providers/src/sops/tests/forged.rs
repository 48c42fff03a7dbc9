//! Whoever has the key of the data can write what SOPS would not. What comes of it is bounded, and is what it is said to be.

use aes_gcm::aead::consts::U32;
use aes_gcm::aead::{Aead as _, KeyInit as _, Payload};
use aes_gcm::aes::Aes256;
use aes_gcm::{AesGcm, Nonce};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

use super::*;

const MODIFIED: &str = "2024-01-01T00:00:00Z";

/// The key of a file that SOPS wrote.
fn key() -> Secret {
    let Ok((_, kept)) = read(YAML.as_bytes(), SopsFormat::Yaml) else {
        panic!("it is not read")
    };
    let Ok(metadata) = Metadata::read(&kept) else {
        panic!("it is not read")
    };
    data_key(&metadata, &ours()).unwrap_or_else(|error| panic!("{error:?}"))
}

fn seal(text: &[u8], kind: &str, path: &str) -> String {
    let aead = AesGcm::<Aes256, U32>::new_from_slice(key().expose()).unwrap();
    let nonce = [7; 32];
    let payload = Payload {
        msg: text,
        aad: path.as_bytes(),
    };
    let sealed = aead.encrypt(&Nonce::<U32>::from(nonce), payload).unwrap();
    let (data, tag) = sealed.split_at(sealed.len() - 16);
    let base64 = |bytes: &[u8]| BASE64_STANDARD.encode(bytes);
    format!(
        "ENC[AES256_GCM,data:{},iv:{},tag:{},type:{kind}]",
        base64(data),
        base64(&nonce),
        base64(tag)
    )
}

/// A file of these values, proven over `proven`.
fn forged(values: &str, proven: &[u8]) -> String {
    let hash = digest::digest(&digest::SHA512, proven);
    let hash: String = hash.as_ref().iter().map(|b| format!("{b:02X}")).collect();
    let mac = seal(hash.as_bytes(), "str", MODIFIED);
    let (_, kept) = YAML.split_once("sops:\n").unwrap();
    let (recipients, _) = kept.split_once("    lastmodified").unwrap();
    format!("{values}sops:\n{recipients}    lastmodified: \"{MODIFIED}\"\n    mac: {mac}\n")
}

fn of_one(text: &[u8], kind: &str, proven: &[u8]) -> Result<String, String> {
    let file = forged(&format!("a: {}\n", seal(text, kind, "a:")), proven);
    delivered(file.as_bytes(), SopsFormat::Yaml, Some("a"))
}

#[test]
fn what_is_sealed_and_proven_is_used() {
    assert_eq!(
        of_one(b"hunter2", "str", b"hunter2").as_deref(),
        Ok("hunter2")
    );
    assert_eq!(of_one(b"42", "int", b"42").as_deref(), Ok("42"));
    assert_eq!(of_one(b"1.50", "float", b"1.5").as_deref(), Ok("1.5"));
    assert_eq!(of_one(b"True", "bool", b"True").as_deref(), Ok("true"));
    assert_eq!(
        of_one(b"\xff\x00", "bytes", b"\xff\x00").as_deref(),
        Ok("[255, 0]")
    );
    let time = b"2024-01-02T03:04:05Z";
    assert_eq!(
        of_one(time, "time", time).as_deref(),
        Ok("2024-01-02T03:04:05Z")
    );
    assert!(
        of_one(b"hunter2", "str", b"hunter3")
            .unwrap_err()
            .contains("MAC")
    );
}

#[test]
fn a_type_that_lies_is_refused_even_where_the_proof_fits() {
    for (text, kind) in [
        (b"hunter2".as_slice(), "int"),
        (b"9223372036854775808", "int"),
        (b"0x10", "int"),
        (b"", "int"),
        (b"nan", "float"),
        (b"infinity", "float"),
        (b"1e999", "float"),
        (b"\xff", "float"),
        (b"yes", "bool"),
        (b"tomorrow", "time"),
        (b"x", "comment"),
        (b"x", "list"),
    ] {
        let error = of_one(text, kind, text).unwrap_err();
        assert!(
            error.contains("not of the type") && !error.contains("hunter2"),
            "{kind} {error}"
        );
    }
}

#[test]
fn huge_numbers_are_no_longer_than_a_number_is() {
    let file = format!("a: {}\n", seal(b"1.7976931348623157e308", "float", "a:"));
    let proven = f64::MAX.to_string();
    let answer = delivered(
        forged(&file, proven.as_bytes()).as_bytes(),
        SopsFormat::Yaml,
        None,
    );
    assert_eq!(answer.unwrap().len(), "{\"a\":}".len() + 309);
    let file = format!("a: {}\n", seal(b"NaN", "float", "a:"));
    let error = delivered(forged(&file, b"NaN").as_bytes(), SopsFormat::Yaml, None).unwrap_err();
    assert!(error.contains("none in JSON"), "{error}");
}

#[test]
fn what_is_too_large_or_nothing_is_not_delivered() {
    let large = vec![b'x'; 1024 * 1024 + 1];
    assert!(of_one(&large, "str", &large).unwrap_err().contains("1 MiB"));
    assert!(of_one(&large[1..], "str", &large[1..]).is_ok());
    let error = delivered(
        forged("a: \"\"\n", b"").as_bytes(),
        SopsFormat::Yaml,
        Some("a"),
    );
    assert!(error.unwrap_err().contains("empty"));
}

#[test]
fn a_key_of_another_length_is_none() {
    let wrapped = YAML.find("-----BEGIN").unwrap();
    let end = YAML.find("-----END").unwrap();
    // Recipients of another file, whose value is no key of the data.
    let other = std::fs::read(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/src/age/tests/vectors/armor_x25519"
    ))
    .unwrap();
    let text = String::from_utf8(other).unwrap();
    let other = &text[text.find("-----BEGIN").unwrap()..text.find("-----END").unwrap()];
    let other: Vec<_> = other.lines().collect();
    let replaced = format!(
        "{}{}\n            {}",
        &YAML[..wrapped],
        other.join("\n            "),
        &YAML[end..]
    );
    let identity = Secret::from(
        "AGE-SECRET-KEY-1EGTZVFFV20835NWYV6270LXYVK2VKNX2MMDKWYKLMGR48UAWX40Q2P2LM0".to_owned(),
    );
    let identity = age::identities("/i".as_ref(), &identity).unwrap();
    let Err(Refused::Malformed(Fault(what))) =
        open(replaced.as_bytes(), SopsFormat::Yaml, &identity)
    else {
        panic!("it is opened")
    };
    assert!(what.contains("AES-256"), "{what}");
}
