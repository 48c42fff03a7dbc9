//! Does a subject do what it is measured doing? Asked of each before anything is measured: a proxy
//! that lets everybody in, or that fails quickly, would win.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use super::Workshop;
use super::rig::show_certificate;
use super::subject::Subject;
use super::work::Port;

/// What one question is, what is sent, and what must come back.
struct Question {
    about: &'static str,
    /// Whose certificate is shown.
    certificate: Option<&'static str>,
    arguments: &'static [&'static str],
    answered: bool,
}

const fn answers(
    about: &'static str,
    certificate: Option<&'static str>,
    arguments: &'static [&'static str],
) -> Question {
    Question {
        about,
        certificate,
        arguments,
        answered: true,
    }
}

const fn refuses(about: &'static str, certificate: Option<&'static str>) -> Question {
    Question {
        about,
        certificate,
        arguments: &["--timeout", "1"],
        answered: false,
    }
}

fn questions(port: Port) -> &'static [Question] {
    match port {
        Port::Tls => const { &[answers("a request over TLS", None, &[])] },
        Port::Mtls => {
            const {
                &[
                    answers("a client with a certificate", Some("client"), &[]),
                    refuses("a client without a certificate", None),
                    refuses("a certificate of another authority", Some("stranger")),
                ]
            }
        }
        Port::Orig => const { &[answers("a plain request", None, &["--plain"])] },
        Port::Tcp => const { &[answers("bytes over TLS", None, &["--no-alpn"])] },
        Port::Relay => const { &[answers("bytes", None, &["--plain"])] },
    }
}

/// What Fender does besides and is measured with: policy and identity header.
const OF_FENDER: &[Question] = &[
    answers(
        "a method that no rule allows with a 403",
        Some("client"),
        &["--method", "DELETE", "--expect", "403"],
    ),
    answers(
        "with the caller's identity in the header for the application",
        Some("client"),
        &[
            "--path",
            "/head",
            "--contains",
            "URI=spiffe://bench.test/ns/bench/sa/client",
        ],
    ),
];

pub(super) fn check(workshop: &Workshop, subject: &Subject) -> Result<()> {
    let running = subject.start()?;
    let before = logged(subject);
    for port in Port::ALL
        .into_iter()
        .filter(|port| subject.spec.serves(*port))
    {
        for question in questions(port) {
            ask(workshop, subject, port, question)?;
        }
    }
    if subject.spec.name == "fender" {
        for question in OF_FENDER {
            ask(workshop, subject, Port::Mtls, question)?;
        }
    }
    logs(subject, before)?;
    drop(running);
    Ok(())
}

fn ask(workshop: &Workshop, subject: &Subject, port: Port, question: &Question) -> Result<()> {
    let mut probe = Command::new(&workshop.tlsload);
    probe
        .args([
            "probe",
            "--addr",
            &format!("127.0.0.1:{}", subject.port(port)?),
        ])
        .args(["--request", "--timeout", "3"])
        .args(question.arguments);
    if let Some(name) = question.certificate {
        show_certificate(&mut probe, &workshop.pki, name);
    }
    let probe = probe
        .stdin(Stdio::null())
        .output()
        .context("start the load generator")?;
    let said = String::from_utf8_lossy(&probe.stderr);
    let about = question.about;
    match (question.answered, probe.status.success()) {
        (true, false) => bail!("does not answer {about}: {}", said.trim()),
        (false, true) => bail!("does not refuse {about}"),
        (true, true) | (false, false) => Ok(()),
    }
}

/// How much its access log says.
fn logged(subject: &Subject) -> u64 {
    let file = subject
        .spec
        .access_log
        .map(|name| subject.directory.join(name));
    let metadata = file.and_then(|file| std::fs::metadata(file).ok());
    metadata.map_or(0, |metadata| metadata.len())
}

/// Its access log says more than it did before the requests. Some write seconds later.
fn logs(subject: &Subject, before: u64) -> Result<()> {
    let Some(name) = subject.spec.access_log else {
        return Ok(());
    };
    let limit = Instant::now() + Duration::from_secs(15);
    while logged(subject) <= before {
        ensure!(
            Instant::now() < limit,
            "writes nothing about requests to its `{name}`"
        );
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}
