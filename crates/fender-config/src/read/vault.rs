//! `source.vault` of a `Credential`: which Vault, as whom, and where in it.

use std::path::PathBuf;
use std::time::Duration;

use super::{duration, file_path, whole};
use crate::address::StoreUrl;
use crate::documents::Via;
use crate::raw;
use crate::snapshot::{
    CertificateFiles, VaultCertificate, VaultJwt, VaultLogin, VaultPath, VaultPlace, VaultSecret,
    VaultStore,
};
use crate::yaml::{At, Reader};

const SHORTEST_REFRESH: Duration = Duration::from_secs(1);
const LONGEST_REFRESH: Duration = Duration::from_secs(24 * 60 * 60);
/// Where Kubernetes mounts the token of a pod's service account.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";
/// The longest key, role or role id.
const LONGEST: usize = 256;

/// `at` is the whole source, for what is missing in it.
pub(super) fn secret(
    reader: &mut Reader<'_>,
    at: &At<raw::CredentialSource>,
    written: &raw::SourceVault,
) -> Option<VaultSecret> {
    let help = "write `https://HOST:8200`, or `http://127.0.0.1:8200` for one on this machine";
    let address: Option<StoreUrl> = reader.parse(&written.address, "fender::bad-url", help);
    let roots = written.roots.as_ref();
    let roots = roots.map(|roots| file_path(reader, &roots.file));
    let namespace = written.namespace.as_ref();
    let namespace = namespace.map(|at| path(reader, at));
    let login = login(reader, &written.login);
    if let (Some(StoreUrl::Loopback { .. }), Some(VaultLogin::Certificate { .. })) =
        (&address, &login)
    {
        let message = "a certificate is shown in a TLS handshake, and there is none at `http://`";
        let help = "write an `https://` address, or another login";
        reader.wrong(&written.login, "fender::no-tls", message, help);
    }
    let via = written.via.as_ref().and_then(|at| at.value.choice());
    if via == Some(Via::Control) && login.as_ref().is_some_and(VaultLogin::is_of_the_workload) {
        let message = "the control plane asks, and it has no workload's identity to log in by";
        let help = "write `via: sidecar`, or a login of the control plane's own";
        reader.wrong(&written.login, "fender::not-by-control", message, help);
    }
    let place = place(reader, at, written);
    let refresh = written
        .refresh
        .as_ref()
        .map_or(Some(VaultSecret::REFRESH), |at| {
            duration(reader, "refresh", at, SHORTEST_REFRESH, LONGEST_REFRESH)
        });
    let (at, key) = place?;
    Some(VaultSecret {
        store: VaultStore {
            address: address?,
            roots: whole(roots)?,
            namespace: whole(namespace)?,
            login: login?,
        },
        at,
        key,
        refresh: refresh?,
    })
}

fn login(reader: &mut Reader<'_>, at: &At<raw::VaultLogin>) -> Option<VaultLogin> {
    let raw::VaultLogin {
        token,
        app_role,
        kubernetes,
        jwt,
        certificate,
    } = &at.value;
    match (token, app_role, kubernetes, jwt, certificate) {
        (Some(token), None, None, None, None) => {
            file_path(reader, &token.file).map(|file| VaultLogin::Token { file })
        }
        (None, Some(app_role), None, None, None) => {
            let mount = mount(reader, app_role.mount.as_ref(), "approle");
            let role_id = word(reader, "role id", &app_role.role_id);
            let secret_id = file_path(reader, &app_role.secret_id_file);
            Some(VaultLogin::AppRole {
                mount: mount?,
                role_id: role_id?,
                secret_id: secret_id?,
            })
        }
        (None, None, Some(kubernetes), None, None) => {
            let mount = mount(reader, kubernetes.mount.as_ref(), "kubernetes");
            let role = word(reader, "role", &kubernetes.role);
            let token = match &kubernetes.token_file {
                Some(at) => file_path(reader, at),
                None => Some(PathBuf::from(SERVICE_ACCOUNT)),
            };
            Some(VaultLogin::Kubernetes {
                mount: mount?,
                role: role?,
                token: token?,
            })
        }
        (None, None, None, Some(jwt), None) => {
            let mount = mount(reader, jwt.mount.as_ref(), "jwt");
            let role = jwt.role.as_ref().map(|at| word(reader, "role", at));
            let token = match (&jwt.token_file, &jwt.svid) {
                (Some(file), None) => file_path(reader, file).map(VaultJwt::File),
                (None, Some(svid)) => word(reader, "audience", &svid.audience)
                    .map(|audience| VaultJwt::Svid { audience }),
                _ => either(reader, at, "tokenFile", "svid"),
            };
            Some(VaultLogin::Jwt {
                mount: mount?,
                role: whole(role)?,
                token: token?,
            })
        }
        (None, None, None, None, Some(certificate)) => {
            let mount = mount(reader, certificate.mount.as_ref(), "cert");
            let role = certificate.role.as_ref().map(|at| word(reader, "role", at));
            let shown = match (&certificate.files, &certificate.svid) {
                (Some(files), None) => self::files(reader, files).map(VaultCertificate::Files),
                (None, Some(raw::VaultSvid {})) => Some(VaultCertificate::Svid),
                _ => either(reader, at, "files", "svid"),
            };
            Some(VaultLogin::Certificate {
                mount: mount?,
                role: whole(role)?,
                shown: shown?,
            })
        }
        _ => {
            reader.wrong(
                at,
                "fender::one-of",
                "one logs in to Vault in one way",
                "write one of `token`, `appRole`, `kubernetes`, `jwt` and `certificate`",
            );
            None
        }
    }
}

