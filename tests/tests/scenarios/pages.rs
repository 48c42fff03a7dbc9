//! Commands of pages that speak of servers elsewhere (Vault, a cluster, a control plane at an example's address): those of Fender are run as
//! they stand, against what stands for these servers here, and each of the others has the reason why not.
//!
//! A block that is new on one of these pages, or another one than before, fails until it is said here what becomes of it.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use fender_tests::kubernetes::Api;
use fender_tests::pki::{Authority, Template};
use fender_tests::process::{PATIENCE, Process, binary, free_address, put_program};
use fender_tests::vault::{Mode, ROLE_ID, Vault};
use fender_tests::{Mesh, wait_until};
use rustix::process::Signal;
use serde_json::json;
use tempfile::TempDir;

use crate::control_loss::one_service;
use crate::standalone::ORDERS;

/// Why a block is not run.
const VAULT: &str = "done to a Vault, by `vault`, which cannot be had here; the server of the tests is told to be so instead";
const CLUSTER: &str = "done to a cluster, by `kubectl`, and none can be had here; the API of the tests is told to be so instead";
const OUTPUT: &str = "what another program writes";
/// And if it is run, or is a part of what is.
const RUN: &str = "run";

/// What is indented on a page, block by block.
fn blocks(page: &str) -> Vec<String> {
    let mut blocks: Vec<String> = Vec::new();
    let (mut fenced, mut goes_on, mut after_blank) = (false, false, true);
    for line in page.lines() {
        fenced ^= line.starts_with("```");
        let code = line.strip_prefix("    ").filter(|_| !fenced);
        match code {
            Some(code) if goes_on => {
                let block = blocks.last_mut().unwrap();
                *block += code;
                block.push('\n');
            }
            Some(code) if after_blank => {
                blocks.push(format!("{code}\n"));
                goes_on = true;
            }
            // Within a block a line may be empty.
            None if goes_on && line.is_empty() => blocks.last_mut().unwrap().push('\n'),
            Some(_) | None => goes_on = false,
        }
        after_blank = line.is_empty();
    }
    blocks
        .iter()
        .map(|block| format!("{}\n", block.trim_end()))
        .collect()
}

/// The blocks of a page that are run, where these are all of its blocks: how each begins, and why it is not run.
fn run_of(page: &str, all: &[(&str, &str)]) -> Vec<String> {
    let blocks = blocks(page);
    let begins: Vec<_> = blocks
        .iter()
        .map(|block| block.lines().next().unwrap())
        .collect();
    let known: Vec<_> = all.iter().map(|(begin, _)| *begin).collect();
    assert_eq!(
        begins, known,
        "the page has other blocks than are known here"
    );
    let run = blocks
        .into_iter()
        .zip(all)
        .filter(|(_, (_, why))| *why == RUN);
    run.map(|(block, _)| block).collect()
}

/// An empty directory, and a shell in it that finds `fender` and what is put into `bin`.
struct Desk(TempDir);

impl Desk {
    fn new() -> Self {
        let desk = Self(
            tempfile::Builder::new()
                .prefix("fender-page-")
                .tempdir_in("/dev/shm")
                .unwrap(),
        );
        fs::create_dir(desk.0.path().join("bin")).unwrap();
        desk
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.0.path().join(name)
    }

    fn shell(&self, script: &str) -> Command {
        let path = format!(
            "{}:{}:/usr/local/bin:/usr/bin:/bin",
            self.path("bin").display(),
            binary().parent().unwrap().display()
        );
        let mut command = Command::new("/bin/bash");
        command
            .args(["-euo", "pipefail", "-c", script])
            .current_dir(self.0.path())
            .env_clear()
            .env("PATH", path)
            .env("HOME", self.0.path())
            .stdin(Stdio::null());
        command
    }

    fn run(&self, script: &str) -> (Option<i32>, String, String) {
        let output = self.shell(script).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (
            output.status.code(),
            text(&output.stdout),
            text(&output.stderr),
        )
    }
}

const VAULT_PAGE: &str = include_str!("../../../docs/guide/verify-vault.md");

const VAULT_BLOCKS: [(&str, &str); 11] = [
    (
        "vault server -dev -dev-tls -dev-tls-cert-dir=vault-tls -dev-root-token-id=root &",
        VAULT,
    ),
    (
        "vault kv put secret/shop/smtp user=orders password=first",
        VAULT,
    ),
    ("===== Secret Path =====", OUTPUT),
    ("cat > job.yaml <<DOCUMENTS", RUN),
    ("  Code: 403. Errors:", OUTPUT),
    (
        "identity: { files: { certificate: /…/identity/certificate.pem, key: /…/identity/key.pem, bundle: /…/identity/bundle.pem } }",
        RUN,
    ),
    ("deliver: [ { file: { path: /dev/shm/orders/smtp } } ]", RUN),
    ("vault secrets enable database", VAULT),
    ("Key                Value", OUTPUT),
    ("vault auth enable cert", VAULT),
    (
        "login: { certificate: { svid: {}, role: orders } }",
        "a part of a document of `vault::the_workload_logs_in…`",
    ),
];

