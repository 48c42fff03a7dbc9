//! Envoy's secret discovery.

use fender_agent::{Entitled, Refused};
use fender_api::proto::envoy::config::core::v3::{DataSource, data_source::Specifier};
use fender_api::proto::envoy::extensions::transport_sockets::tls::v3::secret::Type;
use fender_api::proto::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, Secret, SpiffeCertValidatorConfig,
};
use fender_api::proto::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse};
use fender_api::proto::envoy::service::secret::v3::secret_discovery_service_client::SecretDiscoveryServiceClient;
use fender_api::proto::google::rpc;
use fender_identity::Trust;
use prost::Message;
use rustls_pki_types::CertificateRevocationListDer;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Streaming};

use crate::harness::{Host, ORDERS};

const SECRET: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";

struct Talk {
    ask: mpsc::Sender<DiscoveryRequest>,
    answers: Streaming<DiscoveryResponse>,
}

impl Talk {
    async fn start(host: &Host, names: &[&str]) -> Self {
        let (ask, asked) = mpsc::channel(8);
        ask.send(wanting(names)).await.unwrap();
        let mut client = client(host).await;
        let response = client.stream_secrets(ReceiverStream::new(asked)).await;
        let answers = response.unwrap().into_inner();
        Self { ask, answers }
    }

    async fn next(&mut self) -> DiscoveryResponse {
        self.answers.message().await.unwrap().unwrap()
    }

    /// Says that it was taken, and which names are wanted from now on.
    async fn accept(&self, response: &DiscoveryResponse, names: &[&str]) {
        let request = DiscoveryRequest {
            version_info: response.version_info.clone(),
            response_nonce: response.nonce.clone(),
            ..wanting(names)
        };
        self.ask.send(request).await.unwrap();
    }
}

async fn client(host: &Host) -> SecretDiscoveryServiceClient<Channel> {
    SecretDiscoveryServiceClient::new(host.channel().await)
}

fn wanting(names: &[&str]) -> DiscoveryRequest {
    DiscoveryRequest {
        resource_names: names.iter().map(|&name| name.to_owned()).collect(),
        type_url: SECRET.to_owned(),
        ..DiscoveryRequest::default()
    }
}

