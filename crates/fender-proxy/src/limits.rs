//! Every bound of the data plane in one place, each with its default and the reason for it.
//!
//! A bound is never "none": what a peer can make us hold is finite, and so is the time it may take.

use std::sync::Arc;
use std::time::Duration;

use fender_config::snapshot::RequestLimits;
use fender_wire::head;

/// What one proxy lets its peers, its app and itself take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Inbound connections open at a time; one to a `tcp` port counts twice, because it holds a
    /// connection to the app as well. 12,288: with `links` and `outbound` the descriptors of a hard
    /// limit of 20,000, and proportionally fewer where it is lower ([`Limits::within`]).
    pub connections: usize,
    /// Of those, counted alike, from one address, or from one network (/64) of IPv6; of what a balancer passes on with a
    /// PROXY header, from one address behind it. 6,144: one host leaves half of the room to others, and
    /// everybody behind a NAT still fits.
    pub connections_per_address: usize,
    /// How long every connection may be taken before those that come are turned away, rather than left
    /// waiting in the kernel. 2 s: longer than a handshake gets in a crowd, so that silence gives way first.
    pub full: Duration,
    /// HTTP connections to the apps, however many streams share a peer's connection, and to an app of HTTP/2 the requests
    /// on them, since each holds as much: a request waits for room and is refused after `establish`. 3,072.
    pub links: usize,
    /// Of those, held by requests from one address, counted as connections are: the next waits for one of its own, and is
    /// refused after `establish`. 1,536: the callers of one host leave half of the app to others.
    pub links_per_address: usize,
    /// Requests to the apps at a time whose response has not begun, those that wait for a connection to the app included: the
    /// next is refused at once, because each holds its head. 4,096: every connection to the apps at work, and a thousand waiting.
    pub unanswered: usize,
    /// Of those, from one address, counted as connections are. 2,048: half.
    pub unanswered_per_address: usize,
    /// Outbound connections of the app open at a time, counted apart, so that a flood from outside never
    /// takes its way out; two descriptors each. 2,048.
    pub outbound: usize,
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
    /// The body of a request; a larger one is refused (413), before the app hears of it where its length is declared.
    /// Any size: nothing is held of one but what the windows below say.
    pub body_bytes: u64,
    /// Waiting for the next request on a kept connection. 5 min: longer than the pools of clients
    /// keep theirs, so that it is them who close.
    pub idle: Duration,
    /// How long an idle HTTP/1 connection may still bring a request once a drain has begun; it is
    /// answered and the connection closed. 1 s: closing at once would meet requests on their way. Where a successor
    /// serves, such a connection may wait for almost as long as the drain takes instead.
    pub last_call: Duration,
    /// Without a byte moving, while a request body is awaited or a response cannot be written.
    /// 5 min: a consumer may be slow, not dead. In HTTP/2 a body is awaited for no longer than `request` once its response
    /// has begun: then both sides converse, as streams of gRPC do, and either may have nothing to say.
    pub stall: Duration,
    /// Without a byte moving after one side of a relayed connection has finished. 5 min; while both
    /// sides are open a relay may be silent for ever, databases are.
    pub half_closed: Duration,
    /// From the whole request to the head of the app's response. 1 h: long polling and streams
    /// that send nothing at first are honest uses, and the app is the one we trust.
    pub response: Duration,
    /// From the whole head of a request to the last byte of its response, and never past it however slowly
    /// it trickles. 24 h: who watches for longer asks again; what changed protocols is not counted.
    pub request: Duration,
    /// HTTP/2 streams of one connection at a time. 128: above the 100 the RFC calls a minimum.
    pub streams: u32,
    /// HTTP/2 streams reset by the peer before we took them up (CVE-2023-44487). 20, as h2.
    pub peer_resets: usize,
    /// HTTP/2 requests of one connection that the peer gave up before their response had begun, and `streams` more each
    /// second; the app may be at work on them still (CVE-2023-44487). 1,000, as nghttp2: whoever leaves a page gives up a
    /// hundred, and deadlines of a second or more never come to it, though the app hangs and all streams run into them.
    pub given_up: u32,
    /// HTTP/2 streams we had to reset on one connection before it ends. 256: mistakes are few.
    pub own_resets: usize,
    /// Flow-control window of one HTTP/2 stream, thus what is held of a body nobody reads, and likewise of a
    /// response. 128 KiB: a hundred megabytes a second over a way of a millisecond. Of a connection it is 64 KiB, and as much
    /// more for each stream that brings a body, so that however many uploads stand still the others move.
    pub stream_window: u32,
    /// What the windows of all HTTP/2 connections may be together, beyond the 64 KiB that each has. 512 MiB: four thousand
    /// uploads that stand still at once. A connection keeps what it was given until it ends; one that comes when nothing is
    /// left has its 64 KiB, and is served more slowly.
    pub windows: usize,
    /// What is read of one HTTP/2 connection before the bodies that came in it are looked at, and what nobody takes is copied
    /// together. 64 KiB: what TLS opens at once, thus few writes to the app.
    pub turn: usize,
    /// The frames that may come in it: the head of one is held in some hundred bytes until it is looked at, and a body of one byte
    /// has at most so many of its like for company. 1,600: as many of the smallest as fit one record of TLS.
    pub turn_frames: usize,
    /// What one HTTP/2 connection holds of responses that its socket has not taken, of all streams together: a peer that opens
    /// its windows and reads nothing. 128 KiB: two writes ahead; the kernel holds what is on its way.
    pub unwritten: u32,
    /// Flow-control window of one stream to an app of HTTP/2, thus what is held of a response nobody reads; that of the
    /// connection has room for all streams, so that none waits for another to be read. 64 KiB: loopback has no latency to
    /// fill, and 128 streams hold 8 MiB together.
    pub app_stream_window: u32,
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
    /// What a span says of a path, in bytes. 1 KiB: longer than the paths that people look for, and many spans may wait.
    pub span_path: usize,
    /// Lines about failed handshakes in one second. 10: enough to see an attack, not to be one.
    pub handshake_lines: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 12_288,
            connections_per_address: 6144,
            full: Duration::from_secs(2),
            links: 3072,
            links_per_address: 1536,
            unanswered: 4096,
            unanswered_per_address: 2048,
            outbound: 2048,
            establish: Duration::from_secs(10),
            handshake: Duration::from_secs(1),
            head_bytes: 32 * 1024,
            head_fields: 100,
            target_bytes: 8 * 1024,
            head_time: Duration::from_secs(10),
            body_bytes: u64::MAX,
            idle: Duration::from_secs(5 * 60),
            last_call: Duration::from_secs(1),
            stall: Duration::from_secs(5 * 60),
            half_closed: Duration::from_secs(5 * 60),
            response: Duration::from_secs(60 * 60),
            request: Duration::from_secs(24 * 60 * 60),
            streams: 128,
            peer_resets: 20,
            given_up: 1000,
            own_resets: 256,
            stream_window: 128 * 1024,
            windows: 512 * 1024 * 1024,
            turn: 64 * 1024,
            turn_frames: 1600,
            unwritten: 128 * 1024,
            app_stream_window: 64 * 1024,
            ping: Duration::from_secs(30),
            pool: 64,
            pool_idle: Duration::from_secs(1),
            peer_idle: Duration::from_secs(60),
            upstream_idle: Duration::from_secs(4),
            link_age: Duration::from_secs(30),
            linger_bytes: 256 * 1024,
            linger: Duration::from_secs(1),
            metric_peers: 100,
            span_path: 1024,
            handshake_lines: 10,
        }
    }
}

