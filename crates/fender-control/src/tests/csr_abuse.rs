//! What a certificate request may try. Each attack goes through the real pipeline, as a first certificate and as a
//! renewal; what is refused spends no token, leaves no record and costs no more than reading 16 KiB once.

use rcgen::{KeyPair, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, SigningKey as _};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::*;

/// A control plane, an honest workload, and a token for more of it.
struct Court {
    world: World,
    token: Vec<u8>,
    anonymous: Channel,
    known: Channel,
}

impl Court {
    async fn new() -> Self {
        let world = World::new().await;
        let svid = world.attested("shop/orders").await;
        Self {
            token: world.token("shop/orders", 600).await.unwrap().secret,
            anonymous: world.anonymous().await.channel,
            known: world.as_peer(&svid).await,
            world,
        }
    }

    async fn attest(&self, csr: &[u8]) -> Result<proto::SvidResponse, Status> {
        attest(&self.anonymous, &self.token, csr.to_vec()).await
    }

    async fn renew(&self, csr: &[u8]) -> Result<proto::SvidResponse, Status> {
        let request = proto::RenewRequest {
            csr: csr.to_vec(),
            ..Default::default()
        };
        let answer = IdentityClient::new(self.known.clone()).renew(request).await;
        answer.map(|response| response.into_inner())
    }

    /// Refused on either way, and nothing has happened.
    async fn refuses(&self, what: &str, csr: &[u8]) {
        let before = self.world.running.commits();
        for answer in [self.attest(csr).await, self.renew(csr).await] {
            let Err(status) = answer else {
                panic!("{what}: it was signed")
            };
            assert_eq!(Code::of(&status), Code::CsrInvalid, "{what}: {status}");
        }
        assert_eq!(
            self.world.running.commits(),
            before,
            "{what}: it reached the database"
        );
    }

    /// The token still buys what it was made for.
    async fn adjourn(self) {
        let key = NewKey::generate().unwrap();
        let csr = key.csr_der(&ORDERS.parse().unwrap()).unwrap();
        self.attest(&csr).await.unwrap();
    }
}

/// An element of DER.
fn der(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let content = parts.concat();
    let length = content.len();
    let header = match length.to_be_bytes() {
        [0, 0, 0, 0, 0, 0, 0, low] if low < 0x80 => vec![tag, low],
        [0, 0, 0, 0, 0, 0, 0, low] => vec![tag, 0x81, low],
        [0, 0, 0, 0, 0, 0, high, low] => vec![tag, 0x82, high, low],
        _ => panic!("{length} bytes are too many for one element"),
    };
    [header, content].concat()
}

const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const OCTETS: u8 = 0x04;
const BITS: u8 = 0x03;
const URI: u8 = 0x86;
const DNS: u8 = 0x82;

const EXTENSION_REQUEST: &[u8] = &[
    0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x09, 0x0e,
];
const CHALLENGE_PASSWORD: &[u8] = &[
    0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x09, 0x07,
];
const ALTERNATIVE_NAME: &[u8] = &[0x06, 0x03, 0x55, 0x1d, 0x11];
const BASIC_CONSTRAINTS: &[u8] = &[0x06, 0x03, 0x55, 0x1d, 0x13];
const KEY_USAGE: &[u8] = &[0x06, 0x03, 0x55, 0x1d, 0x0f];
const KEY_IDENTIFIER: &[u8] = &[0x06, 0x03, 0x55, 0x1d, 0x0e];
/// 1.3.6.1.4.1.99999.1, which nobody knows.
const UNKNOWN: &[u8] = &[
    0x06, 0x09, 0x2b, 0x06, 0x01, 0x04, 0x01, 0x86, 0x8d, 0x1f, 0x01,
];
const CRITICAL: &[u8] = &[0x01, 0x01, 0xff];
const ECDSA_SHA256: &[u8] = &[0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02];

fn extension(id: &[u8], value: &[u8]) -> Vec<u8> {
    der(SEQUENCE, &[id, &der(OCTETS, &[value])])
}

fn names(names: &[(u8, &[u8])]) -> Vec<u8> {
    let names: Vec<_> = names.iter().map(|(tag, name)| der(*tag, &[name])).collect();
    let names: Vec<_> = names.iter().map(Vec::as_slice).collect();
    extension(ALTERNATIVE_NAME, &der(SEQUENCE, &names))
}

