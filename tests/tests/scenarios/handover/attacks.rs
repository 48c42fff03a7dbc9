//! Whoever is not named, and whoever is and does more than ask.

use super::*;

#[test]
fn attack_another_user_gets_nothing_and_does_not_learn_what_there_is() {
    let counter = Counter::new("others");
    let _sidecar = counter.start();
    // Named for something else: as if there were none.
    let (code, out, theirs) = counter.get(JOB, "smtp");
    assert_eq!((code, out.as_str()), (66, ""));
    let (code, _, nobodys) = counter.get(JOB, "nothing");
    assert_eq!(code, 66);
    assert_eq!(theirs, nobodys.replace("nothing", "smtp"));
    // Named nowhere, root among them: nothing at all.
    for user in [STRANGER, SIDECAR, 65_534, 0] {
        for name in ["smtp", "nothing"] {
            let (code, out, err) = counter.get(user, name);
            assert_eq!((code, out.as_str()), (77, ""), "{user} {name}: {err}");
        }
    }
    // A user that a document no longer names is nobody from then on.
    counter.configure_for(&[JOB], "");
    counter.reload();
    wait_until("the app is nobody any more", PATIENCE, || {
        counter.get(APP, "smtp").0 == 77
    });
    assert_eq!(counter.get(JOB, "smtp").1, CANARY);
    assert!(!counter.log().contains(CANARY));
}

#[test]
fn attack_what_is_handed_over_cannot_be_changed_by_who_has_it() {
    let counter = Counter::new("tamper");
    let _sidecar = counter.start();
    let (code, out, err) = counter.client(APP, &["tamper", "smtp"]);
    assert_eq!(code, 0, "{out}{err}");
    assert!(!out.contains("SUCCEEDED"), "{out}");
    assert_eq!(out.lines().count(), 9, "{out}");
    assert_eq!(counter.get(APP, "smtp").1, CANARY);
}

#[test]
fn attack_one_user_who_takes_no_answer_keeps_nobody_else_from_theirs() {
    let counter = Counter::new("hoard");
    let _sidecar = counter.start();
    let (hoarder, line) = Client::start(&mut counter.script(APP, &["hoard", "smtp"]));
    assert_eq!(line, "holds 16\n");
    let busy = counter.get(APP, "smtp");
    assert_eq!((busy.0, busy.1.as_str()), (69, ""), "{busy:?}");
    assert_eq!(counter.get(JOB, "report.key").1, "for the job alone");
    drop(hoarder);
    wait_until("it has its share back", PATIENCE, || {
        counter.get(APP, "smtp").1 == CANARY
    });
}

#[test]
fn attack_a_name_that_somebody_has_taken_ends_the_start_and_hears_nothing() {
    let counter = Counter::new("squat");
    let mut script = counter.script(STRANGER, &["squat"]);
    let (mut squatter, line) = Client::start(&mut script);
    assert_eq!(line, "listens\n");
    let mut sidecar = counter.begin(|_| {});
    assert_eq!(sidecar.wait(PATIENCE).code(), Some(69), "{}", counter.log());
    let log = counter.log();
    let holder = format!(
        "process {} of user {STRANGER} has taken this name",
        squatter.0.id()
    );
    assert!(
        log.contains(&holder) && log.contains("--credentials-socket"),
        "{log}"
    );
    // Who asks there says nothing either: the user is not the sidecar's.
    let refused = counter.get(APP, "smtp");
    assert_eq!((refused.0, refused.1.as_str()), (77, ""), "{refused:?}");
    let mut heard = String::new();
    let mut output = BufReader::new(squatter.0.stdout.take().unwrap());
    // The sidecar's own look at who it is, and the client's.
    for _ in 0..2 {
        output.read_line(&mut heard).unwrap();
    }
    assert_eq!(heard, "heard b''\nheard b''\n");
}

#[test]
fn attack_the_sidecars_own_memory_and_descriptors_are_nobodys() {
    let counter = Counter::new("proc");
    let sidecar = counter.start();
    assert_eq!(counter.get(APP, "smtp").1, CANARY);
    let own = format!("/proc/{}", sidecar.pid());
    let looks = [
        format!("cat {own}/environ"),
        format!("ls {own}/fd"),
        format!("cat {own}/maps"),
        format!("head -c 1 {own}/mem"),
        format!("cat {own}/fd/*"),
    ];
    // Its own user as well: another process of it is another program.
    for user in [APP, STRANGER, SIDECAR] {
        for look in &looks {
            let mut command = counter.command(user);
            let (code, out, err) = run(command.args(["sh", "-c", look]));
            assert!(
                code != 0 && out.is_empty() && err.contains("Permission denied"),
                "user {user}, {look}: {code} {out} {err}"
            );
        }
    }
    let arguments = fs::read(format!("{own}/cmdline")).unwrap();
    assert!(!String::from_utf8_lossy(&arguments).contains(CANARY));
}

#[test]
fn attack_a_user_of_another_namespace_is_nobody() {
    let counter = Counter::new("userns");
    // In the sidecar's namespace root alone has a number; whoever else is outside looks like one and the same user.
    counter.configure_for(&[0, 1000, APP], "");
    let mut command = Command::new(installed("unshare"));
    command
        .env_clear()
        .args(["--user", "--map-root-user", "--"])
        .args(counter.arguments());
    counter.give_all(0);
    let mut sidecar = Process::start("sidecar", &mut command, &counter.path("log"));
    sidecar.wait_ready(&counter.path("run/admin.sock"));
    let root = counter.get_by(0, &["smtp"]);
    assert_eq!(root.1, CANARY, "{root:?}");
    for user in [APP, JOB, STRANGER, 65_534] {
        let (code, out, err) = counter.get_by(user, &["smtp"]);
        assert_eq!((code, out.as_str()), (77, ""), "{user}: {err}");
    }
    assert!(counter.log().contains("user=65534"), "{}", counter.log());
}
