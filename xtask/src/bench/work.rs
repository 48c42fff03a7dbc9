//! What subjects are measured doing: one row for each test, as data.
//!
//! Of every figure that compares subjects less is better: CPU time for a unit of work, memory for a
//! connection, milliseconds, megabytes. Throughput is only told beside it, because on two cores it
//! is the lower of two limits.

/// A listener of a subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Port {
    /// HTTP over TLS, no client certificate asked for.
    Tls,
    /// HTTP over TLS with a client certificate.
    Mtls,
    /// Plain HTTP in, mTLS out.
    Orig,
    /// Bytes over TLS in, bytes out.
    Tcp,
    /// Bytes in, bytes out: what moving them costs without TLS.
    Relay,
}

impl Port {
    pub(super) const ALL: [Self; 5] = [Self::Tls, Self::Mtls, Self::Orig, Self::Tcp, Self::Relay];

    /// How configurations name it, between `@@`.
    pub(super) fn key(self) -> &'static str {
        match self {
            Self::Tls => "TLS",
            Self::Mtls => "MTLS",
            Self::Orig => "ORIG",
            Self::Tcp => "TCP",
            Self::Relay => "RELAY",
        }
    }
}

/// How a test is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Work without end; CPU time of the subject within a counted window.
    Load(Unit),
    /// Connections held, in this state; memory of the subject before and during.
    Held { connections: usize },
    /// A fixed rate on 64 connections, alone and then beside this many idle ones.
    Beside { idle: usize },
    /// From exec to the first answered handshake, and the memory after it.
    Startup,
    /// Of the program's file.
    Size,
    /// The same of a build of these sources that leaves out what a sidecar alone does not need.
    SizeAlone,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unit {
    Request,
    Handshake,
    Bytes,
}

pub(super) struct Work {
    pub(super) name: &'static str,
    pub(super) about: &'static str,
    pub(super) port: Port,
    pub(super) kind: Kind,
    /// The load generator's mode and its arguments.
    pub(super) mode: &'static str,
    pub(super) arguments: &'static [&'static str],
    pub(super) http2: bool,
}

/// A figure of a sample and how tables call it.
#[derive(Clone, Copy)]
pub(super) struct Figure {
    pub(super) key: &'static str,
    pub(super) title: &'static str,
}

const fn figure(key: &'static str, title: &'static str) -> Figure {
    Figure { key, title }
}

const REQUESTS: &[Figure] = &[
    figure("cpu_us", "CPU µs per request"),
    figure("per_second", "requests/s"),
    figure("p50_us", "p50 µs"),
    figure("p99_us", "p99 µs"),
    figure("p999_us", "p99.9 µs"),
    figure("core_percent", "core %"),
];
const HANDSHAKES: &[Figure] = &[
    figure("cpu_us", "CPU µs per handshake"),
    figure("per_second", "handshakes/s"),
    figure("p50_us", "p50 µs"),
    figure("p99_us", "p99 µs"),
    figure("core_percent", "core %"),
];
const BYTES: &[Figure] = &[
    figure("cpu_us_per_mb", "CPU µs per MB"),
    figure("gb_per_cpu_second", "GB per CPU second"),
    figure("gb_per_second", "GB/s"),
    figure("core_percent", "core %"),
];
const HELD: &[Figure] = &[
    figure("kb_per_connection", "KB per connection"),
    figure("rss_mb", "MB before"),
    figure("rss_held_mb", "MB with them"),
    figure("connections", "connections"),
    figure("kb_left", "KB per connection left after they closed"),
];
const BESIDE: &[Figure] = &[
    figure("p99_us", "p99 µs beside them"),
    figure("p99_alone_us", "p99 µs alone"),
    figure("p50_us", "p50 µs beside them"),
    figure("p50_alone_us", "p50 µs alone"),
    figure("connections", "idle connections"),
];
const STARTUP: &[Figure] = &[
    figure("ms", "ms"),
    figure("rss_mb", "MB resident after it"),
    figure("pss_mb", "MB proportional"),
    figure("anonymous_mb", "MB anonymous"),
];
const SIZE: &[Figure] = &[
    figure("mb", "MB"),
    figure("with_libraries_mb", "MB with the shared libraries it loads"),
];

