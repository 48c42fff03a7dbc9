//! `--busy-poll`: threads look for more before they sleep, and sleep all the same when nothing comes.

use std::time::Duration;

use fender_tests::process::{binary, output};

use crate::descriptors::processor_time;
use crate::standalone::{CALLER, Standalone};

#[tokio::test]
async fn who_polls_busily_serves_as_ever_and_sleeps_when_nothing_comes() {
    let mut sidecar = Standalone::start_with(|command| {
        command.args(["--busy-poll", "1ms"]);
    });
    let client = sidecar.client(CALLER);
    let mut http1 = client.open().await.unwrap();
    let mut http2 = client.open_http2().await.unwrap();
    for _ in 0..50 {
        assert_eq!(http1.get("/public/1").await.unwrap().status, 200);
        assert_eq!(http2.get("/public/2").await.unwrap().status, 200);
        assert_eq!(client.get("/private").await.unwrap().status, 403);
    }

    // Both connections are open and idle. Who still looked would use a second of the second.
    let pid = sidecar.process.pid();
    let before = processor_time(pid);
    std::thread::sleep(Duration::from_secs(1));
    let used = processor_time(pid) - before;
    assert!(
        used < Duration::from_millis(300),
        "{used:?} of processor time in a second in which nothing came"
    );
    assert_eq!(http1.get("/public/1").await.unwrap().status, 200);
    sidecar.process.assert_running();
}

#[test]
fn how_long_to_look_has_bounds() {
    for (window, said) in [
        ("0s", "it must be from 1us to 1ms"),
        ("999ns", "it must be from 1us to 1ms"),
        ("1001us", "it must be from 1us to 1ms"),
        ("100", "write it like `100us`"),
    ] {
        let arguments = ["sidecar", "--config", "x.yaml", "--busy-poll", window];
        let (code, _, err) = output(binary(), &arguments);
        assert_eq!(code, 64, "{window}: {err}");
        assert!(err.contains(said) && err.contains("--busy-poll"), "{err}");
    }
}
