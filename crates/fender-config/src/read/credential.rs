//! The `Credential`: where a secret comes from and how it reaches the app. Never the secret.

use std::time::Duration;

use super::{aws, duration, file_path, files, full_name, kubernetes, sealed, served, vault};
use crate::ObjectName;
use crate::documents::{Credential, Via};
use crate::raw::{self, Document};
use crate::snapshot::{
    Command, Delivery, DockerSecret, DockerSecretName, LoopbackUrl, Notification, NotifyMethod,
    OnExit, Origin, ServedName, Target,
};
use crate::yaml::{At, Reader, Word};

/// A working day and its night: an outage that nobody ended by then has been looked at.
const MAX_STALE: Duration = Duration::from_secs(24 * 60 * 60);
const SHORTEST_MAX_STALE: Duration = Duration::from_secs(1);
const LONGEST_MAX_STALE: Duration = Duration::from_secs(30 * 24 * 60 * 60);
/// How often a plug-in is asked.
const EVERY: Duration = Duration::from_secs(5 * 60);
const SHORTEST_EVERY: Duration = Duration::from_secs(1);
const LONGEST_EVERY: Duration = Duration::from_secs(24 * 60 * 60);
/// How long it may take.
const TIMEOUT: Duration = Duration::from_secs(10);
const SHORTEST_TIMEOUT: Duration = Duration::from_millis(100);
const LONGEST_TIMEOUT: Duration = Duration::from_secs(2 * 60);
/// From the first change until it is told.
const AFTER: Duration = Duration::from_secs(1);
const LONGEST_AFTER: Duration = Duration::from_secs(5 * 60);
const MOST_NOTIFICATIONS: usize = 8;

pub(crate) fn credential(
    reader: &mut Reader<'_>,
    document: Document<raw::Credential>,
) -> Option<Credential> {
    let Document { metadata, spec, .. } = document;
    let name = full_name(reader, &metadata, ObjectName::new);
    let origin = origin(reader, &spec.source);
    if let Some(at) = spec.deliver.as_ref().filter(|at| at.value.is_empty()) {
        reader.wrong(
            at,
            "fender::no-delivery",
            "`deliver` is empty, so the secret would reach nobody",
            "write `deliver: [ { file: { path: /run/secrets/x } } ]` or `[ { environment: { variable: X } } ]`; leave \
                it out if the credential is only a port's certificate",
        );
    }
    let own_name = name.as_ref().map(ServedName::from);
    let written = spec.deliver.iter().flat_map(|at| &at.value);
    let deliver: Vec<_> = written
        .map(|at| delivery(reader, at, own_name.as_ref()))
        .collect();
    // One that is wrong has been said to be; nothing is concluded from the others.
    let deliver: Option<Vec<_>> = deliver.into_iter().collect();
    let max_stale = spec.max_stale.as_ref().map_or(Some(MAX_STALE), |at| {
        duration(
            reader,
            "maxStale",
            at,
            SHORTEST_MAX_STALE,
            LONGEST_MAX_STALE,
        )
    });
    let notify = notify(reader, spec.notify.as_ref());
    let is_told_of = |delivery: &Delivery| match delivery {
        Delivery::File(..) | Delivery::Files(_) | Delivery::Environment { .. } => true,
        Delivery::Socket(_) | Delivery::Url(_) => false,
    };
    if let Some(at) = spec.notify.as_ref().filter(|at| !at.value.is_empty())
        && let Some(deliver) = &deliver
        && !deliver.iter().any(is_told_of)
    {
        reader.wrong(
            at,
            "fender::nothing-to-notify-of",
            "nobody is ever told: the credential is delivered into no file and no environment",
            "what is told is that another value is in the files of `deliver`, or in the environment that `fender exec --supervise` starts its command with",
        );
    }
    let on_exit = spec.on_exit.as_ref();
    let on_exit = on_exit.map_or(Some(OnExit::default()), |at| reader.choose("onExit", at));
    let (via, origin) = origin?;
    Some(Credential {
        name: name?,
        via,
        origin,
        max_stale: max_stale?,
        deliver: deliver?,
        notify,
        on_exit: on_exit?,
    })
}

