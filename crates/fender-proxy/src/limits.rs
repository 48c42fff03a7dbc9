//! Every bound of the data plane in one place, each with its default and the reason for it.
//!
//! A bound is never "none": what a peer can make us hold is finite, and so is the time it may take.

use std::time::Duration;

/// What one proxy lets its peers, its app and itself take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections open at a time, inbound and outbound each, so that a flood from outside never
    /// takes the app's own way out; and as many HTTP connections to the app, however many streams
    /// share a peer's connection: a request waits for one and is refused after `establish`. 8,192:
    /// two descriptors each fit the common hard limit of 20,000.
    pub connections: usize,
    /// From `accept` to the first byte that is carried: handshake, decision and the way to the
    /// other side together. 10 s: several round trips across the world, and too short to hoard.
    pub establish: Duration,
    /// How much of it a peer's handshake gets while no slot is free for others. 1 s: two round trips
    /// across the world still fit, a crowd of silent sockets must be renewed each second.
    pub handshake: Duration,
    /// One head, of a request or a response, line ends included. 32 KiB: cookies and tokens fit, floods
    /// do not.
    pub head_bytes: usize,
    /// Fields of one head. 100, as hyper and nginx.
    pub head_fields: usize,
    /// The request target. 8 KiB, as most servers.
    pub target_bytes: usize,
    /// From the first byte of a head to its last. 10 s: a slow phone makes it, a slow loris not.
    pub head_time: Duration,
    /// Waiting for the next request on a kept connection. 5 min: longer than the pools of clients
    /// keep theirs, so that it is them who close.
    pub idle: Duration,
    /// How long an idle HTTP/1 connection may still bring a request once a drain has begun; it is
    /// answered and the connection closed. 1 s: closing at once would meet requests on their way.
    pub last_call: Duration,
    /// Without a byte moving, while a request body is awaited or a response cannot be written.
    /// 5 min: a consumer may be slow, not dead.
    pub stall: Duration,
    /// Without a byte moving after one side of a relayed connection has finished. 5 min; while both
    /// sides are open a relay may be silent for ever, databases are.
    pub half_closed: Duration,
    /// From the whole request to the head of the app's response. 1 h: long polling and streams
    /// that send nothing at first are honest uses, and the app is the one we trust.
    pub response: Duration,
    /// HTTP/2 streams of one connection at a time. 128: above the 100 the RFC calls a minimum.
    pub streams: u32,
    /// HTTP/2 streams reset by the peer before we took them up (CVE-2023-44487). 20, as h2.
    pub peer_resets: usize,
    /// HTTP/2 streams we had to reset on one connection before it ends. 256: mistakes are few.
    pub own_resets: usize,
    /// Flow-control window of one HTTP/2 stream, thus what is held of a body nobody reads. 256 KiB.
    pub stream_window: u32,
    /// The same for all streams of one connection. 1 MiB.
    pub connection_window: u32,
    /// How often a silent HTTP/2 peer is pinged. 30 s, and as long to answer.
    pub ping: Duration,
    /// Idle connections kept to one app or one destination. 64: bursts are served without connecting anew.
    pub pool: usize,
    /// How long an idle connection to the app may be used again. 1 s: shorter than the keep-alive of
    /// any common server, so that it never closes under a request; a new one on loopback costs
    /// microseconds.
    pub pool_idle: Duration,
    /// How long an idle connection to another workload may be used again. 60 s: its sidecar keeps them
    /// for `idle`, and a handshake costs both sides a hundred times what a request does.
    pub peer_idle: Duration,
    /// The same for an upstream outside the mesh. 4 s: many servers close after five.
    pub upstream_idle: Duration,
    /// How long a connection to another workload or an upstream takes new requests at all. 30 s: whoever
    /// does not sever whom it stopped to believe asks again at the next handshake.
    pub link_age: Duration,
    /// What is read and thrown away of a refused request, so that the answer is not lost in a reset.
    /// 256 KiB.
    pub linger_bytes: usize,
    /// How long that may take. 1 s.
    pub linger: Duration,
    /// Identities with labels of their own in metrics, for each direction; those who come later share one. 100: what one
    /// application is called by in most meshes, and some thousand series at most.
    pub metric_peers: usize,
    /// Lines about failed handshakes in one second. 10: enough to see an attack, not to be one.
    pub handshake_lines: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 8192,
            establish: Duration::from_secs(10),
            handshake: Duration::from_secs(1),
            head_bytes: 32 * 1024,
            head_fields: 100,
            target_bytes: 8 * 1024,
            head_time: Duration::from_secs(10),
            idle: Duration::from_secs(5 * 60),
            last_call: Duration::from_secs(1),
            stall: Duration::from_secs(5 * 60),
            half_closed: Duration::from_secs(5 * 60),
            response: Duration::from_secs(60 * 60),
            streams: 128,
            peer_resets: 20,
            own_resets: 256,
            stream_window: 256 * 1024,
            connection_window: 1024 * 1024,
            ping: Duration::from_secs(30),
            pool: 64,
            pool_idle: Duration::from_secs(1),
            peer_idle: Duration::from_secs(60),
            upstream_idle: Duration::from_secs(4),
            link_age: Duration::from_secs(30),
            linger_bytes: 256 * 1024,
            linger: Duration::from_secs(1),
            metric_peers: 100,
            handshake_lines: 10,
        }
    }
}
