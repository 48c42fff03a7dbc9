//! Credentials that are certificates of ports.

use fender_config::snapshot::{CertificateSource, CredentialSource, Origin, PortCertificate};
use fender_config::{ObjectName, parse, standalone};
use fender_identity::Bundles;

use crate::{name, source};

const CREDENTIAL: &str = "
apiVersion: fender.dev/v1
kind: Credential
metadata: { namespace: shop, name: shop-tls }
spec: { source: { file: { path: /run/secrets/shop.pem } } }
---";

const PORT: &str = "
    - listen: 0.0.0.0:8443
      app: 127.0.0.1:8080
      protocol: http
      clientCertificate: accept
      certificates: [ { credential: shop-tls, names: [ Shop.example.com, '*' ] } ]
  credentials: [ shop/shop-tls ]
";

fn wanted() -> PortCertificate {
    PortCertificate {
        source: CertificateSource::Credential(ObjectName::new("shop", "shop-tls").unwrap()),
        names: vec!["shop.example.com".to_owned(), "*".to_owned()],
    }
}

#[test]
fn a_credential_that_is_a_ports_certificate_needs_no_delivery() {
    let text = format!(
        "{CREDENTIAL}
apiVersion: fender.dev/v1
kind: Mesh
metadata: {{ name: production }}
spec: {{ trustDomain: example.internal }}
---
apiVersion: fender.dev/v1
kind: Workload
metadata: {{ namespace: shop, name: web }}
spec:
  attest: [ {{ token: {{}} }} ]
  inbound:{PORT}"
    );
    let documents = parse(&[source("web.yaml", text)]).unwrap_or_else(|error| panic!("{error}"));
    let snapshot = documents.snapshot(&name("shop/web"), 1).unwrap();
    assert_eq!(snapshot.inbound[0].certificates, [wanted()]);
    let [credential] = &snapshot.credentials[..] else {
        panic!("{:?}", snapshot.credentials)
    };
    assert_eq!(Some(&credential.name), wanted().credential());
    assert!(credential.deliver.is_empty());
    // Nothing that lies beside the sidecar is named by the port.
    assert_eq!(wanted().files().count(), 0);
}

#[test]
fn a_sidecar_alone_has_it_too() {
    let text = format!(
        "{CREDENTIAL}
apiVersion: fender.dev/v1
kind: Sidecar
metadata: {{ namespace: shop, name: web }}
spec:
  identity: {{ files: {{ certificate: /c.pem, key: /k.pem, bundle: /b.pem }} }}
  inbound:{PORT}"
    );
    let alone = standalone::parse(&[source("alone.yaml", text)]);
    let alone = alone.unwrap_or_else(|error| panic!("{error}"));
    let identity = "spiffe://example.internal/ns/shop/sa/web".parse().unwrap();
    let snapshot = alone.snapshot(&identity, Bundles::default(), 1);
    assert_eq!(snapshot.inbound[0].certificates, [wanted()]);
    let file = Origin::File {
        path: "/run/secrets/shop.pem".into(),
    };
    let source = CredentialSource::Direct(file);
    assert_eq!(snapshot.credentials[0].source, source);
}
