//! `fender status` and `fender explain`: one request at the admin socket of a sidecar, or one call to the control plane with the
//! administrator's certificate where this build administers one.

#[cfg(feature = "administration")]
use fender_runtime::deadline::Deadline;
use fender_runtime::id::OpaqueId;
use serde_json::Value;

#[cfg(feature = "administration")]
use crate::admin::{CALL_TIME, connect, refused};
use crate::cli::{self, Output};
use crate::exit::{Exit, Failure, Outcome};
#[cfg(not(feature = "administration"))]
use crate::features;
use crate::{local, print, render};

pub(crate) async fn status(args: cli::Status) -> Outcome {
    #[cfg(feature = "administration")]
    if let Some(cli::StatusOf::Credentials(args)) = args.of {
        return credentials(args).await;
    }
    if let Some(socket) = &args.sidecar {
        if args.ready {
            let ready = local::ready(socket).await;
            return ready.map(|()| Exit::Done).map_err(Failure::unavailable);
        }
        let status = local::get_json(socket, "/status")
            .await
            .map_err(Failure::unavailable)?;
        return show(args.output, &status, render::sidecar_text);
    }
    of_all(args).await
}

#[cfg(feature = "administration")]
async fn of_all(args: cli::Status) -> Outcome {
    let mut control = connect(&args.admin).await?;
    let status = control
        .status(
            args.namespace.as_deref(),
            args.workload.as_ref(),
            Deadline::after(CALL_TIME),
        )
        .await
        .map_err(refused)?;
    show(args.output, &render::status_json(&status), |status| {
        render::status_text(status, terminal_width())
    })
}

/// Nobody but a sidecar can be asked.
#[cfg(not(feature = "administration"))]
async fn of_all(_: cli::Status) -> Outcome {
    Err(Failure::usage(format!(
        "without --sidecar, the control plane is to be asked: {}",
        features::left_out("administration")
    )))
}

#[cfg(feature = "administration")]
async fn credentials(args: cli::StatusCredentials) -> Outcome {
    let mut control = connect(&args.admin).await?;
    let held = control
        .credentials(
            args.namespace.as_deref(),
            args.credential.as_ref(),
            Deadline::after(CALL_TIME),
        )
        .await
        .map_err(refused)?;
    show(args.output, &render::credentials_json(&held), |held| {
        render::credentials_text(held, terminal_width())
    })
}

pub(crate) async fn explain(args: cli::Explain) -> Outcome {
    let id: OpaqueId = args.id.parse().map_err(|_| {
        Failure::usage(format!("`{}` is not a decision id: it is the 32 hexadecimal digits in the header x-fender-decision", args.id))
    })?;
    let decision = match &args.sidecar {
        Some(socket) => local::get(socket, &format!("/decisions/{id}"))
            .await
            .map_err(Failure::unavailable)?,
        None => of_any(&args, id).await?,
    };
    let Some(decision) = decision else {
        return Err(Failure::new(
            Exit::Missing,
            anyhow::anyhow!(
                "no decision `{id}` is kept by this sidecar; ask the control plane, or another sidecar"
            ),
        ));
    };
    show(args.output, &decision, render::decision_text)
}

#[cfg(feature = "administration")]
async fn of_any(args: &cli::Explain, id: OpaqueId) -> Result<Option<Value>, Failure> {
    let record = connect(&args.admin)
        .await?
        .explain(id, Deadline::after(CALL_TIME))
        .await
        .map_err(refused)?;
    Ok(Some(render::decision_json(&record)))
}

/// Nobody but a sidecar can be asked.
#[cfg(not(feature = "administration"))]
async fn of_any(_: &cli::Explain, _: OpaqueId) -> Result<Option<Value>, Failure> {
    Err(Failure::usage(format!(
        "without --sidecar, the control plane is to be asked: {}",
        features::left_out("administration")
    )))
}

/// Of standard output, if it is a terminal that says so.
#[cfg(feature = "administration")]
fn terminal_width() -> Option<usize> {
    let size = rustix::termios::tcgetwinsize(std::io::stdout()).ok()?;
    (size.ws_col > 0).then(|| usize::from(size.ws_col))
}

pub(crate) fn show(output: Output, value: &Value, table: impl Fn(&Value) -> String) -> Outcome {
    let value = render::tame(value);
    match output {
        Output::Json => print(&format!("{value:#}\n")),
        Output::Table => print(&table(&value)),
    }
}