fn ask(extensions: &[&[u8]]) -> Vec<u8> {
    let value = der(SET, &[&der(SEQUENCE, extensions)]);
    der(SEQUENCE, &[EXTENSION_REQUEST, &value])
}

fn honest() -> Vec<u8> {
    names(&[(URI, ORDERS.as_bytes())])
}

/// The parts of a request, for whoever wants to bend one.
struct Parts {
    version: Vec<u8>,
    subject: Vec<u8>,
    public_key: Vec<u8>,
    attributes: Vec<u8>,
    /// The tag and bytes around the attributes.
    signature_algorithm: Vec<u8>,
    signature: Option<Vec<u8>>,
    /// After the three elements of a request, inside of it.
    behind: Vec<u8>,
}

fn bent(bend: impl FnOnce(&mut Parts)) -> Vec<u8> {
    bent_with(&KeyPair::generate().unwrap(), bend)
}

fn bent_with(key: &KeyPair, bend: impl FnOnce(&mut Parts)) -> Vec<u8> {
    let mut parts = Parts {
        version: vec![0x02, 0x01, 0x00],
        subject: vec![SEQUENCE, 0x00],
        public_key: rcgen::PublicKeyData::subject_public_key_info(key),
        attributes: ask(&[&honest()]),
        signature_algorithm: der(SEQUENCE, &[ECDSA_SHA256]),
        signature: None,
        behind: Vec::new(),
    };
    bend(&mut parts);
    let attributes = der(0xa0, &[&parts.attributes]);
    let info = der(
        SEQUENCE,
        &[
            &parts.version,
            &parts.subject,
            &parts.public_key,
            &attributes,
        ],
    );
    let signature = parts.signature.unwrap_or_else(|| key.sign(&info).unwrap());
    let signature = der(BITS, &[&[0], &signature]);
    der(
        SEQUENCE,
        &[&info, &parts.signature_algorithm, &signature, &parts.behind],
    )
}

#[tokio::test]
async fn the_forger_of_these_tests_can_make_an_honest_request_too() {
    let court = Court::new().await;
    court.renew(&bent(|_| {})).await.unwrap();
    court.attest(&bent(|_| {})).await.unwrap();
}

#[tokio::test]
async fn attack_keys_of_any_kind_and_size_but_ours_are_refused() {
    let court = Court::new().await;
    macro_rules! refuses {
        ($($name:literal)*) => {
            $(court.refuses($name, include_bytes!(concat!("requests/", $name, ".der"))).await;)*
        };
    }
    refuses!(
        "rsa-1024" "rsa-2048" "rsa-8192" "rsa-pss" "dsa" "ed448" "sm2"
        "secp224r1" "secp521r1" "secp256k1" "brainpoolP256r1" "explicit-parameters" "compressed-point"
    );
    court.adjourn().await;
}

#[tokio::test]
async fn p384_and_ed25519_are_signed_as_p256_is() {
    let court = Court::new().await;
    for algorithm in [&PKCS_ECDSA_P384_SHA384, &PKCS_ED25519] {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.subject_alt_names = vec![rcgen::SanType::URI(ORDERS.try_into().unwrap())];
        let csr = params.serialize_request(&key).unwrap();
        court.renew(csr.der()).await.unwrap();
    }
}

#[tokio::test]
async fn attack_points_that_are_not_on_the_curve_are_no_keys() {
    let court = Court::new().await;
    let algorithm = [
        0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce,
        0x3d, 0x03, 0x01, 0x07,
    ];
    let of = |unused: u8, point: &[u8]| {
        let algorithm = der(SEQUENCE, &[&algorithm]);
        der(SEQUENCE, &[&algorithm, &der(BITS, &[&[unused], point])])
    };
    let good = KeyPair::generate().unwrap().public_key_raw().to_vec();
    let mut off = good.clone();
    *off.last_mut().unwrap() ^= 1;
    let uneven = [&good[..], &[0]].concat();
    for (what, public_key) in [
        ("a point beside the curve", of(0, &off)),
        ("the point at infinity", of(0, &[0])),
        ("no point", of(0, &[])),
        ("zero", of(0, &[&[4][..], &[0; 64]].concat())),
        ("a coordinate too long", of(0, &uneven)),
        ("half a byte less", of(4, &good)),
        ("the hybrid form", of(0, &[&[6], &good[1..]].concat())),
    ] {
        court
            .refuses(what, &bent(|parts| parts.public_key = public_key))
            .await;
    }
    court.adjourn().await;
}

