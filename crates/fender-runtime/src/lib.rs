//! Tokio furniture without domain words.
//!
//! What every server of the house needs and none should write twice: a listener that can be passed
//! on ([`listen`]), an accept loop that neither spins nor dies ([`accept`]), tasks that end when
//! they are told to ([`drain`]), one deadline for a whole establishment ([`deadline`]), jittered
//! backoff ([`backoff`]), small files of others ([`file`](mod@file)), the wall clock as a value ([`clock`]), the log ([`telemetry`]), lines
//! written beside the work ([`lines`]) or only so often ([`pace`]), how much ([`share`]) and how often ([`rate`]) somebody may, what a
//! monitoring system reads ([`metrics`](mod@metrics)), what processes of one machine pass to each other ([`courier`]), programs that
//! are run for what they answer ([`program`]) and what a service manager is told ([`manager`]).
//!
//! It knows no certificate, policy or secret, and no other crate of the house.

pub mod accept;
pub mod backoff;
pub mod clock;
pub mod courier;
pub mod deadline;
pub mod drain;
pub mod file;
pub mod id;
pub mod lines;
pub mod listen;
pub mod manager;
pub mod metrics;
pub mod pace;
pub mod program;
pub mod random;
pub mod rate;
pub mod share;
pub mod sys;
pub mod telemetry;
