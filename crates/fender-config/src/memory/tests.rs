use proptest::prelude::*;

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

/// Reads on top of what is remembered, as well as from nothing: what there is, what looked odd and what is wrong are the same.
pub(crate) fn read_alike(memory: &mut Memory, sources: &[Source]) -> Result<Documents, Problems> {
    let (read, now) = memory.parse(sources);
    *memory = now;
    match (&read, crate::parse(sources)) {
        (Ok(read), Ok(expected)) => assert_eq!(*read, expected),
        (Err(read), Err(expected)) => assert_eq!(read.render(), expected.render()),
        (read, expected) => panic!("{read:?} and not {expected:?}"),
    }
    read
}

/// Reads one after the other.
fn last_of(steps: &[Vec<Source>]) -> Result<Documents, Problems> {
    let mut memory = Memory::default();
    let read = steps.iter().map(|sources| read_alike(&mut memory, sources));
    read.last().unwrap()
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

/// YAML ends a line with a CR alone, too, and counts more of them than the file has.
#[test]
fn attack_lines_that_end_with_a_cr_alone_hide_no_warning() {
    let lines = "# a line\r".repeat(20);
    let odd = format!("---\n{lines}{}", workload("web", "").replace("---\n", ""));
    let files = |port: &str| {
        let inbound = format!(
            "{TOKEN}, inbound: [ {{ listen: \"0.0.0.0:{port}\", app: \"127.0.0.1:80\", protocol: http }} ]"
        );
        let text = [odd.clone(), workload("orders", &inbound)].concat();
        vec![source("mesh.yaml", MESH), source("a.yaml", &text)]
    };
    let last = last_of(&[files("8443"), files("8444")]).unwrap();
    let warnings: Vec<_> = last.warnings.iter().map(|warning| warning.code).collect();
    assert_eq!(warnings, ["fender::no-attest"]);
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

/// What can be written of each of a few objects that refer to each other, and share their names.
const WRITTEN: [(&str, &[&str]); 9] = [
    (
        "fender.dev/v1\nkind: Mesh\nmetadata: { name: mesh }",
        &[
            "{ trustDomain: acme.test, rootNamespace: root }",
            "{ trustDomain: acme.test, authorization: { default: allow } }",
        ],
    ),
    (
        "fender.dev/v1\nkind: Node\nmetadata: { name: x }",
        &[
            "{ groups: [ g ], attest: [ { token: {} } ] }",
            "{ groups: [ h ] }",
        ],
    ),
    (
        "fender.dev/v1\nkind: Upstream\nmetadata: { namespace: shop, name: x }",
        &[
            "{ protocol: tcp, address: \"db:1\" }",
            "{ protocol: tcp, address: \"db:2\" }",
        ],
    ),
    (
        "fender.dev/v1\nkind: Credential\nmetadata: { namespace: shop, name: x }",
        &[
            "{ source: { file: { path: /secret } }, deliver: [ { environment: { variable: A } } ] }",
            "{ source: { file: { path: /secret } }, deliver: [ { file: { path: /run/x, mode: \"0444\" } } ] }",
        ],
    ),
    (
        "fender.dev/v1\nkind: Workload\nmetadata: { namespace: shop, name: x, labels: { app: a } }",
        &[
            "{ attest: [ { unix: { nodeGroup: g, uid: 1 } } ], inbound: [ { listen: \"0.0.0.0:1\", app: \"127.0.0.1:80\", \
             protocol: http, advertise: \"x:1\" } ] }",
            "{ dnsNames: [ y.internal ], inbound: [ { listen: \"0.0.0.0:2\", app: \"127.0.0.1:80\", protocol: tcp } ] }",
            "{ attest: [ { unix: { node: x, uid: 1 } } ] }",
        ],
    ),
    (
        "fender.dev/v1\nkind: Workload\nmetadata: { namespace: shop, name: y, labels: { app: b } }",
        &[
            "{ outbound: [ { listen: \"127.0.0.1:9\", service: x }, { listen: \"127.0.0.1:8\", upstream: x } ] }",
            "{ attest: [ { token: {} } ], credentials: [ x ] }",
            "{ attest: [ { token: {} } ] }",
        ],
    ),
    (
        "fender.dev/v1\nkind: Workload\nmetadata: { namespace: root, name: x, labels: { app: a } }",
        &["{}", "{ attest: [ { token: {} } ] }"],
    ),
    (
        "security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: { namespace: shop, name: x }",
        &[
            "{ selector: { matchLabels: { app: a } }, rules: [ {} ] }",
            "{ selector: { matchLabels: { app: b } }, action: DENY }",
        ],
    ),
    (
        "security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: { namespace: root, name: x }",
        &[
            "{ selector: { matchLabels: { app: a } }, rules: [ {} ] }",
            "{ selector: { matchLabels: { app: nobody } }, action: DENY }",
        ],
    ),
];

/// How one file is written, beside its documents.
#[derive(Clone, Debug)]
struct Manner {
    name: u8,
    bom: bool,
    carriage_returns: bool,
    before: u8,
}

/// Of each object which of its texts is there, if any, and in which file; and the files.
type Layout = (Vec<(Option<usize>, usize)>, Vec<Manner>);

fn layout() -> impl Strategy<Value = Layout> {
    let object = (prop::option::weighted(0.85, 0..3_usize), 0..3_usize);
    let manner = (0..8_u8, any::<bool>(), any::<bool>(), 0..4_u8);
    let manner = manner.prop_map(|(name, bom, carriage_returns, before)| Manner {
        name,
        bom,
        carriage_returns,
        before,
    });
    (
        prop::collection::vec(object, WRITTEN.len()),
        prop::collection::vec(manner, 3),
    )
}

fn files((objects, manners): &Layout) -> Vec<Source> {
    let manners = manners.iter().enumerate();
    let file = |(at, manner): (usize, &Manner)| {
        let mut text = match manner.before {
            0 => "",
            1 => "# a line\n# another\n",
            // One line for an editor, and many for YAML.
            2 => "# a line\r# another\r# a third\r# a fourth\r# a fifth\r# a sixth\r# a seventh\r",
            _ => "...\n",
        }
        .to_owned();
        for ((head, specs), (written, file)) in WRITTEN.iter().zip(objects) {
            if let (Some(written), true) = (written, *file == at) {
                let spec = specs[written % specs.len()];
                // What comes first may share its page with what stands before.
                let marker = if text.is_empty() || text.ends_with('\r') {
                    ""
                } else {
                    "---\n"
                };
                text += &format!("{marker}apiVersion: {head}\nspec: {spec}\n");
            }
        }
        if manner.carriage_returns {
            text = text.replace('\n', "\r\n");
        }
        // Seldom two of one name.
        let name = if manner.name == 0 { 0 } else { at };
        let bom = if manner.bom { "\u{feff}" } else { "" };
        source(&format!("{name}.yaml"), &format!("{bom}{text}"))
    };
    manners.map(file).collect()
}

proptest! {
    /// Documents move from file to file, appear, change and go, and files are written otherwise; the reference remembers
    /// nothing.
    #[test]
    fn wherever_documents_move_what_is_read_is_what_is_there(
        first in layout(),
        steps in prop::collection::vec((prop::collection::vec((0..WRITTEN.len() + 3, layout()), 0..3), any::<bool>()), 1..8),
    ) {
        let mut layout = first;
        let mut memory = Memory::default();
        for (edits, back) in steps {
            let was = layout.clone();
            for (at, (objects, manners)) in edits {
                match at.checked_sub(WRITTEN.len()) {
                    None => layout.0[at] = objects[at],
                    Some(file) => layout.1[file] = manners[file].clone(),
                }
            }
            let mut seen = vec![files(&layout)];
            if back {
                seen.push(files(&was));
            }
            for sources in seen {
                let _ = read_alike(&mut memory, &sources);
            }
        }
    }
}
