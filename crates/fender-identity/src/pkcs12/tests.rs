use std::fs;
use std::process::{Command, Output};

use super::*;

fn openssl(arguments: &[&str]) -> Output {
    Command::new("openssl").args(arguments).output().unwrap()
}

#[track_caller]
fn ran(output: Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8([output.stdout, output.stderr].concat()).unwrap()
}

struct Bench(std::path::PathBuf);

impl Bench {
    fn new(name: &str) -> Self {
        let path =
            std::env::temp_dir().join(format!("fender-pkcs12-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }

    /// A certificate that signs itself, and its key in the form that is asked for.
    fn pair(&self, generate: &[&str]) -> String {
        let (key, certificate) = (self.path("key.pem"), self.path("certificate.pem"));
        ran(openssl(&[generate, &["-out", &key]].concat()));
        ran(openssl(&[
            "req",
            "-x509",
            "-new",
            "-key",
            &key,
            "-subj",
            "/CN=orders",
            "-days",
            "30",
            "-out",
            &certificate,
        ]));
        fs::read_to_string(key).unwrap() + &fs::read_to_string(certificate).unwrap()
    }

    /// What Java's keytool does with the store that was opened last.
    fn keytool(&self, password: &str, arguments: &[&str]) -> Output {
        Command::new("keytool")
            .args(["-J-Duser.language=en", "-J-XX:TieredStopAtLevel=1"])
            .args(arguments)
            .args(["-storetype", "PKCS12", "-storepass", password, "-keystore"])
            .arg(self.path("store.p12"))
            .output()
            .unwrap()
    }

    /// What OpenSSL finds in a store.
    fn opened(&self, store: &Secret, password: &str) -> Output {
        let path = self.path("store.p12");
        fs::write(&path, store.expose()).unwrap();
        let password = format!("pass:{password}");
        openssl(&[
            "pkcs12", "-in", &path, "-passin", &password, "-nodes", "-info",
        ])
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

const SEC1: &[&str] = &["ecparam", "-name", "prime256v1", "-genkey", "-noout"];
const PKCS1: &[&str] = &["genrsa", "-traditional"];
const PKCS8: &[&str] = &["genpkey", "-algorithm", "ed25519"];

#[test]
fn openssl_opens_a_store_and_finds_the_key_and_the_certificate_it_was_made_of() {
    for (name, generate) in [("sec1", SEC1), ("pkcs1", PKCS1), ("pkcs8", PKCS8)] {
        let bench = Bench::new(name);
        let text = bench.pair(generate);
        let contents = Contents::from_pem(text.as_bytes()).unwrap();
        let password = Secret::from("correct horse".to_owned());
        let store = contents.encode("orders", &password).unwrap();
        let shown = ran(bench.opened(&store, "correct horse"));
        for expected in [
            "MAC: sha256, Iteration 10000",
            "PBES2, PBKDF2, AES-256-CBC, Iteration 10000, PRF hmacWithSHA256",
            "Shrouded Keybag",
            "friendlyName: orders",
            "localKeyID: ",
            "CN = orders",
        ] {
            assert!(shown.contains(expected), "{name}: {expected}\n{shown}");
        }
        let key = shown.find("-----BEGIN PRIVATE KEY-----").unwrap();
        let opened = bench.path("opened.pem");
        fs::write(&opened, &shown[key..]).unwrap();
        let public = |path: &str| ran(openssl(&["pkey", "-in", path, "-pubout"]));
        assert_eq!(public(&opened), public(&bench.path("key.pem")), "{name}");
        let certificate = &text[text.find("-----BEGIN CERTIFICATE").unwrap()..];
        assert!(shown.contains(certificate.trim()), "{name}");
        let wrong = bench.opened(&store, "incorrect horse");
        assert!(!wrong.status.success());
    }
}

/// Java looks at other things than OpenSSL does: at attributes and at the alias.
#[test]
fn java_opens_a_store_and_signs_by_its_key() {
    for (name, generate) in [
        ("java-sec1", SEC1),
        ("java-pkcs1", PKCS1),
        ("java-pkcs8", PKCS8),
    ] {
        let bench = Bench::new(name);
        let contents = Contents::from_pem(bench.pair(generate).as_bytes()).unwrap();
        let password = contents.password();
        let store = contents.encode("orders", &password).unwrap();
        fs::write(bench.path("store.p12"), store.expose()).unwrap();
        let password = password.expose_str().unwrap();
        let listed = ran(bench.keytool(password, &["-list"]));
        assert!(
            listed.contains("orders, ") && listed.contains("PrivateKeyEntry"),
            "{name}: {listed}"
        );
        let request = bench.path("request.pem");
        let asked = ["-certreq", "-alias", "orders", "-file", &request];
        ran(bench.keytool(password, &asked));
        let public = |arguments: &[&str]| ran(openssl(arguments));
        assert_eq!(
            public(&["req", "-in", &request, "-noout", "-pubkey"]),
            public(&["pkey", "-in", &bench.path("key.pem"), "-pubout"]),
            "{name}"
        );
        let wrong = bench.keytool("incorrect horse", &["-list"]);
        assert!(!wrong.status.success());
    }
}

#[test]
fn certificates_without_a_key_are_a_store_of_whom_to_trust() {
    let bench = Bench::new("trust");
    let text: Vec<_> = (0..2).map(|_| bench.pair(SEC1)).collect();
    let certificates: Vec<_> = text
        .iter()
        .map(|text| &text[text.find("-----BEGIN CERTIFICATE").unwrap()..])
        .collect();
    let contents = Contents::from_pem(certificates.concat().as_bytes()).unwrap();
    assert!(!contents.has_key());
    let password = contents.password();
    let store = contents.encode("roots", &password).unwrap();
    let shown = ran(bench.opened(&store, password.expose_str().unwrap()));
    assert!(!shown.contains("Keybag"), "{shown}");
    for expected in [
        "friendlyName: roots\n",
        "friendlyName: roots-2\n",
        "2.16.840.1.113894.746875.1.1",
    ] {
        assert!(shown.contains(expected), "{shown}");
    }
    for certificate in certificates {
        assert!(shown.contains(certificate.trim()), "{shown}");
    }
    let listed = ran(bench.keytool(password.expose_str().unwrap(), &["-list"]));
    for entry in ["roots, ", "roots-2, "] {
        assert!(listed.contains(entry), "{listed}");
    }
    assert_eq!(listed.matches("trustedCertEntry").count(), 2, "{listed}");
}

#[test]
fn the_certificate_of_the_key_comes_first_and_another_key_is_refused() {
    let bench = Bench::new("order");
    let (one, other) = (bench.pair(SEC1), bench.pair(SEC1));
    let at = |text: &str| text.find("-----BEGIN CERTIFICATE").unwrap();
    let [key, certificate] = [&one[..at(&one)], &one[at(&one)..]];
    let authority = &other[at(&other)..];
    let contents = |parts: &[&str]| Contents::from_pem(parts.concat().as_bytes());
    let turned = contents(&[authority, certificate, key]).unwrap();
    let leaf = pem::certificates(certificate.as_bytes()).unwrap();
    assert_eq!(turned.certificates[0], leaf[0]);
    let wrong = contents(&[key, authority]).err();
    assert_eq!(wrong, Some(Pkcs12Error::KeyMismatch));
    let none = contents(&[key]).err();
    assert!(matches!(none, Some(Pkcs12Error::Pem(_))));
    let two = contents(&[&one, &other]).err();
    assert_eq!(two, Some(Pkcs12Error::Pem(PemError::SeveralKeys)));
}

/// Equal contents are not written again, so they must be equal bytes.
#[test]
fn the_same_contents_are_the_same_bytes_and_others_have_other_salts() {
    let bench = Bench::new("same");
    let (one, other) = (bench.pair(SEC1), bench.pair(SEC1));
    let contents = |text: &str| Contents::from_pem(text.as_bytes()).unwrap();
    let (first, again, other) = (contents(&one), contents(&one), contents(&other));
    let encode = |contents: &Contents, alias: &str, password: &Secret| {
        contents.encode(alias, password).unwrap().expose().to_vec()
    };
    let (password, long) = (first.password(), Secret::from("a".repeat(1024)));
    assert!(password.ct_eq(&again.password()) && !password.ct_eq(&other.password()));
    assert_eq!(password.len(), 43);
    let store = encode(&first, "a", &password);
    assert_eq!(store, encode(&again, "a", &password));
    let others = [
        encode(&first, "b", &password),
        encode(&first, "a", &long),
        encode(&other, "a", &password),
    ];
    // Where the salt of the certificates stands.
    let salt = |store: &[u8]| {
        let at = store
            .windows(9)
            .position(|part| part == oid::PBKDF2)
            .unwrap();
        store[at + 13..at + 29].to_vec()
    };
    for different in &others {
        assert_ne!(salt(&store), salt(different));
    }
}

#[test]
fn a_password_that_readers_do_not_agree_on_is_refused_and_not_shown() {
    let bench = Bench::new("password");
    let contents = Contents::from_pem(bench.pair(SEC1).as_bytes()).unwrap();
    let long = "a".repeat(1025);
    for password in ["", "hunter2ä", "hunter2\n", "hunter2\0", &long] {
        let error = contents
            .encode("a", &Secret::from(password.to_owned()))
            .unwrap_err();
        assert_eq!(error, Pkcs12Error::Password);
        assert!(!format!("{error} {error:?}").contains("hunter2"));
    }
}

#[test]
fn pem_is_written_anew_without_what_stands_between_and_odd_sections_are_refused() {
    let bench = Bench::new("pem");
    let text = bench.pair(SEC1);
    let noise = format!("Bag Attributes\nINJECTED=1\n{text}\nmore\n");
    let clean = pem::rewrite([noise.as_bytes()]).unwrap();
    let clean = clean.expose_str().unwrap();
    assert!(!clean.contains("INJECTED") && !clean.contains("more"));
    assert_eq!(clean.matches("-----BEGIN ").count(), 2);
    let again = pem::rewrite([clean.as_bytes(), clean.as_bytes()]).unwrap();
    assert_eq!(again.expose_str().unwrap(), clean.repeat(2));
    for odd in [
        "",
        "hunter2",
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n",
        "-----BEGIN CERTIFICATE-----\nAAAA\n",
        "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n",
    ] {
        let error = pem::rewrite([odd.as_bytes()]).unwrap_err();
        assert!(!error.to_string().contains("hunter2"));
    }
}
