//! How we log in, and what becomes of the token.

use super::server::{away, denied, empty, login, lookup, ok, status};
use super::*;

fn token_file() -> VaultSecret {
    let login = VaultLogin::Token {
        file: "/token".into(),
    };
    VaultSecret {
        store: store(login),
        ..kv2("smtp", "password")
    }
}

#[tokio::test(start_paused = true)]
async fn every_login_is_asked_for_as_documented() {
    let files = CertificateFiles {
        certificate: "/c".into(),
        key: "/k".into(),
    };
    let jwt = |role: Option<&str>| VaultLogin::Jwt {
        mount: path("jwt"),
        role: role.map(str::to_owned),
        token: VaultJwt::File("/jwt".into()),
    };
    let cert = |role: Option<&str>| VaultLogin::Certificate {
        mount: path("cert"),
        role: role.map(str::to_owned),
        shown: VaultCertificate::Files(files.clone()),
    };
    let kubernetes = VaultLogin::Kubernetes {
        mount: path("k8s/one"),
        role: "orders".to_owned(),
        token: "/sa".into(),
    };
    for (login, expected) in [
        (
            kubernetes,
            vec![r#"POST auth/k8s/one/login | - | {"role":"orders","jwt":"content-of-sa"}"#],
        ),
        (
            jwt(Some("orders")),
            vec![r#"POST auth/jwt/login | - | {"role":"orders","jwt":"content-of-jwt"}"#],
        ),
        (
            jwt(None),
            vec![r#"POST auth/jwt/login | - | {"jwt":"content-of-jwt"}"#],
        ),
        (
            cert(Some("orders")),
            vec![
                "shown content-of-c",
                r#"POST auth/cert/login | - | {"name":"orders"}"#,
            ],
        ),
        (
            cert(None),
            vec!["shown content-of-c", "POST auth/cert/login | - | {}"],
        ),
    ] {
        let world = World::new();
        let secret = VaultSecret {
            store: store(login),
            ..kv2("smtp", "password")
        };
        assert_eq!(world.fetch(&secret).await.unwrap(), "hunter2");
        let mut asked = world.server.asked();
        assert_eq!(asked.pop().unwrap(), "GET secret/data/smtp | hvs.1 | -");
        assert_eq!(asked, expected);
    }
}

#[tokio::test(start_paused = true)]
async fn a_token_of_a_file_is_asked_about_used_and_never_ended() {
    let world = World::new();
    world.files.write("/token", " hvs.of-file\n");
    assert_eq!(world.fetch(&token_file()).await.unwrap(), "hunter2");
    let asked = [
        "GET auth/token/lookup-self | hvs.of-file | -",
        "GET secret/data/smtp | hvs.of-file | -",
    ];
    assert_eq!(world.server.asked(), asked);
    assert!(world.end().await.asked().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_token_that_may_not_ask_about_itself_reads_all_the_same() {
    let world = World::new();
    world.server.answer("GET auth/token/lookup-self", denied);
    assert_eq!(world.fetch(&token_file()).await.unwrap(), "hunter2");
}

#[tokio::test(start_paused = true)]
async fn a_file_that_is_not_there_or_holds_no_line_is_an_outage_until_it_does() {
    for content in ["", "two\nlines", "a\tb", " \n", "é"] {
        let world = World::new();
        world.files.write("/token", content);
        let source = world.source(&token_file());
        let error = source.fetch().await.unwrap_err();
        assert!(
            matches!(error, FetchError::Outage(_)),
            "{content:?}: {error}"
        );
        assert!(world.server.asked().is_empty());
        world.files.write("/token", "hvs.late");
        source.due().await;
        assert_eq!(text(source.fetch().await).unwrap(), "hunter2");
    }
}

#[tokio::test(start_paused = true)]
async fn a_token_that_has_ended_is_replaced_once_before_anybody_is_denied() {
    let world = World::new();
    let source = world.source(&kv2("smtp", "password"));
    source.fetch().await.unwrap();
    world.server.asked();
    // The first token is known to nobody any more.
    world
        .server
        .on(|asked| asked.contains("| hvs.1 |").then(denied));
    source.due().await;
    assert_eq!(text(source.fetch().await).unwrap(), "hunter2");
    let asked = world.server.asked();
    let begins = [
        "GET secret/data/smtp | hvs.1 |",
        "GET auth/token/lookup-self | hvs.1 |",
        "POST auth/approle/login |",
        "GET secret/data/smtp | hvs.2 |",
    ];
    assert_eq!(asked.len(), begins.len(), "{asked:?}");
    for (asked, begin) in asked.iter().zip(begins) {
        assert!(asked.starts_with(begin), "{asked}");
    }
}

#[tokio::test(start_paused = true)]
async fn who_is_denied_with_a_new_token_as_well_is_denied() {
    let world = World::new();
    let source = world.source(&kv2("smtp", "password"));
    source.fetch().await.unwrap();
    world.server.asked();
    world.server.answer("GET ", denied);
    source.due().await;
    let error = source.fetch().await.unwrap_err();
    assert!(matches!(error, FetchError::Denied(_)), "{error}");
    let asked = world.server.asked();
    assert_eq!(
        Server::count(&asked, "POST auth/approle/login"),
        1,
        "{asked:?}"
    );
    assert_eq!(
        Server::count(&asked, "GET secret/data/smtp"),
        2,
        "{asked:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_token_that_somebody_put_anew_into_its_file_is_taken_when_the_one_before_has_ended() {
    let world = World::new();
    let source = world.source(&token_file());
    source.fetch().await.unwrap();
    world.files.write("/token", "hvs.next");
    world
        .server
        .on(|asked| asked.contains("| content-of-token |").then(denied));
    source.due().await;
    assert_eq!(text(source.fetch().await).unwrap(), "hunter2");
    let asked = world.server.asked();
    assert_eq!(
        Server::count(&asked, "GET secret/data/smtp | hvs.next"),
        1,
        "{asked:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_file_whose_token_has_ended_denies_and_is_read_again() {
    let world = World::new();
    let source = world.source(&token_file());
    source.fetch().await.unwrap();
    world
        .server
        .on(|asked| asked.contains("| content-of-token |").then(denied));
    source.due().await;
    let error = source.fetch().await.unwrap_err();
    assert!(matches!(error, FetchError::Denied(_)), "{error}");
    world.files.write("/token", "hvs.next");
    source.due().await;
    assert_eq!(text(source.fetch().await).unwrap(), "hunter2");
}

#[tokio::test(start_paused = true)]
async fn a_login_that_is_refused_is_tried_by_one_and_later() {
    let world = World::new();
    let refused = status(
        400,
        &serde_json::json!({ "errors": ["invalid role or secret ID"] }),
    );
    world
        .server
        .answer("POST auth/approle/login", move || Ok(refused.clone()));
    for number in 0..500 {
        let secret = kv2(&format!("s{number}"), "password");
        let error = world.fetch(&secret).await.unwrap_err();
        assert!(
            matches!(&error, FetchError::Denied(why) if why.contains("invalid role or secret ID")),
            "{error}"
        );
    }
    assert_eq!(world.server.asked().len(), 1);

    // They all wait, and the next try is again one.
    tokio::time::sleep(SECOND).await;
    world.fetch(&kv2("s0", "password")).await.unwrap_err();
    world.fetch(&kv2("other", "password")).await.unwrap_err();
    assert_eq!(world.server.asked().len(), 1);
}

/// A place whose login is over, and refused from now on.
async fn refused_later(world: &World) -> VaultSource {
    let source = world.source(&kv2("smtp", "password"));
    source.fetch().await.unwrap();
    world
        .server
        .on(|asked| asked.contains("| hvs.1 |").then(denied));
    let refused = serde_json::json!({ "errors": ["role is being changed"] });
    world
        .server
        .answer("POST auth/approle/login", move || Ok(status(400, &refused)));
    source
}

#[tokio::test(start_paused = true)]
async fn a_login_that_is_refused_for_a_moment_takes_nothing_away() {
    let world = World::new();
    let source = refused_later(&world).await;
    source.due().await;
    source.fetch().await.unwrap_err();
    // However long the waits between the tries turn out: none of them begins when the minute is over.
    let end = Instant::now() + MINUTE / 2;
    while let Ok(()) = tokio::time::timeout_at(end, source.due()).await {
        let error = source.fetch().await.unwrap_err();
        assert!(
            matches!(&error, FetchError::Outage(why) if why.contains("role is being changed")),
            "{error}"
        );
    }
    world.server.recover();
    source.due().await;
    assert_eq!(text(source.fetch().await).unwrap(), "hunter2");
}

#[tokio::test(start_paused = true)]
async fn a_login_that_stays_refused_takes_the_secrets_away() {
    let world = World::new();
    let source = refused_later(&world).await;
    let mut first = None;
    loop {
        source.due().await;
        match source.fetch().await {
            Ok(_) => {}
            Err(FetchError::Outage(_)) => {
                first.get_or_insert_with(Instant::now);
            }
            Err(error) => {
                assert!(matches!(error, FetchError::Denied(_)), "{error}");
                break;
            }
        }
    }
    let lasted = first.unwrap().elapsed();
    assert!(lasted >= MINUTE && lasted < 5 * MINUTE, "{lasted:?}");
}

#[tokio::test(start_paused = true)]
async fn a_login_without_a_token_is_denied() {
    let world = World::new();
    world
        .server
        .answer("POST auth/approle/login", || ok(&login("", 0)));
    let error = world.fetch(&kv2("smtp", "password")).await.unwrap_err();
    assert!(
        matches!(&error, FetchError::Denied(why) if why.contains("second factor")),
        "{error}"
    );

    let world = World::new();
    world
        .server
        .answer("POST auth/approle/login", || ok(&lookup(60)));
    let error = world.fetch(&kv2("smtp", "password")).await.unwrap_err();
    assert!(matches!(error, FetchError::Malformed(_)), "{error}");
}

/// When something was asked, in seconds from now on, for as long as `time`.
async fn when(world: &World, begin: &str, time: Duration) -> Vec<u64> {
    let began = Instant::now();
    let mut moments = Vec::new();
    while began.elapsed() < time {
        tokio::time::sleep(SECOND).await;
        let asked = world.server.asked();
        for _ in 0..Server::count(&asked, begin) {
            moments.push(began.elapsed().as_secs());
        }
    }
    moments
}

#[tokio::test(start_paused = true)]
async fn a_token_is_renewed_at_half_of_its_time_and_again() {
    let world = World::new();
    let _source = world.source(&kv2("smtp", "password"));
    world.fetch(&kv2("smtp", "password")).await.unwrap();
    let renewed = when(&world, "POST auth/token/renew-self", 3 * HOUR).await;
    assert!((5..=6).contains(&renewed.len()), "{renewed:?}");
    let mut before = 0;
    for moment in renewed {
        let after = moment - before;
        assert!((1600..=2000).contains(&after), "{after}");
        before = moment;
    }
}

#[tokio::test(start_paused = true)]
async fn a_token_that_cannot_be_renewed_much_longer_makes_room_for_another() {
    let world = World::new();
    let source = world.source(&kv2("smtp", "password"));
    source.fetch().await.unwrap();
    world.server.asked();
    // Its greatest age is near: half of an hour is not given any more.
    world
        .server
        .answer("POST auth/token/renew-self", || ok(&login("hvs.1", 600)));
    let logins = when(&world, "POST auth/approle/login", HOUR).await;
    let [moment] = logins[..] else {
        panic!("{logins:?}")
    };
    assert!((1620 + 270..=1980 + 332).contains(&moment), "{moment}");
    source.fetch().await.unwrap();
    let asked = world.server.asked();
    assert_eq!(
        Server::count(&asked, "GET secret/data/smtp | hvs.2"),
        1,
        "{asked:?}"
    );
    let asked = world.end().await.asked();
    // The one before is over by now.
    assert_eq!(asked, ["POST auth/token/revoke-self | hvs.2 | {}"]);
}

#[tokio::test(start_paused = true)]
async fn a_renewal_that_nobody_answers_is_tried_again_before_the_end() {
    let world = World::new();
    let _source = world.source(&kv2("smtp", "password"));
    world.fetch(&kv2("smtp", "password")).await.unwrap();
    world.server.answer("POST auth/token/renew-self", away);
    tokio::time::sleep(HOUR * 2 / 3).await;
    let tried = Server::count(&world.server.asked(), "POST auth/token/renew-self");
    assert!((3..=20).contains(&tried), "{tried}");
    world.server.recover();
    let renewed = when(&world, "POST auth/token/renew-self", 6 * MINUTE).await;
    assert_eq!(renewed.len(), 1, "{renewed:?}");
    let asked = world.end().await.asked();
    assert_eq!(asked, ["POST auth/token/revoke-self | hvs.1 | {}"]);
}

#[tokio::test(start_paused = true)]
async fn a_token_that_is_not_renewable_is_replaced_while_it_lives() {
    let world = World::new();
    world.server.on(|asked| {
        let mut body = login("hvs.batch", 1200);
        body["auth"]["renewable"] = false.into();
        asked
            .starts_with("POST auth/approle/login")
            .then(|| ok(&body))
    });
    let _source = world.source(&kv2("smtp", "password"));
    world.fetch(&kv2("smtp", "password")).await.unwrap();
    world.server.recover();
    world.server.asked();
    let logins = when(&world, "POST auth/approle/login", 1200 * SECOND).await;
    let [moment] = logins[..] else {
        panic!("{logins:?}")
    };
    assert!((540..=662).contains(&moment), "{moment}");
}

#[tokio::test(start_paused = true)]
async fn at_the_end_the_token_is_given_back_even_if_nobody_hears_it() {
    for reply in [empty(), denied(), away()] {
        let world = World::new();
        let source = world.source(&kv2("smtp", "password"));
        source.fetch().await.unwrap();
        world.server.asked();
        world
            .server
            .answer("POST auth/token/revoke-self", move || reply.clone());
        let asked = world.end().await.asked();
        assert_eq!(asked, ["POST auth/token/revoke-self | hvs.1 | {}"]);
    }
}

#[tokio::test(start_paused = true)]
async fn what_nobody_names_any_more_is_logged_out_of_after_a_while() {
    let world = World::new();
    let source = world.source(&kv2("smtp", "password"));
    source.fetch().await.unwrap();
    world.server.asked();
    drop(source);
    tokio::time::sleep(4 * MINUTE).await;
    assert!(world.server.asked().is_empty());
    // Whoever comes back in time finds it.
    let source = world.source(&kv2("smtp", "password"));
    tokio::time::sleep(10 * MINUTE).await;
    assert_eq!(world.vaults.shared.open().len(), 1);
    drop(source);
    tokio::time::sleep(8 * MINUTE).await;
    assert_eq!(
        world.server.asked(),
        ["POST auth/token/revoke-self | hvs.1 | {}"]
    );
    assert!(world.vaults.shared.open().is_empty());
    assert_eq!(
        world.fetch(&kv2("smtp", "password")).await.unwrap(),
        "hunter2"
    );
}