/// A desk with what the page has made by `vault`.
fn vault_desk() -> (Desk, Vault, String, Vec<String>) {
    let run = run_of(VAULT_PAGE, &VAULT_BLOCKS);
    let desk = Desk::new();
    let authority = Authority::new("vault.test");
    let vault = Vault::start(&authority);
    let roots = authority.write_bundle(&desk.path("vault-tls"));
    fs::rename(roots, desk.path("vault-tls/vault-ca.pem")).unwrap();
    vault.write_secret_id(desk.0.path());
    vault.write(
        "shop/smtp",
        json!({ "user": "orders", "password": "first" }),
    );
    let script =
        format!("ROLE_ID={ROLE_ID}\n{}", run[0]).replace("https://127.0.0.1:8200", &vault.url());
    (desk, vault, script, run)
}

#[test]
fn a_secret_of_vault_reaches_a_command_as_the_page_has_it() {
    let (desk, vault, script, _) = vault_desk();
    let (code, out, err) = desk.run(&script);
    assert_eq!((code, out.as_str()), (Some(0), "first\n"), "{err}");

    let (code, _, err) = desk.run(&script.replace("key: password", "key: absent"));
    assert_eq!(code, Some(66), "{err}");
    assert!(
        err.contains("secret/shop/smtp") && err.contains("no `absent`"),
        "{err}"
    );
    vault.deny("secret/data/shop/smtp", true);
    let (code, _, err) = desk.run(&script);
    assert_eq!(code, Some(66), "{err}");
    vault.deny("secret/data/shop/smtp", false);
    vault.delete("shop/smtp");
    let (code, _, err) = desk.run(&script);
    assert_eq!(code, Some(66), "{err}");
    assert!(
        err.contains("version 1") && err.contains("deleted"),
        "{err}"
    );
    vault.be(Mode::Sealed);
    let waits = script.replace("fender exec ", "fender exec --start-timeout 3s ");
    let (code, _, err) = desk.run(&waits);
    assert_eq!(code, Some(75), "{err}");
    assert!(err.contains("Vault is sealed"), "{err}");
}

#[test]
fn a_secret_of_vault_is_kept_fresh_in_a_file_as_the_page_has_it() {
    let (desk, vault, script, run) = vault_desk();
    // The document alone, with what is to be added to it.
    let (document, _) = script.split_once("fender exec").unwrap();
    let (code, _, err) = desk.run(document);
    assert_eq!(code, Some(0), "{err}");
    let authority = Authority::new("example.org");
    authority
        .issue(&Template::svid(ORDERS))
        .write(&desk.path("identity"));
    authority.write_bundle(&desk.path("identity"));
    fs::create_dir(desk.path("orders")).unwrap();
    let own = desk.0.path().display().to_string();
    let identity = run[1].trim().replace("/…", &own);
    // The page shows what stands in the document instead of the environment, and then the command.
    let (deliver, sidecar) = run[2].split_once('\n').unwrap();
    let deliver = deliver.replace("/dev/shm", &own);
    let text = fs::read_to_string(desk.path("job.yaml")).unwrap();
    let text = text
        .replace(
            "credentials: [ smtp ]",
            &format!("credentials: [ smtp ], {identity}"),
        )
        .replace(
            "deliver: [ { environment: { variable: SMTP_PASSWORD } } ]",
            &deliver,
        )
        // As on the page, but that there is no waiting for what a test sees sooner.
        .replace("refresh: 5s", "refresh: 1s");
    fs::write(desk.path("job.yaml"), text).unwrap();
    let file = || fs::read_to_string(desk.path("orders/smtp")).unwrap_or_default();
    let before = vault.tokens();
    let mut process = Process::start(
        "page",
        &mut desk.shell(&format!("exec {}", sidecar.trim())),
        &desk.path("log"),
    );
    let shows = |process: &mut Process, value: &str| {
        wait_until(&format!("the file holds {value}"), PATIENCE, || {
            process.assert_running();
            file() == value
        });
    };
    shows(&mut process, "first");
    assert_eq!(vault.tokens(), before + 1);
    vault.write("shop/smtp", json!({ "password": "second" }));
    shows(&mut process, "second");
    crate::vault::wait_until_grown_up(&vault, "GET secret/data/shop/smtp");
    vault.revoke_all();
    vault.write("shop/smtp", json!({ "password": "third" }));
    shows(&mut process, "third");
    process.signal(Signal::TERM);
    assert_eq!(process.wait(PATIENCE).code(), Some(0), "{}", process.log());
    assert_eq!(vault.tokens(), 0, "{:?}", vault.asked());
}

