//! Every provider that runs here, each with a secret of its own: where it is, how it is changed, and how it is spoilt so that what is
//! said of it is as tempting as can be.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use fender_tests::aws::{self, FakeAws, REGION};
use fender_tests::kubernetes::{self, Api};
use fender_tests::pki::{Authority, Issued};
use fender_tests::sealed;
use fender_tests::vault::{self, ROLE_ID, Vault};
use serde_json::json;
use tempfile::TempDir;

use super::CANARY;
use super::search::Needles;

/// Where a secret is, and how it is changed and spoilt there.
#[derive(Clone, Copy, PartialEq)]
enum Store {
    File,
    Docker,
    Command,
    /// Read once: it cannot be changed.
    Environment,
    Vault,
    Kubernetes,
    Aws,
    Age,
    Sops,
}

pub(super) struct Provider {
    /// Of the credential, and of everything that belongs to it.
    pub(super) name: &'static str,
    via: &'static str,
    store: Store,
}

pub(super) const PROVIDERS: [Provider; 15] = [
    Provider::new("file-sidecar", "sidecar", Store::File),
    Provider::new("file-control", "control", Store::File),
    Provider::new("docker-sidecar", "sidecar", Store::Docker),
    Provider::new("docker-control", "control", Store::Docker),
    Provider::new("command-sidecar", "sidecar", Store::Command),
    Provider::new("command-control", "control", Store::Command),
    Provider::new("variable", "sidecar", Store::Environment),
    Provider::new("vault-sidecar", "sidecar", Store::Vault),
    Provider::new("vault-control", "control", Store::Vault),
    Provider::new("kubernetes-sidecar", "sidecar", Store::Kubernetes),
    Provider::new("kubernetes-control", "control", Store::Kubernetes),
    Provider::new("aws", "sidecar", Store::Aws),
    Provider::new("age", "sidecar", Store::Age),
    Provider::new("sops-sidecar", "sidecar", Store::Sops),
    Provider::new("sops-control", "control", Store::Sops),
];

impl Provider {
    const fn new(name: &'static str, via: &'static str, store: Store) -> Self {
        Self { name, via, store }
    }

    pub(super) fn can_change(&self) -> bool {
        self.store != Store::Environment
    }

    pub(super) fn value(&self, number: u32) -> String {
        match self.can_change() {
            true => format!("{CANARY}-{number}-{}", self.name),
            false => format!("{CANARY}-1-{}", self.name),
        }
    }

    /// The variable that it is delivered in.
    pub(super) fn variable(&self) -> String {
        self.name.to_ascii_uppercase().replace('-', "_")
    }
}

/// What a port shows; `certificate` is its credential.
pub(super) const SHOP: &str = "shop.example.com";
pub(super) const CERTIFICATE: &str = "certificate";

/// All the stores, and what of them lies in files.
pub(super) struct Sources {
    vault: Vault,
    api: Api,
    pub(super) aws: FakeAws,
    /// Where the plug-in lies.
    programs: TempDir,
    /// Of the mesh: `sources` and `login` are in it.
    home: PathBuf,
    /// Whose key opens files of age and SOPS.
    recipient: String,
    public: Authority,
    /// The certificates that the port was given.
    issued: Mutex<Vec<Issued>>,
}

impl Sources {
    /// The plug-in: it is as talkative as a program can be. It lies where no document may read or write.
    pub(super) fn plug_in() -> TempDir {
        let programs = tempfile::tempdir().unwrap();
        let program = programs.path().join("show");
        fs::write(&program, "#!/bin/sh\ncat \"$1\" >&2\ncat \"$1\"\n").unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        programs
    }

    pub(super) fn program(programs: &TempDir) -> PathBuf {
        programs.path().join("show")
    }

    pub(super) fn new(programs: TempDir, home: &Path) -> Self {
        let authority = Authority::new("stores.test");
        let (vault, api) = (Vault::start(&authority), Api::start(&authority));
        let (sources, login) = (home.join("sources"), home.join("login"));
        fs::create_dir_all(sources.join("docker")).unwrap();
        fs::create_dir_all(&login).unwrap();
        authority.write_bundle(&login);
        vault.write_secret_id(&login);
        api.write_token(&login.join("token"));
        let named = PROVIDERS.iter().map(|provider| provider.name);
        named.for_each(|name| api.allow(name, true));
        let all = Self {
            vault,
            api,
            aws: FakeAws::in_the_clear(),
            programs,
            recipient: sealed::identity(&login.join("identity")),
            home: home.to_owned(),
            public: Authority::new("public.test"),
            issued: Mutex::default(),
        };
        all.become_number(1);
        all
    }

    pub(super) fn allowed_program(&self) -> PathBuf {
        Self::program(&self.programs)
    }

