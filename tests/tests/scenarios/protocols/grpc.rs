//! gRPC, by the `grpcio` package on both sides, with an app that speaks HTTP/2 without TLS.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::Stdio;

use fender_tests::process::{PATIENCE, Process, free_address};
use fender_tests::python::script;
use fender_tests::wait_until;
use serde_json::{Value, json};

use super::{Adapter, CALLER, app, told};

const H2C: &str = "protocol: http, appProtocol: h2c";

/// Everybody of the namespace may call anything but `test.Secret`.
const CALLS: &str = r#"apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: { namespace: shop, name: callers }
spec: { action: ALLOW, rules: [ { from: [ { source: { namespaces: [ shop ] } } ] } ] }
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: { namespace: shop, name: secret }
spec: { action: DENY, rules: [ { to: [ { operation: { paths: [ "/test.Secret/*" ] } } ] } ] }
"#;

/// Waits until the app has said this.
fn says(app: &Process, what: &Value) {
    wait_until(&format!("the app says {what}"), PATIENCE, || {
        let log = app.log();
        let mut said = log
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok());
        said.any(|said| said == *what)
    });
}

#[test]
fn every_kind_of_call_works_and_its_end_reaches_the_other_side() {
    let directory = tempfile::tempdir().unwrap();
    let place = free_address().to_string();
    let app = app("calls.py", &["serve", &place], &directory);
    let adapter = Adapter::start(&place, H2C, CALLS);
    let mut command = script("calls.py");
    command.args(["use", &adapter.address.to_string()]);
    command.arg(adapter.caller());
    let mut client = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(client.stdout.take().unwrap()).lines();
    let mut hears = || -> Value {
        let line = lines.next().expect("the client goes on").unwrap();
        serde_json::from_str(&line).unwrap()
    };
    let unary = json!({ "unary": "question", "who": CALLER, "binary": true });
    assert_eq!(hears(), unary);
    assert_eq!(hears(), json!({ "count": [0, 1, 2, 3, 4] }));
    assert_eq!(hears(), json!({ "sum": 5050 }));
    assert_eq!(hears(), json!({ "chat": true }));
    assert_eq!(hears(), json!({ "large": true }));
    assert_eq!(hears(), json!({ "many": true }));
    let failed = json!({ "code": "NOT_FOUND", "details": "there is no book", "decision": null });
    assert_eq!(hears(), failed);
    assert_eq!(hears()["code"], "UNIMPLEMENTED");

    // The app knows of the deadline, and hears of its end and of a call that is given up.
    assert_eq!(hears(), json!({ "code": "DEADLINE_EXCEEDED" }));
    says(&app, &json!({ "waits": true, "within": true }));
    says(&app, &json!({ "over": "deadline" }));
    wait_until("the second call waits", PATIENCE, || {
        app.log().matches("\"waits\"").count() == 2
    });
    client
        .stdin
        .as_mut()
        .unwrap()
        .write_all(b"go on\n")
        .unwrap();
    assert_eq!(hears(), json!({ "cancelled": true }));
    says(&app, &json!({ "over": "cancelled" }));

    // A denial of ours is one of gRPC, with the id under which it is explained (A5).
    let denied = hears();
    assert_eq!(denied["code"], "PERMISSION_DENIED", "{denied}");
    let id = denied["decision"].as_str().unwrap();
    assert_eq!(denied["details"], format!("denied (decision {id})"));
    adapter.logs(&["access", id, "test.Secret"]);
    assert!(client.wait().unwrap().success());
}

#[test]
fn an_app_that_is_down_is_unavailable() {
    let adapter = Adapter::start(free_address(), H2C, CALLS);
    let mut command = script("calls.py");
    command.args(["ask", &adapter.address.to_string()]);
    let said: Value = serde_json::from_str(&told(command.arg(adapter.caller()))).unwrap();
    assert_eq!(said["code"], "UNAVAILABLE", "{said}");
}
