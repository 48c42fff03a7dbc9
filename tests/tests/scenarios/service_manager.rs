//! A service manager hears how a sidecar is (`sd_notify`), and hands it the sockets it listens on (`sd_listen_fds`).

use std::fs;
use std::net::TcpStream;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::process::Command;

use fender_tests::process::{PATIENCE, Process, binary, free_address, installed, output};
use fender_tests::wait_until;
use rustix::process::Signal;

use crate::standalone::{CALLER, Standalone};

/// What manages services, as far as it listens.
struct Manager(UnixDatagram);

impl Manager {
    fn at(sidecar: &Standalone) -> Self {
        let socket = UnixDatagram::bind(sidecar.directory.path().join("notify")).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self(socket)
    }

    fn hears(&self) -> String {
        let mut datagram = [0; 1024];
        let length = self.0.recv(&mut datagram).expect("the manager is told");
        String::from_utf8_lossy(&datagram[..length]).into_owned()
    }
}

/// A sidecar that is not the one there was, with the same file, under a manager.
fn managed(sidecar: &mut Standalone, further: &[&str]) -> Process {
    if sidecar.process.is_running() {
        sidecar.process.kill();
    }
    let directory = sidecar.directory.path();
    // A session of its own: no terminal, whoever runs the tests.
    let mut command = Command::new(installed("setsid"));
    command
        .arg("--wait")
        .arg(binary())
        .args(["sidecar", "--config"]);
    command.arg(directory.join("sidecar.yaml"));
    command
        .arg("--upgrade-socket")
        .arg(directory.join("private/upgrade.sock"));
    command
        .args(further)
        .env("NOTIFY_SOCKET", directory.join("notify"));
    Process::start("managed", &mut command, &directory.join("managed"))
}

#[test]
fn a_manager_hears_of_start_reload_and_end() {
    for further in [&[][..], &["--supervise"]] {
        let mut sidecar = Standalone::start();
        let manager = Manager::at(&sidecar);
        let mut process = managed(&mut sidecar, further);
        assert_eq!(manager.hears(), "READY=1");
        assert_eq!(
            TcpStream::connect(sidecar.address).map(drop).ok(),
            Some(()),
            "and it is"
        );
        process.signal(Signal::HUP);
        let reloading = manager.hears();
        assert!(
            reloading.starts_with("RELOADING=1\nMONOTONIC_USEC="),
            "{reloading}"
        );
        assert_eq!(manager.hears(), "READY=1");
        process.signal(Signal::TERM);
        assert_eq!(manager.hears(), "STOPPING=1");
        assert_eq!(process.wait(PATIENCE).code(), Some(0), "{}", process.log());
    }
}

#[test]
fn a_manager_hears_which_process_is_the_service_after_a_take_over() {
    let mut sidecar = Standalone::start();
    let manager = Manager::at(&sidecar);
    let mut first = managed(&mut sidecar, &[]);
    assert_eq!(manager.hears(), "READY=1");
    let socket = sidecar.directory.path().join("private/upgrade.sock");
    let mut command = Command::new(binary());
    command
        .args(["sidecar", "--config"])
        .arg(sidecar.directory.path().join("sidecar.yaml"));
    command
        .arg("--upgrade-socket")
        .arg(&socket)
        .arg("--take-over")
        .arg(&socket);
    let mut second = Process::start(
        "second",
        &mut command,
        &sidecar.directory.path().join("second"),
    );
    assert_eq!(
        manager.hears(),
        format!("MAINPID={}", second.pid()),
        "{}",
        second.log()
    );
    assert_eq!(first.wait(PATIENCE).code(), Some(0));
    second.assert_running();
}

/// Several sockets with names, a Unix socket among them; and they stay through an upgrade.
#[tokio::test]
async fn systemds_own_activation_is_served_and_upgraded() {
    let mut sidecar = Standalone::start();
    sidecar.process.kill();
    let directory = sidecar.directory.path();
    let (second, unix) = (free_address(), directory.join("in.sock"));
    let config = fs::read_to_string(directory.join("sidecar.yaml")).unwrap();
    let ports = format!(
        "inbound: [ {{ listen: \"{second}\", app: \"{0}\", protocol: http }}, {{ listen: \"unix:{1}\", app: \"{0}\", protocol: http }}, {{",
        sidecar.app,
        unix.display()
    );
    fs::write(
        directory.join("sidecar.yaml"),
        config.replace("inbound: [ {", &ports),
    )
    .unwrap();
    let socket = directory.join("private/upgrade.sock");
    let admin = directory.join("admin.sock").to_string_lossy().into_owned();
    let mut command = Command::new(installed("systemd-socket-activate"));
    command.arg(format!("--listen={}", sidecar.address));
    command.arg(format!("--listen={second}"));
    command.arg(format!("--listen={}", unix.display()));
    command
        .args(["--fdname=first:second:local", "--"])
        .arg(binary());
    command
        .args(["--log", "debug", "sidecar", "--supervise", "--config"])
        .arg(directory.join("sidecar.yaml"));
    command
        .arg("--upgrade-socket")
        .arg(&socket)
        .args(["--admin-socket", &admin]);
    let mut process = Process::start("activated", &mut command, &directory.join("activated"));
    // The first connection starts it, and is served.
    wait_until("systemd's program listens", PATIENCE, || {
        process.assert_running();
        unix.exists()
    });
    let client = sidecar.client(CALLER);
    assert_eq!(
        client.get("/public").await.unwrap().status,
        200,
        "{}",
        process.log()
    );
    let served = || {
        TcpStream::connect(second).unwrap();
        UnixStream::connect(&unix).unwrap();
        let (_, status, _) = output(
            binary(),
            &["status", "--sidecar", &admin, "--output", "json"],
        );
        let status: serde_json::Value = serde_json::from_str(&status).unwrap();
        assert_eq!(status["listeners"].as_array().unwrap().len(), 3, "{status}");
        assert!(status["problem"].is_null(), "{status}");
    };
    served();
    let (code, out, err) = output(
        binary(),
        &["upgrade", "--sidecar", &socket.to_string_lossy()],
    );
    assert_eq!(code, 0, "{out}{err}\n{}", process.log());
    assert_eq!(client.get("/public").await.unwrap().status, 200);
    served();
}
