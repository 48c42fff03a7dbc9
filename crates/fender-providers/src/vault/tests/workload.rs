//! The workload logs in as itself.

use rcgen::{CertificateParams, KeyPair, KeyUsagePurpose, SanType, SerialNumber, date_time_ymd};

use super::server::login;
use super::*;

const ORDERS: &str = "spiffe://example.org/ns/shop/sa/orders";
const NOW: u64 = 1_800_000_000;

#[derive(Debug)]
struct Orders {
    svid: watch::Sender<Arc<Svid>>,
    tokens: Mutex<u64>,
}

impl Orders {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            svid: watch::Sender::new(Arc::new(svid(1, NOW + 3600))),
            tokens: Mutex::default(),
        })
    }

    fn renew(&self, serial: u64) {
        self.svid.send_replace(Arc::new(svid(serial, NOW + 3600)));
    }
}

impl Workload for Orders {
    fn svid(&self) -> watch::Receiver<Arc<Svid>> {
        self.svid.subscribe()
    }

    fn token<'a>(&'a self, audience: &'a str) -> Reading<'a> {
        let mut tokens = self.tokens.lock().unwrap();
        *tokens += 1;
        let token = format!("{CANARY}.{audience}.{tokens}");
        Box::pin(std::future::ready(Ok(Secret::from(token))))
    }
}

fn svid(serial: u64, until: u64) -> Svid {
    let mut params = CertificateParams::default();
    params.serial_number = Some(SerialNumber::from(serial));
    params.subject_alt_names = vec![SanType::URI(ORDERS.try_into().unwrap())];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    let epoch = date_time_ymd(1970, 1, 1);
    params.not_before = epoch + Duration::from_secs(NOW - 3600);
    params.not_after = epoch + Duration::from_secs(until);
    let key = KeyPair::generate().unwrap();
    let certificate = params.self_signed(&key).unwrap();
    Svid::from_pem(certificate.pem().as_bytes(), key.serialize_pem().as_bytes()).unwrap()
}

fn by_certificate() -> VaultSecret {
    let login = VaultLogin::Certificate {
        mount: path("cert"),
        role: Some("orders".to_owned()),
        shown: VaultCertificate::Svid,
    };
    VaultSecret {
        store: store(login),
        ..kv2("smtp", "password")
    }
}

fn by_token() -> VaultSecret {
    let login = VaultLogin::Jwt {
        mount: path("jwt"),
        role: Some("orders".to_owned()),
        token: VaultJwt::Svid {
            audience: "vault".to_owned(),
        },
    };
    VaultSecret {
        store: store(login),
        ..kv2("smtp", "password")
    }
}

#[tokio::test(start_paused = true)]
async fn the_workload_shows_its_certificate_and_logs_in_anew_when_it_has_another() {
    let orders = Orders::new();
    let world = World::new().of_workload(orders.clone());
    let source = world.source(&by_certificate());
    assert_eq!(text(source.fetch().await).unwrap(), "hunter2");
    let asked = world.server.asked();
    assert_eq!(
        asked,
        [
            format!("shown {ORDERS} 01"),
            r#"POST auth/cert/login | - | {"name":"orders"}"#.to_owned(),
            "GET secret/data/smtp | hvs.1 | -".to_owned(),
        ]
    );
    orders.renew(2);
    tokio::time::sleep(SECOND).await;
    let asked = world.server.asked();
    assert_eq!(
        asked,
        [
            format!("shown {ORDERS} 02"),
            r#"POST auth/cert/login | - | {"name":"orders"}"#.to_owned(),
        ]
    );
    // What is the same is no reason.
    orders.svid.send_modify(|_| {});
    tokio::time::sleep(SECOND).await;
    assert!(world.server.asked().is_empty());
    source.due().await;
    assert_eq!(text(source.fetch().await).unwrap(), "hunter2");
    let asked = world.server.asked();
    assert_eq!(asked, ["GET secret/data/smtp | hvs.2 | -"]);
    let asked = world.end().await.asked();
    assert_eq!(
        asked,
        [
            "POST auth/token/revoke-self | hvs.1 | {}",
            "POST auth/token/revoke-self | hvs.2 | {}"
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn a_login_by_another_certificate_that_fails_is_tried_again_and_no_token_is_renewed_meanwhile()
 {
    let orders = Orders::new();
    let world = World::new().of_workload(orders.clone());
    let source = world.source(&by_certificate());
    source.fetch().await.unwrap();
    world.server.asked();
    world.server.answer("POST auth/cert/login", server::away);
    orders.renew(2);
    tokio::time::sleep(10 * MINUTE).await;
    let asked = world.server.asked();
    assert_eq!(Server::count(&asked, "POST auth/token/renew-self"), 0);
    assert!(
        Server::count(&asked, "POST auth/cert/login") > 1,
        "{asked:?}"
    );
    world.server.recover();
    tokio::time::sleep(5 * MINUTE).await;
    let asked = world.server.asked();
    assert_eq!(
        Server::count(&asked, &format!("shown {ORDERS} 02")),
        1,
        "{asked:?}"
    );
    assert_eq!(text(source.fetch().await).unwrap(), "hunter2");
}

#[tokio::test(start_paused = true)]
async fn a_certificate_that_has_expired_is_shown_to_nobody() {
    let orders = Orders::new();
    orders.svid.send_replace(Arc::new(svid(7, NOW - 1)));
    let world = World::new().of_workload(orders);
    let error = world.fetch(&by_certificate()).await.unwrap_err();
    assert!(
        matches!(&error, FetchError::Outage(why) if why.contains("has expired")),
        "{error}"
    );
    assert!(world.server.asked().is_empty());
}

#[tokio::test(start_paused = true)]
async fn each_login_by_a_token_has_one_of_its_own_for_the_one_audience() {
    let orders = Orders::new();
    let world = World::new().of_workload(orders);
    world.server.on(|asked| {
        let mut body = login("hvs.batch", 1200);
        body["auth"]["renewable"] = false.into();
        let is_login = asked.starts_with("POST auth/jwt/login");
        is_login.then(|| server::ok(&body))
    });
    let _source = world.source(&by_token());
    assert_eq!(world.fetch(&by_token()).await.unwrap(), "hunter2");
    tokio::time::sleep(12 * MINUTE).await;
    let mut asked = world.server.asked();
    asked.retain(|asked| asked.starts_with("POST auth/jwt/login"));
    for (asked, number) in asked.iter().zip(1..) {
        let expected = format!(
            r#"POST auth/jwt/login | - | {{"role":"orders","jwt":"{CANARY}.vault.{number}"}}"#
        );
        assert_eq!(*asked, expected);
    }
    assert!(asked.len() >= 2, "{asked:?}");
}

#[tokio::test(start_paused = true)]
async fn attack_whoever_is_no_workload_logs_in_as_none() {
    for secret in [by_certificate(), by_token()] {
        let world = World::new();
        let error = world.fetch(&secret).await.unwrap_err();
        assert!(
            matches!(&error, FetchError::Denied(why) if why.contains("this process has none")),
            "{error}"
        );
        assert!(world.server.asked().is_empty());
    }
}
