//! How one ends that has handed everything on: with the last of what is busy, and when it is told to.

use fender_tests::process::PATIENCE;
use fender_tests::wait_until;
use rustix::process::Signal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::block_in_place;

use crate::berth::Berth;
use crate::drain::assert_closed;

/// More than all buffers on the way hold.
const LARGE: usize = 64 * 1024 * 1024;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_has_a_successor_ends_with_its_last_request_once_it_is_told_to_stop() {
    // As long as that nothing here waits for it.
    let berth = Berth::new("1h");
    berth.put_file("large", &vec![b'x'; LARGE]);
    let mut before = berth.start(&mut berth.command());
    berth.wait_ready(&mut before);
    let mut idle = berth.client().open().await.unwrap();
    assert_eq!(idle.get("/public").await.unwrap().status, 200);
    let client = berth.client().with_alpn(&[b"http/1.1"]);
    let mut busy = client.connect().await.unwrap();
    let request = b"GET /file/large HTTP/1.1\r\nhost: o\r\nconnection: close\r\n\r\n";
    busy.write_all(request).await.unwrap();
    let mut begun = vec![0; 4096];
    busy.read_exact(&mut begun).await.unwrap();
    assert!(begun.starts_with(b"HTTP/1.1 200 "));

    let mut command = berth.command();
    command.arg("--take-over").arg(berth.upgrade_socket());
    let mut after = berth.start(&mut command);
    block_in_place(|| {
        wait_until("a successor serves", PATIENCE, || {
            berth.log().contains("a successor serves")
        });
        wait_until("it is ready", PATIENCE, || berth.is_ready());
    });
    assert!(!idle.is_closed(), "it may still bring a last request");
    before.signal(Signal::TERM);
    assert_closed(&idle).await;
    before.assert_running();
    let mut rest = Vec::new();
    let reading = tokio::time::timeout(PATIENCE, busy.read_to_end(&mut rest));
    reading.await.expect("it is finished").unwrap();
    let whole = [begun, rest].concat();
    let head = whole
        .windows(4)
        .position(|four| four == b"\r\n\r\n")
        .unwrap();
    let body = &whole[head + 4..];
    assert!(body.len() == LARGE && body.iter().all(|byte| *byte == b'x'));
    assert_eq!(block_in_place(|| before.wait(PATIENCE)).code(), Some(0));
    assert!(
        !berth.log().contains("connections were cut"),
        "{}",
        berth.log()
    );

    after.assert_running();
    assert_eq!(berth.serving(), after.pid());
    assert_eq!(berth.client().get("/public").await.unwrap().status, 200);
    after.signal(Signal::TERM);
    assert_eq!(block_in_place(|| after.wait(PATIENCE)).code(), Some(0));
}
