//! What right documents become that say where credentials come from, and who receives them and is told.

use std::path::Path;
use std::time::Duration;

use fender_config::parse;
use fender_config::snapshot::{
    Command, Content, CredentialSource, Delivery, FieldFormat, OnExit, Origin, StorePassword,
    Template,
};
use fender_config::standalone;

use crate::{fixture, source};

#[test]
fn a_plugin_is_asked_every_five_minutes_and_given_ten_seconds_unless_a_document_says_otherwise() {
    let command = |written: &str| {
        let text = format!(
            "apiVersion: fender.dev/v1
kind: Sidecar
metadata: {{ namespace: shop, name: orders }}
spec: {{ credentials: [ smtp ] }}
---
apiVersion: fender.dev/v1
kind: Credential
metadata: {{ namespace: shop, name: smtp }}
spec: {{ source: {{ command: {{ {written} }} }}, deliver: [ {{ environment: {{ variable: V }} }} ] }}
"
        );
        let alone = standalone::parse(&[source("alone.yaml", &text)]).unwrap();
        let spec = alone.credentials().next().unwrap();
        let CredentialSource::Direct(Origin::Command(command)) = spec.source else {
            panic!("{:?}", spec.source)
        };
        command
    };
    let usual = Command {
        program: "/bin/plugin".into(),
        arguments: Vec::new(),
        every: Duration::from_secs(300),
        timeout: Duration::from_secs(10),
    };
    assert_eq!(command("program: /bin/plugin"), usual);
    let written = command("program: /bin/plugin, arguments: [ a b, ü ], every: 1s, timeout: 2m");
    let expected = Command {
        arguments: vec!["a b".to_owned(), "ü".to_owned()],
        every: Duration::from_secs(1),
        timeout: Duration::from_secs(120),
        ..usual
    };
    assert_eq!(written, expected);
}

#[test]
fn a_credential_says_who_is_told_of_a_change() {
    let text = "apiVersion: fender.dev/v1
kind: Sidecar
metadata: { namespace: shop, name: orders }
spec: { credentials: [ smtp ] }
---
apiVersion: fender.dev/v1
kind: Credential
metadata: { namespace: shop, name: smtp }
spec:
  source: { file: { path: /x } }
  deliver: [ { file: { path: /run/x } } ]
  notify:
    - signal: { signal: HUP, pidFile: /run/nginx.pid }
    - { signal: { signal: USR1 }, after: 0s }
    - http: { url: 'http://127.0.0.1:9000/-/reload' }
    - { command: { program: /usr/bin/reload, arguments: [ app ], timeout: 1m }, after: 5m }
    - restart: {}
";
    let alone = standalone::parse(&[source("alone.yaml", text)]).unwrap();
    let spec = alone.credentials().next().unwrap();
    let told: Vec<_> = spec
        .notify
        .iter()
        .map(|told| format!("{} after {:?}", told.target, told.after))
        .collect();
    assert_eq!(
        told,
        [
            "SIGHUP to the process of \"/run/nginx.pid\" after 1s",
            "SIGUSR1 to the application after 0ns",
            "POST http://127.0.0.1:9000/-/reload after 1s",
            "\"/usr/bin/reload\" \"app\" after 300s",
            "restart of the application after 1s",
        ]
    );
}

#[test]
fn a_credential_is_handed_to_users_under_its_own_name_or_another() {
    let alone = standalone::parse(&[fixture("right", "alone.yaml")]).unwrap();
    let smtp = alone.credentials().next().unwrap();
    let served: Vec<_> = smtp
        .deliver
        .iter()
        .filter_map(|delivery| match delivery {
            Delivery::Socket(socket) => Some((socket.name.as_str(), &*socket.users)),
            Delivery::File(..)
            | Delivery::Files(_)
            | Delivery::Environment { .. }
            | Delivery::Url(_) => None,
        })
        .collect();
    let [own, other] = [
        ["app", "1000"].map(String::from).to_vec(),
        vec!["1001".to_owned()],
    ];
    assert_eq!(served, [("smtp", &*own), ("SMTP_password.v2", &*other)]);
}

