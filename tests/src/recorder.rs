//! Applications that write down every request they took off the wire, in their own reading of it.

use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::process::{Process, free_address, installed, wait_for_port};

/// Where an application of Python's believes a body to end: see `tests/python/recorder.py`.
#[derive(Clone, Copy, Debug)]
pub enum Habit {
    Length,
    Chunks,
    Ignores,
}

impl Habit {
    fn word(self) -> &'static str {
        match self {
            Self::Length => "length",
            Self::Chunks => "chunks",
            Self::Ignores => "ignores",
        }
    }
}

/// One request as the application read it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taken {
    pub method: String,
    pub target: String,
    /// Bytes of the body.
    pub length: usize,
    /// Fields and trailers; none where the application does not say.
    pub fields: Vec<(String, String)>,
}

/// A running application, and how far its log has been read.
pub struct Recorder {
    pub name: &'static str,
    pub address: SocketAddr,
    pub process: Process,
    log: PathBuf,
    read: u64,
}

impl Recorder {
    /// nginx, which passes each request on to itself, so that it has to read the body.
    pub fn nginx(directory: &Path) -> Self {
        let address = free_address();
        let home = directory.join("recorder-nginx");
        fs::create_dir_all(&home).expect("make a directory");
        let log = home.join("taken");
        let home = home.to_str().expect("a path of text");
        let config = format!(
            r#"daemon off;
worker_processes 1;
user root;
pid {home}/pid;
error_log {home}/error.log;
events {{ worker_connections 4096; }}
http {{
  log_format taken escape=json '{{"status":$status,"method":"$request_method","request":"$request","body":"$request_body"}}';
  keepalive_requests 1000000;
  client_body_buffer_size 1m;
  large_client_header_buffers 8 64k;
  client_body_temp_path {home}/body;
  proxy_temp_path {home}/proxy;
  fastcgi_temp_path {home}/fastcgi;
  uwsgi_temp_path {home}/uwsgi;
  scgi_temp_path {home}/scgi;
  ignore_invalid_headers off;
  underscores_in_headers on;
  server {{
    listen {address};
    access_log {home}/taken taken;
    location / {{ proxy_pass http://unix:{home}/inner:; proxy_set_header Host inner; }}
  }}
  server {{
    listen unix:{home}/inner;
    large_client_header_buffers 8 64k;
    access_log off;
    default_type text/plain;
    location / {{ return 200 "$request_method $request_uri\n"; }}
  }}
}}
"#
        );
        let file = format!("{home}/nginx.conf");
        fs::write(&file, config).expect("write nginx.conf");
        let mut command = Command::new(installed("nginx"));
        command.args(["-c", &file, "-p", home, "-e", &format!("{home}/error.log")]);
        let mut process = Process::start("nginx", &mut command, &Path::new(home).join("out.log"));
        wait_for_port(address, &mut process);
        Self::of("nginx", address, process, log)
    }

    /// Python's `http.server`.
    pub fn python(directory: &Path, habit: Habit) -> Self {
        let (address, word) = (free_address(), habit.word());
        let log = directory.join(format!("recorder-python-{word}"));
        fs::write(&log, "").expect("write a file");
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("python/recorder.py");
        let mut command = Command::new(installed("python3"));
        command
            .arg(script)
            .args([address.ip().to_string(), address.port().to_string()])
            .arg(&log)
            .arg(word);
        let out = directory.join(format!("recorder-python-{word}.out"));
        let mut process = Process::start("python", &mut command, &out);
        wait_for_port(address, &mut process);
        let name = match habit {
            Habit::Length => "python that believes lengths",
            Habit::Chunks => "python that believes chunks",
            Habit::Ignores => "python that ignores bodies",
        };
        Self::of(name, address, process, log)
    }

    fn of(name: &'static str, address: SocketAddr, process: Process, log: PathBuf) -> Self {
        Self {
            name,
            address,
            process,
            log,
            read: 0,
        }
    }

    /// The requests that were taken since the last call, whole ones only: what broke off on its way
    /// was never a request.
    pub fn taken(&mut self) -> Vec<Taken> {
        let mut file = fs::File::open(&self.log).expect("open the log");
        file.seek(SeekFrom::Start(self.read)).expect("seek");
        let mut new = Vec::new();
        file.read_to_end(&mut new).expect("read the log");
        let end = new
            .iter()
            .rposition(|byte| *byte == b'\n')
            .map_or(0, |at| at + 1);
        new.truncate(end);
        self.read += end as u64;
        let text = String::from_utf8_lossy(&new);
        text.lines().filter_map(taken).collect()
    }
}

/// One line of either log; nothing if the request was not whole.
fn taken(line: &str) -> Option<Taken> {
    let line: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    if let Some(status) = line.get("status") {
        let mut words = line["request"].as_str().unwrap_or_default().split(' ');
        return (status == 200).then(|| Taken {
            method: text(&line["method"]),
            target: words.nth(1).unwrap_or_default().to_owned(),
            length: line["body"].as_str().unwrap_or_default().len(),
            fields: Vec::new(),
        });
    }
    let fields = line["fields"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    (line["whole"] == true).then(|| Taken {
        method: text(&line["method"]),
        target: text(&line["target"]),
        length: line["length"]
            .as_u64()
            .and_then(|length| usize::try_from(length).ok())
            .unwrap_or(usize::MAX),
        fields: fields
            .iter()
            .map(|field| (text(&field[0]), text(&field[1])))
            .collect(),
    })
}
