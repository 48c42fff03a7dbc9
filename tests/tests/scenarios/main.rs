//! Whole-program scenarios: the real binary as processes, real applications, real clients.
//!
//! Each module is one promise. Helpers are in the `fender-tests` library.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a scenario fails loudly and prints what it measured"
)]

mod access_log;
mod acme;
mod agent;
mod agent_api;
mod agent_embedded;
mod agent_sockets;
mod attacks;
mod attestation;
mod audit_log;
mod aws;
mod berth;
mod cache;
mod canary;
mod certificate_credentials;
mod compose;
mod consumption;
mod control_loss;
mod credentials;
mod credentials_url;
mod credentials_url_socket;
mod deliverers;
mod demo;
mod descriptors;
mod docker_secrets;
mod documents;
mod drain;
mod environment_secrets;
mod envoy;
mod exec_supervised;
mod faults;
mod file_sets;
mod floods;
mod founding;
mod frames;
mod front;
mod handover;
mod idle;
mod init;
mod kubernetes_secrets;
mod limits;
mod masking;
mod notify;
mod offline_root;
mod pages;
mod paths;
mod plugins;
mod protocols;
mod reload;
mod renewal;
mod replicas;
mod revocation;
mod sealed;
mod secrecy;
mod service_manager;
mod smuggling;
mod standalone;
mod supervision;
mod supervisor;
mod telemetry;
mod terminal;
mod tls;
mod tokens;
mod tour;
mod traces;
mod upgrade;
mod vault;
mod watch;
mod workload_api;