/// The hard limit on descriptors for which the defaults are made.
const DESCRIPTORS: u64 = 20_000;

impl Limits {
    /// The defaults, as far as so many descriptors reach.
    pub fn within(descriptors: u64) -> Self {
        let all = Self::default();
        let descriptors = descriptors.min(DESCRIPTORS);
        let share = |of: usize| {
            let share = (of as u64 * descriptors / DESCRIPTORS).max(1);
            usize::try_from(share).unwrap_or(of)
        };
        Self {
            connections: share(all.connections),
            connections_per_address: share(all.connections_per_address),
            links: share(all.links),
            links_per_address: share(all.links_per_address),
            unanswered: share(all.unanswered),
            unanswered_per_address: share(all.unanswered_per_address),
            outbound: share(all.outbound),
            ..all
        }
    }

    /// What holds at a port for which documents say this.
    pub(crate) fn of_port(self: &Arc<Self>, said: &RequestLimits) -> Arc<Self> {
        if *said == RequestLimits::default() {
            return self.clone();
        }
        let size = |said: Option<u64>, own: usize| {
            said.map_or(own, |said| usize::try_from(said).unwrap_or(usize::MAX))
        };
        let streams = said
            .streams
            .map(|said| u32::try_from(said).unwrap_or(u32::MAX));
        Arc::new(Self {
            head_bytes: size(said.head_bytes, self.head_bytes),
            head_fields: size(said.head_fields, self.head_fields),
            head_time: said.head_time.unwrap_or(self.head_time),
            target_bytes: size(said.target_bytes, self.target_bytes),
            body_bytes: said.body_bytes.unwrap_or(self.body_bytes),
            idle: said.idle.unwrap_or(self.idle),
            stall: said.stall.unwrap_or(self.stall),
            response: said.response.unwrap_or(self.response),
            request: said.request.unwrap_or(self.request),
            streams: streams.unwrap_or(self.streams),
            ..Self::clone(self)
        })
    }

    /// How a head is read.
    pub(crate) fn head(&self) -> head::Limits {
        head::Limits {
            bytes: self.head_bytes,
            headers: self.head_fields,
            target: self.target_bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_connection_has_its_descriptors_whatever_their_limit() {
        for descriptors in [1024, 4096, DESCRIPTORS, 1_048_576] {
            let limits = Limits::within(descriptors);
            let held = limits.connections + limits.links + 2 * limits.outbound;
            assert!(
                held as u64 <= descriptors.min(DESCRIPTORS),
                "{descriptors}: {held}"
            );
            assert!(
                held as u64 > descriptors.min(DESCRIPTORS) * 9 / 10,
                "{descriptors}: {held}"
            );
        }
        assert_eq!(Limits::within(u64::MAX), Limits::default());
    }
}
