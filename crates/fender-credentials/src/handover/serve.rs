//! The server's side: bounded in everything, whoever connects.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use fender_runtime::accept::{Accept, Slot};
use fender_runtime::courier::Courier;
use fender_runtime::deadline::Deadline;
use fender_runtime::drain::Drain;
use fender_runtime::listen::{Listener, Socket};
use fender_runtime::pace::Pace;
use fender_runtime::share::{Share, Shares};
use fender_runtime::sys;
use tokio::io::{AsyncReadExt as _, Interest};
use tokio::net::UnixStream;

use super::limits::SocketLimits;
use super::protocol::{self, Answer, Refusal};
use super::registry::Handovers;

/// How long all connections may be taken before who comes is closed.
const FULL: Duration = Duration::from_secs(1);
/// What a client that was let in before the end began may take to say what it wants.
const LAST_WORDS: Duration = Duration::from_millis(500);
/// How often is looked whether a client has taken its answer, at first and at last.
const FIRST_LOOK: Duration = Duration::from_millis(5);
const LAST_LOOK: Duration = Duration::from_secs(1);
/// Stays below what a socket takes of one that has just been connected.
const WORD: &str = "\n";

/// Hands over what is in `handovers` until the drain stops.
pub async fn serve(listener: Listener, handovers: Handovers, limits: SocketLimits, drain: Drain) {
    let lines = Arc::new(Pace::new(limits.socket_lines));
    let turned_away = Arc::clone(&lines);
    let mut accept =
        Accept::new(listener, limits.socket_connections).turning_away(FULL, move |_| {
            if let Some(more) = turned_away.admit() {
                tracing::warn!(
                    more,
                    "closed a client of the credentials socket: every connection is taken"
                );
            }
        });
    let desk = Arc::new(Desk {
        handovers,
        limits,
        users: Shares::new(limits.socket_connections_per_user),
        lines,
        drain: drain.clone(),
    });
    while let Some((socket, _, slot)) = accept.next(&drain).await {
        if let Some(client) = desk.greet(socket, slot) {
            let desk = Arc::clone(&desk);
            drain.spawn(async move { desk.converse(client).await });
        }
    }
}

/// What all conversations share.
struct Desk {
    handovers: Handovers,
    limits: SocketLimits,
    users: Shares<u32>,
    lines: Arc<Pace>,
    drain: Drain,
}

/// Somebody to whom something is handed over, though perhaps not what is asked for.
struct Client {
    stream: UnixStream,
    user: u32,
    process: i32,
    _share: Share<u32>,
    _slot: Slot,
}

impl Desk {
    /// Who it is, before anything is read. Nothing for those who are not listened to.
    fn greet(&self, socket: Socket, slot: Slot) -> Option<Client> {
        let Socket::Unix(stream) = socket else {
            return None;
        };
        // As they were when it connected, whoever has the socket by now.
        let (user, process) = match rustix::net::sockopt::socket_peercred(&stream) {
            Ok(peer) => (peer.uid.as_raw(), peer.pid.as_raw_pid()),
            Err(error) => {
                tracing::warn!(%error, "cannot tell who connects to the credentials socket");
                return None;
            }
        };
        if !self.handovers.know(user) {
            self.turn_away(&stream, user, process, Refusal::Denied);
            return None;
        }
        let Some(share) = self.users.take(user) else {
            self.turn_away(&stream, user, process, Refusal::Busy);
            return None;
        };
        Some(Client {
            stream,
            user,
            process,
            _share: share,
            _slot: slot,
        })
    }

    /// At once, or not at all: nobody waits for one who is not let in.
    fn turn_away(&self, stream: &UnixStream, user: u32, process: i32, refusal: Refusal) {
        let answer = Answer::Refused(refusal);
        let _ = stream.try_write(format!("{answer}{WORD}").as_bytes());
        self.told(&answer, user, process);
    }

