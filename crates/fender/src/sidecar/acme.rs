//! Certificates for consumers, from authorities; and where what an authority asks meets the ports at which it is answered.

use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;

use fender_config::snapshot::{AcmeChallenge, Snapshot};
use fender_providers::acme::{self, Answer, Answers, Settings, Standings};
use fender_proxy::Challenges;
use fender_runtime::clock::SharedClock;
use fender_runtime::drain::Drain;
use fender_runtime::listen::ListenAddress;
use tokio::sync::watch;

/// What snapshots want of authorities, as it is now and as it changes; kept in `state` once that is `owned`.
pub(super) fn issued(
    snapshots: watch::Receiver<Arc<Snapshot>>,
    state: Option<PathBuf>,
    owned: watch::Receiver<bool>,
    challenges: &Arc<Challenges>,
    clock: &SharedClock,
    drain: &Drain,
) -> watch::Receiver<Arc<Standings>> {
    let settings = Settings {
        state,
        owned,
        answers: Arc::new(AtThePorts(Arc::clone(challenges))),
        clock: Arc::clone(clock),
    };
    acme::follow(snapshots, settings, drain)
}

/// The proxy answers.
#[derive(Debug)]
struct AtThePorts(Arc<Challenges>);

impl Answers for AtThePorts {
    fn give(&self, answer: &Answer) {
        match answer {
            Answer::TlsAlpn(certificate) => self.0.show(certificate),
            Answer::Http {
                token,
                authorization,
            } => self.0.tell(token, authorization),
        }
    }

    fn withdraw(&self, answer: &Answer) {
        match answer {
            Answer::TlsAlpn(certificate) => self.0.hide(certificate.name()),
            Answer::Http { token, .. } => self.0.forget(token),
        }
    }

    fn ready(&self, challenge: AcmeChallenge) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        let mut listening = self.0.listening();
        Box::pin(async move {
            // A port without a listener is no port of a sidecar that runs.
            let AcmeChallenge::Http { listen } = challenge else {
                return;
            };
            let listen = ListenAddress::Tcp(listen);
            if listening
                .wait_for(|all| all.contains(&listen))
                .await
                .is_err()
            {
                // Nobody will listen any more: it is about to end.
                std::future::pending::<()>().await;
            }
        })
    }
}
