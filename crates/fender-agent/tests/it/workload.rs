//! The SPIFFE Workload API.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use fender_agent::{Entitled, Limits, Refused};
use fender_api::proto::spiffe::{
    JwtBundlesRequest, JwtsvidRequest, ValidateJwtsvidRequest, ValidateJwtsvidResponse,
    X509BundlesRequest, X509svidRequest,
};
use fender_api::workload::{Endpoint, FetchError, jwt_svid, meant, watch};
use fender_identity::jwt::{Keys, Purpose, SigningKey, Statement};
use fender_identity::{Bundles, Trust};
use fender_runtime::clock::UnixTime;
use prost_types::value::Kind;
use rcgen::{CertificateRevocationListParams, KeyIdMethod, RevokedCertParams, SerialNumber};
use rustls_pki_types::CertificateRevocationListDer;
use tonic::metadata::MetadataValue;
use tonic::{Code, Request, Status};

use crate::harness::{Host, NOW, ORDERS, key_set};

#[tokio::test]
async fn a_caller_gets_its_certificate_its_key_and_whom_to_trust_and_hears_of_every_change() {
    let host = Host::start().await;
    let mut updates = watch(&host.endpoint()).await.unwrap();
    let first = updates.next().await.unwrap();
    assert_eq!(first.svids.len(), 1);
    assert_eq!(first.svids[0].id().as_str(), ORDERS);
    let expected = [host.authority.bundle(), host.partner.bundle()];
    assert_eq!(first.bundles, expected.into_iter().collect());

    let rotated = host.rotate();
    let second = updates.next().await.unwrap();
    assert_eq!(second.svids[0].chain(), rotated.chain());
    assert_ne!(second.svids[0].serial(), first.svids[0].serial());
}

#[tokio::test]
async fn what_did_not_change_is_not_sent_again() {
    let host = Host::start().await;
    let mut client = host.workload().await;
    let response = client.fetch_x509_bundles(meant(X509BundlesRequest {}));
    let mut bundles = response.await.unwrap().into_inner();
    let first = bundles.message().await.unwrap().unwrap();
    let names: Vec<_> = first.bundles.keys().cloned().collect();
    assert_eq!(first.bundles.len(), 2, "{names:?}");
    assert!(first.bundles.contains_key("spiffe://partner.test"));

    // A new certificate is no new bundle; what comes next is the change after it.
    host.rotate();
    let only = Bundles::from(host.authority.bundle());
    let svids = host.someone.now().svids.clone();
    let entitled = Entitled {
        svids,
        trust: only.into(),
    };
    host.someone.publish(entitled);
    let second = bundles.message().await.unwrap().unwrap();
    assert_eq!(second.bundles.len(), 1);
}

#[tokio::test]
async fn a_slow_reader_gets_the_newest_and_not_what_was_between() {
    let host = Host::start().await;
    let mut updates = watch(&host.endpoint()).await.unwrap();
    updates.next().await.unwrap();
    // Far more than the windows of HTTP/2 hold while nobody reads.
    let mut newest = host.rotate();
    for _ in 0..300 {
        newest = host.rotate();
        tokio::task::yield_now().await;
    }
    let mut read = 0;
    loop {
        read += 1;
        let received = updates.next().await.unwrap();
        if received.svids[0].serial() == newest.serial() {
            break;
        }
    }
    assert!(
        read < 200,
        "{read} of 301 were kept for a reader who was not there"
    );
}

