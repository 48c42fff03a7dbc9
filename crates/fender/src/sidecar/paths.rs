//! The paths that ports name: a document from a control plane reaches only Unix sockets (to connect
//! to and to listen on alike) and files of roots and of certificates below an `--allow-dir`.
//!
//! Landlock does not keep a process from connecting to a socket, and the socket of a container
//! engine is the whole machine. A port that names such a path is not served; the rest is.

use std::path::Path;
use std::sync::Arc;

use fender_config::snapshot::{
    Destination, Inbound, Outbound, PortCertificate, Snapshot, UpstreamRoots,
};
use fender_config::{AppAddress, ListenAddr};
use fender_credentials::AllowDirs;
use fender_runtime::drain::Drain;
use tokio::sync::watch;

/// The snapshots as they may be served here.
pub(super) fn within(
    mut snapshots: watch::Receiver<Arc<Snapshot>>,
    allow: &AllowDirs,
    drain: &Drain,
) -> watch::Receiver<Arc<Snapshot>> {
    if *allow == AllowDirs::Any {
        return snapshots;
    }
    let (allow, stop) = (allow.clone(), drain.clone());
    let first = restrict(snapshots.borrow_and_update().clone(), &allow);
    let (publish, served) = watch::channel(first);
    drain.spawn(async move {
        loop {
            tokio::select! {
                () = stop.stopping() => return,
                changed = snapshots.changed() => if changed.is_err() { return },
            }
            let snapshot = snapshots.borrow_and_update().clone();
            publish.send_replace(restrict(snapshot, &allow));
        }
    });
    served
}

fn restrict(snapshot: Arc<Snapshot>, allow: &AllowDirs) -> Arc<Snapshot> {
    let refused = |path: &Path| match allow.check(path) {
        Ok(_) => false,
        Err(error) => {
            tracing::error!(%error, snapshot = snapshot.version, "a port is not served: what it names");
            true
        }
    };
    let refused_listen = |listen: &ListenAddr| match listen {
        ListenAddr::Unix(path) => refused(path),
        ListenAddr::Tcp(_) => false,
    };
    let refused_app = |app: &AppAddress| match app {
        AppAddress::Unix(path) => refused(path),
        AppAddress::Loopback(_) => false,
    };
    let refused_certificate = |port: &Inbound| {
        let mut files = port.certificates.iter().flat_map(PortCertificate::files);
        files.any(refused)
    };
    let refused_to = |to: &Destination| match to {
        Destination::Upstream {
            roots: UpstreamRoots::File(path),
            ..
        } => refused(path),
        Destination::Upstream { .. } | Destination::Service { .. } => false,
    };
    let inbound: Vec<Inbound> = snapshot
        .inbound
        .iter()
        .filter(|port| {
            !refused_listen(&port.listen) && !refused_app(&port.app) && !refused_certificate(port)
        })
        .cloned()
        .collect();
    let outbound: Vec<Outbound> = snapshot
        .outbound
        .iter()
        .filter(|port| !refused_listen(&port.listen) && !refused_to(&port.to))
        .cloned()
        .collect();
    if inbound.len() == snapshot.inbound.len() && outbound.len() == snapshot.outbound.len() {
        return snapshot;
    }
    Arc::new(Snapshot {
        inbound,
        outbound,
        ..Snapshot::clone(&snapshot)
    })
}

#[cfg(test)]
mod tests {
    use fender_config::ObjectName;
    use fender_config::snapshot::{CertificateFiles, CertificateSource, OwnCertificate, Protocol};

    use super::*;
    use crate::testing;

    const SIDECAR: &str = "
apiVersion: fender.dev/v1
kind: Sidecar
metadata: { namespace: shop, name: orders }
spec:
  identity: { files: { certificate: /c.pem, key: /k.pem, bundle: /b.pem } }
  inbound:
    - { listen: 'unix:/run/app/in.sock', app: 'unix:/run/app/app.sock', protocol: http }
    - { listen: '127.0.0.1:18443', app: 'unix:/run/docker.sock', protocol: http }
    - { listen: 'unix:/run/other/in.sock', app: '127.0.0.1:8080', protocol: http }
";

    fn snapshot() -> Arc<Snapshot> {
        Arc::new(testing::snapshot(SIDECAR))
    }

    fn served(allow: &AllowDirs) -> Vec<String> {
        let served = restrict(snapshot(), allow);
        let shown = |port: &Inbound| format!("{} {}", port.listen, port.app);
        served.inbound.iter().map(shown).collect()
    }

    #[test]
    fn a_document_from_elsewhere_cannot_publish_a_socket_of_this_machine() {
        assert!(served(&AllowDirs::none()).is_empty());
        let allow = AllowDirs::Below(vec!["/run/app".into()]);
        assert_eq!(
            served(&allow),
            ["unix:/run/app/in.sock unix:/run/app/app.sock"]
        );
    }

    #[test]
    fn a_document_from_elsewhere_reads_roots_only_where_it_may() {
        let upstream = Outbound {
            listen: "127.0.0.1:19000".parse().unwrap(),
            to: Destination::Upstream {
                name: ObjectName::new("shop", "ledger").unwrap(),
                address: "ledger.example.com:443".parse().unwrap(),
                protocol: Protocol::Tcp,
                roots: UpstreamRoots::File("/run/app/roots.pem".into()),
                certificate: OwnCertificate::Withhold,
            },
        };
        let named = Arc::new(Snapshot {
            outbound: vec![upstream],
            ..Snapshot::clone(&snapshot())
        });
        let allow = AllowDirs::Below(vec!["/run/app".into()]);
        assert_eq!(restrict(Arc::clone(&named), &allow).outbound.len(), 1);
        assert!(restrict(named, &AllowDirs::none()).outbound.is_empty());
    }

    #[test]
    fn attack_a_document_from_elsewhere_shows_no_certificate_that_it_may_not_read() {
        let with = |certificate: &str, key: &str| {
            let mut snapshot = Snapshot::clone(&snapshot());
            snapshot.inbound.truncate(1);
            snapshot.inbound[0].certificates = vec![PortCertificate {
                source: CertificateSource::Files(CertificateFiles {
                    certificate: certificate.into(),
                    key: key.into(),
                }),
                names: vec![],
            }];
            let allow = AllowDirs::Below(vec!["/run/app".into()]);
            restrict(Arc::new(snapshot), &allow).inbound.len()
        };
        assert_eq!(with("/run/app/chain.pem", "/run/app/key.pem"), 1);
        assert_eq!(with("/run/app/chain.pem", "/etc/ssl/private/host.key"), 0);
        assert_eq!(with("/etc/shadow", "/run/app/key.pem"), 0);
    }

    #[tokio::test]
    async fn a_later_snapshot_is_held_to_the_same_directories() {
        let empty = Arc::new(Snapshot {
            inbound: Vec::new(),
            ..Snapshot::clone(&snapshot())
        });
        let (publish, snapshots) = watch::channel(empty);
        let drain = Drain::new();
        let allow = AllowDirs::Below(vec!["/run/app".into()]);
        let mut served = within(snapshots, &allow, &drain);
        publish.send_replace(snapshot());
        served.changed().await.unwrap();
        assert_eq!(served.borrow_and_update().inbound.len(), 1);
        drain.stop();
        drain.drained().await;
    }
}