fn origin(reader: &mut Reader<'_>, at: &At<raw::CredentialSource>) -> Option<(Via, Origin)> {
    let raw::CredentialSource {
        file,
        docker_secret: secret,
        command: program,
        environment,
        vault: remote,
        kubernetes_secret: watched,
        aws: cloud,
        age,
        sops,
    } = &at.value;
    let named = [
        file.is_some(),
        secret.is_some(),
        program.is_some(),
        environment.is_some(),
        remote.is_some(),
        watched.is_some(),
        cloud.is_some(),
        age.is_some(),
        sops.is_some(),
    ];
    if named.iter().filter(|is_named| **is_named).count() != 1 {
        reader.wrong(
            at,
            "fender::one-of",
            "a credential comes from one place: a `file`, a `dockerSecret`, a `command`, an `environment`, a `vault`, a \
             `kubernetesSecret`, `aws`, or a file of `age` or `sops`",
            "write one of them; another place is another credential",
        );
        return None;
    }
    if let Some(file) = file {
        let path = file_path(reader, &file.path);
        let via = via(reader, file.via.as_ref());
        return Some((via?, Origin::File { path: path? }));
    }
    if let Some(secret) = secret {
        let origin = docker_secret(reader, secret).map(Origin::DockerSecret);
        let via = via(reader, secret.via.as_ref());
        return Some((via?, origin?));
    }
    if let Some(program) = program {
        let origin = command(reader, program).map(Origin::Command);
        let via = via(reader, program.via.as_ref());
        return Some((via?, origin?));
    }
    if let Some(environment) = environment {
        let variable = source_variable(reader, &environment.variable);
        let via = via(reader, environment.via.as_ref());
        let variable = variable?;
        return Some((via?, Origin::Environment { variable }));
    }
    if let Some(secret) = remote {
        let origin = vault::secret(reader, at, secret).map(Box::new);
        let via = via(reader, secret.via.as_ref());
        return Some((via?, Origin::Vault(origin?)));
    }
    if let Some(secret) = watched {
        let origin = kubernetes::secret(reader, at, secret).map(Box::new);
        let via = via(reader, secret.via.as_ref());
        return Some((via?, Origin::KubernetesSecret(origin?)));
    }
    if let Some(secret) = cloud {
        let origin = aws::secret(reader, at, secret).map(Box::new);
        let via = via(reader, secret.via.as_ref());
        return Some((via?, Origin::Aws(origin?)));
    }
    if let Some(secret) = age {
        let origin = sealed::age(reader, secret).map(Origin::Age);
        let via = via(reader, secret.via.as_ref());
        return Some((via?, origin?));
    }
    let secret = sops.as_ref()?;
    let origin = sealed::sops(reader, secret).map(Origin::Sops);
    let via = via(reader, secret.via.as_ref());
    Some((via?, origin?))
}

fn via(reader: &mut Reader<'_>, at: Option<&At<Word<Via>>>) -> Option<Via> {
    at.map_or(Some(Via::Sidecar), |at| reader.choose("via", at))
}

fn docker_secret(
    reader: &mut Reader<'_>,
    secret: &raw::SourceDockerSecret,
) -> Option<DockerSecret> {
    let directory = match &secret.directory {
        Some(at) => file_path(reader, at),
        None => Some(DockerSecret::DIRECTORY.into()),
    };
    let name = secret.name.value.parse::<DockerSecretName>();
    if let Err(error) = &name {
        let help = "at most 64 letters, digits, `-`, `_` and `.`, beginning and ending with a letter or a digit; a file \
            that is named otherwise is `source: { file: … }`";
        reader.wrong(
            &secret.name,
            "fender::bad-secret-name",
            error.to_string(),
            help,
        );
    }
    Some(DockerSecret {
        name: name.ok()?,
        directory: directory?,
    })
}

