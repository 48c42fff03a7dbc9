//! Abstract sockets: a name that anybody may take first, in whatever network namespace the agent is (DESIGN §14).

use std::os::unix::process::CommandExt;
use std::process::Command;

use fender_tests::process::{PATIENCE, Process, installed};
use fender_tests::{Mesh, wait_until};

use crate::agent::{Host, ORDERS, REFUSED, STRANGER, node_token, program, workload};

const TAKE: &str = "import socket, sys; s = socket.socket(socket.AF_UNIX); s.bind('\\0' + sys.argv[1]); s.listen(); \
                    print('taken', flush=True); c, _ = s.accept(); print('heard', len(c.recv(1024)), flush=True); s.accept()";

fn host() -> Host {
    Host::start(
        &workload("orders", "{ unix: { node: edge-1, uid: 4301 } }"),
        &[],
    )
}

/// A name of this test's own: they are one name space for all.
fn name(what: &str) -> String {
    format!("fender-test-{what}-{}", std::process::id())
}

fn agent(mesh: &Mesh, name: &str) -> Process {
    let token = node_token(mesh, "edge-2");
    let mut command = mesh.command();
    command
        .env_remove("FENDER_ADMIN")
        .args(["agent", "--state"])
        .arg(mesh.path("named"))
        .args(["--socket", &format!("unix-abstract:{name}"), "--token-file"])
        .arg(token);
    Process::start("named", &mut command, &mesh.path("logs/named.log"))
}

fn become_somebody(mesh: &Mesh, name: &str) -> (Option<i32>, String) {
    let mut command = Command::new(program(mesh, "fender"));
    command
        .env_clear()
        .env("FENDER_CONTROL", mesh.url())
        .args(["exec", "--start-timeout", "60s", "--agent"])
        .arg(format!("unix-abstract:{name}"))
        .args(["--", "/bin/true"])
        .uid(ORDERS)
        .gid(ORDERS);
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code(), text)
}

#[test]
fn an_agent_serves_at_an_abstract_name() {
    let host = host();
    let name = name("serves");
    // Of another node: here its callers are nobody, which is an answer.
    let mut agent = agent(&host.mesh, &name);
    wait_until("the agent is ready", PATIENCE, || {
        agent.assert_running();
        agent.log().contains("ready")
    });
    let (code, text) = become_somebody(&host.mesh, &name);
    assert_eq!(code, Some(REFUSED), "{text}");
    assert!(text.contains("error[not-attestable]"), "{text}");
    let orders = workload("orders", "{ unix: { node: edge-2, uid: 4301 } }");
    let nodes = [crate::agent::node("edge-1"), crate::agent::node("edge-2")].concat();
    let documents = Mesh::documents("1h", &[nodes, orders].concat());
    let (code, out, err) = host.mesh.apply(&documents);
    assert_eq!(code, 0, "{out}{err}");
    let (code, text) = become_somebody(&host.mesh, &name);
    assert_eq!(code, Some(0), "{text}\n{}", agent.log());
}

#[test]
fn attack_a_name_that_another_user_took_first_is_neither_served_nor_believed() {
    let host = host();
    let name = name("squatted");
    let mut command = Command::new(installed("python3"));
    command
        .args(["-c", TAKE, &name])
        .uid(STRANGER)
        .gid(STRANGER);
    let log = host.mesh.path("logs/squatter.log");
    let mut squatter = Process::start("squatter", &mut command, &log);
    wait_until("the squatter listens", PATIENCE, || {
        squatter.assert_running();
        squatter.log().contains("taken")
    });
    let (code, text) = become_somebody(&host.mesh, &name);
    assert_eq!(code, Some(REFUSED), "{text}");
    assert!(text.contains("somebody else has taken its place"), "{text}");
    wait_until("the squatter hears nothing", PATIENCE, || {
        squatter.log().contains("heard 0")
    });
    let mut agent = agent(&host.mesh, &name);
    assert_eq!(agent.wait(PATIENCE).code(), Some(64), "{}", agent.log());
    let log = agent.log();
    let whose = format!(
        "process {} of user {STRANGER} has taken this name",
        squatter.pid()
    );
    assert!(log.contains(&whose), "{log}");
}
