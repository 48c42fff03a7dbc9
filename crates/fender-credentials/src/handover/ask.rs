//! The client's side: who answers is looked at before anything is asked, because an abstract name is anybody's who comes
//! first.

use std::collections::BTreeSet;
use std::io;
use std::time::Duration;

use fender_config::snapshot::ServedName;
use fender_identity::Secret;
use fender_providers::Generation;
use fender_runtime::courier::Courier;
use fender_runtime::deadline::Deadline;
use fender_runtime::listen::LocalAddress;
use tokio::net::UnixStream;

use super::protocol::{self, Answer, NoAnswer, Refusal};
use super::sealed;

/// What was handed over.
#[derive(Debug)]
pub struct Received {
    pub value: Secret,
    pub generation: Generation,
    /// For how long it may not have been the newest.
    pub age: Duration,
}

/// Why there is nothing.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody listens there.
    #[error("no sidecar listens at `{address}`: {error}")]
    Nobody {
        address: LocalAddress,
        error: io::Error,
    },
    /// Somebody else does.
    #[error(
        "the process that listens at `{address}` belongs to user {user}, which is not the sidecar's: nothing was asked of it"
    )]
    Stranger { address: LocalAddress, user: u32 },
    /// It was answered so.
    #[error("{}", refused(name, *refusal))]
    Refused { name: ServedName, refusal: Refusal },
    #[error("no answer at `{address}` in time")]
    Late { address: LocalAddress },
    /// Something was, but not this.
    #[error("the answer at `{address}` is of no use: {why}")]
    Useless { address: LocalAddress, why: String },
}

fn refused(name: &ServedName, refusal: Refusal) -> String {
    match refusal {
        Refusal::Waiting => format!("the sidecar does not have `{name}` yet"),
        Refusal::Outdated => {
            format!("the sidecar could not refresh `{name}` for longer than its `maxStale`")
        }
        Refusal::Withdrawn => format!("the source of `{name}` took it back"),
        Refusal::Missing => format!("no credential `{name}` is handed to this user"),
        Refusal::Denied => {
            "no credential at all is handed to this user: a document names who receives it"
                .to_owned()
        }
        Refusal::Busy => "this user has too many connections to the sidecar's socket".to_owned(),
        Refusal::Malformed => "the sidecar speaks another protocol".to_owned(),
    }
}

/// Asks the sidecar at `address`, which must run as one of these users.
pub async fn ask(
    address: &LocalAddress,
    name: &ServedName,
    users: &BTreeSet<u32>,
    deadline: Deadline,
) -> Result<Received, AskError> {
    let late = |_| AskError::Late {
        address: address.clone(),
    };
    let asked = deadline.bound(exchange(address, name, users)).await;
    asked.map_err(late)?
}

async fn exchange(
    address: &LocalAddress,
    name: &ServedName,
    users: &BTreeSet<u32>,
) -> Result<Received, AskError> {
    let useless = |why: &dyn ToString| AskError::Useless {
        address: address.clone(),
        why: why.to_string(),
    };
    let nobody = |error| AskError::Nobody {
        address: address.clone(),
        error,
    };
    let stream = UnixStream::connect(address.to_path()).await;
    let stream = stream.map_err(nobody)?;
    let peer = rustix::net::sockopt::socket_peercred(&stream);
    let user = peer.map_err(|error| nobody(error.into()))?.uid.as_raw();
    if !users.contains(&user) {
        let address = address.clone();
        return Err(AskError::Stranger { address, user });
    }
    let mut courier = Courier::new(stream);
    // Who was refused at once hears no more; the answer is there all the same.
    let _ = courier.say(&protocol::request(name), &[]).await;
    let heard = courier.hear().await.map_err(|error| useless(&error))?;
    let (line, mut along) = heard.ok_or_else(|| useless(&"it ended without one"))?;
    let answer = line.parse().map_err(|error: NoAnswer| useless(&error))?;
    match answer {
        Answer::Refused(refusal) => Err(AskError::Refused {
            name: name.clone(),
            refusal,
        }),
        Answer::Here {
            generation,
            length,
            age,
        } => {
            let file = along.pop().filter(|_| along.is_empty());
            let file = file.ok_or_else(|| useless(&"it did not come with one descriptor"))?;
            let value = sealed::read(file, length).map_err(|why| useless(&why))?;
            Ok(Received {
                value,
                generation,
                age,
            })
        }
    }
}
