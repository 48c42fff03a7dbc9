//! `fender demo`: the real control plane and real sidecars, as processes, around two small
//! applications, telling what happens as it happens.
//!
//! It needs nothing installed, takes no path and leaves nothing behind. It does not fake: each
//! line it prints was measured on the running system, and `--check` turns the same story into
//! expectations that fail.

mod app;
mod client;
mod story;
mod world;

use std::io::Write;

use crate::cli;
use crate::exit::{Exit, Failure, Outcome};
use crate::signals::{self, Stop};
use story::{Pace, Story};
use world::World;

pub(crate) async fn run(args: &cli::Demo) -> Outcome {
    let pace = if args.check { Pace::Check } else { Pace::Show };
    let mut world = World::new(pace.leaf()).map_err(Failure::unavailable)?;
    let mut stop = Stop::install(signals::hang_up()).map_err(Failure::unavailable)?;
    let told = tokio::select! {
        told = show(&mut world, pace) => told,
        () = stop.requested() => Ok(!args.check),
    };
    if !args.check {
        say("\nStopping, and removing everything that was made.");
    }
    let ended = world.end().await;
    match (told, ended) {
        (Ok(true), Ok(())) => Ok(Exit::Done),
        (Ok(_), Ok(())) => Err(Failure::unavailable(anyhow::anyhow!(
            "the demo did not hold what it promises"
        ))),
        (Err(error), _) | (Ok(_), Err(error)) => Err(Failure::unavailable(error)),
    }
}

/// Tells the story; for a person, then stays until told to stop or until something ends by itself.
async fn show(world: &mut World, pace: Pace) -> anyhow::Result<bool> {
    let held = Story::new(world, pace).tell().await?;
    if held && pace == Pace::Show {
        story::watch_processes(world).await;
        return Ok(false);
    }
    Ok(held)
}

pub(crate) async fn app(args: cli::DemoApp) -> Outcome {
    let cli::DemoApp {
        name,
        listen,
        inventory,
        credential,
    } = args;
    app::serve(
        app::App {
            name,
            inventory,
            credential,
        },
        listen,
    )
    .await
    .map_err(Failure::unavailable)?;
    Ok(Exit::Done)
}

/// Prints a line of the story; a closed standard output ends nothing.
fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}");
    let _ = out.flush();
}
