//! A build that asks no authority for certificates, and says so of each that a snapshot wants of one. Nothing else is shown in its
//! place: a handshake for its names fails.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use fender_config::snapshot::{PortCertificate, Snapshot};
use fender_identity::tls::Issued;
use fender_proxy::Challenges;
use fender_runtime::clock::SharedClock;
use fender_runtime::drain::Drain;
use tokio::sync::watch;

use crate::features;

type Standings = BTreeMap<PortCertificate, Issued>;

/// Why there is none, for each that snapshots want.
pub(super) fn issued(
    mut snapshots: watch::Receiver<Arc<Snapshot>>,
    _: Option<PathBuf>,
    _: watch::Receiver<bool>,
    _: &Arc<Challenges>,
    _: &SharedClock,
    drain: &Drain,
) -> watch::Receiver<Arc<Standings>> {
    let first = refused(&snapshots.borrow_and_update());
    let (publish, standings) = watch::channel(Arc::new(first));
    let stop = drain.clone();
    drain.spawn(async move {
        loop {
            tokio::select! {
                () = stop.stopping() => return,
                changed = snapshots.changed() => if changed.is_err() { return stop.stopping().await },
            }
            let refused = refused(&snapshots.borrow_and_update());
            publish.send_replace(Arc::new(refused));
        }
    });
    standings
}

fn refused(snapshot: &Snapshot) -> Standings {
    let certificates = snapshot.inbound.iter().flat_map(|port| &port.certificates);
    let of_authorities = certificates.filter(|one| one.acme().is_some());
    let problem = Some(format!("ACME: {}", features::left_out("acme")));
    let refused = Issued {
        problem,
        ..Issued::default()
    };
    of_authorities
        .map(|one| (one.clone(), refused.clone()))
        .collect()
}

#[cfg(test)]
mod tests {
    use fender_config::{Source, standalone};
    use fender_identity::Bundles;
    use fender_runtime::clock;
    use fender_runtime::deadline::Deadline;

    use super::*;

    const SIDECAR: &str = "
apiVersion: fender.dev/v1
kind: Sidecar
metadata: { namespace: shop, name: orders }
spec:
  identity: { files: { certificate: /c.pem, key: /k.pem, bundle: /b.pem } }
  inbound:
    - listen: '127.0.0.1:18443'
      app: '127.0.0.1:8080'
      protocol: http
      clientCertificate: accept
      certificates: [ { acme: { directory: 'https://acme.test/directory', termsOfService: agreed }, names: [ shop.test ] } ]
";

    #[tokio::test]
    async fn a_certificate_of_an_authority_is_refused_by_the_name_of_the_feature() {
        let source = Source {
            name: "sidecar.yaml".to_owned(),
            text: SIDECAR.to_owned(),
        };
        let own = "spiffe://mesh.test/ns/shop/sa/orders".parse().unwrap();
        let sidecar = standalone::parse(&[source]).unwrap();
        let wanted = sidecar.snapshot(&own, Bundles::new(), 1);
        let none = Snapshot {
            inbound: Vec::new(),
            ..wanted.clone()
        };
        let (snapshots, followed) = watch::channel(Arc::new(none));
        let (clock, drain) = (clock::system(), Drain::new());
        let challenges = Arc::new(Challenges::default());
        let owned = watch::channel(true).1;
        let mut issued = issued(followed, None, owned, &challenges, &clock, &drain);
        assert!(issued.borrow().is_empty());
        snapshots.send_replace(Arc::new(wanted));
        let standings = issued.wait_for(|issued| !issued.is_empty()).await.unwrap();
        for standing in standings.values() {
            let problem = standing.problem.as_deref().unwrap();
            assert!(problem.contains("without the feature `acme`"), "{problem}");
            assert!(standing.pair.is_none());
        }
        drop(standings);
        drain
            .close(Deadline::after(std::time::Duration::from_secs(5)))
            .await;
    }
}
