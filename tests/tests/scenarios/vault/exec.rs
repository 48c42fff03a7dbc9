//! `fender exec` and a Vault on the same machine.

use std::fs;
use std::path::{Path, PathBuf};

use fender_tests::process::{binary, output};
use fender_tests::vault::{Mode, Vault};
use serde_json::json;

use super::CANARY;

/// A job that has this place of the Vault in its environment.
fn job(directory: &Path, vault: &Vault, place: &str) -> PathBuf {
    let token = vault.write_token(directory);
    let config = directory.join("job.yaml");
    let documents = format!(
        "apiVersion: fender.dev/v1\nkind: Sidecar\nmetadata: {{ namespace: shop, name: job }}\nspec: {{ credentials: [ smtp ] }}\n---\n\
         apiVersion: fender.dev/v1\nkind: Credential\nmetadata: {{ namespace: shop, name: smtp }}\nspec:\n  \
         source: {{ vault: {{ address: \"{}\", login: {{ token: {{ file: \"{}\" }} }}, {place} }} }}\n  \
         deliver: [ {{ environment: {{ variable: SMTP }} }} ]\n",
        vault.url(),
        token.display()
    );
    fs::write(&config, documents).unwrap();
    config
}

fn exec(config: &Path, more: &[&str], script: &str) -> (i32, String, String) {
    let config = config.to_str().unwrap();
    let mut arguments = vec!["--log", "debug", "exec", "--config", config];
    arguments.extend(["--start-timeout", "3s"]);
    arguments.extend(more);
    arguments.extend(["--", "/bin/sh", "-c", script]);
    output(binary(), &arguments)
}

#[test]
fn exec_asks_a_vault_on_this_machine_and_its_exit_code_says_what_was_wrong() {
    let directory = tempfile::tempdir().unwrap();
    let vault = Vault::in_the_clear();
    vault.write("smtp", json!({ "password": "canary-1" }));
    let right = "kv2: { path: smtp, key: password }";
    let absent = "kv2: { path: absent, key: password }";
    // Backwards, so that what Fender wrote of it can be told apart.
    let exec = |place| {
        let config = job(directory.path(), &vault, place);
        exec(&config, &[], "printf %s \"$SMTP\" | rev")
    };
    for (mode, place, code, out) in [
        (Mode::Answers, right, 0, "1-yranac"),
        (Mode::Answers, absent, 66, ""),
        (Mode::Sealed, right, 75, ""),
        (Mode::Away, right, 75, ""),
        (Mode::Nonsense, right, 75, ""),
        (Mode::TooOften(3600), right, 75, ""),
    ] {
        vault.be(mode);
        let (ended, said, err) = exec(place);
        assert_eq!(
            (ended, said.as_str()),
            (code, out),
            "{mode:?} {place}: {err}"
        );
        assert!(!err.contains(CANARY), "{err}");
        // Nobody ends a token that somebody else made.
        assert_eq!(vault.count("POST auth/token/revoke-self"), 0);
    }
    vault.be(Mode::Answers);
    vault.deny("secret/data/smtp", true);
    assert_eq!(exec(right).0, 66);
}

#[test]
fn attack_each_text_of_a_whole_secret_is_hidden_in_what_an_application_writes() {
    let directory = tempfile::tempdir().unwrap();
    let vault = Vault::in_the_clear();
    let data = json!({ "password": "canary-1", "user": "orders-app", "port": 25 });
    vault.write("smtp", data);
    let config = job(directory.path(), &vault, "kv2: { path: smtp }");
    let script = r#"printf '%s\n' "$SMTP"
        printf %s "$SMTP" | tr '":,{}' '\n\n\n\n\n' | grep . | tr '\n' ' '"#;
    let (code, out, err) = exec(&config, &[], script);
    assert_eq!(code, 0, "{err}");
    let whole = r#"{"password":"canary-1","port":25,"user":"orders-app"}"#;
    let parts = "password canary-1 port 25 user orders-app ";
    assert_eq!(out, format!("{whole}\n{parts}"));
    let (code, out, err) = exec(&config, &["--supervise", "--mask-output"], script);
    assert_eq!(code, 0, "{err}");
    assert_eq!(out, "***\npassword *** port 25 user *** ");
    assert!(
        !err.contains(CANARY) && !err.contains("orders-app"),
        "{err}"
    );
}
