//! Secrets of AWS reach the application, by the sidecar and through the control plane, with the credentials of the machine and of no
//! document (DESIGN §9, §14). moto answers as AWS; what it cannot do, a server of ours does.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use fender_tests::aws::{FakeAws, Mode, Moto, REGION};
use fender_tests::pki::{Authority, Template};
use fender_tests::process::{PATIENCE, binary, free_address, output, wait_for_port};
use fender_tests::{Mesh, Process, wait_until};
use rustix::process::Signal;
use serde_json::json;
use tempfile::TempDir;

use crate::control_loss::one_service;

/// In every value, key and token; nothing that Fender writes may hold it.
const CANARY: &str = "canary";
const KEYS: [(&str, &str); 2] = [
    ("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE"),
    ("AWS_SECRET_ACCESS_KEY", "canary-secret-access-key"),
];

/// For each credential its name and what stands in `aws` beside the region.
fn documents(mesh: &Mesh, via: &str, credentials: &[(&str, &str)]) -> String {
    let names: Vec<_> = credentials.iter().map(|(name, _)| *name).collect();
    let listed = format!(
        "  dnsNames: [ localhost ]\n  credentials: [ {} ]\n",
        names.join(", ")
    );
    let mut documents = fs::read_to_string(mesh.path("documents/mesh.yaml"))
        .unwrap()
        .replace("  dnsNames: [ localhost ]\n", &listed);
    for (name, rest) in credentials {
        documents += &format!(
            r#"---
apiVersion: fender.dev/v1
kind: Credential
metadata: {{ namespace: shop, name: {name} }}
spec:
  source: {{ aws: {{ region: {REGION}, {rest}, refresh: 1s, via: {via} }} }}
  maxStale: 1s
  deliver: [ {{ file: {{ path: "{}", storage: disk }} }} ]
"#,
            mesh.path(format!("delivered/{name}")).display(),
        );
    }
    documents
}

fn one() -> String {
    one_service("1h", free_address(), free_address())
}

/// A sidecar with these variables, that may have `patterns` read; ready.
fn sidecar(mesh: &Mesh, variables: &[(&str, &str)], patterns: &[&str]) -> Process {
    let token = mesh.token("shop/orders", "5m");
    let mut command = mesh.sidecar_command("shop/orders", Some(&token));
    command.envs(variables.iter().copied());
    for pattern in patterns {
        command.args(["--allow-aws", pattern]);
    }
    let mut process = Process::start("sidecar", &mut command, &mesh.path("logs/sidecar.log"));
    mesh.wait_ready("shop/orders", &mut process);
    process
}

fn delivered(mesh: &Mesh, name: &str) -> Option<String> {
    fs::read_to_string(mesh.path("delivered").join(name)).ok()
}

fn wait_for(mesh: &Mesh, name: &str, text: Option<&str>) {
    let what = format!("`{name}` holds {text:?}");
    wait_until(&what, PATIENCE, || delivered(mesh, name).as_deref() == text);
}

fn told(mesh: &Mesh) -> String {
    let socket = mesh.admin_socket("shop/orders");
    let (_, out, err) = output(
        binary(),
        &["status", "--sidecar", &socket.to_string_lossy()],
    );
    format!("{out}{err}")
}

fn wait_until_outdated(mesh: &Mesh, name: &str) {
    let outdated = format!("shop/{name} outdated for ");
    wait_until("the credential is outdated", PATIENCE, || {
        told(mesh).contains(&outdated)
    });
}

/// Nothing that was written, but where it was to be written to, holds a secret.
fn assert_nothing_is_shown(mesh: &Mesh) {
    for log in fs::read_dir(mesh.path("logs")).unwrap() {
        let log = log.unwrap().path();
        let text = fs::read_to_string(&log).unwrap();
        assert!(!text.contains(CANARY), "{}:\n{text}", log.display());
    }
    assert!(!told(mesh).contains(CANARY), "{}", told(mesh));
}

