//! P1 to P3, against real applications: the path that policy matched is byte for byte the path that
//! arrives. Every row of the codec's own table goes through the real program, to nginx and to Python,
//! on a port whose document has the row's rules.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use fender_tests::process::PATIENCE;
use fender_tests::recorder::{Habit, Taken};
use fender_tests::{Client, Recorder};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::Instant;

use crate::front::{EVERYBODY, Front, Port};
use crate::smuggling::table::{Row, rows, unescape};

const TABLE: &str = include_str!("../../../crates/fender-wire/tests/vectors/paths.txt");

/// Forwarded untouched, whatever it looks like (P2).
const QUERY: &str = "?q=/../%2e%2E%2f%5c%00//;x";

struct Vector {
    name: &'static str,
    rules: &'static str,
    path: Vec<u8>,
    /// The path that arrives; none if it is refused.
    arrives: Option<String>,
}

impl Vector {
    fn all() -> Vec<Self> {
        let read = |row: Row<4>| {
            let [name, rules, outcome, _] = row.columns;
            let arrives = outcome
                .strip_prefix("= ")
                .map(|path| String::from_utf8(unescape(path)).unwrap());
            Self {
                name,
                rules,
                path: row.bytes,
                arrives,
            }
        };
        // On the wire what follows is a query.
        let sendable = |vector: &Self| !vector.path.contains(&b'?');
        rows::<4>(TABLE)
            .into_iter()
            .map(read)
            .filter(sendable)
            .collect()
    }

    /// The document's words for the table's.
    fn document(rules: &str) -> String {
        let (mut fields, mut exceptions) = (Vec::new(), Vec::new());
        for word in rules.split(',') {
            match word {
                "strict" => {}
                "keep" | "decode" => fields.push(format!("escapedSlash: {word}")),
                "merge" => fields.push("mergeSlashes: true".to_owned()),
                exception => exceptions.push(exception),
            }
        }
        fields.push(format!("exceptions: [ {} ]", exceptions.join(", ")));
        format!(", paths: {{ {} }}", fields.join(", "))
    }

    fn request(&self) -> Vec<u8> {
        let (method, query) = match &self.path[..] {
            b"*" => ("OPTIONS", ""),
            _ => ("GET", QUERY),
        };
        let rest = format!("{query} HTTP/1.1\r\nHost: v\r\nConnection: close\r\n\r\n");
        [method.as_bytes(), b" ", &self.path, rest.as_bytes()].concat()
    }
}

