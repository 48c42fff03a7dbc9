//! How we prove to Vault who we are: what is read, what is sent, and what comes back. Every file is read anew with every
//! login, because whoever made it makes it anew.
//!
//! <https://developer.hashicorp.com/vault/api-docs/auth>

use std::path::Path;

use fender_config::snapshot::{VaultLogin, VaultPath};
use fender_identity::Secret;
use serde_json::json;

use super::wire::Call;
use crate::FetchError;
use crate::http::Method;
use crate::stores::ReadFiles;

/// The largest token, secret id or JWT.
const MAX_PROOF: u64 = 64 * 1024;

/// What a login begins with.
#[derive(Debug)]
pub(super) enum Begun {
    /// It is over already: here is the token.
    Token(Secret),
    /// This is to be asked.
    Ask(Call),
}

/// Reads what a login needs.
pub(super) async fn begin(login: &VaultLogin, files: &dyn ReadFiles) -> Result<Begun, FetchError> {
    Ok(match login {
        VaultLogin::Token { file } => Begun::Token(line(files, file).await?),
        VaultLogin::AppRole {
            mount,
            role_id,
            secret_id,
        } => {
            let proof = line(files, secret_id).await?;
            let body = json!({ "role_id": role_id, "secret_id": text(&proof) });
            ask(mount, &body, Some(proof))
        }
        VaultLogin::Kubernetes { mount, role, token } => {
            let proof = line(files, token).await?;
            let body = json!({ "role": role, "jwt": text(&proof) });
            ask(mount, &body, Some(proof))
        }
        VaultLogin::Jwt { mount, role, token } => {
            let proof = line(files, token).await?;
            let body = match role {
                Some(role) => json!({ "role": role, "jwt": text(&proof) }),
                None => json!({ "jwt": text(&proof) }),
            };
            ask(mount, &body, Some(proof))
        }
        VaultLogin::Certificate { mount, role, .. } => {
            let body = match role {
                Some(role) => json!({ "name": role }),
                None => json!({}),
            };
            ask(mount, &body, None)
        }
    })
}

fn ask(mount: &VaultPath, body: &serde_json::Value, proof: Option<Secret>) -> Begun {
    Begun::Ask(Call {
        method: Method::Post,
        path: format!("auth/{}/login", mount.escaped()),
        token: None,
        body: Some(Secret::from(body.to_string())),
        proof,
    })
}

fn text(proof: &Secret) -> &str {
    proof.expose_str().unwrap_or_default()
}

/// The one line of a file. That there is none says nothing of the secrets: somebody may be about to write it.
async fn line(files: &dyn ReadFiles, path: &Path) -> Result<Secret, FetchError> {
    let unusable = |why: &str| FetchError::Outage(format!("login to Vault: {why}"));
    let read = files.read(path, MAX_PROOF).await;
    let read = read.map_err(|error| unusable(&error.to_string()))?;
    let line = Secret::new(read.expose().trim_ascii().to_vec());
    let visible = line.expose().iter().all(u8::is_ascii_graphic);
    if line.is_empty() || !visible {
        let why = format!(
            "`{}` does not hold one line of visible characters",
            path.display()
        );
        return Err(unusable(&why));
    }
    Ok(line)
}
