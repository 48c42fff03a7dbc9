use super::*;

const APP: u32 = 1000;
const OTHER: u32 = 1001;

fn named(name: &str) -> ServedName {
    name.parse().unwrap()
}

fn to(name: &str, users: &[u32]) -> Audience {
    let users: Vec<_> = users.iter().map(ToString::to_string).collect();
    let name = named(name);
    Audience {
        users: vec![Handed::new(&SocketDelivery { name, users }).unwrap()],
        readers: Vec::new(),
    }
}

fn put(offer: &Offer, to: &Audience, text: &str) -> Change {
    let value = Secret::from(text.to_owned());
    offer.put(to, &value, &Generation::named(text)).unwrap()
}

/// What the user is told, or given.
fn asks(handovers: &Handovers, user: u32, name: &str) -> String {
    match handovers.look_up(user, &named(name)).unwrap() {
        (Answer::Here { length, .. }, Some(file)) => {
            let value = super::super::sealed::read(file, length).unwrap();
            value.expose_str().unwrap().to_owned()
        }
        (answer, None) => format!("({answer})"),
        (answer, Some(_)) => panic!("{answer} with a descriptor"),
    }
}

#[test]
fn attack_one_that_is_not_for_this_user_looks_as_one_that_is_not_there() {
    let handovers = Handovers::default();
    let offer = handovers.offer(&"shop/smtp".parse().unwrap());
    put(&offer, &to("smtp", &[APP]), "s3cret");
    assert_eq!(asks(&handovers, APP, "smtp"), "s3cret");
    for user in [0, OTHER, OVERFLOW_USER, u32::MAX] {
        let theirs = handovers.look_up(user, &named("smtp")).unwrap();
        let nobodys = handovers.look_up(user, &named("nothing")).unwrap();
        assert_eq!(theirs.0, nobodys.0);
        assert!(theirs.1.is_none() && !handovers.know(user));
    }
    assert!(handovers.know(APP));
}

#[test]
fn who_took_what_is_known_for_those_who_are_named_and_one_line_each() {
    let handovers = Handovers::default();
    let credential: ObjectName = "shop/smtp".parse().unwrap();
    let offer = handovers.offer(&credential);
    put(&offer, &to("smtp", &[APP, OTHER]), "one");
    let taken = handovers.takings();
    let lines = || {
        let taken = taken.borrow();
        let by = taken.get(&credential).into_iter().flatten();
        by.map(|(who, taking)| (who.clone(), taking.generation.to_string()))
            .collect::<Vec<_>>()
    };
    let takes = |user, generation: &str| {
        handovers.took_at_socket(user, &named("smtp"), &Generation::named(generation));
    };
    // Who is nobody to a document leaves no line, however often.
    takes(77, "one");
    assert_eq!(lines(), []);
    for _ in 0..3 {
        takes(APP, "one");
        takes(OTHER, "one");
    }
    put(&offer, &to("smtp", &[APP, OTHER]), "two");
    takes(APP, "two");
    let [app, other] = [APP, OTHER].map(Consumer::User);
    let expected = [(app.clone(), "two".to_owned()), (other, "one".to_owned())];
    assert_eq!(lines(), expected);
    // Withdrawn: they took it all the same.
    offer.withdraw();
    assert_eq!(lines().len(), 2);
    put(&offer, &to("smtp", &[APP]), "two");
    assert_eq!(lines(), [(app, "two".to_owned())]);
    drop(offer);
    assert_eq!(lines(), []);
}

#[test]
fn what_is_withdrawn_or_dropped_is_handed_over_no_more() {
    let handovers = Handovers::default();
    let offer = handovers.offer(&"shop/smtp".parse().unwrap());
    let app = to("smtp", &[APP]);
    offer.follow(app.clone(), false);
    assert_eq!(asks(&handovers, APP, "smtp"), "(waiting)");
    put(&offer, &app, "one");
    offer.withdraw();
    assert_eq!(asks(&handovers, APP, "smtp"), "(withdrawn)");
    assert_eq!(put(&offer, &app, "one"), Change::Written, "it came back");
    assert_eq!(asks(&handovers, APP, "smtp"), "one");
    assert_eq!(put(&offer, &app, "one"), Change::Unchanged);
    drop(offer);
    assert_eq!(asks(&handovers, APP, "smtp"), "(missing)");
    assert!(!handovers.know(APP));
}

