//! Certificates renew under load without one failed request (I2).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use fender_tests::process::PATIENCE;
use fender_tests::{Client, Mesh, Nginx};

use crate::control_loss::{Load, one_service};

const LENGTH: Duration = Duration::from_secs(60);
const CERTIFICATES: usize = 6;

#[test]
fn sixty_seconds_of_load_over_five_renewals_lose_no_request() {
    let nginx_home = tempfile::tempdir().unwrap();
    let nginx = Nginx::start(nginx_home.path());
    let listen = fender_tests::process::free_address();
    let mesh = Mesh::start(&one_service("20s", listen, nginx.address));
    let _sidecar = mesh.sidecar("shop/orders", &[]);
    let client = mesh.client(listen);

    let load = Load::start(client.clone());
    let serials = serials_seen(&client);
    let done = load.finish();

    assert_eq!(
        done.failures,
        Vec::<String>::new(),
        "of {} requests",
        done.answered
    );
    println!(
        "{} requests on 64 connections, {} certificates, none failed",
        done.answered,
        serials.len()
    );
}

/// The serials of the certificates a stranger is shown, for [`LENGTH`] and until there are enough of them.
fn serials_seen(client: &Client) -> BTreeSet<String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let seen = Arc::new(AtomicU64::new(0));
    runtime.block_on(async {
        let began = Instant::now();
        let mut serials = BTreeSet::new();
        let mut tick = tokio::time::interval(Duration::from_millis(500));
        while began.elapsed() < LENGTH || serials.len() < CERTIFICATES {
            assert!(
                began.elapsed() < LENGTH + PATIENCE,
                "only these certificates were served: {serials:?}"
            );
            tick.tick().await;
            let stream = client
                .connect()
                .await
                .expect("a new connection during a renewal");
            let leaf = stream
                .get_ref()
                .1
                .peer_certificates()
                .and_then(|chain| chain.first())
                .expect("a certificate")
                .clone();
            let (_, leaf) = x509_parser::parse_x509_certificate(&leaf).expect("a certificate");
            serials.insert(leaf.raw_serial_as_string());
            seen.fetch_add(1, Ordering::Relaxed);
        }
        serials
    })
}
