//! Against a server that answers as a whole authority would that has no time.

use std::path::PathBuf;
use std::pin::Pin;

use fender_config::snapshot::CertificateSource;
use fender_runtime::clock::TestClock;

use super::super::Answer;
use super::*;
use crate::http::tests::{NOW, Server};

const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Debug)]
struct Nobody;

impl Answers for Nobody {
    fn give(&self, _: &Answer) {}

    fn withdraw(&self, _: &Answer) {}

    /// HTTP-01 never.
    fn ready(&self, challenge: AcmeChallenge) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        match challenge {
            AcmeChallenge::TlsAlpn => Box::pin(std::future::ready(())),
            AcmeChallenge::Http { .. } => Box::pin(std::future::pending()),
        }
    }
}

/// One certificate of one sidecar, over several of its lives.
struct Sidecar {
    state: tempfile::TempDir,
    roots: PathBuf,
    clock: Arc<TestClock>,
}

impl Sidecar {
    fn new(server: &Server) -> Self {
        let state = tempfile::tempdir().unwrap();
        let roots = state.path().join("roots.pem");
        std::fs::write(&roots, server.roots()).unwrap();
        let clock = TestClock::new(after_1970(NOW));
        Self {
            state,
            roots,
            clock,
        }
    }

    /// Lives until it has said what is wrong.
    async fn live(&self, server: &Server, contact: &str) -> String {
        self.answered_by(AcmeChallenge::TlsAlpn, server, contact)
            .await
    }

    async fn answered_by(
        &self,
        challenge: AcmeChallenge,
        server: &Server,
        contact: &str,
    ) -> String {
        let acme = Acme {
            directory: server.url("/directory"),
            challenge,
            contact: Some(contact.to_owned()),
            roots: Some(self.roots.clone()),
            external_account: None,
        };
        let wanted = PortCertificate {
            source: CertificateSource::Acme(acme.clone()),
            names: vec!["shop.example.com".to_owned()],
        };
        let settings = Settings {
            state: None,
            owned: watch::channel(true).1,
            answers: Arc::new(Nobody),
            clock: self.clock.clone(),
        };
        let standings = Standings::from([(wanted.clone(), Issued::default())]);
        let (publish, mut standings) = watch::channel(Arc::new(standings));
        let shared = Shared {
            store: Arc::new(Store::below(self.state.path())),
            accounts: Arc::default(),
            attempts: Arc::default(),
            publish,
        };
        let worker = Worker::new(wanted.clone(), acme, shared, &settings);
        let said = async {
            loop {
                standings.changed().await.unwrap();
                let problem = standings.borrow()[&wanted].problem.clone();
                if let Some(problem) = problem {
                    return problem;
                }
            }
        };
        let life = async {
            tokio::select! {
                () = worker.run() => panic!("it ended"),
                said = said => said,
            }
        };
        Deadline::after(PATIENCE).bound(life).await.unwrap()
    }
}

fn asked(server: &mut Server) -> usize {
    std::iter::from_fn(|| server.asked.try_recv().ok()).count()
}

#[tokio::test]
async fn attack_one_that_is_started_again_and_again_waits_as_long_as_the_authority_wants() {
    let answer =
        "HTTP/1.1 503 Service Unavailable\r\nretry-after: 600\r\nconnection: close\r\n\r\nnot now";
    let mut server = Server::answering(answer).await;
    let sidecar = Sidecar::new(&server);
    let first = sidecar.live(&server, "one@example.com").await;
    assert!(first.contains("cannot be used now"), "{first}");
    assert_eq!(asked(&mut server), 1);
    for _ in 0..3 {
        assert_eq!(sidecar.live(&server, "one@example.com").await, first);
    }
    sidecar.clock.advance(Duration::from_secs(599));
    assert_eq!(sidecar.live(&server, "one@example.com").await, first);
    assert_eq!(asked(&mut server), 0, "it was asked before its time");

    // A document that was changed is tried at once.
    sidecar.live(&server, "other@example.com").await;
    assert_eq!(asked(&mut server), 1);
    sidecar.live(&server, "other@example.com").await;
    assert_eq!(asked(&mut server), 0);
    // And at its time it is asked again, without anybody's doing.
    sidecar.clock.advance(Duration::from_secs(601));
    let last = sidecar.live(&server, "other@example.com").await;
    assert_eq!(asked(&mut server), 1, "{last}");
}

#[tokio::test]
async fn nobody_is_asked_for_a_certificate_while_nobody_could_answer() {
    let mut server = Server::answering("HTTP/1.1 200 OK\r\n\r\n").await;
    let sidecar = Sidecar::new(&server);
    let listen = "127.0.0.1:80".parse().unwrap();
    let http = AcmeChallenge::Http { listen };
    let said = sidecar.answered_by(http, &server, "one@example.com").await;
    assert!(said.contains("nobody listens yet"), "{said}");
    assert!(said.contains("`127.0.0.1:80`"), "{said}");
    assert_eq!(asked(&mut server), 0);
}
