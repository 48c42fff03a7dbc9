//! HTTP/2: `tests/vectors/downgrade.txt`, in frames that no library would send.

use super::table::{Row, rows, unescape};
use super::{Arrival, Stage, arrival, judge, marker, taken};
use crate::frames::{Answer, Fields, Frames};
use fender_tests::process::PATIENCE;
use fender_tests::{Client, Recorder};
use tokio::task::JoinSet;

const TABLE: &str = include_str!("../../../vectors/downgrade.txt");

struct Vector {
    name: &'static str,
    arrivals: Vec<Arrival>,
    /// What may be there instead.
    perhaps: Vec<Arrival>,
    answer: Answer,
    fields: Fields,
    trailers: Fields,
    data: Vec<u8>,
}

impl Vector {
    fn all() -> Vec<Self> {
        rows::<4>(TABLE).into_iter().map(Self::read).collect()
    }

    fn read(row: Row<4>) -> Self {
        let [name, outcome, _, fields] = row.columns;
        let (mut arrivals, mut perhaps, mut answer) = (Vec::new(), Vec::new(), None);
        for word in outcome.split(", ") {
            match (arrival(word), word) {
                (Some(arrival), _) => arrivals.push(arrival),
                (None, "marker") => answer = Some(Answer::Status(200)),
                (None, "reset") => answer = Some(Answer::Reset),
                (None, "closed") => answer = Some(Answer::Closed),
                (None, word) if word.ends_with(" perhaps") => {
                    perhaps.extend(word.strip_suffix(" perhaps").and_then(arrival));
                }
                (None, status) => answer = Some(Answer::Status(status.parse().unwrap())),
            }
        }
        let (mut head, mut trailers, mut without) = (Vec::new(), Vec::new(), Vec::new());
        for text in fields.split("; ") {
            match text.split_at(1) {
                ("-", name) => without.push(pair(name).0),
                ("+", trailer) => trailers.push(pair(trailer)),
                _ => head.push(pair(text)),
            }
        }
        without.extend(head.iter().map(|(name, _)| name.clone()));
        let defaults = [pair(":scheme https"), pair(":authority v")];
        let defaults = defaults
            .into_iter()
            .filter(|(name, _)| !without.contains(name));
        let fields = defaults.chain(head).collect();
        let answer = answer.unwrap_or_else(|| panic!("{name}: no end"));
        if answer != Answer::Closed {
            arrivals.push(marker());
            perhaps.extend((!perhaps.is_empty()).then(marker));
        }
        Self {
            name,
            arrivals,
            perhaps,
            answer,
            fields,
            trailers,
            data: row.bytes,
        }
    }
}

/// `name value`
fn pair(text: &str) -> (Vec<u8>, Vec<u8>) {
    let (name, value) = text.split_once(' ').unwrap_or((text, ""));
    (unescape(name), unescape(value))
}

#[test]
fn the_table_is_large_enough() {
    assert!(Vector::all().len() >= 80);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_disagrees_about_a_request_that_was_http2() {
    let stage = Stage::set();
    let mut acts = JoinSet::new();
    for (mut recorder, client) in stage.acts {
        acts.spawn(async move {
            let mut wrong = Vec::new();
            for vector in Vector::all() {
                if let Err(why) = run(&mut recorder, &client, &vector).await {
                    wrong.push(format!("{}, {}: {why}", recorder.name, vector.name));
                }
            }
            wrong
        });
    }
    let wrong = acts.join_all().await.concat();
    assert!(wrong.is_empty(), "{}:\n{}", wrong.len(), wrong.join("\n"));
}

async fn run(recorder: &mut Recorder, client: &Client, vector: &Vector) -> Result<(), String> {
    let conversation = tokio::time::timeout(PATIENCE, converse(client, vector));
    let (answer, after) = conversation
        .await
        .map_err(|_| "no answer in time".to_owned())?
        .map_err(|error| format!("{error:#}"))?;
    let mut taken = taken(recorder, vector.arrivals.len()).await;
    if !vector.perhaps.is_empty()
        && taken.len() < vector.perhaps.len()
        && taken[0].target != "/marker"
    {
        taken.extend(super::taken(recorder, 1).await);
    }
    let wrong = judge(recorder, &taken, &vector.arrivals);
    let wrong = wrong.filter(|_| {
        vector.perhaps.is_empty() || judge(recorder, &taken, &vector.perhaps).is_some()
    });
    if let Some(why) = wrong {
        return Err(format!("{why}; it was answered {answer:?}"));
    }
    let expected = match vector.answer {
        Answer::Closed => Answer::Closed,
        Answer::Status(_) | Answer::Reset => Answer::Status(200),
    };
    match (answer, after) == (vector.answer, expected) {
        true => Ok(()),
        false => Err(format!(
            "it was answered {answer:?}, and the marker {after:?}"
        )),
    }
}

/// The request on one stream and then the marker on another, and how each was answered.
async fn converse(client: &Client, vector: &Vector) -> anyhow::Result<(Answer, Answer)> {
    let mut frames = Frames::begin(client).await?;
    let ends = vector.data.is_empty() && vector.trailers.is_empty();
    frames.headers(1, &vector.fields, ends);
    if !vector.data.is_empty() {
        frames.data(1, &vector.data, vector.trailers.is_empty());
    }
    if !vector.trailers.is_empty() {
        frames.headers(1, &vector.trailers, true);
    }
    let answer = frames.answer(1).await?;
    if answer == Answer::Closed {
        return Ok((answer, answer));
    }
    let marker = [
        ":method GET",
        ":scheme https",
        ":authority v",
        ":path /marker",
    ]
    .map(pair);
    frames.headers(3, &marker, true);
    let after = frames.answer(3).await?;
    Ok((answer, after))
}
