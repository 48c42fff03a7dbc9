//! DESIGN §11: requests as spans of their traces, at a collector of OpenTelemetry.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use fender_tests::pki::{Authority, Template};
use fender_tests::process::{PATIENCE, free_address, output};
use fender_tests::python::script;
use fender_tests::{Process, binary, installed, wait_until};
use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::standalone::{CALLER, ORDERS};
use crate::telemetry::get;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const ASKING: &str = "00f067aa0ba902b7";

/// `shop/caller`, whose application calls `shop/orders` through both their sidecars, and collectors as they are started.
struct Pair {
    directory: TempDir,
    authority: Authority,
    /// Where the calling application finds its way out.
    way_out: SocketAddr,
    orders: SocketAddr,
    _app: Process,
}

impl Pair {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (authority, app) = (Authority::new("example.org"), free_address());
        let (way_out, orders) = (free_address(), free_address());
        let mut command = script("app.py");
        command.args(["http", &app.to_string()]);
        let started = start("app", &mut command, directory.path());
        for (name, uri) in [("orders", ORDERS), ("caller", CALLER)] {
            let identity = directory.path().join(name);
            authority.issue(&Template::svid(uri)).write(&identity);
            authority.write_bundle(&identity);
        }
        let pair = Self {
            directory,
            authority,
            way_out,
            orders,
            _app: started,
        };
        pair.configure(
            "orders",
            &format!(r#"inbound: [ {{ listen: "{orders}", app: "{app}", protocol: http }} ]"#),
        );
        pair.configure(
            "caller",
            &format!(r#"outbound: [ {{ listen: "{way_out}", connect: "{orders}", expect: "{ORDERS}", protocol: http }} ]"#),
        );
        pair
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn configure(&self, name: &str, ports: &str) {
        let identity = self.path(name);
        let identity = identity.display();
        let text = format!(
            r#"apiVersion: fender.dev/v1
kind: Sidecar
metadata: {{ namespace: shop, name: {name} }}
spec:
  identity: {{ files: {{ certificate: {identity}/certificate.pem, key: {identity}/key.pem, bundle: {identity}/bundle.pem }} }}
  {ports}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{ namespace: shop, name: callers }}
spec:
  action: ALLOW
  rules: [ {{ to: [ {{ operation: {{ paths: [ "/public*" ] }} }} ] }} ]
"#
        );
        fs::write(self.path(&format!("{name}.yaml")), text).unwrap();
    }

    /// One of the two sidecars, with a collector to tell.
    fn sidecar(&self, name: &str, arguments: &[&str]) -> Process {
        let socket = self.path(&format!("{name}.sock"));
        let mut command = Command::new(binary());
        command.env_clear().arg("sidecar").arg("--config");
        command.arg(self.path(&format!("{name}.yaml")));
        command.arg("--admin-socket").arg(&socket).args(arguments);
        let mut process = Process::start(name, &mut command, &self.path(&format!("{name}.log")));
        process.wait_ready(&socket);
        process
    }

    fn at_socket(&self) -> String {
        format!("unix://{}", self.path("otel.sock").display())
    }

    /// A collector that is to be found at [`Pair::at_socket`].
    fn collector(&self, status: Option<&str>) -> Process {
        let mut command = script("collector.py");
        command.arg(format!("unix:{}", self.path("otel.sock").display()));
        command.envs(status.map(|status| ("STATUS", status)));
        start("collector", &mut command, self.directory.path())
    }

    /// The application of `shop/caller` calls, and is told what that of `shop/orders` saw.
    fn call(&self, path: &str, fields: &[&str]) -> Value {
        let url = format!("http://{}{path}", self.way_out);
        let (code, text, error) = ask(&[], &url, fields);
        assert_eq!(code, 0, "{error}");
        serde_json::from_str(&text).unwrap_or_else(|_| panic!("{text}"))
    }

    /// Somebody calls `shop/orders` as `shop/caller`: the status.
    fn call_orders(&self, path: &str, fields: &[&str]) -> String {
        let file = |name: &str| self.path("caller").join(name).display().to_string();
        let (chain, key, bundle) = (file("certificate.pem"), file("key.pem"), file("bundle.pem"));
        let resolve = format!("localhost:{}:{}", self.orders.port(), self.orders.ip());
        let arguments = [
            "--cert",
            &chain,
            "--key",
            &key,
            "--cacert",
            &bundle,
            "--resolve",
            &resolve,
            "--write-out",
            "\n%{http_code}",
        ];
        let url = format!("https://localhost:{}{path}", self.orders.port());
        let (code, text, error) = ask(&arguments, &url, fields);
        assert_eq!(code, 0, "{error}");
        text.rsplit_once('\n').unwrap().1.to_owned()
    }

    /// What this sidecar counts under this name.
    fn counted(&self, name: &str, series: &str) -> u64 {
        let (_, metrics) = get(&self.path(&format!("{name}.sock")), "/metrics");
        let line = metrics
            .lines()
            .find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("{series}\n{metrics}"))
            .parse()
            .unwrap()
    }
}

