//! Out of descriptors, the accept loop pauses, does not spin, and recovers by itself.

use std::fs;
use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

use fender_tests::process::PATIENCE;
use fender_tests::{installed, wait_until};

use crate::standalone::{CALLER, Standalone};

const DESCRIPTORS: u64 = 96;

#[test]
fn a_sidecar_out_of_descriptors_waits_and_recovers() {
    let mut sidecar = Standalone::start();
    let pid = sidecar.process.pid();
    // From outside, on a running process: what an operator's tight limit does.
    let limit = Command::new(installed("prlimit"))
        .args([
            "--pid",
            &pid.to_string(),
            &format!("--nofile={DESCRIPTORS}:{DESCRIPTORS}"),
        ])
        .status();
    assert!(limit.unwrap().success());

    let flood: Vec<_> = (0..DESCRIPTORS * 2)
        .filter_map(|_| TcpStream::connect(sidecar.address).ok())
        .collect();
    wait_until("the accept loop says that it pauses", PATIENCE, || {
        sidecar.process.log().contains("accept")
    });
    wait_until("every descriptor is in use", PATIENCE, || {
        descriptors(pid) + 1 >= DESCRIPTORS
    });

    let before = processor_time(pid);
    // Measured, not hoped for: over a second of exhaustion a spinning loop would use a second.
    std::thread::sleep(Duration::from_secs(1));
    let used = processor_time(pid) - before;
    assert!(
        used < Duration::from_millis(300),
        "{used:?} of processor time in a second of waiting"
    );
    sidecar.process.assert_running();

    drop(flood);
    let client = sidecar.client(CALLER);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    wait_until("it serves again", PATIENCE, || {
        runtime
            .block_on(client.get("/public"))
            .is_ok_and(|answer| answer.status == 200)
    });
}

fn descriptors(pid: u32) -> u64 {
    fs::read_dir(format!("/proc/{pid}/fd"))
        .map(|entries| entries.count() as u64)
        .unwrap_or_default()
}

fn processor_time(pid: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<_> = stat
        .rsplit_once(')')
        .unwrap()
        .1
        .split_whitespace()
        .collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    Duration::from_millis(ticks * 10)
}
