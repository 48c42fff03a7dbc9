//! `fender upgrade` and `fender reload`: one question to a running sidecar, at its upgrade socket.
//!
//! Nothing is started or read here: the sidecar does it, with the rights and arguments it has.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use fender_runtime::deadline::Deadline;
use tokio::net::UnixStream;

use crate::exit::{Exit, Failure, Outcome};
use crate::sidecar::upgrade::{Message, Talk, Wants};
use crate::{cli, print};

/// A successor has its own start timeout, and the sidecar says when that has passed. Longer nobody waits.
const PATIENCE: Duration = Duration::from_secs(60 * 60);

/// What is to be named, said with what came of another.
const WHERE: &str = "name its upgrade socket with --sidecar, which is what its own --upgrade-socket says, or upgrade.sock in its --state";

pub(crate) async fn upgrade(args: cli::Upgrade) -> Outcome {
    ask(&args.sidecar, Wants::Upgrade).await
}

pub(crate) async fn reload(args: cli::Upgrade) -> Outcome {
    ask(&args.sidecar, Wants::Reload).await
}

async fn ask(socket: &Path, wants: Wants) -> Outcome {
    let shown = socket.display();
    let nobody = || format!("no sidecar answers at `{shown}`: {WHERE}");
    let at = || format!("ask the sidecar at `{shown}`: {WHERE}");
    let stream = UnixStream::connect(socket).await.with_context(nobody);
    let mut talk = Talk::over(stream.map_err(Failure::unavailable)?);
    let asked = async {
        talk.hello(wants).await?;
        talk.hear(Deadline::after(PATIENCE)).await
    };
    match asked.await.with_context(at).map_err(Failure::unavailable)? {
        Some(Message::Done { what }) => print(&format!("{what}\n")),
        Some(Message::Failed { why, exit }) => Err(Failure::new(
            Exit::from_code(exit),
            anyhow!("{why}\nnothing has changed"),
        )),
        Some(Message::Refused { why }) => Err(Failure::new(Exit::Refused, anyhow!("{why}"))),
        Some(other) => Err(Failure::unavailable(anyhow!(
            "the sidecar speaks another protocol: it said {other:?}"
        ))),
        None => Err(Failure::unavailable(anyhow!(
            "the sidecar at `{shown}` ended the conversation: see its log; {WHERE}"
        ))),
    }
}
