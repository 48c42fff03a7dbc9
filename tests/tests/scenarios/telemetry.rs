//! DESIGN §11: health and metrics, of the control plane at a socket that is its owner's, of a sidecar at an address too.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use fender_tests::postgres::Durability;
use fender_tests::process::{PATIENCE, free_address, output};
use fender_tests::{Client, Postgres, Process, binary, installed, wait_until};
use rustix::process::Signal;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::standalone::{CALLER, Standalone};

/// What curl gets there: the status code and the body.
pub(crate) fn get(socket: &Path, path: &str) -> (String, String) {
    let socket = socket.to_string_lossy();
    let url = format!("http://localhost{path}");
    let (_, out, _) = output(
        installed("curl"),
        &[
            "--silent",
            "--max-time",
            "10",
            "--write-out",
            "\n%{http_code}",
            "--unix-socket",
            &socket,
            &url,
        ],
    );
    let (body, code) = out.rsplit_once('\n').unwrap();
    (code.to_owned(), body.to_owned())
}

#[test]
fn a_control_plane_whose_database_is_away_lives_and_is_not_ready() {
    let server = Postgres::start(Durability::None);
    let home = tempfile::tempdir().unwrap();
    let mut command = Command::new(binary());
    command
        .args([
            "control",
            "--trust-domain",
            "test.internal",
            "--store",
            &server.url("fender"),
        ])
        .args(["--listen", &free_address().to_string()])
        .current_dir(home.path())
        .env_clear();
    let mut control = Process::start("control", &mut command, &home.path().join("control.log"));
    let socket = home.path().join("fender-data/admin.sock");
    let ready = |wanted: &str| get(&socket, "/readyz").0 == wanted;
    wait_until("it is ready", PATIENCE, || {
        control.assert_running();
        ready("200")
    });
    let mode = fs::metadata(&socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(get(&socket, "/startupz").0, "200");
    assert_eq!(get(&socket, "/status").0, "404");
    let (code, metrics) = get(&socket, "/metrics");
    assert_eq!(code, "200");
    for line in [
        "fender_ready 1\n",
        "fender_control_audit_entries ",
        "# EOF\n",
    ] {
        assert!(metrics.contains(line), "{line}{metrics}");
    }
    let refused = "fender_control_issuances_refused_total{reason}";
    assert_told_by_the_reference("A control plane", &metrics, &[refused]);

    server.down();
    wait_until("it is not ready", PATIENCE, || ready("503"));
    assert_eq!(
        get(&socket, "/livez"),
        ("200".to_owned(), "ok\n".to_owned())
    );
    let (code, metrics) = get(&socket, "/metrics");
    assert_eq!(code, "200", "what it knows itself is told");
    assert!(metrics.contains("fender_ready 0\n"), "{metrics}");
    assert!(
        metrics.contains("fender_unrecoverable_seconds "),
        "{metrics}"
    );
    assert!(
        !metrics.contains("fender_control_audit_entries"),
        "{metrics}"
    );
    server.up();
    wait_until("it is ready again", PATIENCE, || {
        control.assert_running();
        ready("200")
    });
}

/// The same at an address.
fn ask(address: SocketAddr, path: &str, method: &str) -> (String, String) {
    let url = format!("http://{address}{path}");
    let arguments = [
        "--silent",
        "--max-time",
        "10",
        "--write-out",
        "\n%{http_code}",
        "--request",
        method,
        &url,
    ];
    let (_, out, _) = output(installed("curl"), &arguments);
    let (body, code) = out.rsplit_once('\n').unwrap();
    (code.to_owned(), body.to_owned())
}

fn observed() -> (Standalone, SocketAddr) {
    let address = free_address();
    let sidecar = Standalone::start_with(|command| {
        command.args(["--telemetry-listen", &address.to_string()]);
    });
    (sidecar, address)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sidecar_counts_by_who_called_and_says_nothing_of_what_was_called() {
    let (sidecar, address) = observed();
    let client = sidecar.client(CALLER);
    for _ in 0..3 {
        assert_eq!(
            client
                .get("/public/canary-path?canary-query")
                .await
                .unwrap()
                .status,
            200
        );
    }
    assert_eq!(client.get("/private").await.unwrap().status, 403);
    let nobody = Client::new(&[sidecar.authority.root()], None, sidecar.address);
    assert!(nobody.get("/public").await.is_err());

    let series = [
        format!(
            "fender_requests_total{{direction=\"inbound\",peer=\"{CALLER}\",status=\"2xx\"}} 3"
        ),
        format!(
            "fender_requests_total{{direction=\"inbound\",peer=\"{CALLER}\",status=\"4xx\"}} 1"
        ),
        format!(
            "fender_request_duration_seconds_count{{direction=\"inbound\",peer=\"{CALLER}\"}} 4"
        ),
        "fender_handshakes_failed_total{reason=\"no_certificate\"} 1".to_owned(),
        "fender_decisions_total{verdict=\"allow\",by=\"policy\"} 3".to_owned(),
        "fender_decisions_total{verdict=\"deny\",by=\"no_match\"} 1".to_owned(),
        "fender_listeners{direction=\"inbound\"} 1".to_owned(),
        "fender_access_lines_dropped_total 0".to_owned(),
        "fender_ready 1".to_owned(),
    ];
    // A handshake that failed is counted when its connection is over, which the client does not see.
    wait_until("everything is counted", PATIENCE, || {
        let (code, metrics) = ask(address, "/metrics", "GET");
        assert_eq!(code, "200");
        assert!(!metrics.contains("canary"), "{metrics}");
        series
            .iter()
            .all(|line| metrics.lines().any(|told| told == line))
    });
    let socket = sidecar.directory.path().join("admin.sock");
    let (_, metrics) = get(&socket, "/metrics");
    assert!(
        metrics.contains(&series[0]),
        "the socket tells the same: {metrics}"
    );
    // None of its ports has a certificate beside the workload's own.
    let absent = [
        "fender_port_certificate_expiry_timestamp_seconds{name,certificate}",
        "fender_port_certificate_problem{name,certificate}",
    ];
    assert_told_by_the_reference("A sidecar", &metrics, &absent);
    assert_handshakes_are_explained(&metrics);
}

/// What is told is what the reference says of this program: every metric, with its type and its labels, and no other.
fn assert_told_by_the_reference(program: &str, metrics: &str, absent: &[&str]) {
    let reference = include_str!("../../../docs/reference/metrics.md");
    let sections = reference.split("\n## ");
    let section = sections
        .into_iter()
        .find(|section| section.starts_with(program));
    let rows = section
        .unwrap()
        .lines()
        .filter(|line| line.contains("`fender_"));
    let said: BTreeSet<(String, String)> = rows
        .filter_map(|row| {
            let mut cells = row.trim_matches('|').split(" | ").map(str::trim);
            let series = cells.next()?.trim_matches('`');
            Some((series.to_owned(), cells.next()?.to_owned()))
        })
        .filter(|(series, _)| series.starts_with("fender_"))
        .filter(|(series, _)| !absent.contains(&series.as_str()))
        .collect();
    assert_eq!(series(metrics), said);
}

/// The guide says what each reason means for which a handshake fails.
fn assert_handshakes_are_explained(metrics: &str) {
    let guide = include_str!("../../../docs/guide/telemetry.md");
    let failed = "fender_handshakes_failed_total{reason=\"";
    let reasons = metrics.lines().filter_map(|line| line.strip_prefix(failed));
    for reason in reasons.filter_map(|rest| rest.split('"').next()) {
        assert!(
            guide.contains(&format!("`{reason}`")),
            "`{reason}` is not told"
        );
    }
}

/// Each metric as the reference writes it, with its type.
fn series(metrics: &str) -> BTreeSet<(String, String)> {
    let types = metrics
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE "));
    let each = types.map(|line| {
        let (name, kind) = line.split_once(' ').unwrap();
        let told = match kind {
            "counter" => format!("{name}_total"),
            "histogram" => format!("{name}_count"),
            _ => name.to_owned(),
        };
        let is_its = |line: &&str| {
            let rest = line.strip_prefix(&told);
            rest.is_some_and(|rest| rest.starts_with(['{', ' ']))
        };
        let line = metrics.lines().find(is_its).unwrap();
        let labels = line
            .split_once('{')
            .map_or("", |(_, rest)| rest.rsplit_once('}').unwrap().0);
        let labels: Vec<_> = labels
            .split("\",")
            .filter_map(|label| label.split('=').next())
            .collect();
        let labels = match labels.join(",") {
            none if none.is_empty() => none,
            some => format!("{{{some}}}"),
        };
        let name = if kind == "counter" {
            told
        } else {
            name.to_owned()
        };
        (format!("{name}{labels}"), kind.to_owned())
    });
    each.collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn anybody_hears_of_health_and_nothing_else_and_a_drain_says_why_it_is_not_ready() {
    let (mut sidecar, address) = observed();
    for path in ["/livez", "/readyz", "/startupz"] {
        assert_eq!(
            ask(address, path, "GET"),
            ("200".to_owned(), "ok\n".to_owned())
        );
    }
    for path in [
        "/status",
        "/decisions/00000000000000000000000000000000",
        "/",
        "/metrics/",
    ] {
        assert_eq!(ask(address, path, "GET").0, "404", "{path}");
    }
    for method in ["POST", "PUT", "DELETE", "OPTIONS"] {
        assert_eq!(ask(address, "/metrics", method).0, "405", "{method}");
    }

    // A request whose body does not come keeps the drain from ending.
    let client = sidecar.client(CALLER).with_alpn(&[b"http/1.1"]);
    let mut stream = client.connect().await.unwrap();
    let half = b"GET /public HTTP/1.1\r\nhost: o\r\ncontent-length: 5\r\n\r\nab";
    stream.write_all(half).await.unwrap();
    stream.flush().await.unwrap();
    let open = "fender_connections_open{direction=\"inbound\"} 1";
    wait_until("the request is open", PATIENCE, || {
        let told = ask(address, "/metrics", "GET").1;
        told.lines().any(|line| line == open)
    });
    sidecar.process.signal(Signal::TERM);
    wait_until("it is not ready, and says why", PATIENCE, || {
        ask(address, "/readyz", "GET") == ("503".to_owned(), "it is draining\n".to_owned())
    });
    assert_eq!(
        ask(address, "/livez", "GET").0,
        "200",
        "a drain is not to be cut short"
    );
    stream.write_all(b"cde").await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    assert_eq!(sidecar.process.wait(PATIENCE).code(), Some(0));
}
