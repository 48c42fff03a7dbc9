use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use fender_identity::tls::CaPin;
use fender_runtime::clock::Clock as _;
use tempfile::TempDir;
use tokio::sync::mpsc::UnboundedReceiver;

use super::*;
use crate::code::{EXIT_REFUSED, EXIT_TIMEOUT, EXIT_UNAVAILABLE};
use crate::proto::control::v1 as proto;
use crate::proto::control::v1::report::Kind;
use crate::testing::{Authority, Control, Heard, ORDERS, START, id, listener, snapshot};
use crate::token::JoinToken;

/// One sidecar's surroundings.
struct Bench {
    control: Arc<Control>,
    heard: UnboundedReceiver<Heard>,
    server: Drain,
    client: Drain,
    dir: TempDir,
    url: ControlUrl,
}

impl Bench {
    fn new() -> Self {
        let (control, heard) = Control::new();
        Self::with(control, heard)
    }

    fn with(control: Arc<Control>, heard: UnboundedReceiver<Heard>) -> Self {
        let server = Drain::new();
        let url = control.start(&server);
        let dir = tempfile::tempdir().unwrap();
        Self {
            control,
            heard,
            server,
            client: Drain::new(),
            dir,
            url,
        }
    }

    fn token(&self, token: &JoinToken) -> TokenFile {
        let path = self.dir.path().join("token");
        fs::write(&path, token.to_text().expose()).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        TokenFile::new(path)
    }

    fn state(&self) -> StateDir {
        StateDir::open(self.dir.path().join("state")).unwrap()
    }

    fn config(&self, token: Option<TokenFile>, state: Option<StateDir>) -> SessionConfig {
        SessionConfig {
            url: self.url.clone(),
            token,
            state,
            clock: self.control.clock.clone(),
            drain: self.client.clone(),
            version: "0.0.0-test",
            workload: None,
        }
    }

    async fn open(&self, config: SessionConfig) -> Result<Session, OpenError> {
        open(config, Deadline::after(Duration::from_secs(30))).await
    }

    /// A session that came to be with a good token.
    async fn joined(&self) -> Session {
        let token = self.token(&self.control.token(1, None));
        self.open(self.config(Some(token), None)).await.unwrap()
    }

    /// State as a sidecar leaves it behind.
    async fn stored(&self) {
        let token = self.token(&self.control.token(1, None));
        let session = self
            .open(self.config(Some(token), Some(self.state())))
            .await
            .unwrap();
        self.end(session).await;
    }

    async fn end(&self, session: Session) {
        drop(session);
        self.client.stop();
        self.client.drained().await;
    }

    /// Its next life.
    fn reborn(mut self) -> Self {
        self.client = Drain::new();
        self
    }

    /// The control plane dies.
    async fn kill(&self) {
        self.server.force();
        self.server.drained().await;
    }

    async fn hears<T>(&mut self, wanted: impl Fn(&Heard) -> Option<T>) -> T {
        loop {
            let heard = self.heard.recv().await.unwrap();
            if let Some(found) = wanted(&heard) {
                return found;
            }
        }
    }

    async fn ack(&mut self) -> u64 {
        self.hears(|heard| match heard {
            Heard::Report(Kind::Ack(ack)) => Some(ack.version),
            _ => None,
        })
        .await
    }

    async fn nack(&mut self) -> (u64, String) {
        self.hears(|heard| match heard {
            Heard::Report(Kind::Nack(nack)) => Some((nack.version, nack.reason.clone())),
            _ => None,
        })
        .await
    }
}

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
    assert!(matches!(error, OpenError::WrongWorkload { .. }));
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
async fn a_restart_with_state_needs_no_token() {
    let bench = Bench::new();
    bench.stored().await;
    let bench = bench.reborn();
    let session = bench
        .open(bench.config(None, Some(bench.state())))
        .await
        .unwrap();
    assert_eq!(session.snapshot.borrow().version, 1);
    assert_eq!(*session.link.borrow(), Link::Connected);
}

