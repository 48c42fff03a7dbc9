//! HTTP/1: `tests/vectors/smuggling.txt`, each row followed by a marker on the same connection.

use fender_tests::{Client, Recorder};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;

use super::table::{rows, unescape};
use super::{Arrival, Stage, arrival, judge, marker, taken};

const TABLE: &str = include_str!("../../../vectors/smuggling.txt");
const MARKER: &[u8] = b"GET /marker HTTP/1.1\r\nHost: v\r\n\r\n";

/// What becomes of a connection when the marker comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    Marker,
    Close,
    Refused(u16),
    RefusedKept(u16),
    Cut,
}

struct Vector {
    name: &'static str,
    arrivals: Vec<Arrival>,
    ending: Ending,
    bytes: Vec<u8>,
}

impl Vector {
    fn all() -> Vec<Self> {
        let read = |row: super::table::Row<3>| {
            let [name, outcome, _] = row.columns;
            let outcome = String::from_utf8(unescape(outcome)).unwrap();
            let (mut arrivals, mut ending) = (Vec::new(), None);
            for word in outcome.split(", ") {
                assert!(ending.is_none(), "{name}: something follows the end");
                match arrival(word) {
                    Some(arrival) => arrivals.push(arrival),
                    None => ending = Some(Ending::parse(word)),
                }
            }
            let ending = ending.unwrap_or_else(|| panic!("{name}: no end"));
            if matches!(ending, Ending::Marker | Ending::RefusedKept(_)) {
                arrivals.push(marker());
            }
            Self {
                name,
                arrivals,
                ending,
                bytes: row.bytes,
            }
        };
        rows::<3>(TABLE).into_iter().map(read).collect()
    }

    /// The statuses of all answers, the marker's included.
    fn statuses(&self) -> Vec<u16> {
        let mut statuses = vec![200; self.arrivals.len()];
        match self.ending {
            Ending::Refused(status) => statuses.push(status),
            Ending::RefusedKept(status) => statuses.insert(statuses.len() - 1, status),
            Ending::Marker | Ending::Close | Ending::Cut => {}
        }
        statuses
    }
}

impl Ending {
    fn parse(word: &str) -> Self {
        let status = |text: &str| {
            text.parse()
                .unwrap_or_else(|_| panic!("`{text}` is no end"))
        };
        match word {
            "marker" => Self::Marker,
            "close" => Self::Close,
            "cut" => Self::Cut,
            _ => match word.strip_suffix(" kept") {
                Some(word) => Self::RefusedKept(status(word)),
                None => Self::Refused(status(word)),
            },
        }
    }
}

#[test]
fn the_table_is_large_enough() {
    assert!(Vector::all().len() >= 240);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_disagrees_about_where_a_request_ends() {
    let stage = Stage::set();
    let mut acts = JoinSet::new();
    for (mut recorder, client) in stage.acts {
        acts.spawn(async move {
            let mut wrong = Vec::new();
            for vector in Vector::all() {
                // In one piece with the marker, and in pieces that end anywhere.
                for cut in [usize::MAX, 7] {
                    if vector.bytes.len() > 4096 && cut == 7 {
                        continue;
                    }
                    if let Err(why) = run(&mut recorder, &client, &vector, cut).await {
                        wrong.push(format!("{}, {} ({cut}): {why}", recorder.name, vector.name));
                    }
                }
            }
            // Nothing arrived late.
            let last = client.get("/last").await.unwrap();
            assert_eq!(last.status, 200);
            let expected = [("GET".to_owned(), "/last".to_owned(), 0)];
            let taken = taken(&mut recorder, 1).await;
            wrong.extend(judge(&recorder, &taken, &expected));
            wrong
        });
    }
    let wrong = acts.join_all().await.concat();
    assert!(wrong.is_empty(), "{}:\n{}", wrong.len(), wrong.join("\n"));
}

async fn run(
    recorder: &mut Recorder,
    client: &Client,
    vector: &Vector,
    cut: usize,
) -> Result<(), String> {
    let heard = converse(client, vector, cut)
        .await
        .map_err(|error| format!("{error:#}"))?;
    let taken = taken(recorder, vector.arrivals.len()).await;
    if let Some(why) = judge(recorder, &taken, &vector.arrivals) {
        return Err(why);
    }
    let (statuses, expected) = (statuses(&heard), vector.statuses());
    match statuses == expected || vector.ending == Ending::Cut {
        true => Ok(()),
        false => Err(format!(
            "it was answered {statuses:?}, and not {expected:?}"
        )),
    }
}

/// Sends the bytes and the marker, and reads until the marker's answer or the end.
async fn converse(client: &Client, vector: &Vector, cut: usize) -> anyhow::Result<String> {
    let stream = client.with_alpn(&[b"http/1.1"]).connect().await?;
    let (mut read, mut write) = tokio::io::split(stream);
    let send = async {
        let whole = [&vector.bytes[..], MARKER].concat();
        for part in whole.chunks(cut) {
            write.write_all(part).await?;
        }
        write.flush().await?;
        if vector.ending == Ending::Cut {
            write.shutdown().await?;
        }
        Ok::<_, std::io::Error>(())
    };
    let receive = async {
        let mut heard = Vec::new();
        let mut buffer = [0; 4096];
        // The sidecar may end a connection without a farewell: that too is an end.
        while let Ok(count @ 1..) = read.read(&mut buffer).await {
            heard.extend_from_slice(&buffer[..count]);
            if heard.ends_with(b"GET /marker\n") {
                break;
            }
        }
        String::from_utf8_lossy(&heard).into_owned()
    };
    // Whoever was refused cannot send everything.
    let both = async { tokio::join!(receive, send).0 };
    Ok(tokio::time::timeout(fender_tests::process::PATIENCE, both).await?)
}

/// Of the final answers.
fn statuses(heard: &str) -> Vec<u16> {
    heard
        .split("HTTP/1.1 ")
        .skip(1)
        .filter_map(|rest| rest.get(..3)?.parse().ok())
        .filter(|status| *status >= 200)
        .collect()
}