impl Work {
    pub(super) fn of(name: &str) -> Option<&'static Self> {
        WORKS.iter().find(|work| work.name == name)
    }

    /// The first is the one to compare.
    pub(super) fn figures(&self) -> &'static [Figure] {
        match self.kind {
            Kind::Load(Unit::Request) => REQUESTS,
            Kind::Load(Unit::Handshake) => HANDSHAKES,
            Kind::Load(Unit::Bytes) => BYTES,
            Kind::Held { .. } => HELD,
            Kind::Beside { .. } => BESIDE,
            Kind::Startup => STARTUP,
            Kind::Size | Kind::SizeAlone => SIZE,
        }
    }

    /// The figure that subjects are compared by: the first, but where the rate is given the time.
    pub(super) fn compared(&self) -> Figure {
        let timed = self.arguments.contains(&"--rate");
        let mut figures = self.figures().iter();
        let found = figures.find(|figure| !timed || figure.key == "p99_us");
        found.copied().unwrap_or(figure("cpu_us", "CPU µs"))
    }

    /// Whether the client shows its certificate.
    pub(super) fn with_certificate(&self) -> bool {
        self.port == Port::Mtls
    }

    /// Whether what else the machine does makes a sample worthless.
    pub(super) fn is_timed(&self) -> bool {
        matches!(
            self.kind,
            Kind::Load(_) | Kind::Beside { .. } | Kind::Startup
        )
    }
}

const fn load(
    name: &'static str,
    about: &'static str,
    port: Port,
    unit: Unit,
    mode: &'static str,
    arguments: &'static [&'static str],
) -> Work {
    Work {
        name,
        about,
        port,
        kind: Kind::Load(unit),
        mode,
        arguments,
        http2: false,
    }
}

const fn over_http2(mut work: Work) -> Work {
    work.http2 = true;
    work
}

const fn other(
    name: &'static str,
    about: &'static str,
    kind: Kind,
    mode: &'static str,
    arguments: &'static [&'static str],
) -> Work {
    Work {
        name,
        about,
        port: Port::Mtls,
        kind,
        mode,
        arguments,
        http2: false,
    }
}