/// A program of ours, once it listens.
fn start(name: &str, command: &mut Command, directory: &Path) -> Process {
    let log = directory.join(format!("{name}.{}.log", free_address().port()));
    let mut process = Process::start(name, command, &log);
    wait_until(&format!("{name} listens"), PATIENCE, || {
        process.assert_running();
        process.log().contains("\"listens\"")
    });
    process
}

/// What curl is told: its code, the text, and its complaint.
fn ask(arguments: &[&str], url: &str, fields: &[&str]) -> (i32, String, String) {
    let fields = fields.iter().flat_map(|field| ["--header", field]);
    let fixed = ["-sS", "--max-time", "60", "--noproxy", "*"];
    let all: Vec<_> = fixed
        .into_iter()
        .chain(arguments.iter().copied())
        .chain(fields)
        .chain([url])
        .collect();
    output(installed("curl"), &all)
}

/// The spans that a collector has, once they are so many.
fn spans(collector: &Process, count: usize) -> Vec<Value> {
    let mut spans = Vec::new();
    wait_until(&format!("{count} spans"), PATIENCE, || {
        let log = collector.log();
        let lines = log.lines().filter(|line| line.ends_with('}'));
        let said = lines.map(|line| serde_json::from_str::<Value>(line).unwrap());
        spans = said.filter(|said| !said["trace"].is_null()).collect();
        spans.len() >= count
    });
    assert_eq!(spans.len(), count, "{spans:#?}");
    spans
}

fn traceparent(span: &str, flags: &str) -> String {
    format!("traceparent: 00-{TRACE}-{span}-{flags}")
}

#[test]
fn a_call_is_a_span_of_each_sidecar_one_the_parent_of_the_other_and_the_application_joins() {
    let pair = Pair::new();
    // The caller's collector is behind TLS, as its certificate's name; that of the other at a socket.
    let (address, chain) = (free_address(), pair.path("collector"));
    let template = Template::svid("spiffe://example.org/ns/otel/sa/collector");
    pair.authority.issue(&template).write(&chain);
    let roots = pair.authority.write_bundle(&chain);
    let mut command = script("collector.py");
    command.arg(address.to_string());
    command
        .arg(chain.join("certificate.pem"))
        .arg(chain.join("key.pem"));
    let of_caller = start("collector", &mut command, pair.directory.path());
    let of_orders = pair.collector(None);
    let endpoint = format!("https://localhost:{}", address.port());
    let roots = roots.to_string_lossy();
    let _orders = pair.sidecar("orders", &["--otlp-endpoint", &pair.at_socket()]);
    let _caller = pair.sidecar(
        "caller",
        &["--otlp-endpoint", &endpoint, "--otlp-roots", &roots],
    );

    let secrets = [
        "authorization: Bearer canary-token",
        "cookie: canary-cookie",
        "tracestate: rojo=canary-state",
    ];
    let parent = traceparent(ASKING, "01");
    let fields = [&[parent.as_str()], &secrets[..]].concat();
    let seen = pair.call("/public/orders?card=canary-query", &fields);
    let [client] = &spans(&of_caller, 1)[..] else {
        unreachable!()
    };
    let [server] = &spans(&of_orders, 1)[..] else {
        unreachable!()
    };

    assert_eq!(
        (&client["trace"], &client["parent"]),
        (&json!(TRACE), &json!(ASKING))
    );
    assert_eq!(
        (&server["trace"], &server["parent"]),
        (&json!(TRACE), &client["id"])
    );
    let joined = format!("00-{TRACE}-{}-01", server["id"].as_str().unwrap());
    assert_eq!(seen["fields"]["traceparent"], json!([joined]));
    assert_eq!(seen["fields"]["tracestate"], json!(["rojo=canary-state"]));

    assert_eq!(
        (&client["kind"], &client["name"], &client["status"]),
        (
            &json!("SPAN_KIND_CLIENT"),
            &json!("GET"),
            &json!("STATUS_CODE_UNSET")
        )
    );
    assert_eq!(
        (&server["kind"], &server["name"], &server["scope"]),
        (&json!("SPAN_KIND_SERVER"), &json!("GET"), &json!("fender"))
    );
    assert_eq!(
        client["attributes"],
        json!({
            "http.request.method": "GET", "url.path": "/public/orders", "network.protocol.version": "1.1",
            "server.address": "127.0.0.1", "server.port": pair.way_out.port(), "http.response.status_code": 200,
            "fender.peer": ORDERS, "fender.destination": ORDERS,
        })
    );
    assert_eq!(
        server["attributes"],
        json!({
            "http.request.method": "GET", "url.path": "/public/orders", "url.scheme": "https", "network.protocol.version": "1.1",
            "server.address": "127.0.0.1", "server.port": pair.way_out.port(), "client.address": "127.0.0.1",
            "http.response.status_code": 200, "fender.peer": CALLER,
        })
    );
    let resource = &server["resource"];
    assert_eq!(
        (&resource["service.name"], &resource["service.namespace"]),
        (&json!("orders"), &json!("shop"))
    );
    assert_eq!(resource["fender.identity"], ORDERS);
    assert_ne!(
        resource["service.instance.id"],
        client["resource"]["service.instance.id"]
    );
    for collector in [&of_caller, &of_orders] {
        assert!(!collector.log().contains("canary"), "{}", collector.log());
    }
}