#[tokio::test]
async fn attack_another_name_more_names_or_no_name_at_all() {
    let court = Court::new().await;
    let (orders, inventory) = (ORDERS.as_bytes(), INVENTORY.as_bytes());
    let control = b"spiffe://acme.test/fender/control".as_slice();
    let two = ask(&[&names(&[(URI, orders)]), &names(&[(URI, inventory)])]);
    let twice = [ask(&[&honest()]), ask(&[&names(&[(URI, inventory)])])].concat();
    let longest = format!("spiffe://acme.test/{}", "a/".repeat(7000));
    let many: Vec<(u8, &[u8])> = vec![(URI, b"spiffe://a/b".as_slice()); 1000];
    for (what, attributes) in [
        ("no attributes", Vec::new()),
        ("no names", ask(&[&names(&[])])),
        (
            "two URIs",
            ask(&[&names(&[(URI, orders), (URI, inventory)])]),
        ),
        (
            "one URI twice",
            ask(&[&names(&[(URI, orders), (URI, orders)])]),
        ),
        ("two extensions of names", two),
        ("two requests for extensions", twice),
        (
            "a DNS name as well",
            ask(&[&names(&[(URI, orders), (DNS, b"bank.example")])]),
        ),
        (
            "an IP address as well",
            ask(&[&names(&[(URI, orders), (0x87, &[127, 0, 0, 1])])]),
        ),
        (
            "a mail address as well",
            ask(&[&names(&[(URI, orders), (0x81, b"a@b.example")])]),
        ),
        ("a DNS name instead", ask(&[&names(&[(DNS, orders)])])),
        (
            "a name that is no identity",
            ask(&[&names(&[(URI, b"https://acme.test/")])]),
        ),
        (
            "an identity with a query",
            ask(&[&names(&[(URI, b"spiffe://acme.test/ns/shop/sa/orders?a")])]),
        ),
        (
            "an identity in capitals",
            ask(&[&names(&[(URI, b"SPIFFE://ACME.TEST/ns/shop/sa/orders")])]),
        ),
        (
            "a name with an end inside",
            ask(&[&names(&[(
                URI,
                b"spiffe://acme.test/ns/shop/sa/orders\0.evil",
            )])]),
        ),
        (
            "a name that is not text",
            ask(&[&names(&[(URI, &[0xff, 0xfe])])]),
        ),
        (
            "a name of fourteen thousand bytes",
            ask(&[&names(&[(URI, longest.as_bytes())])]),
        ),
        ("a thousand names", ask(&[&names(&many)])),
    ] {
        court
            .refuses(what, &bent(|parts| parts.attributes = attributes))
            .await;
    }

    // Well made, and not the caller's.
    for (name, attested, renewed) in [
        (inventory, Code::TokenWrongIdentity, Code::CsrInvalid),
        (control, Code::TokenWrongIdentity, Code::CsrInvalid),
    ] {
        let csr = bent(|parts| parts.attributes = ask(&[&names(&[(URI, name)])]));
        assert_eq!(refused(court.attest(&csr).await), attested);
        assert_eq!(refused(court.renew(&csr).await), renewed);
    }
    court.adjourn().await;
}

