//! Pebble, the ACME authority that Let's Encrypt tests clients with, and a DNS that knows every name as this machine.
//!
//! It forgets everything when it ends, refuses some good nonces, and asks at once.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::Command;

use tempfile::TempDir;

use crate::pki::Authority;
use crate::process::{Process, free_address, installed, output, wait_for_port};

/// A key that an authority would have given to a customer.
pub const CUSTOMER: &str = "customer-1";
pub const CUSTOMER_KEY: &str = "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W";

pub struct Pebble {
    address: SocketAddr,
    management: SocketAddr,
    server: Option<Process>,
    _dns: Process,
    dns: SocketAddr,
    /// Gone last: the processes say what they have to say from it.
    directory: TempDir,
}

/// Where it asks, and what it gives.
pub struct Offer {
    /// Where TLS-ALPN-01 is asked.
    pub tls: u16,
    /// Where HTTP-01 is asked.
    pub http: u16,
    /// Seconds that a certificate is good for.
    pub lifetime: u32,
    pub customers_only: bool,
}

impl Pebble {
    /// Not yet running.
    pub fn new(offer: &Offer) -> Self {
        let directory = tempfile::Builder::new()
            .prefix("fender-pebble-")
            .tempdir()
            .expect("make a temporary directory");
        let authority = Authority::new("pebble.internal");
        let host = IpAddr::from(Ipv4Addr::LOCALHOST);
        authority.issue_for_address(host).write(directory.path());
        authority.write_bundle(directory.path());
        let (address, management, dns) = (free_address(), free_address(), free_address());
        let home = directory.path().display();
        let Offer {
            tls,
            http,
            lifetime,
            customers_only,
        } = offer;
        let config = format!(
            r#"{{ "pebble": {{
  "listenAddress": "{address}", "managementListenAddress": "{management}",
  "certificate": "{home}/certificate.pem", "privateKey": "{home}/key.pem",
  "tlsPort": {tls}, "httpPort": {http}, "certificateValidityPeriod": {lifetime},
  "ocspResponderURL": "", "externalAccountBindingRequired": {customers_only},
  "externalAccountMACKeys": {{ "{CUSTOMER}": "{CUSTOMER_KEY}" }}
}} }}"#
        );
        fs::write(directory.path().join("pebble.json"), config).expect("write pebble.json");
        let mut command = Command::new(installed("pebble-challtestsrv"));
        command.args(["-http01", "", "-https01", "", "-tlsalpn01", ""]);
        command.args(["-defaultIPv6", "", "-dns01", &dns.to_string()]);
        command.args(["-management", &free_address().to_string()]);
        let log = directory.path().join("dns.log");
        let mut names = Process::start("pebble's DNS", &mut command, &log);
        wait_for_port(dns, &mut names);
        Self {
            directory,
            address,
            management,
            server: None,
            _dns: names,
            dns,
        }
    }

    /// Starts it, with another root than before.
    pub fn up(&mut self) {
        let mut command = Command::new(installed("pebble"));
        command
            .arg("-config")
            .arg(self.directory.path().join("pebble.json"));
        command.args(["-dnsserver", &self.dns.to_string()]);
        command
            .env("PEBBLE_VA_NOSLEEP", "1")
            .env("PEBBLE_WFE_NONCEREJECT", "15");
        let log = self.directory.path().join("log");
        let mut server = Process::start("pebble", &mut command, &log);
        wait_for_port(self.address, &mut server);
        wait_for_port(self.management, &mut server);
        self.server = Some(server);
    }

    pub fn down(&mut self) {
        self.server = None;
    }

    pub fn directory(&self) -> String {
        format!("https://{}/dir", self.address)
    }

    /// Who vouches for the directory itself.
    pub fn roots(&self) -> PathBuf {
        self.directory.path().join("bundle.pem")
    }

    /// Who vouches for what it issues now, as a file of that name in `directory`.
    pub fn write_issuing_root(&self, path: &std::path::Path) {
        let url = format!("https://{}/roots/0", self.management);
        let roots = self.roots();
        let roots = roots.to_str().expect("a path of text");
        let (code, root, err) = output(
            installed("curl"),
            &["-sS", "--fail", "--cacert", roots, &url],
        );
        assert_eq!(code, 0, "{err}");
        fs::write(path, root).expect("write the root");
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }
}