    /// Of a provider, as a document says it.
    pub(super) fn source(&self, provider: &Provider) -> String {
        let own = self.home.display();
        let Provider { name, via, store } = provider;
        match store {
            Store::File => format!("file: {{ path: \"{own}/sources/{name}\", via: {via} }}"),
            Store::Docker => format!(
                "dockerSecret: {{ name: {name}, directory: \"{own}/sources/docker\", via: {via} }}"
            ),
            Store::Command => format!(
                "command: {{ program: \"{}\", arguments: [ \"{own}/sources/{name}\" ], every: 1s, via: {via} }}",
                self.allowed_program().display()
            ),
            Store::Environment => "environment: { variable: CANARY }".to_owned(),
            Store::Aws => format!(
                "aws: {{ region: {REGION}, endpoint: \"{}\", secretsManager: {{ secretId: {name} }}, refresh: 1s, via: {via} }}",
                self.aws.url()
            ),
            Store::Vault => format!(
                "vault: {{ address: \"{}\", roots: {{ file: \"{own}/login/bundle.pem\" }}, \
                 login: {{ appRole: {{ roleId: {ROLE_ID}, secretIdFile: \"{own}/login/secret-id\" }} }}, \
                 kv2: {{ path: {name}, key: password }}, refresh: 1s, via: {via} }}",
                self.vault.url()
            ),
            Store::Kubernetes => format!(
                "kubernetesSecret: {{ name: {name}, namespace: shop, key: password, via: {via}, \
                 cluster: {{ api: \"{}\", roots: {{ file: \"{own}/login/bundle.pem\" }}, token: {{ file: \"{own}/login/token\" }} }} }}",
                self.api.url()
            ),
            Store::Age => format!(
                "age: {{ file: \"{own}/sources/{name}\", identity: \"{own}/login/identity\", via: {via} }}"
            ),
            Store::Sops => format!(
                "sops: {{ file: \"{own}/sources/{name}.yaml\", identity: \"{own}/login/identity\", key: database.password, via: {via} }}"
            ),
        }
    }

    /// That of the port's certificate.
    pub(super) fn certificate_source(&self) -> String {
        let own = self.home.display();
        format!("file: {{ path: \"{own}/sources/{CERTIFICATE}\", via: control }}")
    }

    /// Every source has the value of this number.
    pub(super) fn become_number(&self, number: u32) {
        self.vault.be(vault::Mode::Answers);
        self.api.be(kubernetes::Mode::Answers);
        self.aws.be(aws::Mode::Answers);
        for provider in &PROVIDERS {
            let (name, value) = (provider.name, provider.value(number));
            match provider.store {
                Store::File => self.write(name, &value),
                Store::Docker => self.write(&format!("docker/{name}"), &value),
                Store::Command => {
                    let answer = json!({ "version": 1, "value": value });
                    self.write(name, &answer.to_string());
                }
                Store::Environment => {}
                Store::Aws => self.aws.write(&value),
                Store::Vault => self.vault.write(name, json!({ "password": value })),
                Store::Kubernetes => {
                    let data = [("password", value.as_bytes())];
                    self.api.write("shop", name, &data);
                }
                Store::Age => self.put(name, |fresh| {
                    sealed::age(value.as_bytes(), &[&self.recipient], false, fresh);
                }),
                Store::Sops => self.put(&format!("{name}.yaml"), |fresh| {
                    let text = format!("database:\n  password: {value}\n");
                    sealed::sops_encrypt(text.as_bytes(), &self.recipient, &[], fresh);
                }),
            }
        }
        let issued = self.public.issue_for_names(&[SHOP]);
        self.write(CERTIFICATE, &issued.bundle());
        self.issued.lock().unwrap().push(issued);
    }

    /// No source makes sense any more, and each says a canary while it makes none.
    pub(super) fn spoil(&self) {
        for provider in &PROVIDERS {
            let name = provider.name;
            match provider.store {
                Store::File => self.write(name, &CANARY.repeat(200_000)),
                Store::Docker => self.write(&format!("docker/{name}"), &CANARY.repeat(200_000)),
                Store::Command => {
                    let answer = format!("{{\"version\":1,\"{CANARY}\":\"{CANARY}\"");
                    self.write(name, &answer);
                }
                // Somebody forgot to encrypt them.
                Store::Age => self.write(name, CANARY),
                Store::Sops => {
                    let text = format!("database:\n  password: {CANARY}\n{CANARY}: {CANARY}\n");
                    self.write(&format!("{name}.yaml"), &text);
                }
                Store::Environment | Store::Vault | Store::Kubernetes | Store::Aws => {}
            }
        }
        // The right key, with what is no certificate of it.
        let key = self
            .issued
            .lock()
            .unwrap()
            .last()
            .unwrap()
            .key
            .serialize_pem();
        let none = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        self.write(CERTIFICATE, &format!("{key}{none}"));
        self.vault.be(vault::Mode::Nonsense);
        self.api.be(kubernetes::Mode::Nonsense);
        self.aws.be(aws::Mode::Nonsense);
    }

    /// The certificate that the port is to show.
    pub(super) fn shown(&self) -> String {
        let issued = self.issued.lock().unwrap();
        let pem = issued.last().unwrap().pem();
        let lines = pem.lines().filter(|line| !line.contains("-----"));
        lines.map(str::trim).collect()
    }

    /// What no one else may hold: all that lies in stores and opens them.
    pub(super) fn add_to(&self, needles: &mut Needles) {
        for provider in &PROVIDERS {
            (1..=2).for_each(|number| needles.add_value(&provider.value(number)));
        }
        needles.add("AGE-SECRET-KEY-1");
        needles.add(kubernetes::TOKEN);
        needles.add(vault::TOKEN);
        // In what stores answer that make no sense, and by which Vault is logged in to.
        needles.add("canary-nonsense");
        needles.add("canary-secret-id");
        for issued in &*self.issued.lock().unwrap() {
            needles.add_key(&issued.key.serialize_pem(), &issued.key.serialize_der());
        }
    }

    fn write(&self, name: &str, text: &str) {
        self.put(name, |fresh| fs::write(fresh, text).unwrap());
    }

    /// Puts in place at once what `write` has written, under a name that ends alike.
    fn put(&self, name: &str, write: impl FnOnce(&Path)) {
        let place = self.home.join("sources").join(name);
        let fresh = match place.extension() {
            Some(kind) => self.home.join("sources/fresh").with_extension(kind),
            None => self.home.join("sources/fresh"),
        };
        write(&fresh);
        fs::rename(fresh, place).unwrap();
    }
}