#[tokio::test]
async fn attack_what_a_request_would_like_to_be_allowed_never_reaches_a_certificate() {
    let court = Court::new().await;
    let plain = court.renew(&bent(|_| {})).await.unwrap().chain.remove(0);
    let greedy = bent(|parts| {
        // CN=root
        parts.subject = der(
            SEQUENCE,
            &[&der(
                SET,
                &[&der(
                    SEQUENCE,
                    &[&[0x06, 0x03, 0x55, 0x04, 0x03], &der(0x0c, &[b"root"])],
                )],
            )],
        );
        let critical =
            |id: &[u8], value: &[u8]| der(SEQUENCE, &[id, CRITICAL, &der(OCTETS, &[value])]);
        parts.attributes = [
            ask(&[
                &honest(),
                &critical(BASIC_CONSTRAINTS, &der(SEQUENCE, &[CRITICAL])),
                &critical(KEY_USAGE, &der(BITS, &[&[1, 0x06]])),
                &extension(KEY_IDENTIFIER, &der(OCTETS, &[b"chosen by the caller"])),
                &critical(UNKNOWN, b"let me in"),
            ]),
            der(
                SEQUENCE,
                &[CHALLENGE_PASSWORD, &der(SET, &[&der(0x0c, &[b"hunter2"])])],
            ),
            der(SEQUENCE, &[UNKNOWN, &der(SET, &[])]),
        ]
        .concat();
    });
    let said = |leaf: &[u8]| {
        let (_, leaf) = X509Certificate::from_der(leaf).unwrap();
        let extensions = leaf.extensions().iter().filter(|extension| {
            // It names the key, and the key differs.
            extension.oid.to_id_string() != "2.5.29.14"
        });
        let extensions = extensions.map(|extension| {
            (
                extension.oid.to_id_string(),
                extension.critical,
                extension.value.to_vec(),
            )
        });
        (
            leaf.subject().to_string(),
            leaf.version(),
            extensions.collect::<Vec<_>>(),
        )
    };
    for answer in [court.attest(&greedy).await, court.renew(&greedy).await] {
        let leaf = answer.unwrap().chain.remove(0);
        assert_eq!(
            said(&leaf),
            said(&plain),
            "the same as of a request that asks for nothing"
        );
        let text = String::from_utf8_lossy(&leaf).into_owned();
        for word in ["root", "hunter2", "let me in", "chosen by the caller"] {
            assert!(!text.contains(word), "{word}");
        }
    }
}

#[tokio::test]
async fn attack_a_request_that_is_not_signed_by_its_own_key() {
    let court = Court::new().await;
    let (mine, theirs) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let shown = rcgen::PublicKeyData::subject_public_key_info(&theirs);
    court
        .refuses(
            "another's key",
            &bent_with(&mine, |parts| parts.public_key = shown),
        )
        .await;
    for (what, signature) in [
        ("no signature", Vec::new()),
        ("zeros", vec![0; 64]),
        (
            "a signature of (0, 0)",
            vec![0x30, 0x06, 0x02, 0x01, 0, 0x02, 0x01, 0],
        ),
        ("a signature of nine thousand bytes", vec![0x30; 9000]),
    ] {
        court
            .refuses(what, &bent(|parts| parts.signature = Some(signature)))
            .await;
    }
    let weak = [0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x01];
    for (what, algorithm) in [
        ("SHA-1", der(SEQUENCE, &[&weak])),
        ("no algorithm", der(SEQUENCE, &[])),
        ("an unknown algorithm", der(SEQUENCE, &[UNKNOWN])),
    ] {
        court
            .refuses(what, &bent(|parts| parts.signature_algorithm = algorithm))
            .await;
    }
    court.adjourn().await;
}

