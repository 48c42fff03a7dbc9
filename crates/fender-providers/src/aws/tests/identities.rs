//! Whose credentials are used, and for how long.

use std::path::Path;

use super::server::{CANARY, error, plain, role, sts_error};
use super::*;
use crate::http::{Answer, HttpError};

/// What is configured of everything: a home with a profile, a token, and the variables that name the rest.
struct Machine {
    home: tempfile::TempDir,
}

impl Machine {
    fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        std::fs::create_dir(home.path().join(".aws")).unwrap();
        let machine = Self { home };
        machine.write(
            ".aws/credentials",
            "[default]\naws_access_key_id = AKIDFILE\naws_secret_access_key = canary-secret-of-file\n",
        );
        machine.write("token", "canary-web-identity\n");
        machine
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    fn path(&self, name: &str) -> String {
        let path: &Path = self.home.path();
        path.join(name).to_str().unwrap().to_owned()
    }

    /// With the home and these; `~/` is the home.
    fn world(&self, variables: &[(&'static str, &str)]) -> World {
        let home = self.path("");
        let written: Vec<_> = variables
            .iter()
            .map(|(name, value)| (*name, value.replace("~/", &home)))
            .collect();
        let mut all: Vec<_> = written
            .iter()
            .map(|(name, value)| (*name, value.as_str()))
            .collect();
        all.push(("HOME", home.trim_end_matches('/')));
        World::with(&all)
    }
}

const WEB: [(&str, &str); 3] = [
    ("AWS_WEB_IDENTITY_TOKEN_FILE", "~/token"),
    ("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/orders"),
    ("AWS_REGION", "eu-central-1"),
];
const CONTAINER: (&str, &str) = (
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "/v2/credentials/x",
);

/// As whom the last question was signed.
fn signed_as(world: &World) -> String {
    let asked = world.server.asked();
    let last = asked.last().unwrap();
    let (_, id) = last.split_once("Credential=").unwrap();
    id.split_once('/').unwrap().0.to_owned()
}

#[tokio::test(start_paused = true)]
async fn the_first_that_is_configured_is_taken_in_awss_order() {
    let machine = Machine::new();
    let all: Vec<_> = KEYS.into_iter().chain(WEB).chain([CONTAINER]).collect();
    let mut left = &all[..];
    for (drop, id) in [(0, "AKIDENV"), (2, "ASIAROLE1"), (2, "AKIDFILE")] {
        left = &left[drop..];
        let world = machine.world(left);
        world.fetch(&secret("smtp", None)).await.unwrap();
        assert_eq!(signed_as(&world), id);
    }
    std::fs::remove_file(machine.path(".aws/credentials")).unwrap();
    for (set, id) in [(&[CONTAINER][..], "ASIACONTAINER"), (&[], "ASIAINSTANCE")] {
        let world = machine.world(set);
        world.fetch(&secret("smtp", None)).await.unwrap();
        assert_eq!(signed_as(&world), id);
    }
    let none = machine.world(&[("AWS_EC2_METADATA_DISABLED", "true")]);
    let error = none.fetch(&secret("smtp", None)).await.unwrap_err();
    assert!(matches!(error, FetchError::Outage(_)), "{error}");
    assert!(error.to_string().contains("there are none"), "{error}");
    assert!(none.server.asked().is_empty());
}

#[tokio::test(start_paused = true)]
async fn one_that_is_configured_and_fails_is_not_replaced_by_the_next() {
    let machine = Machine::new();
    for (set, said) in [
        (&[KEYS[0]][..], "one is set and the other is not"),
        (&[WEB[0], WEB[2]], "AWS_ROLE_ARN is not"),
        (&[WEB[0], WEB[1]], "AWS_REGION is not set"),
        (
            &[("AWS_WEB_IDENTITY_TOKEN_FILE", "~/absent"), WEB[1], WEB[2]],
            "absent",
        ),
        (&[("AWS_PROFILE", "absent")], "no profile `absent`"),
    ] {
        let mut set = set.to_vec();
        set.push(CONTAINER);
        let world = machine.world(&set);
        let error = world.fetch(&secret("smtp", None)).await.unwrap_err();
        assert!(matches!(error, FetchError::Outage(_)), "{error}");
        assert!(error.to_string().contains(said), "{error}");
        assert!(!error.to_string().contains(CANARY), "{error}");
        assert!(world.server.asked().is_empty(), "nobody is asked");
    }
    std::fs::remove_file(machine.path(".aws/credentials")).unwrap();
    for (set, said) in [
        (
            (
                "AWS_CONTAINER_CREDENTIALS_FULL_URI",
                "http://evil.example/x",
            ),
            "without TLS only loopback",
        ),
        (
            ("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "@evil.example/x"),
            "does not begin with `/`",
        ),
    ] {
        let world = machine.world(&[set]);
        let error = world.fetch(&secret("smtp", None)).await.unwrap_err();
        assert!(error.to_string().contains(said), "{error}");
        assert!(world.server.asked().is_empty(), "nobody is asked");
    }
}

#[tokio::test(start_paused = true)]
async fn a_web_identity_is_shown_to_sts_alone_and_read_anew_each_time() {
    let machine = Machine::new();
    let world = machine.world(&WEB);
    let source = world.source(&secret("smtp", None));
    source.fetch().await.unwrap();
    let asked = world.server.asked();
    assert!(asked[0].starts_with("POST https://sts.eu-central-1.amazonaws.com/ | content-type: application/x-www-form-urlencoded | Action=AssumeRoleWithWebIdentity&"));
    assert!(asked[0].ends_with("&WebIdentityToken=canary-web-identity"));
    assert!(asked[1].contains("x-amz-security-token: canary-token-of-role"));
    assert!(!asked[1].contains("canary-web-identity"));

    // Before its end it is renewed, with the token of then.
    machine.write("token", "canary-next\n");
    world
        .server
        .answer("sts.", || Ok(role("ASIANEXT", "2027-01-15T10:00:00Z")));
    world.pass(30 * 60).await;
    source.fetch().await.unwrap();
    assert_eq!(signed_as(&world), "ASIAROLE1", "not yet");
    world.pass(26 * 60).await;
    source.fetch().await.unwrap();
    let asked = world.server.asked();
    assert!(
        asked[0].ends_with("&WebIdentityToken=canary-next"),
        "{asked:?}"
    );
    assert!(asked[1].contains("Credential=ASIANEXT/"), "{asked:?}");
}

#[tokio::test(start_paused = true)]
async fn what_is_still_good_is_used_while_no_other_can_be_had() {
    let machine = Machine::new();
    let world = machine.world(&WEB);
    let source = world.source(&secret("smtp", None));
    source.fetch().await.unwrap();
    world
        .server
        .answer("sts.", || Err(HttpError::Unreachable("away".to_owned())));
    world.pass(57 * 60).await;
    source.fetch().await.unwrap();
    assert_eq!(signed_as(&world), "ASIAROLE1");
    world.pass(4 * 60).await;
    let error = source.fetch().await.unwrap_err();
    assert!(matches!(error, FetchError::Outage(_)), "{error}");
    assert!(error.to_string().contains("away"), "{error}");
    world.server.recover();
    world.pass(60).await;
    world
        .server
        .answer("sts.", || Ok(role("ASIALATER", "2027-01-15T11:00:00Z")));
    source.fetch().await.unwrap();
    assert_eq!(signed_as(&world), "ASIALATER");
}

#[tokio::test(start_paused = true)]
async fn all_secrets_share_one_login_also_while_it_fails() {
    let machine = Machine::new();
    let world = machine.world(&WEB);
    world
        .server
        .answer("sts.", || Ok(sts_error("AccessDenied")));
    for number in 0..20 {
        let error = world.fetch(&secret(&format!("s{number}"), None)).await;
        let error = error.unwrap_err();
        assert!(matches!(error, FetchError::Denied(_)), "{error}");
        assert!(error.to_string().contains("role/orders"), "{error}");
        assert!(!error.to_string().contains(CANARY), "{error}");
    }
    assert_eq!(world.server.asked().len(), 1);
    // An expired token of the provider's says nothing of the secrets.
    let world = machine.world(&WEB);
    world
        .server
        .answer("sts.", || Ok(sts_error("ExpiredTokenException")));
    let error = world.fetch(&secret("smtp", None)).await.unwrap_err();
    assert!(matches!(error, FetchError::Outage(_)), "{error}");
}

#[tokio::test(start_paused = true)]
async fn credentials_that_are_not_accepted_are_got_anew_once() {
    let machine = Machine::new();
    let world = machine.world(&WEB);
    let source = world.source(&secret("smtp", None));
    source.fetch().await.unwrap();
    world.server.asked();
    world.server.answer("Credential=ASIAROLE1/", || {
        Ok(error(
            400,
            "ExpiredTokenException",
            "The security token included in the request is expired",
        ))
    });
    world.pass(70).await;
    source.fetch().await.unwrap();
    let asked = world.server.asked();
    assert_eq!(asked.len(), 3, "refused, got anew, answered: {asked:?}");
    assert!(asked[2].contains("Credential=ASIAROLE2/"));

    // Where there are no others nothing is asked twice.
    let world = World::new();
    world.server.answer("GetSecretValue", || {
        Ok(error(400, "UnrecognizedClientException", "invalid"))
    });
    let source = world.source(&secret("smtp", None));
    for _ in 0..2 {
        let error = source.fetch().await.unwrap_err();
        assert!(matches!(error, FetchError::Outage(_)), "{error}");
        // Nor by anybody else: they share them.
        let others = world.fetch(&secret("other", None)).await.unwrap_err();
        assert!(matches!(others, FetchError::Outage(_)), "{others}");
        assert!(
            error
                .to_string()
                .contains("does not accept this machine's credentials")
        );
        assert_eq!(world.server.asked().len(), 1);
        world.pass(70).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_wrong_clock_is_called_so() {
    let world = World::new();
    world.server.answer("GetSecretValue", || {
        Ok(error(
            403,
            "InvalidSignatureException",
            "Signature expired: 20270115T080000Z is now earlier than 20270115T081500Z",
        ))
    });
    let error = world.fetch(&secret("smtp", None)).await.unwrap_err();
    assert!(matches!(error, FetchError::Outage(_)), "{error}");
    assert!(error.to_string().contains("clock"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_container_shows_its_token_read_anew_each_time() {
    let machine = Machine::new();
    std::fs::remove_file(machine.path(".aws/credentials")).unwrap();
    let world = machine.world(&[
        (
            "AWS_CONTAINER_CREDENTIALS_FULL_URI",
            "http://169.254.170.23/v1/credentials",
        ),
        ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", "~/token"),
    ]);
    let source = world.source(&secret("smtp", None));
    source.fetch().await.unwrap();
    let first = "GET http://169.254.170.23/v1/credentials | authorization: canary-web-identity | ";
    assert_eq!(world.server.asked()[0], first);
    // Near their end, and not after it, others are asked for; that those are the same yet is no failure.
    machine.write("token", "canary-next");
    world.pass(58 * 60).await;
    source.fetch().await.unwrap();
    assert!(world.server.asked()[0].contains("authorization: canary-next"));
    // What has ended already is no use.
    world.pass(3 * 60).await;
    let error = source.fetch().await.unwrap_err();
    assert!(error.to_string().contains("have ended already"), "{error}");

    machine.write("token", "two\nlines");
    let world = machine.world(&[
        CONTAINER,
        ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", "~/token"),
    ]);
    let error = world.fetch(&secret("smtp", None)).await.unwrap_err();
    assert!(error.to_string().contains("one line"), "{error}");
    assert!(world.server.asked().is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_instance_is_asked_by_a_session_and_in_no_other_way() {
    let machine = Machine::new();
    std::fs::remove_file(machine.path(".aws/credentials")).unwrap();
    let world = machine.world(&[]);
    world.fetch(&secret("smtp", None)).await.unwrap();
    let asked = world.server.asked();
    let path = "http://169.254.169.254/latest/meta-data/iam/security-credentials/";
    let shown = "x-aws-ec2-metadata-token: canary-session";
    let expected = [
        "PUT http://169.254.169.254/latest/api/token | x-aws-ec2-metadata-token-ttl-seconds: 3600 | "
            .to_owned(),
        format!("GET {path} | {shown} | "),
        format!("GET {path}orders-role | {shown} | "),
    ];
    assert_eq!(asked[..3], expected);

    // Without a session there is nothing, though an old instance would answer.
    let world = machine.world(&[]);
    world
        .server
        .answer("PUT ", || Ok(error(403, "Forbidden", "")));
    let refused = world.fetch(&secret("smtp", None)).await.unwrap_err();
    assert!(matches!(refused, FetchError::Outage(_)), "{refused}");
    assert_eq!(world.server.asked().len(), 1);
    // Attack: a role that is another path.
    for named in ["", "..", "a/b", "a?b", "canary\nx"] {
        let world = machine.world(&[]);
        world.server.on(move |asked| {
            let roles = asked.contains("security-credentials/ |");
            roles.then(|| Ok(plain(named)))
        });
        let error = world.fetch(&secret("smtp", None)).await.unwrap_err();
        assert!(error.to_string().contains("names no role"), "{error}");
        assert!(!error.to_string().contains(CANARY), "{error}");
        assert_eq!(world.server.asked().len(), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn a_profile_may_assume_a_role_and_what_it_cannot_do_is_said() {
    let machine = Machine::new();
    machine.write(
        ".aws/config",
        "[profile orders]\nrole_arn = arn:aws:iam::1:role/orders\nsource_profile = default\nregion = eu-west-1\n\
         [profile task]\nrole_arn = arn:aws:iam::1:role/task\ncredential_source = EcsContainer\nregion = eu-west-1\n\
         [profile pod]\nrole_arn = arn:aws:iam::1:role/pod\nweb_identity_token_file = TOKEN\nregion = eu-west-1\n\
         [profile program]\ncredential_process = /usr/bin/canary\n"
            .replace("TOKEN", &machine.path("token"))
            .as_str(),
    );
    for (profile, by) in [
        (
            "orders",
            "Credential=AKIDFILE/20270115/eu-west-1/sts/aws4_request",
        ),
        (
            "task",
            "Credential=ASIACONTAINER/20270115/eu-west-1/sts/aws4_request",
        ),
        ("pod", "&WebIdentityToken=canary-web-identity"),
    ] {
        let world = machine.world(&[("AWS_PROFILE", profile), CONTAINER]);
        world.fetch(&secret("smtp", None)).await.unwrap();
        let asked = world.server.asked();
        let [.., assumed, read] = &asked[..] else {
            panic!("{asked:?}")
        };
        assert!(assumed.starts_with("POST https://sts.eu-west-1.amazonaws.com/"));
        assert!(assumed.contains(by), "{assumed}");
        assert!(read.contains("Credential=ASIAROLE1/"), "{read}");
    }
    let world = machine.world(&[("AWS_PROFILE", "program")]);
    let error = world.fetch(&secret("smtp", None)).await.unwrap_err();
    assert!(error.to_string().contains("credential_process"), "{error}");
    assert!(!error.to_string().contains(CANARY), "{error}");
}

#[tokio::test(start_paused = true)]
async fn keys_in_a_file_are_looked_at_again() {
    let machine = Machine::new();
    let world = machine.world(&[]);
    let source = world.source(&secret("smtp", None));
    source.fetch().await.unwrap();
    assert_eq!(signed_as(&world), "AKIDFILE");
    machine.write(
        ".aws/credentials",
        "[default]\naws_access_key_id = AKIDNEXT\naws_secret_access_key = canary-next\n",
    );
    world.pass(6 * 60).await;
    source.fetch().await.unwrap();
    assert_eq!(signed_as(&world), "AKIDNEXT");
    // A file that is being written is no reason to be somebody else.
    machine.write(".aws/credentials", "[defa");
    world.pass(6 * 60).await;
    source.fetch().await.unwrap();
    assert_eq!(signed_as(&world), "AKIDNEXT");
}

#[tokio::test(start_paused = true)]
async fn attack_an_answer_that_repeats_what_it_was_shown() {
    let machine = Machine::new();
    let world = machine.world(&WEB);
    world.server.answer("GetSecretValue", || {
        let echo = "canary-secret-of-role canary-token-of-role ASIAROLE1";
        Ok(error(400, "AccessDeniedException", echo))
    });
    let refused = world.fetch(&secret("smtp", None)).await.unwrap_err();
    assert!(!refused.to_string().contains(CANARY), "{refused}");
    assert!(!refused.to_string().contains("ASIAROLE1"), "{refused}");
    let world = machine.world(&WEB);
    world.server.answer("sts.", || {
        let body = "<ErrorResponse><Error><Code>X</Code><Message>canary-web-identity</Message></Error></ErrorResponse>";
        Ok(Answer { status: 400, ..plain(body) })
    });
    let refused = world.fetch(&secret("smtp", None)).await.unwrap_err();
    assert!(!refused.to_string().contains(CANARY), "{refused}");
}