#[tokio::test]
async fn attack_a_call_without_the_header_is_refused_before_anything_else() {
    let host = Host::start().await;
    let mut client = host.workload().await;
    let error = client.fetch_x509svid(X509svidRequest {}).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    assert!(error.message().contains("workload.spiffe.io"), "{error}");
    let mut wrong = Request::new(X509svidRequest {});
    let value = MetadataValue::from_static("false");
    wrong.metadata_mut().insert("workload.spiffe.io", value);
    let error = client.fetch_x509svid(wrong).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    let error = client.fetch_x509_bundles(X509BundlesRequest {}).await;
    assert_eq!(error.unwrap_err().code(), Code::InvalidArgument);
    let error = client.fetch_jwtsvid(JwtsvidRequest::default()).await;
    assert_eq!(error.unwrap_err().code(), Code::InvalidArgument);
    let error = client.fetch_jwt_bundles(JwtBundlesRequest {}).await;
    assert_eq!(error.unwrap_err().code(), Code::InvalidArgument);
    let error = client.validate_jwtsvid(ValidateJwtsvidRequest::default());
    assert_eq!(error.await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn a_caller_without_an_identity_is_refused_and_hears_no_reason() {
    let host = Host::start().await;
    host.someone.refuse(Refused::Nobody {
        why: "uid 7 is not in the documents".to_owned(),
    });
    let error = watch(&host.endpoint()).await.unwrap_err();
    let FetchError::Denied { reason } = error else {
        panic!("{error}");
    };
    assert!(!reason.contains("uid 7"), "{reason}");
    host.someone.refuse(Refused::Unavailable {
        why: "control plane at 10.0.0.1 is away".to_owned(),
    });
    let mut client = host.workload().await;
    let error = client.fetch_x509svid(meant(X509svidRequest {})).await;
    let error = error.unwrap_err();
    assert_eq!(error.code(), Code::Unavailable);
    assert!(!error.message().contains("10.0.0.1"), "{error}");
}

#[tokio::test]
async fn a_stream_ends_when_its_caller_may_be_nobody_any_more() {
    let host = Host::start().await;
    let mut updates = watch(&host.endpoint()).await.unwrap();
    updates.next().await.unwrap();
    host.someone.let_go();
    let error = updates.next().await.unwrap_err();
    assert!(matches!(error, FetchError::Denied { .. }), "{error}");
}

#[tokio::test]
async fn attack_too_many_streams_of_one_process_are_refused_and_ending_them_makes_room() {
    let limits = Limits {
        per_process: 3,
        ..Limits::default()
    };
    let host = Host::start_with(limits).await;
    let mut held = Vec::new();
    for _ in 0..3 {
        let mut updates = watch(&host.endpoint()).await.unwrap();
        updates.next().await.unwrap();
        held.push(updates);
    }
    let mut client = host.workload().await;
    let fourth = client.fetch_x509svid(meant(X509svidRequest {})).await;
    assert_eq!(fourth.unwrap_err().code(), Code::ResourceExhausted);
    held.clear();
    // The server hears of it when it does.
    while client
        .fetch_x509svid(meant(X509svidRequest {}))
        .await
        .is_err_and(|error| error.code() == Code::ResourceExhausted)
    {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn attack_one_user_cannot_hold_every_connection() {
    let limits = Limits {
        per_tenant: 2,
        ..Limits::default()
    };
    let host = Host::start_with(limits).await;
    let (_one, _two) = (
        watch(&host.endpoint()).await.unwrap(),
        watch(&host.endpoint()).await.unwrap(),
    );
    assert!(watch(&host.endpoint()).await.is_err());
}

#[tokio::test]
async fn attack_one_process_cannot_hold_every_connection_of_its_user() {
    let limits = Limits {
        connections_per_process: 2,
        ..Limits::default()
    };
    let host = Host::start_with(limits).await;
    let idle = Idle::start(&host, 3).await;
    assert_eq!(idle.held, 2);
    let (_one, _two) = (
        watch(&host.endpoint()).await.unwrap(),
        watch(&host.endpoint()).await.unwrap(),
    );
    assert!(watch(&host.endpoint()).await.is_err());
}

#[tokio::test]
async fn attack_root_in_one_container_cannot_hold_the_connections_of_root_elsewhere() {
    let limits = Limits {
        per_tenant: 2,
        ..Limits::default()
    };
    let host = Host::start_with(limits).await;
    let one = Idle::start_in_container(&host, 3, &"1a".repeat(32)).await;
    assert_eq!(one.held, 2);
    let other = Idle::start_in_container(&host, 1, &"2b".repeat(32)).await;
    assert_eq!(other.held, 1);
    watch(&host.endpoint()).await.unwrap().next().await.unwrap();
    // Further processes of the container have no further share.
    let more = Idle::start_beside(&host, 1, &one).await;
    assert_eq!(more.held, 0);
}

/// A process that opens connections one after the other, and does nothing with them.
struct Idle {
    child: Child,
    /// Those that were let in.
    held: usize,
    group: Option<PathBuf>,
    made: bool,
}

impl Idle {
    const CALL: &str = r#"
import socket, sys
sys.stdin.readline()
held = []
for _ in range(int(sys.argv[2])):
    s = socket.socket(socket.AF_UNIX)
    s.connect(sys.argv[1])
    try:
        s.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0")
        if s.recv(1):
            held.append(s)
    except OSError:
        pass
print(len(held), flush=True)
sys.stdin.readline()
"#;

    async fn start(host: &Host, connections: usize) -> Self {
        Self::start_at(host, connections, None, false).await
    }

    /// In a cgroup that is called like a container's.
    async fn start_in_container(host: &Host, connections: usize, id: &str) -> Self {
        let root = Path::new("/sys/fs/cgroup");
        let root = match root.join("cgroup.procs").exists() {
            true => root.to_owned(),
            false => root.join("pids"),
        };
        let group = root.join(format!("docker-{id}.scope"));
        std::fs::create_dir(&group).unwrap();
        Self::start_at(host, connections, Some(group), true).await
    }

    async fn start_beside(host: &Host, connections: usize, other: &Self) -> Self {
        Self::start_at(host, connections, other.group.clone(), false).await
    }

    async fn start_at(host: &Host, connections: usize, group: Option<PathBuf>, made: bool) -> Self {
        let mut child = Command::new("python3")
            .args(["-c", Self::CALL])
            .arg(&host.socket)
            .arg(connections.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        if let Some(group) = &group {
            std::fs::write(group.join("cgroup.procs"), child.id().to_string()).unwrap();
        }
        let input = child.stdin.as_mut().unwrap();
        input.write_all(b"\n").unwrap();
        let mut line = String::new();
        let output = child.stdout.take().unwrap();
        let reading = tokio::task::spawn_blocking(move || {
            BufReader::new(output).read_line(&mut line).unwrap();
            line.trim().parse().unwrap()
        });
        let held = reading.await.unwrap();
        Self {
            child,
            held,
            group,
            made,
        }
    }
}

impl Drop for Idle {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(group) = self.group.as_ref().filter(|_| self.made) {
            let _ = std::fs::remove_dir(group);
        }
    }
}

#[tokio::test]
async fn attack_an_oversized_request_is_refused() {
    let host = Host::start().await;
    let mut client = host.workload().await;
    let request = JwtsvidRequest {
        audience: vec!["a".repeat(1024 * 1024)],
        spiffe_id: String::new(),
    };
    let error = client.fetch_jwtsvid(meant(request)).await.unwrap_err();
    assert_eq!(error.code(), Code::OutOfRange, "{error}");
}

#[tokio::test]
async fn a_token_is_for_somebody_and_of_the_caller() {
    let host = Host::start().await;
    let mut client = host.workload().await;
    let mut ask = async |audience: &[&str], id: &str| {
        let request = JwtsvidRequest {
            audience: audience.iter().map(|&name| name.to_owned()).collect(),
            spiffe_id: id.to_owned(),
        };
        client.fetch_jwtsvid(meant(request)).await
    };
    let issued = ask(&["ledger", "mail"], "").await.unwrap().into_inner();
    assert_eq!(issued.svids[0].spiffe_id, ORDERS);
    assert_eq!(issued.svids[0].svid, "token for ledger mail");
    for (audience, id, code) in [
        (&[][..], "", Code::InvalidArgument),
        (&[""][..], "", Code::InvalidArgument),
        (&["ledger"][..], "orders", Code::InvalidArgument),
        (
            &["ledger"][..],
            "spiffe://acme.test/ns/shop/sa/admin",
            Code::PermissionDenied,
        ),
    ] {
        assert_eq!(
            ask(audience, id).await.unwrap_err().code(),
            code,
            "{audience:?} {id}"
        );
    }
}

#[tokio::test]
async fn a_token_is_taken_if_it_is_of_whom_it_was_asked_for() {
    let host = Host::start().await;
    let ask = async |audience: &str, id: &str| {
        jwt_svid(&host.endpoint(), audience, &id.parse().unwrap()).await
    };
    let token = ask("ledger", ORDERS).await.unwrap();
    assert_eq!(token.expose_str(), Some("token for ledger"));
    let refused = ask("ledger", "spiffe://acme.test/ns/shop/sa/admin").await;
    assert!(matches!(refused, Err(FetchError::Denied { .. })));
    let refused = ask("another", ORDERS).await;
    assert!(matches!(refused, Err(FetchError::OtherToken { .. })));
    for audience in ["nothing", "much"] {
        let refused = ask(audience, ORDERS).await;
        assert!(matches!(refused, Err(FetchError::NoToken)), "{audience}");
    }
}

#[tokio::test]
async fn a_stopping_server_ends_its_streams_and_waits_for_nobody() {
    let host = Host::start().await;
    let mut updates = watch(&host.endpoint()).await.unwrap();
    updates.next().await.unwrap();
    host.drain.stop();
    host.drain.drained().await;
    assert!(updates.next().await.is_err());
}

#[tokio::test]
async fn attack_a_listener_of_another_user_hears_nothing() {
    let host = Host::start().await;
    let ours = rustix::process::geteuid().as_raw();
    let another = Endpoint {
        uid: Some(ours + 1),
        ..host.endpoint()
    };
    let refused = watch(&another).await.unwrap_err();
    assert!(matches!(refused, FetchError::Squatted { uid, .. } if uid == ours));
    let named = Endpoint {
        uid: Some(ours),
        ..host.endpoint()
    };
    watch(&named).await.unwrap();
}

fn at(seconds: u64) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(seconds))
}

fn token(key: &SigningKey, audience: &str) -> String {
    let token = key.sign(&Statement {
        subject: &ORDERS.parse().unwrap(),
        audiences: &[audience.to_owned(), "mail".to_owned()],
        issued: at(NOW - 10),
        expires: at(NOW + 290),
        token_id: "7",
    });
    token.unwrap().expose_str().unwrap().to_owned()
}

async fn validate(
    host: &Host,
    audience: &str,
    svid: &str,
) -> Result<ValidateJwtsvidResponse, Status> {
    let request = ValidateJwtsvidRequest {
        audience: audience.to_owned(),
        svid: svid.to_owned(),
    };
    let valid = host
        .workload()
        .await
        .validate_jwtsvid(meant(request))
        .await?;
    Ok(valid.into_inner())
}

#[tokio::test]
async fn a_token_is_validated_for_its_reader_and_its_claims_are_told() {
    let host = Host::start().await;
    let token = token(&host.authority.tokens, "ledger");
    let valid = validate(&host, "ledger", &token).await.unwrap();
    assert_eq!(valid.spiffe_id, ORDERS);
    let claims = valid.claims.unwrap().fields;
    let kind = |name: &str| claims[name].kind.clone().unwrap();
    assert_eq!(kind("sub"), Kind::StringValue(ORDERS.to_owned()));
    assert_eq!(kind("exp"), Kind::NumberValue((NOW + 290) as f64));
    let Kind::ListValue(audience) = kind("aud") else {
        panic!("{claims:?}")
    };
    assert_eq!(audience.values.len(), 2);
}

#[tokio::test]
async fn attack_a_token_for_another_reader_of_another_key_or_of_none_is_refused() {
    let host = Host::start().await;
    let stranger = SigningKey::generate().unwrap();
    let good = token(&host.authority.tokens, "ledger");
    let (unsigned, _) = good.rsplit_once('.').unwrap();
    for (audience, svid) in [
        ("bank", good.as_str()),
        ("", good.as_str()),
        ("ledger", ""),
        ("ledger", "no token"),
        ("ledger", &format!("{unsigned}.")),
        ("ledger", &token(&stranger, "ledger")),
    ] {
        let refused = validate(&host, audience, svid).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{audience} {svid}");
    }
    host.someone.refuse(Refused::Nobody {
        why: "it is another".to_owned(),
    });
    let refused = validate(&host, "ledger", &good).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
}

#[tokio::test]
async fn attack_a_token_from_before_a_revocation_of_its_identity_is_refused() {
    let host = Host::start().await;
    let token = token(&host.authority.tokens, "ledger");
    let deny = |moment| {
        let mut entitled = Entitled::clone(&host.someone.now());
        let denied = Arc::make_mut(&mut entitled.trust.denied);
        denied.deny_identity_before(ORDERS.parse().unwrap(), at(moment));
        host.someone.publish(entitled);
    };
    deny(NOW - 11);
    validate(&host, "ledger", &token).await.unwrap();
    // Its own second: it may have been signed before.
    deny(NOW - 10);
    let refused = validate(&host, "ledger", &token).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().contains("revoked"), "{refused}");
}

#[tokio::test]
async fn whoever_follows_the_keys_of_tokens_hears_of_a_rotation_and_of_nothing_else() {
    let host = Host::start().await;
    let mut client = host.workload().await;
    let response = client.fetch_jwt_bundles(meant(JwtBundlesRequest {}));
    let mut stream = response.await.unwrap().into_inner();
    let mut next = async || {
        let sets = stream.message().await.unwrap().unwrap().bundles;
        let keys = Keys::parse(&sets["spiffe://acme.test"], Purpose::JwtSvids).unwrap();
        assert_eq!(sets.len(), 1);
        keys.len()
    };
    assert_eq!(next().await, 1);
    // A new certificate is no new key.
    host.rotate();
    let second = SigningKey::generate().unwrap();
    let trust = Trust {
        jwt: Arc::new(key_set(&[&host.authority.tokens, &second])),
        ..host.someone.now().trust.clone()
    };
    let svids = host.someone.now().svids.clone();
    host.someone.publish(Entitled { svids, trust });
    assert_eq!(next().await, 2);
}

/// A list of the authority, over one certificate.
fn list(host: &Host, serial: u64) -> CertificateRevocationListDer<'static> {
    let moment = |seconds| rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(seconds);
    let params = CertificateRevocationListParams {
        this_update: moment(NOW),
        next_update: moment(NOW + 3600),
        crl_number: SerialNumber::from(1),
        issuing_distribution_point: None,
        revoked_certs: vec![RevokedCertParams {
            serial_number: SerialNumber::from(serial),
            revocation_time: moment(NOW),
            reason_code: None,
            invalidity_date: None,
        }],
        key_identifier_method: KeyIdMethod::Sha256,
    };
    params
        .signed_by(&host.authority.issuer)
        .unwrap()
        .der()
        .clone()
}