fn command(reader: &mut Reader<'_>, command: &raw::SourceCommand) -> Option<Command> {
    let program = file_path(reader, &command.program);
    let arguments = arguments(reader, command.arguments.as_ref());
    let every = command.every.as_ref().map_or(Some(EVERY), |at| {
        duration(reader, "every", at, SHORTEST_EVERY, LONGEST_EVERY)
    });
    let timeout = timeout(reader, command.timeout.as_ref());
    Some(Command {
        program: program?,
        arguments: arguments?,
        every: every?,
        timeout: timeout?,
    })
}

fn arguments(reader: &mut Reader<'_>, at: Option<&At<Vec<At<String>>>>) -> Option<Vec<String>> {
    let Some(at) = at else {
        return Some(Vec::new());
    };
    let arguments: Vec<String> = at.value.iter().map(|at| at.value.clone()).collect();
    match Command::check(&arguments) {
        Ok(()) => Some(arguments),
        Err(error) => {
            let help =
                "what does not fit belongs into a file of its own, whose name is an argument";
            reader.wrong(at, "fender::bad-arguments", error.to_string(), help);
            None
        }
    }
}

fn timeout(reader: &mut Reader<'_>, at: Option<&At<String>>) -> Option<Duration> {
    at.map_or(Some(TIMEOUT), |at| {
        duration(reader, "timeout", at, SHORTEST_TIMEOUT, LONGEST_TIMEOUT)
    })
}

fn notify(reader: &mut Reader<'_>, at: Option<&At<Vec<At<raw::Notify>>>>) -> Vec<Notification> {
    let Some(at) = at else {
        return Vec::new();
    };
    if at.value.len() > MOST_NOTIFICATIONS {
        reader.wrong(
            at,
            "fender::too-many-notifications",
            format!("a credential tells at most {MOST_NOTIFICATIONS}"),
            "have one of them tell the others",
        );
    }
    let entries = at.value.iter();
    entries.filter_map(|at| notification(reader, at)).collect()
}

fn notification(reader: &mut Reader<'_>, at: &At<raw::Notify>) -> Option<Notification> {
    let raw::Notify {
        signal,
        http,
        command,
        restart,
        after,
    } = &at.value;
    let after = after.as_ref().map_or(Some(AFTER), |at| {
        duration(reader, "after", at, Duration::ZERO, LONGEST_AFTER)
    });
    let target = match (signal, http, command, restart) {
        (Some(notify), None, None, None) => {
            let signal = reader.choose("signal", &notify.signal);
            match &notify.pid_file {
                None => Some(Target::App(signal?)),
                Some(at) => {
                    let pid_file = file_path(reader, at);
                    Some(Target::Process {
                        signal: signal?,
                        pid_file: pid_file?,
                    })
                }
            }
        }
        (None, Some(http), None, None) => {
            let url = loopback(reader, &http.url);
            let written = http.method.as_ref();
            let method = written.map_or(Some(NotifyMethod::default()), |at| {
                reader.choose("method", at)
            });
            let timeout = timeout(reader, http.timeout.as_ref());
            Some(Target::Http {
                url: url?,
                method: method?,
                timeout: timeout?,
            })
        }
        (None, None, Some(command), None) => {
            let program = file_path(reader, &command.program);
            let arguments = arguments(reader, command.arguments.as_ref());
            let timeout = timeout(reader, command.timeout.as_ref());
            Some(Target::Command {
                program: program?,
                arguments: arguments?,
                timeout: timeout?,
            })
        }
        (None, None, None, Some(raw::RestartNotify {})) => Some(Target::Restart),
        _ => {
            reader.wrong(
                at,
                "fender::one-of",
                "a notification is a `signal`, `http`, a `command` or a `restart`",
                "write one list entry for each",
            );
            None
        }
    };
    Some(Notification {
        target: target?,
        after: after?,
    })
}

