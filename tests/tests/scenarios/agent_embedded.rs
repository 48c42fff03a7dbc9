//! An agent in the process of the control plane whose node was revoked stays out until an administrator lets it in (DESIGN
//! §14: single-use tokens, made by whoever may; I4).

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use fender_tests::process::{PATIENCE, Process, installed, output};
use fender_tests::python::script;
use fender_tests::{Mesh, wait_until};
use rustix::process::Signal;
use serde_json::Value;

use crate::agent::{ORDERS, REFUSED, node, workload};
use crate::workload_api::only;

const ORDERS_ID: &str = "spiffe://test.internal/ns/shop/sa/orders";

/// One machine.
struct Machine {
    mesh: Mesh,
}

impl Machine {
    fn new(leaf: &str) -> Self {
        let orders = workload("orders", "{ unix: { node: edge-1, uid: 4301 } }");
        let documents = Mesh::documents(leaf, &[node("edge-1"), orders].concat());
        let mut mesh = Mesh::start(&documents);
        let open = fs::Permissions::from_mode(0o755);
        fs::set_permissions(mesh.directory.path(), open).unwrap();
        mesh.stop_control();
        Self { mesh }
    }

    fn socket(&self) -> PathBuf {
        self.mesh.path("agent.sock")
    }

    fn start(&self) -> Process {
        let mut command = self.mesh.command();
        command
            .args(["--log-format", "json", "control", "--data-dir"])
            .arg(self.mesh.path("control"))
            .args(["--listen", &self.mesh.control.to_string()])
            .args(["--node", "edge-1", "--agent-socket"])
            .arg(self.socket());
        Process::start(
            "control",
            &mut command,
            &self.mesh.path("logs/embedded.log"),
        )
    }

    fn started(&self) -> Process {
        let mut process = self.start();
        wait_until("the agent is ready", PATIENCE, || {
            process.assert_running();
            self.socket().exists()
        });
        process
    }

    fn stop(&self, mut process: Process) {
        process.signal(Signal::TERM);
        assert!(process.wait(PATIENCE).success(), "{}", process.log());
        fs::remove_file(self.socket()).unwrap();
    }

    fn ask(&self) -> Value {
        let mut command = script("workload.py");
        command
            .arg(self.socket())
            .arg("svid")
            .env("AS_USER", ORDERS.to_string());
        only(&mut command)
    }

    fn assert_serves(&self, process: &Process) {
        let answer = self.ask();
        assert_eq!(answer["id"], ORDERS_ID, "{answer}\n{}", process.log());
    }

    fn revoke(&self) {
        let reason = "host broken into";
        self.mesh
            .fender_ok(&["revoke", "node", "edge-1", "--reason", reason]);
    }

    /// It does not start, as often as it is tried, and says how it would.
    fn assert_stays_out(&self) {
        for _ in 0..2 {
            let mut process = self.start();
            let code = process.wait(PATIENCE).code();
            let log = process.log();
            assert_eq!(code, Some(REFUSED), "{log}");
            assert!(log.contains("error[revoked]"), "{log}");
            assert!(
                log.contains("fender token create --node edge-1 --out "),
                "{log}"
            );
            assert!(!self.socket().exists(), "nobody is served");
        }
    }

    /// As an administrator does it, where the control plane runs already.
    fn let_in(&self) {
        let out = self.mesh.path("control/agent/token");
        let out = out.to_string_lossy();
        self.mesh
            .fender_ok(&["token", "create", "--node", "edge-1", "--out", &out]);
    }

    fn let_in_without_agent(&mut self) {
        self.mesh.start_control();
        let log = self.mesh.fender_ok(&["audit-log", "list"]);
        assert_eq!(log.matches("create-token").count(), 1, "{log}");
        self.let_in();
        self.mesh.stop_control();
    }
}

#[test]
fn attack_a_revoked_agent_in_the_control_plane_does_not_let_itself_in_by_a_restart() {
    let mut machine = Machine::new("1h");
    let process = machine.started();
    machine.assert_serves(&process);
    machine.revoke();
    // The control plane goes on; its agent gives nothing more, and says so once, as an error.
    wait_until("the log says so", PATIENCE, || {
        process
            .log()
            .contains("the control plane refuses this agent")
    });
    wait_until("nobody is anybody any more", PATIENCE, || {
        machine.ask()["error"] == "PERMISSION_DENIED"
    });
    machine.mesh.fender_ok(&["status"]);
    machine.stop(process);

    // Its certificate has most of an hour left.
    machine.assert_stays_out();
    machine.let_in_without_agent();
    let process = machine.started();
    machine.assert_serves(&process);
    assert!(!machine.mesh.path("control/agent/token").exists());
    machine.stop(process);
    // And it is itself again, without another token.
    let process = machine.started();
    machine.assert_serves(&process);
}

#[test]
fn attack_a_revoked_agent_whose_certificate_has_expired_gets_no_other_and_is_let_in_while_it_runs()
{
    let mut machine = Machine::new("5s");
    let process = machine.started();
    machine.assert_serves(&process);
    machine.revoke();
    machine.stop(process);
    let stored = machine.mesh.path("control/agent/svid.pem");
    let stored = stored.to_string_lossy();
    let expired = ["x509", "-noout", "-checkend", "0", "-in", &stored];
    wait_until("its certificate has expired", PATIENCE, || {
        output(installed("openssl"), &expired).0 == 1
    });
    machine.assert_stays_out();

    machine.let_in_without_agent();
    let process = machine.started();
    machine.assert_serves(&process);
    machine.revoke();
    wait_until("nobody is anybody any more", PATIENCE, || {
        machine.ask()["error"] == "PERMISSION_DENIED"
    });
    machine.let_in();
    wait_until("it has found the token", PATIENCE, || {
        machine.ask()["id"] == ORDERS_ID
    });
    machine.stop(process);
}
