//! Pure codecs of the data plane: HTTP/1 heads, bodies and paths, the identity header, the PROXY header.
//!
//! Everything here turns bytes into checked values or refuses them by name. Nothing here opens a
//! socket, reads a clock, logs or decides who may call whom. What cannot be read in exactly one way
//! is refused rather than guessed: two readers who disagree about one message are how requests are
//! smuggled past a gate.
//!
//! - [`forwarded`] reads and writes whom a request came through;
//! - [`head`] reads request and response heads (RFC 9112, strictly) as the bytes arrive;
//! - [`body`] decodes and encodes message bodies;
//! - [`connection`] says which fields belong to one hop only;
//! - [`path`] gives the one spelling of a path that is both matched and forwarded;
//! - [`proxy`] reads and writes the header of the PROXY protocol, version 2;
//! - [`trace`] reads the W3C's trace context;
//! - [`xfcc`] writes and recognises the identity header;
//! - [`mod@write`] builds heads that cannot carry an injected line.

pub mod authority;
pub mod body;
pub mod connection;
pub mod fields;
pub mod forwarded;
mod grammar;
pub mod head;
pub mod path;
pub mod proxy;
pub mod trace;
pub mod write;
pub mod xfcc;

pub use authority::Authority;
pub use body::{BodyLimits, Decoder, Encoder, Frame, Framing};
pub use fields::{Field, Fields};
pub use head::{HeadError, HeadReader, Limits, RequestHead, ResponseHead, Version};