#[tokio::test(start_paused = true)]
async fn a_restart_while_the_control_plane_is_away_serves_what_was_stored_and_keeps_trying() {
    let bench = Bench::new();
    bench.stored().await;
    bench.kill().await;

    let mut bench = bench.reborn();
    let queue = listener();
    bench.url = format!("https://{}", queue.local_address())
        .parse()
        .unwrap();
    let mut session = bench
        .open(bench.config(None, Some(bench.state())))
        .await
        .unwrap();
    assert_eq!(session.snapshot.borrow().version, 1);
    assert!(matches!(*session.link.borrow(), Link::Lost { .. }));

    bench.control.push((&snapshot(2, &bench.control.ca)).into());
    let server = Drain::new();
    bench.control.serve(queue, &server);
    session
        .link
        .wait_for(|link| *link == Link::Connected)
        .await
        .unwrap();
    session
        .snapshot
        .wait_for(|snapshot| snapshot.version == 2)
        .await
        .unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_expired_certificate_renews_itself_with_its_key_within_the_grace() {
    let bench = Bench::new();
    bench.stored().await;
    let mut bench = bench.reborn();
    bench.control.clock.jump(Duration::from_secs(3 * 3600));
    let session = bench
        .open(bench.config(None, Some(bench.state())))
        .await
        .unwrap();
    let validity = session.svid.borrow().validity();
    assert!(validity.includes(bench.control.clock.now()));
    assert!(
        bench
            .hears(|heard| matches!(heard, Heard::Renew { by_proof: true }).then_some(true))
            .await
    );
}

#[tokio::test(start_paused = true)]
async fn beyond_the_grace_only_a_new_token_helps() {
    let bench = Bench::new();
    bench.stored().await;
    let bench = bench.reborn();
    bench.control.clock.jump(Duration::from_secs(26 * 3600));
    let error = bench
        .open(bench.config(None, Some(bench.state())))
        .await
        .unwrap_err();
    assert_eq!(
        (error.code(), error.exit_code()),
        (Some(Code::RenewalExpired), EXIT_REFUSED)
    );

    let token = bench.token(&bench.control.token(2, None));
    let session = bench
        .open(bench.config(Some(token), Some(bench.state())))
        .await
        .unwrap();
    assert!(
        session
            .svid
            .borrow()
            .validity()
            .includes(bench.control.clock.now())
    );
}

#[tokio::test(start_paused = true)]
async fn a_revoked_identity_does_not_serve_from_its_state() {
    let bench = Bench::new();
    bench.stored().await;
    let bench = bench.reborn();
    *bench.control.refuse_streams.lock().unwrap() = Some(Code::Revoked);
    let error = bench
        .open(bench.config(None, Some(bench.state())))
        .await
        .unwrap_err();
    assert_eq!(
        (error.code(), error.exit_code()),
        (Some(Code::Revoked), EXIT_REFUSED)
    );
}

#[tokio::test(start_paused = true)]
async fn a_token_is_not_spent_while_the_stored_identity_works() {
    let bench = Bench::new();
    bench.stored().await;
    let bench = bench.reborn();
    let file = bench.token(&bench.control.token(2, None));
    let config = bench.config(Some(file.clone()), Some(bench.state()));
    let _session = bench.open(config).await.unwrap();
    assert!(file.exists());
}

#[tokio::test(start_paused = true)]
async fn the_certificate_is_renewed_at_half_of_its_life_and_never_expires() {
    let bench = Bench::new();
    *bench.control.life.lock().unwrap() = Duration::from_secs(100);
    let mut session = bench.joined().await;
    for _ in 0..5 {
        let old = session.svid.borrow_and_update().clone();
        session.svid.changed().await.unwrap();
        let now = bench.control.clock.now().as_secs();
        let used = now - old.validity().not_before.as_secs();
        assert!((44..=57).contains(&used), "renewed after {used} s");
        assert_ne!(session.svid.borrow().serial(), old.serial());
    }
    // Every renewal moves the stream to a connection with the new certificate.
    assert_eq!(*session.link.borrow(), Link::Connected);
}

#[tokio::test(start_paused = true)]
async fn the_old_certificate_stays_while_renewal_fails_and_its_key_renews_it_after_expiry() {
    let mut bench = Bench::new();
    *bench.control.life.lock().unwrap() = Duration::from_secs(100);
    let mut session = bench.joined().await;
    *bench.control.refuse_renewals.lock().unwrap() = Some(Code::Unavailable);
    let first = session.svid.borrow_and_update().serial().clone();

    for by_proof in [false, true] {
        bench
            .hears(|heard| match heard {
                Heard::Renew { by_proof: seen } if *seen == by_proof => Some(()),
                _ => None,
            })
            .await;
        assert_eq!(*session.svid.borrow().serial(), first);
    }
    *bench.control.refuse_renewals.lock().unwrap() = None;
    session.svid.changed().await.unwrap();
    assert!(
        session
            .svid
            .borrow()
            .validity()
            .includes(bench.control.clock.now())
    );
    session
        .link
        .wait_for(|link| *link == Link::Connected)
        .await
        .unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_jump_of_the_wall_clock_renews_within_half_a_minute() {
    let bench = Bench::new();
    let mut session = bench.joined().await;
    let began = tokio::time::Instant::now();
    bench.control.clock.jump(Duration::from_secs(45 * 60));
    session.svid.borrow_and_update();
    session.svid.changed().await.unwrap();
    assert!(
        began.elapsed() <= Duration::from_secs(31),
        "{:?}",
        began.elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn a_new_snapshot_is_published_and_acknowledged() {
    let mut bench = Bench::new();
    let mut session = bench.joined().await;
    assert_eq!(bench.ack().await, 1);
    bench.control.push((&snapshot(2, &bench.control.ca)).into());
    session
        .snapshot
        .wait_for(|snapshot| snapshot.version == 2)
        .await
        .unwrap();
    assert_eq!(bench.ack().await, 2);
}

#[tokio::test(start_paused = true)]
async fn an_invalid_snapshot_is_refused_with_its_reason_but_what_it_says_about_trust_applies() {
    let mut bench = Bench::new();
    let mut session = bench.joined().await;

    let mut bad = proto::Snapshot::from(&snapshot(2, &bench.control.ca));
    bad.tls = None;
    bad.drain_millis = 1;
    bad.denied_serials = vec!["2a".to_owned()];
    bad.bundles[0].roots.push(Authority::new().root.to_vec());
    bench.control.push(bad);

    let (version, reason) = bench.nack().await;
    assert_eq!(version, 2);
    assert!(reason.contains("`tls`"), "{reason}");
    let snapshot = session.snapshot.borrow_and_update().clone();
    assert_eq!(snapshot.version, 1, "the old one stays");
    assert_eq!(snapshot.drain, Duration::from_secs(10));
    assert!(snapshot.denied.denies(&"2a".parse().unwrap()));
    assert_eq!(
        snapshot
            .bundles
            .get(&"acme.test".parse().unwrap())
            .unwrap()
            .roots()
            .len(),
        2
    );
}

#[tokio::test(start_paused = true)]
async fn a_refused_snapshot_forgives_nobody() {
    let mut bench = Bench::new();
    let session = bench.joined().await;
    let mut denying = proto::Snapshot::from(&snapshot(2, &bench.control.ca));
    denying.denied_serials = vec!["2a".to_owned()];
    bench.control.push(denying);
    while bench.ack().await != 2 {}

    let mut bad = proto::Snapshot::from(&snapshot(3, &bench.control.ca));
    bad.policies = None;
    bench.control.push(bad);
    assert_eq!(bench.nack().await.0, 3);
    assert!(
        session
            .snapshot
            .borrow()
            .denied
            .denies(&"2a".parse().unwrap())
    );
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_of_another_workload_is_refused() {
    let mut bench = Bench::new();
    let session = bench.joined().await;
    let mut other = proto::Snapshot::from(&snapshot(2, &bench.control.ca));
    other.identity = "spiffe://acme.test/ns/shop/sa/web".to_owned();
    bench.control.push(other);
    let (_, reason) = bench.nack().await;
    assert!(reason.contains("identity"), "{reason}");
    assert_eq!(session.snapshot.borrow().version, 1);
}

#[tokio::test(start_paused = true)]
async fn without_any_usable_snapshot_nothing_starts_and_the_reason_is_told() {
    let bench = Bench::new();
    let mut bad = proto::Snapshot::from(&snapshot(1, &bench.control.ca));
    bad.policies = None;
    bench.control.push(bad);
    let file = bench.token(&bench.control.token(1, None));
    let error = bench
        .open(bench.config(Some(file), None))
        .await
        .unwrap_err();
    assert_eq!(error.exit_code(), EXIT_UNAVAILABLE);
    assert!(format!("{error:?}").contains("policies"), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn a_control_plane_that_comes_back_is_found_and_told_again_what_is_in_use() {
    let mut bench = Bench::new();
    let queue = listener();
    let (first, second) = (Drain::new(), Drain::new());
    // Two lives of one address: the descriptor outlives the first server.
    let again = fender_runtime::listen::Listener::from_fd(duplicate(&queue)).unwrap();
    bench.url = bench.control.serve(queue, &first);
    let mut session = bench.joined().await;
    let report = Report::Credential {
        name: "shop/smtp".parse().unwrap(),
        generation: "g1".to_owned(),
    };
    session.reports.try_send(report).unwrap();
    let in_use = |heard: &Heard| match heard {
        Heard::Report(Kind::Credential(used)) => Some(used.generation.clone()),
        _ => None,
    };
    assert_eq!(bench.hears(in_use).await, "g1");

    first.force();
    first.drained().await;
    session
        .link
        .wait_for(|link| matches!(link, Link::Lost { .. }))
        .await
        .unwrap();
    assert_eq!(
        session.snapshot.borrow().version,
        1,
        "an outage changes nothing"
    );

    bench.control.serve(again, &second);
    session
        .link
        .wait_for(|link| *link == Link::Connected)
        .await
        .unwrap();
    let hello = |heard: &Heard| match heard {
        Heard::Report(Kind::Hello(hello)) if hello.snapshot_version == 1 => Some(()),
        _ => None,
    };
    bench.hears(hello).await;
    assert_eq!(bench.hears(in_use).await, "g1");
}

fn duplicate(listener: &fender_runtime::listen::Listener) -> std::os::fd::OwnedFd {
    use std::os::fd::AsFd as _;
    listener.as_fd().try_clone_to_owned().unwrap()
}

fn value(text: &str, generation: &str) -> proto::CredentialValue {
    use proto::credential_value::State;
    proto::CredentialValue {
        state: Some(State::Value(proto::Secret {
            value: text.as_bytes().to_vec(),
            generation: generation.to_owned(),
        })),
    }
}

fn shown(state: &CredentialState) -> Option<(String, String)> {
    match state {
        CredentialState::Value { value, generation } => {
            Some((value.expose_str().unwrap().to_owned(), generation.clone()))
        }
        CredentialState::Pending
        | CredentialState::Withdrawn(_)
        | CredentialState::Unavailable(_) => None,
    }
}

#[tokio::test(start_paused = true)]
async fn a_credential_follows_its_source_and_survives_an_outage() {
    let bench = Bench::new();
    bench.control.credential.send_replace(value("one", "1"));
    let session = bench.joined().await;
    let mut credential = session.watch_credential(&"shop/smtp".parse().unwrap());
    let one = credential
        .wait_for(|state| shown(state).is_some())
        .await
        .unwrap()
        .clone();
    assert_eq!(shown(&one).unwrap(), ("one".to_owned(), "1".to_owned()));
    assert!(!format!("{one:?}").contains("one"));

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