const CLUSTER_PAGE: &str = include_str!("../../../docs/guide/kubernetes-secrets.md");

const CLUSTER_BLOCKS: [(&str, &str); 4] = [
    ("kubectl create namespace fender-try", CLUSTER),
    (
        "kubectl -n fender-try auth can-i watch secrets/smtp --as=system:serviceaccount:fender-try:orders",
        CLUSTER,
    ),
    (
        "kubectl -n fender-try create token orders --duration=10m > token",
        RUN,
    ),
    (
        "kubectl -n fender-try create secret generic smtp --from-literal=password=second --dry-run=client -o yaml | kubectl apply -f -",
        CLUSTER,
    ),
];

/// Says where the cluster is and who asks it, and nothing else: that `kubectl` says so, is its own documentation's word.
const KUBECTL: &str = r#"#!/bin/sh
case "$*" in
  "-n fender-try create token orders --duration=10m") cat "$HOME/cluster/token" ;;
  *certificate-authority-data*) base64 -w0 "$HOME/cluster/bundle.pem" ;;
  *cluster.server*) cat "$HOME/cluster/url" ;;
  *) echo "kubectl: $*" >&2; exit 1 ;;
esac
"#;

#[test]
fn a_secret_of_a_cluster_reaches_a_command_as_the_page_has_it() {
    let script = run_of(CLUSTER_PAGE, &CLUSTER_BLOCKS).remove(0);
    let desk = Desk::new();
    let authority = Authority::new("cluster.test");
    let api = Api::start(&authority);
    authority.write_bundle(&desk.path("cluster"));
    fs::write(desk.path("cluster/url"), api.url()).unwrap();
    fs::write(desk.path("cluster/token"), api.token()).unwrap();
    fs::write(desk.path("kubectl"), KUBECTL).unwrap();
    put_program(&desk.path("kubectl"), &desk.path("bin/kubectl"));
    api.allow("smtp", true);
    api.write("fender-try", "smtp", &[("password", b"first")]);
    api.write("fender-try", "other", &[("password", b"another")]);

    let (code, out, err) = desk.run(&script);
    assert_eq!((code, out.as_str()), (Some(0), "first\n"), "{err}");
    let other = script.replace("      name: smtp\n", "      name: other\n");
    assert_ne!(other, script);
    let (code, _, err) = desk.run(&other);
    assert_eq!(code, Some(66), "{err}");
    assert!(err.contains("Role"), "{err}");
    api.write("fender-try", "smtp", &[("password", b"second")]);
    let (code, out, err) = desk.run(&script);
    assert_eq!((code, out.as_str()), (Some(0), "second\n"), "{err}");
}

const SUPERVISION_PAGE: &str = include_str!("../../../docs/guide/supervision.md");

/// Every command of the page, with what it names put where the page says it is.
#[test]
fn the_commands_of_the_page_about_supervision_start_what_they_name() {
    let all = [
        (
            "fender sidecar --control https://control.example:7443 --state /var/lib/fender -- /usr/bin/app --its-own-arguments",
            RUN,
        ),
        (
            "fender exec --supervise --config /job.yaml -- /usr/bin/job",
            RUN,
        ),
        (
            "fender exec --supervise --mask-output --config /job.yaml -- /usr/bin/job",
            RUN,
        ),
    ];
    let run = run_of(SUPERVISION_PAGE, &all).concat();
    let commands: Vec<_> = run.lines().collect();
    assert_eq!(commands.len(), 4, "{run}");

    let desk = Desk::new();
    let mesh = Mesh::start(&one_service("1h", free_address(), free_address()));
    // The page's state is one of a sidecar that was here before.
    let token = mesh.token("shop/orders", "5m");
    let mut joins = mesh.command();
    joins
        .env_remove("FENDER_ADMIN")
        .args(["exec", "--token-file"])
        .arg(token);
    joins
        .arg("--state")
        .arg(desk.path("state"))
        .args(["--", "/bin/true"]);
    assert!(joins.status().unwrap().success());
    fs::write(desk.path("value"), "hunter2-canary").unwrap();
    let job = format!(
        "apiVersion: fender.dev/v1\nkind: Sidecar\nmetadata: {{ namespace: shop, name: job }}\nspec: {{ credentials: [ smtp ] }}\n---\n\
         apiVersion: fender.dev/v1\nkind: Credential\nmetadata: {{ namespace: shop, name: smtp }}\nspec:\n  \
         source: {{ file: {{ path: {}/value }} }}\n  deliver: [ {{ environment: {{ variable: SECRET }} }} ]\n",
        desk.0.path().display()
    );
    fs::write(desk.path("job.yaml"), job).unwrap();
    let program = desk.path("program");
    fs::write(
        &program,
        "#!/bin/sh\necho \"ran with: $*, ${SECRET:-nothing}\"\nexit 42\n",
    )
    .unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    put_program(&program, &desk.path("bin/app"));
    let here = |command: &str| {
        let places = [
            ("https://control.example:7443", mesh.url()),
            ("/var/lib/fender", shown(&desk.path("state"))),
            ("/usr/bin/app", shown(&desk.path("bin/app"))),
            ("/usr/bin/job", shown(&desk.path("bin/app"))),
            ("/job.yaml", shown(&desk.path("job.yaml"))),
        ];
        let words = command.split(' ').map(|word| {
            let place = places.iter().find(|(there, _)| *there == word);
            place.map_or(word.to_owned(), |(_, here)| here.clone())
        });
        words.collect::<Vec<_>>().join(" ")
    };
    for (command, expected) in commands.into_iter().zip([
        "ran with: --its-own-arguments, nothing\n",
        "ran with: , hunter2-canary\n",
        "ran with: , ***\n",
        "ran with: , nothing\n",
    ]) {
        let (code, out, err) = desk.run(&here(command));
        assert_eq!(
            (code, out.as_str()),
            (Some(42), expected),
            "{command}: {err}"
        );
    }
}

