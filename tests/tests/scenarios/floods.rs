//! Floods and dawdling against the real program: what they make it hold is bounded, and measured; who
//! behaves is served meanwhile; and what cannot be honest is ended.

mod frames;
mod handshakes;
mod heads;
mod parked;

use std::net::SocketAddr;
use std::time::Duration;

use fender_tests::process::PATIENCE;
use fender_tests::{Client, Nginx};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::frames::Fields;
use crate::front::{EVERYBODY, Front, Port};

const MEGABYTE: u64 = 1024 * 1024;

/// Larger than what the kernel holds of a response that nobody reads.
const LARGE: usize = 16 * 1024 * 1024;

/// What an attack is aimed at: a sidecar before nginx, warm.
struct Target {
    front: Front,
    address: SocketAddr,
    _nginx: Nginx,
}

impl Target {
    async fn set() -> Self {
        Self::set_with("").await
    }

    /// `more` are further fields of its port.
    async fn set_with(more: &str) -> Self {
        Self::set_up(more, None).await
    }

    /// With one more port, which it is not warm for.
    async fn set_beside(port: Port) -> Self {
        Self::set_up("", Some(port)).await
    }

    async fn set_up(more: &str, beside: Option<Port>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let nginx = Nginx::start(directory.path());
        let home = directory
            .path()
            .join(format!("nginx-{}", nginx.address.port()));
        std::fs::write(home.join("files/large"), vec![b'x'; LARGE]).unwrap();
        let port = Port::http_with(nginx.address, more);
        let address = port.listen;
        let ports: Vec<_> = [port].into_iter().chain(beside).collect();
        let front = Front::start(directory, &ports, EVERYBODY);
        let target = Self {
            front,
            address,
            _nginx: nginx,
        };
        // What is allocated once is not the attack's doing.
        for client in [target.client(), target.client()] {
            for mut connection in [
                client.open().await.unwrap(),
                client.open_http2().await.unwrap(),
            ] {
                for path in ["/warm", "/file/large"] {
                    assert_eq!(connection.get(path).await.unwrap().status, 200);
                }
            }
        }
        target
    }

    fn client(&self) -> Client {
        self.front.client(self.address)
    }

    /// Waits until the sidecar holds no more than it did: what can be read ahead has been.
    async fn settles(&self) {
        let (mut most, mut calm) = (0, 0);
        while calm < 10 {
            tokio::time::sleep(Duration::from_millis(50)).await;
            let now = self.front.process.memory().resident;
            calm = if now > most { 0 } else { calm + 1 };
            most = most.max(now);
        }
    }

    /// Runs `attack` while an honest client calls, and holds the memory it costs to `bound`.
    async fn bears<T>(&self, bound: u64, attack: impl Future<Output = T>) -> T {
        let before = self.front.process.memory();
        self.front.process.forget_peak();
        let (over, ends) = watch::channel(false);
        let mut honest = JoinSet::new();
        honest.spawn(calls(self.client(), ends));
        let result = attack.await;
        over.send_replace(true);
        let served = honest.join_next().await.unwrap().unwrap();
        let peak = self.front.process.memory().peak;
        let grown = peak.saturating_sub(before.resident);
        println!(
            "{:.1} MB more at the peak, {served} calls served",
            grown as f64 / MEGABYTE as f64
        );
        assert!(grown <= bound, "{grown} bytes more at the peak, of {bound}");
        result
    }
}

fn request() -> Fields {
    [
        ":method GET",
        ":scheme https",
        ":authority v",
        ":path /flood",
    ]
    .map(pair)
    .to_vec()
}

fn pair(text: &str) -> (Vec<u8>, Vec<u8>) {
    let (name, value) = text.split_once(' ').unwrap();
    (name.into(), value.into())
}

/// Calls one after the other, each second one on a connection of its own, until told, and a few times in
/// any case. Each must succeed.
async fn calls(client: Client, ends: watch::Receiver<bool>) -> usize {
    let mut kept = client.open_http2().await.unwrap();
    let mut served = 0;
    while served < 20 || !*ends.borrow() {
        let answers = async {
            (
                kept.get("/kept").await.unwrap().status,
                client.get("/new").await.unwrap().status,
            )
        };
        let statuses = tokio::time::timeout(PATIENCE, answers).await.unwrap();
        assert!(statuses.0 == 200 && statuses.1 == 200, "{statuses:?}");
        served += 2;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    served
}