#[test]
fn a_set_has_a_file_for_each_form_in_which_somebody_reads_it() {
    let alone = standalone::parse(&[fixture("right", "alone.yaml")]).unwrap();
    let db = alone.credentials().nth(1).unwrap();
    assert_eq!(db.on_exit, OnExit::Keep);
    let [
        Delivery::Files(set),
        Delivery::File(url, Content::Template(template)),
    ] = &*db.deliver
    else {
        panic!("{:?}", db.deliver);
    };
    assert_eq!(set.directory, Path::new("/run/credentials/db"));
    assert_eq!(set.owner.as_deref(), Some("app"));
    assert_eq!(url.path, Path::new("/run/credentials/url.txt"));
    assert_eq!(template.as_str(), "{{ user | urlencode }}@db");
    let entries = set.entries.iter();
    let shown = |content: &Content| match content {
        Content::Value => "value".to_owned(),
        Content::Field(field) => format!("field {field}"),
        Content::Template(template) => format!("{:?}", template.as_str()),
        Content::Fields { format, fields } => format!("{format:?} of {}", fields.len()),
        Content::Pem { fields } => format!("pem of {}", fields.len()),
        Content::Pkcs12(store) => match &store.password {
            StorePassword::Field(field) => format!("store by {field}"),
            StorePassword::Generated(name) => format!("store by generated {name}"),
        },
    };
    let entries: Vec<_> = entries
        .map(|entry| format!("{} {:o} {}", entry.name, entry.mode, shown(&entry.content)))
        .collect();
    assert_eq!(
        entries,
        [
            "raw 440 value",
            "password 400 field password",
            "db.conf 440 \"user = {{ user | json }}\\n{% if port is defined %}\\nport = {{ port }}\\n{% endif %}\\n\"",
            "app.json 440 Json of 0",
            "app.yaml 440 Yaml of 1",
            ".env 440 Dotenv of 2",
            "app.properties 440 Properties of 0",
            "tls.pem 440 pem of 2",
            "own.p12 440 store by storePassword",
            "store.p12 440 store by generated store.password",
        ]
    );
    assert!(matches!(
        set.entries[4].content,
        Content::Fields {
            format: FieldFormat::Yaml,
            ..
        }
    ));
}

#[test]
fn the_examples_of_the_page_about_files_are_right() {
    let page = include_str!("../../../../docs/guide/credentials-files.md");
    let blocks = page.split("```yaml\n").skip(1);
    let blocks = blocks.map(|rest| rest.split("```").next().unwrap());
    let mesh = "apiVersion: fender.dev/v1\nkind: Mesh\nmetadata: { name: m }\nspec: { trustDomain: example.org }\n---\n";
    let mut count = 0;
    for text in blocks {
        // What is added to a credential is read in one.
        let whole = match text.strip_prefix("spec:\n") {
            Some(added) => format!(
                "apiVersion: fender.dev/v1\nkind: Credential\nmetadata: {{ namespace: shop, name: x }}\nspec:\n  source: {{ file: {{ path: /x }} }}\n  \
                 deliver: [ {{ file: {{ path: /run/x }} }} ]\n{added}"
            ),
            None => text.to_owned(),
        };
        let told = parse(&[source("page.md", format!("{mesh}{whole}"))]).err();
        assert!(told.is_none(), "{}", told.unwrap());
        count += 1;
    }
    assert_eq!(count, 2);
    for filter in Template::FILTERS.iter().chain(&["defined"]) {
        assert!(
            page.contains(&format!("`{filter}`")) || page.contains(&format!("is {filter}")),
            "{filter}"
        );
    }
}

/// The others are judged once it is right.
#[test]
fn a_delivery_that_is_wrong_is_the_only_thing_that_is_said_of_it() {
    let wrong = [
        "file: { path: run/smtp }",
        "file: { path: /run/smtp, mode: '999' }",
        "environment: { variable: LD_PRELOAD }",
        "files: { directory: /run/smtp, entries: [ { name: a/b, value: {} } ] }",
    ];
    for written in wrong {
        let text = format!(
            "apiVersion: fender.dev/v1
kind: Sidecar
metadata: {{ namespace: shop, name: orders }}
spec: {{ credentials: [ smtp ] }}
---
apiVersion: fender.dev/v1
kind: Credential
metadata: {{ namespace: shop, name: smtp }}
spec:
  source: {{ file: {{ path: /run/secrets/smtp }} }}
  deliver: [ {{ {written} }} ]
  notify: [ {{ restart: {{}} }} ]
"
        );
        let problems = standalone::parse(&[source("orders.yaml", text)]).unwrap_err();
        let codes: Vec<_> = problems.iter().map(|problem| problem.code).collect();
        assert_eq!(codes.len(), 1, "{written}: {codes:?}");
        let concluded = ["fender::no-delivery", "fender::nothing-to-notify-of"];
        assert!(!concluded.contains(&codes[0]), "{written}: {codes:?}");
    }
}
