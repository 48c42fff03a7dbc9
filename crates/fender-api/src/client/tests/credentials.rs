use fender_identity::Secret;

use super::*;
use crate::client::credential;

fn value(text: &str, generation: &str) -> proto::CredentialValue {
    use proto::credential_value::State;
    proto::CredentialValue {
        state: Some(State::Value(proto::Secret {
            value: text.as_bytes().to_vec(),
            generation: generation.to_owned(),
            outdated: String::new(),
            lasting: true,
        })),
    }
}

/// Why it may not be the newest.
fn outdated(state: &CredentialState) -> Option<&str> {
    match state {
        CredentialState::Value { outdated, .. } => outdated.as_deref(),
        CredentialState::Pending
        | CredentialState::Withdrawn(_)
        | CredentialState::Unavailable(_) => None,
    }
}

fn shown(state: &CredentialState) -> Option<(String, String)> {
    match state {
        CredentialState::Value {
            value, generation, ..
        } => Some((value.expose_str().unwrap().to_owned(), generation.clone())),
        CredentialState::Pending
        | CredentialState::Withdrawn(_)
        | CredentialState::Unavailable(_) => None,
    }
}

#[tokio::test(start_paused = true)]
async fn a_credential_follows_its_source_and_survives_an_outage() {
    let bench = Bench::new();
    bench.control.credential.send_replace(value("hunter2", "1"));
    let session = bench.joined().await;
    let mut credential = session.watch_credential(&"shop/smtp".parse().unwrap());
    let one = credential
        .wait_for(|state| shown(state).is_some())
        .await
        .unwrap()
        .clone();
    assert_eq!(shown(&one).unwrap(), ("hunter2".to_owned(), "1".to_owned()));
    assert!(!format!("{one:?}").contains("hunter2"));

    bench.control.credential.send_replace(value("two", "2"));
    credential
        .wait_for(|state| shown(state).is_some_and(|(value, _)| value == "two"))
        .await
        .unwrap();

    let mut link = session.link.clone();
    bench.kill().await;
    link.wait_for(|link| matches!(link, Link::Lost { .. }))
        .await
        .unwrap();
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(shown(&credential.borrow()).unwrap().0, "two");
    assert!(outdated(&credential.borrow()).is_some());
}

/// DESIGN §9: whoever has a value knows how old it is, whoever of those between cannot ask.
#[tokio::test(start_paused = true)]
async fn a_value_that_the_control_plane_cannot_refresh_says_so_until_it_can() {
    let bench = Bench::new();
    bench.control.credential.send_replace(value("one", "1"));
    let session = bench.joined().await;
    let mut credential = session.watch_credential(&"shop/smtp".parse().unwrap());
    for why in [None, Some("away"), Some("still away"), None] {
        let mut said = value("one", "1");
        if let Some(proto::credential_value::State::Value(secret)) = &mut said.state {
            secret.outdated = why.unwrap_or_default().to_owned();
        }
        bench.control.credential.send_replace(said);
        let heard = credential
            .wait_for(|state| shown(state).is_some() && outdated(state) == why)
            .await
            .unwrap();
        assert_eq!(shown(&heard).unwrap(), ("one".to_owned(), "1".to_owned()));
    }
}

#[tokio::test(start_paused = true)]
async fn a_credential_that_is_withdrawn_is_not_an_outage() {
    let bench = Bench::new();
    bench.control.credential.send_replace(value("one", "1"));
    let session = bench.joined().await;
    let mut credential = session.watch_credential(&"shop/smtp".parse().unwrap());
    credential
        .wait_for(|state| shown(state).is_some())
        .await
        .unwrap();
    bench
        .control
        .credential
        .send_replace(proto::CredentialValue {
            state: Some(proto::credential_value::State::Withdrawn("gone".to_owned())),
        });
    credential
        .wait_for(|state| matches!(state, CredentialState::Withdrawn(_)))
        .await
        .unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_credential_of_somebody_else_is_withheld() {
    let bench = Bench::new();
    let session = bench.joined().await;
    let mut credential = session.watch_credential(&"shop/other".parse().unwrap());
    credential
        .wait_for(|state| matches!(state, CredentialState::Withdrawn(_)))
        .await
        .unwrap();
}

/// The stream of a credential ends with the certificate of its connection; that says nothing about the credential.
#[tokio::test(start_paused = true)]
async fn a_credential_outlives_the_certificates_it_came_with() {
    let bench = Bench::new();
    *bench.control.life.lock().unwrap() = Duration::from_secs(100);
    bench.control.credential.send_replace(value("one", "1"));
    let session = bench.joined().await;
    let mut credential = session.watch_credential(&"shop/smtp".parse().unwrap());
    credential
        .wait_for(|state| shown(state).is_some())
        .await
        .unwrap();

    // Through renewals, and through a time in which the certificate expires.
    for refusal in [None, Some(Code::Unavailable), None] {
        *bench.control.refuse_renewals.lock().unwrap() = refusal;
        tokio::select! {
            () = tokio::time::sleep(Duration::from_secs(500)) => {}
            lost = credential.wait_for(|state| shown(state).is_none()) => {
                panic!("the value was taken away: {:?}", lost.map(|state| state.clone()));
            }
        }
    }
    bench.control.credential.send_replace(value("two", "2"));
    credential
        .wait_for(|state| shown(state).is_some_and(|(value, _)| value == "two"))
        .await
        .unwrap();
}

#[test]
fn only_the_word_that_it_is_gone_or_not_ours_takes_a_value_away() {
    for &code in Code::ALL {
        let value = Secret::new(b"one".to_vec());
        let state = watch::Sender::new(CredentialState::Value {
            value,
            generation: "1".into(),
            outdated: None,
            lasting: true,
        });
        let error = CallError::Answered {
            code,
            reason: String::new(),
        };
        credential::Worker {
            name: "shop/smtp".parse().unwrap(),
            state: &state,
        }
        .failed(&error);
        let taken = shown(&state.borrow()).is_none();
        let gone = [
            Code::NotFound,
            Code::Denied,
            Code::IdentityUnknown,
            Code::Revoked,
        ];
        assert_eq!(taken, gone.contains(&code), "{code}");
    }
}