#[test]
fn the_table_is_large_enough() {
    assert!(Vector::all().len() >= 240);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_path_that_is_matched_is_the_path_that_arrives() {
    let directory = tempfile::tempdir().unwrap();
    let recorders = [
        Recorder::nginx(directory.path()),
        Recorder::python(directory.path(), Habit::Length),
    ];
    let rules: BTreeSet<_> = Vector::all().iter().map(|vector| vector.rules).collect();
    let mut ports = Vec::new();
    for recorder in &recorders {
        for rules in &rules {
            ports.push(Port::http_with(recorder.address, &Vector::document(rules)));
        }
    }
    let front = Front::start(directory, &ports, EVERYBODY);
    let mut wrong = Vec::new();
    for (mut recorder, ports) in recorders.into_iter().zip(ports.chunks(rules.len())) {
        let clients: BTreeMap<_, _> = rules
            .iter()
            .zip(ports.iter().map(|port| front.client(port.listen)))
            .collect();
        for vector in Vector::all() {
            let status = status(&clients[&vector.rules], &vector.request()).await;
            let query = if vector.path == b"*" { "" } else { QUERY };
            let expected = vector.arrives.as_ref().map(|path| format!("{path}{query}"));
            let arrived = arrived(&mut recorder, expected.is_some()).await;
            // nginx takes no `*`.
            let refused_by_app = recorder.name == "nginx" && vector.path == b"*";
            let as_expected = match (&expected, &arrived[..]) {
                (Some(target), [taken]) => taken.target == *target && status == 200,
                (Some(_), []) => refused_by_app && status == 400,
                (None, []) => status == 400,
                (None, _) | (Some(_), _) => false,
            };
            if !as_expected {
                wrong.push(format!(
                    "{}, {}: {status}, arrived {arrived:?}, and not {expected:?}",
                    recorder.name, vector.name
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}:\n{}", wrong.len(), wrong.join("\n"));
}

/// The same table where policy forbids exactly the paths that arrived: then none does, however it is
/// spelt. And where it allows one prefix alone, nothing arrives but what begins with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_spelling_gets_around_a_policy() {
    let directory = tempfile::tempdir().unwrap();
    let mut recorder = Recorder::python(directory.path(), Habit::Length);
    let vectors = Vector::all();
    let rules: BTreeSet<_> = vectors.iter().map(|vector| vector.rules).collect();
    let ports = |rules: &BTreeSet<&str>| -> Vec<Port> {
        let port = |rules: &&str| Port::http_with(recorder.address, &Vector::document(rules));
        rules.iter().map(port).collect()
    };
    let (denying, allowing) = (ports(&rules), ports(&rules));
    // A star in a pattern means something else.
    let arriving = vectors
        .iter()
        .filter_map(|vector| vector.arrives.as_deref());
    let forbidden: BTreeSet<_> = arriving.filter(|path| !path.contains(['*', '{'])).collect();
    let numbers = |ports: &[Port]| {
        let numbers = ports
            .iter()
            .map(|port| format!("\"{}\"", port.listen.port()));
        numbers.collect::<Vec<_>>().join(", ")
    };
    let quoted: Vec<_> = forbidden.iter().map(|path| format!("{path:?}")).collect();
    let documents = format!(
        r#"
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{ namespace: shop, name: open }}
spec: {{ action: ALLOW, rules: [ {{ to: [ {{ operation: {{ ports: [ {} ] }} }} ] }} ] }}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{ namespace: shop, name: closed }}
spec: {{ action: DENY, rules: [ {{ to: [ {{ operation: {{ ports: [ {} ], paths: [ {} ] }} }} ] }} ] }}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{ namespace: shop, name: prefix }}
spec: {{ action: ALLOW, rules: [ {{ to: [ {{ operation: {{ ports: [ {} ], paths: [ "/a/*" ] }} }} ] }} ] }}
"#,
        numbers(&denying),
        numbers(&denying),
        quoted.join(", "),
        numbers(&allowing),
    );
    let all: Vec<_> = denying.into_iter().chain(allowing).collect();
    let front = Front::start(directory, &all, &documents);
    let clients: Vec<Client> = all.iter().map(|port| front.client(port.listen)).collect();
    let place = |rules: &str| rules_place(&vectors, rules);
    let mut wrong = Vec::new();
    for vector in vectors.iter().filter(|vector| vector.path != b"*") {
        let denied = &clients[place(vector.rules)];
        let allowed = &clients[rules.len() + place(vector.rules)];
        let expected = match &vector.arrives {
            None => (400, 400),
            Some(path) if path.contains(['*', '{']) => continue,
            Some(path) if path.starts_with("/a/") => (403, 200),
            Some(_) => (403, 403),
        };
        let request = vector.request();
        let statuses = (
            status(denied, &request).await,
            status(allowed, &request).await,
        );
        let arrived = arrived(&mut recorder, expected.1 == 200).await;
        if statuses != expected || arrived.len() != usize::from(expected.1 == 200) {
            wrong.push(format!(
                "{}: {statuses:?}, and not {expected:?}; {arrived:?}",
                vector.name
            ));
        }
    }
    assert!(wrong.is_empty(), "{}:\n{}", wrong.len(), wrong.join("\n"));
}

/// Under the strict rules an application may decode once more, take a backslash for a slash and cut
/// parameters off, as many do: it finds no other directory than the one that was matched.
#[test]
fn no_lenient_reading_of_what_arrives_leads_elsewhere() {
    for vector in Vector::all()
        .iter()
        .filter(|vector| vector.rules == "strict")
    {
        let Some(path) = vector.arrives.as_deref().filter(|path| *path != "*") else {
            continue;
        };
        let lenient = String::from_utf8_lossy(&decoded(path)).replace('\\', "/");
        let slashes = |text: &str| text.matches('/').count();
        assert_eq!(slashes(&lenient), slashes(path), "{}: {path}", vector.name);
        for segment in lenient.split('/') {
            let name = segment.split(';').next().unwrap();
            assert!(!matches!(name, "." | ".."), "{}: {path}", vector.name);
        }
    }
}

fn decoded(path: &str) -> Vec<u8> {
    let mut pieces = path.split('%');
    let mut out = pieces.next().unwrap_or_default().as_bytes().to_vec();
    for piece in pieces {
        out.push(u8::from_str_radix(&piece[..2], 16).unwrap());
        out.extend_from_slice(&piece.as_bytes()[2..]);
    }
    out
}

/// Where the ports with these rules stand.
fn rules_place(vectors: &[Vector], rules: &str) -> usize {
    let all: BTreeSet<_> = vectors.iter().map(|vector| vector.rules).collect();
    all.iter().position(|other| *other == rules).unwrap()
}

/// The status of the one answer.
async fn status(client: &Client, request: &[u8]) -> u16 {
    let exchange = async {
        let mut stream = client.with_alpn(&[b"http/1.1"]).connect().await.unwrap();
        stream.write_all(request).await.unwrap();
        let mut heard = Vec::new();
        let _ = stream.read_to_end(&mut heard).await;
        let heard = String::from_utf8_lossy(&heard);
        assert_eq!(heard.matches("HTTP/1.1 ").count(), 1, "{heard}");
        heard[9..12].parse().unwrap()
    };
    tokio::time::timeout(PATIENCE, exchange).await.unwrap()
}

/// What the application took, once it has taken what is expected.
async fn arrived(recorder: &mut Recorder, expected: bool) -> Vec<Taken> {
    let deadline = Instant::now() + PATIENCE;
    let mut all = recorder.taken();
    while expected && all.is_empty() && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(1)).await;
        all = recorder.taken();
    }
    all
}
