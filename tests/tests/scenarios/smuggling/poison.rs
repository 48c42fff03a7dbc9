//! Responses: `tests/vectors/poison.txt`. An application that says more, or other, than a response
//! spoils no answer but that one.

use std::net::SocketAddr;
use std::sync::Arc;

use fender_tests::Client;
use fender_tests::process::PATIENCE;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::table::rows;
use crate::front::{EVERYBODY, Front, Port};

const TABLE: &str = include_str!("../../../vectors/poison.txt");

struct Vector {
    name: &'static str,
    method: &'static str,
    status: u16,
    /// The response breaks off.
    cut: bool,
    /// The application closes behind it.
    ends: bool,
    bytes: Vec<u8>,
}

impl Vector {
    fn all() -> Vec<Self> {
        let read = |row: super::table::Row<4>| {
            let [name, method, outcome, _] = row.columns;
            let (status, end) = outcome.split_once(' ').unwrap();
            Self {
                name,
                method,
                status: status.parse().unwrap(),
                cut: end.contains("cut"),
                ends: end.contains("ends"),
                bytes: row.bytes,
            }
        };
        rows::<4>(TABLE).into_iter().map(read).collect()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_response_answers_a_request_that_is_not_its_own() {
    let vectors = Arc::new(Vector::all());
    let mut apps = JoinSet::new();
    let app = app(vectors.clone(), &mut apps).await;
    let port = Port::http(app);
    let address = port.listen;
    let front = Front::start(tempfile::tempdir().unwrap(), &[port], EVERYBODY);
    let client = front.client(address);
    let mut wrong = Vec::new();
    for (number, vector) in vectors.iter().enumerate() {
        if let Err(why) = run(&client, number, vector).await {
            wrong.push(format!("{}: {why}", vector.name));
        }
    }
    assert!(wrong.is_empty(), "{}:\n{}", wrong.len(), wrong.join("\n"));
}

async fn run(client: &Client, number: usize, vector: &Vector) -> Result<(), String> {
    let asked = format!(
        "{} /poison/{number} HTTP/1.1\r\nHost: v\r\n\r\nGET /clean HTTP/1.1\r\nHost: v\r\n\r\n",
        vector.method
    );
    let heard = tokio::time::timeout(PATIENCE, converse(client, &asked)).await;
    let heard = heard.map_err(|_| "no answer in time".to_owned())?;
    let victim = client
        .get("/clean")
        .await
        .map_err(|error| format!("{error:#}"))?;
    if victim.status != 200 || victim.text() != "clean" {
        return Err(format!(
            "the next caller got {}: {}",
            victim.status,
            victim.text()
        ));
    }
    let statuses: Vec<u16> = heard
        .split("HTTP/1.1 ")
        .skip(1)
        .filter_map(|rest| rest.get(..3)?.parse().ok())
        .collect();
    let expected = match vector.cut {
        // It may break off before a byte of it was passed on.
        true => statuses.is_empty() || statuses == [vector.status],
        false => statuses == [vector.status, 200],
    };
    let broke_off = !heard.ends_with("clean") && !heard.contains("0\r\n\r\n");
    match expected && broke_off == vector.cut && !heard.contains("poison") {
        true => Ok(()),
        false => Err(format!("the caller got {heard:?}")),
    }
}

async fn converse(client: &Client, asked: &str) -> String {
    let mut stream = client.with_alpn(&[b"http/1.1"]).connect().await.unwrap();
    stream.write_all(asked.as_bytes()).await.unwrap();
    let (mut heard, mut buffer) = (Vec::new(), [0; 4096]);
    while let Ok(count @ 1..) = stream.read(&mut buffer).await {
        heard.extend_from_slice(&buffer[..count]);
        if heard.ends_with(b"clean") {
            break;
        }
    }
    String::from_utf8_lossy(&heard).into_owned()
}

/// Answers `/poison/N` with the bytes of a row and everything else with `clean`.
async fn app(vectors: Arc<Vec<Vector>>, apps: &mut JoinSet<()>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    apps.spawn(async move {
        let mut open = JoinSet::new();
        while let Ok((socket, _)) = listener.accept().await {
            open.spawn(serve(socket, vectors.clone()));
        }
    });
    address
}

async fn serve(mut socket: TcpStream, vectors: Arc<Vec<Vector>>) -> Option<()> {
    loop {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(socket.read_u8().await.ok()?);
        }
        let head = String::from_utf8(head).ok()?;
        let target = head.split(' ').nth(1)?;
        let Some(number) = target.strip_prefix("/poison/") else {
            let clean = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nclean";
            socket.write_all(clean).await.ok()?;
            continue;
        };
        let vector = &vectors[number.parse::<usize>().ok()?];
        socket.write_all(&vector.bytes).await.ok()?;
        if vector.ends {
            return None;
        }
    }
}