fn secrets(response: &DiscoveryResponse) -> Vec<(String, Type)> {
    let read = |any: &prost_types::Any| {
        assert_eq!(any.type_url, SECRET);
        let secret = Secret::decode(any.value.as_slice()).unwrap();
        (secret.name, secret.r#type.unwrap())
    };
    response.resources.iter().map(read).collect()
}

fn names(response: &DiscoveryResponse) -> Vec<String> {
    secrets(response)
        .into_iter()
        .map(|(name, _)| name)
        .collect()
}

fn text(source: &Option<DataSource>) -> String {
    let Some(DataSource {
        specifier: Some(Specifier::InlineBytes(bytes)),
    }) = source
    else {
        panic!("nothing inline");
    };
    String::from_utf8(bytes.clone()).unwrap()
}

#[tokio::test]
async fn the_certificate_goes_by_its_identity_or_default_and_the_roots_by_their_trust_domain() {
    let host = Host::start().await;
    let asked = [ORDERS, "default", "spiffe://acme.test", "ROOTCA"];
    let mut talk = Talk::start(&host, &asked).await;
    let response = talk.next().await;
    let svid = host.someone.now().svids[0].clone();
    let mut answered = names(&response);
    answered.sort();
    let mut asked = asked.map(str::to_owned);
    asked.sort();
    assert_eq!(answered, asked);
    for (name, secret) in secrets(&response) {
        match secret {
            Type::TlsCertificate(certificate) => {
                assert!(name == ORDERS || name == "default", "{name}");
                assert_eq!(text(&certificate.certificate_chain), svid.chain_pem());
                let key = svid.key_pem();
                assert_eq!(text(&certificate.private_key).as_bytes(), key.expose());
            }
            Type::ValidationContext(context) => {
                assert!(name == "spiffe://acme.test" || name == "ROOTCA", "{name}");
                assert_eq!(text(&context.trusted_ca), host.authority.bundle().to_pem());
            }
        }
    }
}

#[tokio::test]
async fn roots_of_others_vouch_for_their_own_names_only() {
    let host = Host::start().await;
    let mut talk = Talk::start(&host, &["ALL", "spiffe://partner.test"]).await;
    for (name, secret) in secrets(&talk.next().await) {
        let Type::ValidationContext(context) = secret else {
            panic!("{name}");
        };
        assert_eq!(context.trusted_ca, None, "{name}");
        let validator = context.custom_validator_config.unwrap();
        assert_eq!(validator.name, "envoy.tls.cert_validator.spiffe");
        let validator = validator.typed_config.unwrap().value;
        let validator = SpiffeCertValidatorConfig::decode(validator.as_slice()).unwrap();
        let domains: Vec<_> = validator
            .trust_domains
            .iter()
            .map(|domain| domain.name.as_str())
            .collect();
        match name.as_str() {
            "ALL" => assert_eq!(domains, ["acme.test", "partner.test"]),
            _ => assert_eq!(domains, ["partner.test"]),
        }
        let last = validator.trust_domains.last().unwrap();
        assert_eq!(text(&last.trust_bundle), host.partner.bundle().to_pem());
    }
}

#[tokio::test]
async fn only_what_changed_is_sent_again() {
    let host = Host::start().await;
    let both = ["default", "ROOTCA"];
    let mut talk = Talk::start(&host, &both).await;
    let first = talk.next().await;
    talk.accept(&first, &both).await;
    let rotated = host.rotate();
    let second = talk.next().await;
    assert_eq!(names(&second), ["default"]);
    assert_ne!(second.version_info, first.version_info);
    assert_ne!(second.nonce, first.nonce);
    let (_, Type::TlsCertificate(certificate)) = secrets(&second).remove(0) else {
        panic!("no certificate");
    };
    assert_eq!(text(&certificate.certificate_chain), rotated.chain_pem());
}

#[tokio::test]
async fn a_refused_secret_is_not_sent_again_until_it_changes() {
    let host = Host::start().await;
    let mut talk = Talk::start(&host, &["default"]).await;
    let first = talk.next().await;
    let refusal = DiscoveryRequest {
        response_nonce: first.nonce.clone(),
        error_detail: Some(rpc::Status {
            code: 3,
            message: "I do not like it\u{1b}[2J".to_owned(),
        }),
        ..wanting(&["default"])
    };
    talk.ask.send(refusal).await.unwrap();
    // The next name is answered alone: what was refused did not come again before it.
    let more = DiscoveryRequest {
        response_nonce: first.nonce.clone(),
        ..wanting(&["default", "ROOTCA"])
    };
    talk.ask.send(more).await.unwrap();
    assert_eq!(names(&talk.next().await), ["ROOTCA"]);
    let rotated = host.rotate();
    let third = talk.next().await;
    assert_eq!(names(&third), ["default"]);
    let (_, Type::TlsCertificate(certificate)) = secrets(&third).remove(0) else {
        panic!("no certificate");
    };
    assert_eq!(text(&certificate.certificate_chain), rotated.chain_pem());
}

#[tokio::test]
async fn the_answer_to_something_older_changes_nothing() {
    let host = Host::start().await;
    let mut talk = Talk::start(&host, &["default"]).await;
    let first = talk.next().await;
    talk.accept(&first, &["default"]).await;
    host.rotate();
    let second = talk.next().await;
    // Late: it answers the first and wants nothing any more, as of then.
    talk.accept(&first, &[]).await;
    talk.accept(&second, &["default"]).await;
    host.rotate();
    assert_eq!(names(&talk.next().await), ["default"]);
}

#[tokio::test]
async fn attack_the_name_of_another_identity_brings_nothing() {
    let host = Host::start().await;
    let other = "spiffe://acme.test/ns/shop/sa/ledger";
    let wanted = [other, "spiffe://unknown.test", "../default", "", "DEFAULT"];
    let mut talk = Talk::start(&host, &wanted).await;
    talk.ask.send(wanting(&[other, "ROOTCA"])).await.unwrap();
    assert_eq!(names(&talk.next().await), ["ROOTCA"]);
    let answer = client(&host).await.fetch_secrets(wanting(&[other])).await;
    assert_eq!(answer.unwrap_err().code(), Code::NotFound);
    let answer = client(&host)
        .await
        .fetch_secrets(wanting(&[other, ORDERS]))
        .await;
    assert_eq!(names(&answer.unwrap().into_inner()), [ORDERS]);
}

#[tokio::test]
async fn attack_other_types_too_many_names_and_long_ones_are_refused() {
    let host = Host::start().await;
    let mut client = client(&host).await;
    let other = DiscoveryRequest {
        type_url: "type.googleapis.com/envoy.config.cluster.v3.Cluster".to_owned(),
        ..wanting(&["default"])
    };
    let many: Vec<_> = (0..65).map(|number| format!("name-{number}")).collect();
    let many: Vec<_> = many.iter().map(String::as_str).collect();
    let long = "n".repeat(2049);
    for (request, code) in [
        (other, Code::InvalidArgument),
        (wanting(&many), Code::InvalidArgument),
        (wanting(&[&long]), Code::InvalidArgument),
        (wanting(&[&"n".repeat(1024 * 1024)]), Code::OutOfRange),
    ] {
        let error = client.fetch_secrets(request).await.unwrap_err();
        assert_eq!(error.code(), code, "{error}");
    }
}

#[tokio::test]
async fn a_name_that_becomes_the_callers_is_answered_then() {
    let host = Host::start().await;
    let second = "spiffe://acme.test/ns/shop/sa/batch";
    let mut talk = Talk::start(&host, &[second]).await;
    let now = host.someone.now();
    host.someone.publish(Entitled {
        svids: vec![now.svids[0].clone(), host.authority.svid(second)],
        trust: now.trust.clone(),
    });
    assert_eq!(names(&talk.next().await), [second]);
}

#[tokio::test]
async fn revocation_lists_travel_with_the_roots_and_count_for_the_leaf_only() {
    let host = Host::start().await;
    let mut talk = Talk::start(&host, &["ROOTCA", "default"]).await;
    let first = talk.next().await;
    let without = secrets(&first).into_iter().find_map(context).unwrap();
    assert_eq!(
        (without.crl, without.only_verify_leaf_cert_crl),
        (None, false)
    );

    let now = host.someone.now();
    let list = CertificateRevocationListDer::from(vec![0x30, 0]);
    host.someone.publish(Entitled {
        svids: now.svids.clone(),
        trust: Trust {
            crls: [list].into(),
            ..now.trust.clone()
        },
    });
    let second = talk.next().await;
    assert_eq!(names(&second), ["ROOTCA"]);
    let with = secrets(&second).into_iter().find_map(context).unwrap();
    let list = "-----BEGIN X509 CRL-----\nMAA=\n-----END X509 CRL-----\n";
    assert_eq!(text(&with.crl), list);
    assert!(with.only_verify_leaf_cert_crl);
}

fn context((_, secret): (String, Type)) -> Option<CertificateValidationContext> {
    match secret {
        Type::ValidationContext(context) => Some(context),
        Type::TlsCertificate(_) => None,
    }
}

#[tokio::test]
async fn a_caller_without_an_identity_gets_no_secret() {
    let host = Host::start().await;
    host.someone.refuse(Refused::Nobody {
        why: "nobody".to_owned(),
    });
    let error = client(&host)
        .await
        .fetch_secrets(wanting(&["ROOTCA"]))
        .await;
    assert_eq!(error.unwrap_err().code(), Code::PermissionDenied);
    let (_ask, asked) = mpsc::channel(1);
    let error = client(&host)
        .await
        .stream_secrets(ReceiverStream::new(asked))
        .await;
    assert_eq!(error.unwrap_err().code(), Code::PermissionDenied);
}