pub(super) const WORKS: &[Work] = &[
    load(
        "h1_tls",
        "HTTP/1.1 keep-alive over TLS, 64 connections, answers of 128 bytes",
        Port::Tls,
        Unit::Request,
        "h1",
        &["--conns", "64"],
    ),
    load(
        "h1_mtls",
        "the same with a client certificate",
        Port::Mtls,
        Unit::Request,
        "h1",
        &["--conns", "64"],
    ),
    load(
        "h1_rate",
        "the same at a fixed rate of 3,000 requests/s; a request counts from when it was due",
        Port::Mtls,
        Unit::Request,
        "h1",
        &["--conns", "64", "--rate", "3000"],
    ),
    load(
        "h1_16k",
        "HTTP/1.1 over TLS, 64 connections, answers of 16 KB",
        Port::Tls,
        Unit::Request,
        "h1",
        &["--conns", "64", "--path", "/b/16384"],
    ),
    load(
        "h1_1m",
        "HTTP/1.1 over TLS, 8 connections, answers of 1 MB",
        Port::Tls,
        Unit::Bytes,
        "h1",
        &["--conns", "8", "--path", "/b/1048576"],
    ),
    load(
        "h1_up_1m",
        "HTTP/1.1 over TLS, 8 connections, requests of 1 MB",
        Port::Tls,
        Unit::Bytes,
        "h1",
        &["--conns", "8", "--upload", "1048576", "--path", "/b/0"],
    ),
    over_http2(load(
        "h2_tls",
        "HTTP/2 over TLS, 4 connections of 16 streams, answers of 128 bytes",
        Port::Tls,
        Unit::Request,
        "h2",
        &["--conns", "4", "--streams", "16"],
    )),
    over_http2(load(
        "h2_mtls",
        "the same with a client certificate",
        Port::Mtls,
        Unit::Request,
        "h2",
        &["--conns", "4", "--streams", "16"],
    )),
    over_http2(load(
        "h2_1m",
        "HTTP/2 over TLS, 4 connections of 2 streams, answers of 1 MB",
        Port::Tls,
        Unit::Bytes,
        "h2",
        &["--conns", "4", "--streams", "2", "--path", "/b/1048576"],
    )),
    over_http2(load(
        "h2_up_1m",
        "the same with requests of 1 MB",
        Port::Tls,
        Unit::Bytes,
        "h2",
        &[
            "--conns",
            "4",
            "--streams",
            "2",
            "--upload",
            "1048576",
            "--path",
            "/b/0",
        ],
    )),
    load(
        "orig",
        "outbound: plain HTTP/1.1 in on 64 connections, mTLS out over pooled ones",
        Port::Orig,
        Unit::Request,
        "h1",
        &["--conns", "64", "--plain"],
    ),
    load(
        "hs_tls",
        "full TLS 1.3 handshakes, P-256 certificate, X25519, 16 at once",
        Port::Tls,
        Unit::Handshake,
        "handshake",
        &["--conns", "16"],
    ),
    load(
        "hs_mtls",
        "the same with a P-256 client certificate",
        Port::Mtls,
        Unit::Handshake,
        "handshake",
        &["--conns", "16"],
    ),
    load(
        "hs_resume",
        "resumed TLS 1.3 handshakes, by tickets, 16 at once",
        Port::Tls,
        Unit::Handshake,
        "handshake",
        &["--conns", "16", "--resume"],
    ),
    load(
        "hs_request",
        "mTLS handshake, one request, close; 16 at once",
        Port::Mtls,
        Unit::Handshake,
        "handshake",
        &["--conns", "16", "--request"],
    ),
    load(
        "tcp_down",
        "bytes from the application over TLS (the subject encrypts), 4 connections",
        Port::Tcp,
        Unit::Bytes,
        "stream",
        &["--dir", "down", "--conns", "4"],
    ),
    load(
        "tcp_up",
        "bytes to the application over TLS (the subject decrypts), 4 connections",
        Port::Tcp,
        Unit::Bytes,
        "stream",
        &["--dir", "up", "--conns", "4"],
    ),
    load(
        "relay_down",
        "bytes without TLS, 4 connections: a floor",
        Port::Relay,
        Unit::Bytes,
        "stream",
        &["--dir", "down", "--conns", "4", "--plain"],
    ),
    load(
        "relay_h1",
        "HTTP/1.1 through a relay of bytes without TLS, 64 connections: a floor",
        Port::Relay,
        Unit::Request,
        "h1",
        &["--conns", "64", "--plain"],
    ),
    load(
        "relay_rate",
        "the same at a fixed rate of 3,000 requests/s: a floor of latency",
        Port::Relay,
        Unit::Request,
        "h1",
        &["--conns", "64", "--plain", "--rate", "3000"],
    ),
    other(
        "idle",
        "8,000 mTLS connections, one HTTP/1.1 request on each, then idle",
        Kind::Held { connections: 8000 },
        "idle",
        &["--request"],
    ),
    other(
        "active",
        "2,000 mTLS connections, the application at work on a request of each",
        Kind::Held { connections: 2000 },
        "idle",
        &["--request", "--path", "/hold", "--unanswered"],
    ),
    other(
        "idle_busy",
        "3,000 requests/s on 64 mTLS connections, alone and beside 10,000 idle ones",
        Kind::Beside { idle: 10_000 },
        "h1",
        &["--conns", "64", "--rate", "3000"],
    ),
    other(
        "startup",
        "from exec to the first answered mTLS handshake",
        Kind::Startup,
        "probe",
        &[],
    ),
    other("size", "of the program's file", Kind::Size, "", &[]),
    other(
        "size_alone",
        "of the file of a sidecar alone, built for this",
        Kind::SizeAlone,
        "",
        &[],
    ),
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_test_has_a_name_of_its_own() {
        let names: BTreeSet<_> = WORKS.iter().map(|work| work.name).collect();
        assert_eq!(names.len(), WORKS.len());
    }

    #[test]
    fn what_is_compared_is_among_the_figures() {
        for work in WORKS {
            let compared = work.compared().key;
            assert!(work.figures().iter().any(|figure| figure.key == compared));
        }
    }
}
