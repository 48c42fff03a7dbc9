//! A secret of a real engine reaches the application: of Compose, of Swarm; and one that the service was not given does
//! not (DESIGN §9).

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use fender_tests::docker::Engine;
use fender_tests::pki::{Authority, Template};
use fender_tests::process::{PATIENCE, binary, installed, output};
use fender_tests::wait_until;
use tempfile::TempDir;

const IMAGE: &str = "secret:local";
/// The value; nothing that Fender writes may hold it.
const CANARY: &str = "canary-c41e07d2-docker";

/// What the service runs on; the secret is delivered both ways.
const DOCUMENTS: &str = r#"apiVersion: fender.dev/v1
kind: Sidecar
metadata: { namespace: shop, name: job }
spec:
  identity: { files: { certificate: /identity/certificate.pem, key: /identity/key.pem, bundle: /identity/bundle.pem } }
  credentials: [ smtp ]
---
apiVersion: fender.dev/v1
kind: Credential
metadata: { namespace: shop, name: smtp }
spec:
  source: { dockerSecret: { name: smtp_password } }
  deliver:
    - environment: { variable: SMTP_PASSWORD }
    - file: { path: /run/credentials/smtp }
"#;

const COMPOSE: &str = r#"version: "3.8"
services:
  by-exec:
    image: secret:local
    command: [ exec, --config, /job.yaml, --, /busybox, sh, -c, 'echo "it is $$SMTP_PASSWORD" | /busybox rev' ]
    environment: { FENDER_LOG: debug }
    secrets: [ smtp_password ]
  by-sidecar:
    image: secret:local
    command: [ sidecar, --config, /job.yaml, --, /busybox, sh, -c, '/busybox rev /run/credentials/smtp' ]
    environment: { FENDER_LOG: debug }
    tmpfs: [ "/run/credentials:mode=0700" ]
    secrets: [ smtp_password ]
  in-time:
    image: secret:local
    command: [ exec, --config, /job.yaml, --start-timeout, 1s, --, /busybox, echo, started ]
    secrets: [ smtp_password ]
  without:
    image: secret:local
    command: [ exec, --config, /job.yaml, --, /busybox, echo, started ]
secrets:
  smtp_password: { file: ./smtp }
"#;

/// An engine with an image of Fender, a shell and the documents.
struct Project {
    engine: Engine,
    directory: TempDir,
}

