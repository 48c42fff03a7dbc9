//! Applications that nobody here wrote.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use crate::process::{Process, free_address, installed, wait_for_port};

/// nginx, in plain HTTP on loopback.
///
/// `/` answers with the method, the path as it arrived and the identity header; `/file/` serves
/// `DIR/files`.
pub struct Nginx {
    pub address: SocketAddr,
    pub process: Process,
}

impl Nginx {
    pub fn start(directory: &Path) -> Self {
        Self::at(free_address(), directory)
    }

    pub fn at(address: SocketAddr, directory: &Path) -> Self {
        let home = directory.join(format!("nginx-{}", address.port()));
        fs::create_dir_all(home.join("files")).expect("make a directory");
        let home = home.to_str().expect("a path of text");
        let config = format!(
            r#"daemon off;
worker_processes 1;
user root;
pid {home}/pid;
error_log {home}/error.log;
events {{ worker_connections 8192; }}
http {{
  access_log off;
  keepalive_requests 1000000;
  keepalive_timeout 600s;
  client_body_temp_path {home}/body;
  proxy_temp_path {home}/proxy;
  fastcgi_temp_path {home}/fastcgi;
  uwsgi_temp_path {home}/uwsgi;
  scgi_temp_path {home}/scgi;
  client_max_body_size 100m;
  server {{
    listen {address};
    default_type text/plain;
    location / {{ return 200 "$request_method $request_uri\nxfcc=$http_x_forwarded_client_cert\n"; }}
    location /file/ {{ alias {home}/files/; }}
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
        Self { address, process }
    }
}
