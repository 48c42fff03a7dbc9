//! WebSocket, by the `websockets` package on both sides.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use fender_tests::Mesh;
use fender_tests::process::{PATIENCE, free_address, wait_until};
use fender_tests::python::script;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::{Adapter, OPEN, app};
use crate::revocation::serial;

#[test]
fn messages_fragments_pings_and_close_codes_pass_both_ways_until_a_revocation() {
    let directory = tempfile::tempdir().unwrap();
    let place = free_address().to_string();
    let app = app("websocket.py", &["serve", &place], &directory);
    let address = free_address();
    let documents = format!(
        r#"apiVersion: fender.dev/v1
kind: Workload
metadata: {{ namespace: shop, name: orders }}
spec:
  attest: [ {{ token: {{}} }} ]
  dnsNames: [ localhost ]
  inbound: [ {{ listen: "{address}", app: "{place}", protocol: http }} ]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{ namespace: shop, name: people }}
spec: {{ action: ALLOW, rules: [ {{ from: [ {{ source: {{ namespaces: [ people ] }} }} ] }} ] }}
"#
    );
    let mesh = Mesh::start(&Mesh::documents("1h", &documents));
    let _orders = mesh.sidecar("shop/orders", &[]);
    let person = mesh.person("tester");

    let mut command: Command = script("websocket.py");
    command.args(["use", &address.to_string()]).arg(&person);
    let mut client = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(client.stdout.take().unwrap()).lines();
    let mut hears = |expected: Value| {
        let line = lines.next().expect("the client goes on").unwrap();
        let said: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(said, expected);
    };
    hears(json!({ "echoed": true }));
    hears(json!({ "code": 4002, "reason": "go away" }));
    hears(json!({ "refused": 403 }));
    hears(json!({ "waits": true }));
    let closed = json!({ "closed": 4001, "reason": "enough" });
    wait_until("the app hears the client's close code", PATIENCE, || {
        let log = app.log();
        let mut said = log
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok());
        said.any(|said| said == closed)
    });

    // I4: it is open and silent, and ends without a word of the app's.
    let serial = serial(&person.join("certificate.pem"));
    mesh.fender_ok(&["revoke", "serial", &serial, "--reason", "laptop stolen"]);
    hears(json!({ "cut": true }));
    assert!(client.wait().unwrap().success());
}

/// The attack: who believes that an upgrade was agreed to lets what follows pass unseen.
#[tokio::test]
async fn after_a_refused_upgrade_what_follows_is_judged_like_any_request() {
    let directory = tempfile::tempdir().unwrap();
    let place = free_address().to_string();
    let _app = app("websocket.py", &["serve", &place], &directory);
    let adapter = Adapter::start(&place, "protocol: http", OPEN);
    let mut stream = adapter.client().connect().await.unwrap();
    let upgrade = "GET /refused HTTP/1.1\r\nhost: o\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
                   sec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n";
    let smuggled = "GET /denied HTTP/1.1\r\nhost: o\r\nconnection: close\r\n\r\n";
    stream
        .write_all(format!("{upgrade}{smuggled}").as_bytes())
        .await
        .unwrap();
    let mut all = String::new();
    let read = stream.read_to_string(&mut all);
    tokio::time::timeout(Duration::from_secs(60), read)
        .await
        .unwrap()
        .unwrap();
    let answers: Vec<_> = all
        .match_indices("HTTP/1.1 ")
        .map(|(at, _)| &all[at + 9..at + 12])
        .collect();
    assert_eq!(answers, ["403", "403"], "{all}");
    let (first, second) = all.split_at(all.rfind("HTTP/1.1 ").unwrap());
    assert!(
        first.contains("not here") && !first.contains("x-fender-decision"),
        "{first}"
    );
    assert!(second.contains("x-fender-decision: "), "{second}");
}