fn loopback(reader: &mut Reader<'_>, at: &At<String>) -> Option<LoopbackUrl> {
    let url = at.value.parse::<LoopbackUrl>();
    if let Err(error) = &url {
        reader.wrong(
            at,
            "fender::bad-url",
            format!("`{}` cannot be told: {error}", at.value),
            "notifications stay on this machine: `http://127.0.0.1:PORT/PATH`",
        );
    }
    url.ok()
}

/// `own_name` is the credential's, if that is one.
fn delivery(
    reader: &mut Reader<'_>,
    at: &At<raw::Delivery>,
    own_name: Option<&ServedName>,
) -> Option<Delivery> {
    let raw::Delivery {
        file,
        files: set,
        environment,
        socket,
        url,
    } = &at.value;
    match (file, set, environment, socket, url) {
        (Some(file), None, None, None, None) => {
            files::file(reader, file).map(|(file, content)| Delivery::File(file, content))
        }
        (None, Some(set), None, None, None) => files::set(reader, set).map(Delivery::Files),
        (None, None, Some(environment), None, None) => variable(reader, &environment.variable)
            .map(|variable| Delivery::Environment { variable }),
        (None, None, None, Some(socket), None) => {
            served::socket(reader, socket, own_name).map(Delivery::Socket)
        }
        (None, None, None, None, Some(url)) => {
            served::url(reader, url, own_name).map(Delivery::Url)
        }
        (_, _, _, _, _) => {
            reader.wrong(
                at,
                "fender::one-of",
                "a delivery is one of `file`, `files`, `environment`, `socket` and `url`",
                "write one list entry for each",
            );
            None
        }
    }
}

/// A name as `passwd` knows it, or a number.
pub(super) fn account(reader: &mut Reader<'_>, what: &str, at: &At<String>) -> Option<String> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    let usable = (1..=32).contains(&at.value.len())
        && !at.value.starts_with('-')
        && at.value.bytes().all(allowed);
    if !usable {
        let message = format!("`{}` cannot be {what}", at.value);
        reader.wrong(
            at,
            "fender::bad-account",
            message,
            "write a name or a number",
        );
    }
    usable.then(|| at.value.clone())
}

/// What a shell takes as the name of a variable.
fn is_variable(name: &str) -> bool {
    let first = name.bytes().next();
    name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
        && first.is_some_and(|first| !first.is_ascii_digit())
}

/// What Fender was started with is its own; all else may be a secret.
fn source_variable(reader: &mut Reader<'_>, at: &At<String>) -> Option<String> {
    let name = at.value.as_str();
    if !is_variable(name) || name.starts_with("FENDER_") {
        reader.wrong(
            at,
            "fender::bad-variable",
            format!("the variable `{name}` holds no credential"),
            "letters, digits and `_`, not beginning with a digit; those that begin with `FENDER_` are Fender's own",
        );
        return None;
    }
    Some(name.to_owned())
}

/// Variables by which a value becomes code, or that belong to Fender.
const RESERVED: [&str; 5] = ["PATH", "IFS", "ENV", "BASH_ENV", "SHELL"];
const RESERVED_PREFIXES: [&str; 2] = ["LD_", "FENDER_"];

fn variable(reader: &mut Reader<'_>, at: &At<String>) -> Option<String> {
    let name = at.value.as_str();
    let written = is_variable(name);
    let reserved = RESERVED.contains(&name)
        || RESERVED_PREFIXES
            .iter()
            .any(|prefix| name.starts_with(prefix));
    if !written {
        let help = "letters, digits and `_`, not beginning with a digit";
        reader.wrong(
            at,
            "fender::bad-variable",
            format!("`{name}` is not the name of a variable"),
            help,
        );
    } else if reserved {
        let help = "it changes what the app executes, or belongs to Fender; deliver the \
            secret under another name";
        reader.wrong(
            at,
            "fender::bad-variable",
            format!("the variable `{name}` may not be set by a document"),
            help,
        );
    }
    (written && !reserved).then(|| name.to_owned())
}
