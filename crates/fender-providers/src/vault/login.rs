//! How we prove to Vault who we are: what is read, what is sent, and what comes back. Every file is read anew with every
//! login, because whoever made it makes it anew.
//!
//! <https://developer.hashicorp.com/vault/api-docs/auth>

use std::path::Path;

use fender_config::snapshot::{VaultJwt, VaultLogin, VaultPath};
use fender_identity::Secret;

use super::wire::Call;
use crate::FetchError;
use crate::host::{ReadFiles, Workload};
use crate::http::Method;
use crate::whole;

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
pub(super) async fn begin(
    login: &VaultLogin,
    files: &dyn ReadFiles,
    workload: Option<&dyn Workload>,
) -> Result<Begun, FetchError> {
    match login {
        VaultLogin::Token { file } => Ok(Begun::Token(line(files, file).await?)),
        VaultLogin::AppRole {
            mount,
            role_id,
            secret_id,
        } => {
            let proof = line(files, secret_id).await?;
            ask(
                mount,
                Some(("role_id", role_id)),
                Some(("secret_id", proof)),
            )
        }
        VaultLogin::Kubernetes { mount, role, token } => {
            let proof = line(files, token).await?;
            ask(mount, Some(("role", role)), Some(("jwt", proof)))
        }
        VaultLogin::Jwt { mount, role, token } => {
            let proof = match token {
                VaultJwt::File(file) => line(files, file).await?,
                VaultJwt::Svid { audience } => {
                    let workload = workload.ok_or_else(nobody)?;
                    workload.token(audience).await?
                }
            };
            let role = role.as_ref().map(|role| ("role", role));
            ask(mount, role, Some(("jwt", proof)))
        }
        VaultLogin::Certificate { mount, role, .. } => {
            let role = role.as_ref().map(|role| ("name", role));
            ask(mount, role, None)
        }
    }
}

/// Only a workload has its identity.
pub(super) fn nobody() -> FetchError {
    FetchError::Denied(
        "login to Vault: it is by the identity of a workload, and this process has none".to_owned(),
    )
}

/// The body is written once, in room of the right size, and wiped.
fn ask(
    mount: &VaultPath,
    role: Option<(&str, &String)>,
    proof: Option<(&str, Secret)>,
) -> Result<Begun, FetchError> {
    let role = role.map(|(name, role)| (name, Secret::from(role.clone())));
    let fields = role.iter().chain(&proof);
    let body = whole::object(fields.map(|(name, value)| (*name, value)));
    let body = body.map_err(|error| FetchError::Malformed(format!("login to Vault: {error}")))?;
    Ok(Begun::Ask(Call {
        method: Method::Post,
        path: format!("auth/{}/login", mount.escaped()),
        token: None,
        body: Some(body),
        proof: proof.map(|(_, proof)| proof),
    }))
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
