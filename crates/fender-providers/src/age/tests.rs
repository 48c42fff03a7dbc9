//! Against the vectors that every implementation of age is held to, and what this one bounds and refuses beyond them.

use std::path::{Path, PathBuf};

use aws_lc_rs::digest;

use super::identity::{BadIdentity, MOST};
use super::*;

const KEY: &str = "AGE-SECRET-KEY-1EGTZVFFV20835NWYV6270LXYVK2VKNX2MMDKWYKLMGR48UAWX40Q2P2LM0";

/// What a vector says of itself, and the file.
struct Vector {
    name: String,
    head: Vec<(String, String)>,
    file: Vec<u8>,
}

impl Vector {
    fn read(path: &Path) -> Self {
        let all = std::fs::read(path).unwrap();
        let end = all.windows(2).position(|two| two == b"\n\n").unwrap();
        let (head, file) = all.split_at(end + 2);
        let head: Vec<_> = std::str::from_utf8(head)
            .unwrap()
            .lines()
            .filter_map(|line| line.split_once(": "))
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect();
        let mut vector = Self {
            name: path.file_name().unwrap().to_string_lossy().into_owned(),
            head,
            file: file.to_vec(),
        };
        if vector.says("compressed") == Some("zlib") {
            vector.file = miniz_oxide::inflate::decompress_to_vec_zlib(&vector.file).unwrap();
        }
        vector
    }

    fn says(&self, key: &str) -> Option<&str> {
        let mut lines = self.head.iter().filter(|(name, _)| name == key);
        lines.next().map(|(_, value)| value.as_str())
    }

    fn identities(&self) -> Result<Identities, BadIdentity> {
        let lines = self.head.iter().filter(|(name, _)| name == "identity");
        let file: Vec<_> = lines.map(|(_, value)| value.as_str()).collect();
        Identities::read(&Secret::from(file.join("\n")))
    }
}

fn vector(name: &str) -> Vector {
    Vector::read(&directory().join(name))
}

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/age/tests/vectors")
}

/// The simplest file, for `KEY`.
fn x25519() -> Vec<u8> {
    vector("x25519").file
}

fn open_all(vector: &Vector, identities: &Identities) -> Result<Secret, Unopened> {
    // The largest are larger than what may be a secret.
    open(&vector.file, identities, 64 * 1024 * 1024)
}

#[test]
fn every_published_vector_is_opened_or_refused_as_it_must_be() {
    let mut opened = 0;
    let mut refused = 0;
    let mut not_ours = 0;
    for entry in std::fs::read_dir(directory()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some() {
            continue;
        }
        let vector = Vector::read(&path);
        let name = &vector.name;
        let is_for_us = vector.says("passphrase").is_none();
        let Ok(identities) = vector.identities() else {
            // Those of a kind that is not read. Nor is the file opened by one that is.
            let ours = Identities::read(&Secret::from(KEY.to_owned())).unwrap();
            assert!(open_all(&vector, &ours).is_err(), "{name}");
            not_ours += 1;
            continue;
        };
        let answer = open_all(&vector, &identities);
        match vector.says("expect").unwrap() {
            "success" if is_for_us => {
                let value = answer.unwrap_or_else(|error| panic!("{name}: {error:?}"));
                let hash = digest::digest(&digest::SHA256, value.expose());
                let hash: String = hash.as_ref().iter().map(|b| format!("{b:02x}")).collect();
                assert_eq!(Some(hash.as_str()), vector.says("payload"), "{name}");
                opened += 1;
            }
            "no match" if is_for_us => {
                assert!(
                    matches!(answer, Err(Unopened::NotForUs(_))),
                    "{name}: {answer:?}"
                );
                refused += 1;
            }
            _ => {
                assert!(
                    matches!(answer, Err(Unopened::Malformed(_))),
                    "{name}: {answer:?}"
                );
                refused += 1;
            }
        }
    }
    // So that an empty directory is no success.
    assert_eq!((opened, refused, not_ours), (19, 78, 46));
}

fn identities(text: &str) -> Result<Identities, BadIdentity> {
    Identities::read(&Secret::from(text.to_owned()))
}

