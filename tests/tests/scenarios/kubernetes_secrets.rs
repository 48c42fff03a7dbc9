//! Secrets of Kubernetes reach the application when they change, by the sidecar and through the control plane, whatever
//! becomes of the API (DESIGN §9). The API answers as Kubernetes' documentation says; the guide says how to try a real one.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use fender_tests::kubernetes::{Api, Mode};
use fender_tests::pki::{Authority, Template};
use fender_tests::process::{PATIENCE, binary, free_address, installed, output};
use fender_tests::{Mesh, Process, wait_until};
use rustix::process::Signal;
use serde_json::json;

use crate::control_loss::one_service;
use crate::standalone::ORDERS;

/// In every value and token, and in every error of the API; nothing that Fender writes may hold it.
const CANARY: &str = "canary";

struct World {
    api: Api,
    mesh: Mesh,
}

impl World {
    /// A workload `shop/orders` with the credential `smtp`, of the key `password` of the Secret `shop/smtp`; and `all`, of
    /// the whole of it.
    fn new(via: &str) -> Self {
        let authority = Authority::new("cluster.test");
        let api = Api::start(&authority);
        let mesh = Mesh::start(&one_service("1h", free_address(), free_address()));
        fs::create_dir(mesh.path("delivered")).unwrap();
        let roots = authority.write_bundle(&mesh.path("access"));
        api.write_token(&mesh.path("access/token"));
        api.allow("smtp", true);
        let mut documents = fs::read_to_string(mesh.path("documents/mesh.yaml"))
            .unwrap()
            .replace(
                "  dnsNames: [ localhost ]\n",
                "  dnsNames: [ localhost ]\n  credentials: [ smtp, all ]\n",
            );
        for (name, key) in [("smtp", "key: password, "), ("all", "")] {
            documents += &format!(
                r#"---
apiVersion: fender.dev/v1
kind: Credential
metadata: {{ namespace: shop, name: {name} }}
spec:
  source:
    kubernetesSecret:
      name: smtp
      namespace: shop
      {key}
      cluster: {{ api: "{}", roots: {{ file: "{}" }}, token: {{ file: "{}" }} }}
      via: {via}
  maxStale: 1s
  deliver: [ {{ file: {{ path: "{}", storage: disk }} }} ]
"#,
                api.url(),
                roots.display(),
                mesh.path("access/token").display(),
                mesh.path(format!("delivered/{name}")).display(),
                key = key.trim_end_matches(", "),
            );
        }
        let (code, out, err) = mesh.apply(&documents);
        assert_eq!(code, 0, "{out}{err}");
        assert!(!err.contains("--allow-dir"), "{err}");
        Self { api, mesh }
    }

    fn write(&self, value: &str) {
        let data: [(&str, &[u8]); 2] = [("password", value.as_bytes()), ("user", b"app")];
        self.api.write("shop", "smtp", &data);
    }

    fn delivered(&self, name: &str) -> Option<String> {
        fs::read_to_string(self.mesh.path("delivered").join(name)).ok()
    }

