//! A wire between clients and a server that can be cut and mended.
//!
//! While it is cut nothing passes in either direction and nobody is told: what was sent waits, and who connects hears
//! nothing, as when every packet is lost on the way. What the kernel of this machine acknowledges by itself still is.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::watch;

pub struct Wire {
    /// Where clients connect.
    pub address: SocketAddr,
    state: watch::Sender<State>,
    // Ends with it.
    _runtime: Runtime,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Whole,
    Cut,
}

impl Wire {
    pub fn to(server: SocketAddr) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let address = crate::process::free_address();
        let listener = runtime
            .block_on(TcpListener::bind(address))
            .expect("listen on a free port");
        let (state, states) = watch::channel(State::Whole);
        runtime.spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(carry(client, server, states.clone()));
            }
        });
        Self {
            address,
            state,
            _runtime: runtime,
        }
    }

    pub fn cut(&self) {
        self.state.send_replace(State::Cut);
    }

    pub fn mend(&self) {
        self.state.send_replace(State::Whole);
    }
}

async fn carry(client: TcpStream, server: SocketAddr, mut states: watch::Receiver<State>) {
    if whole(&mut states).await.is_none() {
        return;
    }
    let Ok(server) = TcpStream::connect(server).await else {
        return;
    };
    for end in [&client, &server] {
        let _ = end.set_nodelay(true);
    }
    let ((from_client, to_client), (from_server, to_server)) =
        (client.into_split(), server.into_split());
    tokio::join!(
        pass(from_client, to_server, states.clone()),
        pass(from_server, to_client, states)
    );
}

/// One direction, to its end.
async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut states: watch::Receiver<State>) {
    let mut bytes = vec![0; 64 * 1024];
    loop {
        let length = from.read(&mut bytes).await.unwrap_or(0);
        if whole(&mut states).await.is_none() || length == 0 {
            let _ = to.shutdown().await;
            return;
        }
        if to.write_all(&bytes[..length]).await.is_err() {
            return;
        }
    }
}

async fn whole(states: &mut watch::Receiver<State>) -> Option<()> {
    states.wait_for(|state| *state == State::Whole).await.ok()?;
    Some(())
}