    async fn converse(&self, mut client: Client) {
        let deadline = Deadline::after(self.limits.socket_request);
        let line = tokio::select! {
            line = deadline.bound(line(&mut client.stream, self.limits.socket_request_bytes)) => line,
            () = self.last_words() => return,
        };
        // Who says nothing in time, or leaves, is not answered.
        let Ok(Some(line)) = line else {
            return;
        };
        let asked = protocol::asked(&line);
        let found = asked.as_ref();
        let found = found.map(|name| self.handovers.look_up(client.user, name));
        let (answer, file) = match found {
            None => (Answer::Refused(Refusal::Malformed), None),
            Some(Ok(found)) => found,
            Some(Err(error)) => {
                if let Some(more) = self.lines.admit() {
                    tracing::error!(%error, more, "cannot hand a credential over");
                }
                (Answer::Refused(Refusal::Waiting), None)
            }
        };
        self.told(&answer, client.user, client.process);
        let Client {
            stream,
            _share,
            _slot,
            ..
        } = client;
        let courier = Courier::new(stream);
        let along: Vec<_> = file.iter().map(AsFd::as_fd).collect();
        let line = answer.to_string();
        let said = courier.say(&line, &along);
        if deadline.bound(said).await.is_ok_and(|said| said.is_ok()) && file.is_some() {
            drop(file);
            if let (Some(name), Answer::Here { generation, .. }) = (&asked, &answer) {
                let handovers = &self.handovers;
                handovers.took_at_socket(client.user, name, generation);
            }
            self.taken(&courier.into_stream()).await;
        }
    }

    /// Who was let in before the end began says what it came for: nobody else has its connection.
    async fn last_words(&self) {
        self.drain.stopping().await;
        tokio::time::sleep(LAST_WORDS).await;
    }

    /// Resolves once the client has what was sent, or can have it no more. Descriptors on their way count against our user,
    /// in the kernel: who takes none of them must not be able to have one more on its way for each connection it opens.
    async fn taken(&self, stream: &UnixStream) {
        let mut look = FIRST_LOOK;
        let mut listening = true;
        while sys::unread(stream.as_fd()).is_ok_and(|waiting| waiting > 0) {
            tokio::select! {
                biased;
                () = self.drain.stopping() => return,
                _ = stream.ready(Interest::READABLE), if listening => {
                    let ended = stream.try_read(&mut [0]);
                    // Whoever goes on talking is not listened to any more.
                    listening = matches!(&ended, Err(error) if error.kind() == std::io::ErrorKind::WouldBlock);
                }
                () = tokio::time::sleep(look) => look = (look * 2).min(LAST_LOOK),
            }
        }
    }

    fn told(&self, answer: &Answer, user: u32, process: i32) {
        self.handovers.count(answer);
        match answer {
            Answer::Here { generation, .. } => {
                tracing::debug!(user, process, %generation, "handed a credential over");
            }
            Answer::Refused(refusal) => {
                if let Some(more) = self.lines.admit() {
                    let why = refusal.word();
                    tracing::warn!(
                        user,
                        process,
                        why,
                        more,
                        "refused a client of the credentials socket"
                    );
                }
            }
        }
    }
}

/// The first line without its end, if there is one; what is no single line of this length is an empty one. Descriptors
/// that come along are closed by the kernel, because nobody asks it for them.
async fn line(stream: &mut UnixStream, longest: usize) -> Option<Vec<u8>> {
    let mut heard = Vec::with_capacity(longest);
    let mut stream = stream.take(longest as u64);
    loop {
        match stream.read_buf(&mut heard).await {
            Ok(0) if heard.len() < longest => return None,
            Ok(_) => {}
            Err(_) => return None,
        }
        let end = heard.iter().position(|byte| *byte == b'\n');
        match end {
            Some(end) if end + 1 == heard.len() => {
                heard.truncate(end);
                return Some(heard);
            }
            None if heard.len() < longest => {}
            // Too long, or more than a line.
            Some(_) | None => return Some(Vec::new()),
        }
    }
}
