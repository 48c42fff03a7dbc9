use super::*;

async fn refused_with(refusal: Option<Code>, code: Code) {
    let bench = Bench::new();
    let file = bench.token(&bench.control.token(1, refusal));
    let error = bench
        .open(bench.config(Some(file.clone()), None))
        .await
        .unwrap_err();
    assert_eq!(error.code(), Some(code), "{error:?}");
    assert_eq!(error.exit_code(), EXIT_REFUSED);
    assert!(
        file.exists(),
        "a refused token is left for the operator to look at"
    );
}

#[tokio::test(start_paused = true)]
async fn a_good_token_brings_a_certificate_and_a_snapshot_and_is_deleted() {
    let mut bench = Bench::new();
    let file = bench.token(&bench.control.token(1, None));
    let state = bench.state();
    let session = bench
        .open(bench.config(Some(file.clone()), Some(state)))
        .await
        .unwrap();

    assert_eq!(*session.svid.borrow().id(), id(ORDERS));
    assert_eq!(session.snapshot.borrow().version, 1);
    assert_eq!(*session.link.borrow(), Link::Connected);
    assert_eq!(session.renewal_grace(), Duration::from_secs(24 * 3600));
    assert!(!file.exists());
    assert_eq!(bench.ack().await, 1);
    let state = bench.dir.path().join("state");
    assert!(!state.join("pending.key").exists());
    for file in fs::read_dir(&state).unwrap() {
        let file = file.unwrap();
        assert_eq!(
            file.metadata().unwrap().permissions().mode() & 0o777,
            0o600,
            "{file:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_token_that_was_used_before_is_refused() {
    refused_with(Some(Code::TokenSpent), Code::TokenSpent).await;
}

#[tokio::test(start_paused = true)]
async fn an_expired_token_is_refused() {
    refused_with(Some(Code::TokenExpired), Code::TokenExpired).await;
}

#[tokio::test(start_paused = true)]
async fn a_token_used_twice_with_two_keys_is_refused() {
    let bench = Bench::new();
    let token = bench.control.token(1, None);
    let first = bench
        .open(bench.config(Some(bench.token(&token)), None))
        .await
        .unwrap();
    let again = bench
        .open(bench.config(Some(bench.token(&token)), None))
        .await
        .unwrap_err();
    assert_eq!(again.code(), Some(Code::TokenSpent));
    drop(first);
}

#[tokio::test(start_paused = true)]
async fn a_forged_token_is_refused() {
    let bench = Bench::new();
    let file = bench.token(&bench.control.unknown_token(ORDERS, 9));
    let error = bench
        .open(bench.config(Some(file), None))
        .await
        .unwrap_err();
    assert_eq!(
        (error.code(), error.exit_code()),
        (Some(Code::TokenUnknown), EXIT_REFUSED)
    );
}

#[tokio::test(start_paused = true)]
async fn a_token_with_another_identity_written_into_it_is_refused() {
    let bench = Bench::new();
    bench.control.token(1, None);
    let other = bench
        .control
        .unknown_token("spiffe://acme.test/ns/shop/sa/billing", 1);
    let error = bench
        .open(bench.config(Some(bench.token(&other)), None))
        .await
        .unwrap_err();
    assert_eq!(
        (error.code(), error.exit_code()),
        (Some(Code::TokenWrongIdentity), EXIT_REFUSED)
    );
}

#[tokio::test(start_paused = true)]
async fn a_token_for_another_workload_than_the_operator_expects_is_not_even_spent() {
    let mut bench = Bench::new();
    let file = bench.token(&bench.control.token(1, None));
    let config = SessionConfig {
        workload: Some("shop/billing".parse().unwrap()),
        ..bench.config(Some(file), None)
    };
    let error = bench.open(config).await.unwrap_err();
    assert!(matches!(error, OpenError::WrongIdentity { .. }));
    assert_eq!(error.exit_code(), EXIT_REFUSED);
    assert!(
        bench.heard.try_recv().is_err(),
        "the control plane was never asked"
    );
}

#[tokio::test(start_paused = true)]
async fn a_server_with_another_root_than_the_pinned_one_never_sees_the_token() {
    let mut bench = Bench::new();
    let token = JoinToken::new(
        id(ORDERS),
        vec![CaPin::of(&Authority::new().root)],
        bench.control.token(1, None).secret().clone(),
    );
    let file = bench.token(&token.unwrap());
    let error = bench
        .open(bench.config(Some(file), None))
        .await
        .unwrap_err();
    assert_eq!(
        (error.code(), error.exit_code()),
        (Some(Code::CaPinMismatch), EXIT_REFUSED)
    );
    assert!(
        bench.heard.try_recv().is_err(),
        "the token was shown to a stranger"
    );
}

#[tokio::test(start_paused = true)]
async fn a_workload_of_the_mesh_cannot_pass_for_the_control_plane() {
    let (control, heard) = Control::presenting(&id("spiffe://acme.test/ns/shop/sa/web"));
    let mut bench = Bench::with(control, heard);
    let file = bench.token(&bench.control.token(1, None));
    let error = bench
        .open(bench.config(Some(file), None))
        .await
        .unwrap_err();
    assert_eq!(
        (error.code(), error.exit_code()),
        (Some(Code::ControlNotVerified), EXIT_REFUSED)
    );
    assert!(
        bench.heard.try_recv().is_err(),
        "the token was shown to a workload"
    );
}

#[tokio::test(start_paused = true)]
async fn a_lost_answer_is_asked_for_again_with_the_same_key() {
    let mut bench = Bench::new();
    *bench.control.lose_answers.lock().unwrap() = 2;
    let _session = bench.joined().await;
    let mut keys = Vec::new();
    while let Ok(Heard::Attest { spki }) = bench.heard.try_recv() {
        keys.push(spki);
    }
    assert_eq!(keys.len(), 3);
    assert!(keys.iter().all(|key| *key == keys[0]));
}

#[tokio::test(start_paused = true)]
async fn a_crash_before_the_answer_does_not_cost_the_token() {
    let bench = Bench::new();
    let token = bench.control.token(1, None);
    *bench.control.lose_answers.lock().unwrap() = u32::MAX;
    let state = bench.state();
    let error = bench
        .open(bench.config(Some(bench.token(&token)), Some(state)))
        .await
        .unwrap_err();
    assert_eq!(error.exit_code(), EXIT_UNAVAILABLE);

    *bench.control.lose_answers.lock().unwrap() = 0;
    let state = bench.state();
    let session = bench
        .open(bench.config(Some(bench.token(&token)), Some(state)))
        .await
        .unwrap();
    assert_eq!(*session.svid.borrow().id(), id(ORDERS));
}

#[tokio::test(start_paused = true)]
async fn a_certificate_for_another_identity_is_not_taken() {
    let bench = Bench::new();
    let other = id("spiffe://acme.test/ns/shop/sa/web");
    *bench.control.issue_for.lock().unwrap() = Some(other);
    let file = bench.token(&bench.control.token(1, None));
    let error = bench
        .open(bench.config(Some(file.clone()), None))
        .await
        .unwrap_err();
    assert_eq!(error.code(), Some(Code::AnswerInvalid), "{error:?}");
    assert!(file.exists());
}

#[tokio::test(start_paused = true)]
async fn without_a_control_plane_and_without_state_nothing_starts() {
    let bench = Bench::new();
    bench.kill().await;
    let file = bench.token(&bench.control.token(1, None));
    let error = bench
        .open(bench.config(Some(file), None))
        .await
        .unwrap_err();
    assert_eq!(error.exit_code(), EXIT_UNAVAILABLE);
}

#[tokio::test(start_paused = true)]
async fn without_token_and_state_the_error_says_what_to_give() {
    let bench = Bench::new();
    let error = bench.open(bench.config(None, None)).await.unwrap_err();
    assert_eq!(error.exit_code(), EXIT_USAGE);
    assert!(error.to_string().contains("--token-file"));
}

#[tokio::test(start_paused = true)]
async fn a_server_that_never_answers_is_a_timeout() {
    let mut bench = Bench::new();
    // Accepted by the kernel, answered by nobody.
    let silent = listener();
    bench.url = format!("https://{}", silent.local_address())
        .parse()
        .unwrap();
    let file = bench.token(&bench.control.token(1, None));
    let error = bench
        .open(bench.config(Some(file), None))
        .await
        .unwrap_err();
    assert_eq!(error.exit_code(), EXIT_TIMEOUT, "{error:?}");
    assert!(bench.control.clock.now().as_secs() - START <= 31);
}