/// Stages, keys, versions, rotation, deletion.
fn the_files_follow_aws(via: &str) {
    let directory = tempfile::tempdir().unwrap();
    let moto = Moto::start(directory.path());
    let url = moto.url();
    let variables = [KEYS[0], KEYS[1], ("AWS_ENDPOINT_URL", &url)];
    let mesh = match via {
        "control" => Mesh::start_asking_aws(&one(), "secretsmanager:shop/*", &variables),
        _ => Mesh::start(&one()),
    };
    fs::create_dir(mesh.path("delivered")).unwrap();
    moto.create_secret("shop/smtp", r#"{"user":"orders","password":"canary-1"}"#);
    moto.put_secret("shop/smtp", r#"{"user":"orders","password":"canary-2"}"#);
    let of = |more: &str| format!("secretsManager: {{ secretId: shop/smtp, {more} }}");
    let [user, current, previous] = [
        of("key: user"),
        of("key: password"),
        of("versionStage: AWSPREVIOUS, key: password"),
    ];
    let (code, out, err) = mesh.apply(&documents(
        &mesh,
        via,
        &[
            ("user", &user),
            ("current", &current),
            ("previous", &previous),
        ],
    ));
    assert_eq!(code, 0, "{out}{err}");
    assert!(!out.contains("--allow-aws"), "{out}{err}");
    let mut sidecar = match via {
        "control" => sidecar(&mesh, &[], &[]),
        _ => sidecar(&mesh, &variables, &["secretsmanager:shop/*"]),
    };
    let all = || ["user", "current", "previous"].map(|name| delivered(&mesh, name).unwrap());
    assert_eq!(all(), ["orders", "canary-2", "canary-1"]);

    moto.put_secret("shop/smtp", r#"{"user":"orders","password":"canary-3"}"#);
    wait_for(&mesh, "current", Some("canary-3"));
    wait_for(&mesh, "previous", Some("canary-2"));
    assert_eq!(all(), ["orders", "canary-3", "canary-2"]);

    // It waits for its deletion, and is taken back.
    let question = json!({ "SecretId": "shop/smtp", "RecoveryWindowInDays": 7 });
    moto.call("secretsmanager.DeleteSecret", &question);
    for name in ["user", "current", "previous"] {
        wait_for(&mesh, name, None);
    }
    let question = json!({ "SecretId": "shop/smtp" });
    moto.call("secretsmanager.RestoreSecret", &question);
    wait_for(&mesh, "current", Some("canary-3"));

    sidecar.assert_running();
    assert_nothing_is_shown(&mesh);
    sidecar.signal(Signal::TERM);
    assert!(sidecar.wait(PATIENCE).success(), "{}", sidecar.log());
    assert_eq!(delivered(&mesh, "current"), None);
}

#[test]
fn the_files_follow_aws_by_the_sidecar() {
    the_files_follow_aws("sidecar");
}

#[test]
fn the_files_follow_aws_through_the_control_plane() {
    the_files_follow_aws("control");
}

#[test]
fn a_secure_string_is_decrypted_and_its_versions_are_had() {
    let directory = tempfile::tempdir().unwrap();
    let moto = Moto::start(directory.path());
    let url = moto.url();
    let mesh = Mesh::start(&one());
    fs::create_dir(mesh.path("delivered")).unwrap();
    moto.put_parameter("/shop/smtp", "canary-1");
    let (code, out, err) = mesh.apply(&documents(
        &mesh,
        "sidecar",
        &[
            ("newest", "parameter: { name: /shop/smtp }"),
            ("first", "parameter: { name: /shop/smtp, version: 1 }"),
            (
                "at",
                &format!("endpoint: \"{url}\", parameter: {{ name: /shop/smtp }}"),
            ),
        ],
    ));
    assert_eq!(code, 0, "{out}{err}");
    let variables = [KEYS[0], KEYS[1], ("AWS_ENDPOINT_URL_SSM", &url)];
    let _sidecar = sidecar(&mesh, &variables, &["ssm:/shop/smtp"]);
    moto.put_parameter("/shop/smtp", "canary-2");
    wait_for(&mesh, "newest", Some("canary-2"));
    wait_for(&mesh, "at", Some("canary-2"));
    assert_eq!(delivered(&mesh, "first").as_deref(), Some("canary-1"));
    let question = json!({ "Name": "/shop/smtp" });
    moto.call("AmazonSSM.DeleteParameter", &question);
    wait_for(&mesh, "newest", None);
    assert_nothing_is_shown(&mesh);
}

#[test]
fn a_document_has_nothing_read_and_nobody_asked_that_was_not_allowed() {
    let aws = FakeAws::in_the_clear();
    let url = aws.url();
    let mesh = Mesh::start_asking_aws(&one(), "ssm:/shop/*", &KEYS);
    fs::create_dir(mesh.path("delivered")).unwrap();
    let plain = "secretsManager: { secretId: shop/smtp }".to_owned();
    let elsewhere = format!("endpoint: \"{url}\", {plain}");
    for (via, place, patterns, wanted) in [
        ("sidecar", &plain, &[][..], "--allow-aws"),
        ("sidecar", &plain, &["secretsmanager:bank/*"], "--allow-aws"),
        (
            "sidecar",
            &elsewhere,
            &["secretsmanager:*"],
            "AWS_ENDPOINT_URL",
        ),
        ("control", &plain, &["secretsmanager:*"], ""),
    ] {
        let (code, out, err) = mesh.apply(&documents(&mesh, via, &[("smtp", place)]));
        assert_eq!(code, 0, "{out}{err}");
        let warned = out.contains("will not be fetched by the control plane");
        assert_eq!(warned, via == "control", "{out}{err}");
        let token = mesh.token("shop/orders", "5m");
        let mut command = mesh.sidecar_command("shop/orders", Some(&token));
        command.envs(KEYS);
        for pattern in patterns {
            command.args(["--allow-aws", pattern]);
        }
        let log = mesh.path(format!("logs/{via}-{}.log", patterns.len()));
        let mut refused = Process::start("refused", &mut command, &log);
        let code = if via == "control" { 66 } else { 77 };
        let ended = refused.wait(PATIENCE).code();
        assert_eq!(ended, Some(code), "{}", refused.log());
        assert!(refused.log().contains(wanted), "{}", refused.log());
        fs::remove_dir_all(mesh.state("shop/orders")).unwrap();
    }
    assert_eq!(aws.count(""), 0, "nobody was asked");
    assert_eq!(delivered(&mesh, "smtp"), None);
}

/// One credential, from a file on this machine.
struct Job {
    directory: TempDir,
}

impl Job {
    /// `aws` is what stands there beside the region.
    fn new(aws: &str, deliver: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        let authority = Authority::new("example.org");
        let svid = Template::svid("spiffe://example.org/ns/shop/sa/job");
        authority.issue(&svid).write(path);
        authority.write_bundle(path);
        let text = format!(
            "apiVersion: fender.dev/v1\nkind: Sidecar\nmetadata: {{ namespace: shop, name: job }}\nspec:\n  \
             identity: {{ files: {{ certificate: {0}/certificate.pem, key: {0}/key.pem, bundle: {0}/bundle.pem }} }}\n  \
             credentials: [ smtp ]\n---\n\
             apiVersion: fender.dev/v1\nkind: Credential\nmetadata: {{ namespace: shop, name: smtp }}\nspec:\n  \
             source: {{ aws: {{ region: {REGION}, {aws}, refresh: 1s }} }}\n  deliver: [ {1} ]\n",
            path.display(),
            deliver.replace("DIR", path.to_str().unwrap())
        );
        fs::write(path.join("job.yaml"), text).unwrap();
        Self { directory }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(binary());
        command
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("HOME", self.directory.path())
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .env("FENDER_LOG", "debug")
            .args(arguments)
            .arg("--config")
            .arg(self.path("job.yaml"))
            .stdin(Stdio::null());
        command
    }

    /// What the command printed of its environment, and what Fender logged.
    fn exec(&self, variables: &[(&str, &str)]) -> (i32, String, String) {
        self.exec_within("120s", variables)
    }

    /// The same, where the time has to end for the answer to come.
    fn exec_in_vain(&self, variables: &[(&str, &str)]) -> (i32, String, String) {
        self.exec_within("15s", variables)
    }

    fn exec_within(&self, time: &str, variables: &[(&str, &str)]) -> (i32, String, String) {
        let mut command = self.command(&["exec", "--start-timeout", time]);
        command.envs(variables.iter().copied());
        let output = command.args(["--", "/usr/bin/env"]).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let code = output.status.code().unwrap_or(-1);
        (code, text(&output.stdout), text(&output.stderr))
    }
}

const IN_VARIABLE: &str = "{ environment: { variable: SMTP } }";

#[test]
fn exec_gives_the_value_to_the_command_and_keeps_the_keys() {
    let directory = tempfile::tempdir().unwrap();
    let moto = Moto::start(directory.path());
    moto.create_secret("smtp", "canary-1");
    let url = moto.url();
    let job = Job::new("secretsManager: { secretId: smtp }", IN_VARIABLE);
    let found = [KEYS[0], KEYS[1], ("AWS_ENDPOINT_URL", &url)];
    let (code, out, err) = job.exec(&found);
    assert_eq!(code, 0, "{err}");
    assert!(out.contains("SMTP=canary-1\n"), "{out}");
    assert!(
        !out.contains("AWS_SECRET") && !out.contains("AWS_ACCESS"),
        "{out}"
    );
    assert!(!err.contains(CANARY), "{err}");
    assert!(err.contains("the environment"), "{err}");

    let absent = Job::new("secretsManager: { secretId: absent }", IN_VARIABLE);
    let (code, _, err) = absent.exec(&found);
    assert_eq!(code, 66, "{err}");
    let (code, _, err) = job.exec_in_vain(&[("AWS_ENDPOINT_URL", &url)]);
    assert_eq!(code, 75, "{err}");
    assert!(err.contains("there are none"), "{err}");

    // A profile, and a role by it.
    fs::create_dir(job.path(".aws")).unwrap();
    let keys = "[base]\naws_access_key_id = AKIDBASE\naws_secret_access_key = canary-base\n";
    fs::write(job.path(".aws/credentials"), keys).unwrap();
    let role = "[profile orders]\nrole_arn = arn:aws:iam::123456789012:role/orders\nsource_profile = base\nregion = eu-central-1\n";
    fs::write(job.path(".aws/config"), role).unwrap();
    let (code, out, err) = job.exec(&[("AWS_PROFILE", "orders"), ("AWS_ENDPOINT_URL", &url)]);
    assert_eq!(code, 0, "{err}");
    assert!(out.contains("SMTP=canary-1\n"), "{out}");
    assert!(
        err.contains("role/orders") && !err.contains(CANARY),
        "{err}"
    );

    // A web identity.
    let token = job.path("token");
    fs::write(&token, "canary-web-identity-token\n").unwrap();
    let (code, out, err) = job.exec(&[
        ("AWS_ENDPOINT_URL", &url),
        ("AWS_REGION", REGION),
        ("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/orders"),
        ("AWS_WEB_IDENTITY_TOKEN_FILE", token.to_str().unwrap()),
    ]);
    assert_eq!(code, 0, "{err}");
    assert!(out.contains("SMTP=canary-1\n"), "{out}");
    assert!(
        err.contains("role/orders") && !err.contains(CANARY),
        "{err}"
    );
}

/// Fender's own URL service is the container's endpoint of another Fender.
#[test]
fn a_containers_endpoint_gives_credentials_to_who_shows_its_token() {
    let directory = tempfile::tempdir().unwrap();
    let moto = Moto::start(directory.path());
    moto.create_secret("smtp", "canary-1");
    let endpoint = free_address();
    let host = Job::new(
        "secretsManager: { secretId: role }",
        "{ url: { form: aws, token: { path: DIR/tokens/aws, storage: disk } } }",
    );
    fs::create_dir(host.path("tokens")).unwrap();
    let role = r#"{"AccessKeyId":"ASIAROLE","SecretAccessKey":"canary-key","Token":"canary-token","Expiration":"2099-01-01T00:00:00Z"}"#;
    moto.create_secret("role", role);
    let url = moto.url();
    let mut command = host.command(&["sidecar", "--credentials-url", &endpoint.to_string()]);
    command.envs(KEYS).env("AWS_ENDPOINT_URL", &url);
    let mut sidecar = Process::start("sidecar", &mut command, &host.path("log"));
    wait_for_port(endpoint, &mut sidecar);
    let token = host.path("tokens/aws");
    wait_until("there is a token", PATIENCE, || token.exists());

    let job = Job::new("secretsManager: { secretId: smtp }", IN_VARIABLE);
    let uri = format!("http://{endpoint}/v1/aws/smtp");
    let set = [
        ("AWS_ENDPOINT_URL", url.as_str()),
        ("AWS_CONTAINER_CREDENTIALS_FULL_URI", &uri),
    ];
    let named = "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE";
    let (code, out, err) = job.exec(&[set[0], set[1], (named, token.to_str().unwrap())]);
    assert_eq!(code, 0, "{err}{}", sidecar.log());
    assert!(out.contains("SMTP=canary-1\n"), "{out}");
    assert!(err.contains("the container's endpoint"), "{err}");
    assert!(!err.contains(CANARY), "{err}");
    let wrong = job.path("wrong");
    fs::write(&wrong, "0".repeat(64)).unwrap();
    let (code, _, err) = job.exec_in_vain(&[set[0], set[1], (named, wrong.to_str().unwrap())]);
    assert_eq!(code, 75, "{err}");
    assert!(err.contains("401"), "{err}");
    assert!(!sidecar.log().contains(CANARY), "{}", sidecar.log());
}

#[test]
fn what_aws_does_otherwise_leaves_the_file_or_withdraws_it() {
    let authority = Authority::new("aws.test");
    let aws = FakeAws::start(&authority);
    let url = aws.url();
    let mesh = Mesh::start(&one());
    fs::create_dir(mesh.path("delivered")).unwrap();
    let roots = authority.write_bundle(&mesh.path("aws"));
    let place = format!(
        "endpoint: \"{url}\", roots: {{ file: \"{}\" }}, secretsManager: {{ secretId: smtp }}",
        roots.display()
    );
    let (code, out, err) = mesh.apply(&documents(&mesh, "sidecar", &[("smtp", &place)]));
    assert_eq!(code, 0, "{out}{err}");
    let variables = [KEYS[0], KEYS[1], ("AWS_ENDPOINT_URL", &url)];
    let mut sidecar = sidecar(&mesh, &variables, &["secretsmanager:smtp"]);
    assert_eq!(delivered(&mesh, "smtp").as_deref(), Some("canary-0"));

    let outages = [
        Mode::Away,
        Mode::Throttled(1),
        Mode::Error(500, "InternalServiceError"),
        Mode::Error(503, "ServiceUnavailable"),
        Mode::Error(400, "ExpiredTokenException"),
        Mode::Redirect(free_address()),
        Mode::Nonsense,
        Mode::Endless,
        Mode::Silent,
    ];
    for (number, mode) in outages.into_iter().enumerate() {
        let before = delivered(&mesh, "smtp");
        aws.be(mode);
        let value = format!("canary-next-{number}");
        aws.write(&value);
        wait_until_outdated(&mesh, "smtp");
        assert_eq!(delivered(&mesh, "smtp"), before, "{mode:?}");
        assert_nothing_is_shown(&mesh);
        aws.be(Mode::Answers);
        wait_for(&mesh, "smtp", Some(&value));
    }
    for code in [
        "AccessDeniedException",
        "DecryptionFailure",
        "ResourceNotFoundException",
    ] {
        aws.be(Mode::Error(400, code));
        wait_for(&mesh, "smtp", None);
        aws.be(Mode::Answers);
        wait_for(&mesh, "smtp", Some("canary-next-8"));
    }
    sidecar.assert_running();
    assert_nothing_is_shown(&mesh);
}

/// The token of a web identity is read where it is confined, replaced as Kubernetes replaces it, and the role renewed before it ends.
#[test]
fn a_confined_sidecar_renews_its_role_with_the_token_of_then() {
    let aws = FakeAws::in_the_clear();
    aws.give_roles_for(20);
    let url = aws.url();
    let job = Job::new(
        "secretsManager: { secretId: smtp }",
        "{ file: { path: DIR/delivered/smtp, storage: disk } }",
    );
    fs::create_dir(job.path("delivered")).unwrap();
    let identity = tempfile::tempdir().unwrap();
    let token = identity.path().join("token");
    fs::write(&token, "canary-token-1").unwrap();
    let mut command = job.command(&["sidecar"]);
    command.envs([
        ("AWS_ENDPOINT_URL", url.as_str()),
        ("AWS_REGION", REGION),
        ("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/orders"),
        ("AWS_WEB_IDENTITY_TOKEN_FILE", token.to_str().unwrap()),
    ]);
    let mut sidecar = Process::start("sidecar", &mut command, &job.path("log"));
    let value = || fs::read_to_string(job.path("delivered/smtp")).unwrap_or_default();
    wait_until("it is delivered", PATIENCE, || {
        sidecar.assert_running();
        value() == "canary-0"
    });
    let next = identity.path().join("next");
    fs::write(&next, "canary-token-2").unwrap();
    fs::rename(&next, &token).unwrap();
    wait_until("the role is renewed", PATIENCE, || {
        aws.count("WebIdentityToken=canary-token-2") > 0
    });
    aws.write("canary-1");
    wait_until("it is delivered", PATIENCE, || value() == "canary-1");
    sidecar.assert_running();
    assert!(!sidecar.log().contains(CANARY), "{}", sidecar.log());
}