#[test]
fn a_file_of_identities_is_as_age_keygen_writes_it() {
    let written = format!("# created: 2024-01-01\r\n# public key: age1…\r\n\r\n{KEY}\r\n");
    let read = identities(&written).unwrap();
    assert!(open(&x25519(), &read, 1024).is_ok());
    // The one that fits may be any of them.
    let other = "AGE-SECRET-KEY-1XMWWC06LY3EE5RYTXM9MFLAZ2U56JJJ36S0MYPDRWSVLUL66MV4QX3S7F6";
    let read = identities(&format!("{other}\n{KEY}\n")).unwrap();
    assert!(open(&x25519(), &read, 1024).is_ok());
    let none = open(&x25519(), &identities(other).unwrap(), 1024).unwrap_err();
    assert_eq!(
        none,
        Unopened::NotForUs("is encrypted for none of the identities".to_owned())
    );
}

#[test]
fn what_is_no_identity_is_refused_and_not_repeated() {
    let many = format!("{KEY}\n").repeat(MOST + 1);
    let wrong_sum = KEY.replace("2P2LM0", "2P2LM9");
    let small = KEY.to_lowercase();
    let short = "AGE-SECRET-KEY-1QYPQXPQ9QCRSSZG2PVXQ6RS0ZQG3YYC5Z5TPWXQERGD3C8G7RUSQ8X4A7W";
    for (file, why) in [
        ("", BadIdentity::None),
        ("# nothing\n", BadIdentity::None),
        (wrong_sum.as_str(), BadIdentity::Line(1)),
        (small.as_str(), BadIdentity::Line(1)),
        (short, BadIdentity::Line(1)),
        (
            "age15w00wshnlmfdv3nw4c3u9c2xzmhcn3scd7aqzw73428xpxd5nggq9guhdl",
            BadIdentity::Line(1),
        ),
        ("\nhunter2-hunter2", BadIdentity::Line(2)),
        ("AGE-PLUGIN-YUBIKEY-1QQQQQ", BadIdentity::Plugin(1)),
        ("AGE-SECRET-KEY-PQ-1QQQQQ", BadIdentity::Kind(1)),
        ("-----BEGIN OPENSSH PRIVATE KEY-----", BadIdentity::Kind(1)),
        ("age-encryption.org/v1\n-> scrypt", BadIdentity::Encrypted),
        ("-----BEGIN AGE ENCRYPTED FILE-----", BadIdentity::Encrypted),
        (many.as_str(), BadIdentity::TooMany),
    ] {
        let error = identities(file).err().unwrap_or_else(|| panic!("{file}"));
        assert_eq!(error, why, "{file}");
        assert!(!error.to_string().contains("hunter2"), "{error}");
    }
}

#[test]
fn a_passphrase_is_asked_of_nobody() {
    let error = open(&vector("scrypt").file, &identities(KEY).unwrap(), 1024).unwrap_err();
    let Unopened::Malformed(why) = error else {
        panic!("{error:?}")
    };
    assert!(
        why.contains("passphrase") && why.contains("age -r"),
        "{why}"
    );
}

#[test]
fn a_header_has_bounds() {
    let ours = identities(KEY).unwrap();
    let bodies = "-> other\n\n".repeat(129);
    let many = format!("age-encryption.org/v1\n{bodies}--- ");
    let long = format!("age-encryption.org/v1\n-> {}\n", "x".repeat(70_000));
    let endless = format!(
        "age-encryption.org/v1\n-> other\n{}",
        format!("{}\n", "A".repeat(64)).repeat(2000)
    );
    for file in [many, long, endless] {
        let answer = open(file.as_bytes(), &ours, 1024);
        assert!(matches!(answer, Err(Unopened::Malformed(_))), "{answer:?}");
    }
}

#[test]
fn what_is_inside_has_a_bound_that_is_known_before_it_is_opened() {
    let ours = identities(KEY).unwrap();
    let vector = vector("stream_two_chunks");
    let length = open(&vector.file, &ours, usize::MAX).unwrap().len();
    assert!(open(&vector.file, &ours, length).is_ok());
    let error = open(&vector.file, &ours, length - 1).unwrap_err();
    assert!(matches!(error, Unopened::Malformed(why) if why.contains("holds more than")));
}

/// Every change of one byte, and every end before the end, is found.
#[test]
fn nothing_of_a_changed_or_shortened_file_is_used() {
    let ours = identities(KEY).unwrap();
    let file = x25519();
    let file = file.as_slice();
    assert!(open(file, &ours, 1024).is_ok());
    for at in 0..file.len() {
        assert!(open(&file[..at], &ours, 1024).is_err(), "cut off at {at}");
        let mut changed = file.to_vec();
        changed[at] ^= 1;
        assert!(open(&changed, &ours, 1024).is_err(), "changed at {at}");
    }
}