#[test]
fn what_nobody_records_is_told_to_nobody_and_a_share_of_what_belongs_to_no_trace_begins_one() {
    let pair = Pair::new();
    let collector = pair.collector(None);
    let endpoint = pair.at_socket();
    let _orders = pair.sidecar("orders", &["--otlp-endpoint", &endpoint]);
    let _caller = pair.sidecar(
        "caller",
        &["--otlp-endpoint", &endpoint, "--traces-begin", "1"],
    );
    let not_recorded = traceparent(ASKING, "00");
    let seen = pair.call("/public/1", &[&not_recorded]);
    assert_eq!(
        seen["fields"]["traceparent"],
        json!([not_recorded.split_once(": ").unwrap().1])
    );
    // A state that is too long for one goes nowhere, and neither does a context that is none.
    let state = format!(
        "tracestate: {}",
        (0..33)
            .map(|number| format!("k{number}=1"))
            .collect::<Vec<_>>()
            .join(",")
    );
    let seen = pair.call(
        "/public/2",
        &[&traceparent("0000000000000000", "01"), &state],
    );
    let begun = spans(&collector, 2);
    let (client, server) = match begun[0]["kind"] == "SPAN_KIND_CLIENT" {
        true => (&begun[0], &begun[1]),
        false => (&begun[1], &begun[0]),
    };
    assert_eq!(
        (&client["parent"], &client["attributes"]["url.path"]),
        (&json!(""), &json!("/public/2"))
    );
    assert_eq!(
        (&server["trace"], &server["parent"]),
        (&client["trace"], &client["id"])
    );
    let (trace, span) = (
        server["trace"].as_str().unwrap(),
        server["id"].as_str().unwrap(),
    );
    assert_ne!(trace, TRACE);
    assert_eq!(
        seen["fields"]["traceparent"],
        json!([format!("00-{trace}-{span}-01")])
    );
    assert!(seen["fields"].get("tracestate").is_none(), "{seen}");
    // The line names the span.
    let log = fs::read_to_string(pair.path("orders.log")).unwrap();
    assert!(
        log.lines()
            .any(|line| line.contains(trace) && line.contains(&format!("\"span_id\":\"{span}\""))),
        "{log}"
    );
}

#[test]
fn a_collector_that_is_away_holds_up_nobody_and_gets_what_waited_for_it() {
    let pair = Pair::new();
    let orders = pair.sidecar("orders", &["--otlp-endpoint", &pair.at_socket()]);
    let parent = traceparent(ASKING, "01");
    assert_eq!(pair.call_orders("/public/early", &[&parent]), "200");
    wait_until("it says that nobody takes spans", PATIENCE, || {
        orders.log().contains("spans cannot be delivered")
    });
    let collector = pair.collector(None);
    assert_eq!(
        spans(&collector, 1)[0]["attributes"]["url.path"],
        "/public/early"
    );
    wait_until("it says that spans are taken again", PATIENCE, || {
        orders.log().contains("spans are delivered again")
    });

    // It goes, and another comes in its place.
    drop(collector);
    fs::remove_file(pair.path("otel.sock")).unwrap();
    assert_eq!(pair.call_orders("/denied", &[&parent]), "403");
    let collector = pair.collector(None);
    let denied = &spans(&collector, 1)[0];
    assert_eq!(
        (
            &denied["attributes"]["http.response.status_code"],
            &denied["status"]
        ),
        (&json!(403), &json!("STATUS_CODE_UNSET"))
    );
    assert_eq!(
        denied["attributes"]["fender.decision"]
            .as_str()
            .unwrap()
            .len(),
        32
    );
    wait_until("all are counted", PATIENCE, || {
        pair.counted("orders", "fender_spans_delivered_total") == 2
    });
}

