//! What `fender init` and `fender watch` are tried with: files that are delivered, by documents on this machine or from a control plane.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use fender_tests::Mesh;
use fender_tests::process::free_address;
use tempfile::TempDir;

use crate::control_loss::one_service;

/// A directory with a Sidecar that has no identity and these credentials, each as `NAME: spec`.
pub(crate) fn alone(credentials: &[(&str, String)]) -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    fs::create_dir(directory.path().join("out")).unwrap();
    let config = directory.path().join("sidecar.yaml");
    write_alone(directory.path(), credentials);
    (directory, config)
}

/// `DIR` in a specification is the directory.
pub(crate) fn write_alone(directory: &Path, credentials: &[(&str, String)]) {
    let names: Vec<_> = credentials.iter().map(|(name, _)| *name).collect();
    let mut text = format!(
        "apiVersion: fender.dev/v1\nkind: Sidecar\nmetadata: {{ namespace: shop, name: job }}\nspec: {{ credentials: [ {} ] }}\n",
        names.join(", ")
    );
    for (name, spec) in credentials {
        let spec = spec.replace("DIR", directory.to_str().unwrap());
        text += &format!(
            "---\napiVersion: fender.dev/v1\nkind: Credential\nmetadata: {{ namespace: shop, name: {name} }}\nspec: {{ {spec} }}\n"
        );
    }
    let fresh = directory.join("sidecar.fresh");
    fs::write(&fresh, text).unwrap();
    fs::rename(fresh, directory.join("sidecar.yaml")).unwrap();
}

/// From `DIR/NAME` to `DIR/out/NAME`.
pub(crate) fn file(name: &str) -> (&str, String) {
    let spec = format!(
        "source: {{ file: {{ path: \"DIR/{name}\" }} }}, maxStale: 1s, \
         deliver: [ {{ file: {{ path: \"DIR/out/{name}\", mode: \"0440\", storage: disk }} }} ]"
    );
    (name, spec)
}

/// A mesh whose workload `shop/orders` has one credential, which the control plane reads: from `source` to `out/smtp`.
pub(crate) fn by_control(listen: SocketAddr, value: &str) -> Mesh {
    let mesh = Mesh::start(&one_service("1h", listen, free_address()));
    replace(&mesh.path("source"), value);
    fs::create_dir(mesh.path("out")).unwrap();
    let documents = fs::read_to_string(mesh.path("documents/mesh.yaml")).unwrap();
    let listed = "  dnsNames: [ localhost ]\n  credentials: [ smtp ]\n";
    let documents = documents.replace("  dnsNames: [ localhost ]\n", listed)
        + &format!(
            "---\napiVersion: fender.dev/v1\nkind: Credential\nmetadata: {{ namespace: shop, name: smtp }}\nspec:\n  \
             source: {{ file: {{ path: \"{0}/source\", via: control }} }}\n  \
             deliver: [ {{ file: {{ path: \"{0}/out/smtp\", storage: disk }} }} ]\n",
            mesh.directory.path().display()
        );
    let (code, out, err) = mesh.apply(&documents);
    assert_eq!(code, 0, "{out}{err}");
    mesh
}

/// Whole or not at all.
pub(crate) fn replace(path: &Path, text: &str) {
    let fresh = path.with_extension("fresh");
    fs::write(&fresh, text).unwrap();
    fs::rename(fresh, path).unwrap();
}