    /// Until both credentials are of this value.
    fn wait_for(&self, value: Option<&str>) {
        let whole = value.map(|value| format!(r#"{{"password":"{value}","user":"app"}}"#));
        wait_until(&format!("{value:?} is delivered"), PATIENCE, || {
            self.delivered("smtp").as_deref() == value && self.delivered("all") == whole
        });
    }

    /// What the sidecar says of its credentials.
    fn told(&self) -> String {
        let socket = self.mesh.admin_socket("shop/orders");
        let (_, out, err) = output(
            binary(),
            &["status", "--sidecar", &socket.to_string_lossy()],
        );
        format!("{out}{err}")
    }

    fn wait_until_outdated(&self) {
        wait_until("the credential is outdated", PATIENCE, || {
            self.told().contains("shop/smtp outdated for ")
        });
    }

    fn assert_nothing_is_shown(&self) {
        for log in fs::read_dir(self.mesh.path("logs")).unwrap() {
            let log = log.unwrap().path();
            let text = fs::read_to_string(&log).unwrap();
            assert!(!text.is_empty(), "{}", log.display());
            assert!(!text.contains(CANARY), "{}:\n{text}", log.display());
        }
        assert!(!self.told().contains(CANARY), "{}", self.told());
    }
}

/// Changes, ends of watches, outages, wishes, refusals, deletion: and the files are right each time.
fn the_files_follow_the_secret(via: &str) {
    let world = World::new(via);
    let api = &world.api;
    world.write("canary-1");
    let mut sidecar = world.mesh.sidecar("shop/orders", &[]);
    world.wait_for(Some("canary-1"));
    world.write("canary-2");
    world.wait_for(Some("canary-2"));

    // However a watch ends, what happens then is known.
    for (number, end) in [Api::close, Api::cut, Api::compact].into_iter().enumerate() {
        api.bookmark();
        end(api);
        let value = format!("canary-end-{number}");
        world.write(&value);
        world.wait_for(Some(&value));
    }
    // Attack: what is told of others is not believed to be this one's.
    let before = world.delivered("smtp").unwrap();
    api.tell_of("other", json!({ "password": "Y2FuYXJ5LXN0b2xlbg==" }));
    api.tell_of("smtp", json!({ "password": ["canary-no-base64"] }));
    world.write("canary-3");
    world.wait_for(Some("canary-3"));
    assert!(!before.contains("stolen"));

    for (number, mode) in [
        Mode::Away,
        Mode::Status(503, None),
        Mode::Status(429, Some(1)),
        Mode::Status(500, None),
        Mode::Status(307, None),
        Mode::Nonsense,
    ]
    .into_iter()
    .enumerate()
    {
        let before = world.delivered("smtp");
        api.be(mode);
        world.wait_until_outdated();
        let value = format!("canary-outage-{number}");
        world.write(&value);
        assert_eq!(world.delivered("smtp"), before, "{mode:?}");
        api.be(Mode::Answers);
        world.wait_for(Some(&value));
        // And it is watched again.
        let value = format!("canary-after-{number}");
        world.write(&value);
        world.wait_for(Some(&value));
    }

    // Attack: a line without end is neither kept nor waited for. What is listed counts.
    api.be(Mode::Endless);
    world.write("canary-4");
    world.wait_for(Some("canary-4"));
    api.be(Mode::Answers);
    world.write("canary-5");
    world.wait_for(Some("canary-5"));

    // A token that is known no more says nothing of the Secret, and another one is read when it is there.
    api.forget_tokens();
    api.cut();
    world.wait_until_outdated();
    world.write("canary-6");
    assert_eq!(world.delivered("smtp").as_deref(), Some("canary-5"));
    api.write_token(&world.mesh.path("access/token"));
    world.wait_for(Some("canary-6"));

    // Who may do it no more goes on until the watch ends.
    api.allow("smtp", false);
    world.write("canary-7");
    world.wait_for(Some("canary-7"));
    api.cut();
    world.wait_for(None);
    api.allow("smtp", true);
    world.wait_for(Some("canary-7"));
    api.delete("shop", "smtp");
    world.wait_for(None);
    api.write_immutable(
        "shop",
        "smtp",
        &[("password", b"canary-8"), ("user", b"app")],
    );
    world.wait_for(Some("canary-8"));

    sidecar.assert_running();
    world.assert_nothing_is_shown();
    for asked in api.asked() {
        let one = "/api/v1/namespaces/shop/secrets?fieldSelector=metadata.name%3Dsmtp";
        assert!(asked.starts_with(one), "{asked}");
    }
    sidecar.signal(Signal::TERM);
    assert!(sidecar.wait(PATIENCE).success(), "{}", sidecar.log());
    assert_eq!(world.delivered("smtp"), None);
}

#[test]
fn the_files_follow_the_secret_by_the_sidecar() {
    the_files_follow_the_secret("sidecar");
}

#[test]
fn the_files_follow_the_secret_through_the_control_plane() {
    the_files_follow_the_secret("control");
}

/// Where the kubelet mounts what a pod needs, and how: what is there changes at once, by one link.
const ACCOUNT: &str = "run/secrets/kubernetes.io/serviceaccount";

/// Another projection of a service account's files, for `directory`.
fn project(directory: &Path, api: &Api, authority: &Authority, name: &str) {
    let projection = directory.join(name);
    authority.write_bundle(&projection);
    fs::rename(projection.join("bundle.pem"), projection.join("ca.crt")).unwrap();
    fs::write(projection.join("token"), api.token()).unwrap();
    fs::write(projection.join("namespace"), "shop").unwrap();
    symlink(name, directory.join("..data_tmp")).unwrap();
    fs::rename(directory.join("..data_tmp"), directory.join("..data")).unwrap();
    for file in ["ca.crt", "token", "namespace"] {
        let link = directory.join(file);
        if !link.is_symlink() {
            symlink(format!("..data/{file}"), link).unwrap();
        }
    }
}

/// A command that runs as in a pod: with a `/run` of its own, made of `run` in `directory`, and the kubelet's variables.
fn in_a_pod(directory: &Path, api: &Api) -> Command {
    let mut command = Command::new(installed("unshare"));
    command
        .env_clear()
        .env("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin")
        .env("KUBERNETES_SERVICE_HOST", api.address.ip().to_string())
        .env("KUBERNETES_SERVICE_PORT", api.address.port().to_string())
        .args(["--mount", "--", "sh", "-c"])
        .arg("mount --bind \"$0\" /run && exec \"$@\"")
        .arg(directory.join("run"))
        .arg(binary());
    command
}

fn credential(place: &str, deliver: &str) -> String {
    format!(
        "---\napiVersion: fender.dev/v1\nkind: Credential\nmetadata: {{ namespace: shop, name: smtp }}\nspec:\n  \
         source: {{ kubernetesSecret: {{ {place} }} }}\n  deliver: [ {deliver} ]\n"
    )
}

#[test]
fn in_a_pod_nothing_but_the_name_is_needed_and_what_the_kubelet_replaces_is_read_anew() {
    let directory = tempfile::tempdir().unwrap();
    let here = directory.path();
    let authority = Authority::new("cluster.test");
    let api = Api::start(&authority);
    api.allow("smtp", true);
    api.write("shop", "smtp", &[("password", b"canary-1")]);
    let account = here.join(ACCOUNT);
    fs::create_dir_all(&account).unwrap();
    project(&account, &api, &authority, "..2026_01");
    let identity = here.join("identity");
    let mesh = Authority::new("example.org");
    mesh.issue(&Template::svid(ORDERS)).write(&identity);
    mesh.write_bundle(&identity);
    let delivered = here.join("delivered");
    fs::create_dir(&delivered).unwrap();
    let config = here.join("sidecar.yaml");
    let identity = identity.display();
    let documents = format!(
        "apiVersion: fender.dev/v1\nkind: Sidecar\nmetadata: {{ namespace: shop, name: orders }}\nspec:\n  \
         identity: {{ files: {{ certificate: {identity}/certificate.pem, key: {identity}/key.pem, bundle: {identity}/bundle.pem }} }}\n  \
         credentials: [ smtp ]\n"
    ) + &credential(
        "name: smtp, key: password",
        &format!(
            "{{ file: {{ path: \"{}/smtp\", storage: disk }} }}",
            delivered.display()
        ),
    );
    fs::write(&config, documents).unwrap();
    let mut command = in_a_pod(here, &api);
    command
        .args(["--log", "debug", "sidecar", "--admin-socket"])
        .arg(here.join("admin.sock"))
        .arg("--config")
        .arg(&config);
    let mut sidecar = Process::start("pod", &mut command, &here.join("log"));
    sidecar.wait_ready(&here.join("admin.sock"));
    let value = || fs::read_to_string(delivered.join("smtp")).ok();
    assert_eq!(value().as_deref(), Some("canary-1"));
    // Another token, other roots, another certificate of the API: and the sidecar is confined since before.
    project(&account, &api, &authority, "..2026_02");
    fs::remove_dir_all(account.join("..2026_01")).unwrap();
    api.cut();
    api.write("shop", "smtp", &[("password", b"canary-2")]);
    wait_until("another value is delivered", PATIENCE, || {
        value().as_deref() == Some("canary-2")
    });
    sidecar.signal(Signal::TERM);
    assert!(sidecar.wait(PATIENCE).success(), "{}", sidecar.log());
    assert!(!sidecar.log().contains(CANARY), "{}", sidecar.log());
}

#[test]
fn exec_asks_the_cluster_it_runs_in_and_its_exit_code_says_what_was_wrong() {
    let directory = tempfile::tempdir().unwrap();
    let here = directory.path();
    let authority = Authority::new("cluster.test");
    let api = Api::start(&authority);
    for name in ["smtp", "absent"] {
        api.allow(name, true);
    }
    api.write("shop", "smtp", &[("password", b"canary-1")]);
    api.write("other", "smtp", &[("password", b"canary-2")]);
    api.write("shop", "admin", &[("password", b"canary-3")]);
    let account = here.join(ACCOUNT);
    fs::create_dir_all(&account).unwrap();
    project(&account, &api, &authority, "..2026_01");
    let exec = |place: &str| {
        let config = here.join("job.yaml");
        let documents = "apiVersion: fender.dev/v1\nkind: Sidecar\nmetadata: { namespace: shop, name: job }\nspec: { credentials: [ smtp ] }\n"
            .to_owned()
            + &credential(place, "{ environment: { variable: SMTP } }");
        fs::write(&config, documents).unwrap();
        let output = in_a_pod(here, &api)
            .args(["--log", "debug", "exec", "--config"])
            .arg(&config)
            // Backwards, so that what Fender wrote of it can be told apart.
            .args(["--start-timeout", "3s", "--", "/bin/sh", "-c"])
            .arg("printf %s \"$SMTP\" | rev")
            .output()
            .unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let err = text(&output.stderr);
        assert!(!err.contains(CANARY), "{err}");
        (output.status.code(), text(&output.stdout), err)
    };
    for (mode, place, code, out) in [
        (Mode::Answers, "name: smtp, key: password", 0, "1-yranac"),
        (
            Mode::Answers,
            "name: smtp, namespace: other, key: password",
            0,
            "2-yranac",
        ),
        (Mode::Answers, "name: smtp", 0, r#"}"1-yranac":"drowssap"{"#),
        (Mode::Answers, "name: smtp, key: absent", 66, ""),
        (Mode::Answers, "name: absent, key: password", 66, ""),
        // Attack: no Role names that one, whatever a document names.
        (Mode::Answers, "name: admin, key: password", 66, ""),
        (Mode::Away, "name: smtp, key: password", 75, ""),
        (
            Mode::Status(429, Some(3600)),
            "name: smtp, key: password",
            75,
            "",
        ),
        (Mode::Nonsense, "name: smtp, key: password", 75, ""),
    ] {
        api.be(mode);
        let (ended, said, err) = exec(place);
        assert_eq!(
            (ended, said.as_str()),
            (Some(code), out),
            "{mode:?} {place}: {err}"
        );
    }
    api.be(Mode::Answers);
    // Who may only list would never learn of a change.
    api.allow_watching(false);
    let (code, _, err) = exec("name: smtp, key: password");
    assert_eq!(code, Some(66));
    assert!(err.contains("`list` and `watch`"), "{err}");
    api.allow_watching(true);
    api.forget_tokens();
    let (code, _, err) = exec("name: smtp, key: password");
    assert_eq!(code, Some(75));
    assert!(err.contains("status 401"), "{err}");
}