fn files(reader: &mut Reader<'_>, files: &raw::CertificateFiles) -> Option<CertificateFiles> {
    let certificate = file_path(reader, &files.certificate);
    let key = file_path(reader, &files.key);
    Some(CertificateFiles {
        certificate: certificate?,
        key: key?,
    })
}

fn either<T>(
    reader: &mut Reader<'_>,
    at: &At<raw::VaultLogin>,
    one: &str,
    other: &str,
) -> Option<T> {
    let message = format!("this login is by `{one}` or by `{other}`");
    let help = "write one of them: `svid` is the workload's own identity, which no file holds";
    reader.wrong(at, "fender::one-of", message, help);
    None
}

fn place(
    reader: &mut Reader<'_>,
    at: &At<raw::CredentialSource>,
    written: &raw::SourceVault,
) -> Option<(VaultPlace, Option<String>)> {
    match (&written.kv1, &written.kv2, &written.engine) {
        (Some(kv), None, None) => {
            let mount = mount(reader, kv.mount.as_ref(), "secret");
            let path = path(reader, &kv.path);
            let key = kv.key.as_ref().map(|at| word(reader, "key", at));
            let (mount, path) = (mount?, path?);
            Some((VaultPlace::Kv1 { mount, path }, whole(key)?))
        }
        (None, Some(kv), None) => {
            let mount = mount(reader, kv.mount.as_ref(), "secret");
            let path = path(reader, &kv.path);
            let key = kv.key.as_ref().map(|at| word(reader, "key", at));
            let version = kv.version.as_ref().map(|at| version(reader, at));
            let place = VaultPlace::Kv2 {
                mount: mount?,
                path: path?,
                version: whole(version)?,
            };
            Some((place, whole(key)?))
        }
        (None, None, Some(engine)) => {
            let path = path(reader, &engine.path);
            let key = engine.key.as_ref().map(|at| word(reader, "key", at));
            Some((VaultPlace::Engine { path: path? }, whole(key)?))
        }
        _ => {
            reader.wrong(
                at,
                "fender::one-of",
                "a secret of Vault is in one place",
                "write one of `kv1`, `kv2` and `engine`; another place is another credential",
            );
            None
        }
    }
}

fn version(reader: &mut Reader<'_>, at: &At<i64>) -> Option<u32> {
    let version = u32::try_from(at.value).ok().filter(|version| *version > 0);
    if version.is_none() {
        let message = format!("`version` cannot be {}", at.value);
        let help = "versions begin with 1; leave `version` out to have the newest";
        reader.wrong(at, "fender::bad-number", message, help);
    }
    version
}

fn mount(reader: &mut Reader<'_>, at: Option<&At<String>>, default: &str) -> Option<VaultPath> {
    match at {
        Some(at) => path(reader, at),
        None => default.parse().ok(),
    }
}

fn path(reader: &mut Reader<'_>, at: &At<String>) -> Option<VaultPath> {
    let help = "segments between single slashes, with none at the beginning or the end, and without `.` and `..`";
    reader.parse(at, "fender::bad-vault-path", help)
}

/// A key, a role, a role id: one line.
fn word(reader: &mut Reader<'_>, what: &str, at: &At<String>) -> Option<String> {
    let text = &at.value;
    if text.is_empty() || text.len() > LONGEST || text.chars().any(char::is_control) {
        let message = format!("`{}` cannot be a {what} of Vault", text.escape_default());
        let help = "one line of at most 256 bytes";
        reader.wrong(at, "fender::bad-vault-name", message, help);
        return None;
    }
    Some(text.clone())
}