#[tokio::test]
async fn attack_odd_encodings_are_not_read_in_a_friendly_way() {
    let court = Court::new().await;
    let whole = bent(|_| {});
    let mut indefinite = whole.clone();
    indefinite.splice(1..4, [0x80]);
    indefinite.extend([0, 0]);
    let mut longer = whole.clone();
    // The length in three bytes where two are enough.
    longer.splice(1..3, [0x83, 0, whole[2]]);
    let pem = b"-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n";
    for (what, csr) in [
        ("nothing", Vec::new()),
        ("half of it", whole[..whole.len() / 2].to_vec()),
        ("a byte less", whole[..whole.len() - 1].to_vec()),
        ("a byte behind it", [&whole[..], &[0]].concat()),
        ("another request behind it", [&whole[..], &whole].concat()),
        (
            "a byte behind the signature",
            bent(|parts| parts.behind = vec![0x05, 0x00]),
        ),
        ("an indefinite length", indefinite),
        ("a length in more bytes than it needs", longer),
        (
            "four gigabytes announced",
            vec![0x30, 0x84, 0xff, 0xff, 0xff, 0xff, 0x02, 0x01, 0x00],
        ),
        ("PEM", pem.to_vec()),
        (
            "version 2",
            bent(|parts| parts.version = vec![0x02, 0x01, 0x01]),
        ),
        (
            "version -1",
            bent(|parts| parts.version = vec![0x02, 0x01, 0xff]),
        ),
        (
            "version 0 in two bytes",
            bent(|parts| parts.version = vec![0x02, 0x02, 0x00, 0x00]),
        ),
        (
            "a version of a thousand bytes",
            bent(|parts| parts.version = der(0x02, &[&[0x7f; 1000]])),
        ),
        ("no version", bent(|parts| parts.version = Vec::new())),
        (
            "two subjects",
            bent(|parts| parts.subject = vec![SEQUENCE, 0x00, SEQUENCE, 0x00]),
        ),
    ] {
        court.refuses(what, &csr).await;
    }
    court.adjourn().await;
}

#[tokio::test]
async fn attack_attributes_that_are_deep_or_many_cost_no_more_than_their_bytes() {
    let court = Court::new().await;
    let mut deep = vec![SEQUENCE, 0x00];
    while deep.len() < 12_000 {
        deep = der(SEQUENCE, &[&deep]);
    }
    let bombs = [
        (
            "a name deep down",
            ask(&[&honest(), &extension(ALTERNATIVE_NAME, &deep)]),
        ),
        (
            "an attribute deep down",
            [ask(&[&honest()]), deep.clone()].concat(),
        ),
        (
            "too large",
            [
                ask(&[&honest()]),
                der(SEQUENCE, &[UNKNOWN, &der(SET, &[&vec![0; 17_000]])]),
            ]
            .concat(),
        ),
        (
            "an attribute that is none",
            [ask(&[&honest()]), vec![0x05, 0x00]].concat(),
        ),
        (
            "an attribute that goes on",
            [ask(&[&honest()]), vec![SEQUENCE, 0x82, 0x40, 0x00]].concat(),
        ),
    ];
    for (what, attributes) in bombs {
        court
            .refuses(what, &bent(|parts| parts.attributes = attributes))
            .await;
    }

    // What nobody asked for is not kept: the answer is as small as any.
    let many = der(SEQUENCE, &[UNKNOWN, &der(SET, &[])]).repeat(800);
    let many = bent(|parts| parts.attributes = [ask(&[&honest()]), many].concat());
    let plain = court.renew(&bent(|_| {})).await.unwrap();
    let bloated = court.renew(&many).await.unwrap();
    assert!(many.len() > 10_000);
    assert!(bloated.chain[0].len() < plain.chain[0].len() + 16);
    court.adjourn().await;
}

#[tokio::test]
async fn attack_a_request_that_was_overheard_buys_nothing() {
    let court = Court::new().await;
    let key = NewKey::generate().unwrap();
    let csr = key.csr_der(&ORDERS.parse().unwrap()).unwrap();
    let first = court.attest(&csr).await.unwrap();

    // With the token as well: the certificate that was bought, of a key the thief does not have.
    let before = issued_to_orders(&court.world).await;
    assert_eq!(court.attest(&csr).await.unwrap().chain, first.chain);
    assert_eq!(issued_to_orders(&court.world).await, before);
    // With a token of one's own, or a certificate of one's own.
    let other = court.world.token("shop/inventory", 600).await.unwrap();
    assert_eq!(
        refused(attest(&court.anonymous, &other.secret, csr.clone()).await),
        Code::TokenWrongIdentity
    );
    let inventory = court.world.attested("shop/inventory").await;
    let request = proto::RenewRequest {
        csr,
        ..Default::default()
    };
    let mut client = IdentityClient::new(court.world.as_peer(&inventory).await);
    assert_eq!(refused(client.renew(request).await), Code::CsrInvalid);
}

async fn issued_to_orders(world: &World) -> u64 {
    let status = world.status().await;
    let mut workloads = status.workloads.iter();
    let orders = workloads.find(|workload| workload.identity == ORDERS);
    orders.unwrap().certificates_issued
}