#[test]
fn spans_that_a_collector_refuses_are_counted_and_not_told_again() {
    let pair = Pair::new();
    let collector = pair.collector(Some("PERMISSION_DENIED"));
    let orders = pair.sidecar("orders", &["--otlp-endpoint", &pair.at_socket()]);
    assert_eq!(
        pair.call_orders("/public", &[&traceparent(ASKING, "01")]),
        "200"
    );
    wait_until("they are counted", PATIENCE, || {
        pair.counted("orders", "fender_spans_lost_total{reason=\"refused\"}") == 1
    });
    assert_eq!(
        collector.log().matches("metadata").count(),
        1,
        "{}",
        collector.log()
    );
    assert!(
        orders.log().contains("spans cannot be delivered"),
        "{}",
        orders.log()
    );
}

#[test]
fn the_end_delivers_what_is_there_and_waits_for_no_collector_that_is_away() {
    let pair = Pair::new();
    let parent = traceparent(ASKING, "01");
    let collector = pair.collector(None);
    let mut orders = pair.sidecar("orders", &["--otlp-endpoint", &pair.at_socket()]);
    assert_eq!(pair.call_orders("/public/last", &[&parent]), "200");
    orders.signal(Signal::TERM);
    assert_eq!(orders.wait(PATIENCE).code(), Some(0));
    assert_eq!(
        spans(&collector, 1)[0]["attributes"]["url.path"],
        "/public/last"
    );

    drop(collector);
    let mut orders = pair.sidecar("orders", &["--otlp-endpoint", &pair.at_socket()]);
    assert_eq!(pair.call_orders("/public/lost", &[&parent]), "200");
    orders.signal(Signal::TERM);
    assert_eq!(orders.wait(PATIENCE).code(), Some(0));
    assert!(
        orders.log().contains("spans were delivered to nobody"),
        "{}",
        orders.log()
    );
}

#[test]
fn attack_somebody_in_the_collectors_place_gets_no_span() {
    let pair = Pair::new();
    let (address, impostor) = (free_address(), Authority::new("example.org"));
    let files = pair.path("impostor");
    impostor
        .issue(&Template::svid("spiffe://example.org/ns/otel/sa/collector"))
        .write(&files);
    let mut command = script("collector.py");
    command.arg(address.to_string());
    command
        .arg(files.join("certificate.pem"))
        .arg(files.join("key.pem"));
    let collector = start("collector", &mut command, pair.directory.path());
    let endpoint = format!("https://localhost:{}", address.port());
    let roots = pair.path("orders").join("bundle.pem");
    let orders = pair.sidecar(
        "orders",
        &[
            "--otlp-endpoint",
            &endpoint,
            "--otlp-roots",
            &roots.to_string_lossy(),
        ],
    );
    assert_eq!(
        pair.call_orders("/public", &[&traceparent(ASKING, "01")]),
        "200"
    );
    wait_until("it says why", PATIENCE, || {
        let log = orders.log();
        log.contains("spans cannot be delivered") && log.contains("invalid peer certificate")
    });
    assert!(!collector.log().contains("metadata"), "{}", collector.log());
}

#[test]
fn a_collector_that_nobody_vouches_for_is_refused_at_the_start() {
    let pair = Pair::new();
    let config = pair.path("orders.yaml");
    let config = config.to_string_lossy();
    for (arguments, said) in [
        (
            &["--otlp-endpoint", "https://localhost:4317"][..],
            "--otlp-roots",
        ),
        (
            &[
                "--otlp-endpoint",
                "http://127.0.0.1:4317",
                "--otlp-roots",
                &config,
            ],
            "no TLS",
        ),
        (
            &[
                "--otlp-endpoint",
                "https://localhost:4317",
                "--otlp-roots",
                &config,
            ],
            "authorities of the collector",
        ),
        (
            &["--otlp-endpoint", "http://127.0.0.1:4318/v1/traces"],
            "gRPC",
        ),
        (&["--traces-begin", "0.5"], "--otlp-endpoint"),
        (
            &[
                "--otlp-endpoint",
                "http://127.0.0.1:4317",
                "--traces-begin",
                "50",
            ],
            "from 0 to 1",
        ),
    ] {
        let all = [&["sidecar", "--config", &config], arguments].concat();
        let (code, _, error) = output(binary(), &all);
        assert_eq!(code, 64, "{arguments:?}: {error}");
        assert!(error.contains(said), "{arguments:?}: {error}");
    }
}