#[test]
fn attack_who_was_named_anew_gets_nothing_of_another_source_and_who_is_named_no_more_nothing_at_once()
 {
    let handovers = Handovers::default();
    let offer = handovers.offer(&"shop/smtp".parse().unwrap());
    put(&offer, &to("smtp", &[APP, OTHER]), "old");
    // The same source: in force at once.
    offer.follow(to("smtp", &[APP]), true);
    assert_eq!(asks(&handovers, OTHER, "smtp"), "(missing)");
    assert_eq!(asks(&handovers, APP, "smtp"), "old");
    offer.follow(to("smtp", &[APP, OTHER]), true);
    assert_eq!(asks(&handovers, OTHER, "smtp"), "old");
    // Another: the old value stays with those who had it and still may.
    let both = to("smtp", &[OTHER, 7]);
    offer.follow(both.clone(), false);
    assert_eq!(asks(&handovers, APP, "smtp"), "(missing)");
    assert_eq!(asks(&handovers, 7, "smtp"), "(missing)");
    assert_eq!(asks(&handovers, OTHER, "smtp"), "old");
    put(&offer, &both, "new");
    assert_eq!(asks(&handovers, 7, "smtp"), "new");
    // Under another name there is nothing of the old source either.
    offer.follow(to("mail", &[7]), false);
    assert_eq!(asks(&handovers, 7, "smtp"), "(missing)");
    assert_eq!(asks(&handovers, 7, "mail"), "(missing)");
}

#[tokio::test(start_paused = true)]
async fn a_value_is_handed_over_until_it_is_too_old_with_its_age() {
    let handovers = Handovers::default();
    let offer = handovers.offer(&"shop/smtp".parse().unwrap());
    let app = to("smtp", &[APP]);
    put(&offer, &app, "one");
    let since = Instant::now();
    let too_old = since + Duration::from_secs(60);
    offer.age(Some(since), Some(too_old));
    tokio::time::advance(Duration::from_secs(59)).await;
    let (answer, _) = handovers.look_up(APP, &named("smtp")).unwrap();
    assert_eq!(answer.to_string(), "ok one 3 59");
    // A newer one that is not the newest either does not begin anew.
    put(&offer, &app, "two");
    tokio::time::advance(Duration::from_secs(1)).await;
    assert_eq!(asks(&handovers, APP, "smtp"), "(outdated)");
    offer.age(None, None);
    assert_eq!(asks(&handovers, APP, "smtp"), "two");
}

#[test]
fn attack_the_user_that_may_be_anybody_is_meant_only_by_its_number() {
    let by = |user: &str| {
        Handed::new(&SocketDelivery {
            name: named("smtp"),
            users: vec![user.to_owned()],
        })
    };
    let error = by("nobody").unwrap_err().to_string();
    assert!(
        error.contains("`nobody`") && error.contains("65534"),
        "{error}"
    );
    assert!(by("65534").unwrap().users.contains(&OVERFLOW_USER));
    let error = by("no-such-user").unwrap_err().to_string();
    assert!(
        error.contains("`no-such-user`") && error.contains("`smtp`"),
        "{error}"
    );
    assert!(by("4294967295").is_err());
}

#[test]
fn answers_are_counted_by_their_word() {
    let handovers = Handovers::default();
    handovers.count(&Answer::Refused(Refusal::Malformed));
    let counts = handovers.counts();
    assert_eq!(counts.last(), Some(&("malformed", 1)));
    let words: Vec<_> = counts.into_iter().map(|(word, _)| word).collect();
    assert_eq!(words, Handovers::answers());
}
