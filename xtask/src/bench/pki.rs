//! Certificates for the bench: one authority, one server, one client, and a stranger of another
//! authority who must be refused. All ECDSA P-256.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

pub(super) const TRUST_DOMAIN: &str = "bench.test";

pub(super) fn make(directory: &Path) -> Result<()> {
    authority(directory, "ca")?;
    leaf(directory, "ca", "server", "DNS:localhost,")?;
    leaf(directory, "ca", "client", "")?;
    authority(directory, "elsewhere")?;
    leaf(directory, "elsewhere", "stranger", "")
}

fn authority(directory: &Path, name: &str) -> Result<()> {
    new_key(directory, name)?;
    let (key, certificate) = (format!("{name}.key"), format!("{name}.crt"));
    let request = [
        "req",
        "-x509",
        "-new",
        "-key",
        &key,
        "-days",
        "30",
        "-subj",
        "/CN=bench CA",
        "-addext",
        "basicConstraints=critical,CA:TRUE",
        "-addext",
        "keyUsage=critical,keyCertSign,cRLSign",
        "-addext",
        "subjectAltName=URI:spiffe://bench.test",
        "-out",
        &certificate,
    ];
    openssl(directory, &request)
}

fn leaf(directory: &Path, authority: &str, name: &str, dns: &str) -> Result<()> {
    new_key(directory, name)?;
    let extensions = format!(
        "basicConstraints=critical,CA:FALSE\nkeyUsage=critical,digitalSignature\n\
         extendedKeyUsage=serverAuth,clientAuth\n\
         subjectAltName={dns}URI:spiffe://{TRUST_DOMAIN}/ns/bench/sa/{name}\n"
    );
    fs::write(directory.join("extensions"), extensions).context("write the extensions")?;
    let (key, request, certificate) = (
        format!("{name}.key"),
        format!("{name}.csr"),
        format!("{name}.crt"),
    );
    let subject = format!("/CN={name}");
    openssl(
        directory,
        &[
            "req", "-new", "-key", &key, "-subj", &subject, "-out", &request,
        ],
    )?;
    let sign = [
        "x509",
        "-req",
        "-in",
        &request,
        "-CA",
        &format!("{authority}.crt"),
        "-CAkey",
        &format!("{authority}.key"),
        "-CAcreateserial",
        "-days",
        "30",
        "-extfile",
        "extensions",
        "-out",
        &certificate,
    ];
    openssl(directory, &sign)?;
    let both = [
        fs::read(directory.join(&certificate))?,
        fs::read(directory.join(&key))?,
    ]
    .concat();
    fs::write(directory.join(format!("{name}.pem")), both).context("write certificate and key")
}

fn new_key(directory: &Path, name: &str) -> Result<()> {
    let file = format!("{name}.key");
    openssl(
        directory,
        &[
            "genpkey",
            "-algorithm",
            "EC",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-out",
            &file,
        ],
    )
}

fn openssl(directory: &Path, arguments: &[&str]) -> Result<()> {
    let output = Command::new("openssl")
        .current_dir(directory)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .context("start openssl")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "`openssl {}` failed: {said}",
        arguments.join(" ")
    );
    Ok(())
}
