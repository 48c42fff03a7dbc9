//! A minimal reverse proxy on pingora-proxy (rustls, aws-lc-rs, jemalloc): a peer of the bench.
//! It parses and forwards, and neither logs nor decides anything.
//!
//! usage: pingora-peer THREADS PKI_DIR BACKEND HTTPS_BACKEND TLS MTLS ORIG
//! (the last three are loopback ports)

use async_trait::async_trait;
use pingora::listeners::tls::TlsSettings;
use pingora::prelude::*;
use pingora::proxy::{ProxyHttp, Session, http_proxy_service};
use pingora::server::configuration::ServerConf;
use pingora::utils::tls::CertKey;
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use std::sync::Arc;

#[global_allocator]
static ALLOC: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

#[derive(Clone)]
struct To {
    addr: String,
    /// Present a certificate to the backend over TLS.
    cert: Option<Arc<CertKey>>,
}

#[async_trait]
impl ProxyHttp for To {
    type CTX = ();
    fn new_ctx(&self) {}

    async fn upstream_peer(&self, _: &mut Session, _: &mut ()) -> Result<Box<HttpPeer>> {
        let mut peer = HttpPeer::new(
            self.addr.as_str(),
            self.cert.is_some(),
            "localhost".to_string(),
        );
        peer.client_cert_key = self.cert.clone();
        Ok(Box::new(peer))
    }
}

fn main() {
    let a: Vec<String> = std::env::args().skip(1).collect();
    let [threads, pki, backend, https, tls, mtls, orig] = a.as_slice() else {
        eprintln!("usage: pingora-peer THREADS PKI BACKEND HTTPS TLS MTLS ORIG");
        std::process::exit(2);
    };
    // Before pingora installs ring: whichever provider comes first stays, and this one is faster.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let conf = ServerConf {
        threads: threads.parse().expect("THREADS"),
        ca_file: Some(format!("{pki}/ca.crt")),
        upstream_keepalive_pool_size: 512,
        ..ServerConf::default()
    };
    let mut server = Server::new_with_opt_and_conf(None, conf);
    server.bootstrap();
    let settings = || {
        let mut s =
            TlsSettings::intermediate(&format!("{pki}/server.crt"), &format!("{pki}/server.key"))
                .expect("tls settings");
        s.enable_h2();
        s
    };
    let app = To {
        addr: backend.clone(),
        cert: None,
    };

    let mut svc = http_proxy_service(&server.configuration, app.clone());
    svc.add_tls_with_settings(&format!("127.0.0.1:{tls}"), None, settings());
    let mut roots = RootCertStore::empty();
    for c in CertificateDer::pem_file_iter(format!("{pki}/ca.crt")).expect("ca") {
        roots.add(c.expect("ca")).expect("ca");
    }
    let mut s = settings();
    s.set_client_cert_verifier(
        WebPkiClientVerifier::builder(Arc::new(roots))
            .build()
            .expect("verifier"),
    );
    svc.add_tls_with_settings(&format!("127.0.0.1:{mtls}"), None, s);
    server.add_service(svc);

    let cert = CertificateDer::from_pem_file(format!("{pki}/client.crt")).expect("client cert");
    let key = PrivateKeyDer::from_pem_file(format!("{pki}/client.key")).expect("client key");
    let pair = CertKey::new(vec![cert.to_vec()], key.secret_der().to_vec());
    let mesh = To {
        addr: https.clone(),
        cert: Some(Arc::new(pair)),
    };
    let mut out = http_proxy_service(&server.configuration, mesh);
    out.add_tcp(&format!("127.0.0.1:{orig}"));
    server.add_service(out);
    server.run_forever();
}
