use super::*;
use crate::Objects;

fn source(name: &str, text: &str) -> Source {
    Source {
        name: name.to_owned(),
        text: text.to_owned(),
    }
}

const MESH: &str = "apiVersion: fender.dev/v1\nkind: Mesh\nmetadata: { name: mesh }\nspec: { trustDomain: acme.test }\n";

fn workload(name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: fender.dev/v1\nkind: Workload\nmetadata: {{ namespace: shop, name: {name}, labels: {{ app: {name} }} }}\n\
         spec: {{ {spec} }}\n"
    )
}

fn policy(name: &str, app: &str) -> String {
    format!(
        "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{ namespace: shop, name: {name} }}\n\
         spec: {{ selector: {{ matchLabels: {{ app: {app} }} }}, rules: [ {{}} ] }}\n"
    )
}

const TOKEN: &str = "attest: [ { token: {} } ]";

/// Reads one after the other, and each from nothing.
fn last_of(steps: &[Vec<Source>]) -> Result<Documents, Problems> {
    let mut memory = Memory::default();
    let mut last = None;
    for sources in steps {
        let (read, now) = memory.parse(sources);
        memory = now;
        match (&read, crate::parse(sources)) {
            (Ok(read), Ok(expected)) => assert_eq!(*read, expected),
            (Err(read), Err(expected)) => assert_eq!(read.render(), expected.render()),
            (read, expected) => panic!("{read:?} and not {expected:?}"),
        }
        last = Some(read);
    }
    last.unwrap()
}

fn objects_kept(memory: &Memory) -> usize {
    let files = memory.0.as_deref().map(|reading| &reading.files);
    let pages = files.into_iter().flatten().map(|file| file.pages.len());
    pages.sum()
}

#[test]
fn whoever_is_not_concerned_is_the_object_it_was() {
    let inbound = "inbound: [ { listen: \"0.0.0.0:8443\", app: \"127.0.0.1:80\", protocol: http, advertise: \"orders:8443\" } ]";
    let calls = format!("{TOKEN}, outbound: [ {{ listen: \"127.0.0.1:9000\", service: orders }} ]");
    let files = |port: &str| {
        let orders = format!("{TOKEN}, {}", inbound.replace("orders:8443", port));
        let all = [
            workload("web", &calls),
            workload("orders", &orders),
            workload("other", TOKEN),
        ];
        [
            source("mesh.yaml", MESH),
            source("shop.yaml", &all.concat()),
        ]
    };
    let (before, memory) = Memory::default().parse(&files("orders:8443"));
    let (after, _) = memory.parse(&files("orders:8444"));
    let (before, after) = (before.unwrap().workloads, after.unwrap().workloads);
    let changed: Vec<_> = Objects::differences(&before, &after)
        .map(|it| it.name.to_string())
        .collect();
    // Where `orders` is found is said in who calls it.
    assert_eq!(changed, ["shop/orders", "shop/web"]);
    let shared = before
        .keys()
        .filter(|name| std::ptr::eq(before.get(*name).unwrap(), after.get(*name).unwrap()));
    assert_eq!(
        shared.map(ToString::to_string).collect::<Vec<_>>(),
        ["shop/other"]
    );
}

#[test]
fn what_looked_odd_is_told_where_it_is_now_and_not_once_it_is_right() {
    let odd = [workload("web", ""), policy("idle", "nobody")].concat();
    let moved = format!(
        "# a line\n# and another\n{}{odd}",
        workload("orders", TOKEN)
    );
    let found = moved.replace("app: web", "app: nobody");
    let files = |text: &str| vec![source("mesh.yaml", MESH), source("a.yaml", text)];
    let warnings = |steps: &[&str]| -> Vec<_> {
        let steps: Vec<_> = steps.iter().map(|text| files(text)).collect();
        let warnings = last_of(&steps).unwrap().warnings.into_iter();
        warnings
            .map(|warning| (warning.line, warning.code))
            .collect()
    };
    let (lazy, idle) = ("fender::no-attest", IDLE);
    assert_eq!(warnings(&[&odd]), [(4, lazy), (9, idle)]);
    assert_eq!(warnings(&[&odd, &moved]), [(11, lazy), (16, idle)]);
    assert_eq!(warnings(&[&odd, &moved, &found]), [(11, lazy)]);
    assert_eq!(
        warnings(&[&odd, &moved, &found, &moved]),
        [(11, lazy), (16, idle)]
    );
}

#[test]
fn what_goes_wrong_is_told_and_what_was_right_is_not_forgotten() {
    let calls = format!(
        "{TOKEN}, outbound: [ {{ listen: \"127.0.0.1:9000\", service: orders, address: \"orders:1\" }} ]"
    );
    let inbound = format!(
        "{TOKEN}, inbound: [ {{ listen: \"0.0.0.0:8443\", app: \"127.0.0.1:80\", protocol: http }} ]"
    );
    let (web, orders) = (workload("web", &calls), workload("orders", &inbound));
    let files = |texts: &[&str]| vec![source("mesh.yaml", MESH), source("a.yaml", &texts.concat())];
    let right = files(&[&web, &orders]);
    last_of(std::slice::from_ref(&right)).unwrap();
    for wrong in [
        files(&[&web]),
        files(&[&web, &orders, &orders]),
        files(&[&web, &orders, "---\nkind: [\n"]),
        vec![source("a.yaml", &[&*web, &*orders].concat())],
    ] {
        last_of(&[right.clone(), wrong.clone()]).unwrap_err();
        last_of(&[right.clone(), wrong, right.clone()]).unwrap();
    }
}

#[test]
fn what_is_left_out_is_forgotten() {
    let files = [
        source("mesh.yaml", MESH),
        source("a.yaml", &workload("orders", TOKEN)),
    ];
    let (_, memory) = Memory::default().parse(&files);
    assert_eq!(objects_kept(&memory), 2);
    let (documents, memory) = memory.parse(&files[..1]);
    assert!(documents.unwrap().workloads.is_empty());
    assert_eq!(objects_kept(&memory), 1);
}
