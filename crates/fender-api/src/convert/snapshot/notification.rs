//! Who is told that a credential has changed.

use std::time::Duration;

use fender_config::snapshot as domain;

use super::{millis, path};
use crate::convert::{InvalidField, parse, required, unknown_word};
use crate::proto::control::v1 as proto;

pub(super) fn read(message: proto::Notification) -> Result<domain::Notification, InvalidField> {
    use proto::notification::Target;
    let target = match required("target", message.target)? {
        Target::Signal(it) => signal(it).map_err(|error| error.within("signal"))?,
        Target::Http(it) => http(&it).map_err(|error| error.within("http"))?,
        Target::Command(it) => command(it).map_err(|error| error.within("command"))?,
        Target::Restart(proto::RestartNotification {}) => domain::Target::Restart,
    };
    Ok(domain::Notification {
        target,
        after: Duration::from_millis(message.after_millis),
    })
}

fn signal(message: proto::SignalNotification) -> Result<domain::Target, InvalidField> {
    let named = domain::NotifySignal::named(&message.signal);
    let signal = named.ok_or_else(|| unknown_word("signal", &message.signal))?;
    if message.pid_file.is_empty() {
        return Ok(domain::Target::App(signal));
    }
    Ok(domain::Target::Process {
        signal,
        pid_file: path("pid_file", message.pid_file)?,
    })
}

fn http(message: &proto::HttpNotification) -> Result<domain::Target, InvalidField> {
    let named = domain::NotifyMethod::named(&message.method);
    Ok(domain::Target::Http {
        url: parse("url", &message.url)?,
        method: named.ok_or_else(|| unknown_word("method", &message.method))?,
        timeout: Duration::from_millis(message.timeout_millis),
    })
}

fn command(message: proto::CommandNotification) -> Result<domain::Target, InvalidField> {
    domain::Command::check(&message.arguments)
        .map_err(|error| InvalidField::new("arguments", error.to_string()))?;
    Ok(domain::Target::Command {
        program: path("program", message.program)?,
        arguments: message.arguments,
        timeout: Duration::from_millis(message.timeout_millis),
    })
}

pub(super) fn write(notification: &domain::Notification) -> proto::Notification {
    use proto::notification::Target;
    let target = match &notification.target {
        domain::Target::App(signal) => Target::Signal(proto::SignalNotification {
            signal: signal.name().to_owned(),
            pid_file: String::new(),
        }),
        domain::Target::Process { signal, pid_file } => Target::Signal(proto::SignalNotification {
            signal: signal.name().to_owned(),
            pid_file: pid_file.display().to_string(),
        }),
        domain::Target::Http {
            url,
            method,
            timeout,
        } => Target::Http(proto::HttpNotification {
            url: url.to_string(),
            method: method.name().to_owned(),
            timeout_millis: millis(*timeout),
        }),
        domain::Target::Command {
            program,
            arguments,
            timeout,
        } => Target::Command(proto::CommandNotification {
            program: program.display().to_string(),
            arguments: arguments.clone(),
            timeout_millis: millis(*timeout),
        }),
        domain::Target::Restart => Target::Restart(proto::RestartNotification {}),
    };
    proto::Notification {
        target: Some(target),
        after_millis: millis(notification.after),
    }
}
