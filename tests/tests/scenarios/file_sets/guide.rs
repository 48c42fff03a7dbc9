//! The guide's page on files: what it shows is what is delivered.

use std::fs;
use std::process::Command;

use fender_tests::pki::{Authority, Template};
use fender_tests::process::{installed, output};

use super::Quay;

const GUIDE: &str = include_str!("../../../../docs/guide/credentials-files.md");

/// The documents of the guide, with a real secret; its reader in Python; the store by its command.
#[test]
fn the_guide_s_set_is_delivered_and_read_as_the_guide_says() {
    let document = GUIDE
        .split("```yaml\n")
        .nth(1)
        .unwrap()
        .split("```")
        .next()
        .unwrap();
    let deliver = document.split("  deliver:\n").nth(1).unwrap();
    let quay = Quay::new();
    let issued = Authority::new("db.internal").issue(&Template::svid("spiffe://db.internal/db"));
    issued.write(&quay.path("tls"));
    let pem = |name: &str| fs::read_to_string(quay.path("tls").join(name)).unwrap();
    let certificate = pem("certificate.pem");
    let secret = serde_json::json!({
        "username": "orders", "password": "p@ss/word", "port": 5432,
        "certificate": certificate, "ca_chain": [certificate], "private_key": pem("key.pem"),
    });
    quay.replace(&secret.to_string());
    let place = quay.path("credentials");
    fs::create_dir(&place).unwrap();
    let own = rustix::process::geteuid().as_raw();
    let deliver = deliver.replace("/run/credentials", &place.to_string_lossy());
    quay.configure(&deliver.replace("owner: app", &format!("owner: \"{own}\"")));
    let _sidecar = quay.start();

    let reader = GUIDE
        .split("```python\n")
        .nth(1)
        .unwrap()
        .split("```")
        .next()
        .unwrap();
    let script = format!(
        "{reader}\nimport json, sys\nfiles = read_set(sys.argv[1], sys.argv[2:])\nprint(json.dumps({{n: t.decode('latin-1') for n, t in files.items()}}))"
    );
    let directory = place.join("db");
    let names = [
        "url.txt",
        "app.json",
        ".env",
        "app.properties",
        "app.yaml",
        "tls.pem",
    ];
    let mut python = Command::new(installed("python3"));
    let read = python
        .args(["-c", &script])
        .arg(&directory)
        .args(names)
        .output()
        .unwrap();
    assert!(read.status.success(), "{read:?}");
    let read: serde_json::Value = serde_json::from_slice(&read.stdout).unwrap();
    for (name, text) in [
        (
            "url.txt",
            "postgres://orders:p%40ss%2Fword@db.internal/orders",
        ),
        (
            "app.json",
            "{\"username\": \"orders\", \"password\": \"p@ss/word\", \"port\": 5432}\n",
        ),
        (".env", "username=orders\npassword=p@ss/word\nport=5432\n"),
        (
            "app.properties",
            "username=orders\npassword=p@ss/word\nport=5432\n",
        ),
        (
            "app.yaml",
            "\"username\": \"orders\"\n\"password\": \"p@ss/word\"\n\"port\": 5432\n",
        ),
    ] {
        assert_eq!(read[name], text, "{name}");
    }
    assert_eq!(
        read["tls.pem"]
            .as_str()
            .unwrap()
            .matches("-----BEGIN")
            .count(),
        3
    );
    let pgpass = fs::read_to_string(place.join("pgpass")).unwrap();
    assert_eq!(pgpass, "db.internal:5432:orders:orders:p@ss/word\n");

    let command = GUIDE
        .split("$ openssl ")
        .nth(1)
        .unwrap()
        .lines()
        .next()
        .unwrap();
    let command = command.replace("/run/credentials", &place.to_string_lossy());
    let arguments: Vec<_> = command.split(' ').collect();
    let (code, out, err) = output(installed("openssl"), &arguments);
    assert!(code == 0 && out.contains("friendlyName: db"), "{out}{err}");
}