const CACHE_PAGE: &str = include_str!("../../../docs/guide/credentials-cache.md");

/// What the unit gets of that is given to one here by `cache::attack_the_key_that_a_service_manager_gives…`.
const TPM: &str = "done by `systemd-creds`, which wants a TPM";

const CACHE_BLOCKS: [(&str, &str); 3] = [
    ("fender sidecar --config /etc/fender/sidecar.yaml \\", RUN),
    (
        "owner=\"Sidecar shop/orders\"     # that was metadata.namespace/metadata.name; of an identity it is the SPIFFE ID alone",
        RUN,
    ),
    (
        "head -c 32 /dev/urandom | systemd-creds encrypt --with-key=tpm2 --name=cache-key - /etc/credstore.encrypted/orders-cache-key",
        TPM,
    ),
];

#[test]
fn what_is_kept_as_the_page_has_it_is_found_by_its_owner_when_that_has_another_name() {
    let run = run_of(CACHE_PAGE, &CACHE_BLOCKS);
    let desk = Desk::new();
    for directory in ["cache", "keys", "out"] {
        fs::create_dir(desk.path(directory)).unwrap();
    }
    fs::set_permissions(desk.path("cache"), fs::Permissions::from_mode(0o700)).unwrap();
    fs::write(desk.path("value"), "hunter2-canary").unwrap();
    let here = |script: &str| {
        let places = [
            ("/etc/fender/sidecar.yaml", "sidecar.yaml"),
            ("/var/cache/fender/orders", "cache"),
            ("/var/lib/fender-keys", "keys"),
        ];
        let places = places.map(|(there, name)| (there, shown(&desk.path(name))));
        places
            .iter()
            .fold(script.to_owned(), |script, (there, here)| {
                assert!(run.concat().contains(there));
                script.replace(there, here)
            })
    };
    let kept = || fs::read_dir(desk.path("cache")).unwrap().count();
    // The one of the page, and one by another name that shares its directory.
    for (name, files) in [("orders", 1), ("renamed", 2)] {
        let document = format!(
            "apiVersion: fender.dev/v1\nkind: Sidecar\nmetadata: {{ namespace: shop, name: {name} }}\nspec: {{ credentials: [ smtp ] }}\n---\n\
             apiVersion: fender.dev/v1\nkind: Credential\nmetadata: {{ namespace: shop, name: smtp }}\nspec:\n  \
             source: {{ file: {{ path: {0}/value }} }}\n  deliver: [ {{ file: {{ path: {0}/out/smtp }} }} ]\n",
            desk.0.path().display()
        );
        fs::write(desk.path("sidecar.yaml"), document).unwrap();
        let script = format!("exec {}", here(&run[0]));
        let mut process = Process::start("page", &mut desk.shell(&script), &desk.path("log"));
        wait_until("it is kept", PATIENCE, || {
            process.assert_running();
            kept() == files
        });
        process.signal(Signal::TERM);
        assert!(process.wait(PATIENCE).success(), "{}", process.log());
        assert_eq!(kept(), files, "it stays");
    }
    let (code, out, err) = desk.run(&here(&run[1]));
    assert_eq!(code, Some(0), "{err}");
    assert_eq!((out.lines().count(), kept()), (1, 1), "{out}");
    let (_, out, _) = desk.run(&here(&run[1].replace("shop/orders", "shop/renamed")));
    assert_eq!((out.lines().count(), kept()), (1, 0), "{out}");
}

fn shown(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}
