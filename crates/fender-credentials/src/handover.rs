//! Credentials handed over at a Unix socket: no file, no port, and nothing a request over a network can be made to reach.
//!
//! Who asks is the kernel's word (`SO_PEERCRED`), taken before anything is read: processes of the users that a document
//! names, and nobody else, not even root. A process whose user has no number in our namespace is nobody. What is handed
//! over is a descriptor of a sealed memory file: whoever has it reads the value, and can neither change nor grow it.
//!
//! The same values are served over HTTP on loopback to those who can ask for nothing else ([`url`]).
//!
//! # The protocol
//!
//! The client connects and says one line, `get NAME`; [`ServedName`](fender_config::snapshot::ServedName) says what a name
//! is. The sidecar says one line and ends:
//!
//! | line | means |
//! |---|---|
//! | `ok GENERATION LENGTH AGE` | with it comes one descriptor: a file of LENGTH bytes, to be read from its beginning. AGE is for how many seconds the value may not have been the newest: 0 as a rule. |
//! | `waiting` | it is for this user, and the sidecar does not have it yet |
//! | `outdated` | it is for this user, and was not refreshed for longer than its document allows |
//! | `withdrawn` | it is for this user, and its source says that it is not to be had any more |
//! | `missing` | there is none of this name for this user; whether there is one for others is not said |
//! | `denied` | no credential is handed to this user |
//! | `busy` | this user has too many connections open |
//! | `malformed` | that was no request |
//!
//! Lines end with a line feed. Descriptors that a client sends along are closed unseen.

mod ask;
mod aws;
mod limits;
mod protocol;
mod registry;
pub(crate) mod sealed;
mod serve;
mod takings;
mod token;
pub mod url;

pub use ask::{AskError, ask};
pub use limits::{SocketLimits, UrlLimits};
pub use protocol::{Answer, Refusal};
pub use registry::{Doors, Handovers};
pub use serve::serve;
pub use takings::{ByCredential as Takings, Consumer, Taking};

pub(crate) use registry::{Audience, Handed, Offer};
pub(crate) use token::Reader;

#[cfg(test)]
mod tests;