fn listing(host: &Host, crls: Vec<CertificateRevocationListDer<'static>>) {
    let now = host.someone.now();
    let trust = Trust {
        crls: crls.into(),
        ..now.trust.clone()
    };
    let svids = now.svids.clone();
    host.someone.publish(Entitled { svids, trust });
}

#[tokio::test]
async fn a_client_denies_what_the_lists_of_an_api_name() {
    let host = Host::start().await;
    let mut updates = watch(&host.endpoint()).await.unwrap();
    let first = updates.next().await.unwrap();
    assert_eq!(first.denied.unwrap().serials().count(), 0);
    listing(&host, vec![list(&host, 0x1234), list(&host, 0x77)]);
    let second = updates.next().await.unwrap();
    let denied = second.denied.unwrap();
    let denied: Vec<_> = denied.serials().map(ToString::to_string).collect();
    assert_eq!(denied, ["1234", "77"]);
}

#[tokio::test]
async fn attack_a_list_that_cannot_be_read_or_too_many_are_not_passed_over() {
    let host = Host::start().await;
    let mut updates = watch(&host.endpoint()).await.unwrap();
    updates.next().await.unwrap();
    listing(&host, vec![vec![0x30, 0].into()]);
    let received = updates.next().await.unwrap();
    let refused = received.denied.unwrap_err();
    assert!(matches!(refused, FetchError::Malformed(_)), "{refused}");
    listing(&host, vec![list(&host, 1); 257]);
    let received = updates.next().await.unwrap();
    let refused = received.denied.unwrap_err();
    assert!(matches!(refused, FetchError::TooManyRevocations));
    // Nobody loses their identity over it.
    assert_eq!(received.svids.len(), 1);
    assert!(!received.bundles.is_empty());
}