impl Project {
    fn start() -> Self {
        let directory = tempfile::Builder::new()
            .prefix("fender-secrets-")
            .tempdir()
            .unwrap();
        let path = |name: &str| directory.path().join(name);
        for (from, to) in [
            (binary(), path("fender")),
            (installed("busybox"), path("busybox")),
        ] {
            fs::copy(from, &to).unwrap();
            fs::set_permissions(&to, fs::Permissions::from_mode(0o755)).unwrap();
        }
        fs::write(path("job.yaml"), DOCUMENTS).unwrap();
        let authority = Authority::new("example.org");
        let job = Template::svid("spiffe://example.org/ns/shop/sa/job");
        authority.issue(&job).write(&path("identity"));
        authority.write_bundle(&path("identity"));
        fs::write(path("smtp"), CANARY).unwrap();
        fs::write(path("docker-compose.yml"), COMPOSE).unwrap();
        let dockerfile = "FROM scratch\nCOPY fender busybox job.yaml /\nCOPY identity /identity\nENTRYPOINT [\"/fender\"]\n";
        fs::write(path("Dockerfile"), dockerfile).unwrap();
        let project = Self {
            engine: Engine::start(),
            directory,
        };
        let context = project.directory.path().to_str().unwrap();
        project.docker(&["build", "--quiet", "--tag", IMAGE, context]);
        project
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn docker(&self, arguments: &[&str]) -> String {
        let (code, out, err) = self.engine.docker(arguments);
        assert_eq!(code, 0, "docker {}: {out}{err}", arguments.join(" "));
        out
    }

    /// Runs one service to its end.
    fn run(&self, service: &str) -> (i32, String, String) {
        self.engine
            .compose(self.directory.path(), &["run", "--rm", "-T", service])
    }
}

/// The value as the application wrote it: backwards, so that what Fender wrote of it can be told apart.
fn backwards(text: &str) -> String {
    text.chars().rev().collect()
}

#[test]
fn a_secret_of_compose_reaches_the_command_and_the_file_and_no_log() {
    let project = Project::start();
    for (service, expected) in [
        ("by-exec", backwards(&format!("it is {CANARY}"))),
        ("by-sidecar", backwards(CANARY)),
    ] {
        let (code, out, err) = project.run(service);
        assert_eq!((code, out.trim()), (0, &*expected), "{service}: {err}");
        // `fender exec` has nothing to tell; the sidecar says at this level how it is confined.
        let told = service == "by-exec" || err.contains("Landlock");
        assert!(told, "{service} logs: {err}");
        assert!(
            !err.contains(CANARY),
            "{service}: the value is in the log:\n{err}"
        );
    }

    // No secret of Swarm is that large, and none is nothing: malformed, for as long as it may take.
    for size in [600 * 1024, 0] {
        fs::write(project.path("smtp"), "x".repeat(size)).unwrap();
        let (code, out, err) = project.run("in-time");
        assert_eq!((code, out.as_str()), (75, ""), "{size} bytes: {err}");
        assert!(err.contains("malformed"), "{size} bytes: {err}");
    }

    let (code, out, err) = project.run("without");
    assert_eq!(code, 66, "{out}{err}");
    assert!(
        !out.contains("started"),
        "the command ran without its secret"
    );
    assert!(
        err.contains("smtp_password") && err.contains("/run/secrets"),
        "what and where: {err}"
    );
}

#[test]
fn a_secret_of_swarm_reaches_the_command() {
    let project = Project::start();
    let address = "127.0.0.1";
    project.docker(&[
        "swarm",
        "init",
        "--advertise-addr",
        address,
        "--listen-addr",
        address,
    ]);
    let file = project.path("smtp");
    project.docker(&["secret", "create", "smtp_password", file.to_str().unwrap()]);
    let script = "echo \"it is $SMTP_PASSWORD\" | /busybox rev";
    project.docker(
        &[
            &[
                "service",
                "create",
                "--detach",
                "--no-resolve-image",
                "--name",
                "job",
            ],
            &[
                "--restart-condition",
                "none",
                "--secret",
                "smtp_password",
                IMAGE,
            ][..],
            &[
                "exec",
                "--config",
                "/job.yaml",
                "--",
                "/busybox",
                "sh",
                "-c",
                script,
            ],
        ]
        .concat(),
    );
    let tasks = [
        "service",
        "ps",
        "job",
        "--no-trunc",
        "--format",
        "{{.CurrentState}} {{.Error}}",
    ];
    wait_until("the task ends", PATIENCE, || {
        let state = project.docker(&tasks);
        assert!(
            !state.contains("Failed") && !state.contains("Rejected"),
            "{state}"
        );
        state.contains("Complete")
    });
    let expected = backwards(&format!("it is {CANARY}"));
    wait_until("its output arrives", PATIENCE, || {
        project
            .docker(&["service", "logs", "--raw", "job"])
            .contains(&expected)
    });
}

#[test]
fn a_directory_of_its_own_is_read_without_an_engine_and_no_link_leads_out_of_it() {
    let directory = tempfile::tempdir().unwrap();
    let secrets = directory.path().join("secrets");
    fs::create_dir(&secrets).unwrap();
    fs::write(secrets.join("smtp_password"), CANARY).unwrap();
    let config = directory.path().join("job.yaml");
    let named = format!("name: smtp_password, directory: \"{}\"", secrets.display());
    fs::write(&config, DOCUMENTS.replace("name: smtp_password", &named)).unwrap();
    let (code, out, err) = exec(&config);
    assert_eq!((code, out.as_str()), (0, CANARY), "{err}");

    fs::rename(
        secrets.join("smtp_password"),
        directory.path().join("elsewhere"),
    )
    .unwrap();
    std::os::unix::fs::symlink("../elsewhere", secrets.join("smtp_password")).unwrap();
    let (code, out, err) = exec(&config);
    assert_eq!((code, out.as_str()), (66, ""), "{err}");
    assert!(err.contains("outside its directory"), "{err}");
    assert!(!err.contains(CANARY), "{err}");
}

fn exec(config: &Path) -> (i32, String, String) {
    let config = config.to_str().unwrap();
    let print = "printf %s \"$SMTP_PASSWORD\"";
    output(
        binary(),
        &["exec", "--config", config, "--", "/bin/sh", "-c", print],
    )
}
