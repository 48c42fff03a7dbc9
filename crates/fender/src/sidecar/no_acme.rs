//! A build that asks no authority for certificates, and says so of each that a snapshot wants of one. A sidecar does not begin with
//! such a snapshot. Where one comes later nothing is shown in the place of the certificate: handshakes for its names are refused.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use fender_config::snapshot::{Inbound, PortCertificate, Snapshot};
use fender_identity::tls::Issued;
use fender_proxy::Challenges;
use fender_runtime::clock::SharedClock;
use fender_runtime::drain::Drain;
use tokio::sync::watch;

use crate::exit::{Exit, Failure};
use crate::features;

type Standings = BTreeMap<PortCertificate, Issued>;

/// What a sidecar begins with: nobody is taken over from, and nobody served, by one that has not what its ports need.
pub(super) fn check(snapshot: &Snapshot) -> Result<(), Failure> {
    let is_of_one = |port: &&Inbound| port.certificates.iter().any(|one| one.acme().is_some());
    let Some(port) = snapshot.inbound.iter().find(is_of_one) else {
        return Ok(());
    };
    let why = format!(
        "the port `{}` has a certificate by `acme`: {}",
        port.listen,
        features::left_out("acme")
    );
    Err(Failure::new(Exit::Refused, anyhow::Error::msg(why)))
}

/// Why there is none, for each that snapshots come to want.
pub(super) fn issued(
    mut snapshots: watch::Receiver<Arc<Snapshot>>,
    _: Option<PathBuf>,
    _: watch::Receiver<bool>,
    _: &Arc<Challenges>,
    _: &SharedClock,
    drain: &Drain,
) -> watch::Receiver<Arc<Standings>> {
    let (publish, standings) = watch::channel(Arc::default());
    refuse(&publish, &snapshots.borrow_and_update());
    let stop = drain.clone();
    drain.spawn(async move {
        loop {
            tokio::select! {
                () = stop.stopping() => return,
                changed = snapshots.changed() => if changed.is_err() { return stop.stopping().await },
            }
            refuse(&publish, &snapshots.borrow_and_update());
        }
    });
    standings
}

/// Tells of those that are new, in the log as well.
fn refuse(publish: &watch::Sender<Arc<Standings>>, snapshot: &Snapshot) {
    let refused = Issued {
        problem: Some(format!("ACME: {}", features::left_out("acme"))),
        // Nothing that is there for other names stands in for it.
        withdrawn: true,
        ..Issued::default()
    };
    let certificates = snapshot.inbound.iter().flat_map(|port| &port.certificates);
    let wanted = certificates.filter(|one| one.acme().is_some());
    let wanted: Standings = wanted.map(|one| (one.clone(), refused.clone())).collect();
    publish.send_if_modified(|before| {
        if wanted.keys().eq(before.keys()) {
            return false;
        }
        for new in wanted.keys().filter(|one| !before.contains_key(one)) {
            let names = new.names.join(" ");
            tracing::error!(
                names,
                problem = refused.problem,
                "a certificate cannot be served"
            );
        }
        *before = Arc::new(wanted);
        true
    });
}

#[cfg(test)]
mod tests {
    use fender_runtime::clock;
    use fender_runtime::deadline::Deadline;

    use super::*;
    use crate::testing;

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
        let wanted = testing::snapshot(SIDECAR);
        let refused = check(&wanted).unwrap_err();
        assert_eq!(refused.exit, Exit::Refused);
        let said = refused.to_string();
        assert!(said.contains("`127.0.0.1:18443`"), "{said}");
        assert!(said.contains("without the feature `acme`"), "{said}");
        let none = Snapshot {
            inbound: Vec::new(),
            ..wanted.clone()
        };
        assert!(check(&none).is_ok());
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
            assert!(standing.pair.is_none() && standing.withdrawn);
        }
        drop(standings);
        drain
            .close(Deadline::after(std::time::Duration::from_secs(5)))
            .await;
    }

    #[test]
    fn ports_are_not_made_anew_for_what_is_refused_already() {
        let wanted = testing::snapshot(SIDECAR);
        let none = Snapshot {
            inbound: Vec::new(),
            ..wanted.clone()
        };
        let (publish, mut standings) = watch::channel(Arc::default());
        for (snapshot, changes) in [
            (&none, false),
            (&wanted, true),
            (&wanted, false),
            (&none, true),
        ] {
            refuse(&publish, snapshot);
            assert_eq!(standings.has_changed().unwrap(), changes);
            standings.mark_unchanged();
        }
    }
}
